//! What the running service sees of the file system: its unit mounts most of it read-only (`ProtectSystem=strict`,
//! systemd.exec(5)), which nobody at the console notices.

use std::path::{Path, PathBuf};

use nix::sys::statvfs::{FsFlags, statvfs};

use super::files::ensure_responsive;

/// The directory of `file`, or of its nearest parent that exists, where the process `pid` may not write there and this one
/// may. `None` also where it cannot be told.
pub fn find_dir_read_only_for(pid: u32, file: &Path) -> Option<PathBuf> {
    ensure_responsive(file).ok()?;
    let directory = file.parent()?.ancestors().find(|directory| directory.is_dir())?;
    let read_only = |seen: &Path| statvfs(seen).map(|stat| stat.flags().contains(FsFlags::ST_RDONLY)).ok();
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    let there = root.join(directory.strip_prefix("/").ok()?);
    (read_only(&there)? && !read_only(directory)?).then(|| directory.to_owned())
}
