//! Servers are killed at arbitrary moments: one server on a file, and several on one database. Every accepted command
//! must reach its own guest, and its result must be stored once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::postgres::Postgres;
use support::{REGION, Server, create_temp_dir, http, result_json, try_http, write_temp_file};

/// A timeout that only a failing test reaches.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(120);

fn write_instances_file(size: usize) -> String {
    write_temp_file(&(0..size).map(|number| format!("[[instance]]\nid = 'i-{number}'\n")).collect::<String>())
}

/// The current addresses of a server. They change after a restart.
#[derive(Clone)]
struct ServerAddress {
    api: String,
    metadata: String,
}

impl ServerAddress {
    fn from_server(server: &Server) -> Self {
        let base = server.bases["i-0"].as_str().unwrap().strip_prefix("http://").unwrap();
        Self { api: server.api.clone(), metadata: base.split_once('/').unwrap().0.to_owned() }
    }
}

/// The observations of owners and guests. The state of the store is compared with them.
#[derive(Default)]
struct Observations {
    /// The ids of accepted requests.
    accepted: Mutex<Vec<String>>,
    /// For each command: the instance that received it.
    handed_out: Mutex<BTreeMap<String, String>>,
    /// The commands whose result was stored.
    reported: Mutex<BTreeSet<String>>,
    /// The undelivered result of each guest. Like an agent, a guest delivers it before it polls again.
    outboxes: Mutex<BTreeMap<String, (String, String)>>,
    /// Descriptions of observed faults.
    faults: Mutex<Vec<String>>,
}

impl Observations {
    fn record_fault(&self, what: String) {
        self.faults.lock().unwrap().push(what);
    }

    /// Polls once as a guest and sends the result. Returns `false` if there was no command, or if the server was
    /// killed.
    fn poll_and_answer(&self, place: &ServerAddress, instance: &str, wait: u64) -> bool {
        let base = format!("/{instance}/metadata/latest/keypair");
        if !self.deliver_result(place, instance) {
            return false;
        }
        let Ok(response) = try_http(&place.metadata, "GET", &format!("{base}/command?wait={wait}"), "")
        else {
            return false;
        };
        if response.status != 200 {
            return false;
        }
        let command = response.json();
        let id = command["commandId"].as_str().unwrap().to_owned();
        let owner =
            self.handed_out.lock().unwrap().entry(id.clone()).or_insert_with(|| instance.to_owned()).clone();
        if command["instanceId"] != instance || owner != instance {
            self.record_fault(format!("{id} of {owner} was handed out to {instance}"));
        }
        if self.reported.lock().unwrap().contains(&id) {
            self.record_fault(format!("{id} was handed out after its result"));
        }
        let result = result_json(&id, instance, "succeeded").to_string();
        self.outboxes.lock().unwrap().insert(instance.to_owned(), (id, result));
        self.deliver_result(place, instance)
    }

    /// Delivers the guest's pending result. Returns whether nothing is left to deliver.
    fn deliver_result(&self, place: &ServerAddress, instance: &str) -> bool {
        let Some((id, result)) = self.outboxes.lock().unwrap().get(instance).cloned() else { return true };
        let path = format!("/{instance}/metadata/latest/keypair/results/{id}");
        match try_http(&place.metadata, "PUT", &path, &result) {
            Ok(stored) if stored.status == 204 => {
                self.reported.lock().unwrap().insert(id);
                self.outboxes.lock().unwrap().remove(instance);
                return true;
            }
            Ok(other) if other.status != 503 => self.record_fault(format!("the result of {id}: {other:?}")),
            _ => {}
        }
        false
    }

