//! A directory that is held open: what is done in it is done relative to its descriptor.

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

/// A directory open for reading, so that it can be listed and synced.
#[derive(Debug)]
pub(super) struct Directory {
    descriptor: OwnedFd,
    /// Its path, for messages alone.
    pub(super) path: PathBuf,
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl Directory {
    /// Opens for reading what the walk holds as a mere place.
    pub(super) fn from_path_fd(place: impl AsFd, path: &Path) -> Result<Self, FileError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let descriptor = openat(place, ".", flags, Mode::empty()).context("open", path)?;
        Ok(Self { descriptor, path: path.to_owned() })
    }

    /// A descriptor with an open file description of its own, for listing or for a lock.
    pub(super) fn reopen(&self) -> Result<OwnedFd, FileError> {
        Ok(Self::from_path_fd(&self.descriptor, &self.path)?.descriptor)
    }

    /// Opens a directory in it, following no link.
    pub(super) fn open_subdirectory(&self, name: &OsStr) -> Result<Self, FileError> {
        let path = self.entry_path(name);
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let descriptor = open_beneath(&self.descriptor, name, flags).context("open", &path)?;
        Ok(Self { descriptor, path })
    }

    /// The path of an entry, for messages alone.
    pub(super) fn entry_path(&self, name: &OsStr) -> PathBuf {
        self.path.join(name)
    }

    /// What `name` is, links not followed; `None` where there is nothing.
    pub(super) fn stat_entry(&self, name: &OsStr) -> Result<Option<FileStat>, FileError> {
        match fstatat(&self.descriptor, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::ENOENT) => Ok(None),
            Err(error) => Err(error).context("examine", &self.entry_path(name)),
        }
    }

    /// Removes a name that is no directory; whether there was one.
    pub(super) fn unlink(&self, name: &OsStr) -> Result<bool, FileError> {
        match unlinkat(&self.descriptor, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(error) => Err(error).context("remove", &self.entry_path(name)),
        }
    }

    /// Removes an empty directory in it; whether it was removed. One that is not empty, or mounted over, stays.
    pub(super) fn rmdir_if_empty(&self, name: &OsStr) -> Result<bool, FileError> {
        match unlinkat(&self.descriptor, name, UnlinkatFlags::RemoveDir) {
            Ok(()) => Ok(true),
            Err(Errno::ENOENT | Errno::ENOTEMPTY | Errno::EEXIST | Errno::ENOTDIR | Errno::EBUSY) => {
                Ok(false)
            }
            Err(error) => Err(error).context("remove", &self.entry_path(name)),
        }
    }

    /// Makes its entries durable. Filesystems that cannot sync a directory answer EINVAL (fsync(2)); there is
    /// nothing more to be had from them.
    pub(super) fn sync(&self) -> Result<(), FileError> {
        match fsync(&self.descriptor) {
            Ok(()) | Err(Errno::EINVAL) => Ok(()),
            Err(error) => Err(error).context("sync", &self.path),
        }
    }

    /// Whether nothing is in it.
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

/// A directory that was made for a file, and goes again unless it is kept.
#[derive(Debug)]
pub(super) struct CreatedDirectory {
    parent: Directory,
    name: OsString,
    /// The directory itself.
    pub(super) directory: Directory,
    kept: bool,
}

impl CreatedDirectory {
    /// Makes `name` in `parent`, 0700, owned by `owner`, with the policy's label, its name durable.
    ///
    /// The owner of `parent` can put another directory in its place before it is opened here. It is given away
    /// only while it is ours and empty: such a one he could have removed and made himself.
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
                // Not ours any more, or of no use: an empty one goes, and the first error is the one to tell.
                let _ = parent.rmdir_if_empty(name);
                return Err(error);
            }
        };
        let created = Self { parent, name: name.to_owned(), directory, kept: false };
        created.apply_owner_and_mode(owner)?;
        created.parent.sync()?;
        Ok(created)
    }

    /// Owner, mode and label of a new directory.
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

    /// Keeps the directory; its path.
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
        // An error on the way back has nobody to be told to: the first one is on its way already.
        if same && matches!(self.parent.rmdir_if_empty(&self.name), Ok(true)) {
            let _ = self.parent.sync();
        }
    }
}

/// The file type of a mode.
pub(super) fn file_type(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

/// What an entry is, in words.
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
