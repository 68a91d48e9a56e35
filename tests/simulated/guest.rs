//! `trait Guest` over the simulated machine.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use keypair_agent::guest::files::FileError;
use keypair_agent::guest::{Guest, HostKey, Identity, LockFailure, OperatingSystem};
use keypair_agent::policy::connection;
use keypair_agent::policy::edit::FileKind;
use keypair_agent::policy::effective::Effective;
use keypair_agent::policy::observation::{
    Account, Answer, ConfigTree, Connection, FileId, Holder, KeyFile, Login, Person, Reload, Shadow,
    ShadowEntry, Sshd,
};
use keypair_agent::policy::outcome::{Reason, Refusal};
use keypair_agent::policy::proof::Seen;
use keypair_agent::policy::public_key::PublicKey;
use keypair_agent::policy::trial::{
    Acceptance, KeyMatch, RefusalCause, Rejection, TrialAnswer, TrialQuestion,
};
use keypair_agent::policy::types::{CommandId, ContentHash};
use time::OffsetDateTime;

use super::disk::STATE;
use super::fault::{BRING_BACK, PROBE, RELOAD, SAVE_STATE, TRIAL, WRITE_SETTING};
use super::keys;
use super::machine::{Begun, Component, Look, Machine};
use super::place::{Trial, VOLUME};
use super::sshd::{Config, tree};

/// A handle on the machine, so that it outlives the transaction.
#[derive(Debug, Clone)]
pub struct Simulated(pub Rc<RefCell<Machine>>);

const fn look(name: &'static str, keys: bool, sshd: bool) -> Look {
    Look { keys, sshd, name }
}

/// The look at a file, by its kind.
fn at(kind: &FileKind, of_keys: &'static str, of_sshd: &'static str) -> Look {
    match kind {
        FileKind::AuthorizedKeys { .. } => look(of_keys, true, false),
        FileKind::SshdConfig => look(of_sshd, false, true),
    }
}

fn io_error(path: &Path) -> FileError {
    // EIO
    FileError::Io { path: path.to_owned(), action: "use", source: io::Error::from_raw_os_error(5) }
}

fn refusal(reason: Reason, why: &str) -> Refusal {
    Refusal::new(reason, why)
}

fn gone() -> Refusal {
    refusal(Reason::IoError, "the machine is down")
}

impl Simulated {
    /// A look that nothing comes of; false where the agent is no more.
    fn looks(&self, look: Look) -> bool {
        self.0.borrow_mut().look(look)
    }

    /// A step, and the check of what it did. `late` is what a step leaves that fails after the fact.
    fn step<R, E>(
        &self,
        look: Look,
        path: Option<&str>,
        effect: impl FnOnce(&mut Machine) -> Result<R, E>,
        late: impl FnOnce(&mut Machine),
        error: impl FnOnce() -> E,
    ) -> Result<R, E> {
        let mut machine = self.0.borrow_mut();
        match machine.begin(look, path) {
            Begun::Goes => machine.watched(effect),
            Begun::FailsLate => {
                late(&mut machine);
                Err(error())
            }
            Begun::Fails | Begun::Over => Err(error()),
        }
    }
}

impl Simulated {
    fn private_answer(&self, question: &TrialQuestion) -> TrialAnswer {
        let machine = self.0.borrow();
        let place = machine.disk.place;
        match place.trial {
            Trial::NotTaken => return TrialAnswer::NotTaken("no ssh client".to_owned()),
            Trial::NotShown if !question.key_files.is_empty() => {
                return TrialAnswer::NotShown("no namespace can be made".to_owned());
            }
            Trial::Told | Trial::NotShown => {}
        }
        let Ok(config) = Config::of(&machine.disk, &question.ahead) else {
            return TrialAnswer::NotTaken("bad configuration option".to_owned());
        };
        let methods = config.methods();
        let file = machine.disk.key_file();
        let planned = question.key_files.iter().find(|planned| planned.path.to_str() == Some(file));
        let content = planned.map_or_else(|| machine.disk.text(file), |planned| &planned.content[..]);
        let refused = |cause| TrialAnswer::Refused(Rejection { cause, said: None, methods: methods.clone() });
        if !methods.iter().any(|method| method == "publickey") {
            return refused(RefusalCause::MethodNotOffered);
        }
        if place.account().is_none_or(|account| account.name != question.user) {
            return refused(RefusalCause::UnknownUser);
        }
        if place.refuses_keys {
            return refused(RefusalCause::Modes(file.to_owned()));
        }
        match keys::line_of(content, &question.key.line()) {
            Some(line) => TrialAnswer::Accepted(Acceptance {
                at: KeyMatch { file: file.to_owned(), line },
                restrictions: Vec::new(),
                methods,
            }),
            None => refused(RefusalCause::NotFound),
        }
    }
}

fn hash_of(content: Option<&[u8]>) -> Option<ContentHash> {
    content.map(ContentHash::of)
}

