//! The steps of a plan, in their order. With `no`: the key is put in place, passwords go off, sshd reloads. With
//! `yes`: passwords go on, sshd reloads, then the key is changed. A failed step is undone.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::guest::Guest;
use crate::guest::files::FileError;
use crate::policy::edit::{FileEdit, FileKind};
use crate::policy::lockout;
use crate::policy::observation::{Account, Connection, KeyFile, ReloadMethod, Sshd, SshdAnswer};
use crate::policy::outcome::{Reason, Refusal};
use crate::policy::plan::{
    Plan, PlanInputs, PlanRefusal, check_deferred_trial, check_sshd_password_auth,
    verify_written_config_labels, verify_written_key_file_label,
};
use crate::policy::proof::ProbePlan;
use crate::policy::selinux::{Enforcement, Relabel};
use crate::policy::sshd_config::KbdInteractive;
use crate::policy::types::PasswordAuth;

use super::observe::{PreparedPlan, read_selinux_labels};
use super::proof::ProbeSession;
use super::pulse;
use super::recovery::{RollbackError, SshdRestore, roll_back};
use super::state::Intent;

/// Why the steps did not finish. Everything is undone, except in the case of [`StepError::RollbackFailed`].
#[derive(Debug)]
pub(super) enum StepError {
    /// A file changed between the observation and the write.
    FileChanged(FileError),
    /// A step failed.
    Failed(Refusal),
    /// sshd already does what the command requests, but the agent's own setting, which would keep it so, cannot be
    /// written.
    NotOwned(Refusal),
    /// The daemon must stop.
    Stopped,
    /// A step failed, and so did the undo. The part of the intent that is not undone stays open.
    RollbackFailed {
        /// The causes of both failures.
        refusal: Refusal,
        /// The part of the intent that must still be undone.
        rest: Box<Intent>,
    },
}

impl fmt::Display for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FileChanged(error) => error.fmt(f),
            Self::Failed(refusal) | Self::NotOwned(refusal) | Self::RollbackFailed { refusal, .. } => {
                f.write_str(&refusal.message)
            }
            Self::Stopped => f.write_str("the agent is stopping"),
        }
    }
}

/// How far the steps came: only those edits may have had an effect. Without this count, lines that another person
/// removed meanwhile would count as removed by the command, and the undo would put them back.
#[derive(Debug, Default)]
struct Progress {
    key_files: usize,
    sshd_files: usize,
    reload: bool,
}

impl Progress {
    /// Returns the part of the intent that may have had an effect.
    fn truncate_intent(&self, intent: &Intent) -> Intent {
        let mut part = intent.clone();
        part.key_files.truncate(self.key_files);
        part.sshd_files.truncate(self.sshd_files);
        part
    }
}

/// Carries the plan out. The caller has saved the intent to disk before.
pub(super) fn execute_plan(
    guest: &mut impl Guest,
    prepared: &PreparedPlan,
    intent: &Intent,
    kbd_interactive: KbdInteractive,
    asked: &mut ProbeSession,
    stop: &AtomicBool,
) -> Result<Vec<SshdAnswer>, StepError> {
    let mut begun = Progress::default();
    execute_steps(guest, prepared, kbd_interactive, asked, stop, &mut begun).map_err(|halt| {
        let facts = &prepared.facts;
        let settle = match &facts.sshd {
            // An sshd that was started meanwhile may have read the files that are now undone.
            Some(Sshd { reload: ReloadMethod::None(_), .. }) => SshdRestore::Reload,
            Some(sshd) if begun.reload => SshdRestore::RestartIfDead(sshd),
            _ => SshdRestore::NotNeeded,
        };
        match roll_back(guest, &begun.truncate_intent(intent), &facts.account.name, settle) {
            Ok(owed) if owed.is_empty() => halt,
            Ok(owed) => {
                let rest = Intent { key_files: owed, sshd_files: Vec::new(), ..intent.clone() };
                let text = format!("{halt}; and the volume of the key file is not mounted any more");
                StepError::RollbackFailed {
                    refusal: Refusal::new(Reason::IoError, text),
                    rest: Box::new(rest),
                }
            }
            Err(RollbackError { refusal, rest }) => StepError::RollbackFailed {
                refusal: Refusal::new(
                    refusal.reason,
                    format!("{halt}; and it could not be taken back: {}", refusal.message),
                ),
                rest,
            },
        }
    })
}

