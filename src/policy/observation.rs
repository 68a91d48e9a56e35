//! What the agent observed of the guest. These are plain facts, so every rule can be tested with a table.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::content::SharedBytes;
use super::edit::FileEdit;
use super::effective::EffectiveConfig;

/// The target user's account, as passwd(5) and group(5) describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Primary group's id.
    pub gid: u32,
    /// Home directory, as passwd(5) states it.
    pub home: PathBuf,
    /// Login shell.
    pub shell: PathBuf,
    /// The names of all groups of the user, the primary group first.
    pub groups: Vec<String>,
}

impl Account {
    /// A placeholder for an account that passwd(5) does not contain or that the agent cannot look up.
    pub fn placeholder(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            uid: u32::MAX,
            gid: u32::MAX,
            home: PathBuf::from("/"),
            shell: PathBuf::new(),
            groups: Vec::new(),
        }
    }
}

/// The PAM module that refuses a login if nologin(5)'s file exists.
pub const PAM_NOLOGIN: &str = "pam_nologin";

/// The facts besides sshd's own settings that decide whether the target user can log in: the account as login(1) and
/// PAM judge it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// The account's entry in shadow(5).
    pub shadow: Shadow,
    /// The present day, counted from 1970 as in shadow(5).
    pub today: i64,
    /// The path of nologin(5)'s file, if it exists.
    pub nologin: Option<PathBuf>,
    /// The rules of sshd's PAM service that may refuse a login and that the agent does not evaluate.
    pub pam: Vec<PamRule>,
    /// Every account of this guest, for the witnesses and for accounts that have only a password.
    pub people: Vec<LocalAccount>,
    /// The groups of group(5), with or without members.
    pub groups: Vec<String>,
}

impl Login {
    /// nologin(5)'s file, if it blocks this account. The file blocks every account but root. With `UsePAM` sshd
    /// leaves this check to pam_nologin(8), if a rule of the service reaches that module.
    pub fn blocking_nologin_file(&self, account: &Account, effective: &EffectiveConfig) -> Option<&Path> {
        let by_pam = || self.pam.iter().any(|rule| rule.refuses && rule.module == PAM_NOLOGIN);
        let file = self.nologin.as_deref().filter(|_| account.uid != 0)?;
        (!effective.is_yes("usepam") || by_pam()).then_some(file)
    }
}

/// The content of shadow(5) for an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shadow {
    /// shadow(5) cannot be read. The text gives the cause.
    Unreadable(String),
    /// The account has no entry although its entry in passwd(5) refers to shadow(5). Then pam_unix(8) refuses the
    /// login.
    NoEntry,
    /// The account's entry.
    Entry(ShadowEntry),
}

/// An entry of shadow(5). Days count from 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShadowEntry {
    /// Whether the password field begins with `!`.
    pub is_locked: bool,
    /// Whether the password field is the hash of some password.
    pub has_password: bool,
    /// Whether the password field is empty: the user then needs no password if the configuration permits that.
    pub is_empty: bool,
    /// The day of the last password change. 0 forces a change.
    pub last_change: Option<i64>,
    /// The number of days that the password is valid.
    pub maximum: Option<i64>,
    /// The number of days after that in which the user can still change the password.
    pub inactive: Option<i64>,
    /// The day on which the account expires.
    pub expires: Option<i64>,
}

/// A rule of pam.d(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PamRule {
    /// The path of the file.
    pub file: PathBuf,
    /// The line in the file, from 1.
    pub line: usize,
    /// The module without its directory and suffix, or another cause of the refusal.
    pub module: String,
    /// Whether the rule certainly refuses. If false, it may refuse.
    pub refuses: bool,
}

/// An account of this guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalAccount {
    /// The account's data.
    pub account: Account,
    /// Whether the account has a password. False if shadow(5) cannot be read.
    pub has_password: bool,
    /// Whether the account has a key of its own in the file that sshd reads for it. The agent checks this only for an
    /// account with a password.
    pub has_key: bool,
}

/// Identifies a file by its directory (device, inode) and its name there, however the path is spelt. If the directory
/// does not exist: the deepest existing directory and the rest of the path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileId {
    /// The device of the directory.
    pub device: u64,
    /// The inode of the directory.
    pub inode: u64,
    /// The rest of the path: the names of missing directories, then the file's name.
    pub name: PathBuf,
}

/// The account with which the agent reaches a file that may hold its block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFileOwner {
    /// The account. A placeholder if the bound user no longer exists.
    pub account: Account,
    /// Whether the bound user still exists.
    pub fate: UserStatus,
}

/// The present status of a user whom the agent recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UserStatus {
    /// The user exists with the same uid.
    Present,
    /// The user's name does not exist or belongs to another account. The user's uid belongs to this account.
    Renamed,
    /// Neither the user's name nor the user's uid exists.
    Gone,
}

