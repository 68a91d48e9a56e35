//! KP-10.16: if no sshd ran during a command, the agent gets the proof from the first sshd that runs later.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;

use serde_json::{Value, json};
use support::daemon::{Daemon, make_channel_command};
use support::scene::run_in_namespaces;
use support::{
    GuestOptions, MetadataService, TestGuest, TestKey, attach_command, has_tools, set_password_auth_command,
    wait_for, warning_reasons, with_field,
};

const TOOLS: [&str; 5] = ["sshd", "ssh", "ssh-keygen", "ip", "mount"];

/// Options of the sshd that starts later. It reads no key file, whatever its configuration says.
const NO_KEY_FILE_OPTIONS: [&str; 2] = ["-o", "AuthorizedKeysFile=/nonexistent"];

/// A guest during boot: no sshd runs yet.
struct BootingGuest {
    metadata: MetadataService,
    guest: TestGuest,
    key: TestKey,
}

impl BootingGuest {
    fn new(main: &str) -> Self {
        let metadata = MetadataService::start();
        let mut guest = TestGuest::with_options(GuestOptions {
            main,
            metadata: Some(&metadata),
            ..GuestOptions::default()
        });
        guest.sshd.stop_and_remove_pid_file();
        let key = TestKey::new(&guest.folder, "me");
        Self { metadata, guest, key }
    }

    /// Starts the daemon, which performs a queued command and keeps running.
    fn start_daemon_with_command(&self, id: &str, sequence: u64, command: Value) -> (Daemon, Value) {
        self.metadata.queue(make_channel_command(id, sequence, command));
        let daemon = Daemon::start(&self.guest);
        let result = self.metadata.wait_for_result(id);
        assert_eq!(result["status"], "succeeded", "{result}");
        (daemon, result)
    }

    fn read_state(&self) -> Value {
        serde_json::from_slice(&fs::read(self.guest.path("state/state.json")).unwrap()).unwrap()
    }

    fn wait_until_owed_probe_settled(&self) {
        wait_for("the proof", || self.read_state()["owedProof"].is_null().then_some(()));
    }

    /// The warnings in the agent's last report to the control plane.
    fn last_announced_warnings(&self) -> String {
        self.metadata.agent_reports().last().map(|said| said["warnings"].to_string()).unwrap_or_default()
    }

    /// Asserts that the agent reports the contradiction to the control plane, and that `status` is not healthy.
    fn assert_contradiction_reported(&self, says: &str) {
        let told = wait_for("a second report", || {
            Some(self.last_announced_warnings()).filter(|said| said.contains("PROOF_CONTRADICTED"))
        });
        assert!(told.contains("c-1") && told.contains(says), "{told}");
        let output = self.guest.run_agent(&["status", "--json"]);
        let status: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(1), "{status}");
        assert_eq!(status["problems"].as_array().unwrap().len(), 1, "{status}");
        assert!(status["problems"][0].as_str().unwrap().contains(says), "{status}");
    }
}

/// Runs `test` in its own network and mount namespace, if the tools are there.
fn run_isolated(test: fn()) {
    if has_tools(&TOOLS) {
        run_in_namespaces(test);
    }
}

/// KP-10.16.
#[test]
fn owed_probe_runs_against_first_sshd() {
    run_isolated(|| {
        for restarts in [false, true] {
            let mut boot = BootingGuest::new("");
            let (daemon, result) =
                boot.start_daemon_with_command("c-1", 1, attach_command("my-test", &boot.key, "no"));
            assert_eq!(warning_reasons(&result), ["SSHD_NOT_RUNNING"], "{result}");
            assert_eq!(result["proof"]["key"], "notTaken", "{result}");
            assert_eq!(boot.read_state()["owedProof"]["commandId"], "c-1", "{}", boot.read_state());
            let daemon = if restarts {
                daemon.kill();
                boot.guest.sshd.start_listener_again();
                Daemon::start(&boot.guest)
            } else {
                boot.guest.sshd.start_listener_again();
                daemon
            };
            boot.wait_until_owed_probe_settled();
            assert!(daemon.log().contains("the running sshd does what was asked"), "{}", daemon.log());
            assert!(boot.guest.sshd.accepts_key(&boot.key) && !boot.guest.sshd.offers_password());
            assert_eq!(boot.last_announced_warnings(), "[]");
            assert_eq!(boot.read_state()["contradiction"], Value::Null);
        }
    });
}

