//! Where key pairs, ledgers and reports are kept. Every call is one transaction; the rules are [`Ledger`]'s.
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

/// How often expired signatures are taken out.
const PURGE_INTERVAL: Duration = Duration::from_secs(60);

/// When they were last.
#[derive(Debug, Default)]
struct PurgeTimer(Option<Instant>);

impl PurgeTimer {
    /// Whether it is time again; whoever is told so does it.
    fn restart_if_due(&mut self) -> bool {
        let is_due = self.0.is_none_or(|last| last.elapsed() > PURGE_INTERVAL);
        if is_due {
            self.0 = Some(Instant::now());
        }
        is_due
    }
}

/// What is to be done on some instances: on all of them, or on none.
#[derive(Debug, Clone)]
pub struct Order {
    /// The request that asks for it.
    pub request: RequestId,
    /// Where the key pair and the instances are.
    pub region: Region,
    /// What is to be done.
    pub verb: OrderKind,
    /// The instances, each once.
    pub instances: Vec<InstanceId>,
}

/// What is to be done on an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OrderKind {
    /// Bind the key pair of this name, with this password setting.
    Attach(KeyName, PasswordAuth),
    /// Unbind the key pair of this name.
    Detach(KeyName),
    /// Turn password login on.
    AllowPasswords,
}

impl OrderKind {
    /// The key pair it is about.
    pub fn key_name(&self) -> Option<&KeyName> {
        match self {
            Self::Attach(name, _) | Self::Detach(name) => Some(name),
            Self::AllowPasswords => None,
        }
    }

    /// What its commands do.
    pub fn action(&self) -> ActionName {
        match self {
            Self::Attach(..) => ActionName::Attach,
            Self::Detach(_) => ActionName::Detach,
            Self::AllowPasswords => ActionName::SetPasswordAuth,
        }
    }
}

/// An order's verb, its key pair looked up.
enum ResolvedOrder {
    Attach(Binding),
    Detach(KeyName),
    AllowPasswords,
}

impl ResolvedOrder {
    /// Of a verb, and the key pair that has its name now.
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

    /// What it takes on this instance.
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

/// What a request asked of one instance, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandStatus {
    /// The instance.
    pub instance: InstanceId,
    /// The command it was given.
    pub command: Command,
    /// The guest's answer, once there is one.
    pub outcome: Option<CommandResult>,
}

/// Why an order is refused; nothing of it is queued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OrderError {
    /// There is no key pair of that name in that region.
    KeyPairNotFound,
    /// The instance has another binding: any for an attach, another's for a detach.
    AlreadyBound(InstanceId),
}

/// The command that an instance has been given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueuedCommand {
    /// The instance.
    pub instance: InstanceId,
    /// Its command.
    pub command: CommandId,
    /// Whether it was queued now, and not by the same order before.
    pub fresh: bool,
}

/// A key pair with the instances it is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedKeyPair {
    /// The key pair.
    pub key_pair: StoredKeyPair,
    /// The instances, by id.
    pub instances: Vec<InstanceId>,
}

/// The store does not do its work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreError {
    /// Nothing was changed.
    Failed(String),
    /// It was asked to keep a change, and did not answer: the change is kept, or is not.
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

/// Keeps everything that outlives a request.
#[async_trait]
pub trait Store: Send + Sync {
    /// Keeps a new key pair; `false` where its name is in use in its region.
    async fn insert_key_pair(&self, key_pair: StoredKeyPair) -> Result<bool, StoreError>;

    /// The key pair that has that name now.
    async fn find_key_pair(
        &self,
        region: &Region,
        name: &KeyName,
    ) -> Result<Option<StoredKeyPair>, StoreError>;

    /// Forgets a key pair; what is bound to it stays so in the guests. `false` where there is none.
    async fn delete_key_pair(&self, region: &Region, name: &KeyName) -> Result<bool, StoreError>;

    /// The key pairs of a region, by name.
    async fn list_key_pairs(&self, region: &Region) -> Result<Vec<ListedKeyPair>, StoreError>;

    /// Queues a command for every instance of the order, or for none; they are found by the order's request then.
    async fn queue_order(&self, order: &Order) -> Result<Result<Vec<QueuedCommand>, OrderError>, StoreError>;

    /// What an instance is bound to, every unanswered command taken as done.
    async fn binding(&self, instance: &InstanceId) -> Result<Option<Binding>, StoreError>;

    /// The oldest command of an instance that has no result.
    async fn next_command(&self, instance: &InstanceId) -> Result<Option<Command>, StoreError>;

    /// The same, which is handed out at `now`, in milliseconds since 1970: the first time is kept.
    async fn hand_out(&self, instance: &InstanceId, now: u64) -> Result<Option<Command>, StoreError>;

    /// Whether an instance has, or lately had, that command.
    async fn has_command(&self, instance: &InstanceId, command: &CommandId) -> Result<bool, StoreError>;

    /// Keeps the result of a command, or the command after a `BAD_SIGNATURE` within an hour.
    async fn store_result(
        &self,
        instance: &InstanceId,
        answer: ReceivedResult,
    ) -> Result<StoreResultOutcome, StoreError>;

    /// The result of a command, once there is one.
    async fn outcome(
        &self,
        instance: &InstanceId,
        command: &CommandId,
    ) -> Result<Option<CommandResult>, StoreError>;

    /// What a request asked for, by instance; nothing where there was no such request, or all its commands are forgotten.
    async fn command_statuses(&self, request: &RequestId) -> Result<Vec<CommandStatus>, StoreError>;

    /// Keeps an instance's new state, in place of the one that it had; `false` where it has another one by now.
    async fn change_state(
        &self,
        instance: &InstanceId,
        before: Option<&InstanceState>,
        state: &InstanceState,
    ) -> Result<bool, StoreError>;

    /// An instance's last new state; `None` where it is as it always was.
    async fn state(&self, instance: &InstanceId) -> Result<Option<InstanceState>, StoreError>;

    /// Whether a signature is seen for the first time; it is remembered until `until`.
    async fn record_signature(&self, signature: &str, until: OffsetDateTime) -> Result<bool, StoreError>;

    /// Keeps what the agent says of itself, in place of what it said before.
    async fn store_report(&self, instance: &InstanceId, report: Vec<u8>) -> Result<(), StoreError>;

    /// What the agent last said of itself.
    async fn report(&self, instance: &InstanceId) -> Result<Option<Vec<u8>>, StoreError>;

    /// Sees a change whenever commands or results of the instance changed. Whoever subscribes before he reads
    /// misses nothing.
    fn watch_changes(&self, instance: &InstanceId) -> watch::Receiver<u64>;
}

/// Which store to use, as `--store` names it.
#[derive(Clone, PartialEq, Eq)]
pub enum StoreUrl {
    /// `memory:`, forgotten when the process ends.
    Memory,
    /// `sqlite:PATH`, a file of this process alone.
    Sqlite(PathBuf),
    /// `postgres://…`, a database that any number of servers share.
    Postgres(String),
}

impl FromStr for StoreUrl {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text.split_once(':') {
            Some(("memory", "")) => Ok(Self::Memory),
            Some(("sqlite", ":memory:")) => Err(Invalid("the store that forgets is memory:".into())),
            // As others write a URL; what follows two slashes would be a host's name.
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

/// Without the password that may stand in it.
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
    /// Opens it, and brings its schema up to date.
    ///
    /// # Errors
    /// Where it is not there, is another process's, or of a newer version.
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
