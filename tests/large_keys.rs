//! A key file of the largest size that the agent reads: 15 MB in 180,000 lines. The unit's memory is small, and each
//! command must end.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fmt::Write as _;
use std::fs;
use std::process::{Command, Output};

use base64ct::{Base64, Encoding};
use serde_json::Value;
use support::{TestGuest, TestKey, attach_command, detach_command, has_tools};

const TOOLS: [&str; 3] = ["sshd", "ssh", "ssh-keygen"];

/// In KiB: half of the unit's MemoryMax. This limit counts the process's own memory, not that of its program file.
const MEMORY_LIMIT_KIB: &str = "65536";

/// 180,000 lines. A tenth of them are keys that sshd would read.
fn generate_large_key_file() -> String {
    let mut text = String::with_capacity(15_500_000);
    for number in 0..18_000_u32 {
        let mut blob = b"\0\0\0\x0bssh-ed25519\0\0\0\x20".to_vec();
        blob.extend(std::iter::repeat_n(number.to_be_bytes(), 8).flatten());
        writeln!(text, "restrict ssh-ed25519 {} k{number}", Base64::encode_string(&blob)).unwrap();
        for line in 0..9 {
            writeln!(text, "# {line:81}").unwrap();
        }
    }
    assert!(text.len() > 15_000_000 && text.lines().count() == 180_000, "{}", text.len());
    text
}

/// Runs the agent with half of the unit's memory.
fn run_with_memory_limit(guest: &TestGuest, words: &[&str], input: &str) -> Output {
    let file = guest.path("input.log");
    fs::write(&file, input).unwrap();
    let agent = guest.agent_command(words);
    let mut command = Command::new("sh");
    command
        .args(["-c", &format!("ulimit -d {MEMORY_LIMIT_KIB}; exec \"$@\""), "sh"])
        .arg(agent.get_program());
    command.args(agent.get_args()).stdin(fs::File::open(&file).unwrap()).output().unwrap()
}

fn apply_with_memory_limit(guest: &TestGuest, command: &Value) -> Value {
    let output = run_with_memory_limit(guest, &["apply", "-"], &command.to_string());
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
}

#[test]
fn large_key_file_fits_half_of_unit_memory_limit() {
    if !has_tools(&TOOLS) {
        return;
    }
    let guest = TestGuest::new();
    let key = TestKey::new(&guest.folder, "me");
    let theirs = generate_large_key_file();
    fs::write(guest.key_file(), &theirs).unwrap();
    let is_theirs = || fs::read_to_string(guest.key_file()).unwrap() == theirs;
    let bound = apply_with_memory_limit(&guest, &attach_command("k", &key, "no"));
    assert_eq!(bound["status"], "succeeded", "{bound}");
    assert!(guest.sshd.accepts_key(&key) && !is_theirs());
    let detached = apply_with_memory_limit(&guest, &detach_command("k"));
    assert_eq!(detached["status"], "succeeded", "{detached}");
    assert!(is_theirs());
    assert_eq!(apply_with_memory_limit(&guest, &attach_command("k", &key, "yes"))["status"], "succeeded");
    let undone = run_with_memory_limit(&guest, &["undo"], "");
    assert_eq!(undone.status.code(), Some(0), "{}", String::from_utf8_lossy(&undone.stderr));
    assert!(is_theirs());
    let diff = String::from_utf8(undone.stdout).unwrap();
    assert!(diff.contains("-# BEGIN keypair-agent k") && diff.lines().count() < 40, "{}", diff.len());
}
