//! Taking back what a command did, after a step that failed and after a crash alike (contract 7).

use std::path::{Path, PathBuf};

use crate::guest::Guest;
use crate::guest::files::FileError;
use crate::policy::edit::{Change, FileIntent, FileKind, Inverse};
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

/// Takes the intent back: sshd's side first, and where the command turned passwords on the keys first, so that there is
/// never a moment without password and key. What somebody changed since is left alone and named.
///
/// # Errors
/// What could not be taken back; what was is not done again by another call.
pub(super) fn undo(
    guest: &mut impl Guest,
    intent: &Intent,
    user: &str,
    settle: Settle<'_>,
) -> Result<(), Refusal> {
    pulse::step("taking a command back");
    let mut left_alone = Vec::new();
    if intent.opens {
        // The old key is back before passwords go off again.
        take_back_all(guest, &intent.key_files, &mut left_alone)?;
    }
    take_back_all(guest, &intent.sshd_files, &mut left_alone)?;
    match settle {
        Settle::NotNeeded => {}
        Settle::BringBack(sshd) => {
            guest.bring_back(sshd)?;
            // One that lived through the reload may have read what is no longer there: until it has read its restored
            // files, the key may be the only way in.
            reload_afresh(guest, user)?;
        }
        Settle::Reload if !intent.sshd_files.is_empty() => reload_afresh(guest, user)?,
        Settle::Reload => {}
    }
    for file in intent.sshd_files.iter().filter(|file| left_alone.contains(&file.path)) {
        if still_turns_off(guest, file)? {
            the_key_may_go(guest, intent, user, &file.path)?;
        }
    }
    if !intent.opens {
        take_back_all(guest, &intent.key_files, &mut left_alone)?;
    }
    for path in &left_alone {
        tracing::warn!(
            path = %path.display(),
            "{} was changed by somebody meanwhile: what is ours in it is left alone",
            path.display()
        );
    }
    Ok(())
}

/// Whether what was ours in a file of sshd's turns passwords off, whatever somebody made of it.
fn still_turns_off(guest: &impl Guest, file: &FileIntent) -> Result<bool, Refusal> {
    let now = guest.read(&file.kind, &file.path)?.unwrap_or_default();
    let ours = match &file.change {
        Change::Whole { .. } => now,
        Change::Block(_) => file.kind.ours(&now).into_iter().flat_map(|segment| segment.bytes).collect(),
    };
    Ok(directives_of_ours(&ours).iter().any(|(keyword, value)| keyword == PASSWORD && value == "no"))
}

/// Where a file of sshd's still turns passwords off, a key that was bound anew goes only while they let in all the same.
fn the_key_may_go(guest: &impl Guest, intent: &Intent, user: &str, left: &Path) -> Result<(), Refusal> {
    for file in &intent.key_files {
        // Another key takes the place of one that was replaced.
        let is_new = matches!(&file.change, Change::Block(edit) if edit.removed.is_empty());
        let now = guest.read(&file.kind, &file.path)?;
        let stays = matches!(file.inverse(now.as_deref()), Inverse::Nothing | Inverse::LeftAlone);
        if stays || !is_new {
            continue;
        }
        let Some(sshd) = listener(guest, user)? else { continue };
        if !sshd.answers.iter().any(|answer| answer.effective.password_authentication()) {
            let (left, key) = (left.display(), file.path.display());
            return Err(Refusal::new(
                Reason::LockoutGuard,
                format!(
                    "{left} was changed by somebody meanwhile and is left alone, and passwords are off: the key in {key} stays, \
                     since it may be the only way in; take the setting out of {left}"
                ),
            ));
        }
    }
    Ok(())
}

/// Takes every file back, the last one first; one that cannot be taken back stops no other.
///
/// # Errors
/// Why some could not.
fn take_back_all(
    guest: &mut impl Guest,
    files: &[FileIntent],
    left_alone: &mut Vec<PathBuf>,
) -> Result<(), Refusal> {
    let mut failures = Vec::new();
    for file in files.iter().rev() {
        failures.extend(take_back(guest, file, left_alone).err());
    }
    let message = failures.iter().map(|failure| failure.message.as_str()).collect::<Vec<_>>().join("; ");
    failures.first().map_or(Ok(()), |first| Err(Refusal::new(first.reason, message)))
}

fn take_back(
    guest: &mut impl Guest,
    file: &FileIntent,
    left_alone: &mut Vec<PathBuf>,
) -> Result<(), Refusal> {
    let FileIntent { path, kind, creates_directory, .. } = file;
    for _ in 0..TRIES {
        let now = guest.read(&file.kind, &file.path)?;
        let hash = now.as_deref().map(crate::policy::types::ContentHash::of);
        let done = match (file.inverse(now.as_deref()), &hash) {
            (Inverse::Nothing, None) => match (creates_directory, &file.hash_after) {
                // The directory may have been made before the file.
                (Some(directory), Some(after)) => guest.remove(kind, path, after, Some(directory)),
                _ => Ok(()),
            },
            (Inverse::Nothing, Some(_)) | (Inverse::Remove, None) => Ok(()),
            (Inverse::LeftAlone, _) => {
                left_alone.push(path.clone());
                Ok(())
            }
            (Inverse::Replace(content), expected) => guest.write(kind, path, expected.as_ref(), &content),
            (Inverse::Remove, Some(expected)) => {
                guest.remove(kind, path, expected, creates_directory.as_deref())
            }
        };
        match done {
            Err(FileError::Changed { .. }) => {}
            done => return done.map_err(Refusal::from),
        }
    }
    Err(Refusal::new(Reason::IoError, format!("{} changes faster than it can be restored", path.display())))
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

    /// Undoes an open intent. The third time a command is found in flight, `INTERRUPTED` is its result.
    pub(super) fn close_intent(&mut self, state: &mut State) -> Result<(), Refusal> {
        let Some(intent) = &state.intent else { return Ok(()) };
        tracing::warn!("a command was interrupted: what it did is taken back");
        for file in intent.key_files.iter().chain(&intent.sshd_files) {
            self.guest.sweep(&file.kind, &file.path);
        }
        undo(&mut self.guest, intent, &self.settings.target_user, Settle::Reload).map_err(|refusal| {
            Refusal::new(
                Reason::IoError,
                format!(
                    "an interrupted command could not be taken back, and is tried again: {}",
                    refusal.message
                ),
            )
        })?;
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
