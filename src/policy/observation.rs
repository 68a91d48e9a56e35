//! What was seen of the guest: facts alone, so that every rule can be judged from a table.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use super::effective::Effective;

/// The target user as passwd(5) and group(5) have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Primary group's id.
    pub gid: u32,
    /// Home directory, as passwd(5) names it.
    pub home: PathBuf,
    /// Login shell.
    pub shell: PathBuf,
    /// The names of all groups he is in, the primary one first.
    pub groups: Vec<String>,
    /// Whether he alone is in his primary group (Debian's sshd then accepts a group-writable path).
    pub group_is_private: bool,
}

/// What a directory entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// Anything else.
    Other,
}

/// Owner and mode of one component of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathFact {
    /// The component, as a whole path.
    pub path: PathBuf,
    /// What it is.
    pub kind: EntryKind,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits (07777).
    pub mode: u32,
}

/// The target user's authorized_keys file, reached safely (contract 5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFile {
    /// Where it is, tokens expanded.
    pub path: PathBuf,
    /// Its bytes; `None` where there is no such file.
    pub content: Option<Vec<u8>>,
    /// Its directory, where that does not exist yet and would be made.
    pub missing_directory: Option<PathBuf>,
    /// What StrictModes looks at, the file first, then its directories up to the home (or `/`); what does
    /// not exist yet is not listed.
    pub path_facts: Vec<PathFact>,
}

/// The five words of `sshd -T -C` (contract 6, "For whom").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// `user=`.
    pub user: String,
    /// `host=`.
    pub host: String,
    /// `addr=`.
    pub addr: IpAddr,
    /// `laddr=`.
    pub laddr: IpAddr,
    /// `lport=`.
    pub lport: u16,
}

/// What `sshd -T -C` says for one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// For whom it was asked.
    pub connection: Connection,
    /// What holds for him.
    pub effective: Effective,
}

/// sshd's configuration files as they stand: the main file and all that its Include directives lead to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConfigTree {
    /// The main file.
    pub main: PathBuf,
    /// Every file's bytes.
    pub files: BTreeMap<PathBuf, Vec<u8>>,
    /// For each Include directive, by file and line (from 1): what each of its patterns leads to.
    pub includes: BTreeMap<(PathBuf, usize), Vec<Included>>,
}

/// One pattern of an Include directive and the files it leads to, in the order sshd reads them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Included {
    /// The pattern, made absolute.
    pub pattern: PathBuf,
    /// Whether the directory of the pattern exists (asked only where it holds no wildcard).
    pub directory_exists: bool,
    /// What it matches.
    pub files: Vec<PathBuf>,
}

/// How a changed configuration reaches the running sshd (contract 6, "Reload").
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reload {
    /// `systemctl reload` of this active unit.
    Unit(String),
    /// `systemctl reset-failed` and `try-restart` of this active unit, which a socket started.
    SocketUnit(String),
    /// SIGHUP to this pid, whose sshd was started with this command line.
    Pid {
        /// The listener.
        pid: i32,
        /// Its arguments, the program first.
        arguments: Vec<String>,
    },
    /// Nothing runs that would have to be told; the text says what was found.
    None(String),
}

/// The sshd of this guest, asked (contract 6, "Whom we ask").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sshd {
    /// The program.
    pub binary: PathBuf,
    /// The running listener's options (`-o`, `-p`, …) that every question repeats; never `-f`.
    pub options: Vec<String>,
    /// Whether those options come from a running listener.
    pub running: bool,
    /// Whether the main file may be written: not sshd's own default elsewhere than /etc/ssh.
    pub main_is_writable: bool,
    /// The files as they stand.
    pub config: ConfigTree,
    /// What they say now for each connection that must say what was asked; the first one is reported.
    pub answers: Vec<Answer>,
    /// How a change is made live.
    pub reload: Reload,
}
