//! The whole: machine, agent, control plane, network; what may happen next, and what comes of it. Both explorers walk
//! it: the one every way there is within a bound (tests/model.rs), the other long ways at random (tests/sequences.rs).

use std::sync::Arc;

use keypair_agent::transaction::state::State;

use super::action::{Action, Budget};
use super::control_plane::{Command, ControlPlane, INSTANCES};
use super::disk::{Disk, STATE};
use super::edit::Edit;
use super::fault::What;
use super::machine::{Call, Component, Machine, edits, faults};
use super::oracle::Known;
use super::sshd::Config;

/// The first second of it: the agent trusts no clock that is behind its build.
pub const EPOCH: i64 = 1_796_083_200; // 2026-12-01

/// When a command with an end expires, and how far the clock goes to be past that.
pub const EXPIRY: i64 = EPOCH + 5 * 24 * 60 * 60;
const LATER: i64 = 10 * 24 * 60 * 60;

/// The agent.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Agent {
    /// It does not run.
    Down,
    /// It runs.
    Up {
        /// The result that it delivers before it asks for the next command.
        due: Option<Due>,
        /// The commands whose result got a final answer from this process.
        settled: Vec<String>,
    },
}

/// A result on its way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Due {
    /// The command it answers.
    pub id: String,
    /// Its bytes.
    pub result: String,
    /// Whether the state holds it.
    pub recorded: bool,
}

/// What the user may do in a walk, and how its guest begins.
#[derive(Debug, Clone, Default)]
pub struct Setting {
    /// The edits that may come.
    pub edits: Vec<Edit>,
}

/// The bytes of a state file, and what they say.
type Parsed = (Option<Arc<[u8]>>, Arc<State>);

/// A state of the whole.
#[derive(Debug, Clone)]
pub struct World {
    /// The guest.
    pub machine: Machine,
    /// The agent.
    pub agent: Agent,
    /// The control plane.
    pub control_plane: ControlPlane,
    /// What may still happen.
    pub left: Budget,
    /// What the agent has to know.
    pub known: Known,
    /// What sshd ran with when nothing was in flight.
    pub running_at_rest: Option<Config>,
    /// The command that was in flight at a crash.
    pub open: Option<Command>,
    /// How often each command was performed: the clock of its results.
    pub tries: Vec<u8>,
    /// Whether the end of the command that has one is past.
    pub is_late: bool,
    /// The state file that was read last.
    pub parsed: Option<Parsed>,
}

impl World {
    /// The beginning: a guest on which the agent was just installed.
    pub fn new(disk: Disk, control_plane: ControlPlane, left: Budget) -> Self {
        let machine = Machine::new(disk);
        Self {
            running_at_rest: machine.running.clone(),
            machine,
            agent: Agent::Down,
            tries: vec![0; control_plane.orders.len()],
            control_plane,
            left,
            known: Known::default(),
            open: None,
            is_late: false,
            parsed: None,
        }
    }

    /// Sets the clock for the next try of a command: no two tries are at one moment.
    pub fn next_try(&mut self, number: usize) {
        let late = if self.is_late { LATER } else { 0 };
        self.machine.now = EPOCH + late + number as i64 * 1000 + i64::from(self.tries[number]);
        self.tries[number] += 1;
    }

    /// The state file as it stands; parsed once for as long as it is the same.
    pub fn state(&mut self) -> Arc<State> {
        let bytes = self.machine.disk.read(STATE);
        match &self.parsed {
            Some((read, state)) if read.as_deref() == bytes => state.clone(),
            _ => {
                let state = Arc::new(State::parse(bytes).unwrap());
                self.parsed = Some((bytes.map(Arc::from), state.clone()));
                state
            }
        }
    }

    /// What happens where nothing disturbs; `None` where all is done.
    pub fn progress(&self) -> Option<Action> {
        match &self.agent {
            Agent::Down => Some(Action::Start(None)),
            Agent::Up { due: Some(_), .. } => Some(Action::Deliver { answer_lost: false, fault: None }),
            Agent::Up { due: None, .. } => {
                self.control_plane.unanswered().next().map(|command| Action::HandOut(command, None))
            }
        }
    }

    /// Everything that may happen now.
    pub fn actions(&self, setting: &Setting) -> Vec<Action> {
        if self.machine.violation.is_some() {
            return Vec::new();
        }
        let mut calls: Vec<Action> = self.progress().into_iter().collect();
        let left = self.left;
        let is_idle = !matches!(&self.agent, Agent::Up { due: Some(_), .. });
        let is_up = is_idle && self.agent != Agent::Down;
        if is_up && left.disturbances > 0 {
            if left.reorders > 0 {
                let later = self.control_plane.unanswered().skip(1);
                calls.extend(later.map(|command| Action::HandOut(command, None)));
            }
            if left.repeats > 0 {
                calls.extend(self.answered().map(|command| Action::HandOut(command, None)));
            }
        }
        if is_idle && left.disturbances > 0 && left.undos > 0 {
            calls.push(Action::Undo(None));
        }
        let mut actions = Vec::new();
        for call in calls {
            self.add_with_faults(call, setting, &mut actions);
        }
        if left.disturbances > 0 {
            if left.lost > 0 && !is_idle {
                actions.push(Action::Deliver { answer_lost: true, fault: None });
            }
            // A delivery looks at no file but the state: what happens before one could as well happen after it.
            if is_idle {
                self.add_events(setting, &mut actions);
            }
        }
        actions
    }

