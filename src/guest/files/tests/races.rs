//! Tests against a user who changes files while the agent works.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::guest::files::directory::Directory;
use crate::guest::files::replace::{FileTarget, NewFileAttrs};
use crate::guest::files::walk::{DirectoryId, PathWalker};
use crate::guest::files::{FileError, read_key_file, replace_key_file};

use super::*;

/// A replacement that calls `meanwhile` after the temporary file is complete and before the check that precedes
/// the rename.
fn replace_with_interruption(
    home: &TestHome,
    expected: Option<&ContentHash>,
    meanwhile: impl FnOnce(),
) -> Result<bool, FileError> {
    let way = TrustPolicy::OwnedByUserOrRoot(home.account.uid);
    let walk =
        PathWalker::walk_to(way, DirectoryId::from_path(&home.account.home)?, &home.home_path(".ssh"))?;
    let directory: Directory = walk.last()?.open_directory()?;
    let target =
        FileTarget { directory: &directory, name: OsStr::new("authorized_keys"), way, limit: 1 << 20 };
    let owner = (home.account.uid, home.account.gid);
    let fresh = NewFileAttrs { owner, mode: 0o600, label_path: Path::new("/none") };
    let prepared = target.prepare(expected, b"new\n", &fresh)?.unwrap();
    assert!(list_names(&home.home_path(".ssh")).iter().any(|name| name.starts_with(".keypair-agent-")));
    meanwhile();
    prepared.commit(expected)
}

#[track_caller]
fn assert_changed(home: &TestHome, result: Result<bool, FileError>, left: &[u8]) {
    assert!(matches!(result, Err(FileError::Changed { .. })), "{result:?}");
    assert_eq!(fs::read(home.key_file_path()).unwrap(), left);
    assert_eq!(list_names(&home.home_path(".ssh")), ["authorized_keys"]);
}

/// KP-5.9.
#[test]
fn key_file_changed_before_rename_is_kept() {
    let home = TestHome::new();
    let keys = home.create_key_file("old\n");
    let old = Some(content_hash("old\n"));

    let result = replace_with_interruption(&home, old.as_ref(), || fs::write(&keys, "old\nhis\n").unwrap());
    assert_changed(&home, result, b"old\nhis\n");

    fs::write(&keys, "old\n").unwrap();
    let result = replace_with_interruption(&home, old.as_ref(), || {
        fs::set_permissions(&keys, fs::Permissions::from_mode(0o640)).unwrap();
    });
    assert_changed(&home, result, b"old\n");
    assert_eq!(owner_and_mode(&keys).2, 0o640);

    // Another file with the same bytes.
    let result = replace_with_interruption(&home, old.as_ref(), || {
        home.create_file("copy", "old\n");
        fs::rename(home.home_path("copy"), &keys).unwrap();
    });
    assert_changed(&home, result, b"old\n");
    assert!(replace_with_interruption(&home, old.as_ref(), || ()).is_ok());
    assert_eq!(fs::read(&keys).unwrap(), b"new\n");
}

#[test]
fn key_file_created_before_rename_is_kept() {
    let home = TestHome::new();
    home.create_directory(".ssh", 0o700);
    let result = replace_with_interruption(&home, None, || {
        home.create_file(".ssh/authorized_keys", "his\n");
    });
    assert_changed(&home, result, b"his\n");
}

#[test]
fn key_file_turned_symlink_before_rename_is_refused() {
    let home = TestHome::new();
    let keys = home.create_key_file("old\n");
    let victim = home.create_file("victim", "old\n");
    let old = Some(content_hash("old\n"));
    let result = replace_with_interruption(&home, old.as_ref(), || {
        fs::remove_file(&keys).unwrap();
        symlink(&victim, &keys).unwrap();
    });
    assert!(matches!(result, Err(FileError::Unsafe { .. })), "{result:?}");
    assert_eq!(fs::read(&victim).unwrap(), b"old\n");
    fs::remove_file(&keys).unwrap();
    home.create_file(".ssh/authorized_keys", "old\n");
    let result = replace_with_interruption(&home, old.as_ref(), || fs::remove_file(&keys).unwrap());
    assert!(matches!(result, Err(FileError::Changed { .. })), "{result:?}");
    assert_eq!(list_names(&home.home_path(".ssh")), [""; 0]);
}

