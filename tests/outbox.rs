//! Results on their way (KP-3.8 and KP-3.9): until there is a final answer, across a kill, byte for byte, once.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;

use serde_json::{Value, json};
use support::daemon::{Daemon, queued};
use support::metadata::Asked;
use support::{Form, Guest, Key, Metadata, attach, available, detach, set_password_auth, wait_for};

const TOOLS: [&str; 3] = ["sshd", "ssh", "ssh-keygen"];

fn guest(metadata: &Metadata) -> Guest {
    Guest::of(Form { metadata: Some(metadata), ..Form::default() })
}

fn state(guest: &Guest) -> Value {
    serde_json::from_slice(&fs::read(guest.path("state/state.json")).unwrap()).unwrap()
}

fn wait_for_attempts(metadata: &Metadata, count: usize) -> Vec<(String, String)> {
    wait_for("results on their way", || Some(metadata.attempts()).filter(|all| all.len() >= count))
}

/// KP-3.8.
#[test]
fn a_result_outlives_an_outage_and_a_kill() {
    if !available(&TOOLS) {
        return;
    }
    let metadata = Metadata::start();
    let guest = guest(&metadata);
    let key = Key::new(&guest.folder, "me");
    metadata.refuse_results(true);
    metadata.queue(queued("c-1", 1, attach("my-test", &key, "no")));
    metadata.queue(queued("c-2", 2, detach("my-test")));
    let daemon = Daemon::start(&guest);
    wait_for_attempts(&metadata, 3);
    daemon.kill();
    // The service still refuses when the next one starts: it tries with the same bytes, and asks for nothing.
    let before = metadata.asked().len();
    let daemon = Daemon::start(&guest);
    let tries = metadata.attempts().len();
    wait_for_attempts(&metadata, tries + 2);
    let asked = metadata.asked()[before..].to_vec();
    assert!(!asked.iter().any(|asked| matches!(asked, Asked::Poll(_))), "{asked:?}");
    daemon.kill();

    let daemon = Daemon::start(&guest);
    let tries = metadata.attempts().len();
    wait_for_attempts(&metadata, tries + 1);
    metadata.refuse_results(false);
    metadata.wait_for_result("c-2");
    let results = metadata.results();
    assert_eq!(results.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["c-1", "c-2"]);
    let (_, stored) = &results[0];
    for (id, sent) in metadata.attempts().iter().filter(|(id, _)| id == "c-1") {
        assert_eq!(sent, stored, "{id} was sent with other bytes");
    }
    let result: Value = serde_json::from_str(stored).unwrap();
    assert_eq!((&result["status"], &result["changed"]), (&json!("succeeded"), &json!(true)), "{result}");
    assert!(!guest.sshd.lets_in(&key), "the detach behind it is done");
    wait_for("an empty outbox", || state(&guest)["undelivered"].is_null().then_some(()));
    assert_eq!(daemon.terminate().code(), Some(0));
}

/// KP-3.8.
#[test]
fn the_next_command_is_asked_for_only_after_delivery() {
    if !available(&TOOLS) {
        return;
    }
    let metadata = Metadata::start();
    let guest = guest(&metadata);
    metadata.refuse_results(true);
    metadata.queue(queued("c-1", 1, set_password_auth("no")));
    metadata.queue(queued("c-2", 2, set_password_auth("yes")));
    let _daemon = Daemon::start(&guest);
    wait_for_attempts(&metadata, 4);
    assert_eq!(metadata.polls().len(), 1, "{:?}", metadata.asked());
    metadata.refuse_results(false);
    metadata.wait_for_result("c-2");
    let asked = metadata.asked();
    let first = asked.iter().position(|asked| *asked == Asked::Result("c-2".to_owned())).unwrap();
    let polls = asked[..first].iter().filter(|asked| matches!(asked, Asked::Poll(_))).count();
    assert_eq!(polls, 2, "{asked:?}");
}

/// KP-3.9.
#[test]
fn these_answers_are_final() {
    if !available(&TOOLS) {
        return;
    }
    for status in [404, 409, 400] {
        let metadata = Metadata::start();
        let guest = guest(&metadata);
        metadata.answer_results(Some(status));
        metadata.queue(queued("c-1", 1, set_password_auth("yes")));
        let daemon = Daemon::start(&guest);
        wait_for_attempts(&metadata, 1);
        // As of a service that knows no such command, or has its result already.
        metadata.withdraw("c-1");
        metadata.answer_results(None);
        metadata.queue(queued("c-2", 2, set_password_auth("yes")));
        metadata.wait_for_result("c-2");
        let log = daemon.log();
        let words = if status == 400 { "refuses the form of the result" } else { "not taken" };
        let said = log.lines().any(|line| line.contains(words) && line.contains(&status.to_string()));
        assert!(said, "{status}: {log}");
        daemon.kill();
        // Not even a new start sends it again.
        let asked = metadata.asked().len();
        let daemon = Daemon::start(&guest);
        wait_for("polls", || {
            metadata.asked()[asked..].iter().any(|asked| matches!(asked, Asked::Poll(_))).then_some(())
        });
        let sent = metadata.attempts().iter().filter(|(id, _)| id == "c-1").count();
        // Handed out between the answer and its withdrawal it would be answered once more, with a pause. A form that is
        // refused is followed by a short one.
        let most = if status == 400 { 4 } else { 2 };
        assert!((1..=most).contains(&sent), "{status}: sent {sent} times");
        assert_eq!(daemon.terminate().code(), Some(0));
    }
}

/// KP-3.9.
#[test]
fn these_answers_are_not_final() {
    if !available(&TOOLS) {
        return;
    }
    let metadata = Metadata::start();
    let guest = guest(&metadata);
    let statuses = [302, 401, 408, 429, 500];
    metadata.answer_results(Some(statuses[0]));
    metadata.queue(queued("c-1", 1, set_password_auth("yes")));
    let _daemon = Daemon::start(&guest);
    for status in statuses {
        metadata.answer_results(Some(status));
        let tries = metadata.attempts().len();
        wait_for_attempts(&metadata, tries + 1);
    }
    assert_eq!(metadata.polls().len(), 1);
    metadata.answer_results(None);
    metadata.wait_for_result("c-1");
    assert_eq!(metadata.results().len(), 1);
}

#[test]
fn a_result_from_memory_of_a_state_that_is_mended_leaves_no_rest() {
    if !available(&TOOLS) {
        return;
    }
    let metadata = Metadata::start();
    let guest = guest(&metadata);
    metadata.refuse_results(true);
    metadata.queue(queued("c-1", 1, set_password_auth("yes")));
    let daemon = Daemon::start(&guest);
    wait_for_attempts(&metadata, 1);
    daemon.kill();
    // The outbox cannot be read at the start, and can when the command comes again.
    let good = fs::read(guest.path("state/state.json")).unwrap();
    fs::write(guest.path("state/state.json"), "{ garbled").unwrap();
    metadata.withdraw("c-1");
    metadata.refuse_results(false);
    let _daemon = Daemon::start(&guest);
    wait_for("a long poll", || metadata.asked().contains(&Asked::Poll(60)).then_some(()));
    fs::write(guest.path("state/state.json"), &good).unwrap();
    metadata.queue(queued("c-1", 1, set_password_auth("yes")));
    metadata.wait_for_result("c-1");
    let sent: Vec<String> = metadata.attempts().into_iter().map(|(_, text)| text).collect();
    assert!(sent.iter().all(|text| *text == sent[0]), "{sent:?}");
    wait_for("an empty outbox", || state(&guest)["undelivered"].is_null().then_some(()));
}
