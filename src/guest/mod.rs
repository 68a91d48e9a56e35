//! Access to the guest, behind the trait [`Guest`]. All code of the agent that reads or changes the guest is in
//! this module.

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

/// The operations on a guest that the transaction needs. All of them are synchronous.
pub trait Guest {
    /// The guard of the state directory's lock. Dropping it releases the lock.
    type Lock;

    /// The wall clock, in UTC.
    fn now(&self) -> OffsetDateTime;
    /// The time since a fixed moment, from the monotonic clock.
    fn elapsed(&self) -> Duration;
    /// A `commandId` that was not used before.
    fn random_id(&self) -> CommandId;

    /// Takes the lock on the state directory. Creates the directory if it is missing. Waits up to 20 s for the
    /// lock.
    ///
    /// # Errors
    /// [`LockFailure::Busy`] if another process holds the lock; [`LockFailure::Directory`] if the directory cannot
    /// be used.
    fn lock(&mut self) -> Result<Self::Lock, LockFailure>;
    /// The bytes of the state file; `None` if there is no state file.
    ///
    /// # Errors
    /// The errors of reading a file.
    fn load_state(&self) -> Result<Option<Vec<u8>>, FileError>;
    /// The path of the state file, for messages.
    fn state_file(&self) -> PathBuf {
        PathBuf::from("state.json")
    }
    /// Replaces the state file durably.
    ///
    /// # Errors
    /// The errors of writing a file. The old state is then intact.
    fn save_state(&mut self, bytes: &[u8]) -> Result<(), FileError>;

