//! Killed at a system call, or refused by the disk: after the next start every file is the old or the new one, the
//! user's lines stand, and sshd runs what the files say (contract 7).

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use support::{Guest, Key, attach, available, detach, set_password_auth, with};

const TOOLS: [&str; 4] = ["sshd", "ssh", "ssh-keygen", "strace"];

/// What can change anything, or make it durable.
const CALLS: &str = "renameat,renameat2,rename,fsync,unlinkat,mkdirat";

/// `apply` under strace(1), with a fault at the n-th of the calls. strace counts each call by itself.
fn apply_with_fault(guest: &Guest, command: &Value, calls: &str, fault: &str, nth: usize) -> Output {
    let mut child = Command::new("strace")
        .args(["-o", "/dev/null", "-e", &format!("trace={calls}")])
        .args(["-e", &format!("inject={calls}:{fault}:when={nth}")])
        .arg(env!("CARGO_BIN_EXE_keypair-agent"))
        .args(["apply", "-", "--config"])
        .arg(&guest.config)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(command.to_string().as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn append(path: &Path, line: &str) {
    let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
    writeln!(file, "{line}").unwrap();
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Nothing half-done: no temporaries, one block at most, sshd as its files say, no open intent.
fn consistent(guest: &Guest, what: &str) {
    for folder in ["keys", "sshd_config.d", "state"] {
        for entry in fs::read_dir(guest.path(folder)).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            assert!(!name.ends_with(".tmp"), "{what}: {name} is left behind");
        }
    }
    assert!(read(&guest.key_file()).matches("# BEGIN keypair-agent").count() <= 1, "{what}");
    let off = read(&guest.drop_in()).contains("PasswordAuthentication no");
    assert_eq!(guest.sshd.offers_password(), !off, "{what}: sshd runs something else than its files say");
    let state: Value = serde_json::from_str(&read(&guest.path("state/state.json"))).unwrap();
    assert_eq!(state["intent"], Value::Null, "{what}");
}

#[test]
fn killed_at_any_call() {
    if !available(&TOOLS) {
        return;
    }
    let guest = Guest::new();
    let (key, other) = (Key::new(&guest.folder, "k"), Key::new(&guest.folder, "l"));
    let no = attach("my-test", &key, "no");
    let replace = with(attach("other", &other, "no"), "replace", json!(true));
    // What goes before, and what is killed.
    let commands: [(&str, Vec<&Value>, Value); 4] = [
        ("attach", vec![], no.clone()),
        ("replace", vec![&no], replace),
        ("detach", vec![&no], detach("my-test")),
        ("setPasswordAuth", vec![&no], set_password_auth("yes")),
    ];
    let mut points = 0;
    for (name, before, command) in &commands {
        for call in CALLS.split(',') {
            for nth in 1.. {
                assert_eq!(guest.agent(&["undo"]).status.code(), Some(0));
                fs::write(guest.key_file(), "# first\n").unwrap();
                for command in before {
                    assert_eq!(guest.apply(command)["status"], "succeeded");
                }
                let id = json!(format!("{name}-{call}-{nth}"));
                let command = with(command.clone(), "commandId", id);
                let what = format!("{name}, {call} {nth}");
                let output = apply_with_fault(&guest, &command, call, "signal=SIGKILL", nth);
                if output.status.success() {
                    break;
                }
                points += 1;
                append(&guest.key_file(), "# his key line");
                append(&guest.path("sshd_config"), "# his sshd line");
                // The service hands the command out again: it is done, once.
                let again = guest.apply(&command);
                assert_eq!(again["status"], "succeeded", "{what}: {again}");
                consistent(&guest, &what);
                let keys = read(&guest.key_file());
                assert!(keys.ends_with("# first\n# his key line\n"), "{what}: {keys}");
                assert!(read(&guest.path("sshd_config")).ends_with("# his sshd line\n"), "{what}");
                let bound = if *name == "replace" { &other } else { &key };
                assert_eq!(keys.contains(&bound.line), *name != "detach", "{what}");
                assert_eq!(again.to_string(), guest.apply(&command).to_string(), "{what}: one result");
            }
        }
    }
    println!("{points} kill points");
    assert!(points >= 30, "only {points} points were reached");
}

#[test]
fn the_third_interruption_is_the_result() {
    if !available(&TOOLS) {
        return;
    }
    let guest = Guest::new();
    let key = Key::new(&guest.folder, "k");
    let command = with(attach("my-test", &key, "no"), "commandId", json!("unlucky"));
    for _ in 0..3 {
        // This call puts a new key file in place: the intent is on disk by then.
        let output = apply_with_fault(&guest, &command, "renameat2", "signal=SIGKILL", 1);
        assert!(!output.status.success());
    }
    let result = guest.apply(&command);
    assert_eq!((&result["code"], &result["reason"]), (&json!("INTERNAL"), &json!("INTERRUPTED")), "{result}");
    consistent(&guest, "three interruptions");
    assert!(!read(&guest.key_file()).contains("keypair-agent"));
    let next = guest.apply(&with(command, "commandId", json!("lucky")));
    assert_eq!(next["status"], "succeeded", "{next}");
}

#[test]
fn a_disk_that_refuses() {
    if !available(&TOOLS) {
        return;
    }
    let guest = Guest::new();
    let key = Key::new(&guest.folder, "k");
    fs::write(guest.key_file(), "# mine\n").unwrap();
    assert_eq!(guest.apply(&set_password_auth("yes"))["status"], "succeeded");
    let mut points = 0;
    for (call, error) in
        [("fsync", "EIO"), ("write", "ENOSPC"), ("renameat", "EDQUOT"), ("renameat2", "EROFS")]
    {
        for nth in 1..12 {
            let before = guest.snapshot();
            let command = with(attach("my-test", &key, "no"), "commandId", json!(format!("{call}-{nth}")));
            let output = apply_with_fault(&guest, &command, call, &format!("error={error}"), nth);
            // Where its own output could not be written, it may have come to its end all the same.
            let result = serde_json::from_slice::<Value>(&output.stdout).unwrap_or_default();
            if result["status"] != "failed" {
                assert_eq!(guest.agent(&["undo"]).status.code(), Some(0));
                assert_eq!(guest.snapshot(), before, "{call} {nth}");
                continue;
            }
            points += 1;
            assert_eq!(result["reason"], "IO_ERROR", "{call} {nth}: {result}");
            assert!(result["message"].as_str().unwrap().contains("os error"), "{call} {nth}: {result}");
            assert_eq!(guest.snapshot(), before, "{call} {nth}");
            // Whatever stayed open is closed by the next command.
            assert_eq!(guest.apply(&set_password_auth("yes"))["status"], "succeeded", "{call} {nth}");
            consistent(&guest, call);
            assert_eq!(guest.snapshot(), before, "{call} {nth}");
        }
    }
    println!("{points} fault points");
    assert!(points >= 6, "only {points} faults were met");
}

#[test]
fn what_somebody_changed_is_left_alone() {
    if !available(&TOOLS) {
        return;
    }
    let guest = Guest::new();
    let key = Key::new(&guest.folder, "k");
    // The third rename makes the drop-in; killed at the fourth call, the result's, all of it stands.
    let command = attach("my-test", &key, "no");
    let mut nth = 1;
    while !guest.drop_in().exists() {
        let output = apply_with_fault(&guest, &command, "fsync", "signal=SIGKILL", nth);
        assert!(!output.status.success(), "it came to its end before the drop-in was there");
        nth += 1;
    }
    append(&guest.drop_in(), "# changed by hand");
    let output = guest.agent_with_input(&["apply", "-"], &set_password_auth("yes").to_string());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("left alone") && said.contains("00-keypair-agent.conf"), "{said}");
    assert!(!read(&guest.key_file()).contains("keypair-agent"));
}
