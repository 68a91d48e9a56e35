//! The in-memory store. Its content is lost when the process ends.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use keypair_agent::policy::command::Command;
use keypair_agent::policy::outcome::CommandResult;
use keypair_agent::policy::types::{CommandId, InstanceId, KeyName};
use time::OffsetDateTime;
use tokio::sync::watch;

use super::changes::ChangeNotifier;
use super::{
    CommandStatus, ListedKeyPair, Order, OrderError, PurgeTimer, QueuedCommand, ResolvedOrder, Store,
    StoreError,
};
use crate::clock;
use crate::ids::RequestId;
use crate::keypair::{Region, StoredKeyPair};
use crate::ledger::{Binding, Ledger, QueueDecision, ReceivedResult, StoreResultOutcome};
use crate::lifecycle::InstanceState;

/// The number of requests below which no old request is purged.
const MIN_REQUESTS_BEFORE_PURGE: usize = 100_000;

/// The whole content is behind one lock, which is never held across an await.
#[derive(Debug, Default)]
pub struct MemoryStore {
    content: Mutex<MemoryContent>,
    changes: ChangeNotifier,
}

#[derive(Debug, Default)]
struct MemoryContent {
    key_pairs: BTreeMap<(Region, KeyName), StoredKeyPair>,
    ledgers: BTreeMap<InstanceId, Ledger>,
    requests: HashMap<RequestId, Vec<QueuedCommand>>,
    /// The number of requests above which the next purge runs. A purge drops the requests whose commands are all
    /// forgotten.
    request_purge_threshold: usize,
    reports: HashMap<InstanceId, Vec<u8>>,
    states: HashMap<InstanceId, InstanceState>,
    signatures: HashMap<String, OffsetDateTime>,
    purged: PurgeTimer,
}

