//! SELinux labels in a plan: the labels to set, and the labels that make the agent refuse a command (KP-5.14).

use std::path::{Path, PathBuf};

use super::super::authorized_keys::unmanaged_key_lines;
use super::super::command::Action;
use super::super::observation::KeyFile;
use super::super::outcome::{Reason, Refusal, TrialReport, Warning};
use super::super::selinux::{LabelCheck, LabelledKind, Labels, Relabel};
use super::super::trial::PlannedKeyFile;
use super::super::types::PasswordAuth;
use super::{DraftPlan, PlanInputs, PlanRequest};

/// The labels that a plan sets or depends on.
#[derive(Debug, Default)]
pub(super) struct PlannedLabels {
    /// The labels to set on the key file and on the path to it.
    pub(super) key_files: Vec<Relabel>,
    /// The labels to set on sshd's files.
    pub(super) config: Vec<Relabel>,
    /// The key file through which the user logs in. `None` if no step depends on it.
    pub(super) decisive: Option<PathBuf>,
    /// Warnings for the owner.
    pub(super) warnings: Vec<Warning>,
}

impl DraftPlan {
    /// Returns the labels that the agent must set. A wrong label of the key file does not refuse the command here,
    /// because another check has decided whether the key lets the user in.
    ///
    /// # Errors
    /// `PASSWORD_AUTH_NOT_EFFECTIVE` and `SSHD_RELOAD_UNSAFE`, if SELinux forbids sshd to read its configuration.
    pub(super) fn plan_labels(
        &self,
        purpose: &PlanRequest<'_>,
        facts: &PlanInputs,
        trial: Option<&TrialReport>,
    ) -> Result<PlannedLabels, Refusal> {
        let mut planned = PlannedLabels::default();
        if purpose.action.password_auth().is_none() {
            return Ok(planned);
        }
        match facts.labels.check_config_files() {
            LabelCheck::Readable => {}
            LabelCheck::Tolerated(warning) => planned.warnings.push(warning),
            LabelCheck::Fixable(labels) => planned.config = labels,
            LabelCheck::Unreadable(finding, kind) => {
                return Err(Refusal::new(unreadable_config_reason(kind), finding.message));
            }
        }
        planned.decisive = select_login_key_file(purpose.action, facts.key_file.as_ref(), trial);
        if let Some(file) = &planned.decisive {
            match check_key_file_label(facts, &self.planned_key_files(), file) {
                LabelCheck::Readable | LabelCheck::Unreadable(..) => {}
                LabelCheck::Tolerated(warning) => planned.warnings.push(warning),
                LabelCheck::Fixable(labels) => planned.key_files = labels,
            }
        }
        Ok(planned)
    }
}

/// Returns the reason for a configuration that sshd may not read. If sshd may not list the directory of an Include, it
/// skips that Include. If sshd may not read a file, it stops.
fn unreadable_config_reason(kind: LabelledKind) -> Reason {
    match kind {
        LabelledKind::Directory | LabelledKind::Link => Reason::PasswordAuthNotEffective,
        LabelledKind::File => Reason::SshdReloadUnsafe,
    }
}

/// Returns the key file through which the user logs in. This is the file that receives the key, or the file in which a
/// private sshd found a key.
fn select_login_key_file(
    action: &Action,
    own: Option<&KeyFile>,
    trial: Option<&TrialReport>,
) -> Option<PathBuf> {
    let own = own.map(|own| own.path.clone());
    match action {
        Action::Attach { .. } => own,
        Action::SetPasswordAuth { password_auth: PasswordAuth::No } => {
            trial.and_then(|trial| trial.file.as_ref()).map(PathBuf::from).or(own)
        }
        Action::SetPasswordAuth { password_auth: PasswordAuth::Yes } | Action::Detach { .. } => None,
    }
}

/// Checks whether SELinux lets sshd read a key file, with the planned content of the files.
pub(super) fn check_key_file_label(
    facts: &PlanInputs,
    planned: &[PlannedKeyFile],
    file: &Path,
) -> LabelCheck {
    let holds_others = |path: &Path| {
        let planned = planned.iter().find(|planned| planned.path == path).map(|planned| &planned.content);
        let present =
            || facts.key_files.iter().find(|(present, _)| present == path).map(|(_, content)| content);
        let content = planned.or_else(present);
        content.is_some_and(|content| unmanaged_key_lines(content, &[]).next().is_some())
    };
    facts.labels.check_key_file(file, &holds_others)
}

/// Checks that sshd may read the key file through which the user logs in. It runs after the writes of a command that
/// forbids passwords. `labels` are the labels after these writes.
///
/// # Errors
/// `LOCKOUT_GUARD`.
pub fn verify_written_key_file_label(labels: &Labels, file: &Path) -> Result<(), Refusal> {
    let message = match labels.check_key_file(file, &|_| false) {
        LabelCheck::Readable | LabelCheck::Tolerated(_) => return Ok(()),
        LabelCheck::Fixable(still) => wrong_label_message(&still),
        LabelCheck::Unreadable(finding, _) => finding.message,
    };
    Err(Refusal::new(Reason::LockoutGuard, message))
}

/// Checks the same for sshd's configuration.
///
/// # Errors
/// `PASSWORD_AUTH_NOT_EFFECTIVE` and `SSHD_RELOAD_UNSAFE`.
pub fn verify_written_config_labels(labels: &Labels) -> Result<(), Refusal> {
    match labels.check_config_files() {
        LabelCheck::Readable | LabelCheck::Tolerated(_) => Ok(()),
        LabelCheck::Fixable(still) => {
            Err(Refusal::new(unreadable_config_reason(LabelledKind::File), wrong_label_message(&still)))
        }
        LabelCheck::Unreadable(finding, kind) => {
            Err(Refusal::new(unreadable_config_reason(kind), finding.message))
        }
    }
}

/// Returns the message for a label that is wrong although the agent has just set it.
fn wrong_label_message(labels: &[Relabel]) -> String {
    labels.first().map(Relabel::describe_problem).unwrap_or_default()
}
