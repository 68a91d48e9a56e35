//! What a disk may hold when the power goes. What was synced is there; of what was not, any part that came first: of a
//! file some of its changes and of its bytes, or a size whose bytes are not there yet; of a directory some of the
//! names that came and went, whatever became of other directories and of the files that bear the names.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use super::strace::{Bytes, Call};

/// What is in a guest's folder, by its relative paths; the folder itself is the empty one.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tree(pub BTreeMap<PathBuf, Entry>);

/// A file, or a directory (which has no content).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    pub content: Option<String>,
    pub mode: u32,
    pub owner: (u32, u32),
}

/// Not on the disk, or not of those whose loss is looked at: logs, pid files, what the tests configure.
fn is_left_out(name: &Path) -> bool {
    let is_log = name.extension().is_some_and(|extension| extension == "log" || extension == "pid");
    is_log || ["run", "agent.toml", "passwd"].iter().any(|other| name == Path::new(other))
}

pub fn is_temporary(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".keypair-agent-"))
}

impl Tree {
    pub fn read(folder: &Path) -> Self {
        let mut tree = Self::default();
        tree.read_at(folder, PathBuf::new());
        tree
    }

    fn read_at(&mut self, folder: &Path, name: PathBuf) {
        let path = folder.join(&name);
        let metadata = path.symlink_metadata().unwrap();
        // Characters of Latin-1, so that a string shows any bytes and loses none.
        let content = metadata.is_file().then(|| text(&fs::read(&path).unwrap()));
        let mode = metadata.mode() & 0o7777;
        self.0.insert(name.clone(), Entry { content, mode, owner: (metadata.uid(), metadata.gid()) });
        if metadata.is_dir() {
            for entry in fs::read_dir(&path).unwrap() {
                let below = name.join(entry.unwrap().file_name());
                if !is_left_out(&below) {
                    self.read_at(folder, below);
                }
            }
        }
    }

    /// Makes the folder hold this and nothing else.
    pub fn lay_out(&self, folder: &Path) {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            if is_left_out(Path::new(&entry.file_name())) {
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
                Some(content) => fs::write(&path, bytes(content)).unwrap(),
                None if *name == Path::new("") => {}
                None => fs::create_dir(&path).unwrap(),
            }
            chown(&path, Some(entry.owner.0), Some(entry.owner.1)).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(entry.mode)).unwrap();
        }
    }

    pub fn content(&self, name: &str) -> Option<Vec<u8>> {
        self.0.get(Path::new(name))?.content.as_deref().map(bytes)
    }

    /// All but the temporaries.
    pub fn named(&self) -> Self {
        Self(self.0.clone().into_iter().filter(|(path, _)| !is_temporary(path)).collect())
    }
}