#[test]
fn temporary_swapped_before_rename_is_detected() {
    let home = TestHome::new();
    home.create_key_file("old\n");
    let result = replace_with_interruption(&home, Some(&content_hash("old\n")), || {
        let temporary =
            list_names(&home.home_path(".ssh")).into_iter().find(|name| name.starts_with('.')).unwrap();
        home.create_file("planted", "planted\n");
        fs::rename(home.home_path("planted"), home.home_path(".ssh").join(temporary)).unwrap();
    });
    assert!(matches!(result, Err(FileError::Changed { .. })), "{result:?}");
}

/// The home's owner repeatedly swaps `.ssh` with a link to a directory of root's. The agent must never write
/// there, read its file or change its owner.
#[test]
fn directory_swapped_with_symlink_is_not_written_through() {
    let home = TestHome::new();
    let victim = home.sibling_path("victim");
    fs::create_dir(&victim).unwrap();
    fs::write(victim.join("authorized_keys"), "root's\n").unwrap();
    fs::set_permissions(&victim, fs::Permissions::from_mode(0o755)).unwrap();
    let before = (owner_and_mode(&victim), owner_and_mode(&victim.join("authorized_keys")));

    home.create_key_file("0\n");
    symlink(&victim, home.home_path("link")).unwrap();
    let (ssh, aside, link) = (home.home_path(".ssh"), home.home_path("aside"), home.home_path("link"));
    let done = AtomicBool::new(false);
    let mut written = 0;
    let mut refused = 0;
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                fs::rename(&ssh, &aside).unwrap();
                fs::rename(&link, &ssh).unwrap();
                fs::rename(&ssh, &link).unwrap();
                fs::rename(&aside, &ssh).unwrap();
                thread::sleep(Duration::from_micros(200));
            }
        });
        for round in 0..400 {
            let result = read_key_file(&home.account, &home.key_file_path()).and_then(|seen| {
                let Some(content) = seen.content else { return Ok(false) };
                assert_ne!(*content, *b"root's\n");
                let expected = ContentHash::from_content(&content);
                let new = format!("{}\n", round + 1);
                replace_key_file(&home.account, &home.key_file_path(), Some(&expected), new.as_bytes())
                    .map(|_| true)
            });
            match result {
                Ok(true) => written += 1,
                Ok(false) | Err(FileError::Unsafe { .. } | FileError::Changed { .. }) => refused += 1,
                Err(other) => eprintln!("{other}"),
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    eprintln!("{written} written, {refused} refused");
    assert_eq!(fs::read(victim.join("authorized_keys")).unwrap(), b"root's\n");
    assert_eq!((owner_and_mode(&victim), owner_and_mode(&victim.join("authorized_keys"))), before);
    assert_eq!(list_names(&victim), ["authorized_keys"]);
    assert_eq!(list_names(&home.home_path(".ssh")), ["authorized_keys"]);
}

/// While the agent creates `.ssh`, the home's owner replaces it with a non-empty directory of root's. The agent
/// must not change the owner of that directory.
#[test]
fn directory_planted_during_creation_keeps_its_owner() {
    let home = TestHome::new();
    let treasure = home.home_path("treasure");
    fs::create_dir(&treasure).unwrap();
    fs::write(treasure.join("secret"), "secret\n").unwrap();
    fs::set_permissions(&treasure, fs::Permissions::from_mode(0o750)).unwrap();
    let before = owner_and_mode(&treasure);
    let (ssh, junk) = (home.home_path(".ssh"), home.home_path("junk"));
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                if fs::rename(&ssh, &junk).is_ok() {
                    let _ = fs::rename(&treasure, &ssh);
                    let _ = fs::rename(&ssh, &treasure);
                    let _ = fs::remove_dir_all(&junk);
                }
            }
        });
        for _ in 0..300 {
            let _ = replace_key_file(&home.account, &home.key_file_path(), None, b"key\n");
            let _ = fs::remove_dir_all(&junk);
        }
        done.store(true, Ordering::Relaxed);
    });
    let treasure = if treasure.exists() { treasure } else { ssh };
    assert_eq!(owner_and_mode(&treasure), before);
}
