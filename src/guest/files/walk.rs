//! The walk from `/` down to a file's directory. It opens one descriptor per component and checks each component
//! before it trusts it.
//!
//! There are two kinds of path. On the path to the user's file (KP-5.11 and KP-5.12), root or the user owns every
//! directory, and none is world-writable. The walk follows a link there only if root owns it, and only down to the
//! home, never below. It recognizes the home by device and inode, not by the text of the path. On the path to
//! sshd's files and the state directory (KP-6.14), only root may be able to change a component.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::unistd::{getegid, geteuid};

use super::attributes::{XATTR_POSIX_ACL, XattrFile};
use super::beneath::open_beneath;
use super::directory::{Directory, describe_file_type, file_type};
use super::error::{Context, FileError, display_path};
use super::mounts::find_mount_point;

/// The kernel follows the same number of links, path_resolution(7).
const MAX_SYMLINKS: u32 = 40;

const GROUP_WRITE: u32 = 0o020;
const WORLD_WRITE: u32 = 0o002;
const STICKY: u32 = 0o1000;

/// Who may own and change the components of a path.
#[derive(Debug, Clone, Copy)]
pub(super) enum TrustPolicy {
    /// Root and this user may own components (KP-5.12).
    OwnedByUserOrRoot(u32),
    /// Only root may own components (KP-6.14).
    RootOnly,
}

/// Whether `uid` is root or the effective user of this process, which may be another user than root.
pub(super) fn is_root_or_current_user(uid: u32) -> bool {
    uid == 0 || uid == geteuid().as_raw()
}

impl TrustPolicy {
    /// Whether this user may own a directory or file on the path.
    pub(super) fn allows_owner(self, uid: u32) -> bool {
        match self {
            Self::OwnedByUserOrRoot(user) => uid == user || is_root_or_current_user(uid),
            Self::RootOnly => is_root_or_current_user(uid),
        }
    }

    /// Text for a component with a wrong owner: the allowed owners and the remedy.
    pub(super) fn describe_wrong_owner(self, uid: u32, path: &Path) -> String {
        let path = display_path(path);
        match self {
            Self::OwnedByUserOrRoot(_) => {
                format!(
                    "owned by uid {uid}, who is neither root nor the user; check it, then `chown root {path}`"
                )
            }
            Self::RootOnly => format!("owned by uid {uid}, not by root; check it, then `chown root {path}`"),
        }
    }
}

/// A directory, identified by device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DirectoryId {
    /// The device.
    pub(super) device: u64,
    /// The inode.
    pub(super) inode: u64,
}

impl DirectoryId {
    /// The identity of a directory from its stat(2) result.
    pub(super) fn from_stat(stat: &FileStat) -> Self {
        Self { device: stat.st_dev, inode: stat.st_ino }
    }

    /// The identity of the directory at `path`. It follows links, and an automount is mounted by this call. `None`
    /// if there is no such directory.
    pub(super) fn from_path(path: &Path) -> Result<Option<Self>, FileError> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        match open(path, flags, Mode::empty()) {
            Ok(place) => Ok(Some(Self::from_stat(&fstat(&place).context("examine", path)?))),
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(None),
            Err(error) => Err(error).context("open", path),
        }
    }
}

/// A directory on the path, or a link that the walk followed.
#[derive(Debug)]
pub(super) struct PathComponent {
    place: OwnedFd,
    /// Its path, links resolved.
    pub(super) path: PathBuf,
    /// Its owner and mode.
    pub(super) stat: FileStat,
}

impl PathComponent {
    /// The same directory, open for reading.
    pub(super) fn open_directory(&self) -> Result<Directory, FileError> {
        Directory::from_path_fd(&self.place, &self.path)
    }

    /// Its path in /proc, for calls that take no descriptor, proc_pid_fd(5). For a link it names the link itself.
    pub(super) fn proc_fd_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.place.as_raw_fd()))
    }

    /// Its device and inode.
    pub(super) fn id(&self) -> DirectoryId {
        DirectoryId::from_stat(&self.stat)
    }

    /// The mount point of the mount that it is on.
    pub(super) fn mount_point(&self) -> Option<PathBuf> {
        find_mount_point(&self.place, &self.path)
    }
}

/// The state of the walk.
#[derive(Debug)]
pub(super) struct PathWalker {
    way: TrustPolicy,
    /// The home. The walk follows no link below it.
    home: Option<DirectoryId>,
    /// From `/` to the deepest directory that exists; never empty.
    stages: Vec<PathComponent>,
    /// The names of the directories that do not exist, below the last stage.
    pub(super) missing: Vec<OsString>,
    links: u32,
    /// Components that are no longer on the path: followed links, and the directories that these links led away
    /// from.
    passed: Vec<PathComponent>,
}