    fn add_events(&self, setting: &Setting, actions: &mut Vec<Action>) {
        let left = self.left;
        if left.edits > 0 {
            let changes = |edit: &&Edit| self.machine.may_be_edited(**edit);
            actions.extend(setting.edits.iter().filter(changes).map(|edit| Action::Edit(*edit)));
        }
        if left.components > 0 {
            let others = [Component::New, Component::Old, Component::Missing];
            let others = others.into_iter().filter(|other| *other != self.machine.component);
            actions.extend(others.map(Action::Component));
        }
        if left.clones > 0 && self.control_plane.instance + 1 < INSTANCES.len() {
            actions.push(Action::Clone);
        }
        if left.delays > 0 && self.control_plane.first_expires_at.is_some() && !self.is_late {
            actions.push(Action::TimePasses);
        }
    }

    /// The commands that have a result, as they were handed out.
    fn answered(&self) -> impl Iterator<Item = Command> {
        let all = (0..self.control_plane.orders.len())
            .flat_map(|number| (0..INSTANCES.len()).map(move |instance| (number, instance)));
        all.map(|(number, instance)| self.control_plane.command(number, instance))
            .filter(|command| self.control_plane.results.contains_key(&command.id()))
    }

    /// A call, undisturbed and with everything that may disturb it.
    fn add_with_faults(&self, call: Action, setting: &Setting, actions: &mut Vec<Action>) {
        let mut undisturbed = self.clone();
        undisturbed.act(&call);
        let log = &undisturbed.machine.call;
        actions.push(call.clone());
        if undisturbed.machine.violation.is_some() {
            return;
        }
        let mut all = faults(log);
        let has_edits = matches!(call, Action::Start(_) | Action::HandOut(..) | Action::Undo(_));
        if has_edits && self.left.edits > 0 {
            all.extend(setting.edits.iter().flat_map(|edit| edits(log, *edit)));
        }
        let left = if is_disturbance(&call, self) { undisturbed.left } else { self.left };
        let is_hand_out = matches!(call, Action::HandOut(..));
        actions.extend(
            { all }
                .into_iter()
                .filter(|fault| left.after(fault.what).is_some())
                .filter(|fault| is_hand_out || fault.what != What::Stop)
                .map(|fault| call.clone().with(fault)),
        );
    }

    /// The state after it.
    pub fn after(&self, action: &Action) -> Self {
        let mut next = self.clone();
        next.act(action);
        next
    }

    fn act(&mut self, action: &Action) {
        self.spend(action);
        match action {
            Action::Start(fault) => self.start(*fault),
            Action::HandOut(command, fault) => self.hand_out(command, *fault),
            Action::Deliver { answer_lost, fault } => self.deliver(*answer_lost, *fault),
            Action::Undo(fault) => self.undo(*fault),
            Action::Edit(edit) => {
                self.machine.call = Call::default();
                self.machine.edit(*edit);
            }
            Action::Component(component) => self.machine.component = *component,
            Action::Clone => {
                self.control_plane.instance += 1;
                self.restart();
            }
            Action::TimePasses => self.is_late = true,
        }
    }

    /// The machine starts again.
    pub fn restart(&mut self) {
        self.machine.start();
        self.power_is_back();
    }

    /// After a start of the machine, the agent's yet to come.
    pub fn power_is_back(&mut self) {
        self.running_at_rest = Config::of(&self.machine.rest, "").ok();
        self.agent = Agent::Down;
    }

    fn spend(&mut self, action: &Action) {
        let spent = match action {
            Action::Start(_) => Some(self.left),
            Action::HandOut(command, _) => match self.is_out_of_turn(command) {
                None => Some(self.left),
                Some(OutOfTurn::Repeated) => self.left.spent(|left| &mut left.repeats),
                Some(OutOfTurn::Ahead) => self.left.spent(|left| &mut left.reorders),
            },
            Action::Deliver { answer_lost: true, .. } => self.left.spent(|left| &mut left.lost),
            Action::Deliver { answer_lost: false, .. } => Some(self.left),
            Action::Undo(_) => self.left.spent(|left| &mut left.undos),
            Action::Edit(_) => self.left.spent(|left| &mut left.edits),
            Action::Component(_) => self.left.spent(|left| &mut left.components),
            Action::Clone => self.left.spent(|left| &mut left.clones),
            Action::TimePasses => self.left.spent(|left| &mut left.delays),
        };
        let spent = match (spent, action.fault()) {
            (Some(spent), Some(fault)) => spent.after(fault.what),
            (spent, _) => spent,
        };
        self.left = spent.unwrap();
    }

    fn is_out_of_turn(&self, command: &Command) -> Option<OutOfTurn> {
        if self.control_plane.results.contains_key(&command.id()) {
            return Some(OutOfTurn::Repeated);
        }
        let next = self.control_plane.unanswered().next();
        (next != Some(*command)).then_some(OutOfTurn::Ahead)
    }
}

enum OutOfTurn {
    Repeated,
    Ahead,
}

/// Whether the action by itself is counted.
fn is_disturbance(action: &Action, world: &World) -> bool {
    match action {
        Action::HandOut(command, _) => world.is_out_of_turn(command).is_some(),
        Action::Undo(_) => true,
        _ => false,
    }
}
