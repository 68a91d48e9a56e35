//! Every store does the same as the one in memory, and the durable ones do it after a restart too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::sync::Arc;

use keypair_agent::policy::command::{ActionName, KeyPair};
use keypair_agent::policy::outcome::{Outcome, Reason};
use keypair_agent::policy::public_key::PublicKey;
use keypair_agent::policy::types::{CommandId, InstanceId, PasswordAuth};
use keypair_controlplane::clock;
use keypair_controlplane::ids::{self, RequestId};
use keypair_controlplane::inventory::Status;
use keypair_controlplane::keypair::{Region, StoredKeyPair};
use keypair_controlplane::ledger::{Answer, KEPT_FOR, Settled, Settlement};
use keypair_controlplane::lifecycle::State;
use keypair_controlplane::store::{Order, OrderVerb, Placed, Refused, Store, StoreUrl};
use support::postgres::Postgres;
use support::{folder, key, outcome};
use time::{Duration, OffsetDateTime};

/// A store of each kind that this machine has, and what has to outlive it.
async fn stores(name: &str) -> (Vec<(StoreUrl, Arc<dyn Store>)>, Option<Postgres>) {
    let postgres = Postgres::start();
    // A path that needs to be escaped in a URL.
    let file = folder(name).join("a store?100%.db");
    let mut urls = vec![StoreUrl::Memory, StoreUrl::Sqlite(file)];
    urls.extend(postgres.as_ref().map(|postgres| postgres.url().parse().unwrap()));
    let mut stores = Vec::new();
    for url in urls {
        let store = url.open().await.unwrap();
        stores.push((url, store));
    }
    (stores, postgres)
}

fn key_pair(name: &str, number: u8) -> StoredKeyPair {
    StoredKeyPair {
        id: ids::fresh(),
        region: Region::default(),
        key_pair: KeyPair {
            key_name: name.parse().unwrap(),
            public_key: PublicKey::parse(&key(number)).unwrap(),
        },
        create_time: OffsetDateTime::UNIX_EPOCH + Duration::milliseconds(1_234_567),
    }
}

fn id(text: &str) -> InstanceId {
    text.parse().unwrap()
}

fn order(verb: OrderVerb, instances: &[&str]) -> Order {
    let instances = instances.iter().map(|text| id(text)).collect();
    Order { request: RequestId::fresh(), region: Region::default(), verb, instances }
}

fn attach(name: &str, instances: &[&str]) -> Order {
    order(OrderVerb::Attach(name.parse().unwrap(), PasswordAuth::No), instances)
}

fn answer(command: &CommandId, instance: &InstanceId, status: &str) -> Answer {
    let bytes = outcome(command.as_str(), instance.as_str(), status).to_string().into_bytes();
    let outcome: Outcome = serde_json::from_slice(&bytes).unwrap();
    Answer { outcome, bytes }
}

#[tokio::test]
async fn a_name_is_used_once_at_a_time() {
    let (stores, _postgres) = stores("names").await;
    for (url, store) in stores {
        let (region, name) = (Region::default(), "k".parse().unwrap());
        let first = key_pair("k", 1);
        assert!(store.import(first.clone()).await.unwrap(), "{url}");
        assert!(!store.import(key_pair("k", 2)).await.unwrap(), "{url}");
        assert_eq!(store.list(&region).await.unwrap()[0].key_pair, first, "{url}");
        assert!(store.delete(&region, &name).await.unwrap(), "{url}");
        assert!(!store.delete(&region, &name).await.unwrap(), "{url}");
        assert_eq!(store.key_pair(&region, &name).await.unwrap(), None, "{url}");
        assert_eq!(store.place(&attach("k", &["i-1"])).await.unwrap(), Err(Refused::NoKeyPair), "{url}");
        assert!(store.import(key_pair("k", 2)).await.unwrap(), "{url}");
        let elsewhere = StoredKeyPair { region: "cn-east-2".parse().unwrap(), ..key_pair("k", 3) };
        assert!(store.import(elsewhere).await.unwrap(), "{url}");
        assert_eq!(store.list(&region).await.unwrap().len(), 1, "{url}");
    }
}

