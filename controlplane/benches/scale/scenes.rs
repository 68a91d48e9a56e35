//! What is done to the fleet, and what is seen of it.

use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::fleet::{Fleet, Second, instances, inventory};
use crate::process::{Usage, kernel_kib};
use crate::support::postgres::Postgres;
use crate::support::{REGION, Server, try_http};
use crate::trouble::{Proxy, Trouble};

/// A long poll's length, in seconds: the agent's default.
pub(crate) const LONG_POLL: usize = 60;

const KEY_NAME: &str = "fleet";

/// How long anything may take before the run is given up; nothing is measured with it.
const PATIENCE: Duration = Duration::from_secs(300);

/// While all wait and no poll ends.
pub(crate) struct Quiet {
    pub(crate) kib_each: f64,
    /// Of the kernel's own memory, an end of a connection.
    pub(crate) kernel_kib_each: f64,
    pub(crate) agent_kib_each: f64,
    pub(crate) seconds: usize,
    pub(crate) wake_ups: u64,
    pub(crate) cpu: f64,
}

/// While all wait, and their polls end as they do.
pub(crate) struct Idle {
    pub(crate) seconds: Vec<Second>,
    /// Of the server, a request.
    pub(crate) cpu_each: f64,
    /// A minute, from two minutes after all were given a command at once.
    pub(crate) after_attach: Vec<Second>,
}

/// An attach to all.
pub(crate) struct Attach {
    pub(crate) received: Vec<u64>,
    pub(crate) reported: Vec<u64>,
    pub(crate) failed: u64,
    /// Resident memory of a server, in KiB: before the fleet, with it, after the attach.
    pub(crate) rss_kib: [f64; 3],
    pub(crate) servers: usize,
}

/// The control plane goes away, and is back some seconds later.
pub(crate) struct Restart {
    pub(crate) away: u64,
    /// From ten seconds before.
    pub(crate) seconds: Vec<Second>,
}

/// Seconds before what is done to a fleet, shown with it.
pub(crate) const BEFORE: usize = 10;

/// A minute of trouble, and what follows.
pub(crate) struct InTrouble {
    /// From ten seconds before.
    pub(crate) seconds: Vec<Second>,
    /// How many requests were made to suffer.
    pub(crate) suffered: u64,
}

impl InTrouble {
    /// The minute itself.
    pub(crate) fn minute(&self) -> &[Second] {
        &self.seconds[BEFORE..BEFORE + LONG_POLL]
    }
}

fn serve(inventory: &str, store: &str) -> Server {
    Server::start(&["--instances", inventory, "--store", store, "--attach-wait", "120"])
}

fn say(what: &str) {
    eprintln!("{what} …");
}

pub(crate) fn quiet(agents: u64) -> Quiet {
    say("a quiet half minute");
    let server = serve(&inventory(agents), "memory:");
    let (alone, kernel_alone) = (Usage::of(server.pid()), kernel_kib());
    let fleet = Fleet::start(agents, &[server.metadata()], 20);
    // All have begun their first long poll within some 23 s, and none ends before a minute.
    fleet.pass(30);
    fleet.await_all(PATIENCE);
    let before = Usage::of(server.pid());
    let seconds = fleet.pass(20);
    let after = Usage::of(server.pid());
    assert_eq!(seconds.iter().map(|second| second.asked).sum::<u64>(), 0, "it is not quiet");
    Quiet {
        kernel_kib_each: (kernel_kib() - kernel_alone) / (2 * agents) as f64,
        kib_each: (after.rss_kib - alone.rss_kib) / agents as f64,
        agent_kib_each: Usage::of(fleet.pid()).rss_kib / agents as f64,
        seconds: seconds.len(),
        wake_ups: after.wake_ups.saturating_sub(before.wake_ups),
        cpu: after.cpu - before.cpu,
    }
}

pub(crate) fn idle(agents: u64) -> Idle {
    say("two minutes in which nothing happens");
    let server = serve(&inventory(agents), "memory:");
    let fleet = steady(agents, &[server.metadata()]);
    let before = Usage::of(server.pid());
    let seconds = fleet.pass(2 * LONG_POLL);
    let after = Usage::of(server.pid());
    let asked: u64 = seconds.iter().map(|second| second.asked).sum();
    say("and two minutes after a command for all");
    attach(&fleet, &server, agents);
    fleet.pass(2 * LONG_POLL);
    let after_attach = fleet.pass(LONG_POLL);
    Idle { seconds, cpu_each: (after.cpu - before.cpu) / asked as f64, after_attach }
}

