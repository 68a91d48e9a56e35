//! Allows only one `run` per guest (KP-8.12), by a lock on `{run_dir}/run.lock`. The file contains the pid of the
//! process that holds the lock. The kernel releases the lock when that process ends for any reason.

use std::fmt;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::signal::kill;
use nix::unistd::{Pid, fchown, getegid, geteuid};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::policy::foreign::sanitize_path;
use crate::policy::holders::{find_flock_holders, has_ids};

const RUN_LOCK_FILE: &str = "run.lock";
const NEW_RUN_LOCK_FILE: &str = "run.lock.new";

/// How often the agent tries to take a lock that another process holds.
const MAX_RUN_LOCK_TRIES: usize = 5;

/// The beginnings of the names of the agent's temporary directories in the run directory.
const SCRATCH_DIR_PREFIXES: [&str; 3] = ["proof-", "trial-", "host-key-"];

/// The lock. It is held as long as this value lives.
#[derive(Debug)]
pub struct RunLock {
    file: File,
}

impl Drop for RunLock {
    fn drop(&mut self) {
        release_lock(&self.file);
    }
}

/// Releases the lock explicitly, because a child process that is starting may hold a copy of the descriptor. If this
/// fails, the lock ends when all copies are closed. (The lock type of `nix` panics in that case.)
fn release_lock(file: &File) {
    let _ = flock(file, FlockOperation::NonBlockingUnlock);
}

/// Why this `run` cannot take the lock.
#[derive(Debug)]
pub enum RunLockError {
    /// Another `run` is alive. The value is its pid, if it could be read.
    Held(Option<u32>),
    /// The file cannot be used.
    Io(String, io::Error),
}

impl fmt::Display for RunLockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held(Some(pid)) => write!(f, "another `keypair-agent run` is at work, process {pid}"),
            Self::Held(None) => f.write_str("another `keypair-agent run` is at work"),
            Self::Io(path, error) => write!(f, "{path}: {error}"),
        }
    }
}

impl std::error::Error for RunLockError {}

impl RunLock {
    /// Takes the lock. It creates a missing `run_dir`, and removes other users' access to an existing one.
    ///
    /// # Errors
    /// [`RunLockError`] if another `run` is alive, or if the file cannot be used.
    pub fn acquire(run_dir: &Path) -> Result<Self, RunLockError> {
        let path = run_dir.join(RUN_LOCK_FILE);
        let failed = |path: &Path, error| RunLockError::Io(sanitize_path(path), error);
        secure_run_dir(run_dir).map_err(|error| failed(run_dir, error))?;
        for _ in 0..MAX_RUN_LOCK_TRIES {
            let file = open_lock_file(&path).map_err(|error| failed(&path, error))?;
            if let Some(lock) = Self::try_flock(file).map_err(|error| failed(&path, error))? {
                return Ok(lock);
            }
            // `status` tests the lock by taking it for a moment ([`find_lock_holder`]). This is not another `run`.
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut file = open_lock_file(&path).map_err(|error| failed(&path, error))?;
        if is_held_by_own_process(&file) {
            return Err(RunLockError::Held(read_lock_pid(&mut file)));
        }
        match Self::replace_held_file(&file, run_dir).map_err(|error| failed(&path, error))? {
            Some(lock) => Ok(lock),
            None => Err(RunLockError::Held(read_lock_pid(&mut file))),
        }
    }

    /// Returns the lock on this file, unless another process holds it.
    fn try_flock(file: File) -> io::Result<Option<Self>> {
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.set_len(0)?;
        let mut lock = Self { file };
        writeln!(lock.file, "{}", std::process::id())?;
        Ok(Some(lock))
    }

    /// Replaces a lock file that was open to all users and that another user's process has locked. Two agents that do
    /// this at once exclude each other through the new file, which the first one renames.
    fn replace_held_file(held: &File, run_dir: &Path) -> io::Result<Option<Self>> {
        let (path, new) = (run_dir.join(RUN_LOCK_FILE), run_dir.join(NEW_RUN_LOCK_FILE));
        let is_own = |file: &Metadata| file.uid() == geteuid().as_raw() && file.mode() & 0o077 == 0;
        if fs::symlink_metadata(&new).is_ok_and(|found| !is_own(&found)) {
            fs::remove_file(&new)?;
        }
        let Some(lock) = Self::try_flock(open_lock_file(&new)?)? else { return Ok(None) };
        let (old, now) = (held.metadata()?, fs::symlink_metadata(&path)?);
        if (old.dev(), old.ino()) != (now.dev(), now.ino()) {
            return Ok(None);
        }
        fs::rename(&new, &path)?;
        Ok(Some(lock))
    }
}

fn open_lock_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits()).open(path)
}

