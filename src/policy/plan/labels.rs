//! SELinux labels in a plan: what is set, and what keeps a command from being carried out (KP-5.14).

use std::path::{Path, PathBuf};

use super::super::authorized_keys::unmanaged_key_lines;
use super::super::command::Action;
use super::super::observation::KeyFile;
use super::super::outcome::{Reason, Refusal, TrialReport, Warning};
use super::super::selinux::{LabelCheck, LabelledKind, Labels, Relabel};
use super::super::trial::PlannedKeyFile;
use super::super::types::PasswordAuth;
use super::{DraftPlan, PlanInputs, PlanRequest};

/// What a plan does about labels.
#[derive(Debug, Default)]
pub(super) struct PlannedLabels {
    /// Those on the way to the key file.
    pub(super) key_files: Vec<Relabel>,
    /// Those of sshd's files.
    pub(super) config: Vec<Relabel>,
    /// The file by which the user gets in; `None` where that matters to nothing.
    pub(super) decisive: Option<PathBuf>,
    /// What the owner should know.
    pub(super) warnings: Vec<Warning>,
}

impl DraftPlan {
    /// The labels that have to be set. That of the key file refuses nothing here: whether the key lets in was judged.
    ///
    /// # Errors
    /// `PASSWORD_AUTH_NOT_EFFECTIVE` and `SSHD_RELOAD_UNSAFE`: sshd may not read its configuration.
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

/// What it means where sshd may not read its configuration: an Include whose directory it may not list leads nowhere,
/// and a file that it may not read ends it.
fn unreadable_config_reason(kind: LabelledKind) -> Reason {
    match kind {
        LabelledKind::Directory | LabelledKind::Link => Reason::PasswordAuthNotEffective,
        LabelledKind::File => Reason::SshdReloadUnsafe,
    }
}

/// The file by which the user gets in: the one that the key goes into, else the one at which a private sshd found a key.
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

/// Whether sshd may read a key file, as the files will be.
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

/// Behind the writes of a command that forbids passwords: whether sshd may read the file by which the user gets in.
/// `labels` are those of now.
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

/// The same of sshd's configuration.
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

/// What is said where a label is wrong although it was just set.
fn wrong_label_message(labels: &[Relabel]) -> String {
    labels.first().map(Relabel::describe_problem).unwrap_or_default()
}
