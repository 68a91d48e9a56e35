//! The real Linux guest on which the agent runs.

use std::hash::{BuildHasher, Hasher};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sysinfo::System;
use time::OffsetDateTime;

use crate::config::Config;
use crate::policy::component;
use crate::policy::content::SharedBytes;
use crate::policy::edit::FileKind;
use crate::policy::key_paths::KeyPath;
use crate::policy::observation::{
    Account, ConfigTree, Connection, FileId, KeyFile, KeyFileOwner, LocalAccount, Login, Sshd, SshdAnswer,
};
use crate::policy::outcome::{Reason, Refusal};
use crate::policy::proof::ProbeResult;
use crate::policy::public_key::{PublicKey, compute_fingerprint};
use crate::policy::selinux::{Labels, Relabel};
use crate::policy::sshd_config::is_managed_drop_in;
use crate::policy::trial::{TrialOutcome, TrialRequest};
use crate::policy::types::{CommandId, ContentHash};

use super::accounts::AccountError;
use super::files::{self, FileError, LockError, LockGuard, StateDirectory};
use super::scout::{self, LookupError};
use super::sshd::{self, SshdSettings};
use super::{
    Guest, HostInfo, HostKeyFingerprint, LockFailure, OperatingSystem, accounts, child, labels, login,
    network, people, private, proof, service, trial, unit_sandbox,
};

/// The time that a command waits for the lock (KP-8.11).
const LOCK_TIMEOUT: Duration = Duration::from_secs(20);

/// The maximum size of the state file that is read. The agent writes at most half of it.
const MAX_STATE_BYTES: usize = 16 * 1024 * 1024;

/// The mode of the drop-in (KP-6.12).
const DROP_IN_MODE: u32 = 0o644;

/// The guest on which the agent runs, with the paths of the configuration.
#[derive(Debug)]
pub struct LinuxGuest {
    component_info: PathBuf,
    state_dir: PathBuf,
    sshd: SshdSettings,
    started: Instant,
    /// True if the state that an earlier process wrote is known to be durable on the disk.
    is_settled: bool,
}

impl LinuxGuest {
    /// The guest, as the configuration describes it.
    pub fn new(config: &Config) -> Self {
        Self {
            component_info: config.component_info.clone(),
            state_dir: config.state_dir.clone(),
            sshd: sshd_settings(config),
            started: Instant::now(),
            is_settled: false,
        }
    }
}

impl Guest for LinuxGuest {
    type Lock = LockGuard;

    fn now(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc()
    }

    fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    fn random_id(&self) -> CommandId {
        loop {
            // The keys of the standard hasher come from the system's random source.
            let half = || std::collections::hash_map::RandomState::new().build_hasher().finish();
            if let Ok(id) = format!("local-{:016x}{:016x}", half(), half()).parse() {
                return id;
            }
        }
    }

    fn lock(&mut self) -> Result<LockGuard, LockFailure> {
        let directory = StateDirectory::open(&self.state_dir, true).map_err(LockFailure::Directory)?;
        directory.lock(LOCK_TIMEOUT).map_err(|error| match error {
            LockError::File(error) => LockFailure::Directory(error),
            held @ LockError::Held { .. } => LockFailure::Busy(held.to_string()),
        })
    }

    fn load_state(&self) -> Result<Option<Vec<u8>>, FileError> {
        match StateDirectory::open(&self.state_dir, false) {
            Err(FileError::MissingDirectory { .. }) => Ok(None),
            Err(error) => Err(error),
            Ok(directory) => directory.load(MAX_STATE_BYTES),
        }
    }

    fn state_file(&self) -> PathBuf {
        self.state_dir.join(files::STATE_FILE_NAME)
    }

    fn save_state(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        StateDirectory::open(&self.state_dir, true)?.save(bytes)
    }

    fn component_info(&self) -> Result<Vec<u8>, String> {
        match files::read_file(&self.component_info, component::MAX_COMPONENT_INFO_BYTES) {
            Ok(Some(content)) => Ok(content),
            Ok(None) => Err(format!("{} does not exist", self.component_info.display())),
            Err(error) => Err(error.to_string()),
        }
    }

