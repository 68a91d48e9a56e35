//! `plan` shows exactly the bytes that `apply` then writes, and changes nothing. `undo` restores every byte.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use support::{GuestOptions, TestGuest, TestKey, attach_command, has_tools};

const TOOLS: [&str; 4] = ["sshd", "ssh", "ssh-keygen", "patch"];

/// Applies a diff to a file by patch(1), and returns the new text.
fn apply_diff(diff: &str, file: &Path) -> String {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy");
    fs::write(&copy, fs::read(file).unwrap_or_default()).unwrap();
    let from = format!("+++ {}\n", file.display());
    let hunks = diff.split_once(&from).unwrap().1;
    let hunks: String = hunks
        .split_inclusive('\n')
        .take_while(|line| !line.starts_with("--- ") && !line.starts_with("# "))
        .collect();
    let mut child = Command::new("patch").arg("-s").arg(&copy).stdin(Stdio::piped()).spawn().unwrap();
    write!(child.stdin.take().unwrap(), "--- copy\n+++ copy\n{hunks}").unwrap();
    assert!(child.wait().unwrap().success(), "{hunks}");
    fs::read_to_string(&copy).unwrap()
}

/// Removes the comment with the time and the command.
fn strip_timestamp_comment(text: &str) -> String {
    text.lines()
        .filter(|line| !line.contains("written by keypair-agent at"))
        .map(|line| format!("{line}\n"))
        .collect()
}

/// KP-8.3, KP-8.4, KP-8.8.
#[test]
fn plan_diff_matches_apply_and_undo_restores() {
    if !has_tools(&TOOLS) {
        return;
    }
    for without_drop_ins in [false, true] {
        let guest = TestGuest::with_options(GuestOptions { without_drop_ins, ..GuestOptions::default() });
        let key = TestKey::new(&guest.folder, "k");
        let mine = "\u{feff}# mine\r\nssh-rsa broken\n\nno newline at the end";
        fs::write(guest.key_file(), mine).unwrap();
        let setting = if without_drop_ins { guest.path("sshd_config") } else { guest.drop_in() };
        let command = attach_command("my-test", &key, "no").to_string();

        let before = guest.snapshot();
        let plan = guest.run_agent_with_input(&["plan", "-"], &command);
        assert_eq!(plan.status.code(), Some(0), "{plan:?}");
        assert_eq!(guest.snapshot(), before);
        assert!(!guest.path("state").exists(), "plan writes nothing");
        let diff = String::from_utf8(plan.stdout).unwrap();
        assert!(diff.contains("# then: SIGHUP to sshd, pid "), "{diff}");
        let expected =
            [apply_diff(&diff, &guest.key_file()), strip_timestamp_comment(&apply_diff(&diff, &setting))];

        guest.apply(&attach_command("my-test", &key, "no"));
        let read = |path: &Path| fs::read_to_string(path).unwrap();
        assert_eq!([read(&guest.key_file()), strip_timestamp_comment(&read(&setting))], expected);
        assert!(guest.sshd.accepts_key(&key) && !guest.sshd.offers_password());

        let undo = guest.run_agent(&["undo"]);
        assert_eq!(undo.status.code(), Some(0));
        let between = if without_drop_ins { "= " } else { " " };
        let gone = format!("-PasswordAuthentication{between}no\n");
        assert!(String::from_utf8_lossy(&undo.stdout).contains(&gone), "{undo:?}");
        let after: Vec<_> = guest.snapshot();
        assert_eq!(after, before);
        assert!(guest.sshd.offers_password() && !guest.sshd.accepts_key(&key));
    }
}

/// KP-8.4.
#[test]
fn undo_needs_no_readable_state() {
    if !has_tools(&TOOLS) {
        return;
    }
    let guest = TestGuest::new();
    let key = TestKey::new(&guest.folder, "k");
    fs::write(guest.key_file(), "# mine\n").unwrap();
    let before = guest.snapshot();
    guest.apply(&attach_command("my-test", &key, "no"));
    for garbled in ["{ garbled", "{\"version\": 99}", ""] {
        fs::write(guest.path("state/state.json"), garbled).unwrap();
        assert_eq!(guest.run_agent(&["undo"]).status.code(), Some(0));
        assert_eq!(guest.snapshot(), before);
        assert_eq!(guest.apply(&attach_command("my-test", &key, "no"))["status"], "succeeded");
    }
    assert_eq!(guest.run_agent(&["undo"]).status.code(), Some(0));
    let nothing = guest.run_agent(&["undo"]);
    assert_eq!(String::from_utf8_lossy(&nothing.stdout), "# nothing of ours was found\n");
}

/// KP-8.3.
#[test]
fn plan_of_refused_command_prints_result() {
    if !has_tools(&TOOLS) {
        return;
    }
    let guest = TestGuest::with_options(GuestOptions {
        main: "AuthenticationMethods publickey,publickey\n",
        ..GuestOptions::default()
    });
    let key = TestKey::new(&guest.folder, "k");
    let plan = guest.run_agent_with_input(&["plan", "-"], &attach_command("my-test", &key, "no").to_string());
    assert_eq!(plan.status.code(), Some(1));
    let result: serde_json::Value = serde_json::from_slice(&plan.stdout).unwrap();
    assert_eq!(result["reason"], "LOCKOUT_GUARD");
}
