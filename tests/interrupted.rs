//! Interrupted commands (KP-7.4 to KP-7.6 and KP-7.10). The third interruption is the result. The agent keeps edits
//! of others, and a clone from an image starts anew.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;
use std::os::unix::process::ExitStatusExt;

use serde_json::{Value, json};
use support::daemon::{Daemon, make_channel_command};
use support::metadata::ServiceRequest;
use support::strace::{self, SyscallPoint};
use support::{
    GuestOptions, MetadataService, TestGuest, TestKey, attach_command, detach_command, has_tools,
    set_password_auth_command, wait_for, warning_reasons, with_field,
};

const TOOLS: [&str; 4] = ["sshd", "ssh", "ssh-keygen", "strace"];

fn create_guest(metadata: &MetadataService) -> TestGuest {
    TestGuest::with_options(GuestOptions { metadata: Some(metadata), ..GuestOptions::default() })
}

/// A guest whose user has a line in the key file, and a key to bind.
fn create_guest_with_user_key_file() -> (MetadataService, TestGuest, TestKey) {
    let metadata = MetadataService::start();
    let guest = create_guest(&metadata);
    let key = TestKey::new(&guest.folder, "me");
    fs::write(guest.key_file(), "# mine\n").unwrap();
    (metadata, guest, key)
}

/// Kills an attach after both files are written and before sshd is reloaded.
fn kill_attach_before_reload(guest: &TestGuest, key: &TestKey) {
    let reload = SyscallPoint { call: "kill".to_owned(), nth: 1, words: "the reload".to_owned() };
    strace::kill_apply_at(guest, &attach_command("my-test", key, "no"), &reload);
}

fn read_state(guest: &TestGuest) -> Value {
    serde_json::from_slice(&fs::read(guest.path("state/state.json")).unwrap()).unwrap()
}

fn read_status(guest: &TestGuest) -> Value {
    serde_json::from_slice(&guest.run_agent(&["status", "--json"]).stdout).unwrap()
}

fn wait_for_poll(metadata: &MetadataService, since: usize) {
    wait_for("a poll", || {
        metadata.requests()[since..]
            .iter()
            .any(|asked| matches!(asked, ServiceRequest::Poll(_)))
            .then_some(())
    });
}

/// Ends the attach when the key is in place and the new drop-in would be next: that is the only rename that replaces
/// nothing (renameat2).
const KILL_BEFORE_DROP_IN: &str = "inject=renameat2:signal=SIGKILL:when=1";

/// KP-7.5.
#[test]
fn command_interrupted_three_times_fails() {
    if !has_tools(&TOOLS) {
        return;
    }
    let (metadata, guest, key) = create_guest_with_user_key_file();
    // Creates a state file, so that a later write replaces one.
    assert_eq!(guest.apply(&detach_command("nothing"))["status"], "succeeded");
    let before = guest.snapshot();
    metadata.queue(make_channel_command("c-1", 5, attach_command("my-test", &key, "no")));
    for time in 1..=3 {
        let output = strace::run_with_injection(&guest, KILL_BEFORE_DROP_IN);
        assert_eq!(output.status.signal(), Some(9), "{time}: {output:?}");
        assert_eq!(read_state(&guest)["intent"]["command"]["id"], "c-1", "{time}");
        assert!(guest.sshd.accepts_key(&key), "{time}: it was not killed where it should have been");
        assert_eq!(metadata.result_attempts(), [], "{time}");
        assert!(
            read_status(&guest)["problems"].to_string().contains("interrupted"),
            "{time}: an open intent is told"
        );
        if time == 1 {
            // A console command in between undoes the open intent, but does not reset the count.
            let result = guest.apply(&detach_command("nothing"));
            assert_eq!(
                (&result["status"], &result["reason"]),
                (&json!("succeeded"), &json!(null)),
                "{result}"
            );
            assert!(!guest.sshd.accepts_key(&key));
        }
    }
    let daemon = Daemon::start(&guest);
    let result = metadata.wait_for_result("c-1");
    assert_eq!((&result["code"], &result["reason"]), (&json!("INTERNAL"), &json!("INTERRUPTED")), "{result}");
    assert_eq!((&result["status"], &result["changed"]), (&json!("failed"), &json!(false)));
    assert_eq!((&result["action"], &result["keyName"]), (&json!("attach"), &json!("my-test")));
    assert_eq!(
        (&result["fingerprint"]["sha256"], &result["instanceId"]),
        (&json!(key.fingerprint("sha256")), &json!("i-test"))
    );
    assert_eq!(metadata.result_attempts().len(), 1);
    assert_eq!(guest.snapshot(), before);
    assert!(!guest.sshd.accepts_key(&key) && guest.sshd.offers_password());
    // The failed command does not block the next one.
    metadata.queue(make_channel_command("c-2", 6, attach_command("my-test", &key, "no")));
    assert_eq!(metadata.wait_for_result("c-2")["status"], "succeeded");
    assert!(guest.sshd.accepts_key(&key));
    assert_eq!(daemon.terminate().code(), Some(0));
}

