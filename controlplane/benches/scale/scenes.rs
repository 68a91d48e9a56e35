//! What is done to the fleet, and what is seen of it.

use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::fleet::{FleetProcess, SecondSample, known_instance_ids, write_inventory_file};
use crate::process::{ProcessUsage, read_slab_kib};
use crate::support::postgres::Postgres;
use crate::support::{REGION, Server, try_http};
use crate::trouble::{FaultProxy, ProxyFault};

/// A long poll's length, in seconds: the agent's default.
pub(crate) const LONG_POLL_SECONDS: usize = 60;

const KEY_NAME: &str = "fleet";

/// How long anything may take before the run is given up; nothing is measured with it.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(300);

/// While all wait and no poll ends.
pub(crate) struct QuietRun {
    pub(crate) kib_each: f64,
    /// Of the kernel's own memory, an end of a connection.
    pub(crate) kernel_kib_each: f64,
    pub(crate) agent_kib_each: f64,
    pub(crate) seconds: usize,
    pub(crate) wake_ups: u64,
    pub(crate) cpu: f64,
}

/// While all wait, and their polls end as they do.
pub(crate) struct IdleRun {
    pub(crate) seconds: Vec<SecondSample>,
    /// Of the server, a request.
    pub(crate) cpu_each: f64,
    /// A minute, from two minutes after all were given a command at once.
    pub(crate) after_attach: Vec<SecondSample>,
}

/// An attach to all.
pub(crate) struct AttachRun {
    pub(crate) received: Vec<u64>,
    pub(crate) reported: Vec<u64>,
    pub(crate) failed: u64,
    /// Resident memory of a server, in KiB: before the fleet, with it, after the attach.
    pub(crate) rss_kib: [f64; 3],
    pub(crate) servers: usize,
}

/// The control plane goes away, and is back some seconds later.
pub(crate) struct RestartRun {
    pub(crate) away: u64,
    /// From ten seconds before.
    pub(crate) seconds: Vec<SecondSample>,
}

/// Seconds before what is done to a fleet, shown with it.
pub(crate) const LEAD_SECONDS: usize = 10;

/// A minute of trouble, and what follows.
pub(crate) struct FaultRun {
    /// From ten seconds before.
    pub(crate) seconds: Vec<SecondSample>,
    /// How many requests were made to suffer.
    pub(crate) suffered: u64,
}

impl FaultRun {
    /// The minute itself.
    pub(crate) fn minute(&self) -> &[SecondSample] {
        &self.seconds[LEAD_SECONDS..LEAD_SECONDS + LONG_POLL_SECONDS]
    }
}

fn start_server(inventory: &str, store: &str) -> Server {
    Server::start(&["--instances", inventory, "--store", store, "--attach-wait", "120"])
}

fn log_step(what: &str) {
    eprintln!("{what} …");
}

pub(crate) fn measure_quiet(agents: u64) -> QuietRun {
    log_step("a quiet half minute");
    let server = start_server(&write_inventory_file(agents), "memory:");
    let (alone, kernel_alone) = (ProcessUsage::from_pid(server.pid()), read_slab_kib());
    let fleet = FleetProcess::start(agents, &[server.metadata_address()], 20);
    // All have begun their first long poll within some 23 s, and none ends before a minute.
    fleet.wait_seconds(30);
    fleet.wait_until_all_polling(PROGRESS_TIMEOUT);
    let before = ProcessUsage::from_pid(server.pid());
    let seconds = fleet.wait_seconds(20);
    let after = ProcessUsage::from_pid(server.pid());
    assert_eq!(seconds.iter().map(|second| second.asked).sum::<u64>(), 0, "it is not quiet");
    QuietRun {
        kernel_kib_each: (read_slab_kib() - kernel_alone) / (2 * agents) as f64,
        kib_each: (after.rss_kib - alone.rss_kib) / agents as f64,
        agent_kib_each: ProcessUsage::from_pid(fleet.pid()).rss_kib / agents as f64,
        seconds: seconds.len(),
        wake_ups: after.wake_ups.saturating_sub(before.wake_ups),
        cpu: after.cpu - before.cpu,
    }
}

pub(crate) fn measure_idle(agents: u64) -> IdleRun {
    log_step("two minutes in which nothing happens");
    let server = start_server(&write_inventory_file(agents), "memory:");
    let fleet = start_steady_fleet(agents, &[server.metadata_address()]);
    let before = ProcessUsage::from_pid(server.pid());
    let seconds = fleet.wait_seconds(2 * LONG_POLL_SECONDS);
    let after = ProcessUsage::from_pid(server.pid());
    let asked: u64 = seconds.iter().map(|second| second.asked).sum();
    log_step("and two minutes after a command for all");
    attach_all(&fleet, &server, agents);
    fleet.wait_seconds(2 * LONG_POLL_SECONDS);
    let after_attach = fleet.wait_seconds(LONG_POLL_SECONDS);
    IdleRun { seconds, cpu_each: (after.cpu - before.cpu) / asked as f64, after_attach }
}

