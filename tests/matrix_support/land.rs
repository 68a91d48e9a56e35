//! A guest for tests that change it between commands: real logins before and after, and what the agent says.

use std::fs;
use std::process::{Command, Output};

use serde_json::{Value, json};

use super::client::{Seen, Way, With, login, login_with};
use super::course::questions;
use super::guest::Guest;
use super::lab::Lab;
use super::row::Row;
use super::snapshot::Snapshot;
use crate::support::{self, Key, available, wait_for, with};

const TOOLS: [&str; 12] = [
    "sshd",
    "ssh",
    "ssh-keygen",
    "unshare",
    "nsenter",
    "ip",
    "chroot",
    "timeout",
    "ps",
    "useradd",
    "usermod",
    "userdel",
];

const CONFIG: &str = "Include /etc/ssh/sshd_config.d/*.conf\nPermitRootLogin yes\nUsePAM yes\n\
                      KbdInteractiveAuthentication no\n";

/// The key file of the user `u`, empty.
pub const OWN_FILE: &str = "install -d -o 4242 -g 4242 -m 700 /home/u/.ssh; \
                            install -o 4242 -g 4242 -m 600 /dev/null /home/u/.ssh/authorized_keys";

/// Another user, `v`.
pub const SECOND_USER: &str = "useradd -m -u 4300 -s /bin/sh v; ";

/// A guest for the user `u`, with this setup and further lines of sshd's configuration.
pub struct Land<'a> {
    pub lab: &'a Lab,
    pub guest: Guest<'a>,
}

fn can_run() -> bool {
    let mount = "mount -t tmpfs t /mnt && mkdir /mnt/u /mnt/w /mnt/r && \
                 mount -t overlay -o lowerdir=/,upperdir=/mnt/u,workdir=/mnt/w o /mnt/r";
    available(&TOOLS)
        && Command::new("unshare").args(["--mount", "--net", "sh", "-c", mount]).status().unwrap().success()
}

