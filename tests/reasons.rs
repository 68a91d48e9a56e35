//! Every reason of KP-3.32, with the built binary. Each refusal leaves the guest unchanged.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use support::{
    GuestOptions, TestGuest, TestKey, attach_command, detach_command, has_tools, set_password_auth_command,
    warning_reasons, with_field,
};

const TOOLS: [&str; 3] = ["sshd", "ssh", "ssh-keygen"];

/// Applies a command that must be refused for `reason` and must change nothing.
fn assert_refused(guest: &TestGuest, command: &Value, reason: &str) -> Value {
    let offers = guest.sshd.offered_methods();
    let result = assert_refused_without_sshd(guest, command, reason);
    assert_eq!(guest.sshd.offered_methods(), offers, "{reason}");
    result
}

/// The same if no sshd runs.
fn assert_refused_without_sshd(guest: &TestGuest, command: &Value, reason: &str) -> Value {
    let before = guest.snapshot();
    let result = guest.apply(command);
    assert_eq!(
        (&result["status"], &result["reason"]),
        (&json!("failed"), &json!(reason)),
        "{command} {result}"
    );
    assert_eq!(result["changed"], false);
    assert_eq!(guest.snapshot(), before, "{reason}");
    result
}

/// KP-1.1, KP-3.20, KP-3.23, KP-3.25, KP-3.29, KP-3.32.
#[test]
fn malformed_commands_are_refused() {
    if !has_tools(&TOOLS) {
        return;
    }
    let guest = TestGuest::new();
    let key = TestKey::new(&guest.folder, "k");
    let weak = TestKey::of_type(&guest.folder, "weak", &["-t", "rsa", "-b", "1024"]);
    let good = attach_command("my-test", &key, "no");
    let before = guest.snapshot();
    for (command, reason) in [
        (with_field(good.clone(), "action", json!("reboot")), "MALFORMED_COMMAND"),
        (with_field(good.clone(), "action", Value::Null), "MALFORMED_COMMAND"),
        (with_field(good.clone(), "sequence", json!(0)), "MALFORMED_COMMAND"),
        (with_field(good.clone(), "sequence", json!("7")), "MALFORMED_COMMAND"),
        (with_field(good.clone(), "expiresAt", json!("soon")), "MALFORMED_COMMAND"),
        (with_field(good.clone(), "replace", json!("yes")), "MALFORMED_COMMAND"),
        (with_field(good.clone(), "keyName", json!(7)), "MALFORMED_COMMAND"),
        (with_field(good.clone(), "keyName", json!("a b")), "INVALID_KEY_NAME"),
        (with_field(good.clone(), "keyName", Value::Null), "INVALID_KEY_NAME"),
        (with_field(good.clone(), "publicKey", Value::Null), "INVALID_PUBLIC_KEY"),
        (with_field(good.clone(), "publicKey", json!(format!("no-pty {}", key.line))), "INVALID_PUBLIC_KEY"),
        (with_field(good.clone(), "publicKey", json!(format!("{0}\n{0}", key.line))), "INVALID_PUBLIC_KEY"),
        (with_field(good.clone(), "publicKey", json!(weak.line)), "WEAK_PUBLIC_KEY"),
        (with_field(good.clone(), "passWordAuth", json!("maybe")), "INVALID_PASSWORD_AUTH"),
        (with_field(good.clone(), "passWordAuth", Value::Null), "INVALID_PASSWORD_AUTH"),
        (with_field(good.clone(), "passwordAuth", json!("yes")), "INVALID_PASSWORD_AUTH"),
        (
            with_field(with_field(good.clone(), "keyName", json!("")), "publicKey", json!("")),
            "INVALID_KEY_NAME",
        ),
        (with_field(good.clone(), "expiresAt", json!("2026-01-01T00:00:00Z")), "EXPIRED"),
    ] {
        let result = guest.apply(&command);
        assert_eq!(result["reason"], reason, "{command} {result}");
    }
    let broken = guest.run_agent_with_input(&["apply", "-"], "{ \"action\": \"attach\"");
    assert_eq!(broken.status.code(), Some(1));
    let result: Value = serde_json::from_slice(&broken.stdout).unwrap();
    assert_eq!(
        (&result["code"], &result["reason"]),
        (&json!("INVALID_ARGUMENT"), &json!("MALFORMED_COMMAND"))
    );
    let twice = good.to_string().replacen('{', "{\"keyName\":\"x\",", 1);
    let output = guest.run_agent_with_input(&["apply", "-"], &twice);
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["reason"], "MALFORMED_COMMAND", "a repeated key");
    assert_eq!(guest.snapshot(), before);
}

