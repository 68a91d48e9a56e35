//! All stores behave like the in-memory store. The durable ones also do so after a restart.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::sync::Arc;

use keypair_agent::policy::command::{ActionName, KeyPair};
use keypair_agent::policy::outcome::{CommandResult, Reason};
use keypair_agent::policy::public_key::PublicKey;
use keypair_agent::policy::types::{CommandId, InstanceId, PasswordAuth};
use keypair_controlplane::clock;
use keypair_controlplane::ids::{self, RequestId};
use keypair_controlplane::inventory::Status;
use keypair_controlplane::keypair::{Region, StoredKeyPair};
use keypair_controlplane::ledger::{
    BAD_SIGNATURE_REDELIVERY_MILLIS, CompletedCommand, ReceivedResult, StoreResultOutcome,
};
use keypair_controlplane::lifecycle::InstanceState;
use keypair_controlplane::store::{Order, OrderError, OrderKind, QueuedCommand, Store, StoreUrl};
use support::postgres::Postgres;
use support::{create_temp_dir, public_key_line, result_json};
use time::{Duration, OffsetDateTime};

/// One store of each kind that is available on this machine. The caller must keep the returned PostgreSQL alive.
async fn open_all_stores(name: &str) -> (Vec<(StoreUrl, Arc<dyn Store>)>, Option<Postgres>) {
    let postgres = Postgres::start();
    // This path has characters that must be escaped in a URL.
    let file = create_temp_dir(name).join("a store?100%.db");
    let mut urls = vec![StoreUrl::Memory, StoreUrl::Sqlite(file)];
    urls.extend(postgres.as_ref().map(|postgres| postgres.url().parse().unwrap()));
    let mut stores = Vec::new();
    for url in urls {
        let store = url.open().await.unwrap();
        stores.push((url, store));
    }
    (stores, postgres)
}

fn make_key_pair(name: &str, number: u8) -> StoredKeyPair {
    StoredKeyPair {
        id: ids::generate_id(),
        region: Region::default(),
        key_pair: KeyPair {
            key_name: name.parse().unwrap(),
            public_key: PublicKey::parse(&public_key_line(number)).unwrap(),
        },
        create_time: OffsetDateTime::UNIX_EPOCH + Duration::milliseconds(1_234_567),
    }
}

fn instance_id(text: &str) -> InstanceId {
    text.parse().unwrap()
}

fn make_order(verb: OrderKind, instances: &[&str]) -> Order {
    let instances = instances.iter().map(|text| instance_id(text)).collect();
    Order { request: RequestId::generate(), region: Region::default(), verb, instances }
}

fn attach_order(name: &str, instances: &[&str]) -> Order {
    make_order(OrderKind::Attach(name.parse().unwrap(), PasswordAuth::No), instances)
}

fn make_result(command: &CommandId, instance: &InstanceId, status: &str) -> ReceivedResult {
    let bytes = result_json(command.as_str(), instance.as_str(), status).to_string().into_bytes();
    let outcome: CommandResult = serde_json::from_slice(&bytes).unwrap();
    ReceivedResult { outcome, bytes }
}

#[tokio::test]
async fn key_name_is_unique_until_deleted() {
    let (stores, _postgres) = open_all_stores("names").await;
    for (url, store) in stores {
        let (region, name) = (Region::default(), "k".parse().unwrap());
        let first = make_key_pair("k", 1);
        assert!(store.insert_key_pair(first.clone()).await.unwrap(), "{url}");
        assert!(!store.insert_key_pair(make_key_pair("k", 2)).await.unwrap(), "{url}");
        assert_eq!(store.list_key_pairs(&region).await.unwrap()[0].key_pair, first, "{url}");
        assert!(store.delete_key_pair(&region, &name).await.unwrap(), "{url}");
        assert!(!store.delete_key_pair(&region, &name).await.unwrap(), "{url}");
        assert_eq!(store.find_key_pair(&region, &name).await.unwrap(), None, "{url}");
        assert_eq!(
            store.queue_order(&attach_order("k", &["i-1"])).await.unwrap(),
            Err(OrderError::KeyPairNotFound),
            "{url}"
        );
        assert!(store.insert_key_pair(make_key_pair("k", 2)).await.unwrap(), "{url}");
        let elsewhere = StoredKeyPair { region: "cn-east-2".parse().unwrap(), ..make_key_pair("k", 3) };
        assert!(store.insert_key_pair(elsewhere).await.unwrap(), "{url}");
        assert_eq!(store.list_key_pairs(&region).await.unwrap().len(), 1, "{url}");
    }
}