fn execute_steps(
    guest: &mut impl Guest,
    prepared: &PreparedPlan,
    kbd_interactive: KbdInteractive,
    asked: &mut ProbeSession,
    stop: &AtomicBool,
    begun: &mut Progress,
) -> Result<Vec<SshdAnswer>, StepError> {
    let PreparedPlan { plan, facts } = prepared;
    let go_on = || if stop.load(Ordering::Relaxed) { Err(StepError::Stopped) } else { Ok(()) };
    let Some(sshd) = &facts.sshd else {
        write_key_files(guest, plan, &go_on, begun)?;
        return Ok(plan.answers.clone());
    };
    if plan.expect.is_some() {
        check_sshd_files_unchanged(guest, sshd, &[])?;
    }
    // With `yes`, passwords are back on before a usable key is removed. With `no`, the key works before passwords go
    // off.
    if !plan.enables_passwords() {
        write_key_files(guest, plan, &go_on, begun)?;
        label_key_file(guest, prepared, &go_on)?;
        if let Some(question) = &plan.deferred_trial {
            go_on()?;
            let answers = guest.run_trial(sshd, question);
            let judged = check_deferred_trial(facts, sshd, question, &answers);
            asked.trial = Some(judged.map_err(|PlanRefusal { refusal, trial }| {
                asked.trial = trial.map(|report| *report);
                StepError::Failed(refusal)
            })?);
        }
    }
    let LiveAnswers { answers, loopback } = match &plan.reload {
        Some(_) => apply_sshd_config(guest, prepared, sshd, kbd_interactive, &go_on, begun)?,
        None => {
            label_config(guest, prepared, &go_on)?;
            LiveAnswers { answers: plan.answers.clone(), loopback: None }
        }
    };
    if plan.enables_passwords() {
        if plan.unread {
            reload_sshd(guest, sshd, &go_on, begun)?;
        }
        write_key_files(guest, plan, &go_on, begun)?;
        label_key_file(guest, prepared, &go_on)?;
    }
    let mut is_as_expected = false;
    if let Some(proof) = &build_proof_plan(plan) {
        go_on()?;
        pulse::begin_step("asking the running sshd");
        let said = asked.probe_running_sshd(guest, proof, sshd, loopback.as_ref(), &mut begun.reload);
        if said.is_err() {
            check_sshd_files_unchanged(guest, sshd, &plan.sshd_edits)?;
        }
        is_as_expected = said.map_err(StepError::Failed)?;
    }
    if plan.unread && !begun.reload && !is_as_expected {
        reload_sshd(guest, sshd, &go_on, begun)?;
    }
    Ok(answers)
}

/// Reloads sshd alone: no file changes, but sshd may not have read its files.
fn reload_sshd(
    guest: &mut impl Guest,
    sshd: &Sshd,
    go_on: &impl Fn() -> Result<(), StepError>,
    begun: &mut Progress,
) -> Result<(), StepError> {
    guest.check_reload_safe(sshd).map_err(StepError::Failed)?;
    go_on()?;
    begun.reload = true;
    pulse::begin_step("telling sshd to read its files");
    guest.reload_sshd(sshd).map_err(StepError::Failed)
}

/// The proof that the running sshd must give. If a private sshd accepted the key in its place, the running one must
/// accept it too. This holds only if the answer does not depend on the client's address.
fn build_proof_plan(plan: &Plan) -> Option<ProbePlan> {
    let mut proof = plan.proof.clone()?;
    let is_known = plan.deferred_trial.as_ref().is_some_and(|question| !question.needs_addresses);
    if let Some(forecast) = proof.forecast.as_mut().filter(|_| is_known) {
        forecast.accepts_key = Some(true);
    }
    Some(proof)
}

