//! The stores that outlive the process: SQLite for one server, PostgreSQL for any number of servers. They share one
//! schema and the same SQL. They differ in how rows are locked, and in how servers are notified of changes.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use keypair_agent::policy::command::Command;
use keypair_agent::policy::outcome::CommandResult;
use keypair_agent::policy::types::{CommandId, InstanceId, KeyName};
use sqlx::AnyConnection;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::time::{Duration, timeout};

use self::database::Database;
use self::gathered::Batcher;
use self::ledgers::LedgerFilter;
use super::{CommandStatus, ListedKeyPair, Order, OrderError, QueuedCommand, Store, StoreError};
use crate::clock;
use crate::ids::RequestId;
use crate::keypair::{Region, StoredKeyPair};
use crate::ledger::{Binding, Ledger, ReceivedResult, StoreResultOutcome};
use crate::lifecycle::InstanceState;

mod database;
mod gathered;
mod key_pairs;
mod ledgers;
mod news;
mod open;
mod reports;
mod rows;
mod schema;
mod states;

/// The longest time for one transaction. An order for thousands of instances writes many rows.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(60);

/// A database, with batchers for its frequent queries.
pub struct SqlStore {
    database: Arc<Database>,
    /// Loads current ledgers. Each ledger also includes the named command, even if that command is answered.
    ledgers: Batcher<(InstanceId, Option<CommandId>), Ledger>,
    results: Batcher<(InstanceId, ReceivedResult), Option<StoreResultOutcome>>,
    reports: Batcher<(InstanceId, String), ()>,
    states: Batcher<InstanceId, Option<InstanceState>>,
}

impl SqlStore {
    fn new(database: Database) -> Self {
        let database = Arc::new(database);
        let ledgers = async |database: Arc<Database>, asked: Vec<_>| database.load_ledgers(&asked).await;
        let results = async |database: Arc<Database>, said: Vec<_>| database.store_results(&said).await;
        let reports = async |database: Arc<Database>, said: Vec<_>| database.store_reports(&said).await;
        let states = async |database: Arc<Database>, asked: Vec<_>| database.load_states(&asked).await;
        Self {
            ledgers: Batcher::new(&database, ledgers, StoreError::Failed),
            results: Batcher::new(&database, results, StoreError::Uncertain),
            reports: Batcher::new(&database, reports, StoreError::Uncertain),
            states: Batcher::new(&database, states, StoreError::Failed),
            database,
        }
    }

    async fn load_ledger(
        &self,
        instance: &InstanceId,
        command: Option<&CommandId>,
    ) -> Result<Ledger, StoreError> {
        self.ledgers.submit((instance.clone(), command.cloned())).await
    }

    /// Runs `work` to its end in a task of its own. If the caller disconnects, no transaction stays open and the
    /// notifications are still sent.
    async fn run_to_completion<
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    >(
        &self,
        work: impl FnOnce(Arc<Database>) -> F,
    ) -> Result<T, StoreError> {
        match timeout(TRANSACTION_TIMEOUT, tokio::spawn(work(self.database.clone()))).await {
            Ok(Ok(done)) => done,
            Ok(Err(error)) => Err(StoreError::Uncertain(error.to_string())),
            Err(_) => {
                Err(StoreError::Uncertain(format!("not done within {} s", TRANSACTION_TIMEOUT.as_secs())))
            }
        }
    }
}

#[async_trait]
impl Store for SqlStore {
    async fn insert_key_pair(&self, key_pair: StoredKeyPair) -> Result<bool, StoreError> {
        self.run_to_completion(async move |database| {
            let mut transaction = database.begin().await?;
            let is_new = key_pairs::insert(&mut transaction, &key_pair).await?;
            database.commit(transaction, &[]).await?;
            Ok(is_new)
        })
        .await
    }

    async fn find_key_pair(
        &self,
        region: &Region,
        name: &KeyName,
    ) -> Result<Option<StoredKeyPair>, StoreError> {
        key_pairs::find_by_name(&mut *self.database.acquire_connection().await?, region, name).await
    }

    async fn delete_key_pair(&self, region: &Region, name: &KeyName) -> Result<bool, StoreError> {
        let (region, name) = (region.clone(), name.clone());
        self.run_to_completion(async move |database| {
            let mut transaction = database.begin().await?;
            let was_there = key_pairs::delete(&mut transaction, &region, &name).await?;
            database.commit(transaction, &[]).await?;
            Ok(was_there)
        })
        .await
    }

    async fn list_key_pairs(&self, region: &Region) -> Result<Vec<ListedKeyPair>, StoreError> {
        let mut connection = self.database.acquire_connection().await?;
        let key_pairs = key_pairs::list_in_region(&mut connection, region).await?;
        let mut bound: BTreeMap<String, Vec<InstanceId>> = BTreeMap::new();
        for (instance, ledger) in ledgers::load_ledgers(&mut connection, LedgerFilter::All).await? {
            if let Some(binding) = ledger?.binding() {
                bound.entry(binding.key_pair.id.clone()).or_default().push(instance);
            }
        }
        let listed = |key_pair: StoredKeyPair| ListedKeyPair {
            instances: bound.remove(&key_pair.id).unwrap_or_default(),
            key_pair,
        };
        Ok(key_pairs.into_iter().map(listed).collect())
    }

