//! An error of the system is reported with errno and path, and the old content stays intact (KP-7.9).

use std::fs;

use nix::errno::Errno;

use crate::guest::files::{FileError, replace_key_file};

use super::*;

#[track_caller]
fn assert_errno(result: Result<crate::guest::files::ReplaceOutcome, FileError>, errno: Errno, below: &Path) {
    match result {
        Err(FileError::Io { path, source, .. }) => {
            assert_eq!(source.raw_os_error(), Some(errno as i32));
            assert!(path.starts_with(below), "{}", path.display());
        }
        other => panic!("not {errno}: {other:?}"),
    }
}

/// A mounted tmpfs. Dropping it unmounts the filesystem.
struct TmpfsMount(PathBuf);

impl TmpfsMount {
    fn mount_tmpfs(at: &Path, options: &str) -> Option<Self> {
        let at_text = at.to_string_lossy();
        run_tool_or_skip("mount", &["-t", "tmpfs", "-o", options, "tmpfs", &at_text])
            .then(|| Self(at.to_owned()))
    }
}

impl Drop for TmpfsMount {
    fn drop(&mut self) {
        assert!(run_tool_or_skip("umount", &[&self.0.to_string_lossy()]));
    }
}

/// KP-7.9.
#[test]
fn full_disk_fails_with_enospc_and_keeps_old_file() {
    if !is_root_or_skip("a full disk") {
        return;
    }
    let home = TestHome::new();
    let Some(_mount) = TmpfsMount::mount_tmpfs(&home.account.home, "size=64k,mode=755") else { return };
    let big = vec![b'k'; 256 * 1024];

    assert_errno(
        replace_key_file(&home.account, &home.key_file_path(), None, &big),
        Errno::ENOSPC,
        &home.account.home,
    );
    assert_eq!(list_names(&home.account.home), [""; 0], "the directory that was made goes again");

    let keys = home.create_key_file("old\n");
    assert_errno(
        replace_key_file(&home.account, &keys, Some(&content_hash("old\n")), &big),
        Errno::ENOSPC,
        &keys,
    );
    assert_eq!(fs::read(&keys).unwrap(), b"old\n");
    assert_eq!(list_names(&home.home_path(".ssh")), ["authorized_keys"]);
}

#[test]
fn read_only_disk_fails_with_erofs() {
    if !is_root_or_skip("a read-only disk") {
        return;
    }
    let home = TestHome::new();
    let Some(mount) = TmpfsMount::mount_tmpfs(&home.account.home, "size=64k,mode=755") else { return };
    let keys = home.create_key_file("old\n");
    if !run_tool_or_skip("mount", &["-o", "remount,ro", &mount.0.to_string_lossy()]) {
        return;
    }
    let refused = replace_key_file(&home.account, &keys, Some(&content_hash("old\n")), b"new\n");
    assert_errno(refused, Errno::EROFS, &home.account.home);
    // Unchanged content needs no write, so a read-only disk is no error.
    replace_key_file(&home.account, &keys, Some(&content_hash("old\n")), b"old\n").unwrap();
}

/// The immutable attribute of chattr(1). Dropping it clears the attribute.
struct ImmutableAttribute<'a>(&'a Path);

impl Drop for ImmutableAttribute<'_> {
    fn drop(&mut self) {
        assert!(run_tool_or_skip("chattr", &["-i", &self.0.to_string_lossy()]));
    }
}

#[test]
fn immutable_file_or_directory_fails_with_eperm() {
    if !is_root_or_skip("an immutable file") {
        return;
    }
    let home = TestHome::new();
    let keys = home.create_key_file("old\n");
    for path in [keys.clone(), home.home_path(".ssh")] {
        if !run_tool_or_skip("chattr", &["+i", &path.to_string_lossy()]) {
            return;
        }
        let _immutable = ImmutableAttribute(&path);
        let refused = replace_key_file(&home.account, &keys, Some(&content_hash("old\n")), b"new\n");
        assert!(refused.as_ref().is_err_and(|error| error.to_string().contains("chattr -i")), "{refused:?}");
        assert_errno(refused, Errno::EPERM, &path);
        assert_eq!(fs::read(&keys).unwrap(), b"old\n");
        assert_eq!(list_names(&home.home_path(".ssh")), ["authorized_keys"]);
    }
}
