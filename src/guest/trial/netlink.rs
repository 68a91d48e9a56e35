//! Brings up the loopback device of a new network namespace and adds addresses to it, by rtnetlink(7).

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

/// The loopback device is the first one of every network namespace.
pub(super) const LOOPBACK_INDEX: u32 = 1;

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 0x001;
const NLM_F_ACK: u16 = 0x004;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const IFF_UP: u32 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// No duplicate address detection, so that the address is usable at once.
const IFA_F_NODAD: u8 = 0x02;

/// A netlink socket in the network namespace of the calling thread.
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    pub(super) fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Brings the loopback device up.
    pub(super) fn bring_loopback_up(&mut self) -> io::Result<()> {
        // struct ifinfomsg
        let mut body = vec![0, 0];
        body.extend(0_u16.to_ne_bytes());
        body.extend(LOOPBACK_INDEX.to_ne_bytes());
        body.extend(IFF_UP.to_ne_bytes());
        body.extend(IFF_UP.to_ne_bytes());
        self.send_request(RTM_NEWLINK, 0, &body)
    }

    /// Adds an address to the loopback device. No error if the device already has it.
    pub(super) fn add_address(&mut self, address: IpAddr) -> io::Result<()> {
        let (family, bytes) = match address {
            IpAddr::V4(v4) => (AddressFamily::Inet, v4.octets().to_vec()),
            IpAddr::V6(v6) => (AddressFamily::Inet6, v6.octets().to_vec()),
        };
        let prefix = u8::try_from(bytes.len() * 8).map_err(io::Error::other)?;
        let family = u8::try_from(family as i32).map_err(io::Error::other)?;
        // struct ifaddrmsg
        let mut body = vec![family, prefix, IFA_F_NODAD, 0];
        body.extend(LOOPBACK_INDEX.to_ne_bytes());
        for kind in [IFA_LOCAL, IFA_ADDRESS] {
            // struct rtattr; both lengths are multiples of four.
            let length = u16::try_from(4 + bytes.len()).map_err(io::Error::other)?;
            body.extend(length.to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(&bytes);
        }
        match self.send_request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &body) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            done => done,
        }
    }

    fn send_request(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.sequence += 1;
        let length = u32::try_from(16 + body.len()).map_err(io::Error::other)?;
        // struct nlmsghdr
        let mut message = Vec::with_capacity(16 + body.len());
        message.extend(length.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((NLM_F_REQUEST | NLM_F_ACK | flags).to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend(0_u32.to_ne_bytes());
        message.extend(body);
        let socket = self.socket.as_raw_fd();
        sendto(socket, &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        let mut answer = [0_u8; 4096];
        let received = recv(socket, &mut answer, MsgFlags::empty())?;
        parse_ack(answer.get(..received).unwrap_or_default())
    }
}

/// Parses the kernel's answer to a request: an NLMSG_ERROR with a negative errno, or with 0 for success.
fn parse_ack(answer: &[u8]) -> io::Result<()> {
    let malformed = || io::Error::other("the kernel's netlink answer is malformed");
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let errno = answer.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, errno) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(errno)) => Err(io::Error::from_raw_os_error(errno.saturating_neg())),
        _ => Err(malformed()),
    }
}
