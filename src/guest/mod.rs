//! This machine, behind one trait: all that touches it is here.

pub mod accounts;
pub mod child;
mod config_tree;
pub mod files;
mod host_key;
pub mod image;
mod labels;
mod locate;
mod login;
mod network;
mod people;
mod private;
mod process;
mod proof;
pub mod pulse;
mod question;
pub mod real;
pub mod scout;
mod selinux;
pub mod service;
pub mod service_view;
mod sessions;
pub mod sockets;
mod ssh_client;
pub mod sshd;
mod systemd;
pub mod trial;
mod unit_sandbox;
mod unit_words;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use time::OffsetDateTime;

use crate::policy::content::SharedBytes;
use crate::policy::edit::FileKind;
use crate::policy::key_paths::KeyPath;
use crate::policy::observation::{
    Account, ConfigTree, Connection, FileId, KeyFile, KeyFileOwner, LocalAccount, Login, Sshd, SshdAnswer,
    UserStatus,
};
use crate::policy::outcome::{Reason, Refusal};
use crate::policy::proof::ProbeResult;
use crate::policy::public_key::PublicKey;
use crate::policy::selinux::{Labels, Relabel};
use crate::policy::trial::{TrialOutcome, TrialRequest};
use crate::policy::types::{CommandId, ContentHash};

use files::FileError;

/// What the transaction needs of a guest. Everything is synchronous.
pub trait Guest {
    /// What holds the lock while it lives.
    type Lock;

    /// The wall clock, in UTC.
    fn now(&self) -> OffsetDateTime;
    /// Time since some fixed moment, by the monotonic clock.
    fn elapsed(&self) -> Duration;
    /// A `commandId` that nobody used before.
    fn random_id(&self) -> CommandId;

    /// Takes the lock on the state directory, which is made where it is missing; waits 20 s for its turn.
    ///
    /// # Errors
    /// That it is held, and by whom; that the directory cannot be used.
    fn lock(&mut self) -> Result<Self::Lock, LockFailure>;
    /// The state file's bytes; `None` where there is none.
    ///
    /// # Errors
    /// Those of reading a file.
    fn load_state(&self) -> Result<Option<Vec<u8>>, FileError>;
    /// Where the state file is, for messages.
    fn state_file(&self) -> PathBuf {
        PathBuf::from("state.json")
    }
    /// Replaces the state file, durably.
    ///
    /// # Errors
    /// Those of writing a file; the old state is intact then.
    fn save_state(&mut self, bytes: &[u8]) -> Result<(), FileError>;

