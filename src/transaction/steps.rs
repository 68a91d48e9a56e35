//! The steps of a plan, in their order: key in place, then passwords off, then live; with `yes`, passwords on and live,
//! then the key. What fails is undone.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::guest::Guest;
use crate::guest::files::FileError;
use crate::policy::edit::{FileEdit, FileKind};
use crate::policy::lockout;
use crate::policy::observation::{Account, Answer, Connection, KeyFile, Reload, Sshd};
use crate::policy::outcome::{Reason, Refusal};
use crate::policy::plan::{
    Facts, Plan, PlanRefusal, judge_deferred, judge_setting, judge_written_config, judge_written_key_file,
};
use crate::policy::proof::ProofPlan;
use crate::policy::selinux::{Enforcement, Relabel};
use crate::policy::sshd_config::KbdInteractive;
use crate::policy::types::PasswordAuth;

use super::observe::{Prepared, labels};
use super::proof::Asked;
use super::pulse;
use super::recovery::{NotUndone, Settle, undo};
use super::state::Intent;

/// Why the steps did not come to their end. Everything is undone, but for [`Halt::Stuck`].
#[derive(Debug)]
pub(super) enum Halt {
    /// Somebody changed a file between the look and the write.
    Changed(FileError),
    /// A step failed.
    Failed(Refusal),
    /// sshd does what is asked, and our own setting, which would keep it so, cannot be written.
    NotOwned(Refusal),
    /// The daemon is to stop.
    Stopped,
    /// A step failed, and so did the undo: what of the intent is not taken back stays open.
    Stuck {
        /// Why, both.
        refusal: Refusal,
        /// What is still to be taken back.
        rest: Box<Intent>,
    },
}

impl fmt::Display for Halt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Changed(error) => error.fmt(f),
            Self::Failed(refusal) | Self::NotOwned(refusal) | Self::Stuck { refusal, .. } => {
                f.write_str(&refusal.message)
            }
            Self::Stopped => f.write_str("the agent is stopping"),
        }
    }
}

/// How far the steps came: what may have had an effect. Else what somebody else took out of a file meanwhile would be
/// taken for our doing, and put back.
#[derive(Debug, Default)]
struct Begun {
    key_files: usize,
    sshd_files: usize,
    reload: bool,
}

impl Begun {
    /// That part of the intent.
    fn part_of(&self, intent: &Intent) -> Intent {
        let mut part = intent.clone();
        part.key_files.truncate(self.key_files);
        part.sshd_files.truncate(self.sshd_files);
        part
    }
}

/// Carries the plan out. The intent is on disk before.
pub(super) fn carry_out(
    guest: &mut impl Guest,
    prepared: &Prepared,
    intent: &Intent,
    kbd_interactive: KbdInteractive,
    asked: &mut Asked,
    stop: &AtomicBool,
) -> Result<Vec<Answer>, Halt> {
    let mut begun = Begun::default();
    step_by_step(guest, prepared, kbd_interactive, asked, stop, &mut begun).map_err(|halt| {
        let facts = &prepared.facts;
        let settle = match &facts.sshd {
            // One that was started meanwhile may have read what is taken back.
            Some(Sshd { reload: Reload::None(_), .. }) => Settle::Reload,
            Some(sshd) if begun.reload => Settle::BringBack(sshd),
            _ => Settle::NotNeeded,
        };
        match undo(guest, &begun.part_of(intent), &facts.account.name, settle) {
            Ok(owed) if owed.is_empty() => halt,
            Ok(owed) => {
                let rest = Intent { key_files: owed, sshd_files: Vec::new(), ..intent.clone() };
                let text = format!("{halt}; and the volume of the key file is not mounted any more");
                Halt::Stuck { refusal: Refusal::new(Reason::IoError, text), rest: Box::new(rest) }
            }
            Err(NotUndone { refusal, rest }) => Halt::Stuck {
                refusal: Refusal::new(
                    refusal.reason,
                    format!("{halt}; and it could not be taken back: {}", refusal.message),
                ),
                rest,
            },
        }
    })
}

