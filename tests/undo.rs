//! `undo` locks nobody out: the key stays until password login works again.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs;
use std::process::{Command, Output};

use serde_json::json;
use support::{TestGuest, TestKey, attach_command, has_tools, set_password_auth_command};

const TOOLS: [&str; 3] = ["sshd", "ssh", "ssh-keygen"];

/// A guest with a bound key and passwords off.
fn create_bound_guest() -> (TestGuest, TestKey) {
    let guest = TestGuest::new();
    let key = TestKey::new(&guest.folder, "me");
    let result = guest.apply(&attach_command("my-test", &key, "no"));
    assert_eq!(result["status"], "succeeded", "{result}");
    assert!(guest.sshd.accepts_key(&key) && !guest.sshd.offers_password());
    (guest, key)
}

fn combined_output(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[track_caller]
fn assert_key_stays(guest: &TestGuest, key: &TestKey, output: &Output) {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = combined_output(output);
    assert!(text.contains("the key stays, since it may be the only way in; mend the above"), "{text}");
    assert!(guest.sshd.accepts_key(key), "{text}");
}

#[track_caller]
fn assert_undo_completes(guest: &TestGuest, key: &TestKey) {
    let output = guest.run_agent(&["undo"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(!guest.sshd.accepts_key(key) && guest.sshd.offers_password(), "{output:?}");
    let again = guest.run_agent(&["undo"]);
    assert_eq!(String::from_utf8(again.stdout).unwrap(), "# nothing of ours was found\n");
}

/// KP-8.4.
#[test]
fn undo_with_read_only_drop_in_keeps_key() {
    if !has_tools(&[&TOOLS[..], &["unshare", "mount"]].concat()) {
        return;
    }
    let (guest, key) = create_bound_guest();
    let undo = guest.agent_command(&["undo"]);
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-ec"])
        .arg("mount --bind \"$0\" \"$0\"; mount -o remount,bind,ro \"$0\"; exec \"$@\"")
        .arg(guest.path("sshd_config.d"))
        .arg(undo.get_program())
        .args(undo.get_args())
        .output()
        .unwrap();
    assert!(combined_output(&output).contains("Read-only file system"), "{output:?}");
    assert_key_stays(&guest, &key, &output);
    assert_undo_completes(&guest, &key);
}

/// KP-8.4.
#[test]
fn undo_with_failed_reload_keeps_key() {
    if !has_tools(&TOOLS) {
        return;
    }
    let (guest, key) = create_bound_guest();
    let config = guest.path("sshd_config");
    let sound = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{sound}Bogus yes\n")).unwrap();
    // The setting is removed, but sshd is not reloaded yet. The second try finds no setting, and must still reload
    // sshd.
    for _ in 0..2 {
        let output = guest.run_agent(&["undo"]);
        assert!(combined_output(&output).contains("Bad configuration option: Bogus"), "{output:?}");
        assert_key_stays(&guest, &key, &output);
        assert!(!guest.drop_in().exists() && !guest.sshd.offers_password());
    }
    fs::write(&config, sound).unwrap();
    assert_undo_completes(&guest, &key);
}

/// A user removed the drop-in without a reload: sshd still runs with its setting.
#[test]
fn undo_after_drop_in_removed_by_hand_reloads_sshd() {
    if !has_tools(&TOOLS) {
        return;
    }
    let (guest, key) = create_bound_guest();
    fs::remove_file(guest.drop_in()).unwrap();
    assert!(!guest.sshd.offers_password());
    assert_undo_completes(&guest, &key);
}

/// Without a bound key, a failed reload must still be repeated.
#[test]
fn undo_without_bound_key_retries_failed_reload() {
    if !has_tools(&TOOLS) {
        return;
    }
    let guest = TestGuest::new();
    let own = TestKey::new(&guest.folder, "own");
    fs::write(guest.key_file(), format!("{}\n", own.line)).unwrap();
    assert_eq!(guest.apply(&set_password_auth_command("no"))["status"], json!("succeeded"));
    // A temporary drop-in breaks the configuration: afterwards no file is newer than sshd's last read. The state is
    // unreadable too.
    fs::write(guest.path("state/state.json"), "garbled").unwrap();
    let broken = guest.path("sshd_config.d/99-broken.conf");
    fs::write(&broken, "Bogus yes\n").unwrap();
    for _ in 0..2 {
        assert_eq!(guest.run_agent(&["undo"]).status.code(), Some(1));
    }
    fs::remove_file(broken).unwrap();
    assert!(!guest.sshd.offers_password());
    assert_eq!(guest.run_agent(&["undo"]).status.code(), Some(0));
    assert!(guest.sshd.offers_password() && guest.sshd.accepts_key(&own));
}
