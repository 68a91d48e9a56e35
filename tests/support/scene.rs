//! A test guest with keys of its users, and the checks that must hold after an interruption.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use serde_json::Value;

use super::daemon::Daemon;
use super::disk::is_temp_file;
use super::metadata::ServiceRequest;
use super::{GuestOptions, MetadataService, TestGuest, TestKey, detach_command, wait_for};

pub struct InterruptionFixture {
    pub metadata: MetadataService,
    pub guest: TestGuest,
    /// The key that is bound, or that the test binds.
    pub key: TestKey,
    pub other: TestKey,
    /// The user's own key, in the file from the start.
    pub own: TestKey,
}

/// The user's key file at the start of a test.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum KeyFileSetup {
    /// A key file with a key of the user.
    WithUserKey,
    /// A key file without a key of the user: only the bound key gives access.
    WithoutUserKey,
    /// Not even the directory of the file exists. Only in a scene inside [`run_in_namespaces`].
    Missing,
}

/// Runs `work` in its own network and mount namespace, so that no other process takes sshd's port between two starts.
pub fn run_in_namespaces(work: impl FnOnce() + Send) {
    let ended = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
            run_checked(Command::new("mount").args(["--make-rprivate", "/"]));
            run_checked(Command::new("ip").args(["link", "set", "lo", "up"]));
            work();
        });
        thread.join()
    });
    if let Err(panic) = ended {
        std::panic::resume_unwind(panic);
    }
}

fn run_checked(command: &mut Command) {
    assert!(command.status().unwrap().success(), "{command:?}");
}

impl InterruptionFixture {
    /// A scene that these console commands have prepared.
    pub fn new(prepare: fn(&Self) -> Vec<Value>) -> Self {
        let scene = Self::with_key_file(KeyFileSetup::WithUserKey);
        scene.apply_all(prepare);
        scene
    }

    pub fn with_key_file(home: KeyFileSetup) -> Self {
        let metadata = MetadataService::start();
        let guest =
            TestGuest::with_options(GuestOptions { metadata: Some(&metadata), ..GuestOptions::default() });
        let key = |name| TestKey::new(&guest.folder, name);
        let (key, other, own) = (key("me"), key("other"), key("own"));
        match home {
            KeyFileSetup::WithUserKey => {
                fs::write(guest.key_file(), format!("# mine\n{}\n", own.line)).unwrap()
            }
            KeyFileSetup::WithoutUserKey => fs::write(guest.key_file(), "# mine\n").unwrap(),
            KeyFileSetup::Missing => {
                // The agent makes the key directory only below a home, so the folder becomes root's home.
                let passwd = fs::read_to_string("/etc/passwd").unwrap();
                let home = guest.folder.path().to_str().unwrap();
                fs::write(guest.path("passwd"), passwd.replacen(":/root:", &format!(":{home}:"), 1)).unwrap();
                run_checked(Command::new("mount").arg("--bind").arg(guest.path("passwd")).arg("/etc/passwd"));
                fs::remove_dir_all(guest.path("keys")).unwrap();
            }
        }
        Self { metadata, guest, key, other, own }
    }

    pub fn apply_all(&self, commands: fn(&Self) -> Vec<Value>) {
        for command in commands(self) {
            let result = self.guest.apply(&command);
            assert_eq!(result["status"], "succeeded", "{result}");
        }
    }

    /// Runs recovery and nothing else: by a command that finds nothing to do, or by the daemon.
    pub fn run_recovery(&self, by_daemon: bool) {
        if by_daemon {
            let asked = self.metadata.requests().len();
            let daemon = Daemon::start(&self.guest);
            self.wait_for_poll(asked);
            assert_eq!(daemon.terminate().code(), Some(0));
        } else {
            let result = self.guest.apply(&detach_command("nobodys"));
            assert!(result["reason"].is_null() || result["reason"] == "NOT_ATTACHED", "{result}");
            assert_eq!(result["changed"], false, "{result}");
        }
    }

    /// Waits for a poll after the first `asked` requests.
    pub fn wait_for_poll(&self, asked: usize) {
        wait_for("a poll", || {
            self.metadata.requests()[asked..]
                .iter()
                .any(|asked| matches!(asked, ServiceRequest::Poll(_)))
                .then_some(())
        });
    }

    /// The state file; an empty object if the file does not exist.
    pub fn read_state(&self) -> Value {
        let text = fs::read(self.guest.path("state/state.json")).unwrap_or_else(|_| b"{}".to_vec());
        serde_json::from_slice(&text).unwrap()
    }

    fn query_sshd(&self, option: &str) -> String {
        let mut sshd = Command::new("/usr/sbin/sshd");
        let output = sshd.arg(option).arg("-f").arg(self.guest.path("sshd_config")).output().unwrap();
        assert!(output.status.success(), "sshd {option}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Whether sshd itself, with the files on the disk, allows password login. sshd must accept the files.
    pub fn config_allows_password(&self) -> bool {
        self.query_sshd("-t");
        self.query_sshd("-T").lines().any(|line| line == "passwordauthentication yes")
    }

    pub fn list_temp_files(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for directory in ["", "keys", "sshd_config.d", "state", "run"] {
            let Ok(entries) = fs::read_dir(self.guest.path(directory)) else { continue };
            found.extend(entries.flatten().map(|entry| entry.path()).filter(|path| is_temp_file(path)));
        }
        found
    }

    /// Asserts that `status` reports a healthy guest, except for processes that do not run in the test.
    pub fn assert_healthy(&self, at: &str) {
        let report: Value =
            serde_json::from_slice(&self.guest.run_agent(&["status", "--json"]).stdout).unwrap();
        let problems: Vec<&Value> = report["problems"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|problem| !problem.as_str().unwrap().contains("not running"))
            .collect();
        assert!(problems.is_empty(), "{at}: {report}");
    }

    /// Asserts the rules that hold after each run of the agent. No intent is open, no temporary file is left, and
    /// sshd behaves as its files say. Passwords are off only if a key gives access.
    pub fn assert_settled(&self, at: &str) {
        assert_eq!(self.read_state()["intent"], Value::Null, "{at}");
        assert_eq!(self.list_temp_files(), Vec::<PathBuf>::new(), "{at}");
        self.assert_healthy(at);
        let passwords = self.config_allows_password();
        assert_eq!(self.guest.sshd.offers_password(), passwords, "{at}: sshd's files allow it: {passwords}");
        let mut lets_in = passwords;
        for key in [&self.key, &self.other, &self.own] {
            let stands = self.key_file_contains(key);
            assert_eq!(self.guest.sshd.accepts_key(key), stands, "{at}: {}", key.private.display());
            lets_in |= stands;
        }
        assert!(lets_in, "{at}: nobody gets in");
    }

    /// Whether a key is in the user's key file.
    pub fn key_file_contains(&self, key: &TestKey) -> bool {
        let text = fs::read_to_string(self.guest.key_file()).unwrap_or_default();
        text.contains(key.line.split(' ').nth(1).unwrap())
    }
}
