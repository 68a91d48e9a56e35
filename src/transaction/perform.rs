//! `perform`: the one path of a command, from `run` and from `apply`, and the only one that changes the guest.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::guest::Guest;
use crate::policy::command::{self, Action, Command, Origin, ReceivedCommand};
use crate::policy::outcome::{CommandResult, Reason, Refusal, Status};
use crate::policy::plan::Plan;
use crate::policy::types::{CommandId, PasswordAuth};

use super::judge::Admission;
use super::observe::{PlanRetries, PreparedPlan};
use super::recovery::{SshdRestore, roll_back};
use super::sheet::ResultBuilder;
use super::state::{InFlight, Intent, State, StoredResult};
use super::steps::{StepError, execute_plan};
use super::{Engine, EngineError, pulse};

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Execution {
    /// It has a result.
    Completed(CompletedCommand),
    /// It has none: it cannot be answered, or not now. The text says why.
    NotExecuted(String),
}

/// A command's result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompletedCommand {
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
pub enum PlanPreview {
    /// What would be done.
    Plan(Box<Plan>),
    /// The result that `apply` would print.
    Refused(Box<CommandResult>),
    /// The stored result of a command seen before: nothing would be done.
    Repeated(CompletedCommand),
}

/// How a command without a sequence of steps ends.
enum CommandEnd {
    /// With a result, to be recorded, and what was done for it.
    Recorded(CommandResult, Option<Box<Intent>>),
    /// With a result that is not recorded.
    Unrecorded(CommandResult),
    /// With a result, while the state keeps the intent that could not be undone.
    RollbackFailed(CommandResult),
    /// Not yet.
    Deferred(String),
}

impl<G: Guest> Engine<G> {
    /// Receives, judges, plans, carries out and records one command. `stop` asks it to begin no further step.
    pub fn execute_command(&mut self, bytes: &[u8], origin: Origin, stop: &AtomicBool) -> Execution {
        match command::parse_command(bytes, origin, &self.guest.random_id()) {
            Ok(received) => self.execute_received(&received, origin, stop),
            Err(unanswerable) => Execution::NotExecuted(unanswerable.to_string()),
        }
    }

    /// The same for a command that is parsed already.
    pub fn execute_received(
        &mut self,
        received: &ReceivedCommand,
        origin: Origin,
        stop: &AtomicBool,
    ) -> Execution {
        let mut sheet = ResultBuilder::new(&self.guest, received);
        sheet.set_instance_id(self.adopted.as_ref());
        pulse::begin_step("waiting for the lock");
        let _lock = match self.guest.lock() {
            Ok(lock) => lock,
            Err(failure) => match EngineError::from(failure) {
                EngineError::Busy(who) => return Execution::NotExecuted(who),
                EngineError::Refused(refusal) => {
                    return complete_unrecorded(&sheet.fail(&self.guest, refusal));
                }
            },
        };
        pulse::begin_step("reading the state");
        self.guest.clean_state_and_run_dirs();
        let mut state = match self.load() {
            Ok(state) => state,
            Err(refusal) => return complete_unrecorded(&sheet.fail(&self.guest, refusal)),
        };
        sheet.set_instance_id(self.adopted.as_ref().or(self.settings.effective_instance_id(&state)));
        if let Err(refusal) = self.close_intent(&mut state) {
            return complete_unrecorded(&sheet.fail(&self.guest, refusal));
        }
        self.apply_adopted_id(&mut state);
        sheet.set_instance_id(self.settings.effective_instance_id(&state));
        // What does not bear a signature that counts is answered and leaves no trace: it must not stand in the way of
        // a genuine command of the same id.
        if let Some(signers) = self.required_signers_file(origin) {
            let judgement = match &received.command {
                Err(refusal) => Admission::Reject(refusal.clone()),
                Ok(_) => self.verify_command_signature(received, signers),
            };
            match judgement {
                Admission::Accept => {}
                Admission::Reject(refusal) => return complete_unrecorded(&sheet.fail(&self.guest, refusal)),
                Admission::Defer(why) => return Execution::NotExecuted(why),
            }
        }
        if let Some(stored) = find_seen_result(&state, received) {
            return Execution::Completed(repeat_stored_result(stored, &state));
        }
        let command = match &received.command {
            Ok(command) => command,
            Err(refusal) => {
                // It did not pass the signature's place in the order, so it is not remembered as seen.
                let outcome = sheet.fail(&self.guest, refusal.clone());
                return self.record_result(&state.clone(), state, outcome, origin, None);
            }
        };
        let before = state.clone();
        match self.admit_and_execute(command, origin, &mut state, sheet, stop) {
            CommandEnd::Recorded(outcome, done) => {
                state.add_result(to_stored_result(&outcome));
                self.record_result(&before, state, outcome, origin, done.as_deref())
            }
            CommandEnd::Unrecorded(outcome) | CommandEnd::RollbackFailed(outcome) => {
                complete_unrecorded(&outcome)
            }
            CommandEnd::Deferred(why) => Execution::NotExecuted(why),
        }
    }

