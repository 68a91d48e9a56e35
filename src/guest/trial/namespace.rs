//! A network namespace and a mount namespace for the calling thread and its children: network_namespaces(7),
//! mount_namespaces(7). Both end with the thread.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::netlink::Netlink;

/// How long an address may take to be usable.
const ROUTE_TIMEOUT: Duration = Duration::from_secs(2);

/// How often that is looked at.
const ROUTE_POLL_INTERVAL: Duration = Duration::from_millis(1);

/// How long a datagram may be on its way through loopback.
const DATAGRAM_TIMEOUT: Duration = Duration::from_millis(20);

/// The namespaces that the calling thread is in.
pub(super) struct Namespaces {
    netlink: Netlink,
}

impl Namespaces {
    /// Moves the calling thread into new namespaces, with the loopback device up. No mount that is made in them is
    /// seen outside.
    ///
    /// # Errors
    /// `EPERM` where this process may not make namespaces, as in an unprivileged container.
    pub(super) fn enter() -> io::Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
        let mut netlink = Netlink::open()?;
        netlink.bring_loopback_up()?;
        Ok(Self { netlink })
    }

    /// Gives this machine's side of a connection its address. False where the kernel has no such address family.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn add_address(&mut self, address: IpAddr) -> io::Result<bool> {
        match self.netlink.add_address(address) {
            Ok(()) => Ok(true),
            Err(error) if is_missing_family(&error) && address.is_ipv6() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Waits until a datagram from one address comes to the other and one comes back: the kernel makes IPv6 addresses
    /// usable a moment after they were added. That there is a route is not enough: until then it leads to nobody.
    ///
    /// # Errors
    /// The kernel's last answer, once the time is over.
    pub(super) fn wait_for_route(&self, from: IpAddr, to: SocketAddr) -> io::Result<()> {
        let deadline = Instant::now() + ROUTE_TIMEOUT;
        loop {
            match echo(from, to) {
                Err(_) if Instant::now() < deadline => sleep(ROUTE_POLL_INTERVAL),
                routed => return routed,
            }
        }
    }

    /// Shows `source` in the place of `target`, which exists.
    ///
    /// # Errors
    /// Those of mount(2).
    pub(super) fn show(&self, source: &Path, target: &Path) -> io::Result<()> {
        Ok(mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
    }

    /// The same, with what is mounted below `source`.
    ///
    /// # Errors
    /// Those of mount(2).
    pub(super) fn show_tree(&self, source: &Path, target: &Path) -> io::Result<()> {
        Ok(mount(Some(source), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?)
    }
}

/// Sends a datagram to a socket of ours, and one back.
fn echo(from: IpAddr, mut to: SocketAddr) -> io::Result<()> {
    to.set_port(0);
    let (near, far) = (UdpSocket::bind((from, 0))?, UdpSocket::bind(to)?);
    near.connect(far.local_addr()?)?;
    for socket in [&near, &far] {
        socket.set_read_timeout(Some(DATAGRAM_TIMEOUT))?;
    }
    near.send(b"x")?;
    let (_, back) = far.recv_from(&mut [0; 1])?;
    far.send_to(b"x", back)?;
    near.recv(&mut [0; 1]).map(drop)
}

/// IPv6 is not in the kernel, or turned off (`disable_ipv6`).
fn is_missing_family(error: &io::Error) -> bool {
    use nix::libc::{EACCES, EAFNOSUPPORT, EOPNOTSUPP, EPERM};
    error.raw_os_error().is_some_and(|errno| [EACCES, EAFNOSUPPORT, EOPNOTSUPP, EPERM].contains(&errno))
}
