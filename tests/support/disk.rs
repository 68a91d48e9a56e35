//! A model of what a disk may hold after a power failure. Synced data is there. Of unsynced data, any part that came
//! first may be there. A file may have some of its changes and bytes, or its new size without the bytes. A directory
//! may have some of the names that came and went, independently of other directories and of the files with these
//! names.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use super::strace::{DiskCall, EscapedBytes};

/// The content of a guest's folder by relative paths. The empty path is the folder itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileTree(pub BTreeMap<PathBuf, FileTreeEntry>);

/// A file, or a directory (which has no content).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileTreeEntry {
    pub content: Option<String>,
    pub mode: u32,
    pub owner: (u32, u32),
}

/// Names that the model ignores: not on the disk, or irrelevant to these tests (logs, pid files, test configuration).
fn is_excluded(name: &Path) -> bool {
    let is_log = name.extension().is_some_and(|extension| extension == "log" || extension == "pid");
    is_log || ["run", "agent.toml", "passwd"].iter().any(|other| name == Path::new(other))
}

pub fn is_temp_file(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".keypair-agent-"))
}

impl FileTree {
    pub fn read(folder: &Path) -> Self {
        let mut tree = Self::default();
        tree.read_entry(folder, PathBuf::new());
        tree
    }

    fn read_entry(&mut self, folder: &Path, name: PathBuf) {
        let path = folder.join(&name);
        let metadata = path.symlink_metadata().unwrap();
        // Latin-1 maps each byte to one character, so any file content fits into a string without loss.
        let content = metadata.is_file().then(|| decode_latin1(&fs::read(&path).unwrap()));
        let mode = metadata.mode() & 0o7777;
        self.0.insert(name.clone(), FileTreeEntry { content, mode, owner: (metadata.uid(), metadata.gid()) });
        if metadata.is_dir() {
            for entry in fs::read_dir(&path).unwrap() {
                let below = name.join(entry.unwrap().file_name());
                if !is_excluded(&below) {
                    self.read_entry(folder, below);
                }
            }
        }
    }

    /// Makes the folder hold this tree and nothing else.
    pub fn restore_to(&self, folder: &Path) {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            if is_excluded(Path::new(&entry.file_name())) {
                continue;
            }
            match entry.file_type().unwrap().is_dir() {
                true => fs::remove_dir_all(entry.path()).unwrap(),
                false => fs::remove_file(entry.path()).unwrap(),
            }
        }
        for (name, entry) in &self.0 {
            let path = folder.join(name);
            match &entry.content {
                Some(content) => fs::write(&path, encode_latin1(content)).unwrap(),
                None if *name == Path::new("") => {}
                None => fs::create_dir(&path).unwrap(),
            }
            chown(&path, Some(entry.owner.0), Some(entry.owner.1)).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(entry.mode)).unwrap();
        }
    }

    pub fn content(&self, name: &str) -> Option<Vec<u8>> {
        self.0.get(Path::new(name))?.content.as_deref().map(encode_latin1)
    }

    /// The tree without the agent's temporary files.
    pub fn without_temp_files(&self) -> Self {
        Self(self.0.clone().into_iter().filter(|(path, _)| !is_temp_file(path)).collect())
    }
}

