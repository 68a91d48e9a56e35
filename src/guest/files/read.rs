//! Reading: regular files alone, never blocking, never more than a limit.

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
use super::directory::{Directory, file_type, kind_in_words};
use super::error::{Context, FileError};

/// A FIFO or device that comes in between is opened without waiting for it, open(2).
const READ: OFlag = OFlag::O_RDONLY.union(OFlag::O_NONBLOCK).union(OFlag::O_NOCTTY).union(OFlag::O_CLOEXEC);

/// A regular file that is open for reading, and what fstat(2) said.
#[derive(Debug)]
pub(super) struct Opened {
    /// The file.
    pub(super) file: File,
    /// Owner, mode, inode.
    pub(super) stat: FileStat,
}

/// Opens `name` in a directory, following no link; `None` where there is nothing.
pub(super) fn open_in(directory: &Directory, name: &OsStr) -> Result<Option<Opened>, FileError> {
    let path = directory.entry(name);
    // Looked at before it is opened: opening a device can do something to it.
    let Some(there) = directory.look(name)? else { return Ok(None) };
    refuse_irregular(&there, &path)?;
    let file = match open_beneath(directory, name, READ) {
        Ok(descriptor) => File::from(descriptor),
        Err(Errno::ENOENT) => return Ok(None),
        Err(error) => return Err(error).context("open", &path),
    };
    opened(file, &path).map(Some)
}

/// Judges what was opened, which need not be what was looked at.
fn opened(file: File, path: &Path) -> Result<Opened, FileError> {
    let stat = fstat(&file).context("examine", path)?;
    refuse_irregular(&stat, path)?;
    Ok(Opened { file, stat })
}

fn refuse_irregular(stat: &FileStat, path: &Path) -> Result<(), FileError> {
    if file_type(stat) == SFlag::S_IFREG {
        return Ok(());
    }
    let why = format!("{}, where a regular file belongs; remove it", kind_in_words(stat));
    Err(FileError::unsafe_path(path, why))
}

impl Opened {
    /// All its bytes, from the beginning.
    pub(super) fn read(&mut self, limit: usize, path: &Path) -> Result<Vec<u8>, FileError> {
        // In one piece: growing would hold the bytes twice.
        let size = usize::try_from(self.stat.st_size).unwrap_or_default().min(limit);
        let mut content = Vec::with_capacity(size.saturating_add(1));
        // One more byte than is allowed tells a file that is too large from one that just fits.
        let one_more = (limit as u64).saturating_add(1);
        (&mut self.file).take(one_more).read_to_end(&mut content).context("read", path)?;
        if content.len() > limit {
            return Err(FileError::TooLarge { path: path.to_owned(), limit });
        }
        Ok(content)
    }
}

/// Sees to it that a path answers: see [`scout`].
///
/// # Errors
/// [`FileError::Io`], which names the mount that does not.
pub(in crate::guest) fn reach(path: &Path) -> Result<(), FileError> {
    scout::reach(path).context("reach", path)
}

/// A path without links, realpath(3); `None` where nothing is there, or it does not answer.
pub(in crate::guest) fn resolved(path: &Path) -> Option<PathBuf> {
    reach(path).ok().and_then(|()| std::fs::canonicalize(path).ok())
}

/// Which file stands at a path, links followed: device and inode, stat(2).
///
/// # Errors
/// The system's; that it does not answer.
pub(in crate::guest) fn identity(path: &Path) -> io::Result<(u64, u64)> {
    scout::reach(path)?;
    std::fs::metadata(path).map(|file| (file.dev(), file.ino()))
}

/// Reads a file of the system, as sshd would: links are followed. `None` where there is no such file (a link
/// that leads nowhere is none either). Whatever stands there, the call returns: what is no regular file is
/// refused, and what never answers is [`FileError::Io`].
pub fn read_file(path: &Path, limit: usize) -> Result<Option<Vec<u8>>, FileError> {
    reach(path)?;
    match stat(path) {
        Ok(stat) => refuse_irregular(&stat, path)?,
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(None),
        Err(error) => return Err(error).context("examine", path),
    }
    let file = match open(path, READ, Mode::empty()) {
        Ok(descriptor) => File::from(descriptor),
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(None),
        Err(error) => return Err(error).context("open", path),
    };
    opened(file, path)?.read(limit, path).map(Some)
}
