//! KP-5.9, KP-5.10, KP-5.13 and KP-7.4, the file itself: created, replaced, left alone, taken back.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use nix::sys::stat::{Mode, umask};

use crate::guest::files::{
    FileError, Replaced, observe_key_file, remove_created_key_file, replace_key_file, sweep_key_directory,
};

use super::*;

/// KP-5.13, KP-7.4.
#[test]
fn a_missing_directory_and_file_are_created_for_the_user_and_taken_back() {
    let home = Home::new();
    let keys = home.keys();
    let made = replace_key_file(&home.account, &keys, None, b"key\n").unwrap();
    assert_eq!(made, Replaced { created_directory: Some(home.at(".ssh")), created_file: true });
    let Account { uid, gid, .. } = home.account;
    assert_eq!(owner_and_mode(&home.at(".ssh")), (uid, gid, 0o700));
    assert_eq!(owner_and_mode(&keys), (uid, gid, 0o600));
    assert_eq!(fs::read(&keys).unwrap(), b"key\n");
    assert_eq!(names(&home.at(".ssh")), ["authorized_keys"]);

    let directory = home.at(".ssh");
    for _ in 0..2 {
        remove_created_key_file(&home.account, &keys, &hash("key\n"), Some(&directory)).unwrap();
        assert_eq!(names(&home.account.home), [""; 0]);
    }
}

/// KP-7.4.
#[test]
fn what_somebody_touched_since_is_not_taken_back() {
    let home = Home::new();
    let keys = home.with_keys("key\nhis\n");
    let directory = home.at(".ssh");
    let refused = remove_created_key_file(&home.account, &keys, &hash("key\n"), Some(&directory));
    assert!(matches!(refused, Err(FileError::Changed { .. })), "{refused:?}");
    assert_eq!(fs::read(&keys).unwrap(), b"key\nhis\n");

    home.file(".ssh/config", "his\n");
    remove_created_key_file(&home.account, &keys, &hash("key\nhis\n"), Some(&directory)).unwrap();
    assert_eq!(names(&directory), ["config"]);
}

#[test]
fn nothing_is_left_to_take_back_where_the_home_is_gone() {
    let mut home = Home::new();
    home.account.home = home.beside("gone");
    let directory = home.at(".ssh");
    remove_created_key_file(&home.account, &home.keys(), &hash("key\n"), Some(&directory)).unwrap();
}

#[test]
fn only_its_own_directory_is_taken_back() {
    let home = Home::new();
    let keys = home.with_keys("key\n");
    remove_created_key_file(&home.account, &keys, &hash("key\n"), Some(&home.account.home)).unwrap();
    assert_eq!(names(&home.account.home), [".ssh"]);
    remove_created_key_file(&home.account, &keys, &hash("key\n"), None).unwrap();
    assert_eq!(names(&home.account.home), [".ssh"]);
}

#[test]
fn a_directory_of_which_a_crash_left_only_a_temporary_is_taken_back() {
    let home = Home::new();
    home.directory(".ssh", 0o700);
    home.file(".ssh/.keypair-agent-0123456789abcdef.tmp", "ke");
    remove_created_key_file(&home.account, &home.keys(), &hash("key\n"), Some(&home.at(".ssh"))).unwrap();
    assert_eq!(names(&home.account.home), [""; 0]);
}

/// KP-5.13.
#[test]
fn modes_of_what_is_there_are_left_alone() {
    let home = Home::new();
    let keys = home.with_keys("old\n");
    fs::set_permissions(home.at(".ssh"), fs::Permissions::from_mode(0o2755)).unwrap();
    fs::set_permissions(&keys, fs::Permissions::from_mode(0o644)).unwrap();
    let made = replace_key_file(&home.account, &keys, Some(&hash("old\n")), b"new\n").unwrap();
    assert_eq!(made, Replaced::default());
    assert_eq!(fs::read(&keys).unwrap(), b"new\n");
    assert_eq!(owner_and_mode(&keys).2, 0o644);
    assert_eq!(owner_and_mode(&home.at(".ssh")).2, 0o2755);
    assert_eq!(names(&home.at(".ssh")), ["authorized_keys"]);
}