    /// The content of `componentInfo.cfg`, the platform component's file (KP-2.1).
    ///
    /// # Errors
    /// The reason why the file cannot be read.
    fn component_info(&self) -> Result<Vec<u8>, String>;
    /// The path of that file, for messages.
    fn component_file(&self) -> PathBuf {
        PathBuf::from("componentInfo.cfg")
    }
    /// The bytes of a file that only root can change, including every directory on its path; `None` if there is no
    /// such file.
    ///
    /// # Errors
    /// The file or its path can be changed by another user than root; the errors of reading a file.
    fn read_root_owned_file(&self, path: &Path) -> Result<Option<Vec<u8>>, FileError>;
    /// The account with this name.
    ///
    /// # Errors
    /// `USER_NOT_FOUND`, `IO_ERROR`.
    fn lookup_account(&self, user: &str) -> Result<Account, Refusal>;
    /// The account with this name, for a removal, which needs no groups. If the name service does not answer, the
    /// account is read from the file of passwd(5).
    ///
    /// # Errors
    /// `USER_NOT_FOUND`, `IO_ERROR`.
    fn lookup_account_for_removal(&self, user: &str) -> Result<Account, Refusal> {
        self.lookup_account(user)
    }
    /// The resources that do not respond now (the name service, mounts), each with its remedy. The agent does not
    /// query them again.
    fn unresponsive_resources(&self) -> Vec<String> {
        Vec::new()
    }
    /// The user's authorized_keys file at `path`, opened safely (KP-5.11).
    ///
    /// # Errors
    /// `UNSAFE_PATH`, `IO_ERROR`.
    fn read_key_file(&self, account: &Account, path: &Path) -> Result<KeyFile, FileError>;
    /// The files from which sshd reads the user's keys, in sshd's order. `own` is one of them that was read
    /// already.
    fn read_key_files(&self, _paths: &[KeyPath], own: Option<&KeyFile>) -> Vec<(PathBuf, SharedBytes)> {
        own.map(KeyFile::path_and_content).into_iter().collect()
    }
    /// The user's authorized_keys file at `path`, for a removal. A missing home directory is no error.
    ///
    /// # Errors
    /// `UNSAFE_PATH`, `IO_ERROR`.
    fn read_key_file_for_removal(&self, account: &Account, path: &Path) -> Result<KeyFile, FileError> {
        self.read_key_file(account, path)
    }
    /// The account as which the agent opens the file at `path` that holds, or held, a block of this user. The name
    /// may be gone, or belong to another account than `uid`. Then it is the account that has this uid now, or a
    /// stand-in with the uid. If there is no `uid`, the stand-in has the uid of the owner of the file's directory.
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
    /// The identity of the file to which a path leads. Links are followed as sshd follows them. `None` if the
    /// directory does not exist.
    fn file_id(&self, _path: &Path) -> Option<FileId> {
        None
    }
    /// Returns true if a file system is mounted at this mount point and can be reached there.
    fn is_mounted(&self, _point: &Path) -> bool {
        true
    }
    /// The path with its links resolved, as far as the path exists.
    fn canonicalize_path(&self, path: &Path) -> PathBuf {
        path.to_owned()
    }
    /// The present bytes of a file, for an edit or its inverse; `None` if there is no such file.
    ///
    /// # Errors
    /// `UNSAFE_PATH`, `IO_ERROR`.
    fn read(&self, kind: &FileKind, path: &Path) -> Result<Option<Vec<u8>>, FileError>;
    /// Checks that this process sees the same file at `path` as sshd does, and that the agent's own systemd unit
    /// does not hide it.
    ///
    /// # Errors
    /// [`FileError::Hidden`].
    fn check_path_visible(&self, _path: &Path) -> Result<(), FileError> {
        Ok(())
    }
    /// Checks that [`Self::write`] could replace the file now, as far as that can be known without a change.
    ///
    /// # Errors
    /// The errors of [`Self::write`].
    fn check_writable(
        &self,
        _kind: &FileKind,
        _path: &Path,
        _expected: Option<&ContentHash>,
    ) -> Result<(), FileError> {
        Ok(())
    }
    /// Replaces the file's content with `content`, if the present content is still `expected`.
    ///
    /// # Errors
    /// [`FileError::Changed`] if the content is not `expected`. After every error the old bytes are intact.
    fn write(
        &mut self,
        kind: &FileKind,
        path: &Path,
        expected: Option<&ContentHash>,
        content: &[u8],
    ) -> Result<(), FileError>;
    /// The SELinux labels that decide whether sshd may read its configuration and these key files of the account.
    fn selinux_labels(&self, _sshd: &Sshd, _account: &Account, _key_files: &[PathBuf]) -> Labels {
        Labels::default()
    }
    /// Sets the SELinux label of an object on the path to a file of this kind, if it still has the observed label.
    ///
    /// # Errors
    /// [`FileError::Changed`] if the label is another one, or if the path no longer leads to the same file.
    fn relabel(&mut self, _kind: &FileKind, _relabel: &Relabel) -> Result<(), FileError> {
        Ok(())
    }
    /// Removes a file of the agent if its content is still `expected`. A file that is already gone is no error.
    /// Removes `directory` too if it is empty.
    ///
    /// # Errors
    /// [`FileError::Changed`] if the content is not `expected`.
    fn remove(
        &mut self,
        kind: &FileKind,
        path: &Path,
        expected: &ContentHash,
        directory: Option<&Path>,
    ) -> Result<(), FileError>;
    /// Removes the temporary files beside `path` that a crash left behind.
    fn remove_stale_temporaries(&mut self, kind: &FileKind, path: &Path);
    /// Removes the temporary files in the state directory, and the leftovers of interrupted sshd queries.
    fn clean_state_and_run_dirs(&mut self);