fn decode_latin1(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

fn encode_latin1(text: &str) -> Vec<u8> {
    text.chars().map(|character| u8::try_from(u32::from(character)).unwrap()).collect()
}

/// A file or a directory, independent of its name.
#[derive(Clone, Debug)]
struct Inode {
    body: InodeContent,
    mode: u32,
    owner: (u32, u32),
}

#[derive(Clone, Debug)]
enum InodeContent {
    File(Vec<u8>),
    /// The names in the directory, each with the index of its inode.
    Directory(BTreeMap<OsString, usize>),
}

/// One change of an inode.
#[derive(Clone, Debug)]
enum InodeChange {
    Append(Vec<u8>),
    Chmod(u32),
    Chown(u32, u32),
    /// Names that are added (`Some` inode) or removed (`None`) in one atomic step.
    SetEntries(Vec<(OsString, Option<usize>)>),
}

impl Inode {
    fn with_change(mut self, change: &InodeChange) -> Self {
        match (change, &mut self.body) {
            (InodeChange::Chmod(mode), _) => self.mode = *mode,
            (InodeChange::Chown(user, group), _) => self.owner = (*user, *group),
            (InodeChange::Append(more), InodeContent::File(bytes)) => bytes.extend(more),
            (InodeChange::SetEntries(names), InodeContent::Directory(entries)) => {
                for (name, inode) in names {
                    match inode {
                        Some(inode) => drop(entries.insert(name.clone(), *inode)),
                        None => assert!(entries.remove(name).is_some(), "{name:?} was not there"),
                    }
                }
            }
            (change, body) => panic!("{change:?} of {body:?}"),
        }
        self
    }
}

/// An inode: its state at the last sync, and the changes since then.
#[derive(Clone, Debug)]
struct TrackedInode {
    synced: Inode,
    since: Vec<InodeChange>,
}

impl TrackedInode {
    fn current(&self) -> Inode {
        self.since.iter().fold(self.synced.clone(), Inode::with_change)
    }

    /// Every state in which a power failure may leave it.
    fn crash_states(&self) -> Vec<Inode> {
        let mut possible = vec![self.synced.clone()];
        let mut so_far = self.synced.clone();
        for change in &self.since {
            if let InodeChange::Append(more) = change
                && more.len() > 1
            {
                let half = InodeChange::Append(more[..more.len() / 2].to_vec());
                let hole = InodeChange::Append(vec![0; more.len()]);
                possible.extend([half, hole].iter().map(|part| so_far.clone().with_change(part)));
            }
            so_far = so_far.with_change(change);
            possible.push(so_far.clone());
        }
        possible
    }
}

/// The disk under a guest's folder, updated after each system call.
pub struct DiskModel {
    folder: PathBuf,
    /// The first one is the folder itself.
    inodes: Vec<TrackedInode>,
}

impl DiskModel {
    /// A disk on which the whole tree is synced.
    pub fn new(folder: &Path, tree: &FileTree) -> Self {
        let mut disk = Self { folder: folder.to_owned(), inodes: Vec::new() };
        for (name, entry) in &tree.0 {
            let body = match &entry.content {
                Some(content) => InodeContent::File(encode_latin1(content)),
                None => InodeContent::Directory(BTreeMap::new()),
            };
            let inode = disk.add_inode(Inode { body, mode: entry.mode, owner: entry.owner });
            if let Some(name) = name.file_name() {
                let parent = disk.find_parent(&folder.join(tree.0.keys().nth(inode).unwrap()));
                let InodeContent::Directory(entries) = &mut disk.inodes[parent].synced.body else {
                    unreachable!()
                };
                entries.insert(name.to_owned(), inode);
            }
        }
        disk
    }

    fn add_inode(&mut self, inode: Inode) -> usize {
        self.inodes.push(TrackedInode { synced: inode, since: Vec::new() });
        self.inodes.len() - 1
    }

    /// The inode that has this name now.
    fn find_inode(&self, path: &Path) -> usize {
        let names = path.strip_prefix(&self.folder).unwrap().components();
        names.fold(0, |inode, name| match self.inodes[inode].current().body {
            InodeContent::Directory(entries) => {
                *entries.get(name.as_os_str()).unwrap_or_else(|| panic!("there is no {}", path.display()))
            }
            InodeContent::File(_) => panic!("{} is below a file", path.display()),
        })
    }

    fn find_parent(&self, path: &Path) -> usize {
        self.find_inode(path.parent().unwrap())
    }

    fn push_change(&mut self, path: &Path, change: InodeChange) {
        let inode = self.find_inode(path);
        self.inodes[inode].since.push(change);
    }

    fn set_entry(&mut self, path: &Path, inode: Option<usize>) {
        let name = path.file_name().unwrap().to_owned();
        self.push_change(path.parent().unwrap(), InodeChange::SetEntries(vec![(name, inode)]));
    }

    /// Updates the model by one call.
    pub fn apply_call(&mut self, call: &DiskCall) {
        match call {
            DiskCall::Create(path, mode) => {
                let inode = self.add_inode(Inode {
                    body: InodeContent::File(Vec::new()),
                    mode: *mode,
                    owner: (0, 0),
                });
                self.set_entry(path, Some(inode));
            }
            DiskCall::Mkdir(path, mode) => {
                let body = InodeContent::Directory(BTreeMap::new());
                let inode = self.add_inode(Inode { body, mode: *mode, owner: (0, 0) });
                self.set_entry(path, Some(inode));
            }
            DiskCall::Write(path, EscapedBytes(bytes)) => {
                self.push_change(path, InodeChange::Append(bytes.clone()))
            }
            DiskCall::Chmod(path, mode) => self.push_change(path, InodeChange::Chmod(*mode)),
            DiskCall::Chown(path, user, group) => self.push_change(path, InodeChange::Chown(*user, *group)),
            DiskCall::OtherChange(path) => panic!("not known to the model: a change of {}", path.display()),
            DiskCall::Fsync(path) => {
                let inode = self.find_inode(path);
                let kept = &mut self.inodes[inode];
                *kept = TrackedInode { synced: kept.current(), since: Vec::new() };
            }
            DiskCall::Rename(from, to) => {
                assert_eq!(from.parent(), to.parent(), "not known to the model: two directories");
                let inode = self.find_inode(from);
                let name = |path: &Path| path.file_name().unwrap().to_owned();
                let names = vec![(name(from), None), (name(to), Some(inode))];
                self.push_change(from.parent().unwrap(), InodeChange::SetEntries(names));
            }
            DiskCall::Unlink(path) | DiskCall::Rmdir(path) => self.set_entry(path, None),
            DiskCall::Signal | DiskCall::PutResult => {}
        }
    }

    /// The tree that a reader sees as long as there is no power failure.
    pub fn current_tree(&self) -> FileTree {
        let inodes: Vec<Inode> = self.inodes.iter().map(TrackedInode::current).collect();
        build_file_tree(&inodes)
    }

    /// Every tree that the disk may hold if the power fails now.
    pub fn crash_trees(&self) -> BTreeSet<FileTree> {
        let mut disks: Vec<Vec<Inode>> = vec![Vec::new()];
        for kept in &self.inodes {
            let possible = kept.crash_states();
            disks = disks
                .iter()
                .flat_map(|disk| {
                    possible.iter().map(|inode| {
                        let mut disk = disk.clone();
                        disk.push(inode.clone());
                        disk
                    })
                })
                .collect();
        }
        disks.iter().map(|inodes| build_file_tree(inodes)).collect()
    }
}

fn build_file_tree(inodes: &[Inode]) -> FileTree {
    fn add_subtree(inodes: &[Inode], number: usize, name: PathBuf, tree: &mut FileTree) {
        let Inode { body, mode, owner } = &inodes[number];
        let content = match body {
            InodeContent::File(bytes) => Some(decode_latin1(bytes)),
            InodeContent::Directory(entries) => {
                for (entry, inode) in entries {
                    add_subtree(inodes, *inode, name.join(entry), tree);
                }
                None
            }
        };
        tree.0.insert(name, FileTreeEntry { content, mode: *mode, owner: *owner });
    }
    let mut grown = FileTree::default();
    add_subtree(inodes, 0, PathBuf::new(), &mut grown);
    grown
}
