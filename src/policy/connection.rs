//! The connections for which the agent queries sshd (KP-6.6): the target user at each listening port, from one IPv4
//! and one IPv6 address that no rule names.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::effective::EffectiveConfig;
use super::observation::Connection;

/// Addresses that no host uses, the preferred one first: documentation (RFC 5737), benchmarking (RFC 2544), reserved.
const NEUTRAL_ADDRESSES_V4: [Ipv4Addr; 8] = [
    Ipv4Addr::new(192, 0, 2, 1),
    Ipv4Addr::new(198, 51, 100, 1),
    Ipv4Addr::new(203, 0, 113, 1),
    Ipv4Addr::new(192, 0, 2, 201),
    Ipv4Addr::new(198, 51, 100, 201),
    Ipv4Addr::new(203, 0, 113, 201),
    Ipv4Addr::new(198, 18, 0, 1),
    Ipv4Addr::new(240, 0, 0, 1),
];

/// The same for IPv6: documentation (RFC 3849, RFC 9637), discard only (RFC 6666).
const NEUTRAL_ADDRESSES_V6: [Ipv6Addr; 4] = [
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0x2001, 0xdb8, 0x8000, 0, 0, 0, 0, 0x201),
    Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1),
];

/// The listener's address in a query if sshd listens on all addresses.
const WILDCARD_STAND_IN_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const WILDCARD_STAND_IN_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);

/// The addresses on which sshd listens, from the `listenaddress` lines of `sshd -T`, in its order. The function drops
/// a zone (`%eth0`) and a routing domain.
pub fn listen_addresses(effective: &EffectiveConfig) -> Vec<SocketAddr> {
    let parse = |line: &String| {
        let (host, port) = line.split_ascii_whitespace().next()?.rsplit_once(':')?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let host = host.split('%').next()?;
        Some(SocketAddr::new(host.parse().ok()?, port.parse().ok()?))
    };
    effective.values("listenaddress").iter().filter_map(parse).collect()
}

/// Whether sshd listens for such a connection: on its port and for its address family (`AddressFamily`,
/// `ListenAddress`). If sshd names no address, it listens for both families.
pub fn listens_for(effective: &EffectiveConfig, connection: &Connection) -> bool {
    let addresses = listen_addresses(effective);
    let is_its_own =
        |own: &SocketAddr| own.port() == connection.lport && own.is_ipv4() == connection.laddr.is_ipv4();
    addresses.is_empty() || addresses.iter().any(is_its_own)
}

/// The ports on which sshd listens, those of `Port` first. An address may have a port of its own.
pub fn listening_ports(effective: &EffectiveConfig) -> Vec<u16> {
    let addresses = listen_addresses(effective);
    let listens =
        |port: &u16| addresses.is_empty() || addresses.iter().any(|address| address.port() == *port);
    let mut ports = Vec::new();
    let all = effective.ports().into_iter().filter(listens).chain(addresses.iter().map(SocketAddr::port));
    for port in all {
        if !ports.contains(&port) {
            ports.push(port);
        }
    }
    ports
}

/// A connection for queries before the agent knows where sshd listens.
pub fn default_neutral_connection(user: &str) -> Connection {
    let addr = IpAddr::V4(NEUTRAL_ADDRESSES_V4[0]);
    Connection {
        user: user.to_owned(),
        host: addr.to_string(),
        addr,
        laddr: WILDCARD_STAND_IN_V4.into(),
        lport: 22,
    }
}

