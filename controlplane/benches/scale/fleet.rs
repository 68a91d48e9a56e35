//! A fleet of agents as a process of its own, and what it says every second.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{Server, controlplane_command, write_temp_file};

/// A second of the fleet's.
#[derive(Debug, Clone)]
pub(crate) struct SecondSample {
    pub(crate) waiting: u64,
    pub(crate) asked: u64,
    pub(crate) first_tries: u64,
    pub(crate) failed: BTreeMap<String, u64>,
    pub(crate) received: Vec<u64>,
    pub(crate) reported: Vec<u64>,
}

impl SecondSample {
    /// How many requests failed in it.
    pub(crate) fn failures(&self) -> u64 {
        self.failed.values().sum()
    }

    fn from_json_line(line: &str) -> Self {
        let line: Value = serde_json::from_str(line).unwrap();
        let sum = |counts: &Value| counts.as_object().unwrap().values().filter_map(Value::as_u64).sum();
        let times = |times: &Value| times.as_array().unwrap().iter().filter_map(Value::as_u64).collect();
        Self {
            waiting: line["waiting"].as_u64().unwrap(),
            asked: sum(&line["asked"]),
            first_tries: line["firstTries"].as_u64().unwrap(),
            failed: serde_json::from_value(line["failed"].clone()).unwrap(),
            received: times(&line["received"]),
            reported: times(&line["reported"]),
        }
    }
}

/// The file that tells a control plane of the agents' instances.
pub(crate) fn write_inventory_file(agents: u64) -> String {
    let printed = controlplane_command()
        .args(["fleet", "--agents", &agents.to_string(), "--print-instances"])
        .output()
        .unwrap();
    assert!(printed.status.success());
    write_temp_file(std::str::from_utf8(&printed.stdout).unwrap())
}

/// The instances that a control plane knows, by id.
pub(crate) fn known_instance_ids(server: &Server) -> Vec<&str> {
    server.bases.as_object().unwrap().keys().map(String::as_str).collect()
}

/// A running fleet, ended with the value.
pub(crate) struct FleetProcess {
    child: Child,
    agents: u64,
    seconds: Arc<Mutex<Vec<SecondSample>>>,
    reading: Option<JoinHandle<()>>,
}

impl FleetProcess {
    /// Starts it; the agents begin within `ramp` seconds.
    pub(crate) fn start(agents: u64, servers: &[String], ramp: u64) -> Self {
        let mut child = controlplane_command();
        child.args(["fleet", "--agents", &agents.to_string(), "--ramp", &ramp.to_string()]);
        for server in servers {
            child.args(["--metadata", server]);
        }
        let mut child = child.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let seconds = Arc::new(Mutex::new(Vec::new()));
        let read = seconds.clone();
        let reading = std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                read.lock().unwrap().push(SecondSample::from_json_line(&line));
            }
        });
        Self { child, agents, seconds, reading: Some(reading) }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How many seconds it has told of.
    pub(crate) fn elapsed_seconds(&self) -> usize {
        self.seconds.lock().unwrap().len()
    }

    /// The seconds told of since then.
    pub(crate) fn samples_since(&self, begin: usize) -> Vec<SecondSample> {
        self.seconds.lock().unwrap()[begin..].to_vec()
    }

    /// The next `count` seconds, as they pass.
    pub(crate) fn wait_seconds(&self, count: usize) -> Vec<SecondSample> {
        let begin = self.elapsed_seconds();
        while self.elapsed_seconds() < begin + count {
            sleep(Duration::from_millis(50));
        }
        self.samples_since(begin)[..count].to_vec()
    }

    /// Waits until every agent has its long poll held.
    pub(crate) fn wait_until_all_polling(&self, patience: Duration) {
        let begun = Instant::now();
        while self.seconds.lock().unwrap().last().is_none_or(|last| last.waiting < self.agents) {
            assert!(begun.elapsed() < patience, "not all wait: {:?}", self.seconds.lock().unwrap().last());
            sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for FleetProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reading) = self.reading.take() {
            let _ = reading.join();
        }
    }
}