/// KP-7.3, KP-7.5.
#[test]
fn command_interrupted_twice_still_succeeds() {
    if !has_tools(&TOOLS) {
        return;
    }
    let (metadata, guest, key) = create_guest_with_user_key_file();
    assert_eq!(guest.apply(&detach_command("nothing"))["status"], "succeeded");
    metadata.queue(make_channel_command("c-1", 5, attach_command("my-test", &key, "no")));
    for _ in 0..2 {
        assert_eq!(strace::run_with_injection(&guest, KILL_BEFORE_DROP_IN).status.signal(), Some(9));
    }
    let daemon = Daemon::start(&guest);
    let result = metadata.wait_for_result("c-1");
    assert_eq!((&result["status"], &result["changed"]), (&json!("succeeded"), &json!(true)), "{result}");
    assert!(guest.sshd.accepts_key(&key) && !guest.sshd.offers_password());
    assert_eq!(metadata.result_attempts().len(), 1, "exactly one result");
    assert_eq!(daemon.terminate().code(), Some(0));
    assert_eq!(read_state(&guest)["interrupted"], json!(null));
}

/// KP-7.4.
#[test]
fn rollback_leaves_user_edits_and_logs_them() {
    if !has_tools(&TOOLS) {
        return;
    }
    let (metadata, guest, key) = create_guest_with_user_key_file();
    let own = TestKey::new(&guest.folder, "own");
    kill_attach_before_reload(&guest, &key);
    // Both files are written, and sshd is not reloaded. The user changes both files.
    let theirs = "PasswordAuthentication no\nMaxAuthTries 3\n";
    fs::write(guest.drop_in(), theirs).unwrap();
    let blob = |key: &TestKey| key.line.split(' ').nth(1).unwrap().to_owned();
    let block = fs::read_to_string(guest.key_file()).unwrap().replace(&blob(&key), &blob(&own));
    fs::write(guest.key_file(), &block).unwrap();

    let daemon = Daemon::start(&guest);
    wait_for_poll(&metadata, 0);
    let log = daemon.log();
    assert_eq!(daemon.terminate().code(), Some(0));
    assert_eq!(fs::read_to_string(guest.drop_in()).unwrap(), theirs);
    assert_eq!(fs::read_to_string(guest.key_file()).unwrap(), block);
    for path in [guest.drop_in(), guest.key_file()] {
        let named =
            log.lines().any(|line| line.contains("left alone") && line.contains(path.to_str().unwrap()));
        assert!(named, "{}: {log}", path.display());
    }
    assert_eq!(read_state(&guest)["intent"], json!(null));
    // sshd was reloaded with the files as they are.
    assert!(!guest.sshd.offers_password() && guest.sshd.accepts_key(&own) && !guest.sshd.accepts_key(&key));
}

