//! Console commands beside a running daemon (KP-8.2): each sees the changes by the other.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use support::daemon::{Daemon, make_channel_command};
use support::metadata::ServiceRequest;
use support::{
    GuestOptions, MetadataService, TestGuest, TestKey, attach_command, detach_command, has_tools,
    set_password_auth_command, wait_for, with_field,
};

const TOOLS: [&str; 4] = ["sshd", "ssh", "ssh-keygen", "flock"];

fn create_guest(metadata: &MetadataService) -> TestGuest {
    TestGuest::with_options(GuestOptions { metadata: Some(metadata), ..GuestOptions::default() })
}

/// Starts a daemon, and waits for its long poll.
fn start_idle_daemon(guest: &TestGuest, metadata: &MetadataService) -> Daemon {
    let daemon = Daemon::start(guest);
    wait_for("a long poll", || metadata.requests().contains(&ServiceRequest::Poll(60)).then_some(()));
    daemon
}

fn queue_and_wait_for_result(metadata: &MetadataService, command: Value) -> Value {
    let id = command["commandId"].as_str().unwrap().to_owned();
    metadata.queue(command);
    metadata.wait_for_result(&id)
}

fn run_subcommand(guest: &TestGuest, arguments: &[&str]) -> Value {
    let output = guest.run_agent(arguments);
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.success(), result["status"] == "succeeded", "{result}");
    result
}

/// KP-4.1, KP-8.1, KP-8.4.
#[test]
fn daemon_sees_console_changes() {
    if !has_tools(&TOOLS) {
        return;
    }
    let metadata = MetadataService::start();
    let guest = create_guest(&metadata);
    let (key, other) = (TestKey::new(&guest.folder, "me"), TestKey::new(&guest.folder, "other"));
    let mut daemon = start_idle_daemon(&guest, &metadata);

    let result = guest.apply(&attach_command("mine", &key, "no"));
    // The daemon has learned the instance id at its start.
    assert_eq!((&result["changed"], &result["instanceId"]), (&json!(true), &json!("i-test")), "{result}");
    let result = queue_and_wait_for_result(
        &metadata,
        make_channel_command("c-1", 1, attach_command("theirs", &other, "no")),
    );
    assert_eq!(result["reason"], "ALREADY_ATTACHED", "{result}");
    let result = queue_and_wait_for_result(
        &metadata,
        make_channel_command("c-2", 2, attach_command("mine", &key, "no")),
    );
    assert_eq!((&result["status"], &result["changed"]), (&json!("succeeded"), &json!(false)), "{result}");

    let result = run_subcommand(&guest, &["password-auth", "yes"]);
    assert_eq!((&result["action"], &result["passWordAuth"]), (&json!("setPasswordAuth"), &json!("yes")));
    assert!(guest.sshd.offers_password());
    let result = queue_and_wait_for_result(
        &metadata,
        make_channel_command("c-3", 3, attach_command("mine", &key, "no")),
    );
    assert_eq!(result["changed"], true, "{result}");
    assert!(!guest.sshd.offers_password());

    let result = run_subcommand(&guest, &["detach"]);
    assert_eq!((&result["status"], &result["changed"]), (&json!("succeeded"), &json!(true)), "{result}");
    assert_eq!(result["fingerprint"]["sha256"], key.fingerprint("sha256"));
    assert!(!guest.sshd.accepts_key(&key));
    let result = queue_and_wait_for_result(&metadata, make_channel_command("c-4", 4, detach_command("mine")));
    assert_eq!((&result["status"], &result["changed"]), (&json!("succeeded"), &json!(false)), "{result}");
    let result = queue_and_wait_for_result(
        &metadata,
        make_channel_command("c-5", 5, attach_command("theirs", &other, "no")),
    );
    assert_eq!(result["changed"], true, "{result}");

    let undo = guest.run_agent(&["undo"]);
    assert_eq!(undo.status.code(), Some(0), "{undo:?}");
    assert!(!guest.sshd.accepts_key(&other) && guest.sshd.offers_password());
    // Binding and sequence are forgotten: another key pair and a lower sequence are allowed.
    let result = queue_and_wait_for_result(
        &metadata,
        make_channel_command("c-6", 1, attach_command("mine", &key, "yes")),
    );
    assert_eq!((&result["status"], &result["changed"]), (&json!("succeeded"), &json!(true)), "{result}");
    assert!(guest.sshd.accepts_key(&key) && daemon.is_alive());
    // The service got no results of console commands.
    let stored: Vec<String> = metadata.results().into_iter().map(|(id, _)| id).collect();
    assert_eq!(stored, ["c-1", "c-2", "c-3", "c-4", "c-5", "c-6"]);
}