    /// Sends an attach or detach as an owner and returns the response. `None` if the server was killed.
    fn request_as_owner(&self, place: &ServerAddress, instance: &str, verb: &str) -> Option<Value> {
        let body = json!({ "instanceIds": [instance], "passWordAuth": "no" }).to_string();
        let response = try_http(&place.api, "POST", &format!("{REGION}/keypairs/k:{verb}"), &body).ok()?;
        let envelope = response.json();
        let taken = [400, 500].contains(&response.status);
        match response.status {
            200 => self.accepted.lock().unwrap().push(envelope["requestId"].as_str().unwrap().to_owned()),
            // 400: a request before the kill took effect, so the instance is already attached or detached. 500: the
            // store is shutting down.
            _ if taken => {}
            _ => self.record_fault(format!("{verb} of {instance}: {envelope}")),
        }
        Some(envelope)
    }

    /// Lets every guest answer all its commands. Then each command of an accepted request must have succeeded.
    fn assert_all_delivered(&self, place: &ServerAddress, instances: usize) {
        for number in 0..instances {
            while self.poll_and_answer(place, &format!("i-{number}"), 0) {}
        }
        let faults = self.faults.lock().unwrap();
        assert!(faults.is_empty(), "{faults:#?}");
        let reported = self.reported.lock().unwrap();
        let accepted = self.accepted.lock().unwrap();
        for request in &*accepted {
            let fate = http(&place.api, "GET", &format!("{REGION}/requests/{request}"), "").result();
            for command in fate["commands"].as_array().unwrap() {
                assert_eq!(command["status"], "succeeded", "{request}: {command}");
                let id = command["commandId"].as_str().unwrap();
                assert!(reported.contains(id), "{request}: nobody was told of {command}");
            }
        }
    }
}

/// Kills a server `kills` times while it works, and restarts it on the same store.
fn kill_and_restart_repeatedly(store: &str, kills: usize) {
    const INSTANCES: usize = 12;
    let fleet = write_instances_file(INSTANCES);
    let flags = ["--attach-wait", "0", "--store", store, "--instances", &fleet];
    let witness = Observations::default();
    for round in 0..kills {
        let server = Server::start(&flags);
        let place = ServerAddress::from_server(&server);
        if round == 0 {
            server.import("k", 1).result();
        }
        let over = AtomicBool::new(false);
        let work = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for part in 0..4 {
                let (witness, place, over, work) = (&witness, &place, &over, &work);
                scope.spawn(move || {
                    for number in (part..INSTANCES).step_by(4).cycle() {
                        let instance = format!("i-{number}");
                        for verb in ["attach", "detach"] {
                            witness.request_as_owner(place, &instance, verb);
                            work.fetch_add(1, Ordering::Relaxed);
                            witness.poll_and_answer(place, &instance, 0);
                        }
                        if over.load(Ordering::Relaxed) {
                            return;
                        }
                    }
                });
            }
            // The amount of work done triggers the kill, not the clock. So each round kills the server at another
            // point.
            let patience = Instant::now() + PROGRESS_TIMEOUT;
            while work.load(Ordering::Relaxed) < 4 + round * 3 {
                assert!(Instant::now() < patience, "no work is done");
                std::thread::yield_now();
            }
            server.send_signal("KILL");
            over.store(true, Ordering::Relaxed);
        });
        server.stop_with_signal("KILL");
    }
    let server = Server::start(&flags);
    witness.assert_all_delivered(&ServerAddress::from_server(&server), INSTANCES);
    let accepted = witness.accepted.lock().unwrap().len();
    println!(
        "{kills} kills, {accepted} accepted requests, {} results",
        witness.reported.lock().unwrap().len()
    );
    assert!(accepted > kills);
}

/// KP-9.11.
#[test]
fn sqlite_server_killed_repeatedly_loses_no_command() {
    let file = create_temp_dir("killed").join("store.db");
    kill_and_restart_repeatedly(&format!("sqlite:{}", file.display()), 20);
}

#[test]
fn postgres_server_killed_repeatedly_loses_no_command() {
    let Some(postgres) = Postgres::start() else { return };
    kill_and_restart_repeatedly(&postgres.url(), 20);
}

