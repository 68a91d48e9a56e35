//! KP-6.12 and KP-6.14: sshd's files, which root alone may be able to change.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};

use crate::guest::files::{FileError, read_file, remove_root_file, replace_root_file, sweep};

use super::*;

fn directory() -> (TempDir, PathBuf) {
    let scratch = scratch();
    let path = scratch.path().join("ssh");
    fs::create_dir(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    (scratch, path)
}

#[track_caller]
fn assert_unsafe<T: std::fmt::Debug>(result: Result<T, FileError>, cause: &str) {
    assert!(matches!(&result, Err(FileError::Unsafe { why, .. }) if why.contains(cause)), "{result:?}");
}

/// KP-6.12.
#[test]
fn a_drop_in_comes_and_goes() {
    let (_scratch, directory) = directory();
    let path = directory.join("00-keypair-agent.conf");
    let made = replace_root_file(&path, None, b"one\n", 0o644).unwrap();
    assert!(made.created_file && made.created_directory.is_none());
    assert_eq!(owner_and_mode(&path).2, 0o644);
    let inode = fs::metadata(&path).unwrap().ino();
    replace_root_file(&path, Some(&hash("one\n")), b"one\n", 0o600).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
    replace_root_file(&path, Some(&hash("one\n")), b"two\n", 0o600).unwrap();
    assert_eq!(owner_and_mode(&path).2, 0o644);
    assert!(matches!(remove_root_file(&path, &hash("one\n")), Err(FileError::Changed { .. })));
    assert_eq!(read_file(&path, 9).unwrap().as_deref(), Some(&b"two\n"[..]));
    for _ in 0..2 {
        remove_root_file(&path, &hash("two\n")).unwrap();
        assert_eq!(names(&directory), [""; 0]);
    }
}

#[test]
fn reading_has_a_limit_and_knows_nothing_from_nowhere() {
    let (_scratch, directory) = directory();
    let path = directory.join("f");
    assert_eq!(read_file(&path, 3).unwrap(), None);
    assert_eq!(read_file(&path.join("x"), 3).unwrap(), None);
    symlink("nowhere", directory.join("link")).unwrap();
    assert_eq!(read_file(&directory.join("link"), 3).unwrap(), None);
    fs::write(&path, "abc").unwrap();
    assert_eq!(read_file(&path, 3).unwrap().as_deref(), Some(&b"abc"[..]));
    assert_eq!(read_file(&path.join("x"), 3).unwrap(), None);
    assert!(matches!(read_file(&path, 2), Err(FileError::TooLarge { limit: 2, .. })));
    assert_unsafe(read_file(&directory, 2), "a directory");
}

/// KP-6.14.
#[test]
fn a_main_file_that_is_a_link_is_written_at_its_target() {
    let (scratch, directory) = directory();
    let real = scratch.path().join("real");
    fs::write(&real, "old\n").unwrap();
    symlink("../real", directory.join("hop")).unwrap();
    let path = directory.join("sshd_config");
    symlink(directory.join("hop"), &path).unwrap();
    replace_root_file(&path, Some(&hash("old\n")), b"new\n", 0o644).unwrap();
    assert_eq!(fs::read(&real).unwrap(), b"new\n");
    assert!(path.is_symlink() && directory.join("hop").is_symlink());
    assert_eq!(names(&directory), ["hop", "sshd_config"]);
    assert_unsafe(remove_root_file(&path, &hash("new\n")), "a symbolic link");
}

/// KP-6.14.
#[test]
fn a_link_through_what_others_can_change_is_refused() {
    if !is_root("another owner") {
        return;
    }
    let (scratch, directory) = directory();
    let theirs = scratch.path().join("theirs");
    fs::create_dir(&theirs).unwrap();
    fs::write(theirs.join("real"), "old\n").unwrap();
    let path = directory.join("sshd_config");
    symlink(theirs.join("real"), &path).unwrap();
    let replace = || replace_root_file(&path, Some(&hash("old\n")), b"new\n", 0o644);

    chown(&theirs, Some(OTHER), None).unwrap();
    assert_unsafe(replace(), "not by root");
    chown(&theirs, Some(0), Some(OTHER)).unwrap();
    fs::set_permissions(&theirs, fs::Permissions::from_mode(0o775)).unwrap();
    assert_unsafe(replace(), "chmod g-w");
    // Of root's own group, unless an ACL hides somebody behind its bits.
    chown(&theirs, Some(0), Some(0)).unwrap();
    if tool("setfacl", &["-m", "u:61002:rwx", &theirs.to_string_lossy()]) {
        assert_unsafe(replace(), "writable by gid 0");
        assert!(tool("setfacl", &["-b", &theirs.to_string_lossy()]));
        fs::set_permissions(&theirs, fs::Permissions::from_mode(0o775)).unwrap();
    }
    fs::set_permissions(&theirs, fs::Permissions::from_mode(0o1777)).unwrap();
    assert_unsafe(replace(), "chmod o-w");
    fs::set_permissions(&theirs, fs::Permissions::from_mode(0o775)).unwrap();
    lchown(&path, Some(OTHER), None).unwrap();
    assert_unsafe(replace(), "not root");
    lchown(&path, Some(0), None).unwrap();
    assert_eq!(fs::read(theirs.join("real")).unwrap(), b"old\n");
    chown(theirs.join("real"), Some(OTHER), None).unwrap();
    assert_unsafe(replace(), "not by root");
    chown(theirs.join("real"), Some(0), None).unwrap();
    replace().unwrap();
}

#[test]
fn links_in_circles_and_to_nowhere() {
    let (_scratch, directory) = directory();
    let path = directory.join("sshd_config");
    symlink("sshd_config", &path).unwrap();
    assert!(matches!(replace_root_file(&path, None, b"x", 0o644), Err(FileError::Io { .. })));
    fs::remove_file(&path).unwrap();
    symlink("none/real", &path).unwrap();
    assert_unsafe(replace_root_file(&path, None, b"x", 0o644), "which does not exist");
    assert!(matches!(
        replace_root_file(&directory.join("none/x"), None, b"x", 0o644),
        Err(FileError::Missing { .. })
    ));
    assert!(remove_root_file(&directory.join("none/x"), &hash("x")).is_ok());
}

#[test]
fn temporaries_are_swept() {
    let (_scratch, directory) = directory();
    fs::write(directory.join(".keypair-agent-0123456789abcdef.tmp"), "x").unwrap();
    fs::write(directory.join("50-cloud.conf"), "x").unwrap();
    assert_eq!(sweep(&directory).unwrap(), 1);
    assert_eq!(names(&directory), ["50-cloud.conf"]);
    assert_eq!(sweep(&directory.join("none")).unwrap(), 0);
}
