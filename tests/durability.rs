//! The order of what becomes durable (KP-7.2). A kill does not show a missing fsync, since the page cache survives
//! it; so the calls themselves are read: nothing may come before what it relies on is on the disk.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use support::daemon::queued;
use support::disk::is_temporary;
use support::scene::{Home, Scene, apart};
use support::strace::{self, Call, Point};
use support::{attach, available, detach, set_password_auth, with};

const TOOLS: [&str; 4] = ["sshd", "ssh", "ssh-keygen", "strace"];

/// What the disk holds for certain, call by call.
#[derive(Default)]
struct Disk {
    /// Files with bytes or attributes that are not synced.
    files: BTreeSet<PathBuf>,
    /// Directories with an entry that came or went and is not synced.
    directories: BTreeSet<PathBuf>,
    /// Whether the state's last rename was seen, and its directory synced since: something is promised.
    state_renames: usize,
    reloads: usize,
    reports: usize,
}

impl Disk {
    /// Takes a call in; what is wrong with its place in the order.
    fn after(&mut self, call: &Call, state_dir: &Path) -> Result<(), String> {
        match call {
            // An empty file is of no use yet.
            Call::Create(path, _)
            | Call::Write(path, _)
            | Call::Mode(path, _)
            | Call::Owner(path, ..)
            | Call::Change(path) => {
                self.files.insert(path.clone());
            }
            Call::Sync(path) => {
                self.files.remove(path);
                self.directories.remove(path);
            }
            Call::Rename(from, to) => {
                if self.files.remove(from) {
                    return Err(format!("{} takes its name before its bytes are synced", to.display()));
                }
                let directory = to.parent().unwrap();
                if directory == state_dir {
                    self.nothing_is_open("the state is written")?;
                    self.state_renames += 1;
                }
                self.directories.insert(directory.to_owned());
            }
            Call::MakeDirectory(path, _) => {
                self.directories.insert(path.parent().unwrap().to_owned());
            }
            Call::Unlink(path) | Call::RemoveDirectory(path) => {
                self.files.remove(path);
                self.directories.remove(path);
                self.directories.insert(path.parent().unwrap().to_owned());
            }
            Call::Signal => {
                self.nothing_is_open("sshd is told")?;
                self.reloads += 1;
            }
            Call::Report => {
                self.nothing_is_open("the result is reported")?;
                self.reports += 1;
            }
        }
        Ok(())
    }

    fn nothing_is_open(&self, what: &str) -> Result<(), String> {
        match self.directories.first() {
            None => Ok(()),
            Some(directory) => Err(format!("{what} before {} is synced", directory.display())),
        }
    }
}

/// Reads a whole course; what it did.
fn course(calls: &[Call], state_dir: &Path) -> Result<Disk, String> {
    let mut disk = Disk::default();
    for (number, call) in calls.iter().enumerate() {
        disk.after(call, state_dir).map_err(|error| format!("call {number}, {call:?}: {error}"))?;
    }
    disk.nothing_is_open("it ends")?;
    Ok(disk)
}

/// The course of a command, by `apply` and by `run`: in order, and each of its syncs needed by the order.
fn in_order(files: usize, reloads: usize, prepare: fn(&Scene) -> Vec<Value>, command: fn(&Scene) -> Value) {
    if !available(&TOOLS) {
        return;
    }
    let scene = Scene::new(prepare);
    let by_hand = strace::calls_of_apply(&scene.guest, &command(&scene));
    let reports = held(&by_hand, &scene.guest.path("state"), files, reloads);
    assert_eq!(reports, 0, "apply reports nothing");

    let scene = Scene::new(prepare);
    scene.metadata.queue(queued("c-1", 7, command(&scene)));
    let by_daemon = strace::calls_of_run(&scene.guest, || drop(scene.metadata.wait_for_result("c-1")));
    let reports = held(&by_daemon, &scene.guest.path("state"), files, reloads);
    assert_eq!(reports, 1, "{by_daemon:#?}");
}

