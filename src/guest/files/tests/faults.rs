//! Every call of the system that changes something fails once, and is once the last: each file is the old or the
//! new one (KP-7.3). strace(1) makes them fail.

use std::fs;
use std::os::unix::process::ExitStatusExt;

use crate::guest::files::{remove_created_key_file, replace_key_file, sweep_key_directory};

use super::*;

/// Set for the child that does the work, to the home it is done in.
const CHILD: &str = "KEYPAIR_AGENT_TEST_FAULT";
const CALLS: [&str; 6] = ["mkdirat", "fchown", "fchmod", "fsync", "renameat", "renameat2"];

/// The child's work: a new content, whatever was there.
#[test]
fn child() {
    let Some(home) = std::env::var_os(CHILD).map(PathBuf::from) else { return };
    let account = joe(&home, fs::metadata(&home).unwrap().uid());
    let keys = home.join(".ssh/authorized_keys");
    let expected = fs::read(&keys).ok().map(|content| ContentHash::of(&content));
    replace_key_file(&account, &keys, expected.as_ref(), b"new\n").unwrap();
}

/// How the child ended, its `number`th `call` tampered with.
fn tampered(home: &Home, call: &str, number: u32, how: &str) -> (bool, bool) {
    let own = std::env::current_exe().unwrap();
    let output = Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}")])
        .args(["-e", &format!("inject={call}:{how}:when={number}")])
        .arg(own)
        .args(["--exact", "guest::files::tests::faults::child", "--test-threads=1"])
        .env(CHILD, &home.account.home)
        .output()
        .unwrap();
    (output.status.success(), output.status.signal().is_some() || output.status.code() == Some(137))
}

fn strace_works() -> bool {
    tool("strace", &["-qq", "-o", "/dev/null", "-e", "inject=fsync:error=EIO:when=1", "true"])
}

/// `.ssh` and what is in it, if there is one.
fn left(home: &Home) -> Vec<String> {
    let ssh = home.at(".ssh");
    if ssh.exists() { names(&ssh) } else { vec!["nothing".to_owned()] }
}

#[test]
fn a_call_that_fails_leaves_the_old_file_and_nothing_else() {
    if !strace_works() {
        return;
    }
    let mut failures = 0;
    for call in CALLS {
        for number in 1..=3 {
            let home = Home::new();
            if !tampered(&home, call, number, "error=EIO").0 {
                failures += 1;
                assert_eq!(left(&home), ["nothing"], "{call} {number}");
            }
            let home = Home::new();
            let keys = home.with_keys("old\n");
            let (succeeded, _) = tampered(&home, call, number, "error=EIO");
            assert_eq!(left(&home), ["authorized_keys"], "{call} {number}");
            let content = fs::read(&keys).unwrap();
            if !succeeded {
                failures += 1;
                // Only the directory's sync comes behind the rename.
                let behind = call == "fsync" && number == 2;
                assert_eq!(content, if behind { b"new\n" } else { b"old\n" }, "{call} {number}");
            }
        }
    }
    assert!(failures >= 8, "{failures}");
}

#[test]
fn a_call_that_is_the_last_leaves_the_old_file_or_the_new_one() {
    if !strace_works() {
        return;
    }
    let mut kills = 0;
    for call in CALLS {
        for number in 1..=3 {
            let home = Home::new();
            let keys = home.keys();
            kills += u32::from(tampered(&home, call, number, "signal=KILL").1);
            // What the recovery does: take back what was created, and sweep.
            remove_created_key_file(&home.account, &keys, &hash("new\n"), Some(&home.at(".ssh"))).unwrap();
            assert_eq!(left(&home), ["nothing"], "{call} {number}");

            let home = Home::new();
            let keys = home.with_keys("old\n");
            kills += u32::from(tampered(&home, call, number, "signal=KILL").1);
            sweep_key_directory(&home.account, &keys).unwrap();
            assert_eq!(left(&home), ["authorized_keys"], "{call} {number}");
            let content = fs::read(&keys).unwrap();
            assert!(content == b"old\n" || content == b"new\n", "{call} {number}");
            assert_eq!(owner_and_mode(&keys), (home.account.uid, home.account.gid, 0o600));
        }
    }
    assert!(kills >= 8, "{kills}");
}
