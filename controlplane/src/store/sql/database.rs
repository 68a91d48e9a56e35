//! The reads and transactions on a database. The rules are in [`Ledger`].

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use keypair_agent::policy::types::{CommandId, InstanceId};
use sqlx::pool::PoolConnection;
use sqlx::{Any, AnyPool, Transaction};
use time::OffsetDateTime;

use super::gathered::BatchResults;
use super::ledgers::{LedgerFilter, Locking, OnLocked};
use super::{key_pairs, ledgers, news, reports, states, to_sql_timestamp, to_store_error};
use crate::clock;
use crate::ledger::{Ledger, QueueDecision, ReceivedResult, StoreResultOutcome};
use crate::lifecycle::InstanceState;
use crate::store::changes::ChangeNotifier;
use crate::store::{Order, OrderError, PurgeTimer, QueuedCommand, ResolvedOrder, StoreError};

/// A database, with the notifier for waiting calls.
pub(super) struct Database {
    pub(super) pool: AnyPool,
    pub(super) locking: Locking,
    pub(super) changes: Arc<ChangeNotifier>,
    pub(super) purged: Mutex<PurgeTimer>,
}

impl Database {
    pub(super) async fn begin(&self) -> Result<Transaction<'static, Any>, StoreError> {
        self.pool.begin().await.map_err(to_store_error)
    }

    /// Commits a transaction and notifies the calls that wait for these instances, here and on every other server.
    pub(super) async fn commit(
        &self,
        mut transaction: Transaction<'_, Any>,
        changed: &[&InstanceId],
    ) -> Result<(), StoreError> {
        if self.locking == Locking::Rows {
            news::notify_servers(&mut transaction, changed).await?;
        }
        let committed = transaction.commit().await;
        // Waiting calls are also notified if the outcome of the commit is uncertain. A call that finds nothing new
        // waits again.
        for instance in changed {
            self.changes.notify(instance);
        }
        committed.map_err(|error| StoreError::Uncertain(error.to_string()))
    }

    pub(super) async fn acquire_connection(&self) -> Result<PoolConnection<Any>, StoreError> {
        self.pool.acquire().await.map_err(to_store_error)
    }

    /// The current ledgers of these instances. Each ledger also includes the named command, even if that command is
    /// answered.
    pub(super) async fn load_ledgers(
        &self,
        asked: &[(InstanceId, Option<CommandId>)],
    ) -> BatchResults<Ledger> {
        let (instances, commands) =
            sort_and_dedup(asked.iter().map(|(instance, command)| (instance, command.as_ref())));
        let loaded = ledgers::load_ledgers(
            &mut *self.acquire_connection().await?,
            LedgerFilter::Instances(&instances, &commands),
        )
        .await?;
        Ok(asked
            .iter()
            .map(|(instance, _)| loaded.get(instance).cloned().unwrap_or_else(|| Ok(Ledger::default())))
            .collect())
    }

    /// The current states of these instances.
    pub(super) async fn load_states(&self, asked: &[InstanceId]) -> BatchResults<Option<InstanceState>> {
        let (instances, _) = sort_and_dedup(asked.iter().map(|instance| (instance, None)));
        let known = states::load_states(&mut *self.acquire_connection().await?, &instances).await?;
        Ok(asked.iter().map(|instance| known.get(instance).cloned().transpose()).collect())
    }

    /// Stores agent reports. If an instance has several in the batch, the last one is stored.
    pub(super) async fn store_reports(&self, said: &[(InstanceId, String)]) -> BatchResults<()> {
        let last = said.iter().map(|(instance, report)| (instance, report.as_str())).collect();
        reports::upsert_reports(&mut *self.acquire_connection().await?, &last).await?;
        Ok(said.iter().map(|_| Ok(())).collect())
    }

    /// Queues a whole order, or nothing of it.
    pub(super) async fn queue_order(
        &self,
        order: &Order,
    ) -> Result<Result<Vec<QueuedCommand>, OrderError>, StoreError> {
        let mut transaction = self.begin().await?;
        let named = match order.verb.key_name() {
            Some(name) => key_pairs::find_by_name(&mut transaction, &order.region, name).await?,
            None => None,
        };
        let wanted = match ResolvedOrder::resolve(&order.verb, named.as_ref()) {
            Ok(wanted) => wanted,
            Err(refused) => return Ok(Err(refused)),
        };
        let (instances, _) = sort_and_dedup(order.instances.iter().map(|instance| (instance, None)));
        ledgers::insert_missing_ledgers(&mut transaction, &instances).await?;
        ledgers::lock_ledgers(&mut transaction, &instances, self.locking, OnLocked::Wait).await?;
        let loaded =
            ledgers::load_ledgers(&mut transaction, LedgerFilter::Instances(&instances, &[])).await?;
        let bound = loaded.values().flatten().filter_map(Ledger::binding);
        let bound = bound.map(|binding| binding.key_pair.id.as_str()).collect();
        let live = key_pairs::select_undeleted(&mut transaction, &bound).await?;
        let empty = Ok(Ledger::default());
        let (mut placed, mut queued) = (Vec::with_capacity(order.instances.len()), Vec::new());
        for instance in &order.instances {
            let ledger = loaded.get(instance).unwrap_or(&empty).as_ref().map_err(Clone::clone)?;
            // A refusal drops the transaction, which rolls back the rows that were inserted above.
            let (command, fresh) =
                match wanted.decide_for_instance(instance, ledger, |key_pair| live.contains(&key_pair.id))? {
                    Err(refused) => return Ok(Err(refused)),
                    Ok(QueueDecision::AlreadyQueued(command)) => (command, false),
                    Ok(QueueDecision::Enqueue(entry)) => {
                        let command = entry.command.id.clone();
                        queued.push((instance, entry));
                        (command, true)
                    }
                };
            placed.push(QueuedCommand { instance: instance.clone(), command, fresh });
        }
        ledgers::insert_commands(&mut transaction, &queued).await?;
        ledgers::insert_request(&mut transaction, &order.request, &placed).await?;
        let changed: Vec<&InstanceId> = queued.iter().map(|(instance, _)| *instance).collect();
        self.commit(transaction, &changed).await?;
        Ok(Ok(placed))
    }

    /// Stores these results in one transaction; each ledger decides which results to store. With several instances, a
    /// ledger that another transaction holds is skipped. Its entry is then `None`, and the other results do not wait
    /// for it.
    pub(super) async fn store_results(
        &self,
        said: &[(InstanceId, ReceivedResult)],
    ) -> BatchResults<Option<StoreResultOutcome>> {
        let (instances, commands) = sort_and_dedup(
            said.iter().map(|(instance, answer)| (instance, Some(&answer.outcome.command_id))),
        );
        let mut transaction = self.begin().await?;
        let on_locked = if instances.len() == 1 { OnLocked::Wait } else { OnLocked::Skip };
        let locked = ledgers::lock_ledgers(&mut transaction, &instances, self.locking, on_locked).await?;
        let mut loaded =
            ledgers::load_ledgers(&mut transaction, LedgerFilter::Instances(&instances, &commands)).await?;
        let (mut settled, mut answers, mut changed) =
            (Vec::with_capacity(said.len()), Vec::new(), BTreeSet::new());
        for (instance, answer) in said {
            settled.push(match (loaded.get_mut(instance), std::str::from_utf8(&answer.bytes)) {
                (None, _) => Ok(Some(StoreResultOutcome::UnknownCommand)),
                (Some(_), _) if !locked.contains(instance) => Ok(None),
                (Some(Err(error)), _) => Err(error.clone()),
                (Some(Ok(_)), Err(error)) => Err(to_store_error(error)),
                (Some(Ok(ledger)), Ok(text)) => {
                    let settled = ledger.store_result_at(answer.clone(), clock::now_millis());
                    if matches!(settled, StoreResultOutcome::Stored(_)) {
                        answers.push((&answer.outcome.command_id, text));
                        changed.insert(instance);
                    }
                    Ok(Some(settled))
                }
            });
        }
        if !answers.is_empty() {
            ledgers::store_results(&mut transaction, &answers).await?;
            let confirmed = |instance| Some((instance, loaded.get(instance)?.as_ref().ok()?.confirmed()));
            let confirmed: Vec<_> = changed.iter().copied().filter_map(confirmed).collect();
            ledgers::store_confirmed(&mut transaction, &confirmed).await?;
            let changed: Vec<&InstanceId> = changed.into_iter().collect();
            self.commit(transaction, &changed).await?;
        }
        Ok(settled)
    }

    /// Deletes expired signatures, if a purge is due.
    pub(super) async fn purge_expired_signatures(&self) -> Result<(), StoreError> {
        let is_due = self.purged.lock().unwrap_or_else(PoisonError::into_inner).restart_if_due();
        if is_due {
            let query = sqlx::query("DELETE FROM signatures WHERE until < $1");
            let now = to_sql_timestamp(OffsetDateTime::now_utc());
            query.bind(now).execute(&self.pool).await.map_err(to_store_error)?;
        }
        Ok(())
    }
}

/// The instances and the commands, each sorted and without duplicates.
fn sort_and_dedup<'a>(
    asked: impl Iterator<Item = (&'a InstanceId, Option<&'a CommandId>)>,
) -> (Vec<&'a InstanceId>, Vec<&'a CommandId>) {
    let (instances, commands): (BTreeSet<_>, BTreeSet<_>) = asked.unzip();
    (instances.into_iter().collect(), commands.into_iter().flatten().collect())
}
