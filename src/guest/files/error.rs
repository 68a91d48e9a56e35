//! The error of a file operation: its path, its cause and the remedy.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::geteuid;

use crate::policy::foreign::sanitize_path;

/// Why a file cannot be read or replaced. The `Display` text is one line: path, cause, remedy.
#[derive(Debug)]
pub enum FileError {
    /// A component of the path, or the entry at the file's name, could be used to attack root (KP-5.12:
    /// `UNSAFE_PATH`).
    Unsafe {
        /// The component.
        path: PathBuf,
        /// What is wrong with it, and the remedy.
        why: String,
    },
    /// The file differs from the one that the agent observed. The caller needs a new plan.
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// Because of its own unit's sandbox, the agent sees another file than sshd, or cannot write what root can
    /// write.
    Hidden {
        /// The file.
        path: PathBuf,
        /// The mount that covers it, and the remedy.
        why: String,
    },
    /// The directory does not exist.
    MissingDirectory {
        /// The directory.
        path: PathBuf,
    },
    /// The file is larger than the read limit.
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit, in bytes.
        limit: usize,
    },
    /// A system call failed (KP-7.9: `IO_ERROR` with errno and path).
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The attempted action, as a verb: "cannot `action` `path`".
        action: &'static str,
        /// The system's error, with its errno.
        source: io::Error,
    },
}

impl FileError {
    /// Creates [`FileError::Unsafe`] for `path`.
    pub(super) fn unsafe_path(path: &Path, why: impl Into<String>) -> Self {
        Self::Unsafe { path: path.to_owned(), why: why.into() }
    }

    /// The path that the error is about.
    pub fn path(&self) -> &Path {
        match self {
            Self::Unsafe { path, .. }
            | Self::Hidden { path, .. }
            | Self::Changed { path }
            | Self::MissingDirectory { path }
            | Self::TooLarge { path, .. }
            | Self::Io { path, .. } => path,
        }
    }
}

/// Adds the path and the attempted action to a system error.
pub(super) trait Context<T> {
    /// Converts an error into [`FileError::Io`] with `action` and `path`.
    fn context(self, action: &'static str, path: &Path) -> Result<T, FileError>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, action: &'static str, path: &Path) -> Result<T, FileError> {
        self.map_err(|error| FileError::Io { path: path.to_owned(), action, source: error.into() })
    }
}

impl fmt::Display for FileError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsafe { path, why } | Self::Hidden { path, why } => {
                write!(out, "{}: {why}", display_path(path))
            }
            Self::Changed { path } => {
                write!(out, "{}: it was changed by someone else meanwhile; try again", display_path(path))
            }
            Self::MissingDirectory { path } => {
                write!(
                    out,
                    "{}: no such directory; create it, or correct the configuration",
                    display_path(path)
                )
            }
            Self::TooLarge { path, limit } => {
                write!(
                    out,
                    "{}: larger than {}; take out what it does not need",
                    display_path(path),
                    format_size(*limit)
                )
            }
            Self::Io { path, action, source } => {
                write!(out, "cannot {action} {}: {source}", display_path(path))?;
                match suggest_remedy(source, geteuid().is_root()) {
                    Some(remedy) => write!(out, "; {remedy}"),
                    None => Ok(()),
                }
            }
        }
    }
}

impl std::error::Error for FileError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// The remedy for a system error, if the agent knows one.
fn suggest_remedy(error: &io::Error, is_root: bool) -> Option<&'static str> {
    let remedy = match Errno::from_raw(error.raw_os_error()?) {
        Errno::EACCES if is_root => {
            "root is refused here, as on a root-squashed NFS export or by a security module: export it with \
             no_root_squash or put the file on a local disk"
        }
        Errno::EPERM if is_root => {
            "root is refused here: take an immutable flag off (lsattr, chattr -i); on a root-squashed NFS export, \
             export it with no_root_squash or put the file on a local disk"
        }
        Errno::EACCES | Errno::EPERM => "run it as root",
        Errno::ENOSPC => "free some space on this disk",
        Errno::EDQUOT => "raise the owner's disk quota or free some of it",
        Errno::EROFS => {
            "mount it read-write; where the service alone sees it read-only, name its directory in a line \
             `ReadWritePaths=` below [Service] (systemctl edit keypair-agent)"
        }
        Errno::EBUSY => "something is mounted on it: unmount that, or mount its directory instead",
        Errno::EIO => "the disk has errors: see the kernel's log",
        Errno::ENXIO | Errno::ELOOP => "put a regular file in its place",
        _ => return None,
    };
    Some(remedy)
}

/// A path as text on one line, shortened if it is too long.
pub(super) fn display_path(path: &Path) -> String {
    sanitize_path(path)
}

/// A size limit as text.
fn format_size(bytes: usize) -> String {
    const MEBIBYTE: usize = 1024 * 1024;
    match bytes {
        bytes if bytes >= MEBIBYTE && bytes % MEBIBYTE == 0 => format!("{} MiB", bytes / MEBIBYTE),
        bytes if bytes >= 1024 && bytes % 1024 == 0 => format!("{} KiB", bytes / 1024),
        bytes => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn error_text_is_one_line_with_path_cause_and_remedy() {
        let error = FileError::TooLarge { path: "/a\nb".into(), limit: 16 << 20 };
        assert_eq!(error.to_string(), "/a\\nb: larger than 16 MiB; take out what it does not need");
        let full: Result<(), _> = Err(Errno::ENOSPC);
        let text = full.context("write", Path::new("/a")).unwrap_err().to_string();
        assert!(text.starts_with("cannot write /a: No space left on device (os error 28); free"), "{text}");
    }

    #[test]
    fn permission_error_as_root_mentions_nfs() {
        for errno in [Errno::EACCES, Errno::EPERM] {
            let error = io::Error::from(errno);
            assert!(suggest_remedy(&error, true).is_some_and(|text| text.contains("root-squashed NFS")));
            assert_eq!(suggest_remedy(&error, false), Some("run it as root"));
        }
    }
}