#[tokio::test]
async fn an_order_is_placed_whole_or_not_at_all() {
    let (stores, _postgres) = stores("orders").await;
    for (url, store) in stores {
        let (one, two) = (id("i-1"), id("i-2"));
        store.import(key_pair("k", 1)).await.unwrap();
        store.import(key_pair("l", 2)).await.unwrap();
        store.place(&attach("k", &["i-2"])).await.unwrap().unwrap();
        let mut changes = store.changes(&one);
        let refused = store.place(&attach("l", &["i-1", "i-2"])).await.unwrap();
        assert_eq!(refused, Err(Refused::Bound(two)), "{url}");
        assert_eq!(store.next(&one).await.unwrap(), None, "{url}");
        assert!(!changes.has_changed().unwrap(), "{url}");
        // The same order again is the command that waits, and a new one beside it.
        let again = attach("k", &["i-1", "i-2"]);
        let placed = store.place(&again).await.unwrap().unwrap();
        assert_eq!(placed.iter().map(|placed| placed.fresh).collect::<Vec<_>>(), [true, false], "{url}");
        changes.changed().await.unwrap();
        let fates = store.fates(&again.request).await.unwrap();
        let found: Vec<_> = fates.iter().map(|fate| (&fate.instance, &fate.command.id)).collect();
        let asked: Vec<_> = placed.iter().map(|placed| (&placed.instance, &placed.command)).collect();
        assert_eq!(found, asked, "{url}");
        assert!(store.fates(&RequestId::fresh()).await.unwrap().is_empty(), "{url}");
        let listed = store.list(&Region::default()).await.unwrap();
        assert_eq!((listed[0].instances.len(), listed[1].instances.len()), (2, 0), "{url}");
    }
}

/// A forged copy of a command does not close the real one.
/// KP-9.12.
#[tokio::test]
async fn a_bad_signature_closes_a_command_an_hour_after_it_was_handed_out() {
    let (stores, _postgres) = stores("signatures").await;
    for (url, store) in stores {
        let one = id("i-1");
        store.import(key_pair("k", 1)).await.unwrap();
        let order = attach("k", &["i-1"]);
        let placed = store.place(&order).await.unwrap().unwrap();
        let bad = || {
            let mut outcome = answer(&placed[0].command, &one, "failed").outcome;
            outcome.reason = Some(Reason::BadSignature);
            Answer { bytes: serde_json::to_vec(&outcome).unwrap(), outcome }
        };
        let now = clock::now();
        // Never handed out; then an hour ago but for ten minutes, which the second time does not change.
        assert_eq!(store.settle(&one, bad()).await.unwrap(), Settled::Kept, "{url}");
        let first = store.hand_out(&one, now - KEPT_FOR + 10 * 60 * 1000).await.unwrap().unwrap();
        assert_eq!(first.id, placed[0].command, "{url}");
        store.hand_out(&one, now - 2 * KEPT_FOR).await.unwrap();
        assert_eq!(store.settle(&one, bad()).await.unwrap(), Settled::Kept, "{url}");
        assert_eq!(store.next(&one).await.unwrap(), Some(first), "{url}");
        assert_eq!(store.outcome(&one, &placed[0].command).await.unwrap(), None, "{url}");
        assert!(store.fates(&order.request).await.unwrap()[0].outcome.is_none(), "{url}");
        // Any other result counts.
        let said = answer(&placed[0].command, &one, "succeeded");
        assert!(is_stored(&store.settle(&one, said).await.unwrap()), "{url}");
        assert_eq!(store.settle(&one, bad()).await.unwrap(), Settled::Conflict, "{url}");
        // One that was handed out over an hour ago is closed with that reason.
        let two = id("i-2");
        let placed = store.place(&attach("k", &["i-2"])).await.unwrap().unwrap();
        store.hand_out(&two, now - KEPT_FOR - 1).await.unwrap();
        let mut outcome = answer(&placed[0].command, &two, "failed").outcome;
        outcome.reason = Some(Reason::BadSignature);
        let said = Answer { bytes: serde_json::to_vec(&outcome).unwrap(), outcome };
        assert!(is_stored(&store.settle(&two, said).await.unwrap()), "{url}");
        let closed = store.outcome(&two, &placed[0].command).await.unwrap();
        assert_eq!(closed.and_then(|outcome| outcome.reason), Some(Reason::BadSignature), "{url}");
        assert_eq!(store.next(&two).await.unwrap(), None, "{url}");
    }
}

