//! Taking back what a command did, after a step that failed and after a crash alike (KP-7.4 to KP-7.7).

use std::path::PathBuf;

use crate::guest::Guest;
use crate::guest::files::FileError;
use crate::policy::block;
use crate::policy::edit::{FileIntent, FileKind, Inverse};
use crate::policy::observation::{Reload, Sshd};
use crate::policy::outcome::{Reason, Refusal};
use crate::policy::sshd_config::{PASSWORD, directives_of_ours, taken};

use super::observe::usual_key_path;
use super::state::{Intent, MAX_INTERRUPTIONS, State, StoredResult};
use super::{Failure, Transaction, pulse};
use crate::policy::command::Origin;

/// How often a file that changes under the undo is looked at again.
const TRIES: usize = 3;

/// What sshd needs after its files are restored.
#[derive(Debug, Clone, Copy)]
pub(super) enum Settle<'a> {
    /// Nothing: it was never told of the new files.
    NotNeeded,
    /// This one was told, and may have died of it; it is found again.
    BringBack(&'a Sshd),
    /// It is not known what it was told: where its files were touched, it is found afresh, and told to read them.
    Reload,
}

/// What an undo could not do.
#[derive(Debug)]
pub(super) struct NotUndone {
    /// That part of the intent.
    pub(super) rest: Box<Intent>,
    /// Every cause, in one text.
    pub(super) refusal: Refusal,
}

/// What came of the steps of an undo so far.
#[derive(Debug, Default)]
struct Steps {
    /// Files that somebody changed since.
    left_alone: Vec<PathBuf>,
    /// Key files on volumes that are not mounted.
    owed: Vec<FileIntent>,
    /// Whether sshd's files allow passwords, although one of them is not as it was.
    passwords_are_on: bool,
    /// Why the others could not be taken back.
    failures: Vec<Refusal>,
}

impl Steps {
    /// Every cause of a failure, in one text; `None` where nothing failed.
    fn refusal(&self) -> Option<Refusal> {
        let first = self.failures.first()?;
        let messages: Vec<&str> = self.failures.iter().map(|failure| failure.message.as_str()).collect();
        Some(Refusal::new(first.reason, messages.join("; ")))
    }
}

/// What came of one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taken {
    /// It is taken back, or nothing was to do.
    Back,
    /// Somebody changed the file.
    LeftAlone,
    /// The file's volume is not mounted: whether there is anything to take back is seen later.
    Owed,
}

