//! The listening TCP sockets: /proc/PID/net/tcp and tcp6, proc_net(5).

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// `TCP_LISTEN` as the kernel prints it.
const TCP_LISTEN_STATE: &str = "0A";

/// A listening TCP socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListeningSocket {
    /// The address to which it is bound.
    pub address: SocketAddr,
    /// The user id of its creator.
    pub uid: u32,
    /// Its inode. A socket that is bound again has another inode.
    pub inode: u64,
}

/// The listening sockets in the network namespace of a process. If that namespace cannot be read: those in the
/// agent's namespace.
pub fn list_listening_sockets(pid: Option<i32>) -> io::Result<Vec<ListeningSocket>> {
    let of = |name: &str| match pid.and_then(|pid| File::open(format!("/proc/{pid}/net/{name}")).ok()) {
        Some(file) => Ok(file),
        None => File::open(format!("/proc/self/net/{name}")),
    };
    let mut sockets = Vec::new();
    read_tcp_table(of("tcp")?, &mut sockets)?;
    match of("tcp6") {
        Ok(file) => read_tcp_table(file, &mut sockets)?,
        // The kernel has no IPv6.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(sockets)
}

/// Keeps only the listening sockets, because a busy guest has many connections.
fn read_tcp_table(file: File, sockets: &mut Vec<ListeningSocket>) -> io::Result<()> {
    for line in BufReader::new(file).lines() {
        sockets.extend(parse_tcp_line(&line?));
    }
    Ok(())
}

/// Parses one line of /proc/net/tcp or tcp6; `None` if it is no listening socket.
pub fn parse_tcp_line(line: &str) -> Option<ListeningSocket> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let local = fields.next()?;
    let (_remote, state) = (fields.next()?, fields.next()?);
    if state != TCP_LISTEN_STATE {
        return None;
    }
    let uid = fields.nth(3)?.parse().ok()?;
    let inode = fields.nth(1)?.parse().ok()?;
    let (ip, port) = local.split_once(':')?;
    let address = SocketAddr::new(parse_hex_address(ip)?, u16::from_str_radix(port, 16).ok()?);
    Some(ListeningSocket { address, uid, inode })
}

/// Parses 32-bit words, each printed as a number in the byte order of this machine.
fn parse_hex_address(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| {
        let digits = hex.get(at * 8..at * 8 + 8)?;
        u32::from_str_radix(digits, 16).ok().map(u32::to_ne_bytes)
    };
    match hex.len() {
        8 => word(0).map(|bytes| Ipv4Addr::from(bytes).into()),
        32 => {
            let mut bytes = [0; 16];
            for (at, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(at)?);
            }
            Some(Ipv6Addr::from(bytes).into())
        }
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn tcp_table_lines_are_parsed() {
        // sl local remote st tx:rx tr:when retrnsmt uid timeout inode
        let of = |local: &str, state: &str, uid: u32, inode: u64| {
            format!("  12: {local} 00000000:0000 {state} 0:0 00:0 0 {uid:>8} 0 {inode} 1 0 100 0 0 10 0")
        };
        let listens = |local: &str| of(local, "0A", 0, 77);
        let cases = [
            (listens("00000000:07E8"), Some(("0.0.0.0:2024", 0, 77))),
            (of("0100007F:0016", "0A", 1000, 9), Some(("127.0.0.1:22", 1000, 9))),
            (listens("00000000000000000000000000000000:0016"), Some(("[::]:22", 0, 77))),
            (listens("00000000000000000000000001000000:0016"), Some(("[::1]:22", 0, 77))),
            (listens("B80D0120000000000000000005000000:0016"), Some(("[2001:db8::5]:22", 0, 77))),
            (of("0100007F:0016", "01", 0, 10), None),
            (listens("zzzzzzzz:0016"), None),
            (listens("0000:0016"), None),
            ("  sl  local_address rem_address   st tx_queue rx_queue tr tm->when".to_owned(), None),
            (String::new(), None),
        ];
        for (line, expected) in cases {
            let expected = expected.map(|(address, uid, inode): (&str, u32, u64)| ListeningSocket {
                address: address.parse().unwrap(),
                uid,
                inode,
            });
            assert_eq!(parse_tcp_line(&line), expected, "{line}");
        }
    }

    #[test]
    fn listening_sockets_include_own() {
        let own = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = own.local_addr().unwrap();
        assert!(list_listening_sockets(None).unwrap().iter().any(|socket| socket.address == address));
    }
}
