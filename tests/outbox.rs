//! Delivery of results (KP-3.8 and KP-3.9): until a final answer, also after a kill, with the same bytes, and once.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;

use serde_json::{Value, json};
use support::daemon::{Daemon, make_channel_command};
use support::metadata::ServiceRequest;
use support::{
    GuestOptions, MetadataService, TestGuest, TestKey, attach_command, detach_command, has_tools,
    set_password_auth_command, wait_for,
};

const TOOLS: [&str; 3] = ["sshd", "ssh", "ssh-keygen"];

fn create_guest(metadata: &MetadataService) -> TestGuest {
    TestGuest::with_options(GuestOptions { metadata: Some(metadata), ..GuestOptions::default() })
}

fn read_state(guest: &TestGuest) -> Value {
    serde_json::from_slice(&fs::read(guest.path("state/state.json")).unwrap()).unwrap()
}

fn wait_for_attempts(metadata: &MetadataService, count: usize) -> Vec<(String, String)> {
    wait_for("results on their way", || Some(metadata.result_attempts()).filter(|all| all.len() >= count))
}

/// KP-3.8.
#[test]
fn undelivered_result_survives_outage_and_kill() {
    if !has_tools(&TOOLS) {
        return;
    }
    let metadata = MetadataService::start();
    let guest = create_guest(&metadata);
    let key = TestKey::new(&guest.folder, "me");
    metadata.refuse_results(true);
    metadata.queue(make_channel_command("c-1", 1, attach_command("my-test", &key, "no")));
    metadata.queue(make_channel_command("c-2", 2, detach_command("my-test")));
    let daemon = Daemon::start(&guest);
    wait_for_attempts(&metadata, 3);
    daemon.kill();
    // The service still refuses at the next start. The daemon tries with the same bytes, and does not poll.
    let before = metadata.requests().len();
    let daemon = Daemon::start(&guest);
    let tries = metadata.result_attempts().len();
    wait_for_attempts(&metadata, tries + 2);
    let asked = metadata.requests()[before..].to_vec();
    assert!(!asked.iter().any(|asked| matches!(asked, ServiceRequest::Poll(_))), "{asked:?}");
    daemon.kill();

    let daemon = Daemon::start(&guest);
    let tries = metadata.result_attempts().len();
    wait_for_attempts(&metadata, tries + 1);
    metadata.refuse_results(false);
    metadata.wait_for_result("c-2");
    let results = metadata.results();
    assert_eq!(results.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["c-1", "c-2"]);
    let (_, stored) = &results[0];
    for (id, sent) in metadata.result_attempts().iter().filter(|(id, _)| id == "c-1") {
        assert_eq!(sent, stored, "{id} was sent with other bytes");
    }
    let result: Value = serde_json::from_str(stored).unwrap();
    assert_eq!((&result["status"], &result["changed"]), (&json!("succeeded"), &json!(true)), "{result}");
    assert!(!guest.sshd.accepts_key(&key), "the detach behind it is done");
    wait_for("an empty outbox", || read_state(&guest)["undelivered"].is_null().then_some(()));
    assert_eq!(daemon.terminate().code(), Some(0));
}

/// KP-3.8.
#[test]
fn next_command_is_polled_only_after_delivery() {
    if !has_tools(&TOOLS) {
        return;
    }
    let metadata = MetadataService::start();
    let guest = create_guest(&metadata);
    metadata.refuse_results(true);
    metadata.queue(make_channel_command("c-1", 1, set_password_auth_command("no")));
    metadata.queue(make_channel_command("c-2", 2, set_password_auth_command("yes")));
    let _daemon = Daemon::start(&guest);
    wait_for_attempts(&metadata, 4);
    assert_eq!(metadata.polls().len(), 1, "{:?}", metadata.requests());
    metadata.refuse_results(false);
    metadata.wait_for_result("c-2");
    let asked = metadata.requests();
    let first = asked.iter().position(|asked| *asked == ServiceRequest::Result("c-2".to_owned())).unwrap();
    let polls = asked[..first].iter().filter(|asked| matches!(asked, ServiceRequest::Poll(_))).count();
    assert_eq!(polls, 2, "{asked:?}");
}

