//! The limit of file descriptors of this process. Each waiting poll needs one.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the soft limit to the hard limit if possible, and returns the limit that now holds. The default soft limit
/// is low for programs that use select(2), and this program does not (getrlimit(2), `RLIMIT_NOFILE`).
///
/// # Errors
/// The system call that reads the limit fails.
pub fn raise_nofile_limit() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft })
}