    /// Checks that OpenSSH itself can read this key. A point that is not on its curve looks well-formed to the
    /// agent, but sshd skips such a line. If ssh-keygen(1) is not installed, the agent assumes that the key is
    /// readable.
    ///
    /// # Errors
    /// `INVALID_PUBLIC_KEY`, `IO_ERROR`.
    fn reads_key(&self, key: &PublicKey) -> Result<(), Refusal>;
    /// Finds the sshd of this guest and queries its configuration (KP-6.2 and KP-6.6).
    ///
    /// # Errors
    /// `SSHD_NOT_FOUND`, `SSHD_CONFIG_ALREADY_INVALID`, `IO_ERROR`.
    fn inspect_sshd(&self, user: &str) -> Result<Sshd, Refusal>;
    /// Returns true if an sshd that uses the agent's configuration files might be running although
    /// [`Self::inspect_sshd`] could not identify or query it. The caller must then assume that it needs a reload.
    ///
    /// # Errors
    /// `IO_ERROR`, `SSHD_RELOAD_UNSAFE`.
    fn is_sshd_possibly_running(&self) -> Result<bool, Refusal>;
    /// The present content of sshd's configuration files, read without a query to sshd. Includes the agent's
    /// drop-in even if no `Include` leads to it.
    ///
    /// # Errors
    /// `SSHD_NOT_FOUND`, `IO_ERROR`.
    fn sshd_files(&self) -> Result<ConfigTree, Refusal>;
    /// The present content of the configuration files, as the sshd that was observed reads them.
    ///
    /// # Errors
    /// `SSHD_NOT_FOUND`, `IO_ERROR`.
    fn reread_sshd_config_files(&self, _sshd: &Sshd) -> Result<ConfigTree, Refusal> {
        self.sshd_files()
    }
    /// sshd's effective configuration for these connections. If `ahead` is given, its lines are placed before the
    /// configuration. If not, sshd uses its files as they are now. Writes nothing.
    ///
    /// # Errors
    /// `SSHD_CONFIG_REJECTED`, `IO_ERROR`.
    fn query_effective_config(
        &self,
        sshd: &Sshd,
        ahead: Option<&str>,
        connections: &[Connection],
    ) -> Result<Vec<SshdAnswer>, Refusal>;
    /// The restrictions outside sshd's settings that decide whether the account can log in. The field `people` is
    /// left empty.
    fn read_login_restrictions(&self, account: &Account, sshd: &Sshd) -> Login;
    /// Asks a private sshd whether it would accept a key (KP-10.1). Returns one answer for each connection of the
    /// question. Changes nothing in the guest.
    fn run_trial(&self, sshd: &Sshd, question: &TrialRequest) -> Vec<TrialOutcome>;
    /// Every account of this guest. The function does not look up whether the accounts have keys.
    ///
    /// # Errors
    /// `IO_ERROR`.
    fn people(&self) -> Result<Vec<LocalAccount>, Refusal>;
    /// Returns true if an ssh client is installed, so that the running sshd can be probed.
    fn has_ssh_client(&self) -> bool;
    /// Probes the running sshd at `address` (KP-10.13): which methods it offers to this user, and whether it would
    /// accept the user's key.
    ///
    /// # Errors
    /// The reason why there is no answer.
    fn probe_sshd(
        &self,
        sshd: &Sshd,
        address: SocketAddr,
        user: &str,
        key: Option<&PublicKey>,
    ) -> Result<ProbeResult, String>;
    /// Checks that the listener would survive a reload.
    ///
    /// # Errors
    /// `SSHD_RELOAD_UNSAFE`.
    fn check_reload_safe(&self, sshd: &Sshd) -> Result<(), Refusal>;
    /// Reloads sshd, and waits until the new configuration is in effect.
    ///
    /// # Errors
    /// `SSHD_RELOAD_FAILED`, with what the agent observed.
    fn reload_sshd(&mut self, sshd: &Sshd) -> Result<(), Refusal>;
    /// Restores the sshd service after a failed reload. The caller has put the old files back before.
    ///
    /// # Errors
    /// `SSHD_RELOAD_FAILED` if the service could not be restored.
    fn ensure_sshd_running(&mut self, sshd: &Sshd) -> Result<(), Refusal>;

    /// Returns true if the guest's network may still be coming up. The caller asks this after the guest had no
    /// route to an address.
    fn is_network_pending(&self) -> bool {
        true
    }

    /// The description of this guest: its host name and operating system.
    fn identity(&self) -> HostInfo;
    /// The fingerprints of sshd's public host keys, as far as they can be read.
    fn host_key_fingerprints(&self, sshd: &Sshd) -> Vec<HostKeyFingerprint>;
}

/// The description of this guest for the control plane (KP-3.37).
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HostInfo {
    /// The host name.
    pub host_name: Option<String>,
    /// The operating system.
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

/// The public half of a host key.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct HostKeyFingerprint {
    /// The key type, for example `ssh-ed25519`.
    #[serde(rename = "type")]
    pub key_type: String,
    /// The SHA-256 fingerprint.
    pub sha256: String,
}

/// The reason why the lock was not obtained.
#[derive(Debug)]
pub enum LockFailure {
    /// Another process of the agent holds the lock; the text names it.
    Busy(String),
    /// The state directory cannot be used.
    Directory(FileError),
}

impl From<FileError> for Refusal {
    /// `UNSAFE_PATH` for a path that could be used to attack root, `IO_ERROR` for all other errors.
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
