//! A home that only the agent cannot see, as with `ProtectHome=yes` in its unit. The agent cannot know whether a
//! missing file is really gone, and no other process would read a file that it writes there.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs;
use std::process::{Command, Output};

use serde_json::Value;
use support::{TestGuest, TestKey, attach_command, detach_command, has_tools, set_password_auth_command};

const TOOLS: [&str; 5] = ["sshd", "ssh", "ssh-keygen", "unshare", "mount"];

/// Runs the agent with its own mount over a directory. `mount` is the shell command; `$0` is the directory.
fn run_with_mount_over(guest: &TestGuest, directory: &str, mount: &str, words: &[&str]) -> Output {
    let agent = guest.agent_command(words);
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-ec"])
        .arg(format!("{mount}; exec \"$@\""))
        .arg(guest.path(directory))
        .arg(agent.get_program())
        .args(agent.get_args())
        .output();
    output.unwrap()
}

fn combined_output(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// KP-5.15.
#[test]
fn directory_hidden_from_agent_is_io_error() {
    if !has_tools(&TOOLS) {
        return;
    }
    let guest = TestGuest::new();
    let key = TestKey::new(&guest.folder, "k");
    let file = guest.path("command.log");
    let given = |command: &Value| fs::write(&file, command.to_string()).unwrap();
    let path = file.to_str().unwrap();
    // An empty directory; a directory that nobody may enter; only the file; another directory of the same file
    // system.
    let covers = [
        ("keys", "mount -t tmpfs -o mode=755 t \"$0\""),
        ("keys", "mount -t tmpfs -o mode=000 t \"$0\""),
        ("keys/root", "mount --bind /dev/null \"$0\""),
        ("keys", "mkdir -p \"$0.other\"; mount --bind \"$0.other\" \"$0\""),
    ];
    // No key is bound yet.
    given(&attach_command("my-test", &key, "yes"));
    let output = run_with_mount_over(&guest, "keys", covers[0].1, &["apply", path]);
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&result["reason"], &result["changed"]), (&"IO_ERROR".into(), &false.into()), "{result}");

    // Without sshd's drop-ins, the agent would get a wrong answer from `sshd -T`.
    for command in [attach_command("my-test", &key, "yes"), set_password_auth_command("yes")] {
        given(&command);
        let output = run_with_mount_over(&guest, "sshd_config.d", covers[0].1, &["apply", path]);
        let result: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(result["reason"], "IO_ERROR", "{result}");
        assert!(result["message"].as_str().unwrap().contains("sshd_config.d"), "{result}");
    }

    assert_eq!(guest.apply(&attach_command("my-test", &key, "yes"))["status"], "succeeded");
    let keys = fs::read(guest.key_file()).unwrap();
    for (directory, mount) in covers {
        let before = guest.snapshot();
        for command in [detach_command("my-test"), attach_command("my-test", &key, "no")] {
            given(&command);
            let output = run_with_mount_over(&guest, directory, mount, &["apply", path]);
            let result: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(output.status.code(), Some(1), "{mount}: {result}");
            assert_eq!(result["reason"], "IO_ERROR", "{mount}: {result}");
            let message = result["message"].as_str().unwrap();
            assert!(message.contains(guest.path(directory).to_str().unwrap()), "{mount}: {result}");
            assert!(message.contains("does not see there what sshd sees"), "{mount}: {result}");
        }
        assert_eq!(guest.snapshot(), before, "{mount}");
        // The agent removes the lines that it can see.
        let output = run_with_mount_over(&guest, directory, mount, &["undo"]);
        assert_eq!(output.status.code(), Some(1), "{mount}: {output:?}");
        assert!(
            combined_output(&output).contains("does not see there what sshd sees"),
            "{mount}: {output:?}"
        );
        assert_eq!(fs::read(guest.key_file()).unwrap(), keys, "{mount}");
        assert!(guest.sshd.accepts_key(&key), "{mount}");
    }
    // A directory that is mounted on itself hides nothing.
    given(&detach_command("my-test"));
    let output = run_with_mount_over(&guest, "keys", "mount --bind \"$0\" \"$0\"", &["apply", path]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(!guest.sshd.accepts_key(&key));
}

/// KP-5.15.
#[test]
fn directory_read_only_for_agent_is_io_error() {
    if !has_tools(&TOOLS) {
        return;
    }
    let guest = TestGuest::new();
    let key = TestKey::new(&guest.folder, "k");
    assert_eq!(guest.apply(&attach_command("my-test", &key, "yes"))["status"], "succeeded");
    let file = guest.path("command.log");
    fs::write(&file, detach_command("my-test").to_string()).unwrap();
    let mount = "mount --bind \"$0\" \"$0\"; mount -o remount,bind,ro \"$0\"";
    let output = run_with_mount_over(&guest, "keys", mount, &["apply", file.to_str().unwrap()]);
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["reason"], "IO_ERROR", "{result}");
    let message = result["message"].as_str().unwrap();
    assert!(message.contains("for the agent alone") && message.contains("ReadWritePaths="), "{result}");
    assert!(guest.sshd.accepts_key(&key));
    assert_eq!(guest.apply(&detach_command("my-test"))["changed"], true);
}