impl PathWalker {
    fn from_root(way: TrustPolicy, home: Option<DirectoryId>) -> Result<Self, FileError> {
        let path = PathBuf::from("/");
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let place = open(&path, flags, Mode::empty()).context("open", &path)?;
        let mut walk =
            Self { way, home, stages: Vec::new(), missing: Vec::new(), links: 0, passed: Vec::new() };
        walk.check_and_push(place, path)?;
        Ok(walk)
    }

    /// Walks to a directory. Components at the end of `path` that do not exist are put into `missing`. The walk
    /// follows no link below `home`.
    pub(super) fn walk_to(
        way: TrustPolicy,
        home: Option<DirectoryId>,
        path: &Path,
    ) -> Result<Self, FileError> {
        let mut walk = Self::from_root(way, home)?;
        for name in normal_components(path)? {
            if !walk.missing.is_empty() || !walk.enter(&name)? {
                walk.missing.push(name);
            }
        }
        Ok(walk)
    }

    /// Whether the walk may follow a link in the last stage. It follows none below the home, and none below a
    /// directory that the user owns. In such a directory the user can replace one link of root's by another link
    /// of root's.
    fn may_follow(&self) -> bool {
        let TrustPolicy::OwnedByUserOrRoot(user) = self.way else { return true };
        !self.stages.iter().any(|stage| {
            Some(stage.id()) == self.home
                || (stage.stat.st_uid == user && !is_root_or_current_user(stage.stat.st_uid))
        })
    }

    /// The deepest directory that exists.
    pub(super) fn last(&self) -> Result<&PathComponent, FileError> {
        // `stages` is never empty: it starts with `/`, and `..` does not remove `/`.
        self.stages.last().ok_or_else(|| FileError::MissingDirectory { path: "/".into() })
    }

    /// All stages, `/` first.
    pub(super) fn components(&self) -> &[PathComponent] {
        &self.stages
    }

    /// The links that the walk followed, and the directories that are no longer stages.
    pub(super) fn traversed(&self) -> &[PathComponent] {
        &self.passed
    }

    /// The path of an entry of the last stage.
    fn entry_path(&self, name: &OsStr) -> Result<PathBuf, FileError> {
        Ok(self.last()?.path.join(name))
    }

    /// Enters one component. Returns false if it does not exist.
    fn enter(&mut self, name: &OsStr) -> Result<bool, FileError> {
        let path = self.entry_path(name)?;
        // O_DIRECTORY makes an automounter mount the directory's volume, open(2).
        let place = match open_beneath(&self.last()?.place, name, OFlag::O_PATH | OFlag::O_DIRECTORY) {
            Err(Errno::ENOTDIR | Errno::ELOOP) => open_beneath(&self.last()?.place, name, OFlag::O_PATH),
            answer => answer,
        };
        let place = match place {
            Ok(place) => place,
            Err(Errno::ENOENT) => return Ok(false),
            Err(error) => return Err(error).context("open", &path),
        };
        let stat = fstat(&place).context("examine", &path)?;
        match file_type(&stat) {
            SFlag::S_IFDIR => {
                self.check_and_push(place, path)?;
                Ok(true)
            }
            SFlag::S_IFLNK => {
                let target = self.read_link_target(place, stat, &path)?;
                self.enter_link_target(&target, &path)?;
                Ok(true)
            }
            _ => Err(FileError::unsafe_path(
                &path,
                format!("{} stands where a directory belongs; remove it", describe_file_type(&stat)),
            )),
        }
    }

    /// Enters the components of a link's target one by one.
    fn enter_link_target(&mut self, target: &Path, link: &Path) -> Result<(), FileError> {
        for component in target.components() {
            match component {
                Component::RootDir => self.passed.extend(self.stages.drain(1..)),
                Component::ParentDir => {
                    if self.stages.len() > 1 {
                        self.passed.extend(self.stages.pop());
                    }
                }
                Component::Normal(name) => {
                    if !self.enter(name)? {
                        let why =
                            format!("a link to {}, which does not exist; correct it", display_path(target));
                        return Err(FileError::unsafe_path(link, why));
                    }
                }
                Component::CurDir | Component::Prefix(_) => {}
            }
        }
        Ok(())
    }

    /// The target of a link, if the walk may follow it.
    fn read_link_target(&mut self, link: OwnedFd, stat: FileStat, path: &Path) -> Result<PathBuf, FileError> {
        if !self.may_follow() {
            let why = "a symbolic link; put the real directory or file in its place";
            return Err(FileError::unsafe_path(path, why));
        }
        if !is_root_or_current_user(stat.st_uid) {
            let why = format!(
                "a symbolic link that uid {} owns, not root; put what it leads to in its place",
                stat.st_uid
            );
            return Err(FileError::unsafe_path(path, why));
        }
        self.links += 1;
        if self.links > MAX_SYMLINKS {
            return Err(Errno::ELOOP).context("follow", path);
        }
        // The empty name reads the link of this descriptor, which was checked above, readlinkat(2).
        let target = readlinkat(&link, "").map(PathBuf::from).context("read the link", path)?;
        self.passed.push(PathComponent { place: link, path: path.to_owned(), stat });
        Ok(target)
    }

