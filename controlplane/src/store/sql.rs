//! The stores that outlive the process: SQLite for one server, PostgreSQL for as many as wanted. One schema and one text
//! of SQL; what differs is how rows are locked and how the news spreads.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use keypair_agent::policy::command::Command;
use keypair_agent::policy::outcome::Outcome;
use keypair_agent::policy::types::{CommandId, InstanceId, KeyName};
use sqlx::pool::PoolConnection;
use sqlx::{Any, AnyConnection, AnyPool, Row, Transaction};
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::time::{Duration, Instant, timeout};

use self::ledgers::{Locking, Which};
use super::changes::Changes;
use super::{Fate, Listed, Order, Placed, Refused, Store, StoreError, Wanted};
use crate::ids::RequestId;
use crate::keypair::{Region, StoredKeyPair};
use crate::ledger::{Answer, Binding, Ledger, Next, Settled};
use crate::lifecycle::State;

mod key_pairs;
mod ledgers;
mod news;
mod open;
mod schema;

/// How long a piece of work may take in all: an order of thousands of instances has many rows to write.
const LIMIT: Duration = Duration::from_secs(60);
/// How often expired signatures are taken out.
const PURGE: Duration = Duration::from_secs(60);

/// A database, and who waits for news of it.
pub struct Sql(Arc<Database>);

struct Database {
    pool: AnyPool,
    locking: Locking,
    changes: Arc<Changes>,
    purged: Mutex<Option<Instant>>,
}

impl Sql {
    /// Does a piece of work to its end, whoever goes away meanwhile: a caller that hangs up leaves no transaction behind, and
    /// nobody untold.
    async fn whole<T: Send + 'static, F: Future<Output = Result<T, StoreError>> + Send + 'static>(
        &self,
        work: impl FnOnce(Arc<Database>) -> F,
    ) -> Result<T, StoreError> {
        let work = tokio::spawn(timeout(LIMIT, work(self.0.clone())));
        match work.await {
            Ok(Ok(done)) => done,
            Ok(Err(_)) => Err(StoreError::Uncertain(format!("not done within {} s", LIMIT.as_secs()))),
            Err(error) => Err(StoreError::Uncertain(error.to_string())),
        }
    }
}

