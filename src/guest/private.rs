//! A private directory in the run directory, for the duration of a query. It is removed completely afterwards. Its
//! name contains the pid of its creator, so that leftovers of a crash differ from directories in use: `status` and
//! `check` run queries without a lock.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use tempfile::TempDir;

/// The name prefix for a probe of the running sshd.
pub(super) const PROBE_DIR_PREFIX: &str = "proof";
/// The name prefix for a trial.
pub(super) const TRIAL_DIR_PREFIX: &str = "trial";
/// The name prefix for a query to an sshd without a host key.
pub(super) const HOST_KEY_DIR_PREFIX: &str = "host-key";

/// The directory, mode 0700. The fields are dropped in this order: the directory itself, then the run directory if
/// it was created for it.
pub(super) struct ScratchDir {
    directory: TempDir,
    _run_dir: Option<CreatedDir>,
}

/// A directory that is removed on drop if it is empty.
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

/// Removes the directories that ended processes left in the run directory, and returns their number. It runs on the
/// thread that creates this process's directories, between two queries.
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

/// The pid in the name of a directory of the agent.
fn parse_owner_pid(name: &str) -> Option<i32> {
    let rest = [PROBE_DIR_PREFIX, TRIAL_DIR_PREFIX, HOST_KEY_DIR_PREFIX]
        .iter()
        .find_map(|kind| name.strip_prefix(kind)?.strip_prefix('-'))?;
    rest.split_once('-')?.0.parse().ok()
}

/// Returns true if a process has ended. This process runs no query during the removal, so a directory with its own
/// pid is from an earlier process.
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
        // The directories of a running process, and of other programs.
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
