//! KP-10.16: a command that was carried out while no sshd ran is proved by the first sshd that does.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;

use serde_json::{Value, json};
use support::daemon::{Daemon, queued};
use support::scene::apart;
use support::{Form, Guest, Key, Metadata, attach, available, set_password_auth, wait_for, warnings, with};

const TOOLS: [&str; 5] = ["sshd", "ssh", "ssh-keygen", "ip", "mount"];

/// Of the sshd that comes up later: it reads no key file, whatever its configuration says.
const DEAF: [&str; 2] = ["-o", "AuthorizedKeysFile=/nonexistent"];

/// A guest that is booting: no sshd runs yet.
struct Boot {
    metadata: Metadata,
    guest: Guest,
    key: Key,
}

impl Boot {
    fn new(main: &str) -> Self {
        let metadata = Metadata::start();
        let mut guest = Guest::of(Form { main, metadata: Some(&metadata), ..Form::default() });
        guest.sshd.shut_down();
        let key = Key::new(&guest.folder, "me");
        Self { metadata, guest, key }
    }

    /// Carries out what was queued; the daemon goes on.
    fn carry_out(&self, id: &str, sequence: u64, command: Value) -> (Daemon, Value) {
        self.metadata.queue(queued(id, sequence, command));
        let daemon = Daemon::start(&self.guest);
        let result = self.metadata.wait_for_result(id);
        assert_eq!(result["status"], "succeeded", "{result}");
        (daemon, result)
    }

    fn state(&self) -> Value {
        serde_json::from_slice(&fs::read(self.guest.path("state/state.json")).unwrap()).unwrap()
    }

    fn wait_until_settled(&self) {
        wait_for("the proof", || self.state()["owedProof"].is_null().then_some(()));
    }

    /// What the control plane was told last that is wrong.
    fn announced(&self) -> String {
        self.metadata.announced().last().map(|said| said["warnings"].to_string()).unwrap_or_default()
    }

    /// A contradiction is told to the control plane, and `status` is not healthy by it.
    fn assert_told(&self, says: &str) {
        let told = wait_for("a second report", || {
            Some(self.announced()).filter(|said| said.contains("PROOF_CONTRADICTED"))
        });
        assert!(told.contains("c-1") && told.contains(says), "{told}");
        let output = self.guest.agent(&["status", "--json"]);
        let status: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(1), "{status}");
        assert_eq!(status["problems"].as_array().unwrap().len(), 1, "{status}");
        assert!(status["problems"][0].as_str().unwrap().contains(says), "{status}");
    }
}

/// `test` in a network and with mounts of its own, where it can run at all.
fn in_a_boot(test: fn()) {
    if available(&TOOLS) {
        apart(test);
    }
}

/// KP-10.16.
#[test]
fn the_first_sshd_is_asked() {
    in_a_boot(|| {
        for restarts in [false, true] {
            let mut boot = Boot::new("");
            let (daemon, result) = boot.carry_out("c-1", 1, attach("my-test", &boot.key, "no"));
            assert_eq!(warnings(&result), ["SSHD_NOT_RUNNING"], "{result}");
            assert_eq!(result["proof"]["key"], "notTaken", "{result}");
            assert_eq!(boot.state()["owedProof"]["commandId"], "c-1", "{}", boot.state());
            let daemon = if restarts {
                daemon.kill();
                boot.guest.sshd.boot();
                Daemon::start(&boot.guest)
            } else {
                boot.guest.sshd.boot();
                daemon
            };
            boot.wait_until_settled();
            assert!(daemon.log().contains("the running sshd does what was asked"), "{}", daemon.log());
            assert!(boot.guest.sshd.lets_in(&boot.key) && !boot.guest.sshd.offers_password());
            assert_eq!(boot.announced(), "[]");
            assert_eq!(boot.state()["contradiction"], Value::Null);
        }
    });
}

