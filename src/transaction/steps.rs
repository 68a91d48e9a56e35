//! The steps of a plan, in their order: key in place, then passwords off, then live; with `yes`, passwords on and live,
//! then the key. What fails is undone.

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

/// Why the steps did not come to their end. Everything is undone, but for [`StepError::RollbackFailed`].
#[derive(Debug)]
pub(super) enum StepError {
    /// Somebody changed a file between the look and the write.
    FileChanged(FileError),
    /// A step failed.
    Failed(Refusal),
    /// sshd does what is asked, and our own setting, which would keep it so, cannot be written.
    NotOwned(Refusal),
    /// The daemon is to stop.
    Stopped,
    /// A step failed, and so did the undo: what of the intent is not taken back stays open.
    RollbackFailed {
        /// Why, both.
        refusal: Refusal,
        /// What is still to be taken back.
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

/// How far the steps came: what may have had an effect. Else what somebody else took out of a file meanwhile would be
/// taken for our doing, and put back.
#[derive(Debug, Default)]
struct Progress {
    key_files: usize,
    sshd_files: usize,
    reload: bool,
}

impl Progress {
    /// That part of the intent.
    fn truncate_intent(&self, intent: &Intent) -> Intent {
        let mut part = intent.clone();
        part.key_files.truncate(self.key_files);
        part.sshd_files.truncate(self.sshd_files);
        part
    }
}

/// Carries the plan out. The intent is on disk before.
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
            // One that was started meanwhile may have read what is taken back.
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
    // Passwords are back before a key that lets in is taken away; the key lets in before passwords go.
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

/// sshd alone: it may not have read its files, none of which changes.
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

/// What the running sshd is asked. A key that a private one has accepted once it was in place it has to accept, too, where
/// nothing depends on the source of the question.
fn build_proof_plan(plan: &Plan) -> Option<ProbePlan> {
    let mut proof = plan.proof.clone()?;
    let is_known = plan.deferred_trial.as_ref().is_some_and(|question| !question.needs_addresses);
    if let Some(forecast) = proof.forecast.as_mut().filter(|_| is_known) {
        forecast.accepts_key = Some(true);
    }
    Some(proof)
}

/// The key files, in the plan's order.
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

/// The labels on the way to the key file. Before passwords go off, sshd may read it: what was just written has a label that
/// nobody saw before. A label that was set stays whatever becomes of the command, as after restorecon(8).
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

/// The same of sshd's configuration, before it is told.
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

/// What sshd says of its live files.
struct LiveAnswers {
    /// For those who must get what was asked.
    answers: Vec<SshdAnswer>,
    /// For the connection that asks for the proof.
    loopback: Option<SshdAnswer>,
}

/// sshd's files, then sshd.
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
    // What sshd says of files that somebody changed meanwhile is no verdict on ours.
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

/// sshd's files are what was observed, and what this command `wrote`. A file that somebody put beside them counts, too.
fn check_sshd_files_unchanged(guest: &impl Guest, sshd: &Sshd, wrote: &[FileEdit]) -> Result<(), StepError> {
    let now = guest.reread_sshd_config_files(sshd).map_err(StepError::Failed)?;
    match sshd.config.with_edits(wrote).first_difference(&now) {
        Some(path) => Err(StepError::FileChanged(FileError::Changed { path: path.to_owned() })),
        None => Ok(()),
    }
}

/// Before passwords go off: the file by whose keys the guard let that pass still is what it was, or what this command made
/// of it.
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

/// Before the files are live: they say to the guard what they said when it let this pass.
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

/// Writes one edit, if the file still is what it was planned on.
fn write_edit(guest: &mut impl Guest, edit: &FileEdit, begun: &mut usize) -> Result<(), StepError> {
    pulse::begin_step("writing a file");
    let done = apply_edit(guest, edit);
    // A place that is refused was not touched: nothing there is to be taken back.
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

/// What a file that changed twice under our hands is reported as.
pub(super) fn changed_twice_refusal(error: &FileError) -> Refusal {
    Refusal::new(
        Reason::IoError,
        format!("{error}; it changed twice while the command was carried out: try again"),
    )
}

/// Makes one edit.
///
/// # Errors
/// What the guest says; [`FileError::Changed`] where the file is not what the edit was planned on.
pub(super) fn apply_edit(guest: &mut impl Guest, edit: &FileEdit) -> Result<(), FileError> {
    let expected = edit.to_intent().hash_before;
    match (&edit.after, &expected) {
        (Some(after), expected) => guest.write(&edit.kind, &edit.path, expected.as_ref(), after),
        (None, Some(expected)) => guest.remove(&edit.kind, &edit.path, expected, None),
        (None, None) => Ok(()),
    }
}