    async fn queue_order(&self, order: &Order) -> Result<Result<Vec<QueuedCommand>, OrderError>, StoreError> {
        let order = order.clone();
        self.run_to_completion(async move |database| database.queue_order(&order).await).await
    }

    async fn binding(&self, instance: &InstanceId) -> Result<Option<Binding>, StoreError> {
        Ok(self.load_ledger(instance, None).await?.binding().cloned())
    }

    async fn next_command(&self, instance: &InstanceId) -> Result<Option<Command>, StoreError> {
        Ok(self.load_ledger(instance, None).await?.oldest_unanswered().cloned())
    }

    async fn hand_out(&self, instance: &InstanceId, now: u64) -> Result<Option<Command>, StoreError> {
        let mut ledger = self.load_ledger(instance, None).await?;
        if let Some(command) = ledger.mark_handed_out(now) {
            ledgers::mark_handed_out(&self.database.pool, &command.id, now).await?;
        }
        Ok(ledger.oldest_unanswered().cloned())
    }

    async fn has_command(&self, instance: &InstanceId, command: &CommandId) -> Result<bool, StoreError> {
        Ok(self.load_ledger(instance, Some(command)).await?.entry(command).is_some())
    }

    async fn store_result(
        &self,
        instance: &InstanceId,
        answer: ReceivedResult,
    ) -> Result<StoreResultOutcome, StoreError> {
        if let Some(settled) = self.results.submit((instance.clone(), answer.clone())).await? {
            return Ok(settled);
        }
        // Another transaction holds the ledger. This result waits for it alone, outside of the batch.
        let alone = [(instance.clone(), answer)];
        let settled =
            self.run_to_completion(async move |database| database.store_results(&alone).await).await?;
        settled
            .into_iter()
            .next()
            .transpose()?
            .flatten()
            .ok_or_else(|| to_store_error("a result was not looked at"))
    }

    async fn outcome(
        &self,
        instance: &InstanceId,
        command: &CommandId,
    ) -> Result<Option<CommandResult>, StoreError> {
        let ledger = self.load_ledger(instance, Some(command)).await?;
        let answer = ledger.entry(command).and_then(|entry| entry.answer.as_ref());
        Ok(answer.map(|answer| answer.outcome.clone()))
    }

    async fn command_statuses(&self, request: &RequestId) -> Result<Vec<CommandStatus>, StoreError> {
        ledgers::load_command_statuses(&mut *self.database.acquire_connection().await?, request).await
    }

    async fn change_state(
        &self,
        instance: &InstanceId,
        before: Option<&InstanceState>,
        state: &InstanceState,
    ) -> Result<bool, StoreError> {
        states::compare_and_set(&self.database.pool, instance, before, state).await
    }

    async fn state(&self, instance: &InstanceId) -> Result<Option<InstanceState>, StoreError> {
        self.states.submit(instance.clone()).await
    }

    async fn record_signature(&self, signature: &str, until: OffsetDateTime) -> Result<bool, StoreError> {
        self.database.purge_expired_signatures().await?;
        let query =
            sqlx::query("INSERT INTO signatures (signature, until) VALUES ($1, $2) ON CONFLICT DO NOTHING");
        let query = query.bind(signature).bind(to_sql_timestamp(until));
        Ok(query.execute(&self.database.pool).await.map_err(to_write_error)?.rows_affected() == 1)
    }

    async fn store_report(&self, instance: &InstanceId, report: Vec<u8>) -> Result<(), StoreError> {
        let report = String::from_utf8(report).map_err(to_store_error)?;
        self.reports.submit((instance.clone(), report)).await
    }

    async fn report(&self, instance: &InstanceId) -> Result<Option<Vec<u8>>, StoreError> {
        let report = reports::load_report(&mut *self.database.acquire_connection().await?, instance).await?;
        Ok(report.map(String::into_bytes))
    }

    fn watch_changes(&self, instance: &InstanceId) -> watch::Receiver<u64> {
        self.database.changes.subscribe(instance)
    }
}

/// Converts an error of a read, or an error before a commit: nothing was changed.
fn to_store_error(error: impl ToString) -> StoreError {
    StoreError::Failed(error.to_string())
}

/// Converts an error of a statement that is its own transaction. If the connection broke, it is unknown whether the
/// statement took effect.
fn to_write_error(error: sqlx::Error) -> StoreError {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed => {
            StoreError::Uncertain(error.to_string())
        }
        _ => to_store_error(error),
    }
}

fn to_sql_timestamp(time: OffsetDateTime) -> i64 {
    i64::try_from(clock::to_unix_millis(time)).unwrap_or(i64::MAX)
}

fn from_sql_timestamp(milliseconds: i64) -> Result<OffsetDateTime, StoreError> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(milliseconds) * 1_000_000).map_err(to_store_error)
}

/// The connection type of all queries.
type Connection = AnyConnection;