/// KP-10.16.
#[test]
fn a_refused_key_brings_back_the_setting_that_stood_before() {
    in_a_boot(|| {
        for interrupted in [false, true] {
            let mut boot = Boot::new("");
            let (daemon, _) = boot.carry_out("c-1", 1, attach("my-test", &boot.key, "no"));
            assert!(boot.guest.drop_in().exists());
            daemon.kill();
            if interrupted {
                // Killed right after it had said to itself that it restores.
                let mut state = boot.state();
                state["owedProof"]["restoring"] = json!("sshd refuses the key");
                fs::write(boot.guest.path("state/state.json"), state.to_string()).unwrap();
            }
            boot.guest.sshd.boot_with(&DEAF);
            assert!(!boot.guest.sshd.offers_password() && !boot.guest.sshd.lets_in(&boot.key));
            let _daemon = Daemon::start(&boot.guest);
            boot.wait_until_settled();
            assert!(boot.guest.sshd.offers_password(), "{}", boot.state());
            assert!(!boot.guest.drop_in().exists());
            boot.assert_told("password login is on");
            let state = boot.state();
            assert_eq!((&state["passWordAuth"], &state["intent"]), (&Value::Null, &Value::Null), "{state}");
            assert_eq!(state["binding"]["keyName"], "my-test", "{state}");
            // A command that is proved makes it well again.
            boot.guest.sshd.boot();
            boot.metadata.queue(queued("c-2", 2, attach("my-test", &boot.key, "no")));
            let result = boot.metadata.wait_for_result("c-2");
            assert_eq!(
                (&result["status"], &result["proof"]["key"]),
                (&json!("succeeded"), &json!("accepted"))
            );
            assert_eq!(boot.state()["contradiction"], Value::Null);
        }
    });
}

/// KP-10.16.
#[test]
fn never_a_wider_setting_than_before() {
    in_a_boot(|| {
        // The image said no; somebody said yes after the command.
        let mut boot = Boot::new("PasswordAuthentication no\nKbdInteractiveAuthentication no\n");
        let (_daemon, _) = boot.carry_out("c-1", 1, attach("my-test", &boot.key, "no"));
        fs::write(boot.guest.path("sshd_config.d/50-cloud-init.conf"), "PasswordAuthentication yes\n")
            .unwrap();
        boot.guest.sshd.boot_with(&DEAF);
        boot.wait_until_settled();
        assert!(!boot.guest.sshd.offers_password(), "{}", boot.state());
        assert!(boot.guest.drop_in().exists());
        boot.assert_told("no password setting was changed");
    });
}

#[test]
fn two_commands_before_the_first_sshd() {
    in_a_boot(|| {
        // What stood before both comes back; a setting of ours that stood before, too.
        for (first, stands) in [("no", ""), ("yes", "PasswordAuthentication yes")] {
            let mut boot = Boot::new("");
            let other = Key::new(&boot.guest.folder, "other");
            let (daemon, _) = boot.carry_out("c-0", 1, attach("my-test", &boot.key, first));
            drop(daemon);
            let second = with(attach("other", &other, "no"), "replace", json!(true));
            let (_daemon, _) = boot.carry_out("c-1", 2, second);
            boot.guest.sshd.boot_with(&DEAF);
            boot.wait_until_settled();
            assert!(boot.guest.sshd.offers_password(), "{first}: {}", boot.state());
            let drop_in = fs::read_to_string(boot.guest.drop_in()).unwrap_or_default();
            assert_eq!(drop_in.lines().last().unwrap_or_default(), stands, "{first}");
            boot.assert_told("password login is on");
        }
    });
}

#[test]
fn with_passwords_on_there_is_nothing_to_restore() {
    in_a_boot(|| {
        let mut boot = Boot::new("PasswordAuthentication no\nKbdInteractiveAuthentication no\n");
        let (_daemon, _) = boot.carry_out("c-1", 1, attach("my-test", &boot.key, "yes"));
        boot.guest.sshd.boot_with(&DEAF);
        boot.wait_until_settled();
        assert!(boot.guest.sshd.offers_password(), "{}", boot.state());
        boot.assert_told("no password setting was changed");
    });
}

