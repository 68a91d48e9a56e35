//! A metadata service that violates the protocol: the agent applies nothing of it, waits with back-off, and performs
//! the next valid command (KP-3.7 and KP-3.22).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "hostile_channel/lies.rs"]
mod lies;
mod support;

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::daemon::{Daemon, make_channel_command};
use support::metadata::{MetadataService, PollFault};
use support::{GuestOptions, TestGuest, TestKey, attach_command, has_tools, wait_for, with_field};

const TOOLS: [&str; 3] = ["sshd", "ssh", "ssh-keygen"];

/// The duration of a fault, and the maximum of polls in that time (the limit matters for a fleet under one service).
const FAULT_DURATION: Duration = Duration::from_secs(20);
const MAX_POLLS_DURING_FAULT: usize = 10;

fn raw_response(head: &str, body: &[u8]) -> PollFault {
    PollFault::Raw(
        [format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes(), body].concat(),
    )
}

/// Runs the agent with a service that has `fault`, then with the repaired service.
fn assert_survives_fault(fault: impl FnOnce(&TestKey) -> PollFault) {
    if !has_tools(&TOOLS) {
        return;
    }
    let metadata = MetadataService::start();
    let guest =
        TestGuest::with_options(GuestOptions { metadata: Some(&metadata), ..GuestOptions::default() });
    let key = TestKey::new(&guest.folder, "k");
    let before = guest.snapshot();
    metadata.set_fault(Some(fault(&key)));
    let mut daemon = Daemon::start(&guest);
    let begun = wait_for("the first poll", || metadata.polls().first().copied());
    std::thread::sleep((begun + FAULT_DURATION).saturating_duration_since(Instant::now()));
    let polls = metadata.polls().iter().filter(|at| **at < begun + FAULT_DURATION).count();
    assert!(polls <= MAX_POLLS_DURING_FAULT, "{polls} polls in 20 s");
    assert!(daemon.is_alive(), "{}", daemon.log());
    let after: Vec<_> = guest.snapshot().into_iter().filter(|entry| !entry.0.ends_with("run.log")).collect();
    assert_eq!(after, before);
    assert_eq!(metadata.results(), []);
    metadata.set_fault(None);
    metadata.queue(make_channel_command("good", 1, attach_command("my-test", &key, "no")));
    assert_eq!(metadata.wait_for_result("good")["status"], "succeeded");
    assert!(guest.sshd.accepts_key(&key));
}

/// All faults run at once, because each test only waits.
/// KP-3.2, KP-3.7.
#[test]
fn service_faults_apply_nothing() {
    // The target of the redirection would return a valid command, but the agent must never connect to it.
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
        scope.spawn(|| assert_survives_fault(|_| raw_response(&redirect, b"")));
        scope.spawn(|| assert_survives_fault(|_| PollFault::Hang));
        scope.spawn(|| assert_survives_fault(|_| PollFault::Drip));
        scope.spawn(|| assert_survives_fault(|_| raw_response("200 OK", &vec![b' '; 10_000_000])));
        scope.spawn(|| {
            assert_survives_fault(|_| raw_response("200 OK", b"{\"commandId\": \"c-1\", \"action\": "))
        });
        scope.spawn(|| {
            assert_survives_fault(|key| {
                let command = with_field(
                    make_channel_command("x", 1, attach_command("my-test", key, "no")),
                    "commandId",
                    json!("../x"),
                );
                raw_response("200 OK", command.to_string().as_bytes())
            });
        });
    });
    assert_eq!(asked.load(Ordering::Relaxed), 0);
}

/// KP-3.27, KP-3.28.
#[test]
fn foreign_command_repeated_forever_is_refused() {
    if !has_tools(&TOOLS) {
        return;
    }
    let metadata = MetadataService::start();
    let guest =
        TestGuest::with_options(GuestOptions { metadata: Some(&metadata), ..GuestOptions::default() });
    let key = TestKey::new(&guest.folder, "k");
    metadata.keep_commands(true);
    let foreign = with_field(
        make_channel_command("foreign", 7, attach_command("my-test", &key, "no")),
        "instanceId",
        json!("i-other"),
    );
    metadata.queue(foreign);
    let mut daemon = Daemon::start(&guest);
    let result = metadata.wait_for_result("foreign");
    assert_eq!(result["reason"], "WRONG_INSTANCE");
    assert_eq!(result["instanceId"], "i-test");
    let begun = Instant::now();
    std::thread::sleep(FAULT_DURATION);
    let polls = metadata.polls().iter().filter(|at| **at > begun).count();
    assert!(polls <= MAX_POLLS_DURING_FAULT, "{polls} polls in 20 s");
    assert!(daemon.is_alive());
    assert!(!guest.key_file().exists());
    // Each result has the same bytes; otherwise the service would answer 409.
    let texts: Vec<String> = metadata.result_attempts().into_iter().map(|(_, text)| text).collect();
    assert!(texts.windows(2).all(|pair| pair[0] == pair[1]));
    metadata.withdraw_command("foreign");
    metadata.keep_commands(false);
    metadata.queue(make_channel_command("good", 1, attach_command("my-test", &key, "no")));
    let good: Value = metadata.wait_for_result("good");
    assert_eq!(good["status"], "succeeded", "a foreign command raises no sequence: {good}");
}
