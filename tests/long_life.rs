//! One daemon, thousands of commands: memory, descriptors and the state's size do not grow with them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;

use serde_json::{Value, json};
use support::daemon::{Daemon, Size, queued};
use support::metadata::Asked;
use support::{
    Form, Guest, Key, Metadata, apart, attach, available, detach, set_password_auth, wait_for, with,
};

/// How many commands, in whole rounds; `make test-long-life` says 20,000.
const COMMANDS: &str = "KEYPAIR_LONG_LIFE";
/// The last turn of the first measures. All of them find the state full: it keeps 128 results, and after 180 turns as
/// many are remembered (a command for another instance or one that is too late is not).
const FIRST: u64 = 240;
/// After so many commands the owner begins anew. Measured at the end of a round: what the state holds depends
/// on where in the round it is.
const ROUND: u64 = 30;

/// The life of an owner: he binds, is refused many times, binds another, unbinds. And the reason of the result.
fn command(turn: u64, key: &Key, other: &Key) -> (Value, Option<&'static str>) {
    let (command, reason) = match turn % ROUND {
        0 | 1 => (attach("my-test", key, "no"), None),
        25 => (with(attach("other", other, "no"), "replace", json!(true)), None),
        27 | 28 => (detach("other"), None),
        29 => (set_password_auth("yes"), None),
        turn => refused(turn, key, other),
    };
    let sequence = if reason == Some("STALE_COMMAND") { 1 } else { 10_000_000 + turn };
    let command = queued(&format!("c-{turn:08}"), sequence, command);
    match reason {
        Some("WRONG_INSTANCE") => (with(command, "instanceId", json!("i-other")), reason),
        _ => (command, reason),
    }
}

fn refused(turn: u64, key: &Key, other: &Key) -> (Value, Option<&'static str>) {
    let (command, reason) = match turn % 7 {
        0 => (attach("other", other, "no"), "ALREADY_ATTACHED"),
        1 => (detach("third"), "NOT_ATTACHED"),
        2 => (with(attach("my-test", key, "no"), "publicKey", json!("ssh-rsa AAAA")), "INVALID_PUBLIC_KEY"),
        3 => (set_password_auth("maybe"), "INVALID_PASSWORD_AUTH"),
        4 => (with(detach("my-test"), "expiresAt", json!("2026-11-01T00:00:00Z")), "EXPIRED"),
        5 => (detach("my-test"), "STALE_COMMAND"),
        _ => (detach("my-test"), "WRONG_INSTANCE"),
    };
    (command, Some(reason))
}

/// In a network of its own: a warning of each other sshd would make results longer.
#[test]
fn nothing_grows() {
    if !available(&["sshd", "ssh", "ssh-keygen", "unshare", "ip"]) {
        return;
    }
    let alone = ["unshare", "--net", "sh", "-ec", "ip link set lo up; exec \"$0\" \"$@\""];
    let done = apart(&alone, &std::env::current_exe().unwrap(), "a_long_life").status().unwrap();
    assert!(done.success());
}

#[test]
#[ignore = "a part of the other test, in a network of its own"]
fn a_long_life() {
    let commands: u64 = std::env::var(COMMANDS).map_or(330, |text| text.parse().expect(COMMANDS));
    let commands = commands.next_multiple_of(ROUND);
    let metadata = Metadata::start();
    let guest = Guest::of(Form { metadata: Some(&metadata), ..Form::default() });
    let (key, other) = (Key::new(&guest.folder, "me"), Key::new(&guest.folder, "other"));
    fs::write(guest.key_file(), "# mine\n").unwrap();
    let mut daemon = Daemon::start(&guest);
    let (mut first, mut last) = (Vec::new(), Vec::new());
    for turn in 0..commands {
        let (command, reason) = command(turn, &key, &other);
        metadata.queue(command);
        let result = metadata.wait_for_result(&format!("c-{turn:08}"));
        assert_eq!(result["reason"], json!(reason), "{result}");
        let done = turn + 1;
        for (sizes, end) in [(&mut first, FIRST), (&mut last, commands)] {
            if done <= end && done + 2 * ROUND >= end && done.is_multiple_of(ROUND) {
                sizes.push(idle(&metadata, &daemon, &guest));
            }
        }
    }
    let (first, last) = (least(first), least(last));
    println!("after {FIRST}: {first:?}\nafter {commands}: {last:?}");
    assert!(last.is_no_more_memory_than(&first), "{first:?} {last:?}");
    assert_eq!(last.descriptors, first.descriptors);
    assert!(
        last.state_bytes.abs_diff(first.state_bytes) * 100 <= first.state_bytes * 5,
        "{first:?} {last:?}"
    );
    assert!(daemon.is_alive());
    assert_eq!(daemon.terminate().code(), Some(0));
    assert!(fs::read_to_string(guest.key_file()).unwrap().ends_with("# mine\n"));
}

/// Pages that are free come and go with each command; what grows also grows where they are fewest.
fn least(sizes: Vec<Size>) -> Size {
    sizes.into_iter().min_by_key(|size| size.rss_kib).expect("some measures")
}

/// Measured while it waits: the last result is delivered, and the next poll under way.
fn idle(metadata: &Metadata, daemon: &Daemon, guest: &Guest) -> Size {
    wait_for("a poll that waits", || {
        matches!(metadata.asked().last(), Some(Asked::Poll(wait)) if *wait > 0).then_some(())
    });
    Size::of(daemon, guest)
}
