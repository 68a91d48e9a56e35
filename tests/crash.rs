//! Killed at any instant (contract 7): after the restart a command is done or undone, what the user changed
//! since stands, and sshd does what its files say.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use support::daemon::Daemon;
use support::metadata::Asked;
use support::strace::{self, CHANGING, Point};
use support::{Form, Guest, Key, Metadata, attach, available, detach, set_password_auth, wait_for, with};

const TOOLS: [&str; 4] = ["sshd", "ssh", "ssh-keygen", "strace"];

/// A guest, and the keys of who uses it.
struct Scene {
    metadata: Metadata,
    guest: Guest,
    /// Bound, or to be bound.
    key: Key,
    other: Key,
    /// The user's own, in the file from the start.
    own: Key,
}

impl Scene {
    /// Prepared by these commands at the console.
    fn new(prepare: fn(&Self) -> Vec<Value>) -> Self {
        let metadata = Metadata::start();
        let guest = Guest::of(Form { metadata: Some(&metadata), ..Form::default() });
        let key = |name| Key::new(&guest.folder, name);
        let (key, other, own) = (key("me"), key("other"), key("own"));
        fs::write(guest.key_file(), format!("# mine\n{}\n", own.line)).unwrap();
        let scene = Self { metadata, guest, key, other, own };
        for command in prepare(&scene) {
            let result = scene.guest.apply(&command);
            assert_eq!(result["status"], "succeeded", "{result}");
        }
        scene
    }

    /// What is ours.
    fn look(&self) -> Look {
        let file = |path: PathBuf| fs::read_to_string(path).ok();
        Look {
            key_file: file(self.guest.key_file()).unwrap(),
            drop_in: file(self.guest.drop_in()),
            binding: self.state()["binding"].clone(),
            password_auth: self.state()["passWordAuth"].clone(),
        }
    }

    /// The same, where the user has edited since.
    fn look_past_edits(&self, at: &str) -> Look {
        let look = self.look();
        Look { key_file: look.key_file.strip_suffix("# his line\n").expect(at).to_owned(), ..look }
    }

    fn state(&self) -> Value {
        let text = fs::read(self.guest.path("state/state.json")).unwrap_or_else(|_| b"{}".to_vec());
        serde_json::from_slice(&text).unwrap()
    }

    /// The user goes on with his day.
    fn user_edits(&self) {
        for (path, line) in
            [(self.guest.key_file(), "# his line\n"), (self.guest.path("sshd_config"), "# his line\n")]
        {
            let text = fs::read_to_string(&path).unwrap();
            fs::write(&path, text + line).unwrap();
        }
    }

    /// Recovery alone: a command that finds nothing to do, or the daemon.
    fn restart(&self, by_daemon: bool) {
        if by_daemon {
            let asked = self.metadata.asked().len();
            let daemon = Daemon::start(&self.guest);
            wait_for("a poll", || {
                self.metadata.asked()[asked..]
                    .iter()
                    .any(|asked| matches!(asked, Asked::Poll(_)))
                    .then_some(())
            });
            assert_eq!(daemon.terminate().code(), Some(0));
        } else {
            let result = self.guest.apply(&detach("nobodys"));
            assert!(result["reason"].is_null() || result["reason"] == "NOT_ATTACHED", "{result}");
            assert_eq!(result["changed"], false, "{result}");
        }
    }

    /// What the live files say of password login, by sshd itself.
    fn files_allow_password(&self) -> bool {
        let output =
            Command::new("/usr/sbin/sshd").arg("-T").arg("-f").arg(self.guest.path("sshd_config")).output();
        let text = String::from_utf8(output.unwrap().stdout).unwrap();
        text.lines().any(|line| line == "passwordauthentication yes")
    }

    fn temporaries(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for directory in ["", "keys", "sshd_config.d", "state", "run"] {
            let Ok(entries) = fs::read_dir(self.guest.path(directory)) else { continue };
            found.extend(
                entries
                    .flatten()
                    .map(|entry| entry.path())
                    .filter(|path| path.file_name().unwrap().to_string_lossy().contains(".keypair-agent-")),
            );
        }
        found
    }