    fn component_file(&self) -> PathBuf {
        self.component_info.clone()
    }

    fn read_root_owned_file(&self, path: &Path) -> Result<Option<Vec<u8>>, FileError> {
        files::read_root_file(path)
    }

    fn lookup_account(&self, user: &str) -> Result<Account, Refusal> {
        require_account(user, accounts::lookup_account(user))
    }

    fn lookup_account_for_removal(&self, user: &str) -> Result<Account, Refusal> {
        require_account(user, accounts::lookup_account_for_removal(user))
    }

    fn unresponsive_resources(&self) -> Vec<String> {
        let places = scout::unresponsive_targets().into_iter();
        places.map(|place| LookupError::TimedOut(place).to_string()).collect()
    }

    fn read_key_file(&self, account: &Account, path: &Path) -> Result<KeyFile, FileError> {
        files::read_key_file(account, path)
    }

    fn read_key_files(&self, paths: &[KeyPath], own: Option<&KeyFile>) -> Vec<(PathBuf, SharedBytes)> {
        login::read_key_files(paths, own)
    }

    fn read_key_file_for_removal(&self, account: &Account, path: &Path) -> Result<KeyFile, FileError> {
        files::read_key_file_for_removal(account, path)
    }

    fn resolve_key_file_owner(
        &self,
        user: &str,
        uid: Option<u32>,
        path: &Path,
    ) -> Result<KeyFileOwner, Refusal> {
        accounts::resolve_key_file_owner(user, uid, path)
            .map_err(|error| Refusal::new(Reason::IoError, error.to_string()))
    }

    fn file_id(&self, path: &Path) -> Option<FileId> {
        files::resolve_file_id(path)
    }

    fn is_mounted(&self, point: &Path) -> bool {
        files::is_mounted(point)
    }

    fn canonicalize_path(&self, path: &Path) -> PathBuf {
        files::canonicalize_path(path).unwrap_or_else(|| path.to_owned())
    }

    fn read(&self, kind: &FileKind, path: &Path) -> Result<Option<Vec<u8>>, FileError> {
        match kind {
            FileKind::AuthorizedKeys { user, uid, .. } => {
                let file = files::read_key_file_for_removal(&resolve_owner_account(user, *uid, path)?, path)?;
                Ok(file.content.map(SharedBytes::into_vec))
            }
            FileKind::SshdConfig => files::read_file(path, files::MAX_ROOT_FILE_BYTES),
        }
    }

    fn check_path_visible(&self, path: &Path) -> Result<(), FileError> {
        match unit_sandbox::explain_hidden_path(&self.sshd, path) {
            Some(why) => Err(FileError::Hidden { path: path.to_owned(), why }),
            None => Ok(()),
        }
    }

    fn check_writable(
        &self,
        kind: &FileKind,
        path: &Path,
        expected: Option<&ContentHash>,
    ) -> Result<(), FileError> {
        let answer = match kind {
            FileKind::AuthorizedKeys { user, uid, .. } => {
                files::check_key_file_writable(&resolve_owner_account(user, *uid, path)?, path, expected)
            }
            // A main file may be a symbolic link. The agent's drop-in is never one: a link there would lead to a
            // file that is not the agent's.
            FileKind::SshdConfig => {
                files::check_root_file_writable(path, expected, !is_managed_drop_in(path))
            }
        };
        match answer {
            Err(FileError::Io { source, .. }) if source.raw_os_error() == Some(nix::libc::EROFS) => {
                match unit_sandbox::explain_read_only_path(&self.sshd, path) {
                    Some(why) => Err(FileError::Hidden { path: path.to_owned(), why }),
                    None => Err(FileError::Io { path: path.to_owned(), action: "replace", source }),
                }
            }
            answer => answer,
        }
    }

    fn write(
        &mut self,
        kind: &FileKind,
        path: &Path,
        expected: Option<&ContentHash>,
        content: &[u8],
    ) -> Result<(), FileError> {
        match kind {
            FileKind::AuthorizedKeys { user, uid, .. } => {
                files::replace_key_file(&resolve_owner_account(user, *uid, path)?, path, expected, content)
                    .map(drop)
            }
            FileKind::SshdConfig => files::replace_root_file(path, expected, content, DROP_IN_MODE).map(drop),
        }
    }

