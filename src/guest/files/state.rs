//! The state directory (KP-7.1). It contains one file that is replaced atomically, and the directory itself is
//! locked.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::stat::{Mode, fchmod, mkdirat};
use nix::unistd::{getegid, geteuid};

use super::attributes::set_owner_and_mode;
use super::directory::Directory;
use super::error::{Context, FileError};
use super::lock::{LockError, LockGuard, lock_directory};
use super::own_directory;
use super::replace::FileTarget;
use super::sweep::remove_temporaries_in;
use super::temporary::TemporaryFile;
use super::walk::{PathWalker, TrustPolicy, check_writers};

/// The name of the state file.
pub const STATE_FILE_NAME: &str = "state.json";
const STATE_FILE_MODE: u32 = 0o600;

/// The state directory, held by its descriptor. All operations use the opened directory, even if its path is
/// renamed or replaced.
#[derive(Debug)]
pub struct StateDirectory {
    directory: Directory,
}

impl StateDirectory {
    /// Opens the directory, which only root may be able to change. With `create`, missing components of its path
    /// are created with mode 0700, and the directory itself gets owner root and mode 0700. Without `create`, a
    /// missing directory is [`FileError::MissingDirectory`].
    pub fn open(path: &Path, create: bool) -> Result<Self, FileError> {
        if create {
            own_directory::take_ownership(path)?;
        }
        let mut walk = PathWalker::walk_to(TrustPolicy::RootOnly, None, path)?;
        while let Some(name) = walk.missing.first() {
            if !create {
                return Err(FileError::MissingDirectory { path: path.to_owned() });
            }
            let parent = walk.last()?.open_directory()?;
            match mkdirat(&parent, name.as_os_str(), Mode::S_IRWXU) {
                Ok(()) => {
                    // Undo the effect of the umask. No other user can have replaced the directory: the walk
                    // checked the path.
                    fchmod(parent.open_subdirectory(name)?, Mode::S_IRWXU)
                        .context("set the mode of", path)?;
                    parent.sync()?;
                }
                Err(Errno::EEXIST) => {}
                Err(error) => return Err(error).context("create", &parent.entry_path(name)),
            }
            walk = PathWalker::walk_to(TrustPolicy::RootOnly, None, path)?;
        }
        let directory = walk.last()?.open_directory()?;
        if create {
            own_directory::enforce_owner_and_mode(&directory)?;
        }
        walk.check_last_writers()?;
        Ok(Self { directory })
    }

    /// Its path, with links resolved.
    pub fn path(&self) -> &Path {
        &self.directory.path
    }

    /// The path of the state file, for messages.
    pub fn file_path(&self) -> PathBuf {
        self.directory.entry_path(OsStr::new(STATE_FILE_NAME))
    }

    /// Acquires the lock that every change needs (KP-8.11), and waits at most `timeout`. With a timeout of zero,
    /// it tries once.
    pub fn lock(&self, timeout: Duration) -> Result<LockGuard, LockError> {
        lock_directory(&self.directory, timeout)
    }

    /// The state file's bytes; `None` if there is no file yet. A file that another user could have written is an
    /// error: the directory may have been open to other users before the agent changed its mode.
    pub fn load(&self, limit: usize) -> Result<Option<Vec<u8>>, FileError> {
        let name = OsStr::new(STATE_FILE_NAME);
        let target = FileTarget { directory: &self.directory, name, way: TrustPolicy::RootOnly, limit };
        let Some((opened, content)) = target.read()? else { return Ok(None) };
        check_writers(TrustPolicy::RootOnly, &opened.stat, &self.file_path(), || Ok(&opened.file))?;
        Ok(Some(content))
    }

    /// Replaces the state file, with mode 0600. After a crash at any moment, the file has the complete old or the
    /// complete new content. When this returns, the new content is on the disk.
    pub fn save(&self, content: &[u8]) -> Result<(), FileError> {
        let name = OsStr::new(STATE_FILE_NAME);
        let mut temporary = TemporaryFile::create(&self.directory)?;
        temporary.write(content, name)?;
        let owner = (geteuid().as_raw(), getegid().as_raw());
        set_owner_and_mode(&temporary.file, owner, STATE_FILE_MODE, &self.file_path())?;
        temporary.sync(name)?;
        temporary.rename(name, true)
    }

    /// Syncs the directory, so that a rename by an earlier process is on the disk. That process may have ended
    /// before its sync, and the agent reports what it reads here.
    pub fn sync_directory(&self) -> Result<(), FileError> {
        self.directory.sync()
    }

    /// Removes temporary files that a crash left here, and returns their number. The caller must hold the lock.
    pub fn remove_state_temporaries(&self) -> Result<usize, FileError> {
        remove_temporaries_in(&self.directory, TrustPolicy::RootOnly)
    }
}
