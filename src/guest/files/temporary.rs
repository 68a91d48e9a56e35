//! A temporary file for new content: in the same directory, under a random name, and removed on any error.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::hash::{BuildHasher, Hasher};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::{Mode, fstat};
use rustix::fs::{RenameFlags, renameat_with};

use super::directory::Directory;
use super::error::{Context, FileError};

/// A hidden name that does not end in `.conf`, so that `Include *.conf` of sshd does not match it (tested).
const TEMP_NAME_PREFIX: &str = ".keypair-agent-";
const TEMP_NAME_SUFFIX: &str = ".tmp";
const TEMP_NAME_HEX_DIGITS: usize = 16;

/// Whether `name` has the form of the agent's temporary names.
pub(super) fn is_temporary_name(name: &OsStr) -> bool {
    let random = name
        .as_bytes()
        .strip_prefix(TEMP_NAME_PREFIX.as_bytes())
        .and_then(|rest| rest.strip_suffix(TEMP_NAME_SUFFIX.as_bytes()));
    random.is_some_and(|random| {
        random.len() == TEMP_NAME_HEX_DIGITS
            && random.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// A name that cannot be guessed: the keys of the standard hasher come from the system's random source.
fn generate_temporary_name() -> OsString {
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    OsString::from(format!(
        "{TEMP_NAME_PREFIX}{random:0width$x}{TEMP_NAME_SUFFIX}",
        width = TEMP_NAME_HEX_DIGITS
    ))
}

/// A file that is being written. If it is dropped before the rename, it is unlinked.
pub(super) struct TemporaryFile<'a> {
    directory: &'a Directory,
    name: OsString,
    /// The file, open for writing.
    pub(super) file: File,
    renamed: bool,
}

impl<'a> TemporaryFile<'a> {
    /// Creates an empty file, owned by this process's user, that did not exist before. The mode is 0600 before the
    /// umask.
    pub(super) fn create(directory: &'a Directory) -> Result<Self, FileError> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        loop {
            let name = generate_temporary_name();
            match openat(directory, name.as_os_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR) {
                Ok(descriptor) => {
                    return Ok(Self { directory, name, file: File::from(descriptor), renamed: false });
                }
                Err(Errno::EEXIST | Errno::EINTR) => {}
                Err(error) => return Err(error).context("create a file in", &directory.path),
            }
        }
    }

    /// Writes all of `content`. A full disk causes an error here.
    pub(super) fn write(&mut self, content: &[u8], target: &OsStr) -> Result<(), FileError> {
        self.file.write_all(content).context("write", &self.directory.entry_path(target))
    }

    /// Makes content and attributes durable.
    pub(super) fn sync(&self, target: &OsStr) -> Result<(), FileError> {
        self.file.sync_all().context("sync", &self.directory.entry_path(target))
    }

    /// Renames the file to `target` and syncs the directory. If `replaces` is false, `target` must not exist.
    pub(super) fn rename(mut self, target: &OsStr, replaces: bool) -> Result<(), FileError> {
        let path = self.directory.entry_path(target);
        let ours = fstat(&self.file).context("examine", &path)?;
        if replaces {
            renameat(self.directory, self.name.as_os_str(), self.directory, target)
                .context("replace", &path)?;
        } else {
            self.rename_no_replace(target)?;
        }
        self.renamed = true;
        // The directory's owner may have put another file under the random name. In that case the rename moved
        // that file.
        let there = self.directory.stat_entry(target)?;
        if there.is_none_or(|there| (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)) {
            return Err(FileError::Changed { path });
        }
        self.directory.sync().inspect_err(|_| {
            if !replaces {
                // After an error, do not leave a file that did not exist before.
                let _ = self.directory.unlink(target);
            }
        })
    }

    /// rename(2) that does not replace an existing file.
    fn rename_no_replace(&self, target: &OsStr) -> Result<(), FileError> {
        let path = self.directory.entry_path(target);
        // Use the system call directly: the C library has a function for it only since 2.28.
        let flags = RenameFlags::NOREPLACE;
        match renameat_with(self.directory, self.name.as_os_str(), self.directory, target, flags)
            .map_err(|error| Errno::from_raw(error.raw_os_error()))
        {
            Ok(()) => return Ok(()),
            Err(Errno::EEXIST) => return Err(FileError::Changed { path }),
            // This kernel or filesystem does not support the flag.
            Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => {}
            Err(error) => return Err(error).context("create", &path),
        }
        if self.directory.stat_entry(target)?.is_some() {
            return Err(FileError::Changed { path });
        }
        renameat(self.directory, self.name.as_os_str(), self.directory, target).context("create", &path)
    }
}

impl Drop for TemporaryFile<'_> {
    fn drop(&mut self) {
        // A file that cannot be removed stays until the next sweep. The sync keeps a removed file from reappearing
        // after a power failure. No sweep would look for it then, because the command already has its result.
        if !self.renamed && matches!(self.directory.unlink(&self.name), Ok(true)) {
            let _ = self.directory.sync();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_names_are_recognized_and_others_are_not() {
        assert!(is_temporary_name(&generate_temporary_name()));
        assert_ne!(generate_temporary_name(), generate_temporary_name());
        for other in [
            ".keypair-agent-.tmp",
            "keypair-agent-0123456789abcdef.tmp",
            ".keypair-agent-0123456789ABCDEF.tmp",
        ] {
            assert!(!is_temporary_name(OsStr::new(other)), "{other}");
        }
    }
}