/// A fleet whose guests were booted together: the first long poll is a whole one, the second a part, and from then on they end
/// evenly.
fn steady(agents: u64, servers: &[String]) -> Fleet {
    let fleet = Fleet::start(agents, servers, 15);
    fleet.pass(15 + 2 * LONG_POLL + 5);
    fleet.await_all(PATIENCE);
    fleet
}

/// One attach to all of them, and the seconds until each has reported.
fn attach(fleet: &Fleet, server: &Server, agents: u64) -> Vec<Second> {
    let begin = fleet.now();
    assert_eq!(server.import(KEY_NAME, 7).status, 200);
    let body = json!({ "instanceIds": instances(server), "passWordAuth": "no" }).to_string();
    let (api, path) = (server.api.clone(), format!("{REGION}/keypairs/{KEY_NAME}:attach"));
    let call = std::thread::spawn(move || try_http(&api, "POST", &path, &body));
    let begun = Instant::now();
    loop {
        let seconds = fleet.since(begin);
        let reported: usize = seconds.iter().map(|second| second.reported.len()).sum();
        if reported as u64 >= agents {
            let answer = call.join().unwrap().unwrap().result();
            assert_eq!(answer["failInstanceId"], json!([]));
            return seconds;
        }
        assert!(begun.elapsed() < PATIENCE, "{reported} of {agents} reported");
        sleep(Duration::from_millis(50));
    }
}

fn attach_to(agents: u64, servers: &[Server]) -> Attach {
    let rss = || servers.iter().map(|server| Usage::of(server.pid()).rss_kib).fold(0.0, f64::max);
    let alone = rss();
    let addresses: Vec<String> = servers.iter().map(Server::metadata).collect();
    let fleet = Fleet::start(agents, &addresses, LONG_POLL as u64 / 2);
    fleet.pass(LONG_POLL / 2 + 5);
    fleet.await_all(PATIENCE);
    let waiting = rss();
    let seconds = attach(&fleet, &servers[0], agents);
    let all = |times: fn(&Second) -> &Vec<u64>| {
        let mut all: Vec<u64> = seconds.iter().flat_map(times).copied().collect();
        all.sort_unstable();
        all
    };
    Attach {
        received: all(|second| &second.received),
        reported: all(|second| &second.reported),
        failed: seconds.iter().map(Second::failures).sum(),
        rss_kib: [alone, waiting, rss()],
        servers: servers.len(),
    }
}

pub(crate) fn attach_in_memory(agents: u64) -> Attach {
    say("an attach to all, in memory");
    attach_to(agents, &[serve(&inventory(agents), "memory:")])
}

pub(crate) fn attach_shared(agents: u64) -> Option<Attach> {
    say("an attach to all, three servers on one PostgreSQL");
    let postgres = Postgres::start_durable()?;
    let (inventory, url) = (inventory(agents), postgres.url());
    let servers = [(); 3].map(|()| serve(&inventory, &url));
    Some(attach_to(agents, &servers))
}

pub(crate) fn restart(agents: u64, signal: &str, away: u64) -> Restart {
    say(&format!("a restart, by SIG{signal}, away for {away} s"));
    let inventory = inventory(agents);
    let server = serve(&inventory, "memory:");
    let fleet = steady(agents, &[server.metadata()]);
    let begin = fleet.now();
    fleet.pass(BEFORE);
    let (api, metadata) = (server.api.clone(), server.metadata());
    server.end(signal);
    sleep(Duration::from_secs(away));
    let _server = Server::start_at(&api, &metadata, &["--instances", &inventory, "--attach-wait", "120"]);
    fleet.pass(150);
    Restart { away, seconds: fleet.since(begin) }
}

pub(crate) fn trouble(agents: u64, trouble: Trouble) -> InTrouble {
    say(&format!("a minute of trouble: {trouble:?}"));
    let server = serve(&inventory(agents), "memory:");
    // Two, since each has two descriptors a connection.
    let mut proxies = [(); 2].map(|()| Proxy::start(&server.metadata()));
    let addresses: Vec<String> = proxies.iter().map(|proxy| proxy.address.clone()).collect();
    let fleet = steady(agents, &addresses);
    let begin = fleet.now();
    fleet.pass(BEFORE);
    let before: u64 = proxies.iter_mut().map(|proxy| proxy.make(trouble)).sum();
    fleet.pass(LONG_POLL);
    let after: u64 = proxies.iter_mut().map(|proxy| proxy.make(Trouble::None)).sum();
    fleet.pass(80);
    InTrouble { seconds: fleet.since(begin), suffered: after - before }
}
