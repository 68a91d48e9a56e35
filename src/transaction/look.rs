//! Inspects the guest without a lock and without a change: what the agent's lines are now, and what others changed
//! (KP-8.5 and KP-8.6).

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

/// A difference between the guest now and what the last command wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Drift {
    /// Another person or program changed or removed this file of the agent, or the agent's block in it.
    Changed(PathBuf),
    /// sshd does not follow the setting, although the agent's lines are in place.
    Overridden(String),
}

/// A file that sshd may not read because of its SELinux label. The text names file, label and remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LabelProblem {
    /// sshd cannot read the file.
    Denied(String),
    /// sshd cannot read the file until a command for this file corrects the label.
    DeniedUntilAttach(String),
    /// sshd could not read the file if SELinux were enforcing.
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

/// The answer of the running sshd, for `check`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LiveProbe {
    /// sshd was not queried. The text says why.
    Skipped(String),
    /// The answer over one connection.
    Probed {
        /// The address of the connection.
        address: SocketAddr,
        /// Whether sshd offers the methods of its configuration, and which methods it offers.
        methods: (proof::ProbeVerdict, Vec<String>),
        /// Whether sshd would accept the key. If no key was sent, the verdict is "not taken".
        key: proof::ProbeVerdict,
    },
}

impl<G: Guest> Engine<G> {
    /// Queries the running sshd about its current configuration and about a key that is in place, in one connection.
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

    /// The key file that sshd reads for the account.
    ///
    /// # Errors
    /// `AUTHORIZED_KEYS_UNSUPPORTED`, `UNSAFE_PATH`, `IO_ERROR`.
    pub fn read_key_file(&self, sshd: &Sshd, account: &Account) -> Result<KeyFile, Refusal> {
        Ok(self.guest.read_key_file(account, &find_key_path(sshd, account)?)?)
    }

    /// A text that says what happened to the user for whom the key pair was bound, if the account changed.
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

    /// Whether this is the file in which the key pair was bound, even if another path leads to it.
    pub fn is_bound_file(&self, binding: &Binding, file: &KeyFile) -> bool {
        let recorded = || {
            let holder = self.find_holder(binding).ok()?;
            self.guest.read_key_file_for_removal(&holder.account, &binding.path).ok()
        };
        binding.path == file.path || recorded().is_some_and(|recorded| recorded.id == file.id)
    }

    /// The path of this user's key file, and how many usable keys in it are not the agent's. `None` if there are
    /// none, or the file cannot be read.
    pub fn count_foreign_keys(&self, user: &str) -> Option<(PathBuf, usize)> {
        let account = self.guest.lookup_account(user).ok()?;
        let path = self.guest.inspect_sshd(user).and_then(|sshd| find_key_path(&sshd, &account));
        let file = self.guest.read_key_file(&account, &path.unwrap_or(default_key_path(&account))).ok()?;
        let content = file.content?;
        let lines = authorized_keys::unmanaged_key_lines(&content, &[]);
        let count = authorized_keys::filter_admitting_lines(lines).count();
        (count > 0).then_some((file.path, count))
    }

    /// What others changed in the agent's lines since the last command. Empty if no command was ever carried out.
    ///
    /// # Errors
    /// Why this cannot be determined.
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
        // If sshd already follows the setting, missing lines of the agent are not drift: they may not have been
        // writable.
        let is_due = draft.ahead.is_some() && !(draft.already && draft.untouched);
        if let (Some(sshd), Some(asked), true) = (&facts.sshd, action.password_auth(), is_due) {
            // If the agent's lines are as written, a line of another person changed the effective setting.
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

    /// The files that SELinux keeps sshd from reading: the bound key file, or a file of sshd's configuration.
    ///
    /// # Errors
    /// Why this cannot be determined.
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

    /// Later global lines with another value than the agent's lines. Another person wrote them, and the agent
    /// overrides them.
    pub fn find_overridden_lines(&self, sshd: &Sshd) -> Vec<Directive> {
        managed_places(&sshd.config)
            .iter()
            .flat_map(|place| find_overridden_directives(&sshd.config, place))
            .collect()
    }
}
