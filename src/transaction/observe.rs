//! Looking before anything is done: the facts a command needs, and the plan made of them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::guest::Guest;
use crate::guest::files::FileError;
use crate::policy::authorized_keys::key_lines;
use crate::policy::command::{Action, Command};
use crate::policy::content::Content;
use crate::policy::key_paths;
use crate::policy::observation::{Account, Fate, KeyFile, Login, Person, Sshd};
use crate::policy::outcome::{Reason, Refusal};
use crate::policy::plan::{self, Binding, Facts, Plan, PlanRefusal, Purpose};
use crate::policy::selinux::Labels;
use crate::policy::sshd_config::Reading;
use crate::policy::trial::TrialQuestion;
use crate::policy::types::{ContentHash, InstanceId, PasswordAuth};
use crate::policy::witness;

use super::blocks::Elsewhere;
use super::sheet::{Sheet, timestamp};
use super::state::State;
use super::steps::changed_twice;
use super::{Transaction, pulse};

/// How many places that do not answer are waited for where only a warning depends on it.
const MOST_SILENCES: usize = 2;

/// How many may hang before nothing is looked at for a warning's sake: what decides has the rest.
const MOST_HANGING: usize = 4;

/// A plan and what it was made of.
#[derive(Debug)]
pub struct Prepared {
    /// What is to be done.
    pub plan: Plan,
    /// What was observed.
    pub facts: Facts,
}

/// What earlier plans of a command leave to the next one.
#[derive(Debug)]
pub(super) struct Tries {
    /// How many more plans there may be where a file changes under one.
    left: u32,
    /// Why our own setting could not be written.
    pub(super) not_owned: Option<String>,
}

impl Default for Tries {
    fn default() -> Self {
        Self { left: 1, not_owned: None }
    }
}

impl Tries {
    /// A file changed under the plan: there is one new one.
    ///
    /// # Errors
    /// There was one already.
    pub(super) fn another(&mut self, changed: &FileError) -> Result<(), Refusal> {
        self.left = self.left.checked_sub(1).ok_or_else(|| changed_twice(changed))?;
        Ok(())
    }
}

/// By these reasons a setting of ours cannot be written. That the guard refuses is none of them.
fn leaves_it_unowned(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::SshdConfigRejected
            | Reason::PasswordAuthNotEffective
            | Reason::SshdReloadUnsafe
            | Reason::UnsafePath
            | Reason::IoError
    )
}

impl<G: Guest> Transaction<G> {
    /// Observes the guest for `command` and plans it. Nothing is changed.
    ///
    /// # Errors
    /// Any reason of KP-3.32.
    pub fn prepare(&self, command: &Command, state: &State, sheet: &mut Sheet) -> Result<Prepared, Refusal> {
        self.prepare_again(command, state, sheet, &mut Tries::default())
    }

    /// The same, after earlier tries.
    pub(super) fn prepare_again(
        &self,
        command: &Command,
        state: &State,
        sheet: &mut Sheet,
        tries: &mut Tries,
    ) -> Result<Prepared, Refusal> {
        pulse::step("looking at accounts, sshd and files");
        let known = self.settings.instance(state).map(InstanceId::as_str);
        plan::admit(&command.action, state.binding.as_ref(), known.or(command.instance_id.as_deref()))?;
        let owed = state.owed_in_words();
        if let (Action::Detach { .. }, None, Some(owed)) = (&command.action, &state.binding, &owed) {
            return Err(Refusal::new(Reason::IoError, owed));
        }
        if let Some(key) = command.action.public_key() {
            self.guest.reads_key(key)?;
        }
        loop {
            let facts = self.observe(&command.action, state.binding.as_ref(), sheet)?;
            sheet.notes.extend(owed.clone());
            let mut already = false;
            let not_owned = tries.not_owned.as_deref();
            let mut planned = self.plan_on(&facts, command, state, sheet, not_owned, &mut already);
            if let Err(refusal) = &planned
                && already
                && not_owned.is_none()
                && leaves_it_unowned(refusal.reason)
            {
                let why = refusal.message.clone();
                planned = self.plan_on(&facts, command, state, sheet, Some(&why), &mut already);
            }
            // What sshd said of files that somebody changed meanwhile is no verdict.
            let sshd = facts.sshd.as_ref().filter(|_| command.action.password_auth().is_some());
            let now = sshd.and_then(|sshd| Some((sshd, self.guest.files_of(sshd).ok()?)));
            let changed = now.as_ref().and_then(|(sshd, now)| sshd.config.difference(now));
            match changed {
                Some(path) => tries.another(&FileError::Changed { path: path.to_owned() })?,
                None => return planned.map(|plan| Prepared { plan, facts }),
            }
        }
    }