#[tokio::test]
async fn order_is_queued_for_all_instances_or_none() {
    let (stores, _postgres) = open_all_stores("orders").await;
    for (url, store) in stores {
        let (one, two) = (instance_id("i-1"), instance_id("i-2"));
        store.insert_key_pair(make_key_pair("k", 1)).await.unwrap();
        store.insert_key_pair(make_key_pair("l", 2)).await.unwrap();
        store.queue_order(&attach_order("k", &["i-2"])).await.unwrap().unwrap();
        let mut changes = store.watch_changes(&one);
        let refused = store.queue_order(&attach_order("l", &["i-1", "i-2"])).await.unwrap();
        assert_eq!(refused, Err(OrderError::AlreadyBound(two)), "{url}");
        assert_eq!(store.next_command(&one).await.unwrap(), None, "{url}");
        assert!(!changes.has_changed().unwrap(), "{url}");
        // The repeated order returns the queued command of `i-2`, and queues a new one for `i-1`.
        let again = attach_order("k", &["i-1", "i-2"]);
        let placed = store.queue_order(&again).await.unwrap().unwrap();
        assert_eq!(placed.iter().map(|placed| placed.fresh).collect::<Vec<_>>(), [true, false], "{url}");
        changes.changed().await.unwrap();
        let fates = store.command_statuses(&again.request).await.unwrap();
        let found: Vec<_> = fates.iter().map(|fate| (&fate.instance, &fate.command.id)).collect();
        let asked: Vec<_> = placed.iter().map(|placed| (&placed.instance, &placed.command)).collect();
        assert_eq!(found, asked, "{url}");
        assert!(store.command_statuses(&RequestId::generate()).await.unwrap().is_empty(), "{url}");
        let listed = store.list_key_pairs(&Region::default()).await.unwrap();
        assert_eq!((listed[0].instances.len(), listed[1].instances.len()), (2, 0), "{url}");
    }
}

/// The result of a forged copy does not close the genuine command. KP-9.12.
#[tokio::test]
async fn bad_signature_closes_command_hour_after_hand_out() {
    let (stores, _postgres) = open_all_stores("signatures").await;
    for (url, store) in stores {
        let one = instance_id("i-1");
        store.insert_key_pair(make_key_pair("k", 1)).await.unwrap();
        let order = attach_order("k", &["i-1"]);
        let placed = store.queue_order(&order).await.unwrap().unwrap();
        let bad = || {
            let mut outcome = make_result(&placed[0].command, &one, "failed").outcome;
            outcome.reason = Some(Reason::BadSignature);
            ReceivedResult { bytes: serde_json::to_vec(&outcome).unwrap(), outcome }
        };
        let now = clock::now_millis();
        // First the command was never handed out. Then it was handed out fifty minutes ago, and a second hand-out
        // does not change that time.
        assert_eq!(store.store_result(&one, bad()).await.unwrap(), StoreResultOutcome::Redelivered, "{url}");
        let first = store
            .hand_out(&one, now - BAD_SIGNATURE_REDELIVERY_MILLIS + 10 * 60 * 1000)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(first.id, placed[0].command, "{url}");
        store.hand_out(&one, now - 2 * BAD_SIGNATURE_REDELIVERY_MILLIS).await.unwrap();
        assert_eq!(store.store_result(&one, bad()).await.unwrap(), StoreResultOutcome::Redelivered, "{url}");
        assert_eq!(store.next_command(&one).await.unwrap(), Some(first), "{url}");
        assert_eq!(store.outcome(&one, &placed[0].command).await.unwrap(), None, "{url}");
        assert!(store.command_statuses(&order.request).await.unwrap()[0].outcome.is_none(), "{url}");
        // A result with any other reason is stored.
        let said = make_result(&placed[0].command, &one, "succeeded");
        assert!(is_stored(&store.store_result(&one, said).await.unwrap()), "{url}");
        assert_eq!(store.store_result(&one, bad()).await.unwrap(), StoreResultOutcome::Conflict, "{url}");
        // A command that was handed out more than an hour ago is closed with `BAD_SIGNATURE`.
        let two = instance_id("i-2");
        let placed = store.queue_order(&attach_order("k", &["i-2"])).await.unwrap().unwrap();
        store.hand_out(&two, now - BAD_SIGNATURE_REDELIVERY_MILLIS - 1).await.unwrap();
        let mut outcome = make_result(&placed[0].command, &two, "failed").outcome;
        outcome.reason = Some(Reason::BadSignature);
        let said = ReceivedResult { bytes: serde_json::to_vec(&outcome).unwrap(), outcome };
        assert!(is_stored(&store.store_result(&two, said).await.unwrap()), "{url}");
        let closed = store.outcome(&two, &placed[0].command).await.unwrap();
        assert_eq!(closed.and_then(|outcome| outcome.reason), Some(Reason::BadSignature), "{url}");
        assert_eq!(store.next_command(&two).await.unwrap(), None, "{url}");
    }
}

