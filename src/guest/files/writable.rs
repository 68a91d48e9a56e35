//! Whether a file could be replaced now: the kernel is asked, nothing is changed. A command that writes several files is
//! refused before the first one.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::unistd::{AccessFlags, faccessat};
use rustix::fs::{AtFlags as StatxFlags, StatxAttributes, StatxFlags as Wanted, statx};

use crate::policy::observation::Account;
use crate::policy::types::ContentHash;

use super::error::{Context, FileError};
use super::key_file;
use super::replace::Target;
use super::root_file;
use super::walk::Way;

/// Whether [`super::replace_root_file`] could put bytes in the file's place, which has to be what `expected` says. With
/// `follows_link`, a link there is followed.
///
/// # Errors
/// Why it could not.
pub fn root_file_is_writable(
    path: &Path,
    expected: Option<&ContentHash>,
    follows_link: bool,
) -> Result<(), FileError> {
    let (walk, name) = root_file::walk(path, follows_link)?;
    if !walk.missing.is_empty() {
        return Err(root_file::missing(path, expected));
    }
    let directory = walk.last()?.open()?;
    let target =
        Target { directory: &directory, name: &name, way: Way::Root, limit: root_file::ROOT_FILE_LIMIT };
    is_writable(&target, expected)
}

/// The same for the user's authorized_keys file. Where its directory is to be made, that of the one above it.
///
/// # Errors
/// Why it could not be written.
pub fn key_file_is_writable(
    account: &Account,
    path: &Path,
    expected: Option<&ContentHash>,
) -> Result<(), FileError> {
    key_file::with_target(account, path, expected, is_writable, |above| {
        may_write(above).context("create", path)
    })
}

/// Whether a file can be renamed over this one.
fn is_writable(target: &Target<'_>, expected: Option<&ContentHash>) -> Result<(), FileError> {
    let found = target.read_expected(expected)?;
    let path = target.path();
    may_write(target.directory).context("replace", &path)?;
    if let Some((old, _)) = found {
        may_be_replaced(&old.file).context("replace", &path)?;
    }
    Ok(())
}

/// Whether entries of a directory can be made and renamed: it is mounted read-write and bears no flag of chattr(1).
fn may_write(directory: impl AsFd) -> io::Result<()> {
    faccessat(&directory, ".", AccessFlags::W_OK | AccessFlags::X_OK, AtFlags::empty())?;
    refuse_flags(directory, false)
}

/// Whether a file can be renamed over this one: access(2) does not tell of a file that is append-only, or on which
/// something is mounted.
fn may_be_replaced(file: impl AsFd) -> io::Result<()> {
    refuse_flags(file, true)
}

fn refuse_flags(place: impl AsFd, is_file: bool) -> io::Result<()> {
    // Before Linux 4.11, or under a filter of system calls, nobody says: the write will.
    let Ok(said) = statx(place, "", StatxFlags::EMPTY_PATH, Wanted::empty()) else { return Ok(()) };
    if said.stx_attributes.intersects(StatxAttributes::IMMUTABLE | StatxAttributes::APPEND) {
        return Err(Errno::EPERM.into());
    }
    if is_file && said.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Err(Errno::EBUSY.into());
    }
    Ok(())
}
