//! Undoes what a command did, after a failed step and after a crash alike (KP-7.4 to KP-7.7).

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

/// How often the undo reads a file again that changes meanwhile.
const MAX_RESTORE_TRIES: usize = 3;

/// The action that sshd needs after its files are restored.
#[derive(Debug, Clone, Copy)]
pub(super) enum SshdRestore<'a> {
    /// None: sshd never got a reload for the new files.
    NotNeeded,
    /// This sshd got a reload and may have ended because of it. The agent finds it again.
    RestartIfDead(&'a Sshd),
    /// It is unknown which files sshd has read. If the command touched sshd's files, the agent finds sshd again and
    /// reloads it.
    Reload,
}

/// The part of an undo that failed.
#[derive(Debug)]
pub(super) struct RollbackError {
    /// The part of the intent that is not undone.
    pub(super) rest: Box<Intent>,
    /// Every cause, in one text.
    pub(super) refusal: Refusal,
}

/// The outcome of the steps of an undo so far.
#[derive(Debug, Default)]
struct RollbackProgress {
    /// Files that another person or program changed since.
    left_alone: Vec<PathBuf>,
    /// Key files on volumes that are not mounted.
    owed: Vec<FileIntent>,
    /// Whether sshd's files allow passwords, although one of the files is not restored.
    passwords_are_on: bool,
    /// Why the other files could not be restored.
    failures: Vec<Refusal>,
}

impl RollbackProgress {
    /// Every cause of a failure, in one text; `None` if nothing failed.
    fn refusal(&self) -> Option<Refusal> {
        let first = self.failures.first()?;
        let messages: Vec<&str> = self.failures.iter().map(|failure| failure.message.as_str()).collect();
        Some(Refusal::new(first.reason, messages.join("; ")))
    }
}

/// The outcome of one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FileRollback {
    /// The edit is undone, or there was nothing to undo.
    Restored,
    /// Another person or program changed the file.
    LeftAlone,
    /// The file's volume is not mounted. A later call finds out whether there is anything to undo.
    Owed,
}

