//! `undo`: removes everything of the agent's, with or without a readable state (KP-8.4).

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
    /// The edits that could not be undone and the files that could not be read, each with its cause.
    pub failures: Vec<Refusal>,
    /// Other notes for the person.
    pub notes: Vec<String>,
}

/// The edits that remove everything of the agent's.
struct UninstallEdits {
    /// The edits of sshd's files.
    settings: Vec<FileEdit>,
    /// Whether all of sshd's files could be read.
    settings_are_known: bool,
    /// The edits of key files.
    keys: Vec<FileEdit>,
}

impl<G: Guest> Engine<G> {
    /// Removes everything of the agent's: the block, and the drop-in or the block in the main file. Then it reloads
    /// sshd and forgets the binding, the sequence and the results. A failure does not stop the rest, with one
    /// exception: the key stays until password login is back on, since it may be the only way in.
    ///
    /// # Errors
    /// If the lock cannot be taken.
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
        // A fault of one key file does not stop the removal of the other keys.
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
        // After a failure the state keeps its data for the next try, above all the reload that is owed.
        if undone.failures.is_empty() {
            state.forget();
        }
        if is_readable || state.reload_is_owed || undone.failures.is_empty() {
            undone.failures.extend(self.save(&state).err());
        }
        Ok(undone)
    }

    /// Whether a command turned passwords off, and another person has removed the setting from sshd's files. sshd may
    /// then still use it. If other lines of the files turn passwords off, the answer is no: a reload would not change
    /// anything.
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

    /// What `undo` would do. It takes no lock and changes nothing.
    pub fn plan_uninstall(&self) -> UninstallReport {
        let mut standing = UninstallReport::default();
        let state = self.load().unwrap_or_default();
        let UninstallEdits { settings, keys, .. } = self.collect_uninstall_edits(&state, &mut standing);
        standing.edits = [settings, keys].concat();
        standing
    }

    /// Collects the edits that remove everything of the agent's from sshd's files and from key files.
    fn collect_uninstall_edits(&self, state: &State, undone: &mut UninstallReport) -> UninstallEdits {
        let bound = state.binding.iter().map(|binding| binding.key_pair.public_key.clone());
        let mut known: Vec<PublicKey> = bound.collect();
        // If a command could not be undone, its key may stand in place of the bound key.
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

    /// Every file that may contain a block of the agent: the recorded file, the files that sshd reads, and sshd's
    /// default.
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