#[tokio::test]
async fn result_is_stored_once_and_oldest_are_dropped() {
    let (stores, _postgres) = open_all_stores("results").await;
    for (url, store) in stores {
        let one = instance_id("i-1");
        store.insert_key_pair(make_key_pair("k", 1)).await.unwrap();
        let mut answered: Vec<(RequestId, CommandId)> = Vec::new();
        let mut sequence = 0;
        for turn in 0..130 {
            let verb = match turn % 2 {
                0 => OrderKind::Attach("k".parse().unwrap(), PasswordAuth::No),
                _ => OrderKind::Detach("k".parse().unwrap()),
            };
            let order = make_order(verb, &["i-1"]);
            let placed: Vec<QueuedCommand> = store.queue_order(&order).await.unwrap().unwrap();
            let command = store.next_command(&one).await.unwrap().unwrap();
            assert_eq!(command.id, placed[0].command, "{url}");
            let now = u64::from(command.sequence.unwrap());
            assert!(now > sequence, "{url}");
            sequence = now;
            let mut changes = store.watch_changes(&one);
            let said = make_result(&command.id, &one, "succeeded");
            let settlement =
                CompletedCommand { action: command.action.name(), sequence: command.sequence.unwrap() };
            assert_eq!(
                store.store_result(&one, said.clone()).await.unwrap(),
                StoreResultOutcome::Stored(settlement),
                "{url}"
            );
            changes.changed().await.unwrap();
            assert_eq!(store.store_result(&one, said).await.unwrap(), StoreResultOutcome::Duplicate, "{url}");
            let other = make_result(&command.id, &one, "failed");
            assert_eq!(
                store.store_result(&one, other.clone()).await.unwrap(),
                StoreResultOutcome::Conflict,
                "{url}"
            );
            assert_eq!(
                store.store_result(&instance_id("i-2"), other).await.unwrap(),
                StoreResultOutcome::UnknownCommand,
                "{url}"
            );
            assert_eq!(store.next_command(&one).await.unwrap(), None, "{url}");
            answered.push((order.request, command.id));
        }
        // Of 130 answered commands the last 128 are known.
        assert!(store.has_command(&one, &answered[2].1).await.unwrap(), "{url}");
        let (request, command) = answered.swap_remove(1);
        assert!(!store.has_command(&one, &command).await.unwrap(), "{url}");
        assert!(store.command_statuses(&request).await.unwrap().is_empty(), "{url}");
        assert_eq!(store.outcome(&one, &command).await.unwrap(), None, "{url}");
    }
}

#[tokio::test]
async fn reports_states_and_signatures_are_stored() {
    let (stores, _postgres) = open_all_stores("rest").await;
    let now = OffsetDateTime::now_utc().replace_nanosecond(7_000_000).unwrap();
    for (url, store) in stores {
        let one = instance_id("i-1");
        assert_eq!(store.report(&one).await.unwrap(), None, "{url}");
        store.store_report(&one, b"old".to_vec()).await.unwrap();
        store.store_report(&one, b"new".to_vec()).await.unwrap();
        assert_eq!(store.report(&one).await.unwrap(), Some(b"new".to_vec()), "{url}");
        let mut before = None;
        for status in [Status::Stopped, Status::Other("starting".into())] {
            assert_eq!(store.state(&one).await.unwrap(), before, "{url}");
            let state = InstanceState { status, since: now };
            assert!(store.change_state(&one, before.as_ref(), &state).await.unwrap(), "{url}");
            // A change that is based on an outdated state is refused.
            assert!(!store.change_state(&one, before.as_ref(), &state).await.unwrap(), "{url}");
            before = Some(state);
        }
        assert!(store.record_signature("ab", now + Duration::hours(1)).await.unwrap(), "{url}");
        assert!(!store.record_signature("ab", now + Duration::hours(1)).await.unwrap(), "{url}");
    }
}

