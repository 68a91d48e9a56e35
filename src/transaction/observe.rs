//! Looking before anything is done: the facts a command needs, and the plan made of them.

use std::path::PathBuf;

use crate::guest::Guest;
use crate::policy::command::{Action, Command};
use crate::policy::lockout;
use crate::policy::observation::{Account, Sshd};
use crate::policy::outcome::{Reason, Refusal};
use crate::policy::plan::{self, Binding, Facts, Plan, Purpose};

use super::Transaction;
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
            when: &when,
            command_id: command.id.as_str(),
        };
        let draft = plan::draft(&purpose, &facts)?;
        let answers = match (&facts.sshd, &draft.ahead) {
            (Some(sshd), Some(ahead)) => self.guest.try_ahead(sshd, ahead)?,
            (Some(sshd), None) => sshd.answers.clone(),
            (None, _) => Vec::new(),
        };
        let plan = draft.judge(&purpose, &facts, answers)?;
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
            Action::Attach { .. } | Action::SetPasswordAuth { .. } => self.observe_sshd_user(binding)?,
            Action::Detach { .. } => self.observe_block(binding)?,
        };
        sheet.outcome.authorized_keys_file = Some(facts.key_file.path.to_string_lossy().into_owned());
        Ok(facts)
    }

    /// For a command that is about who gets in: the target user, sshd, and the file that it reads for him.
    pub(super) fn observe_sshd_user(&self, binding: Option<&Binding>) -> Result<Facts, Refusal> {
        let account = self.guest.account(&self.settings.target_user)?;
        let sshd = self.guest.sshd(&account.name)?;
        let path = key_path(&sshd, &account)?;
        let key_file = self.guest.key_file(&account, &path)?;
        let elsewhere = match binding {
            Some(binding) if binding.path != key_file.path || binding.user != account.name => {
                let holder = self.guest.account(&binding.user)?;
                let file = self.guest.key_file(&holder, &binding.path)?;
                Some((holder, file))
            }
            _ => None,
        };
        Ok(Facts { account, sshd: Some(sshd), key_file, elsewhere })
    }

    /// For a detach: the file that holds the block. It needs no sshd and no readable configuration.
    fn observe_block(&self, binding: Option<&Binding>) -> Result<Facts, Refusal> {
        let user = binding.map_or(self.settings.target_user.as_str(), |binding| &binding.user);
        let account = self.guest.account(user)?;
        let sshd = self.guest.sshd(user).ok();
        let path = match (binding, &sshd) {
            (Some(binding), _) => binding.path.clone(),
            (None, Some(sshd)) => key_path(sshd, &account).unwrap_or_else(|_| usual_key_path(&account)),
            (None, None) => usual_key_path(&account),
        };
        let key_file = self.guest.key_file(&account, &path)?;
        Ok(Facts { account, sshd, key_file, elsewhere: None })
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
