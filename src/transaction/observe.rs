//! Observes the guest before anything changes: the facts that a command needs, and the plan made from them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::guest::Guest;
use crate::guest::files::FileError;
use crate::policy::authorized_keys::parse_key_lines;
use crate::policy::command::{Action, Command};
use crate::policy::content::SharedBytes;
use crate::policy::key_paths;
use crate::policy::observation::{Account, KeyFile, LocalAccount, Login, Sshd, UserStatus};
use crate::policy::outcome::{Reason, Refusal};
use crate::policy::plan::{self, Binding, Plan, PlanInputs, PlanRefusal, PlanRequest};
use crate::policy::selinux::Labels;
use crate::policy::sshd_config::ParsedConfig;
use crate::policy::trial::TrialRequest;
use crate::policy::types::{ContentHash, InstanceId, PasswordAuth};
use crate::policy::witness;

use super::blocks::OtherKeyFiles;
use super::sheet::{ResultBuilder, current_timestamp};
use super::state::State;
use super::steps::changed_twice_refusal;
use super::{Engine, pulse};

/// How many unresponsive lookups are waited for if only a warning depends on them.
const MAX_UNANSWERED_LOOKUPS: usize = 2;

/// After this many hanging lookups, nothing is looked up for a warning any more. The rest is kept for what decides.
const MAX_HANGING_LOOKUPS: usize = 4;

/// A plan and the facts from which it was made.
#[derive(Debug)]
pub struct PreparedPlan {
    /// The changes to make.
    pub plan: Plan,
    /// The facts that were observed.
    pub facts: PlanInputs,
}

/// What earlier plans of a command pass on to the next plan.
#[derive(Debug)]
pub(super) struct PlanRetries {
    /// How many more plans are allowed if a file changes during planning.
    left: u32,
    /// Why the agent's own setting could not be written.
    pub(super) not_owned: Option<String>,
}

impl Default for PlanRetries {
    fn default() -> Self {
        Self { left: 1, not_owned: None }
    }
}

impl PlanRetries {
    /// Allows one new plan after a file changed during the last one.
    ///
    /// # Errors
    /// If the one new plan was already used.
    pub(super) fn consume_retry(&mut self, changed: &FileError) -> Result<(), Refusal> {
        self.left = self.left.checked_sub(1).ok_or_else(|| changed_twice_refusal(changed))?;
        Ok(())
    }
}

/// Whether this reason means that the agent's own setting cannot be written. A refusal by the lockout guard does not.
fn prevents_own_setting(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::SshdConfigRejected
            | Reason::PasswordAuthNotEffective
            | Reason::SshdReloadUnsafe
            | Reason::UnsafePath
            | Reason::IoError
    )
}

impl<G: Guest> Engine<G> {
    /// Observes the guest for `command` and plans the command. Nothing changes.
    ///
    /// # Errors
    /// Any reason of KP-3.32.
    pub fn prepare_plan(
        &self,
        command: &Command,
        state: &State,
        sheet: &mut ResultBuilder,
    ) -> Result<PreparedPlan, Refusal> {
        self.prepare_plan_with_retries(command, state, sheet, &mut PlanRetries::default())
    }

    /// Does the same, after earlier tries.
    pub(super) fn prepare_plan_with_retries(
        &self,
        command: &Command,
        state: &State,
        sheet: &mut ResultBuilder,
        tries: &mut PlanRetries,
    ) -> Result<PreparedPlan, Refusal> {
        pulse::begin_step("looking at accounts, sshd and files");
        let known = self.settings.effective_instance_id(state).map(InstanceId::as_str);
        plan::check_binding_allows(
            &command.action,
            state.binding.as_ref(),
            known.or(command.instance_id.as_deref()),
        )?;
        let owed = state.describe_owed_edits();
        if let (Action::Detach { .. }, None, Some(owed)) = (&command.action, &state.binding, &owed) {
            return Err(Refusal::new(Reason::IoError, owed));
        }
        if let Some(key) = command.action.public_key() {
            self.guest.reads_key(key)?;
        }
        loop {
            let facts = self.observe_guest(&command.action, state.binding.as_ref(), sheet)?;
            sheet.notes.extend(owed.clone());
            let mut already = false;
            let not_owned = tries.not_owned.as_deref();
            let mut planned = self.plan_from_facts(&facts, command, state, sheet, not_owned, &mut already);
            if let Err(refusal) = &planned
                && already
                && not_owned.is_none()
                && prevents_own_setting(refusal.reason)
            {
                let why = refusal.message.clone();
                planned = self.plan_from_facts(&facts, command, state, sheet, Some(&why), &mut already);
            }
            // If another person changed the files meanwhile, sshd's answer about them is not a verdict.
            let sshd = facts.sshd.as_ref().filter(|_| command.action.password_auth().is_some());
            let now = sshd.and_then(|sshd| Some((sshd, self.guest.reread_sshd_config_files(sshd).ok()?)));
            let changed = now.as_ref().and_then(|(sshd, now)| sshd.config.first_difference(now));
            match changed {
                Some(path) => tries.consume_retry(&FileError::Changed { path: path.to_owned() })?,
                None => return planned.map(|plan| PreparedPlan { plan, facts }),
            }
        }
    }