/// KP-2.4, KP-3.27, KP-4.7.
#[test]
fn old_component_and_stale_sequence_are_refused() {
    if !has_tools(&TOOLS) {
        return;
    }
    let guest = TestGuest::new();
    let key = TestKey::new(&guest.folder, "k");
    let good = attach_command("my-test", &key, "no");
    guest.write_component_info("{\"version\": \"3.0.1041.ffffff\"}");
    let result = assert_refused(&guest, &good, "COMPONENT_TOO_OLD");
    assert_eq!(result["componentVersion"], "3.0.1041.ffffff");
    for unreadable in ["", "version = new\n", "\u{0}"] {
        guest.write_component_info(unreadable);
        assert_refused(&guest, &good, "COMPONENT_VERSION_UNREADABLE");
    }
    fs::remove_file(guest.path("componentInfo.cfg")).unwrap();
    assert_refused(&guest, &good, "COMPONENT_VERSION_UNREADABLE");
    guest.write_component_info("\u{feff}[agent]\r\nVersion: \"3.0.1042.d89c570\"\r\n");
    let seven = with_field(with_field(good.clone(), "sequence", json!(7)), "commandId", json!("seven"));
    let said = || guest.run_agent_with_input(&["apply", "-"], &seven.to_string()).stdout;
    let first = said();
    assert!(String::from_utf8_lossy(&first).contains("\"succeeded\""));
    assert_refused(
        &guest,
        &with_field(with_field(good, "sequence", json!(7)), "commandId", json!("other")),
        "STALE_COMMAND",
    );
    assert_eq!(said(), first, "byte for byte");
}

/// KP-3.28, KP-4.2, KP-4.3, KP-4.4, KP-4.8.
#[test]
fn binding_conflicts_are_refused() {
    if !has_tools(&TOOLS) {
        return;
    }
    let guest = TestGuest::with_options(GuestOptions {
        agent: "instance_id = \"i-eumm0000d6\"",
        ..GuestOptions::default()
    });
    let (key, other) = (TestKey::new(&guest.folder, "k"), TestKey::new(&guest.folder, "l"));
    let unbound = guest.apply(&detach_command("my-test"));
    assert_eq!((&unbound["status"], &unbound["changed"]), (&json!("succeeded"), &json!(false)));
    assert_refused(
        &guest,
        &with_field(attach_command("my-test", &key, "no"), "instanceId", json!("i-other")),
        "WRONG_INSTANCE",
    );
    let result =
        guest.apply(&with_field(attach_command("my-test", &key, "yes"), "instanceId", json!("i-eumm0000d6")));
    assert_eq!(
        (&result["status"], &result["instanceId"]),
        (&json!("succeeded"), &json!("i-eumm0000d6")),
        "{result}"
    );
    assert!(
        guest.sshd.offers_password() && guest.drop_in().exists(),
        "yes was in effect, and is ours besides: who writes later loses"
    );
    let result = assert_refused(&guest, &attach_command("my-test", &other, "yes"), "ALREADY_ATTACHED");
    assert_eq!(result["message"], "Already attached key pair. instance id i-eumm0000d6");
    assert_refused(&guest, &attach_command("another", &key, "yes"), "ALREADY_ATTACHED");
    assert_refused(&guest, &detach_command("another"), "NOT_ATTACHED");

    let replaced = guest.apply(&with_field(attach_command("another", &other, "no"), "replace", json!(true)));
    assert_eq!(
        (&replaced["status"], &replaced["changed"]),
        (&json!("succeeded"), &json!(true)),
        "{replaced}"
    );
    assert!(guest.sshd.accepts_key(&other) && !guest.sshd.accepts_key(&key));
    assert_eq!(fs::read_to_string(guest.key_file()).unwrap().matches("BEGIN keypair-agent").count(), 1);

    // The state is lost, but the block is there: its key pair counts as bound and inherited.
    fs::write(guest.path("state/state.json"), "{ garbled").unwrap();
    assert_refused(&guest, &attach_command("my-test", &key, "no"), "IO_ERROR");
    fs::remove_file(guest.path("state/state.json")).unwrap();
    assert_refused(&guest, &detach_command("my-test"), "NOT_ATTACHED");
    let inherited = guest.apply(&attach_command("my-test", &key, "no"));
    assert_eq!(inherited["warnings"][0]["reason"], "INHERITED_KEY_REPLACED", "{inherited}");
    assert!(guest.sshd.accepts_key(&key) && !guest.sshd.accepts_key(&other));
}