/// The connections that must all have the requested setting. The one at the first port over IPv4 comes first. `hosts`
/// are the host patterns that rules name.
pub fn list_neutral_connections(
    user: &str,
    effective: &EffectiveConfig,
    hosts: &[String],
) -> Vec<Connection> {
    let listen = listen_addresses(effective);
    let of = |port: u16, addr: IpAddr, wildcard: IpAddr| {
        let own = || {
            listen
                .iter()
                .filter(|own| own.port() == port && own.is_ipv4() == addr.is_ipv4())
                .map(SocketAddr::ip)
        };
        let laddr = own().find(|own| !own.is_loopback()).or_else(|| own().next());
        let laddr = laddr.filter(|own| !own.is_unspecified()).unwrap_or(wildcard);
        Connection { user: user.to_owned(), host: addr.to_string(), addr, laddr, lport: port }
    };
    let v4 = pick_neutral_address(&NEUTRAL_ADDRESSES_V4.map(IpAddr::V4), hosts);
    let v6 = pick_neutral_address(&NEUTRAL_ADDRESSES_V6.map(IpAddr::V6), hosts);
    listening_ports(effective)
        .into_iter()
        .flat_map(|port| {
            [of(port, v4, WILDCARD_STAND_IN_V4.into()), of(port, v6, WILDCARD_STAND_IN_V6.into())]
        })
        .collect()
}

/// Connections from loopback, if sshd listens there. Each has the address to connect to and the connection's
/// parameters, IPv4 before IPv6, on the first port that listens there.
pub fn list_loopback_connections(user: &str, effective: &EffectiveConfig) -> Vec<(SocketAddr, Connection)> {
    let listen = listen_addresses(effective);
    let ports = listening_ports(effective);
    let of = |loopback: IpAddr| {
        let reaches = |own: &SocketAddr, port: u16| {
            let is_there =
                own.ip() == loopback || own.ip().is_unspecified() && own.is_ipv4() == loopback.is_ipv4();
            own.port() == port && is_there
        };
        let port = ports.iter().copied().find(|port| listen.iter().any(|own| reaches(own, *port)))?;
        // sshd looks up the client's host name if UseDNS is on.
        let host = if effective.is_yes("usedns") { "localhost".to_owned() } else { loopback.to_string() };
        let connection =
            Connection { user: user.to_owned(), host, addr: loopback, laddr: loopback, lport: port };
        Some((SocketAddr::new(loopback, port), connection))
    };
    [of(Ipv4Addr::LOCALHOST.into()), of(Ipv6Addr::LOCALHOST.into())].into_iter().flatten().collect()
}

/// The first of `candidates` that no pattern names. If patterns name all of them, the first one.
fn pick_neutral_address<const N: usize>(candidates: &[IpAddr; N], hosts: &[String]) -> IpAddr {
    let free = |addr: &&IpAddr| !hosts.iter().any(|pattern| pattern_names_address(pattern, **addr));
    candidates.iter().find(free).copied().unwrap_or(candidates[0])
}

/// Whether a pattern matches this address and some others, but not all: the address itself, a network, a text with
/// wildcards.
fn pattern_names_address(pattern: &str, addr: IpAddr) -> bool {
    let pattern = pattern.strip_prefix('!').unwrap_or(pattern);
    if let Ok(literal) = pattern.parse::<IpAddr>() {
        return literal == addr;
    }
    if let Some((network, prefix)) = pattern.split_once('/') {
        return match (network.parse::<IpAddr>(), prefix.parse::<u32>(), addr) {
            (Ok(IpAddr::V4(network)), Ok(prefix @ 1..=32), IpAddr::V4(addr)) => {
                (u32::from(network) ^ u32::from(addr)) >> (32 - prefix) == 0
            }
            (Ok(IpAddr::V6(network)), Ok(prefix @ 1..=128), IpAddr::V6(addr)) => {
                (u128::from(network) ^ u128::from(addr)) >> (128 - prefix) == 0
            }
            _ => false,
        };
    }
    let has_literal = pattern.contains(|c: char| c.is_ascii_alphanumeric());
    has_literal && matches_ssh_pattern(pattern.as_bytes(), addr.to_string().as_bytes())
}