/// Creates the run directory. Sets its owner to the agent's user and its mode to 0700, even if it already exists with
/// others. A directory that contains other programs' directories (`/run`) stays as it is, because no file of the agent
/// in it depends on its mode.
fn secure_run_dir(run_dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(run_dir)?;
    let directory = OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW).bits())
        .open(run_dir)
        .map_err(|error| match error.raw_os_error() {
            Some(nix::libc::ELOOP | nix::libc::ENOTDIR) => {
                io::Error::other("a link; name the directory itself as run_dir in the configuration")
            }
            _ => error,
        })?;
    let found = directory.metadata()?;
    let is_own = found.uid() == geteuid().as_raw();
    if is_own && found.mode() & 0o7777 == 0o700 || has_foreign_directories(run_dir)? {
        return Ok(());
    }
    if !is_own {
        fchown(&directory, Some(geteuid()), Some(getegid()))?;
    }
    directory.set_permissions(Permissions::from_mode(0o700))
}

fn has_foreign_directories(run_dir: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(run_dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_ours = SCRATCH_DIR_PREFIXES.iter().any(|kind| name.to_string_lossy().starts_with(kind));
        if !is_ours && entry.file_type()?.is_dir() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Returns true if a process of the agent's user holds a lock on the file. Also returns true if this is unknown.
fn is_held_by_own_process(file: &File) -> bool {
    let (Ok(found), Ok(locks)) = (file.metadata(), fs::read_to_string("/proc/locks")) else { return true };
    let (major, minor) = (nix::libc::major(found.dev()), nix::libc::minor(found.dev()));
    find_flock_holders(&locks, major, minor, found.ino()).into_iter().any(is_own_process)
}

/// Returns true if the process has the agent's user and group: root, except in tests.
fn is_own_process(pid: i32) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/status")) {
        Ok(status) => has_ids(&status, geteuid().as_raw(), getegid().as_raw()).unwrap_or(true),
        // If /proc hides other users' processes, a signal still reaches only processes of the same user.
        Err(_) => kill(Pid::from_raw(pid), None).is_ok(),
    }
}

/// Returns the pid of the `run` that is alive, for `status`. Returns `Some(None)` if the pid could not be read. This
/// function creates and changes no file.
pub fn find_lock_holder(run_dir: &Path) -> Option<Option<u32>> {
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(run_dir.join(RUN_LOCK_FILE))
        .ok()?;
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Err(Errno::WOULDBLOCK) => Some(read_lock_pid(&mut file)),
        Ok(()) => {
            release_lock(&file);
            None
        }
        Err(_) => None,
    }
}

fn read_lock_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn second_lock_is_refused_with_pid_until_first_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = dir.path().join("run/keypair-agent");
        assert_eq!(find_lock_holder(&run_dir), None);
        let first = RunLock::acquire(&run_dir).unwrap();
        let pid = std::process::id();
        assert_eq!(find_lock_holder(&run_dir), Some(Some(pid)));
        let refused = RunLock::acquire(&run_dir).expect_err("taken");
        assert!(refused.to_string().contains(&format!("process {pid}")), "{refused}");
        drop(first);
        assert_eq!(find_lock_holder(&run_dir), None);
        RunLock::acquire(&run_dir).unwrap();
    }

    #[test]
    fn shared_lock_of_status_does_not_block_run() {
        let dir = tempfile::tempdir().unwrap();
        drop(RunLock::acquire(dir.path()).unwrap());
        let look = File::open(dir.path().join(RUN_LOCK_FILE)).unwrap();
        flock(&look, FlockOperation::NonBlockingLockShared).unwrap();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(30));
            drop(look);
        });
        RunLock::acquire(dir.path()).unwrap();
        thread.join().unwrap();
    }

    #[test]
    fn lock_file_symlink_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, dir.path().join(RUN_LOCK_FILE)).unwrap();
        assert!(matches!(RunLock::acquire(dir.path()), Err(RunLockError::Io(..))));
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
    }
}
