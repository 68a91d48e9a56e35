//! Many agents in one process: they all wait, are all reached, and end. What ten thousand do is measured by
//! benches/scale.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

#[path = "../benches/scale/fleet.rs"]
#[allow(dead_code)]
mod fleet;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use fleet::{Fleet, instances, inventory};
use support::{Server, binary, file};

const AGENTS: u64 = 60;
const PATIENCE: Duration = Duration::from_secs(60);

/// A control plane that knows the fleet's instances.
fn server() -> Server {
    let server = Server::start(&["--instances", &inventory(AGENTS), "--attach-wait", "60"]);
    let instances = instances(&server);
    assert_eq!((instances.len() as u64, instances[0]), (AGENTS, "i-fleet-000000"));
    server
}

/// Waits until what the fleet has said so far is so.
fn await_that(fleet: &Fleet, what: &str, is_so: impl Fn(&[fleet::Second]) -> bool) {
    let begun = Instant::now();
    while !is_so(&fleet.since(0)) {
        assert!(begun.elapsed() < PATIENCE, "{what}: {:?}", fleet.since(0));
        sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_command_for_all_reaches_all_and_is_reported_by_all() {
    let server = server();
    let fleet = Fleet::start(AGENTS, &[server.metadata()], 1);
    fleet.await_all(PATIENCE);
    server.import("my-test", 7);
    let instances = instances(&server);
    server.attach("my-test", &instances, "no").assert_bound(&instances, &[]);
    await_that(&fleet, "all have reported", |seconds| {
        seconds.iter().map(|second| second.reported.len() as u64).sum::<u64>() == AGENTS
    });
    await_that(&fleet, "all wait again", |seconds| seconds.last().is_some_and(|last| last.waiting == AGENTS));
    let seconds = fleet.since(0);
    assert_eq!(seconds.iter().map(|second| second.received.len() as u64).sum::<u64>(), AGENTS);
    assert_eq!(seconds.iter().map(|second| second.failures() + second.first_tries).sum::<u64>(), 0);
    let metrics = server.call("GET", "/metrics", "").body;
    let stored = r#"keypair_results_total{action="attach",code="OK",reason="",status="succeeded"} 60"#;
    assert!(metrics.contains(stored) && metrics.contains("keypair_waiting_polls 60"), "{metrics}");
}

#[test]
fn agents_that_lose_their_service_try_again_and_are_counted() {
    let server = server();
    let (api, metadata) = (server.api.clone(), server.metadata());
    let fleet = Fleet::start(AGENTS, std::slice::from_ref(&metadata), 0);
    fleet.await_all(PATIENCE);
    server.end("KILL");
    await_that(&fleet, "all are cut", |seconds| {
        seconds.iter().map(|second| second.failures()).sum::<u64>() >= AGENTS
    });
    // As many as there are, once each: some find nobody, and their second try is not a first one.
    await_that(&fleet, "all have tried again", |seconds| {
        seconds.iter().map(|second| second.first_tries).sum::<u64>() == AGENTS
    });
    let inventory = file("[[instance]]\nid = \"i-other\"\n");
    let _server = Server::start_at(&api, &metadata, &["--instances", &inventory]);
    await_that(&fleet, "this one does not know them", |seconds| {
        seconds.iter().any(|second| second.failed.contains_key("404"))
    });
}

#[test]
fn what_cannot_be_is_said() {
    let run = |command: &str| {
        let program = env!("CARGO_BIN_EXE_keypair-controlplane");
        let output = Command::new("sh").args(["-c", command, "sh", program]).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (status, said) = run("ulimit -n 100 && exec \"$1\" fleet --agents 1000");
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("1564 descriptors") && said.contains("ulimit -Hn"), "{said}");
    for flags in ["", "--agents 0", "--agents 5 --metadata localhost", "--agents 5 --long-poll 0"] {
        assert_eq!(run(&format!("exec \"$1\" fleet {flags}")).0, Some(2), "{flags}");
    }
}

#[test]
fn told_to_end_it_ends_whether_its_agents_have_begun_or_not() {
    let mut child = binary()
        .args(["fleet", "--agents", "5", "--ramp", "600", "--metadata", "127.0.0.1:1"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    lines.read_line(&mut line).unwrap();
    assert!(line.contains("\"waiting\":0"), "{line}");
    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    assert!(child.wait().unwrap().success());
}
