//! The edit of one file as a value. A plan holds it, the intent records it, and it has an inverse (KP-7.4).

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::authorized_keys;
use super::block::{self, BlockEdit, Segment};
use super::content::SharedBytes;
use super::path_bytes;
use super::public_key::PublicKey;
use super::sshd_config;
use super::types::ContentHash;

/// The kind of a file. It decides by which rules the agent reaches and writes the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FileKind {
    /// The authorized_keys file of this user (KP-5.1).
    AuthorizedKeys {
        /// The user's login name.
        user: String,
        /// The user's id. The agent reaches the file with this id even if the name has changed. Absent before 3.2.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        uid: Option<u32>,
        /// The keys by which the agent recognises its line in the file. Empty if no key is known.
        known: Vec<PublicKey>,
    },
    /// A file of sshd's configuration, which only root may write (KP-6.12).
    SshdConfig,
}

impl FileKind {
    /// The agent's segments in such a file.
    pub fn find_managed_segments(&self, content: &[u8]) -> Vec<Segment> {
        match self {
            Self::AuthorizedKeys { known, .. } => authorized_keys::find_managed_keys(content, known),
            Self::SshdConfig => sshd_config::find_managed_in_main(content),
        }
    }
}

/// The change of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FileChange {
    /// The change of the agent's block in a file that the agent does not own.
    Block(BlockEdit),
    /// The change of a file that the agent owns as a whole: the drop-in.
    #[serde(rename_all = "camelCase")]
    Whole {
        /// The text before the edit. `None` if there was no file.
        before: Option<String>,
        /// The text after the edit. `None` if the edit removes the file.
        after: Option<String>,
        /// The bytes of `before` if they are not UTF-8. Absent before 3.2, which reads only the text.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        raw_before: Option<Base64Bytes>,
    },
}

/// Bytes, in base64.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Base64Bytes(#[serde(with = "block::base64_bytes")] Vec<u8>);

/// The edit of one file, with the bytes for which it was planned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEdit {
    /// The path of the file.
    pub path: PathBuf,
    /// The kind of the file.
    pub kind: FileKind,
    /// The change of the file.
    pub change: FileChange,
    /// The bytes that the agent observed. `None` if there was no file.
    pub before: Option<SharedBytes>,
    /// The bytes after the edit. `None` if the edit removes the file.
    pub after: Option<SharedBytes>,
    /// The directory that the agent creates for the file.
    pub creates_directory: Option<PathBuf>,
    /// For a key file: the mount point of its file system.
    pub mount: Option<PathBuf>,
}

impl FileEdit {
    /// Creates the edit of the agent's block in `content`. `None` if it changes nothing.
    pub fn edit_block(
        path: &Path,
        kind: FileKind,
        content: Option<SharedBytes>,
        inserted: Vec<u8>,
    ) -> Option<Self> {
        let present = content.as_deref().unwrap_or_default();
        let edit = BlockEdit { removed: kind.find_managed_segments(present), inserted };
        let after = edit.apply(present);
        (after != present).then(|| Self {
            path: path.to_owned(),
            kind,
            change: FileChange::Block(edit),
            before: content,
            after: Some(after.into()),
            creates_directory: None,
            mount: None,
        })
    }

    /// Creates the edit of the agent's drop-in. `None` if it changes nothing. Lines in it that are not the agent's
    /// stay, behind the agent's lines.
    pub fn edit_drop_in(path: &Path, before: Option<&[u8]>, ours: Option<String>) -> Option<Self> {
        let Some(content) = before.filter(|content| !sshd_config::has_only_managed_lines(content)) else {
            return (before.is_some() || ours.is_some()).then(|| Self::replace_file(path, before, ours));
        };
        let inserted = ours.map(String::into_bytes).unwrap_or_default();
        let edit = BlockEdit { removed: sshd_config::find_managed_in_drop_in(content), inserted };
        let after = edit.apply(content);
        (after != content).then(|| Self {
            path: path.to_owned(),
            kind: FileKind::SshdConfig,
            change: FileChange::Block(edit),
            before: Some(content.to_vec().into()),
            after: Some(after.into()),
            creates_directory: None,
            mount: None,
        })
    }

    /// Creates the edit of a file that the agent owns as a whole.
    pub fn replace_file(path: &Path, before: Option<&[u8]>, after: Option<String>) -> Self {
        Self {
            path: path.to_owned(),
            kind: FileKind::SshdConfig,
            change: FileChange::Whole {
                before: before.map(|bytes| String::from_utf8_lossy(bytes).into_owned()),
                after: after.clone(),
                raw_before: before
                    .filter(|bytes| std::str::from_utf8(bytes).is_err())
                    .map(|bytes| Base64Bytes(bytes.to_vec())),
            },
            before: before.map(|bytes| bytes.to_vec().into()),
            after: after.map(|text| text.into_bytes().into()),
            creates_directory: None,
            mount: None,
        }
    }

