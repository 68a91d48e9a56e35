//! A private directory in the run directory, for the time of a question; nothing of it is left behind. It bears the
//! pid of who made it, so that what a crash left is told from what is in use: `status` and `check` ask without a lock.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use tempfile::TempDir;

/// For a question to the running sshd.
pub(super) const PROBE_DIR_PREFIX: &str = "proof";
/// For a trial.
pub(super) const TRIAL_DIR_PREFIX: &str = "trial";
/// For a question to an sshd without a host key.
pub(super) const HOST_KEY_DIR_PREFIX: &str = "host-key";

/// The directory, 0700. Dropped in this order: itself, then the run directory if it was made for it.
pub(super) struct ScratchDir {
    directory: TempDir,
    _run_dir: Option<CreatedDir>,
}

/// A directory that is removed again, if nothing stands in it.
struct CreatedDir(PathBuf);

impl Drop for CreatedDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

impl ScratchDir {
    pub(super) fn create(run_dir: &Path, kind: &str) -> io::Result<Self> {
        let made = match DirBuilder::new().mode(0o700).create(run_dir) {
            Ok(()) => Some(CreatedDir(run_dir.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => None,
            Err(error) => return Err(error),
        };
        let directory = tempfile::Builder::new()
            .prefix(&format!("{kind}-{}-", std::process::id()))
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(run_dir)?;
        Ok(Self { directory, _run_dir: made })
    }

    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }
}

/// Removes what processes that are no more left in the run directory; how many there were. On the thread on which
/// ours are made, between two questions.
pub(super) fn remove_stale_dirs(run_dir: &Path) -> io::Result<usize> {
    let entries = match fs::read_dir(run_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => entries?,
    };
    let mut swept = 0;
    for entry in entries {
        let entry = entry?;
        if parse_owner_pid(&entry.file_name().to_string_lossy()).is_some_and(is_process_gone)
            && entry.file_type()?.is_dir()
        {
            fs::remove_dir_all(entry.path())?;
            swept += 1;
        }
    }
    Ok(swept)
}

/// The pid in a name of ours.
fn parse_owner_pid(name: &str) -> Option<i32> {
    let rest = [PROBE_DIR_PREFIX, TRIAL_DIR_PREFIX, HOST_KEY_DIR_PREFIX]
        .iter()
        .find_map(|kind| name.strip_prefix(kind)?.strip_prefix('-'))?;
    rest.split_once('-')?.0.parse().ok()
}

/// Whether a process is no more. Ours asks nothing while it sweeps, so what bears its pid is of an earlier one.
fn is_process_gone(pid: i32) -> bool {
    let own = i32::try_from(std::process::id()) == Ok(pid);
    pid > 0 && (own || kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn stale_dirs_are_removed_and_nothing_else() {
        let run_dir = tempfile::tempdir().unwrap();
        let at = |name: &str| run_dir.path().join(name);
        let mut ended = std::process::Command::new("true").spawn().unwrap();
        ended.wait().unwrap();
        let left = [format!("proof-{}-abcdef", ended.id()), format!("host-key-{}-abcdef", ended.id())];
        // Those of a living process, and of others.
        let stay =
            ["proof-1-abcdef", "proof-abcdef", "proof--1-abcdef", "proof-0-abcdef", "else-4194305-abcdef"];
        for name in left.iter().map(String::as_str).chain(stay) {
            fs::create_dir(at(name)).unwrap();
            fs::write(at(name).join("key"), "secret").unwrap();
        }
        fs::write(at(&format!("proof-{}-file", ended.id())), "").unwrap();
        assert_eq!(remove_stale_dirs(run_dir.path()).unwrap(), 2);
        assert!(left.iter().all(|name| !at(name).exists()));
        assert!(stay.iter().all(|name| at(name).join("key").exists()));
        assert_eq!(remove_stale_dirs(&at("none")).unwrap(), 0);
    }

    #[test]
    fn scratch_dir_drop_removes_created_run_dir() {
        let parent = tempfile::tempdir().unwrap();
        let run_dir = parent.path().join("run");
        let made = ScratchDir::create(&run_dir, PROBE_DIR_PREFIX).unwrap();
        let name = made.path().file_name().unwrap().to_str().unwrap();
        assert_eq!(parse_owner_pid(name), i32::try_from(std::process::id()).ok());
        drop(made);
        assert!(!run_dir.exists());
    }
}