#[tokio::test]
async fn a_result_is_stored_once_and_the_oldest_go() {
    let (stores, _postgres) = stores("results").await;
    for (url, store) in stores {
        let one = id("i-1");
        store.import(key_pair("k", 1)).await.unwrap();
        let mut answered: Vec<(RequestId, CommandId)> = Vec::new();
        let mut sequence = 0;
        for turn in 0..130 {
            let verb = match turn % 2 {
                0 => OrderVerb::Attach("k".parse().unwrap(), PasswordAuth::No),
                _ => OrderVerb::Detach("k".parse().unwrap()),
            };
            let order = order(verb, &["i-1"]);
            let placed: Vec<Placed> = store.place(&order).await.unwrap().unwrap();
            let command = store.next(&one).await.unwrap().unwrap();
            assert_eq!(command.id, placed[0].command, "{url}");
            let now = u64::from(command.sequence.unwrap());
            assert!(now > sequence, "{url}");
            sequence = now;
            let mut changes = store.changes(&one);
            let said = answer(&command.id, &one, "succeeded");
            let settlement =
                Settlement { action: command.action.name(), sequence: command.sequence.unwrap() };
            assert_eq!(store.settle(&one, said.clone()).await.unwrap(), Settled::Stored(settlement), "{url}");
            changes.changed().await.unwrap();
            assert_eq!(store.settle(&one, said).await.unwrap(), Settled::Again, "{url}");
            let other = answer(&command.id, &one, "failed");
            assert_eq!(store.settle(&one, other.clone()).await.unwrap(), Settled::Conflict, "{url}");
            assert_eq!(store.settle(&id("i-2"), other).await.unwrap(), Settled::Unknown, "{url}");
            assert_eq!(store.next(&one).await.unwrap(), None, "{url}");
            answered.push((order.request, command.id));
        }
        // Of 130 the last 128 are known.
        assert!(store.knows(&one, &answered[2].1).await.unwrap(), "{url}");
        let (request, command) = answered.swap_remove(1);
        assert!(!store.knows(&one, &command).await.unwrap(), "{url}");
        assert!(store.fates(&request).await.unwrap().is_empty(), "{url}");
        assert_eq!(store.outcome(&one, &command).await.unwrap(), None, "{url}");
    }
}

#[tokio::test]
async fn reports_states_and_signatures_are_kept() {
    let (stores, _postgres) = stores("rest").await;
    let now = OffsetDateTime::now_utc().replace_nanosecond(7_000_000).unwrap();
    for (url, store) in stores {
        let one = id("i-1");
        assert_eq!(store.report(&one).await.unwrap(), None, "{url}");
        store.keep_report(&one, b"old".to_vec()).await.unwrap();
        store.keep_report(&one, b"new".to_vec()).await.unwrap();
        assert_eq!(store.report(&one).await.unwrap(), Some(b"new".to_vec()), "{url}");
        let mut before = None;
        for status in [Status::Stopped, Status::Other("starting".into())] {
            assert_eq!(store.state(&one).await.unwrap(), before, "{url}");
            let state = State { status, since: now };
            assert!(store.change_state(&one, before.as_ref(), &state).await.unwrap(), "{url}");
            // Who saw what was before comes too late.
            assert!(!store.change_state(&one, before.as_ref(), &state).await.unwrap(), "{url}");
            before = Some(state);
        }
        assert!(store.is_first("ab", now + Duration::hours(1)).await.unwrap(), "{url}");
        assert!(!store.is_first("ab", now + Duration::hours(1)).await.unwrap(), "{url}");
    }
}

