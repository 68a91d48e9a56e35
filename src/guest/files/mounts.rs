//! Mount points, read from mountinfo (proc_pid_mountinfo(5)): which mount a directory is on, and whether a path is
//! a mount point.

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use super::super::scout::MountIdentity;
use super::read::{canonicalize_path, ensure_responsive, read_file};

const MOUNTINFO_PATH: &str = "/proc/self/mountinfo";
const MAX_MOUNTINFO_BYTES: usize = 16 * 1024 * 1024;
const MAX_FDINFO_BYTES: usize = 64 * 1024;

/// The file system type that an automounter mounts in place of a volume that is not mounted yet.
const AUTOFS_TYPE: &str = "autofs";

/// A line of mountinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
struct MountInfoEntry {
    id: u64,
    parent: u64,
    device: String,
    /// The directory of the file system that is mounted.
    root: PathBuf,
    /// The mount point.
    point: PathBuf,
    /// Whether this mount is read-only.
    is_read_only: bool,
    kind: String,
}

/// All mounts of a process's mount namespace, in the order in which they were mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::guest) struct MountTable(Vec<MountInfoEntry>);

/// The view of a path in this process, compared with the view of another process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathView {
    /// Both processes see the same file.
    Same,
    /// This process sees another file, or none. The value is this process's mount point for the path.
    Hidden(PathBuf),
    /// Only this process cannot write the file. The value is this process's mount point for the path.
    ReadOnly(PathBuf),
}

/// Compares the view of a path here with the view of the process `pid`. `None` if that process has another root
/// directory, or if the comparison is not possible.
pub fn compare_view_with_process(path: &Path, pid: i32) -> Option<PathView> {
    let own = MountTable::read()?;
    let table = PathBuf::from(format!("/proc/{pid}/mountinfo"));
    let other = MountTable::parse(&read_file(&table, MAX_MOUNTINFO_BYTES).ok()??);
    let root = Path::new("/");
    if own.locate_on_device(root)? != other.locate_on_device(root)? {
        return None;
    }
    // Resolve the part of the path that exists: the path may end at a mount that covers the rest.
    let resolved = path
        .ancestors()
        .find_map(|above| Some(join_path(&canonicalize_path(above)?, path.strip_prefix(above).ok()?)));
    Some(own.compare_view(&other, &resolved?))
}

impl MountTable {
    /// The current table; `None` if it cannot be read.
    pub(in crate::guest) fn read() -> Option<Self> {
        Some(Self::parse(&read_file(Path::new(MOUNTINFO_PATH), MAX_MOUNTINFO_BYTES).ok()??))
    }

    fn parse(content: &[u8]) -> Self {
        Self(content.split(|byte| *byte == b'\n').filter_map(parse_mountinfo_line).collect())
    }

    fn find_by_id(&self, id: u64) -> Option<&MountInfoEntry> {
        self.0.iter().find(|mount| mount.id == id)
    }

    /// The mount that a directory is on. `path` must contain no links.
    fn find_by_fd(&self, directory: impl AsFd, path: &Path) -> Option<&MountInfoEntry> {
        match read_mount_id(directory) {
            Some(id) => self.find_by_id(id),
            // fdinfo has no `mnt_id` before Linux 3.15.
            None => self.find_by_path(path),
        }
    }

    /// The mount that a path without links is on, in the order of path_resolution(7).
    fn find_by_path(&self, path: &Path) -> Option<&MountInfoEntry> {
        let is_first = |mount: &&MountInfoEntry| {
            self.find_by_id(mount.parent).is_none_or(|parent| parent.id == mount.id)
        };
        let mut mount = self.0.iter().find(|mount| mount.point == Path::new("/") && is_first(mount))?;
        for _ in &self.0 {
            let above = self.0.iter().filter(|next| {
                next.parent == mount.id && next.id != mount.id && path.starts_with(&next.point)
            });
            match above.min_by_key(|next| next.point.components().count()) {
                Some(next) => mount = next,
                None => break,
            }
        }
        Some(mount)
    }

