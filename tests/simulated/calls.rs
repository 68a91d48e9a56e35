//! The calls that `run` makes to its transaction, in the order of `run`, and the checks after each call.

use std::cell::RefCell;
use std::mem;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use keypair_agent::policy::command::Origin;
use keypair_agent::policy::sshd_config::KbdInteractive;
use keypair_agent::transaction::perform::{CompletedCommand, Execution};
use keypair_agent::transaction::state::State;
use keypair_agent::transaction::{Engine, EngineSettings};

use super::control_plane::{INSTANCES, SimCommand, SimOrder, Stored};
use super::disk::Disk;
use super::fault::{FaultKind, InjectedFault};
use super::guest::SimulatedGuest;
use super::keys;
use super::machine::{CallRecord, SimulatedMachine};
use super::oracle;
use super::place::HostEnvironment;
use super::property::Invariant;
use super::world::{AgentState, Simulation, UndeliveredResult};

/// The situation before a call.
pub struct CallContext {
    /// The state file.
    pub state: Arc<State>,
    /// The fault that will strike during the call.
    pub fault: Option<InjectedFault>,
}

impl CallContext {
    /// Whether the user edits a file during the call.
    pub fn is_edited(&self) -> bool {
        self.fault.is_some_and(|fault| matches!(fault.what, FaultKind::Edit(_)))
    }

    /// Whether a step of the call fails.
    pub fn has_failure(&self) -> bool {
        self.fault.is_some_and(|fault| matches!(fault.what, FaultKind::StepFailure | FaultKind::LateFailure))
    }
}

fn build_settings(place: HostEnvironment) -> EngineSettings {
    EngineSettings {
        target_user: place.target_user().to_owned(),
        kbd_interactive: KbdInteractive::Follow,
        proof: true,
        instance_id: None,
        trusted_signers: None,
    }
}

impl Simulation {
    /// Calls the transaction on this machine.
    fn call_transaction<R>(
        &mut self,
        call: CallRecord,
        calls: impl FnOnce(&mut Engine<SimulatedGuest>, &AtomicBool) -> R,
    ) -> R {
        let stop = call.stop.clone();
        self.machine.call = call;
        let settings = build_settings(self.machine.disk.place);
        let nothing = SimulatedMachine::new(Disk::new("", None));
        let shared = Rc::new(RefCell::new(mem::replace(&mut self.machine, nothing)));
        let mut transaction = Engine::new(SimulatedGuest(shared.clone()), settings);
        let done = calls(&mut transaction, &stop);
        drop(transaction);
        self.machine = Rc::try_unwrap(shared).unwrap().into_inner();
        self.machine.end_call();
        done
    }

    fn capture_context(&mut self, fault: Option<InjectedFault>) -> CallContext {
        CallContext { state: self.read_state(), fault }
    }

    fn new_call(&self, fault: Option<InjectedFault>) -> CallRecord {
        // The key of a command that was in flight at a crash may remain until recovery removes it.
        let asked = self.open.iter().filter_map(|command| attached_key(command.order)).collect();
        let was_detach = self.open.is_some_and(|command| matches!(command.order, SimOrder::Detach(_)));
        let had_password = self.machine.accepts_root_password();
        CallRecord {
            fault,
            asked,
            is_detach: was_detach,
            had_password,
            running_at_rest: self.running_at_rest.clone(),
            ..CallRecord::default()
        }
    }

    /// Handles a crash during a call. Returns whether there was one.
    fn handle_crash(&mut self, before: &CallContext) -> bool {
        let crashed = self.machine.call.is_over;
        if crashed {
            match before.fault.map(|fault| fault.what) {
                Some(FaultKind::PowerCut { .. }) => self.reset_after_boot(),
                _ => self.agent = AgentState::Down,
            }
        }
        crashed
    }