/// A guest, if this machine lets us make one.
pub fn land(user: &str, setup: &str, lines: &str, work: impl FnOnce(&Land<'_>)) {
    land_with(user, setup, &format!("{CONFIG}{lines}"), work);
}

/// The same with all of sshd's main file.
pub fn land_with(user: &str, setup: &str, config: &str, work: impl FnOnce(&Land<'_>)) {
    if !can_run() {
        eprintln!("SKIPPED: no guest can be made here");
        return;
    }
    let lab = Lab::new();
    let text = json!({ "user": user, "setup": setup, "config": config });
    let row: Row = toml::from_str(&format!(
        "what = \"\"\nsource = \"hostile\"\nuser = {}\nsetup = {}\n[files]\n\"/etc/ssh/sshd_config\" = {}\n[no]\n[yes]\n",
        text["user"], text["setup"], text["config"]
    ))
    .unwrap();
    let guest = Guest::new(&lab, &row).unwrap();
    work(&Land { lab: &lab, guest });
}

impl Land<'_> {
    pub fn sh(&self, script: &str) {
        // An account cannot be changed while a session of it ends.
        let ended = "timeout 60 sh -c 'while ps -u u || ps -u v; do sleep 0.1; done' >/dev/null 2>&1; ";
        let ended = if script.contains("usermod") || script.contains("userdel") { ended } else { "" };
        self.guest.shell(&format!("{ended}{script}")).unwrap();
    }

    pub fn agent(&self, words: &[&str], input: &str) -> Output {
        self.guest.agent(&[], words, input)
    }

    pub fn apply(&self, command: &Value) -> Value {
        Self::result(&self.agent(&["apply", "-"], &command.to_string()))
    }

    /// The result that was printed.
    pub fn result(output: &Output) -> Value {
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
    }

    pub fn done(&self, command: &Value) -> Value {
        let result = self.apply(command);
        assert_eq!(result["status"], "succeeded", "{result}");
        result
    }

    pub fn refused(&self, command: &Value, reason: &str, says: &str) -> Value {
        let result = self.apply(command);
        assert_eq!(result["reason"], reason, "{result}");
        assert!(result["message"].as_str().unwrap().contains(says), "{says}: {result}");
        result
    }

    pub fn key(&self) -> &Key {
        &self.lab.ed25519
    }

    pub fn attach(&self, password_auth: &str) -> Value {
        support::attach("k", self.key(), password_auth)
    }

    /// The second key in the place of whatever is bound.
    pub fn replace(&self, password_auth: &str) -> Value {
        with(support::attach("l", &self.lab.second, password_auth), "replace", json!(true))
    }

    pub fn lets_in(&self, user: &str) -> bool {
        self.takes(user, self.key())
    }

    /// Whether a real login with this key gets in.
    pub fn takes(&self, user: &str, key: &Key) -> bool {
        login(self.lab, &self.guest, &self.way(user), With::Key(&key.private)).let_in
    }

    /// Whether a real login with the password gets in.
    pub fn takes_password(&self, user: &str) -> bool {
        login(self.lab, &self.guest, &self.way(user), With::Password).let_in
    }

    /// A login with further words for ssh(1).
    pub fn login_with(&self, user: &str, how: With<'_>, words: &[&str]) -> Seen {
        login_with(self.lab, &self.guest, &self.way(user), how, words)
    }

    fn way(&self, user: &str) -> Way {
        Way { user: user.to_owned(), from: None, to: "10.99.0.1".to_owned(), port: 22 }
    }

    /// How many connections from loopback the running sshd had, and its log. It has to have `LogLevel VERBOSE`.
    pub fn questions(&self) -> (usize, String) {
        // What it said before it said this is there, too.
        let from = self.lab.client_address("10.99.0.1");
        let way = Way { from: Some(from.clone()), ..self.way("root") };
        login(self.lab, &self.guest, &way, With::Nothing);
        let seen = format!("Connection from {from} ");
        let log = wait_for("sshd's log of a connection", || {
            Some(self.guest.log()).filter(|log| log.contains(&seen))
        });
        (questions(&log), log)
    }

    pub fn text(&self, path: &str) -> String {
        fs::read_to_string(self.guest.at(path)).unwrap_or_default()
    }

    pub fn blocks(&self, path: &str) -> usize {
        self.text(path).matches("# BEGIN keypair-agent").count()
    }

    pub fn state(&self) -> Value {
        serde_json::from_str(&self.text("/var/lib/keypair-agent/state.json")).unwrap()
    }

    /// sshd's files and those of the user `u`.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::of(&self.guest, "/home/u".as_ref(), &[])
    }

    /// As 3.1.0 wrote it.
    pub fn make_the_state_older(&self) {
        let mut state = self.state();
        let binding = state["binding"].as_object_mut().unwrap();
        assert!(binding.remove("uid").is_some() && binding.remove("mount").is_some());
        fs::write(self.guest.at("/var/lib/keypair-agent/state.json"), state.to_string()).unwrap();
    }

    pub fn target(&self, user: &str) {
        self.guest.write("/etc/keypair-agent/config.toml", &format!("target_user = \"{user}\"\n")).unwrap();
    }

    /// sshd reads its files anew.
    pub fn reload(&self) {
        let restarts = || self.guest.log().matches("Received SIGHUP; restarting").count();
        let before = restarts();
        self.sh("kill -HUP $(cat /run/sshd.pid)");
        wait_for("sshd to listen again", || {
            let log = self.guest.log();
            let listens =
                log.rsplit("Received SIGHUP; restarting").next().unwrap().contains("Server listening on ");
            (restarts() > before && listens).then_some(())
        });
    }

    pub fn undone(&self) {
        let output = self.agent(&["undo"], "");
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }

    pub fn said(output: &Output) -> String {
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    }
}