/// Takes the intent back: sshd's side first, and where the command turned passwords on the keys first, so that there is
/// never a moment without password and key. What somebody changed since is left alone and named. A step that fails stops
/// only what depends on it: where passwords may be off, a new key stays; where a key is not back, passwords stay on. What is
/// on a volume that is not mounted is handed back: nothing else waits for it.
///
/// # Errors
/// What could not be taken back, all of it; what was is not done again by another call.
pub(super) fn undo(
    guest: &mut impl Guest,
    intent: &Intent,
    user: &str,
    settle: Settle<'_>,
) -> Result<Vec<FileIntent>, NotUndone> {
    pulse::step("taking a command back");
    let mut steps = Steps::default();
    let mut rest = Intent { key_files: Vec::new(), sshd_files: Vec::new(), ..intent.clone() };
    if intent.opens {
        // The old key is back before passwords go off again.
        rest.key_files = take_back_all(guest, &intent.key_files, &mut steps);
    }
    let owes_a_key = steps.owed.iter().any(FileIntent::takes_a_key);
    if owes_a_key {
        // The key cannot be put back, and passwords may not go off without it.
        let refusals = steps.owed.iter().map(not_mounted).collect::<Vec<_>>();
        steps.failures.extend(refusals);
        rest.key_files.append(&mut steps.owed);
    }
    if rest.key_files.iter().any(FileIntent::takes_a_key) {
        rest.sshd_files.clone_from(&intent.sshd_files);
    } else {
        rest.sshd_files = take_back_all(guest, &intent.sshd_files, &mut steps);
    }
    // What cannot be restored may turn passwords off: sshd is not told to read it.
    let is_restored = rest.sshd_files.is_empty() || intent.opens;
    let mut settled = match settle {
        Settle::NotNeeded => Ok(()),
        Settle::BringBack(sshd) => guest.bring_back(sshd),
        Settle::Reload => Ok(()),
    };
    let must_read = match settle {
        Settle::NotNeeded => false,
        // One that lived through the reload may have read what is no longer there: until it has read its restored
        // files, the key may be the only way in.
        Settle::BringBack(_) => true,
        Settle::Reload => !intent.sshd_files.is_empty(),
    };
    if settled.is_ok() && must_read && is_restored {
        settled = reload_afresh(guest, user);
    }
    let is_settled = settled.is_ok();
    if let Err(refusal) = settled {
        steps.failures.push(refusal);
        rest.sshd_files.clone_from(&intent.sshd_files);
    }
    if !intent.opens {
        let mut must_stay = match is_settled {
            true => the_key_must_stay(guest, intent, &rest, user, &mut steps),
            false => true,
        };
        // By its files passwords are on: the running one has to have read that before the key goes.
        if steps.passwords_are_on
            && must_read
            && !is_restored
            && let Err(refusal) = reload_afresh(guest, user)
        {
            steps.failures.push(refusal);
            must_stay = true;
        }
        let stays = |file: &FileIntent| must_stay && !file.takes_a_key();
        let (stay, go): (Vec<FileIntent>, Vec<FileIntent>) =
            intent.key_files.iter().cloned().partition(stays);
        rest.key_files = take_back_all(guest, &go, &mut steps);
        if !stay.is_empty() {
            // By them the next try sees whether it still has to stay.
            rest.sshd_files.clone_from(&intent.sshd_files);
        }
        rest.key_files.extend(stay);
    }
    for path in &steps.left_alone {
        tracing::warn!(
            path = %path.display(),
            "{} was changed by somebody meanwhile: what is ours in it is left alone",
            path.display()
        );
    }
    let Some(refusal) = steps.refusal() else { return Ok(steps.owed) };
    rest.key_files.append(&mut steps.owed);
    Err(NotUndone { refusal, rest: Box::new(rest) })
}

/// That a key file cannot be looked at, since its volume is not mounted.
fn not_mounted(file: &FileIntent) -> Refusal {
    let mount = file.mount.as_deref().unwrap_or(&file.path).display();
    let message =
        format!("{}: {mount}, on which that file is, is not mounted; mount it", file.path.display());
    Refusal::new(Reason::IoError, message)
}

/// Takes back what a command wrote into sshd's files, and has sshd read them. The files that somebody changed meanwhile, and
/// that are left alone.
///
/// # Errors
/// What could not be taken back, or that sshd may not have read it.
pub(super) fn take_setting_back(
    guest: &mut impl Guest,
    files: &[FileIntent],
    user: &str,
) -> Result<Vec<PathBuf>, Refusal> {
    let mut steps = Steps::default();
    take_back_all(guest, files, &mut steps);
    if let Some(refusal) = steps.refusal() {
        return Err(refusal);
    }
    reload_afresh(guest, user)?;
    Ok(steps.left_alone)
}

