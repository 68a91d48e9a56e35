//! Files that only root may be able to change: sshd's main file and drop-in (KP-6.12 and KP-6.14), and files that
//! are trusted for that reason (KP-3.40).

use std::ffi::OsString;
use std::path::Path;

use nix::unistd::{getegid, geteuid};

use crate::policy::selinux::Relabel;
use crate::policy::types::ContentHash;

use super::error::FileError;
use super::label::{self, PathLabel};
use super::read::{ensure_responsive, open_regular_file};
use super::replace::{FileTarget, NewFileAttrs, ReplaceOutcome};
use super::walk::{PathWalker, TrustPolicy, check_writers, split_parent_and_name};

/// The maximum size of such a file, in bytes.
pub const MAX_ROOT_FILE_BYTES: usize = 1024 * 1024;

/// Walks to the file's directory. Returns the walk and the file's name in that directory.
pub(super) fn walk_to_root_file(path: &Path, follow_file: bool) -> Result<(PathWalker, OsString), FileError> {
    let (parent, name) = split_parent_and_name(path)?;
    ensure_responsive(path)?;
    let mut walk = PathWalker::walk_to(TrustPolicy::RootOnly, None, parent)?;
    let mut name = name.to_owned();
    if walk.missing.is_empty() {
        if follow_file {
            name = walk.follow_file_links(name)?;
        }
        walk.check_last_writers()?;
    }
    Ok((walk, name))
}

/// Reads a file of root's and follows links; `None` if it does not exist. Returns an error if another user can
/// change the file or the path to it.
pub fn read_root_file(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    let (walk, name) = walk_to_root_file(path, true)?;
    if !walk.missing.is_empty() {
        return Ok(None);
    }
    let directory = walk.last()?.open_directory()?;
    let Some(mut opened) = open_regular_file(&directory, &name)? else { return Ok(None) };
    let path = directory.entry_path(&name);
    if !TrustPolicy::RootOnly.allows_owner(opened.stat.st_uid) {
        return Err(FileError::unsafe_path(
            &path,
            TrustPolicy::RootOnly.describe_wrong_owner(opened.stat.st_uid, &path),
        ));
    }
    check_writers(TrustPolicy::RootOnly, &opened.stat, &path, || Ok(&opened.file))?;
    opened.read_all(MAX_ROOT_FILE_BYTES, &path).map(Some)
}

/// Replaces the content of a file of root's, which must still be the file that was observed (`None`: there was no
/// file). If `path` is a link, the function writes the link's target, provided that only root can change the path.
/// A new file gets `mode_if_new`; an existing file keeps mode, owner, ACL and label. Content that is already there
/// is not written again.
pub fn replace_root_file(
    path: &Path,
    expected: Option<&ContentHash>,
    content: &[u8],
    mode_if_new: u32,
) -> Result<ReplaceOutcome, FileError> {
    let (walk, name) = walk_to_root_file(path, true)?;
    if !walk.missing.is_empty() {
        return Err(missing_parent_error(path, expected));
    }
    let directory = walk.last()?.open_directory()?;
    let label_path = directory.entry_path(&name);
    let owner = (geteuid().as_raw(), getegid().as_raw());
    let fresh = NewFileAttrs { owner, mode: mode_if_new, label_path: &label_path };
    let target = FileTarget {
        directory: &directory,
        name: &name,
        way: TrustPolicy::RootOnly,
        limit: MAX_ROOT_FILE_BYTES,
    };
    let created_file = target.replace(expected, content, &fresh)?;
    Ok(ReplaceOutcome { created_directory: None, created_file })
}

/// The error for a file whose directory does not exist.
pub(super) fn missing_parent_error(path: &Path, expected: Option<&ContentHash>) -> FileError {
    match (expected, path.parent()) {
        (None, Some(parent)) => FileError::MissingDirectory { path: parent.to_owned() },
        _ => FileError::Changed { path: path.to_owned() },
    }
}

/// Removes a file that the agent created among sshd's files, if its content is still `expected`. No error if it is
/// already gone. Links are not followed: the agent's drop-in is never a link.
pub fn remove_root_file(path: &Path, expected: &ContentHash) -> Result<(), FileError> {
    let (walk, name) = walk_to_root_file(path, false)?;
    if !walk.missing.is_empty() {
        return Ok(());
    }
    let directory = walk.last()?.open_directory()?;
    FileTarget { directory: &directory, name: &name, way: TrustPolicy::RootOnly, limit: MAX_ROOT_FILE_BYTES }
        .remove(expected)
}

/// The SELinux labels of the existing components of the path to a file of root's, and of the file.
pub fn read_root_file_labels(path: &Path) -> Result<Vec<PathLabel>, FileError> {
    let (walk, name) = walk_to_root_file(path, true)?;
    let stages = walk
        .traversed()
        .iter()
        .chain(walk.components())
        .map(|stage| label::read_component_label(stage, false));
    let mut found: Vec<PathLabel> = stages.collect::<Result<_, _>>()?;
    if walk.missing.is_empty() {
        let directory = walk.last()?.open_directory()?;
        if let Some(opened) = open_regular_file(&directory, &name)? {
            found.push(label::read_file_label(&opened.file, directory.entry_path(&name))?);
        }
    }
    Ok(found)
}

/// Sets the label of a file of root's.
pub fn relabel_root_file(relabel: &Relabel) -> Result<(), FileError> {
    let Relabel { file, place, was, label } = relabel;
    let (walk, name) = walk_to_root_file(file, true)?;
    let directory = walk.last()?.open_directory()?;
    let is_there = walk.missing.is_empty() && directory.entry_path(&name) == *place;
    let opened = if is_there { open_regular_file(&directory, &name)? } else { None };
    match opened {
        Some(opened) => label::replace_label(&opened.file, place, was.as_ref(), label),
        None => Err(FileError::Changed { path: place.clone() }),
    }
}