    fn selinux_labels(&self, sshd: &Sshd, account: &Account, key_files: &[PathBuf]) -> Labels {
        labels::collect_labels(sshd, account, key_files)
    }

    fn relabel(&mut self, kind: &FileKind, relabel: &Relabel) -> Result<(), FileError> {
        match kind {
            FileKind::AuthorizedKeys { user, uid, .. } => {
                files::relabel_key_file_path(&resolve_owner_account(user, *uid, &relabel.file)?, relabel)
            }
            FileKind::SshdConfig => files::relabel_root_file(relabel),
        }
    }

    fn remove(
        &mut self,
        kind: &FileKind,
        path: &Path,
        expected: &ContentHash,
        directory: Option<&Path>,
    ) -> Result<(), FileError> {
        match kind {
            FileKind::AuthorizedKeys { user, uid, .. } => files::remove_created_key_file(
                &resolve_owner_account(user, *uid, path)?,
                path,
                expected,
                directory,
            ),
            FileKind::SshdConfig => files::remove_root_file(path, expected),
        }
    }

    fn remove_stale_temporaries(&mut self, kind: &FileKind, path: &Path) {
        let swept = match kind {
            FileKind::AuthorizedKeys { user, uid, .. } => resolve_owner_account(user, *uid, path)
                .and_then(|account| files::remove_key_dir_temporaries(&account, path)),
            // The agent writes a linked file at the link's target, so the temporary file is there too.
            FileKind::SshdConfig => {
                let target = self.canonicalize_path(path);
                target.parent().map_or(Ok(0), files::remove_root_dir_temporaries)
            }
        };
        if let Err(error) = swept {
            tracing::warn!("temporaries of an earlier run may be left: {error}");
        }
    }

    fn clean_state_and_run_dirs(&mut self) {
        let swept = StateDirectory::open(&self.state_dir, false).and_then(|directory| {
            directory.remove_state_temporaries()?;
            if !self.is_settled {
                directory.sync_directory()?;
                self.is_settled = true;
            }
            Ok(())
        });
        if let Err(error) = swept {
            tracing::warn!("what an earlier run left in the state directory is not settled: {error}");
        }
        if let Err(error) = private::remove_stale_dirs(&self.sshd.run_dir) {
            let run_dir = self.sshd.run_dir.display();
            tracing::warn!("directories of an earlier run may be left in {run_dir}: {error}");
        }
    }

    fn reads_key(&self, key: &PublicKey) -> Result<(), Refusal> {
        match child::run(Path::new("ssh-keygen"), &["-l", "-f", "-"], &format!("{}\n", key.line())) {
            Ok(output) if output.succeeded() => Ok(()),
            Ok(_) => Err(Refusal::new(
                Reason::InvalidPublicKey,
                "publicKey is refused: ssh-keygen -l cannot read it, and so could sshd not; make a new key",
            )),
            Err(error) if error.is_missing_program() => Ok(()),
            Err(error) => Err(Refusal::new(Reason::IoError, error.to_string())),
        }
    }

    fn inspect_sshd(&self, user: &str) -> Result<Sshd, Refusal> {
        sshd::inspect_sshd(&self.sshd, user)
    }

    fn is_sshd_possibly_running(&self) -> Result<bool, Refusal> {
        sshd::is_sshd_possibly_running(&self.sshd)
    }

    fn sshd_files(&self) -> Result<ConfigTree, Refusal> {
        sshd::read_config_files(&self.sshd)
    }

    fn reread_sshd_config_files(&self, sshd: &Sshd) -> Result<ConfigTree, Refusal> {
        sshd::reread_config_files(sshd)
    }

    fn query_effective_config(
        &self,
        sshd: &Sshd,
        ahead: Option<&str>,
        connections: &[Connection],
    ) -> Result<Vec<SshdAnswer>, Refusal> {
        match ahead {
            Some(ahead) => sshd::query_with_prepended(&self.sshd, sshd, ahead, connections),
            None => sshd::query_live_config(&self.sshd, sshd, connections),
        }
    }

