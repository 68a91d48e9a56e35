//! The store that lives as long as the process.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use keypair_agent::policy::command::Command;
use keypair_agent::policy::outcome::Outcome;
use keypair_agent::policy::types::{CommandId, InstanceId, KeyName};
use time::OffsetDateTime;
use tokio::sync::watch;

use super::changes::Changes;
use super::{Fate, Listed, Order, Placed, Purged, Refused, Store, StoreError, Wanted};
use crate::clock;
use crate::ids::RequestId;
use crate::keypair::{Region, StoredKeyPair};
use crate::ledger::{Answer, Binding, Ledger, Next, Settled};
use crate::lifecycle::State;

/// The least number of requests among which some are looked for that may be forgotten.
const FEW_REQUESTS: usize = 100_000;

/// Everything in one place, behind one lock that is never held across an await.
#[derive(Debug, Default)]
pub struct Memory {
    content: Mutex<Content>,
    changes: Changes,
}

#[derive(Debug, Default)]
struct Content {
    key_pairs: BTreeMap<(Region, KeyName), StoredKeyPair>,
    ledgers: BTreeMap<InstanceId, Ledger>,
    requests: HashMap<RequestId, Vec<Placed>>,
    /// How many of them there may be before those are forgotten whose commands are.
    many_requests: usize,
    reports: HashMap<InstanceId, Vec<u8>>,
    states: HashMap<InstanceId, State>,
    signatures: HashMap<String, OffsetDateTime>,
    purged: Purged,
}

impl Memory {
    fn content(&self) -> MutexGuard<'_, Content> {
        // Nothing below leaves the content half changed, so a panic elsewhere does not spoil it.
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Content {
    fn place(&mut self, order: &Order) -> Result<Result<Vec<Placed>, Refused>, StoreError> {
        let named =
            order.verb.key_name().and_then(|name| self.key_pairs.get(&(order.region.clone(), name.clone())));
        let wanted = match Wanted::of(&order.verb, named) {
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
            match wanted.step(instance, ledger, is_live)? {
                Ok(next) => steps.push((instance, next)),
                Err(refused) => return Ok(Err(refused)),
            }
        }
        let mut placed = Vec::with_capacity(steps.len());
        for (instance, next) in steps {
            let (command, fresh) = match next {
                Next::Waiting(command) => (command, false),
                Next::Queue(entry) => {
                    let command = entry.command.id.clone();
                    self.ledgers.entry(instance.clone()).or_default().push(*entry);
                    (command, true)
                }
            };
            placed.push(Placed { instance: instance.clone(), command, fresh });
        }
        self.requests.insert(order.request.clone(), placed.clone());
        if self.requests.len() > self.many_requests.max(FEW_REQUESTS) {
            let ledgers = &self.ledgers;
            let is_known = |one: &Placed| ledgers.get(&one.instance)?.entry(&one.command);
            self.requests.retain(|_, placed| placed.iter().any(|one| is_known(one).is_some()));
            self.many_requests = self.requests.len() * 2;
        }
        Ok(Ok(placed))
    }
}

#[async_trait]
impl Store for Memory {
    async fn import(&self, key_pair: StoredKeyPair) -> Result<bool, StoreError> {
        let name = (key_pair.region.clone(), key_pair.key_pair.key_name.clone());
        let mut content = self.content();
        if content.key_pairs.contains_key(&name) {
            return Ok(false);
        }
        content.key_pairs.insert(name, key_pair);
        Ok(true)
    }

    async fn key_pair(&self, region: &Region, name: &KeyName) -> Result<Option<StoredKeyPair>, StoreError> {
        Ok(self.content().key_pairs.get(&(region.clone(), name.clone())).cloned())
    }

    async fn delete(&self, region: &Region, name: &KeyName) -> Result<bool, StoreError> {
        Ok(self.content().key_pairs.remove(&(region.clone(), name.clone())).is_some())
    }

