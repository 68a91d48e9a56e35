//! SELinux labels on the path to a file, read and set by descriptor (KP-5.13).
//!
//! A new file inherits its directory's label, which is already right in a home with correct labels. If
//! `matchpathcon` is installed, the agent asks it for the label of the policy. If it is not installed or gives no
//! answer, the inherited label stays. restorecon(8) would set the same label by path, but the owner of a home can
//! redirect that path meanwhile.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::SFlag;

use super::super::selinux;
use super::attributes::{XATTR_SELINUX, XattrFile};
use super::directory::file_type;
use super::error::{Context, FileError};
use super::walk::PathComponent;
use crate::policy::selinux::{Enforcement, Label, LabelledKind};

/// A component of the path to a file, or the file, with its label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathLabel {
    /// Its path, links resolved.
    pub path: PathBuf,
    /// Its type.
    pub kind: LabelledKind,
    /// Whether it is the user's home, something below it, or the file itself.
    pub is_owners: bool,
    /// Its label.
    pub label: Option<Label>,
}

/// Whether this kernel runs SELinux, selinux(8).
pub(super) fn is_selinux_enabled() -> bool {
    selinux::read_enforcement() != Enforcement::Absent
}

/// Sets the label that the SELinux policy has for `path` on a new file or directory. Does nothing if the policy
/// has none.
pub(super) fn apply_default_label(descriptor: impl AsFd, path: &Path, kind: LabelledKind) {
    if !is_selinux_enabled() {
        return;
    }
    let Some(label) = selinux::lookup_file_context(path, kind) else { return };
    if let Ok(file) = XattrFile::from_fd(descriptor) {
        // Not fatal: the inherited label stays.
        let _ = set_label(&file, &label);
    }
}

/// The label of an open file or directory.
fn read_label(file: &XattrFile, path: &Path) -> Result<Option<Label>, FileError> {
    let bytes = file.get(XATTR_SELINUX).context("read the SELinux label of", path)?;
    Ok(bytes.as_deref().and_then(Label::parse))
}

/// The label of a component of a walk. The walk holds only an O_PATH descriptor, so the attribute is read through
/// the descriptor's path in /proc.
pub(super) fn read_component_label(stage: &PathComponent, is_owners: bool) -> Result<PathLabel, FileError> {
    let kind = match file_type(&stage.stat) {
        SFlag::S_IFLNK => LabelledKind::Link,
        _ => LabelledKind::Directory,
    };
    let bytes = match xattr::get_deref(stage.proc_fd_path(), XATTR_SELINUX) {
        Err(error) if error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => None,
        bytes => bytes.context("read the SELinux label of", &stage.path)?,
    };
    let label = bytes.as_deref().and_then(Label::parse);
    Ok(PathLabel { path: stage.path.clone(), kind, is_owners, label })
}

/// The label of the file at the end of the path.
pub(super) fn read_file_label(file: impl AsFd, path: PathBuf) -> Result<PathLabel, FileError> {
    let file = XattrFile::from_fd(file).context("examine", &path)?;
    let label = read_label(&file, &path)?;
    Ok(PathLabel { path, kind: LabelledKind::File, is_owners: true, label })
}

/// Sets a label if the current label is still `was`; otherwise returns [`FileError::Changed`].
pub(super) fn replace_label(
    descriptor: impl AsFd,
    path: &Path,
    was: Option<&Label>,
    label: &Label,
) -> Result<(), FileError> {
    let file = XattrFile::from_fd(descriptor).context("examine", path)?;
    let now = read_label(&file, path)?;
    if now.as_ref() == Some(label) {
        return Ok(());
    }
    if now.as_ref() != was {
        return Err(FileError::Changed { path: path.to_owned() });
    }
    set_label(&file, label)
        .or_else(|error| match &now {
            // The policy may forbid this domain to change the user part of a label. Then set only the type, as
            // restorecon(8) does.
            Some(now) if is_permission_denied(&error) => set_label(&file, &now.with_type_of(label)),
            _ => Err(error),
        })
        .context("set the SELinux label of", path)
}

fn set_label(file: &XattrFile, label: &Label) -> io::Result<()> {
    file.set(XATTR_SELINUX, &[label.as_str().as_bytes(), b"\0"].concat())
}

fn is_permission_denied(error: &io::Error) -> bool {
    [Errno::EACCES, Errno::EPERM].iter().any(|errno| error.raw_os_error() == Some(*errno as i32))
}
