//! The view that the running service has of the file system. Its unit mounts most of the file system read-only
//! (`ProtectSystem=strict`, systemd.exec(5)), and a person at the console does not see that.

use std::path::{Path, PathBuf};

use nix::sys::statvfs::{FsFlags, statvfs};

use super::files::ensure_responsive;

/// The directory of `file`, or its nearest parent that exists, if the process `pid` may not write there but this
/// process may. `None` also if this cannot be determined.
pub fn find_dir_read_only_for(pid: u32, file: &Path) -> Option<PathBuf> {
    ensure_responsive(file).ok()?;
    let directory = file.parent()?.ancestors().find(|directory| directory.is_dir())?;
    let read_only = |seen: &Path| statvfs(seen).map(|stat| stat.flags().contains(FsFlags::ST_RDONLY)).ok();
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    let there = root.join(directory.strip_prefix("/").ok()?);
    (read_only(&there)? && !read_only(directory)?).then(|| directory.to_owned())
}
