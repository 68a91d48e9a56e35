//! Decides whether the guest's network may still be coming up (KP-3.17), from the kernel's data.

use std::fs;
use std::path::Path;

/// Returns true if a route may still come up: a link is up, and there is no default route yet, which DHCP would
/// bring. Without a link no route comes up by itself. If there is a default route, an unreachable address stays
/// unreachable.
pub(super) fn is_network_pending() -> bool {
    let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
    has_carrier(Path::new("/sys/class/net")) && !has_default_route(&routes)
}

/// Returns true if an interface other than loopback has a carrier. The kernel does not report the carrier of an
/// interface that is down.
fn has_carrier(interfaces: &Path) -> bool {
    fs::read_dir(interfaces).is_ok_and(|entries| {
        entries.flatten().filter(|entry| entry.file_name() != "lo").any(|entry| {
            fs::read_to_string(entry.path().join("carrier")).is_ok_and(|carrier| carrier.trim() == "1")
        })
    })
}

/// Returns true if a table in the format of /proc/net/route has a default route that is not a reject route:
/// proc_pid_net(5).
fn has_default_route(routes: &str) -> bool {
    const RTF_REJECT: u32 = 0x200;
    routes.lines().skip(1).any(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let rejects = |flags: &str| u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & RTF_REJECT != 0);
        matches!(fields.as_slice(), [_, "00000000", _, flags, _, _, _, "00000000", ..] if !rejects(flags))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn default_route_is_recognised() {
        let head = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n";
        for (line, expected) in [
            ("eth0\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n", true),
            ("eth0\t0000FEA9\t00000000\t0001\t0\t0\t1000\t0000FFFF\t0\t0\t0\n", false),
            ("*\t00000000\t00000000\t0201\t0\t0\t100\t00000000\t0\t0\t0\n", false),
            ("", false),
        ] {
            assert_eq!(has_default_route(&format!("{head}{line}")), expected, "{line}");
        }
        assert!(!has_default_route(""));
    }

    #[test]
    fn carrier_is_recognised_without_loopback() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, carrier: Option<&str>| {
            fs::create_dir(folder.path().join(name)).unwrap();
            if let Some(carrier) = carrier {
                fs::write(folder.path().join(name).join("carrier"), carrier).unwrap();
            }
        };
        put("lo", Some("1\n"));
        put("eth0", None);
        put("wlan0", Some("0\n"));
        assert!(!has_carrier(folder.path()));
        put("eth1", Some("1\n"));
        assert!(has_carrier(folder.path()));
        assert!(!has_carrier(&folder.path().join("none")));
    }
}