    /// The record of this edit in the agent's state.
    pub fn to_intent(&self) -> FileIntent {
        FileIntent {
            path: self.path.clone(),
            kind: self.kind.clone(),
            change: self.change.clone(),
            hash_before: self.before.as_deref().map(ContentHash::from_content),
            hash_after: self.after.as_deref().map(ContentHash::from_content),
            creates_directory: self.creates_directory.clone(),
            mount: self.mount.clone(),
        }
    }
}

/// Whether the block contains this key.
fn block_contains_key(block: &[u8], key: &PublicKey) -> bool {
    authorized_keys::parse_key_lines(block).any(|line| line.key == *key)
}

/// The data that undoes a [`FileEdit`]: the agent's former lines, and hashes of the file before and after. It never
/// holds the bytes of the whole file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileIntent {
    /// The path of the file.
    #[serde(with = "path_bytes")]
    pub path: PathBuf,
    /// The kind of the file.
    pub kind: FileKind,
    /// The planned change.
    pub change: FileChange,
    /// The file's hash before the edit. `None` if there was no file.
    pub hash_before: Option<ContentHash>,
    /// The file's hash after the edit. `None` if the edit removes the file.
    pub hash_after: Option<ContentHash>,
    /// The directory that the edit creates for the file.
    #[serde(default, with = "path_bytes::option")]
    pub creates_directory: Option<PathBuf>,
    /// The mount point that held the file. Absent before 3.2, and for sshd's files.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "path_bytes::option")]
    pub mount: Option<PathBuf>,
}

/// How to revert an edit, given the present file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inverse {
    /// Nothing to do: the file is as it was before the edit, or it holds nothing of the agent's.
    Unchanged,
    /// Replace the file's content with these bytes.
    Replace(Vec<u8>),
    /// Remove the file and the directory that was created for it: the edit created the file, and it is unchanged
    /// since.
    Remove,
    /// Leave the file alone: the agent's block or drop-in matches neither the state before nor the state after the
    /// edit, so a user or program changed it.
    Conflict,
}

impl FileIntent {
    /// Whether the edit removes a key of the agent's. The revert of such an edit allows a login. The revert of any
    /// other edit removes a key.
    pub fn removes_key(&self) -> bool {
        matches!(&self.change, FileChange::Block(edit) if !edit.removed.is_empty())
    }

    /// Whether the edit adds this key.
    pub fn adds_key(&self, key: &PublicKey) -> bool {
        matches!(&self.change, FileChange::Block(edit) if block_contains_key(&edit.inserted, key))
    }

    /// The part of the revert that is still due if `bound` is the key that is bound now. `None` if nothing is due. A
    /// key that the edit added and that is bound again stays. A key that is no longer bound does not come back.
    #[must_use]
    pub fn pending_revert(mut self, bound: Option<&PublicKey>) -> Option<Self> {
        if bound.is_some_and(|bound| self.adds_key(bound)) {
            return None;
        }
        if let FileChange::Block(edit) = &mut self.change
            && !bound.is_some_and(|bound| block_contains_key(&block::join_segments(&edit.removed), bound))
        {
            edit.removed.clear();
        }
        Some(self)
    }

    /// The agent's segments in the present file.
    pub fn find_managed_segments(&self, now: &[u8]) -> Vec<Segment> {
        match self.kind {
            FileKind::SshdConfig if sshd_config::is_managed_drop_in(&self.path) => {
                sshd_config::find_managed_in_drop_in(now)
            }
            _ => self.kind.find_managed_segments(now),
        }
    }

    /// Whether two forms of the agent's lines mean the same. In sshd's files only the directives count.
    fn has_same_meaning(&self, one: &[u8], other: &[u8]) -> bool {
        let directives = sshd_config::parse_managed_directives;
        match self.kind {
            FileKind::SshdConfig => {
                one.is_empty() == other.is_empty() && directives(one) == directives(other)
            }
            FileKind::AuthorizedKeys { .. } => one == other,
        }
    }

