//! Taking back what a command did, after a step that failed and after a crash alike (KP-7.4 to KP-7.7).

use std::path::PathBuf;

use crate::guest::Guest;
use crate::guest::files::FileError;
use crate::policy::block;
use crate::policy::edit::{FileIntent, FileKind, Inverse};
use crate::policy::observation::{ReloadMethod, Sshd};
use crate::policy::outcome::{Reason, Refusal};
use crate::policy::sshd_config::{PASSWORD_AUTHENTICATION, managed_places, parse_managed_directives};

use super::observe::default_key_path;
use super::state::{Intent, MAX_INTERRUPTIONS, State, StoredResult};
use super::{Engine, EngineError, pulse};
use crate::policy::command::Origin;

/// How often a file that changes under the undo is looked at again.
const MAX_RESTORE_TRIES: usize = 3;

/// What sshd needs after its files are restored.
#[derive(Debug, Clone, Copy)]
pub(super) enum SshdRestore<'a> {
    /// Nothing: it was never told of the new files.
    NotNeeded,
    /// This one was told, and may have died of it; it is found again.
    RestartIfDead(&'a Sshd),
    /// It is not known what it was told: where its files were touched, it is found afresh, and told to read them.
    Reload,
}

/// What an undo could not do.
#[derive(Debug)]
pub(super) struct RollbackError {
    /// That part of the intent.
    pub(super) rest: Box<Intent>,
    /// Every cause, in one text.
    pub(super) refusal: Refusal,
}

/// What came of the steps of an undo so far.
#[derive(Debug, Default)]
struct RollbackProgress {
    /// Files that somebody changed since.
    left_alone: Vec<PathBuf>,
    /// Key files on volumes that are not mounted.
    owed: Vec<FileIntent>,
    /// Whether sshd's files allow passwords, although one of them is not as it was.
    passwords_are_on: bool,
    /// Why the others could not be taken back.
    failures: Vec<Refusal>,
}

impl RollbackProgress {
    /// Every cause of a failure, in one text; `None` where nothing failed.
    fn refusal(&self) -> Option<Refusal> {
        let first = self.failures.first()?;
        let messages: Vec<&str> = self.failures.iter().map(|failure| failure.message.as_str()).collect();
        Some(Refusal::new(first.reason, messages.join("; ")))
    }
}