fn text(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

fn bytes(text: &str) -> Vec<u8> {
    text.chars().map(|character| u8::try_from(u32::from(character)).unwrap()).collect()
}

/// A file or a directory, whatever its name.
#[derive(Clone, Debug)]
struct Inode {
    body: Body,
    mode: u32,
    owner: (u32, u32),
}

#[derive(Clone, Debug)]
enum Body {
    File(Vec<u8>),
    /// Names, and which inode each is.
    Directory(BTreeMap<OsString, usize>),
}

/// A change of an inode.
#[derive(Clone, Debug)]
enum Change {
    Append(Vec<u8>),
    Mode(u32),
    Owner(u32, u32),
    /// Names that come, or go, at once.
    Names(Vec<(OsString, Option<usize>)>),
}

impl Inode {
    fn after(mut self, change: &Change) -> Self {
        match (change, &mut self.body) {
            (Change::Mode(mode), _) => self.mode = *mode,
            (Change::Owner(user, group), _) => self.owner = (*user, *group),
            (Change::Append(more), Body::File(bytes)) => bytes.extend(more),
            (Change::Names(names), Body::Directory(entries)) => {
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

/// An inode as it is for certain, and the changes since.
#[derive(Clone, Debug)]
struct Kept {
    synced: Inode,
    since: Vec<Change>,
}

impl Kept {
    fn now(&self) -> Inode {
        self.since.iter().fold(self.synced.clone(), Inode::after)
    }

    /// All that the power may leave of it.
    fn possible(&self) -> Vec<Inode> {
        let mut possible = vec![self.synced.clone()];
        let mut so_far = self.synced.clone();
        for change in &self.since {
            if let Change::Append(more) = change
                && more.len() > 1
            {
                let half = Change::Append(more[..more.len() / 2].to_vec());
                let hole = Change::Append(vec![0; more.len()]);
                possible.extend([half, hole].iter().map(|part| so_far.clone().after(part)));
            }
            so_far = so_far.after(change);
            possible.push(so_far.clone());
        }
        possible
    }
}

/// The disk under a guest's folder, from call to call.
pub struct Disk {
    folder: PathBuf,
    /// The first one is the folder.
    inodes: Vec<Kept>,
}

impl Disk {
    /// All that is there is synced.
    pub fn new(folder: &Path, tree: &Tree) -> Self {
        let mut disk = Self { folder: folder.to_owned(), inodes: Vec::new() };
        for (name, entry) in &tree.0 {
            let body = match &entry.content {
                Some(content) => Body::File(bytes(content)),
                None => Body::Directory(BTreeMap::new()),
            };
            let inode = disk.add(Inode { body, mode: entry.mode, owner: entry.owner });
            if let Some(name) = name.file_name() {
                let parent = disk.parent(&folder.join(tree.0.keys().nth(inode).unwrap()));
                let Body::Directory(entries) = &mut disk.inodes[parent].synced.body else { unreachable!() };
                entries.insert(name.to_owned(), inode);
            }
        }
        disk
    }

    fn add(&mut self, inode: Inode) -> usize {
        self.inodes.push(Kept { synced: inode, since: Vec::new() });
        self.inodes.len() - 1
    }

    /// What bears this name now.
    fn find(&self, path: &Path) -> usize {
        let names = path.strip_prefix(&self.folder).unwrap().components();
        names.fold(0, |inode, name| match self.inodes[inode].now().body {
            Body::Directory(entries) => {
                *entries.get(name.as_os_str()).unwrap_or_else(|| panic!("there is no {}", path.display()))
            }
            Body::File(_) => panic!("{} is below a file", path.display()),
        })
    }

    fn parent(&self, path: &Path) -> usize {
        self.find(path.parent().unwrap())
    }

    fn change(&mut self, path: &Path, change: Change) {
        let inode = self.find(path);
        self.inodes[inode].since.push(change);
    }

    fn name(&mut self, path: &Path, inode: Option<usize>) {
        let name = path.file_name().unwrap().to_owned();
        self.change(path.parent().unwrap(), Change::Names(vec![(name, inode)]));
    }

    /// Takes a call in.
    pub fn after(&mut self, call: &Call) {
        match call {
            Call::Create(path, mode) => {
                let inode = self.add(Inode { body: Body::File(Vec::new()), mode: *mode, owner: (0, 0) });
                self.name(path, Some(inode));
            }
            Call::MakeDirectory(path, mode) => {
                let body = Body::Directory(BTreeMap::new());
                let inode = self.add(Inode { body, mode: *mode, owner: (0, 0) });
                self.name(path, Some(inode));
            }
            Call::Write(path, Bytes(bytes)) => self.change(path, Change::Append(bytes.clone())),
            Call::Mode(path, mode) => self.change(path, Change::Mode(*mode)),
            Call::Owner(path, user, group) => self.change(path, Change::Owner(*user, *group)),
            Call::Change(path) => panic!("not known to the model: a change of {}", path.display()),
            Call::Sync(path) => {
                let inode = self.find(path);
                let kept = &mut self.inodes[inode];
                *kept = Kept { synced: kept.now(), since: Vec::new() };
            }
            Call::Rename(from, to) => {
                assert_eq!(from.parent(), to.parent(), "not known to the model: two directories");
                let inode = self.find(from);
                let name = |path: &Path| path.file_name().unwrap().to_owned();
                let names = vec![(name(from), None), (name(to), Some(inode))];
                self.change(from.parent().unwrap(), Change::Names(names));
            }
            Call::Unlink(path) | Call::RemoveDirectory(path) => self.name(path, None),
            Call::Signal | Call::Report => {}
        }
    }

    /// What a look at it shows while the power is there.
    pub fn now(&self) -> Tree {
        let inodes: Vec<Inode> = self.inodes.iter().map(Kept::now).collect();
        tree(&inodes)
    }

    /// All that it may hold if the power goes now.
    pub fn possible(&self) -> BTreeSet<Tree> {
        let mut disks: Vec<Vec<Inode>> = vec![Vec::new()];
        for kept in &self.inodes {
            let possible = kept.possible();
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
        disks.iter().map(|inodes| tree(inodes)).collect()
    }
}

fn tree(inodes: &[Inode]) -> Tree {
    fn grow(inodes: &[Inode], number: usize, name: PathBuf, tree: &mut Tree) {
        let Inode { body, mode, owner } = &inodes[number];
        let content = match body {
            Body::File(bytes) => Some(text(bytes)),
            Body::Directory(entries) => {
                for (entry, inode) in entries {
                    grow(inodes, *inode, name.join(entry), tree);
                }
                None
            }
        };
        tree.0.insert(name, Entry { content, mode: *mode, owner: *owner });
    }
    let mut grown = Tree::default();
    grow(inodes, 0, PathBuf::new(), &mut grown);
    grown
}