/// Writes the key files, in the plan's order.
fn write_key_files(
    guest: &mut impl Guest,
    plan: &Plan,
    go_on: &impl Fn() -> Result<(), StepError>,
    begun: &mut Progress,
) -> Result<(), StepError> {
    for edit in &plan.key_edits {
        go_on()?;
        write_edit(guest, edit, &mut begun.key_files)?;
    }
    Ok(())
}

/// Sets the SELinux labels on the path of the key file. Before passwords go off, it verifies that sshd may read the
/// file: nobody has checked the label of a new file yet. A corrected label stays, whatever the command's result, as
/// after restorecon(8).
fn label_key_file(
    guest: &mut impl Guest,
    PreparedPlan { plan, facts }: &PreparedPlan,
    go_on: &impl Fn() -> Result<(), StepError>,
) -> Result<(), StepError> {
    let Account { name, uid, .. } = &facts.account;
    let kind = FileKind::AuthorizedKeys { user: name.clone(), uid: Some(*uid), known: Vec::new() };
    set_labels(guest, &kind, &plan.key_labels, go_on)?;
    let file = plan.decisive_key_file.as_ref().filter(|_| plan.expect == Some(PasswordAuth::No));
    match file.filter(|_| facts.labels.enforcement == Enforcement::Enforcing) {
        Some(file) => {
            verify_written_key_file_label(&read_selinux_labels(guest, facts), file).map_err(StepError::Failed)
        }
        None => Ok(()),
    }
}

/// Does the same for sshd's configuration, before the reload.
fn label_config(
    guest: &mut impl Guest,
    PreparedPlan { plan, facts }: &PreparedPlan,
    go_on: &impl Fn() -> Result<(), StepError>,
) -> Result<(), StepError> {
    set_labels(guest, &FileKind::SshdConfig, &plan.sshd_labels, go_on)?;
    if facts.labels.enforcement != Enforcement::Enforcing || plan.sshd_edits.is_empty() {
        return Ok(());
    }
    verify_written_config_labels(&read_selinux_labels(guest, facts)).map_err(StepError::Failed)
}

fn set_labels(
    guest: &mut impl Guest,
    kind: &FileKind,
    labels: &[Relabel],
    go_on: &impl Fn() -> Result<(), StepError>,
) -> Result<(), StepError> {
    for relabel in labels {
        go_on()?;
        guest.relabel(kind, relabel).map_err(to_step_error)?;
    }
    Ok(())
}

/// The answers of sshd about its live files.
struct LiveAnswers {
    /// For the connections that must get the requested setting.
    answers: Vec<SshdAnswer>,
    /// For the connection that the proof uses.
    loopback: Option<SshdAnswer>,
}

/// Writes sshd's files, then reloads sshd.
fn apply_sshd_config(
    guest: &mut impl Guest,
    prepared @ PreparedPlan { plan, facts }: &PreparedPlan,
    sshd: &Sshd,
    kbd_interactive: KbdInteractive,
    go_on: &impl Fn() -> Result<(), StepError>,
    begun: &mut Progress,
) -> Result<LiveAnswers, StepError> {
    check_key_file_unchanged(guest, plan, facts)?;
    let not_owned = |halt| match halt {
        StepError::Failed(refusal) if plan.already => StepError::NotOwned(refusal),
        other => other,
    };
    for edit in &plan.sshd_edits {
        go_on()?;
        write_edit(guest, edit, &mut begun.sshd_files).map_err(not_owned)?;
    }
    label_config(guest, prepared, go_on)?;
    go_on()?;
    let must = plan.answers.iter().map(|answer| &answer.connection);
    let loopback = plan.proof.iter().filter_map(|proof| Some(&proof.forecast.as_ref()?.connection));
    let connections: Vec<Connection> = must.chain(loopback).cloned().collect();
    let answers = guest.query_effective_config(sshd, None, &connections);
    // If another person changed the files meanwhile, sshd's answer is not a verdict on the agent's edits.
    check_sshd_files_unchanged(guest, sshd, &plan.sshd_edits)?;
    let mut answers = answers.map_err(StepError::Failed)?;
    let loopback = answers.split_off(plan.answers.len().min(answers.len())).into_iter().next();
    check_guard_answers_unchanged(plan, sshd, &answers)?;
    if let Some(asked) = plan.expect {
        check_sshd_password_auth(asked, kbd_interactive, facts, sshd, &answers).map_err(StepError::Failed)?;
    }
    guest.check_reload_safe(sshd).map_err(StepError::Failed).map_err(not_owned)?;
    go_on()?;
    begun.reload = true;
    pulse::begin_step("telling sshd to read its files");
    guest.reload_sshd(sshd).map_err(StepError::Failed)?;
    Ok(LiveAnswers { answers, loopback })
}

