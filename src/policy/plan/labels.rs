//! SELinux labels in a plan: what is set, and what keeps a command from being carried out (KP-5.14).

use std::path::{Path, PathBuf};

use super::super::authorized_keys::lines_without_ours;
use super::super::command::Action;
use super::super::observation::KeyFile;
use super::super::outcome::{Reason, Refusal, TrialReport, Warning};
use super::super::selinux::{Labels, PlaceKind, Relabel, Verdict};
use super::super::trial::PlannedKeyFile;
use super::super::types::PasswordAuth;
use super::{Draft, Facts, Purpose};

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

impl Draft {
    /// The labels that have to be set. That of the key file refuses nothing here: whether the key lets in was judged.
    ///
    /// # Errors
    /// `PASSWORD_AUTH_NOT_EFFECTIVE` and `SSHD_RELOAD_UNSAFE`: sshd may not read its configuration.
    pub(super) fn judge_labels(
        &self,
        purpose: &Purpose<'_>,
        facts: &Facts,
        trial: Option<&TrialReport>,
    ) -> Result<PlannedLabels, Refusal> {
        let mut planned = PlannedLabels::default();
        if purpose.action.password_auth().is_none() {
            return Ok(planned);
        }
        match facts.labels.judge_config() {
            Verdict::Readable => {}
            Verdict::Tolerated(warning) => planned.warnings.push(warning),
            Verdict::Curable(labels) => planned.config = labels,
            Verdict::Unreadable(finding, kind) => {
                return Err(Refusal::new(unread(kind), finding.message));
            }
        }
        planned.decisive = decisive_file(purpose.action, facts.key_file.as_ref(), trial);
        if let Some(file) = &planned.decisive {
            match judge_key_file(facts, &self.planned_key_files(), file) {
                Verdict::Readable | Verdict::Unreadable(..) => {}
                Verdict::Tolerated(warning) => planned.warnings.push(warning),
                Verdict::Curable(labels) => planned.key_files = labels,
            }
        }
        Ok(planned)
    }
}

/// What it means where sshd may not read its configuration: an Include whose directory it may not list leads nowhere,
/// and a file that it may not read ends it.
fn unread(kind: PlaceKind) -> Reason {
    match kind {
        PlaceKind::Directory | PlaceKind::Link => Reason::PasswordAuthNotEffective,
        PlaceKind::File => Reason::SshdReloadUnsafe,
    }
}

/// The file by which the user gets in: the one that the key goes into, else the one at which a private sshd found a key.
fn decisive_file(action: &Action, own: Option<&KeyFile>, trial: Option<&TrialReport>) -> Option<PathBuf> {
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
pub(super) fn judge_key_file(facts: &Facts, planned: &[PlannedKeyFile], file: &Path) -> Verdict {
    let holds_others = |path: &Path| {
        let planned = planned.iter().find(|planned| planned.path == path).map(|planned| &planned.content);
        let present =
            || facts.key_files.iter().find(|(present, _)| present == path).map(|(_, content)| content);
        let content = planned.or_else(present);
        content.is_some_and(|content| lines_without_ours(content, &[]).next().is_some())
    };
    facts.labels.judge_key_file(file, &holds_others)
}

/// Behind the writes of a command that forbids passwords: whether sshd may read the file by which the user gets in.
/// `labels` are those of now.
///
/// # Errors
/// `LOCKOUT_GUARD`.
pub fn judge_written_key_file(labels: &Labels, file: &Path) -> Result<(), Refusal> {
    let message = match labels.judge_key_file(file, &|_| false) {
        Verdict::Readable | Verdict::Tolerated(_) => return Ok(()),
        Verdict::Curable(still) => still_wrong(&still),
        Verdict::Unreadable(finding, _) => finding.message,
    };
    Err(Refusal::new(Reason::LockoutGuard, message))
}

/// The same of sshd's configuration.
///
/// # Errors
/// `PASSWORD_AUTH_NOT_EFFECTIVE` and `SSHD_RELOAD_UNSAFE`.
pub fn judge_written_config(labels: &Labels) -> Result<(), Refusal> {
    match labels.judge_config() {
        Verdict::Readable | Verdict::Tolerated(_) => Ok(()),
        Verdict::Curable(still) => Err(Refusal::new(unread(PlaceKind::File), still_wrong(&still))),
        Verdict::Unreadable(finding, kind) => Err(Refusal::new(unread(kind), finding.message)),
    }
}

/// What is said where a label is wrong although it was just set.
fn still_wrong(labels: &[Relabel]) -> String {
    labels.first().map(Relabel::wrong).unwrap_or_default()
}