    /// The device and the path inside its file system for a path without links.
    fn locate_on_device<'a>(&'a self, path: &Path) -> Option<(&'a str, PathBuf)> {
        let mount = self.find_by_path(path)?;
        Some((&mount.device, join_path(&mount.root, path.strip_prefix(&mount.point).ok()?)))
    }

    /// Compares the view of a path in this table with the view in `other`.
    fn compare_view(&self, other: &Self, path: &Path) -> PathView {
        let (Some(here), Some(there)) = (self.find_by_path(path), other.find_by_path(path)) else {
            return PathView::Same;
        };
        if self.locate_on_device(path) != other.locate_on_device(path) {
            PathView::Hidden(here.point.clone())
        } else if here.is_read_only && !there.is_read_only {
            PathView::ReadOnly(here.point.clone())
        } else {
            PathView::Same
        }
    }

    /// The mount that a path without links is on.
    pub(in crate::guest) fn identify_mount(&self, path: &Path) -> Option<MountIdentity> {
        let MountInfoEntry { point, device, kind, .. } = self.find_by_path(path)?;
        let point = point.as_os_str().as_bytes().to_vec();
        Some(MountIdentity { point, device: device.clone(), kind: kind.clone() })
    }

    /// Follows self-bind mounts up to a mount that changes the visible files. A directory that is bind-mounted on
    /// itself, as systemd does for `ReadWritePaths`, shows the same files as without the mount.
    fn resolve_self_bind<'a>(&'a self, mut mount: &'a MountInfoEntry) -> &'a MountInfoEntry {
        // At most as many steps as there are mounts: the table may have changed while it was read.
        for _ in &self.0 {
            let Some(parent) = self.find_by_id(mount.parent).filter(|parent| parent.id != mount.id) else {
                break;
            };
            let is_itself = parent.device == mount.device
                && mount
                    .point
                    .strip_prefix(&parent.point)
                    .is_ok_and(|below| join_path(&parent.root, below) == mount.root);
            if !is_itself {
                break;
            }
            mount = parent;
        }
        mount
    }
}

/// Joins two paths, without a slash at the end if `below` is empty.
fn join_path(root: &Path, below: &Path) -> PathBuf {
    if below.as_os_str().is_empty() { root.to_owned() } else { root.join(below) }
}

/// `36 35 98:0 /root /point options optional... - type source super`.
fn parse_mountinfo_line(line: &[u8]) -> Option<MountInfoEntry> {
    let mut fields = line.split(|byte| *byte == b' ');
    let mut text = || fields.next().map(|field| String::from_utf8_lossy(field).into_owned());
    let (id, parent, device) = (text()?.parse().ok()?, text()?.parse().ok()?, text()?);
    let (root, point) = (unescape_octal(fields.next()?), unescape_octal(fields.next()?));
    let is_read_only = fields.next()?.split(|byte| *byte == b',').any(|option| option == b"ro");
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    Some(MountInfoEntry {
        id,
        parent,
        device,
        root,
        point,
        is_read_only,
        kind: String::from_utf8_lossy(kind).into_owned(),
    })
}

