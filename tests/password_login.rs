//! The place and the text of the password setting, and its real effect on sshd.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;

use serde_json::json;
use support::{
    GuestOptions, TestGuest, TestKey, attach_command, has_tools, set_password_auth_command, warning_reasons,
};

const TOOLS: [&str; 3] = ["sshd", "ssh", "ssh-keygen"];

fn non_comment_lines(text: &str) -> Vec<&str> {
    text.lines().filter(|line| !line.starts_with('#')).collect()
}

/// KP-6.12.
#[test]
fn setting_goes_to_drop_in_or_top_of_main_file() {
    if !has_tools(&TOOLS) {
        return;
    }
    let places: [(&str, &str, bool); 4] = [
        ("50-cloud-init.conf", "PasswordAuthentication yes\n", true),
        ("+a.conf", "PasswordAuthentication yes\n", false),
        ("00-a.conf", "KbdInteractiveAuthentication yes\n", false),
        ("10-empty.conf", "# nothing\n", true),
    ];
    for (name, text, drop_in) in places {
        let guest = TestGuest::new();
        let key = TestKey::new(&guest.folder, "k");
        fs::write(guest.path("sshd_config.d").join(name), text).unwrap();
        let result = guest.apply(&attach_command("my-test", &key, "no"));
        assert_eq!(result["status"], "succeeded", "{name} {result}");
        assert!(!guest.sshd.offers_password(), "{name}");
        let main = fs::read_to_string(guest.path("sshd_config")).unwrap();
        assert_eq!(guest.drop_in().exists(), drop_in, "{name}");
        assert_eq!(main.starts_with("# BEGIN keypair-agent"), !drop_in, "{name}");
        assert_eq!(guest.run_agent(&["undo"]).status.code(), Some(0));
        assert!(guest.sshd.offers_password());
    }
}

/// KP-4.11, KP-6.11, KP-6.15, KP-8.1.
#[test]
fn password_auth_switches_between_no_and_yes() {
    if !has_tools(&TOOLS) {
        return;
    }
    let guest = TestGuest::new();
    let key = TestKey::new(&guest.folder, "k");
    guest.apply(&attach_command("my-test", &key, "no"));
    let text = fs::read_to_string(guest.drop_in()).unwrap();
    assert_eq!(non_comment_lines(&text), ["PasswordAuthentication no", "KbdInteractiveAuthentication no"]);
    assert!(text.contains("for command local-") && text.contains("to take it back: rm '"), "{text}");
    assert_eq!(fs::metadata(guest.drop_in()).unwrap().mode() & 0o7777, 0o644);

    let seen = |guest: &TestGuest| {
        let metadata = fs::metadata(guest.drop_in()).unwrap();
        (metadata.ino(), metadata.mtime_nsec())
    };
    let before = seen(&guest);
    let again = guest.apply(&set_password_auth_command("no"));
    assert_eq!((&again["status"], &again["changed"]), (&json!("succeeded"), &json!(false)), "{again}");
    assert_eq!(seen(&guest), before, "nothing to write, nothing written");

    let yes = guest.run_agent(&["password-auth", "yes"]);
    assert_eq!(yes.status.code(), Some(0), "{yes:?}");
    assert_eq!(
        non_comment_lines(&fs::read_to_string(guest.drop_in()).unwrap()),
        ["PasswordAuthentication yes"]
    );
    assert!(guest.sshd.offers_password());
    assert_eq!(guest.run_agent(&["password-auth", "no"]).status.code(), Some(0));
    assert!(!guest.sshd.offers_password());
}

/// The files have the requested setting, but the listener has not read them.
/// KP-6.22.
#[test]
fn listener_with_stale_configuration_is_reloaded() {
    if !has_tools(&TOOLS) {
        return;
    }
    let guest = TestGuest::new();
    let key = TestKey::new(&guest.folder, "k");
    guest.apply(&attach_command("my-test", &key, "no"));
    let ours = fs::read_to_string(guest.drop_in()).unwrap();
    fs::remove_file(guest.drop_in()).unwrap();
    let pid = nix::unistd::Pid::from_raw(guest.sshd.pid() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGHUP).unwrap();
    support::wait_for("passwords to be on", || guest.sshd.offers_password().then_some(()));
    fs::write(guest.drop_in(), ours).unwrap();
    for command in [attach_command("my-test", &key, "no"), set_password_auth_command("no")] {
        let result = guest.apply(&command);
        assert_eq!((&result["status"], &result["changed"]), (&json!("succeeded"), &json!(false)), "{result}");
        assert_eq!(guest.sshd.offered_methods(), ["publickey"], "{result}");
    }
    let again = guest.apply(&attach_command("my-test", &key, "no"));
    assert_eq!(again["proof"], json!(null), "now it has read them: {again}");
}

/// KP-6.11.
#[test]
fn kbd_interactive_leave_keeps_method_enabled() {
    if !has_tools(&TOOLS) {
        return;
    }
    let guest = TestGuest::with_options(GuestOptions {
        main: "Match all\n",
        agent: "kbd_interactive = \"leave\"",
        arguments: &["-o", "UsePAM=yes", "-o", "KbdInteractiveAuthentication=yes"],
        ..GuestOptions::default()
    });
    let key = TestKey::new(&guest.folder, "k");
    let result = guest.apply(&attach_command("my-test", &key, "no"));
    assert_eq!(result["status"], "succeeded", "{result}");
    assert_eq!(warning_reasons(&result), ["KBD_INTERACTIVE_LEFT"]);
    assert_eq!(
        non_comment_lines(&fs::read_to_string(guest.drop_in()).unwrap()),
        ["PasswordAuthentication no"]
    );
    assert_eq!(guest.sshd.offered_methods(), ["publickey", "keyboard-interactive"]);
}

/// KP-6.14.
#[test]
fn main_file_symlink_is_kept() {
    if !has_tools(&TOOLS) {
        return;
    }
    let guest = TestGuest::with_options(GuestOptions { without_drop_ins: true, ..GuestOptions::default() });
    let key = TestKey::new(&guest.folder, "k");
    let (main, real) = (guest.path("sshd_config"), guest.path("real_config"));
    fs::rename(&main, &real).unwrap();
    std::os::unix::fs::symlink(&real, &main).unwrap();
    assert_eq!(guest.apply(&attach_command("my-test", &key, "no"))["status"], "succeeded");
    assert!(main.symlink_metadata().unwrap().is_symlink());
    assert!(fs::read_to_string(&real).unwrap().starts_with("# BEGIN keypair-agent"));
    assert!(!guest.sshd.offers_password());
}