/// What came of one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FileRollback {
    /// It is taken back, or nothing was to do.
    Restored,
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
pub(super) fn roll_back(
    guest: &mut impl Guest,
    intent: &Intent,
    user: &str,
    settle: SshdRestore<'_>,
) -> Result<Vec<FileIntent>, RollbackError> {
    pulse::begin_step("taking a command back");
    let mut steps = RollbackProgress::default();
    let mut rest = Intent { key_files: Vec::new(), sshd_files: Vec::new(), ..intent.clone() };
    if intent.opens {
        // The old key is back before passwords go off again.
        rest.key_files = roll_back_files(guest, &intent.key_files, &mut steps);
    }
    let owes_a_key = steps.owed.iter().any(FileIntent::removes_key);
    if owes_a_key {
        // The key cannot be put back, and passwords may not go off without it.
        let refusals = steps.owed.iter().map(not_mounted_refusal).collect::<Vec<_>>();
        steps.failures.extend(refusals);
        rest.key_files.append(&mut steps.owed);
    }
    if rest.key_files.iter().any(FileIntent::removes_key) {
        rest.sshd_files.clone_from(&intent.sshd_files);
    } else {
        rest.sshd_files = roll_back_files(guest, &intent.sshd_files, &mut steps);
    }
    // What cannot be restored may turn passwords off: sshd is not told to read it.
    let is_restored = rest.sshd_files.is_empty() || intent.opens;
    let mut settled = match settle {
        SshdRestore::NotNeeded => Ok(()),
        SshdRestore::RestartIfDead(sshd) => guest.ensure_sshd_running(sshd),
        SshdRestore::Reload => Ok(()),
    };
    let must_read = match settle {
        SshdRestore::NotNeeded => false,
        // One that lived through the reload may have read what is no longer there: until it has read its restored
        // files, the key may be the only way in.
        SshdRestore::RestartIfDead(_) => true,
        SshdRestore::Reload => !intent.sshd_files.is_empty(),
    };
    if settled.is_ok() && must_read && is_restored {
        settled = find_and_reload_sshd(guest, user);
    }
    let is_settled = settled.is_ok();
    if let Err(refusal) = settled {
        steps.failures.push(refusal);
        rest.sshd_files.clone_from(&intent.sshd_files);
    }
    if !intent.opens {
        let mut must_stay = match is_settled {
            true => must_keep_key(guest, intent, &rest, user, &mut steps),
            false => true,
        };
        // By its files passwords are on: the running one has to have read that before the key goes.
        if steps.passwords_are_on
            && must_read
            && !is_restored
            && let Err(refusal) = find_and_reload_sshd(guest, user)
        {
            steps.failures.push(refusal);
            must_stay = true;
        }
        let stays = |file: &FileIntent| must_stay && !file.removes_key();
        let (stay, go): (Vec<FileIntent>, Vec<FileIntent>) =
            intent.key_files.iter().cloned().partition(stays);
        rest.key_files = roll_back_files(guest, &go, &mut steps);
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
    Err(RollbackError { refusal, rest: Box::new(rest) })
}

/// That a key file cannot be looked at, since its volume is not mounted.
fn not_mounted_refusal(file: &FileIntent) -> Refusal {
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
pub(super) fn restore_password_setting(
    guest: &mut impl Guest,
    files: &[FileIntent],
    user: &str,
) -> Result<Vec<PathBuf>, Refusal> {
    let mut steps = RollbackProgress::default();
    roll_back_files(guest, files, &mut steps);
    if let Some(refusal) = steps.refusal() {
        return Err(refusal);
    }
    find_and_reload_sshd(guest, user)?;
    Ok(steps.left_alone)
}

/// Whether a key that was bound anew has to stay, since what is left of the command in sshd's files keeps passwords off.
fn must_keep_key(
    guest: &impl Guest,
    intent: &Intent,
    rest: &Intent,
    user: &str,
    steps: &mut RollbackProgress,
) -> bool {
    let is_new = |file: &&FileIntent| !file.removes_key() && needs_rollback(guest, file);
    let Some(key) = intent.key_files.iter().find(is_new) else { return false };
    for file in &intent.sshd_files {
        let is_left = rest.sshd_files.contains(file) || steps.left_alone.contains(&file.path);
        if !is_left || !may_disable_passwords(guest, file) {
            continue;
        }
        let why = match are_passwords_enabled(guest, user) {
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
fn needs_rollback(guest: &impl Guest, file: &FileIntent) -> bool {
    match guest.read(&file.kind, &file.path) {
        Ok(now) => !matches!(file.inverse(now.as_deref()), Inverse::Unchanged | Inverse::Conflict),
        Err(_) => true,
    }
}

/// Whether what was ours in a file of sshd's turns passwords off, whatever somebody made of it. What cannot be read may;
/// what is no file does not.
fn may_disable_passwords(guest: &impl Guest, file: &FileIntent) -> bool {
    match guest.read(&file.kind, &file.path) {
        Ok(now) => {
            let ours = block::join_segments(&file.find_managed_segments(&now.unwrap_or_default()));
            parse_managed_directives(&ours)
                .iter()
                .any(|(keyword, value)| keyword == PASSWORD_AUTHENTICATION && value == "no")
        }
        Err(FileError::Unsafe { .. }) => false,
        Err(_) => true,
    }
}

/// Whether a password lets in, by sshd's files as they stand.
///
/// # Errors
/// It cannot be told.
fn are_passwords_enabled(guest: &impl Guest, user: &str) -> Result<bool, Refusal> {
    match guest.inspect_sshd(user) {
        Ok(sshd) => Ok(sshd.answers.iter().any(|answer| answer.effective.password_authentication())),
        // Nobody reads the setting.
        Err(refusal) if refusal.reason == Reason::SshdNotFound && !guest.is_sshd_possibly_running()? => {
            Ok(true)
        }
        Err(refusal) => Err(refusal),
    }
}

/// Takes every file back, the last one first; one that cannot be taken back stops no other. Those that could not.
fn roll_back_files(
    guest: &mut impl Guest,
    files: &[FileIntent],
    steps: &mut RollbackProgress,
) -> Vec<FileIntent> {
    let mut rest = Vec::new();
    for file in files.iter().rev() {
        match roll_back_file(guest, file) {
            Ok(FileRollback::Restored) => {}
            Ok(FileRollback::LeftAlone) => steps.left_alone.push(file.path.clone()),
            Ok(FileRollback::Owed) => steps.owed.push(file.clone()),
            Err(refusal) => {
                steps.failures.push(refusal);
                rest.insert(0, file.clone());
            }
        }
    }
    rest
}

fn roll_back_file(guest: &mut impl Guest, file: &FileIntent) -> Result<FileRollback, Refusal> {
    let FileIntent { path, kind, creates_directory, .. } = file;
    for _ in 0..MAX_RESTORE_TRIES {
        let now = match guest.read(&file.kind, &file.path) {
            Ok(now) => now,
            Err(error) if is_not_ours(guest, file, &error) => return Ok(FileRollback::LeftAlone),
            Err(error) => return Err(error.into()),
        };
        let inverse = file.inverse(now.as_deref());
        let is_found = !matches!(inverse, Inverse::Unchanged | Inverse::Conflict);
        // What stands there now is another file.
        if !is_found && file.mount.as_deref().is_some_and(|mount| !guest.is_mounted(mount)) {
            return Ok(FileRollback::Owed);
        }
        let hash = now.as_deref().map(crate::policy::types::ContentHash::from_content);
        let done = match (inverse, &hash) {
            (Inverse::Unchanged, None) => match (creates_directory, &file.hash_after) {
                // The directory may have been made before the file.
                (Some(directory), Some(after)) => guest.remove(kind, path, after, Some(directory)),
                _ => Ok(()),
            },
            (Inverse::Unchanged, Some(_)) | (Inverse::Remove, None) => Ok(()),
            (Inverse::Conflict, _) => return Ok(FileRollback::LeftAlone),
            (Inverse::Replace(content), expected) => guest.write(kind, path, expected.as_ref(), &content),
            (Inverse::Remove, Some(expected)) => {
                guest.remove(kind, path, expected, creates_directory.as_deref())
            }
        };
        match done {
            Err(FileError::Changed { .. }) => {}
            done => return done.map(|()| FileRollback::Restored).map_err(Refusal::from),
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
            !file.removes_key()
                && match guest.read(&FileKind::SshdConfig, &file.path) {
                    Ok(now) => file.find_managed_segments(&now.unwrap_or_default()).is_empty(),
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
pub(super) fn find_and_reload_sshd(guest: &mut impl Guest, user: &str) -> Result<(), Refusal> {
    let Some(sshd) = find_sshd_to_reload(guest, user)? else { return Ok(()) };
    guest.check_reload_safe(&sshd)?;
    let Err(failed) = guest.reload_sshd(&sshd) else { return Ok(()) };
    tracing::error!("{}", failed.message);
    guest.ensure_sshd_running(&sshd)?;
    // That it listens does not say that it has read them: it may have lived through the failure.
    let Some(sshd) = find_sshd_to_reload(guest, user)? else { return Ok(()) };
    guest.check_reload_safe(&sshd)?;
    guest.reload_sshd(&sshd)
}

/// The sshd that has to be told; `None` where nobody has to be.
fn find_sshd_to_reload(guest: &impl Guest, user: &str) -> Result<Option<Sshd>, Refusal> {
    match guest.inspect_sshd(user) {
        Ok(sshd) if matches!(sshd.reload, ReloadMethod::None(_)) => Ok(None),
        Ok(sshd) => Ok(Some(sshd)),
        // One that cannot be asked may run by our files all the same.
        Err(refusal) if refusal.reason == Reason::SshdNotFound && !guest.is_sshd_possibly_running()? => {
            Ok(None)
        }
        Err(refusal) => Err(refusal),
    }
}

impl<G: Guest> Engine<G> {
    /// Undoes an open intent and sweeps what a crash left behind, under the lock.
    ///
    /// # Errors
    /// That the state cannot be read or written, or the intent not be undone.
    pub fn recover(&mut self) -> Result<(), EngineError> {
        let _lock = self.guest.lock()?;
        self.guest.clean_state_and_run_dirs();
        let mut state = self.load()?;
        self.sweep_leftovers(&state);
        self.close_intent(&mut state)?;
        Ok(())
    }

    /// The same where an intent is known to be open; nothing is made or waited for where none is.
    ///
    /// # Errors
    /// As for [`Self::recover`].
    pub fn recover_if_open(&mut self) -> Result<(), EngineError> {
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
    pub(super) fn sweep_leftovers(&mut self, state: &State) {
        let target = self.guest.lookup_account_for_removal(&self.settings.target_user).ok();
        let usual =
            target.map(|account| (account.name.clone(), Some(account.uid), default_key_path(&account)));
        let bound = state.binding.as_ref();
        let bound = bound.map(|binding| (binding.user.clone(), binding.uid, binding.path.clone()));
        for (user, uid, path) in bound.into_iter().chain(usual) {
            self.guest
                .remove_stale_temporaries(&FileKind::AuthorizedKeys { user, uid, known: Vec::new() }, &path);
        }
        if let Ok(config) = self.guest.sshd_files() {
            let drop_ins = managed_places(&config).into_iter().map(|place| place.file().to_owned());
            for path in drop_ins.chain([config.main.clone()]) {
                self.guest.remove_stale_temporaries(&FileKind::SshdConfig, &path);
            }
        }
    }

    /// Takes back what could not be before, since its volume was not mounted. What still cannot stays owed.
    fn retry_owed_rollbacks(&mut self, state: &mut State) -> Result<(), Refusal> {
        let bound = state.binding.as_ref().map(|binding| binding.key_pair.public_key.clone());
        let mut owed = Vec::new();
        for file in state.owed.iter().filter_map(|file| file.clone().pending_revert(bound.as_ref())) {
            match roll_back_file(&mut self.guest, &file) {
                Ok(FileRollback::Restored) => tracing::info!("{} is taken back", file.path.display()),
                Ok(FileRollback::LeftAlone) => {
                    tracing::warn!(
                        "{} was changed by somebody meanwhile: it is left alone",
                        file.path.display()
                    );
                }
                Ok(FileRollback::Owed) => owed.push(file),
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
        self.finish_setting_restore(state)?;
        self.retry_owed_rollbacks(state)?;
        let Some(intent) = state.intent.clone() else { return Ok(()) };
        tracing::warn!("a command was interrupted: what it did is taken back");
        for file in intent.key_files.iter().chain(&intent.sshd_files) {
            self.guest.remove_stale_temporaries(&file.kind, &file.path);
        }
        let undone = roll_back(&mut self.guest, &intent, &self.settings.target_user, SshdRestore::Reload);
        if let Ok(owed) = &undone {
            state.owed.extend(owed.iter().cloned());
        }
        if let Err(RollbackError { refusal, rest }) = undone {
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
            outcome.finished_at = super::sheet::current_timestamp(&self.guest);
            let stored = StoredResult { command_id: in_flight.id, result: outcome.to_json() };
            state.interrupted = None;
            state.add_result(stored.clone());
            if in_flight.origin == Origin::Channel {
                state.undelivered = Some(stored);
            }
        }
        self.save(state)
    }
}