    /// The inverse of an edit of the whole drop-in if the file was changed since. Lines that are not the agent's
    /// stay, provided that the agent's lines are as the edit left them.
    fn revert_whole_file(&self, before: Option<&[u8]>, after: Option<&str>, now: &[u8]) -> Inverse {
        let found = self.find_managed_segments(now);
        let current = block::join_segments(&found);
        let ours = |content: &[u8]| block::join_segments(&self.find_managed_segments(content));
        if self.has_same_meaning(&current, &ours(before.unwrap_or_default())) {
            return Inverse::Unchanged;
        }
        if !self.has_same_meaning(&current, &ours(after.unwrap_or_default().as_bytes())) {
            return Inverse::Conflict;
        }
        let rest = block::remove_segments(now, found);
        match before {
            None if rest.iter().all(u8::is_ascii_whitespace) => Inverse::Remove,
            before => Inverse::Replace(block::prepend_lines(before.unwrap_or_default(), &rest)),
        }
    }

    /// The inverse for the present content `now`. `None` means that there is no file.
    pub fn inverse(&self, now: Option<&[u8]>) -> Inverse {
        let hash = now.map(ContentHash::from_content);
        if hash == self.hash_before {
            return Inverse::Unchanged;
        }
        let untouched = hash == self.hash_after;
        match (&self.change, now) {
            (_, Some(_)) if untouched && self.hash_before.is_none() => Inverse::Remove,
            (FileChange::Block(edit), Some(now)) if untouched => match edit.revert(now) {
                Some(before) => Inverse::Replace(before),
                None => Inverse::Conflict,
            },
            (FileChange::Block(edit), Some(now)) => {
                let is_same = |one: &[u8], other: &[u8]| self.has_same_meaning(one, other);
                match edit.revert_edited(now, self.find_managed_segments(now), is_same) {
                    Some(edited) if edited == now => Inverse::Unchanged,
                    Some(edited) => Inverse::Replace(edited),
                    None => Inverse::Conflict,
                }
            }
            (FileChange::Block(_), None) => Inverse::Unchanged,
            (FileChange::Whole { before, after, raw_before }, now) => {
                let raw = raw_before.as_ref().map(|Base64Bytes(bytes)| bytes.as_slice());
                let before = raw.or(before.as_deref().map(str::as_bytes));
                match (before, now) {
                    (Some(before), _) if untouched => Inverse::Replace(before.to_vec()),
                    (before, Some(now)) => self.revert_whole_file(before, after.as_deref(), now),
                    (_, None) => Inverse::Conflict,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn drop_in_intent(before: Option<&str>, after: Option<&str>) -> FileIntent {
        FileEdit::replace_file(
            Path::new("/d/00-keypair-agent.conf"),
            before.map(str::as_bytes),
            after.map(str::to_owned),
        )
        .to_intent()
    }

    /// KP-7.4.
    #[test]
    fn drop_in_revert_keeps_foreign_changes() {
        let (yes, no) = ("PasswordAuthentication yes\n", "PasswordAuthentication no\n");
        let theirs = "KbdInteractiveAuthentication no\nX11Forwarding no\n";
        let replace = |text: String| Inverse::Replace(text.into_bytes());
        let made = drop_in_intent(None, Some(no));
        assert_eq!(made.inverse(None), Inverse::Unchanged);
        assert_eq!(made.inverse(Some(no.as_bytes())), Inverse::Remove);
        assert_eq!(made.inverse(Some(b"X11Forwarding no\n")), Inverse::Unchanged);
        assert_eq!(made.inverse(Some(theirs.as_bytes())), Inverse::Conflict);
        let changed = drop_in_intent(Some(yes), Some(no));
        assert_eq!(changed.inverse(Some(yes.as_bytes())), Inverse::Unchanged);
        assert_eq!(changed.inverse(Some(no.as_bytes())), replace(yes.to_owned()));
        assert_eq!(changed.inverse(Some(theirs.as_bytes())), Inverse::Conflict);
        let removed = drop_in_intent(Some(no), None);
        assert_eq!(removed.inverse(None), replace(no.to_owned()));
        assert_eq!(removed.inverse(Some(theirs.as_bytes())), Inverse::Conflict);
        assert_eq!(removed.inverse(Some(b"# mine")), replace(format!("{no}# mine")));
        // Lines that a user wrote beside the agent's lines stay, even if the user changed the agent's comments.
        let now = "# keypair-agent: x\nPasswordAuthentication no\n# mine";
        assert_eq!(made.inverse(Some(now.as_bytes())), replace("# mine".to_owned()));
        assert_eq!(changed.inverse(Some(now.as_bytes())), replace(format!("{yes}# mine")));
    }

    #[test]
    fn drop_in_edit_keeps_foreign_lines() {
        let path = Path::new("/d/00-keypair-agent.conf");
        let theirs = b"# caf\xe9\r\nX11Forwarding no\r\nMatch User bob\nPasswordAuthentication yes";
        let no = b"# keypair-agent: x\nPasswordAuthentication no\n".as_slice();
        let before = [no, theirs].concat();
        let yes = "# keypair-agent: y\nPasswordAuthentication yes\n";
        let edit = FileEdit::edit_drop_in(path, Some(&before), Some(yes.to_owned())).unwrap();
        let after = [yes.as_bytes(), theirs].concat();
        assert_eq!(edit.after.as_deref(), Some(after.as_slice()));
        let read: FileIntent =
            serde_json::from_str(&serde_json::to_string(&edit.to_intent()).unwrap()).unwrap();
        assert_eq!(read.inverse(Some(&after)), Inverse::Replace(before.clone()));
        assert_eq!(read.inverse(Some(&before)), Inverse::Unchanged);
        let edited = [yes.as_bytes(), b"UsePAM no\n", theirs].concat();
        assert_eq!(read.inverse(Some(&edited)), Inverse::Replace([no, b"UsePAM no\n", theirs].concat()));
        // Without the agent's lines only the user's lines are left. Then nothing is left to do.
        let out = FileEdit::edit_drop_in(path, Some(&before), None).unwrap();
        assert_eq!(out.after.as_deref(), Some(theirs.as_slice()));
        assert_eq!(out.to_intent().inverse(Some(theirs)), Inverse::Replace(before.clone()));
        assert_eq!(FileEdit::edit_drop_in(path, Some(theirs), None), None);
        assert_eq!(FileEdit::edit_drop_in(path, Some(no), None).unwrap().after, None);
        assert_eq!(FileEdit::edit_drop_in(path, None, None), None);
    }

    /// KP-3.36.
    #[test]
    fn non_utf8_bytes_round_trip_in_both_formats() {
        let before = b"# caf\xe9\nPasswordAuthentication yes\n";
        let edit = FileEdit::replace_file(
            Path::new("/d/00-keypair-agent.conf"),
            Some(before),
            Some("ours\n".into()),
        );
        let written = serde_json::to_string(&edit.to_intent()).unwrap();
        let read: FileIntent = serde_json::from_str(&written).unwrap();
        assert_eq!(read.inverse(Some(b"ours\n")), Inverse::Replace(before.to_vec()));
        // 3.1.0 knows neither `rawBefore` nor `uid`. The agent must still read a record that 3.1.0 wrote.
        let old = r#"{"path":"/d/x","kind":"sshdConfig","change":{"whole":{"before":"old\n","after":null}},
                      "hashBefore":null,"hashAfter":null,"createsDirectory":null}"#;
        let old: FileIntent = serde_json::from_str(old).unwrap();
        assert!(matches!(old.change, FileChange::Whole { raw_before: None, .. }));
        let kind: FileKind = serde_json::from_str(r#"{"authorizedKeys":{"user":"u","known":[]}}"#).unwrap();
        assert_eq!(kind, FileKind::AuthorizedKeys { user: "u".into(), uid: None, known: Vec::new() });
        assert_eq!(serde_json::to_string(&kind).unwrap(), r#"{"authorizedKeys":{"user":"u","known":[]}}"#);
        let text = serde_json::to_string(&drop_in_intent(Some("old\n"), None).change).unwrap();
        assert_eq!(text, r#"{"whole":{"before":"old\n","after":null}}"#);
    }

    /// KP-7.4.
    #[test]
    fn block_revert_keeps_user_edits() {
        let block = b"# BEGIN keypair-agent\nPasswordAuthentication no\n# END keypair-agent\n".to_vec();
        let made = FileEdit::edit_block(
            Path::new("/c"),
            FileKind::SshdConfig,
            Some(b"Port 22\n".to_vec().into()),
            block,
        )
        .unwrap();
        let after = made.after.clone().unwrap();
        let intent = made.to_intent();
        assert_eq!(intent.inverse(Some(b"Port 22\n")), Inverse::Unchanged);
        assert_eq!(intent.inverse(Some(&after)), Inverse::Replace(b"Port 22\n".to_vec()));
        let edited = [&after[..], b"UsePAM yes\n"].concat();
        assert_eq!(intent.inverse(Some(&edited)), Inverse::Replace(b"Port 22\nUsePAM yes\n".to_vec()));
        assert_eq!(intent.inverse(Some(b"Port 22\nUsePAM yes\n")), Inverse::Unchanged);
        let foreign =
            String::from_utf8(after.to_vec()).unwrap().replace("Authentication no", "Authentication yes");
        assert_eq!(intent.inverse(Some(foreign.as_bytes())), Inverse::Conflict);
        assert_eq!(intent.inverse(None), Inverse::Unchanged);
    }
}