    /// What `perform` would do now, without a lock and without a change (KP-8.3).
    ///
    /// # Errors
    /// Where the bytes are no command, the state cannot be read, or an interrupted command has to be undone
    /// first.
    pub fn plan_command(&self, bytes: &[u8], origin: Origin) -> Result<PlanPreview, EngineError> {
        let received = command::parse_command(bytes, origin, &self.guest.random_id())
            .map_err(|why| Refusal::new(Reason::MalformedCommand, why.to_string()))?;
        self.plan_received(&received, origin)
    }

    /// The same for a command that is parsed already.
    ///
    /// # Errors
    /// As for [`Self::plan_command`].
    pub fn plan_received(
        &self,
        received: &ReceivedCommand,
        origin: Origin,
    ) -> Result<PlanPreview, EngineError> {
        let mut sheet = ResultBuilder::new(&self.guest, received);
        let mut state = self.load()?;
        sheet.set_instance_id(self.settings.effective_instance_id(&state));
        if state.intent.is_some() {
            return Err(EngineError::Refused(Refusal::new(
                Reason::IoError,
                "an interrupted command has to be taken back first: run, apply and undo do that",
            )));
        }
        if let Some(stored) = find_seen_result(&state, received) {
            return Ok(PlanPreview::Repeated(repeat_stored_result(stored, &state)));
        }
        let refusal = match &received.command {
            Err(refusal) => refusal.clone(),
            Ok(command) => match self.admit_command(command, origin, &mut state, &mut sheet) {
                Admission::Reject(refusal) => refusal,
                Admission::Defer(why) => return Err(EngineError::Busy(why)),
                Admission::Accept => match self.prepare_plan(command, &state, &mut sheet) {
                    Ok(prepared) => return Ok(PlanPreview::Plan(Box::new(prepared.plan))),
                    Err(refusal) => refusal,
                },
            },
        };
        Ok(PlanPreview::Refused(Box::new(sheet.fail(&self.guest, refusal))))
    }

    /// Judges a command, then plans it and carries it out; once more where a file changed meanwhile.
    fn admit_and_execute(
        &mut self,
        command: &Command,
        origin: Origin,
        state: &mut State,
        mut sheet: ResultBuilder,
        stop: &AtomicBool,
    ) -> CommandEnd {
        match self.admit_command(command, origin, state, &mut sheet) {
            Admission::Accept => {}
            Admission::Reject(refusal) => {
                let outcome = sheet.fail(&self.guest, refusal);
                return match self.required_signers_file(origin) {
                    // Whoever kept a signed command back until it expired must not spoil it: it is signed anew when
                    // it is handed out again.
                    Some(_) => CommandEnd::Unrecorded(outcome),
                    None => CommandEnd::Recorded(outcome, None),
                };
            }
            Admission::Defer(why) => return CommandEnd::Deferred(why),
        }
        let mut tries = PlanRetries::default();
        loop {
            let prepared = match self.prepare_plan_with_retries(command, state, &mut sheet, &mut tries) {
                Ok(prepared) => prepared,
                // What fails while the agent is stopped may be the stop's doing: its helper's socket goes with it.
                Err(_) if stop.load(Ordering::SeqCst) => {
                    return CommandEnd::Deferred(STOPPING_MESSAGE.into());
                }
                Err(refusal) => return CommandEnd::Recorded(sheet.fail(&self.guest, refusal), None),
            };
            let halt = match self.execute_with_intent(command, origin, &prepared, state, &mut sheet, stop) {
                Ok(done) => {
                    return CommandEnd::Recorded(
                        self.build_success_result(command, &prepared, state, sheet),
                        done.map(Box::new),
                    );
                }
                Err(halt) => halt,
            };
            return match halt {
                StepError::Stopped => self.abandon_on_stop(state),
                StepError::FileChanged(_) | StepError::NotOwned(_) | StepError::Failed(_)
                    if stop.load(Ordering::SeqCst) =>
                {
                    self.abandon_on_stop(state)
                }
                StepError::FileChanged(error) => match tries.consume_retry(&error) {
                    Ok(()) => continue,
                    Err(refusal) => CommandEnd::Recorded(sheet.fail(&self.guest, refusal), None),
                },
                StepError::NotOwned(refusal) => {
                    tries.not_owned = Some(refusal.message);
                    continue;
                }
                StepError::Failed(refusal) => CommandEnd::Recorded(sheet.fail(&self.guest, refusal), None),
                StepError::RollbackFailed { refusal, .. } => {
                    CommandEnd::RollbackFailed(sheet.fail(&self.guest, refusal))
                }
            };
        }
    }

    /// A command that a stop interrupts is taken back, and has no result.
    fn abandon_on_stop(&mut self, state: &State) -> CommandEnd {
        if let Err(refusal) = self.save(state) {
            tracing::warn!("{}", refusal.message);
        }
        CommandEnd::Deferred(STOPPING_MESSAGE.into())
    }