/// KP-10.16.
#[test]
fn refused_key_restores_previous_password_setting() {
    run_isolated(|| {
        for interrupted in [false, true] {
            let mut boot = BootingGuest::new("");
            let (daemon, _) =
                boot.start_daemon_with_command("c-1", 1, attach_command("my-test", &boot.key, "no"));
            assert!(boot.guest.drop_in().exists());
            daemon.kill();
            if interrupted {
                // The agent was killed right after it recorded that it restores the setting.
                let mut state = boot.read_state();
                state["owedProof"]["restoring"] = json!("sshd refuses the key");
                fs::write(boot.guest.path("state/state.json"), state.to_string()).unwrap();
            }
            boot.guest.sshd.start_listener_with_args(&NO_KEY_FILE_OPTIONS);
            assert!(!boot.guest.sshd.offers_password() && !boot.guest.sshd.accepts_key(&boot.key));
            let _daemon = Daemon::start(&boot.guest);
            boot.wait_until_owed_probe_settled();
            assert!(boot.guest.sshd.offers_password(), "{}", boot.read_state());
            assert!(!boot.guest.drop_in().exists());
            boot.assert_contradiction_reported("password login is on");
            let state = boot.read_state();
            assert_eq!((&state["passWordAuth"], &state["intent"]), (&Value::Null, &Value::Null), "{state}");
            assert_eq!(state["binding"]["keyName"], "my-test", "{state}");
            // After a command with a successful proof, the guest is healthy again.
            boot.guest.sshd.start_listener_again();
            boot.metadata.queue(make_channel_command("c-2", 2, attach_command("my-test", &boot.key, "no")));
            let result = boot.metadata.wait_for_result("c-2");
            assert_eq!(
                (&result["status"], &result["proof"]["key"]),
                (&json!("succeeded"), &json!("accepted"))
            );
            assert_eq!(boot.read_state()["contradiction"], Value::Null);
        }
    });
}

/// KP-10.16.
#[test]
fn refused_key_never_widens_password_setting() {
    run_isolated(|| {
        // The image had `no`, and a user set `yes` after the command.
        let mut boot = BootingGuest::new("PasswordAuthentication no\nKbdInteractiveAuthentication no\n");
        let (_daemon, _) =
            boot.start_daemon_with_command("c-1", 1, attach_command("my-test", &boot.key, "no"));
        fs::write(boot.guest.path("sshd_config.d/50-cloud-init.conf"), "PasswordAuthentication yes\n")
            .unwrap();
        boot.guest.sshd.start_listener_with_args(&NO_KEY_FILE_OPTIONS);
        boot.wait_until_owed_probe_settled();
        assert!(!boot.guest.sshd.offers_password(), "{}", boot.read_state());
        assert!(boot.guest.drop_in().exists());
        boot.assert_contradiction_reported("no password setting was changed");
    });
}

#[test]
fn refused_key_after_two_commands_restores_first_setting() {
    run_isolated(|| {
        // The setting from before both commands returns, also an earlier setting of the agent.
        for (first, stands) in [("no", ""), ("yes", "PasswordAuthentication yes")] {
            let mut boot = BootingGuest::new("");
            let other = TestKey::new(&boot.guest.folder, "other");
            let (daemon, _) =
                boot.start_daemon_with_command("c-0", 1, attach_command("my-test", &boot.key, first));
            drop(daemon);
            let second = with_field(attach_command("other", &other, "no"), "replace", json!(true));
            let (_daemon, _) = boot.start_daemon_with_command("c-1", 2, second);
            boot.guest.sshd.start_listener_with_args(&NO_KEY_FILE_OPTIONS);
            boot.wait_until_owed_probe_settled();
            assert!(boot.guest.sshd.offers_password(), "{first}: {}", boot.read_state());
            let drop_in = fs::read_to_string(boot.guest.drop_in()).unwrap_or_default();
            assert_eq!(drop_in.lines().last().unwrap_or_default(), stands, "{first}");
            boot.assert_contradiction_reported("password login is on");
        }
    });
}

