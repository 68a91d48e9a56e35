//! A disk that fails (contract 7): `IO_ERROR` with the errno and the path, and the guest as it was.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;

use serde_json::{Value, json};
use support::strace::{self, Point};
use support::{Guest, Key, attach, available, detach, set_password_auth, with};

const TOOLS: [&str; 4] = ["sshd", "ssh", "ssh-keygen", "strace"];

/// Fails `call` once, each time it is made in the course of `command`, and looks whether anything stayed.
fn at_every(call: &str, error: &str, prepare: fn(&Key) -> Vec<Value>, command: fn(&Key) -> Value) {
    if !available(&TOOLS) {
        return;
    }
    let guest = |key: &mut Option<Key>| {
        let guest = Guest::new();
        let made = Key::new(&guest.folder, "me");
        fs::write(guest.key_file(), "# mine\n").unwrap();
        for command in prepare(&made) {
            let result = guest.apply(&command);
            assert_eq!(result["status"], "succeeded", "{result}");
        }
        *key = Some(made);
        guest
    };
    let errno = match error {
        "EIO" => "os error 5",
        "ENOSPC" => "os error 28",
        "EROFS" => "os error 30",
        other => panic!("{other}"),
    };
    let mut key = None;
    let scene = guest(&mut key);
    let points = strace::points(&scene, &command(key.as_ref().unwrap()), call);
    // The other writes are to the children and to the person.
    let points: Vec<&Point> =
        points.iter().filter(|point| call != "write" || point.words.contains("/.keypair-agent-")).collect();
    assert!(points.len() >= 3, "{points:#?}");
    for point in points {
        let scene = guest(&mut key);
        let key = key.as_ref().unwrap();
        let before = look(&scene, key);
        let at = format!("{error} of {}", point.words);
        let output = strace::apply(
            &scene,
            &with(command(key), "commandId", json!("c-1")),
            &point.inject(&format!("error={error}")),
        );
        let result: Value = serde_json::from_slice(&output.stdout).expect(&at);
        assert_eq!(
            (&result["code"], &result["reason"]),
            (&json!("INTERNAL"), &json!("IO_ERROR")),
            "{at}: {result}"
        );
        assert_eq!((output.status.code(), &result["changed"]), (Some(1), &json!(false)), "{at}");
        let message = result["message"].as_str().unwrap();
        assert!(message.contains(errno), "{at}: {message}");
        assert!(message.contains(scene.folder.path().to_str().unwrap()), "{at}: {message}");
        assert_eq!(look(&scene, key), before, "{at}");
        let report: Value = serde_json::from_slice(&scene.agent(&["status", "--json"]).stdout).unwrap();
        assert_eq!(
            report["problems"].as_array().unwrap().len(),
            1,
            "not running, and nothing else: {at}: {report}"
        );
        // The disk is well again: another command does it.
        let result = scene.apply(&with(command(key), "commandId", json!("c-2")));
        assert_eq!(
            (&result["status"], &result["changed"]),
            (&json!("succeeded"), &json!(true)),
            "{at}: {result}"
        );
    }
}

/// The guest's files, what sshd does, and what the state says.
fn look(guest: &Guest, key: &Key) -> Value {
    let state = fs::read(guest.path("state/state.json")).unwrap_or_else(|_| b"{}".to_vec());
    let state: Value = serde_json::from_slice(&state).unwrap();
    let files: Vec<Value> = guest
        .snapshot()
        .into_iter()
        .map(|(path, content, mode, owner)| json!([path, content, mode, owner]))
        .collect();
    json!({
        "files": files, "offers": guest.sshd.offers(), "letsIn": guest.sshd.lets_in(key),
        "binding": state["binding"], "passWordAuth": state["passWordAuth"], "intent": state["intent"],
        "undelivered": state["undelivered"],
    })
}

#[test]
fn an_attach_that_cannot_be_synced() {
    at_every("fsync", "EIO", |_| vec![], |key| attach("my-test", key, "no"));
}

#[test]
fn a_detach_that_cannot_be_synced() {
    at_every("fsync", "EIO", |key| vec![attach("my-test", key, "no")], |_| detach("my-test"));
}

#[test]
fn an_attach_on_a_full_disk() {
    at_every("write", "ENOSPC", |_| vec![], |key| attach("my-test", key, "no"));
}

#[test]
fn a_setting_on_a_full_disk() {
    at_every("write", "ENOSPC", |key| vec![attach("my-test", key, "yes")], |_| set_password_auth("no"));
}

#[test]
fn a_rename_that_is_refused() {
    at_every(
        "renameat,renameat2",
        "EROFS",
        |key| vec![attach("my-test", key, "yes")],
        |key| attach("my-test", key, "no"),
    );
}
