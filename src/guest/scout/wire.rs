//! The messages between this process and its scout, one JSON object per line. Paths and names are bytes, because
//! they need not be UTF-8.

use serde::{Deserialize, Serialize};

/// A question to the scout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum ScoutQuestion {
    /// The passwd(5) entry of this name.
    Entry(Vec<u8>),
    /// The passwd(5) entry of this uid.
    EntryOfUid(u32),
    /// The names of all groups of a user, the primary one first.
    Groups {
        /// The user's login name.
        name: Vec<u8>,
        /// The primary group's id.
        gid: u32,
    },
    /// Whether each component of a path responds; the entry at its end is read to the end.
    Reach {
        /// The path.
        path: Vec<u8>,
        /// The mounts that did not respond before. The scout must not access them.
        silent: Vec<MountIdentity>,
    },
    /// The files that a pattern of an Include directive matches.
    Expand(Vec<u8>),
    /// A file's bytes.
    Content {
        /// The path.
        path: Vec<u8>,
        /// The maximum number of bytes to read.
        limit: u64,
    },
}

/// A message from the scout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum ScoutReply {
    /// Not the answer yet: the scout is about to access this mount.
    At(MountIdentity),
    /// The answer to `Entry` and `EntryOfUid`.
    Entry(Option<PasswdEntry>),
    /// The answer to `Groups`.
    Groups(Vec<String>),
    /// The answer to `Reach`: every component responded, possibly with an error.
    Reached,
    /// The answer to `Reach`: the path leads to a mount that did not respond before.
    Silent(MountIdentity),
    /// The answer to `Expand`.
    Expanded {
        /// Whether the pattern's directory exists.
        directory_exists: bool,
        /// The matching files.
        files: Vec<Vec<u8>>,
    },
    /// The answer to `Content`.
    Content(Vec<u8>),
    /// The system's errno.
    Failed(i32),
}

/// An entry of passwd(5).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::guest) struct PasswdEntry {
    /// Login name.
    pub(in crate::guest) name: String,
    /// User id.
    pub(in crate::guest) uid: u32,
    /// Primary group's id.
    pub(in crate::guest) gid: u32,
    /// Home directory.
    pub(in crate::guest) home: Vec<u8>,
    /// Login shell.
    pub(in crate::guest) shell: Vec<u8>,
}

/// One mount. A different mount at the same point has another device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::guest) struct MountIdentity {
    /// The mount point.
    pub(in crate::guest) point: Vec<u8>,
    /// `major:minor`.
    pub(in crate::guest) device: String,
    /// The type of the file system.
    pub(in crate::guest) kind: String,
}
