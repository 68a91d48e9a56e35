//! The whole simulation: machine, agent, control plane and network, the possible next actions and their effects. Two
//! explorers use it. tests/model.rs visits every path within a bound, tests/sequences.rs follows long random paths.

use std::sync::Arc;

use keypair_agent::transaction::state::State;

use super::action::{Budget, SimAction};
use super::control_plane::{ControlPlane, INSTANCES, SimCommand};
use super::disk::{Disk, STATE_FILE};
use super::edit::UserEdit;
use super::fault::FaultKind;
use super::machine::{CallRecord, ComponentState, SimulatedMachine, list_edit_faults, list_faults};
use super::oracle::ReferenceState;
use super::sshd::SimSshdConfig;

/// The first second of the simulation. The agent trusts no clock that is behind its build time.
pub const START_SECONDS: i64 = 1_796_083_200; // 2026-12-01

/// The expiry time of a command that has one, and the clock's jump beyond that time.
pub const EXPIRY_SECONDS: i64 = START_SECONDS + 5 * 24 * 60 * 60;
const CLOCK_JUMP_SECONDS: i64 = 10 * 24 * 60 * 60;

/// The agent.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum AgentState {
    /// It does not run.
    Down,
    /// It runs.
    Up {
        /// The result that it delivers before it polls for the next command.
        due: Option<UndeliveredResult>,
        /// The commands whose result got a final answer in this process.
        settled: Vec<String>,
    },
}

/// A result that is not delivered yet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UndeliveredResult {
    /// The id of its command.
    pub id: String,
    /// Its JSON bytes.
    pub result: String,
    /// Whether the state holds it.
    pub recorded: bool,
}

/// The edits that an exploration uses.
#[derive(Debug, Clone, Default)]
pub struct SimulationSetup {
    /// The possible edits by the user.
    pub edits: Vec<UserEdit>,
}

/// The bytes of a state file, and the parsed state.
type CachedState = (Option<Arc<[u8]>>, Arc<State>);

/// One state of the whole simulation.
#[derive(Debug, Clone)]
pub struct Simulation {
    /// The guest.
    pub machine: SimulatedMachine,
    /// The agent.
    pub agent: AgentState,
    /// The control plane.
    pub control_plane: ControlPlane,
    /// The remaining budget.
    pub left: Budget,
    /// The state that the agent must hold.
    pub known: ReferenceState,
    /// The configuration with which sshd ran when no command was in flight.
    pub running_at_rest: Option<SimSshdConfig>,
    /// The command that was in flight at a crash.
    pub open: Option<SimCommand>,
    /// The number of tries of each command. It sets the time of the results.
    pub tries: Vec<u8>,
    /// Whether the clock has passed the expiry time of the command that has one.
    pub is_late: bool,
    /// The state file that was read last.
    pub parsed: Option<CachedState>,
}

impl Simulation {
    /// The start: a guest on which the agent was just installed.
    pub fn new(disk: Disk, control_plane: ControlPlane, left: Budget) -> Self {
        let machine = SimulatedMachine::new(disk);
        Self {
            running_at_rest: machine.running.clone(),
            machine,
            agent: AgentState::Down,
            tries: vec![0; control_plane.orders.len()],
            control_plane,
            left,
            known: ReferenceState::default(),
            open: None,
            is_late: false,
            parsed: None,
        }
    }

    /// Sets the clock for the next try of a command. Each try has its own time.
    pub fn begin_try(&mut self, number: usize) {
        let late = if self.is_late { CLOCK_JUMP_SECONDS } else { 0 };
        self.machine.now = START_SECONDS + late + number as i64 * 1000 + i64::from(self.tries[number]);
        self.tries[number] += 1;
    }

    /// The present state file. It is parsed again only after a change.
    pub fn read_state(&mut self) -> Arc<State> {
        let bytes = self.machine.disk.read(STATE_FILE);
        match &self.parsed {
            Some((read, state)) if read.as_deref() == bytes => state.clone(),
            _ => {
                let state = Arc::new(State::parse(bytes).unwrap());
                self.parsed = Some((bytes.map(Arc::from), state.clone()));
                state
            }
        }
    }

