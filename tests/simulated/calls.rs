//! The calls: what `run` asks of its transaction, in `run`'s order, and what has to hold after each.

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

/// What a call found.
pub struct CallContext {
    /// The state file.
    pub state: Arc<State>,
    /// The fault that is to come.
    pub fault: Option<InjectedFault>,
}

impl CallContext {
    /// Whether the user edits a file in the midst of the call.
    pub fn is_edited(&self) -> bool {
        self.fault.is_some_and(|fault| matches!(fault.what, FaultKind::Edit(_)))
    }

    /// Whether a step fails in it.
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
        // What was in flight at a crash may stand until it is taken back.
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

    /// After a call that a crash ended; whether it was one.
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

    /// `run` begins: recover, adopt the instance's id, look what is undelivered.
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

    /// The service hands a command out.
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

    /// The answer is on its way, or sent once more to a service that has it.
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
            // The one quick try that a stop makes for it is lost: the next start has to do it.
            self.agent = AgentState::Down;
        }
    }

    fn put_result(&mut self, id: &str, result: &str) {
        if !id.ends_with(INSTANCES[self.control_plane.instance]) {
            // The service knows no such command of this instance's (404).
            return;
        }
        let stored = self.control_plane.store_result(id, result);
        // Where the state could not hold the first answer, or was told to forget it, a second one may be another.
        if stored == Stored::Conflict && !self.known.unrecorded.contains(id) {
            self.machine.report_violation(
                Invariant::OneResult,
                format!("{id} has another result at the control plane"),
            );
        }
    }

    /// The result that is due goes out.
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
            // No step of this call's.
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

    /// The person at the console takes all of ours back.
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
        // The console's process is another than the daemon's, unless the power goes.
        let agent = self.agent.clone();
        if self.handle_crash(&before) && before.fault.is_some_and(|fault| fault.what == FaultKind::Kill) {
            self.agent = agent;
        }
    }
}

/// The key that a command brings.
fn attached_key(order: SimOrder) -> Option<&'static str> {
    match order {
        SimOrder::Attach { pair, .. } => Some(pair.public_key()),
        SimOrder::Detach(_) | SimOrder::SetPasswordAuth(_) => None,
    }
}

/// What stands of ours in the key file that sshd reads.
pub fn read_agent_lines(disk: &Disk) -> Vec<u8> {
    keys::split_key_file(disk.read_key_file()).0
}
