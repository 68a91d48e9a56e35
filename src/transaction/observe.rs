//! Looking before anything is done: the facts a command needs, and the plan made of them.

use std::path::PathBuf;

use crate::guest::Guest;
use crate::policy::authorized_keys::{key_lines, ways_in};
use crate::policy::command::{Action, Command};
use crate::policy::lockout;
use crate::policy::observation::{Account, Fate, Login, Sshd};
use crate::policy::outcome::{Reason, Refusal};
use crate::policy::plan::{self, Binding, Facts, Plan, Purpose};
use crate::policy::public_key::PublicKey;
use crate::policy::types::PasswordAuth;

use super::Transaction;
use super::blocks::Elsewhere;
use super::sheet::{Sheet, timestamp};
use super::state::State;

/// A plan and what it was made of.
#[derive(Debug)]
pub struct Prepared {
    /// What is to be done.
    pub plan: Plan,
    /// What was observed.
    pub facts: Facts,
}

impl<G: Guest> Transaction<G> {
    /// Observes the guest for `command` and plans it. Nothing is changed.
    ///
    /// # Errors
    /// Any reason of contract 4 to 6.
    pub fn prepare(&self, command: &Command, state: &State, sheet: &mut Sheet) -> Result<Prepared, Refusal> {
        let instance_id = self.settings.instance(state);
        plan::admit(&command.action, state.binding.as_ref(), instance_id)?;
        if let Some(key) = command.action.public_key() {
            self.guest.reads_key(key)?;
        }
        let facts = self.observe(&command.action, state.binding.as_ref(), sheet)?;
        let present = facts.sshd.iter().flat_map(|sshd| &sshd.answers).next();
        sheet.outcome.effective = present.map(|answer| answer.effective.report());
        let when = timestamp(&self.guest);
        let purpose = Purpose {
            action: &command.action,
            binding: state.binding.as_ref(),
            instance_id,
            kbd_interactive: self.settings.kbd_interactive,
            proof: self.settings.proof && self.guest.has_client(),
            when: &when,
            command_id: command.id.as_str(),
        };
        let draft = plan::draft(&purpose, &facts)?;
        let questions = draft.questions(&purpose, &facts);
        let answers = match &facts.sshd {
            Some(sshd) => self.guest.ask(sshd, draft.ahead.as_deref(), &questions.connections())?,
            None => Vec::new(),
        };
        let plan = draft.judge(&purpose, &facts, questions.answered(answers))?;
        if let (Some(sshd), Some(_)) = (&facts.sshd, &plan.reload) {
            self.guest.reload_is_safe(sshd)?;
        }
        if let Some(unbound) = &plan.unbound {
            sheet.outcome.fingerprint = Some(unbound.public_key.fingerprint());
            sheet.outcome.key_name = Some(unbound.key_name.clone());
        }
        Ok(Prepared { plan, facts })
    }

    fn observe(
        &self,
        action: &Action,
        binding: Option<&Binding>,
        sheet: &mut Sheet,
    ) -> Result<Facts, Refusal> {
        let user = match (action, binding) {
            (Action::Detach { .. }, Some(binding)) => binding.user.clone(),
            _ => self.settings.target_user.clone(),
        };
        sheet.outcome.user = Some(user);
        let facts = match action {
            Action::Attach { .. } | Action::SetPasswordAuth { .. } => {
                // A setting alone is no reason to look where the block stands.
                let is_attach = matches!(action, Action::Attach { .. });
                let mut facts = self.observe_sshd_user(binding.filter(|_| is_attach))?;
                if is_attach {
                    self.refuse_anothers_file(&facts)?;
                }
                facts.login = self.observe_login(action, binding, &facts)?;
                facts
            }
            Action::Detach { .. } => self.observe_block(binding)?,
        };
        sheet.outcome.authorized_keys_file = Some(facts.key_file.path.to_string_lossy().into_owned());
        sheet.notes.clone_from(&facts.notes);
        Ok(facts)
    }