/// More instances than two statements are about, in another order than they are sorted.
fn crowd(from: usize, to: usize) -> Vec<InstanceId> {
    (from..to).rev().map(|number| id(&format!("i-crowd-{number}"))).collect()
}

fn fresh(placed: &[Placed]) -> usize {
    placed.iter().filter(|placed| placed.fresh).count()
}

#[tokio::test]
async fn an_order_over_a_crowd_is_placed_whole_or_not_at_all() {
    let (stores, _postgres) = stores("crowd").await;
    for (url, store) in stores {
        store.import(key_pair("k", 1)).await.unwrap();
        store.import(key_pair("l", 2)).await.unwrap();
        let all = Order { instances: crowd(0, 1200), ..attach("l", &[]) };
        // The last in its order and the last in the sorted one.
        for taken in ["i-crowd-0", "i-crowd-999"] {
            let first = store.place(&attach("k", &[taken])).await.unwrap().unwrap();
            let refused = store.place(&all).await.unwrap();
            assert_eq!(refused, Err(Refused::Bound(id(taken))), "{url}");
            assert!(store.fates(&all.request).await.unwrap().is_empty(), "{url}");
            for instance in ["i-crowd-1199", "i-crowd-1", "i-crowd-500"] {
                assert_eq!(store.next(&id(instance)).await.unwrap(), None, "{url}");
            }
            let failed = answer(&first[0].command, &id(taken), "failed");
            assert!(is_stored(&store.settle(&id(taken), failed).await.unwrap()), "{url}");
        }
        // Some were asked before, and wait.
        let some = Order { instances: crowd(100, 700), ..attach("l", &[]) };
        assert_eq!(fresh(&store.place(&some).await.unwrap().unwrap()), 600, "{url}");
        let placed = store.place(&all).await.unwrap().unwrap();
        assert_eq!(fresh(&placed), 600, "{url}");
        assert!(placed.iter().all(|one| one.fresh != some.instances.contains(&one.instance)), "{url}");
        let again = Order { request: RequestId::fresh(), ..all.clone() };
        assert_eq!(fresh(&store.place(&again).await.unwrap().unwrap()), 0, "{url}");
        // In the order of the order, each with its own command.
        let placed: Vec<_> = placed.into_iter().map(|one| (one.instance, one.command)).collect();
        assert!(placed.iter().map(|(instance, _)| instance).eq(&all.instances), "{url}");
        for request in [&all.request, &again.request] {
            let fates = store.fates(request).await.unwrap();
            let fates: Vec<_> = fates.into_iter().map(|fate| (fate.instance, fate.command.id)).collect();
            assert_eq!(fates, placed, "{url}");
        }
        // Another key pair's turn comes once the first one is gone from the platform.
        let other = Order { instances: crowd(0, 1200), ..attach("k", &[]) };
        assert!(store.place(&other).await.unwrap().is_err(), "{url}");
        store.delete(&Region::default(), &"l".parse().unwrap()).await.unwrap();
        assert_eq!(fresh(&store.place(&other).await.unwrap().unwrap()), 1200, "{url}");
        let listed = store.list(&Region::default()).await.unwrap();
        assert_eq!(listed[0].instances.len(), 1200, "{url}");
    }
}

