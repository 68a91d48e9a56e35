//! `perform`: the one path of a command, from `run` and from `apply`, and the only one that changes the guest.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::guest::Guest;
use crate::policy::command::{self, Action, Command, Origin, Received};
use crate::policy::outcome::{Outcome, Reason, Refusal, Status};
use crate::policy::plan::Plan;
use crate::policy::types::{CommandId, PasswordAuth};

use super::judge::Judgement;
use super::observe::{Prepared, Tries};
use super::recovery::{Settle, undo};
use super::sheet::Sheet;
use super::state::{InFlight, Intent, State, StoredResult};
use super::steps::{Halt, carry_out};
use super::{Failure, Transaction, pulse};

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Performed {
    /// It has a result.
    Answered(Answered),
    /// It has none: it cannot be answered, or not now. The text says why.
    Unanswered(String),
}

/// A command's result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// Which command.
    pub id: CommandId,
    /// The result's JSON text, as it is stored and sent.
    pub result: String,
    /// Whether it succeeded.
    pub succeeded: bool,
    /// Whether a byte of the guest's files is another than before.
    pub changed: bool,
    /// Whether the state holds it for delivery; else it is to be delivered from memory.
    pub recorded: bool,
    /// Whether its command counts as seen from now on.
    pub is_new: bool,
    /// Whether it is the stored result of a command seen before.
    pub repeated: bool,
}

/// What `plan` shows: a plan that is not carried out, or the result of a command that would be refused.
#[derive(Debug)]
pub enum Planned {
    /// What would be done.
    Plan(Box<Plan>),
    /// The result that `apply` would print.
    Refused(Box<Outcome>),
    /// The stored result of a command seen before: nothing would be done.
    Repeated(Answered),
}

/// How a command without a sequence of steps ends.
enum End {
    /// With a result, to be recorded, and what was done for it.
    Outcome(Outcome, Option<Box<Intent>>),
    /// With a result that is not recorded.
    Traceless(Outcome),
    /// With a result, while the state keeps the intent that could not be undone.
    Stuck(Outcome),
    /// Not yet.
    Later(String),
}

impl<G: Guest> Transaction<G> {
    /// Receives, judges, plans, carries out and records one command. `stop` asks it to begin no further step.
    pub fn perform(&mut self, bytes: &[u8], origin: Origin, stop: &AtomicBool) -> Performed {
        match command::parse(bytes, origin, &self.guest.random_id()) {
            Ok(received) => self.perform_received(&received, origin, stop),
            Err(unanswerable) => Performed::Unanswered(unanswerable.to_string()),
        }
    }

    /// The same for a command that is parsed already.
    pub fn perform_received(&mut self, received: &Received, origin: Origin, stop: &AtomicBool) -> Performed {
        let mut sheet = Sheet::new(&self.guest, received);
        sheet.instance(self.adopted.as_ref());
        pulse::step("waiting for the lock");
        let _lock = match self.guest.lock() {
            Ok(lock) => lock,
            Err(failure) => match Failure::from(failure) {
                Failure::Busy(who) => return Performed::Unanswered(who),
                Failure::Refused(refusal) => return unrecorded(&sheet.fail(&self.guest, refusal)),
            },
        };
        pulse::step("reading the state");
        self.guest.sweep_state();
        let mut state = match self.load() {
            Ok(state) => state,
            Err(refusal) => return unrecorded(&sheet.fail(&self.guest, refusal)),
        };
        sheet.instance(self.adopted.as_ref().or(self.settings.instance(&state)));
        if let Err(refusal) = self.close_intent(&mut state) {
            return unrecorded(&sheet.fail(&self.guest, refusal));
        }
        self.identify(&mut state);
        sheet.instance(self.settings.instance(&state));
        // What does not bear a signature that counts is answered and leaves no trace: it must not stand in the way of
        // a genuine command of the same id.
        if let Some(signers) = self.signers_for(origin) {
            let judgement = match &received.command {
                Err(refusal) => Judgement::Refuse(refusal.clone()),
                Ok(_) => self.authenticate(received, signers),
            };
            match judgement {
                Judgement::Obey => {}
                Judgement::Refuse(refusal) => return unrecorded(&sheet.fail(&self.guest, refusal)),
                Judgement::TryLater(why) => return Performed::Unanswered(why),
            }
        }
        if let Some(stored) = seen(&state, received) {
            return Performed::Answered(repeated(stored, &state));
        }
        let command = match &received.command {
            Ok(command) => command,
            Err(refusal) => {
                // It did not pass the signature's place in the order, so it is not remembered as seen.
                let outcome = sheet.fail(&self.guest, refusal.clone());
                return self.record(&state.clone(), state, outcome, origin, None);
            }
        };
        let before = state.clone();
        match self.decide(command, origin, &mut state, sheet, stop) {
            End::Outcome(outcome, done) => {
                state.remember(stored(&outcome));
                self.record(&before, state, outcome, origin, done.as_deref())
            }
            End::Traceless(outcome) | End::Stuck(outcome) => unrecorded(&outcome),
            End::Later(why) => Performed::Unanswered(why),
        }
    }

