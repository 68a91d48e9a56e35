//! KP-5.9, KP-5.10, KP-5.13 and KP-7.4 for the key file itself: create, replace, leave unchanged, undo.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use nix::sys::stat::{Mode, umask};

use crate::guest::files::{
    FileError, ReplaceOutcome, read_key_file, remove_created_key_file, remove_key_dir_temporaries,
    replace_key_file,
};

use super::*;

/// KP-5.13, KP-7.4.
#[test]
fn missing_directory_and_key_file_are_created_and_removed() {
    let home = TestHome::new();
    let keys = home.key_file_path();
    let made = replace_key_file(&home.account, &keys, None, b"key\n").unwrap();
    assert_eq!(made, ReplaceOutcome { created_directory: Some(home.home_path(".ssh")), created_file: true });
    let Account { uid, gid, .. } = home.account;
    assert_eq!(owner_and_mode(&home.home_path(".ssh")), (uid, gid, 0o700));
    assert_eq!(owner_and_mode(&keys), (uid, gid, 0o600));
    assert_eq!(fs::read(&keys).unwrap(), b"key\n");
    assert_eq!(list_names(&home.home_path(".ssh")), ["authorized_keys"]);

    let directory = home.home_path(".ssh");
    for _ in 0..2 {
        remove_created_key_file(&home.account, &keys, &content_hash("key\n"), Some(&directory)).unwrap();
        assert_eq!(list_names(&home.account.home), [""; 0]);
    }
}

/// KP-7.4.
#[test]
fn key_file_changed_since_creation_is_not_removed() {
    let home = TestHome::new();
    let keys = home.create_key_file("key\nhis\n");
    let directory = home.home_path(".ssh");
    let refused = remove_created_key_file(&home.account, &keys, &content_hash("key\n"), Some(&directory));
    assert!(matches!(refused, Err(FileError::Changed { .. })), "{refused:?}");
    assert_eq!(fs::read(&keys).unwrap(), b"key\nhis\n");

    home.create_file(".ssh/config", "his\n");
    remove_created_key_file(&home.account, &keys, &content_hash("key\nhis\n"), Some(&directory)).unwrap();
    assert_eq!(list_names(&directory), ["config"]);
}

#[test]
fn removal_in_missing_home_is_no_error() {
    let mut home = TestHome::new();
    home.account.home = home.sibling_path("gone");
    let directory = home.home_path(".ssh");
    remove_created_key_file(&home.account, &home.key_file_path(), &content_hash("key\n"), Some(&directory))
        .unwrap();
}

#[test]
fn removal_deletes_no_directory_but_key_file_parent() {
    let home = TestHome::new();
    let keys = home.create_key_file("key\n");
    remove_created_key_file(&home.account, &keys, &content_hash("key\n"), Some(&home.account.home)).unwrap();
    assert_eq!(list_names(&home.account.home), [".ssh"]);
    remove_created_key_file(&home.account, &keys, &content_hash("key\n"), None).unwrap();
    assert_eq!(list_names(&home.account.home), [".ssh"]);
}

#[test]
fn removal_deletes_directory_with_only_stale_temporary() {
    let home = TestHome::new();
    home.create_directory(".ssh", 0o700);
    home.create_file(".ssh/.keypair-agent-0123456789abcdef.tmp", "ke");
    remove_created_key_file(
        &home.account,
        &home.key_file_path(),
        &content_hash("key\n"),
        Some(&home.home_path(".ssh")),
    )
    .unwrap();
    assert_eq!(list_names(&home.account.home), [""; 0]);
}

/// KP-5.13.
#[test]
fn existing_modes_survive_replacement() {
    let home = TestHome::new();
    let keys = home.create_key_file("old\n");
    fs::set_permissions(home.home_path(".ssh"), fs::Permissions::from_mode(0o2755)).unwrap();
    fs::set_permissions(&keys, fs::Permissions::from_mode(0o644)).unwrap();
    let made = replace_key_file(&home.account, &keys, Some(&content_hash("old\n")), b"new\n").unwrap();
    assert_eq!(made, ReplaceOutcome::default());
    assert_eq!(fs::read(&keys).unwrap(), b"new\n");
    assert_eq!(owner_and_mode(&keys).2, 0o644);
    assert_eq!(owner_and_mode(&home.home_path(".ssh")).2, 0o2755);
    assert_eq!(list_names(&home.home_path(".ssh")), ["authorized_keys"]);
}

