//! The agent queries the running sshd (KP-10.13 to KP-10.15). The result contains the answers, and a contradiction
//! undoes the command.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use serde_json::json;
use support::{
    GuestOptions, TestGuest, TestKey, attach_command, detach_command, has_tools, set_password_auth_command,
};

const TOOLS: [&str; 3] = ["sshd", "ssh", "ssh-keygen"];

/// A guest whose sshd was started with `option`. The sed script `lie` hides this from the agent's `sshd -T`, and a
/// private sshd runs without the option, as if the program was replaced since.
fn create_guest_with_lying_sshd(option: &str, lie: &str) -> TestGuest {
    let guest = TestGuest::with_options(GuestOptions {
        arguments: &["-o", option],
        copied_binary: true,
        ..GuestOptions::default()
    });
    let lie = lie.replace("KEYS", &format!("{}/%u", guest.path("keys").display()));
    guest.replace_copied_binary(&format!(
        "#!/bin/sh\nset -e\n\
         case $1 in -i) for word do shift; case $word in '{option}') word=Compression=no ;; '-o{option}') word=-oCompression=no ;; esac; \
         set -- \"$@\" \"$word\"; done ;; esac\n\
         case $1 in -[tT]) ;; *) exec /usr/sbin/sshd \"$@\" ;; esac\n\
         said=$(/usr/sbin/sshd \"$@\")\nprintf '%s\\n' \"$said\" | sed '{lie}'\n"
    ));
    guest
}

/// KP-6.22, KP-10.13, KP-10.15.
#[test]
fn live_probe_is_reported_in_result() {
    if !has_tools(&TOOLS) {
        return;
    }
    let guest = TestGuest::new();
    let key = TestKey::new(&guest.folder, "k");
    let address = format!("127.0.0.1:{}", guest.sshd.port);
    let proof = |key: &str, methods: &[&str], why: Option<&str>| json!({ "key": key, "methods": methods, "address": address, "notTaken": why });
    let no_key = Some("the command has no key to ask about");
    for (command, expected) in [
        (attach_command("k", &key, "no"), proof("accepted", &["publickey"], None)),
        (attach_command("k", &key, "no"), json!(null)),
        (
            set_password_auth_command("yes"),
            proof(
                "notTaken",
                &guest.sshd.offered_methods().iter().map(String::as_str).collect::<Vec<_>>(),
                no_key,
            ),
        ),
        (detach_command("k"), json!(null)),
    ] {
        let result = guest.apply(&command);
        assert_eq!(result["proof"], expected, "{command} {result}");
    }
}

/// KP-10.15.
#[test]
fn live_probe_disabled_by_config_is_skipped() {
    if !has_tools(&TOOLS) {
        return;
    }
    let guest = TestGuest::with_options(GuestOptions { agent: "proof = false", ..GuestOptions::default() });
    let key = TestKey::new(&guest.folder, "k");
    let result = guest.apply(&attach_command("k", &key, "no"));
    assert_eq!((&result["status"], &result["proof"]), (&json!("succeeded"), &json!(null)), "{result}");
}

/// KP-4.9, KP-10.14.
#[test]
fn live_probe_contradiction_rolls_back() {
    if !has_tools(&TOOLS) {
        return;
    }
    for (option, lie, key_proof, methods) in [
        // The running sshd does not read the key.
        (
            "AuthorizedKeysFile=/nonexistent",
            "s#^authorizedkeysfile .*#authorizedkeysfile KEYS#",
            "refused",
            Some(false),
        ),
        // The running sshd still offers passwords.
        (
            "PasswordAuthentication=yes",
            "s/^passwordauthentication yes/passwordauthentication no/",
            "accepted",
            Some(true),
        ),
        // The running sshd accepts no keys at all.
        (
            "PubkeyAuthentication=no",
            "s/^pubkeyauthentication no/pubkeyauthentication yes/",
            "refused",
            Some(false),
        ),
    ] {
        let guest = create_guest_with_lying_sshd(option, lie);
        let key = TestKey::new(&guest.folder, "k");
        let (before, offered) = (guest.snapshot(), guest.sshd.offered_methods());
        let result = guest.apply(&attach_command("k", &key, "no"));
        assert_eq!(
            (&result["code"], &result["reason"]),
            (&json!("INTERNAL"), &json!("PROOF_CONTRADICTED")),
            "{option} {result}"
        );
        assert_eq!(result["proof"]["key"], key_proof, "{option} {result}");
        let password =
            result["proof"]["methods"].as_array().map(|methods| methods.contains(&json!("password")));
        assert_eq!(password, methods, "{option} {result}");
        assert_eq!(
            (&result["changed"], guest.snapshot() == before),
            (&json!(false), true),
            "{option} {result}"
        );
        assert_eq!(guest.sshd.offered_methods(), offered, "{option}");
    }
}