    /// What `perform` would do now, without a lock and without a change (KP-8.3).
    ///
    /// # Errors
    /// Where the bytes are no command, the state cannot be read, or an interrupted command has to be undone
    /// first.
    pub fn plan(&self, bytes: &[u8], origin: Origin) -> Result<Planned, Failure> {
        let received = command::parse(bytes, origin, &self.guest.random_id())
            .map_err(|why| Refusal::new(Reason::MalformedCommand, why.to_string()))?;
        self.plan_received(&received, origin)
    }

    /// The same for a command that is parsed already.
    ///
    /// # Errors
    /// As for [`Self::plan`].
    pub fn plan_received(&self, received: &Received, origin: Origin) -> Result<Planned, Failure> {
        let mut sheet = Sheet::new(&self.guest, received);
        let mut state = self.load()?;
        sheet.instance(self.settings.instance(&state));
        if state.intent.is_some() {
            return Err(Failure::Refused(Refusal::new(
                Reason::IoError,
                "an interrupted command has to be taken back first: run, apply and undo do that",
            )));
        }
        if let Some(stored) = seen(&state, received) {
            return Ok(Planned::Repeated(repeated(stored, &state)));
        }
        let refusal = match &received.command {
            Err(refusal) => refusal.clone(),
            Ok(command) => match self.judge(command, origin, &mut state, &mut sheet) {
                Judgement::Refuse(refusal) => refusal,
                Judgement::TryLater(why) => return Err(Failure::Busy(why)),
                Judgement::Obey => match self.prepare(command, &state, &mut sheet) {
                    Ok(prepared) => return Ok(Planned::Plan(Box::new(prepared.plan))),
                    Err(refusal) => refusal,
                },
            },
        };
        Ok(Planned::Refused(Box::new(sheet.fail(&self.guest, refusal))))
    }

    /// Judges a command, then plans it and carries it out; once more where a file changed meanwhile.
    fn decide(
        &mut self,
        command: &Command,
        origin: Origin,
        state: &mut State,
        mut sheet: Sheet,
        stop: &AtomicBool,
    ) -> End {
        match self.judge(command, origin, state, &mut sheet) {
            Judgement::Obey => {}
            Judgement::Refuse(refusal) => {
                let outcome = sheet.fail(&self.guest, refusal);
                return match self.signers_for(origin) {
                    // Whoever kept a signed command back until it expired must not spoil it: it is signed anew when
                    // it is handed out again.
                    Some(_) => End::Traceless(outcome),
                    None => End::Outcome(outcome, None),
                };
            }
            Judgement::TryLater(why) => return End::Later(why),
        }
        let mut tries = Tries::default();
        loop {
            let prepared = match self.prepare_again(command, state, &mut sheet, &mut tries) {
                Ok(prepared) => prepared,
                // What fails while the agent is stopped may be the stop's doing: its helper's socket goes with it.
                Err(_) if stop.load(Ordering::SeqCst) => return End::Later(STOPPING.into()),
                Err(refusal) => return End::Outcome(sheet.fail(&self.guest, refusal), None),
            };
            let halt = match self.carry_out(command, origin, &prepared, state, &mut sheet, stop) {
                Ok(done) => {
                    return End::Outcome(self.success(command, &prepared, state, sheet), done.map(Box::new));
                }
                Err(halt) => halt,
            };
            return match halt {
                Halt::Stopped => self.stopped(state),
                Halt::Changed(_) | Halt::NotOwned(_) | Halt::Failed(_) if stop.load(Ordering::SeqCst) => {
                    self.stopped(state)
                }
                Halt::Changed(error) => match tries.another(&error) {
                    Ok(()) => continue,
                    Err(refusal) => End::Outcome(sheet.fail(&self.guest, refusal), None),
                },
                Halt::NotOwned(refusal) => {
                    tries.not_owned = Some(refusal.message);
                    continue;
                }
                Halt::Failed(refusal) => End::Outcome(sheet.fail(&self.guest, refusal), None),
                Halt::Stuck { refusal, .. } => End::Stuck(sheet.fail(&self.guest, refusal)),
            };
        }
    }

