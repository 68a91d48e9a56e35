//! A directory that belongs only to the agent: owner root and mode 0700, even if it was created with another owner
//! or mode. Another user who can open the directory could hold a lock on it.

use std::path::Path;

use nix::dir::{Dir, Type};
use nix::sys::stat::{Mode, fchmod, fstat};
use nix::unistd::{fchown, getegid, geteuid};

use super::directory::Directory;
use super::error::{Context, FileError};
use super::walk::{PathWalker, TrustPolicy};

/// The directory that mkfs(8) creates at the top of a volume.
const LOST_AND_FOUND: &str = "lost+found";

/// Sets owner and mode of the directory at `path`, before its owner is checked. It does so only if no one but root
/// can have created the directory. If `path` is a link, does not exist, or is in a directory that other users can
/// change, nothing happens here. The code that opens the directory checks it later.
pub(super) fn take_ownership(path: &Path) -> Result<(), FileError> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let Ok(walk) = PathWalker::walk_to(TrustPolicy::RootOnly, None, parent) else { return Ok(()) };
    if !walk.missing.is_empty() || walk.check_last_writers().is_err() {
        return Ok(());
    }
    match walk.last()?.open_directory()?.open_subdirectory(name) {
        Ok(directory) => enforce_owner_and_mode(&directory),
        Err(_) => Ok(()),
    }
}

/// Sets owner and mode if they differ. A directory with subdirectories of other programs (`/run`, `/var/lib`)
/// stays as it is: the agent's files in it do not depend on its mode.
pub(super) fn enforce_owner_and_mode(directory: &Directory) -> Result<(), FileError> {
    let stat = fstat(directory).context("examine", &directory.path)?;
    let (user, group) = (geteuid(), getegid());
    let is_own = stat.st_uid == user.as_raw();
    if is_own && stat.st_mode & 0o7777 == Mode::S_IRWXU.bits() || has_subdirectories(directory)? {
        return Ok(());
    }
    if !is_own {
        fchown(directory, Some(user), Some(group)).context("set the owner of", &directory.path)?;
    }
    fchmod(directory, Mode::S_IRWXU).context("set the mode of", &directory.path)
}

fn has_subdirectories(directory: &Directory) -> Result<bool, FileError> {
    let mut listing = Dir::from_fd(directory.reopen()?).context("list", &directory.path)?;
    for entry in listing.iter() {
        let entry = entry.context("list", &directory.path)?;
        let is_usual = [".", "..", LOST_AND_FOUND].map(str::as_bytes).contains(&entry.file_name().to_bytes());
        if !is_usual && entry.file_type() == Some(Type::Directory) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

    fn read_mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn own_directory_mode_and_owner_are_fixed_unless_shared() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        let own = folder.path().join("own");
        fs::create_dir(&own).unwrap();
        fs::create_dir(own.join(LOST_AND_FOUND)).unwrap();
        for open_to_others in [0o755, 0o777, 0o1770, 0o2750] {
            fs::set_permissions(&own, Permissions::from_mode(open_to_others)).unwrap();
            take_ownership(&own).unwrap();
            assert_eq!(read_mode(&own), 0o700, "{open_to_others:o}");
        }
        if geteuid().is_root() {
            chown(&own, Some(65534), Some(65534)).unwrap();
            take_ownership(&own).unwrap();
            let owner = fs::metadata(&own).unwrap();
            assert_eq!((owner.uid(), owner.gid()), (0, 0));
        }
        fs::create_dir(own.join("of-others")).unwrap();
        fs::set_permissions(&own, Permissions::from_mode(0o755)).unwrap();
        take_ownership(&own).unwrap();
        assert_eq!(read_mode(&own), 0o755);
        take_ownership(&folder.path().join("missing")).unwrap();
        take_ownership(&folder.path().join("missing/below")).unwrap();
    }

    #[test]
    fn own_directory_behind_symlink_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (there, link) = (folder.path().join("there"), folder.path().join("link"));
        fs::create_dir(&there).unwrap();
        fs::set_permissions(&there, Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::symlink(&there, &link).unwrap();
        take_ownership(&link).unwrap();
        assert_eq!(read_mode(&there), 0o755);
    }
}