    /// Starts `run`: it recovers, adopts the instance id, and looks for undelivered results.
    pub fn start_agent(&mut self, fault: Option<InjectedFault>) {
        let before = self.capture_context(fault);
        if let Some(command) = &self.open {
            self.begin_try(command.number);
        }
        let id = INSTANCES[self.control_plane.instance].parse().unwrap();
        let (recovered, undelivered) = self.call_transaction(self.new_call(fault), |transaction, _| {
            let recovered = transaction.recover();
            let _ = transaction.adopt_instance_id(&id);
            (recovered, transaction.undelivered_result())
        });
        let state = self.read_state();
        self.check_interruptions(&before, &state);
        self.update_instance(&state);
        if self.handle_crash(&before) {
            return;
        }
        match recovered {
            Ok(()) => self.check_recovered(&before, &state),
            Err(why) if before.fault.is_none() && self.machine.read_config().is_some() => {
                self.machine.report_violation(
                    Invariant::Recovered,
                    format!("recovery fails, and nothing keeps it: {why}"),
                );
            }
            Err(_) => {}
        }
        let due = undelivered.ok().flatten().map(|stored| UndeliveredResult {
            id: stored.command_id.to_string(),
            result: stored.result,
            recorded: true,
        });
        if let Some(due) = &due
            && self.known.seen.get(&due.id) != Some(&due.result)
        {
            self.machine
                .report_violation(Invariant::OneResult, "what is undelivered is not the recorded result");
        }
        self.agent = AgentState::Up { due, settled: Vec::new() };
    }

    /// The service sends a command, and the agent performs it.
    pub fn hand_out_command(&mut self, command: &SimCommand, fault: Option<InjectedFault>) {
        let before = self.capture_context(fault);
        self.begin_try(command.number);
        let mut call = self.new_call(fault);
        call.asked.extend(attached_key(command.order));
        call.is_detach |= matches!(command.order, SimOrder::Detach(_));
        call.replaces = matches!(command.order, SimOrder::Attach { .. });
        let now = self.machine.now;
        let expect = |world: &Self| {
            let known = world.known.for_instance(world.control_plane.instance);
            oracle::expected_outcome(command, &known, &world.machine.rest, world.machine.component, now)
        };
        let rest = self.machine.rest.clone();
        let mut expected = vec![expect(self)];
        let known = self.known.for_instance(self.control_plane.instance);
        let raises = oracle::raises_sequence(command, &known, self.machine.component, now);
        let id = INSTANCES[self.control_plane.instance].parse().unwrap();
        let performed = self.call_transaction(call, |transaction, stop| {
            let _ = transaction.adopt_instance_id(&id);
            transaction.execute_command(&command.encode(), Origin::Channel, stop)
        });
        if self.machine.rest != rest {
            expected.push(expect(self));
        }
        let state = self.read_state();
        self.check_interruptions(&before, &state);
        self.update_instance(&state);
        self.known.drop_delivered_result(&state);
        self.check_sequence(command, raises, &state);
        let recorded = self.check_recorded_result(command, &before, &state, &expected);
        if self.handle_crash(&before) {
            if !recorded
                && state.intent.as_ref().is_some_and(|intent| intent.command.id.as_str() == command.id())
            {
                self.open = Some(*command);
            }
            return;
        }
        self.open = self.open.filter(|_| state.intent.is_some());
        match performed {
            Execution::NotExecuted(why) => {
                if !before.fault.is_some_and(|fault| fault.what == FaultKind::Sigterm) {
                    self.machine
                        .report_violation(Invariant::Answered, format!("{command} gets no answer: {why}"));
                }
                self.check_unchanged(&before, &state, "a command that is not answered");
                self.agent = AgentState::Down;
            }
            Execution::Completed(answered) => {
                if !answered.recorded && !answered.repeated {
                    self.check_unrecorded(command, &before, &state, &answered);
                }
                self.queue_result(command, &before, answered, &state);
            }
        }
    }