/// Whether a key that was bound anew has to stay, since what is left of the command in sshd's files keeps passwords off.
fn the_key_must_stay(
    guest: &impl Guest,
    intent: &Intent,
    rest: &Intent,
    user: &str,
    steps: &mut Steps,
) -> bool {
    let is_new = |file: &&FileIntent| !file.takes_a_key() && still_stands(guest, file);
    let Some(key) = intent.key_files.iter().find(is_new) else { return false };
    for file in &intent.sshd_files {
        let is_left = rest.sshd_files.contains(file) || steps.left_alone.contains(&file.path);
        if !is_left || !may_turn_off(guest, file) {
            continue;
        }
        let why = match passwords_are_on(guest, user) {
            Ok(true) => {
                steps.passwords_are_on = true;
                return false;
            }
            Ok(false) => "passwords are off".to_owned(),
            Err(refusal) => format!("whether passwords are on cannot be told ({})", refusal.message),
        };
        let (left, key) = (file.path.display(), key.path.display());
        let is = match rest.sshd_files.contains(file) {
            true => "could not be restored",
            false => "was changed by somebody meanwhile and is left alone",
        };
        steps.failures.push(Refusal::new(
            Reason::LockoutGuard,
            format!(
                "{left} {is}, and {why}: the key in {key} stays, since it may be the only way in; take the setting out of \
                 {left}"
            ),
        ));
        return true;
    }
    false
}

/// Whether there is anything of an edit to take back; what cannot be read may stand.
fn still_stands(guest: &impl Guest, file: &FileIntent) -> bool {
    match guest.read(&file.kind, &file.path) {
        Ok(now) => !matches!(file.inverse(now.as_deref()), Inverse::Nothing | Inverse::LeftAlone),
        Err(_) => true,
    }
}

/// Whether what was ours in a file of sshd's turns passwords off, whatever somebody made of it. What cannot be read may;
/// what is no file does not.
fn may_turn_off(guest: &impl Guest, file: &FileIntent) -> bool {
    match guest.read(&file.kind, &file.path) {
        Ok(now) => {
            let ours = block::joined(&file.ours(&now.unwrap_or_default()));
            directives_of_ours(&ours).iter().any(|(keyword, value)| keyword == PASSWORD && value == "no")
        }
        Err(FileError::Unsafe { .. }) => false,
        Err(_) => true,
    }
}

/// Whether a password lets in, by sshd's files as they stand.
///
/// # Errors
/// It cannot be told.
fn passwords_are_on(guest: &impl Guest, user: &str) -> Result<bool, Refusal> {
    match guest.sshd(user) {
        Ok(sshd) => Ok(sshd.answers.iter().any(|answer| answer.effective.password_authentication())),
        // Nobody reads the setting.
        Err(refusal) if refusal.reason == Reason::SshdNotFound && !guest.may_run_sshd()? => Ok(true),
        Err(refusal) => Err(refusal),
    }
}

/// Takes every file back, the last one first; one that cannot be taken back stops no other. Those that could not.
fn take_back_all(guest: &mut impl Guest, files: &[FileIntent], steps: &mut Steps) -> Vec<FileIntent> {
    let mut rest = Vec::new();
    for file in files.iter().rev() {
        match take_back(guest, file) {
            Ok(Taken::Back) => {}
            Ok(Taken::LeftAlone) => steps.left_alone.push(file.path.clone()),
            Ok(Taken::Owed) => steps.owed.push(file.clone()),
            Err(refusal) => {
                steps.failures.push(refusal);
                rest.insert(0, file.clone());
            }
        }
    }
    rest
}

