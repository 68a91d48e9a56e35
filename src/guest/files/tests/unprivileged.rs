//! Whoever is not root can use it on his own files.

use std::os::unix::process::CommandExt;

use super::*;

/// All the other tests again, as somebody else than root, in a copy of this program that he may run.
#[test]
fn everything_again_for_ones_own_files() {
    if !is_root("becoming somebody else") {
        return;
    }
    let scratch = scratch();
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = scratch.path().join("tests");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let own = scratch.path().join("own");
    fs::create_dir(&own).unwrap();
    chown(&own, Some(USER), Some(USER)).unwrap();
    let output = Command::new(&program)
        .args(["guest::files::", "--nocapture"])
        .env(SCRATCH, &own)
        .uid(USER)
        .gid(USER)
        .current_dir(&own)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("test result: ok"), "{text}");
    assert_eq!(names(&own), [""; 0]);
}
