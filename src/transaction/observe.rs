//! Looking before anything is done: the facts a command needs, and the plan made of them.

use std::path::PathBuf;

use crate::guest::Guest;
use crate::policy::authorized_keys::key_lines;
use crate::policy::command::{Action, Command};
use crate::policy::key_paths;
use crate::policy::observation::{Account, KeyFile, Login, Sshd};
use crate::policy::outcome::{Reason, Refusal};
use crate::policy::plan::{self, Binding, Facts, Plan, PlanRefusal, Purpose};
use crate::policy::sshd_config::Reading;
use crate::policy::trial::TrialQuestion;
use crate::policy::types::{InstanceId, PasswordAuth};
use crate::policy::witness;

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
        let known = self.settings.instance(state).map(InstanceId::as_str);
        let instance_id = known.or(command.instance_id.as_deref());
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
            asks_for_yes: self.settings.proof,
            when: &when,
            command_id: command.id.as_str(),
        };
        let draft = plan::draft(&purpose, &facts)?;
        let questions = draft.questions(&purpose, &facts);
        let answers = match &facts.sshd {
            Some(sshd) => self.guest.ask(sshd, draft.ahead.as_deref(), &questions.connections())?,
            None => Vec::new(),
        };
        let answers = questions.answered(answers);
        let people = facts.login.as_ref().map_or(&[][..], |login| &login.people);
        let shut = match draft.ahead {
            Some(_) => witness::without_a_way_in(&answers.witnesses, people),
            None => Vec::new(),
        };
        let before = match &facts.sshd {
            // Only a warning depends on it.
            Some(sshd) if !shut.is_empty() => self.guest.ask(sshd, None, &shut).unwrap_or_default(),
            _ => Vec::new(),
        };
        let about_others = draft.about_others(&purpose, &facts, &answers, &before);
        let mut ask = |question: &TrialQuestion| match &facts.sshd {
            Some(sshd) => self.guest.trial(sshd, question),
            None => Vec::new(),
        };
        let judged = draft.judge(&purpose, &facts, answers, &mut ask);
        let mut plan = judged.map_err(|PlanRefusal { refusal, trial }| {
            sheet.asked.trial = trial;
            refusal
        })?;
        sheet.asked.trial = plan.trial.clone();
        plan.warnings.extend(about_others);
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
                let mut facts = self.observe_sshd_user(binding)?;
                facts.login = self.observe_login(action, &facts)?;
                facts
            }
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
        let key_files = self.all_key_files(Some(&sshd), &account, &key_file);
        Ok(Facts { account, sshd: Some(sshd), key_file, key_files, elsewhere, login: None })
    }

    /// What else decides about a login; where the command forbids passwords, who else has one.
    fn observe_login(&self, action: &Action, facts: &Facts) -> Result<Option<Login>, Refusal> {
        let Some(sshd) = &facts.sshd else { return Ok(None) };
        let mut login = self.guest.login(&facts.account, sshd);
        if action.password_auth() == Some(PasswordAuth::No) {
            login.people = self.guest.people()?;
            for person in login.people.iter_mut().filter(|person| person.has_password) {
                person.has_key = self.has_key(sshd, &person.account);
            }
        }
        Ok(Some(login))
    }

    /// Whether an account has a key in a file that sshd reads for it. What cannot be told counts as none.
    fn has_key(&self, sshd: &Sshd, account: &Account) -> bool {
        let file = key_path(sshd, account).ok().and_then(|path| self.guest.key_file(account, &path).ok());
        let own = file.unwrap_or_else(|| KeyFile {
            path: usual_key_path(account),
            content: None,
            missing_directory: None,
            path_facts: Vec::new(),
        });
        let files = self.all_key_files(Some(sshd), account, &own);
        files.iter().any(|(_, content)| !key_lines(content).is_empty())
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
        let key_files = self.all_key_files(sshd.as_ref(), &account, &key_file);
        let login = sshd.as_ref().map(|sshd| self.guest.login(&account, sshd));
        Ok(Facts { account, sshd, key_file, key_files, elsewhere: None, login })
    }

    /// All files that sshd reads for the account; the one that is ours alone, where it cannot be told which these are.
    fn all_key_files(
        &self,
        sshd: Option<&Sshd>,
        account: &Account,
        own: &KeyFile,
    ) -> Vec<(PathBuf, Vec<u8>)> {
        let paths = sshd.and_then(|sshd| {
            let first = sshd.answers.first()?;
            key_paths::key_paths(&first.effective, &Reading::of(sshd), &first.connection, account).ok()
        });
        match paths {
            Some(paths) => self.guest.key_files(&paths, own),
            None => vec![(own.path.clone(), own.content.clone().unwrap_or_default())],
        }
    }
}

/// The file that sshd reads for this account.
pub(super) fn key_path(sshd: &Sshd, account: &Account) -> Result<PathBuf, Refusal> {
    let Some(first) = sshd.answers.first() else {
        return Err(Refusal::new(Reason::SshdNotFound, "sshd names no port on which it would listen"));
    };
    key_paths::authorized_keys_path(&first.effective, &Reading::of(sshd), &first.connection, account)
}

/// sshd's own default, for when it cannot be asked.
pub(super) fn usual_key_path(account: &Account) -> PathBuf {
    account.home.join(".ssh/authorized_keys")
}