fn step_by_step(
    guest: &mut impl Guest,
    prepared: &Prepared,
    kbd_interactive: KbdInteractive,
    asked: &mut Asked,
    stop: &AtomicBool,
    begun: &mut Begun,
) -> Result<Vec<Answer>, Halt> {
    let Prepared { plan, facts } = prepared;
    let go_on = || if stop.load(Ordering::Relaxed) { Err(Halt::Stopped) } else { Ok(()) };
    let Some(sshd) = &facts.sshd else {
        write_keys(guest, plan, &go_on, begun)?;
        return Ok(plan.answers.clone());
    };
    if plan.expect.is_some() {
        the_files_still_stand(guest, sshd, &[])?;
    }
    // Passwords are back before a key that lets in is taken away; the key lets in before passwords go.
    if !plan.opens() {
        write_keys(guest, plan, &go_on, begun)?;
        label_key_file(guest, prepared, &go_on)?;
        if let Some(question) = &plan.deferred_trial {
            go_on()?;
            let answers = guest.trial(sshd, question);
            let judged = judge_deferred(facts, sshd, question, &answers);
            asked.trial = Some(judged.map_err(|PlanRefusal { refusal, trial }| {
                asked.trial = trial.map(|report| *report);
                Halt::Failed(refusal)
            })?);
        }
    }
    let Live { answers, loopback } = match &plan.reload {
        Some(_) => set(guest, prepared, sshd, kbd_interactive, &go_on, begun)?,
        None => {
            label_config(guest, prepared, &go_on)?;
            Live { answers: plan.answers.clone(), loopback: None }
        }
    };
    if plan.opens() {
        if plan.unread {
            tell(guest, sshd, &go_on, begun)?;
        }
        write_keys(guest, plan, &go_on, begun)?;
        label_key_file(guest, prepared, &go_on)?;
    }
    let mut is_as_foretold = false;
    if let Some(proof) = &proof_after_trial(plan) {
        go_on()?;
        pulse::step("asking the running sshd");
        let said = asked.ask(guest, proof, sshd, loopback.as_ref(), &mut begun.reload);
        if said.is_err() {
            the_files_still_stand(guest, sshd, &plan.sshd_edits)?;
        }
        is_as_foretold = said.map_err(Halt::Failed)?;
    }
    if plan.unread && !begun.reload && !is_as_foretold {
        tell(guest, sshd, &go_on, begun)?;
    }
    Ok(answers)
}

/// sshd alone: it may not have read its files, none of which changes.
fn tell(
    guest: &mut impl Guest,
    sshd: &Sshd,
    go_on: &impl Fn() -> Result<(), Halt>,
    begun: &mut Begun,
) -> Result<(), Halt> {
    guest.reload_is_safe(sshd).map_err(Halt::Failed)?;
    go_on()?;
    begun.reload = true;
    pulse::step("telling sshd to read its files");
    guest.reload(sshd).map_err(Halt::Failed)
}

/// What the running sshd is asked. A key that a private one has accepted once it was in place it has to accept, too, where
/// nothing depends on the source of the question.
fn proof_after_trial(plan: &Plan) -> Option<ProofPlan> {
    let mut proof = plan.proof.clone()?;
    let is_known = plan.deferred_trial.as_ref().is_some_and(|question| !question.needs_addresses);
    if let Some(forecast) = proof.forecast.as_mut().filter(|_| is_known) {
        forecast.accepts_key = Some(true);
    }
    Some(proof)
}

/// The key files, in the plan's order.
fn write_keys(
    guest: &mut impl Guest,
    plan: &Plan,
    go_on: &impl Fn() -> Result<(), Halt>,
    begun: &mut Begun,
) -> Result<(), Halt> {
    for edit in &plan.key_edits {
        go_on()?;
        write(guest, edit, &mut begun.key_files)?;
    }
    Ok(())
}

/// The labels on the way to the key file. Before passwords go off, sshd may read it: what was just written has a label that
/// nobody saw before. A label that was set stays whatever becomes of the command, as after restorecon(8).
fn label_key_file(
    guest: &mut impl Guest,
    Prepared { plan, facts }: &Prepared,
    go_on: &impl Fn() -> Result<(), Halt>,
) -> Result<(), Halt> {
    let Account { name, uid, .. } = &facts.account;
    let kind = FileKind::AuthorizedKeys { user: name.clone(), uid: Some(*uid), known: Vec::new() };
    set_labels(guest, &kind, &plan.key_labels, go_on)?;
    let file = plan.decisive_key_file.as_ref().filter(|_| plan.expect == Some(PasswordAuth::No));
    match file.filter(|_| facts.labels.enforcement == Enforcement::Enforcing) {
        Some(file) => judge_written_key_file(&labels(guest, facts), file).map_err(Halt::Failed),
        None => Ok(()),
    }
}

/// The same of sshd's configuration, before it is told.
fn label_config(
    guest: &mut impl Guest,
    Prepared { plan, facts }: &Prepared,
    go_on: &impl Fn() -> Result<(), Halt>,
) -> Result<(), Halt> {
    set_labels(guest, &FileKind::SshdConfig, &plan.sshd_labels, go_on)?;
    if facts.labels.enforcement != Enforcement::Enforcing || plan.sshd_edits.is_empty() {
        return Ok(());
    }
    judge_written_config(&labels(guest, facts)).map_err(Halt::Failed)
}

fn set_labels(
    guest: &mut impl Guest,
    kind: &FileKind,
    labels: &[Relabel],
    go_on: &impl Fn() -> Result<(), Halt>,
) -> Result<(), Halt> {
    for relabel in labels {
        go_on()?;
        guest.relabel(kind, relabel).map_err(halt)?;
    }
    Ok(())
}

/// What sshd says of its live files.
struct Live {
    /// For those who must get what was asked.
    answers: Vec<Answer>,
    /// For the connection that asks for the proof.
    loopback: Option<Answer>,
}

