//! The stores that outlive the process: SQLite for one server, PostgreSQL for as many as wanted. One schema and one text
//! of SQL; what differs is how rows are locked and how the news spreads.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use keypair_agent::policy::command::Command;
use keypair_agent::policy::outcome::Outcome;
use keypair_agent::policy::types::{CommandId, InstanceId, KeyName};
use sqlx::AnyConnection;
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::time::{Duration, timeout};

use self::database::Database;
use self::gathered::Gathered;
use self::ledgers::Which;
use super::{Fate, Listed, Order, Placed, Refused, Store, StoreError};
use crate::clock;
use crate::ids::RequestId;
use crate::keypair::{Region, StoredKeyPair};
use crate::ledger::{Answer, Binding, Ledger, Settled};
use crate::lifecycle::State;

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

/// How long a piece of work may take in all: an order of thousands of instances has many rows to write.
const LIMIT: Duration = Duration::from_secs(60);

/// A database, and who waits for news of it.
pub struct Sql {
    database: Arc<Database>,
    /// Ledgers as they are now, each with the answer of that command too.
    ledgers: Gathered<(InstanceId, Option<CommandId>), Ledger>,
    results: Gathered<(InstanceId, Answer), Option<Settled>>,
    reports: Gathered<(InstanceId, String), ()>,
    states: Gathered<InstanceId, Option<State>>,
}

impl Sql {
    fn of(database: Database) -> Self {
        let database = Arc::new(database);
        let ledgers = async |database: Arc<Database>, asked: Vec<_>| database.ledgers(&asked).await;
        let results = async |database: Arc<Database>, said: Vec<_>| database.settle(&said).await;
        let reports = async |database: Arc<Database>, said: Vec<_>| database.keep_reports(&said).await;
        let states = async |database: Arc<Database>, asked: Vec<_>| database.states(&asked).await;
        Self {
            ledgers: Gathered::new(&database, ledgers, StoreError::Failed),
            results: Gathered::new(&database, results, StoreError::Uncertain),
            reports: Gathered::new(&database, reports, StoreError::Uncertain),
            states: Gathered::new(&database, states, StoreError::Failed),
            database,
        }
    }

    async fn ledger(&self, instance: &InstanceId, command: Option<&CommandId>) -> Result<Ledger, StoreError> {
        self.ledgers.ask((instance.clone(), command.cloned())).await
    }

    /// Does a piece of work to its end, whoever goes away meanwhile: a caller that hangs up leaves no transaction behind, and
    /// nobody untold.
    async fn whole<T: Send + 'static, F: Future<Output = Result<T, StoreError>> + Send + 'static>(
        &self,
        work: impl FnOnce(Arc<Database>) -> F,
    ) -> Result<T, StoreError> {
        match timeout(LIMIT, tokio::spawn(work(self.database.clone()))).await {
            Ok(Ok(done)) => done,
            Ok(Err(error)) => Err(StoreError::Uncertain(error.to_string())),
            Err(_) => Err(StoreError::Uncertain(format!("not done within {} s", LIMIT.as_secs()))),
        }
    }
}

#[async_trait]
impl Store for Sql {
    async fn import(&self, key_pair: StoredKeyPair) -> Result<bool, StoreError> {
        self.whole(async move |database| {
            let mut transaction = database.begin().await?;
            let is_new = key_pairs::insert(&mut transaction, &key_pair).await?;
            database.commit(transaction, &[]).await?;
            Ok(is_new)
        })
        .await
    }

    async fn key_pair(&self, region: &Region, name: &KeyName) -> Result<Option<StoredKeyPair>, StoreError> {
        key_pairs::named(&mut *self.database.connection().await?, region, name).await
    }

    async fn delete(&self, region: &Region, name: &KeyName) -> Result<bool, StoreError> {
        let (region, name) = (region.clone(), name.clone());
        self.whole(async move |database| {
            let mut transaction = database.begin().await?;
            let was_there = key_pairs::delete(&mut transaction, &region, &name).await?;
            database.commit(transaction, &[]).await?;
            Ok(was_there)
        })
        .await
    }

    async fn list(&self, region: &Region) -> Result<Vec<Listed>, StoreError> {
        let mut connection = self.database.connection().await?;
        let key_pairs = key_pairs::of(&mut connection, region).await?;
        let mut bound: BTreeMap<String, Vec<InstanceId>> = BTreeMap::new();
        for (instance, ledger) in ledgers::load(&mut connection, Which::All).await? {
            if let Some(binding) = ledger?.binding() {
                bound.entry(binding.key_pair.id.clone()).or_default().push(instance);
            }
        }
        let listed = |key_pair: StoredKeyPair| Listed {
            instances: bound.remove(&key_pair.id).unwrap_or_default(),
            key_pair,
        };
        Ok(key_pairs.into_iter().map(listed).collect())
    }

