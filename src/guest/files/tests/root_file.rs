//! KP-6.12 and KP-6.14: sshd's files, which only root may be able to change.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};

use crate::guest::files::{
    FileError, read_file, remove_root_dir_temporaries, remove_root_file, replace_root_file,
};

use super::*;

fn create_ssh_directory() -> (TempDir, PathBuf) {
    let scratch = create_scratch_dir();
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
fn drop_in_is_created_replaced_and_removed() {
    let (_scratch, directory) = create_ssh_directory();
    let path = directory.join("00-keypair-agent.conf");
    let made = replace_root_file(&path, None, b"one\n", 0o644).unwrap();
    assert!(made.created_file && made.created_directory.is_none());
    assert_eq!(owner_and_mode(&path).2, 0o644);
    let inode = fs::metadata(&path).unwrap().ino();
    replace_root_file(&path, Some(&content_hash("one\n")), b"one\n", 0o600).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
    replace_root_file(&path, Some(&content_hash("one\n")), b"two\n", 0o600).unwrap();
    assert_eq!(owner_and_mode(&path).2, 0o644);
    assert!(matches!(remove_root_file(&path, &content_hash("one\n")), Err(FileError::Changed { .. })));
    assert_eq!(read_file(&path, 9).unwrap().as_deref(), Some(&b"two\n"[..]));
    for _ in 0..2 {
        remove_root_file(&path, &content_hash("two\n")).unwrap();
        assert_eq!(list_names(&directory), [""; 0]);
    }
}

#[test]
fn read_file_enforces_limit_and_returns_none_if_missing() {
    let (_scratch, directory) = create_ssh_directory();
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
fn main_file_symlink_is_written_at_its_target() {
    let (scratch, directory) = create_ssh_directory();
    let real = scratch.path().join("real");
    fs::write(&real, "old\n").unwrap();
    symlink("../real", directory.join("hop")).unwrap();
    let path = directory.join("sshd_config");
    symlink(directory.join("hop"), &path).unwrap();
    replace_root_file(&path, Some(&content_hash("old\n")), b"new\n", 0o644).unwrap();
    assert_eq!(fs::read(&real).unwrap(), b"new\n");
    assert!(path.is_symlink() && directory.join("hop").is_symlink());
    assert_eq!(list_names(&directory), ["hop", "sshd_config"]);
    assert_unsafe(remove_root_file(&path, &content_hash("new\n")), "a symbolic link");
}

/// KP-6.14.
#[test]
fn main_file_symlink_through_untrusted_path_is_refused() {
    if !is_root_or_skip("another owner") {
        return;
    }
    let (scratch, directory) = create_ssh_directory();
    let theirs = scratch.path().join("theirs");
    fs::create_dir(&theirs).unwrap();
    fs::write(theirs.join("real"), "old\n").unwrap();
    let path = directory.join("sshd_config");
    symlink(theirs.join("real"), &path).unwrap();
    let replace = || replace_root_file(&path, Some(&content_hash("old\n")), b"new\n", 0o644);

    chown(&theirs, Some(OTHER_UID), None).unwrap();
    assert_unsafe(replace(), "not by root");
    chown(&theirs, Some(0), Some(OTHER_UID)).unwrap();
    fs::set_permissions(&theirs, fs::Permissions::from_mode(0o775)).unwrap();
    assert_unsafe(replace(), "chmod g-w");
    // Group write permission for root's own group is allowed, unless an ACL may give it to other users.
    chown(&theirs, Some(0), Some(0)).unwrap();
    if run_tool_or_skip("setfacl", &["-m", "u:61002:rwx", &theirs.to_string_lossy()]) {
        assert_unsafe(replace(), "writable by gid 0");
        assert!(run_tool_or_skip("setfacl", &["-b", &theirs.to_string_lossy()]));
        fs::set_permissions(&theirs, fs::Permissions::from_mode(0o775)).unwrap();
    }
    fs::set_permissions(&theirs, fs::Permissions::from_mode(0o1777)).unwrap();
    assert_unsafe(replace(), "chmod o-w");
    fs::set_permissions(&theirs, fs::Permissions::from_mode(0o775)).unwrap();
    lchown(&path, Some(OTHER_UID), None).unwrap();
    assert_unsafe(replace(), "not root");
    lchown(&path, Some(0), None).unwrap();
    assert_eq!(fs::read(theirs.join("real")).unwrap(), b"old\n");
    chown(theirs.join("real"), Some(OTHER_UID), None).unwrap();
    assert_unsafe(replace(), "not by root");
    chown(theirs.join("real"), Some(0), None).unwrap();
    replace().unwrap();
}

#[test]
fn main_file_symlink_looping_or_dangling_is_refused() {
    let (_scratch, directory) = create_ssh_directory();
    let path = directory.join("sshd_config");
    symlink("sshd_config", &path).unwrap();
    assert!(matches!(replace_root_file(&path, None, b"x", 0o644), Err(FileError::Io { .. })));
    fs::remove_file(&path).unwrap();
    symlink("none/real", &path).unwrap();
    assert_unsafe(replace_root_file(&path, None, b"x", 0o644), "which does not exist");
    assert!(matches!(
        replace_root_file(&directory.join("none/x"), None, b"x", 0o644),
        Err(FileError::MissingDirectory { .. })
    ));
    assert!(remove_root_file(&directory.join("none/x"), &content_hash("x")).is_ok());
}

#[test]
fn stale_temporaries_of_root_directory_are_removed() {
    let (_scratch, directory) = create_ssh_directory();
    fs::write(directory.join(".keypair-agent-0123456789abcdef.tmp"), "x").unwrap();
    fs::write(directory.join("50-cloud.conf"), "x").unwrap();
    assert_eq!(remove_root_dir_temporaries(&directory).unwrap(), 1);
    assert_eq!(list_names(&directory), ["50-cloud.conf"]);
    assert_eq!(remove_root_dir_temporaries(&directory.join("none")).unwrap(), 0);
}