/// Undoes the intent. It restores sshd's files first; if the command turned passwords on, it restores the keys first.
/// So a password or a key always works. Files that others changed since are left alone and named in the log. A failed
/// step stops only the steps that depend on it. If passwords may be off, a new key stays. If a key is not restored,
/// passwords stay on. Edits on a volume that is not mounted are returned; no other step waits for them.
///
/// # Errors
/// Everything that could not be undone. Another call does not repeat what is already undone.
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
        // The old key is restored before passwords go off again.
        rest.key_files = roll_back_files(guest, &intent.key_files, &mut steps);
    }
    let owes_a_key = steps.owed.iter().any(FileIntent::removes_key);
    if owes_a_key {
        // The key cannot be restored, and passwords must not go off without it.
        let refusals = steps.owed.iter().map(not_mounted_refusal).collect::<Vec<_>>();
        steps.failures.extend(refusals);
        rest.key_files.append(&mut steps.owed);
    }
    if rest.key_files.iter().any(FileIntent::removes_key) {
        rest.sshd_files.clone_from(&intent.sshd_files);
    } else {
        rest.sshd_files = roll_back_files(guest, &intent.sshd_files, &mut steps);
    }
    // Files that are not restored may turn passwords off, so sshd must not reload them.
    let is_restored = rest.sshd_files.is_empty() || intent.opens;
    let mut settled = match settle {
        SshdRestore::NotNeeded => Ok(()),
        SshdRestore::RestartIfDead(sshd) => guest.ensure_sshd_running(sshd),
        SshdRestore::Reload => Ok(()),
    };
    let must_read = match settle {
        SshdRestore::NotNeeded => false,
        // An sshd that survived the reload may have read the files of the undone command. Until it has read the
        // restored files, the key may be the only way in.
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
        // The files allow passwords. The running sshd must have read them before the key is removed.
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
            // The next try needs these files to decide whether the key must still stay.
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

/// The error for a key file that cannot be read because its volume is not mounted.
fn not_mounted_refusal(file: &FileIntent) -> Refusal {
    let mount = file.mount.as_deref().unwrap_or(&file.path).display();
    let message =
        format!("{}: {mount}, on which that file is, is not mounted; mount it", file.path.display());
    Refusal::new(Reason::IoError, message)
}

/// Undoes what a command wrote into sshd's files, and reloads sshd. Returns the files that others changed meanwhile;
/// these are left alone.
///
/// # Errors
/// If an edit could not be undone, or sshd may not have read the files.
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

/// Whether a newly bound key must stay, because the rest of the command in sshd's files keeps passwords off.
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

/// Whether an edit must be undone. A file that cannot be read may still contain the edit.
fn needs_rollback(guest: &impl Guest, file: &FileIntent) -> bool {
    match guest.read(&file.kind, &file.path) {
        Ok(now) => !matches!(file.inverse(now.as_deref()), Inverse::Unchanged | Inverse::Conflict),
        Err(_) => true,
    }
}

/// Whether the agent's lines in one of sshd's files turn passwords off, even if another person changed them. A file
/// that cannot be read may do so; a path that is not a regular file does not.
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

/// Whether sshd's current files allow a login with a password.
///
/// # Errors
/// If this cannot be determined.
fn are_passwords_enabled(guest: &impl Guest, user: &str) -> Result<bool, Refusal> {
    match guest.inspect_sshd(user) {
        Ok(sshd) => Ok(sshd.answers.iter().any(|answer| answer.effective.password_authentication())),
        // No sshd reads the setting.
        Err(refusal) if refusal.reason == Reason::SshdNotFound && !guest.is_sshd_possibly_running()? => {
            Ok(true)
        }
        Err(refusal) => Err(refusal),
    }
}

/// Undoes the edits, the last one first. A failure does not stop the others. Returns the edits that could not be
/// undone.
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
        // The path now leads to another file.
        if !is_found && file.mount.as_deref().is_some_and(|mount| !guest.is_mounted(mount)) {
            return Ok(FileRollback::Owed);
        }
        let hash = now.as_deref().map(crate::policy::types::ContentHash::from_content);
        let done = match (inverse, &hash) {
            (Inverse::Unchanged, None) => match (creates_directory, &file.hash_after) {
                // The directory may have been created before the file.
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

/// Whether a file that cannot be read safely contains no lines of the agent that must be removed. This is so for a
/// link, a directory or a device that another person put in the file's place. One of sshd's files is refused for this
/// reason only. A key file may be refused because of a directory on its path; it is then read as sshd reads it.
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

/// Finds sshd again and reloads it with its current files.
///
/// # Errors
/// If sshd may not have read its files.
pub(super) fn find_and_reload_sshd(guest: &mut impl Guest, user: &str) -> Result<(), Refusal> {
    let Some(sshd) = find_sshd_to_reload(guest, user)? else { return Ok(()) };
    guest.check_reload_safe(&sshd)?;
    let Err(failed) = guest.reload_sshd(&sshd) else { return Ok(()) };
    tracing::error!("{}", failed.message);
    guest.ensure_sshd_running(&sshd)?;
    // A listening sshd has not necessarily read its files: it may have survived the failed reload.
    let Some(sshd) = find_sshd_to_reload(guest, user)? else { return Ok(()) };
    guest.check_reload_safe(&sshd)?;
    guest.reload_sshd(&sshd)
}

/// The sshd that needs a reload; `None` if there is none.
fn find_sshd_to_reload(guest: &impl Guest, user: &str) -> Result<Option<Sshd>, Refusal> {
    match guest.inspect_sshd(user) {
        Ok(sshd) if matches!(sshd.reload, ReloadMethod::None(_)) => Ok(None),
        Ok(sshd) => Ok(Some(sshd)),
        // An sshd that cannot be queried may still use the agent's files.
        Err(refusal) if refusal.reason == Reason::SshdNotFound && !guest.is_sshd_possibly_running()? => {
            Ok(None)
        }
        Err(refusal) => Err(refusal),
    }
}

impl<G: Guest> Engine<G> {
    /// Undoes an open intent and removes what a crash left behind, under the lock.
    ///
    /// # Errors
    /// If the state cannot be read or written, or the intent cannot be undone.
    pub fn recover(&mut self) -> Result<(), EngineError> {
        let _lock = self.guest.lock()?;
        self.guest.clean_state_and_run_dirs();
        let mut state = self.load()?;
        self.sweep_leftovers(&state);
        self.close_intent(&mut state)?;
        Ok(())
    }

    /// Does the same if an intent is open. If none is, it creates nothing and waits for nothing.
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

    /// Removes stale temporary files beside all files that are written without an intent: `undo` has no intent.
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

    /// Undoes edits that could not be undone before because their volume was not mounted. The edits that fail again
    /// stay owed.
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

    /// Undoes an open intent. The third time that a command is found in flight, `INTERRUPTED` is its result.
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
            // Keep only the rest, so that nothing is undone twice. If this save fails, a second undo finds nothing to
            // do.
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
