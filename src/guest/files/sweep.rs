//! Removal of the agent's temporary files that a crash left behind (KP-5.10).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::dir::Dir;
use nix::sys::stat::SFlag;

use super::directory::{Directory, file_type};
use super::error::{Context, FileError};
use super::temporary::is_temporary_name;
use super::walk::{PathWalker, TrustPolicy};

/// Removes the agent's temporary files from a directory of root's (sshd's drop-ins, the state directory), and
/// returns their number. The caller must hold the lock on the state directory. Without it, this would remove a
/// file that another process is about to rename.
pub fn remove_root_dir_temporaries(directory: &Path) -> Result<usize, FileError> {
    let walk = PathWalker::walk_to(TrustPolicy::RootOnly, None, directory)?;
    if !walk.missing.is_empty() {
        return Ok(0);
    }
    remove_temporaries_in(&walk.last()?.open_directory()?, TrustPolicy::RootOnly)
}

/// Removes the agent's temporary files: regular files with a name of the agent's form, whose owner is allowed by
/// `way`. unlinkat(2) follows no link, even if the entry is replaced meanwhile.
pub(super) fn remove_temporaries_in(directory: &Directory, way: TrustPolicy) -> Result<usize, FileError> {
    let mut listing = Dir::from_fd(directory.reopen()?).context("list", &directory.path)?;
    let mut swept = 0;
    for entry in listing.iter() {
        let entry = entry.context("list", &directory.path)?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if !is_temporary_name(name) {
            continue;
        }
        let Some(stat) = directory.stat_entry(name)? else { continue };
        if file_type(&stat) == SFlag::S_IFREG && way.allows_owner(stat.st_uid) && directory.unlink(name)? {
            swept += 1;
        }
    }
    if swept > 0 {
        directory.sync()?;
    }
    Ok(swept)
}
