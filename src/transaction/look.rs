//! Looking without a lock and without a change: what stands of ours, and who changed it (KP-8.5 and
//! KP-8.6).

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::guest::Guest;
use crate::policy::authorized_keys;
use crate::policy::command::Action;
use crate::policy::connection::list_loopback_connections;
use crate::policy::observation::{Account, KeyFile, Sshd, UserStatus};
use crate::policy::outcome::Refusal;
use crate::policy::plan::{self, Binding, PlanRequest};
use crate::policy::proof::{self, ExpectedProbe};
use crate::policy::public_key::PublicKey;
use crate::policy::selinux::LabelCheck;
use crate::policy::sshd_config::{Directive, find_overridden_directives, managed_places};
use crate::policy::types::InstanceId;

use super::Engine;
use super::observe::{default_key_path, find_key_path};
use super::sheet::current_timestamp;
use super::state::State;

/// What is not as a command left it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Drift {
    /// This file of ours, or our block in it, was changed or taken out by somebody.
    Changed(PathBuf),
    /// sshd does not do what was set, although our lines stand.
    Overridden(String),
}

/// What sshd may not read for its SELinux label. The text names file, label and remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LabelProblem {
    /// sshd cannot read it.
    Denied(String),
    /// sshd cannot read it until a command that is about this file corrects the label.
    DeniedUntilAttach(String),
    /// It could not, if SELinux enforced.
    DeniedIfEnforcing(String),
}

impl LabelProblem {
    fn from_label_verdict(verdict: LabelCheck) -> Option<Self> {
        match verdict {
            LabelCheck::Readable => None,
            LabelCheck::Tolerated(warning) => Some(Self::DeniedIfEnforcing(warning.message)),
            LabelCheck::Fixable(labels) => {
                labels.first().map(|label| Self::DeniedUntilAttach(label.describe_problem()))
            }
            LabelCheck::Unreadable(finding, _) => Some(Self::Denied(finding.message)),
        }
    }
}

/// What the running sshd said, for `check`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LiveProbe {
    /// Nothing: it was not asked.
    Skipped(String),
    /// One connection's answer.
    Probed {
        /// Where.
        address: SocketAddr,
        /// Whether it offers what its configuration says, and what it offers.
        methods: (proof::ProbeVerdict, Vec<String>),
        /// Whether it would accept the key; a key that it was not asked about is not taken.
        key: proof::ProbeVerdict,
    },
}

impl<G: Guest> Engine<G> {
    /// What the running sshd says of its present configuration, and of a key that is in place: one connection.
    pub fn probe_live_sshd(&self, sshd: &Sshd, account: &Account, key: Option<&PublicKey>) -> LiveProbe {
        let not_asked = |why: &str| LiveProbe::Skipped(why.to_owned());
        if !self.settings.proof {
            return not_asked("`proof = false` in the agent's configuration");
        }
        if !self.guest.has_ssh_client() {
            return not_asked("no ssh client is installed");
        }
        if !sshd.running {
            return not_asked("it does not run");
        }
        let first = sshd.answers.first().map(|answer| &answer.effective);
        let loopback =
            first.and_then(|first| list_loopback_connections(&account.name, first).into_iter().next());
        let Some((address, connection)) = loopback else {
            return not_asked("it listens neither on 127.0.0.1 nor on ::1");
        };
        let answers = match self.guest.query_effective_config(sshd, None, std::slice::from_ref(&connection)) {
            Ok(answers) => answers,
            Err(refusal) => return LiveProbe::Skipped(refusal.message),
        };
        let methods = answers.first().map(|answer| answer.effective.offered_methods()).unwrap_or_default();
        let forecast = ExpectedProbe { address, connection, methods, accepts_key: Some(true) };
        let said = self.guest.probe_sshd(sshd, address, &account.name, key);
        LiveProbe::Probed {
            address,
            methods: (
                forecast.check_methods(&said),
                said.clone().map(|seen| seen.methods).unwrap_or_default(),
            ),
            key: forecast.check_key(&said),
        }
    }

    /// The file that sshd reads for the account.
    ///
    /// # Errors
    /// `AUTHORIZED_KEYS_UNSUPPORTED`, `UNSAFE_PATH`, `IO_ERROR`.
    pub fn read_key_file(&self, sshd: &Sshd, account: &Account) -> Result<KeyFile, Refusal> {
        Ok(self.guest.read_key_file(account, &find_key_path(sshd, account)?)?)
    }

    /// What became of the user for whom the key pair was bound, if he is not what he was.
    pub fn describe_bound_user_change(&self, state: &State) -> Option<String> {
        let binding = state.binding.as_ref()?;
        let holder = self.find_holder(binding).ok()?;
        let (user, name) = (&binding.user, &binding.key_pair.key_name);
        let became = match holder.fate {
            UserStatus::Present => return None,
            UserStatus::Renamed => format!("is gone, and his uid is that of {} now", holder.account.name),
            UserStatus::Gone => "is gone".to_owned(),
        };
        Some(format!(
            "user {user}, for whom key pair {name} was bound, {became}: detach it, or attach it for another user"
        ))
    }