/// Holds the order, and that the check would miss none of the syncs; how many results went out.
fn held(calls: &[Call], state_dir: &Path, files: usize, reloads: usize) -> usize {
    let disk = course(calls, state_dir).unwrap_or_else(|error| panic!("{error}\n{calls:#?}"));
    // Intent and result at least.
    assert!(disk.state_renames >= 2, "{calls:#?}");
    assert_eq!(disk.reloads, reloads, "{calls:#?}");
    let renames = calls.iter().filter(|call| matches!(call, Call::Rename(..))).count();
    assert_eq!(renames - disk.state_renames, files, "{calls:#?}");
    let needed =
        calls.iter().enumerate().filter(|(_, call)| matches!(call, Call::Sync(_))).filter(|(number, _)| {
            let without: Vec<Call> = calls
                .iter()
                .enumerate()
                .filter(|(other, _)| other != number)
                .map(|(_, call)| call.clone())
                .collect();
            course(&without, state_dir).is_err()
        });
    // Each file that took a name has its own sync and its directory's.
    assert!(needed.count() >= 2 * renames, "{calls:#?}");
    disk.reports
}

/// KP-5.10, KP-7.2.
#[test]
fn an_attach_with_passwords_off() {
    in_order(2, 1, |_| vec![], |scene| attach("my-test", &scene.key, "no"));
}

/// KP-7.2.
#[test]
fn a_replace() {
    in_order(
        2,
        1,
        |scene| vec![attach("my-test", &scene.key, "yes")],
        |scene| with(attach("other", &scene.other, "no"), "replace", json!(true)),
    );
}

/// KP-6.22, KP-7.2.
#[test]
fn a_detach() {
    in_order(1, 0, |scene| vec![attach("my-test", &scene.key, "no")], |_| detach("my-test"));
}

#[test]
fn passwords_on_again() {
    in_order(1, 1, |scene| vec![attach("my-test", &scene.key, "no")], |_| set_password_auth("yes"));
}

/// The command is refused its `fsync` of the first temporary in this directory.
fn fails_at(home: Home, directory: &str) {
    let command = |scene: &Scene| attach("my-test", &scene.key, "no");
    // Which one that is.
    let mut nth = 0;
    apart(|| {
        let scene = Scene::of(home);
        let calls = strace::calls_of_apply(&scene.guest, &command(&scene));
        let place = scene.guest.path(directory);
        let syncs = calls.iter().filter_map(|call| match call {
            Call::Sync(path) => Some(path),
            _ => None,
        });
        let is_in_place = |path: &PathBuf| is_temporary(path) && path.parent() == Some(&place);
        nth = 1 + syncs.clone().position(is_in_place).unwrap_or_else(|| panic!("{calls:#?}"));
    });
    apart(|| {
        let scene = Scene::of(home);
        let inject = format!("inject=fsync:error=EIO:when={nth}");
        let calls = strace::calls_of_failing_apply(&scene.guest, &command(&scene), &inject);
        let state = scene.state();
        assert!(state["results"][0]["result"].as_str().unwrap().contains("IO_ERROR"), "{state}");
        let is_gone = |call: &Call| matches!(call, Call::Unlink(path) if is_temporary(path));
        assert!(calls.iter().any(is_gone), "{calls:#?}");
        let is_taken_back = calls.iter().any(|call| matches!(call, Call::RemoveDirectory(_)));
        assert_eq!(is_taken_back, home == Home::Nothing, "{calls:#?}");
        course(&calls, &scene.guest.path("state")).unwrap_or_else(|error| panic!("{error}\n{calls:#?}"));
    });
}

#[test]
fn what_fails_leaves_nothing_that_comes_back() {
    if !available(&TOOLS) || !available(&["ip", "mount"]) {
        return;
    }
    fails_at(Home::NoKey, "keys");
    fails_at(Home::NoKey, "sshd_config.d");
    fails_at(Home::Nothing, "keys");
}

#[test]
fn what_is_taken_back_is_in_order_too() {
    if !available(&TOOLS) || !available(&["ip", "mount"]) {
        return;
    }
    let reload = Point { call: "kill".to_owned(), nth: 1, words: "the reload".to_owned() };
    let drop_in = Point { call: "renameat2".to_owned(), nth: 1, words: "the new drop-in".to_owned() };
    for (home, point) in [(Home::NoKey, &reload), (Home::Nothing, &reload), (Home::NoKey, &drop_in)] {
        apart(|| {
            let scene = Scene::of(home);
            // So that there is a state file to replace.
            scene.carry_out(|_| vec![detach("nobodys")]);
            strace::killed(&scene.guest, &attach("my-test", &scene.key, "no"), point);
            let calls = strace::calls_of_apply(&scene.guest, &detach("nobodys"));
            assert!(calls.iter().any(|call| matches!(call, Call::Unlink(_))), "{calls:#?}");
            course(&calls, &scene.guest.path("state")).unwrap_or_else(|error| panic!("{error}\n{calls:#?}"));
        });
    }
}
