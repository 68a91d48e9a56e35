//! Where key pairs, ledgers and reports are kept. Every call is one transaction; the rules are [`Ledger`]'s.
//!
//! [`Ledger`]: crate::ledger::Ledger

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use async_trait::async_trait;
use keypair_agent::policy::command::Command;
use keypair_agent::policy::outcome::Outcome;
use keypair_agent::policy::types::{CommandId, InstanceId, Invalid, KeyName, PasswordAuth};
use tokio::sync::watch;

use crate::keypair::{Region, StoredKeyPair};
use crate::ledger::{Answer, Binding, Settled};

mod memory;

pub use memory::Memory;

/// What is to be done on some instances: on all of them, or on none.
#[derive(Debug, Clone)]
pub struct Order {
    /// Where the key pair and the instances are.
    pub region: Region,
    /// The key pair.
    pub key_name: KeyName,
    /// What is to be done with it.
    pub verb: OrderVerb,
    /// The instances, each once.
    pub instances: Vec<InstanceId>,
}

/// What is to be done with a key pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrderVerb {
    /// Bind it, with this password setting.
    Attach(PasswordAuth),
    /// Unbind it.
    Detach,
}

/// Why an order is refused; nothing of it is queued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// There is no key pair of that name in that region.
    NoKeyPair,
    /// The instance has another binding: any for an attach, another's for a detach.
    Bound(InstanceId),
}

/// The command that an instance has been given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// The instance.
    pub instance: InstanceId,
    /// Its command.
    pub command: CommandId,
    /// Whether it was queued now, and not by the same order before.
    pub fresh: bool,
}

/// A key pair with the instances it is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The key pair.
    pub key_pair: StoredKeyPair,
    /// The instances, by id.
    pub instances: Vec<InstanceId>,
}

/// The store does not do its work; nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreError(pub String);

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the store failed: {}", self.0)
    }
}

impl std::error::Error for StoreError {}

impl From<Invalid> for StoreError {
    fn from(error: Invalid) -> Self {
        Self(error.to_string())
    }
}

/// Keeps everything that outlives a request.
#[async_trait]
pub trait Store: Send + Sync {
    /// Keeps a new key pair; `false` where its name is in use in its region.
    async fn import(&self, key_pair: StoredKeyPair) -> Result<bool, StoreError>;

    /// Whether a key pair of that name is there.
    async fn has_key_pair(&self, region: &Region, name: &KeyName) -> Result<bool, StoreError>;

    /// Forgets a key pair; what is bound to it stays so in the guests. `false` where there is none.
    async fn delete(&self, region: &Region, name: &KeyName) -> Result<bool, StoreError>;

    /// The key pairs of a region, by name.
    async fn list(&self, region: &Region) -> Result<Vec<Listed>, StoreError>;

    /// Queues a command for every instance of the order, or for none.
    async fn place(&self, order: &Order) -> Result<Result<Vec<Placed>, Refused>, StoreError>;

    /// What an instance is bound to, every unanswered command taken as done.
    async fn binding(&self, instance: &InstanceId) -> Result<Option<Binding>, StoreError>;

    /// The oldest command of an instance that has no result.
    async fn next(&self, instance: &InstanceId) -> Result<Option<Command>, StoreError>;

    /// Whether an instance has, or lately had, that command.
    async fn knows(&self, instance: &InstanceId, command: &CommandId) -> Result<bool, StoreError>;

    /// Keeps the result of a command.
    async fn settle(&self, instance: &InstanceId, answer: Answer) -> Result<Settled, StoreError>;

    /// The result of a command, once there is one.
    async fn outcome(
        &self,
        instance: &InstanceId,
        command: &CommandId,
    ) -> Result<Option<Outcome>, StoreError>;

    /// Keeps what the agent says of itself, in place of what it said before.
    async fn keep_report(&self, instance: &InstanceId, report: Vec<u8>) -> Result<(), StoreError>;

    /// What the agent last said of itself.
    async fn report(&self, instance: &InstanceId) -> Result<Option<Vec<u8>>, StoreError>;

    /// Sees a change whenever commands or results of the instance changed. Whoever subscribes before he reads
    /// misses nothing.
    fn changes(&self, instance: &InstanceId) -> watch::Receiver<u64>;
}

/// Which store to use, as `--store` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreUrl {
    /// `memory:`, forgotten when the process ends.
    Memory,
}

impl FromStr for StoreUrl {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            "memory:" => Ok(Self::Memory),
            _ => Err(Invalid("no such store; 'memory:' is the one that can be used".into())),
        }
    }
}

impl StoreUrl {
    /// Opens it.
    pub fn open(self) -> Arc<dyn Store> {
        match self {
            Self::Memory => Arc::new(Memory::default()),
        }
    }
}
