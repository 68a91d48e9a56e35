//! One change at a time: a lock on the state directory (KP-8.11), waited for with patience and not for ever.

use std::ffi::OsStr;
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::fcntl::{OFlag, openat};
use nix::libc::{major, minor};
use nix::sys::signal::kill;
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{Pid, getegid, geteuid};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::directory::Directory;
use super::error::{Context, FileError, display_path};
use super::read::read_file;
use crate::policy::holders::{find_flock_holders, has_ids};

/// flock(2) has no time limit, so it is asked again: another process is waited for, which says nothing when it
/// is done.
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// How often it is looked who holds a lock that is not to be had.
const HOLDER_CHECK_COUNT: usize = 3;

/// What is locked where somebody else holds the directory's lock.
const FALLBACK_LOCK_FILE: &str = "state.lock";

/// The lock, held until it is dropped, or the process ends.
#[derive(Debug)]
#[must_use = "the lock is held only as long as this lives"]
pub struct LockGuard {
    descriptors: Vec<OwnedFd>,
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        self.descriptors.iter().for_each(unlock);
    }
}

/// A child that is about to start may have the descriptor too, so it is not left to its closing alone; where this fails,
/// it is. (The guard of `nix` panics then.)
fn unlock(descriptor: &OwnedFd) {
    let _ = flock(descriptor, FlockOperation::NonBlockingUnlock);
}

/// Why the lock was not got.
#[derive(Debug)]
pub enum LockError {
    /// Another process has it.
    Held {
        /// The directory that is locked.
        path: PathBuf,
        /// That process, where it can be known.
        pid: Option<i32>,
        /// How long it was waited for.
        waited: Duration,
    },
    /// It could not be asked for.
    File(FileError),
}

impl fmt::Display for LockError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, pid, waited) = match self {
            Self::Held { path, pid, waited } => (path, pid, waited),
            Self::File(error) => return error.fmt(out),
        };
        write!(out, "{}: locked by ", display_path(path))?;
        match pid {
            Some(pid) => write!(out, "process {pid}")?,
            None => write!(out, "another process")?,
        }
        match waited.as_secs() {
            0 => write!(out, "; try again when it is done"),
            seconds => write!(out, ", waited {seconds} s; try again when it is done"),
        }
    }
}

impl std::error::Error for LockError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::File(error) => Some(error),
            Self::Held { .. } => None,
        }
    }
}

impl From<FileError> for LockError {
    fn from(error: FileError) -> Self {
        Self::File(error)
    }
}

/// Locks a directory. Every call opens the directory anew: a lock belongs to an open file description, and
/// two calls in one process shut each other out as two processes do.
///
/// Somebody who could open the directory while its mode let him may hold a lock on it for ever. Then a file that nobody
/// else can open is locked in its place. Where that file stands, it is locked beside the directory too, so that the two
/// ways shut each other out.
pub(super) fn lock_directory(directory: &Directory, timeout: Duration) -> Result<LockGuard, LockError> {
    let asked = Instant::now();
    let mut descriptor = directory.reopen()?;
    loop {
        descriptor = match attempt_lock(directory, descriptor)? {
            LockAttempt::Locked(guard) => return Ok(guard),
            LockAttempt::Held(descriptor) => descriptor,
        };
        let waited = asked.elapsed();
        if waited >= timeout {
            let pid = find_lock_holders(&descriptor)
                .and_then(|pids| pids.into_iter().find(|pid| is_same_user_process(*pid)));
            return Err(LockError::Held { path: directory.path.clone(), pid, waited });
        }
        sleep(LOCK_RETRY_INTERVAL.min(timeout - waited));
    }
}

enum LockAttempt {
    Locked(LockGuard),
    Held(OwnedFd),
}

fn attempt_lock(directory: &Directory, descriptor: OwnedFd) -> Result<LockAttempt, LockError> {
    let mut has_directory = false;
    // What is let go between the two looks is nobody's.
    for _ in 0..HOLDER_CHECK_COUNT {
        has_directory = try_flock(&descriptor, directory)?;
        if has_directory {
            break;
        }
        if is_held_by_same_user(&descriptor) {
            return Ok(LockAttempt::Held(descriptor));
        }
    }
    let mut guard = LockGuard { descriptors: Vec::new() };
    if let Some(file) = open_lock_file(directory, !has_directory)? {
        let is_locked = try_flock(&file, directory)?;
        guard.descriptors.extend(is_locked.then_some(file));
        // One of us may have got the directory in between, and not have seen the file.
        if !is_locked || !has_directory && is_held_by_same_user(&descriptor) {
            if has_directory {
                unlock(&descriptor);
            }
            return Ok(LockAttempt::Held(descriptor));
        }
    }
    guard.descriptors.push(descriptor);
    Ok(LockAttempt::Locked(guard))
}

fn try_flock(descriptor: &OwnedFd, directory: &Directory) -> Result<bool, LockError> {
    match flock(descriptor, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(false),
        Err(error) => {
            let path = directory.path.clone();
            Err(FileError::Io { path, action: "lock", source: error.into() }.into())
        }
    }
}

/// The file that is locked in the directory's place; made where `create` says so.
fn open_lock_file(directory: &Directory, create: bool) -> Result<Option<OwnedFd>, LockError> {
    let name = OsStr::new(FALLBACK_LOCK_FILE);
    let path = directory.entry_path(name);
    let flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let flags = if create { flags | OFlag::O_CREAT } else { flags };
    let file = match openat(directory, name, flags, Mode::S_IRUSR | Mode::S_IWUSR) {
        Ok(file) => file,
        Err(nix::errno::Errno::ENOENT) if !create => return Ok(None),
        Err(error) => return Err(error).context("open", &path).map_err(LockError::from),
    };
    let stat = fstat(&file).context("examine", &path)?;
    if stat.st_uid != geteuid().as_raw() || stat.st_mode & 0o077 != 0 {
        let why = "others may have opened it; remove it";
        return Err(FileError::unsafe_path(&path, why).into());
    }
    Ok(Some(file))
}

/// Whether the lock is held by a process of ours. Where that cannot be told it is.
fn is_held_by_same_user(descriptor: &OwnedFd) -> bool {
    find_lock_holders(descriptor).is_none_or(|pids| pids.into_iter().any(is_same_user_process))
}

/// Whether it is a process of ours: of root's, but in tests.
fn is_same_user_process(pid: i32) -> bool {
    let status = read_file(Path::new(&format!("/proc/{pid}/status")), 1 << 16);
    match status {
        Ok(Some(status)) => {
            let (user, group) = (geteuid().as_raw(), getegid().as_raw());
            has_ids(&String::from_utf8_lossy(&status), user, group).unwrap_or(true)
        }
        // Where /proc hides others' processes, a signal still reaches those of the same user alone.
        _ => kill(Pid::from_raw(pid), None).is_ok(),
    }
}

/// Who holds the lock; `None` where that cannot be told.
fn find_lock_holders(descriptor: &OwnedFd) -> Option<Vec<i32>> {
    let stat = fstat(descriptor).ok()?;
    let locks = read_file("/proc/locks".as_ref(), 1 << 20).ok()??;
    Some(find_flock_holders(
        &String::from_utf8_lossy(&locks),
        major(stat.st_dev),
        minor(stat.st_dev),
        stat.st_ino,
    ))
}