/// KP-4.12, KP-6.19, KP-10.6, KP-10.7.
#[test]
fn lockout_guard_refuses_unusable_key() {
    if !has_tools(&TOOLS) {
        return;
    }
    for (main, rule) in [
        ("AuthenticationMethods publickey,publickey\n", "AuthenticationMethods"),
        ("PubkeyAuthentication no\n", "PubkeyAuthentication"),
        ("DenyUsers root\n", "DenyUsers"),
        ("AllowUsers somebody\n", "AllowUsers"),
        ("AllowGroups nogroup\n", "AllowGroups"),
        ("Match User root\n PermitRootLogin no\n", "PermitRootLogin"),
        ("Match User root\n PermitRootLogin forced-commands-only\n", "PermitRootLogin"),
    ] {
        let guest = TestGuest::with_options(GuestOptions { main, ..GuestOptions::default() });
        let key = TestKey::new(&guest.folder, "k");
        let result = assert_refused(&guest, &attach_command("my-test", &key, "no"), "LOCKOUT_GUARD");
        let message = result["message"].as_str().unwrap();
        assert!(message.contains(rule) && message.contains("sshd_config"), "{message}");
        assert!(!guest.key_file().exists());
        let allowed = guest.apply(&attach_command("my-test", &key, "yes"));
        if allowed["status"] == "succeeded" {
            assert!(warning_reasons(&allowed).contains(&"KEY_NOT_USABLE"), "{allowed}");
        } else {
            // These methods need more than a password, so "yes" cannot be reached either.
            assert_eq!(
                (rule, &allowed["reason"]),
                ("AuthenticationMethods", &json!("PASSWORD_AUTH_NOT_EFFECTIVE"))
            );
        }
    }
    let guest = TestGuest::new();
    assert_refused(&guest, &set_password_auth_command("no"), "LOCKOUT_GUARD");
    let key = TestKey::new(&guest.folder, "k");
    fs::write(guest.key_file(), format!("command=\"x\" {}\n", key.line)).unwrap();
    assert_refused(&guest, &set_password_auth_command("no"), "LOCKOUT_GUARD");
    fs::write(guest.key_file(), format!("{}\n", key.line)).unwrap();
    assert_eq!(guest.apply(&set_password_auth_command("no"))["status"], "succeeded");
    assert!(!guest.sshd.offers_password() && guest.sshd.accepts_key(&key));
}

/// KP-5.12.
#[test]
fn unsafe_key_file_modes_are_refused() {
    use std::os::unix::fs::PermissionsExt;
    if !has_tools(&TOOLS) {
        return;
    }
    let guest = TestGuest::new();
    let key = TestKey::new(&guest.folder, "k");
    let mode =
        |path: &str, mode| fs::set_permissions(guest.path(path), fs::Permissions::from_mode(mode)).unwrap();
    fs::write(guest.key_file(), "# mine\n").unwrap();
    mode("keys/root", 0o666);
    assert_refused(&guest, &attach_command("my-test", &key, "no"), "LOCKOUT_GUARD");
    fs::remove_file(guest.key_file()).unwrap();
    mode("keys", 0o777);
    assert_refused(&guest, &attach_command("my-test", &key, "yes"), "UNSAFE_PATH");
    mode("keys", 0o755);
    std::os::unix::fs::symlink("/etc/motd", guest.key_file()).unwrap();
    assert_refused(&guest, &attach_command("my-test", &key, "yes"), "UNSAFE_PATH");
    fs::remove_file(guest.key_file()).unwrap();
    fs::write(guest.key_file(), "").unwrap();
    fs::hard_link(guest.key_file(), guest.path("keys/other")).unwrap();
    assert_refused(&guest, &attach_command("my-test", &key, "yes"), "UNSAFE_PATH");
}

