//! Transports commands and results as bytes (KP-3.6 to KP-3.11). `policy` interprets the bytes and `transaction`
//! performs the commands. No file in this folder parses a command.

pub mod backoff;
pub mod base_url;
pub mod error;
pub mod http;
mod retry_after;
pub mod run_lock;
pub mod state;
mod stream;

use std::time::Duration;

use crate::policy::command::Origin;
use crate::policy::types::{CommandId, InstanceId};

pub use error::{ChannelError, ChannelErrorKind, UnusableResponse};

/// One command as the channel delivered it, not yet parsed.
#[derive(Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The exact bytes.
    pub bytes: Vec<u8>,
    /// Where the bytes came from.
    pub origin: Origin,
}

impl std::fmt::Debug for Delivery {
    /// Leaves out the bytes: they contain a key, and the agent never logs key text (KP-3.34).
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Delivery({} bytes, {:?})", self.bytes.len(), self.origin)
    }
}

/// The service's answer to a poll for a command (KP-3.6 and KP-3.7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Polled {
    /// `200`: the oldest command without an accepted result.
    Command(Delivery),
    /// `204`: no command within `wait`.
    NoCommand,
    /// `404`: the service has no such queue. It never means detach. The value is the pause that the service requested,
    /// if any.
    NoQueue(Option<Duration>),
}

/// The service's final answer to a result. Any other answer is an error, and the agent sends the result again
/// (KP-3.9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreResponse {
    /// `2xx`: the service has stored the result, now or before.
    Accepted,
    /// `404`: the service does not know the command.
    Unknown,
    /// `409`: the service has stored another result.
    Conflict,
    /// Any other `4xx` that a retry does not change.
    Refused(u16),
}

/// A connection to the control plane. The channel itself limits the time of every call.
#[allow(async_fn_in_trait)] // the loop drives it on one thread: nothing needs to be `Send`
pub trait Channel {
    /// Queries the id of this instance.
    async fn fetch_instance_id(&self) -> Result<InstanceId, ChannelError>;

    /// Polls for the next command. The service may take `wait` before it answers that there is none.
    async fn poll_command(&self, wait: Duration) -> Result<Polled, ChannelError>;

    /// Sends the result of a command: `result` is sent byte for byte.
    async fn store_result(&self, id: &CommandId, result: &str) -> Result<StoreResponse, ChannelError>;

    /// Reports what runs here (KP-3.37). It is not an error if the service does not accept such reports.
    async fn announce(&self, document: &str) -> Result<(), ChannelError>;
}
