//! A guest for tests that change it between commands, with real logins and the agent's output.

use std::fs;
use std::process::{Command, Output};

use serde_json::{Value, json};

use super::client::{Credential, LoginAttempt, LoginTarget, login, login_with_options};
use super::course::count_loopback_connections;
use super::guest::NamespaceGuest;
use super::lab::MatrixEnvironment;
use super::row::MatrixCase;
use super::snapshot::Snapshot;
use crate::support::{self, TestKey, has_tools, wait_for, with_field};

const REQUIRED_TOOLS: [&str; 12] = [
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

/// Creates the key file of the user `u`, empty.
pub const OWN_FILE: &str = "install -d -o 4242 -g 4242 -m 700 /home/u/.ssh; \
                            install -o 4242 -g 4242 -m 600 /dev/null /home/u/.ssh/authorized_keys";

/// Creates another user, `v`.
pub const SECOND_USER: &str = "useradd -m -u 4300 -s /bin/sh v; ";

/// A guest for the user `u`, with a set-up script and further lines of sshd's configuration.
pub struct GuestFixture<'a> {
    pub lab: &'a MatrixEnvironment,
    pub guest: NamespaceGuest<'a>,
}

fn can_mount_overlay() -> bool {
    let mount = "mount -t tmpfs t /mnt && mkdir /mnt/u /mnt/w /mnt/r && \
                 mount -t overlay -o lowerdir=/,upperdir=/mnt/u,workdir=/mnt/w o /mnt/r";
    has_tools(&REQUIRED_TOOLS)
        && Command::new("unshare").args(["--mount", "--net", "sh", "-c", mount]).status().unwrap().success()
}

