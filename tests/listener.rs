//! KP-6.2 and KP-6.24 with the built binary and fewer capabilities than root has, as in the packaged unit. The agent
//! then cannot read sshd's executable and descriptors.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::Value;
use support::{GuestOptions, TestGuest, TestKey, attach_command, has_tools};

/// The tools that these tests need.
const TOOLS: [&str; 4] = ["sshd", "ssh", "ssh-keygen", "setpriv"];

/// Runs `apply` without the right to inspect other processes.
fn apply_without_ptrace(guest: &TestGuest, command: &Value) -> Value {
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

fn is_exe_unreadable_without_ptrace(guest: &TestGuest) -> bool {
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
fn listener_without_readable_exe_is_queried_by_path() {
    if !has_tools(&TOOLS) {
        return;
    }
    let guest = TestGuest::with_options(GuestOptions { copied_binary: true, ..GuestOptions::default() });
    let key = TestKey::new(&guest.folder, "k");
    if !is_exe_unreadable_without_ptrace(&guest) {
        return;
    }
    let result = apply_without_ptrace(&guest, &attach_command("my-test", &key, "no"));
    assert_eq!(result["status"], "succeeded", "{result}");
    assert!(!guest.sshd.offers_password() && guest.sshd.accepts_key(&key));
    // A broken upgrade: the agent queries the new program, and a reload with it fails.
    guest.break_copied_binary();
    let result = apply_without_ptrace(&guest, &attach_command("my-test", &key, "yes"));
    assert_eq!(result["reason"], "SSHD_RELOAD_FAILED", "{result}");
    assert!(!guest.sshd.offers_password() && guest.sshd.accepts_key(&key));
    fs::remove_file(guest.path("sshd9")).unwrap();
}

/// KP-6.24.
#[test]
fn removed_listen_address_makes_reload_unsafe() {
    if !has_tools(&TOOLS) {
        return;
    }
    let guest =
        TestGuest::with_options(GuestOptions { main: "ListenAddress ::1\n", ..GuestOptions::default() });
    let key = TestKey::new(&guest.folder, "k");
    if !is_exe_unreadable_without_ptrace(&guest) {
        return;
    }
    let main = fs::read_to_string(guest.path("sshd_config")).unwrap();
    for gone in ["ListenAddress ::1\n", "ListenAddress 127.0.0.1\n"] {
        fs::write(guest.path("sshd_config"), main.replace(gone, "")).unwrap();
        let before = guest.snapshot();
        let result = apply_without_ptrace(&guest, &attach_command("my-test", &key, "no"));
        assert_eq!(result["reason"], "SSHD_RELOAD_UNSAFE", "{result}");
        assert_eq!(guest.snapshot(), before);
    }
    fs::write(guest.path("sshd_config"), main).unwrap();
    let result = apply_without_ptrace(&guest, &attach_command("my-test", &key, "no"));
    assert_eq!(result["status"], "succeeded", "{result}");
}
