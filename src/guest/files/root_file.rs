//! Files that root alone may be able to change: sshd's main file and drop-in (KP-6.12 and KP-6.14), and what is
//! trusted because of it (KP-3.40).

use std::ffi::OsString;
use std::path::Path;

use nix::unistd::{getegid, geteuid};

use crate::policy::selinux::Relabel;
use crate::policy::types::ContentHash;

use super::error::FileError;
use super::label::{self, Labelled};
use super::read::{open_in, reach};
use super::replace::{Fresh, Replaced, Target};
use super::walk::{Walk, Way, judge_writers, split};

/// How much of such a file is read.
pub const ROOT_FILE_LIMIT: usize = 1024 * 1024;

/// The walk to the file's directory, and the file's name in it.
pub(super) fn walk(path: &Path, follow_file: bool) -> Result<(Walk, OsString), FileError> {
    let (parent, name) = split(path)?;
    reach(path)?;
    let mut walk = Walk::to_directory(Way::Root, None, parent)?;
    let mut name = name.to_owned();
    if walk.missing.is_empty() {
        if follow_file {
            name = walk.follow_file(name)?;
        }
        walk.judge_last()?;
    }
    Ok((walk, name))
}

/// Reads a file of root's, links followed; `None` where there is none. It is refused where somebody else can change it,
/// or the way to it.
pub fn read_root_file(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    let (walk, name) = walk(path, true)?;
    if !walk.missing.is_empty() {
        return Ok(None);
    }
    let directory = walk.last()?.open()?;
    let Some(mut opened) = open_in(&directory, &name)? else { return Ok(None) };
    let path = directory.entry(&name);
    if !Way::Root.may_own(opened.stat.st_uid) {
        return Err(FileError::unsafe_path(&path, Way::Root.owner_remedy(opened.stat.st_uid, &path)));
    }
    judge_writers(Way::Root, &opened.stat, &path, || Ok(&opened.file))?;
    opened.read(ROOT_FILE_LIMIT, &path).map(Some)
}

/// Puts `content` in the place of a file of root's, which has to be the one that was observed (`None`: there was
/// none). A link there is followed, and written at its target, if root alone can change the way. A new file gets
/// `mode_if_new`, an old one keeps mode, owner, ACL and label. Content that is there already is not written.
pub fn replace_root_file(
    path: &Path,
    expected: Option<&ContentHash>,
    content: &[u8],
    mode_if_new: u32,
) -> Result<Replaced, FileError> {
    let (walk, name) = walk(path, true)?;
    if !walk.missing.is_empty() {
        return Err(missing(path, expected));
    }
    let directory = walk.last()?.open()?;
    let label_path = directory.entry(&name);
    let owner = (geteuid().as_raw(), getegid().as_raw());
    let fresh = Fresh { owner, mode: mode_if_new, label_path: &label_path };
    let target = Target { directory: &directory, name: &name, way: Way::Root, limit: ROOT_FILE_LIMIT };
    let created_file = target.replace(expected, content, &fresh)?;
    Ok(Replaced { created_directory: None, created_file })
}

/// What it means that the file's directory does not exist.
pub(super) fn missing(path: &Path, expected: Option<&ContentHash>) -> FileError {
    match (expected, path.parent()) {
        (None, Some(parent)) => FileError::Missing { path: parent.to_owned() },
        _ => FileError::Changed { path: path.to_owned() },
    }
}

/// Removes a file of ours among sshd's if it still is `expected`; one that is gone already is no error. No link
/// is followed: a drop-in of ours is none.
pub fn remove_root_file(path: &Path, expected: &ContentHash) -> Result<(), FileError> {
    let (walk, name) = walk(path, false)?;
    if !walk.missing.is_empty() {
        return Ok(());
    }
    let directory = walk.last()?.open()?;
    Target { directory: &directory, name: &name, way: Way::Root, limit: ROOT_FILE_LIMIT }.remove(expected)
}

/// The SELinux labels of what exists on the way to a file of root's.
pub fn labels_to_root_file(path: &Path) -> Result<Vec<Labelled>, FileError> {
    let (walk, name) = walk(path, true)?;
    let stages = walk.passed().iter().chain(walk.stages()).map(|stage| label::of_stage(stage, false));
    let mut found: Vec<Labelled> = stages.collect::<Result<_, _>>()?;
    if walk.missing.is_empty() {
        let directory = walk.last()?.open()?;
        if let Some(opened) = open_in(&directory, &name)? {
            found.push(label::of_file(&opened.file, directory.entry(&name))?);
        }
    }
    Ok(found)
}

/// Sets the label of a file of root's.
pub fn relabel_root_file(relabel: &Relabel) -> Result<(), FileError> {
    let Relabel { file, place, was, label } = relabel;
    let (walk, name) = walk(file, true)?;
    let directory = walk.last()?.open()?;
    let is_there = walk.missing.is_empty() && directory.entry(&name) == *place;
    let opened = if is_there { open_in(&directory, &name)? } else { None };
    match opened {
        Some(opened) => label::replace(&opened.file, place, was.as_ref(), label),
        None => Err(FileError::Changed { path: place.clone() }),
    }
}
