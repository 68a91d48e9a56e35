//! What this process and its scout say to one another: a line of JSON each. Paths and names are bytes, which need not be
//! UTF-8.

use serde::{Deserialize, Serialize};

/// What the scout is sent out for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum ScoutQuestion {
    /// The entry of passwd(5) of this name.
    Entry(Vec<u8>),
    /// The entry of this uid.
    EntryOfUid(u32),
    /// The names of all groups of a user, the primary one first.
    Groups {
        /// His login name.
        name: Vec<u8>,
        /// The primary group's id.
        gid: u32,
    },
    /// The way to a path, and what stands there, read to its end.
    Reach {
        /// The path.
        path: Vec<u8>,
        /// The mounts that did not answer before: nothing on them is touched.
        silent: Vec<MountIdentity>,
    },
    /// What a pattern of an Include directive matches.
    Expand(Vec<u8>),
    /// A file's bytes.
    Content {
        /// The path.
        path: Vec<u8>,
        /// The most that is read.
        limit: u64,
    },
}

/// What the scout says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum ScoutReply {
    /// No answer yet: it goes on to this mount.
    At(MountIdentity),
    /// `Entry` and `EntryOfUid`.
    Entry(Option<PasswdEntry>),
    /// `Groups`.
    Groups(Vec<String>),
    /// `Reach`: all of it answered, if only by an error.
    Reached,
    /// `Reach`: the way leads to a mount that did not answer before.
    Silent(MountIdentity),
    /// `Expand`.
    Expanded {
        /// Whether the pattern's directory exists.
        directory_exists: bool,
        /// The files.
        files: Vec<Vec<u8>>,
    },
    /// `Content`.
    Content(Vec<u8>),
    /// The system's error.
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

/// One mount. Another one at the same point has another device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::guest) struct MountIdentity {
    /// Where.
    pub(in crate::guest) point: Vec<u8>,
    /// `major:minor`.
    pub(in crate::guest) device: String,
    /// The type of the file system.
    pub(in crate::guest) kind: String,
}
