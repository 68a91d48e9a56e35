//! `undo`: everything of ours goes, with or without a readable state (KP-8.4).

use crate::guest::Guest;
use crate::policy::edit::{FileEdit, FileKind};
use crate::policy::observation::{Account, KeyFile, UserStatus};
use crate::policy::outcome::{Reason, Refusal};
use crate::policy::plan;
use crate::policy::public_key::PublicKey;
use crate::policy::types::PasswordAuth;

use super::blocks::{FoundBlocks, KeyFileCandidate, describe_holder_change, describe_no_block_found};
use super::observe::default_key_path;
use super::recovery::find_and_reload_sshd;
use super::state::State;
use super::steps::apply_edit;
use super::{Engine, EngineError};

/// What `undo` did or would do, and what it could not do.
#[derive(Debug, Default)]
pub struct UninstallReport {
    /// The edits.
    pub edits: Vec<FileEdit>,
    /// What could not be taken back, or not be looked at, each with its cause.
    pub failures: Vec<Refusal>,
    /// What else is worth saying.
    pub notes: Vec<String>,
}

/// The edits that take out all that is ours.
struct UninstallEdits {
    /// Of sshd's files.
    settings: Vec<FileEdit>,
    /// Whether all of those could be looked at.
    settings_are_known: bool,
    /// Of key files.
    keys: Vec<FileEdit>,
}

impl<G: Guest> Engine<G> {
    /// Takes back all that is ours: block, drop-in or top block, then a reload; binding, sequence and results are
    /// forgotten. What fails does not keep the rest from being taken back, but for one thing: the key stays as long as
    /// password login is not back, since it may be the only way in.
    ///
    /// # Errors
    /// Where the lock cannot be had.
    pub fn uninstall(&mut self) -> Result<UninstallReport, EngineError> {
        let _lock = self.guest.lock()?;
        self.guest.clean_state_and_run_dirs();
        let mut undone = UninstallReport::default();
        let loaded = self.load();
        let is_readable = loaded.is_ok();
        let mut state = loaded.unwrap_or_else(|unreadable| {
            undone.notes.push(unreadable.message);
            State::default()
        });
        self.sweep_leftovers(&state);
        if let Err(refusal) = self.close_intent(&mut state) {
            undone.failures.push(refusal);
        }
        undone.failures.extend(state.describe_owed_edits().map(|owed| Refusal::new(Reason::IoError, owed)));
        let UninstallEdits { settings, settings_are_known, keys } =
            self.collect_uninstall_edits(&state, &mut undone);
        let before = undone.failures.len();
        for edit in settings {
            self.apply_uninstall_edit(edit, &mut undone);
        }
        state.reload_is_owed |=
            !undone.edits.is_empty() || self.was_setting_removed_manually(&state, is_readable);
        if state.reload_is_owed {
            match find_and_reload_sshd(&mut self.guest, &self.settings.target_user) {
                Ok(()) => state.reload_is_owed = false,
                Err(refusal) => {
                    let message =
                        format!("sshd has not read its files without our setting: {}", refusal.message);
                    undone.failures.push(Refusal::new(refusal.reason, message));
                }
            }
        }
        // What is wrong with one key file keeps no other key.
        let passwords_are_back = settings_are_known && undone.failures.len() == before;
        for edit in keys {
            if passwords_are_back {
                self.apply_uninstall_edit(edit, &mut undone);
            } else {
                let message = format!(
                    "{}: the key stays, since it may be the only way in; mend the above, then run 'keypair-agent undo' again",
                    edit.path.display()
                );
                undone.failures.push(Refusal::new(Reason::LockoutGuard, message));
            }
        }
        // What could not be taken back is still known to the next try, a reload that is owed above all.
        if undone.failures.is_empty() {
            state.forget();
        }
        if is_readable || state.reload_is_owed || undone.failures.is_empty() {
            undone.failures.extend(self.save(&state).err());
        }
        Ok(undone)
    }

    /// Where passwords were turned off here, and nothing of that stands in sshd's files any more: somebody took it out,
    /// and sshd may still run by it. Files that say no by themselves are no reason, sshd would read nothing else.
    fn was_setting_removed_manually(&self, state: &State, is_readable: bool) -> bool {
        let may_be_off = !is_readable || state.password_auth == Some(PasswordAuth::No);
        may_be_off
            && match self.guest.inspect_sshd(&self.settings.target_user) {
                Ok(sshd) => sshd.answers.iter().any(|answer| answer.effective.password_authentication()),
                Err(refusal) => {
                    refusal.reason != Reason::SshdNotFound
                        || self.guest.is_sshd_possibly_running().unwrap_or(true)
                }
            }
    }

