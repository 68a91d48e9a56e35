//! Shows planned files at their own paths in a mount namespace. The private sshd sees them; processes outside of
//! the namespace do not.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use super::namespace::Namespaces;
use crate::guest::accounts;
use crate::policy::trial::PlannedKeyFile;

/// The maximum number of entries of a directory that are mounted in its copy beside a new file.
const MAX_COPIED_ENTRIES: usize = 4096;

/// The extended attribute with a file's access control list: acl(5).
const XATTR_POSIX_ACL: &str = "system.posix_acl_access";

/// Creates the planned files and mounts them.
pub(super) struct PlannedFiles<'a> {
    /// The private directory for the planned files.
    pub(super) directory: &'a Path,
    /// The namespaces in which they are mounted.
    pub(super) namespaces: &'a Namespaces,
    /// The number of files created. The name of the latest file is this number.
    pub(super) count: usize,
}

impl PlannedFiles<'_> {
    /// Shows a key file with its planned content. An existing file keeps owner, mode and ACL. A new file has mode
    /// 0600 and is owned by the user. A new directory for it has mode 0700 and is owned by the user.
    ///
    /// # Errors
    /// Why the file cannot be shown.
    pub(super) fn mount_key_file(&mut self, planned: &PlannedKeyFile) -> io::Result<()> {
        match fs::metadata(&planned.path) {
            Ok(_) => self.mount_content(&planned.path, &planned.content),
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.mount_new_key_file(planned),
            Err(error) => Err(error),
        }
    }

    /// Shows other content at the path of an existing file.
    ///
    /// # Errors
    /// Why the content cannot be shown.
    pub(super) fn mount_content(&mut self, path: &Path, content: &[u8]) -> io::Result<()> {
        let metadata = fs::metadata(path)?;
        let copy = self.write_private_file(content)?;
        copy_attributes(path, &metadata, &copy)?;
        self.namespaces.bind_mount(&copy, path)
    }

    /// A mount cannot add an entry to a directory. So this mounts a copy of the directory that has the new entry.
    fn mount_new_key_file(&mut self, planned: &PlannedKeyFile) -> io::Result<()> {
        let account = accounts::lookup_account(&planned.user).map_err(io::Error::other)?;
        let account = account.ok_or_else(|| io::Error::other("the user of the key file does not exist"))?;
        let missing = || io::Error::other("no directory on the way to the key file exists");
        let mut existing = planned.path.parent().ok_or_else(missing)?;
        let mut below: Vec<&OsStr> = Vec::new();
        while !existing.is_dir() {
            below.push(existing.file_name().ok_or_else(missing)?);
            existing = existing.parent().ok_or_else(missing)?;
        }
        if fs::canonicalize(existing)?.parent().is_none() {
            return Err(io::Error::other("nothing can stand in the place of the root directory"));
        }
        let copy = self.copy_directory(existing)?;
        let mut directory = copy.clone();
        for name in below.into_iter().rev() {
            directory.push(name);
            DirBuilder::new().mode(0o700).create(&directory)?;
            chown(&directory, Some(account.uid), Some(account.gid))?;
        }
        let file = directory.join(planned.path.file_name().ok_or_else(missing)?);
        write_new_file(&file, &planned.content)?;
        chown(&file, Some(account.uid), Some(account.gid))?;
        self.namespaces.bind_mount_recursive(&copy, existing)
    }

    /// Creates a copy of a directory with the same owner, mode and entries.
    fn copy_directory(&mut self, original: &Path) -> io::Result<PathBuf> {
        let copy = self.next_path();
        DirBuilder::new().mode(0o700).create(&copy)?;
        for (count, entry) in fs::read_dir(original)?.enumerate() {
            if count >= MAX_COPIED_ENTRIES {
                let text = format!("{} has more than {MAX_COPIED_ENTRIES} entries", original.display());
                return Err(io::Error::other(text));
            }
            let entry = entry?;
            let (from, to) = (entry.path(), copy.join(entry.file_name()));
            let kind = entry.file_type()?;
            if kind.is_symlink() {
                symlink(fs::read_link(&from)?, &to)?;
            } else {
                match kind.is_dir() {
                    true => DirBuilder::new().create(&to)?,
                    false => write_new_file(&to, b"")?,
                }
                match self.namespaces.bind_mount_recursive(&from, &to) {
                    // The entry was removed while the directory was listed.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    shown => shown?,
                }
            }
        }
        let metadata = fs::metadata(original)?;
        copy_attributes(original, &metadata, &copy)?;
        Ok(copy)
    }

    /// Creates a private file with this content.
    pub(super) fn write_private_file(&mut self, content: &[u8]) -> io::Result<PathBuf> {
        let path = self.next_path();
        write_new_file(&path, content)?;
        Ok(path)
    }

    fn next_path(&mut self) -> PathBuf {
        self.count += 1;
        self.directory.join(format!("{}", self.count))
    }
}

fn write_new_file(path: &Path, content: &[u8]) -> io::Result<()> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(content)
}

/// Copies owner, mode and ACL of the original, so that sshd checks the copy as it will check the real file.
fn copy_attributes(original: &Path, metadata: &fs::Metadata, copy: &Path) -> io::Result<()> {
    chown(copy, Some(metadata.uid()), Some(metadata.gid()))?;
    fs::set_permissions(copy, Permissions::from_mode(metadata.permissions().mode() & 0o7777))?;
    match xattr::get(original, OsStr::from_bytes(XATTR_POSIX_ACL.as_bytes())) {
        Ok(Some(acl)) => xattr::set(copy, XATTR_POSIX_ACL, &acl),
        Ok(None) => Ok(()),
        Err(error) if error.raw_os_error() == Some(nix::libc::EOPNOTSUPP) => Ok(()),
        Err(error) => Err(error),
    }
}
