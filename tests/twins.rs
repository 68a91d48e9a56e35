//! `run` and `apply` share one code path: two equal guests get the same commands and must give the same results.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use serde_json::{Value, json};
use support::daemon::{Daemon, make_channel_command};
use support::metadata::MetadataService;
use support::{
    GuestOptions, TestGuest, TestKey, attach_command, detach_command, has_tools, set_password_auth_command,
    with_field,
};

/// A result without the parts that differ between the two guests: times, and the guest's folder.
fn normalize_result(result: &Value, guest: &TestGuest) -> Value {
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
    // The sshds of the other guest and of other tests run at the same time.
    result["warnings"].as_array_mut().unwrap().retain(|warning| warning["reason"] != "SECOND_SSHD");
    result
}

/// KP-3.22, KP-8.1.
#[test]
fn run_and_apply_results_match() {
    if !has_tools(&["sshd", "ssh", "ssh-keygen"]) {
        return;
    }
    let metadata = MetadataService::start();
    let by_channel =
        TestGuest::with_options(GuestOptions { metadata: Some(&metadata), ..GuestOptions::default() });
    let by_hand = TestGuest::with_options(GuestOptions {
        agent: "instance_id = \"i-test\"",
        ..GuestOptions::default()
    });
    let (key, other) = (TestKey::new(&by_hand.folder, "k"), TestKey::new(&by_hand.folder, "l"));
    let weak = TestKey::of_type(&by_hand.folder, "weak", &["-t", "rsa", "-b", "1024"]);
    let commands = [
        set_password_auth_command("no"),
        attach_command("my-test", &key, "no"),
        attach_command("my-test", &key, "yes"),
        attach_command("other", &other, "no"),
        with_field(attach_command("other", &other, "no"), "replace", json!(true)),
        with_field(attach_command("other", &other, "no"), "instanceId", json!("i-elsewhere")),
        with_field(attach_command("other", &other, "no"), "expiresAt", json!("2026-01-01T00:00:00Z")),
        attach_command("other", &weak, "no"),
        with_field(attach_command("other", &other, "no"), "keyName", json!("a b")),
        set_password_auth_command("maybe"),
        detach_command("my-test"),
        detach_command("other"),
        detach_command("other"),
    ];
    let _daemon = Daemon::start(&by_channel);
    for (sequence, command) in (1..).zip(commands) {
        let id = format!("c-{sequence}");
        let named = command.get("instanceId").cloned();
        let mut command = make_channel_command(&id, sequence, command);
        if let Some(named) = named {
            command["instanceId"] = named;
        }
        metadata.queue(command.clone());
        let sent = metadata.wait_for_result(&id);
        let printed = by_hand.apply(&command);
        assert_eq!(normalize_result(&sent, &by_channel), normalize_result(&printed, &by_hand), "{command}");
        assert_eq!(by_channel.sshd.offered_methods(), by_hand.sshd.offered_methods());
    }
}
