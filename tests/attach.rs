//! Attach and detach with the built binary, a real sshd and the real ssh client.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs;

use serde_json::json;
use support::{TestGuest, TestKey, attach_command, detach_command, has_tools};

const TOOLS: [&str; 3] = ["sshd", "ssh", "ssh-keygen"];

/// KP-1.2, KP-3.34, KP-3.35, KP-4.1, KP-4.4.
#[test]
fn attach_enables_key_login_and_disables_passwords() {
    if !has_tools(&TOOLS) {
        return;
    }
    let guest = TestGuest::new();
    let key = TestKey::new(&guest.folder, "me");
    let before = guest.snapshot();
    assert!(guest.sshd.offers_password() && !guest.sshd.accepts_key(&key));

    let result = guest.apply(&attach_command("my-test", &key, "no"));
    assert_eq!(result["status"], "succeeded", "{result}");
    assert_eq!(result["code"], "OK");
    assert_eq!(result["reason"], json!(null));
    assert_eq!(result["changed"], true);
    assert_eq!(result["keyName"], "my-test");
    assert_eq!(result["passWordAuth"], "no");
    assert_eq!(result["user"], "root");
    assert_eq!(result["authorizedKeysFile"], guest.key_file().to_str().unwrap());
    assert_eq!(result["fingerprint"]["sha256"], key.fingerprint("sha256"));
    assert_eq!(result["fingerprint"]["md5"], key.fingerprint("md5"));
    assert_eq!(
        result["effective"],
        json!({ "passwordAuthentication": false, "kbdInteractiveAuthentication": false, "pubkeyAuthentication": true })
    );
    assert!(!result.to_string().contains(key.line.split(' ').nth(1).unwrap()), "key text in the result");
    assert!(guest.sshd.accepts_key(&key));
    assert!(!guest.sshd.offers_password());

    let again = guest.apply(&attach_command("my-test", &key, "no"));
    assert_eq!((&again["status"], &again["changed"]), (&json!("succeeded"), &json!(false)), "{again}");

    let result = guest.apply(&detach_command("my-test"));
    assert_eq!(result["changed"], true, "{result}");
    assert_eq!(result["fingerprint"]["sha256"], key.fingerprint("sha256"));
    assert!(!guest.sshd.accepts_key(&key));
    assert!(!guest.sshd.offers_password(), "a detach leaves the setting");

    let undo = guest.run_agent(&["undo"]);
    assert_eq!(undo.status.code(), Some(0), "{undo:?}");
    assert!(guest.sshd.offers_password());
    let after: Vec<_> = guest.snapshot().into_iter().filter(|entry| entry.0 != guest.key_file()).collect();
    assert_eq!(after, before);
    assert_eq!(fs::read(guest.key_file()).unwrap(), b"");
}