#[tokio::test]
async fn a_burst_of_polls_and_results_is_answered() {
    let (stores, _postgres) = stores("burst").await;
    for (url, store) in stores {
        store.import(key_pair("k", 1)).await.unwrap();
        let polls: Vec<_> = crowd(0, 1200)
            .into_iter()
            .map(|instance| {
                let (store, nobody) = (store.clone(), id("i-crowd"));
                let mut changes = store.changes(&instance);
                tokio::spawn(async move {
                    changes.changed().await.unwrap();
                    let command = store.next(&instance).await.unwrap().unwrap();
                    assert_eq!(command.instance_id.as_deref(), Some(instance.as_str()));
                    let (good, bad) = (
                        answer(&command.id, &instance, "succeeded"),
                        answer(&command.id, &instance, "failed"),
                    );
                    // At once, as when an agent gives up and tries again: one is the first.
                    let (one, two, other) = tokio::join!(
                        store.settle(&instance, good.clone()),
                        store.settle(&instance, good),
                        store.settle(&nobody, bad)
                    );
                    let mut settled = [one.unwrap(), two.unwrap()];
                    settled.sort_by_key(|settled| *settled == Settled::Again);
                    assert!(is_stored(&settled[0]), "{settled:?}");
                    assert_eq!((&settled[1], other.unwrap()), (&Settled::Again, Settled::Unknown));
                    let outcome = store.outcome(&instance, &command.id).await.unwrap();
                    assert!(outcome.is_some() && store.next(&instance).await.unwrap().is_none());
                })
            })
            .collect();
        let all = Order { instances: crowd(0, 1200), ..attach("k", &[]) };
        store.place(&all).await.unwrap().unwrap();
        for poll in polls {
            poll.await.unwrap();
        }
        let fates = store.fates(&all.request).await.unwrap();
        assert_eq!(fates.iter().filter(|fate| fate.outcome.is_some()).count(), 1200, "{url}");
        assert_eq!(store.list(&Region::default()).await.unwrap()[0].instances.len(), 1200, "{url}");
    }
}

fn is_stored(settled: &Settled) -> bool {
    matches!(settled, Settled::Stored(_))
}

#[tokio::test]
async fn orders_of_two_servers_over_the_same_crowd_come_one_after_the_other() {
    let Some(postgres) = Postgres::start() else { return };
    let url: StoreUrl = postgres.url().parse().unwrap();
    let (one, other) = (url.open().await.unwrap(), url.open().await.unwrap());
    one.import(key_pair("k", 1)).await.unwrap();
    // Of the other server's orders alone.
    let mut changes = one.changes(&id("i-crowd-1500"));
    for round in 0..3 {
        // New ones and old ones, from other ends and in chunks that begin elsewhere.
        let instances = crowd(0, 1200 + round * 100);
        let mut turned = crowd(300, 1900);
        turned.reverse();
        let verb = [OrderVerb::AllowPasswords, OrderVerb::Detach("k".parse().unwrap())][round % 2].clone();
        let (first, second) = (
            Order { instances, ..order(verb.clone(), &[]) },
            Order { instances: turned, ..order(verb, &[]) },
        );
        let (done, done_too) = tokio::join!(one.place(&first), other.place(&second));
        let (done, done_too) = (done.unwrap().unwrap(), done_too.unwrap().unwrap());
        // Who comes second finds what the first one asked.
        assert_eq!(fresh(&done) + fresh(&done_too), 1900, "round {round}");
        for placed in done.iter().rev().take(50) {
            let said = answer(&placed.command, &placed.instance, "succeeded");
            let (here, there) = tokio::join!(
                one.settle(&placed.instance, said.clone()),
                other.settle(&placed.instance, said)
            );
            let (here, there) = (here.unwrap(), there.unwrap());
            assert!(is_stored(&here) != is_stored(&there), "{here:?} {there:?}");
        }
    }
    changes.changed().await.unwrap();
}

/// What an observer sees of a store, but for ids and times.
async fn seen(store: &dyn Store) -> String {
    let mut seen = String::new();
    for listed in store.list(&Region::default()).await.unwrap() {
        seen += &format!(
            "{} {:?} {:?}\n",
            listed.key_pair.key_pair.key_name, listed.key_pair.create_time, listed.instances
        );
    }
    for instance in ["i-1", "i-2", "i-3"] {
        let next = store.next(&id(instance)).await.unwrap();
        let binding = store.binding(&id(instance)).await.unwrap();
        let binding = binding.map(|bound| (bound.key_pair.key_pair, bound.password_auth));
        seen += &format!("{instance} {:?} {binding:?}\n", next.map(|command| command.action));
    }
    seen
}

/// Deterministic dice: the same walk each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % bound
    }
}