    /// The platform component's `componentInfo.cfg` (KP-2.1).
    ///
    /// # Errors
    /// Why it cannot be read.
    fn component_info(&self) -> Result<Vec<u8>, String>;
    /// Where it is, for messages.
    fn component_file(&self) -> PathBuf {
        PathBuf::from("componentInfo.cfg")
    }
    /// The bytes of a file that root alone can change, the way to it too; `None` where there is no such file.
    ///
    /// # Errors
    /// That somebody else can change it; those of reading a file.
    fn read_root_owned_file(&self, path: &Path) -> Result<Option<Vec<u8>>, FileError>;
    /// The account of this name.
    ///
    /// # Errors
    /// `USER_NOT_FOUND`, `IO_ERROR`.
    fn lookup_account(&self, user: &str) -> Result<Account, Refusal>;
    /// The same to take something out, which needs no groups: where the name service does not answer, as passwd(5)'s own
    /// file has it.
    ///
    /// # Errors
    /// `USER_NOT_FOUND`, `IO_ERROR`.
    fn lookup_account_for_removal(&self, user: &str) -> Result<Account, Refusal> {
        self.lookup_account(user)
    }
    /// What does not answer now, each with its remedy: the name service, mounts. They are not asked once more.
    fn unresponsive_resources(&self) -> Vec<String> {
        Vec::new()
    }
    /// The user's authorized_keys file at `path`, reached safely (KP-5.11).
    ///
    /// # Errors
    /// `UNSAFE_PATH`, `IO_ERROR`.
    fn read_key_file(&self, account: &Account, path: &Path) -> Result<KeyFile, FileError>;
    /// The files that sshd reads the user's keys from, in its order; `own` is one of them, read already.
    fn read_key_files(&self, _paths: &[KeyPath], own: Option<&KeyFile>) -> Vec<(PathBuf, SharedBytes)> {
        own.map(KeyFile::path_and_content).into_iter().collect()
    }
    /// The same for a file out of which something is to be taken: a home that does not exist is no error.
    ///
    /// # Errors
    /// `UNSAFE_PATH`, `IO_ERROR`.
    fn read_key_file_for_removal(&self, account: &Account, path: &Path) -> Result<KeyFile, FileError> {
        self.read_key_file(account, path)
    }
    /// As whom the file at `path` is reached that holds, or held, a block of this user's. Where his name is gone, or is
    /// another account's than `uid`: the account that has this uid now, or a stand-in with the uid, or without one with
    /// that of the owner of the file's directory.
    ///
    /// # Errors
    /// `IO_ERROR`.
    fn resolve_key_file_owner(
        &self,
        user: &str,
        _uid: Option<u32>,
        _path: &Path,
    ) -> Result<KeyFileOwner, Refusal> {
        Ok(KeyFileOwner { account: self.lookup_account(user)?, fate: UserStatus::Present })
    }
    /// Which file a path leads to, links followed as sshd follows them; `None` where its directory does not exist.
    fn file_id(&self, _path: &Path) -> Option<FileId> {
        None
    }
    /// Whether something is mounted at this mount point, and can be reached there.
    fn is_mounted(&self, _point: &Path) -> bool {
        true
    }
    /// The path without links, as far as it exists.
    fn canonicalize_path(&self, path: &Path) -> PathBuf {
        path.to_owned()
    }
    /// A file's bytes as they stand, for an edit or its inverse; `None` where there is no such file.
    ///
    /// # Errors
    /// `UNSAFE_PATH`, `IO_ERROR`.
    fn read(&self, kind: &FileKind, path: &Path) -> Result<Option<Vec<u8>>, FileError>;
    /// Whether what this process sees at `path` is what sshd sees there, and not what its own unit put in the way.
    ///
    /// # Errors
    /// [`FileError::Hidden`].
    fn check_path_visible(&self, _path: &Path) -> Result<(), FileError> {
        Ok(())
    }
    /// Whether [`Self::write`] could put other bytes in the file's place now, as far as that can be told without a change.
    ///
    /// # Errors
    /// Those of [`Self::write`].
    fn check_writable(
        &self,
        _kind: &FileKind,
        _path: &Path,
        _expected: Option<&ContentHash>,
    ) -> Result<(), FileError> {
        Ok(())
    }
    /// Puts `content` in the file's place, if it still is what `expected` says.
    ///
    /// # Errors
    /// [`FileError::Changed`] where it is not; the old bytes are intact after every error.
    fn write(
        &mut self,
        kind: &FileKind,
        path: &Path,
        expected: Option<&ContentHash>,
        content: &[u8],
    ) -> Result<(), FileError>;
    /// What SELinux says of sshd's reading of its configuration and of these key files of the account's.
    fn selinux_labels(&self, _sshd: &Sshd, _account: &Account, _key_files: &[PathBuf]) -> Labels {
        Labels::default()
    }
    /// Sets a label on the way to a file of this kind, if it still has the one that was seen.
    ///
    /// # Errors
    /// [`FileError::Changed`] where it is another, or is not reached by that way any more.
    fn relabel(&mut self, _kind: &FileKind, _relabel: &Relabel) -> Result<(), FileError> {
        Ok(())
    }
    /// Removes a file that is ours, if it still is what `expected` says or gone already, and `directory` if
    /// that is empty.
    ///
    /// # Errors
    /// [`FileError::Changed`] where it is not.
    fn remove(
        &mut self,
        kind: &FileKind,
        path: &Path,
        expected: &ContentHash,
        directory: Option<&Path>,
    ) -> Result<(), FileError>;
    /// Removes the stale temporaries of a crash beside `path`.
    fn remove_stale_temporaries(&mut self, kind: &FileKind, path: &Path);
    /// Removes those in the state directory, and what questions that were cut off left.
    fn clean_state_and_run_dirs(&mut self);