/// Instance ids in descending order of their numbers, which is not their sorted order. 1200 of them need more than
/// two statements.
fn many_instance_ids(from: usize, to: usize) -> Vec<InstanceId> {
    (from..to).rev().map(|number| instance_id(&format!("i-crowd-{number}"))).collect()
}

fn count_new(placed: &[QueuedCommand]) -> usize {
    placed.iter().filter(|placed| placed.fresh).count()
}

#[tokio::test]
async fn order_over_1200_instances_is_queued_for_all_or_none() {
    let (stores, _postgres) = open_all_stores("crowd").await;
    for (url, store) in stores {
        store.insert_key_pair(make_key_pair("k", 1)).await.unwrap();
        store.insert_key_pair(make_key_pair("l", 2)).await.unwrap();
        let all = Order { instances: many_instance_ids(0, 1200), ..attach_order("l", &[]) };
        // The last instance in the order's sequence, and the last one in sorted order.
        for taken in ["i-crowd-0", "i-crowd-999"] {
            let first = store.queue_order(&attach_order("k", &[taken])).await.unwrap().unwrap();
            let refused = store.queue_order(&all).await.unwrap();
            assert_eq!(refused, Err(OrderError::AlreadyBound(instance_id(taken))), "{url}");
            assert!(store.command_statuses(&all.request).await.unwrap().is_empty(), "{url}");
            for instance in ["i-crowd-1199", "i-crowd-1", "i-crowd-500"] {
                assert_eq!(store.next_command(&instance_id(instance)).await.unwrap(), None, "{url}");
            }
            let failed = make_result(&first[0].command, &instance_id(taken), "failed");
            assert!(is_stored(&store.store_result(&instance_id(taken), failed).await.unwrap()), "{url}");
        }
        // Half of the instances already have a queued command.
        let some = Order { instances: many_instance_ids(100, 700), ..attach_order("l", &[]) };
        assert_eq!(count_new(&store.queue_order(&some).await.unwrap().unwrap()), 600, "{url}");
        let placed = store.queue_order(&all).await.unwrap().unwrap();
        assert_eq!(count_new(&placed), 600, "{url}");
        assert!(placed.iter().all(|one| one.fresh != some.instances.contains(&one.instance)), "{url}");
        let again = Order { request: RequestId::generate(), ..all.clone() };
        assert_eq!(count_new(&store.queue_order(&again).await.unwrap().unwrap()), 0, "{url}");
        // The commands are in the sequence of the order's instances, and each instance has its own command.
        let placed: Vec<_> = placed.into_iter().map(|one| (one.instance, one.command)).collect();
        assert!(placed.iter().map(|(instance, _)| instance).eq(&all.instances), "{url}");
        for request in [&all.request, &again.request] {
            let fates = store.command_statuses(request).await.unwrap();
            let fates: Vec<_> = fates.into_iter().map(|fate| (fate.instance, fate.command.id)).collect();
            assert_eq!(fates, placed, "{url}");
        }
        // Another key pair can be attached after the first one was deleted on the platform.
        let other = Order { instances: many_instance_ids(0, 1200), ..attach_order("k", &[]) };
        assert!(store.queue_order(&other).await.unwrap().is_err(), "{url}");
        store.delete_key_pair(&Region::default(), &"l".parse().unwrap()).await.unwrap();
        assert_eq!(count_new(&store.queue_order(&other).await.unwrap().unwrap()), 1200, "{url}");
        let listed = store.list_key_pairs(&Region::default()).await.unwrap();
        assert_eq!(listed[0].instances.len(), 1200, "{url}");
    }
}

