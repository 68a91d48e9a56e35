//! KP-5.11 and KP-5.12, the way to the file: which links are followed, whose directories are trusted.

use std::fs;
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::os::unix::net::UnixListener;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::guest::files::{
    FileError, observe_key_file, observe_standing_key_file, read_file, replace_key_file,
};

use super::*;

/// Both reading and replacing refuse, naming the component and the cause.
#[track_caller]
fn assert_unsafe(home: &Home, path: &Path, component: &Path, cause: &str) {
    let read = observe_key_file(&home.account, path).map(|_| ());
    let replaced = replace_key_file(&home.account, path, None, b"key\n").map(|_| ());
    for result in [read, replaced] {
        match result {
            Err(FileError::Unsafe { path, why }) => {
                assert_eq!(path, component, "{why}");
                assert!(why.contains(cause), "{why}");
            }
            other => panic!("not refused: {other:?}"),
        }
    }
}

#[test]
fn a_link_in_the_files_place() {
    let home = Home::new();
    let keys = home.with_keys("");
    let victim = home.beside("victim");
    fs::write(&victim, "secret\n").unwrap();
    for target in [victim.clone(), home.at("nowhere"), "/dev/null".into()] {
        fs::remove_file(&keys).unwrap();
        symlink(&target, &keys).unwrap();
        assert_unsafe(&home, &keys, &keys, "a symbolic link");
        lchown(&keys, Some(home.account.uid), None).unwrap();
        assert_unsafe(&home, &keys, &keys, "a symbolic link");
    }
    assert_eq!(fs::read(&victim).unwrap(), b"secret\n");
    assert!(!home.at("nowhere").exists());
}

/// KP-5.12.
#[test]
fn a_fifo_a_socket_or_a_directory_in_the_files_place_does_not_block() {
    let home = Home::new();
    home.directory(".ssh", 0o700);
    let keys = home.keys();
    mkfifo(&keys, Mode::S_IRWXU).unwrap();
    assert_unsafe(&home, &keys, &keys, "a FIFO");
    assert!(matches!(read_file(&keys, 9), Err(FileError::Unsafe { .. })));
    fs::remove_file(&keys).unwrap();

    fs::create_dir(&keys).unwrap();
    assert_unsafe(&home, &keys, &keys, "a directory");
    fs::remove_dir(&keys).unwrap();

    // The path of a socket has a limit of its own, unix(7); a checkout deep down exceeds it.
    if UnixListener::bind(&keys).is_err() {
        eprintln!("SKIPPED: a socket at {}", keys.display());
    } else {
        assert_unsafe(&home, &keys, &keys, "a socket");
        assert!(matches!(read_file(&keys, 9), Err(FileError::Unsafe { .. })));
    }
    assert!(matches!(read_file(Path::new("/dev/zero"), 9), Err(FileError::Unsafe { .. })));
}

/// KP-5.12.
#[test]
fn a_file_with_two_names() {
    let home = Home::new();
    let keys = home.with_keys("key\n");
    fs::hard_link(&keys, home.at("other")).unwrap();
    assert_unsafe(&home, &keys, &keys, "2 names");
}

/// KP-5.11.
#[test]
fn a_link_below_the_home_even_roots_own() {
    let home = Home::new();
    let elsewhere = home.directory("elsewhere", 0o700);
    symlink(&elsewhere, home.at(".ssh")).unwrap();
    assert_unsafe(&home, &home.keys(), &home.at(".ssh"), "a symbolic link");
    assert_eq!(names(&elsewhere), [""; 0]);
}

/// KP-5.11.
#[test]
fn roots_links_down_to_the_home_are_followed() {
    let mut home = Home::new();
    let real = home.account.home.clone();
    let dots = Path::new("..").join(home.scratch.path().file_name().unwrap()).join("./home");
    for (link, target) in [("link", PathBuf::from("home")), ("absolute", real.clone()), ("dots", dots)] {
        symlink(&target, home.beside(link)).unwrap();
        home.account.home = home.beside(link);
        let made = replace_key_file(&home.account, &home.keys(), None, b"key\n").unwrap();
        assert_eq!(made.created_directory, Some(real.join(".ssh")));
        let seen = observe_key_file(&home.account, &home.keys()).unwrap();
        assert_eq!(seen.content.as_deref(), Some(&b"key\n"[..]));
        fs::remove_dir_all(real.join(".ssh")).unwrap();
    }
}

/// KP-5.2.
#[test]
fn two_paths_to_one_file() {
    let home = Home::new();
    symlink(&home.account.home, home.beside("link")).unwrap();
    let id = |path: &Path| observe_key_file(&home.account, path).unwrap().id;
    // Without and with the directory, and with the file.
    assert_eq!(id(&home.keys()), id(&home.beside("link/.ssh/authorized_keys")));
    assert_eq!(id(&home.keys()).name, Path::new(".ssh/authorized_keys"));
    home.directory(".ssh", 0o700);
    let empty = id(&home.keys());
    assert_eq!(empty, id(&home.beside("link//./.ssh/authorized_keys")));
    home.file(".ssh/authorized_keys", "key\n");
    assert_eq!(empty, id(&home.keys()));
    assert_eq!(Some(empty), crate::guest::files::file_id(&home.beside("link/.ssh/authorized_keys")));
    assert_ne!(id(&home.keys()), id(&home.at(".ssh/authorized_keys2")));
    assert_ne!(id(&home.keys()), id(&home.at("authorized_keys")));
}