/// KP-7.8, KP-8.4.
#[test]
fn undo_repairs_garbled_state_under_running_daemon() {
    if !has_tools(&TOOLS) {
        return;
    }
    let metadata = MetadataService::start();
    let guest = create_guest(&metadata);
    let key = TestKey::new(&guest.folder, "me");
    let _daemon = start_idle_daemon(&guest, &metadata);
    let result = queue_and_wait_for_result(
        &metadata,
        make_channel_command("c-1", 1, attach_command("mine", &key, "no")),
    );
    assert_eq!(result["status"], "succeeded", "{result}");

    // The daemon records a delivery after the service has the result; that write would repair the state again.
    wait_for("the delivery to be noted", || {
        let state: Value = serde_json::from_slice(&fs::read(guest.path("state/state.json")).ok()?).ok()?;
        state["undelivered"].is_null().then_some(())
    });
    fs::write(guest.path("state/state.json"), "{ garbled").unwrap();
    let before = guest.snapshot();
    let result = queue_and_wait_for_result(&metadata, make_channel_command("c-2", 2, detach_command("mine")));
    assert_eq!((&result["code"], &result["reason"]), (&json!("INTERNAL"), &json!("IO_ERROR")), "{result}");
    assert!(result["message"].as_str().unwrap().contains("undo"), "the remedy is named: {result}");
    assert_eq!(guest.apply(&set_password_auth_command("yes"))["reason"], "IO_ERROR");
    assert_eq!(guest.snapshot(), before);
    let report: Value = serde_json::from_slice(&guest.run_agent(&["status", "--json"]).stdout).unwrap();
    assert_eq!(report["healthy"], false);
    assert!(report["problems"].to_string().contains("state file"), "{report}");

    let undo = guest.run_agent(&["undo"]);
    assert_eq!(undo.status.code(), Some(0), "{undo:?}");
    let diff = String::from_utf8(undo.stdout).unwrap();
    assert!(diff.contains("-# BEGIN keypair-agent mine") && diff.contains("00-keypair-agent.conf"), "{diff}");
    assert!(!guest.sshd.accepts_key(&key) && guest.sshd.offers_password());

    // The state was lost, but the running daemon still knows the instance id.
    let foreign = with_field(
        make_channel_command("c-3", 3, attach_command("mine", &key, "no")),
        "instanceId",
        json!("i-other"),
    );
    let result = queue_and_wait_for_result(&metadata, foreign);
    assert_eq!((&result["reason"], &result["instanceId"]), (&json!("WRONG_INSTANCE"), &json!("i-test")));
    assert!(!guest.sshd.accepts_key(&key));
    let result = queue_and_wait_for_result(
        &metadata,
        make_channel_command("c-4", 4, attach_command("mine", &key, "no")),
    );
    assert_eq!(
        (&result["status"], &result["instanceId"]),
        (&json!("succeeded"), &json!("i-test")),
        "{result}"
    );
    assert!(guest.sshd.accepts_key(&key));
    let report: Value = serde_json::from_slice(&guest.run_agent(&["status", "--json"]).stdout).unwrap();
    assert_eq!((&report["instanceId"], &report["binding"]["keyName"]), (&json!("i-test"), &json!("mine")));
}

/// flock(1) on the state directory, until this value is dropped.
struct StateLockHolder(std::process::Child);

