//! The stores of key pairs, ledgers and reports. Every call is one transaction. The rules are in [`Ledger`].
//!
//! [`Ledger`]: crate::ledger::Ledger

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use keypair_agent::policy::command::{ActionName, Command};
use keypair_agent::policy::outcome::CommandResult;
use keypair_agent::policy::types::{CommandId, InstanceId, Invalid, KeyName, PasswordAuth};
use time::OffsetDateTime;
use tokio::sync::watch;

use crate::ids::{self, RequestId};
use crate::keypair::{Region, StoredKeyPair};
use crate::ledger::{Binding, Ledger, QueueDecision, QueueError, ReceivedResult, StoreResultOutcome};
use crate::lifecycle::InstanceState;

mod changes;
mod memory;
mod sql;

pub use memory::MemoryStore;
pub use sql::SqlStore;

/// How often expired signatures are deleted.
const PURGE_INTERVAL: Duration = Duration::from_secs(60);

/// The time of the last purge.
#[derive(Debug, Default)]
struct PurgeTimer(Option<Instant>);

impl PurgeTimer {
    /// Whether a purge is due. If so, the timer restarts and the caller must purge.
    fn restart_if_due(&mut self) -> bool {
        let is_due = self.0.is_none_or(|last| last.elapsed() > PURGE_INTERVAL);
        if is_due {
            self.0 = Some(Instant::now());
        }
        is_due
    }
}

/// An action on several instances. It is queued for all of them, or for none.
#[derive(Debug, Clone)]
pub struct Order {
    /// The request that placed the order.
    pub request: RequestId,
    /// The region of the key pair and of the instances.
    pub region: Region,
    /// The action.
    pub verb: OrderKind,
    /// The instances, without duplicates.
    pub instances: Vec<InstanceId>,
}

/// The action of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OrderKind {
    /// Bind the key pair with this name, with this password setting.
    Attach(KeyName, PasswordAuth),
    /// Unbind the key pair with this name.
    Detach(KeyName),
    /// Turn password login on.
    AllowPasswords,
}

impl OrderKind {
    /// The name of the key pair; `None` for [`OrderKind::AllowPasswords`].
    pub fn key_name(&self) -> Option<&KeyName> {
        match self {
            Self::Attach(name, _) | Self::Detach(name) => Some(name),
            Self::AllowPasswords => None,
        }
    }

    /// The action of the order's commands.
    pub fn action(&self) -> ActionName {
        match self {
            Self::Attach(..) => ActionName::Attach,
            Self::Detach(_) => ActionName::Detach,
            Self::AllowPasswords => ActionName::SetPasswordAuth,
        }
    }
}

/// The action of an order, with its key pair looked up.
enum ResolvedOrder {
    Attach(Binding),
    Detach(KeyName),
    AllowPasswords,
}

impl ResolvedOrder {
    /// Resolves an action. `named` is the current key pair with the order's key name.
    fn resolve(verb: &OrderKind, named: Option<&StoredKeyPair>) -> Result<Self, OrderError> {
        match verb {
            OrderKind::Attach(_, password_auth) => {
                let key_pair = named.ok_or(OrderError::KeyPairNotFound)?.clone();
                Ok(Self::Attach(Binding { key_pair, password_auth: *password_auth }))
            }
            OrderKind::Detach(name) => {
                named.map(|_| Self::Detach(name.clone())).ok_or(OrderError::KeyPairNotFound)
            }
            OrderKind::AllowPasswords => Ok(Self::AllowPasswords),
        }
    }

    /// Decides whether one instance needs a new command. The inner error refuses the whole order.
    fn decide_for_instance(
        &self,
        instance: &InstanceId,
        ledger: &Ledger,
        is_live: impl Fn(&StoredKeyPair) -> bool,
    ) -> Result<Result<QueueDecision, OrderError>, StoreError> {
        let stamp = ids::new_command_identity()?;
        let next = match self {
            Self::Attach(binding) => ledger.attach(instance, binding, is_live, stamp),
            Self::Detach(name) => ledger.detach(instance, name, stamp),
            Self::AllowPasswords => ledger.allow_passwords(instance, stamp),
        };
        match next {
            Ok(next) => Ok(Ok(next)),
            Err(QueueError::AlreadyBound) => Ok(Err(OrderError::AlreadyBound(instance.clone()))),
            Err(QueueError::SequenceExhausted(error)) => Err(error.into()),
        }
    }
}