    /// What `undo` would do, without a lock and without a change.
    pub fn plan_uninstall(&self) -> UninstallReport {
        let mut standing = UninstallReport::default();
        let state = self.load().unwrap_or_default();
        let UninstallEdits { settings, keys, .. } = self.collect_uninstall_edits(&state, &mut standing);
        standing.edits = [settings, keys].concat();
        standing
    }

    /// The edits that take out all that is ours: of sshd's files, and of key files.
    fn collect_uninstall_edits(&self, state: &State, undone: &mut UninstallReport) -> UninstallEdits {
        let bound = state.binding.iter().map(|binding| binding.key_pair.public_key.clone());
        let mut known: Vec<PublicKey> = bound.collect();
        // Where a command could not be taken back, its key may stand in the place of the bound one.
        let in_flight = state.intent.iter().flat_map(|intent| &intent.key_files);
        for file in in_flight {
            if let FileKind::AuthorizedKeys { known: keys, .. } = &file.kind {
                known.extend(keys.iter().cloned());
            }
        }
        let mut settings_are_known = true;
        let config = match self.guest.sshd_files() {
            Ok(config) => Some(config),
            Err(refusal) if refusal.reason == Reason::SshdNotFound => {
                undone.notes.push(refusal.message);
                None
            }
            Err(refusal) => {
                settings_are_known = false;
                undone.failures.push(refusal);
                None
            }
        };
        let files = self.find_key_files(state, undone);
        let (settings, keys) = plan::draft_undo(&files, config.as_ref(), &known)
            .into_iter()
            .partition(|edit| edit.kind == FileKind::SshdConfig);
        UninstallEdits { settings, settings_are_known, keys }
    }

    fn apply_uninstall_edit(&mut self, edit: FileEdit, undone: &mut UninstallReport) {
        match apply_edit(&mut self.guest, &edit) {
            Ok(()) => undone.edits.push(edit),
            Err(error) => undone.failures.push(error.into()),
        }
    }

    /// Every file that may hold a block of ours: where it was put, what sshd reads, sshd's own default.
    fn find_key_files(&self, state: &State, undone: &mut UninstallReport) -> Vec<(Account, KeyFile)> {
        let mut candidates: Vec<KeyFileCandidate> = Vec::new();
        let mut holder = None;
        if let Some(binding) = &state.binding {
            match self.find_holder(binding) {
                Ok(found) => {
                    let name = Some(&found.account.name).filter(|_| found.fate != UserStatus::Gone);
                    let sshd = name.and_then(|name| self.guest.inspect_sshd(name).ok());
                    candidates.extend(self.list_candidates(binding, &found, sshd.as_ref()));
                    holder = Some(found);
                }
                Err(refusal) => undone.failures.push(refusal),
            }
        }
        match self.guest.lookup_account_for_removal(&self.settings.target_user) {
            Ok(account) => {
                let sshd = self.guest.inspect_sshd(&account.name).ok();
                let read = sshd.map(|sshd| self.list_sshd_key_paths(&sshd, &account)).unwrap_or_default();
                let paths = read.into_iter().chain([default_key_path(&account)]);
                candidates.extend(paths.map(|path| KeyFileCandidate {
                    account: account.clone(),
                    path,
                    always: true,
                }));
            }
            Err(refusal) => undone.notes.push(refusal.message),
        }
        let mut blocks = self.search_key_files(Vec::new(), candidates, &[]);
        if let (Some(binding), Some(holder)) = (&state.binding, &holder) {
            let is_found = blocks.has_block(&[]);
            undone.notes.extend(describe_holder_change(binding, holder, is_found));
            match self.check_all_reached(binding, &FoundBlocks { unreached: Vec::new(), ..blocks.clone() }) {
                Ok(()) if !is_found => undone.notes.push(format!(
                    "key pair {} was bound: {}",
                    binding.key_pair.key_name,
                    describe_no_block_found(&blocks)
                )),
                Ok(()) => {}
                Err(refusal) => undone.failures.push(refusal),
            }
        }
        undone.failures.append(&mut blocks.unreached);
        undone.notes.extend(blocks.passed_over.drain(..).map(|refusal| refusal.message));
        blocks.files
    }
}