/// KP-9.11.
#[test]
fn servers_sharing_postgres_survive_kill_under_load() {
    /// Attaches and detaches per second, of all owners together.
    const RATE: usize = 250;
    const INSTANCES: usize = 100;
    const ROUNDS: usize = 10;
    let Some(postgres) = Postgres::start() else { return };
    let (url, fleet) = (postgres.url(), write_instances_file(INSTANCES));
    let flags = ["--attach-wait", "60", "--store", &url, "--instances", &fleet];
    let mut servers: Vec<Server> = (0..3).map(|_| Server::start(&flags)).collect();
    servers[0].import("k", 1).result();
    let places = RwLock::new(servers.iter().map(ServerAddress::from_server).collect::<Vec<_>>());
    let at = |number: usize| {
        let places = places.read().unwrap();
        places[number % places.len()].clone()
    };
    let (witness, over, calls) = (Observations::default(), AtomicBool::new(false), AtomicUsize::new(0));
    let begun = Instant::now();
    std::thread::scope(|scope| {
        // Each guest keeps a long poll at one server. It moves to the next server when that one is killed.
        for number in 0..INSTANCES {
            let (witness, over, at) = (&witness, &over, &at);
            scope.spawn(move || {
                for turn in number.. {
                    witness.poll_and_answer(&at(turn), &format!("i-{number}"), 1);
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
        }
        let owners: Vec<_> = (0..INSTANCES)
            .map(|number| {
                let (witness, at, calls) = (&witness, &at, &calls);
                scope.spawn(move || {
                    let pace = Duration::from_secs(1) * u32::try_from(INSTANCES).unwrap()
                        / u32::try_from(RATE).unwrap();
                    for round in 0..ROUNDS {
                        let next = Instant::now() + pace;
                        let verb = if round % 2 == 0 { "attach" } else { "detach" };
                        let instance = format!("i-{number}");
                        // If the server is killed during the call, the owner repeats the request at another server.
                        let mut turn = number + round;
                        while witness.request_as_owner(&at(turn), &instance, verb).is_none() {
                            turn += 1;
                        }
                        calls.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(next.saturating_duration_since(Instant::now()));
                    }
                })
            })
            .collect();
        let half = INSTANCES * ROUNDS / 2;
        let patience = Instant::now() + PROGRESS_TIMEOUT;
        while calls.load(Ordering::Relaxed) < half {
            assert!(Instant::now() < patience, "{} of {half} calls", calls.load(Ordering::Relaxed));
            std::thread::sleep(Duration::from_millis(5));
        }
        let dead = servers.remove(1);
        dead.send_signal("KILL");
        places.write().unwrap().remove(1);
        dead.stop_with_signal("KILL");
        for owner in owners {
            owner.join().unwrap();
        }
        over.store(true, Ordering::Relaxed);
    });
    let seconds = begun.elapsed().as_secs_f64();
    let calls = calls.load(Ordering::Relaxed);
    println!(
        "{calls} attaches and detaches in {seconds:.1} s, {:.0} a second",
        f64::from(u32::try_from(calls).unwrap()) / seconds
    );
    witness.assert_all_delivered(&at(0), INSTANCES);
    assert!(witness.accepted.lock().unwrap().len() > INSTANCES * ROUNDS * 9 / 10);
}

#[test]
fn long_poll_is_woken_by_order_at_other_server() {
    let Some(postgres) = Postgres::start() else { return };
    let url = postgres.url();
    // 20 s is shorter than the silence after which a server reconnects and checks by itself.
    let flags = ["--attach-wait", "20", "--store", &url, "--instance", "i-0"];
    let (one, other) = (Server::start(&flags), Server::start(&flags));
    one.import("k", 1).result();
    let guest = other.guest("i-0").spawn_answer_next("succeeded");
    // Without the notification, the poll would get no command, and the attach would fail.
    one.attach("k", &["i-0"], "no").assert_bound(&["i-0"], &[]);
    assert_eq!(guest.join().unwrap()["keyName"], "k");
    let listed = other.call_api("GET", &format!("{REGION}/keypairs"), "").result();
    assert_eq!(listed["keypairs"][0]["instanceIds"], json!(["i-0"]));
}