fn answers(config: &Config, connections: &[Connection]) -> Vec<Answer> {
    let effective = Effective::parse(&config.text());
    let answer =
        |connection: &Connection| Answer { connection: connection.clone(), effective: effective.clone() };
    connections.iter().map(answer).collect()
}

impl Guest for Simulated {
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
            true => Err(io_error(STATE.as_ref())),
            false => Ok(machine.disk.read(STATE).map(<[u8]>::to_vec)),
        }
    }

    fn save_state(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        let save = |machine: &mut Machine| machine.disk.put(STATE, bytes);
        let saved = |machine: &mut Machine| {
            save(machine);
            Ok(())
        };
        self.step(look(SAVE_STATE, false, false), Some(STATE), saved, save, || io_error(STATE.as_ref()))
    }

    fn component_info(&self) -> Result<Vec<u8>, String> {
        match self.0.borrow().component {
            Component::New => Ok(b"3.0.1042.d89c570\n".to_vec()),
            Component::Old => Ok(b"3.0.999\n".to_vec()),
            Component::Missing => Err("it does not exist".to_owned()),
        }
    }

    /// Nobody signs here, and the machine has no UUID.
    fn root_file(&self, _: &Path) -> Result<Option<Vec<u8>>, FileError> {
        Ok(None)
    }

    fn account(&self, user: &str) -> Result<Account, Refusal> {
        if self.0.borrow().call.is_over {
            return Err(gone());
        }
        let account = self.0.borrow().disk.place.account();
        account
            .filter(|account| account.name == user)
            .ok_or_else(|| refusal(Reason::UserNotFound, &format!("there is no user {user}")))
    }

    fn holder(&self, user: &str, uid: Option<u32>, path: &Path) -> Result<Holder, Refusal> {
        if self.0.borrow().call.is_over {
            return Err(gone());
        }
        let disk = &self.0.borrow().disk;
        let has_directory = path.parent().is_some_and(|directory| disk.has_directory(directory));
        Ok(disk.place.holder(user, uid, path, has_directory))
    }

    fn file_id(&self, path: &Path) -> Option<FileId> {
        Some(id(path))
    }

    fn is_mounted(&self, point: &Path) -> bool {
        point != Path::new(VOLUME) || self.0.borrow().disk.place.is_mounted
    }

    fn key_file(&self, _account: &Account, path: &Path) -> Result<KeyFile, FileError> {
        if !self.looks(look("read authorized_keys", true, false)) {
            return Err(io_error(path));
        }
        let machine = self.0.borrow();
        Ok(KeyFile {
            path: path.to_owned(),
            id: id(path),
            mount: Some(match path.starts_with(VOLUME) && machine.disk.place.is_mounted {
                true => VOLUME.into(),
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
        match self.looks(at(kind, "read authorized_keys", "read sshd's file")) {
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
        let write = |machine: &mut Machine| {
            if hash_of(machine.disk.read(path)).as_ref() != expected {
                return Err(FileError::Changed { path: path.to_owned() });
            }
            machine.disk.put(path, content);
            Ok(())
        };
        let look = at(kind, "write authorized_keys", WRITE_SETTING);
        self.step(look, path.to_str(), write, |_| {}, || io_error(path))
    }

    fn remove(
        &mut self,
        kind: &FileKind,
        path: &Path,
        expected: &ContentHash,
        directory: Option<&Path>,
    ) -> Result<(), FileError> {
        let remove = |machine: &mut Machine| {
            if hash_of(machine.disk.read(path)).is_some_and(|now| now != *expected) {
                return Err(FileError::Changed { path: path.to_owned() });
            }
            machine.disk.take(path);
            directory.into_iter().for_each(|directory| machine.disk.take_directory(directory));
            Ok(())
        };
        let look = at(kind, "remove authorized_keys", "remove sshd's file");
        self.step(look, None, remove, |_| {}, || io_error(path))
    }

    fn sweep(&mut self, _kind: &FileKind, path: &Path) {
        let mut machine = self.0.borrow_mut();
        if !machine.call.is_over {
            machine.disk.sweep(path);
        }
    }

    fn sweep_state(&mut self) {
        let mut machine = self.0.borrow_mut();
        if !machine.call.is_over {
            machine.disk.sweep(STATE);
        }
    }

    fn reads_key(&self, _key: &PublicKey) -> Result<(), Refusal> {
        Ok(())
    }

    fn sshd(&self, user: &str) -> Result<Sshd, Refusal> {
        if !self.looks(look("ask sshd", false, true)) {
            return Err(gone());
        }
        let machine = self.0.borrow();
        let Some(files) = machine.files() else {
            return Err(refusal(Reason::SshdConfigAlreadyInvalid, "sshd -t: bad configuration option"));
        };
        let first = Effective::parse(&files.text());
        let reload = match &machine.running {
            Some(_) => Reload::Unit("ssh.service".to_owned()),
            None => Reload::None("ssh.service is inactive".to_owned()),
        };
        Ok(Sshd {
            binary: "/usr/sbin/sshd".into(),
            options: Vec::new(),
            running: machine.running.is_some(),
            is_awaited: false,
            main_is_writable: true,
            config: tree(&machine.disk),
            answers: answers(&files, &connection::connections(user, &first, &[])),
            reload,
            has_read_its_files: Some(machine.running.as_ref() == Some(&files)),
            others: Vec::new(),
        })
    }

    fn may_run_sshd(&self) -> Result<bool, Refusal> {
        Ok(self.0.borrow().running.is_some())
    }

    fn sshd_files(&self) -> Result<ConfigTree, Refusal> {
        match self.looks(look("read sshd's files", false, true)) {
            true => Ok(tree(&self.0.borrow().disk)),
            false => Err(gone()),
        }
    }

    fn ask(
        &self,
        _sshd: &Sshd,
        ahead: Option<&str>,
        connections: &[Connection],
    ) -> Result<Vec<Answer>, Refusal> {
        if !self.looks(look("ask sshd", false, true)) {
            return Err(gone());
        }
        match Config::of(&self.0.borrow().disk, ahead.unwrap_or_default()) {
            Ok(config) => Ok(answers(&config, connections)),
            Err(_) => Err(refusal(Reason::SshdConfigRejected, "sshd -t: bad configuration option")),
        }
    }

    fn login(&self, _account: &Account, _sshd: &Sshd) -> Login {
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

    /// A private sshd, with key file and configuration as they will be.
    fn trial(&self, _sshd: &Sshd, question: &TrialQuestion) -> Vec<TrialAnswer> {
        let answer = match self.looks(look(TRIAL, true, true)) {
            false => TrialAnswer::NotTaken("the machine is down".to_owned()),
            true => self.private_answer(question),
        };
        question.connections.iter().map(|_| answer.clone()).collect()
    }

    fn people(&self) -> Result<Vec<Person>, Refusal> {
        let account = self.0.borrow().disk.place.account();
        Ok(account
            .map(|account| Person { account, has_password: true, has_key: false })
            .into_iter()
            .collect())
    }

    fn has_client(&self) -> bool {
        self.0.borrow().disk.place.trial != Trial::NotTaken
    }

    fn probe(
        &self,
        _sshd: &Sshd,
        _address: SocketAddr,
        _user: &str,
        key: Option<&PublicKey>,
    ) -> Result<Seen, String> {
        if !self.looks(look(PROBE, true, false)) {
            return Err("the machine is down".to_owned());
        }
        let machine = self.0.borrow();
        let Some(running) = &machine.running else { return Err("connection refused".to_owned()) };
        let methods = running.methods();
        let offers = methods.iter().any(|method| method == "publickey");
        let disk = &machine.disk;
        let accepts = |key: &PublicKey| !disk.place.refuses_keys && keys::holds(disk.keys(), &key.line());
        let accepts_key = key.filter(|_| offers).map(accepts);
        Ok(Seen { methods, accepts_key })
    }

    fn reload_is_safe(&self, _sshd: &Sshd) -> Result<(), Refusal> {
        if !self.looks(look("see whether a reload is safe", false, true)) {
            return Err(gone());
        }
        match self.0.borrow().files() {
            Some(_) => Ok(()),
            None => Err(refusal(Reason::SshdReloadUnsafe, "sshd would not live with its files")),
        }
    }

    fn reload(&mut self, sshd: &Sshd) -> Result<(), Refusal> {
        if matches!(sshd.reload, Reload::None(_)) {
            return Ok(());
        }
        // What it cannot read kills it; one that is gone already cannot be told.
        let reload = |machine: &mut Machine| {
            if machine.running.is_some() {
                machine.start();
            }
            machine.running.as_ref().map(|_| ()).ok_or_else(reload_failed)
        };
        let dies = |machine: &mut Machine| machine.running = None;
        self.step(look(RELOAD, false, true), None, reload, dies, reload_failed)
    }

    fn bring_back(&mut self, sshd: &Sshd) -> Result<(), Refusal> {
        if matches!(sshd.reload, Reload::None(_)) {
            return Ok(());
        }
        let bring_back = |machine: &mut Machine| {
            if machine.running.is_none() {
                machine.start();
            }
            machine.running.as_ref().map(|_| ()).ok_or_else(reload_failed)
        };
        self.step(look(BRING_BACK, false, true), None, bring_back, |_| {}, reload_failed)
    }

    fn identity(&self) -> Identity {
        let os =
            OperatingSystem { name: None, version: None, kernel: None, architecture: "x86_64".to_owned() };
        Identity { host_name: None, os }
    }

    fn host_keys(&self, _sshd: &Sshd) -> Vec<HostKey> {
        Vec::new()
    }
}

fn reload_failed() -> Refusal {
    refusal(Reason::SshdReloadFailed, "sshd does not listen")
}

fn id(path: &Path) -> FileId {
    FileId { device: 0, inode: 0, name: path.to_owned() }
}