    /// A command that a stop interrupts is taken back, and has no result.
    fn stopped(&mut self, state: &State) -> End {
        if let Err(refusal) = self.save(state) {
            tracing::warn!("{}", refusal.message);
        }
        End::Later(STOPPING.into())
    }

    /// The intent, then the steps; what was done, where anything was. In `state` the intent is gone again whenever
    /// the steps came to an end.
    fn carry_out(
        &mut self,
        command: &Command,
        origin: Origin,
        prepared: &Prepared,
        state: &mut State,
        sheet: &mut Sheet,
        stop: &AtomicBool,
    ) -> Result<Option<Intent>, Halt> {
        let Prepared { plan, .. } = prepared;
        if !plan.touches_files() && plan.proof.is_none() && !plan.unread {
            return Ok(None);
        }
        let interrupted =
            Refusal::new(Reason::Interrupted, "the agent was interrupted three times in this command");
        let intent = Intent {
            command: InFlight {
                id: command.id.clone(),
                origin,
                outline: sheet.clone().fail(&self.guest, interrupted),
            },
            key_files: plan.key_edits.iter().map(|edit| edit.intent()).collect(),
            sshd_files: plan.sshd_edits.iter().map(|edit| edit.intent()).collect(),
            opens: plan.opens(),
        };
        pulse::step("recording the intent");
        state.intent = Some(intent.clone());
        if let Err(refusal) = self.save(state) {
            state.intent = None;
            return Err(Halt::Failed(refusal));
        }
        let kbd_interactive = self.settings.kbd_interactive;
        let done = carry_out(&mut self.guest, prepared, &intent, kbd_interactive, &mut sheet.asked, stop);
        match &done {
            Err(Halt::Stuck { rest, .. }) => {
                state.intent = Some(rest.as_ref().clone());
                if let Err(refusal) = self.save(state) {
                    tracing::warn!("{}", refusal.message);
                }
            }
            _ => state.intent = None,
        }
        let answers = done?;
        if let Some(first) = answers.first() {
            sheet.outcome.effective = Some(first.effective.report());
        }
        Ok(Some(intent))
    }

    fn success(
        &self,
        command: &Command,
        prepared: &Prepared,
        state: &mut State,
        mut sheet: Sheet,
    ) -> Outcome {
        let Prepared { plan, .. } = prepared;
        sheet.notes.extend(plan.key_labels.iter().chain(&plan.sshd_labels).map(ToString::to_string));
        let changed = plan.changes_files();
        state.owe(command, prepared, &sheet.asked);
        if let Some(password_auth) = command.action.password_auth() {
            state.password_auth = Some(password_auth);
        }
        let user = sheet.outcome.user.clone().unwrap_or_default();
        let password = |setting: &PasswordAuth| match setting {
            PasswordAuth::Yes => "password login is on",
            PasswordAuth::No => "password login is off",
        };
        let message = match &command.action {
            Action::Attach { key_pair, password_auth, .. } => {
                format!("key pair {} is bound for {user}; {}", key_pair.key_name, password(password_auth))
            }
            Action::Detach { .. } => match &plan.unbound {
                Some(unbound) => format!("key pair {} is unbound", unbound.key_name),
                None if changed => "what was left of a block of ours is taken out".to_owned(),
                None => "no key pair was bound".to_owned(),
            },
            Action::SetPasswordAuth { password_auth } => password(password_auth).to_owned(),
        };
        state.binding = plan.binding.clone();
        sheet.succeed(&self.guest, message, changed, plan.warnings.clone())
    }

