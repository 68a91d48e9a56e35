//! KP-5.11 and KP-5.12, the path to the file: which links the agent follows, and which owners of directories it
//! trusts.

use std::fs;
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::os::unix::net::UnixListener;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::guest::files::{FileError, read_file, read_key_file, read_key_file_for_removal, replace_key_file};

use super::*;

/// Both reading and replacing must fail with this component and cause.
#[track_caller]
fn assert_key_file_unsafe(home: &TestHome, path: &Path, component: &Path, cause: &str) {
    let read = read_key_file(&home.account, path).map(|_| ());
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
fn key_file_symlink_is_refused() {
    let home = TestHome::new();
    let keys = home.create_key_file("");
    let victim = home.sibling_path("victim");
    fs::write(&victim, "secret\n").unwrap();
    for target in [victim.clone(), home.home_path("nowhere"), "/dev/null".into()] {
        fs::remove_file(&keys).unwrap();
        symlink(&target, &keys).unwrap();
        assert_key_file_unsafe(&home, &keys, &keys, "a symbolic link");
        lchown(&keys, Some(home.account.uid), None).unwrap();
        assert_key_file_unsafe(&home, &keys, &keys, "a symbolic link");
    }
    assert_eq!(fs::read(&victim).unwrap(), b"secret\n");
    assert!(!home.home_path("nowhere").exists());
}

/// KP-5.12.
#[test]
fn key_file_fifo_socket_or_directory_is_refused_unblocked() {
    let home = TestHome::new();
    home.create_directory(".ssh", 0o700);
    let keys = home.key_file_path();
    mkfifo(&keys, Mode::S_IRWXU).unwrap();
    assert_key_file_unsafe(&home, &keys, &keys, "a FIFO");
    assert!(matches!(read_file(&keys, 9), Err(FileError::Unsafe { .. })));
    fs::remove_file(&keys).unwrap();

    fs::create_dir(&keys).unwrap();
    assert_key_file_unsafe(&home, &keys, &keys, "a directory");
    fs::remove_dir(&keys).unwrap();

    // The path of a socket has its own length limit, unix(7), and a deep checkout exceeds it.
    if UnixListener::bind(&keys).is_err() {
        eprintln!("SKIPPED: a socket at {}", keys.display());
    } else {
        assert_key_file_unsafe(&home, &keys, &keys, "a socket");
        assert!(matches!(read_file(&keys, 9), Err(FileError::Unsafe { .. })));
    }
    assert!(matches!(read_file(Path::new("/dev/zero"), 9), Err(FileError::Unsafe { .. })));
}

/// KP-5.12.
#[test]
fn key_file_hard_link_is_refused() {
    let home = TestHome::new();
    let keys = home.create_key_file("key\n");
    fs::hard_link(&keys, home.home_path("other")).unwrap();
    assert_key_file_unsafe(&home, &keys, &keys, "2 names");
}

/// KP-5.11.
#[test]
fn symlink_below_home_is_refused_even_if_root_owned() {
    let home = TestHome::new();
    let elsewhere = home.create_directory("elsewhere", 0o700);
    symlink(&elsewhere, home.home_path(".ssh")).unwrap();
    assert_key_file_unsafe(&home, &home.key_file_path(), &home.home_path(".ssh"), "a symbolic link");
    assert_eq!(list_names(&elsewhere), [""; 0]);
}

/// KP-5.11.
#[test]
fn root_owned_symlinks_up_to_home_are_followed() {
    let mut home = TestHome::new();
    let real = home.account.home.clone();
    let dots = Path::new("..").join(home.scratch.path().file_name().unwrap()).join("./home");
    for (link, target) in [("link", PathBuf::from("home")), ("absolute", real.clone()), ("dots", dots)] {
        symlink(&target, home.sibling_path(link)).unwrap();
        home.account.home = home.sibling_path(link);
        let made = replace_key_file(&home.account, &home.key_file_path(), None, b"key\n").unwrap();
        assert_eq!(made.created_directory, Some(real.join(".ssh")));
        let seen = read_key_file(&home.account, &home.key_file_path()).unwrap();
        assert_eq!(seen.content.as_deref(), Some(&b"key\n"[..]));
        fs::remove_dir_all(real.join(".ssh")).unwrap();
    }
}

/// KP-5.2.
#[test]
fn file_id_is_equal_for_two_paths_to_one_file() {
    let home = TestHome::new();
    symlink(&home.account.home, home.sibling_path("link")).unwrap();
    let id = |path: &Path| read_key_file(&home.account, path).unwrap().id;
    // First without the directory, then with it, then with the file.
    assert_eq!(id(&home.key_file_path()), id(&home.sibling_path("link/.ssh/authorized_keys")));
    assert_eq!(id(&home.key_file_path()).name, Path::new(".ssh/authorized_keys"));
    home.create_directory(".ssh", 0o700);
    let empty = id(&home.key_file_path());
    assert_eq!(empty, id(&home.sibling_path("link//./.ssh/authorized_keys")));
    home.create_file(".ssh/authorized_keys", "key\n");
    assert_eq!(empty, id(&home.key_file_path()));
    assert_eq!(
        Some(empty),
        crate::guest::files::resolve_file_id(&home.sibling_path("link/.ssh/authorized_keys"))
    );
    assert_ne!(id(&home.key_file_path()), id(&home.home_path(".ssh/authorized_keys2")));
    assert_ne!(id(&home.key_file_path()), id(&home.home_path("authorized_keys")));
}

#[test]
fn symlink_below_home_is_refused_by_any_path() {
    let home = TestHome::new();
    let elsewhere = home.create_directory("elsewhere", 0o700);
    symlink(&home.account.home, home.sibling_path("link")).unwrap();
    symlink(&elsewhere, home.home_path(".ssh")).unwrap();
    symlink(home.home_path(".ssh"), home.sibling_path("straight")).unwrap();
    for path in ["link/.ssh/authorized_keys", "straight/authorized_keys"] {
        assert_key_file_unsafe(&home, &home.sibling_path(path), &home.home_path(".ssh"), "a symbolic link");
    }
    // The agent creates a directory only below the home, also if the path goes through a link.
    fs::remove_file(home.home_path(".ssh")).unwrap();
    let made =
        replace_key_file(&home.account, &home.sibling_path("link/.ssh/authorized_keys"), None, b"key\n");
    assert_eq!(made.unwrap().created_directory, Some(home.home_path(".ssh")));
}

#[test]
fn root_symlink_in_user_directory_is_refused() {
    if !is_root_or_skip("a user's directory") {
        return;
    }
    let home = TestHome::new();
    fs::create_dir(home.sibling_path("his")).unwrap();
    home.chown_to_user(&home.sibling_path("his"));
    fs::create_dir(home.sibling_path("target")).unwrap();
    symlink(home.sibling_path("target"), home.sibling_path("his/link")).unwrap();
    assert_key_file_unsafe(
        &home,
        &home.sibling_path("his/link/keys"),
        &home.sibling_path("his/link"),
        "a symbolic link",
    );
}

#[test]
fn missing_home_reads_as_no_key_file_for_removal() {
    let mut home = TestHome::new();
    home.account.home = home.sibling_path("none");
    assert_key_file_unsafe(&home, &home.key_file_path(), &home.sibling_path("none"), "does not exist");
    let seen = read_key_file_for_removal(&home.account, &home.key_file_path()).unwrap();
    assert_eq!((seen.content, seen.id.name.as_path()), (None, Path::new("none/.ssh/authorized_keys")));
}

#[test]
fn home_symlink_dangling_or_looping_is_refused() {
    let mut home = TestHome::new();
    home.account.home = home.sibling_path("link");
    symlink("nowhere", home.sibling_path("link")).unwrap();
    assert_key_file_unsafe(&home, &home.key_file_path(), &home.sibling_path("link"), "which does not exist");
    fs::remove_file(home.sibling_path("link")).unwrap();
    symlink("link", home.sibling_path("link")).unwrap();
    let circle = read_key_file(&home.account, &home.key_file_path());
    assert!(matches!(circle, Err(FileError::Io { .. })), "{circle:?}");
}

/// KP-5.11.
#[test]
fn home_symlink_owned_by_user_is_refused() {
    if !is_root_or_skip("another user's link") {
        return;
    }
    let mut home = TestHome::new();
    symlink(&home.account.home, home.sibling_path("link")).unwrap();
    lchown(home.sibling_path("link"), Some(home.account.uid), None).unwrap();
    home.account.home = home.sibling_path("link");
    assert_key_file_unsafe(&home, &home.key_file_path(), &home.sibling_path("link"), "not root");
}

#[test]
fn symlinks_outside_home_are_followed_except_key_file_itself() {
    let home = TestHome::new();
    fs::create_dir(home.sibling_path("keys.d")).unwrap();
    fs::set_permissions(home.sibling_path("keys.d"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("keys.d", home.sibling_path("keys")).unwrap();
    let path = home.sibling_path("keys/joe");
    let made = replace_key_file(&home.account, &path, None, b"key\n").unwrap();
    assert!(made.created_file && made.created_directory.is_none());
    fs::remove_file(home.sibling_path("keys.d/joe")).unwrap();
    symlink("/etc/passwd", home.sibling_path("keys.d/joe")).unwrap();
    assert_key_file_unsafe(&home, &path, &home.sibling_path("keys.d/joe"), "a symbolic link");
}

/// KP-5.12.
#[test]
fn world_writable_directory_is_refused() {
    let home = TestHome::new();
    home.create_key_file("key\n");
    fs::set_permissions(home.home_path(".ssh"), fs::Permissions::from_mode(0o777)).unwrap();
    assert_key_file_unsafe(&home, &home.key_file_path(), &home.home_path(".ssh"), "chmod o-w");
    fs::set_permissions(home.home_path(".ssh"), fs::Permissions::from_mode(0o770)).unwrap();
    read_key_file(&home.account, &home.key_file_path()).unwrap();
    fs::set_permissions(&home.account.home, fs::Permissions::from_mode(0o1777)).unwrap();
    assert_key_file_unsafe(&home, &home.key_file_path(), &home.account.home, "writable by everyone");
}

/// KP-5.12.
#[test]
fn key_file_or_directory_of_foreign_owner_is_refused() {
    if !is_root_or_skip("another owner") {
        return;
    }
    let home = TestHome::new();
    let keys = home.create_key_file("key\n");
    chown(&keys, Some(OTHER_UID), None).unwrap();
    assert_key_file_unsafe(&home, &keys, &keys, "neither root nor the user");
    chown(&keys, Some(0), Some(0)).unwrap();
    read_key_file(&home.account, &keys).unwrap();
    chown(home.home_path(".ssh"), Some(OTHER_UID), None).unwrap();
    assert_key_file_unsafe(&home, &keys, &home.home_path(".ssh"), "neither root nor the user");
    chown(home.home_path(".ssh"), Some(0), None).unwrap();
    read_key_file(&home.account, &keys).unwrap();
    chown(home.scratch.path(), Some(OTHER_UID), None).unwrap();
    assert_key_file_unsafe(&home, &keys, home.scratch.path(), "neither root nor the user");
}

#[test]
fn file_in_place_of_directory_or_missing_home_is_refused() {
    let mut home = TestHome::new();
    home.create_file(".ssh", "");
    assert_key_file_unsafe(
        &home,
        &home.key_file_path(),
        &home.home_path(".ssh"),
        "a regular file stands where a directory belongs",
    );
    home.account.home = home.sibling_path("none");
    assert_key_file_unsafe(&home, &home.key_file_path(), &home.sibling_path("none"), "does not exist");
}

#[test]
fn relative_or_dotdot_path_is_refused() {
    let home = TestHome::new();
    let file = home.account.home.join("x/../keys");
    for (path, cause) in [("keys", "not an absolute path"), ("/", "names no file")] {
        assert_key_file_unsafe(&home, Path::new(path), Path::new(if path == "/" { "/" } else { "" }), cause);
    }
    assert_key_file_unsafe(&home, &file, file.parent().unwrap(), "`..`");
}