    /// Whether OpenSSH itself reads this key: a point that is not on its curve looks well-formed here, and sshd
    /// passes such a line over. Where there is no ssh-keygen(1) to ask, it is taken for readable.
    ///
    /// # Errors
    /// `INVALID_PUBLIC_KEY`, `IO_ERROR`.
    fn reads_key(&self, key: &PublicKey) -> Result<(), Refusal>;
    /// The sshd of this guest, found and asked (KP-6.2 and KP-6.6).
    ///
    /// # Errors
    /// `SSHD_NOT_FOUND`, `SSHD_CONFIG_ALREADY_INVALID`, `IO_ERROR`.
    fn inspect_sshd(&self, user: &str) -> Result<Sshd, Refusal>;
    /// Where there is no sshd to be asked: whether one may run by our files all the same, which cannot be told apart
    /// from others or asked, and would have to be told.
    ///
    /// # Errors
    /// `IO_ERROR`, `SSHD_RELOAD_UNSAFE`.
    fn is_sshd_possibly_running(&self) -> Result<bool, Refusal>;
    /// sshd's configuration files as they stand, without asking sshd; a drop-in of ours to which no Include leads, too.
    ///
    /// # Errors
    /// `SSHD_NOT_FOUND`, `IO_ERROR`.
    fn sshd_files(&self) -> Result<ConfigTree, Refusal>;
    /// The same as the sshd that was observed reads them, as they stand now.
    ///
    /// # Errors
    /// `SSHD_NOT_FOUND`, `IO_ERROR`.
    fn reread_sshd_config_files(&self, _sshd: &Sshd) -> Result<ConfigTree, Refusal> {
        self.sshd_files()
    }
    /// What it says for these connections, with these lines ahead of its configuration or, without any, by its files
    /// as they stand now; writes nothing.
    ///
    /// # Errors
    /// `SSHD_CONFIG_REJECTED`, `IO_ERROR`.
    fn query_effective_config(
        &self,
        sshd: &Sshd,
        ahead: Option<&str>,
        connections: &[Connection],
    ) -> Result<Vec<SshdAnswer>, Refusal>;
    /// What beside sshd's settings decides whether the account gets in; its `people` are left empty.
    fn read_login_restrictions(&self, account: &Account, sshd: &Sshd) -> Login;
    /// Asks a private sshd whether it would accept a key (KP-10.1): an answer for each connection of the question.
    /// Nothing of the guest is changed.
    fn run_trial(&self, sshd: &Sshd, question: &TrialRequest) -> Vec<TrialOutcome>;
    /// Every account of this guest; whether they have keys is not looked up.
    ///
    /// # Errors
    /// `IO_ERROR`.
    fn people(&self) -> Result<Vec<LocalAccount>, Refusal>;
    /// Whether an ssh client is installed, and the running sshd can be asked.
    fn has_ssh_client(&self) -> bool;
    /// One question to the running sshd at `address` (KP-10.13): what it offers this user, and whether it
    /// would accept his key.
    ///
    /// # Errors
    /// Why there is no answer.
    fn probe_sshd(
        &self,
        sshd: &Sshd,
        address: SocketAddr,
        user: &str,
        key: Option<&PublicKey>,
    ) -> Result<ProbeResult, String>;
    /// Whether a reload would leave the listener alive.
    ///
    /// # Errors
    /// `SSHD_RELOAD_UNSAFE`.
    fn check_reload_safe(&self, sshd: &Sshd) -> Result<(), Refusal>;
    /// Makes the files live, and waits until they are.
    ///
    /// # Errors
    /// `SSHD_RELOAD_FAILED`, with what was seen.
    fn reload_sshd(&mut self, sshd: &Sshd) -> Result<(), Refusal>;
    /// After a failed reload, with the old files in place again: the service as it was.
    ///
    /// # Errors
    /// `SSHD_RELOAD_FAILED`: it could not be brought back.
    fn ensure_sshd_running(&mut self, sshd: &Sshd) -> Result<(), Refusal>;

    /// Whether this host's network may still be on its way, after the host itself had no way to an address.
    fn is_network_pending(&self) -> bool {
        true
    }

    /// What this machine is.
    fn identity(&self) -> HostInfo;
    /// The public halves of sshd's host keys, those that can be read.
    fn host_key_fingerprints(&self, sshd: &Sshd) -> Vec<HostKeyFingerprint>;
}

/// What this machine is, for the control plane (KP-3.37).
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HostInfo {
    /// Its host name.
    pub host_name: Option<String>,
    /// Its operating system.
    pub os: OperatingSystem,
}

/// An operating system, as os-release(5) and uname(2) name it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct OperatingSystem {
    /// `NAME`.
    pub name: Option<String>,
    /// `VERSION_ID`.
    pub version: Option<String>,
    /// The kernel's release.
    pub kernel: Option<String>,
    /// The processor's architecture.
    pub architecture: String,
}

/// A host key's public half.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct HostKeyFingerprint {
    /// Its type, as in `ssh-ed25519`.
    #[serde(rename = "type")]
    pub key_type: String,
    /// Its fingerprint.
    pub sha256: String,
}

/// Why the lock was not had.
#[derive(Debug)]
pub enum LockFailure {
    /// Another process of ours holds it; the text says which.
    Busy(String),
    /// The state directory cannot be used.
    Directory(FileError),
}

impl From<FileError> for Refusal {
    /// `UNSAFE_PATH` for what could be turned against root, `IO_ERROR` for the rest.
    fn from(error: FileError) -> Self {
        let reason = match error {
            FileError::Unsafe { .. } => Reason::UnsafePath,
            FileError::Changed { .. }
            | FileError::Hidden { .. }
            | FileError::MissingDirectory { .. }
            | FileError::TooLarge { .. }
            | FileError::Io { .. } => Reason::IoError,
        };
        Self::new(reason, error.to_string())
    }
}