    /// The intent, then the steps; what was done, where anything was. In `state` the intent is gone again whenever
    /// the steps came to an end.
    fn execute_with_intent(
        &mut self,
        command: &Command,
        origin: Origin,
        prepared: &PreparedPlan,
        state: &mut State,
        sheet: &mut ResultBuilder,
        stop: &AtomicBool,
    ) -> Result<Option<Intent>, StepError> {
        let PreparedPlan { plan, .. } = prepared;
        if !plan.changes_files_or_labels() && plan.proof.is_none() && !plan.unread {
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
            key_files: plan.key_edits.iter().map(|edit| edit.to_intent()).collect(),
            sshd_files: plan.sshd_edits.iter().map(|edit| edit.to_intent()).collect(),
            opens: plan.enables_passwords(),
        };
        pulse::begin_step("recording the intent");
        state.intent = Some(intent.clone());
        if let Err(refusal) = self.save(state) {
            state.intent = None;
            return Err(StepError::Failed(refusal));
        }
        let kbd_interactive = self.settings.kbd_interactive;
        let done = execute_plan(&mut self.guest, prepared, &intent, kbd_interactive, &mut sheet.asked, stop);
        match &done {
            Err(StepError::RollbackFailed { rest, .. }) => {
                state.intent = Some(rest.as_ref().clone());
                if let Err(refusal) = self.save(state) {
                    tracing::warn!("{}", refusal.message);
                }
            }
            _ => state.intent = None,
        }
        let answers = done?;
        if let Some(first) = answers.first() {
            sheet.outcome.effective = Some(first.effective.to_report());
        }
        Ok(Some(intent))
    }

    fn build_success_result(
        &self,
        command: &Command,
        prepared: &PreparedPlan,
        state: &mut State,
        mut sheet: ResultBuilder,
    ) -> CommandResult {
        let PreparedPlan { plan, .. } = prepared;
        sheet.notes.extend(plan.key_labels.iter().chain(&plan.sshd_labels).map(ToString::to_string));
        let changed = plan.changes_files();
        state.record_owed_proof(command, prepared, &sheet.asked);
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
    fn record_result(
        &mut self,
        before: &State,
        mut state: State,
        outcome: CommandResult,
        origin: Origin,
        done: Option<&Intent>,
    ) -> Execution {
        // Another command's count stays: what comes in between must not keep that one from its end.
        state.interrupted.take_if(|interrupted| interrupted.command_id == outcome.command_id);
        if origin == Origin::Channel {
            state.undelivered = Some(to_stored_result(&outcome));
        }
        pulse::begin_step("recording the result");
        match self.save(&state) {
            Ok(()) => {
                let is_new = state.has_seen_command(&outcome.command_id);
                Execution::Completed(CompletedCommand {
                    recorded: true,
                    is_new,
                    ..to_completed_command(&outcome)
                })
            }
            Err(refusal) => {
                // A sequence that passed its check stays the highest, whatever became of its command.
                let mut old = before.clone();
                old.highest = state.highest;
                self.roll_back_unrecorded(old, outcome, refusal, done)
            }
        }
    }

    /// The result could not be stored for good, and what the state file now holds is not known: it may be the new
    /// state, only not on the disk yet. So the old state is put in its place again, with what takes back what was done;
    /// then that is taken back. Where not even that can be written nothing is: the next start goes by what it finds.
    fn roll_back_unrecorded(
        &mut self,
        mut old: State,
        mut outcome: CommandResult,
        refusal: Refusal,
        done: Option<&Intent>,
    ) -> Execution {
        old.intent = done.cloned();
        if let Err(again) = self.save(&old) {
            tracing::error!("{}; what was done is not taken back before that can be kept", again.message);
        } else if let Some(intent) = done {
            match roll_back(&mut self.guest, intent, &self.settings.target_user, SshdRestore::Reload) {
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
        complete_unrecorded(&outcome)
    }
}

/// Why a command has no result that a stop interrupts.
const STOPPING_MESSAGE: &str = "the agent is stopping: the command was taken back and will come again";

/// The stored result of a command seen before. A malformed one is judged before it is recognised; its result
/// stands for it only while it says the same.
fn find_seen_result(state: &State, received: &ReceivedCommand) -> Option<StoredResult> {
    let stored = state.find_result(&received.id)?;
    let Err(refusal) = &received.command else { return Some(stored.clone()) };
    let outcome: CommandResult = serde_json::from_str(&stored.result).ok()?;
    (outcome.reason == Some(refusal.reason)).then(|| stored.clone())
}

/// The stored result, once more. It may still be the one that waits for its delivery.
fn repeat_stored_result(stored: StoredResult, state: &State) -> CompletedCommand {
    let outcome: Option<CommandResult> = serde_json::from_str(&stored.result).ok();
    CompletedCommand {
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
fn complete_unrecorded(outcome: &CommandResult) -> Execution {
    Execution::Completed(to_completed_command(outcome))
}

fn to_completed_command(outcome: &CommandResult) -> CompletedCommand {
    let StoredResult { command_id, result } = to_stored_result(outcome);
    CompletedCommand {
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
fn to_stored_result(outcome: &CommandResult) -> StoredResult {
    StoredResult { command_id: outcome.command_id.clone(), result: outcome.to_json() }
}
