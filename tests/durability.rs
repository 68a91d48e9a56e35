//! The order in which changes become durable (KP-7.2). A kill does not reveal a missing fsync, since the page cache
//! survives it. Therefore the tests read the system calls: each change must come after the sync of all that it needs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use support::daemon::make_channel_command;
use support::disk::is_temp_file;
use support::scene::{InterruptionFixture, KeyFileSetup, run_in_namespaces};
use support::strace::{self, DiskCall, SyscallPoint};
use support::{attach_command, detach_command, has_tools, set_password_auth_command, with_field};

const TOOLS: [&str; 4] = ["sshd", "ssh", "ssh-keygen", "strace"];

/// The durable content of the disk, call by call.
#[derive(Default)]
struct SyncTracker {
    /// Files with bytes or attributes that are not synced.
    files: BTreeSet<PathBuf>,
    /// Directories with an entry that came or went and is not synced.
    directories: BTreeSet<PathBuf>,
    /// The number of renames of the state file.
    state_renames: usize,
    reloads: usize,
    reports: usize,
}

impl SyncTracker {
    /// Records a call. Returns an error if the call comes too early in the order.
    fn record(&mut self, call: &DiskCall, state_dir: &Path) -> Result<(), String> {
        match call {
            // An empty file is of no use yet.
            DiskCall::Create(path, _)
            | DiskCall::Write(path, _)
            | DiskCall::Chmod(path, _)
            | DiskCall::Chown(path, ..)
            | DiskCall::OtherChange(path) => {
                self.files.insert(path.clone());
            }
            DiskCall::Fsync(path) => {
                self.files.remove(path);
                self.directories.remove(path);
            }
            DiskCall::Rename(from, to) => {
                if self.files.remove(from) {
                    return Err(format!("{} takes its name before its bytes are synced", to.display()));
                }
                let directory = to.parent().unwrap();
                if directory == state_dir {
                    self.check_all_synced("the state is written")?;
                    self.state_renames += 1;
                }
                self.directories.insert(directory.to_owned());
            }
            DiskCall::Mkdir(path, _) => {
                self.directories.insert(path.parent().unwrap().to_owned());
            }
            DiskCall::Unlink(path) | DiskCall::Rmdir(path) => {
                self.files.remove(path);
                self.directories.remove(path);
                self.directories.insert(path.parent().unwrap().to_owned());
            }
            DiskCall::Signal => {
                self.check_all_synced("sshd is told")?;
                self.reloads += 1;
            }
            DiskCall::PutResult => {
                self.check_all_synced("the result is reported")?;
                self.reports += 1;
            }
        }
        Ok(())
    }

    fn check_all_synced(&self, what: &str) -> Result<(), String> {
        match self.directories.first() {
            None => Ok(()),
            Some(directory) => Err(format!("{what} before {} is synced", directory.display())),
        }
    }
}

/// Replays all calls of a command, and returns the final tracker.
fn replay_calls(calls: &[DiskCall], state_dir: &Path) -> Result<SyncTracker, String> {
    let mut disk = SyncTracker::default();
    for (number, call) in calls.iter().enumerate() {
        disk.record(call, state_dir).map_err(|error| format!("call {number}, {call:?}: {error}"))?;
    }
    disk.check_all_synced("it ends")?;
    Ok(disk)
}

/// Asserts that a command, by `apply` and by `run`, syncs in order, and that each of its syncs is necessary.
fn assert_sync_order(
    files: usize,
    reloads: usize,
    prepare: fn(&InterruptionFixture) -> Vec<Value>,
    command: fn(&InterruptionFixture) -> Value,
) {
    if !has_tools(&TOOLS) {
        return;
    }
    let scene = InterruptionFixture::new(prepare);
    let by_hand = strace::trace_apply(&scene.guest, &command(&scene));
    let reports = assert_syncs_are_needed(&by_hand, &scene.guest.path("state"), files, reloads);
    assert_eq!(reports, 0, "apply reports nothing");

    let scene = InterruptionFixture::new(prepare);
    scene.metadata.queue(make_channel_command("c-1", 7, command(&scene)));
    let by_daemon = strace::trace_run(&scene.guest, || drop(scene.metadata.wait_for_result("c-1")));
    let reports = assert_syncs_are_needed(&by_daemon, &scene.guest.path("state"), files, reloads);
    assert_eq!(reports, 1, "{by_daemon:#?}");
}

/// Asserts the order, and that the check would notice each missing sync. Returns the number of results that were
/// sent.
fn assert_syncs_are_needed(calls: &[DiskCall], state_dir: &Path, files: usize, reloads: usize) -> usize {
    let disk = replay_calls(calls, state_dir).unwrap_or_else(|error| panic!("{error}\n{calls:#?}"));
    // At least one for the intent and one for the result.
    assert!(disk.state_renames >= 2, "{calls:#?}");
    assert_eq!(disk.reloads, reloads, "{calls:#?}");
    let renames = calls.iter().filter(|call| matches!(call, DiskCall::Rename(..))).count();
    assert_eq!(renames - disk.state_renames, files, "{calls:#?}");
    let needed = calls.iter().enumerate().filter(|(_, call)| matches!(call, DiskCall::Fsync(_))).filter(
        |(number, _)| {
            let without: Vec<DiskCall> = calls
                .iter()
                .enumerate()
                .filter(|(other, _)| other != number)
                .map(|(_, call)| call.clone())
                .collect();
            replay_calls(&without, state_dir).is_err()
        },
    );
    // Each renamed file has its own sync and the sync of its directory.
    assert!(needed.count() >= 2 * renames, "{calls:#?}");
    disk.reports
}