/// KP-5.9.
#[test]
fn identical_content_is_not_written() {
    let home = TestHome::new();
    let keys = home.create_key_file("same\n");
    let before = fs::metadata(&keys).unwrap();
    let directory = fs::metadata(home.home_path(".ssh")).unwrap();
    replace_key_file(&home.account, &keys, Some(&content_hash("same\n")), b"same\n").unwrap();
    let after = fs::metadata(&keys).unwrap();
    assert_eq!((before.ino(), before.mtime_nsec()), (after.ino(), after.mtime_nsec()));
    assert_eq!(directory.mtime_nsec(), fs::metadata(home.home_path(".ssh")).unwrap().mtime_nsec());
}

/// KP-5.9.
#[test]
fn unexpected_key_file_is_not_replaced() {
    let home = TestHome::new();
    let keys = home.key_file_path();
    let expect_changed = |expected: Option<&ContentHash>| {
        let result = replace_key_file(&home.account, &keys, expected, b"new\n");
        assert!(matches!(result, Err(FileError::Changed { .. })), "{result:?}");
    };
    expect_changed(Some(&content_hash("old\n")));
    assert_eq!(list_names(&home.account.home), [""; 0], "no directory is made for it");
    home.create_key_file("his\n");
    expect_changed(Some(&content_hash("old\n")));
    expect_changed(None);
    assert_eq!(fs::read(&keys).unwrap(), b"his\n");
    assert_eq!(list_names(&home.home_path(".ssh")), ["authorized_keys"]);
}

#[test]
fn directory_creation_is_limited_to_one_level_below_home() {
    let home = TestHome::new();
    for path in [home.home_path("a/b/keys"), home.sibling_path("none/keys")] {
        assert_eq!(read_key_file(&home.account, &path).unwrap().content, None);
        let refused = replace_key_file(&home.account, &path, None, b"key\n");
        assert!(matches!(refused, Err(FileError::Unsafe { .. })), "{refused:?}");
    }
    home.create_directory("a", 0o755);
    let made = replace_key_file(&home.account, &home.home_path("a/b/keys"), None, b"key\n").unwrap();
    assert_eq!(made.created_directory, Some(home.home_path("a/b")));
}

#[test]
fn oversized_key_file_error_names_limit() {
    let home = TestHome::new();
    let keys = home.create_key_file("");
    fs::File::options().write(true).open(&keys).unwrap().set_len(16 * 1024 * 1024 + 1).unwrap();
    let error = read_key_file(&home.account, &keys).unwrap_err();
    assert!(error.to_string().contains("larger than 16 MiB"), "{error}");
}

/// KP-5.10.
#[test]
fn stale_temporaries_and_nothing_else_are_removed() {
    let home = TestHome::new();
    let keys = home.create_key_file("key\n");
    home.create_file(".ssh/.keypair-agent-0123456789abcdef.tmp", "k");
    home.create_file(".ssh/.keypair-agent-notes.tmp", "his");
    std::os::unix::fs::symlink(&keys, home.home_path(".ssh/.keypair-agent-00000000000000aa.tmp")).unwrap();
    home.create_directory(".ssh/.keypair-agent-00000000000000bb.tmp", 0o700);
    assert_eq!(remove_key_dir_temporaries(&home.account, &keys).unwrap(), 1);
    let left = [
        ".keypair-agent-00000000000000aa.tmp",
        ".keypair-agent-00000000000000bb.tmp",
        ".keypair-agent-notes.tmp",
        "authorized_keys",
    ];
    assert_eq!(list_names(&home.home_path(".ssh")), left);
    assert_eq!(fs::read(&keys).unwrap(), b"key\n");
    assert_eq!(remove_key_dir_temporaries(&home.account, &home.home_path("none/keys")).unwrap(), 0);
}

#[test]
fn umask_does_not_affect_modes() {
    // The umask belongs to the whole process, which other tests share. So this test runs in a child process.
    const CHILD: &str = "KEYPAIR_AGENT_TEST_UMASK";
    if std::env::var_os(CHILD).is_none() {
        let name = "guest::files::tests::key_file::umask_does_not_affect_modes";
        let child =
            Command::new(std::env::current_exe().unwrap()).args(["--exact", name]).env(CHILD, "1").output();
        let child = child.unwrap();
        assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
        return;
    }
    let home = TestHome::new();
    let before = umask(Mode::from_bits_truncate(0o377));
    let made = replace_key_file(&home.account, &home.key_file_path(), None, b"key\n");
    umask(before);
    if geteuid().is_root() {
        made.unwrap();
        assert_eq!(owner_and_mode(&home.home_path(".ssh")).2, 0o700);
        assert_eq!(owner_and_mode(&home.key_file_path()).2, 0o600);
    }
}