impl MemoryStore {
    fn lock_content(&self) -> MutexGuard<'_, MemoryContent> {
        // Each method below changes the content completely or not at all, so a poisoned lock is still safe to use.
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MemoryContent {
    fn queue_order(&mut self, order: &Order) -> Result<Result<Vec<QueuedCommand>, OrderError>, StoreError> {
        let named =
            order.verb.key_name().and_then(|name| self.key_pairs.get(&(order.region.clone(), name.clone())));
        let wanted = match ResolvedOrder::resolve(&order.verb, named) {
            Ok(wanted) => wanted,
            Err(refused) => return Ok(Err(refused)),
        };
        let is_live = |bound: &StoredKeyPair| {
            let name = (bound.region.clone(), bound.key_pair.key_name.clone());
            self.key_pairs.get(&name).is_some_and(|live| live.id == bound.id)
        };
        let mut steps = Vec::with_capacity(order.instances.len());
        let empty = Ledger::default();
        for instance in &order.instances {
            let ledger = self.ledgers.get(instance).unwrap_or(&empty);
            match wanted.decide_for_instance(instance, ledger, is_live)? {
                Ok(next) => steps.push((instance, next)),
                Err(refused) => return Ok(Err(refused)),
            }
        }
        let mut placed = Vec::with_capacity(steps.len());
        for (instance, next) in steps {
            let (command, fresh) = match next {
                QueueDecision::AlreadyQueued(command) => (command, false),
                QueueDecision::Enqueue(entry) => {
                    let command = entry.command.id.clone();
                    self.ledgers.entry(instance.clone()).or_default().push(*entry);
                    (command, true)
                }
            };
            placed.push(QueuedCommand { instance: instance.clone(), command, fresh });
        }
        self.requests.insert(order.request.clone(), placed.clone());
        if self.requests.len() > self.request_purge_threshold.max(MIN_REQUESTS_BEFORE_PURGE) {
            let ledgers = &self.ledgers;
            let is_known = |one: &QueuedCommand| ledgers.get(&one.instance)?.entry(&one.command);
            self.requests.retain(|_, placed| placed.iter().any(|one| is_known(one).is_some()));
            self.request_purge_threshold = self.requests.len() * 2;
        }
        Ok(Ok(placed))
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn insert_key_pair(&self, key_pair: StoredKeyPair) -> Result<bool, StoreError> {
        let name = (key_pair.region.clone(), key_pair.key_pair.key_name.clone());
        let mut content = self.lock_content();
        if content.key_pairs.contains_key(&name) {
            return Ok(false);
        }
        content.key_pairs.insert(name, key_pair);
        Ok(true)
    }

    async fn find_key_pair(
        &self,
        region: &Region,
        name: &KeyName,
    ) -> Result<Option<StoredKeyPair>, StoreError> {
        Ok(self.lock_content().key_pairs.get(&(region.clone(), name.clone())).cloned())
    }

    async fn delete_key_pair(&self, region: &Region, name: &KeyName) -> Result<bool, StoreError> {
        Ok(self.lock_content().key_pairs.remove(&(region.clone(), name.clone())).is_some())
    }

    async fn list_key_pairs(&self, region: &Region) -> Result<Vec<ListedKeyPair>, StoreError> {
        let content = self.lock_content();
        let mut bound: HashMap<&str, Vec<InstanceId>> = HashMap::new();
        for (instance, ledger) in &content.ledgers {
            if let Some(binding) = ledger.binding() {
                bound.entry(&binding.key_pair.id).or_default().push(instance.clone());
            }
        }
        let listed = content.key_pairs.values().filter(|key_pair| key_pair.region == *region);
        Ok(listed
            .map(|key_pair| ListedKeyPair {
                key_pair: key_pair.clone(),
                instances: bound.remove(key_pair.id.as_str()).unwrap_or_default(),
            })
            .collect())
    }

    async fn queue_order(&self, order: &Order) -> Result<Result<Vec<QueuedCommand>, OrderError>, StoreError> {
        let placed = self.lock_content().queue_order(order)?;
        for placed in placed.iter().flatten().filter(|placed| placed.fresh) {
            self.changes.notify(&placed.instance);
        }
        Ok(placed)
    }

    async fn binding(&self, instance: &InstanceId) -> Result<Option<Binding>, StoreError> {
        Ok(self.lock_content().ledgers.get(instance).and_then(|ledger| ledger.binding().cloned()))
    }

    async fn next_command(&self, instance: &InstanceId) -> Result<Option<Command>, StoreError> {
        Ok(self.lock_content().ledgers.get(instance).and_then(|ledger| ledger.oldest_unanswered().cloned()))
    }

    async fn hand_out(&self, instance: &InstanceId, now: u64) -> Result<Option<Command>, StoreError> {
        let mut content = self.lock_content();
        let Some(ledger) = content.ledgers.get_mut(instance) else { return Ok(None) };
        ledger.mark_handed_out(now);
        Ok(ledger.oldest_unanswered().cloned())
    }

    async fn has_command(&self, instance: &InstanceId, command: &CommandId) -> Result<bool, StoreError> {
        Ok(self.lock_content().ledgers.get(instance).is_some_and(|ledger| ledger.entry(command).is_some()))
    }

    async fn store_result(
        &self,
        instance: &InstanceId,
        answer: ReceivedResult,
    ) -> Result<StoreResultOutcome, StoreError> {
        let settled = match self.lock_content().ledgers.get_mut(instance) {
            Some(ledger) => ledger.store_result_at(answer, clock::now_millis()),
            None => StoreResultOutcome::UnknownCommand,
        };
        if matches!(settled, StoreResultOutcome::Stored(_)) {
            self.changes.notify(instance);
        }
        Ok(settled)
    }

    async fn outcome(
        &self,
        instance: &InstanceId,
        command: &CommandId,
    ) -> Result<Option<CommandResult>, StoreError> {
        let content = self.lock_content();
        let entry = content.ledgers.get(instance).and_then(|ledger| ledger.entry(command));
        Ok(entry.and_then(|entry| entry.answer.as_ref()).map(|answer| answer.outcome.clone()))
    }

    async fn command_statuses(&self, request: &RequestId) -> Result<Vec<CommandStatus>, StoreError> {
        let content = self.lock_content();
        let fate = |placed: &QueuedCommand| {
            let entry = content.ledgers.get(&placed.instance)?.entry(&placed.command)?;
            Some(CommandStatus {
                instance: placed.instance.clone(),
                command: entry.command.clone(),
                outcome: entry.answer.as_ref().map(|answer| answer.outcome.clone()),
            })
        };
        Ok(content.requests.get(request).into_iter().flatten().filter_map(fate).collect())
    }

    async fn change_state(
        &self,
        instance: &InstanceId,
        before: Option<&InstanceState>,
        state: &InstanceState,
    ) -> Result<bool, StoreError> {
        let mut content = self.lock_content();
        let is_as_seen = content.states.get(instance) == before;
        if is_as_seen {
            content.states.insert(instance.clone(), state.clone());
        }
        Ok(is_as_seen)
    }

    async fn state(&self, instance: &InstanceId) -> Result<Option<InstanceState>, StoreError> {
        Ok(self.lock_content().states.get(instance).cloned())
    }

    async fn record_signature(&self, signature: &str, until: OffsetDateTime) -> Result<bool, StoreError> {
        let now = OffsetDateTime::now_utc();
        let mut content = self.lock_content();
        if content.purged.restart_if_due() {
            content.signatures.retain(|_, until| *until >= now);
        }
        Ok(content.signatures.insert(signature.to_owned(), until).is_none())
    }

    async fn store_report(&self, instance: &InstanceId, report: Vec<u8>) -> Result<(), StoreError> {
        self.lock_content().reports.insert(instance.clone(), report);
        Ok(())
    }

    async fn report(&self, instance: &InstanceId) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.lock_content().reports.get(instance).cloned())
    }

    fn watch_changes(&self, instance: &InstanceId) -> watch::Receiver<u64> {
        self.changes.subscribe(instance)
    }
}
