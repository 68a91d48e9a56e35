//! How many descriptors this process may have: each waiting poll is one.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the soft limit to the hard one where it may, and says what it is now: the soft one is low for programs that use
/// select(2), which this one does not (getrlimit(2), `RLIMIT_NOFILE`).
///
/// # Errors
/// Where the system does not say.
pub fn raise_nofile_limit() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft })
}