    /// Makes the plan from these facts. `already` is set if sshd already does what the command requests.
    fn plan_from_facts(
        &self,
        facts: &PlanInputs,
        command: &Command,
        state: &State,
        sheet: &mut ResultBuilder,
        not_owned: Option<&str>,
        already: &mut bool,
    ) -> Result<Plan, Refusal> {
        let known = self.settings.effective_instance_id(state).map(InstanceId::as_str);
        let instance_id = known.or(command.instance_id.as_deref());
        let present = facts.sshd.iter().flat_map(|sshd| &sshd.answers).next();
        sheet.outcome.effective = present.map(|answer| answer.effective.to_report());
        let when = current_timestamp(&self.guest);
        let purpose = PlanRequest {
            action: &command.action,
            binding: state.binding.as_ref(),
            instance_id,
            kbd_interactive: self.settings.kbd_interactive,
            proof: self.settings.proof && self.guest.has_ssh_client(),
            asks_for_yes: self.settings.proof,
            when: &when,
            command_id: command.id.as_str(),
            not_owned,
        };
        let draft = plan::draft_plan(&purpose, facts)?;
        *already = draft.already;
        pulse::begin_step("asking sshd about the new setting");
        let questions = draft.sshd_queries(&purpose, facts);
        let answers = match &facts.sshd {
            Some(sshd) => {
                self.guest.query_effective_config(sshd, draft.ahead.as_deref(), &questions.connections())?
            }
            None => Vec::new(),
        };
        let mut answers = questions.pair_answers(answers);
        let people = facts.login.as_ref().map_or(&[][..], |login| &login.people);
        let shut = match draft.ahead {
            Some(_) => witness::list_shut_out_connections(&answers.witnesses, people),
            None => Vec::new(),
        };
        if let (Some(sshd), false) = (&facts.sshd, shut.is_empty()) {
            // Only a warning depends on this answer.
            answers.current = self.guest.query_effective_config(sshd, None, &shut).unwrap_or_default();
        }
        let mut ask = |question: &TrialRequest| match &facts.sshd {
            Some(sshd) => {
                pulse::begin_step("asking a private sshd about the key");
                self.guest.run_trial(sshd, question)
            }
            None => Vec::new(),
        };
        let judged = draft.evaluate(&purpose, facts, answers, &mut ask);
        let plan = judged.map_err(|PlanRefusal { refusal, trial }| {
            sheet.asked.trial = trial.map(|report| *report);
            refusal
        })?;
        sheet.asked.trial = plan.trial.clone();
        // Check every file before the first one is touched, so that a predictable failure needs no undo.
        for edit in plan.key_edits.iter().chain(&plan.sshd_edits) {
            self.guest.check_path_visible(&edit.path)?;
            let expected = edit.before.as_deref().map(ContentHash::from_content);
            match self.guest.check_writable(&edit.kind, &edit.path, expected.as_ref()) {
                // The write finds the change too, and the command is planned again.
                Ok(()) | Err(FileError::Changed { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if let Some(sshd) = facts.sshd.as_ref().filter(|_| plan.must_reload_first()) {
            self.guest.check_reload_safe(sshd)?;
        }
        if let Some(unbound) = &plan.unbound {
            sheet.outcome.fingerprint = Some(unbound.public_key.fingerprint());
            sheet.outcome.key_name = Some(unbound.key_name.clone());
        }
        Ok(plan)
    }

    fn observe_guest(
        &self,
        action: &Action,
        binding: Option<&Binding>,
        sheet: &mut ResultBuilder,
    ) -> Result<PlanInputs, Refusal> {
        let user = match (action, binding) {
            (Action::Detach { .. }, Some(binding)) => binding.user.clone(),
            _ => self.settings.target_user.clone(),
        };
        sheet.outcome.user = Some(user);
        let facts = match action {
            Action::Attach { .. } | Action::SetPasswordAuth { .. } => {
                let mut facts = self.observe_sshd_user(action, binding)?;
                if matches!(action, Action::Attach { .. }) {
                    self.refuse_shared_key_file(&facts)?;
                }
                facts.login = self.observe_login(action, &facts)?;
                facts.labels = read_selinux_labels(&self.guest, &facts);
                facts
            }
            Action::Detach { .. } => self.observe_bound_files(binding)?,
        };
        let path = facts.key_file.as_ref().map(|file| file.path.to_string_lossy().into_owned());
        sheet.outcome.authorized_keys_file = path;
        sheet.notes.clone_from(&facts.notes);
        let silences = self.guest.unresponsive_resources().into_iter();
        sheet.notes.extend(silences.map(|silence| format!("passed over: {silence}")));
        Ok(facts)
    }

    /// For a command that decides about logins: the target user, sshd, and the key file that sshd reads for that
    /// user.
    pub(super) fn observe_sshd_user(
        &self,
        action: &Action,
        binding: Option<&Binding>,
    ) -> Result<PlanInputs, Refusal> {
        // A command that only changes the setting does not need the place of the block.
        let binding = binding.filter(|_| matches!(action, Action::Attach { .. }));
        if matches!(action, Action::SetPasswordAuth { password_auth: PasswordAuth::Yes }) {
            return self.observe_sshd_only();
        }
        let account = self.guest.lookup_account(&self.settings.target_user)?;
        let sshd = self.guest.inspect_sshd(&account.name)?;
        self.check_sshd_files_visible(&sshd)?;
        let path = find_key_path(&sshd, &account)?;
        self.guest.check_path_visible(&path)?;
        let key_file = self.guest.read_key_file(&account, &path).map_err(|error| {
            self.find_unmounted_refusal(binding, &account, &sshd, &path).unwrap_or_else(|| error.into())
        })?;
        let elsewhere = binding.map(|binding| self.find_other_key_files(binding, &account, &sshd, &key_file));
        let OtherKeyFiles { files: elsewhere, notes } = elsewhere.transpose()?.unwrap_or_default();
        let key_files = self.read_all_key_files(Some(&sshd), &account, Some(&key_file));
        let key_file = Some(key_file);
        Ok(PlanInputs {
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

    /// sshd's answer here is valid for the running sshd only if the agent sees the same files.
    fn check_sshd_files_visible(&self, sshd: &Sshd) -> Result<(), Refusal> {
        let patterns = sshd.config.includes.values().flatten().map(|included| &included.pattern);
        let directories: BTreeSet<&Path> = patterns.filter_map(|pattern| pattern.parent()).collect();
        for path in directories.into_iter().chain([sshd.config.main.as_path()]) {
            self.guest.check_path_visible(path)?;
        }
        Ok(())
    }

    /// Turning passwords on needs no key file and no account. A fault in these may be why the owner sends the
    /// command.
    fn observe_sshd_only(&self) -> Result<PlanInputs, Refusal> {
        let user = &self.settings.target_user;
        let sshd = self.guest.inspect_sshd(user)?;
        self.check_sshd_files_visible(&sshd)?;
        Ok(PlanInputs {
            account: self.guest.lookup_account(user).unwrap_or_else(|_| Account::placeholder(user)),
            sshd: Some(sshd),
            key_file: None,
            key_files: Vec::new(),
            elsewhere: Vec::new(),
            notes: Vec::new(),
            login: None,
            labels: Labels::default(),
        })
    }

    /// The other restrictions on a login. If the command turns passwords off: also the other accounts that have a
    /// password.
    fn observe_login(&self, action: &Action, facts: &PlanInputs) -> Result<Option<Login>, Refusal> {
        let Some(sshd) = &facts.sshd else { return Ok(None) };
        let mut login = self.guest.read_login_restrictions(&facts.account, sshd);
        if action.password_auth() == Some(PasswordAuth::No) {
            login.people = self.guest.people()?;
            self.mark_accounts_with_keys(sshd, &mut login.people);
        }
        Ok(Some(login))
    }

    /// Marks the other accounts that have a key; only warnings depend on this. It stops after two more lookups did
    /// not answer, because each takes seconds. Accounts that it did not reach count as having no key.
    fn mark_accounts_with_keys(&self, sshd: &Sshd, people: &mut [LocalAccount]) {
        let patience = self.guest.unresponsive_resources().len() + MAX_UNANSWERED_LOOKUPS;
        for person in people.iter_mut().filter(|person| person.has_password) {
            let silent = self.guest.unresponsive_resources().len();
            if silent >= patience.min(MAX_HANGING_LOOKUPS) {
                return;
            }
            // If this lookup hung, the account counts as having a key. The result then reports only that the lookup
            // was passed over.
            person.has_key =
                self.has_key(sshd, &person.account) || self.guest.unresponsive_resources().len() > silent;
        }
    }

    /// Whether an account has a key in a file that sshd reads for it. If this cannot be determined, the answer is no.
    fn has_key(&self, sshd: &Sshd, account: &Account) -> bool {
        let own =
            find_key_path(sshd, account).ok().and_then(|path| self.guest.read_key_file(account, &path).ok());
        let files = self.read_all_key_files(Some(sshd), account, own.as_ref());
        files.iter().any(|(_, content)| parse_key_lines(content).next().is_some())
    }

    /// For a detach: the files that may contain the block. This needs no sshd and no readable configuration.
    fn observe_bound_files(&self, binding: Option<&Binding>) -> Result<PlanInputs, Refusal> {
        let Some(binding) = binding else { return self.observe_unbound() };
        let holder = self.find_holder(binding)?;
        let name = Some(&holder.account.name).filter(|_| holder.fate != UserStatus::Gone);
        let sshd = name.and_then(|name| self.guest.inspect_sshd(name).ok());
        let (mut blocks, notes) = self.find_binding_blocks(binding, &holder, sshd.as_ref())?;
        let elsewhere = blocks.files.split_off(1.min(blocks.files.len()));
        let Some((account, key_file)) = blocks.files.pop() else {
            let why = format!("{} could not be looked at", binding.path.display());
            return Err(Refusal::new(Reason::IoError, why));
        };
        let key_files = self.read_all_key_files(sshd.as_ref(), &account, Some(&key_file));
        let login = sshd.as_ref().map(|sshd| self.guest.read_login_restrictions(&account, sshd));
        let (key_file, labels) = (Some(key_file), Labels::default());
        Ok(PlanInputs { account, sshd, key_file, key_files, elsewhere, notes, login, labels })
    }

    /// All key files that sshd reads for the account. If these are unknown: only the file that the agent writes.
    fn read_all_key_files(
        &self,
        sshd: Option<&Sshd>,
        account: &Account,
        own: Option<&KeyFile>,
    ) -> Vec<(PathBuf, SharedBytes)> {
        let paths = sshd.and_then(|sshd| {
            let first = sshd.answers.first()?;
            key_paths::resolve_key_paths(
                &first.effective,
                &ParsedConfig::from_sshd(sshd),
                &first.connection,
                account,
            )
            .ok()
        });
        match paths {
            Some(paths) => self.guest.read_key_files(&paths, own),
            None => own.map(KeyFile::path_and_content).into_iter().collect(),
        }
    }

    /// For a detach if the state has no binding.
    fn observe_unbound(&self) -> Result<PlanInputs, Refusal> {
        let account = self.guest.lookup_account_for_removal(&self.settings.target_user)?;
        let sshd = self.guest.inspect_sshd(&account.name).ok();
        let path = sshd.as_ref().and_then(|sshd| find_key_path(sshd, &account).ok());
        let path = path.unwrap_or_else(|| default_key_path(&account));
        self.guest.check_path_visible(&path)?;
        let key_file = self.guest.read_key_file_for_removal(&account, &path)?;
        let key_files = self.read_all_key_files(sshd.as_ref(), &account, Some(&key_file));
        let login = sshd.as_ref().map(|sshd| self.guest.read_login_restrictions(&account, sshd));
        let (key_file, labels) = (Some(key_file), Labels::default());
        let (elsewhere, notes) = (Vec::new(), Vec::new());
        Ok(PlanInputs { account, sshd, key_file, key_files, elsewhere, notes, login, labels })
    }
}

/// The SELinux labels that decide whether sshd may read its configuration and the user's key files.
pub(super) fn read_selinux_labels(guest: &impl Guest, facts: &PlanInputs) -> Labels {
    let Some(sshd) = &facts.sshd else { return Labels::default() };
    let mut files: Vec<PathBuf> = facts.key_file.iter().map(|own| own.path.clone()).collect();
    let others = facts.key_files.iter().map(|(path, _)| path);
    files.extend(others.filter(|path| facts.key_file.as_ref().is_none_or(|own| own.path != **path)).cloned());
    guest.selinux_labels(sshd, &facts.account, &files)
}

/// The key file that sshd reads for this account.
pub(super) fn find_key_path(sshd: &Sshd, account: &Account) -> Result<PathBuf, Refusal> {
    let Some(first) = sshd.answers.first() else {
        return Err(Refusal::new(Reason::SshdNotFound, "sshd names no port on which it would listen"));
    };
    key_paths::resolve_authorized_keys_path(
        &first.effective,
        &ParsedConfig::from_sshd(sshd),
        &first.connection,
        account,
    )
}

/// sshd's own default, used if sshd cannot be queried.
pub(super) fn default_key_path(account: &Account) -> PathBuf {
    account.home.join(".ssh/authorized_keys")
}
