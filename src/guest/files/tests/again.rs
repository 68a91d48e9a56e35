//! Runs all the other tests again under other conditions: as a user who is not root, who can use the agent on
//! their own files, and on a kernel without openat2(2).

use std::os::unix::process::CommandExt;

use super::*;

/// Runs the other tests in a copy of this program that every user may execute. Their files are in a directory that
/// `owner` owns.
fn rerun_tests(owner: u32, tracer: &[&str]) {
    let scratch = create_scratch_dir();
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = scratch.path().join("tests");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let own = scratch.path().join("own");
    fs::create_dir(&own).unwrap();
    chown(&own, Some(owner), Some(owner)).unwrap();
    let words: Vec<&Path> = tracer.iter().map(Path::new).chain([program.as_path()]).collect();
    let output = Command::new(words[0])
        .args(&words[1..])
        .args(["guest::files::", "--skip", "rerun_tests", "--nocapture"])
        .env(SCRATCH_VAR, &own)
        .uid(owner)
        .gid(owner)
        .current_dir(&own)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("test result: ok"), "{text}");
    assert_eq!(list_names(&own), [""; 0]);
}

#[test]
fn rerun_tests_for_ones_own_files() {
    if is_root_or_skip("becoming somebody else") {
        rerun_tests(USER_UID, &[]);
    }
}

#[test]
fn rerun_tests_without_openat2() {
    let inject = "inject=openat2:error=ENOSYS";
    if is_root_or_skip("a directory of one's own") && run_tool_or_skip("strace", &["-V"]) {
        rerun_tests(0, &["strace", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e", inject]);
    }
}