fn take_back(guest: &mut impl Guest, file: &FileIntent) -> Result<Taken, Refusal> {
    let FileIntent { path, kind, creates_directory, .. } = file;
    for _ in 0..TRIES {
        let now = match guest.read(&file.kind, &file.path) {
            Ok(now) => now,
            Err(error) if is_not_ours(guest, file, &error) => return Ok(Taken::LeftAlone),
            Err(error) => return Err(error.into()),
        };
        let inverse = file.inverse(now.as_deref());
        let is_found = !matches!(inverse, Inverse::Nothing | Inverse::LeftAlone);
        // What stands there now is another file.
        if !is_found && file.mount.as_deref().is_some_and(|mount| !guest.is_mounted(mount)) {
            return Ok(Taken::Owed);
        }
        let hash = now.as_deref().map(crate::policy::types::ContentHash::of);
        let done = match (inverse, &hash) {
            (Inverse::Nothing, None) => match (creates_directory, &file.hash_after) {
                // The directory may have been made before the file.
                (Some(directory), Some(after)) => guest.remove(kind, path, after, Some(directory)),
                _ => Ok(()),
            },
            (Inverse::Nothing, Some(_)) | (Inverse::Remove, None) => Ok(()),
            (Inverse::LeftAlone, _) => return Ok(Taken::LeftAlone),
            (Inverse::Replace(content), expected) => guest.write(kind, path, expected.as_ref(), &content),
            (Inverse::Remove, Some(expected)) => {
                guest.remove(kind, path, expected, creates_directory.as_deref())
            }
        };
        match done {
            Err(FileError::Changed { .. }) => {}
            done => return done.map(|()| Taken::Back).map_err(Refusal::from),
        }
    }
    Err(Refusal::new(Reason::IoError, format!("{} changes faster than it can be restored", path.display())))
}

/// Whether what cannot be read safely holds nothing of ours that would have to be taken out: a link, a directory or a
/// device that somebody put in the file's place. A file of sshd's is refused for nothing else; a key file may be refused for
/// its way, and is then read as sshd reads it.
fn is_not_ours(guest: &impl Guest, file: &FileIntent, error: &FileError) -> bool {
    if !matches!(error, FileError::Unsafe { .. }) {
        return false;
    }
    match &file.kind {
        FileKind::SshdConfig => true,
        FileKind::AuthorizedKeys { .. } => {
            !file.takes_a_key()
                && match guest.read(&FileKind::SshdConfig, &file.path) {
                    Ok(now) => file.ours(&now.unwrap_or_default()).is_empty(),
                    Err(FileError::Unsafe { .. }) => true,
                    Err(_) => false,
                }
        }
    }
}

/// sshd is found anew, and told to read its files as they now are.
///
/// # Errors
/// It may not have read them.
pub(super) fn reload_afresh(guest: &mut impl Guest, user: &str) -> Result<(), Refusal> {
    let Some(sshd) = listener(guest, user)? else { return Ok(()) };
    guest.reload_is_safe(&sshd)?;
    let Err(failed) = guest.reload(&sshd) else { return Ok(()) };
    tracing::error!("{}", failed.message);
    guest.bring_back(&sshd)?;
    // That it listens does not say that it has read them: it may have lived through the failure.
    let Some(sshd) = listener(guest, user)? else { return Ok(()) };
    guest.reload_is_safe(&sshd)?;
    guest.reload(&sshd)
}

/// The sshd that has to be told; `None` where nobody has to be.
fn listener(guest: &impl Guest, user: &str) -> Result<Option<Sshd>, Refusal> {
    match guest.sshd(user) {
        Ok(sshd) if matches!(sshd.reload, Reload::None(_)) => Ok(None),
        Ok(sshd) => Ok(Some(sshd)),
        // One that cannot be asked may run by our files all the same.
        Err(refusal) if refusal.reason == Reason::SshdNotFound && !guest.may_run_sshd()? => Ok(None),
        Err(refusal) => Err(refusal),
    }
}

impl<G: Guest> Transaction<G> {
    /// Undoes an open intent and sweeps what a crash left behind, under the lock.
    ///
    /// # Errors
    /// That the state cannot be read or written, or the intent not be undone.
    pub fn recover(&mut self) -> Result<(), Failure> {
        let _lock = self.guest.lock()?;
        self.guest.sweep_state();
        let mut state = self.load()?;
        self.sweep(&state);
        self.close_intent(&mut state)?;
        Ok(())
    }

    /// The same where an intent is known to be open; nothing is made or waited for where none is.
    ///
    /// # Errors
    /// As for [`Self::recover`].
    pub fn recover_if_open(&mut self) -> Result<(), Failure> {
        match self.load() {
            Ok(State { intent: Some(_), .. }) => self.recover(),
            Ok(State { intent: None, .. }) => Ok(()),
            Err(refusal) => {
                tracing::warn!("{}", refusal.message);
                Ok(())
            }
        }
    }

