//! The machine this runs on.

use std::hash::{BuildHasher, Hasher};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sysinfo::System;
use time::OffsetDateTime;

use crate::config::Config;
use crate::policy::component;
use crate::policy::content::Content;
use crate::policy::edit::FileKind;
use crate::policy::key_paths::KeyPath;
use crate::policy::observation::{
    Account, Answer, ConfigTree, Connection, FileId, Holder, KeyFile, Login, Person, Sshd,
};
use crate::policy::outcome::{Reason, Refusal};
use crate::policy::proof::Seen;
use crate::policy::public_key::{PublicKey, fingerprint_of};
use crate::policy::selinux::{Labels, Relabel};
use crate::policy::sshd_config::is_drop_in;
use crate::policy::trial::{TrialAnswer, TrialQuestion};
use crate::policy::types::{CommandId, ContentHash};

use super::accounts::AccountError;
use super::files::{self, FileError, Guard, LockError, StateDirectory};
use super::scout::{self, Silence};
use super::sshd::{self, SshdSettings};
use super::{
    Guest, HostKey, Identity, LockFailure, OperatingSystem, accounts, child, labels, login, network, people,
    private, proof, service, trial, unit_sandbox,
};

/// How long a command waits for its turn (KP-8.11).
const TURN: Duration = Duration::from_secs(20);

/// The most that is read of the state file. Half of it is the most that is written.
const MAX_STATE: usize = 16 * 1024 * 1024;

/// The mode of the drop-in (KP-6.12).
const DROP_IN_MODE: u32 = 0o644;

/// This machine, by the configuration's paths.
#[derive(Debug)]
pub struct RealGuest {
    component_info: PathBuf,
    state_dir: PathBuf,
    sshd: SshdSettings,
    started: Instant,
    /// Whether the state of an earlier process is on the disk for good.
    is_settled: bool,
}

impl RealGuest {
    /// This machine, as the configuration describes it.
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

impl Guest for RealGuest {
    type Lock = Guard;

    fn now(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc()
    }

    fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    fn random_id(&self) -> CommandId {
        loop {
            // The standard hasher's keys come from the system's random source.
            let half = || std::collections::hash_map::RandomState::new().build_hasher().finish();
            if let Ok(id) = format!("local-{:016x}{:016x}", half(), half()).parse() {
                return id;
            }
        }
    }

    fn lock(&mut self) -> Result<Guard, LockFailure> {
        let directory = StateDirectory::open(&self.state_dir, true).map_err(LockFailure::Directory)?;
        directory.lock(TURN).map_err(|error| match error {
            LockError::File(error) => LockFailure::Directory(error),
            held @ LockError::Held { .. } => LockFailure::Busy(held.to_string()),
        })
    }