/// Decodes the octal escapes of blanks, newlines and backslashes.
fn unescape_octal(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        match rest {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', behind @ ..] => {
                bytes.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
                rest = behind;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// The id of the mount of a descriptor; `None` before Linux 3.15.
fn read_mount_id(descriptor: impl AsFd) -> Option<u64> {
    let path = format!("/proc/self/fdinfo/{}", descriptor.as_fd().as_raw_fd());
    let content = read_file(Path::new(&path), MAX_FDINFO_BYTES).ok()??;
    let text = String::from_utf8_lossy(&content);
    text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok())
}

/// The mount point of the file system that a directory is on; `None` if it cannot be determined.
pub(super) fn find_mount_point(directory: impl AsFd, path: &Path) -> Option<PathBuf> {
    let mounts = MountTable::read()?;
    let mount = mounts.resolve_self_bind(mounts.find_by_fd(directory, path)?);
    Some(mount.point.clone())
}

/// Whether a volume is mounted at `point` and can be reached. This call triggers an automount. A mount that does
/// not respond counts as mounted: the next read of a file there returns the error.
pub fn is_mounted(point: &Path) -> bool {
    if ensure_responsive(point).is_err() {
        return true;
    }
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let Ok(place) = open(point, flags, Mode::empty()) else { return false };
    let Some(mounts) = MountTable::read() else { return false };
    mounts.find_by_fd(&place, point).is_some_and(|mount| mount.point == point && mount.kind != AUTOFS_TYPE)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const MOUNTINFO_SAMPLE: &[u8] = b"20 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
        21 20 8:1 /home /home rw shared:1 master:2 - ext4 /dev/sda1 rw\n\
        22 21 8:1 /srv/u /home/u rw - ext4 /dev/sda1 rw\n\
        23 22 0:40 / /home/u/a\\040b\\134 rw - tmpfs none rw\n\
        24 20 0:41 / /auto rw - autofs systemd-1 rw\n\
        25 24 8:2 / /auto rw - ext4 /dev/sda2 rw\n\
        broken\n";

    fn sample_mounts() -> MountTable {
        MountTable::parse(MOUNTINFO_SAMPLE)
    }

    #[test]
    fn self_bind_mount_hides_nothing() {
        let mounts = sample_mounts();
        let of = |id| mounts.resolve_self_bind(mounts.find_by_id(id).unwrap()).point.clone();
        assert_eq!([of(20), of(21), of(22), of(25)], ["/", "/", "/home/u", "/auto"].map(PathBuf::from));
        assert_eq!(of(23), PathBuf::from("/home/u/a b\\"));
    }

    #[test]
    fn sandbox_mounts_are_reported_hidden_or_read_only() {
        let inner = b"20 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
            30 20 8:1 / / ro - ext4 /dev/sda1 rw\n\
            31 30 8:1 /home /home rw - ext4 /dev/sda1 rw\n\
            32 31 8:1 /srv/u /home/u rw - ext4 /dev/sda1 rw\n\
            33 30 0:9 /systemd/inaccessible/dir /root ro - tmpfs tmpfs rw\n";
        let (own, other) = (MountTable::parse(inner), sample_mounts());
        let seen = |path: &str| own.compare_view(&other, Path::new(path));
        assert_eq!(seen("/root/.ssh/authorized_keys"), PathView::Hidden("/root".into()));
        assert_eq!(seen("/home/u/.ssh/k"), PathView::Same);
        assert_eq!(seen("/home/v/.ssh/k"), PathView::Same);
        assert_eq!(seen("/etc/ssh/sshd_config"), PathView::ReadOnly("/".into()));
        assert_eq!(seen("/auto/u/k"), PathView::Hidden("/".into()));
        assert_eq!(other.compare_view(&own, Path::new("/etc/ssh/sshd_config")), PathView::Same);
    }

    #[test]
    fn mount_lookup_by_path_takes_deepest_and_last() {
        let mounts = sample_mounts();
        let kind = |path: &str| {
            let above = mounts.0.iter().filter(|mount| Path::new(path).starts_with(&mount.point));
            above.max_by_key(|mount| mount.point.components().count()).map(|mount| mount.kind.clone())
        };
        assert_eq!(kind("/auto/u").as_deref(), Some("ext4"));
        assert_eq!(kind("/home/u/a b\\/x").as_deref(), Some("tmpfs"));
        assert_eq!(kind("/homely").as_deref(), Some("ext4"));
    }

    #[test]
    fn mount_point_of_proc_is_found() {
        let proc = std::fs::File::open("/proc").unwrap();
        assert_eq!(find_mount_point(&proc, Path::new("/proc")), Some("/proc".into()));
        assert!(is_mounted(Path::new("/proc")) && !is_mounted(Path::new("/proc/self/fd")));
        assert!(!is_mounted(Path::new("/nowhere")));
    }
}
