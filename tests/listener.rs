//! KP-6.2 and KP-6.24 through the built binary, with less than root's capabilities, as the packaged unit has it: there
//! the executable and the descriptors of sshd cannot be read.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::Value;
use support::{Form, Guest, Key, attach, available};

/// What these tests run.
const TOOLS: [&str; 4] = ["sshd", "ssh", "ssh-keygen", "setpriv"];

/// `apply` by an agent that may not look into other processes.
fn apply(guest: &Guest, command: &Value) -> Value {
    let mut child = Command::new("setpriv")
        .args(["--bounding-set=-sys_ptrace", env!("CARGO_BIN_EXE_keypair-agent"), "apply", "-"])
        .arg("--config")
        .arg(&guest.config)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(command.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("no result: {}", String::from_utf8_lossy(&output.stderr)))
}

fn is_blind(guest: &Guest) -> bool {
    let exe = format!("/proc/{}/exe", guest.sshd.pid());
    let seen =
        Command::new("setpriv").args(["--bounding-set=-sys_ptrace", "readlink", &exe]).output().unwrap();
    if seen.status.success() {
        eprintln!("SKIPPED: another process's executable can be read here without CAP_SYS_PTRACE");
    }
    !seen.status.success()
}

/// KP-6.2.
#[test]
fn the_program_at_its_path_is_asked() {
    if !available(&TOOLS) {
        return;
    }
    let guest = Guest::of(Form { copied_binary: true, ..Form::default() });
    let key = Key::new(&guest.folder, "k");
    if !is_blind(&guest) {
        return;
    }
    let result = apply(&guest, &attach("my-test", &key, "no"));
    assert_eq!(result["status"], "succeeded", "{result}");
    assert!(!guest.sshd.offers_password() && guest.sshd.lets_in(&key));
    // An upgrade that broke it: that one is asked, and a reload of it fails.
    guest.break_copied_binary();
    let result = apply(&guest, &attach("my-test", &key, "yes"));
    assert_eq!(result["reason"], "SSHD_RELOAD_FAILED", "{result}");
    assert!(!guest.sshd.offers_password() && guest.sshd.lets_in(&key));
    fs::remove_file(guest.path("sshd9")).unwrap();
}

/// KP-6.24.
#[test]
fn an_address_that_an_edit_takes_away_is_seen() {
    if !available(&TOOLS) {
        return;
    }
    let guest = Guest::of(Form { main: "ListenAddress ::1\n", ..Form::default() });
    let key = Key::new(&guest.folder, "k");
    if !is_blind(&guest) {
        return;
    }
    let main = fs::read_to_string(guest.path("sshd_config")).unwrap();
    for gone in ["ListenAddress ::1\n", "ListenAddress 127.0.0.1\n"] {
        fs::write(guest.path("sshd_config"), main.replace(gone, "")).unwrap();
        let before = guest.snapshot();
        let result = apply(&guest, &attach("my-test", &key, "no"));
        assert_eq!(result["reason"], "SSHD_RELOAD_UNSAFE", "{result}");
        assert_eq!(guest.snapshot(), before);
    }
    fs::write(guest.path("sshd_config"), main).unwrap();
    let result = apply(&guest, &attach("my-test", &key, "no"));
    assert_eq!(result["status"], "succeeded", "{result}");
}
