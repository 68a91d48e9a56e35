//! SELinux labels on the way to a file, read and set by descriptor (KP-5.13).
//!
//! A file that is created inherits its directory's label, which in a well-labelled home is the right one already. Where
//! `matchpathcon` is installed the policy itself is asked; where it is not, or does not answer, the inherited label stays.
//! restorecon(8) would set the same label by path, which the owner of a home can turn elsewhere meanwhile.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::SFlag;

use super::super::selinux;
use super::attributes::{SELINUX, XattrFile};
use super::directory::file_type;
use super::error::{Context, FileError};
use super::walk::Stage;
use crate::policy::selinux::{Enforcement, Label, PlaceKind};

/// Something on the way to a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labelled {
    /// Its path, links resolved.
    pub path: PathBuf,
    /// What it is.
    pub kind: PlaceKind,
    /// Whether it is the user's home, below it, or the file itself.
    pub is_owners: bool,
    /// Its label.
    pub label: Option<Label>,
}

/// Whether this kernel runs SELinux, selinux(8).
pub(super) fn selinux_runs() -> bool {
    selinux::enforcement() != Enforcement::Absent
}

/// Gives a new file or directory the label the policy has for `path`, where it has one.
pub(super) fn apply_policy(descriptor: impl AsFd, path: &Path, kind: PlaceKind) {
    if !selinux_runs() {
        return;
    }
    let Some(label) = selinux::named(path, kind) else { return };
    if let Ok(file) = XattrFile::of(descriptor) {
        // Not fatal: the inherited label stays.
        let _ = set(&file, &label);
    }
}

/// The label of what is open here.
fn label_of(file: &XattrFile, path: &Path) -> Result<Option<Label>, FileError> {
    let bytes = file.get(SELINUX).context("read the SELinux label of", path)?;
    Ok(bytes.as_deref().and_then(Label::parse))
}

/// What a walk came through. Nothing but a place is held of it, which is enough to go through.
pub(super) fn of_stage(stage: &Stage, is_owners: bool) -> Result<Labelled, FileError> {
    let kind = match file_type(&stage.stat) {
        SFlag::S_IFLNK => PlaceKind::Link,
        _ => PlaceKind::Directory,
    };
    let bytes = match xattr::get_deref(stage.in_proc(), SELINUX) {
        Err(error) if error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => None,
        bytes => bytes.context("read the SELinux label of", &stage.path)?,
    };
    let label = bytes.as_deref().and_then(Label::parse);
    Ok(Labelled { path: stage.path.clone(), kind, is_owners, label })
}

/// The file at its end.
pub(super) fn of_file(file: impl AsFd, path: PathBuf) -> Result<Labelled, FileError> {
    let file = XattrFile::of(file).context("examine", &path)?;
    let label = label_of(&file, &path)?;
    Ok(Labelled { path, kind: PlaceKind::File, is_owners: true, label })
}

/// Sets a label where the one that was seen still stands.
pub(super) fn replace(
    descriptor: impl AsFd,
    path: &Path,
    was: Option<&Label>,
    label: &Label,
) -> Result<(), FileError> {
    let file = XattrFile::of(descriptor).context("examine", path)?;
    let now = label_of(&file, path)?;
    if now.as_ref() == Some(label) {
        return Ok(());
    }
    if now.as_ref() != was {
        return Err(FileError::Changed { path: path.to_owned() });
    }
    set(&file, label)
        .or_else(|error| match &now {
            // A policy may keep this domain from changing the user of a label: then the type alone, as restorecon(8).
            Some(now) if refused(&error) => set(&file, &now.with_type_of(label)),
            _ => Err(error),
        })
        .context("set the SELinux label of", path)
}

fn set(file: &XattrFile, label: &Label) -> io::Result<()> {
    file.set(SELINUX, &[label.as_str().as_bytes(), b"\0"].concat())
}

fn refused(error: &io::Error) -> bool {
    [Errno::EACCES, Errno::EPERM].iter().any(|errno| error.raw_os_error() == Some(*errno as i32))
}
