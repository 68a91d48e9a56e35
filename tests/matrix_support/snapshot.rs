//! Every byte, mode and owner that the agent may change.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::guest::NamespaceGuest;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot(BTreeMap<PathBuf, SnapshotEntry>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct SnapshotEntry {
    kind: &'static str,
    mode: u32,
    owner: (u32, u32),
    content: Vec<u8>,
}

impl Snapshot {
    /// Captures sshd's configuration, the home, the directory of the key file, and the row's further paths.
    pub fn capture(guest: &NamespaceGuest<'_>, home: &Path, others: &[PathBuf]) -> Self {
        let mut snapshot = Self(BTreeMap::new());
        snapshot.add_entry(guest, home);
        for path in [Path::new("/etc/ssh"), Path::new("/usr/etc/ssh"), &home.join(".ssh")] {
            snapshot.add_tree(guest, path);
        }
        for path in others {
            snapshot.add_tree(guest, path);
        }
        snapshot
    }

    fn add_entry(&mut self, guest: &NamespaceGuest<'_>, path: &Path) -> bool {
        let real = guest.host_path(path);
        let Ok(metadata) = real.symlink_metadata() else { return false };
        let (kind, content) = if metadata.is_dir() {
            ("directory", Vec::new())
        } else if metadata.is_symlink() {
            ("link", fs::read_link(&real).unwrap().into_os_string().into_encoded_bytes())
        } else if metadata.is_file() {
            ("file", fs::read(&real).unwrap_or_default())
        } else {
            ("special", Vec::new())
        };
        let owner = (metadata.uid(), metadata.gid());
        self.0
            .insert(path.to_owned(), SnapshotEntry { kind, mode: metadata.mode() & 0o7777, owner, content });
        metadata.is_dir()
    }

    fn add_tree(&mut self, guest: &NamespaceGuest<'_>, path: &Path) {
        if self.add_entry(guest, path) {
            for entry in fs::read_dir(guest.host_path(path)).unwrap().flatten() {
                self.add_tree(guest, &path.join(entry.file_name()));
            }
        }
    }

    /// The content of a file; empty if there is none.
    pub fn content(&self, path: &Path) -> &[u8] {
        self.0.get(path).map(|entry| entry.content.as_slice()).unwrap_or_default()
    }

    /// Without the key file and its directory, if `before` had none and the file is empty: the agent leaves them.
    pub fn without_empty_leftovers(mut self, before: &Self, key_file: &Path) -> Self {
        if !before.0.contains_key(key_file) && self.content(key_file).is_empty() {
            self.0.remove(key_file);
        }
        if let Some(directory) = key_file.parent()
            && !before.0.contains_key(directory)
            && !self.0.keys().any(|path| path.parent() == Some(directory))
        {
            self.0.remove(directory);
        }
        self
    }

    /// Whether sshd's own files differ.
    pub fn has_sshd_changes(&self, other: &Self, key_file: &Path) -> bool {
        self.list_changes(other).iter().any(|(path, _)| {
            path != key_file && (path.starts_with("/etc/ssh") || path.starts_with("/usr/etc/ssh"))
        })
    }

    fn list_changes(&self, now: &Self) -> Vec<(PathBuf, String)> {
        let paths: std::collections::BTreeSet<&PathBuf> = self.0.keys().chain(now.0.keys()).collect();
        paths
            .into_iter()
            .filter(|path| self.0.get(*path) != now.0.get(*path))
            .map(|path| {
                let said = match (self.0.get(path), now.0.get(path)) {
                    (None, Some(entry)) => format!("is new: {entry}"),
                    (Some(_), None) => "is gone".to_owned(),
                    (Some(old), Some(new)) => format!("was {old}, is {new}"),
                    (None, None) => unreachable!(),
                };
                (path.clone(), said)
            })
            .collect()
    }

    /// A readable description of the differences from `now`; `None` if there is none.
    pub fn describe_changes(&self, now: &Self) -> Option<String> {
        let all = self.list_changes(now);
        let lines: Vec<String> =
            all.iter().map(|(path, said)| format!("{} {said}", path.display())).collect();
        (!lines.is_empty()).then(|| lines.join("; "))
    }
}

impl std::fmt::Display for SnapshotEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = self.content.escape_ascii().to_string();
        let (uid, gid) = self.owner;
        write!(f, "a {} {:o} of {uid}:{gid} `{}`", self.kind, self.mode, text.get(..300).unwrap_or(&text))
    }
}
