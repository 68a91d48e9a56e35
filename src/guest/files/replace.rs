//! The one way a file's bytes become others: a new file is made beside it, made like it, and renamed over it
//! while it is still the one that was observed (KP-5.9 and KP-5.10).

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use nix::sys::stat::FileStat;

use crate::policy::selinux::LabelledKind;
use crate::policy::types::ContentHash;

use super::attributes::{copy_metadata, set_owner_and_mode};
use super::directory::Directory;
use super::error::FileError;
use super::label;
use super::read::{OpenFile, open_regular_file};
use super::temporary::TemporaryFile;
use super::walk::TrustPolicy;

/// What a replacement made besides the bytes: what a command created is removed again when it is undone
/// (KP-7.4).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReplaceOutcome {
    /// The directory that did not exist before.
    pub created_directory: Option<PathBuf>,
    /// Whether the file did not exist before.
    pub created_file: bool,
}

/// A file by its directory and name, and who may own it.
pub(super) struct FileTarget<'a> {
    /// The directory.
    pub(super) directory: &'a Directory,
    /// The name in it.
    pub(super) name: &'a OsStr,
    /// Who may own the file.
    pub(super) way: TrustPolicy,
    /// How much of it is read.
    pub(super) limit: usize,
}

/// Owner and mode of a file that does not exist yet.
pub(super) struct NewFileAttrs<'a> {
    /// User and group.
    pub(super) owner: (u32, u32),
    /// Permission bits.
    pub(super) mode: u32,
    /// The path whose SELinux label it gets.
    pub(super) label_path: &'a Path,
}

impl FileTarget<'_> {
    pub(super) fn path(&self) -> PathBuf {
        self.directory.entry_path(self.name)
    }

    /// The file and its bytes, if it may stand there: regular, under one name, its owner one of those who may
    /// own it.
    pub(super) fn read(&self) -> Result<Option<(OpenFile, Vec<u8>)>, FileError> {
        let Some(mut opened) = open_regular_file(self.directory, self.name)? else { return Ok(None) };
        let path = self.path();
        if opened.stat.st_nlink > 1 {
            let why = format!(
                "has {} names (hard links), so writing it would write another file; copy it, then rename the copy \
                 over it",
                opened.stat.st_nlink
            );
            return Err(FileError::unsafe_path(&path, why));
        }
        if !self.way.allows_owner(opened.stat.st_uid) {
            return Err(FileError::unsafe_path(
                &path,
                self.way.describe_wrong_owner(opened.stat.st_uid, &path),
            ));
        }
        let content = opened.read_all(self.limit, &path)?;
        Ok(Some((opened, content)))
    }

    /// The file as it is expected, or the answer that it is another.
    pub(super) fn read_expected(
        &self,
        expected: Option<&ContentHash>,
    ) -> Result<Option<(OpenFile, Vec<u8>)>, FileError> {
        let found = self.read()?;
        if found.as_ref().map(|(_, content)| ContentHash::from_content(content)).as_ref() != expected {
            return Err(FileError::Changed { path: self.path() });
        }
        Ok(found)
    }

    /// Puts `content` in the file's place; whether it is a new file. On an error before the rename the old file
    /// is untouched; a directory that cannot be synced after it leaves the new bytes there (a new file goes).
    pub(super) fn replace(
        &self,
        expected: Option<&ContentHash>,
        content: &[u8],
        fresh: &NewFileAttrs<'_>,
    ) -> Result<bool, FileError> {
        match self.prepare(expected, content, fresh)? {
            Some(prepared) => prepared.commit(expected),
            None => Ok(false),
        }
    }

    /// The new file, all but its name; `None` where the old one has this content already.
    pub(super) fn prepare(
        &self,
        expected: Option<&ContentHash>,
        content: &[u8],
        fresh: &NewFileAttrs<'_>,
    ) -> Result<Option<PreparedReplacement<'_>>, FileError> {
        let old = self.read_expected(expected)?;
        if old.as_ref().is_some_and(|(_, bytes)| bytes == content) {
            return Ok(None);
        }
        let path = self.path();
        let mut temporary = TemporaryFile::create(self.directory)?;
        temporary.write(content, self.name)?;
        match &old {
            Some((old, _)) => copy_metadata(&old.file, &old.stat, &temporary.file, &path)?,
            None => {
                set_owner_and_mode(&temporary.file, fresh.owner, fresh.mode, &path)?;
                label::apply_default_label(&temporary.file, fresh.label_path, LabelledKind::File);
            }
        }
        temporary.sync(self.name)?;
        Ok(Some(PreparedReplacement { target: self, old: old.map(|(opened, _)| opened.stat), temporary }))
    }

    /// Removes the file if it is still as expected; one that is gone already is no error.
    pub(super) fn remove(&self, expected: &ContentHash) -> Result<(), FileError> {
        if open_regular_file(self.directory, self.name)?.is_none() {
            return Ok(());
        }
        self.read_expected(Some(expected))?;
        self.directory.unlink(self.name)?;
        self.directory.sync()
    }
}

/// A new file that is on the disk and has not its name yet.
pub(super) struct PreparedReplacement<'a> {
    target: &'a FileTarget<'a>,
    old: Option<FileStat>,
    temporary: TemporaryFile<'a>,
}

impl PreparedReplacement<'_> {
    /// Renames it over the old file, if that is still the one it was made from; whether there was none.
    pub(super) fn commit(self, expected: Option<&ContentHash>) -> Result<bool, FileError> {
        let now = self.target.read_expected(expected)?;
        if let (Some(old), Some((now, _))) = (&self.old, &now)
            && !is_unchanged(old, &now.stat)
        {
            return Err(FileError::Changed { path: self.target.path() });
        }
        self.temporary.rename(self.target.name, self.old.is_some())?;
        Ok(self.old.is_none())
    }
}

/// Whether nothing was done to a file between two looks: a new inode with the same bytes, another mode, owner,
/// ACL or label (they all set ctime) is a change too.
fn is_unchanged(before: &FileStat, after: &FileStat) -> bool {
    (before.st_dev, before.st_ino) == (after.st_dev, after.st_ino)
        && (before.st_mode, before.st_uid, before.st_gid) == (after.st_mode, after.st_uid, after.st_gid)
        && (before.st_ctime, before.st_ctime_nsec) == (after.st_ctime, after.st_ctime_nsec)
}
