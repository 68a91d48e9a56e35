//! Reads regular files, without blocking and up to a size limit.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, stat};

use super::super::scout;
use super::beneath::open_beneath;
use super::directory::{Directory, describe_file_type, file_type};
use super::error::{Context, FileError};

/// These flags open a FIFO or device without waiting, in case it replaces the file before open(2).
const READ_FLAGS: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_NONBLOCK).union(OFlag::O_NOCTTY).union(OFlag::O_CLOEXEC);

/// A regular file that is open for reading, and its fstat(2) result.
#[derive(Debug)]
pub(super) struct OpenFile {
    /// The file.
    pub(super) file: File,
    /// Owner, mode, inode.
    pub(super) stat: FileStat,
}

/// Opens `name` in a directory and follows no link; `None` if there is no such entry.
pub(super) fn open_regular_file(directory: &Directory, name: &OsStr) -> Result<Option<OpenFile>, FileError> {
    let path = directory.entry_path(name);
    // Check the type before opening: opening a device can have side effects.
    let Some(there) = directory.stat_entry(name)? else { return Ok(None) };
    check_regular_file(&there, &path)?;
    let file = match open_beneath(directory, name, READ_FLAGS) {
        Ok(descriptor) => File::from(descriptor),
        Err(Errno::ENOENT) => return Ok(None),
        Err(error) => return Err(error).context("open", &path),
    };
    verify_opened(file, &path).map(Some)
}

/// Checks the opened file, which may differ from the entry that was checked before.
fn verify_opened(file: File, path: &Path) -> Result<OpenFile, FileError> {
    let stat = fstat(&file).context("examine", path)?;
    check_regular_file(&stat, path)?;
    Ok(OpenFile { file, stat })
}

fn check_regular_file(stat: &FileStat, path: &Path) -> Result<(), FileError> {
    if file_type(stat) == SFlag::S_IFREG {
        return Ok(());
    }
    let why = format!("{}, where a regular file belongs; remove it", describe_file_type(stat));
    Err(FileError::unsafe_path(path, why))
}

impl OpenFile {
    /// Reads all its bytes from the beginning.
    pub(super) fn read_all(&mut self, limit: usize, path: &Path) -> Result<Vec<u8>, FileError> {
        // Allocate once: growing the buffer would hold the bytes twice.
        let size = usize::try_from(self.stat.st_size).unwrap_or_default().min(limit);
        let mut content = Vec::with_capacity(size.saturating_add(1));
        // Reading one more byte than the limit detects a file that is too large.
        let one_more = (limit as u64).saturating_add(1);
        (&mut self.file).take(one_more).read_to_end(&mut content).context("read", path)?;
        if content.len() > limit {
            return Err(FileError::TooLarge { path: path.to_owned(), limit });
        }
        Ok(content)
    }
}

/// Checks that a path responds; see [`scout`].
///
/// # Errors
/// [`FileError::Io`], with the mount that does not respond.
pub(in crate::guest) fn ensure_responsive(path: &Path) -> Result<(), FileError> {
    scout::check_responsive(path).context("reach", path)
}

/// The path with links resolved, realpath(3); `None` if it does not exist or does not respond.
pub(in crate::guest) fn canonicalize_path(path: &Path) -> Option<PathBuf> {
    ensure_responsive(path).ok().and_then(|()| std::fs::canonicalize(path).ok())
}

/// The device and inode of the file at a path, with links followed, stat(2).
///
/// # Errors
/// The system's error, or that the path does not respond.
pub(in crate::guest) fn device_and_inode(path: &Path) -> io::Result<(u64, u64)> {
    scout::check_responsive(path)?;
    std::fs::metadata(path).map(|file| (file.dev(), file.ino()))
}

/// Reads a system file as sshd would: links are followed. `None` if the file does not exist; that includes a
/// dangling link. The call always returns: an entry that is not a regular file is an error, and so is a path that
/// never responds ([`FileError::Io`]).
pub fn read_file(path: &Path, limit: usize) -> Result<Option<Vec<u8>>, FileError> {
    ensure_responsive(path)?;
    match stat(path) {
        Ok(stat) => check_regular_file(&stat, path)?,
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(None),
        Err(error) => return Err(error).context("examine", path),
    }
    let file = match open(path, READ_FLAGS, Mode::empty()) {
        Ok(descriptor) => File::from(descriptor),
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(None),
        Err(error) => return Err(error).context("open", path),
    };
    verify_opened(file, path)?.read_all(limit, path).map(Some)
}