    async fn list(&self, region: &Region) -> Result<Vec<Listed>, StoreError> {
        let content = self.content();
        let mut bound: HashMap<&str, Vec<InstanceId>> = HashMap::new();
        for (instance, ledger) in &content.ledgers {
            if let Some(binding) = ledger.binding() {
                bound.entry(&binding.key_pair.id).or_default().push(instance.clone());
            }
        }
        let listed = content.key_pairs.values().filter(|key_pair| key_pair.region == *region);
        Ok(listed
            .map(|key_pair| Listed {
                key_pair: key_pair.clone(),
                instances: bound.remove(key_pair.id.as_str()).unwrap_or_default(),
            })
            .collect())
    }

    async fn place(&self, order: &Order) -> Result<Result<Vec<Placed>, Refused>, StoreError> {
        let placed = self.content().place(order)?;
        for placed in placed.iter().flatten().filter(|placed| placed.fresh) {
            self.changes.tell(&placed.instance);
        }
        Ok(placed)
    }

    async fn binding(&self, instance: &InstanceId) -> Result<Option<Binding>, StoreError> {
        Ok(self.content().ledgers.get(instance).and_then(|ledger| ledger.binding().cloned()))
    }

    async fn next(&self, instance: &InstanceId) -> Result<Option<Command>, StoreError> {
        Ok(self.content().ledgers.get(instance).and_then(|ledger| ledger.oldest_unanswered().cloned()))
    }

    async fn hand_out(&self, instance: &InstanceId, now: u64) -> Result<Option<Command>, StoreError> {
        let mut content = self.content();
        let Some(ledger) = content.ledgers.get_mut(instance) else { return Ok(None) };
        ledger.hand_out(now);
        Ok(ledger.oldest_unanswered().cloned())
    }

    async fn knows(&self, instance: &InstanceId, command: &CommandId) -> Result<bool, StoreError> {
        Ok(self.content().ledgers.get(instance).is_some_and(|ledger| ledger.entry(command).is_some()))
    }

    async fn settle(&self, instance: &InstanceId, answer: Answer) -> Result<Settled, StoreError> {
        let settled = match self.content().ledgers.get_mut(instance) {
            Some(ledger) => ledger.settle_at(answer, clock::now()),
            None => Settled::Unknown,
        };
        if matches!(settled, Settled::Stored(_)) {
            self.changes.tell(instance);
        }
        Ok(settled)
    }

    async fn outcome(
        &self,
        instance: &InstanceId,
        command: &CommandId,
    ) -> Result<Option<Outcome>, StoreError> {
        let content = self.content();
        let entry = content.ledgers.get(instance).and_then(|ledger| ledger.entry(command));
        Ok(entry.and_then(|entry| entry.answer.as_ref()).map(|answer| answer.outcome.clone()))
    }

    async fn fates(&self, request: &RequestId) -> Result<Vec<Fate>, StoreError> {
        let content = self.content();
        let fate = |placed: &Placed| {
            let entry = content.ledgers.get(&placed.instance)?.entry(&placed.command)?;
            Some(Fate {
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
        before: Option<&State>,
        state: &State,
    ) -> Result<bool, StoreError> {
        let mut content = self.content();
        let is_as_seen = content.states.get(instance) == before;
        if is_as_seen {
            content.states.insert(instance.clone(), state.clone());
        }
        Ok(is_as_seen)
    }

    async fn state(&self, instance: &InstanceId) -> Result<Option<State>, StoreError> {
        Ok(self.content().states.get(instance).cloned())
    }

    async fn is_first(&self, signature: &str, until: OffsetDateTime) -> Result<bool, StoreError> {
        let now = OffsetDateTime::now_utc();
        let mut content = self.content();
        if content.purged.is_due() {
            content.signatures.retain(|_, until| *until >= now);
        }
        Ok(content.signatures.insert(signature.to_owned(), until).is_none())
    }

    async fn keep_report(&self, instance: &InstanceId, report: Vec<u8>) -> Result<(), StoreError> {
        self.content().reports.insert(instance.clone(), report);
        Ok(())
    }

    async fn report(&self, instance: &InstanceId) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.content().reports.get(instance).cloned())
    }

    fn changes(&self, instance: &InstanceId) -> watch::Receiver<u64> {
        self.changes.subscribe(instance)
    }
}
