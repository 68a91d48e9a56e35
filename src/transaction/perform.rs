//! `execute_command`: the one path of a command, from `run` and from `apply`. Only this path changes the guest for a
//! command.

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

/// What happened to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Execution {
    /// The command has a result.
    Completed(CompletedCommand),
    /// The command has no result: it cannot be answered, or not now. The text says why.
    NotExecuted(String),
}

/// The result of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompletedCommand {
    /// The id of the command.
    pub id: CommandId,
    /// The JSON text of the result, exactly as it is stored and sent.
    pub result: String,
    /// Whether the command succeeded.
    pub succeeded: bool,
    /// Whether the command changed the content of any file of the guest.
    pub changed: bool,
    /// Whether the state holds the result for delivery. If not, the caller must deliver it from memory.
    pub recorded: bool,
    /// Whether the state remembers the command as seen from now on.
    pub is_new: bool,
    /// Whether this is the stored result of a command that was seen before.
    pub repeated: bool,
}

/// The output of `plan`: a plan that is not carried out, or the result of a command that would be refused.
#[derive(Debug)]
pub enum PlanPreview {
    /// The plan that `apply` would carry out.
    Plan(Box<Plan>),
    /// The result that `apply` would print.
    Refused(Box<CommandResult>),
    /// The stored result of a command that was seen before: `apply` would do nothing.
    Repeated(CompletedCommand),
}

/// How the handling of one command ends.
enum CommandEnd {
    /// With a result that is to be recorded, and the intent of what was done.
    Recorded(CommandResult, Option<Box<Intent>>),
    /// With a result that is not recorded.
    Unrecorded(CommandResult),
    /// With a result, while the state keeps the intent that could not be undone.
    RollbackFailed(CommandResult),
    /// Without a result: the command cannot be handled now. The text says why.
    Deferred(String),
}

impl<G: Guest> Engine<G> {
    /// Receives, judges, plans, carries out and records one command. If `stop` is set, no further step begins.
    pub fn execute_command(&mut self, bytes: &[u8], origin: Origin, stop: &AtomicBool) -> Execution {
        match command::parse_command(bytes, origin, &self.guest.random_id()) {
            Ok(received) => self.execute_received(&received, origin, stop),
            Err(unanswerable) => Execution::NotExecuted(unanswerable.to_string()),
        }
    }

    /// Does the same for a command that is already parsed.
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
        // A command without a valid signature gets an answer but leaves no trace in the state. Otherwise it could
        // block a genuine command with the same id.
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
                // A malformed command did not reach the signature check in the order of checks, so it is not
                // remembered as seen.
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

    /// What [`Self::execute_command`] would do now. It takes no lock and changes nothing (KP-8.3).
    ///
    /// # Errors
    /// If the bytes are not a command, the state cannot be read, or an interrupted command must be undone first.
    pub fn plan_command(&self, bytes: &[u8], origin: Origin) -> Result<PlanPreview, EngineError> {
        let received = command::parse_command(bytes, origin, &self.guest.random_id())
            .map_err(|why| Refusal::new(Reason::MalformedCommand, why.to_string()))?;
        self.plan_received(&received, origin)
    }

    /// Does the same for a command that is already parsed.
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

    /// Judges a command, then plans it and carries it out. If a file changed meanwhile, it plans once more.
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
                    // If somebody holds a signed command back until it expires, its id must stay usable. The control
                    // plane signs the command again when it sends it again.
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
                // A failure during a stop may be caused by the stop itself: systemd stops the helper's socket too.
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

    /// A command that was interrupted by a stop is undone and has no result.
    fn abandon_on_stop(&mut self, state: &State) -> CommandEnd {
        if let Err(refusal) = self.save(state) {
            tracing::warn!("{}", refusal.message);
        }
        CommandEnd::Deferred(STOPPING_MESSAGE.into())
    }

    /// Saves the intent, then carries out the steps. Returns the intent if anything was done. After the steps have
    /// ended, `state` has no intent any more, unless the rollback failed.
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

    /// Writes the result, the binding and the end of the intent in one write. If that write fails, the command is
    /// undone.
    fn record_result(
        &mut self,
        before: &State,
        mut state: State,
        outcome: CommandResult,
        origin: Origin,
        done: Option<&Intent>,
    ) -> Execution {
        // The interruption count of another command stays: commands in between must not reset it.
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
                // A sequence that passed its check stays the highest, even if its command failed.
                let mut old = before.clone();
                old.highest = state.highest;
                self.roll_back_unrecorded(old, outcome, refusal, done)
            }
        }
    }

    /// The write of the result failed, so the content of the state file is unknown. It may be the new state, not yet
    /// durable on the disk. We first write the old state again, with the intent still open, and then roll back. If
    /// that write fails too, we do not roll back: the state on the disk decides at the next start.
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

/// Why a command that a stop interrupts has no result.
const STOPPING_MESSAGE: &str = "the agent is stopping: the command was taken back and will come again";

/// The stored result of a command that was seen before. A malformed command is judged before this look-up. The stored
/// result answers it only if both have the same reason.
fn find_seen_result(state: &State, received: &ReceivedCommand) -> Option<StoredResult> {
    let stored = state.find_result(&received.id)?;
    let Err(refusal) = &received.command else { return Some(stored.clone()) };
    let outcome: CommandResult = serde_json::from_str(&stored.result).ok()?;
    (outcome.reason == Some(refusal.reason)).then(|| stored.clone())
}

/// Repeats the stored result. It may be the result that still waits for its delivery.
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

/// A result in the form in which the state holds it.
fn to_stored_result(outcome: &CommandResult) -> StoredResult {
    StoredResult { command_id: outcome.command_id.clone(), result: outcome.to_json() }
}