/// A fleet whose guests were booted together: the first long poll is a whole one, the second a part, and from then on they end
/// evenly.
fn start_steady_fleet(agents: u64, servers: &[String]) -> FleetProcess {
    let fleet = FleetProcess::start(agents, servers, 15);
    fleet.wait_seconds(15 + 2 * LONG_POLL_SECONDS + 5);
    fleet.wait_until_all_polling(PROGRESS_TIMEOUT);
    fleet
}

/// One attach to all of them, and the seconds until each has reported.
fn attach_all(fleet: &FleetProcess, server: &Server, agents: u64) -> Vec<SecondSample> {
    let begin = fleet.elapsed_seconds();
    assert_eq!(server.import(KEY_NAME, 7).status, 200);
    let body = json!({ "instanceIds": known_instance_ids(server), "passWordAuth": "no" }).to_string();
    let (api, path) = (server.api.clone(), format!("{REGION}/keypairs/{KEY_NAME}:attach"));
    let call = std::thread::spawn(move || try_http(&api, "POST", &path, &body));
    let begun = Instant::now();
    loop {
        let seconds = fleet.samples_since(begin);
        let reported: usize = seconds.iter().map(|second| second.reported.len()).sum();
        if reported as u64 >= agents {
            let answer = call.join().unwrap().unwrap().result();
            assert_eq!(answer["failInstanceId"], json!([]));
            return seconds;
        }
        assert!(begun.elapsed() < PROGRESS_TIMEOUT, "{reported} of {agents} reported");
        sleep(Duration::from_millis(50));
    }
}

fn measure_attach(agents: u64, servers: &[Server]) -> AttachRun {
    let rss =
        || servers.iter().map(|server| ProcessUsage::from_pid(server.pid()).rss_kib).fold(0.0, f64::max);
    let alone = rss();
    let addresses: Vec<String> = servers.iter().map(Server::metadata_address).collect();
    let fleet = FleetProcess::start(agents, &addresses, LONG_POLL_SECONDS as u64 / 2);
    fleet.wait_seconds(LONG_POLL_SECONDS / 2 + 5);
    fleet.wait_until_all_polling(PROGRESS_TIMEOUT);
    let waiting = rss();
    let seconds = attach_all(&fleet, &servers[0], agents);
    let all = |times: fn(&SecondSample) -> &Vec<u64>| {
        let mut all: Vec<u64> = seconds.iter().flat_map(times).copied().collect();
        all.sort_unstable();
        all
    };
    AttachRun {
        received: all(|second| &second.received),
        reported: all(|second| &second.reported),
        failed: seconds.iter().map(SecondSample::failures).sum(),
        rss_kib: [alone, waiting, rss()],
        servers: servers.len(),
    }
}

pub(crate) fn measure_attach_in_memory(agents: u64) -> AttachRun {
    log_step("an attach to all, in memory");
    measure_attach(agents, &[start_server(&write_inventory_file(agents), "memory:")])
}

pub(crate) fn measure_attach_shared(agents: u64) -> Option<AttachRun> {
    log_step("an attach to all, three servers on one PostgreSQL");
    let postgres = Postgres::start_durable()?;
    let (inventory, url) = (write_inventory_file(agents), postgres.url());
    let servers = [(); 3].map(|()| start_server(&inventory, &url));
    Some(measure_attach(agents, &servers))
}

pub(crate) fn measure_restart(agents: u64, signal: &str, away: u64) -> RestartRun {
    log_step(&format!("a restart, by SIG{signal}, away for {away} s"));
    let inventory = write_inventory_file(agents);
    let server = start_server(&inventory, "memory:");
    let fleet = start_steady_fleet(agents, &[server.metadata_address()]);
    let begin = fleet.elapsed_seconds();
    fleet.wait_seconds(LEAD_SECONDS);
    let (api, metadata) = (server.api.clone(), server.metadata_address());
    server.stop_with_signal(signal);
    sleep(Duration::from_secs(away));
    let _server = Server::start_on(&api, &metadata, &["--instances", &inventory, "--attach-wait", "120"]);
    fleet.wait_seconds(150);
    RestartRun { away, seconds: fleet.samples_since(begin) }
}

pub(crate) fn measure_fault(agents: u64, trouble: ProxyFault) -> FaultRun {
    log_step(&format!("a minute of trouble: {trouble:?}"));
    let server = start_server(&write_inventory_file(agents), "memory:");
    // Two, since each has two descriptors a connection.
    let mut proxies = [(); 2].map(|()| FaultProxy::start(&server.metadata_address()));
    let addresses: Vec<String> = proxies.iter().map(|proxy| proxy.address.clone()).collect();
    let fleet = start_steady_fleet(agents, &addresses);
    let begin = fleet.elapsed_seconds();
    fleet.wait_seconds(LEAD_SECONDS);
    let before: u64 = proxies.iter_mut().map(|proxy| proxy.set_fault(trouble)).sum();
    fleet.wait_seconds(LONG_POLL_SECONDS);
    let after: u64 = proxies.iter_mut().map(|proxy| proxy.set_fault(ProxyFault::None)).sum();
    fleet.wait_seconds(80);
    FaultRun { seconds: fleet.samples_since(begin), suffered: after - before }
}
