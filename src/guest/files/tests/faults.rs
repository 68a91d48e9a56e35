//! Each system call that changes something fails once, and in another run the process is killed at it. Each file
//! must have its complete old or new content (KP-7.3). strace(1) injects the faults.

use std::fs;
use std::os::unix::process::ExitStatusExt;

use crate::guest::files::{remove_created_key_file, remove_key_dir_temporaries, replace_key_file};

use super::*;

/// Set only in the child process that does the replacement. The value is the home to use.
const CHILD_HOME_VAR: &str = "KEYPAIR_AGENT_TEST_FAULT";
const INJECTED_SYSCALLS: [&str; 6] = ["mkdirat", "fchown", "fchmod", "fsync", "renameat", "renameat2"];

/// The child process: writes new content, whatever the file contained.
#[test]
fn child() {
    let Some(home) = std::env::var_os(CHILD_HOME_VAR).map(PathBuf::from) else { return };
    let account = test_account(&home, fs::metadata(&home).unwrap().uid());
    let keys = home.join(".ssh/authorized_keys");
    let expected = fs::read(&keys).ok().map(|content| ContentHash::from_content(&content));
    replace_key_file(&account, &keys, expected.as_ref(), b"new\n").unwrap();
}

/// Runs the child with a fault in its `number`th `call`. Returns whether it succeeded, and whether it was killed.
fn run_with_injection(home: &TestHome, call: &str, number: u32, how: &str) -> (bool, bool) {
    let own = std::env::current_exe().unwrap();
    let output = Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}")])
        .args(["-e", &format!("inject={call}:{how}:when={number}")])
        .arg(own)
        .args(["--exact", "guest::files::tests::faults::child", "--test-threads=1"])
        .env(CHILD_HOME_VAR, &home.account.home)
        .output()
        .unwrap();
    (output.status.success(), output.status.signal().is_some() || output.status.code() == Some(137))
}

fn can_inject_faults() -> bool {
    run_tool_or_skip("strace", &["-qq", "-o", "/dev/null", "-e", "inject=fsync:error=EIO:when=1", "true"])
}

/// The entries of `.ssh`, or "nothing" if it does not exist.
fn list_ssh_directory(home: &TestHome) -> Vec<String> {
    let ssh = home.home_path(".ssh");
    if ssh.exists() { list_names(&ssh) } else { vec!["nothing".to_owned()] }
}

#[test]
fn replace_with_failing_syscall_leaves_only_old_file() {
    if !can_inject_faults() {
        return;
    }
    let mut failures = 0;
    for call in INJECTED_SYSCALLS {
        for number in 1..=3 {
            let home = TestHome::new();
            if !run_with_injection(&home, call, number, "error=EIO").0 {
                failures += 1;
                assert_eq!(list_ssh_directory(&home), ["nothing"], "{call} {number}");
            }
            let home = TestHome::new();
            let keys = home.create_key_file("old\n");
            let (succeeded, _) = run_with_injection(&home, call, number, "error=EIO");
            assert_eq!(list_ssh_directory(&home), ["authorized_keys"], "{call} {number}");
            let content = fs::read(&keys).unwrap();
            if !succeeded {
                failures += 1;
                // Only the sync of the directory comes after the rename.
                let behind = call == "fsync" && number == 2;
                assert_eq!(content, if behind { b"new\n" } else { b"old\n" }, "{call} {number}");
            }
        }
    }
    assert!(failures >= 8, "{failures}");
}

#[test]
fn replace_killed_at_syscall_leaves_old_or_new_file() {
    if !can_inject_faults() {
        return;
    }
    let mut kills = 0;
    for call in INJECTED_SYSCALLS {
        for number in 1..=3 {
            let home = TestHome::new();
            let keys = home.key_file_path();
            kills += u32::from(run_with_injection(&home, call, number, "signal=KILL").1);
            // The recovery does the same: it removes what was created, and the temporary files.
            remove_created_key_file(
                &home.account,
                &keys,
                &content_hash("new\n"),
                Some(&home.home_path(".ssh")),
            )
            .unwrap();
            assert_eq!(list_ssh_directory(&home), ["nothing"], "{call} {number}");

            let home = TestHome::new();
            let keys = home.create_key_file("old\n");
            kills += u32::from(run_with_injection(&home, call, number, "signal=KILL").1);
            remove_key_dir_temporaries(&home.account, &keys).unwrap();
            assert_eq!(list_ssh_directory(&home), ["authorized_keys"], "{call} {number}");
            let content = fs::read(&keys).unwrap();
            assert!(content == b"old\n" || content == b"new\n", "{call} {number}");
            assert_eq!(owner_and_mode(&keys), (home.account.uid, home.account.gid, 0o600));
        }
    }
    assert!(kills >= 8, "{kills}");
}
