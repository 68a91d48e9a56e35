//! Why a call on the channel failed, with a message for each cause (KP-3.19).

use std::fmt;
use std::io;
use std::time::Duration;

use nix::errno::Errno;

/// Why the agent cannot use an answer. The message never quotes the answer, because its text comes from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnusableResponse {
    /// The body is larger than 64 KiB.
    TooLarge,
    /// The answer is not HTTP/1.1, has broken framing, or has a larger header than the agent reads.
    NotHttp,
    /// The body is not a valid instance id.
    InstanceId,
    /// The service sent more 1xx answers than a call needs.
    TooManyInterim,
}

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChannelError {
    /// No program listens at the address.
    ConnectionRefused,
    /// This guest's own rules forbid the connection: `EACCES` from the route (a guard on the metadata address),
    /// `EPERM` from a packet filter.
    Forbidden(Errno),
    /// `ENETUNREACH`, `EHOSTUNREACH`, `EADDRNOTAVAIL`: the network is not up, or has no route to the address.
    Unreachable(Errno),
    /// The connection failed for another reason.
    Connect(Option<Errno>),
    /// No complete answer arrived within this time limit of the call.
    TimedOut(Duration),
    /// The connection ended before the complete answer arrived.
    Disconnected {
        /// How long the call had waited.
        waited: Duration,
    },
    /// An answer whose status is not a success. The agent tries again.
    Status {
        /// The status.
        status: u16,
        /// The pause that the service requested, at most [`super::backoff::MAX_RETRY_AFTER`].
        retry_after: Option<Duration>,
    },
    /// An answer that the agent cannot use.
    Unusable(UnusableResponse),
}

/// The kind of a failure. Two failures of one kind look the same to a person, so the main loop logs a failure only if
/// the kind changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelErrorKind {
    /// [`ChannelError::ConnectionRefused`].
    ConnectionRefused,
    /// [`ChannelError::Forbidden`].
    Forbidden,
    /// [`ChannelError::Unreachable`].
    Unreachable,
    /// [`ChannelError::Connect`].
    Connect(Option<Errno>),
    /// [`ChannelError::TimedOut`].
    TimedOut,
    /// [`ChannelError::Disconnected`].
    Disconnected,
    /// [`ChannelError::Status`], by status.
    Status(u16),
    /// [`ChannelError::Unusable`].
    Unusable(UnusableResponse),
}

impl ChannelError {
    /// Returns the cause of a failed connect.
    pub fn from_connect(error: &io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ECONNREFUSED) => Self::ConnectionRefused,
            Some(errno @ (Errno::EACCES | Errno::EPERM)) => Self::Forbidden(errno),
            Some(errno @ (Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EADDRNOTAVAIL)) => {
                Self::Unreachable(errno)
            }
            errno => Self::Connect(errno),
        }
    }

    /// Returns the kind of this failure. The main loop logs changes of it.
    pub fn kind(&self) -> ChannelErrorKind {
        match self {
            Self::ConnectionRefused => ChannelErrorKind::ConnectionRefused,
            Self::Forbidden(_) => ChannelErrorKind::Forbidden,
            Self::Unreachable(_) => ChannelErrorKind::Unreachable,
            Self::Connect(errno) => ChannelErrorKind::Connect(*errno),
            Self::TimedOut(_) => ChannelErrorKind::TimedOut,
            Self::Disconnected { .. } => ChannelErrorKind::Disconnected,
            Self::Status { status, .. } => ChannelErrorKind::Status(*status),
            Self::Unusable(why) => ChannelErrorKind::Unusable(*why),
        }
    }

    /// Returns the pause that the service requested.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Returns true if the call failed because this guest has no network. Then an early retry does not load any
    /// service.
    pub fn is_network_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable(_))
    }

    /// Returns true if another program than this cloud's metadata service probably answers at the address. Signs are a
    /// refused connection, or a `4xx` without a requested pause. Another cloud's service sends such a `4xx` for an
    /// unknown path or method.
    pub fn is_from_other_service(&self) -> bool {
        match self {
            Self::ConnectionRefused => true,
            Self::Status { status, retry_after: None } => is_final_refusal(*status) || *status == 401,
            _ => false,
        }
    }

    /// Returns true if the service gave a final answer that a retry does not change: a `4xx` other than 401, 408 and
    /// 429.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Status { status, .. } if is_final_refusal(*status))
    }
}

