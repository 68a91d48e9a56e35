//! What is done on a database, each piece a read or a transaction; the rules are [`Ledger`]'s.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use keypair_agent::policy::types::{CommandId, InstanceId};
use sqlx::pool::PoolConnection;
use sqlx::{Any, AnyPool, Transaction};
use time::OffsetDateTime;

use super::gathered::Answers;
use super::ledgers::{IfTaken, Locking, Which};
use super::{failed, key_pairs, ledgers, milliseconds, news, reports, states};
use crate::clock;
use crate::ledger::{Answer, Ledger, Next, Settled};
use crate::lifecycle::State;
use crate::store::changes::Changes;
use crate::store::{Order, Placed, Purged, Refused, StoreError, Wanted};

/// A database, and who waits for news of it.
pub(super) struct Database {
    pub(super) pool: AnyPool,
    pub(super) locking: Locking,
    pub(super) changes: Arc<Changes>,
    pub(super) purged: Mutex<Purged>,
}

impl Database {
    pub(super) async fn begin(&self) -> Result<Transaction<'static, Any>, StoreError> {
        self.pool.begin().await.map_err(failed)
    }

    /// Makes a change durable, and tells who waits for these instances: here, and at every other server.
    pub(super) async fn commit(
        &self,
        mut transaction: Transaction<'_, Any>,
        changed: &[&InstanceId],
    ) -> Result<(), StoreError> {
        if self.locking == Locking::Rows {
            news::tell(&mut transaction, changed).await?;
        }
        let committed = transaction.commit().await;
        // Where it is uncertain, who looks in vain waits on.
        for instance in changed {
            self.changes.tell(instance);
        }
        committed.map_err(|error| StoreError::Uncertain(error.to_string()))
    }

    pub(super) async fn connection(&self) -> Result<PoolConnection<Any>, StoreError> {
        self.pool.acquire().await.map_err(failed)
    }

    /// These ledgers as they are now, each with the answer of that command too.
    pub(super) async fn ledgers(&self, asked: &[(InstanceId, Option<CommandId>)]) -> Answers<Ledger> {
        let (instances, commands) =
            sorted(asked.iter().map(|(instance, command)| (instance, command.as_ref())));
        let loaded =
            ledgers::load(&mut *self.connection().await?, Which::Some(&instances, &commands)).await?;
        Ok(asked
            .iter()
            .map(|(instance, _)| loaded.get(instance).cloned().unwrap_or_else(|| Ok(Ledger::default())))
            .collect())
    }

    /// The states of these instances as they are now.
    pub(super) async fn states(&self, asked: &[InstanceId]) -> Answers<Option<State>> {
        let (instances, _) = sorted(asked.iter().map(|instance| (instance, None)));
        let known = states::load(&mut *self.connection().await?, &instances).await?;
        Ok(asked.iter().map(|instance| known.get(instance).cloned().transpose()).collect())
    }

    /// Keeps what these agents say of themselves; of two reports of one the last.
    pub(super) async fn keep_reports(&self, said: &[(InstanceId, String)]) -> Answers<()> {
        let last = said.iter().map(|(instance, report)| (instance, report.as_str())).collect();
        reports::keep(&mut *self.connection().await?, &last).await?;
        Ok(said.iter().map(|_| Ok(())).collect())
    }

    /// Queues all of an order, or nothing.
    pub(super) async fn place(&self, order: &Order) -> Result<Result<Vec<Placed>, Refused>, StoreError> {
        let mut transaction = self.begin().await?;
        let named = match order.verb.key_name() {
            Some(name) => key_pairs::named(&mut transaction, &order.region, name).await?,
            None => None,
        };
        let wanted = match Wanted::of(&order.verb, named.as_ref()) {
            Ok(wanted) => wanted,
            Err(refused) => return Ok(Err(refused)),
        };
        let (instances, _) = sorted(order.instances.iter().map(|instance| (instance, None)));
        ledgers::add(&mut transaction, &instances).await?;
        ledgers::lock(&mut transaction, &instances, self.locking, IfTaken::Wait).await?;
        let loaded = ledgers::load(&mut transaction, Which::Some(&instances, &[])).await?;
        let bound = loaded.values().flatten().filter_map(Ledger::binding);
        let bound = bound.map(|binding| binding.key_pair.id.as_str()).collect();
        let live = key_pairs::live(&mut transaction, &bound).await?;
        let empty = Ok(Ledger::default());
        let (mut placed, mut queued) = (Vec::with_capacity(order.instances.len()), Vec::new());
        for instance in &order.instances {
            let ledger = loaded.get(instance).unwrap_or(&empty).as_ref().map_err(Clone::clone)?;
            // What was added before a refusal is rolled back with the transaction.
            let (command, fresh) =
                match wanted.step(instance, ledger, |key_pair| live.contains(&key_pair.id))? {
                    Err(refused) => return Ok(Err(refused)),
                    Ok(Next::Waiting(command)) => (command, false),
                    Ok(Next::Queue(entry)) => {
                        let command = entry.command.id.clone();
                        queued.push((instance, entry));
                        (command, true)
                    }
                };
            placed.push(Placed { instance: instance.clone(), command, fresh });
        }
        ledgers::push(&mut transaction, &queued).await?;
        ledgers::keep_request(&mut transaction, &order.request, &placed).await?;
        let changed: Vec<&InstanceId> = queued.iter().map(|(instance, _)| *instance).collect();
        self.commit(transaction, &changed).await?;
        Ok(Ok(placed))
    }

    /// Keeps all of these results, or none; which of them are to be kept each ledger says. `None` for those of several whose
    /// ledger somebody works on: the others do not wait for it.
    pub(super) async fn settle(&self, said: &[(InstanceId, Answer)]) -> Answers<Option<Settled>> {
        let (instances, commands) =
            sorted(said.iter().map(|(instance, answer)| (instance, Some(&answer.outcome.command_id))));
        let mut transaction = self.begin().await?;
        let if_taken = if instances.len() == 1 { IfTaken::Wait } else { IfTaken::Skip };
        let locked = ledgers::lock(&mut transaction, &instances, self.locking, if_taken).await?;
        let mut loaded = ledgers::load(&mut transaction, Which::Some(&instances, &commands)).await?;
        let (mut settled, mut answers, mut changed) =
            (Vec::with_capacity(said.len()), Vec::new(), BTreeSet::new());
        for (instance, answer) in said {
            settled.push(match (loaded.get_mut(instance), std::str::from_utf8(&answer.bytes)) {
                (None, _) => Ok(Some(Settled::Unknown)),
                (Some(_), _) if !locked.contains(instance) => Ok(None),
                (Some(Err(error)), _) => Err(error.clone()),
                (Some(Ok(_)), Err(error)) => Err(failed(error)),
                (Some(Ok(ledger)), Ok(text)) => {
                    let settled = ledger.settle_at(answer.clone(), clock::now());
                    if matches!(settled, Settled::Stored(_)) {
                        answers.push((&answer.outcome.command_id, text));
                        changed.insert(instance);
                    }
                    Ok(Some(settled))
                }
            });
        }
        if !answers.is_empty() {
            ledgers::keep_answers(&mut transaction, &answers).await?;
            let confirmed = |instance| Some((instance, loaded.get(instance)?.as_ref().ok()?.confirmed()));
            let confirmed: Vec<_> = changed.iter().copied().filter_map(confirmed).collect();
            ledgers::keep_confirmed(&mut transaction, &confirmed).await?;
            let changed: Vec<&InstanceId> = changed.into_iter().collect();
            self.commit(transaction, &changed).await?;
        }
        Ok(settled)
    }

    /// Takes out the signatures that are over, now and then.
    pub(super) async fn purge(&self) -> Result<(), StoreError> {
        let is_due = self.purged.lock().unwrap_or_else(PoisonError::into_inner).is_due();
        if is_due {
            let query = sqlx::query("DELETE FROM signatures WHERE until < $1");
            let now = milliseconds(OffsetDateTime::now_utc());
            query.bind(now).execute(&self.pool).await.map_err(failed)?;
        }
        Ok(())
    }
}

/// The instances and the commands, sorted, each once.
fn sorted<'a>(
    asked: impl Iterator<Item = (&'a InstanceId, Option<&'a CommandId>)>,
) -> (Vec<&'a InstanceId>, Vec<&'a CommandId>) {
    let (instances, commands): (BTreeSet<_>, BTreeSet<_>) = asked.unzip();
    (instances.into_iter().collect(), commands.into_iter().flatten().collect())
}
