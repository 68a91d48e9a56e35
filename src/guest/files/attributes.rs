//! The metadata of a file, copied from the old file to the new one (KP-5.10: mode, owner, ACL and SELinux label).

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::stat::{FileStat, Mode, fchmod, fstat};
use nix::unistd::{Gid, Uid, fchown};
use xattr::FileExt;

use super::error::{Context, FileError};
use super::label;

/// The POSIX ACL of a file, acl(5).
pub(super) const XATTR_POSIX_ACL: &str = "system.posix_acl_access";
/// The SELinux label of a file.
pub(super) const XATTR_SELINUX: &str = "security.selinux";

/// Extended attributes by descriptor, xattr(7). On a filesystem without them, every file has none.
pub(super) struct XattrFile(File);

impl XattrFile {
    /// The attributes of an open file or directory (its descriptor must not be O_PATH).
    pub(super) fn from_fd(descriptor: impl AsFd) -> io::Result<Self> {
        Ok(Self(File::from(descriptor.as_fd().try_clone_to_owned()?)))
    }

    /// An attribute's value; `None` if it is not set.
    pub(super) fn get(&self, name: impl AsRef<OsStr>) -> io::Result<Option<Vec<u8>>> {
        match self.0.get_xattr(name) {
            Err(error) if is_not_supported(&error) => Ok(None),
            answer => answer,
        }
    }

    /// Sets an attribute, unless it already has this value.
    pub(super) fn set(&self, name: impl AsRef<OsStr>, value: &[u8]) -> io::Result<()> {
        if self.get(&name)?.as_deref() == Some(value) {
            return Ok(());
        }
        self.0.set_xattr(name, value)
    }

    /// Removes an attribute, if it is set.
    fn remove_if_present(&self, name: &str) -> io::Result<()> {
        if self.get(name)?.is_some() { self.0.remove_xattr(name) } else { Ok(()) }
    }

    /// The names of the attributes in the `user.` namespace.
    fn list_user_xattrs(&self) -> io::Result<Vec<std::ffi::OsString>> {
        match self.0.list_xattr() {
            Ok(names) => Ok(names.filter(|name| name.as_bytes().starts_with(b"user.")).collect()),
            Err(error) if is_not_supported(&error) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

fn is_not_supported(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32)
}

/// Sets owner and mode. The owner comes first, because chown(2) clears the setuid and setgid bits.
pub(super) fn set_owner_and_mode(
    file: &File,
    owner: (u32, u32),
    mode: u32,
    path: &Path,
) -> Result<(), FileError> {
    let stat = fstat(file).context("examine", path)?;
    if (stat.st_uid, stat.st_gid) != owner {
        fchown(file, Some(Uid::from_raw(owner.0)), Some(Gid::from_raw(owner.1)))
            .context("set the owner of", path)?;
    }
    fchmod(file, Mode::from_bits_truncate(mode & 0o7777)).context("set the mode of", path)
}

/// Copies all metadata of `old` to `new`. `stat` is the fstat(2) result of `old`.
pub(super) fn copy_metadata(old: &File, stat: &FileStat, new: &File, path: &Path) -> Result<(), FileError> {
    set_owner_and_mode(new, (stat.st_uid, stat.st_gid), stat.st_mode, path)?;
    let old = XattrFile::from_fd(old).context("examine", path)?;
    let new = XattrFile::from_fd(new).context("examine", path)?;
    match old.get(XATTR_POSIX_ACL).context("read the ACL of", path)? {
        Some(acl) => new.set(XATTR_POSIX_ACL, &acl).context("set the ACL of", path)?,
        // The directory's default ACL gave the new file an ACL that the old file does not have.
        None => new.remove_if_present(XATTR_POSIX_ACL).context("clear the ACL of", path)?,
    }
    if let Some(label) = old.get(XATTR_SELINUX).context("read the SELinux label of", path)? {
        match new.set(XATTR_SELINUX, &label) {
            // If SELinux is off, a file may still have a label from an earlier kernel. Setting such a label needs
            // CAP_SYS_ADMIN, which the unit does not have. The label has no effect then, and turning SELinux on
            // again needs a relabelling anyway.
            Err(error)
                if error.raw_os_error() == Some(Errno::EPERM as i32) && !label::is_selinux_enabled() => {}
            set => set.context("set the SELinux label of", path)?,
        }
    }
    for name in old.list_user_xattrs().context("list the attributes of", path)? {
        if let Some(value) = old.get(&name).context("read an attribute of", path)? {
            new.set(&name, &value).context("set an attribute of", path)?;
        }
    }
    Ok(())
}