/// KP-5.1, KP-6.3, KP-6.10, KP-6.24.
#[test]
fn invalid_or_missing_sshd_is_refused() {
    if !has_tools(&TOOLS) {
        return;
    }
    let mut guest = TestGuest::new();
    let key = TestKey::new(&guest.folder, "k");
    let good = attach_command("my-test", &key, "no");
    let main = guest.path("sshd_config");
    let stock = fs::read_to_string(&main).unwrap();
    let set = |text: String| fs::write(&main, text).unwrap();

    set(stock.replace("PidFile", "Nonsense"));
    let result = assert_refused(&guest, &good, "SSHD_CONFIG_ALREADY_INVALID");
    assert!(result["message"].as_str().unwrap().contains("line 5"), "{result}");
    set(format!("{stock}AuthenticationMethods publickey,password\n"));
    assert_refused(&guest, &good, "SSHD_CONFIG_REJECTED");
    set(stock.replace(
        &format!("AuthorizedKeysFile {}/keys/%u", guest.folder.path().display()),
        "AuthorizedKeysFile /etc/ssh/all",
    ));
    assert_refused(&guest, &good, "AUTHORIZED_KEYS_UNSUPPORTED");
    set(stock.replace("ListenAddress 127.0.0.1", "ListenAddress 203.0.113.9"));
    assert_refused(&guest, &good, "SSHD_RELOAD_UNSAFE");
    set(stock.replace(&format!("Port {}", guest.sshd.port), &format!("Port {}", support::sshd::free_port())));
    assert_refused(&guest, &good, "SSHD_RELOAD_UNSAFE");
    set(stock);

    let config = fs::read_to_string(&guest.config).unwrap();
    // If no sshd runs, the agent queries the configured program.
    let nobody =
        config.replace("[sshd]", "[sshd]\nbinary = \"/nonexistent/sshd\"").replace("sshd.pid", "no.pid");
    fs::write(&guest.config, nobody).unwrap();
    guest.sshd.stop_and_remove_pid_file();
    assert_refused_without_sshd(&guest, &good, "SSHD_NOT_FOUND");
    guest.sshd.start_listener_again();
    fs::write(&guest.config, config.replace("sshd_config\"", "other_config\"")).unwrap();
    assert_refused(&guest, &good, "SSHD_NOT_FOUND");
    fs::write(guest.path("other_config"), "Port 22\n").unwrap();
    assert_refused(&guest, &good, "SSHD_NOT_FOUND");
    fs::remove_file(guest.path("other_config")).unwrap();
    fs::write(&guest.config, format!("target_user = \"nobody-here\"\n{config}")).unwrap();
    assert_refused(&guest, &good, "USER_NOT_FOUND");
    fs::write(&guest.config, config).unwrap();
    assert_eq!(guest.apply(&good)["status"], "succeeded");
}

/// KP-6.7.
#[test]
fn overriding_setting_is_named_in_message() {
    if !has_tools(&TOOLS) {
        return;
    }
    let mut guest = TestGuest::with_options(GuestOptions {
        arguments: &["-o", "PasswordAuthentication=yes"],
        ..GuestOptions::default()
    });
    let key = TestKey::new(&guest.folder, "k");
    let result =
        assert_refused(&guest, &attach_command("my-test", &key, "no"), "PASSWORD_AUTH_NOT_EFFECTIVE");
    assert!(result["message"].as_str().unwrap().contains("PasswordAuthentication=yes"), "{result}");
    assert!(guest.sshd.is_alive());

    let guest = TestGuest::with_options(GuestOptions {
        main: "Match User root\n  PasswordAuthentication yes\n",
        ..GuestOptions::default()
    });
    let result =
        assert_refused(&guest, &attach_command("my-test", &key, "no"), "PASSWORD_AUTH_NOT_EFFECTIVE");
    let message = result["message"].as_str().unwrap();
    assert!(message.contains("sshd_config line 10"), "{message}");
}

/// KP-4.9, KP-6.25.
#[test]
fn reload_killing_listener_is_rolled_back() {
    if !has_tools(&TOOLS) {
        return;
    }
    let guest = TestGuest::with_options(GuestOptions { copied_binary: true, ..GuestOptions::default() });
    let key = TestKey::new(&guest.folder, "k");
    guest.break_copied_binary();
    let result = assert_refused(&guest, &attach_command("my-test", &key, "no"), "SSHD_RELOAD_FAILED");
    assert_eq!(result["code"], "INTERNAL");
}

/// KP-4.11.
#[test]
fn unwritable_state_dir_is_io_error() {
    if !has_tools(&TOOLS) {
        return;
    }
    let guest = TestGuest::new();
    let key = TestKey::new(&guest.folder, "k");
    fs::write(guest.path("state"), "in the way").unwrap();
    assert_refused(&guest, &attach_command("my-test", &key, "no"), "IO_ERROR");
}

/// KP-7.9.
#[test]
fn immutable_key_file_is_io_error() {
    if !has_tools(&TOOLS) || !has_tools(&["chattr"]) {
        return;
    }
    let guest = TestGuest::new();
    let key = TestKey::new(&guest.folder, "k");
    fs::write(guest.key_file(), "# mine\n").unwrap();
    let flag = |flag: &str| {
        Command::new("chattr")
            .arg(flag)
            .arg(guest.key_file())
            .stderr(Stdio::null())
            .status()
            .unwrap()
            .success()
    };
    if !flag("+i") {
        eprintln!("SKIPPED: this file system has no immutable flag");
        return;
    }
    let result = assert_refused(&guest, &attach_command("my-test", &key, "no"), "IO_ERROR");
    assert!(result["message"].as_str().unwrap().contains("keys/root"), "{result}");
    assert!(flag("-i"));
}