impl StateLockHolder {
    fn acquire(guest: &TestGuest) -> Self {
        fs::create_dir_all(guest.path("state")).unwrap();
        let mut child = Command::new("flock")
            .arg(guest.path("state"))
            .args(["sh", "-c", "echo held; read line"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut word = [0; 4];
        child.stdout.as_mut().unwrap().read_exact(&mut word).unwrap();
        assert_eq!(&word, b"held");
        Self(child)
    }

    fn release(mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

impl Drop for StateLockHolder {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Whether a process waits for the lock: it has the file open, and tries again with pauses.
fn has_file_open(pid: u32, path: &std::path::Path) -> bool {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    entries.flatten().any(|entry| fs::read_link(entry.path()).is_ok_and(|target| target == path))
}

/// KP-8.8, KP-8.11.
#[test]
fn command_waits_for_state_lock() {
    if !has_tools(&TOOLS) {
        return;
    }
    let metadata = MetadataService::start();
    let guest = create_guest(&metadata);
    let key = TestKey::new(&guest.folder, "me");
    let _daemon = start_idle_daemon(&guest, &metadata);
    let holder = StateLockHolder::acquire(&guest);
    fs::write(guest.path("command.json"), attach_command("mine", &key, "no").to_string()).unwrap();
    let path = guest.path("command.json");
    let mut apply = guest.agent_command(&["apply", path.to_str().unwrap()]).spawn().unwrap();
    let mut undo = guest.agent_command(&["undo"]).stdout(Stdio::null()).spawn().unwrap();
    metadata.queue(make_channel_command("c-1", 1, set_password_auth_command("yes")));
    for pid in [apply.id(), undo.id()] {
        wait_for("both to ask for the lock", || has_file_open(pid, &guest.path("state")).then_some(()));
    }
    // Both wait for the lock, and nothing happens while another process holds it.
    assert!(apply.try_wait().unwrap().is_none() && undo.try_wait().unwrap().is_none());
    assert!(!guest.key_file().exists() && !guest.drop_in().exists());
    assert_eq!(metadata.result_attempts(), []);
    // Commands that only read take no lock.
    assert_eq!(guest.run_agent(&["check"]).status.code(), Some(0));
    let plan = guest.run_agent(&["plan", path.to_str().unwrap()]);
    assert_eq!(plan.status.code(), Some(0), "{plan:?}");
    assert!(guest.run_agent(&["status", "--json"]).status.success());

    holder.release();
    let output = apply.wait_with_output().unwrap();
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["status"], "succeeded", "{result}");
    assert_eq!(undo.wait().unwrap().code(), Some(0));
    assert_eq!(metadata.wait_for_result("c-1")["status"], "succeeded");
}

/// KP-8.11.
#[test]
fn lock_timeout_names_holder_process() {
    if !has_tools(&TOOLS) {
        return;
    }
    let guest = TestGuest::new();
    let holder = StateLockHolder::acquire(&guest);
    let before = guest.snapshot();
    let output = guest.run_agent_with_input(&["apply", "-"], &set_password_auth_command("yes").to_string());
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(words.contains("locked by process") && words.contains("20 s"), "{words}");
    assert_eq!(guest.snapshot(), before);
    holder.release();
    assert_eq!(guest.apply(&set_password_auth_command("yes"))["status"], "succeeded");
}

/// KP-4.7, KP-8.2.
#[test]
fn console_result_is_sent_when_service_delivers_command() {
    if !has_tools(&TOOLS) {
        return;
    }
    let metadata = MetadataService::start();
    let guest = create_guest(&metadata);
    let key = TestKey::new(&guest.folder, "me");
    let _daemon = start_idle_daemon(&guest, &metadata);
    let command = with_field(attach_command("mine", &key, "no"), "commandId", json!("c-1"));
    let output = guest.run_agent_with_input(&["apply", "-"], &command.to_string());
    let printed = String::from_utf8(output.stdout).unwrap();
    let again = guest.run_agent_with_input(&["apply", "-"], &command.to_string());
    assert_eq!(String::from_utf8(again.stdout).unwrap(), printed, "a command seen before");
    let written = fs::metadata(guest.key_file()).unwrap().modified().unwrap();
    assert_eq!(metadata.result_attempts(), [], "not queued for delivery");

    metadata.queue(make_channel_command("c-1", 1, attach_command("mine", &key, "no")));
    metadata.wait_for_result("c-1");
    assert_eq!(metadata.results(), [("c-1".to_owned(), printed.trim_end().to_owned())]);
    assert_eq!(fs::metadata(guest.key_file()).unwrap().modified().unwrap(), written);
    // The reverse: a command that the service has sent is not performed again at the console.
    let result = queue_and_wait_for_result(&metadata, make_channel_command("c-2", 2, detach_command("mine")));
    let here = guest.apply(&with_field(detach_command("mine"), "commandId", json!("c-2")));
    assert_eq!(here, result);
}

/// KP-3.28, KP-8.2.
#[test]
fn console_command_with_wrong_instance_id_is_refused() {
    if !has_tools(&TOOLS) {
        return;
    }
    let metadata = MetadataService::start();
    let guest = create_guest(&metadata);
    let key = TestKey::new(&guest.folder, "me");
    let foreign = with_field(attach_command("mine", &key, "no"), "instanceId", json!("i-other"));
    let before = guest.apply(&with_field(detach_command("mine"), "instanceId", json!("i-anyone")));
    assert_eq!(before["status"], "succeeded", "none is known yet: {before}");
    let daemon = start_idle_daemon(&guest, &metadata);
    let result = guest.apply(&foreign);
    assert_eq!((&result["reason"], &result["instanceId"]), (&json!("WRONG_INSTANCE"), &json!("i-test")));
    assert_eq!(daemon.terminate().code(), Some(0));
    assert_eq!(guest.apply(&foreign)["reason"], "WRONG_INSTANCE");
}
