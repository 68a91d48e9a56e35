//! The only way in which the agent changes a file's content. It creates a new file in the same directory, copies
//! the metadata, and renames it over the old one. The rename happens only if the old file is still the one that
//! was observed (KP-5.9 and KP-5.10).

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

/// What a replacement created. An undo of the command removes it again (KP-7.4).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReplaceOutcome {
    /// The directory that was created, if any.
    pub created_directory: Option<PathBuf>,
    /// Whether the file was created.
    pub created_file: bool,
}

/// A file, given by its directory and name, and the rule for its owner.
pub(super) struct FileTarget<'a> {
    /// The directory.
    pub(super) directory: &'a Directory,
    /// The name in it.
    pub(super) name: &'a OsStr,
    /// Who may own the file.
    pub(super) way: TrustPolicy,
    /// The read limit, in bytes.
    pub(super) limit: usize,
}

/// Owner, mode and label of a file that does not exist yet.
pub(super) struct NewFileAttrs<'a> {
    /// User and group.
    pub(super) owner: (u32, u32),
    /// Permission bits.
    pub(super) mode: u32,
    /// The path for which the SELinux policy is asked for the label.
    pub(super) label_path: &'a Path,
}

impl FileTarget<'_> {
    pub(super) fn path(&self) -> PathBuf {
        self.directory.entry_path(self.name)
    }

    /// The open file and its content; `None` if there is no file. The file must be regular, have one hard link and
    /// have an allowed owner.
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

    /// Same as [`FileTarget::read`], but returns [`FileError::Changed`] if the content is not the expected one.
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

    /// Replaces the file's content. Returns true if the file was created. On an error before the rename, the old
    /// file is unchanged. If the sync of the directory after the rename fails, the new content stays, but a newly
    /// created file is removed.
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

    /// Writes the new file under its temporary name; `None` if the old file already has this content.
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

    /// Removes the file if it still has the expected content. No error if the file is already gone.
    pub(super) fn remove(&self, expected: &ContentHash) -> Result<(), FileError> {
        if open_regular_file(self.directory, self.name)?.is_none() {
            return Ok(());
        }
        self.read_expected(Some(expected))?;
        self.directory.unlink(self.name)?;
        self.directory.sync()
    }
}

/// A new file that is on the disk under its temporary name.
pub(super) struct PreparedReplacement<'a> {
    target: &'a FileTarget<'a>,
    old: Option<FileStat>,
    temporary: TemporaryFile<'a>,
}

impl PreparedReplacement<'_> {
    /// Renames it over the old file, if the old file is still the one that `prepare` read. Returns true if there
    /// was no old file.
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

/// Whether a file is unchanged between two stat(2) calls. A new inode with the same bytes is a change. So is
/// another mode, owner, ACL or label, all of which set ctime.
fn is_unchanged(before: &FileStat, after: &FileStat) -> bool {
    (before.st_dev, before.st_ino) == (after.st_dev, after.st_ino)
        && (before.st_mode, before.st_uid, before.st_gid) == (after.st_mode, after.st_uid, after.st_gid)
        && (before.st_ctime, before.st_ctime_nsec) == (after.st_ctime, after.st_ctime_nsec)
}
