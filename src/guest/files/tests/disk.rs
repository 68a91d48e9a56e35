//! What the system refuses is told with errno and path, and the old bytes are intact (KP-7.9).

use std::fs;

use nix::errno::Errno;

use crate::guest::files::{FileError, replace_key_file};

use super::*;

#[track_caller]
fn assert_errno(result: Result<crate::guest::files::Replaced, FileError>, errno: Errno, below: &Path) {
    match result {
        Err(FileError::Io { path, source, .. }) => {
            assert_eq!(source.raw_os_error(), Some(errno as i32));
            assert!(path.starts_with(below), "{}", path.display());
        }
        other => panic!("not {errno}: {other:?}"),
    }
}

/// A filesystem that is unmounted again.
struct Mount(PathBuf);

impl Mount {
    fn tmpfs(at: &Path, options: &str) -> Option<Self> {
        let at_text = at.to_string_lossy();
        tool("mount", &["-t", "tmpfs", "-o", options, "tmpfs", &at_text]).then(|| Self(at.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        assert!(tool("umount", &[&self.0.to_string_lossy()]));
    }
}

/// KP-7.9.
#[test]
fn a_full_disk() {
    if !is_root("a full disk") {
        return;
    }
    let home = Home::new();
    let Some(_mount) = Mount::tmpfs(&home.account.home, "size=64k,mode=755") else { return };
    let big = vec![b'k'; 256 * 1024];

    assert_errno(
        replace_key_file(&home.account, &home.keys(), None, &big),
        Errno::ENOSPC,
        &home.account.home,
    );
    assert_eq!(names(&home.account.home), [""; 0], "the directory that was made goes again");

    let keys = home.with_keys("old\n");
    assert_errno(replace_key_file(&home.account, &keys, Some(&hash("old\n")), &big), Errno::ENOSPC, &keys);
    assert_eq!(fs::read(&keys).unwrap(), b"old\n");
    assert_eq!(names(&home.at(".ssh")), ["authorized_keys"]);
}

#[test]
fn a_read_only_disk() {
    if !is_root("a read-only disk") {
        return;
    }
    let home = Home::new();
    let Some(mount) = Mount::tmpfs(&home.account.home, "size=64k,mode=755") else { return };
    let keys = home.with_keys("old\n");
    if !tool("mount", &["-o", "remount,ro", &mount.0.to_string_lossy()]) {
        return;
    }
    let refused = replace_key_file(&home.account, &keys, Some(&hash("old\n")), b"new\n");
    assert_errno(refused, Errno::EROFS, &home.account.home);
    // Nothing to write needs no disk that can be written.
    replace_key_file(&home.account, &keys, Some(&hash("old\n")), b"old\n").unwrap();
}

/// An attribute of chattr(1) that is taken off again.
struct Immutable<'a>(&'a Path);

impl Drop for Immutable<'_> {
    fn drop(&mut self) {
        assert!(tool("chattr", &["-i", &self.0.to_string_lossy()]));
    }
}

#[test]
fn an_immutable_file_or_directory() {
    if !is_root("an immutable file") {
        return;
    }
    let home = Home::new();
    let keys = home.with_keys("old\n");
    for path in [keys.clone(), home.at(".ssh")] {
        if !tool("chattr", &["+i", &path.to_string_lossy()]) {
            return;
        }
        let _immutable = Immutable(&path);
        let refused = replace_key_file(&home.account, &keys, Some(&hash("old\n")), b"new\n");
        assert!(refused.as_ref().is_err_and(|error| error.to_string().contains("chattr -i")), "{refused:?}");
        assert_errno(refused, Errno::EPERM, &path);
        assert_eq!(fs::read(&keys).unwrap(), b"old\n");
        assert_eq!(names(&home.at(".ssh")), ["authorized_keys"]);
    }
}