    /// Healthy, but for what is not running.
    fn assert_healthy(&self, at: &str) {
        let report: Value = serde_json::from_slice(&self.guest.agent(&["status", "--json"]).stdout).unwrap();
        let problems: Vec<&Value> = report["problems"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|problem| !problem.as_str().unwrap().contains("not running"))
            .collect();
        assert!(problems.is_empty(), "{at}: {report}");
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Look {
    key_file: String,
    drop_in: Option<String>,
    binding: Value,
    password_auth: Value,
}

/// Kills `command` at each point of its course, and looks at what a restart makes of it.
fn at_every_point(prepare: fn(&Scene) -> Vec<Value>, command: fn(&Scene) -> Value) {
    if !available(&TOOLS) {
        return;
    }
    let scene = Scene::new(prepare);
    let points = strace::points(&scene.guest, &command(&scene), CHANGING);
    // Intent, one file at least, and the result: file, rename and directory each.
    assert!(points.len() >= 9, "{points:#?}");
    // Most of the time of each is spent waiting, so some go side by side.
    let next = AtomicUsize::new(0);
    let done = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(point) = points.get(number) else { return };
                    let is_done = at_point(prepare, command, point, number.is_multiple_of(2));
                    done.fetch_add(usize::from(is_done), Ordering::Relaxed);
                }
            });
        }
    });
    // It counts as done from the rename of the state that holds its result, and not before.
    assert_eq!(done.into_inner(), 1, "{points:#?}");
}

/// Whether the command is done, after it was killed at this point and others came.
fn at_point(
    prepare: fn(&Scene) -> Vec<Value>,
    command: fn(&Scene) -> Value,
    point: &Point,
    by_daemon: bool,
) -> bool {
    let scene = Scene::new(prepare);
    let before = scene.look();
    let command = with(command(&scene), "commandId", json!("c-1"));
    strace::killed(&scene.guest, &command, point);
    let at = format!("killed before {}", point.words);
    scene.user_edits();
    scene.restart(by_daemon);

    assert_eq!(scene.state()["intent"], json!(null), "{at}");
    assert_eq!(scene.temporaries(), Vec::<PathBuf>::new(), "{at}");
    let text = fs::read_to_string(scene.guest.path("sshd_config")).unwrap();
    assert!(text.ends_with("# his line\n"), "{at}: {text}");
    let now = scene.look_past_edits(&at);
    scene.assert_healthy(&at);
    // sshd does what the files say.
    assert_eq!(scene.guest.sshd.offers_password(), scene.files_allow_password(), "{at}");
    for key in [&scene.key, &scene.other, &scene.own] {
        let stands = now.key_file.contains(key.line.split(' ').nth(1).unwrap());
        assert_eq!(scene.guest.sshd.lets_in(key), stands, "{at}: {}", key.private.display());
    }
    if now == before {
        // It can be done now, to its end.
        let result = scene.guest.apply(&command);
        assert_eq!(
            (&result["status"], &result["changed"]),
            (&json!("succeeded"), &json!(true)),
            "{at}: {result}"
        );
        return false;
    }
    // Then it is done: not once more under its id, and with nothing left to do under another.
    let result = scene.guest.apply(&command);
    assert_eq!(
        (&result["status"], &result["changed"]),
        (&json!("succeeded"), &json!(true)),
        "{at}: {result}"
    );
    let result = scene.guest.apply(&with(command, "commandId", json!("c-2")));
    assert_eq!(
        (&result["status"], &result["changed"]),
        (&json!("succeeded"), &json!(false)),
        "{at}: {result}"
    );
    assert_eq!(scene.look_past_edits(&at), now, "{at}");
    true
}

#[test]
fn attach_with_passwords_off() {
    at_every_point(|_| vec![], |scene| attach("my-test", &scene.key, "no"));
}

#[test]
fn replace() {
    at_every_point(
        |scene| vec![attach("my-test", &scene.key, "no")],
        |scene| with(attach("other", &scene.other, "yes"), "replace", json!(true)),
    );
}

#[test]
fn detach_of_the_bound_key() {
    at_every_point(|scene| vec![attach("my-test", &scene.key, "no")], |_| detach("my-test"));
}

#[test]
fn passwords_off_and_nothing_else() {
    at_every_point(|scene| vec![attach("my-test", &scene.key, "yes")], |_| set_password_auth("no"));
}
