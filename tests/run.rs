//! `run`: commands over the channel, the reports about them, and the daemon as a process (KP-3.5 to KP-3.9, KP-8.5,
//! KP-8.12 and KP-8.13).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use support::daemon::{Daemon, make_channel_command};
use support::metadata::ServiceRequest;
use support::{
    GuestOptions, MetadataService, TestGuest, TestKey, attach_command, detach_command, has_tools,
    set_password_auth_command, wait_for,
};

const TOOLS: [&str; 3] = ["sshd", "ssh", "ssh-keygen"];

/// A guest whose daemon stays in a long poll for longer than any test runs.
fn create_guest(metadata: &MetadataService) -> TestGuest {
    TestGuest::with_options(GuestOptions {
        metadata: Some(metadata),
        agent: "long_poll_seconds = 600",
        ..GuestOptions::default()
    })
}

fn count_long_polls(metadata: &MetadataService) -> usize {
    metadata.requests().iter().filter(|asked| **asked == ServiceRequest::Poll(600)).count()
}

/// Waits until the daemon is idle: `READY=1` was sent, and a long poll waits.
fn wait_until_idle(metadata: &MetadataService) {
    wait_for("a long poll", || (count_long_polls(metadata) > 0).then_some(()));
}

fn read_status(guest: &TestGuest) -> (Value, Option<i32>) {
    let output = guest.run_agent(&["status", "--json"]);
    (serde_json::from_slice(&output.stdout).unwrap(), output.status.code())
}

fn problems(status: &Value) -> String {
    status["problems"].to_string()
}

/// KP-3.34, KP-4.1, KP-4.4.
#[test]
fn queued_commands_take_effect_and_are_reported() {
    if !has_tools(&TOOLS) {
        return;
    }
    let metadata = MetadataService::start();
    let guest = create_guest(&metadata);
    let key = TestKey::new(&guest.folder, "me");
    metadata.queue(make_channel_command("c-1", 1, attach_command("my-test", &key, "no")));
    let daemon = Daemon::start(&guest);

    let result = metadata.wait_for_result("c-1");
    assert_eq!(result["status"], "succeeded", "{result}");
    assert_eq!(
        (&result["commandId"], &result["instanceId"], &result["action"]),
        (&json!("c-1"), &json!("i-test"), &json!("attach"))
    );
    assert_eq!(result["fingerprint"]["sha256"], key.fingerprint("sha256"));
    assert!(guest.sshd.accepts_key(&key) && !guest.sshd.offers_password());

    metadata.queue(make_channel_command("c-2", 2, set_password_auth_command("yes")));
    let result = metadata.wait_for_result("c-2");
    assert_eq!(
        (&result["status"], &result["passWordAuth"]),
        (&json!("succeeded"), &json!("yes")),
        "{result}"
    );
    assert!(guest.sshd.accepts_key(&key) && guest.sshd.offers_password());

    metadata.queue(make_channel_command("c-3", 3, detach_command("my-test")));
    let result = metadata.wait_for_result("c-3");
    assert_eq!((&result["status"], &result["changed"]), (&json!("succeeded"), &json!(true)), "{result}");
    assert!(!guest.sshd.accepts_key(&key) && guest.sshd.offers_password());

    // Each result once, in order, and without any key text.
    let stored: Vec<_> = metadata.results().into_iter().map(|(id, _)| id).collect();
    assert_eq!(stored, ["c-1", "c-2", "c-3"]);
    let blob = key.line.split(' ').nth(1).unwrap();
    assert!(
        !daemon.log().contains(blob)
            && !metadata.result_attempts().iter().any(|(_, text)| text.contains(blob))
    );
}