    async fn place(&self, order: &Order) -> Result<Result<Vec<Placed>, Refused>, StoreError> {
        let order = order.clone();
        self.whole(async move |database| database.place(&order).await).await
    }

    async fn binding(&self, instance: &InstanceId) -> Result<Option<Binding>, StoreError> {
        Ok(self.ledger(instance, None).await?.binding().cloned())
    }

    async fn next(&self, instance: &InstanceId) -> Result<Option<Command>, StoreError> {
        Ok(self.ledger(instance, None).await?.oldest_unanswered().cloned())
    }

    async fn hand_out(&self, instance: &InstanceId, now: u64) -> Result<Option<Command>, StoreError> {
        let mut ledger = self.ledger(instance, None).await?;
        if let Some(command) = ledger.hand_out(now) {
            ledgers::hand_out(&self.database.pool, &command.id, now).await?;
        }
        Ok(ledger.oldest_unanswered().cloned())
    }

    async fn knows(&self, instance: &InstanceId, command: &CommandId) -> Result<bool, StoreError> {
        Ok(self.ledger(instance, Some(command)).await?.entry(command).is_some())
    }

    async fn settle(&self, instance: &InstanceId, answer: Answer) -> Result<Settled, StoreError> {
        if let Some(settled) = self.results.ask((instance.clone(), answer.clone())).await? {
            return Ok(settled);
        }
        // Somebody works on its ledger: it waits for that by itself.
        let alone = [(instance.clone(), answer)];
        let settled = self.whole(async move |database| database.settle(&alone).await).await?;
        settled.into_iter().next().transpose()?.flatten().ok_or_else(|| failed("a result was not looked at"))
    }

    async fn outcome(
        &self,
        instance: &InstanceId,
        command: &CommandId,
    ) -> Result<Option<Outcome>, StoreError> {
        let ledger = self.ledger(instance, Some(command)).await?;
        let answer = ledger.entry(command).and_then(|entry| entry.answer.as_ref());
        Ok(answer.map(|answer| answer.outcome.clone()))
    }

    async fn fates(&self, request: &RequestId) -> Result<Vec<Fate>, StoreError> {
        ledgers::fates(&mut *self.database.connection().await?, request).await
    }

    async fn change_state(
        &self,
        instance: &InstanceId,
        before: Option<&State>,
        state: &State,
    ) -> Result<bool, StoreError> {
        states::change(&self.database.pool, instance, before, state).await
    }

    async fn state(&self, instance: &InstanceId) -> Result<Option<State>, StoreError> {
        self.states.ask(instance.clone()).await
    }

    async fn is_first(&self, signature: &str, until: OffsetDateTime) -> Result<bool, StoreError> {
        self.database.purge().await?;
        let query =
            sqlx::query("INSERT INTO signatures (signature, until) VALUES ($1, $2) ON CONFLICT DO NOTHING");
        let query = query.bind(signature).bind(milliseconds(until));
        Ok(query.execute(&self.database.pool).await.map_err(not_written)?.rows_affected() == 1)
    }

    async fn keep_report(&self, instance: &InstanceId, report: Vec<u8>) -> Result<(), StoreError> {
        let report = String::from_utf8(report).map_err(failed)?;
        self.reports.ask((instance.clone(), report)).await
    }

    async fn report(&self, instance: &InstanceId) -> Result<Option<Vec<u8>>, StoreError> {
        let report = reports::one(&mut *self.database.connection().await?, instance).await?;
        Ok(report.map(String::into_bytes))
    }

    fn changes(&self, instance: &InstanceId) -> watch::Receiver<u64> {
        self.database.changes.subscribe(instance)
    }
}

/// Whatever went wrong in a read, or before a commit: nothing was changed.
fn failed(error: impl ToString) -> StoreError {
    StoreError::Failed(error.to_string())
}

/// A statement that is a transaction of its own: where the line broke, nobody knows whether it was done.
fn not_written(error: sqlx::Error) -> StoreError {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed => {
            StoreError::Uncertain(error.to_string())
        }
        _ => failed(error),
    }
}

fn milliseconds(time: OffsetDateTime) -> i64 {
    i64::try_from(clock::milliseconds(time)).unwrap_or(i64::MAX)
}

fn instant(milliseconds: i64) -> Result<OffsetDateTime, StoreError> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(milliseconds) * 1_000_000).map_err(failed)
}

/// The connection that a call works on.
type Connection = AnyConnection;
