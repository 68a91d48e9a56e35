//! What was seen of the guest: facts alone, so that every rule can be judged from a table.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::content::SharedBytes;
use super::edit::FileEdit;
use super::effective::EffectiveConfig;

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
}

impl Account {
    /// What stands for an account that passwd(5) does not have, or that cannot be looked up.
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

/// The module that refuses where nologin(5)'s file stands.
pub const PAM_NOLOGIN: &str = "pam_nologin";

/// Beside sshd's own settings, what decides whether the target user gets in: his account as login(1) and PAM
/// judge it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// His entry in shadow(5).
    pub shadow: Shadow,
    /// Days since 1970, in shadow(5)'s count.
    pub today: i64,
    /// nologin(5)'s file, where it stands.
    pub nologin: Option<PathBuf>,
    /// The rules of sshd's PAM service by which a login may be refused and which nobody evaluates here.
    pub pam: Vec<PamRule>,
    /// Every account of this guest, for witnesses and for those who have a password alone.
    pub people: Vec<LocalAccount>,
    /// The groups of group(5), whether or not they have members.
    pub groups: Vec<String>,
}

impl Login {
    /// nologin(5)'s file, if it keeps this account out: it lets nobody in but root. With `UsePAM` sshd leaves that to
    /// pam_nologin(8), where a rule of the service comes to it.
    pub fn blocking_nologin_file(&self, account: &Account, effective: &EffectiveConfig) -> Option<&Path> {
        let by_pam = || self.pam.iter().any(|rule| rule.refuses && rule.module == PAM_NOLOGIN);
        let file = self.nologin.as_deref().filter(|_| account.uid != 0)?;
        (!effective.is_yes("usepam") || by_pam()).then_some(file)
    }
}

/// What shadow(5) says of an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shadow {
    /// It cannot be read; the text says why.
    Unreadable(String),
    /// He has none, although his entry of passwd(5) refers to shadow(5): then pam_unix(8) refuses him.
    NoEntry,
    /// His entry.
    Entry(ShadowEntry),
}

/// An entry of shadow(5); days count from 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShadowEntry {
    /// Whether the password begins with `!`.
    pub is_locked: bool,
    /// Whether it is the hash of some password.
    pub has_password: bool,
    /// Whether it is empty: no password is needed, where that is permitted.
    pub is_empty: bool,
    /// The day of its last change; 0 forces one.
    pub last_change: Option<i64>,
    /// How many days it lasts.
    pub maximum: Option<i64>,
    /// How many days after that the account is still good for a change.
    pub inactive: Option<i64>,
    /// The day on which the account ends.
    pub expires: Option<i64>,
}

/// A rule of pam.d(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PamRule {
    /// The file.
    pub file: PathBuf,
    /// The line in it, from 1.
    pub line: usize,
    /// The module, without its directory and suffix, or what else it is that refuses.
    pub module: String,
    /// Whether it refuses for certain; else it may.
    pub refuses: bool,
}

/// An account of this guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalAccount {
    /// His account.
    pub account: Account,
    /// Whether he has a password; false where shadow(5) cannot be read.
    pub has_password: bool,
    /// Whether he has a key of his own in the file that sshd reads for him; looked up only where he has a password.
    pub has_key: bool,
}

/// A file by its directory (device, inode) and its name there, however the path to it is spelt. Of a file whose
/// directory does not exist: the deepest directory that does, and the rest of the path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileId {
    /// The device of the directory.
    pub device: u64,
    /// The inode of the directory.
    pub inode: u64,
    /// The rest of the path: the file's name, with the names of missing directories ahead.
    pub name: PathBuf,
}

/// As whom a file is reached that may hold a block of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFileOwner {
    /// The account; a stand-in where the bound user does not exist any more.
    pub account: Account,
    /// What became of the user.
    pub fate: UserStatus,
}

/// What became of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UserStatus {
    /// He exists, with his uid.
    Present,
    /// His name does not exist, or is another account's; his uid is this account's.
    Renamed,
    /// Neither his name nor his uid exists.
    Gone,
}

