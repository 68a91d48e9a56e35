//! Exit statuses, usage errors, configuration errors, and the formats of the output.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs;
use std::process::Command;

use serde_json::Value;
use support::daemon::Daemon;
use support::{TestGuest, TestKey, attach_command, has_tools, wait_for};

const TOOLS: [&str; 3] = ["sshd", "ssh", "ssh-keygen"];

fn run_agent(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_keypair-agent")).args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// KP-8.10.
#[test]
fn invalid_usage_exits_2() {
    for arguments in [
        &[][..],
        &["attach"],
        &["apply"],
        &["run", "--json"],
        &["password-auth", "maybe"],
        &["status", "--config"],
    ] {
        let (status, stdout, stderr) = run_agent(arguments);
        assert_eq!((status, stdout.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(stderr.contains("usage: keypair-agent COMMAND"), "{stderr}");
    }
    assert_eq!(run_agent(&["--version"]), (Some(0), "keypair-agent 3.1.0\n".into(), String::new()));
    assert!(run_agent(&["--help"]).1.contains("password-auth yes|no"));
}

/// KP-8.10.
#[test]
fn invalid_configuration_exits_2_and_names_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    let (status, _, stderr) = run_agent(&["status", "--config", path.to_str().unwrap()]);
    assert_eq!(status, Some(2));
    assert!(stderr.contains("config.toml: the configuration cannot be read: No such file"), "{stderr}");
    fs::write(&path, "target_user = \"root\"\nshell = \"/bin/sh\"\n").unwrap();
    let (status, _, stderr) = run_agent(&["status", "--config", path.to_str().unwrap()]);
    assert_eq!(status, Some(2));
    assert!(stderr.contains("config.toml:2: shell: unknown field `shell`"), "{stderr}");
}

#[test]
fn status_with_unreadable_state_reports_unknown() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().display();
    let config = folder.path().join("config.toml");
    fs::write(&config, format!("state_dir = \"{at}/state\"\nrun_dir = \"{at}/run\"\n")).unwrap();
    fs::create_dir(folder.path().join("state")).unwrap();
    fs::write(folder.path().join("state/state.json"), "{\"version\":99}").unwrap();
    let (status, stdout, _) = run_agent(&["status", "--config", config.to_str().unwrap()]);
    assert_eq!(status, Some(1));
    assert_eq!(stdout.matches("not known: the state cannot be read").count(), 3, "{stdout}");
    assert!(stdout.contains("\n  problem: "), "{stdout}");
}

/// KP-8.4, KP-8.5, KP-8.6, KP-8.7.
#[test]
fn status_and_check_report_health() {
    if !has_tools(&TOOLS) {
        return;
    }
    let guest = TestGuest::new();
    let key = TestKey::new(&guest.folder, "k");
    let json = |arguments: &[&str]| -> (Option<i32>, Value) {
        let output = guest.run_agent(arguments);
        (output.status.code(), serde_json::from_slice(&output.stdout).unwrap())
    };
    let (status, check) = json(&["check", "--json"]);
    assert_eq!((status, &check["accepted"]), (Some(0), &Value::Bool(true)), "{check}");
    for field in ["name", "ok", "message", "file", "line", "remedy"] {
        assert!(
            check["checks"].as_array().unwrap().iter().all(|check| check.get(field).is_some()),
            "{field}"
        );
    }
    assert_eq!(guest.run_agent(&["check", "--image"]).status.code(), Some(0), "nothing of ours yet");
    assert!(!guest.path("state").exists(), "check writes nothing");

    guest.apply(&attach_command("my-test", &key, "no"));
    assert_eq!(guest.run_agent(&["check", "--image"]).status.code(), Some(1));
    let (status, report) = json(&["status", "--json"]);
    assert_eq!((status, &report["healthy"]), (Some(1), &Value::Bool(false)), "no run is alive");
    assert_eq!(report["binding"]["keyName"], "my-test");
    assert_eq!(report["binding"]["fingerprint"]["sha256"], key.fingerprint("sha256"));
    assert_eq!(report["problems"].as_array().unwrap().len(), 1, "{report}");

    fs::remove_file(guest.drop_in()).unwrap();
    let text = String::from_utf8(guest.run_agent(&["status"]).stdout).unwrap();
    assert!(text.contains("the password setting does not hold any more"), "{text}");
    guest.write_component_info("3.0.1");
    let (status, check) = json(&["check", "--json"]);
    assert_eq!((status, &check["checks"][0]["name"]), (Some(1), &Value::from("component")));
    assert_eq!(check["checks"][0]["ok"], false);
    assert_eq!(guest.run_agent(&["undo"]).status.code(), Some(0), "undo needs no component");
    assert_eq!(guest.run_agent(&["check", "--image"]).status.code(), Some(0));
}

/// As under `ProtectSystem=strict` with a home elsewhere: `check` at the console knows the limits of the service.
#[test]
fn check_reports_directory_read_only_for_service() {
    if !has_tools(&[&TOOLS[..], &["unshare", "mount"]].concat()) {
        return;
    }
    let guest = TestGuest::new();
    let keys = guest.key_file().parent().unwrap().to_owned();
    assert!(guest.run_agent(&["check"]).status.success());
    let run = guest.agent_command(&["run"]);
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-ec"])
        .arg("mount --bind \"$0\" \"$0\"; mount -o remount,bind,ro \"$0\"; exec \"$@\"")
        .arg(&keys)
        .arg(run.get_program())
        .args(run.get_args());
    let service = Daemon::spawn(&guest, command);
    let refused = wait_for("the service", || {
        let output = guest.run_agent(&["check", "--json"]);
        (!output.status.success()).then_some(output.stdout)
    });
    service.kill();
    let report: Value = serde_json::from_slice(&refused).unwrap();
    let attach = report["checks"].as_array().unwrap().iter().find(|check| check["ok"] == false).unwrap();
    assert_eq!(attach["name"], "attach with no", "{report}");
    let says = |field: &str, text: &str| attach[field].as_str().unwrap().contains(text);
    assert!(says("message", &format!("sees {} read-only", keys.display())), "{report}");
    assert!(says("remedy", &format!("ReadWritePaths=-{}", keys.display())), "{report}");
    assert!(guest.run_agent(&["check"]).status.success());
}

#[test]
fn check_reports_corrupted_bound_key() {
    if !has_tools(&TOOLS) {
        return;
    }
    let guest = TestGuest::new();
    let key = TestKey::new(&guest.folder, "me");
    assert_eq!(guest.apply(&attach_command("my-test", &key, "no"))["status"], "succeeded");
    let lines = |guest: &TestGuest| -> Vec<String> {
        let output = String::from_utf8(guest.run_agent(&["check"]).stdout).unwrap();
        output.lines().map(str::to_owned).collect()
    };
    let seen = lines(&guest);
    assert!(
        seen.iter()
            .any(|line| line.starts_with("ok    running sshd") && line.contains("accepts the bound key"))
    );
    let text = fs::read_to_string(guest.key_file()).unwrap();
    fs::write(guest.key_file(), text.replace(" AAAA", " AAAB")).unwrap();
    let seen = lines(&guest);
    let note = |name: &str, says: &str| {
        let at =
            seen.iter().position(|line| line.starts_with(&format!("note  {name}")) && line.contains(says));
        assert!(at.is_some_and(|at| seen[at + 1].contains("attach the key pair again")), "{seen:#?}");
    };
    note("key file", "somebody changed the block of my-test");
    note("running sshd", "refuses the bound key");
}
