//! `trait Guest` over the simulated machine.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use keypair_agent::guest::files::FileError;
use keypair_agent::guest::{Guest, HostInfo, HostKeyFingerprint, LockFailure, OperatingSystem};
use keypair_agent::policy::connection;
use keypair_agent::policy::edit::FileKind;
use keypair_agent::policy::effective::EffectiveConfig;
use keypair_agent::policy::observation::{
    Account, ConfigTree, Connection, FileId, KeyFile, KeyFileOwner, LocalAccount, Login, ReloadMethod,
    Shadow, ShadowEntry, Sshd, SshdAnswer,
};
use keypair_agent::policy::outcome::{Reason, Refusal};
use keypair_agent::policy::proof::ProbeResult;
use keypair_agent::policy::public_key::PublicKey;
use keypair_agent::policy::trial::{
    Acceptance, KeyMatch, RefusalCause, Rejection, TrialOutcome, TrialRequest,
};
use keypair_agent::policy::types::{CommandId, ContentHash};
use time::OffsetDateTime;

use super::disk::STATE_FILE;
use super::fault::{PROBE_SSHD, RELOAD, RESTORE_SSHD, SAVE_STATE, TRY_KEY, WRITE_SETTING};
use super::keys;
use super::machine::{AccessPoint, ComponentState, SimulatedMachine, StepStart};
use super::place::{HOME_VOLUME, TrialMode};
use super::sshd::{SimSshdConfig, tree};

/// A handle on the machine, so that the machine outlives the transaction.
#[derive(Debug, Clone)]
pub struct SimulatedGuest(pub Rc<RefCell<SimulatedMachine>>);

const fn access_point(name: &'static str, keys: bool, sshd: bool) -> AccessPoint {
    AccessPoint { keys, sshd, name }
}

/// The access point for a file of this kind.
fn access_point_by_kind(kind: &FileKind, of_keys: &'static str, of_sshd: &'static str) -> AccessPoint {
    match kind {
        FileKind::AuthorizedKeys { .. } => access_point(of_keys, true, false),
        FileKind::SshdConfig => access_point(of_sshd, false, true),
    }
}

fn io_error(path: &Path) -> FileError {
    // EIO
    FileError::Io { path: path.to_owned(), action: "use", source: io::Error::from_raw_os_error(5) }
}

fn refusal(reason: Reason, why: &str) -> Refusal {
    Refusal::new(reason, why)
}

fn machine_down_refusal() -> Refusal {
    refusal(Reason::IoError, "the machine is down")
}

impl SimulatedGuest {
    /// Records an access without an effect. Returns false if the agent does not run any more.
    fn record_access(&self, look: AccessPoint) -> bool {
        self.0.borrow_mut().record_access(look)
    }

    /// Performs a step and checks its effect. `late` is the effect of a step that fails afterwards.
    fn run_step<R, E>(
        &self,
        look: AccessPoint,
        path: Option<&str>,
        effect: impl FnOnce(&mut SimulatedMachine) -> Result<R, E>,
        late: impl FnOnce(&mut SimulatedMachine),
        error: impl FnOnce() -> E,
    ) -> Result<R, E> {
        let mut machine = self.0.borrow_mut();
        match machine.begin_step(look, path) {
            StepStart::Proceed => machine.check_effect(effect),
            StepStart::FailLate => {
                late(&mut machine);
                Err(error())
            }
            StepStart::Fail | StepStart::Aborted => Err(error()),
        }
    }
}

impl SimulatedGuest {
    fn answer_trial(&self, question: &TrialRequest) -> TrialOutcome {
        let machine = self.0.borrow();
        let place = machine.disk.place;
        match place.trial {
            TrialMode::Unavailable => return TrialOutcome::NotTaken("no ssh client".to_owned()),
            TrialMode::WithoutPlannedFiles if !question.key_files.is_empty() => {
                return TrialOutcome::NotShown("no namespace can be made".to_owned());
            }
            TrialMode::Available | TrialMode::WithoutPlannedFiles => {}
        }
        let Ok(config) = SimSshdConfig::from_disk(&machine.disk, &question.ahead) else {
            return TrialOutcome::NotTaken("bad configuration option".to_owned());
        };
        let methods = config.methods();
        let file = machine.disk.key_file();
        let planned = question.key_files.iter().find(|planned| planned.path.to_str() == Some(file));
        let content =
            planned.map_or_else(|| machine.disk.read_or_empty(file), |planned| &planned.content[..]);
        let refused =
            |cause| TrialOutcome::Refused(Rejection { cause, said: None, methods: methods.clone() });
        if !methods.iter().any(|method| method == "publickey") {
            return refused(RefusalCause::MethodNotOffered);
        }
        if place.account().is_none_or(|account| account.name != question.user) {
            return refused(RefusalCause::UnknownUser);
        }
        if place.refuses_keys {
            return refused(RefusalCause::Modes(file.to_owned()));
        }
        match keys::find_key_line(content, &question.key.line()) {
            Some(line) => TrialOutcome::Accepted(Acceptance {
                at: KeyMatch { file: file.to_owned(), line },
                restrictions: Vec::new(),
                methods,
            }),
            None => refused(RefusalCause::NotFound),
        }
    }
}

