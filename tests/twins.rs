//! `run` and `apply` are one path: twin guests, the same commands, the same results.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use serde_json::{Value, json};
use support::daemon::{Daemon, queued};
use support::metadata::Metadata;
use support::{Form, Guest, Key, attach, available, detach, set_password_auth, with};

/// A result without what differs between twins: times, and the folder each lives in.
fn alike(result: &Value, guest: &Guest) -> Value {
    let folder = guest.folder.path().display().to_string();
    let mut result: Value = serde_json::from_str(&result.to_string().replace(&folder, "FOLDER")).unwrap();
    for field in ["finishedAt", "durationMs"] {
        assert!(!result[field].is_null());
        result[field] = Value::Null;
    }
    let port = guest.sshd.port.to_string();
    for field in ["message", "proof"] {
        result[field] = json!(result[field].to_string().replace(&port, "PORT"));
    }
    // The other twin's sshd, and those of other tests, run beside it.
    result["warnings"].as_array_mut().unwrap().retain(|warning| warning["reason"] != "SECOND_SSHD");
    result
}

/// KP-3.22, KP-8.1.
#[test]
fn twins_answer_alike() {
    if !available(&["sshd", "ssh", "ssh-keygen"]) {
        return;
    }
    let metadata = Metadata::start();
    let by_channel = Guest::of(Form { metadata: Some(&metadata), ..Form::default() });
    let by_hand = Guest::of(Form { agent: "instance_id = \"i-test\"", ..Form::default() });
    let (key, other) = (Key::new(&by_hand.folder, "k"), Key::new(&by_hand.folder, "l"));
    let weak = Key::of_type(&by_hand.folder, "weak", &["-t", "rsa", "-b", "1024"]);
    let commands = [
        set_password_auth("no"),
        attach("my-test", &key, "no"),
        attach("my-test", &key, "yes"),
        attach("other", &other, "no"),
        with(attach("other", &other, "no"), "replace", json!(true)),
        with(attach("other", &other, "no"), "instanceId", json!("i-elsewhere")),
        with(attach("other", &other, "no"), "expiresAt", json!("2026-01-01T00:00:00Z")),
        attach("other", &weak, "no"),
        with(attach("other", &other, "no"), "keyName", json!("a b")),
        set_password_auth("maybe"),
        detach("my-test"),
        detach("other"),
        detach("other"),
    ];
    let _daemon = Daemon::start(&by_channel);
    for (sequence, command) in (1..).zip(commands) {
        let id = format!("c-{sequence}");
        let named = command.get("instanceId").cloned();
        let mut command = queued(&id, sequence, command);
        if let Some(named) = named {
            command["instanceId"] = named;
        }
        metadata.queue(command.clone());
        let sent = metadata.wait_for_result(&id);
        let printed = by_hand.apply(&command);
        assert_eq!(alike(&sent, &by_channel), alike(&printed, &by_hand), "{command}");
        assert_eq!(by_channel.sshd.offers(), by_hand.sshd.offers());
    }
}
