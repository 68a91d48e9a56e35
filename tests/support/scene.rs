//! A guest with keys of those who use it, and what is to hold of it after an interruption.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use serde_json::Value;

use super::daemon::Daemon;
use super::disk::is_temporary;
use super::metadata::Asked;
use super::{Form, Guest, Key, Metadata, detach, wait_for};

pub struct Scene {
    pub metadata: Metadata,
    pub guest: Guest,
    /// Bound, or to be bound.
    pub key: Key,
    pub other: Key,
    /// The user's own, in the file from the start.
    pub own: Key,
}

/// What the user has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Home {
    /// A key file with a key of his.
    Key,
    /// A key file without one: the bound key alone lets him in.
    NoKey,
    /// Not even the directory of the file. Only in a scene that is [`apart`].
    Nothing,
}

/// Runs in a network and with mounts of its own: nobody takes sshd's port between two boots.
pub fn apart(work: impl FnOnce() + Send) {
    let ended = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
            done(Command::new("mount").args(["--make-rprivate", "/"]));
            done(Command::new("ip").args(["link", "set", "lo", "up"]));
            work();
        });
        thread.join()
    });
    if let Err(panic) = ended {
        std::panic::resume_unwind(panic);
    }
}

fn done(command: &mut Command) {
    assert!(command.status().unwrap().success(), "{command:?}");
}

impl Scene {
    /// Prepared by these commands at the console.
    pub fn new(prepare: fn(&Self) -> Vec<Value>) -> Self {
        let scene = Self::of(Home::Key);
        scene.carry_out(prepare);
        scene
    }

    pub fn of(home: Home) -> Self {
        let metadata = Metadata::start();
        let guest = Guest::of(Form { metadata: Some(&metadata), ..Form::default() });
        let key = |name| Key::new(&guest.folder, name);
        let (key, other, own) = (key("me"), key("other"), key("own"));
        match home {
            Home::Key => fs::write(guest.key_file(), format!("# mine\n{}\n", own.line)).unwrap(),
            Home::NoKey => fs::write(guest.key_file(), "# mine\n").unwrap(),
            Home::Nothing => {
                // Below a home alone it is made: root's is the folder here.
                let passwd = fs::read_to_string("/etc/passwd").unwrap();
                let home = guest.folder.path().to_str().unwrap();
                fs::write(guest.path("passwd"), passwd.replacen(":/root:", &format!(":{home}:"), 1)).unwrap();
                done(Command::new("mount").arg("--bind").arg(guest.path("passwd")).arg("/etc/passwd"));
                fs::remove_dir_all(guest.path("keys")).unwrap();
            }
        }
        Self { metadata, guest, key, other, own }
    }

    pub fn carry_out(&self, commands: fn(&Self) -> Vec<Value>) {
        for command in commands(self) {
            let result = self.guest.apply(&command);
            assert_eq!(result["status"], "succeeded", "{result}");
        }
    }

    /// Recovery alone: a command that finds nothing to do, or the daemon.
    pub fn restart(&self, by_daemon: bool) {
        if by_daemon {
            let asked = self.metadata.asked().len();
            let daemon = Daemon::start(&self.guest);
            self.wait_for_a_poll(asked);
            assert_eq!(daemon.terminate().code(), Some(0));
        } else {
            let result = self.guest.apply(&detach("nobodys"));
            assert!(result["reason"].is_null() || result["reason"] == "NOT_ATTACHED", "{result}");
            assert_eq!(result["changed"], false, "{result}");
        }
    }

    /// Waits for a poll behind the first `asked` questions.
    pub fn wait_for_a_poll(&self, asked: usize) {
        wait_for("a poll", || {
            self.metadata.asked()[asked..].iter().any(|asked| matches!(asked, Asked::Poll(_))).then_some(())
        });
    }

    /// The state file; empty where there is none.
    pub fn state(&self) -> Value {
        let text = fs::read(self.guest.path("state/state.json")).unwrap_or_else(|_| b"{}".to_vec());
        serde_json::from_slice(&text).unwrap()
    }

    fn ask_sshd(&self, option: &str) -> String {
        let mut sshd = Command::new("/usr/sbin/sshd");
        let output = sshd.arg(option).arg("-f").arg(self.guest.path("sshd_config")).output().unwrap();
        assert!(output.status.success(), "sshd {option}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What the live files say of password login, by sshd itself, which must take them.
    pub fn files_allow_password(&self) -> bool {
        self.ask_sshd("-t");
        self.ask_sshd("-T").lines().any(|line| line == "passwordauthentication yes")
    }

    pub fn temporaries(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for directory in ["", "keys", "sshd_config.d", "state", "run"] {
            let Ok(entries) = fs::read_dir(self.guest.path(directory)) else { continue };
            found.extend(entries.flatten().map(|entry| entry.path()).filter(|path| is_temporary(path)));
        }
        found
    }

    /// Healthy, but for what is not running.
    pub fn assert_healthy(&self, at: &str) {
        let report: Value = serde_json::from_slice(&self.guest.agent(&["status", "--json"]).stdout).unwrap();
        let problems: Vec<&Value> = report["problems"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|problem| !problem.as_str().unwrap().contains("not running"))
            .collect();
        assert!(problems.is_empty(), "{at}: {report}");
    }

    /// What must hold whenever the agent has been at work: nothing is open or left over, sshd does what its files
    /// say, and passwords are off only where a key lets in.
    pub fn assert_settled(&self, at: &str) {
        assert_eq!(self.state()["intent"], Value::Null, "{at}");
        assert_eq!(self.temporaries(), Vec::<PathBuf>::new(), "{at}");
        self.assert_healthy(at);
        let passwords = self.files_allow_password();
        assert_eq!(self.guest.sshd.offers_password(), passwords, "{at}: sshd's files allow it: {passwords}");
        let mut lets_in = passwords;
        for key in [&self.key, &self.other, &self.own] {
            let stands = self.stands(key);
            assert_eq!(self.guest.sshd.lets_in(key), stands, "{at}: {}", key.private.display());
            lets_in |= stands;
        }
        assert!(lets_in, "{at}: nobody gets in");
    }

    /// Whether a key is in the user's file.
    pub fn stands(&self, key: &Key) -> bool {
        let text = fs::read_to_string(self.guest.key_file()).unwrap_or_default();
        text.contains(key.line.split(' ').nth(1).unwrap())
    }
}
