//! The store that lives as long as the process.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use keypair_agent::policy::command::Command;
use keypair_agent::policy::outcome::Outcome;
use keypair_agent::policy::types::{CommandId, InstanceId, KeyName};
use time::OffsetDateTime;
use tokio::sync::watch;

use super::{Listed, Order, OrderVerb, Placed, Refused, Store, StoreError};
use crate::ids;
use crate::keypair::{Region, StoredKeyPair};
use crate::ledger::{Answer, Binding, Ledger, Next, NotNow, Settled, Stamp};

/// Everything in one place, behind one lock that is never held across an await.
#[derive(Debug, Default)]
pub struct Memory {
    content: Mutex<Content>,
}

#[derive(Debug, Default)]
struct Content {
    key_pairs: BTreeMap<(Region, KeyName), StoredKeyPair>,
    ledgers: BTreeMap<InstanceId, Ledger>,
    reports: HashMap<InstanceId, Vec<u8>>,
    changes: HashMap<InstanceId, watch::Sender<u64>>,
}

impl Memory {
    fn content(&self) -> MutexGuard<'_, Content> {
        // Nothing below leaves the content half changed, so a panic elsewhere does not spoil it.
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Content {
    fn place(&mut self, order: &Order) -> Result<Result<Vec<Placed>, Refused>, StoreError> {
        let Some(key_pair) = self.key_pairs.get(&(order.region.clone(), order.key_name.clone())) else {
            return Ok(Err(Refused::NoKeyPair));
        };
        let is_live = |bound: &StoredKeyPair| {
            let name = (bound.region.clone(), bound.key_pair.key_name.clone());
            self.key_pairs.get(&name).is_some_and(|live| live.id == bound.id)
        };
        let mut steps = Vec::with_capacity(order.instances.len());
        let empty = Ledger::default();
        for instance in &order.instances {
            let ledger = self.ledgers.get(instance).unwrap_or(&empty);
            let stamp = Stamp { id: ids::fresh_command_id()?, now: milliseconds_since_1970() };
            let next = match order.verb {
                OrderVerb::Attach(password_auth) => {
                    let wanted = Binding { key_pair: key_pair.clone(), password_auth };
                    ledger.attach(instance, &wanted, is_live, stamp)
                }
                OrderVerb::Detach => ledger.detach(instance, &order.key_name, stamp),
            };
            match next {
                Ok(next) => steps.push((instance, next)),
                Err(NotNow::Bound) => return Ok(Err(Refused::Bound(instance.clone()))),
                Err(NotNow::NoSequence(error)) => return Err(error.into()),
            }
        }
        let mut placed = Vec::with_capacity(steps.len());
        for (instance, next) in steps {
            let (command, fresh) = match next {
                Next::Waiting(command) => (command, false),
                Next::Queue(entry) => {
                    let command = entry.command.id.clone();
                    self.ledgers.entry(instance.clone()).or_default().push(*entry);
                    self.changed(instance);
                    (command, true)
                }
            };
            placed.push(Placed { instance: instance.clone(), command, fresh });
        }
        Ok(Ok(placed))
    }

    fn changed(&mut self, instance: &InstanceId) {
        if let Some(sender) = self.changes.get(instance) {
            sender.send_modify(|count| *count = count.wrapping_add(1));
        }
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

    async fn has_key_pair(&self, region: &Region, name: &KeyName) -> Result<bool, StoreError> {
        Ok(self.content().key_pairs.contains_key(&(region.clone(), name.clone())))
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
        self.content().place(order)
    }

    async fn binding(&self, instance: &InstanceId) -> Result<Option<Binding>, StoreError> {
        Ok(self.content().ledgers.get(instance).and_then(|ledger| ledger.binding().cloned()))
    }

    async fn next(&self, instance: &InstanceId) -> Result<Option<Command>, StoreError> {
        Ok(self.content().ledgers.get(instance).and_then(|ledger| ledger.oldest_unanswered().cloned()))
    }

    async fn knows(&self, instance: &InstanceId, command: &CommandId) -> Result<bool, StoreError> {
        Ok(self.content().ledgers.get(instance).is_some_and(|ledger| ledger.entry(command).is_some()))
    }

    async fn settle(&self, instance: &InstanceId, answer: Answer) -> Result<Settled, StoreError> {
        let mut content = self.content();
        let Some(ledger) = content.ledgers.get_mut(instance) else {
            return Ok(Settled::Unknown);
        };
        let settled = ledger.settle(answer);
        if settled == Settled::Stored {
            content.changed(instance);
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

    async fn keep_report(&self, instance: &InstanceId, report: Vec<u8>) -> Result<(), StoreError> {
        self.content().reports.insert(instance.clone(), report);
        Ok(())
    }

    async fn report(&self, instance: &InstanceId) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.content().reports.get(instance).cloned())
    }

    fn changes(&self, instance: &InstanceId) -> watch::Receiver<u64> {
        let mut content = self.content();
        content.changes.entry(instance.clone()).or_insert_with(|| watch::Sender::new(0)).subscribe()
    }
}

fn milliseconds_since_1970() -> u64 {
    // A clock before 1970 is a clock at 1970; the sequences rise all the same.
    u64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000).unwrap_or(0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use base64ct::{Base64, Encoding};
    use keypair_agent::policy::command::KeyPair;
    use keypair_agent::policy::public_key::PublicKey;
    use keypair_agent::policy::types::PasswordAuth;

    use super::*;

    fn key_pair(name: &str) -> StoredKeyPair {
        let blob = [&[0, 0, 0, 11][..], b"ssh-ed25519", &[0, 0, 0, 32], &[7; 32]].concat();
        let line = format!("ssh-ed25519 {}", Base64::encode_string(&blob));
        StoredKeyPair {
            id: ids::fresh(),
            region: Region::default(),
            key_pair: KeyPair {
                key_name: name.parse().unwrap(),
                public_key: PublicKey::parse(&line).unwrap(),
            },
            create_time: OffsetDateTime::UNIX_EPOCH,
        }
    }

    fn attach(name: &str, instances: &[&str]) -> Order {
        Order {
            region: Region::default(),
            key_name: name.parse().unwrap(),
            verb: OrderVerb::Attach(PasswordAuth::No),
            instances: instances.iter().map(|id| id.parse().unwrap()).collect(),
        }
    }

    #[tokio::test]
    async fn a_name_is_used_once_at_a_time() {
        let store = Memory::default();
        let (region, name) = (Region::default(), "k".parse().unwrap());
        assert!(store.import(key_pair("k")).await.unwrap());
        assert!(!store.import(key_pair("k")).await.unwrap());
        assert!(store.delete(&region, &name).await.unwrap());
        assert!(!store.delete(&region, &name).await.unwrap());
        assert!(!store.has_key_pair(&region, &name).await.unwrap());
        assert_eq!(store.place(&attach("k", &["i-1"])).await.unwrap(), Err(Refused::NoKeyPair));
        assert!(store.import(key_pair("k")).await.unwrap());
    }

    #[tokio::test]
    async fn an_order_is_placed_whole_or_not_at_all() {
        let store = Memory::default();
        let (one, two) = ("i-1".parse().unwrap(), "i-2".parse().unwrap());
        store.import(key_pair("k")).await.unwrap();
        store.import(key_pair("l")).await.unwrap();
        store.place(&attach("k", &["i-2"])).await.unwrap().unwrap();
        let mut changes = store.changes(&one);
        let refused = store.place(&attach("l", &["i-1", "i-2"])).await.unwrap();
        assert_eq!(refused, Err(Refused::Bound(two)));
        assert_eq!(store.next(&one).await.unwrap(), None);
        assert!(!changes.has_changed().unwrap());
        // The same order again is the command that waits, and a new one beside it.
        let placed = store.place(&attach("k", &["i-1", "i-2"])).await.unwrap().unwrap();
        assert_eq!(placed.iter().map(|placed| placed.fresh).collect::<Vec<_>>(), [true, false]);
        assert!(changes.has_changed().unwrap());
        changes.borrow_and_update();
        store.place(&attach("k", &["i-1", "i-2"])).await.unwrap().unwrap();
        assert!(!changes.has_changed().unwrap());
        let listed = store.list(&Region::default()).await.unwrap();
        assert_eq!((listed[0].instances.len(), listed[1].instances.len()), (2, 0));
    }

    #[tokio::test]
    async fn the_last_report_is_kept() {
        let store = Memory::default();
        let id = "i-1".parse().unwrap();
        assert_eq!(store.report(&id).await.unwrap(), None);
        store.keep_report(&id, b"old".to_vec()).await.unwrap();
        store.keep_report(&id, b"new".to_vec()).await.unwrap();
        assert_eq!(store.report(&id).await.unwrap(), Some(b"new".to_vec()));
    }
}