/// KP-7.7.
#[test]
fn rollback_keeps_key_while_edited_drop_in_forbids_passwords() {
    if !has_tools(&TOOLS) {
        return;
    }
    let (_metadata, guest, key) = create_guest_with_user_key_file();
    kill_attach_before_reload(&guest, &key);
    // The user removes one of the settings from the drop-in. The rest is neither the user's nor the agent's file, and
    // still turns passwords off.
    let ours = fs::read_to_string(guest.drop_in()).unwrap();
    let theirs = ours.replace("KbdInteractiveAuthentication no\n", "MaxAuthTries 3\n");
    assert_ne!(ours, theirs);
    fs::write(guest.drop_in(), &theirs).unwrap();
    let result = guest.apply(&set_password_auth_command("yes"));
    assert_eq!(result["reason"], "IO_ERROR", "{result}");
    let message = result["message"].as_str().unwrap();
    assert!(
        message.contains(guest.drop_in().to_str().unwrap()) && message.contains("only way in"),
        "{message}"
    );
    assert!(guest.sshd.accepts_key(&key) && !guest.sshd.offers_password());
    assert_eq!(fs::read_to_string(guest.drop_in()).unwrap(), theirs);
    // Without that setting the agent removes the key, and the next command succeeds.
    fs::write(guest.drop_in(), "MaxAuthTries 3\n").unwrap();
    let result = guest.apply(&detach_command("my-test"));
    assert_eq!((&result["status"], &result["changed"]), (&json!("succeeded"), &json!(false)), "{result}");
    assert!(guest.sshd.offers_password() && !guest.sshd.accepts_key(&key));
    assert_eq!(fs::read_to_string(guest.key_file()).unwrap(), "# mine\n");
}

/// KP-7.6.
#[test]
fn failed_rollback_is_retried_by_next_command() {
    if !has_tools(&TOOLS) {
        return;
    }
    let (metadata, guest, key) = create_guest_with_user_key_file();
    let before = guest.snapshot();
    kill_attach_before_reload(&guest, &key);
    // The user breaks sshd's configuration before the restart, so the agent cannot reload sshd.
    let main = fs::read_to_string(guest.path("sshd_config")).unwrap();
    fs::write(guest.path("sshd_config"), format!("{main}NoSuchKeyword yes\n")).unwrap();
    let result = guest.apply(&set_password_auth_command("yes"));
    assert_eq!(result["reason"], "IO_ERROR", "{result}");
    assert!(result["message"].as_str().unwrap().contains("NoSuchKeyword"), "{result}");
    let mut daemon = Daemon::start(&guest);
    metadata.queue(make_channel_command("c-1", 1, set_password_auth_command("yes")));
    assert_eq!(metadata.wait_for_result("c-1")["reason"], "IO_ERROR");
    let report = read_status(&guest);
    assert!(report["problems"].to_string().contains("interrupted"), "{report}");
    // After the repair, the next command undoes the open intent and continues.
    fs::write(guest.path("sshd_config"), main).unwrap();
    metadata.queue(make_channel_command("c-2", 2, detach_command("my-test")));
    let result = metadata.wait_for_result("c-2");
    assert_eq!((&result["status"], &result["changed"]), (&json!("succeeded"), &json!(false)), "{result}");
    assert_eq!(guest.snapshot(), before);
    assert!(guest.sshd.offers_password() && !guest.sshd.accepts_key(&key) && daemon.is_alive());
    assert_eq!(read_state(&guest)["intent"], json!(null));
}

