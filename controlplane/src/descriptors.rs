//! How many descriptors this process may have: each waiting poll is one.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the soft limit to the hard one, and says what it is: the soft one is low for programs that use select(2), which
/// this one does not (getrlimit(2), `RLIMIT_NOFILE`).
///
/// # Errors
/// Where the system refuses.
pub fn raise_limit() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}