impl Database {
    async fn begin(&self) -> Result<Transaction<'static, Any>, StoreError> {
        self.pool.begin().await.map_err(failed)
    }

    /// Makes a change durable, and tells who waits for these instances: here, and at every other server.
    async fn commit(
        &self,
        mut transaction: Transaction<'_, Any>,
        changed: &[&InstanceId],
    ) -> Result<(), StoreError> {
        if self.locking == Locking::Rows {
            for instance in changed {
                news::tell(&mut transaction, instance).await?;
            }
        }
        let committed = transaction.commit().await;
        // Where it is uncertain, who looks in vain waits on.
        for instance in changed {
            self.changes.tell(instance);
        }
        committed.map_err(|error| StoreError::Uncertain(error.to_string()))
    }

    async fn connection(&self) -> Result<PoolConnection<Any>, StoreError> {
        self.pool.acquire().await.map_err(failed)
    }

    /// One instance's ledger as it is now, with the answer of that command too.
    async fn ledger(&self, instance: &InstanceId, command: Option<&CommandId>) -> Result<Ledger, StoreError> {
        let loaded = ledgers::load(&mut *self.connection().await?, Which::One(instance), command).await?;
        Ok(loaded.into_values().next().unwrap_or_default())
    }

    async fn place(&self, order: &Order) -> Result<Result<Vec<Placed>, Refused>, StoreError> {
        let mut transaction = self.begin().await?;
        let named = match order.verb.key_name() {
            Some(name) => key_pairs::named(&mut transaction, &order.region, name).await?,
            None => None,
        };
        let wanted = match Wanted::of(&order.verb, named.as_ref()) {
            Ok(wanted) => wanted,
            Err(refused) => return Ok(Err(refused)),
        };
        // In one order by everybody, so that no two wait for one another.
        let mut locked = order.instances.clone();
        locked.sort();
        for instance in &locked {
            ledgers::lock(&mut transaction, instance, self.locking).await?;
        }
        let mut placed = Vec::with_capacity(order.instances.len());
        for instance in &order.instances {
            let loaded = ledgers::load(&mut transaction, Which::One(instance), None).await?;
            let ledger = loaded.into_values().next().unwrap_or_default();
            let is_live = match ledger.binding() {
                Some(binding) => key_pairs::is_live(&mut transaction, &binding.key_pair).await?,
                None => false,
            };
            // What was queued before a refusal is rolled back with the transaction.
            let (command, fresh) = match wanted.step(instance, &ledger, |_| is_live)? {
                Err(refused) => return Ok(Err(refused)),
                Ok(Next::Waiting(command)) => (command, false),
                Ok(Next::Queue(entry)) => {
                    ledgers::push(&mut transaction, instance, &entry).await?;
                    (entry.command.id, true)
                }
            };
            placed.push(Placed { instance: instance.clone(), command, fresh });
        }
        ledgers::keep_request(&mut transaction, &order.request, &placed).await?;
        let changed: Vec<&InstanceId> =
            placed.iter().filter(|one| one.fresh).map(|one| &one.instance).collect();
        self.commit(transaction, &changed).await?;
        Ok(Ok(placed))
    }

    async fn settle(&self, instance: &InstanceId, answer: Answer) -> Result<Settled, StoreError> {
        let mut transaction = self.begin().await?;
        ledgers::lock(&mut transaction, instance, self.locking).await?;
        let command = &answer.outcome.command_id;
        let loaded = ledgers::load(&mut transaction, Which::One(instance), Some(command)).await?;
        let mut ledger = loaded.into_values().next().unwrap_or_default();
        let settled = ledger.settle(answer.clone());
        if matches!(settled, Settled::Stored(_)) {
            ledgers::keep_answer(&mut transaction, instance, &answer, ledger.confirmed()).await?;
            self.commit(transaction, &[instance]).await?;
        }
        Ok(settled)
    }

    /// Takes out the signatures that are over, now and then.
    async fn purge(&self) -> Result<(), StoreError> {
        let is_due = {
            let mut purged = self.purged.lock().unwrap_or_else(PoisonError::into_inner);
            let is_due = purged.is_none_or(|last| last.elapsed() > PURGE);
            if is_due {
                *purged = Some(Instant::now());
            }
            is_due
        };
        if is_due {
            let query = sqlx::query("DELETE FROM signatures WHERE until < $1");
            let now = milliseconds(OffsetDateTime::now_utc());
            query.bind(now).execute(&self.pool).await.map_err(failed)?;
        }
        Ok(())
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
        key_pairs::named(&mut *self.0.connection().await?, region, name).await
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
        let mut connection = self.0.connection().await?;
        let key_pairs = key_pairs::of(&mut connection, region).await?;
        let mut bound: BTreeMap<String, Vec<InstanceId>> = BTreeMap::new();
        for (instance, ledger) in ledgers::load(&mut connection, Which::All, None).await? {
            if let Some(binding) = ledger.binding() {
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
        Ok(self.0.ledger(instance, None).await?.binding().cloned())
    }

    async fn next(&self, instance: &InstanceId) -> Result<Option<Command>, StoreError> {
        Ok(self.0.ledger(instance, None).await?.oldest_unanswered().cloned())
    }

    async fn knows(&self, instance: &InstanceId, command: &CommandId) -> Result<bool, StoreError> {
        Ok(self.0.ledger(instance, Some(command)).await?.entry(command).is_some())
    }

    async fn settle(&self, instance: &InstanceId, answer: Answer) -> Result<Settled, StoreError> {
        let instance = instance.clone();
        self.whole(async move |database| database.settle(&instance, answer).await).await
    }

    async fn outcome(
        &self,
        instance: &InstanceId,
        command: &CommandId,
    ) -> Result<Option<Outcome>, StoreError> {
        let ledger = self.0.ledger(instance, Some(command)).await?;
        let answer = ledger.entry(command).and_then(|entry| entry.answer.as_ref());
        Ok(answer.map(|answer| answer.outcome.clone()))
    }

    async fn fates(&self, request: &RequestId) -> Result<Vec<Fate>, StoreError> {
        ledgers::fates(&mut *self.0.connection().await?, request).await
    }

    async fn change_state(
        &self,
        instance: &InstanceId,
        before: Option<&State>,
        state: &State,
    ) -> Result<bool, StoreError> {
        let query = match before {
            None => sqlx::query(
                "INSERT INTO states (instance, status, since) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
            ),
            Some(_) => sqlx::query(
                "UPDATE states SET status = $2, since = $3 WHERE instance = $1 AND status = $4 AND since = $5",
            ),
        };
        let mut query =
            query.bind(instance.as_str()).bind(state.status.to_string()).bind(milliseconds(state.since));
        if let Some(before) = before {
            query = query.bind(before.status.to_string()).bind(milliseconds(before.since));
        }
        Ok(query.execute(&self.0.pool).await.map_err(not_written)?.rows_affected() == 1)
    }

    async fn state(&self, instance: &InstanceId) -> Result<Option<State>, StoreError> {
        let query =
            sqlx::query("SELECT status, since FROM states WHERE instance = $1").bind(instance.as_str());
        let Some(row) = query.fetch_optional(&self.0.pool).await.map_err(failed)? else { return Ok(None) };
        let status: String = row.try_get("status").map_err(failed)?;
        Ok(Some(State { status: status.try_into()?, since: instant(row.try_get("since").map_err(failed)?)? }))
    }

    async fn is_first(&self, signature: &str, until: OffsetDateTime) -> Result<bool, StoreError> {
        self.0.purge().await?;
        let query =
            sqlx::query("INSERT INTO signatures (signature, until) VALUES ($1, $2) ON CONFLICT DO NOTHING");
        let query = query.bind(signature).bind(milliseconds(until));
        Ok(query.execute(&self.0.pool).await.map_err(not_written)?.rows_affected() == 1)
    }

    async fn keep_report(&self, instance: &InstanceId, report: Vec<u8>) -> Result<(), StoreError> {
        let query = sqlx::query(
            "INSERT INTO reports (instance, report) VALUES ($1, $2) \
             ON CONFLICT (instance) DO UPDATE SET report = excluded.report",
        );
        let report = String::from_utf8(report).map_err(failed)?;
        query.bind(instance.as_str()).bind(report).execute(&self.0.pool).await.map_err(not_written)?;
        Ok(())
    }

    async fn report(&self, instance: &InstanceId) -> Result<Option<Vec<u8>>, StoreError> {
        let query = sqlx::query("SELECT report FROM reports WHERE instance = $1").bind(instance.as_str());
        let row = query.fetch_optional(&self.0.pool).await.map_err(failed)?;
        let report: Option<String> = row.map(|row| row.try_get("report")).transpose().map_err(failed)?;
        Ok(report.map(String::into_bytes))
    }

    fn changes(&self, instance: &InstanceId) -> watch::Receiver<u64> {
        self.0.changes.subscribe(instance)
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
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

fn instant(milliseconds: i64) -> Result<OffsetDateTime, StoreError> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(milliseconds) * 1_000_000).map_err(failed)
}

/// The connection that a call works on.
type Connection = AnyConnection;