/// KP-4.3, KP-7.10.
#[test]
fn clone_resets_sequence_and_inherits_binding() {
    if !has_tools(&TOOLS) {
        return;
    }
    let metadata = MetadataService::start();
    let guest = create_guest(&metadata);
    let (key, other) = (TestKey::new(&guest.folder, "me"), TestKey::new(&guest.folder, "other"));
    metadata.queue(make_channel_command("c-1", 70, attach_command("my-test", &key, "no")));
    let daemon = Daemon::start(&guest);
    metadata.wait_for_result("c-1");
    metadata.refuse_results(true);
    metadata.queue(make_channel_command("c-2", 71, set_password_auth_command("no")));
    wait_for("a result under way", || metadata.result_attempts().iter().find(|(id, _)| id == "c-2").cloned());
    daemon.kill();
    assert_eq!(read_state(&guest)["undelivered"]["commandId"], "c-2");

    // The image of it starts as another instance.
    metadata.set_instance_id("i-clone");
    metadata.withdraw_command("c-2");
    metadata.refuse_results(false);
    let (asked, told, sent) =
        (metadata.requests().len(), metadata.agent_reports().len(), metadata.result_attempts().len());
    let _daemon = Daemon::start(&guest);
    wait_for_poll(&metadata, asked);
    let document = wait_for("an announcement", || metadata.agent_reports().get(told).cloned());
    assert_eq!((&document["instanceId"], &document["highestSequence"]), (&json!("i-clone"), &json!(null)));
    assert_eq!(
        (&document["binding"]["keyName"], &document["binding"]["inherited"]),
        (&json!("my-test"), &json!(true))
    );
    assert_eq!(document["undelivered"], 0);
    assert_eq!(metadata.result_attempts().len(), sent, "the other instance's result is not sent");
    let report = read_status(&guest);
    assert_eq!(
        (&report["instanceId"], &report["binding"]["inherited"]),
        (&json!("i-clone"), &json!(true)),
        "{report}"
    );
    assert!(guest.sshd.accepts_key(&key));

    let of_clone = |id: &str, sequence, command| {
        with_field(make_channel_command(id, sequence, command), "instanceId", json!("i-clone"))
    };
    metadata.queue(make_channel_command("c-3", 72, detach_command("my-test")));
    assert_eq!(metadata.wait_for_result("c-3")["reason"], "WRONG_INSTANCE");
    // A lower sequence and another key pair are allowed, with a warning.
    metadata.queue(of_clone("c-4", 1, attach_command("other", &other, "no")));
    let result = metadata.wait_for_result("c-4");
    assert_eq!(
        (&result["status"], &result["instanceId"]),
        (&json!("succeeded"), &json!("i-clone")),
        "{result}"
    );
    assert_eq!(warning_reasons(&result), ["INHERITED_KEY_REPLACED"], "{result}");
    assert!(guest.sshd.accepts_key(&other) && !guest.sshd.accepts_key(&key));
    let report = read_status(&guest);
    assert_eq!(
        (&report["highestSequence"], &report["binding"]["inherited"]),
        (&json!(1), &json!(false)),
        "{report}"
    );
    metadata.queue(of_clone("c-5", 2, attach_command("my-test", &key, "no")));
    assert_eq!(metadata.wait_for_result("c-5")["reason"], "ALREADY_ATTACHED");
}

/// KP-7.10.
#[test]
fn clone_attaches_inherited_key_without_warning() {
    if !has_tools(&TOOLS) {
        return;
    }
    let metadata = MetadataService::start();
    let guest = create_guest(&metadata);
    let key = TestKey::new(&guest.folder, "me");
    metadata.queue(make_channel_command("c-1", 70, attach_command("my-test", &key, "no")));
    let daemon = Daemon::start(&guest);
    metadata.wait_for_result("c-1");
    assert_eq!(daemon.terminate().code(), Some(0));
    metadata.set_instance_id("i-clone");
    let _daemon = Daemon::start(&guest);
    // This command id was used on the original instance. The clone does not know it.
    let command = with_field(
        make_channel_command("c-10", 1, attach_command("my-test", &key, "no")),
        "instanceId",
        json!("i-clone"),
    );
    metadata.queue(command);
    let result = metadata.wait_for_result("c-10");
    assert_eq!((&result["status"], &result["changed"]), (&json!("succeeded"), &json!(false)), "{result}");
    assert_eq!(warning_reasons(&result), [] as [&str; 0]);
    assert_eq!(read_status(&guest)["binding"]["inherited"], false, "it is ours now");
    let repeated =
        with_field(make_channel_command("c-1", 2, detach_command("my-test")), "instanceId", json!("i-clone"));
    let here = guest.apply(&repeated);
    assert_eq!((&here["action"], &here["changed"]), (&json!("detach"), &json!(true)), "{here}");
}
