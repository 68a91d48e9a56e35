//! The disk, and its state after a power cut. At the granularity of `Guest`, a write is durable when it returns. An
//! interrupted write leaves the old bytes or the new ones, and perhaps a temporary file that was never renamed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::place::{AccountState, HostEnvironment};

/// The key file in the first home.
pub const KEY_FILE: &str = "/root/.ssh/authorized_keys";
/// The directory of that key file. It may be missing.
pub const SSH_DIRECTORY: &str = "/root/.ssh";
/// The key file in the second home: of other accounts, or of the user after a move.
pub const OTHER_KEY_FILE: &str = "/data/.ssh/authorized_keys";
/// Every file that may hold a key of the agent.
pub const KEY_FILES: [&str; 2] = [KEY_FILE, OTHER_KEY_FILE];
/// sshd's main file.
pub const MAIN_CONFIG: &str = "/etc/ssh/sshd_config";
/// The directory of its drop-ins.
pub const DROP_INS: &str = "/etc/ssh/sshd_config.d";
/// The agent's drop-in.
pub const DROP_IN: &str = "/etc/ssh/sshd_config.d/00-keypair-agent.conf";
/// The state file, and its directory.
pub const STATE_FILE: &str = "/var/lib/keypair-agent/state.json";
const STATE_DIRECTORY: &str = "/var/lib/keypair-agent";

/// Files, directories and temporary files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    files: BTreeMap<PathBuf, Arc<[u8]>>,
    directories: BTreeSet<PathBuf>,
    stale: BTreeSet<PathBuf>,
    /// The user's account, the mounted volume, and the abilities of the private sshd.
    pub place: HostEnvironment,
    /// The hidden content of the first home. Without the mount it is the volume's content, otherwise the content of
    /// the directory below the mount point.
    unseen: HomeFiles,
}

/// The key file of a home.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct HomeFiles {
    keys: Option<Arc<[u8]>>,
    has_directory: bool,
    has_temporary: bool,
}

impl Disk {
    /// A disk with this main file and, if given, root's key file.
    pub fn new(main: &str, keys: Option<&str>) -> Self {
        let mut disk = Self {
            files: BTreeMap::new(),
            directories: BTreeSet::from([DROP_INS.into(), STATE_DIRECTORY.into()]),
            stale: BTreeSet::new(),
            place: HostEnvironment::default(),
            unseen: HomeFiles::default(),
        };
        disk.write_file(MAIN_CONFIG, main.as_bytes());
        if let Some(keys) = keys {
            disk.write_file(KEY_FILE, keys.as_bytes());
        }
        disk
    }

    /// The bytes of a file.
    pub fn read(&self, path: impl AsRef<Path>) -> Option<&[u8]> {
        self.files.get(path.as_ref()).map(|content| &**content)
    }

    /// The bytes of a file; a missing file counts as empty.
    pub fn read_or_empty(&self, path: impl AsRef<Path>) -> &[u8] {
        self.read(path).unwrap_or_default()
    }

    /// Replaces a file, or creates it and its directory.
    pub fn write_file(&mut self, path: impl AsRef<Path>, content: &[u8]) {
        let path = path.as_ref();
        if let Some(directory) = path.parent() {
            self.directories.insert(directory.to_owned());
        }
        self.files.insert(path.to_owned(), content.into());
    }

    /// Removes a file.
    pub fn remove_file(&mut self, path: impl AsRef<Path>) {
        self.files.remove(path.as_ref());
    }

    /// Removes a directory if it is empty. The agent's temporary files do not count.
    pub fn remove_empty_directory(&mut self, directory: &Path) {
        if !self.files.keys().any(|file| file.parent() == Some(directory)) {
            self.directories.remove(directory);
            self.stale.remove(directory);
        }
    }

    /// Whether a directory exists.
    pub fn has_directory(&self, directory: impl AsRef<Path>) -> bool {
        self.directories.contains(directory.as_ref())
    }

    /// Leaves a temporary file beside `path`, like an interrupted write.
    pub fn leave_temp_file(&mut self, path: &Path) {
        if let Some(directory) = path.parent() {
            self.directories.insert(directory.to_owned());
            self.stale.insert(directory.to_owned());
        }
    }

    /// Removes the temporary files beside `path`.
    pub fn remove_temp_files(&mut self, path: impl AsRef<Path>) {
        if let Some(directory) = path.as_ref().parent() {
            self.stale.remove(directory);
        }
    }

    /// Whether any temporary file is left.
    pub fn has_temp_files(&self) -> bool {
        !self.stale.is_empty()
    }

    /// Every file below a directory.
    pub fn files_in(&self, directory: &str) -> impl Iterator<Item = (&PathBuf, &[u8])> {
        let directory = PathBuf::from(directory);
        self.files
            .iter()
            .filter(move |(path, _)| path.parent() == Some(&directory))
            .map(|(path, content)| (path, &**content))
    }

    /// The path of the key file that sshd reads for the target user.
    pub fn key_file(&self) -> &'static str {
        match self.place.who {
            AccountState::Original | AccountState::Renamed | AccountState::Deleted => KEY_FILE,
            AccountState::Moved | AccountState::Successor | AccountState::Recreated => OTHER_KEY_FILE,
        }
    }

    /// The content of that file.
    pub fn read_key_file(&self) -> &[u8] {
        self.read_or_empty(self.key_file())
    }

    /// Mounts or unmounts the volume of the first home.
    pub fn toggle_volume(&mut self) {
        let path = Path::new(SSH_DIRECTORY);
        let seen = HomeFiles {
            keys: self.files.remove(Path::new(KEY_FILE)),
            has_directory: self.directories.remove(path),
            has_temporary: self.stale.remove(path),
        };
        let HomeFiles { keys, has_directory, has_temporary } = std::mem::replace(&mut self.unseen, seen);
        self.files.extend(keys.map(|keys| (KEY_FILE.into(), keys)));
        self.directories.extend(has_directory.then(|| path.to_owned()));
        self.stale.extend(has_temporary.then(|| path.to_owned()));
        self.place.is_mounted = !self.place.is_mounted;
    }

    /// The content of the hidden key file.
    pub fn hidden_keys(&self) -> &[u8] {
        self.unseen.keys.as_deref().unwrap_or_default()
    }

    /// Whether everything except the state file is equal to `other`.
    pub fn equals_except_state(&self, other: &Self) -> bool {
        let but_state = |disk: &Self| {
            let mut files = disk.files.clone();
            files.remove(Path::new(STATE_FILE));
            files
        };
        but_state(self) == but_state(other) && self.directories == other.directories
    }

    /// The environment part of a state's hash.
    pub fn hashable_environment(&self) -> impl std::hash::Hash {
        (self.place, &self.unseen)
    }

    /// The files, directories and temporary files, for a state's hash.
    pub fn hashable_entries(&self) -> impl Iterator<Item = (&PathBuf, &[u8])> {
        let nothing: &[u8] = &[];
        let names = self.directories.iter().chain(&self.stale).map(move |path| (path, nothing));
        self.files.iter().map(|(path, content)| (path, &**content)).chain(names)
    }
}