    /// Whether this is the file that the key pair was bound in, whatever path leads to it.
    pub fn is_bound_file(&self, binding: &Binding, file: &KeyFile) -> bool {
        let recorded = || {
            let holder = self.find_holder(binding).ok()?;
            self.guest.read_key_file_for_removal(&holder.account, &binding.path).ok()
        };
        binding.path == file.path || recorded().is_some_and(|recorded| recorded.id == file.id)
    }

    /// Where this user's keys are, and how many of them let him in that are not ours; `None` where there are none, or
    /// they cannot be read.
    pub fn count_foreign_keys(&self, user: &str) -> Option<(PathBuf, usize)> {
        let account = self.guest.lookup_account(user).ok()?;
        let path = self.guest.inspect_sshd(user).and_then(|sshd| find_key_path(&sshd, &account));
        let file = self.guest.read_key_file(&account, &path.unwrap_or(default_key_path(&account))).ok()?;
        let content = file.content?;
        let lines = authorized_keys::unmanaged_key_lines(&content, &[]);
        let count = authorized_keys::filter_admitting_lines(lines).count();
        (count > 0).then_some((file.path, count))
    }

    /// What of ours was changed by others since the last command. Nothing, where nothing was ever done.
    ///
    /// # Errors
    /// Why it cannot be told.
    pub fn detect_drift(&self, state: &State) -> Result<Vec<Drift>, Refusal> {
        let action = match (&state.binding, state.password_auth) {
            (Some(binding), Some(password_auth)) => {
                Action::Attach { key_pair: binding.key_pair.clone(), password_auth, replace: true }
            }
            (None, Some(password_auth)) => Action::SetPasswordAuth { password_auth },
            (_, None) => return Ok(Vec::new()),
        };
        let when = current_timestamp(&self.guest);
        let purpose = PlanRequest {
            action: &action,
            binding: state.binding.as_ref(),
            instance_id: self.settings.effective_instance_id(state).map(InstanceId::as_str),
            kbd_interactive: self.settings.kbd_interactive,
            proof: false,
            asks_for_yes: false,
            when: &when,
            command_id: "status",
            not_owned: None,
        };
        let facts = self.observe_sshd_user(&action, state.binding.as_ref())?;
        let draft = plan::draft_plan(&purpose, &facts)?;
        let mut drift: Vec<Drift> =
            draft.key_edits.iter().map(|edit| Drift::Changed(edit.path.clone())).collect();
        // Where sshd does what was set, that ours does not stand is no drift: it may not have been writable.
        let is_due = draft.ahead.is_some() && !(draft.already && draft.untouched);
        if let (Some(sshd), Some(asked), true) = (&facts.sshd, action.password_auth(), is_due) {
            // Where ours stands as it was written, it is somebody else's line that changed what holds.
            let overridden = plan::check_sshd_password_auth(
                asked,
                self.settings.kbd_interactive,
                &facts,
                sshd,
                &sshd.answers,
            )
            .err();
            drift.push(match (overridden, draft.sshd_edits.first()) {
                (Some(refusal), _) => Drift::Overridden(refusal.message),
                (None, Some(edit)) => Drift::Changed(edit.path.clone()),
                (None, None) => return Ok(drift),
            });
        }
        Ok(drift)
    }

    /// What SELinux keeps sshd from reading: the file of the bound key pair, or one of its configuration.
    ///
    /// # Errors
    /// Why it cannot be told.
    pub fn find_label_problems(&self, state: &State, sshd: &Sshd) -> Result<Vec<LabelProblem>, Refusal> {
        let (account, file) = match &state.binding {
            Some(binding) => (self.find_holder(binding)?.account, Some(binding.path.clone())),
            None => (self.guest.lookup_account(&self.settings.target_user)?, None),
        };
        let file = file.or_else(|| find_key_path(sshd, &account).ok());
        let labels = self.guest.selinux_labels(sshd, &account, file.as_slice());
        let key_file = file.map(|file| labels.check_key_file(&file, &|_| false));
        Ok(key_file
            .into_iter()
            .chain([labels.check_config_files()])
            .filter_map(LabelProblem::from_label_verdict)
            .collect())
    }

    /// The later global lines that say otherwise than ours: someone's change that we override.
    pub fn find_overridden_lines(&self, sshd: &Sshd) -> Vec<Directive> {
        managed_places(&sshd.config)
            .iter()
            .flat_map(|place| find_overridden_directives(&sshd.config, place))
            .collect()
    }
}