#[test]
fn below_the_home_by_whatever_path() {
    let home = Home::new();
    let elsewhere = home.directory("elsewhere", 0o700);
    symlink(&home.account.home, home.beside("link")).unwrap();
    symlink(&elsewhere, home.at(".ssh")).unwrap();
    symlink(home.at(".ssh"), home.beside("straight")).unwrap();
    for path in ["link/.ssh/authorized_keys", "straight/authorized_keys"] {
        assert_unsafe(&home, &home.beside(path), &home.at(".ssh"), "a symbolic link");
    }
    // A directory is made below the home alone, by that path too.
    fs::remove_file(home.at(".ssh")).unwrap();
    let made = replace_key_file(&home.account, &home.beside("link/.ssh/authorized_keys"), None, b"key\n");
    assert_eq!(made.unwrap().created_directory, Some(home.at(".ssh")));
}

#[test]
fn a_link_of_roots_in_a_directory_of_his() {
    if !is_root("a user's directory") {
        return;
    }
    let home = Home::new();
    fs::create_dir(home.beside("his")).unwrap();
    home.give(&home.beside("his"));
    fs::create_dir(home.beside("target")).unwrap();
    symlink(home.beside("target"), home.beside("his/link")).unwrap();
    assert_unsafe(&home, &home.beside("his/link/keys"), &home.beside("his/link"), "a symbolic link");
}

#[test]
fn a_home_that_is_gone_holds_nothing_to_take_out() {
    let mut home = Home::new();
    home.account.home = home.beside("none");
    assert_unsafe(&home, &home.keys(), &home.beside("none"), "does not exist");
    let seen = observe_standing_key_file(&home.account, &home.keys()).unwrap();
    assert_eq!((seen.content, seen.id.name.as_path()), (None, Path::new("none/.ssh/authorized_keys")));
}

#[test]
fn a_link_to_the_home_that_leads_nowhere_or_in_circles() {
    let mut home = Home::new();
    home.account.home = home.beside("link");
    symlink("nowhere", home.beside("link")).unwrap();
    assert_unsafe(&home, &home.keys(), &home.beside("link"), "which does not exist");
    fs::remove_file(home.beside("link")).unwrap();
    symlink("link", home.beside("link")).unwrap();
    let circle = observe_key_file(&home.account, &home.keys());
    assert!(matches!(circle, Err(FileError::Io { .. })), "{circle:?}");
}

/// KP-5.11.
#[test]
fn a_users_link_to_the_home() {
    if !is_root("another user's link") {
        return;
    }
    let mut home = Home::new();
    symlink(&home.account.home, home.beside("link")).unwrap();
    lchown(home.beside("link"), Some(home.account.uid), None).unwrap();
    home.account.home = home.beside("link");
    assert_unsafe(&home, &home.keys(), &home.beside("link"), "not root");
}

#[test]
fn outside_the_home_roots_links_are_followed_but_not_in_the_files_place() {
    let home = Home::new();
    fs::create_dir(home.beside("keys.d")).unwrap();
    fs::set_permissions(home.beside("keys.d"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("keys.d", home.beside("keys")).unwrap();
    let path = home.beside("keys/joe");
    let made = replace_key_file(&home.account, &path, None, b"key\n").unwrap();
    assert!(made.created_file && made.created_directory.is_none());
    fs::remove_file(home.beside("keys.d/joe")).unwrap();
    symlink("/etc/passwd", home.beside("keys.d/joe")).unwrap();
    assert_unsafe(&home, &path, &home.beside("keys.d/joe"), "a symbolic link");
}

/// KP-5.12.
#[test]
fn a_directory_everyone_can_write() {
    let home = Home::new();
    home.with_keys("key\n");
    fs::set_permissions(home.at(".ssh"), fs::Permissions::from_mode(0o777)).unwrap();
    assert_unsafe(&home, &home.keys(), &home.at(".ssh"), "chmod o-w");
    fs::set_permissions(home.at(".ssh"), fs::Permissions::from_mode(0o770)).unwrap();
    observe_key_file(&home.account, &home.keys()).unwrap();
    fs::set_permissions(&home.account.home, fs::Permissions::from_mode(0o1777)).unwrap();
    assert_unsafe(&home, &home.keys(), &home.account.home, "writable by everyone");
}

/// KP-5.12.
#[test]
fn a_directory_or_file_of_somebody_else() {
    if !is_root("another owner") {
        return;
    }
    let home = Home::new();
    let keys = home.with_keys("key\n");
    chown(&keys, Some(OTHER), None).unwrap();
    assert_unsafe(&home, &keys, &keys, "neither root nor the user");
    chown(&keys, Some(0), Some(0)).unwrap();
    observe_key_file(&home.account, &keys).unwrap();
    chown(home.at(".ssh"), Some(OTHER), None).unwrap();
    assert_unsafe(&home, &keys, &home.at(".ssh"), "neither root nor the user");
    chown(home.at(".ssh"), Some(0), None).unwrap();
    observe_key_file(&home.account, &keys).unwrap();
    chown(home.scratch.path(), Some(OTHER), None).unwrap();
    assert_unsafe(&home, &keys, home.scratch.path(), "neither root nor the user");
}

#[test]
fn a_file_where_a_directory_belongs_and_a_missing_home() {
    let mut home = Home::new();
    home.file(".ssh", "");
    assert_unsafe(&home, &home.keys(), &home.at(".ssh"), "a regular file stands where a directory belongs");
    home.account.home = home.beside("none");
    assert_unsafe(&home, &home.keys(), &home.beside("none"), "does not exist");
}

#[test]
fn paths_that_are_no_way() {
    let home = Home::new();
    let file = home.account.home.join("x/../keys");
    for (path, cause) in [("keys", "not an absolute path"), ("/", "names no file")] {
        assert_unsafe(&home, Path::new(path), Path::new(if path == "/" { "/" } else { "" }), cause);
    }
    assert_unsafe(&home, &file, file.parent().unwrap(), "`..`");
}
