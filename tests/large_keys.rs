//! A key file as large as is read: 15 MB in 180,000 lines. The unit's memory is small, and a command ends.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fmt::Write as _;
use std::fs;
use std::process::{Command, Output};

use base64ct::{Base64, Encoding};
use serde_json::Value;
use support::{Guest, Key, attach, available, detach};

const TOOLS: [&str; 3] = ["sshd", "ssh", "ssh-keygen"];

/// In KiB: half of the unit's MemoryMax. It counts the process's own memory, not its program's.
const LIMIT: &str = "65536";

/// 180,000 lines, a tenth of them keys that sshd would read.
fn large() -> String {
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

/// The agent with half of the unit's memory.
fn small(guest: &Guest, words: &[&str], input: &str) -> Output {
    let file = guest.path("input.log");
    fs::write(&file, input).unwrap();
    let agent = guest.command(words);
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit -d {LIMIT}; exec \"$@\""), "sh"]).arg(agent.get_program());
    command.args(agent.get_args()).stdin(fs::File::open(&file).unwrap()).output().unwrap()
}

fn applied(guest: &Guest, command: &Value) -> Value {
    let output = small(guest, &["apply", "-"], &command.to_string());
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
}

#[test]
fn attach_detach_and_undo_of_a_large_file_take_half_of_the_units_memory() {
    if !available(&TOOLS) {
        return;
    }
    let guest = Guest::new();
    let key = Key::new(&guest.folder, "me");
    let theirs = large();
    fs::write(guest.key_file(), &theirs).unwrap();
    let is_theirs = || fs::read_to_string(guest.key_file()).unwrap() == theirs;
    let bound = applied(&guest, &attach("k", &key, "no"));
    assert_eq!(bound["status"], "succeeded", "{bound}");
    assert!(guest.sshd.lets_in(&key) && !is_theirs());
    let detached = applied(&guest, &detach("k"));
    assert_eq!(detached["status"], "succeeded", "{detached}");
    assert!(is_theirs());
    assert_eq!(applied(&guest, &attach("k", &key, "yes"))["status"], "succeeded");
    let undone = small(&guest, &["undo"], "");
    assert_eq!(undone.status.code(), Some(0), "{}", String::from_utf8_lossy(&undone.stderr));
    assert!(is_theirs());
    let diff = String::from_utf8(undone.stdout).unwrap();
    assert!(diff.contains("-# BEGIN keypair-agent k") && diff.lines().count() < 40, "{}", diff.len());
}
