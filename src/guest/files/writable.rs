//! Checks whether a file could be replaced now, without a change. So a command that writes several files can fail
//! before it writes the first one.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::unistd::{AccessFlags, faccessat};
use rustix::fs::{AtFlags as StatxFlags, StatxAttributes, StatxFlags as ResolvedOrder, statx};

use crate::policy::observation::Account;
use crate::policy::types::ContentHash;

use super::error::{Context, FileError};
use super::key_file;
use super::replace::FileTarget;
use super::root_file;
use super::walk::TrustPolicy;

/// Whether [`super::replace_root_file`] could write the file, whose content must match `expected`. If
/// `follows_link` is true, a link at `path` is followed.
///
/// # Errors
/// Why the file could not be written.
pub fn check_root_file_writable(
    path: &Path,
    expected: Option<&ContentHash>,
    follows_link: bool,
) -> Result<(), FileError> {
    let (walk, name) = root_file::walk_to_root_file(path, follows_link)?;
    if !walk.missing.is_empty() {
        return Err(root_file::missing_parent_error(path, expected));
    }
    let directory = walk.last()?.open_directory()?;
    let target = FileTarget {
        directory: &directory,
        name: &name,
        way: TrustPolicy::RootOnly,
        limit: root_file::MAX_ROOT_FILE_BYTES,
    };
    check_target_writable(&target, expected)
}

/// Same as [`check_root_file_writable`], for the user's authorized_keys file. If its directory would have to be
/// created, the check is for the parent of that directory.
///
/// # Errors
/// Why the file could not be written.
pub fn check_key_file_writable(
    account: &Account,
    path: &Path,
    expected: Option<&ContentHash>,
) -> Result<(), FileError> {
    key_file::with_key_file_target(account, path, expected, check_target_writable, |above| {
        check_directory_writable(above).context("create", path)
    })
}

/// Whether a file can be renamed over this target.
fn check_target_writable(target: &FileTarget<'_>, expected: Option<&ContentHash>) -> Result<(), FileError> {
    let found = target.read_expected(expected)?;
    let path = target.path();
    check_directory_writable(target.directory).context("replace", &path)?;
    if let Some((old, _)) = found {
        check_replaceable(&old.file).context("replace", &path)?;
    }
    Ok(())
}

/// Whether entries of a directory can be created and renamed: it is mounted read-write, and no flag of chattr(1)
/// forbids it.
fn check_directory_writable(directory: impl AsFd) -> io::Result<()> {
    faccessat(&directory, ".", AccessFlags::W_OK | AccessFlags::X_OK, AtFlags::empty())?;
    check_inode_flags(directory, false)
}

/// Whether a file can be renamed over this one. access(2) does not detect an append-only file or a mount point.
fn check_replaceable(file: impl AsFd) -> io::Result<()> {
    check_inode_flags(file, true)
}

fn check_inode_flags(place: impl AsFd, is_file: bool) -> io::Result<()> {
    // Before Linux 4.11, or under a filter of system calls, statx(2) is not available. Then only the write itself
    // shows the error.
    let Ok(said) = statx(place, "", StatxFlags::EMPTY_PATH, ResolvedOrder::empty()) else { return Ok(()) };
    if said.stx_attributes.intersects(StatxAttributes::IMMUTABLE | StatxAttributes::APPEND) {
        return Err(Errno::EPERM.into());
    }
    if is_file && said.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Err(Errno::EBUSY.into());
    }
    Ok(())
}