/// Matches a pattern of ssh_config(5): `*` is any text, `?` is one character.
fn matches_ssh_pattern(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => {
            matches_ssh_pattern(rest, text)
                || text.split_first().is_some_and(|(_, text)| matches_ssh_pattern(pattern, text))
        }
        (Some((b'?', rest)), Some((_, text))) => matches_ssh_pattern(rest, text),
        (Some((want, rest)), Some((have, text))) => {
            want.eq_ignore_ascii_case(have) && matches_ssh_pattern(rest, text)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection_summaries(effective: &str, hosts: &[&str]) -> Vec<String> {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        list_neutral_connections("root", &EffectiveConfig::parse(effective), &hosts)
            .into_iter()
            .map(|c| {
                assert_eq!(c.host, c.addr.to_string());
                format!("{} {} {}", c.addr, c.laddr, c.lport)
            })
            .collect()
    }

    /// KP-6.6.
    #[test]
    fn neutral_connections_cover_ports_and_families() {
        let wild = "port 22\nlistenaddress [::]:22\nlistenaddress 0.0.0.0:22\n";
        assert_eq!(connection_summaries(wild, &[]), ["192.0.2.1 192.0.2.2 22", "2001:db8::1 2001:db8::2 22"]);
        let several = "port 2222\nport 22\nlistenaddress [fe80::1%eth0]:2200 rdomain red\n\
                       listenaddress 127.0.0.1:22\nlistenaddress 10.0.0.5:22\nlistenaddress 10.0.0.5:2222\n";
        assert_eq!(
            connection_summaries(several, &[]),
            [
                "192.0.2.1 10.0.0.5 2222",
                "2001:db8::1 2001:db8::2 2222",
                "192.0.2.1 10.0.0.5 22",
                "2001:db8::1 2001:db8::2 22",
                "192.0.2.1 192.0.2.2 2200",
                "2001:db8::1 fe80::1 2200",
            ]
        );
        // `Port` keeps its default if every ListenAddress has a port of its own.
        let own = "port 22\nlistenaddress 127.0.0.1:2299\n";
        assert_eq!(
            connection_summaries(own, &[]),
            ["192.0.2.1 127.0.0.1 2299", "2001:db8::1 2001:db8::2 2299"]
        );
    }

    #[test]
    fn loopback_connections_follow_listen_addresses() {
        for (listen, expected) in [
            ("port 22\nlistenaddress [::]:22\nlistenaddress 0.0.0.0:22\n", vec!["127.0.0.1:22", "[::1]:22"]),
            ("port 22\nlistenaddress 127.0.0.1:2222\n", vec!["127.0.0.1:2222"]),
            ("port 22\nport 23\nlistenaddress 10.0.0.5:22\nlistenaddress [::1]:23\n", vec!["[::1]:23"]),
            ("port 22\nlistenaddress 10.0.0.5:22\n", vec![]),
        ] {
            let found = list_loopback_connections("root", &EffectiveConfig::parse(listen));
            let found: Vec<String> = found.iter().map(|(address, _)| address.to_string()).collect();
            assert_eq!(found, expected, "{listen}");
        }
    }

    /// KP-6.6.
    #[test]
    fn neutral_address_avoids_named_hosts() {
        let first = |hosts: &[&str]| {
            let both = connection_summaries("port 22\n", hosts);
            both.iter()
                .map(|line| line.split(' ').next().unwrap_or("").to_owned())
                .collect::<Vec<_>>()
                .join(" ")
        };
        for (hosts, expected) in [
            (
                &["10.0.0.0/8", "*", "0.0.0.0/0", "::/0", "*.*", "!10.1.1.1"] as &[&str],
                "192.0.2.1 2001:db8::1",
            ),
            (&["192.0.2.1"], "198.51.100.1 2001:db8::1"),
            (&["!192.0.2.0/24", "198.51.100.?"], "203.0.113.1 2001:db8::1"),
            (&["192.0.2.*", "198.0.0.0/8", "203.0.113.1/32"], "203.0.113.201 2001:db8::1"),
            (&["2001:DB8::1"], "192.0.2.1 2001:db8:8000::201"),
            (&["2001:db8::/32"], "192.0.2.1 3fff::1"),
            (&["0.0.0.0/1", "128.0.0.0/1"], "192.0.2.1 2001:db8::1"),
        ] {
            assert_eq!(first(hosts), expected, "{hosts:?}");
        }
    }
}
