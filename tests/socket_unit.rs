//! An sshd with a socket unit, in a booted guest: after its first connection, and with many commands in a row.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};
use support::{TestDir, TestKey, attach_command, detach_command, set_password_auth_command, wait_for};

/// A guest that systemd boots. It is removed with its folder.
struct BootedGuest {
    nspawn: Child,
    leader: String,
}

impl BootedGuest {
    fn boot(root: &str, agent: &str) -> Self {
        let mut nspawn = Command::new("systemd-nspawn")
            .args(["--quiet", "--register=no", "--keep-unit", "--private-network", "--volatile=overlay"])
            .args(["--boot", "--console=passive", "-D", root])
            .arg(format!("--bind-ro={agent}:/usr/bin/keypair-agent"))
            .env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let children = format!("/proc/{0}/task/{0}/children", nspawn.id());
        let leader = wait_for("the guest's first process", || {
            assert!(nspawn.try_wait().unwrap().is_none(), "systemd-nspawn ended");
            let text = std::fs::read_to_string(&children).ok()?;
            text.split_whitespace().next().map(str::to_owned)
        });
        let guest = Self { nspawn, leader };
        wait_for("the guest to be up", || {
            let state = guest.run(&["systemctl", "is-system-running"]);
            ["running", "degraded"].contains(&String::from_utf8_lossy(&state.stdout).trim()).then_some(())
        });
        guest
    }

    fn nsenter_command(&self, namespaces: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.leader, namespaces, "--"]).stdin(Stdio::null());
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.nsenter_command("-a").args(words).output().unwrap()
    }

    fn run_shell(&self, script: &str) {
        let output = self.run(&["sh", "-ec", script]);
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn run_and_read_stdout(&self, words: &[&str]) -> String {
        String::from_utf8_lossy(&self.run(words).stdout).trim().to_owned()
    }

    fn run_ssh_client(&self, options: &[&str]) -> Output {
        let mut command = self.nsenter_command("-n");
        command.args(["ssh", "-v", "-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"]);
        command.args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]);
        command.args(options).args(["root@127.0.0.1", "true"]).output().unwrap()
    }

    fn offered_methods(&self) -> Vec<String> {
        wait_for("an offer", || {
            let output = self.run_ssh_client(&["-o", "PreferredAuthentications=none"]);
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            let (_, methods) = text.split_once("Authentications that can continue: ")?;
            Some(methods.lines().next()?.trim().split(',').map(str::to_owned).collect())
        })
    }

    fn apply(&self, command: &Value) -> Value {
        let script = format!("cat <<'END' | keypair-agent apply -\n{command}\nEND\n");
        let output = self.run(&["sh", "-c", &script]);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
    }
}

impl Drop for BootedGuest {
    fn drop(&mut self) {
        // The guest ends with its first process, and systemd-nspawn ends with the guest.
        let leader: i32 = self.leader.parse().unwrap();
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(leader), nix::sys::signal::Signal::SIGKILL);
        let _ = self.nspawn.wait();
    }
}

/// KP-6.23.
#[test]
fn socket_activated_sshd_takes_many_commands() {
    let Some(root) = std::env::var_os("KEYPAIR_MATRIX_ROOT") else {
        eprintln!("SKIPPED: a socket unit needs a guest that systemd boots: make test-sshd");
        return;
    };
    let agent = std::env::var_os("KEYPAIR_MATRIX_AGENT")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_keypair-agent")), PathBuf::from);
    let guest = BootedGuest::boot(&root.to_string_lossy(), &agent.to_string_lossy());
    let folder = TestDir::new();
    let (key, other) = (TestKey::new(&folder, "k"), TestKey::new(&folder, "l"));
    guest.run_shell(
        "ssh-keygen -A; mkdir -p /usr/local/share/jcloud/agent/core
         echo 3.0.1042 >/usr/local/share/jcloud/agent/core/componentInfo.cfg
         systemctl disable --quiet --now ssh.service; systemctl start ssh.socket",
    );
    let per_connection =
        guest.run_and_read_stdout(&["systemctl", "show", "-P", "Accept", "ssh.socket"]) == "yes";
    let before = guest.offered_methods();
    assert!(before.iter().any(|method| method == "password"), "{before:?}");
    let service = guest.run_and_read_stdout(&["systemctl", "is-active", "ssh.service"]);
    assert_eq!(service == "active", !per_connection, "the first connection starts it: {service}");

    let commands = [
        attach_command("my-test", &key, "no"),
        set_password_auth_command("yes"),
        set_password_auth_command("no"),
        support::with_field(attach_command("other", &other, "no"), "replace", json!(true)),
        set_password_auth_command("yes"),
        attach_command("other", &other, "no"),
        detach_command("other"),
    ];
    for command in &commands {
        let result = guest.apply(command);
        assert_eq!(result["status"], "succeeded", "{command}: {result}");
        let offers = guest.offered_methods();
        let takes = offers.iter().any(|method| method == "password");
        assert_eq!(result["effective"]["passwordAuthentication"], takes, "{command}: {result} {offers:?}");
        let detaches = command["action"] == "detach";
        if per_connection || detaches {
            assert!(result["proof"].is_null() || result["proof"]["methods"].is_null(), "{result}");
        } else {
            assert_eq!(result["proof"]["methods"], json!(offers), "{result}");
        }
        let expected: &[&str] = match (per_connection, detaches) {
            (_, true) => &["NO_WAY_IN"],
            (true, false) if takes => &["ROOT_PASSWORD_PROHIBITED", "SSHD_NOT_RUNNING"],
            (true, false) => &["SSHD_NOT_RUNNING"],
            (false, false) if takes => &["ROOT_PASSWORD_PROHIBITED"],
            (false, false) => &[],
        };
        assert_eq!(support::warning_reasons(&result), expected, "{command}: {result}");
        assert_eq!(
            guest.run_and_read_stdout(&["systemctl", "is-active", "ssh.socket"]),
            "active",
            "{command}"
        );
        if command["publicKey"] == json!(other.line) {
            let login = guest.run_ssh_client(&["-i", &other.private.to_string_lossy()]);
            assert!(login.status.success(), "{command}: {}", String::from_utf8_lossy(&login.stderr));
        }
    }
    assert_eq!(guest.run(&["keypair-agent", "undo"]).status.code(), Some(0));
    assert_eq!(guest.offered_methods(), before);
}