    /// For a command that is about who gets in: the target user, sshd, and the file that it reads for him.
    pub(super) fn observe_sshd_user(&self, binding: Option<&Binding>) -> Result<Facts, Refusal> {
        let account = self.guest.account(&self.settings.target_user)?;
        let sshd = self.guest.sshd(&account.name)?;
        let path = key_path(&sshd, &account)?;
        let key_file = self.guest.key_file(&account, &path).map_err(|error| {
            self.unmounted(binding, &account, &sshd, &path).unwrap_or_else(|| error.into())
        })?;
        let elsewhere = binding.map(|binding| self.elsewhere(binding, &account, &sshd, &key_file));
        let Elsewhere { files: elsewhere, notes } = elsewhere.transpose()?.unwrap_or_default();
        Ok(Facts { account, sshd: Some(sshd), key_file, elsewhere, notes, login: None })
    }

    /// What else decides about a login with the keys that the command is about; where it forbids passwords, who
    /// else has one.
    fn observe_login(
        &self,
        action: &Action,
        binding: Option<&Binding>,
        facts: &Facts,
    ) -> Result<Option<Login>, Refusal> {
        let Some(sshd) = &facts.sshd else { return Ok(None) };
        let lines = key_lines(facts.key_file.content.as_deref().unwrap_or_default());
        let bound = binding.map(|binding| &binding.key_pair.public_key);
        let keys: Vec<PublicKey> = match action.public_key() {
            Some(key) => [key].into_iter().chain(bound).cloned().collect(),
            None => ways_in(&lines).map(|line| line.key.clone()).collect(),
        };
        let mut login = self.guest.login(&facts.account, sshd, &keys);
        if action.password_auth() == Some(PasswordAuth::No) {
            login.people = self.guest.people()?;
            for person in login.people.iter_mut().filter(|person| person.has_password) {
                person.has_key = self.has_key(sshd, &person.account);
            }
        }
        Ok(Some(login))
    }

    /// Whether an account has a key in the file that sshd reads for it. What cannot be told counts as none.
    fn has_key(&self, sshd: &Sshd, account: &Account) -> bool {
        let file = key_path(sshd, account).ok().and_then(|path| self.guest.key_file(account, &path).ok());
        let content = file.and_then(|file| file.content).unwrap_or_default();
        !key_lines(&content).is_empty()
    }

    /// For a detach: the files that may hold the block. It needs no sshd and no readable configuration.
    fn observe_block(&self, binding: Option<&Binding>) -> Result<Facts, Refusal> {
        let Some(binding) = binding else { return self.observe_unbound() };
        let holder = self.holder(binding)?;
        let name = Some(&holder.account.name).filter(|_| holder.fate != Fate::Gone);
        let sshd = name.and_then(|name| self.guest.sshd(name).ok());
        let (mut blocks, notes) = self.of_binding(binding, &holder, sshd.as_ref())?;
        let elsewhere = blocks.files.split_off(1.min(blocks.files.len()));
        let Some((account, key_file)) = blocks.files.pop() else {
            let why = format!("{} could not be looked at", binding.path.display());
            return Err(Refusal::new(Reason::IoError, why));
        };
        Ok(Facts { account, sshd, key_file, elsewhere, notes, login: None })
    }

    /// For a detach where nothing is bound, as far as the state says.
    fn observe_unbound(&self) -> Result<Facts, Refusal> {
        let account = self.guest.account(&self.settings.target_user)?;
        let sshd = self.guest.sshd(&account.name).ok();
        let path = sshd.as_ref().and_then(|sshd| key_path(sshd, &account).ok());
        let path = path.unwrap_or_else(|| usual_key_path(&account));
        let key_file = self.guest.standing_key_file(&account, &path)?;
        Ok(Facts { account, sshd, key_file, elsewhere: Vec::new(), notes: Vec::new(), login: None })
    }
}

/// The file that sshd reads for this account.
pub(super) fn key_path(sshd: &Sshd, account: &Account) -> Result<PathBuf, Refusal> {
    let Some(first) = sshd.answers.first() else {
        return Err(Refusal::new(Reason::SshdNotFound, "sshd names no port on which it would listen"));
    };
    lockout::authorized_keys_path(&first.effective, account)
}

/// sshd's own default, for when it cannot be asked.
pub(super) fn usual_key_path(account: &Account) -> PathBuf {
    account.home.join(".ssh/authorized_keys")
}
