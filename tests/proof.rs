//! The running sshd is asked (KP-10.13 to KP-10.15): what it says is in the result, and a contradiction takes all back.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use serde_json::json;
use support::{Form, Guest, Key, attach, available, detach, set_password_auth};

const TOOLS: [&str; 3] = ["sshd", "ssh", "ssh-keygen"];

/// A guest whose sshd was started with `option`, while the agent's `sshd -T` is told by `lie` (sed) otherwise, and a private
/// sshd runs without it: the program was replaced since.
fn deceived(option: &str, lie: &str) -> Guest {
    let guest = Guest::of(Form { arguments: &["-o", option], copied_binary: true, ..Form::default() });
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
fn what_the_running_sshd_says() {
    if !available(&TOOLS) {
        return;
    }
    let guest = Guest::new();
    let key = Key::new(&guest.folder, "k");
    let address = format!("127.0.0.1:{}", guest.sshd.port);
    let proof = |key: &str, methods: &[&str], why: Option<&str>| json!({ "key": key, "methods": methods, "address": address, "notTaken": why });
    let no_key = Some("the command has no key to ask about");
    for (command, expected) in [
        (attach("k", &key, "no"), proof("accepted", &["publickey"], None)),
        (attach("k", &key, "no"), json!(null)),
        (
            set_password_auth("yes"),
            proof("notTaken", &guest.sshd.offers().iter().map(String::as_str).collect::<Vec<_>>(), no_key),
        ),
        (detach("k"), json!(null)),
    ] {
        let result = guest.apply(&command);
        assert_eq!(result["proof"], expected, "{command} {result}");
    }
}

/// KP-10.15.
#[test]
fn nobody_is_asked_where_nobody_shall_be() {
    if !available(&TOOLS) {
        return;
    }
    let guest = Guest::of(Form { agent: "proof = false", ..Form::default() });
    let key = Key::new(&guest.folder, "k");
    let result = guest.apply(&attach("k", &key, "no"));
    assert_eq!((&result["status"], &result["proof"]), (&json!("succeeded"), &json!(null)), "{result}");
}

/// KP-4.9, KP-10.14.
#[test]
fn a_contradiction_takes_everything_back() {
    if !available(&TOOLS) {
        return;
    }
    for (option, lie, key_proof, methods) in [
        // The key is not read by the sshd that runs.
        (
            "AuthorizedKeysFile=/nonexistent",
            "s#^authorizedkeysfile .*#authorizedkeysfile KEYS#",
            "refused",
            Some(false),
        ),
        // It goes on offering passwords.
        (
            "PasswordAuthentication=yes",
            "s/^passwordauthentication yes/passwordauthentication no/",
            "accepted",
            Some(true),
        ),
        // It takes no keys at all.
        (
            "PubkeyAuthentication=no",
            "s/^pubkeyauthentication no/pubkeyauthentication yes/",
            "refused",
            Some(false),
        ),
    ] {
        let guest = deceived(option, lie);
        let key = Key::new(&guest.folder, "k");
        let (before, offered) = (guest.snapshot(), guest.sshd.offers());
        let result = guest.apply(&attach("k", &key, "no"));
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
        assert_eq!(guest.sshd.offers(), offered, "{option}");
    }
}
