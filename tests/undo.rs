//! `undo` locks nobody out: the key stays for as long as password login is not back.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs;
use std::process::{Command, Output};

use serde_json::json;
use support::{Guest, Key, attach, available, set_password_auth};

const TOOLS: [&str; 3] = ["sshd", "ssh", "ssh-keygen"];

/// A guest with a key bound and passwords off.
fn bound() -> (Guest, Key) {
    let guest = Guest::new();
    let key = Key::new(&guest.folder, "me");
    let result = guest.apply(&attach("my-test", &key, "no"));
    assert_eq!(result["status"], "succeeded", "{result}");
    assert!(guest.sshd.lets_in(&key) && !guest.sshd.offers_password());
    (guest, key)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[track_caller]
fn the_key_stays(guest: &Guest, key: &Key, output: &Output) {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = said(output);
    assert!(text.contains("the key stays, since it may be the only way in; mend the above"), "{text}");
    assert!(guest.sshd.lets_in(key), "{text}");
}

#[track_caller]
fn all_is_back(guest: &Guest, key: &Key) {
    let output = guest.agent(&["undo"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(!guest.sshd.lets_in(key) && guest.sshd.offers_password(), "{output:?}");
    let again = guest.agent(&["undo"]);
    assert_eq!(String::from_utf8(again.stdout).unwrap(), "# nothing of ours was found\n");
}

/// KP-8.4.
#[test]
fn a_setting_that_cannot_be_taken_out() {
    if !available(&[&TOOLS[..], &["unshare", "mount"]].concat()) {
        return;
    }
    let (guest, key) = bound();
    let undo = guest.command(&["undo"]);
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-ec"])
        .arg("mount --bind \"$0\" \"$0\"; mount -o remount,bind,ro \"$0\"; exec \"$@\"")
        .arg(guest.path("sshd_config.d"))
        .arg(undo.get_program())
        .args(undo.get_args())
        .output()
        .unwrap();
    assert!(said(&output).contains("Read-only file system"), "{output:?}");
    the_key_stays(&guest, &key, &output);
    all_is_back(&guest, &key);
}

/// KP-8.4.
#[test]
fn an_sshd_that_cannot_be_told() {
    if !available(&TOOLS) {
        return;
    }
    let (guest, key) = bound();
    let config = guest.path("sshd_config");
    let sound = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{sound}Bogus yes\n")).unwrap();
    // The setting goes, and sshd does not know yet: also at the second try, which finds no setting.
    for _ in 0..2 {
        let output = guest.agent(&["undo"]);
        assert!(said(&output).contains("Bad configuration option: Bogus"), "{output:?}");
        the_key_stays(&guest, &key, &output);
        assert!(!guest.drop_in().exists() && !guest.sshd.offers_password());
    }
    fs::write(&config, sound).unwrap();
    all_is_back(&guest, &key);
}

/// Somebody took the drop-in away, and sshd was not told: it still runs by it.
#[test]
fn a_setting_that_was_taken_out_by_hand() {
    if !available(&TOOLS) {
        return;
    }
    let (guest, key) = bound();
    fs::remove_file(guest.drop_in()).unwrap();
    assert!(!guest.sshd.offers_password());
    all_is_back(&guest, &key);
}

/// With no key bound there is still a reload owed.
#[test]
fn an_sshd_that_cannot_be_told_of_a_setting_alone() {
    if !available(&TOOLS) {
        return;
    }
    let guest = Guest::new();
    let own = Key::new(&guest.folder, "own");
    fs::write(guest.key_file(), format!("{}\n", own.line)).unwrap();
    assert_eq!(guest.apply(&set_password_auth("no"))["status"], json!("succeeded"));
    // Through a drop-in that goes again: no file that stands is younger than sshd's last look. Nor is the state readable.
    fs::write(guest.path("state/state.json"), "garbled").unwrap();
    let broken = guest.path("sshd_config.d/99-broken.conf");
    fs::write(&broken, "Bogus yes\n").unwrap();
    for _ in 0..2 {
        assert_eq!(guest.agent(&["undo"]).status.code(), Some(1));
    }
    fs::remove_file(broken).unwrap();
    assert!(!guest.sshd.offers_password());
    assert_eq!(guest.agent(&["undo"]).status.code(), Some(0));
    assert!(guest.sshd.offers_password() && guest.sshd.lets_in(&own));
}