#[test]
fn queued_commands_run_in_order_before_long_poll() {
    if !has_tools(&TOOLS) {
        return;
    }
    let metadata = MetadataService::start();
    let guest = create_guest(&metadata);
    let (key, other) = (TestKey::new(&guest.folder, "me"), TestKey::new(&guest.folder, "other"));
    metadata.queue(make_channel_command("c-1", 1, attach_command("one", &key, "no")));
    metadata.queue(make_channel_command("c-2", 2, attach_command("two", &other, "no")));
    metadata.queue(make_channel_command("c-3", 3, detach_command("one")));
    metadata.queue(make_channel_command("c-4", 4, attach_command("two", &other, "no")));
    metadata.queue(make_channel_command("c-5", 4, detach_command("two")));
    let _daemon = Daemon::start(&guest);
    metadata.wait_for_polls(6);

    let reasons: Vec<Value> = metadata
        .results()
        .iter()
        .map(|(_, text)| serde_json::from_str::<Value>(text).unwrap()["reason"].clone())
        .collect();
    assert_eq!(Value::from(reasons), json!([null, "ALREADY_ATTACHED", null, null, "STALE_COMMAND"]));
    assert!(guest.sshd.accepts_key(&other) && !guest.sshd.accepts_key(&key));
    // The id comes first, and each result before the next command. No poll waits until the agent is ready. It is
    // ready after the first empty answer, or 5 s after its start. A busy machine may need those 5 s for these
    // requests.
    let asked: Vec<ServiceRequest> =
        metadata.requests().into_iter().filter(|asked| *asked != ServiceRequest::AgentReport).collect();
    let order: Vec<ServiceRequest> = asked
        .iter()
        .map(
            |asked| if let ServiceRequest::Poll(_) = asked { ServiceRequest::Poll(0) } else { asked.clone() },
        )
        .collect();
    let each = ["c-1", "c-2", "c-3", "c-4", "c-5"]
        .map(|id| [ServiceRequest::Poll(0), ServiceRequest::Result(id.to_owned())]);
    let expected =
        [&[ServiceRequest::InstanceId][..], each.as_flattened(), &[ServiceRequest::Poll(0)]].concat();
    assert_eq!(order[..expected.len()], expected, "{asked:?}");
    assert_eq!(asked[1], ServiceRequest::Poll(0));
}

/// KP-3.37.
#[test]
fn agent_report_is_sent_at_start_and_after_change() {
    if !has_tools(&TOOLS) {
        return;
    }
    let metadata = MetadataService::start();
    let guest = create_guest(&metadata);
    let key = TestKey::new(&guest.folder, "me");
    let _daemon = Daemon::start(&guest);
    let first = wait_for("the first announcement", || metadata.agent_reports().first().cloned());
    let mut names: Vec<&String> = first.as_object().unwrap().keys().collect();
    names.sort();
    let mut expected = vec![
        "agentVersion",
        "componentVersion",
        "instanceId",
        "hostName",
        "os",
        "capabilities",
        "binding",
        "passWordAuth",
        "effective",
        "highestSequence",
        "undelivered",
        "warnings",
        "hostKeys",
    ];
    expected.sort_unstable();
    assert_eq!(names, expected);
    assert_eq!((&first["componentVersion"], &first["instanceId"]), (&json!("3.0.1042"), &json!("i-test")));
    assert_eq!((&first["binding"], &first["passWordAuth"]), (&json!(null), &json!(null)));
    assert_eq!((&first["highestSequence"], &first["undelivered"]), (&json!(null), &json!(0)));
    assert_eq!(
        (&first["warnings"], &first["effective"]["passwordAuthentication"]),
        (&json!([]), &json!(true))
    );
    for name in ["name", "version", "kernel", "architecture"] {
        assert!(first["os"][name].is_string(), "{first}");
    }
    let kernel = String::from_utf8(Command::new("uname").arg("-r").output().unwrap().stdout).unwrap();
    assert_eq!(first["os"]["kernel"], kernel.trim());
    for capability in ["attach", "detach", "setPasswordAuth", "replace"] {
        assert!(first["capabilities"].as_array().unwrap().contains(&json!(capability)), "{first}");
    }
    let output = Command::new("ssh-keygen").arg("-lf").arg(guest.path("host_key")).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let print = text.split(' ').nth(1).unwrap();
    assert_eq!(first["hostKeys"], json!([{ "type": "ssh-ed25519", "sha256": print }]));

    wait_until_idle(&metadata);
    metadata.queue(make_channel_command("c-1", 7, attach_command("my-test", &key, "no")));
    metadata.wait_for_result("c-1");
    // The report is sent while the next long poll waits, not after it.
    let second = wait_for("an announcement after the change", || metadata.agent_reports().get(1).cloned());
    assert_eq!(
        second["binding"],
        json!({ "keyName": "my-test", "inherited": false,
            "fingerprint": { "sha256": key.fingerprint("sha256"), "md5": key.fingerprint("md5") } })
    );
    assert_eq!((&second["passWordAuth"], &second["highestSequence"]), (&json!("no"), &json!(7)));
    assert_eq!((&second["undelivered"], &second["hostKeys"]), (&json!(0), &first["hostKeys"]));
    assert_eq!(
        second["effective"],
        json!({ "passwordAuthentication": false, "kbdInteractiveAuthentication": false, "pubkeyAuthentication": true })
    );
    assert!(!second.to_string().contains(key.line.split(' ').nth(1).unwrap()));

    // After a command without changes there is no report. The third report follows the later detach.
    metadata.queue(make_channel_command("c-2", 8, attach_command("my-test", &key, "no")));
    metadata.wait_for_result("c-2");
    metadata.queue(make_channel_command("c-3", 9, detach_command("my-test")));
    metadata.wait_for_result("c-3");
    let third = wait_for("an announcement after the detach", || metadata.agent_reports().get(2).cloned());
    assert_eq!((&third["binding"], &third["highestSequence"]), (&json!(null), &json!(9)));
}