/// KP-5.9.
#[test]
fn the_same_content_is_not_written() {
    let home = Home::new();
    let keys = home.with_keys("same\n");
    let before = fs::metadata(&keys).unwrap();
    let directory = fs::metadata(home.at(".ssh")).unwrap();
    replace_key_file(&home.account, &keys, Some(&hash("same\n")), b"same\n").unwrap();
    let after = fs::metadata(&keys).unwrap();
    assert_eq!((before.ino(), before.mtime_nsec()), (after.ino(), after.mtime_nsec()));
    assert_eq!(directory.mtime_nsec(), fs::metadata(home.at(".ssh")).unwrap().mtime_nsec());
}

/// KP-5.9.
#[test]
fn another_file_than_the_expected_one_is_not_replaced() {
    let home = Home::new();
    let keys = home.keys();
    let expect_changed = |expected: Option<&ContentHash>| {
        let result = replace_key_file(&home.account, &keys, expected, b"new\n");
        assert!(matches!(result, Err(FileError::Changed { .. })), "{result:?}");
    };
    expect_changed(Some(&hash("old\n")));
    assert_eq!(names(&home.account.home), [""; 0], "no directory is made for it");
    home.with_keys("his\n");
    expect_changed(Some(&hash("old\n")));
    expect_changed(None);
    assert_eq!(fs::read(&keys).unwrap(), b"his\n");
    assert_eq!(names(&home.at(".ssh")), ["authorized_keys"]);
}

#[test]
fn a_directory_is_created_only_below_the_home_and_one_alone() {
    let home = Home::new();
    for path in [home.at("a/b/keys"), home.beside("none/keys")] {
        assert_eq!(observe_key_file(&home.account, &path).unwrap().content, None);
        let refused = replace_key_file(&home.account, &path, None, b"key\n");
        assert!(matches!(refused, Err(FileError::Unsafe { .. })), "{refused:?}");
    }
    home.directory("a", 0o755);
    let made = replace_key_file(&home.account, &home.at("a/b/keys"), None, b"key\n").unwrap();
    assert_eq!(made.created_directory, Some(home.at("a/b")));
}

#[test]
fn too_large_a_file_is_said_with_the_limit() {
    let home = Home::new();
    let keys = home.with_keys("");
    fs::File::options().write(true).open(&keys).unwrap().set_len(16 * 1024 * 1024 + 1).unwrap();
    let error = observe_key_file(&home.account, &keys).unwrap_err();
    assert!(error.to_string().contains("larger than 16 MiB"), "{error}");
}

/// KP-5.10.
#[test]
fn temporaries_are_swept_and_nothing_else_is() {
    let home = Home::new();
    let keys = home.with_keys("key\n");
    home.file(".ssh/.keypair-agent-0123456789abcdef.tmp", "k");
    home.file(".ssh/.keypair-agent-notes.tmp", "his");
    std::os::unix::fs::symlink(&keys, home.at(".ssh/.keypair-agent-00000000000000aa.tmp")).unwrap();
    home.directory(".ssh/.keypair-agent-00000000000000bb.tmp", 0o700);
    assert_eq!(sweep_key_directory(&home.account, &keys).unwrap(), 1);
    let left = [
        ".keypair-agent-00000000000000aa.tmp",
        ".keypair-agent-00000000000000bb.tmp",
        ".keypair-agent-notes.tmp",
        "authorized_keys",
    ];
    assert_eq!(names(&home.at(".ssh")), left);
    assert_eq!(fs::read(&keys).unwrap(), b"key\n");
    assert_eq!(sweep_key_directory(&home.account, &home.at("none/keys")).unwrap(), 0);
}

#[test]
fn the_umask_does_not_matter() {
    // The umask is the process's, shared with the other tests, so a child has it.
    const CHILD: &str = "KEYPAIR_AGENT_TEST_UMASK";
    if std::env::var_os(CHILD).is_none() {
        let name = "guest::files::tests::key_file::the_umask_does_not_matter";
        let child =
            Command::new(std::env::current_exe().unwrap()).args(["--exact", name]).env(CHILD, "1").output();
        let child = child.unwrap();
        assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
        return;
    }
    let home = Home::new();
    let before = umask(Mode::from_bits_truncate(0o377));
    let made = replace_key_file(&home.account, &home.keys(), None, b"key\n");
    umask(before);
    if geteuid().is_root() {
        made.unwrap();
        assert_eq!(owner_and_mode(&home.at(".ssh")).2, 0o700);
        assert_eq!(owner_and_mode(&home.keys()).2, 0o600);
    }
}
