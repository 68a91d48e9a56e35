//! A metadata service that speaks the wire badly: nothing of it is applied, the agent waits with back-off, and serves
//! the next good command (KP-3.7 and KP-3.22).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "hostile_channel/lies.rs"]
mod lies;
mod support;

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::daemon::{Daemon, queued};
use support::metadata::{Fault, Metadata};
use support::{Form, Guest, Key, attach, available, wait_for, with};

const TOOLS: [&str; 3] = ["sshd", "ssh", "ssh-keygen"];

/// How long a fault lasts, and how many polls it may see (the issue of a fleet under one service).
const FAULT: Duration = Duration::from_secs(20);
const MOST_POLLS: usize = 10;

fn answer(head: &str, body: &[u8]) -> Fault {
    Fault::Raw(
        [format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes(), body].concat(),
    )
}

/// The agent under `fault`, then under a service that is healed.
fn survives(fault: impl FnOnce(&Key) -> Fault) {
    if !available(&TOOLS) {
        return;
    }
    let metadata = Metadata::start();
    let guest = Guest::of(Form { metadata: Some(&metadata), ..Form::default() });
    let key = Key::new(&guest.folder, "k");
    let before = guest.snapshot();
    metadata.fault(Some(fault(&key)));
    let mut daemon = Daemon::start(&guest);
    let begun = wait_for("the first poll", || metadata.polls().first().copied());
    std::thread::sleep((begun + FAULT).saturating_duration_since(Instant::now()));
    let polls = metadata.polls().iter().filter(|at| **at < begun + FAULT).count();
    assert!(polls <= MOST_POLLS, "{polls} polls in 20 s");
    assert!(daemon.is_alive(), "{}", daemon.log());
    let after: Vec<_> = guest.snapshot().into_iter().filter(|entry| !entry.0.ends_with("run.log")).collect();
    assert_eq!(after, before);
    assert_eq!(metadata.results(), []);
    metadata.fault(None);
    metadata.queue(queued("good", 1, attach("my-test", &key, "no")));
    assert_eq!(metadata.wait_for_result("good")["status"], "succeeded");
    assert!(guest.sshd.lets_in(&key));
}

/// All at once, since each only waits.
/// KP-3.2, KP-3.7.
#[test]
fn whatever_it_answers() {
    // Where a redirection leads to would hand out a good command; it is never asked.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    std::thread::spawn(move || {
        for _ in listener.incoming() {
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    let redirect = format!("302 Found\r\nLocation: http://{address}/metadata/latest/keypair/command");
    std::thread::scope(|scope| {
        scope.spawn(|| survives(|_| answer(&redirect, b"")));
        scope.spawn(|| survives(|_| Fault::Hang));
        scope.spawn(|| survives(|_| Fault::Drip));
        scope.spawn(|| survives(|_| answer("200 OK", &vec![b' '; 10_000_000])));
        scope.spawn(|| survives(|_| answer("200 OK", b"{\"commandId\": \"c-1\", \"action\": ")));
        scope.spawn(|| {
            survives(|key| {
                let command = with(queued("x", 1, attach("my-test", key, "no")), "commandId", json!("../x"));
                answer("200 OK", command.to_string().as_bytes())
            });
        });
    });
    assert_eq!(asked.load(Ordering::Relaxed), 0);
}

/// KP-3.27, KP-3.28.
#[test]
fn that_hands_out_another_instances_command_for_ever() {
    if !available(&TOOLS) {
        return;
    }
    let metadata = Metadata::start();
    let guest = Guest::of(Form { metadata: Some(&metadata), ..Form::default() });
    let key = Key::new(&guest.folder, "k");
    metadata.keep_commands(true);
    let foreign = with(queued("foreign", 7, attach("my-test", &key, "no")), "instanceId", json!("i-other"));
    metadata.queue(foreign);
    let mut daemon = Daemon::start(&guest);
    let result = metadata.wait_for_result("foreign");
    assert_eq!(result["reason"], "WRONG_INSTANCE");
    assert_eq!(result["instanceId"], "i-test");
    let begun = Instant::now();
    std::thread::sleep(FAULT);
    let polls = metadata.polls().iter().filter(|at| **at > begun).count();
    assert!(polls <= MOST_POLLS, "{polls} polls in 20 s");
    assert!(daemon.is_alive());
    assert!(!guest.key_file().exists());
    // The result is the same each time: the service would have said 409 otherwise.
    let texts: Vec<String> = metadata.attempts().into_iter().map(|(_, text)| text).collect();
    assert!(texts.windows(2).all(|pair| pair[0] == pair[1]));
    metadata.withdraw("foreign");
    metadata.keep_commands(false);
    metadata.queue(queued("good", 1, attach("my-test", &key, "no")));
    let good: Value = metadata.wait_for_result("good");
    assert_eq!(good["status"], "succeeded", "a foreign command raises no sequence: {good}");
}