#[test]
fn what_takes_no_answer_restores_nothing() {
    in_a_boot(|| {
        // Nobody is told by key, and nobody listens at the end of the connection.
        let mut boot = Boot::new("");
        let (daemon, _) = boot.carry_out("c-1", 1, attach("my-test", &boot.key, "no"));
        boot.guest.sshd.boot_with(&["-o", "MaxStartups=1:100:1", "-o", "LoginGraceTime=0"]);
        let _occupied = std::net::TcpStream::connect(("127.0.0.1", boot.guest.sshd.port)).unwrap();
        boot.wait_until_settled();
        assert!(daemon.log().contains("was not asked in the end"), "{}", daemon.log());
        assert_eq!(boot.state()["contradiction"], Value::Null);
        assert!(boot.guest.drop_in().exists());
    });
}

#[test]
fn a_command_in_between_settles_what_was_owed() {
    in_a_boot(|| {
        let mut boot = Boot::new("");
        let (daemon, _) = boot.carry_out("c-1", 1, attach("my-test", &boot.key, "no"));
        daemon.kill();
        boot.guest.sshd.boot();
        let result = boot.guest.apply(&set_password_auth("yes"));
        assert_eq!(result["status"], "succeeded", "{result}");
        assert_eq!(boot.state()["owedProof"], Value::Null, "{}", boot.state());
        assert!(boot.guest.sshd.offers_password());
    });
}

/// A systemd of two scripts, whose socket unit is in the state that a file says.
fn pretend_systemd(guest: &Guest) {
    let dir = guest.folder.path().display().to_string();
    let done = |script: &str| {
        let status = std::process::Command::new("sh").args(["-ec", script]).status().unwrap();
        assert!(status.success(), "{script}");
    };
    let systemctl = format!(
        "#!/bin/sh\ncase \"$*\" in\n*.socket*) cat {dir}/socket ;;\n\
         *show*) printf 'Id=ssh.service\\nLoadState=loaded\\nActiveState=inactive\\nMainPID=0\\nTriggeredBy=ssh.socket\\n' ;;\nesac\n"
    );
    let words = format!("4 \"/usr/sbin/sshd\" \"-D\" \"-f\" \"{dir}/sshd_config\"");
    let busctl = format!(
        "#!/bin/sh\ncat <<'E'\na(sasbttttuii) 1 \"/usr/sbin/sshd\" {words} false 0 0 0 0 0 0 0\nas 0\na(sb) 0\nas 0\nE\n"
    );
    for (name, script) in [("systemctl", systemctl), ("busctl", busctl)] {
        fs::write(guest.path(name), script).unwrap();
        done(&format!("chmod 755 {dir}/{name}; mount --bind {dir}/{name} /usr/bin/{name}"));
    }
    done("mkdir -p /run/systemd; mount -t tmpfs tmpfs /run/systemd; mkdir /run/systemd/system");
    let config = fs::read_to_string(&guest.config).unwrap();
    let lines: Vec<&str> = config.lines().filter(|line| !line.starts_with("pid_file")).collect();
    fs::write(&guest.config, lines.join("\n")).unwrap();
}

/// KP-6.26.
#[test]
fn a_warning_that_nothing_listens_means_just_that() {
    if !available(&["systemctl", "busctl"]) {
        return;
    }
    in_a_boot(|| {
        let boot = Boot::new("");
        pretend_systemd(&boot.guest);
        let warns = |socket: &str| {
            fs::write(boot.guest.path("socket"), socket).unwrap();
            let result = boot.guest.apply(&set_password_auth("yes"));
            assert_eq!(result["status"], "succeeded", "{result}");
            warnings(&result).contains(&"SSHD_NOT_RUNNING")
        };
        assert!(warns("Id=ssh.socket\nActiveState=inactive\nAccept=no\nJob=0\n"));
        assert!(!warns("Id=ssh.socket\nActiveState=active\nAccept=no\n"));
        assert!(!warns("Id=ssh.socket\nActiveState=active\nAccept=yes\n"));
        // It is to be started, and waits for its turn.
        assert!(!warns("Id=ssh.socket\nActiveState=inactive\nAccept=no\nJob=17\n"));
        assert!(warns("Id=ssh.socket\nActiveState=failed\nAccept=no\n"));
        // A socket unit of another name: the port is taken, and by no sshd.
        let _port = std::net::TcpListener::bind(("127.0.0.1", boot.guest.sshd.port)).unwrap();
        assert!(!warns("Id=ssh.socket\nActiveState=inactive\nAccept=no\n"));
    });
}