fn content_hash(content: Option<&[u8]>) -> Option<ContentHash> {
    content.map(ContentHash::from_content)
}

fn build_answers(config: &SimSshdConfig, connections: &[Connection]) -> Vec<SshdAnswer> {
    let effective = EffectiveConfig::parse(&config.text());
    let answer =
        |connection: &Connection| SshdAnswer { connection: connection.clone(), effective: effective.clone() };
    connections.iter().map(answer).collect()
}

impl Guest for SimulatedGuest {
    type Lock = ();

    fn now(&self) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(self.0.borrow().now).unwrap()
    }

    fn elapsed(&self) -> Duration {
        Duration::ZERO
    }

    fn random_id(&self) -> CommandId {
        "local-1".parse().unwrap()
    }

    fn lock(&mut self) -> Result<(), LockFailure> {
        match self.0.borrow().call.is_over {
            true => Err(LockFailure::Busy("the machine is down".to_owned())),
            false => Ok(()),
        }
    }

    fn load_state(&self) -> Result<Option<Vec<u8>>, FileError> {
        let machine = self.0.borrow();
        match machine.call.is_over {
            true => Err(io_error(STATE_FILE.as_ref())),
            false => Ok(machine.disk.read(STATE_FILE).map(<[u8]>::to_vec)),
        }
    }

    fn save_state(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        let save = |machine: &mut SimulatedMachine| machine.disk.write_file(STATE_FILE, bytes);
        let saved = |machine: &mut SimulatedMachine| {
            save(machine);
            Ok(())
        };
        self.run_step(access_point(SAVE_STATE, false, false), Some(STATE_FILE), saved, save, || {
            io_error(STATE_FILE.as_ref())
        })
    }

    fn component_info(&self) -> Result<Vec<u8>, String> {
        match self.0.borrow().component {
            ComponentState::Current => Ok(b"3.0.1042.d89c570\n".to_vec()),
            ComponentState::Outdated => Ok(b"3.0.999\n".to_vec()),
            ComponentState::Missing => Err("it does not exist".to_owned()),
        }
    }

    /// There are no signing keys, and the machine has no UUID.
    fn read_root_owned_file(&self, _: &Path) -> Result<Option<Vec<u8>>, FileError> {
        Ok(None)
    }

    fn lookup_account(&self, user: &str) -> Result<Account, Refusal> {
        if self.0.borrow().call.is_over {
            return Err(machine_down_refusal());
        }
        let account = self.0.borrow().disk.place.account();
        account
            .filter(|account| account.name == user)
            .ok_or_else(|| refusal(Reason::UserNotFound, &format!("there is no user {user}")))
    }

    fn resolve_key_file_owner(
        &self,
        user: &str,
        uid: Option<u32>,
        path: &Path,
    ) -> Result<KeyFileOwner, Refusal> {
        if self.0.borrow().call.is_over {
            return Err(machine_down_refusal());
        }
        let disk = &self.0.borrow().disk;
        let has_directory = path.parent().is_some_and(|directory| disk.has_directory(directory));
        Ok(disk.place.holder(user, uid, path, has_directory))
    }

    fn file_id(&self, path: &Path) -> Option<FileId> {
        Some(make_file_id(path))
    }

    fn is_mounted(&self, point: &Path) -> bool {
        point != Path::new(HOME_VOLUME) || self.0.borrow().disk.place.is_mounted
    }

    fn read_key_file(&self, _account: &Account, path: &Path) -> Result<KeyFile, FileError> {
        if !self.record_access(access_point("read authorized_keys", true, false)) {
            return Err(io_error(path));
        }
        let machine = self.0.borrow();
        Ok(KeyFile {
            path: path.to_owned(),
            id: make_file_id(path),
            mount: Some(match path.starts_with(HOME_VOLUME) && machine.disk.place.is_mounted {
                true => HOME_VOLUME.into(),
                false => "/".into(),
            }),
            content: machine.disk.read(path).map(|bytes| bytes.to_vec().into()),
            missing_directory: path
                .parent()
                .filter(|directory| !machine.disk.has_directory(directory))
                .map(Path::to_owned),
        })
    }

    fn read(&self, kind: &FileKind, path: &Path) -> Result<Option<Vec<u8>>, FileError> {
        match self.record_access(access_point_by_kind(kind, "read authorized_keys", "read sshd's file")) {
            true => Ok(self.0.borrow().disk.read(path).map(<[u8]>::to_vec)),
            false => Err(io_error(path)),
        }
    }

    fn write(
        &mut self,
        kind: &FileKind,
        path: &Path,
        expected: Option<&ContentHash>,
        content: &[u8],
    ) -> Result<(), FileError> {
        let write = |machine: &mut SimulatedMachine| {
            if content_hash(machine.disk.read(path)).as_ref() != expected {
                return Err(FileError::Changed { path: path.to_owned() });
            }
            machine.disk.write_file(path, content);
            Ok(())
        };
        let look = access_point_by_kind(kind, "write authorized_keys", WRITE_SETTING);
        self.run_step(look, path.to_str(), write, |_| {}, || io_error(path))
    }

    fn remove(
        &mut self,
        kind: &FileKind,
        path: &Path,
        expected: &ContentHash,
        directory: Option<&Path>,
    ) -> Result<(), FileError> {
        let remove = |machine: &mut SimulatedMachine| {
            if content_hash(machine.disk.read(path)).is_some_and(|now| now != *expected) {
                return Err(FileError::Changed { path: path.to_owned() });
            }
            machine.disk.remove_file(path);
            directory.into_iter().for_each(|directory| machine.disk.remove_empty_directory(directory));
            Ok(())
        };
        let look = access_point_by_kind(kind, "remove authorized_keys", "remove sshd's file");
        self.run_step(look, None, remove, |_| {}, || io_error(path))
    }

    fn remove_stale_temporaries(&mut self, _kind: &FileKind, path: &Path) {
        let mut machine = self.0.borrow_mut();
        if !machine.call.is_over {
            machine.disk.remove_temp_files(path);
        }
    }

    fn clean_state_and_run_dirs(&mut self) {
        let mut machine = self.0.borrow_mut();
        if !machine.call.is_over {
            machine.disk.remove_temp_files(STATE_FILE);
        }
    }

    fn reads_key(&self, _key: &PublicKey) -> Result<(), Refusal> {
        Ok(())
    }

    fn inspect_sshd(&self, user: &str) -> Result<Sshd, Refusal> {
        if !self.record_access(access_point("ask sshd", false, true)) {
            return Err(machine_down_refusal());
        }
        let machine = self.0.borrow();
        let Some(files) = machine.read_config() else {
            return Err(refusal(Reason::SshdConfigAlreadyInvalid, "sshd -t: bad configuration option"));
        };
        let first = EffectiveConfig::parse(&files.text());
        let reload = match &machine.running {
            Some(_) => ReloadMethod::Unit("ssh.service".to_owned()),
            None => ReloadMethod::None("ssh.service is inactive".to_owned()),
        };
        Ok(Sshd {
            binary: "/usr/sbin/sshd".into(),
            options: Vec::new(),
            running: machine.running.is_some(),
            is_awaited: false,
            main_is_writable: true,
            config: tree(&machine.disk),
            answers: build_answers(&files, &connection::list_neutral_connections(user, &first, &[])),
            reload,
            has_read_its_files: Some(machine.running.as_ref() == Some(&files)),
            others: Vec::new(),
        })
    }

    fn is_sshd_possibly_running(&self) -> Result<bool, Refusal> {
        Ok(self.0.borrow().running.is_some())
    }

    fn sshd_files(&self) -> Result<ConfigTree, Refusal> {
        match self.record_access(access_point("read sshd's files", false, true)) {
            true => Ok(tree(&self.0.borrow().disk)),
            false => Err(machine_down_refusal()),
        }
    }

    fn query_effective_config(
        &self,
        _sshd: &Sshd,
        ahead: Option<&str>,
        connections: &[Connection],
    ) -> Result<Vec<SshdAnswer>, Refusal> {
        if !self.record_access(access_point("ask sshd", false, true)) {
            return Err(machine_down_refusal());
        }
        match SimSshdConfig::from_disk(&self.0.borrow().disk, ahead.unwrap_or_default()) {
            Ok(config) => Ok(build_answers(&config, connections)),
            Err(_) => Err(refusal(Reason::SshdConfigRejected, "sshd -t: bad configuration option")),
        }
    }

    fn read_login_restrictions(&self, _account: &Account, _sshd: &Sshd) -> Login {
        Login {
            shadow: Shadow::Entry(ShadowEntry {
                is_locked: false,
                has_password: true,
                is_empty: false,
                last_change: None,
                maximum: None,
                inactive: None,
                expires: None,
            }),
            today: 20_000,
            nologin: None,
            pam: Vec::new(),
            people: Vec::new(),
            groups: Vec::new(),
        }
    }

    /// Asks a private sshd, with the key file and the configuration as they will be.
    fn run_trial(&self, _sshd: &Sshd, question: &TrialRequest) -> Vec<TrialOutcome> {
        let answer = match self.record_access(access_point(TRY_KEY, true, true)) {
            false => TrialOutcome::NotTaken("the machine is down".to_owned()),
            true => self.answer_trial(question),
        };
        question.connections.iter().map(|_| answer.clone()).collect()
    }

    fn people(&self) -> Result<Vec<LocalAccount>, Refusal> {
        let account = self.0.borrow().disk.place.account();
        Ok(account
            .map(|account| LocalAccount { account, has_password: true, has_key: false })
            .into_iter()
            .collect())
    }

    fn has_ssh_client(&self) -> bool {
        self.0.borrow().disk.place.trial != TrialMode::Unavailable
    }

    fn probe_sshd(
        &self,
        _sshd: &Sshd,
        _address: SocketAddr,
        _user: &str,
        key: Option<&PublicKey>,
    ) -> Result<ProbeResult, String> {
        if !self.record_access(access_point(PROBE_SSHD, true, false)) {
            return Err("the machine is down".to_owned());
        }
        let machine = self.0.borrow();
        let Some(running) = &machine.running else { return Err("connection refused".to_owned()) };
        let methods = running.methods();
        let offers = methods.iter().any(|method| method == "publickey");
        let disk = &machine.disk;
        let accepts =
            |key: &PublicKey| !disk.place.refuses_keys && keys::has_key(disk.read_key_file(), &key.line());
        let accepts_key = key.filter(|_| offers).map(accepts);
        Ok(ProbeResult { methods, accepts_key })
    }

    fn check_reload_safe(&self, _sshd: &Sshd) -> Result<(), Refusal> {
        if !self.record_access(access_point("see whether a reload is safe", false, true)) {
            return Err(machine_down_refusal());
        }
        match self.0.borrow().read_config() {
            Some(_) => Ok(()),
            None => Err(refusal(Reason::SshdReloadUnsafe, "sshd would not live with its files")),
        }
    }

    fn reload_sshd(&mut self, sshd: &Sshd) -> Result<(), Refusal> {
        if matches!(sshd.reload, ReloadMethod::None(_)) {
            return Ok(());
        }
        // An invalid configuration ends the listener. A listener that has ended cannot reload.
        let reload = |machine: &mut SimulatedMachine| {
            if machine.running.is_some() {
                machine.boot();
            }
            machine.running.as_ref().map(|_| ()).ok_or_else(reload_failed)
        };
        let dies = |machine: &mut SimulatedMachine| machine.running = None;
        self.run_step(access_point(RELOAD, false, true), None, reload, dies, reload_failed)
    }

    fn ensure_sshd_running(&mut self, sshd: &Sshd) -> Result<(), Refusal> {
        if matches!(sshd.reload, ReloadMethod::None(_)) {
            return Ok(());
        }
        let bring_back = |machine: &mut SimulatedMachine| {
            if machine.running.is_none() {
                machine.boot();
            }
            machine.running.as_ref().map(|_| ()).ok_or_else(reload_failed)
        };
        self.run_step(access_point(RESTORE_SSHD, false, true), None, bring_back, |_| {}, reload_failed)
    }

    fn identity(&self) -> HostInfo {
        let os =
            OperatingSystem { name: None, version: None, kernel: None, architecture: "x86_64".to_owned() };
        HostInfo { host_name: None, os }
    }

    fn host_key_fingerprints(&self, _sshd: &Sshd) -> Vec<HostKeyFingerprint> {
        Vec::new()
    }
}

fn reload_failed() -> Refusal {
    refusal(Reason::SshdReloadFailed, "sshd does not listen")
}

fn make_file_id(path: &Path) -> FileId {
    FileId { device: 0, inode: 0, name: path.to_owned() }
}
