//! One change at a time: a lock on the state directory (contract 8), waited for with patience and not for ever.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::libc::{major, minor};
use nix::sys::stat::{FileStat, fstat};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::directory::Directory;
use super::error::{FileError, shown};
use super::read::read_file;

/// flock(2) has no time limit, so it is asked again: another process is waited for, which says nothing when it
/// is done.
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// The lock, held until it is dropped, or the process ends.
#[derive(Debug)]
#[must_use = "the lock is held only as long as this lives"]
pub struct Guard {
    descriptor: OwnedFd,
}

impl Drop for Guard {
    fn drop(&mut self) {
        // A child that is about to start may have the descriptor too, so it is not left to its closing alone; where
        // this fails, it is. (The guard of `nix` panics then.)
        let _ = flock(&self.descriptor, FlockOperation::NonBlockingUnlock);
    }
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
        write!(out, "{}: locked by ", shown(path))?;
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
pub(super) fn lock(directory: &Directory, timeout: Duration) -> Result<Guard, LockError> {
    let asked = Instant::now();
    let descriptor = directory.reopened()?;
    loop {
        match flock(&descriptor, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Guard { descriptor }),
            Err(Errno::WOULDBLOCK | Errno::INTR) => {}
            Err(error) => {
                let path = directory.path.clone();
                return Err(FileError::Io { path, action: "lock", source: error.into() }.into());
            }
        }
        let waited = asked.elapsed();
        if waited >= timeout {
            let pid = fstat(&descriptor).ok().and_then(|stat| holder(&stat));
            return Err(LockError::Held { path: directory.path.clone(), pid, waited });
        }
        sleep(ASK_AGAIN.min(timeout - waited));
    }
}

/// Who holds the lock, proc_locks(5); `None` where that cannot be told (another PID namespace, no /proc).
fn holder(stat: &FileStat) -> Option<i32> {
    let locks = read_file("/proc/locks".as_ref(), 1 << 20).ok()??;
    holder_in(&String::from_utf8_lossy(&locks), major(stat.st_dev), minor(stat.st_dev), stat.st_ino)
}

/// The same from the text. Some filesystems name another device there than stat(2) does, so an inode alone is
/// taken where it is the only one.
fn holder_in(locks: &str, major: u32, minor: u32, inode: u64) -> Option<i32> {
    let mut by_inode = Vec::new();
    for line in locks.lines() {
        // `1: FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF`; a waiting one has `->` behind its number.
        let mut words = line.split_whitespace().skip(1);
        if words.next() != Some("FLOCK") {
            continue;
        }
        let (Some(pid), Some(place)) = (words.nth(2), words.next()) else { continue };
        let (Ok(pid), Some((device, number))) = (pid.parse::<i32>(), place.rsplit_once(':')) else {
            continue;
        };
        if number.parse() != Ok(inode) || pid <= 0 {
            continue;
        }
        if device == format!("{major:02x}:{minor:02x}") {
            return Some(pid);
        }
        by_inode.push(pid);
    }
    match by_inode.as_slice() {
        [pid] => Some(*pid),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCKS: &str = "1: POSIX  ADVISORY  WRITE 11 08:01:77 0 EOF\n\
                         2: FLOCK  ADVISORY  WRITE 22 08:01:77 0 EOF\n\
                         2: -> FLOCK  ADVISORY  WRITE 33 08:01:77 0 EOF\n\
                         3: FLOCK  ADVISORY  WRITE 44 08:02:77 0 EOF\n\
                         4: FLOCK  ADVISORY  WRITE 0 08:01:88 0 EOF\n\
                         5: FLOCK  ADVISORY  WRITE 55 00:2d:99 0 EOF\n";

    #[test]
    fn the_holder_is_found_by_device_and_inode() {
        assert_eq!(holder_in(LOCKS, 8, 1, 77), Some(22));
        assert_eq!(holder_in(LOCKS, 8, 2, 77), Some(44));
    }

    #[test]
    fn an_inode_alone_counts_where_it_is_the_only_one() {
        assert_eq!(holder_in(LOCKS, 0, 0x2e, 99), Some(55));
        assert_eq!(holder_in(LOCKS, 7, 7, 77), None);
        assert_eq!(holder_in(LOCKS, 8, 1, 88), None);
    }
}
