//! The calls: what `run` asks of its transaction, in `run`'s order, and what has to hold after each.

use std::cell::RefCell;
use std::mem;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use keypair_agent::policy::command::Origin;
use keypair_agent::policy::sshd_config::KbdInteractive;
use keypair_agent::transaction::perform::{Answered, Performed};
use keypair_agent::transaction::state::State;
use keypair_agent::transaction::{Settings, Transaction};

use super::control_plane::{Command, INSTANCES, Order, Stored};
use super::disk::Disk;
use super::fault::{Fault, What};
use super::guest::Simulated;
use super::keys;
use super::machine::{Call, Machine};
use super::oracle;
use super::place::Place;
use super::property::Property;
use super::world::{Agent, Due, World};

/// What a call found.
pub struct Before {
    /// The state file.
    pub state: Arc<State>,
    /// The fault that is to come.
    pub fault: Option<Fault>,
}

impl Before {
    /// Whether the user edits a file in the midst of the call.
    pub fn is_edited(&self) -> bool {
        self.fault.is_some_and(|fault| matches!(fault.what, What::Edit(_)))
    }

    /// Whether a step fails in it.
    pub fn has_failure(&self) -> bool {
        self.fault.is_some_and(|fault| matches!(fault.what, What::Fails | What::FailsLate))
    }
}

fn settings(place: Place) -> Settings {
    Settings {
        target_user: place.target().to_owned(),
        kbd_interactive: KbdInteractive::Follow,
        proof: true,
        instance_id: None,
        trusted_signers: None,
    }
}

impl World {
    /// Calls the transaction on this machine.
    fn call<R>(
        &mut self,
        call: Call,
        calls: impl FnOnce(&mut Transaction<Simulated>, &AtomicBool) -> R,
    ) -> R {
        let stop = call.stop.clone();
        self.machine.call = call;
        let settings = settings(self.machine.disk.place);
        let nothing = Machine::new(Disk::new("", None));
        let shared = Rc::new(RefCell::new(mem::replace(&mut self.machine, nothing)));
        let mut transaction = Transaction::new(Simulated(shared.clone()), settings);
        let done = calls(&mut transaction, &stop);
        drop(transaction);
        self.machine = Rc::try_unwrap(shared).unwrap().into_inner();
        self.machine.end();
        done
    }

    fn before(&mut self, fault: Option<Fault>) -> Before {
        Before { state: self.state(), fault }
    }

    fn blank(&self, fault: Option<Fault>) -> Call {
        // What was in flight at a crash may stand until it is taken back.
        let asked = self.open.iter().filter_map(|command| key(command.order)).collect();
        let was_detach = self.open.is_some_and(|command| matches!(command.order, Order::Detach(_)));
        let had_password = self.machine.takes_roots_password();
        Call {
            fault,
            asked,
            is_detach: was_detach,
            had_password,
            running_at_rest: self.running_at_rest.clone(),
            ..Call::default()
        }
    }

    /// After a call that a crash ended; whether it was one.
    fn is_down(&mut self, before: &Before) -> bool {
        let crashed = self.machine.call.is_over;
        if crashed {
            match before.fault.map(|fault| fault.what) {
                Some(What::PowerCut { .. }) => self.power_is_back(),
                _ => self.agent = Agent::Down,
            }
        }
        crashed
    }

    /// `run` begins: recover, adopt the instance's id, look what is undelivered.
    pub fn start(&mut self, fault: Option<Fault>) {
        let before = self.before(fault);
        if let Some(command) = &self.open {
            self.next_try(command.number);
        }
        let id = INSTANCES[self.control_plane.instance].parse().unwrap();
        let (recovered, undelivered) = self.call(self.blank(fault), |transaction, _| {
            let recovered = transaction.recover();
            let _ = transaction.adopt(&id);
            (recovered, transaction.undelivered())
        });
        let state = self.state();
        self.judge_recovery(&before, &state);
        self.follow_instance(&state);
        if self.is_down(&before) {
            return;
        }
        match recovered {
            Ok(()) => self.judge_recovered(&before, &state),
            Err(why) if before.fault.is_none() && self.machine.files().is_some() => {
                self.machine
                    .report(Property::Recovered, format!("recovery fails, and nothing keeps it: {why}"));
            }
            Err(_) => {}
        }
        let due = undelivered.ok().flatten().map(|stored| Due {
            id: stored.command_id.to_string(),
            result: stored.result,
            recorded: true,
        });
        if let Some(due) = &due
            && self.known.seen.get(&due.id) != Some(&due.result)
        {
            self.machine.report(Property::OneResult, "what is undelivered is not the recorded result");
        }
        self.agent = Agent::Up { due, settled: Vec::new() };
    }

