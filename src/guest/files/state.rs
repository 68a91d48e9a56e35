//! The state directory (KP-7.1): one file in it, replaced atomically, and a lock on the directory itself.

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

/// Its name.
pub const STATE_FILE_NAME: &str = "state.json";
const STATE_FILE_MODE: u32 = 0o600;

/// The state directory, held by its descriptor: what is done here is done in the directory that was opened,
/// whatever becomes of its name.
#[derive(Debug)]
pub struct StateDirectory {
    directory: Directory,
}

impl StateDirectory {
    /// Opens the directory, which nobody but root may be able to change. With `create`, what is missing of its
    /// path is made, 0700, and the directory itself is made root's and 0700; without, a missing one is
    /// [`FileError::MissingDirectory`].
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
                    // Whatever the umask took away. Nobody else can have put another there: the walk judged.
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

    /// Its path, links resolved.
    pub fn path(&self) -> &Path {
        &self.directory.path
    }

    /// Where the state file is, for messages.
    pub fn file_path(&self) -> PathBuf {
        self.directory.entry_path(OsStr::new(STATE_FILE_NAME))
    }

    /// Takes the lock under which every change is made (KP-8.11), and waits `timeout` for it at most; with
    /// no time at all it is tried once.
    pub fn lock(&self, timeout: Duration) -> Result<LockGuard, LockError> {
        lock_directory(&self.directory, timeout)
    }

    /// The state file's bytes; `None` where there is none yet. One that somebody else could have written is refused: a
    /// directory that is ours now may have been open to all before.
    pub fn load(&self, limit: usize) -> Result<Option<Vec<u8>>, FileError> {
        let name = OsStr::new(STATE_FILE_NAME);
        let target = FileTarget { directory: &self.directory, name, way: TrustPolicy::RootOnly, limit };
        let Some((opened, content)) = target.read()? else { return Ok(None) };
        check_writers(TrustPolicy::RootOnly, &opened.stat, &self.file_path(), || Ok(&opened.file))?;
        Ok(Some(content))
    }

    /// Replaces the state file, 0600: after a crash at any instant it is the old one or the new one, whole. When
    /// this returns, the new one is on the disk.
    pub fn save(&self, content: &[u8]) -> Result<(), FileError> {
        let name = OsStr::new(STATE_FILE_NAME);
        let mut temporary = TemporaryFile::create(&self.directory)?;
        temporary.write(content, name)?;
        let owner = (geteuid().as_raw(), getegid().as_raw());
        set_owner_and_mode(&temporary.file, owner, STATE_FILE_MODE, &self.file_path())?;
        temporary.sync(name)?;
        temporary.rename(name, true)
    }

    /// Sees to it that what an earlier process renamed is on the disk: it may have ended before it was, and what is read
    /// here is told on.
    pub fn sync_directory(&self) -> Result<(), FileError> {
        self.directory.sync()
    }

    /// Removes temporaries that a crash left here; how many there were. Under the lock.
    pub fn remove_state_temporaries(&self) -> Result<usize, FileError> {
        remove_temporaries_in(&self.directory, TrustPolicy::RootOnly)
    }
}
