//! Many agents in one process: all of them poll, receive commands, and stop. `benches/scale` measures ten thousand
//! agents.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

#[path = "../benches/scale/fleet.rs"]
#[allow(dead_code)]
mod fleet;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use fleet::{FleetProcess, known_instance_ids, write_inventory_file};
use support::{Server, controlplane_command, write_temp_file};

const FLEET_AGENTS: u64 = 60;
const FLEET_TIMEOUT: Duration = Duration::from_secs(60);

/// Starts a control plane with the fleet's instances.
fn start_server() -> Server {
    let server = Server::start(&["--instances", &write_inventory_file(FLEET_AGENTS), "--attach-wait", "60"]);
    let instances = known_instance_ids(&server);
    assert_eq!((instances.len() as u64, instances[0]), (FLEET_AGENTS, "i-fleet-000000"));
    server
}

/// Waits until the output of the fleet fulfils a condition.
fn wait_until(fleet: &FleetProcess, what: &str, is_so: impl Fn(&[fleet::SecondSample]) -> bool) {
    let begun = Instant::now();
    while !is_so(&fleet.samples_since(0)) {
        assert!(begun.elapsed() < FLEET_TIMEOUT, "{what}: {:?}", fleet.samples_since(0));
        sleep(Duration::from_millis(50));
    }
}

#[test]
fn fleet_attach_reaches_and_is_reported_by_every_agent() {
    let server = start_server();
    let fleet = FleetProcess::start(FLEET_AGENTS, &[server.metadata_address()], 1);
    fleet.wait_until_all_polling(FLEET_TIMEOUT);
    server.import("my-test", 7);
    let instances = known_instance_ids(&server);
    server.attach("my-test", &instances, "no").assert_bound(&instances, &[]);
    wait_until(&fleet, "all have reported", |seconds| {
        seconds.iter().map(|second| second.reported.len() as u64).sum::<u64>() == FLEET_AGENTS
    });
    wait_until(&fleet, "all wait again", |seconds| {
        seconds.last().is_some_and(|last| last.waiting == FLEET_AGENTS)
    });
    let seconds = fleet.samples_since(0);
    assert_eq!(seconds.iter().map(|second| second.received.len() as u64).sum::<u64>(), FLEET_AGENTS);
    assert_eq!(seconds.iter().map(|second| second.failures() + second.first_tries).sum::<u64>(), 0);
    let metrics = server.call_api("GET", "/metrics", "").body;
    let stored = r#"keypair_results_total{action="attach",code="OK",reason="",status="succeeded"} 60"#;
    assert!(metrics.contains(stored) && metrics.contains("keypair_waiting_polls 60"), "{metrics}");
}

#[test]
fn fleet_retries_after_server_loss_are_counted() {
    let server = start_server();
    let (api, metadata) = (server.api.clone(), server.metadata_address());
    let fleet = FleetProcess::start(FLEET_AGENTS, std::slice::from_ref(&metadata), 0);
    fleet.wait_until_all_polling(FLEET_TIMEOUT);
    server.stop_with_signal("KILL");
    wait_until(&fleet, "all are cut", |seconds| {
        seconds.iter().map(|second| second.failures()).sum::<u64>() >= FLEET_AGENTS
    });
    // Each agent counts one first retry. Some find no server then, and their next retry is not a first one.
    wait_until(&fleet, "all have tried again", |seconds| {
        seconds.iter().map(|second| second.first_tries).sum::<u64>() == FLEET_AGENTS
    });
    let inventory = write_temp_file("[[instance]]\nid = \"i-other\"\n");
    let _server = Server::start_on(&api, &metadata, &["--instances", &inventory]);
    wait_until(&fleet, "this one does not know them", |seconds| {
        seconds.iter().any(|second| second.failed.contains_key("404"))
    });
}

#[test]
fn fleet_invalid_flags_or_limits_exit_with_error() {
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
fn fleet_stops_on_sigterm_before_agents_start() {
    let mut child = controlplane_command()
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