    /// The service hands a command out.
    pub fn hand_out(&mut self, command: &Command, fault: Option<Fault>) {
        let before = self.before(fault);
        self.next_try(command.number);
        let mut call = self.blank(fault);
        call.asked.extend(key(command.order));
        call.is_detach |= matches!(command.order, Order::Detach(_));
        call.replaces = matches!(command.order, Order::Attach { .. });
        let now = self.machine.now;
        let expect = |world: &Self| {
            let known = world.known.on(world.control_plane.instance);
            oracle::expect(command, &known, &world.machine.rest, world.machine.component, now)
        };
        let rest = self.machine.rest.clone();
        let mut expected = vec![expect(self)];
        let known = self.known.on(self.control_plane.instance);
        let raises = oracle::raises(command, &known, self.machine.component, now);
        let id = INSTANCES[self.control_plane.instance].parse().unwrap();
        let performed = self.call(call, |transaction, stop| {
            let _ = transaction.adopt(&id);
            transaction.perform(&command.bytes(), Origin::Channel, stop)
        });
        if self.machine.rest != rest {
            expected.push(expect(self));
        }
        let state = self.state();
        self.judge_recovery(&before, &state);
        self.follow_instance(&state);
        self.known.follow_forgotten(&state);
        self.follow_sequence(command, raises, &state);
        let recorded = self.judge_record(command, &before, &state, &expected);
        if self.is_down(&before) {
            if !recorded
                && state.intent.as_ref().is_some_and(|intent| intent.command.id.as_str() == command.id())
            {
                self.open = Some(*command);
            }
            return;
        }
        self.open = self.open.filter(|_| state.intent.is_some());
        match performed {
            Performed::Unanswered(why) => {
                if !before.fault.is_some_and(|fault| fault.what == What::Stop) {
                    self.machine.report(Property::Answered, format!("{command} gets no answer: {why}"));
                }
                self.judge_nothing_done(&before, &state, "a command that is not answered");
                self.agent = Agent::Down;
            }
            Performed::Answered(answered) => {
                if !answered.recorded && !answered.repeated {
                    self.judge_unrecorded(command, &before, &state, &answered);
                }
                self.send(command, &before, answered, &state);
            }
        }
    }

    /// The answer is on its way, or sent once more to a service that has it.
    fn send(&mut self, command: &Command, before: &Before, answered: Answered, state: &State) {
        let Answered { id, result, recorded, repeated, .. } = answered;
        let id = id.to_string();
        if (recorded || repeated) && self.known.seen.get(&id) != Some(&result) {
            self.machine.report(
                Property::OneResult,
                format!("{command} is answered by other bytes than were recorded"),
            );
        }
        let undelivered = state.undelivered.as_ref().map(|stored| &stored.result);
        if recorded && undelivered != Some(&result) {
            self.machine.report(Property::OneResult, "a recorded result is not the undelivered one");
        }
        let stops = before.fault.is_some_and(|fault| fault.what == What::Stop);
        let Agent::Up { due, settled } = &mut self.agent else { return };
        if settled.contains(&id) {
            self.put(&id, &result);
        } else {
            *due = Some(Due { id, result, recorded });
        }
        if stops {
            // The one quick try that a stop makes for it is lost: the next start has to do it.
            self.agent = Agent::Down;
        }
    }

    fn put(&mut self, id: &str, result: &str) {
        if !id.ends_with(INSTANCES[self.control_plane.instance]) {
            // The service knows no such command of this instance's (404).
            return;
        }
        let stored = self.control_plane.put(id, result);
        // Where the state could not hold the first answer, or was told to forget it, a second one may be another.
        if stored == Stored::Conflict && !self.known.unrecorded.contains(id) {
            self.machine.report(Property::OneResult, format!("{id} has another result at the control plane"));
        }
    }

    /// The result that is due goes out.
    pub fn deliver(&mut self, answer_lost: bool, fault: Option<Fault>) {
        let Agent::Up { due: Some(due), .. } = self.agent.clone() else { return };
        let before = self.before(fault);
        self.put(&due.id, &due.result);
        if answer_lost {
            return;
        }
        if due.recorded {
            let id = due.id.parse().unwrap();
            let _ = self.call(self.blank(fault), |transaction, _| transaction.delivered(&id));
            let state = self.state();
            if before.fault.is_none() && state.undelivered.is_some() {
                self.machine.report(Property::Answered, "a delivered result stays in the outbox");
            }
            self.known.follow_forgotten(&state);
            self.judge_nothing_done(&before, &state, "a delivery");
        } else {
            // No step of this call's.
            self.machine.call = self.blank(fault);
            self.machine.end();
        }
        if self.is_down(&before) {
            return;
        }
        if let Agent::Up { due: delivered, settled } = &mut self.agent {
            *delivered = None;
            settled.push(due.id);
        }
    }

    /// The person at the console takes all of ours back.
    pub fn undo(&mut self, fault: Option<Fault>) {
        let before = self.before(fault);
        let number = self.open.map_or(0, |command| command.number);
        self.next_try(number);
        let call = Call { is_undo: true, ..self.blank(fault) };
        let undone = self.call(call, |transaction, _| transaction.undo());
        let state = self.state();
        self.judge_recovery(&before, &state);
        let is_whole = undone.is_ok_and(|undone| undone.failures.is_empty()) && !self.machine.call.is_over;
        self.judge_undo(&before, &state, is_whole);
        // The console's process is another than the daemon's, unless the power goes.
        let agent = self.agent.clone();
        if self.is_down(&before) && before.fault.is_some_and(|fault| fault.what == What::Kill) {
            self.agent = agent;
        }
    }
}

/// The key that a command brings.
fn key(order: Order) -> Option<&'static str> {
    match order {
        Order::Attach { pair, .. } => Some(pair.key()),
        Order::Detach(_) | Order::SetPasswordAuth(_) => None,
    }
}

/// What stands of ours in the key file that sshd reads.
pub fn ours(disk: &Disk) -> Vec<u8> {
    keys::apart(disk.keys()).0
}