/// KP-2.1, KP-2.4.
#[test]
fn component_version_is_read_for_every_command() {
    if !has_tools(&TOOLS) {
        return;
    }
    let metadata = MetadataService::start();
    let guest = create_guest(&metadata);
    let key = TestKey::new(&guest.folder, "me");
    guest.write_component_info("3.0.1041");
    let before = guest.snapshot();
    let mut daemon = Daemon::start(&guest);
    metadata.queue(make_channel_command("c-1", 1, attach_command("my-test", &key, "no")));
    let result = metadata.wait_for_result("c-1");
    assert_eq!(
        (&result["code"], &result["reason"], &result["componentVersion"]),
        (&json!("FAILED_PRECONDITION"), &json!("COMPONENT_TOO_OLD"), &json!("3.0.1041"))
    );
    assert!(result["message"].as_str().unwrap().contains("3.0.1042"), "{result}");
    assert_eq!(guest.snapshot(), before);
    assert!(guest.sshd.offers_password());
    wait_until_idle(&metadata);
    let (report, code) = read_status(&guest);
    assert_eq!((code, &report["healthy"]), (Some(1), &json!(false)), "{report}");
    assert!(problems(&report).contains("3.0.1042"), "{report}");

    fs::remove_file(guest.path("componentInfo.cfg")).unwrap();
    metadata.queue(make_channel_command("c-2", 2, attach_command("my-test", &key, "no")));
    assert_eq!(metadata.wait_for_result("c-2")["reason"], "COMPONENT_VERSION_UNREADABLE");
    assert_eq!(read_status(&guest).1, Some(1));

    guest.write_component_info("{\"version\": \"3.0.1042.d89c570\"}");
    metadata.queue(make_channel_command("c-3", 3, attach_command("my-test", &key, "no")));
    let result = metadata.wait_for_result("c-3");
    assert_eq!(
        (&result["status"], &result["componentVersion"]),
        (&json!("succeeded"), &json!("3.0.1042.d89c570"))
    );
    assert!(guest.sshd.accepts_key(&key) && daemon.is_alive());
}

/// KP-8.12.
#[test]
fn second_run_fails_and_names_running_pid() {
    if !has_tools(&TOOLS) {
        return;
    }
    let metadata = MetadataService::start();
    let guest = create_guest(&metadata);
    let mut daemon = Daemon::start(&guest);
    wait_until_idle(&metadata);
    let asked = metadata.requests().len();
    let second = guest.run_agent(&["run"]);
    assert_eq!(second.status.code(), Some(1));
    let words = String::from_utf8(second.stderr).unwrap();
    assert!(words.contains(&daemon.pid().to_string()), "{words}");
    assert_eq!(metadata.requests().len(), asked, "a second run asked the service");
    assert!(daemon.is_alive());
    // A killed daemon does not block the next one.
    daemon.kill();
    let polls = count_long_polls(&metadata);
    let next = Daemon::start(&guest);
    wait_for("the next daemon's long poll", || (count_long_polls(&metadata) > polls).then_some(()));
    assert_eq!(next.terminate().code(), Some(0));
}

/// KP-8.13.
#[test]
fn sighup_is_ignored_and_sigterm_stops_daemon() {
    if !has_tools(&TOOLS) {
        return;
    }
    let metadata = MetadataService::start();
    let guest = create_guest(&metadata);
    let mut daemon = Daemon::start(&guest);
    wait_until_idle(&metadata);
    let asked = metadata.requests().len();
    daemon.signal(Signal::SIGHUP);
    metadata.queue(make_channel_command("c-1", 1, set_password_auth_command("yes")));
    assert_eq!(metadata.wait_for_result("c-1")["status"], "succeeded");
    assert!(daemon.is_alive());
    // The daemon did not restart its loop: it did not request the instance id again.
    assert!(!metadata.requests()[asked..].contains(&ServiceRequest::InstanceId));
    wait_for("the next long poll", || (count_long_polls(&metadata) > 1).then_some(()));
    assert_eq!(daemon.terminate().code(), Some(0));
    assert_eq!(read_status(&guest).1, Some(1));
}

