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

/// How long to wait until an address is usable.
const CONNECTED_TIMEOUT: Duration = Duration::from_secs(5);

/// The pause between two tests of the address.
const CONNECTED_POLL_INTERVAL: Duration = Duration::from_millis(1);

/// The receive timeout for one packet of a test.
const PACKET_TIMEOUT: Duration = Duration::from_millis(20);

/// The new namespaces of the calling thread.
pub(super) struct Namespaces {
    netlink: Netlink,
}

impl Namespaces {
    /// Moves the calling thread into new namespaces and brings the loopback device up. Mounts in these namespaces
    /// are not visible outside.
    ///
    /// # Errors
    /// `EPERM` if this process may not create namespaces, as in an unprivileged container.
    pub(super) fn enter() -> io::Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
        let mut netlink = Netlink::open()?;
        netlink.bring_loopback_up()?;
        Ok(Self { netlink })
    }

    /// Adds an address of a connection to this machine. Returns false if the kernel does not support the address
    /// family.
    ///
    /// # Errors
    /// The kernel's error.
    pub(super) fn add_address(&mut self, address: IpAddr) -> io::Result<bool> {
        match self.netlink.add_address(address) {
            Ok(()) => Ok(true),
            Err(error) if is_missing_family(&error) && address.is_ipv6() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Waits until packets from each address reach the other. The kernel makes an IPv6 address usable a moment
    /// after it is added. During part of that time it has a route to the address, but does not deliver packets.
    ///
    /// # Errors
    /// The error of the last test, after the timeout.
    pub(super) fn wait_until_connected(&self, one: IpAddr, other: IpAddr) -> io::Result<()> {
        let deadline = Instant::now() + CONNECTED_TIMEOUT;
        loop {
            match exchange_udp_packets(one, other) {
                Err(_) if Instant::now() < deadline => sleep(CONNECTED_POLL_INTERVAL),
                exchanged => return exchanged,
            }
        }
    }

    /// Mounts `source` over `target`, which must exist.
    ///
    /// # Errors
    /// The errors of mount(2).
    pub(super) fn bind_mount(&self, source: &Path, target: &Path) -> io::Result<()> {
        Ok(mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
    }

    /// Same as [`Namespaces::bind_mount`], including the mounts below `source`.
    ///
    /// # Errors
    /// The errors of mount(2).
    pub(super) fn bind_mount_recursive(&self, source: &Path, target: &Path) -> io::Result<()> {
        Ok(mount(Some(source), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?)
    }
}

/// Sends one UDP packet in each direction.
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

/// Whether the error means that the kernel has no IPv6, or that it is turned off (`disable_ipv6`).
fn is_missing_family(error: &io::Error) -> bool {
    use nix::libc::{EACCES, EAFNOSUPPORT, EOPNOTSUPP, EPERM};
    error.raw_os_error().is_some_and(|errno| [EACCES, EAFNOSUPPORT, EOPNOTSUPP, EPERM].contains(&errno))
}