/// KP-5.10, KP-7.2.
#[test]
fn attach_with_passwords_off_syncs_in_order() {
    assert_sync_order(2, 1, |_| vec![], |scene| attach_command("my-test", &scene.key, "no"));
}

/// KP-7.2.
#[test]
fn replace_syncs_in_order() {
    assert_sync_order(
        2,
        1,
        |scene| vec![attach_command("my-test", &scene.key, "yes")],
        |scene| with_field(attach_command("other", &scene.other, "no"), "replace", json!(true)),
    );
}

/// KP-6.22, KP-7.2.
#[test]
fn detach_syncs_in_order() {
    assert_sync_order(
        1,
        0,
        |scene| vec![attach_command("my-test", &scene.key, "no")],
        |_| detach_command("my-test"),
    );
}

#[test]
fn password_auth_yes_syncs_in_order() {
    assert_sync_order(
        1,
        1,
        |scene| vec![attach_command("my-test", &scene.key, "no")],
        |_| set_password_auth_command("yes"),
    );
}

/// Lets the `fsync` of the first temporary file in this directory fail.
fn assert_fsync_failure_is_cleaned_up(home: KeyFileSetup, directory: &str) {
    let command = |scene: &InterruptionFixture| attach_command("my-test", &scene.key, "no");
    // Finds the number of that call.
    let mut nth = 0;
    run_in_namespaces(|| {
        let scene = InterruptionFixture::with_key_file(home);
        let calls = strace::trace_apply(&scene.guest, &command(&scene));
        let place = scene.guest.path(directory);
        let syncs = calls.iter().filter_map(|call| match call {
            DiskCall::Fsync(path) => Some(path),
            _ => None,
        });
        let is_in_place = |path: &PathBuf| is_temp_file(path) && path.parent() == Some(&place);
        nth = 1 + syncs.clone().position(is_in_place).unwrap_or_else(|| panic!("{calls:#?}"));
    });
    run_in_namespaces(|| {
        let scene = InterruptionFixture::with_key_file(home);
        let inject = format!("inject=fsync:error=EIO:when={nth}");
        let calls = strace::trace_failing_apply(&scene.guest, &command(&scene), &inject);
        let state = scene.read_state();
        assert!(state["results"][0]["result"].as_str().unwrap().contains("IO_ERROR"), "{state}");
        let is_gone = |call: &DiskCall| matches!(call, DiskCall::Unlink(path) if is_temp_file(path));
        assert!(calls.iter().any(is_gone), "{calls:#?}");
        let is_taken_back = calls.iter().any(|call| matches!(call, DiskCall::Rmdir(_)));
        assert_eq!(is_taken_back, home == KeyFileSetup::Missing, "{calls:#?}");
        replay_calls(&calls, &scene.guest.path("state"))
            .unwrap_or_else(|error| panic!("{error}\n{calls:#?}"));
    });
}

#[test]
fn failed_fsync_leaves_no_temporary_file() {
    if !has_tools(&TOOLS) || !has_tools(&["ip", "mount"]) {
        return;
    }
    assert_fsync_failure_is_cleaned_up(KeyFileSetup::WithoutUserKey, "keys");
    assert_fsync_failure_is_cleaned_up(KeyFileSetup::WithoutUserKey, "sshd_config.d");
    assert_fsync_failure_is_cleaned_up(KeyFileSetup::Missing, "keys");
}

#[test]
fn rollback_syncs_in_order() {
    if !has_tools(&TOOLS) || !has_tools(&["ip", "mount"]) {
        return;
    }
    let reload = SyscallPoint { call: "kill".to_owned(), nth: 1, words: "the reload".to_owned() };
    let drop_in = SyscallPoint { call: "renameat2".to_owned(), nth: 1, words: "the new drop-in".to_owned() };
    for (home, point) in [
        (KeyFileSetup::WithoutUserKey, &reload),
        (KeyFileSetup::Missing, &reload),
        (KeyFileSetup::WithoutUserKey, &drop_in),
    ] {
        run_in_namespaces(|| {
            let scene = InterruptionFixture::with_key_file(home);
            // Creates a state file, so that a later write replaces one.
            scene.apply_all(|_| vec![detach_command("nobodys")]);
            strace::kill_apply_at(&scene.guest, &attach_command("my-test", &scene.key, "no"), point);
            let calls = strace::trace_apply(&scene.guest, &detach_command("nobodys"));
            assert!(calls.iter().any(|call| matches!(call, DiskCall::Unlink(_))), "{calls:#?}");
            replay_calls(&calls, &scene.guest.path("state"))
                .unwrap_or_else(|error| panic!("{error}\n{calls:#?}"));
        });
    }
}
