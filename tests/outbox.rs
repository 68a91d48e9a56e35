//! Results reach the control plane once, whatever dies meanwhile (contract 3 and 7).

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs;

use serde_json::{Value, json};
use support::daemon::{Daemon, queued};
use support::metadata::{Asked, Metadata};
use support::{Form, Guest, Key, attach, available, detach, set_password_auth, wait_for, with};

const TOOLS: [&str; 3] = ["sshd", "ssh", "ssh-keygen"];

#[test]
fn a_result_outlives_the_agent_and_the_outage() {
    if !available(&TOOLS) {
        return;
    }
    let metadata = Metadata::start();
    let guest = Guest::of(Form { metadata: Some(&metadata), ..Form::default() });
    let key = Key::new(&guest.folder, "k");
    metadata.refuse_results(true);
    metadata.queue(queued("c-1", 1, attach("my-test", &key, "no")));
    metadata.queue(queued("c-2", 2, set_password_auth("yes")));
    let daemon = Daemon::start(&guest);
    wait_for("two tries", || (metadata.attempts().len() >= 2).then_some(()));
    assert!(guest.sshd.lets_in(&key));
    let status: Value = serde_json::from_slice(&guest.agent(&["status", "--json"]).stdout).unwrap();
    assert_eq!(status["undelivered"], "c-1");
    daemon.kill();
    let tries = metadata.attempts().len();
    let _daemon = Daemon::start(&guest);
    wait_for("a try after the restart", || (metadata.attempts().len() > tries).then_some(()));
    assert!(metadata.results().is_empty());
    metadata.refuse_results(false);
    metadata.wait_for_result("c-2");
    let results = metadata.results();
    let ids: Vec<&str> = results.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(ids, ["c-1", "c-2"]);
    let of_first: Vec<String> =
        metadata.attempts().into_iter().filter(|(id, _)| id == "c-1").map(|(_, text)| text).collect();
    assert!(of_first.iter().all(|text| *text == results[0].1), "byte for byte");
    // The second command was not asked for before the first result was taken.
    let asked = metadata.asked();
    let last_of_first = asked.iter().rposition(|one| *one == Asked::Result("c-1".into())).unwrap();
    let first_try = asked.iter().position(|one| *one == Asked::Result("c-1".into())).unwrap();
    assert!(!asked[first_try..last_of_first].iter().any(|one| matches!(one, Asked::Poll(_))), "{asked:?}");
}

#[test]
fn final_answers_are_final() {
    if !available(&TOOLS) {
        return;
    }
    let metadata = Metadata::start();
    let guest = Guest::of(Form { metadata: Some(&metadata), ..Form::default() });
    let _daemon = Daemon::start(&guest);
    for (sequence, status) in [(1, 404), (2, 409), (3, 400)] {
        metadata.answer_results(Some(status));
        let id = format!("c-{status}");
        metadata.queue(queued(&id, sequence, set_password_auth("yes")));
        wait_for("the result", || metadata.attempts().iter().any(|(tried, _)| *tried == id).then_some(()));
        metadata.withdraw(&id);
    }
    metadata.answer_results(None);
    metadata.queue(queued("good", 4, set_password_auth("yes")));
    metadata.wait_for_result("good");
    let tried = |id: &str| metadata.attempts().iter().filter(|(tried, _)| tried == id).count();
    assert!(tried("c-400") >= 1 && tried("good") == 1);
}

#[test]
fn the_console_and_the_daemon_see_each_other() {
    if !available(&TOOLS) {
        return;
    }
    let metadata = Metadata::start();
    let guest = Guest::of(Form { metadata: Some(&metadata), ..Form::default() });
    let (key, other) = (Key::new(&guest.folder, "k"), Key::new(&guest.folder, "l"));
    let _daemon = Daemon::start(&guest);
    metadata.queue(queued("c-1", 1, attach("my-test", &key, "no")));
    metadata.wait_for_result("c-1");
    assert_eq!(guest.apply(&detach("my-test"))["changed"], true);
    metadata.queue(queued("c-2", 2, attach("other", &other, "no")));
    assert_eq!(metadata.wait_for_result("c-2")["status"], "succeeded", "nothing was bound any more");

    // A result of the console's is sent when the service hands the same command out.
    let command = with(set_password_auth("yes"), "commandId", json!("shared"));
    let said = guest.agent_with_input(&["apply", "-"], &command.to_string());
    metadata.queue(queued("shared", 3, set_password_auth("yes")));
    metadata.wait_for_result("shared");
    let results = metadata.results();
    let (_, stored) = results.iter().find(|(id, _)| id == "shared").unwrap();
    assert_eq!(*stored, String::from_utf8(said.stdout).unwrap().trim_end());

    fs::write(guest.path("state/state.json"), "{ garbled").unwrap();
    metadata.queue(queued("c-4", 4, set_password_auth("no")));
    assert_eq!(metadata.wait_for_result("c-4")["reason"], "IO_ERROR");
    assert_eq!(guest.agent(&["undo"]).status.code(), Some(0));
    assert!(!guest.sshd.lets_in(&other) && guest.sshd.offers_password());
    metadata.queue(queued("c-5", 5, attach("my-test", &key, "no")));
    assert_eq!(metadata.wait_for_result("c-5")["status"], "succeeded");
    assert!(guest.sshd.lets_in(&key));
}

#[test]
fn a_clone_starts_anew_with_an_inherited_key() {
    if !available(&TOOLS) {
        return;
    }
    let metadata = Metadata::start();
    let guest = Guest::of(Form { metadata: Some(&metadata), ..Form::default() });
    let (key, other) = (Key::new(&guest.folder, "k"), Key::new(&guest.folder, "l"));
    let daemon = Daemon::start(&guest);
    metadata.queue(queued("c-1", 900, attach("my-test", &key, "no")));
    metadata.wait_for_result("c-1");
    assert!(daemon.terminate().success());
    metadata.instance("i-clone");
    let _daemon = Daemon::start(&guest);
    let first = with(queued("c-2", 1, attach("other", &other, "no")), "instanceId", json!("i-clone"));
    metadata.queue(first);
    let result = metadata.wait_for_result("c-2");
    assert_eq!(result["status"], "succeeded", "{result}");
    assert_eq!(result["warnings"][0]["reason"], "INHERITED_KEY_REPLACED");
    assert!(guest.sshd.lets_in(&other) && !guest.sshd.lets_in(&key));
}