/// The target user's authorized_keys file, reached safely (KP-5.11).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFile {
    /// Where it is, tokens expanded.
    pub path: PathBuf,
    /// Which file it is: two paths with the same one are the same file.
    pub id: FileId,
    /// The mount point of the file system that it is on; `None` where that cannot be told.
    pub mount: Option<PathBuf>,
    /// Its bytes; `None` where there is no such file.
    pub content: Option<SharedBytes>,
    /// Its directory, where that does not exist yet and would be made.
    pub missing_directory: Option<PathBuf>,
}

impl KeyFile {
    /// Its path and its bytes.
    pub fn path_and_content(&self) -> (PathBuf, SharedBytes) {
        (self.path.clone(), self.content.clone().unwrap_or_default())
    }
}

/// The five words of `sshd -T -C` (KP-6.6).
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
    /// Whether such a connection can arrive: sshd's IPv6 sockets take no IPv4 (`IPV6_V6ONLY`, ipv6(7)).
    pub fn is_single_family(&self) -> bool {
        self.addr.is_ipv4() == self.laddr.is_ipv4()
    }
}

/// What `sshd -T -C` says for one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshdAnswer {
    /// For whom it was asked.
    pub connection: Connection,
    /// What holds for him.
    pub effective: EffectiveConfig,
}

/// sshd's configuration files as they stand: the main file and all that its Include directives lead to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConfigTree {
    /// The main file.
    pub main: PathBuf,
    /// Every file's bytes, each file under one path alone; besides, drop-ins of ours to which no Include leads.
    pub files: BTreeMap<PathBuf, Vec<u8>>,
    /// For each Include directive, by file and line (from 1): what each of its patterns leads to.
    pub includes: BTreeMap<(PathBuf, usize), Vec<IncludedFiles>>,
}

impl ConfigTree {
    /// The same after these edits.
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

    /// A file that is not the same in another one, or is in one of them alone.
    pub fn first_difference<'a>(&'a self, other: &'a Self) -> Option<&'a Path> {
        let is_same = |path: &PathBuf| self.files.get(path) == other.files.get(path);
        self.files.keys().chain(other.files.keys()).find(|path| !is_same(path)).map(PathBuf::as_path)
    }
}

/// One pattern of an Include directive and the files it leads to, in the order sshd reads them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncludedFiles {
    /// The pattern, made absolute.
    pub pattern: PathBuf,
    /// Whether the directory of the pattern exists (asked only where it holds no wildcard).
    pub directory_exists: bool,
    /// What it matches.
    pub files: Vec<PathBuf>,
}

/// How a changed configuration reaches the running sshd (KP-6.22).
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ReloadMethod {
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

/// The sshd of this guest, asked (KP-6.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sshd {
    /// The program.
    pub binary: PathBuf,
    /// The running listener's options (`-o`, `-p`, …) that every question repeats; never `-f`.
    pub options: Vec<String>,
    /// Whether something listens for it: those options come from a running listener, or a socket unit starts an sshd for each
    /// connection.
    pub running: bool,
    /// Whether a socket unit listens in sshd's place, or is on its way: sshd starts with the first connection.
    pub is_awaited: bool,
    /// Whether the main file may be written: not sshd's own default elsewhere than /etc/ssh.
    pub main_is_writable: bool,
    /// The files as they stand.
    pub config: ConfigTree,
    /// What they say now for each connection that must say what was asked; the first one is reported.
    pub answers: Vec<SshdAnswer>,
    /// How a change is made live.
    pub reload: ReloadMethod,
    /// Whether the listener has read its files as they stand; `None` where that cannot be told.
    pub has_read_its_files: Option<bool>,
    /// Other listeners of this guest's, which are neither asked nor told.
    pub others: Vec<OtherListener>,
}

/// An sshd that listens beside the one that is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherListener {
    /// Its process.
    pub pid: i32,
    /// Its title or command line.
    pub line: String,
    /// The ports it listens on; empty where that cannot be read.
    pub ports: Vec<u16>,
}