    /// The next action without disturbances; `None` if everything is done.
    pub fn next_action(&self) -> Option<SimAction> {
        match &self.agent {
            AgentState::Down => Some(SimAction::Start(None)),
            AgentState::Up { due: Some(_), .. } => {
                Some(SimAction::Deliver { answer_lost: false, fault: None })
            }
            AgentState::Up { due: None, .. } => self
                .control_plane
                .unanswered_commands()
                .next()
                .map(|command| SimAction::HandOut(command, None)),
        }
    }

    /// Every action that is possible now.
    pub fn possible_actions(&self, setting: &SimulationSetup) -> Vec<SimAction> {
        if self.machine.violation.is_some() {
            return Vec::new();
        }
        let mut calls: Vec<SimAction> = self.next_action().into_iter().collect();
        let left = self.left;
        let is_idle = !matches!(&self.agent, AgentState::Up { due: Some(_), .. });
        let is_up = is_idle && self.agent != AgentState::Down;
        if is_up && left.disturbances > 0 {
            if left.reorders > 0 {
                let later = self.control_plane.unanswered_commands().skip(1);
                calls.extend(later.map(|command| SimAction::HandOut(command, None)));
            }
            if left.repeats > 0 {
                calls.extend(self.answered_commands().map(|command| SimAction::HandOut(command, None)));
            }
        }
        if is_idle && left.disturbances > 0 && left.undos > 0 {
            calls.push(SimAction::Undo(None));
        }
        let mut actions = Vec::new();
        for call in calls {
            self.add_with_faults(call, setting, &mut actions);
        }
        if left.disturbances > 0 {
            if left.lost > 0 && !is_idle {
                actions.push(SimAction::Deliver { answer_lost: true, fault: None });
            }
            // A delivery reads only the state file, so an event before it has the same effect as after it.
            if is_idle {
                self.add_events(setting, &mut actions);
            }
        }
        actions
    }

    fn add_events(&self, setting: &SimulationSetup, actions: &mut Vec<SimAction>) {
        let left = self.left;
        if left.edits > 0 {
            let changes = |edit: &&UserEdit| self.machine.can_edit(**edit);
            actions.extend(setting.edits.iter().filter(changes).map(|edit| SimAction::Edit(*edit)));
        }
        if left.components > 0 {
            let others = [ComponentState::Current, ComponentState::Outdated, ComponentState::Missing];
            let others = others.into_iter().filter(|other| *other != self.machine.component);
            actions.extend(others.map(SimAction::Component));
        }
        if left.clones > 0 && self.control_plane.instance + 1 < INSTANCES.len() {
            actions.push(SimAction::Clone);
        }
        if left.delays > 0 && self.control_plane.first_expires_at.is_some() && !self.is_late {
            actions.push(SimAction::ClockJump);
        }
    }

    /// The commands that have a result, as the service sent them.
    fn answered_commands(&self) -> impl Iterator<Item = SimCommand> {
        let all = (0..self.control_plane.orders.len())
            .flat_map(|number| (0..INSTANCES.len()).map(move |instance| (number, instance)));
        all.map(|(number, instance)| self.control_plane.command_at(number, instance))
            .filter(|command| self.control_plane.results.contains_key(&command.id()))
    }