    /// Sweeps beside all files that are written without an intent: `undo` knows none.
    pub(super) fn sweep(&mut self, state: &State) {
        let target = self.guest.account_to_clean(&self.settings.target_user).ok();
        let usual = target.map(|account| (account.name.clone(), Some(account.uid), usual_key_path(&account)));
        let bound = state.binding.as_ref();
        let bound = bound.map(|binding| (binding.user.clone(), binding.uid, binding.path.clone()));
        for (user, uid, path) in bound.into_iter().chain(usual) {
            self.guest.sweep(&FileKind::AuthorizedKeys { user, uid, known: Vec::new() }, &path);
        }
        if let Ok(config) = self.guest.sshd_files() {
            let drop_ins = taken(&config).into_iter().map(|place| place.file().to_owned());
            for path in drop_ins.chain([config.main.clone()]) {
                self.guest.sweep(&FileKind::SshdConfig, &path);
            }
        }
    }

    /// Takes back what could not be before, since its volume was not mounted. What still cannot stays owed.
    fn take_back_owed(&mut self, state: &mut State) -> Result<(), Refusal> {
        let bound = state.binding.as_ref().map(|binding| binding.key_pair.public_key.clone());
        let mut owed = Vec::new();
        for file in state.owed.iter().filter_map(|file| file.clone().due(bound.as_ref())) {
            match take_back(&mut self.guest, &file) {
                Ok(Taken::Back) => tracing::info!("{} is taken back", file.path.display()),
                Ok(Taken::LeftAlone) => {
                    tracing::warn!(
                        "{} was changed by somebody meanwhile: it is left alone",
                        file.path.display()
                    );
                }
                Ok(Taken::Owed) => owed.push(file),
                Err(refusal) => {
                    tracing::warn!("{}", refusal.message);
                    owed.push(file);
                }
            }
        }
        if owed == state.owed {
            return Ok(());
        }
        state.owed = owed;
        self.save(state)
    }

    /// Undoes an open intent. The third time a command is found in flight, `INTERRUPTED` is its result.
    pub(super) fn close_intent(&mut self, state: &mut State) -> Result<(), Refusal> {
        self.finish_restoring(state)?;
        self.take_back_owed(state)?;
        let Some(intent) = state.intent.clone() else { return Ok(()) };
        tracing::warn!("a command was interrupted: what it did is taken back");
        for file in intent.key_files.iter().chain(&intent.sshd_files) {
            self.guest.sweep(&file.kind, &file.path);
        }
        let undone = undo(&mut self.guest, &intent, &self.settings.target_user, Settle::Reload);
        if let Ok(owed) = &undone {
            state.owed.extend(owed.iter().cloned());
        }
        if let Err(NotUndone { refusal, rest }) = undone {
            // What is done is not done again. Where that cannot be kept, it is: an inverse finds nothing to do.
            if *rest != intent {
                state.intent = Some(*rest);
                if let Err(refusal) = self.save(state) {
                    tracing::warn!("{}", refusal.message);
                }
            }
            return Err(Refusal::new(
                Reason::IoError,
                format!(
                    "an interrupted command could not be taken back, and is tried again: {}",
                    refusal.message
                ),
            ));
        }
        if let Some(Intent { command: in_flight, .. }) = state.intent.take()
            && state.count_interruption(&in_flight.id) >= MAX_INTERRUPTIONS
        {
            let mut outcome = in_flight.outline;
            outcome.finished_at = super::sheet::timestamp(&self.guest);
            let stored = StoredResult { command_id: in_flight.id, result: outcome.to_json() };
            state.interrupted = None;
            state.remember(stored.clone());
            if in_flight.origin == Origin::Channel {
                state.undelivered = Some(stored);
            }
        }
        self.save(state)
    }
}
