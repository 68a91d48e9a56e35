//! A lock on the state directory, so that only one process makes changes at a time (KP-8.11). The wait for it has
//! a time limit.

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

/// flock(2) has no time limit, so the agent retries at this interval. The process that holds the lock sends no
/// signal when it releases it.
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// How many times one attempt tries the lock and looks for its holders.
const HOLDER_CHECK_COUNT: usize = 3;

/// The file that is locked if another user's process holds the lock on the directory.
const FALLBACK_LOCK_FILE: &str = "state.lock";

/// The lock. It is released when this value is dropped or the process ends.
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

/// Unlocks explicitly, because a child process that is being started may still have a copy of the descriptor. If
/// this fails, the close of all copies releases the lock. (The guard of `nix` panics in that case.)
fn unlock(descriptor: &OwnedFd) {
    let _ = flock(descriptor, FlockOperation::NonBlockingUnlock);
}

/// Why the lock was not acquired.
#[derive(Debug)]
pub enum LockError {
    /// Another process holds it.
    Held {
        /// The locked directory.
        path: PathBuf,
        /// The process that holds it, if known.
        pid: Option<i32>,
        /// How long the agent waited for it.
        waited: Duration,
    },
    /// The directory or the lock file could not be opened, examined or locked.
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

/// Locks a directory. Each call opens the directory again, because a lock belongs to an open file description. So
/// two calls in one process exclude each other like two processes.
///
/// If the directory's mode once allowed other users to open it, one of them may hold a lock on it forever. In that
/// case the function locks a file that no other user can open. If that file exists, the function always locks it
/// too, so that both ways exclude each other.
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
    // The holder may release the lock between the two checks. Then no holder is found, and the next try may
    // succeed.
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
        // Another agent process may have locked the directory meanwhile without seeing this file.
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

/// Opens the file that is locked in place of the directory. Creates it if `create` is true.
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

/// Whether a process of the agent's user holds the lock. True if that cannot be determined.
fn is_held_by_same_user(descriptor: &OwnedFd) -> bool {
    find_lock_holders(descriptor).is_none_or(|pids| pids.into_iter().any(is_same_user_process))
}

/// Whether a process runs as the agent's user and group (root, except in tests).
fn is_same_user_process(pid: i32) -> bool {
    let status = read_file(Path::new(&format!("/proc/{pid}/status")), 1 << 16);
    match status {
        Ok(Some(status)) => {
            let (user, group) = (geteuid().as_raw(), getegid().as_raw());
            has_ids(&String::from_utf8_lossy(&status), user, group).unwrap_or(true)
        }
        // If /proc hides other users' processes, kill(2) still succeeds, but only for processes of the same user.
        _ => kill(Pid::from_raw(pid), None).is_ok(),
    }
}

/// The processes that hold the lock; `None` if that cannot be determined.
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
