//! The attacked home, and the files around it that must not change.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use keypair_agent::policy::observation::Account;

/// A uid without an account on this machine.
pub const USER: u32 = 61_003;
pub const STRANGER_UID: u32 = 61_004;

/// The content of root's files. No file that the user can read may ever contain it.
pub const SECRET: &str = "root's own";

/// A folder with a home in it. All processes of one run share it.
pub struct HomeFixture(PathBuf);

/// The facts about one entry: kind and mode, owner, group, and its bytes or the names in it.
pub type EntryStat = (u32, u32, u32, Vec<u8>);

impl HomeFixture {
    pub fn new(folder: &Path) -> Self {
        Self(folder.to_owned())
    }

    /// Creates all files.
    pub fn create_files(&self) {
        let file = |name: &str, owner: u32, mode: u32| {
            fs::write(self.0.join(name), format!("{SECRET}: {name}\n")).unwrap();
            chown(self.0.join(name), Some(owner), Some(owner)).unwrap();
            fs::set_permissions(self.0.join(name), fs::Permissions::from_mode(mode)).unwrap();
        };
        let directory = |name: &str, owner: u32, mode: u32| {
            fs::create_dir(self.0.join(name)).unwrap();
            chown(self.0.join(name), Some(owner), Some(owner)).unwrap();
            fs::set_permissions(self.0.join(name), fs::Permissions::from_mode(mode)).unwrap();
        };
        directory("victim", 0, 0o755);
        file("victim/authorized_keys", 0, 0o600);
        directory("victim/ssh", 0, 0o700);
        file("victim/ssh/authorized_keys", 0, 0o600);
        directory("empty", 0, 0o755);
        directory("stranger", STRANGER_UID, 0o755);
        file("stranger/authorized_keys", STRANGER_UID, 0o600);
        // A user who can write a file may give it another name anywhere, even with protected hard links.
        file("everyones", 0, 0o666);
        fs::write(self.0.join("everyones"), "everyone's\n").unwrap();
        directory("home", USER, 0o755);
        // The user can move root's directory in the home, but cannot read it.
        directory("home/treasure", 0, 0o750);
        file("home/treasure/secret", 0, 0o600);
        file("home/roots", 0, 0o600);
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn home(&self) -> PathBuf {
        self.0.join("home")
    }

    /// The path that the agent writes, in two forms. In the second form the user also owns a parent directory.
    pub fn key_files(&self) -> [PathBuf; 2] {
        [".ssh/authorized_keys", ".config/ssh/authorized_keys"].map(|name| self.home().join(name))
    }

    pub fn account(&self) -> Account {
        Account {
            name: "joe".into(),
            uid: USER,
            gid: USER,
            home: self.home(),
            shell: "/bin/sh".into(),
            groups: vec!["joe".into()],
        }
    }

    /// Everything that does not belong to the user: entries around the home by path, root's entries in it by inode.
    pub fn snapshot_victims(&self) -> BTreeMap<String, EntryStat> {
        let mut seen = BTreeMap::new();
        for name in ["victim", "empty", "stranger", "everyones"] {
            collect_entries(&self.0.join(name), &mut seen, &|path, _| path.to_string_lossy().into_owned());
        }
        // The user may write there, but the agent must not.
        for (_, (.., content)) in seen.iter_mut().filter(|(path, _)| path.ends_with("everyones")) {
            content.retain(|byte| *byte == b'k');
        }
        let mut in_home = BTreeMap::new();
        collect_entries(&self.home(), &mut in_home, &|_, inode| inode.to_string());
        for inode in [self.initial_inode("home/treasure"), self.initial_inode("home/treasure/secret")] {
            let mut entry = in_home.remove(&inode).unwrap_or_else(|| panic!("{inode} is gone"));
            // The directory may have been in the place of `.ssh`, so its content may have changed.
            if entry.0 & 0o170_000 == 0o040_000 {
                entry.3.clear();
            }
            seen.insert(format!("inode {inode}"), entry);
        }
        seen
    }

    /// The inode of an entry at the start. A file stores it, because the user can rename the entry.
    fn initial_inode(&self, name: &str) -> String {
        let kept = self.0.join(format!("inode-{}", name.replace('/', "-")));
        if !kept.exists() {
            fs::write(&kept, fs::metadata(self.0.join(name)).unwrap().ino().to_string()).unwrap();
        }
        fs::read_to_string(kept).unwrap()
    }

    /// Files that the user can read although they contain root's data.
    pub fn find_leaks(&self) -> Vec<PathBuf> {
        let mut leaks = Vec::new();
        let mut seen = BTreeMap::new();
        collect_entries(&self.home(), &mut seen, &|path, _| path.to_string_lossy().into_owned());
        for (path, (mode, owner, _, content)) in seen {
            let is_file = mode & 0o170_000 == 0o100_000;
            let readable = owner == USER || mode & 0o004 != 0;
            if is_file && readable && content.windows(SECRET.len()).any(|part| part == SECRET.as_bytes()) {
                leaks.push(path.into());
            }
        }
        leaks
    }
}

/// Collects everything from `path` down, without following links. `key` gives the key of each entry.
fn collect_entries(path: &Path, seen: &mut BTreeMap<String, EntryStat>, key: &dyn Fn(&Path, u64) -> String) {
    let metadata = path.symlink_metadata().unwrap();
    let mut content = Vec::new();
    if metadata.is_file() {
        content = fs::read(path).unwrap();
    } else if metadata.is_dir() {
        let mut names: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        content = names.iter().flat_map(|name| [name.as_encoded_bytes(), b"/"].concat()).collect();
        for name in names {
            collect_entries(&path.join(name), seen, key);
        }
    }
    seen.insert(key(path, metadata.ino()), (metadata.mode(), metadata.uid(), metadata.gid(), content));
}
