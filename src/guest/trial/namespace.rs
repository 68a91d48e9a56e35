//! A network namespace and a mount namespace for the calling thread and its children: network_namespaces(7),
//! mount_namespaces(7). Both end with the thread.

use std::io;
use std::net::{IpAddr, UdpSocket};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::netlink::Netlink;

/// How long an address may take to be usable.
const CONNECTED_TIMEOUT: Duration = Duration::from_secs(5);

/// How often that is tried.
const CONNECTED_POLL_INTERVAL: Duration = Duration::from_millis(1);

/// How long a packet of one try may take.
const PACKET_TIMEOUT: Duration = Duration::from_millis(20);

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

    /// Waits until packets from each address reach the other: the kernel makes IPv6 addresses usable a moment after they
    /// were added, and for some of it has a route to them that nothing receives by.
    ///
    /// # Errors
    /// The kernel's last answer, once the time is over.
    pub(super) fn wait_until_connected(&self, one: IpAddr, other: IpAddr) -> io::Result<()> {
        let deadline = Instant::now() + CONNECTED_TIMEOUT;
        loop {
            match exchange_udp_packets(one, other) {
                Err(_) if Instant::now() < deadline => sleep(CONNECTED_POLL_INTERVAL),
                exchanged => return exchanged,
            }
        }
    }

    /// Shows `source` in the place of `target`, which exists.
    ///
    /// # Errors
    /// Those of mount(2).
    pub(super) fn bind_mount(&self, source: &Path, target: &Path) -> io::Result<()> {
        Ok(mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
    }

    /// The same, with what is mounted below `source`.
    ///
    /// # Errors
    /// Those of mount(2).
    pub(super) fn bind_mount_recursive(&self, source: &Path, target: &Path) -> io::Result<()> {
        Ok(mount(Some(source), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?)
    }
}

/// One packet of UDP each way.
fn exchange_udp_packets(one: IpAddr, other: IpAddr) -> io::Result<()> {
    let (near, far) = (UdpSocket::bind((one, 0))?, UdpSocket::bind((other, 0))?);
    near.connect(far.local_addr()?)?;
    far.connect(near.local_addr()?)?;
    for (sender, receiver) in [(&near, &far), (&far, &near)] {
        receiver.set_read_timeout(Some(PACKET_TIMEOUT))?;
        sender.send(&[0])?;
        receiver.recv(&mut [0])?;
    }
    Ok(())
}

/// IPv6 is not in the kernel, or turned off (`disable_ipv6`).
fn is_missing_family(error: &io::Error) -> bool {
    use nix::libc::{EACCES, EAFNOSUPPORT, EOPNOTSUPP, EPERM};
    error.raw_os_error().is_some_and(|errno| [EACCES, EAFNOSUPPORT, EOPNOTSUPP, EPERM].contains(&errno))
}