/// KP-3.9.
#[test]
fn result_answers_404_409_400_are_final() {
    if !has_tools(&TOOLS) {
        return;
    }
    for status in [404, 409, 400] {
        let metadata = MetadataService::start();
        let guest = create_guest(&metadata);
        metadata.set_result_status(Some(status));
        metadata.queue(make_channel_command("c-1", 1, set_password_auth_command("yes")));
        let daemon = Daemon::start(&guest);
        wait_for_attempts(&metadata, 1);
        // Like a service that does not know the command, or that has its result already.
        metadata.withdraw_command("c-1");
        metadata.set_result_status(None);
        metadata.queue(make_channel_command("c-2", 2, set_password_auth_command("yes")));
        metadata.wait_for_result("c-2");
        let log = daemon.log();
        let words = if status == 400 { "refuses the form of the result" } else { "not taken" };
        let said = log.lines().any(|line| line.contains(words) && line.contains(&status.to_string()));
        assert!(said, "{status}: {log}");
        daemon.kill();
        // Not even a restarted daemon sends it again.
        let asked = metadata.requests().len();
        let daemon = Daemon::start(&guest);
        wait_for("polls", || {
            metadata.requests()[asked..]
                .iter()
                .any(|asked| matches!(asked, ServiceRequest::Poll(_)))
                .then_some(())
        });
        let sent = metadata.result_attempts().iter().filter(|(id, _)| id == "c-1").count();
        // If the service sends the command again before it is withdrawn, the agent sends the result once more, after
        // a pause. After an answer 400, the agent sends a short form of the result too.
        let most = if status == 400 { 4 } else { 2 };
        assert!((1..=most).contains(&sent), "{status}: sent {sent} times");
        assert_eq!(daemon.terminate().code(), Some(0));
    }
}

/// KP-3.9.
#[test]
fn result_answers_302_401_408_429_500_are_retried() {
    if !has_tools(&TOOLS) {
        return;
    }
    let metadata = MetadataService::start();
    let guest = create_guest(&metadata);
    let statuses = [302, 401, 408, 429, 500];
    metadata.set_result_status(Some(statuses[0]));
    metadata.queue(make_channel_command("c-1", 1, set_password_auth_command("yes")));
    let _daemon = Daemon::start(&guest);
    for status in statuses {
        metadata.set_result_status(Some(status));
        let tries = metadata.result_attempts().len();
        wait_for_attempts(&metadata, tries + 1);
    }
    assert_eq!(metadata.polls().len(), 1);
    metadata.set_result_status(None);
    metadata.wait_for_result("c-1");
    assert_eq!(metadata.results().len(), 1);
}

#[test]
fn resent_result_after_state_repair_empties_outbox() {
    if !has_tools(&TOOLS) {
        return;
    }
    let metadata = MetadataService::start();
    let guest = create_guest(&metadata);
    metadata.refuse_results(true);
    metadata.queue(make_channel_command("c-1", 1, set_password_auth_command("yes")));
    let daemon = Daemon::start(&guest);
    wait_for_attempts(&metadata, 1);
    daemon.kill();
    // The outbox is unreadable at the start, and readable when the command comes again.
    let good = fs::read(guest.path("state/state.json")).unwrap();
    fs::write(guest.path("state/state.json"), "{ garbled").unwrap();
    metadata.withdraw_command("c-1");
    metadata.refuse_results(false);
    let _daemon = Daemon::start(&guest);
    wait_for("a long poll", || metadata.requests().contains(&ServiceRequest::Poll(60)).then_some(()));
    fs::write(guest.path("state/state.json"), &good).unwrap();
    metadata.queue(make_channel_command("c-1", 1, set_password_auth_command("yes")));
    metadata.wait_for_result("c-1");
    let sent: Vec<String> = metadata.result_attempts().into_iter().map(|(_, text)| text).collect();
    assert!(sent.iter().all(|text| *text == sent[0]), "{sent:?}");
    wait_for("an empty outbox", || read_state(&guest)["undelivered"].is_null().then_some(()));
}