    fn load_state(&self) -> Result<Option<Vec<u8>>, FileError> {
        match StateDirectory::open(&self.state_dir, false) {
            Err(FileError::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
            Ok(directory) => directory.load(MAX_STATE),
        }
    }

    fn state_file(&self) -> PathBuf {
        self.state_dir.join(files::STATE_FILE)
    }

    fn save_state(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        StateDirectory::open(&self.state_dir, true)?.save(bytes)
    }

    fn component_info(&self) -> Result<Vec<u8>, String> {
        match files::read_file(&self.component_info, component::MAX_SIZE) {
            Ok(Some(content)) => Ok(content),
            Ok(None) => Err(format!("{} does not exist", self.component_info.display())),
            Err(error) => Err(error.to_string()),
        }
    }

    fn component_file(&self) -> PathBuf {
        self.component_info.clone()
    }

    fn root_file(&self, path: &Path) -> Result<Option<Vec<u8>>, FileError> {
        files::read_root_file(path)
    }

    fn account(&self, user: &str) -> Result<Account, Refusal> {
        found(user, accounts::account(user))
    }

    fn account_to_clean(&self, user: &str) -> Result<Account, Refusal> {
        found(user, accounts::account_to_clean(user))
    }

    fn silences(&self) -> Vec<String> {
        let places = scout::silent_places().into_iter();
        places.map(|place| Silence::NoAnswer(place).to_string()).collect()
    }

    fn key_file(&self, account: &Account, path: &Path) -> Result<KeyFile, FileError> {
        files::observe_key_file(account, path)
    }

    fn key_files(&self, paths: &[KeyPath], own: Option<&KeyFile>) -> Vec<(PathBuf, Content)> {
        login::key_files(paths, own)
    }

    fn standing_key_file(&self, account: &Account, path: &Path) -> Result<KeyFile, FileError> {
        files::observe_standing_key_file(account, path)
    }

    fn holder(&self, user: &str, uid: Option<u32>, path: &Path) -> Result<Holder, Refusal> {
        accounts::holder(user, uid, path).map_err(|error| Refusal::new(Reason::IoError, error.to_string()))
    }

    fn file_id(&self, path: &Path) -> Option<FileId> {
        files::file_id(path)
    }

    fn is_mounted(&self, point: &Path) -> bool {
        files::is_mounted(point)
    }

    fn resolved(&self, path: &Path) -> PathBuf {
        files::resolved(path).unwrap_or_else(|| path.to_owned())
    }

    fn read(&self, kind: &FileKind, path: &Path) -> Result<Option<Vec<u8>>, FileError> {
        match kind {
            FileKind::AuthorizedKeys { user, uid, .. } => {
                let file = files::observe_standing_key_file(&owner(user, *uid, path)?, path)?;
                Ok(file.content.map(Content::into_vec))
            }
            FileKind::SshdConfig => files::read_file(path, files::ROOT_FILE_LIMIT),
        }
    }

    fn sees(&self, path: &Path) -> Result<(), FileError> {
        match unit_sandbox::hides(&self.sshd, path) {
            Some(why) => Err(FileError::Hidden { path: path.to_owned(), why }),
            None => Ok(()),
        }
    }

    fn is_writable(
        &self,
        kind: &FileKind,
        path: &Path,
        expected: Option<&ContentHash>,
    ) -> Result<(), FileError> {
        let answer = match kind {
            FileKind::AuthorizedKeys { user, uid, .. } => {
                files::key_file_is_writable(&owner(user, *uid, path)?, path, expected)
            }
            // A main file may be a link; a drop-in of ours is none, and what it would lead to is somebody else's.
            FileKind::SshdConfig => files::root_file_is_writable(path, expected, !is_drop_in(path)),
        };
        match answer {
            Err(FileError::Io { source, .. }) if source.raw_os_error() == Some(nix::libc::EROFS) => {
                match unit_sandbox::makes_read_only(&self.sshd, path) {
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
                files::replace_key_file(&owner(user, *uid, path)?, path, expected, content).map(drop)
            }
            FileKind::SshdConfig => files::replace_root_file(path, expected, content, DROP_IN_MODE).map(drop),
        }
    }

    fn labels(&self, sshd: &Sshd, account: &Account, key_files: &[PathBuf]) -> Labels {
        labels::of(sshd, account, key_files)
    }

    fn relabel(&mut self, kind: &FileKind, relabel: &Relabel) -> Result<(), FileError> {
        match kind {
            FileKind::AuthorizedKeys { user, uid, .. } => {
                files::relabel_to_key_file(&owner(user, *uid, &relabel.file)?, relabel)
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
            FileKind::AuthorizedKeys { user, uid, .. } => {
                files::remove_created_key_file(&owner(user, *uid, path)?, path, expected, directory)
            }
            FileKind::SshdConfig => files::remove_root_file(path, expected),
        }
    }

    fn sweep(&mut self, kind: &FileKind, path: &Path) {
        let swept = match kind {
            FileKind::AuthorizedKeys { user, uid, .. } => {
                owner(user, *uid, path).and_then(|account| files::sweep_key_directory(&account, path))
            }
            // A link is written at its target, and so was the temporary.
            FileKind::SshdConfig => {
                let target = self.resolved(path);
                target.parent().map_or(Ok(0), files::sweep)
            }
        };
        if let Err(error) = swept {
            tracing::warn!("temporaries of an earlier run may be left: {error}");
        }
    }

    fn sweep_state(&mut self) {
        let swept = StateDirectory::open(&self.state_dir, false).and_then(|directory| {
            directory.sweep()?;
            if !self.is_settled {
                directory.settle()?;
                self.is_settled = true;
            }
            Ok(())
        });
        if let Err(error) = swept {
            tracing::warn!("what an earlier run left in the state directory is not settled: {error}");
        }
        if let Err(error) = private::sweep(&self.sshd.run_dir) {
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

    fn sshd(&self, user: &str) -> Result<Sshd, Refusal> {
        sshd::observe(&self.sshd, user)
    }

    fn may_run_sshd(&self) -> Result<bool, Refusal> {
        sshd::may_run(&self.sshd)
    }

    fn sshd_files(&self) -> Result<ConfigTree, Refusal> {
        sshd::files(&self.sshd)
    }

    fn files_of(&self, sshd: &Sshd) -> Result<ConfigTree, Refusal> {
        sshd::files_of(sshd)
    }

    fn ask(
        &self,
        sshd: &Sshd,
        ahead: Option<&str>,
        connections: &[Connection],
    ) -> Result<Vec<Answer>, Refusal> {
        match ahead {
            Some(ahead) => sshd::try_ahead(&self.sshd, sshd, ahead, connections),
            None => sshd::ask_live(&self.sshd, sshd, connections),
        }
    }

    fn login(&self, account: &Account, sshd: &Sshd) -> Login {
        let nologin = login::nologin();
        let is_closed = nologin.is_some() && account.uid != 0;
        let pam = sshd.answers.first().map(|first| login::pam(&first.effective, is_closed));
        Login {
            shadow: login::shadow(&account.name),
            today: self.now().unix_timestamp() / (24 * 60 * 60),
            nologin,
            pam: pam.unwrap_or_default(),
            people: Vec::new(),
            groups: login::groups(),
        }
    }

    fn trial(&self, sshd: &Sshd, question: &TrialQuestion) -> Vec<TrialAnswer> {
        trial::ask(&self.sshd, sshd, question)
    }

    fn people(&self) -> Result<Vec<Person>, Refusal> {
        people::people().map_err(Refusal::from)
    }

    fn has_client(&self) -> bool {
        child::finds("ssh")
    }

    fn probe(
        &self,
        sshd: &Sshd,
        address: SocketAddr,
        user: &str,
        key: Option<&PublicKey>,
    ) -> Result<Seen, String> {
        proof::probe(&self.sshd.run_dir, &sshd::host_keys(sshd), address, user, key)
    }

    fn reload_is_safe(&self, sshd: &Sshd) -> Result<(), Refusal> {
        service::reload_is_safe(&self.sshd, sshd)
    }

    fn reload(&mut self, sshd: &Sshd) -> Result<(), Refusal> {
        service::reload(&self.sshd, sshd).map_err(Refusal::from)
    }

    fn bring_back(&mut self, sshd: &Sshd) -> Result<(), Refusal> {
        service::bring_back(&self.sshd, sshd)
    }

    fn expects_network(&self) -> bool {
        network::is_on_its_way()
    }

    fn identity(&self) -> Identity {
        Identity {
            host_name: System::host_name(),
            os: OperatingSystem {
                name: System::name(),
                version: System::os_version(),
                kernel: System::kernel_version(),
                architecture: System::cpu_arch(),
            },
        }
    }

    fn host_keys(&self, sshd: &Sshd) -> Vec<HostKey> {
        let keys = sshd::host_keys(sshd).into_iter();
        { keys }
            .map(|key| HostKey { key_type: key.key_type, sha256: fingerprint_of(&key.blob).sha256 })
            .collect()
    }
}

/// What the configuration says of sshd.
pub fn sshd_settings(config: &Config) -> SshdSettings {
    SshdSettings {
        binary: config.sshd.binary.clone(),
        config: config.sshd.config.clone(),
        pid_file: config.sshd.pid_file.clone(),
        run_dir: config.run_dir.clone(),
    }
}

/// An account that has to be there.
fn found(user: &str, answer: Result<Option<Account>, AccountError>) -> Result<Account, Refusal> {
    match answer {
        Ok(Some(account)) => Ok(account),
        Ok(None) => Err(Refusal::new(
            Reason::UserNotFound,
            format!("there is no user {user}; set target_user to an account of this guest, or create it"),
        )),
        Err(error) => Err(Refusal::new(Reason::IoError, error.to_string())),
    }
}

/// The account as whom the file at `path` is reached.
fn owner(user: &str, uid: Option<u32>, path: &Path) -> Result<Account, FileError> {
    let holder = accounts::holder(user, uid, path).map_err(|error| match error.source.kind() {
        ErrorKind::TimedOut => {
            FileError::Io { path: path.to_owned(), action: "look up the owner of", source: error.source }
        }
        _ => FileError::Unsafe { path: path.to_owned(), why: error.to_string() },
    })?;
    Ok(holder.account)
}