/// sshd's files are as observed, apart from what this command `wrote`. A file that was added beside them counts too.
fn check_sshd_files_unchanged(guest: &impl Guest, sshd: &Sshd, wrote: &[FileEdit]) -> Result<(), StepError> {
    let now = guest.reread_sshd_config_files(sshd).map_err(StepError::Failed)?;
    match sshd.config.with_edits(wrote).first_difference(&now) {
        Some(path) => Err(StepError::FileChanged(FileError::Changed { path: path.to_owned() })),
        None => Ok(()),
    }
}

/// Before passwords go off: the key file that satisfied the guard must be unchanged, or be as this command wrote it.
fn check_key_file_unchanged(guest: &impl Guest, plan: &Plan, facts: &PlanInputs) -> Result<(), StepError> {
    if plan.expect != Some(PasswordAuth::No) {
        return Ok(());
    }
    let Some(KeyFile { path, content, .. }) = &facts.key_file else { return Ok(()) };
    let written = plan.key_edits.iter().find(|edit| edit.path == *path).map(|edit| &edit.after);
    let now = guest.read_key_file(&facts.account, path).map_err(|error| StepError::Failed(error.into()))?;
    if now.content != *written.unwrap_or(content) {
        return Err(StepError::FileChanged(FileError::Changed { path: path.clone() }));
    }
    Ok(())
}

/// Before the reload: sshd's answers about the new files must be the same as those that satisfied the guard.
fn check_guard_answers_unchanged(plan: &Plan, sshd: &Sshd, live: &[SshdAnswer]) -> Result<(), StepError> {
    let is_same = plan
        .answers
        .iter()
        .zip(live)
        .all(|(then, now)| lockout::is_same_except_passwords(&then.effective, &now.effective));
    if plan.expect == Some(PasswordAuth::No) && !is_same {
        return Err(StepError::FileChanged(FileError::Changed { path: sshd.config.main.clone() }));
    }
    Ok(())
}

/// Writes one edit, if the file is still as it was when the edit was planned.
fn write_edit(guest: &mut impl Guest, edit: &FileEdit, begun: &mut usize) -> Result<(), StepError> {
    pulse::begin_step("writing a file");
    let done = apply_edit(guest, edit);
    // A file that was refused was not touched, so there is nothing to undo.
    let is_refused = edit.kind == FileKind::SshdConfig && matches!(done, Err(FileError::Unsafe { .. }));
    if !is_refused && !matches!(done, Err(FileError::Changed { .. })) {
        *begun += 1;
    }
    done.map_err(to_step_error)
}

fn to_step_error(error: FileError) -> StepError {
    match error {
        changed @ FileError::Changed { .. } => StepError::FileChanged(changed),
        other => StepError::Failed(Refusal::from(other)),
    }
}

/// The error for a file that changed twice during one command.
pub(super) fn changed_twice_refusal(error: &FileError) -> Refusal {
    Refusal::new(
        Reason::IoError,
        format!("{error}; it changed twice while the command was carried out: try again"),
    )
}

/// Makes one edit.
///
/// # Errors
/// The guest's error; [`FileError::Changed`] if the file is not as it was when the edit was planned.
pub(super) fn apply_edit(guest: &mut impl Guest, edit: &FileEdit) -> Result<(), FileError> {
    let expected = edit.to_intent().hash_before;
    match (&edit.after, &expected) {
        (Some(after), expected) => guest.write(&edit.kind, &edit.path, expected.as_ref(), after),
        (None, Some(expected)) => guest.remove(&edit.kind, &edit.path, expected, None),
        (None, None) => Ok(()),
    }
}