/// The target user's authorized_keys file, which the agent reached safely (KP-5.11).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFile {
    /// The file's path, with its tokens expanded.
    pub path: PathBuf,
    /// The file's identity: two paths with the same identity are the same file.
    pub id: FileId,
    /// The mount point of the file's file system. `None` if the agent cannot determine it.
    pub mount: Option<PathBuf>,
    /// The file's bytes. `None` if there is no such file.
    pub content: Option<SharedBytes>,
    /// The file's directory, if it does not exist yet and the agent would create it.
    pub missing_directory: Option<PathBuf>,
}

impl KeyFile {
    /// The file's path and bytes.
    pub fn path_and_content(&self) -> (PathBuf, SharedBytes) {
        (self.path.clone(), self.content.clone().unwrap_or_default())
    }
}

/// The five parameters of `sshd -T -C` (KP-6.6).
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
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

impl Connection {
    /// Whether such a connection can arrive. sshd's IPv6 sockets accept no IPv4 connection (`IPV6_V6ONLY`, ipv6(7)).
    pub fn is_single_family(&self) -> bool {
        self.addr.is_ipv4() == self.laddr.is_ipv4()
    }
}

/// The answer of `sshd -T -C` for one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshdAnswer {
    /// The connection of the query.
    pub connection: Connection,
    /// The effective settings for that connection.
    pub effective: EffectiveConfig,
}

/// sshd's configuration files as they are now: the main file and all files that its Include directives reach.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConfigTree {
    /// The path of the main file.
    pub main: PathBuf,
    /// The bytes of every file, each file under only one path. It also contains drop-ins of the agent's that no
    /// Include reaches.
    pub files: BTreeMap<PathBuf, Vec<u8>>,
    /// The result of each pattern of each Include directive, by the directive's file and line (from 1).
    pub includes: BTreeMap<(PathBuf, usize), Vec<IncludedFiles>>,
}

impl ConfigTree {
    /// Returns the tree after these edits.
    #[must_use]
    pub fn with_edits(&self, edits: &[FileEdit]) -> Self {
        let mut tree = self.clone();
        for edit in edits {
            match &edit.after {
                Some(content) => drop(tree.files.insert(edit.path.clone(), content.to_vec())),
                None => drop(tree.files.remove(&edit.path)),
            }
        }
        tree
    }

    /// Returns a file that differs between the two trees or exists in only one of them.
    pub fn first_difference<'a>(&'a self, other: &'a Self) -> Option<&'a Path> {
        let is_same = |path: &PathBuf| self.files.get(path) == other.files.get(path);
        self.files.keys().chain(other.files.keys()).find(|path| !is_same(path)).map(PathBuf::as_path)
    }
}

/// One pattern of an Include directive and its files, in the order in which sshd reads them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncludedFiles {
    /// The pattern as an absolute path.
    pub pattern: PathBuf,
    /// Whether the pattern's directory exists. The agent checks this only if the directory contains no wildcard.
    pub directory_exists: bool,
    /// The files that the pattern matches.
    pub files: Vec<PathBuf>,
}

/// How the agent makes the running sshd load a changed configuration (KP-6.22).
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ReloadMethod {
    /// `systemctl reload` of this active unit.
    Unit(String),
    /// `systemctl reset-failed` and `try-restart` of this active unit, which a socket unit started.
    SocketUnit(String),
    /// SIGHUP to this pid. The sshd with this pid was started with this command line.
    Pid {
        /// The listener's process id.
        pid: i32,
        /// The listener's arguments, the program first.
        arguments: Vec<String>,
    },
    /// No process needs a reload. The text says what the agent found.
    None(String),
}

/// The sshd of this guest and its answers (KP-6.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sshd {
    /// The path of the program.
    pub binary: PathBuf,
    /// The running listener's options (`-o`, `-p`, …), which the agent repeats in every query. Never `-f`.
    pub options: Vec<String>,
    /// Whether a process listens for sshd: either these options come from a running listener, or a socket unit starts
    /// one sshd per connection.
    pub running: bool,
    /// Whether a socket unit listens in sshd's place or is about to. sshd then starts with the first connection.
    pub is_awaited: bool,
    /// Whether the agent may write the main file. False if it is sshd's built-in default and not in /etc/ssh.
    pub main_is_writable: bool,
    /// The configuration files as they are now.
    pub config: ConfigTree,
    /// sshd's present answer for each connection that must have the requested setting. The result reports the first
    /// one.
    pub answers: Vec<SshdAnswer>,
    /// How the agent activates a change.
    pub reload: ReloadMethod,
    /// Whether the listener has read its files as they are now. `None` if the agent cannot determine it.
    pub has_read_its_files: Option<bool>,
    /// Other listeners of this guest. The agent neither queries nor reloads them.
    pub others: Vec<OtherListener>,
}

/// An sshd that listens beside the one that the agent queries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherListener {
    /// Its process id.
    pub pid: i32,
    /// Its title or command line.
    pub line: String,
    /// The ports on which it listens. Empty if the agent cannot read them.
    pub ports: Vec<u16>,
}