    /// Checks a directory and makes it the last stage.
    fn check_and_push(&mut self, place: OwnedFd, path: PathBuf) -> Result<(), FileError> {
        let stat = fstat(&place).context("examine", &path)?;
        if !self.way.allows_owner(stat.st_uid) {
            return Err(FileError::unsafe_path(&path, self.way.describe_wrong_owner(stat.st_uid, &path)));
        }
        // Under the sticky bit, no other user can rename an entry that root owns, and root owns the next component
        // (the walk checks that too). So a `RootOnly` walk may pass through such a directory; see
        // `check_last_writers`.
        let passes = matches!(self.way, TrustPolicy::RootOnly) && stat.st_mode & STICKY != 0;
        let stage = PathComponent { place, path, stat };
        if !passes {
            self.check_component_writers(&stage)?;
        }
        self.stages.push(stage);
        Ok(())
    }

    /// Returns an error if other users can write the directory.
    fn check_component_writers(&self, stage: &PathComponent) -> Result<(), FileError> {
        check_writers(self.way, &stage.stat, &stage.path, || stage.open_directory())
    }

    /// Checks the directory that contains the file. The sticky bit does not help there, because any user could
    /// create a file that does not exist yet.
    pub(super) fn check_last_writers(&self) -> Result<(), FileError> {
        self.check_component_writers(self.last()?)
    }

    /// Follows the links at `name` as long as the walk may follow them. Returns the name of the file itself.
    pub(super) fn follow_file_links(&mut self, name: OsString) -> Result<OsString, FileError> {
        let mut name = name;
        loop {
            let path = self.entry_path(&name)?;
            let place = match open_beneath(&self.last()?.place, &name, OFlag::O_PATH) {
                Ok(place) => place,
                Err(Errno::ENOENT) => return Ok(name),
                Err(error) => return Err(error).context("open", &path),
            };
            let stat = fstat(&place).context("examine", &path)?;
            if file_type(&stat) != SFlag::S_IFLNK {
                return Ok(name);
            }
            let target = self.read_link_target(place, stat, &path)?;
            let Some(last) = target.file_name() else {
                return Err(FileError::unsafe_path(
                    &path,
                    "a link to a directory; put a regular file in its place",
                ));
            };
            let last = last.to_owned();
            if let Some(parent) = target.parent() {
                self.enter_link_target(parent, &path)?;
            }
            name = last;
        }
    }
}

/// Returns an error if other users can write the directory or file. Calls `open` only if the ACL has to be read.
pub(super) fn check_writers<D: AsFd>(
    way: TrustPolicy,
    stat: &FileStat,
    path: &Path,
    open: impl FnOnce() -> Result<D, FileError>,
) -> Result<(), FileError> {
    if stat.st_mode & WORLD_WRITE != 0 {
        let why = format!("writable by everyone; `chmod o-w {}`", display_path(path));
        return Err(FileError::unsafe_path(path, why));
    }
    if matches!(way, TrustPolicy::RootOnly)
        && stat.st_mode & GROUP_WRITE != 0
        && !is_trusted_group(stat, path, open)?
    {
        let why = format!("writable by gid {}; `chmod g-w {}`", stat.st_gid, display_path(path));
        return Err(FileError::unsafe_path(path, why));
    }
    Ok(())
}

/// Whether the group with write permission is root's (or this process's group, if it does not run as root) and
/// there is no ACL. An ACL could give write permission to other users behind the group bits.
fn is_trusted_group<D: AsFd>(
    stat: &FileStat,
    path: &Path,
    open: impl FnOnce() -> Result<D, FileError>,
) -> Result<bool, FileError> {
    if stat.st_gid != 0 && (geteuid().is_root() || stat.st_gid != getegid().as_raw()) {
        return Ok(false);
    }
    let acl = XattrFile::from_fd(open()?).and_then(|file| file.get(XATTR_POSIX_ACL));
    Ok(acl.context("read the ACL of", path)?.is_none())
}

/// The components of a path. The path must be absolute and without `..`, so that every name is one step down.
fn normal_components(path: &Path) -> Result<Vec<OsString>, FileError> {
    let refuse = |why: &str| FileError::unsafe_path(path, why);
    if !path.is_absolute() {
        return Err(refuse("not an absolute path; configure one that begins with `/`"));
    }
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name.to_owned()),
            Component::ParentDir => return Err(refuse("has `..` in it; configure the path without")),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Ok(names)
}

/// Splits a file's path into its directory and its name.
pub(super) fn split_parent_and_name(path: &Path) -> Result<(&Path, &OsStr), FileError> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok((parent, name)),
        _ => Err(FileError::unsafe_path(path, "names no file; configure the path of a file")),
    }
}