    /// Adds a call without a fault, and once with each possible fault.
    fn add_with_faults(&self, call: SimAction, setting: &SimulationSetup, actions: &mut Vec<SimAction>) {
        let mut undisturbed = self.clone();
        undisturbed.perform_action(&call);
        let log = &undisturbed.machine.call;
        actions.push(call.clone());
        if undisturbed.machine.violation.is_some() {
            return;
        }
        let mut all = list_faults(log);
        let has_edits = matches!(call, SimAction::Start(_) | SimAction::HandOut(..) | SimAction::Undo(_));
        if has_edits && self.left.edits > 0 {
            all.extend(setting.edits.iter().flat_map(|edit| list_edit_faults(log, *edit)));
        }
        let left = if is_disturbance(&call, self) { undisturbed.left } else { self.left };
        let is_hand_out = matches!(call, SimAction::HandOut(..));
        actions.extend(
            { all }
                .into_iter()
                .filter(|fault| left.spend_fault(fault.what).is_some())
                .filter(|fault| is_hand_out || fault.what != FaultKind::Sigterm)
                .map(|fault| call.clone().with_fault(fault)),
        );
    }

    /// The state after the action.
    pub fn successor(&self, action: &SimAction) -> Self {
        let mut next = self.clone();
        next.perform_action(action);
        next
    }

    fn perform_action(&mut self, action: &SimAction) {
        self.spend_budget(action);
        match action {
            SimAction::Start(fault) => self.start_agent(*fault),
            SimAction::HandOut(command, fault) => self.hand_out_command(command, *fault),
            SimAction::Deliver { answer_lost, fault } => self.deliver_result(*answer_lost, *fault),
            SimAction::Undo(fault) => self.run_undo(*fault),
            SimAction::Edit(edit) => {
                self.machine.call = CallRecord::default();
                self.machine.apply_edit(*edit);
            }
            SimAction::Component(component) => self.machine.component = *component,
            SimAction::Clone => {
                self.control_plane.instance += 1;
                self.restart_machine();
            }
            SimAction::ClockJump => self.is_late = true,
        }
    }

    /// The machine restarts.
    pub fn restart_machine(&mut self) {
        self.machine.boot();
        self.reset_after_boot();
    }

    /// The state after a start of the machine and before the start of the agent.
    pub fn reset_after_boot(&mut self) {
        self.running_at_rest = SimSshdConfig::from_disk(&self.machine.rest, "").ok();
        self.agent = AgentState::Down;
    }

    fn spend_budget(&mut self, action: &SimAction) {
        let spent = match action {
            SimAction::Start(_) => Some(self.left),
            SimAction::HandOut(command, _) => match self.classify_out_of_turn(command) {
                None => Some(self.left),
                Some(OutOfTurn::Repeated) => self.left.spend_one(|left| &mut left.repeats),
                Some(OutOfTurn::Ahead) => self.left.spend_one(|left| &mut left.reorders),
            },
            SimAction::Deliver { answer_lost: true, .. } => self.left.spend_one(|left| &mut left.lost),
            SimAction::Deliver { answer_lost: false, .. } => Some(self.left),
            SimAction::Undo(_) => self.left.spend_one(|left| &mut left.undos),
            SimAction::Edit(_) => self.left.spend_one(|left| &mut left.edits),
            SimAction::Component(_) => self.left.spend_one(|left| &mut left.components),
            SimAction::Clone => self.left.spend_one(|left| &mut left.clones),
            SimAction::ClockJump => self.left.spend_one(|left| &mut left.delays),
        };
        let spent = match (spent, action.fault()) {
            (Some(spent), Some(fault)) => spent.spend_fault(fault.what),
            (spent, _) => spent,
        };
        self.left = spent.unwrap();
    }

    fn classify_out_of_turn(&self, command: &SimCommand) -> Option<OutOfTurn> {
        if self.control_plane.results.contains_key(&command.id()) {
            return Some(OutOfTurn::Repeated);
        }
        let next = self.control_plane.unanswered_commands().next();
        (next != Some(*command)).then_some(OutOfTurn::Ahead)
    }
}

enum OutOfTurn {
    Repeated,
    Ahead,
}

/// Whether the action itself counts as a disturbance.
fn is_disturbance(action: &SimAction, world: &Simulation) -> bool {
    match action {
        SimAction::HandOut(command, _) => world.classify_out_of_turn(command).is_some(),
        SimAction::Undo(_) => true,
        _ => false,
    }
}