#[test]
fn refused_key_with_passwords_on_restores_nothing() {
    run_isolated(|| {
        let mut boot = BootingGuest::new("PasswordAuthentication no\nKbdInteractiveAuthentication no\n");
        let (_daemon, _) =
            boot.start_daemon_with_command("c-1", 1, attach_command("my-test", &boot.key, "yes"));
        boot.guest.sshd.start_listener_with_args(&NO_KEY_FILE_OPTIONS);
        boot.wait_until_owed_probe_settled();
        assert!(boot.guest.sshd.offers_password(), "{}", boot.read_state());
        boot.assert_contradiction_reported("no password setting was changed");
    });
}

#[test]
fn unanswered_probe_restores_nothing() {
    run_isolated(|| {
        // No proof by a key is possible, and no sshd is at the other end of the connection.
        let mut boot = BootingGuest::new("");
        let (daemon, _) =
            boot.start_daemon_with_command("c-1", 1, attach_command("my-test", &boot.key, "no"));
        boot.guest.sshd.start_listener_with_args(&["-o", "MaxStartups=1:100:1", "-o", "LoginGraceTime=0"]);
        let _occupied = std::net::TcpStream::connect(("127.0.0.1", boot.guest.sshd.port)).unwrap();
        boot.wait_until_owed_probe_settled();
        assert!(daemon.log().contains("was not asked in the end"), "{}", daemon.log());
        assert_eq!(boot.read_state()["contradiction"], Value::Null);
        assert!(boot.guest.drop_in().exists());
    });
}

#[test]
fn later_command_settles_owed_probe() {
    run_isolated(|| {
        let mut boot = BootingGuest::new("");
        let (daemon, _) =
            boot.start_daemon_with_command("c-1", 1, attach_command("my-test", &boot.key, "no"));
        daemon.kill();
        boot.guest.sshd.start_listener_again();
        let result = boot.guest.apply(&set_password_auth_command("yes"));
        assert_eq!(result["status"], "succeeded", "{result}");
        assert_eq!(boot.read_state()["owedProof"], Value::Null, "{}", boot.read_state());
        assert!(boot.guest.sshd.offers_password());
    });
}

/// A systemd of two scripts. A file holds the state of its socket unit.
fn install_fake_systemd(guest: &TestGuest) {
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
fn sshd_not_running_warning_requires_no_listener() {
    if !has_tools(&["systemctl", "busctl"]) {
        return;
    }
    run_isolated(|| {
        let boot = BootingGuest::new("");
        install_fake_systemd(&boot.guest);
        let warns = |socket: &str| {
            fs::write(boot.guest.path("socket"), socket).unwrap();
            let result = boot.guest.apply(&set_password_auth_command("yes"));
            assert_eq!(result["status"], "succeeded", "{result}");
            warning_reasons(&result).contains(&"SSHD_NOT_RUNNING")
        };
        assert!(warns("Id=ssh.socket\nActiveState=inactive\nAccept=no\nJob=0\n"));
        assert!(!warns("Id=ssh.socket\nActiveState=active\nAccept=no\n"));
        assert!(!warns("Id=ssh.socket\nActiveState=active\nAccept=yes\n"));
        // The socket unit is about to be started; its job is queued.
        assert!(!warns("Id=ssh.socket\nActiveState=inactive\nAccept=no\nJob=17\n"));
        assert!(warns("Id=ssh.socket\nActiveState=failed\nAccept=no\n"));
        // A socket unit with another name: the port is taken, but not by an sshd.
        let _port = std::net::TcpListener::bind(("127.0.0.1", boot.guest.sshd.port)).unwrap();
        assert!(!warns("Id=ssh.socket\nActiveState=inactive\nAccept=no\n"));
    });
}