/// sshd's files, then sshd.
fn set(
    guest: &mut impl Guest,
    prepared @ Prepared { plan, facts }: &Prepared,
    sshd: &Sshd,
    kbd_interactive: KbdInteractive,
    go_on: &impl Fn() -> Result<(), Halt>,
    begun: &mut Begun,
) -> Result<Live, Halt> {
    the_key_still_stands(guest, plan, facts)?;
    let not_owned = |halt| match halt {
        Halt::Failed(refusal) if plan.already => Halt::NotOwned(refusal),
        other => other,
    };
    for edit in &plan.sshd_edits {
        go_on()?;
        write(guest, edit, &mut begun.sshd_files).map_err(not_owned)?;
    }
    label_config(guest, prepared, go_on)?;
    go_on()?;
    let must = plan.answers.iter().map(|answer| &answer.connection);
    let loopback = plan.proof.iter().filter_map(|proof| Some(&proof.forecast.as_ref()?.connection));
    let connections: Vec<Connection> = must.chain(loopback).cloned().collect();
    let answers = guest.ask(sshd, None, &connections);
    // What sshd says of files that somebody changed meanwhile is no verdict on ours.
    the_files_still_stand(guest, sshd, &plan.sshd_edits)?;
    let mut answers = answers.map_err(Halt::Failed)?;
    let loopback = answers.split_off(plan.answers.len().min(answers.len())).into_iter().next();
    the_guard_still_stands(plan, sshd, &answers)?;
    if let Some(asked) = plan.expect {
        judge_setting(asked, kbd_interactive, facts, sshd, &answers).map_err(Halt::Failed)?;
    }
    guest.reload_is_safe(sshd).map_err(Halt::Failed).map_err(not_owned)?;
    go_on()?;
    begun.reload = true;
    pulse::step("telling sshd to read its files");
    guest.reload(sshd).map_err(Halt::Failed)?;
    Ok(Live { answers, loopback })
}

/// sshd's files are what was observed, and what this command `wrote`. A file that somebody put beside them counts, too.
fn the_files_still_stand(guest: &impl Guest, sshd: &Sshd, wrote: &[FileEdit]) -> Result<(), Halt> {
    let now = guest.files_of(sshd).map_err(Halt::Failed)?;
    match sshd.config.after(wrote).difference(&now) {
        Some(path) => Err(Halt::Changed(FileError::Changed { path: path.to_owned() })),
        None => Ok(()),
    }
}

/// Before passwords go off: the file by whose keys the guard let that pass still is what it was, or what this command made
/// of it.
fn the_key_still_stands(guest: &impl Guest, plan: &Plan, facts: &Facts) -> Result<(), Halt> {
    if plan.expect != Some(PasswordAuth::No) {
        return Ok(());
    }
    let Some(KeyFile { path, content, .. }) = &facts.key_file else { return Ok(()) };
    let written = plan.key_edits.iter().find(|edit| edit.path == *path).map(|edit| &edit.after);
    let now = guest.key_file(&facts.account, path).map_err(|error| Halt::Failed(error.into()))?;
    if now.content != *written.unwrap_or(content) {
        return Err(Halt::Changed(FileError::Changed { path: path.clone() }));
    }
    Ok(())
}

/// Before the files are live: they say to the guard what they said when it let this pass.
fn the_guard_still_stands(plan: &Plan, sshd: &Sshd, live: &[Answer]) -> Result<(), Halt> {
    let is_same = plan
        .answers
        .iter()
        .zip(live)
        .all(|(then, now)| lockout::says_the_same(&then.effective, &now.effective));
    if plan.expect == Some(PasswordAuth::No) && !is_same {
        return Err(Halt::Changed(FileError::Changed { path: sshd.config.main.clone() }));
    }
    Ok(())
}

/// Writes one edit, if the file still is what it was planned on.
fn write(guest: &mut impl Guest, edit: &FileEdit, begun: &mut usize) -> Result<(), Halt> {
    pulse::step("writing a file");
    let done = make(guest, edit);
    // A place that is refused was not touched: nothing there is to be taken back.
    let is_refused = edit.kind == FileKind::SshdConfig && matches!(done, Err(FileError::Unsafe { .. }));
    if !is_refused && !matches!(done, Err(FileError::Changed { .. })) {
        *begun += 1;
    }
    done.map_err(halt)
}

fn halt(error: FileError) -> Halt {
    match error {
        changed @ FileError::Changed { .. } => Halt::Changed(changed),
        other => Halt::Failed(Refusal::from(other)),
    }
}

/// What a file that changed twice under our hands is reported as.
pub(super) fn changed_twice(error: &FileError) -> Refusal {
    Refusal::new(
        Reason::IoError,
        format!("{error}; it changed twice while the command was carried out: try again"),
    )
}

/// Makes one edit.
///
/// # Errors
/// What the guest says; [`FileError::Changed`] where the file is not what the edit was planned on.
pub(super) fn make(guest: &mut impl Guest, edit: &FileEdit) -> Result<(), FileError> {
    let expected = edit.intent().hash_before;
    match (&edit.after, &expected) {
        (Some(after), expected) => guest.write(&edit.kind, &edit.path, expected.as_ref(), after),
        (None, Some(expected)) => guest.remove(&edit.kind, &edit.path, expected, None),
        (None, None) => Ok(()),
    }
}
