//! One daemon and thousands of commands: memory, descriptors and the size of the state do not grow.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;

use serde_json::{Value, json};
use support::daemon::{Daemon, ProcessUsage, make_channel_command};
use support::metadata::ServiceRequest;
use support::{
    GuestOptions, MetadataService, TestGuest, TestKey, attach_command, build_isolated_test, detach_command,
    has_tools, set_password_auth_command, wait_for, with_field,
};

/// The number of commands, in whole rounds; `make test-long-life` uses 20,000.
const SOAK_COMMANDS_ENV: &str = "KEYPAIR_LONG_LIFE";
/// The last command of the first measurements. In all of them the state is full: it holds 128 results, and 180
/// commands leave that many. (A command for another instance or a late one is not stored.)
const FIRST_MEASURED_COMMAND: u64 = 240;
/// The number of commands in a round. After it the owner starts anew. A measurement is at the end of a round, because
/// the content of the state depends on the position in the round.
const COMMANDS_PER_ROUND: u64 = 30;

/// One command in the life of an owner: bind, many refusals, bind another key, unbind. Also the reason of its result.
fn build_command(turn: u64, key: &TestKey, other: &TestKey) -> (Value, Option<&'static str>) {
    let (command, reason) = match turn % COMMANDS_PER_ROUND {
        0 | 1 => (attach_command("my-test", key, "no"), None),
        25 => (with_field(attach_command("other", other, "no"), "replace", json!(true)), None),
        27 | 28 => (detach_command("other"), None),
        29 => (set_password_auth_command("yes"), None),
        turn => build_refused_command(turn, key, other),
    };
    let sequence = if reason == Some("STALE_COMMAND") { 1 } else { 10_000_000 + turn };
    let command = make_channel_command(&format!("c-{turn:08}"), sequence, command);
    match reason {
        Some("WRONG_INSTANCE") => (with_field(command, "instanceId", json!("i-other")), reason),
        _ => (command, reason),
    }
}

fn build_refused_command(turn: u64, key: &TestKey, other: &TestKey) -> (Value, Option<&'static str>) {
    let (command, reason) = match turn % 7 {
        0 => (attach_command("other", other, "no"), "ALREADY_ATTACHED"),
        1 => (detach_command("third"), "NOT_ATTACHED"),
        2 => (
            with_field(attach_command("my-test", key, "no"), "publicKey", json!("ssh-rsa AAAA")),
            "INVALID_PUBLIC_KEY",
        ),
        3 => (set_password_auth_command("maybe"), "INVALID_PASSWORD_AUTH"),
        4 => (with_field(detach_command("my-test"), "expiresAt", json!("2026-11-01T00:00:00Z")), "EXPIRED"),
        5 => (detach_command("my-test"), "STALE_COMMAND"),
        _ => (detach_command("my-test"), "WRONG_INSTANCE"),
    };
    (command, Some(reason))
}

/// Runs in its own network namespace: warnings about other sshds would make results longer.
#[test]
fn daemon_memory_fds_and_state_do_not_grow() {
    if !has_tools(&["sshd", "ssh", "ssh-keygen", "unshare", "ip"]) {
        return;
    }
    let alone = ["unshare", "--net", "sh", "-ec", "ip link set lo up; exec \"$0\" \"$@\""];
    let done =
        build_isolated_test(&alone, &std::env::current_exe().unwrap(), "soak_process").status().unwrap();
    assert!(done.success());
}

#[test]
#[ignore = "a part of the other test, in a network of its own"]
fn soak_process() {
    let commands: u64 =
        std::env::var(SOAK_COMMANDS_ENV).map_or(330, |text| text.parse().expect(SOAK_COMMANDS_ENV));
    let commands = commands.next_multiple_of(COMMANDS_PER_ROUND);
    let metadata = MetadataService::start();
    let guest =
        TestGuest::with_options(GuestOptions { metadata: Some(&metadata), ..GuestOptions::default() });
    let (key, other) = (TestKey::new(&guest.folder, "me"), TestKey::new(&guest.folder, "other"));
    fs::write(guest.key_file(), "# mine\n").unwrap();
    let mut daemon = Daemon::start(&guest);
    let (mut first, mut last) = (Vec::new(), Vec::new());
    for turn in 0..commands {
        let (command, reason) = build_command(turn, &key, &other);
        metadata.queue(command);
        let result = metadata.wait_for_result(&format!("c-{turn:08}"));
        assert_eq!(result["reason"], json!(reason), "{result}");
        let done = turn + 1;
        for (sizes, end) in [(&mut first, FIRST_MEASURED_COMMAND), (&mut last, commands)] {
            if done <= end && done + 2 * COMMANDS_PER_ROUND >= end && done.is_multiple_of(COMMANDS_PER_ROUND)
            {
                sizes.push(measure_when_idle(&metadata, &daemon, &guest));
            }
        }
    }
    let (first, last) = (smallest_by_rss(first), smallest_by_rss(last));
    println!("after {FIRST_MEASURED_COMMAND}: {first:?}\nafter {commands}: {last:?}");
    assert!(last.has_memory_within(&first), "{first:?} {last:?}");
    assert_eq!(last.descriptors, first.descriptors);
    assert!(
        last.state_bytes.abs_diff(first.state_bytes) * 100 <= first.state_bytes * 5,
        "{first:?} {last:?}"
    );
    assert!(daemon.is_alive());
    assert_eq!(daemon.terminate().code(), Some(0));
    assert!(fs::read_to_string(guest.key_file()).unwrap().ends_with("# mine\n"));
}

/// The measurement with the least memory. Free pages vary with each command, but real growth raises the minimum too.
fn smallest_by_rss(sizes: Vec<ProcessUsage>) -> ProcessUsage {
    sizes.into_iter().min_by_key(|size| size.rss_kib).expect("some measures")
}

/// Measures an idle daemon: the last result is delivered, and the next poll is in flight.
fn measure_when_idle(metadata: &MetadataService, daemon: &Daemon, guest: &TestGuest) -> ProcessUsage {
    wait_for("a poll that waits", || {
        matches!(metadata.requests().last(), Some(ServiceRequest::Poll(wait)) if *wait > 0).then_some(())
    });
    ProcessUsage::measure(daemon, guest)
}