/// Runs a test in a new guest, if this machine permits guests.
pub fn with_guest(user: &str, setup: &str, lines: &str, work: impl FnOnce(&GuestFixture<'_>)) {
    with_guest_config(user, setup, &format!("{CONFIG}{lines}"), work);
}

/// The same with a whole main file of sshd.
pub fn with_guest_config(user: &str, setup: &str, config: &str, work: impl FnOnce(&GuestFixture<'_>)) {
    if !can_mount_overlay() {
        eprintln!("SKIPPED: no guest can be made here");
        return;
    }
    let lab = MatrixEnvironment::new();
    let text = json!({ "user": user, "setup": setup, "config": config });
    let row: MatrixCase = toml::from_str(&format!(
        "what = \"\"\nsource = \"hostile\"\nuser = {}\nsetup = {}\n[files]\n\"/etc/ssh/sshd_config\" = {}\n[no]\n[yes]\n",
        text["user"], text["setup"], text["config"]
    ))
    .unwrap();
    let guest = NamespaceGuest::new(&lab, &row).unwrap();
    work(&GuestFixture { lab: &lab, guest });
}

impl GuestFixture<'_> {
    pub fn run_script(&self, script: &str) {
        // An account cannot be changed until all its sessions have ended.
        let ended = "timeout 60 sh -c 'while ps -u u || ps -u v; do sleep 0.1; done' >/dev/null 2>&1; ";
        let ended = if script.contains("usermod") || script.contains("userdel") { ended } else { "" };
        self.guest.run_script(&format!("{ended}{script}")).unwrap();
    }

    pub fn run_agent(&self, words: &[&str], input: &str) -> Output {
        self.guest.run_agent(&[], words, input)
    }

    pub fn apply(&self, command: &Value) -> Value {
        Self::parse_result(&self.run_agent(&["apply", "-"], &command.to_string()))
    }

    /// The result in the output.
    pub fn parse_result(output: &Output) -> Value {
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
    }

    pub fn apply_ok(&self, command: &Value) -> Value {
        let result = self.apply(command);
        assert_eq!(result["status"], "succeeded", "{result}");
        result
    }

    pub fn assert_refused(&self, command: &Value, reason: &str, says: &str) -> Value {
        let result = self.apply(command);
        assert_eq!(result["reason"], reason, "{result}");
        assert!(result["message"].as_str().unwrap().contains(says), "{says}: {result}");
        result
    }

    pub fn key(&self) -> &TestKey {
        &self.lab.ed25519
    }

    pub fn attach_command(&self, password_auth: &str) -> Value {
        support::attach_command("k", self.key(), password_auth)
    }

    /// The command that replaces the bound key by the second key.
    pub fn replace_command(&self, password_auth: &str) -> Value {
        with_field(support::attach_command("l", &self.lab.second, password_auth), "replace", json!(true))
    }

    pub fn accepts_bound_key(&self, user: &str) -> bool {
        self.accepts_key(user, self.key())
    }

    /// Whether a real login with this key succeeds.
    pub fn accepts_key(&self, user: &str, key: &TestKey) -> bool {
        login(self.lab, &self.guest, &self.target_for(user), Credential::Key(&key.private)).let_in
    }

    /// Whether a real login with the password succeeds.
    pub fn accepts_password(&self, user: &str) -> bool {
        login(self.lab, &self.guest, &self.target_for(user), Credential::Password).let_in
    }

    /// A login with further options for ssh(1).
    pub fn login_with(&self, user: &str, how: Credential<'_>, words: &[&str]) -> LoginAttempt {
        login_with_options(self.lab, &self.guest, &self.target_for(user), how, words)
    }

    fn target_for(&self, user: &str) -> LoginTarget {
        LoginTarget { user: user.to_owned(), from: None, to: "10.99.0.1".to_owned(), port: 22 }
    }

    /// The number of connections from loopback to the running sshd, and its log. sshd needs `LogLevel VERBOSE`.
    pub fn read_loopback_connections(&self) -> (usize, String) {
        // A login from a new address marks the end: earlier messages are in the log when its message is.
        let from = self.lab.next_client_address("10.99.0.1");
        let way = LoginTarget { from: Some(from.clone()), ..self.target_for("root") };
        login(self.lab, &self.guest, &way, Credential::None);
        let seen = format!("Connection from {from} ");
        let log = wait_for("sshd's log of a connection", || {
            Some(self.guest.log()).filter(|log| log.contains(&seen))
        });
        (count_loopback_connections(&log), log)
    }

    pub fn read_text(&self, path: &str) -> String {
        fs::read_to_string(self.guest.host_path(path)).unwrap_or_default()
    }

    pub fn count_blocks(&self, path: &str) -> usize {
        self.read_text(path).matches("# BEGIN keypair-agent").count()
    }

    pub fn read_state(&self) -> Value {
        serde_json::from_str(&self.read_text("/var/lib/keypair-agent/state.json")).unwrap()
    }

    /// A snapshot of sshd's files and of the files of the user `u`.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::capture(&self.guest, "/home/u".as_ref(), &[])
    }

    /// Rewrites the state in the format of 3.1.0.
    pub fn downgrade_state(&self) {
        let mut state = self.read_state();
        let binding = state["binding"].as_object_mut().unwrap();
        assert!(binding.remove("uid").is_some() && binding.remove("mount").is_some());
        fs::write(self.guest.host_path("/var/lib/keypair-agent/state.json"), state.to_string()).unwrap();
    }

    pub fn set_target_user(&self, user: &str) {
        self.guest.write("/etc/keypair-agent/config.toml", &format!("target_user = \"{user}\"\n")).unwrap();
    }

    /// Reloads sshd.
    pub fn reload_sshd(&self) {
        let restarts = || self.guest.log().matches("Received SIGHUP; restarting").count();
        let before = restarts();
        self.run_script("kill -HUP $(cat /run/sshd.pid)");
        wait_for("sshd to listen again", || {
            let log = self.guest.log();
            let listens =
                log.rsplit("Received SIGHUP; restarting").next().unwrap().contains("Server listening on ");
            (restarts() > before && listens).then_some(())
        });
    }

    pub fn assert_undo(&self) {
        let output = self.run_agent(&["undo"], "");
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }

    pub fn combine_output(output: &Output) -> String {
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    }
}
