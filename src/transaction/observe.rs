//! Looking before anything is done: the facts a command needs, and the plan made of them.

use std::path::PathBuf;

use crate::guest::Guest;
use crate::policy::authorized_keys::key_lines;
use crate::policy::command::{Action, Command};
use crate::policy::key_paths;
use crate::policy::observation::{Account, Fate, KeyFile, Login, Sshd};
use crate::policy::outcome::{Reason, Refusal};
use crate::policy::plan::{self, Binding, Facts, Plan, PlanRefusal, Purpose};
use crate::policy::selinux::Labels;
use crate::policy::sshd_config::Reading;
use crate::policy::trial::TrialQuestion;
use crate::policy::types::{InstanceId, PasswordAuth};
use crate::policy::witness;

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
        let mut answers = questions.answered(answers);
        let people = facts.login.as_ref().map_or(&[][..], |login| &login.people);
        let shut = match draft.ahead {
            Some(_) => witness::without_a_way_in(&answers.witnesses, people),
            None => Vec::new(),
        };
        if let (Some(sshd), false) = (&facts.sshd, shut.is_empty()) {
            // Only a warning depends on it.
            answers.before = self.guest.ask(sshd, None, &shut).unwrap_or_default();
        }
        let mut ask = |question: &TrialQuestion| match &facts.sshd {
            Some(sshd) => self.guest.trial(sshd, question),
            None => Vec::new(),
        };
        let judged = draft.judge(&purpose, &facts, answers, &mut ask);
        let plan = judged.map_err(|PlanRefusal { refusal, trial }| {
            sheet.asked.trial = trial.map(|report| *report);
            refusal
        })?;
        sheet.asked.trial = plan.trial.clone();
        if let Some(sshd) = facts.sshd.as_ref().filter(|_| plan.tells_sshd_first()) {
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
                let mut facts = self.observe_sshd_user(action, binding)?;
                if matches!(action, Action::Attach { .. }) {
                    self.refuse_anothers_file(&facts)?;
                }
                facts.login = self.observe_login(action, &facts)?;
                facts.labels = labels(&self.guest, &facts);
                facts
            }
            Action::Detach { .. } => self.observe_block(binding)?,
        };
        let path = facts.key_file.as_ref().map(|file| file.path.to_string_lossy().into_owned());
        sheet.outcome.authorized_keys_file = path;
        sheet.notes.clone_from(&facts.notes);
        Ok(facts)
    }

    /// For a command that is about who gets in: the target user, sshd, and the file that it reads for him.
    pub(super) fn observe_sshd_user(
        &self,
        action: &Action,
        binding: Option<&Binding>,
    ) -> Result<Facts, Refusal> {
        // A setting alone is no reason to look where the block stands.
        let binding = binding.filter(|_| matches!(action, Action::Attach { .. }));
        if matches!(action, Action::SetPasswordAuth { password_auth: PasswordAuth::Yes }) {
            return self.observe_sshd_alone();
        }
        let account = self.guest.account(&self.settings.target_user)?;
        let sshd = self.guest.sshd(&account.name)?;
        let path = key_path(&sshd, &account)?;
        let key_file = self.guest.key_file(&account, &path).map_err(|error| {
            self.unmounted(binding, &account, &sshd, &path).unwrap_or_else(|| error.into())
        })?;
        let elsewhere = binding.map(|binding| self.elsewhere(binding, &account, &sshd, &key_file));
        let Elsewhere { files: elsewhere, notes } = elsewhere.transpose()?.unwrap_or_default();
        let key_files = self.all_key_files(Some(&sshd), &account, Some(&key_file));
        let key_file = Some(key_file);
        Ok(Facts {
            account,
            sshd: Some(sshd),
            key_file,
            key_files,
            elsewhere,
            notes,
            login: None,
            labels: Labels::default(),
        })
    }

    /// To allow passwords no key file and no account is needed: what is wrong with them may be why the owner asks for it.
    fn observe_sshd_alone(&self) -> Result<Facts, Refusal> {
        let user = &self.settings.target_user;
        let sshd = self.guest.sshd(user)?;
        Ok(Facts {
            account: self.guest.account(user).unwrap_or_else(|_| Account::without_entry(user)),
            sshd: Some(sshd),
            key_file: None,
            key_files: Vec::new(),
            elsewhere: Vec::new(),
            notes: Vec::new(),
            login: None,
            labels: Labels::default(),
        })
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
        let own = key_path(sshd, account).ok().and_then(|path| self.guest.key_file(account, &path).ok());
        let files = self.all_key_files(Some(sshd), account, own.as_ref());
        files.iter().any(|(_, content)| !key_lines(content).is_empty())
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
        let key_files = self.all_key_files(sshd.as_ref(), &account, Some(&key_file));
        let login = sshd.as_ref().map(|sshd| self.guest.login(&account, sshd));
        let (key_file, labels) = (Some(key_file), Labels::default());
        Ok(Facts { account, sshd, key_file, key_files, elsewhere, notes, login, labels })
    }

    /// All files that sshd reads for the account; the one that is ours alone, where it cannot be told which these are.
    fn all_key_files(
        &self,
        sshd: Option<&Sshd>,
        account: &Account,
        own: Option<&KeyFile>,
    ) -> Vec<(PathBuf, Vec<u8>)> {
        let paths = sshd.and_then(|sshd| {
            let first = sshd.answers.first()?;
            key_paths::key_paths(&first.effective, &Reading::of(sshd), &first.connection, account).ok()
        });
        match paths {
            Some(paths) => self.guest.key_files(&paths, own),
            None => own.map(KeyFile::bytes).into_iter().collect(),
        }
    }

    /// For a detach where nothing is bound, as far as the state says.
    fn observe_unbound(&self) -> Result<Facts, Refusal> {
        let account = self.guest.account(&self.settings.target_user)?;
        let sshd = self.guest.sshd(&account.name).ok();
        let path = sshd.as_ref().and_then(|sshd| key_path(sshd, &account).ok());
        let path = path.unwrap_or_else(|| usual_key_path(&account));
        let key_file = self.guest.standing_key_file(&account, &path)?;
        let key_files = self.all_key_files(sshd.as_ref(), &account, Some(&key_file));
        let login = sshd.as_ref().map(|sshd| self.guest.login(&account, sshd));
        let (key_file, labels) = (Some(key_file), Labels::default());
        let (elsewhere, notes) = (Vec::new(), Vec::new());
        Ok(Facts { account, sshd, key_file, key_files, elsewhere, notes, login, labels })
    }
}

/// What SELinux says of sshd's reading of its configuration and of the user's key files.
pub(super) fn labels(guest: &impl Guest, facts: &Facts) -> Labels {
    let Some(sshd) = &facts.sshd else { return Labels::default() };
    let mut files: Vec<PathBuf> = facts.key_file.iter().map(|own| own.path.clone()).collect();
    let others = facts.key_files.iter().map(|(path, _)| path);
    files.extend(others.filter(|path| facts.key_file.as_ref().is_none_or(|own| own.path != **path)).cloned());
    guest.labels(sshd, &facts.account, &files)
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