    /// Queues the result for delivery. If the service has acknowledged it before, sends it once more at once.
    fn queue_result(
        &mut self,
        command: &SimCommand,
        before: &CallContext,
        answered: CompletedCommand,
        state: &State,
    ) {
        let CompletedCommand { id, result, recorded, repeated, .. } = answered;
        let id = id.to_string();
        if (recorded || repeated) && self.known.seen.get(&id) != Some(&result) {
            self.machine.report_violation(
                Invariant::OneResult,
                format!("{command} is answered by other bytes than were recorded"),
            );
        }
        let undelivered = state.undelivered.as_ref().map(|stored| &stored.result);
        if recorded && undelivered != Some(&result) {
            self.machine
                .report_violation(Invariant::OneResult, "a recorded result is not the undelivered one");
        }
        let stops = before.fault.is_some_and(|fault| fault.what == FaultKind::Sigterm);
        let AgentState::Up { due, settled } = &mut self.agent else { return };
        if settled.contains(&id) {
            self.put_result(&id, &result);
        } else {
            *due = Some(UndeliveredResult { id, result, recorded });
        }
        if stops {
            // At a stop the agent tries once, quickly, to deliver. Here that try fails, so the next start must
            // deliver.
            self.agent = AgentState::Down;
        }
    }

    fn put_result(&mut self, id: &str, result: &str) {
        if !id.ends_with(INSTANCES[self.control_plane.instance]) {
            // The service knows no such command of this instance (404).
            return;
        }
        let stored = self.control_plane.store_result(id, result);
        // The second answer may differ if the state could not hold the first one, or if undo removed it from the
        // state.
        if stored == Stored::Conflict && !self.known.unrecorded.contains(id) {
            self.machine.report_violation(
                Invariant::OneResult,
                format!("{id} has another result at the control plane"),
            );
        }
    }

    /// The agent sends the pending result.
    pub fn deliver_result(&mut self, answer_lost: bool, fault: Option<InjectedFault>) {
        let AgentState::Up { due: Some(due), .. } = self.agent.clone() else { return };
        let before = self.capture_context(fault);
        self.put_result(&due.id, &due.result);
        if answer_lost {
            return;
        }
        if due.recorded {
            let id = due.id.parse().unwrap();
            let _ =
                self.call_transaction(self.new_call(fault), |transaction, _| transaction.mark_delivered(&id));
            let state = self.read_state();
            if before.fault.is_none() && state.undelivered.is_some() {
                self.machine.report_violation(Invariant::Answered, "a delivered result stays in the outbox");
            }
            self.known.drop_delivered_result(&state);
            self.check_unchanged(&before, &state, "a delivery");
        } else {
            // This call has no steps.
            self.machine.call = self.new_call(fault);
            self.machine.end_call();
        }
        if self.handle_crash(&before) {
            return;
        }
        if let AgentState::Up { due: delivered, settled } = &mut self.agent {
            *delivered = None;
            settled.push(due.id);
        }
    }

    /// The person at the console runs `keypair-agent undo`.
    pub fn run_undo(&mut self, fault: Option<InjectedFault>) {
        let before = self.capture_context(fault);
        let number = self.open.map_or(0, |command| command.number);
        self.begin_try(number);
        let call = CallRecord { is_undo: true, ..self.new_call(fault) };
        let undone = self.call_transaction(call, |transaction, _| transaction.uninstall());
        let state = self.read_state();
        self.check_interruptions(&before, &state);
        let is_whole = undone.is_ok_and(|undone| undone.failures.is_empty()) && !self.machine.call.is_over;
        self.check_undo(&before, &state, is_whole);
        // A kill ends the console's process and not the daemon. A power cut ends both.
        let agent = self.agent.clone();
        if self.handle_crash(&before) && before.fault.is_some_and(|fault| fault.what == FaultKind::Kill) {
            self.agent = agent;
        }
    }
}

/// The key that a command attaches.
fn attached_key(order: SimOrder) -> Option<&'static str> {
    match order {
        SimOrder::Attach { pair, .. } => Some(pair.public_key()),
        SimOrder::Detach(_) | SimOrder::SetPasswordAuth(_) => None,
    }
}

/// The agent's lines in the key file that sshd reads.
pub fn read_agent_lines(disk: &Disk) -> Vec<u8> {
    keys::split_key_file(disk.read_key_file()).0
}