/// KP-8.5.
#[test]
fn status_reports_health_and_problems() {
    if !has_tools(&TOOLS) {
        return;
    }
    let metadata = MetadataService::start();
    let guest = create_guest(&metadata);
    let key = TestKey::new(&guest.folder, "me");
    let (report, code) = read_status(&guest);
    assert_eq!((code, &report["run"]), (Some(1), &json!(null)), "{report}");
    assert!(problems(&report).contains("not running"), "{report}");

    let daemon = Daemon::start(&guest);
    metadata.queue(make_channel_command("c-1", 7, attach_command("my-test", &key, "no")));
    metadata.wait_for_result("c-1");
    wait_until_idle(&metadata);
    let (report, code) = read_status(&guest);
    assert_eq!(
        (code, &report["healthy"], &report["problems"]),
        (Some(0), &json!(true), &json!([])),
        "{report}"
    );
    assert_eq!(report["run"]["pid"], daemon.pid());
    assert_eq!((&report["instanceId"], &report["highestSequence"]), (&json!("i-test"), &json!(7)));
    assert_eq!(
        (&report["binding"]["keyName"], &report["binding"]["fingerprint"]["sha256"], &report["passWordAuth"]),
        (&json!("my-test"), &json!(key.fingerprint("sha256")), &json!("no"))
    );
    assert_eq!((&report["componentVersion"], &report["undelivered"]), (&json!("3.0.1042"), &json!(null)));
    let output = guest.run_agent(&["status"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    for word in ["healthy", "my-test", &key.fingerprint("sha256"), "3.0.1042", &metadata.url(), "i-test"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    assert!(!text.contains("NOT") && !text.contains(key.line.split(' ').nth(1).unwrap()));

    // One user changes the agent's line; another adds their own line beside it.
    let good = fs::read(guest.key_file()).unwrap();
    let own = TestKey::new(&guest.folder, "own");
    fs::write(guest.key_file(), [good.as_slice(), own.line.as_bytes(), b"\n"].concat()).unwrap();
    assert_eq!(read_status(&guest).1, Some(0), "a line beside the block is nobody's business");
    let text = String::from_utf8(good.clone()).unwrap();
    let blob = key.line.split(' ').nth(1).unwrap();
    fs::write(guest.key_file(), text.replace(blob, own.line.split(' ').nth(1).unwrap())).unwrap();
    let (report, code) = read_status(&guest);
    assert_eq!(code, Some(1));
    assert!(problems(&report).contains(guest.key_file().to_str().unwrap()), "{report}");
    fs::write(guest.key_file(), &good).unwrap();
    assert_eq!(read_status(&guest).1, Some(0));
    let drop_in = fs::read(guest.drop_in()).unwrap();
    fs::write(guest.drop_in(), "PasswordAuthentication yes\n").unwrap();
    let (report, code) = read_status(&guest);
    assert_eq!(code, Some(1));
    assert!(problems(&report).contains("00-keypair-agent.conf"), "{report}");
    fs::write(guest.drop_in(), &drop_in).unwrap();
    assert_eq!(read_status(&guest).1, Some(0));

    // A result that the service does not accept.
    metadata.refuse_results(true);
    metadata.queue(make_channel_command("c-2", 8, detach_command("my-test")));
    wait_for("a refused result", || metadata.result_attempts().iter().find(|(id, _)| id == "c-2").cloned());
    let (report, code) = wait_for("the refusal to be told", || {
        Some(read_status(&guest)).filter(|(report, _)| report["channel"]["state"] == "failing")
    });
    assert_eq!((code, &report["undelivered"]), (Some(1), &json!("c-2")), "{report}");
    assert!(problems(&report).contains("503"), "{report}");
    metadata.refuse_results(false);
    metadata.wait_for_result("c-2");
    wait_for("health", || (read_status(&guest).1 == Some(0)).then_some(()));
    daemon.kill();
    let (report, code) = read_status(&guest);
    assert_eq!((code, &report["run"]), (Some(1), &json!(null)), "{report}");
}
