//! Opens a name in an open directory and follows no link. Uses openat2(2) if the kernel has it (Linux 5.6) and the
//! sandbox allows it, else openat(2).

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::stat::Mode;

/// What the kernel refuses in addition to a link at the name itself: a link on the path, a magic link of /proc, a
/// step upwards.
const RESOLVE_NO_LINKS: ResolveFlag = ResolveFlag::RESOLVE_BENEATH
    .union(ResolveFlag::RESOLVE_NO_SYMLINKS)
    .union(ResolveFlag::RESOLVE_NO_MAGICLINKS);

/// Opens `name`, which must be one component. If it is a link, the error is ELOOP; with O_PATH the link itself is
/// opened.
pub(super) fn open_beneath(directory: impl AsFd, name: &OsStr, flags: OFlag) -> nix::Result<OwnedFd> {
    let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    loop {
        let opened = if has_openat2() {
            openat2(&directory, name, OpenHow::new().flags(flags).resolve(RESOLVE_NO_LINKS))
        } else {
            openat(&directory, name, flags, Mode::empty())
        };
        match opened {
            Err(Errno::EINTR) => {}
            answer => return answer,
        }
    }
}

/// Tested once per process: a running kernel does not gain the call, and a filter of system calls (seccomp(2))
/// cannot be removed.
fn has_openat2() -> bool {
    static IS_SUPPORTED: OnceLock<bool> = OnceLock::new();
    *IS_SUPPORTED.get_or_init(|| {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = Path::new("/");
        let asked = open(root, flags, Mode::empty())
            .and_then(|root| openat2(root, ".", OpenHow::new().flags(flags).resolve(RESOLVE_NO_LINKS)));
        !matches!(asked, Err(Errno::ENOSYS | Errno::EPERM))
    })
}
