//! How commands come and results go, in bytes (KP-3.6 to KP-3.11). What the bytes mean is for
//! `policy`, what they do for `transaction`; nothing here looks inside.

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

/// One command as it was handed over, not yet read.
#[derive(Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The exact bytes.
    pub bytes: Vec<u8>,
    /// Where they came from.
    pub origin: Origin,
}

impl std::fmt::Debug for Delivery {
    /// Without the bytes: they hold a key, and key text is never logged (KP-3.34).
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Delivery({} bytes, {:?})", self.bytes.len(), self.origin)
    }
}

/// What asking for a command gave (KP-3.6 and KP-3.7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Polled {
    /// `200`: the oldest command without an accepted result.
    Command(Delivery),
    /// `204`: none within `wait`.
    NoCommand,
    /// `404`: no such queue here; never means detach. And the pause that was asked for.
    NoQueue(Option<Duration>),
}

/// A final answer to a result; anything else is an error, and the result is sent again (KP-3.9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreResponse {
    /// `2xx`: stored, now or before.
    Accepted,
    /// `404`: the service does not know the command.
    Unknown,
    /// `409`: another result is stored.
    Conflict,
    /// Any other `4xx` that trying again does not cure.
    Refused(u16),
}

/// A way to the control plane. Every call is bounded in time by the channel itself.
#[allow(async_fn_in_trait)] // the loop drives it on one thread: nothing needs to be `Send`
pub trait Channel {
    /// Asks who this instance is.
    async fn fetch_instance_id(&self) -> Result<InstanceId, ChannelError>;

    /// Asks for the next command; the service may take `wait` to answer that there is none.
    async fn poll_command(&self, wait: Duration) -> Result<Polled, ChannelError>;

    /// Hands over the result of a command: `result` is sent byte for byte.
    async fn store_result(&self, id: &CommandId, result: &str) -> Result<StoreResponse, ChannelError>;

    /// Says what runs here (KP-3.37). A service that does not want to know is no error.
    async fn announce(&self, document: &str) -> Result<(), ChannelError>;
}