/// The command that a request queued for one instance, and its result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandStatus {
    /// The instance.
    pub instance: InstanceId,
    /// The command.
    pub command: Command,
    /// The result from the guest; `None` until it arrives.
    pub outcome: Option<CommandResult>,
}

/// Why an order is refused. Nothing of a refused order is queued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OrderError {
    /// The region has no key pair with this name.
    KeyPairNotFound,
    /// An attach, but a key pair is bound to the instance. Or a detach, but another key pair is bound.
    AlreadyBound(InstanceId),
}

/// The command that an order led to on one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueuedCommand {
    /// The instance.
    pub instance: InstanceId,
    /// The id of the command.
    pub command: CommandId,
    /// Whether this order queued the command. `false` if an earlier order had queued the same one.
    pub fresh: bool,
}

/// A key pair with the instances to which it is bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedKeyPair {
    /// The key pair.
    pub key_pair: StoredKeyPair,
    /// The instances, ordered by id.
    pub instances: Vec<InstanceId>,
}

/// An error of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreError {
    /// The call failed and nothing was changed.
    Failed(String),
    /// The store did not confirm a change. The change may be stored or not.
    Uncertain(String),
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(why) => write!(f, "the store failed: {why}"),
            Self::Uncertain(why) => write!(f, "the store did not say whether it kept a change: {why}"),
        }
    }
}

impl std::error::Error for StoreError {}

impl From<Invalid> for StoreError {
    fn from(error: Invalid) -> Self {
        Self::Failed(error.to_string())
    }
}

/// Stores everything that outlives a request.
#[async_trait]
pub trait Store: Send + Sync {
    /// Stores a new key pair. Returns `false` if its name is in use in its region.
    async fn insert_key_pair(&self, key_pair: StoredKeyPair) -> Result<bool, StoreError>;

    /// The current key pair with this name.
    async fn find_key_pair(
        &self,
        region: &Region,
        name: &KeyName,
    ) -> Result<Option<StoredKeyPair>, StoreError>;

    /// Deletes a key pair. Existing bindings stay in the guests. Returns `false` if there is no such key pair.
    async fn delete_key_pair(&self, region: &Region, name: &KeyName) -> Result<bool, StoreError>;

    /// The key pairs of a region, ordered by name.
    async fn list_key_pairs(&self, region: &Region) -> Result<Vec<ListedKeyPair>, StoreError>;

    /// Queues a command for every instance of the order, or for none. The commands are then found by the order's
    /// request id.
    async fn queue_order(&self, order: &Order) -> Result<Result<Vec<QueuedCommand>, OrderError>, StoreError>;

    /// The current binding of an instance, as if every unanswered command had succeeded.
    async fn binding(&self, instance: &InstanceId) -> Result<Option<Binding>, StoreError>;

    /// The oldest command of an instance without a result.
    async fn next_command(&self, instance: &InstanceId) -> Result<Option<Command>, StoreError>;

    /// Like [`Store::next_command`], but also records `now` as the time of the first hand-out. `now` is in
    /// milliseconds since 1970. A recorded time does not change.
    async fn hand_out(&self, instance: &InstanceId, now: u64) -> Result<Option<Command>, StoreError>;

    /// Whether the instance has this command. The most recent answered commands are still known.
    async fn has_command(&self, instance: &InstanceId, command: &CommandId) -> Result<bool, StoreError>;

    /// Stores the result of a command. After `BAD_SIGNATURE`, the command stays queued instead for an hour from its
    /// first hand-out.
    async fn store_result(
        &self,
        instance: &InstanceId,
        answer: ReceivedResult,
    ) -> Result<StoreResultOutcome, StoreError>;

    /// The result of a command; `None` until it arrives.
    async fn outcome(
        &self,
        instance: &InstanceId,
        command: &CommandId,
    ) -> Result<Option<CommandResult>, StoreError>;

    /// The commands of a request with their results, one per instance. Empty if the request is unknown, or if all its
    /// commands are forgotten.
    async fn command_statuses(&self, request: &RequestId) -> Result<Vec<CommandStatus>, StoreError>;

