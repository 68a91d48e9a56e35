//! A directory that is held open. All operations in it are relative to its descriptor.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat, mkdirat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fsync, geteuid, unlinkat};

use super::beneath::open_beneath;
use super::error::{Context, FileError};
use super::label;
use crate::policy::selinux::LabelledKind;

/// A directory that is open for reading, so that it can be listed and synced.
#[derive(Debug)]
pub(super) struct Directory {
    descriptor: OwnedFd,
    /// Its path, only for messages.
    pub(super) path: PathBuf,
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl Directory {
    /// Opens for reading a directory that the walk holds by an O_PATH descriptor.
    pub(super) fn from_path_fd(place: impl AsFd, path: &Path) -> Result<Self, FileError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let descriptor = openat(place, ".", flags, Mode::empty()).context("open", path)?;
        Ok(Self { descriptor, path: path.to_owned() })
    }

    /// A new descriptor with its own open file description, for listing or for a lock.
    pub(super) fn reopen(&self) -> Result<OwnedFd, FileError> {
        Ok(Self::from_path_fd(&self.descriptor, &self.path)?.descriptor)
    }

    /// Opens a subdirectory. A link is not followed.
    pub(super) fn open_subdirectory(&self, name: &OsStr) -> Result<Self, FileError> {
        let path = self.entry_path(name);
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let descriptor = open_beneath(&self.descriptor, name, flags).context("open", &path)?;
        Ok(Self { descriptor, path })
    }

    /// The path of an entry, only for messages.
    pub(super) fn entry_path(&self, name: &OsStr) -> PathBuf {
        self.path.join(name)
    }

    /// The stat(2) result of `name`, without following a link; `None` if there is no such entry.
    pub(super) fn stat_entry(&self, name: &OsStr) -> Result<Option<FileStat>, FileError> {
        match fstatat(&self.descriptor, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::ENOENT) => Ok(None),
            Err(error) => Err(error).context("examine", &self.entry_path(name)),
        }
    }

    /// Removes an entry that is not a directory. Returns false if there was none.
    pub(super) fn unlink(&self, name: &OsStr) -> Result<bool, FileError> {
        match unlinkat(&self.descriptor, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(error) => Err(error).context("remove", &self.entry_path(name)),
        }
    }

    /// Removes an empty subdirectory. Returns false if it stays: it does not exist, is not empty, or is a mount
    /// point.
    pub(super) fn rmdir_if_empty(&self, name: &OsStr) -> Result<bool, FileError> {
        match unlinkat(&self.descriptor, name, UnlinkatFlags::RemoveDir) {
            Ok(()) => Ok(true),
            Err(Errno::ENOENT | Errno::ENOTEMPTY | Errno::EEXIST | Errno::ENOTDIR | Errno::EBUSY) => {
                Ok(false)
            }
            Err(error) => Err(error).context("remove", &self.entry_path(name)),
        }
    }

    /// Makes its entries durable. Some filesystems cannot sync a directory and return EINVAL (fsync(2)); that
    /// counts as success, because they offer nothing else.
    pub(super) fn sync(&self) -> Result<(), FileError> {
        match fsync(&self.descriptor) {
            Ok(()) | Err(Errno::EINVAL) => Ok(()),
            Err(error) => Err(error).context("sync", &self.path),
        }
    }

    /// Whether the directory has no entries.
    fn is_empty(&self) -> Result<bool, FileError> {
        let mut listing = nix::dir::Dir::from_fd(self.reopen()?).context("list", &self.path)?;
        for entry in listing.iter() {
            let entry = entry.context("list", &self.path)?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// A directory that the agent created for a file. Dropping this value removes it again, unless `keep` was called.
#[derive(Debug)]
pub(super) struct CreatedDirectory {
    parent: Directory,
    name: OsString,
    /// The directory itself.
    pub(super) directory: Directory,
    kept: bool,
}

impl CreatedDirectory {
    /// Creates `name` in `parent` with mode 0700, owner `owner` and the label of the SELinux policy, and syncs
    /// `parent`.
    ///
    /// The owner of `parent` can replace the new directory before this function opens it. So the function changes
    /// the owner only of a directory that the agent's user owns and that is empty. The owner of `parent` gains
    /// nothing from such a directory: they could remove it and create their own.
    pub(super) fn create(parent: Directory, name: &OsStr, owner: (u32, u32)) -> Result<Self, FileError> {
        let path = parent.entry_path(name);
        match mkdirat(&parent, name, Mode::S_IRWXU) {
            Ok(()) => {}
            Err(Errno::EEXIST) => return Err(FileError::Changed { path }),
            Err(error) => return Err(error).context("create", &path),
        }
        let directory = match parent.open_subdirectory(name) {
            Ok(directory) => directory,
            Err(error) => {
                // The directory was replaced or cannot be used. Remove it if it is empty, and return the first
                // error.
                let _ = parent.rmdir_if_empty(name);
                return Err(error);
            }
        };
        let created = Self { parent, name: name.to_owned(), directory, kept: false };
        created.apply_owner_and_mode(owner)?;
        created.parent.sync()?;
        Ok(created)
    }

    /// Sets owner, mode and label of a new directory.
    fn apply_owner_and_mode(&self, (uid, gid): (u32, u32)) -> Result<(), FileError> {
        let directory = &self.directory;
        let stat = fstat(directory).context("examine", &directory.path)?;
        if stat.st_uid != geteuid().as_raw() || !directory.is_empty()? {
            return Err(FileError::Changed { path: directory.path.clone() });
        }
        if (stat.st_uid, stat.st_gid) != (uid, gid) {
            fchown(directory, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
                .context("set the owner of", &directory.path)?;
        }
        fchmod(directory, Mode::S_IRWXU).context("set the mode of", &directory.path)?;
        label::apply_default_label(directory, &directory.path, LabelledKind::Directory);
        Ok(())
    }

    /// Keeps the directory and returns its path.
    pub(super) fn keep(mut self) -> PathBuf {
        self.kept = true;
        self.directory.path.clone()
    }
}

impl Drop for CreatedDirectory {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        let same = match (fstat(&self.directory), self.parent.stat_entry(&self.name)) {
            (Ok(ours), Ok(Some(there))) => (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino),
            _ => false,
        };
        // An error here cannot be returned: the caller already gets the first error.
        if same && matches!(self.parent.rmdir_if_empty(&self.name), Ok(true)) {
            let _ = self.parent.sync();
        }
    }
}

/// The file type of a mode.
pub(super) fn file_type(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

/// The type of an entry, as text for messages.
pub(super) fn describe_file_type(stat: &FileStat) -> &'static str {
    match file_type(stat) {
        SFlag::S_IFLNK => "a symbolic link",
        SFlag::S_IFDIR => "a directory",
        SFlag::S_IFIFO => "a FIFO",
        SFlag::S_IFSOCK => "a socket",
        SFlag::S_IFCHR | SFlag::S_IFBLK => "a device",
        SFlag::S_IFREG => "a regular file",
        _ => "no regular file",
    }
}
