//! KP-7.1, KP-8.11 and KP-8.17: the state file and the lock.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::thread;
use std::time::{Duration, Instant};

use crate::guest::files::{FileError, LockError, StateDirectory};

use super::*;

#[test]
fn state_directory_is_created_private_only_on_request() {
    let scratch = create_scratch_dir();
    let path = scratch.path().join("a/state");
    assert!(matches!(StateDirectory::open(&path, false), Err(FileError::MissingDirectory { .. })));
    assert!(!path.exists());
    let state = StateDirectory::open(&path, true).unwrap();
    assert_eq!(state.path(), path);
    assert_eq!(owner_and_mode(&path).2, 0o700);
    StateDirectory::open(&path, false).unwrap();
}

/// KP-7.1.
#[test]
fn state_file_is_saved_and_loaded() {
    let scratch = create_scratch_dir();
    let state = StateDirectory::open(scratch.path(), true).unwrap();
    assert_eq!(state.load(99).unwrap(), None);
    state.save(b"{}").unwrap();
    state.save(b"{\"a\":1}").unwrap();
    assert_eq!(state.load(99).unwrap().as_deref(), Some(&b"{\"a\":1}"[..]));
    assert!(matches!(state.load(3), Err(FileError::TooLarge { .. })));
    assert_eq!(owner_and_mode(&state.file_path()).2, 0o600);
    fs::write(scratch.path().join(".keypair-agent-0123456789abcdef.tmp"), "x").unwrap();
    assert_eq!(state.remove_state_temporaries().unwrap(), 1);
    assert_eq!(list_names(scratch.path()), ["state.json"]);
}

#[test]
fn state_file_symlink_is_not_read() {
    let scratch = create_scratch_dir();
    let state = StateDirectory::open(scratch.path(), true).unwrap();
    symlink("/etc/passwd", state.file_path()).unwrap();
    assert!(matches!(state.load(1 << 20), Err(FileError::Unsafe { .. })));
    state.save(b"{}").unwrap();
    assert!(!state.file_path().is_symlink());
}

#[test]
fn state_directory_writable_by_others_is_made_private() {
    let scratch = create_scratch_dir();
    for mode in [0o777, 0o1777] {
        fs::set_permissions(scratch.path(), fs::Permissions::from_mode(mode)).unwrap();
        let refused = StateDirectory::open(scratch.path(), false);
        assert!(matches!(refused, Err(FileError::Unsafe { .. })), "{refused:?}");
        StateDirectory::open(scratch.path(), true).unwrap();
        assert_eq!(owner_and_mode(scratch.path()).2, 0o700);
    }
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o1777)).unwrap();
    StateDirectory::open(&scratch.path().join("below"), true).unwrap();
}

#[test]
fn state_file_writable_by_others_is_not_read() {
    let scratch = create_scratch_dir();
    let state = StateDirectory::open(scratch.path(), true).unwrap();
    state.save(b"{}").unwrap();
    fs::set_permissions(state.file_path(), fs::Permissions::from_mode(0o666)).unwrap();
    let refused = state.load(99);
    assert!(matches!(refused, Err(FileError::Unsafe { .. })), "{refused:?}");
}

/// KP-8.11.
#[test]
fn state_lock_is_exclusive_and_names_its_holder() {
    let scratch = create_scratch_dir();
    let state = StateDirectory::open(scratch.path(), true).unwrap();
    let guard = state.lock(Duration::ZERO).unwrap();
    let asked = Instant::now();
    let refused = state.lock(Duration::from_millis(100)).unwrap_err();
    assert!(asked.elapsed() >= Duration::from_millis(100));
    match &refused {
        LockError::Held { pid: Some(pid), .. } => {
            assert_eq!(*pid, nix::unistd::getpid().as_raw(), "{refused}")
        }
        LockError::Held { pid: None, .. } => eprintln!("SKIPPED: /proc/locks does not tell the holder"),
        other @ LockError::File(_) => panic!("{other}"),
    }
    drop(guard);
    drop(state.lock(Duration::ZERO).unwrap());
}

#[test]
fn state_lock_is_waited_for() {
    let scratch = create_scratch_dir();
    let state = StateDirectory::open(scratch.path(), true).unwrap();
    let guard = state.lock(Duration::ZERO).unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            thread::sleep(Duration::from_millis(100));
            drop(guard);
        });
        drop(state.lock(Duration::from_secs(20)).unwrap());
    });
}