    /// Replaces the state `before` with `state`. Returns `false` if the stored state is no longer `before`.
    async fn change_state(
        &self,
        instance: &InstanceId,
        before: Option<&InstanceState>,
        state: &InstanceState,
    ) -> Result<bool, StoreError>;

    /// The last state that was set for an instance; `None` if it still has its initial state.
    async fn state(&self, instance: &InstanceId) -> Result<Option<InstanceState>, StoreError>;

    /// Records a signature until the time `until`. Returns `false` if it was recorded before.
    async fn record_signature(&self, signature: &str, until: OffsetDateTime) -> Result<bool, StoreError>;

    /// Stores the agent's report, in place of the previous one.
    async fn store_report(&self, instance: &InstanceId, report: Vec<u8>) -> Result<(), StoreError>;

    /// The last report of the agent.
    async fn report(&self, instance: &InstanceId) -> Result<Option<Vec<u8>>, StoreError>;

    /// A receiver that sees each change of the instance's commands and results. A caller that subscribes before it
    /// reads does not miss a change.
    fn watch_changes(&self, instance: &InstanceId) -> watch::Receiver<u64>;
}

/// The store that `--store` selects.
#[derive(Clone, PartialEq, Eq)]
pub enum StoreUrl {
    /// `memory:`, lost when the process ends.
    Memory,
    /// `sqlite:PATH`, a file that only this process uses.
    Sqlite(PathBuf),
    /// `postgres://…`, a database that any number of servers may share.
    Postgres(String),
}

impl FromStr for StoreUrl {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text.split_once(':') {
            Some(("memory", "")) => Ok(Self::Memory),
            Some(("sqlite", ":memory:")) => Err(Invalid("the store that forgets is memory:".into())),
            // Other programs write `sqlite://PATH`. In a URL, the text after two slashes would be a host name.
            Some(("sqlite", path)) if path.starts_with("//") && !path.starts_with("///") => {
                Err(Invalid("a file is sqlite:PATH, without slashes before a relative one".into()))
            }
            Some(("sqlite", path)) if !path.is_empty() => Ok(Self::Sqlite(path.into())),
            Some(("postgres" | "postgresql", rest)) if rest.starts_with("//") => {
                Ok(Self::Postgres(text.to_owned()))
            }
            _ => Err(Invalid(
                "a store is memory:, sqlite:PATH or postgres://USER:PASSWORD@HOST/DATABASE".into(),
            )),
        }
    }
}

/// Shows the URL without the password that it may contain.
impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory:"),
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            Self::Postgres(url) => {
                let (place, _) = url.split_once('?').unwrap_or((url, ""));
                write!(f, "postgres://{}", place.rsplit_once('@').map_or("…", |(_, place)| place))
            }
        }
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl StoreUrl {
    /// Opens the store and updates its schema.
    ///
    /// # Errors
    /// The store is not there, another process uses it, or a newer version of this program has used it.
    pub async fn open(&self) -> Result<Arc<dyn Store>, StoreError> {
        Ok(match self {
            Self::Memory => Arc::new(MemoryStore::default()),
            Self::Sqlite(path) => Arc::new(SqlStore::open_sqlite(path).await?),
            Self::Postgres(url) => Arc::new(SqlStore::open_postgres(url).await?),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn store_url_is_displayed_without_password() {
        for (text, shown) in [
            ("memory:", "memory:"),
            ("sqlite:/var/lib/x.db", "sqlite:/var/lib/x.db"),
            ("sqlite:x.db", "sqlite:x.db"),
            ("postgres://me:hidden@db:5432/keypair?password=hidden", "postgres://db:5432/keypair"),
            ("postgresql:///keypair?password=hidden", "postgres://…"),
        ] {
            let url: StoreUrl = text.parse().unwrap();
            assert_eq!((url.to_string(), format!("{url:?}")), (shown.to_owned(), shown.to_owned()));
        }
        for text in [
            "",
            "memory",
            "memory:x",
            "sqlite:",
            "postgres:",
            "mysql://x",
            "x.db",
            "sqlite::memory:",
            "sqlite://x.db",
        ] {
            assert!(text.parse::<StoreUrl>().is_err(), "{text}");
        }
    }
}