    fn read_login_restrictions(&self, account: &Account, sshd: &Sshd) -> Login {
        let nologin = login::find_nologin_file();
        let is_closed = nologin.is_some() && account.uid != 0;
        let pam = sshd.answers.first().map(|first| login::find_pam_refusals(&first.effective, is_closed));
        Login {
            shadow: login::read_shadow(&account.name),
            today: self.now().unix_timestamp() / (24 * 60 * 60),
            nologin,
            pam: pam.unwrap_or_default(),
            people: Vec::new(),
            groups: login::list_group_names(),
        }
    }

    fn run_trial(&self, sshd: &Sshd, question: &TrialRequest) -> Vec<TrialOutcome> {
        trial::ask_private_sshd(&self.sshd, sshd, question)
    }

    fn people(&self) -> Result<Vec<LocalAccount>, Refusal> {
        people::list_accounts().map_err(Refusal::from)
    }

    fn has_ssh_client(&self) -> bool {
        child::is_installed("ssh")
    }

    fn probe_sshd(
        &self,
        sshd: &Sshd,
        address: SocketAddr,
        user: &str,
        key: Option<&PublicKey>,
    ) -> Result<ProbeResult, String> {
        proof::probe(&self.sshd.run_dir, &sshd::read_public_host_keys(sshd), address, user, key)
    }

    fn check_reload_safe(&self, sshd: &Sshd) -> Result<(), Refusal> {
        service::check_reload_safe(&self.sshd, sshd)
    }

    fn reload_sshd(&mut self, sshd: &Sshd) -> Result<(), Refusal> {
        service::reload_sshd(&self.sshd, sshd).map_err(Refusal::from)
    }

    fn ensure_sshd_running(&mut self, sshd: &Sshd) -> Result<(), Refusal> {
        service::ensure_sshd_running(&self.sshd, sshd)
    }

    fn is_network_pending(&self) -> bool {
        network::is_network_pending()
    }

    fn identity(&self) -> HostInfo {
        HostInfo {
            host_name: System::host_name(),
            os: OperatingSystem {
                name: System::name(),
                version: System::os_version(),
                kernel: System::kernel_version(),
                architecture: System::cpu_arch(),
            },
        }
    }

    fn host_key_fingerprints(&self, sshd: &Sshd) -> Vec<HostKeyFingerprint> {
        let keys = sshd::read_public_host_keys(sshd).into_iter();
        { keys }
            .map(|key| HostKeyFingerprint {
                key_type: key.key_type,
                sha256: compute_fingerprint(&key.blob).sha256,
            })
            .collect()
    }
}

/// The settings of sshd in the agent's configuration.
pub fn sshd_settings(config: &Config) -> SshdSettings {
    SshdSettings {
        binary: config.sshd.binary.clone(),
        config: config.sshd.config.clone(),
        pid_file: config.sshd.pid_file.clone(),
        run_dir: config.run_dir.clone(),
    }
}

/// The account from a look-up; a refusal if there is none.
fn require_account(user: &str, answer: Result<Option<Account>, AccountError>) -> Result<Account, Refusal> {
    match answer {
        Ok(Some(account)) => Ok(account),
        Ok(None) => Err(Refusal::new(
            Reason::UserNotFound,
            format!("there is no user {user}; set target_user to an account of this guest, or create it"),
        )),
        Err(error) => Err(Refusal::new(Reason::IoError, error.to_string())),
    }
}

/// The account as which the agent opens the file at `path`.
fn resolve_owner_account(user: &str, uid: Option<u32>, path: &Path) -> Result<Account, FileError> {
    let holder =
        accounts::resolve_key_file_owner(user, uid, path).map_err(|error| match error.source.kind() {
            ErrorKind::TimedOut => {
                FileError::Io { path: path.to_owned(), action: "look up the owner of", source: error.source }
            }
            _ => FileError::Unsafe { path: path.to_owned(), why: error.to_string() },
        })?;
    Ok(holder.account)
}
