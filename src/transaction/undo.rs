//! `undo`: everything of ours goes, with or without a readable state (contract 8).

use std::path::PathBuf;

use crate::guest::Guest;
use crate::policy::edit::{FileEdit, FileKind};
use crate::policy::observation::{Account, ConfigTree, KeyFile};
use crate::policy::outcome::Refusal;
use crate::policy::plan;
use crate::policy::public_key::PublicKey;
use crate::policy::sshd_config::DROP_IN;

use super::observe::{key_path, usual_key_path};
use super::recovery::reload_afresh;
use super::state::State;
use super::{Failure, Transaction};

/// What `undo` did or would do, and what it could not do.
#[derive(Debug, Default)]
pub struct Undone {
    /// The edits.
    pub edits: Vec<FileEdit>,
    /// What could not be taken back, or not be looked at, each with its cause.
    pub failures: Vec<Refusal>,
    /// What else is worth saying.
    pub notes: Vec<String>,
}

impl<G: Guest> Transaction<G> {
    /// Takes back all that is ours: block, drop-in or top block, then a reload; binding, sequence and results are
    /// forgotten. What fails does not keep the rest from being taken back.
    ///
    /// # Errors
    /// Where the lock cannot be had.
    pub fn undo(&mut self) -> Result<Undone, Failure> {
        let _lock = self.guest.lock()?;
        self.guest.sweep_state();
        let mut undone = Undone::default();
        let mut state = self.load().unwrap_or_else(|unreadable| {
            undone.notes.push(unreadable.message);
            State::default()
        });
        if let Err(refusal) = self.close_intent(&mut state) {
            undone.failures.push(refusal);
        }
        let edits = self.all_of_ours(&state, &mut undone);
        let mut reload = false;
        let (settings, keys): (Vec<FileEdit>, Vec<FileEdit>) =
            edits.into_iter().partition(|edit| edit.kind == FileKind::SshdConfig);
        for edit in settings {
            reload |= self.take_out(edit, &mut undone);
        }
        // Passwords are back before the key goes.
        if reload && let Err(refusal) = reload_afresh(&mut self.guest, &self.settings.target_user) {
            undone.failures.push(refusal);
        }
        for edit in keys {
            self.take_out(edit, &mut undone);
        }
        // What could not be taken back is still known to the next try.
        if undone.failures.is_empty() {
            state.forget();
            undone.failures.extend(self.save(&state).err());
        }
        Ok(undone)
    }

    /// What `undo` would do, without a lock and without a change.
    pub fn standing(&self) -> Undone {
        let mut standing = Undone::default();
        let state = self.load().unwrap_or_default();
        standing.edits = self.all_of_ours(&state, &mut standing);
        standing
    }

    /// The edits that take out all that is ours.
    fn all_of_ours(&self, state: &State, undone: &mut Undone) -> Vec<FileEdit> {
        let known: Vec<PublicKey> =
            state.binding.iter().map(|binding| binding.key_pair.public_key.clone()).collect();
        let mut config = self.guest.sshd_files().map_err(|refusal| undone.notes.push(refusal.message)).ok();
        if let Some(config) = &mut config {
            self.find_unread_drop_in(config);
        }
        let files = self.key_files(state, undone);
        plan::draft_undo(&files, config.as_ref(), &known)
    }

    /// A drop-in of ours that no Include leads to any more is still ours.
    fn find_unread_drop_in(&self, config: &mut ConfigTree) {
        let Some(directory) = config.main.parent() else { return };
        let path = directory.join("sshd_config.d").join(DROP_IN);
        if let Ok(Some(content)) = self.guest.read(&FileKind::SshdConfig, &path) {
            config.files.entry(path).or_insert(content);
        }
    }

    fn take_out(&mut self, edit: FileEdit, undone: &mut Undone) -> bool {
        let expected = edit.intent().hash_before;
        let done = match (&edit.after, &expected) {
            (Some(after), expected) => self.guest.write(&edit.kind, &edit.path, expected.as_ref(), after),
            (None, Some(expected)) => self.guest.remove(&edit.kind, &edit.path, expected, None),
            (None, None) => Ok(()),
        };
        match done {
            Ok(()) => {
                undone.edits.push(edit);
                true
            }
            Err(error) => {
                undone.failures.push(error.into());
                false
            }
        }
    }

    /// Every file that may hold a block of ours: the state's, the one that sshd reads, sshd's own default.
    fn key_files(&self, state: &State, undone: &mut Undone) -> Vec<(Account, KeyFile)> {
        let mut candidates: Vec<(String, Option<PathBuf>)> = Vec::new();
        if let Some(binding) = &state.binding {
            candidates.push((binding.user.clone(), Some(binding.path.clone())));
        }
        candidates.push((self.settings.target_user.clone(), None));
        let mut files: Vec<(Account, KeyFile)> = Vec::new();
        for (user, path) in candidates {
            let account = match self.guest.account(&user) {
                Ok(account) => account,
                Err(refusal) => {
                    undone.notes.push(refusal.message);
                    continue;
                }
            };
            let paths = match path {
                Some(path) => vec![path],
                None => {
                    let read = self.guest.sshd(&user).and_then(|sshd| key_path(&sshd, &account)).ok();
                    read.into_iter().chain([usual_key_path(&account)]).collect()
                }
            };
            for path in paths {
                if files.iter().any(|(_, file)| file.path == path) {
                    continue;
                }
                match self.guest.key_file(&account, &path) {
                    Ok(file) => files.push((account.clone(), file)),
                    Err(error) => undone.failures.push(error.into()),
                }
            }
        }
        files
    }
}
