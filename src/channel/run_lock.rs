//! One `run` a guest (contract 8): a lock on `{run_dir}/run.lock`, which holds the pid of who has it. The
//! kernel lets go of it when the process ends, however it ends.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use nix::fcntl::OFlag;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

const FILE: &str = "run.lock";

/// Held as long as this value lives.
#[derive(Debug)]
pub struct RunLock {
    file: File,
}

impl Drop for RunLock {
    fn drop(&mut self) {
        release(&self.file);
    }
}

/// A child that is about to start may have the descriptor too, so it is not left to its closing alone; where this
/// fails, it is. (The lock of `nix` panics then.)
fn release(file: &File) {
    let _ = flock(file, FlockOperation::NonBlockingUnlock);
}

/// Why this `run` is not the one.
#[derive(Debug)]
pub enum RunLockError {
    /// Another one runs; its pid, where it could be read.
    Taken(Option<u32>),
    /// The file cannot be used.
    Io(String, io::Error),
}

impl fmt::Display for RunLockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Taken(Some(pid)) => write!(f, "another `keypair-agent run` is at work, process {pid}"),
            Self::Taken(None) => f.write_str("another `keypair-agent run` is at work"),
            Self::Io(path, error) => write!(f, "{path}: {error}"),
        }
    }
}

impl std::error::Error for RunLockError {}

impl RunLock {
    /// Takes the lock, or says who has it. A missing `run_dir` is created.
    ///
    /// # Errors
    /// [`RunLockError`] where another `run` is alive, or the file cannot be used.
    pub fn acquire(run_dir: &Path) -> Result<Self, RunLockError> {
        let path = run_dir.join(FILE);
        let failed = |error| RunLockError::Io(path.display().to_string(), error);
        fs::create_dir_all(run_dir).map_err(failed)?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .custom_flags(OFlag::O_NOFOLLOW.bits())
            .open(&path)
            .map_err(failed)?;
        // `status` looks by taking it for a moment (`holder`): such a moment is not another `run`.
        for _ in 0..5 {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    file.set_len(0).map_err(failed)?;
                    writeln!(file, "{}", std::process::id()).map_err(failed)?;
                    return Ok(Self { file });
                }
                Err(Errno::WOULDBLOCK) => {}
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(failed(errno.into())),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err(RunLockError::Taken(pid_in(&mut file)))
    }
}

/// The pid of the `run` that is alive, for `status`; `Some(None)` where it could not be read. Creates and
/// changes nothing.
pub fn holder(run_dir: &Path) -> Option<Option<u32>> {
    let mut file =
        OpenOptions::new().read(true).custom_flags(OFlag::O_NOFOLLOW.bits()).open(run_dir.join(FILE)).ok()?;
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Err(Errno::WOULDBLOCK) => Some(pid_in(&mut file)),
        Ok(()) => {
            release(&file);
            None
        }
        Err(_) => None,
    }
}

fn pid_in(file: &mut File) -> Option<u32> {
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
    fn a_second_one_is_told_who_runs_and_the_end_of_the_first_frees_it() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = dir.path().join("run/keypair-agent");
        assert_eq!(holder(&run_dir), None);
        let first = RunLock::acquire(&run_dir).unwrap();
        let pid = std::process::id();
        assert_eq!(holder(&run_dir), Some(Some(pid)));
        let refused = RunLock::acquire(&run_dir).expect_err("taken");
        assert!(refused.to_string().contains(&format!("process {pid}")), "{refused}");
        drop(first);
        assert_eq!(holder(&run_dir), None);
        RunLock::acquire(&run_dir).unwrap();
    }

    #[test]
    fn a_look_by_status_is_not_another_run() {
        let dir = tempfile::tempdir().unwrap();
        drop(RunLock::acquire(dir.path()).unwrap());
        let look = File::open(dir.path().join(FILE)).unwrap();
        flock(&look, FlockOperation::NonBlockingLockShared).unwrap();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(30));
            drop(look);
        });
        RunLock::acquire(dir.path()).unwrap();
        thread.join().unwrap();
    }

    #[test]
    fn a_planted_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, dir.path().join(FILE)).unwrap();
        assert!(matches!(RunLock::acquire(dir.path()), Err(RunLockError::Io(..))));
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
    }
}