#[tokio::test]
async fn polls_and_results_of_1200_instances_are_answered() {
    let (stores, _postgres) = open_all_stores("burst").await;
    for (url, store) in stores {
        store.insert_key_pair(make_key_pair("k", 1)).await.unwrap();
        let polls: Vec<_> = many_instance_ids(0, 1200)
            .into_iter()
            .map(|instance| {
                let (store, nobody) = (store.clone(), instance_id("i-crowd"));
                let mut changes = store.watch_changes(&instance);
                tokio::spawn(async move {
                    changes.changed().await.unwrap();
                    let command = store.next_command(&instance).await.unwrap().unwrap();
                    assert_eq!(command.instance_id.as_deref(), Some(instance.as_str()));
                    let (good, bad) = (
                        make_result(&command.id, &instance, "succeeded"),
                        make_result(&command.id, &instance, "failed"),
                    );
                    // Both at the same time, as when an agent times out and retries. Exactly one of the two is
                    // stored.
                    let (one, two, other) = tokio::join!(
                        store.store_result(&instance, good.clone()),
                        store.store_result(&instance, good),
                        store.store_result(&nobody, bad)
                    );
                    let mut settled = [one.unwrap(), two.unwrap()];
                    settled.sort_by_key(|settled| *settled == StoreResultOutcome::Duplicate);
                    assert!(is_stored(&settled[0]), "{settled:?}");
                    assert_eq!(
                        (&settled[1], other.unwrap()),
                        (&StoreResultOutcome::Duplicate, StoreResultOutcome::UnknownCommand)
                    );
                    let outcome = store.outcome(&instance, &command.id).await.unwrap();
                    assert!(outcome.is_some() && store.next_command(&instance).await.unwrap().is_none());
                })
            })
            .collect();
        let all = Order { instances: many_instance_ids(0, 1200), ..attach_order("k", &[]) };
        store.queue_order(&all).await.unwrap().unwrap();
        for poll in polls {
            poll.await.unwrap();
        }
        let fates = store.command_statuses(&all.request).await.unwrap();
        assert_eq!(fates.iter().filter(|fate| fate.outcome.is_some()).count(), 1200, "{url}");
        assert_eq!(store.list_key_pairs(&Region::default()).await.unwrap()[0].instances.len(), 1200, "{url}");
    }
}

fn is_stored(settled: &StoreResultOutcome) -> bool {
    matches!(settled, StoreResultOutcome::Stored(_))
}

#[tokio::test]
async fn orders_of_two_servers_on_same_instances_serialize() {
    let Some(postgres) = Postgres::start() else { return };
    let url: StoreUrl = postgres.url().parse().unwrap();
    let (one, other) = (url.open().await.unwrap(), url.open().await.unwrap());
    one.insert_key_pair(make_key_pair("k", 1)).await.unwrap();
    // The first server learns of this instance only from orders of the other server.
    let mut changes = one.watch_changes(&instance_id("i-crowd-1500"));
    for round in 0..3 {
        // Both orders have new and known instances. Their sequences and their chunks differ.
        let instances = many_instance_ids(0, 1200 + round * 100);
        let mut turned = many_instance_ids(300, 1900);
        turned.reverse();
        let verb = [OrderKind::AllowPasswords, OrderKind::Detach("k".parse().unwrap())][round % 2].clone();
        let (first, second) = (
            Order { instances, ..make_order(verb.clone(), &[]) },
            Order { instances: turned, ..make_order(verb, &[]) },
        );
        let (done, done_too) = tokio::join!(one.queue_order(&first), other.queue_order(&second));
        let (done, done_too) = (done.unwrap().unwrap(), done_too.unwrap().unwrap());
        // The second order finds the commands of the first one.
        assert_eq!(count_new(&done) + count_new(&done_too), 1900, "round {round}");
        for placed in done.iter().rev().take(50) {
            let said = make_result(&placed.command, &placed.instance, "succeeded");
            let (here, there) = tokio::join!(
                one.store_result(&placed.instance, said.clone()),
                other.store_result(&placed.instance, said)
            );
            let (here, there) = (here.unwrap(), there.unwrap());
            assert!(is_stored(&here) != is_stored(&there), "{here:?} {there:?}");
        }
    }
    changes.changed().await.unwrap();
}

/// The observable state of a store, without ids and times.
async fn snapshot_store(store: &dyn Store) -> String {
    let mut seen = String::new();
    for listed in store.list_key_pairs(&Region::default()).await.unwrap() {
        seen += &format!(
            "{} {:?} {:?}\n",
            listed.key_pair.key_pair.key_name, listed.key_pair.create_time, listed.instances
        );
    }
    for instance in ["i-1", "i-2", "i-3"] {
        let next = store.next_command(&instance_id(instance)).await.unwrap();
        let binding = store.binding(&instance_id(instance)).await.unwrap();
        let binding = binding.map(|bound| (bound.key_pair.key_pair, bound.password_auth));
        seen += &format!("{instance} {:?} {binding:?}\n", next.map(|command| command.action));
    }
    seen
}

/// A deterministic random generator: the same numbers in each run.
struct SeededRng(u64);

impl SeededRng {
    fn next_below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % bound
    }
}