    /// Result, binding and the end of the intent, in one write. Where it cannot be written, nothing is done.
    fn record(
        &mut self,
        before: &State,
        mut state: State,
        outcome: Outcome,
        origin: Origin,
        done: Option<&Intent>,
    ) -> Performed {
        // Another command's count stays: what comes in between must not keep that one from its end.
        state.interrupted.take_if(|interrupted| interrupted.command_id == outcome.command_id);
        if origin == Origin::Channel {
            state.undelivered = Some(stored(&outcome));
        }
        pulse::step("recording the result");
        match self.save(&state) {
            Ok(()) => {
                let is_new = state.remembers(&outcome.command_id);
                Performed::Answered(Answered { recorded: true, is_new, ..answered(&outcome) })
            }
            Err(refusal) => {
                // A sequence that passed its check stays the highest, whatever became of its command.
                let mut old = before.clone();
                old.highest = state.highest;
                self.take_back_unrecorded(old, outcome, refusal, done)
            }
        }
    }

    /// The result could not be stored for good, and what the state file now holds is not known: it may be the new
    /// state, only not on the disk yet. So the old state is put in its place again, with what takes back what was done;
    /// then that is taken back. Where not even that can be written nothing is: the next start goes by what it finds.
    fn take_back_unrecorded(
        &mut self,
        mut old: State,
        mut outcome: Outcome,
        refusal: Refusal,
        done: Option<&Intent>,
    ) -> Performed {
        old.intent = done.cloned();
        if let Err(again) = self.save(&old) {
            tracing::error!("{}; what was done is not taken back before that can be kept", again.message);
        } else if let Some(intent) = done {
            match undo(&mut self.guest, intent, &self.settings.target_user, Settle::Reload) {
                Ok(owed) => {
                    old.intent = None;
                    old.owed.extend(owed);
                    if let Err(again) = self.save(&old) {
                        tracing::error!("{}", again.message);
                    }
                }
                Err(stuck) => tracing::error!("{}", stuck.refusal.message),
            }
        }
        outcome.status = Status::Failed;
        outcome.code = refusal.reason.code();
        outcome.reason = Some(refusal.reason);
        outcome.message = refusal.message;
        outcome.changed = false;
        outcome.warnings = Vec::new();
        unrecorded(&outcome)
    }
}

/// Why a command has no result that a stop interrupts.
const STOPPING: &str = "the agent is stopping: the command was taken back and will come again";

/// The stored result of a command seen before. A malformed one is judged before it is recognised; its result
/// stands for it only while it says the same.
fn seen(state: &State, received: &Received) -> Option<StoredResult> {
    let stored = state.result_of(&received.id)?;
    let Err(refusal) = &received.command else { return Some(stored.clone()) };
    let outcome: Outcome = serde_json::from_str(&stored.result).ok()?;
    (outcome.reason == Some(refusal.reason)).then(|| stored.clone())
}

/// The stored result, once more. It may still be the one that waits for its delivery.
fn repeated(stored: StoredResult, state: &State) -> Answered {
    let outcome: Option<Outcome> = serde_json::from_str(&stored.result).ok();
    Answered {
        recorded: state.undelivered.as_ref() == Some(&stored),
        id: stored.command_id,
        succeeded: outcome.is_some_and(|outcome| outcome.reason.is_none()),
        result: stored.result,
        changed: false,
        is_new: false,
        repeated: true,
    }
}

/// A result that the state does not hold.
fn unrecorded(outcome: &Outcome) -> Performed {
    Performed::Answered(answered(outcome))
}

fn answered(outcome: &Outcome) -> Answered {
    let StoredResult { command_id, result } = stored(outcome);
    Answered {
        id: command_id,
        result,
        succeeded: outcome.reason.is_none(),
        changed: outcome.changed,
        recorded: false,
        is_new: false,
        repeated: false,
    }
}

/// A result as the state holds it.
fn stored(outcome: &Outcome) -> StoredResult {
    StoredResult { command_id: outcome.command_id.clone(), result: outcome.to_json() }
}
