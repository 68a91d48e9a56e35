//! Against a user who changes things while we work.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::guest::files::directory::Directory;
use crate::guest::files::replace::{Fresh, Target};
use crate::guest::files::walk::{DirectoryId, Walk};
use crate::guest::files::{FileError, observe_key_file, replace_key_file};

use super::*;

/// A replacement that stops between the finished temporary and the look before the rename.
fn interrupted(
    home: &Home,
    expected: Option<&ContentHash>,
    meanwhile: impl FnOnce(),
) -> Result<bool, FileError> {
    let way = Way::User(home.account.uid);
    let walk = Walk::to_directory(way, DirectoryId::at(&home.account.home)?, &home.at(".ssh"))?;
    let directory: Directory = walk.last()?.open()?;
    let target = Target { directory: &directory, name: OsStr::new("authorized_keys"), way, limit: 1 << 20 };
    let owner = (home.account.uid, home.account.gid);
    let fresh = Fresh { owner, mode: 0o600, label_path: Path::new("/none") };
    let prepared = target.prepare(expected, b"new\n", &fresh)?.unwrap();
    assert!(names(&home.at(".ssh")).iter().any(|name| name.starts_with(".keypair-agent-")));
    meanwhile();
    prepared.commit(expected)
}

#[track_caller]
fn assert_changed(home: &Home, result: Result<bool, FileError>, left: &[u8]) {
    assert!(matches!(result, Err(FileError::Changed { .. })), "{result:?}");
    assert_eq!(fs::read(home.keys()).unwrap(), left);
    assert_eq!(names(&home.at(".ssh")), ["authorized_keys"]);
}

/// KP-5.9.
#[test]
fn what_is_changed_before_the_rename_is_kept() {
    let home = Home::new();
    let keys = home.with_keys("old\n");
    let old = Some(hash("old\n"));

    let result = interrupted(&home, old.as_ref(), || fs::write(&keys, "old\nhis\n").unwrap());
    assert_changed(&home, result, b"old\nhis\n");

    fs::write(&keys, "old\n").unwrap();
    let result = interrupted(&home, old.as_ref(), || {
        fs::set_permissions(&keys, fs::Permissions::from_mode(0o640)).unwrap();
    });
    assert_changed(&home, result, b"old\n");
    assert_eq!(owner_and_mode(&keys).2, 0o640);

    // The same bytes in another file.
    let result = interrupted(&home, old.as_ref(), || {
        home.file("copy", "old\n");
        fs::rename(home.at("copy"), &keys).unwrap();
    });
    assert_changed(&home, result, b"old\n");
    assert!(interrupted(&home, old.as_ref(), || ()).is_ok());
    assert_eq!(fs::read(&keys).unwrap(), b"new\n");
}

#[test]
fn what_appears_before_the_rename_is_kept() {
    let home = Home::new();
    home.directory(".ssh", 0o700);
    let result = interrupted(&home, None, || {
        home.file(".ssh/authorized_keys", "his\n");
    });
    assert_changed(&home, result, b"his\n");
}

#[test]
fn what_becomes_a_link_or_goes_before_the_rename() {
    let home = Home::new();
    let keys = home.with_keys("old\n");
    let victim = home.file("victim", "old\n");
    let old = Some(hash("old\n"));
    let result = interrupted(&home, old.as_ref(), || {
        fs::remove_file(&keys).unwrap();
        symlink(&victim, &keys).unwrap();
    });
    assert!(matches!(result, Err(FileError::Unsafe { .. })), "{result:?}");
    assert_eq!(fs::read(&victim).unwrap(), b"old\n");
    fs::remove_file(&keys).unwrap();
    home.file(".ssh/authorized_keys", "old\n");
    let result = interrupted(&home, old.as_ref(), || fs::remove_file(&keys).unwrap());
    assert!(matches!(result, Err(FileError::Changed { .. })), "{result:?}");
    assert_eq!(names(&home.at(".ssh")), [""; 0]);
}

#[test]
fn a_file_put_under_the_temporarys_name_is_noticed() {
    let home = Home::new();
    home.with_keys("old\n");
    let result = interrupted(&home, Some(&hash("old\n")), || {
        let temporary = names(&home.at(".ssh")).into_iter().find(|name| name.starts_with('.')).unwrap();
        home.file("planted", "planted\n");
        fs::rename(home.at("planted"), home.at(".ssh").join(temporary)).unwrap();
    });
    assert!(matches!(result, Err(FileError::Changed { .. })), "{result:?}");
}

/// The home's owner swaps `.ssh` with a link to a directory of root's, over and over: nothing is ever written
/// there, and nothing of it is given away.
#[test]
fn a_directory_that_is_swapped_with_a_link() {
    let home = Home::new();
    let victim = home.beside("victim");
    fs::create_dir(&victim).unwrap();
    fs::write(victim.join("authorized_keys"), "root's\n").unwrap();
    fs::set_permissions(&victim, fs::Permissions::from_mode(0o755)).unwrap();
    let before = (owner_and_mode(&victim), owner_and_mode(&victim.join("authorized_keys")));

    home.with_keys("0\n");
    symlink(&victim, home.at("link")).unwrap();
    let (ssh, aside, link) = (home.at(".ssh"), home.at("aside"), home.at("link"));
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
            let result = observe_key_file(&home.account, &home.keys()).and_then(|seen| {
                let Some(content) = seen.content else { return Ok(false) };
                assert_ne!(*content, *b"root's\n");
                let expected = ContentHash::of(&content);
                let new = format!("{}\n", round + 1);
                replace_key_file(&home.account, &home.keys(), Some(&expected), new.as_bytes()).map(|_| true)
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
    assert_eq!(names(&victim), ["authorized_keys"]);
    assert_eq!(names(&home.at(".ssh")), ["authorized_keys"]);
}

/// While `.ssh` is being created, the home's owner puts a full directory of root's in its place: it is not
/// given away.
#[test]
fn a_directory_that_is_put_in_the_new_ones_place() {
    let home = Home::new();
    let treasure = home.at("treasure");
    fs::create_dir(&treasure).unwrap();
    fs::write(treasure.join("secret"), "secret\n").unwrap();
    fs::set_permissions(&treasure, fs::Permissions::from_mode(0o750)).unwrap();
    let before = owner_and_mode(&treasure);
    let (ssh, junk) = (home.at(".ssh"), home.at("junk"));
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
            let _ = replace_key_file(&home.account, &home.keys(), None, b"key\n");
            let _ = fs::remove_dir_all(&junk);
        }
        done.store(true, Ordering::Relaxed);
    });
    let treasure = if treasure.exists() { treasure } else { ssh };
    assert_eq!(owner_and_mode(&treasure), before);
}