/// KP-9.11.
#[tokio::test]
async fn store_kinds_agree_on_random_operations() {
    let (stores, _postgres) = open_all_stores("walk").await;
    let mut dice = SeededRng(20_261_128);
    for turn in 0..400 {
        let (name, instances) = (
            ["k", "l"][dice.next_below(2)],
            [&["i-1"][..], &["i-2", "i-3"], &["i-3", "i-1"]][dice.next_below(3)],
        );
        let (what, number, status) =
            (dice.next_below(8), dice.next_below(200), ["succeeded", "failed"][dice.next_below(2)]);
        let password = [PasswordAuth::Yes, PasswordAuth::No][dice.next_below(2)];
        let mut words = Vec::new();
        for (_, store) in &stores {
            let word = match what {
                0 => format!(
                    "{:?}",
                    store.insert_key_pair(make_key_pair(name, u8::try_from(number).unwrap())).await
                ),
                1 => format!("{:?}", store.delete_key_pair(&Region::default(), &name.parse().unwrap()).await),
                2..5 => {
                    let verb = match what {
                        2 => OrderKind::Detach(name.parse().unwrap()),
                        3 => OrderKind::Attach(name.parse().unwrap(), password),
                        _ => OrderKind::AllowPasswords,
                    };
                    let placed = store.queue_order(&make_order(verb, instances)).await.unwrap();
                    format!(
                        "{:?}",
                        placed.map(|placed| placed.iter().map(|one| one.fresh).collect::<Vec<_>>())
                    )
                }
                _ => {
                    let instance = instance_id(instances[0]);
                    match store.next_command(&instance).await.unwrap() {
                        None => "nothing".to_owned(),
                        Some(command) => {
                            match store
                                .store_result(&instance, make_result(&command.id, &instance, status))
                                .await
                            {
                                // The stores queue one after the other, so the sequences differ and are not compared.
                                Ok(StoreResultOutcome::Stored(settlement)) => {
                                    format!("stored {:?}", settlement.action)
                                }
                                other => format!("{other:?}"),
                            }
                        }
                    }
                }
            };
            words.push(word + "\n" + &snapshot_store(store.as_ref()).await);
        }
        for ((url, _), word) in stores.iter().zip(&words) {
            assert_eq!(word, &words[0], "turn {turn}, {url}");
        }
    }
}

/// KP-9.11.
#[tokio::test]
async fn stored_data_survives_restart() {
    let (stores, _postgres) = open_all_stores("restart").await;
    for (url, store) in stores {
        if url == StoreUrl::Memory {
            continue;
        }
        store.insert_key_pair(make_key_pair("k", 1)).await.unwrap();
        let placed = attach_order("k", &["i-1", "i-2"]);
        store.queue_order(&placed).await.unwrap().unwrap();
        let command = store.next_command(&instance_id("i-1")).await.unwrap().unwrap();
        store
            .store_result(&instance_id("i-1"), make_result(&command.id, &instance_id("i-1"), "succeeded"))
            .await
            .unwrap();
        store.store_report(&instance_id("i-1"), b"{}".to_vec()).await.unwrap();
        let state = InstanceState { status: Status::Stopped, since: OffsetDateTime::UNIX_EPOCH };
        assert!(store.change_state(&instance_id("i-1"), None, &state).await.unwrap(), "{url}");
        let later = OffsetDateTime::now_utc() + Duration::hours(1);
        assert!(store.record_signature("ab", later).await.unwrap(), "{url}");
        let before = snapshot_store(store.as_ref()).await;
        if let StoreUrl::Sqlite(_) = url {
            // A second process would not be notified of the first one's changes, so it is refused.
            let error = url.open().await.err().unwrap().to_string();
            assert!(error.contains("another process has it"), "{error}");
        }
        drop(store);
        let store = loop {
            // The closed store releases the file a moment later.
            match url.open().await {
                Ok(store) => break store,
                Err(error) => assert!(error.to_string().contains("another process"), "{error}"),
            }
        };
        assert_eq!(snapshot_store(store.as_ref()).await, before, "{url}");
        assert_eq!(store.report(&instance_id("i-1")).await.unwrap(), Some(b"{}".to_vec()), "{url}");
        assert_eq!(store.state(&instance_id("i-1")).await.unwrap(), Some(state), "{url}");
        assert!(!store.record_signature("ab", later).await.unwrap(), "{url}");
        let fates = store.command_statuses(&placed.request).await.unwrap();
        assert_eq!(fates[0].command.action.name(), ActionName::Attach, "{url}");
        assert_eq!((fates[0].outcome.is_some(), fates[1].outcome.is_some()), (true, false), "{url}");
    }
}