    /// The plan on these facts. `already` is set where sshd does what is asked as it stands.
    fn plan_on(
        &self,
        facts: &Facts,
        command: &Command,
        state: &State,
        sheet: &mut Sheet,
        not_owned: Option<&str>,
        already: &mut bool,
    ) -> Result<Plan, Refusal> {
        let known = self.settings.instance(state).map(InstanceId::as_str);
        let instance_id = known.or(command.instance_id.as_deref());
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
            not_owned,
        };
        let draft = plan::draft(&purpose, facts)?;
        *already = draft.already;
        pulse::step("asking sshd about the new setting");
        let questions = draft.questions(&purpose, facts);
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
            Some(sshd) => {
                pulse::step("asking a private sshd about the key");
                self.guest.trial(sshd, question)
            }
            None => Vec::new(),
        };
        let judged = draft.judge(&purpose, facts, answers, &mut ask);
        let plan = judged.map_err(|PlanRefusal { refusal, trial }| {
            sheet.asked.trial = trial.map(|report| *report);
            refusal
        })?;
        sheet.asked.trial = plan.trial.clone();
        // All of them before the first one is touched: what can be known to fail then needs no way back.
        for edit in plan.key_edits.iter().chain(&plan.sshd_edits) {
            self.guest.sees(&edit.path)?;
            let expected = edit.before.as_deref().map(ContentHash::of);
            match self.guest.is_writable(&edit.kind, &edit.path, expected.as_ref()) {
                // The write finds that too, and a new plan is made.
                Ok(()) | Err(FileError::Changed { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if let Some(sshd) = facts.sshd.as_ref().filter(|_| plan.tells_sshd_first()) {
            self.guest.reload_is_safe(sshd)?;
        }
        if let Some(unbound) = &plan.unbound {
            sheet.outcome.fingerprint = Some(unbound.public_key.fingerprint());
            sheet.outcome.key_name = Some(unbound.key_name.clone());
        }
        Ok(plan)
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
        let silences = self.guest.silences().into_iter();
        sheet.notes.extend(silences.map(|silence| format!("passed over: {silence}")));
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
        self.sees_the_files_of(&sshd)?;
        let path = key_path(&sshd, &account)?;
        self.guest.sees(&path)?;
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

    /// What sshd was asked here is what it says elsewhere only if its files are seen here.
    fn sees_the_files_of(&self, sshd: &Sshd) -> Result<(), Refusal> {
        let patterns = sshd.config.includes.values().flatten().map(|included| &included.pattern);
        let directories: BTreeSet<&Path> = patterns.filter_map(|pattern| pattern.parent()).collect();
        for path in directories.into_iter().chain([sshd.config.main.as_path()]) {
            self.guest.sees(path)?;
        }
        Ok(())
    }

    /// To allow passwords no key file and no account is needed: what is wrong with them may be why the owner asks for it.
    fn observe_sshd_alone(&self) -> Result<Facts, Refusal> {
        let user = &self.settings.target_user;
        let sshd = self.guest.sshd(user)?;
        self.sees_the_files_of(&sshd)?;
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
            self.look_for_keys(sshd, &mut login.people);
        }
        Ok(Some(login))
    }

    /// Who else has a key: only warnings depend on it. It ends once two more places did not answer, which takes seconds
    /// each; whom it did not come to has none then.
    fn look_for_keys(&self, sshd: &Sshd, people: &mut [Person]) {
        let patience = self.guest.silences().len() + MOST_SILENCES;
        for person in people.iter_mut().filter(|person| person.has_password) {
            let silent = self.guest.silences().len();
            if silent >= patience.min(MOST_HANGING) {
                return;
            }
            // Of whom it cannot be told, nothing is said but that it was not looked at.
            person.has_key = self.has_key(sshd, &person.account) || self.guest.silences().len() > silent;
        }
    }

    /// Whether an account has a key in a file that sshd reads for it. What cannot be told counts as none.
    fn has_key(&self, sshd: &Sshd, account: &Account) -> bool {
        let own = key_path(sshd, account).ok().and_then(|path| self.guest.key_file(account, &path).ok());
        let files = self.all_key_files(Some(sshd), account, own.as_ref());
        files.iter().any(|(_, content)| key_lines(content).next().is_some())
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
    ) -> Vec<(PathBuf, Content)> {
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
        let account = self.guest.account_to_clean(&self.settings.target_user)?;
        let sshd = self.guest.sshd(&account.name).ok();
        let path = sshd.as_ref().and_then(|sshd| key_path(sshd, &account).ok());
        let path = path.unwrap_or_else(|| usual_key_path(&account));
        self.guest.sees(&path)?;
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