/// KP-9.11.
#[tokio::test]
async fn all_stores_walk_the_same_way() {
    let (stores, _postgres) = stores("walk").await;
    let mut dice = Dice(20_261_128);
    for turn in 0..400 {
        let (name, instances) =
            (["k", "l"][dice.below(2)], [&["i-1"][..], &["i-2", "i-3"], &["i-3", "i-1"]][dice.below(3)]);
        let (what, number, status) = (dice.below(8), dice.below(200), ["succeeded", "failed"][dice.below(2)]);
        let password = [PasswordAuth::Yes, PasswordAuth::No][dice.below(2)];
        let mut words = Vec::new();
        for (_, store) in &stores {
            let word = match what {
                0 => format!("{:?}", store.import(key_pair(name, u8::try_from(number).unwrap())).await),
                1 => format!("{:?}", store.delete(&Region::default(), &name.parse().unwrap()).await),
                2..5 => {
                    let verb = match what {
                        2 => OrderVerb::Detach(name.parse().unwrap()),
                        3 => OrderVerb::Attach(name.parse().unwrap(), password),
                        _ => OrderVerb::AllowPasswords,
                    };
                    let placed = store.place(&order(verb, instances)).await.unwrap();
                    format!(
                        "{:?}",
                        placed.map(|placed| placed.iter().map(|one| one.fresh).collect::<Vec<_>>())
                    )
                }
                _ => {
                    let instance = id(instances[0]);
                    match store.next(&instance).await.unwrap() {
                        None => "nothing".to_owned(),
                        Some(command) => {
                            match store.settle(&instance, answer(&command.id, &instance, status)).await {
                                // They queue one after the other: their sequences differ.
                                Ok(Settled::Stored(settlement)) => format!("stored {:?}", settlement.action),
                                other => format!("{other:?}"),
                            }
                        }
                    }
                }
            };
            words.push(word + "\n" + &seen(store.as_ref()).await);
        }
        for ((url, _), word) in stores.iter().zip(&words) {
            assert_eq!(word, &words[0], "turn {turn}, {url}");
        }
    }
}

/// KP-9.11.
#[tokio::test]
async fn what_was_kept_is_there_after_a_restart() {
    let (stores, _postgres) = stores("restart").await;
    for (url, store) in stores {
        if url == StoreUrl::Memory {
            continue;
        }
        store.import(key_pair("k", 1)).await.unwrap();
        let placed = attach("k", &["i-1", "i-2"]);
        store.place(&placed).await.unwrap().unwrap();
        let command = store.next(&id("i-1")).await.unwrap().unwrap();
        store.settle(&id("i-1"), answer(&command.id, &id("i-1"), "succeeded")).await.unwrap();
        store.keep_report(&id("i-1"), b"{}".to_vec()).await.unwrap();
        let state = State { status: Status::Stopped, since: OffsetDateTime::UNIX_EPOCH };
        assert!(store.change_state(&id("i-1"), None, &state).await.unwrap(), "{url}");
        let later = OffsetDateTime::now_utc() + Duration::hours(1);
        assert!(store.is_first("ab", later).await.unwrap(), "{url}");
        let before = seen(store.as_ref()).await;
        if let StoreUrl::Sqlite(_) = url {
            // A second process would not see the first one's changes as they happen.
            let error = url.open().await.err().unwrap().to_string();
            assert!(error.contains("another process has it"), "{error}");
        }
        drop(store);
        let store = loop {
            // The file is given back a moment later.
            match url.open().await {
                Ok(store) => break store,
                Err(error) => assert!(error.to_string().contains("another process"), "{error}"),
            }
        };
        assert_eq!(seen(store.as_ref()).await, before, "{url}");
        assert_eq!(store.report(&id("i-1")).await.unwrap(), Some(b"{}".to_vec()), "{url}");
        assert_eq!(store.state(&id("i-1")).await.unwrap(), Some(state), "{url}");
        assert!(!store.is_first("ab", later).await.unwrap(), "{url}");
        let fates = store.fates(&placed.request).await.unwrap();
        assert_eq!(fates[0].command.action.name(), ActionName::Attach, "{url}");
        assert_eq!((fates[0].outcome.is_some(), fates[1].outcome.is_some()), (true, false), "{url}");
    }
}