/// Returns true if a status is a final refusal (KP-3.9: the agent retries after 3xx, 401, 408, 429 and 5xx).
pub(super) fn is_final_refusal(status: u16) -> bool {
    (400..500).contains(&status) && !matches!(status, 401 | 408 | 429)
}

impl fmt::Display for ChannelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ConnectionRefused => f.write_str("connection refused: nobody listens there"),
            Self::Forbidden(Errno::EPERM) => {
                f.write_str("a packet filter of this host forbids the connection (EPERM)")
            }
            Self::Forbidden(errno) => write!(
                f,
                "the route forbids it ({errno:?}): this host guards the metadata address, see `ip route` and `ip rule`"
            ),
            Self::Unreachable(Errno::ENETUNREACH) => {
                f.write_str("network unreachable (ENETUNREACH): no route there, or no link yet")
            }
            Self::Unreachable(Errno::EHOSTUNREACH) => {
                f.write_str("host unreachable (EHOSTUNREACH): nobody on the link answers for the address")
            }
            Self::Unreachable(errno) => write!(f, "no local address to come from ({errno:?})"),
            Self::Connect(Some(errno)) => write!(f, "cannot connect: {} ({errno:?})", errno.desc()),
            Self::Connect(None) => f.write_str("cannot connect"),
            Self::TimedOut(limit) => write!(f, "timed out: no whole answer within {} s", limit.as_secs()),
            Self::Disconnected { waited } => {
                write!(f, "the connection was cut without an answer, after {} s", waited.as_secs())
            }
            Self::Status { status, retry_after: None } => write!(f, "the service answered {status}"),
            Self::Status { status, retry_after: Some(delay) } => {
                write!(f, "the service answered {status}, asking for a pause of {} s", delay.as_secs())
            }
            Self::Unusable(UnusableResponse::TooLarge) => f.write_str("unusable answer: over 64 KiB"),
            Self::Unusable(UnusableResponse::NotHttp) => {
                f.write_str("unusable answer: not HTTP/1.1, broken, or with too large a header")
            }
            Self::Unusable(UnusableResponse::TooManyInterim) => {
                f.write_str("unusable answer: more than 8 of 1xx in one call")
            }
            Self::Unusable(UnusableResponse::InstanceId) => {
                f.write_str("unusable answer: not an instance id")
            }
        }
    }
}

impl std::error::Error for ChannelError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn connect_error(errno: Errno) -> ChannelError {
        ChannelError::from_connect(&io::Error::from_raw_os_error(errno as i32))
    }

    /// KP-3.19.
    #[test]
    fn channel_error_messages_name_their_cause() {
        let words = |errno| connect_error(errno).to_string();
        assert!(words(Errno::ECONNREFUSED).contains("refused"));
        assert!(words(Errno::EACCES).contains("the route forbids it"));
        assert!(words(Errno::EPERM).contains("packet filter"));
        assert!(words(Errno::ENETUNREACH).contains("network unreachable"));
        assert!(words(Errno::ETIMEDOUT).contains("ETIMEDOUT"));
        assert!(ChannelError::TimedOut(Duration::from_secs(70)).to_string().contains("70 s"));
    }

    #[test]
    fn network_unreachable_covers_missing_network_only() {
        for errno in [Errno::ENETUNREACH, Errno::EHOSTUNREACH, Errno::EADDRNOTAVAIL] {
            assert!(connect_error(errno).is_network_unreachable(), "{errno}");
        }
        for errno in [Errno::ECONNREFUSED, Errno::EACCES, Errno::ETIMEDOUT] {
            assert!(!connect_error(errno).is_network_unreachable(), "{errno}");
        }
    }

    #[test]
    fn error_kind_ignores_duration_and_keeps_status() {
        let cut = |seconds| ChannelError::Disconnected { waited: Duration::from_secs(seconds) };
        assert_eq!(cut(1).kind(), cut(9).kind());
        assert_ne!(cut(1).kind(), ChannelError::ConnectionRefused.kind());
        let status = |status| ChannelError::Status { status, retry_after: None };
        assert_ne!(status(500).kind(), status(503).kind());
        assert!(status(401).is_from_other_service() && status(404).is_from_other_service());
        assert!(![302, 408, 429, 500, 503].into_iter().any(|code| status(code).is_from_other_service()));
        assert!(status(403).is_final() && status(410).is_final());
        assert!(![302, 401, 408, 429, 500, 503].into_iter().any(|code| status(code).is_final()));
    }
}
