//! The actions of the simulation, and the budget that limits them.

use std::fmt;

use super::control_plane::SimCommand;
use super::edit::UserEdit;
use super::fault::{FaultKind, InjectedFault};
use super::machine::ComponentState;

/// How many events of each kind may still happen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Budget {
    /// Power cuts and kills.
    pub crashes: u8,
    /// Steps that fail.
    pub failures: u8,
    /// SIGTERMs.
    pub stops: u8,
    /// Edits by the user, between commands and within one.
    pub edits: u8,
    /// Changes of the component.
    pub components: u8,
    /// Whether the disk may be copied into another instance.
    pub clones: u8,
    /// Commands that the service sends again after their result.
    pub repeats: u8,
    /// Commands that the service sends out of order.
    pub reorders: u8,
    /// Lost answers to a PUT.
    pub lost: u8,
    /// Runs of `keypair-agent undo` at the console.
    pub undos: u8,
    /// Whether the clock may pass the expiry time of a command.
    pub delays: u8,
    /// The total of all these events except the crashes.
    pub disturbances: u8,
}

impl Budget {
    /// Takes one from the counter that `which` selects; `None` if that counter is 0.
    pub fn spend_one(mut self, which: fn(&mut Self) -> &mut u8) -> Option<Self> {
        let left = which(&mut self);
        *left = left.checked_sub(1)?;
        self.disturbances = self.disturbances.checked_sub(1)?;
        Some(self)
    }

    /// The budget after a fault.
    pub fn spend_fault(mut self, what: FaultKind) -> Option<Self> {
        match what {
            FaultKind::PowerCut { .. } | FaultKind::Kill => {
                self.crashes = self.crashes.checked_sub(1)?;
                Some(self)
            }
            FaultKind::StepFailure | FaultKind::LateFailure => self.spend_one(|left| &mut left.failures),
            FaultKind::Sigterm => self.spend_one(|left| &mut left.stops),
            FaultKind::Edit(_) => self.spend_one(|left| &mut left.edits),
        }
    }
}

/// One event of the simulation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SimAction {
    /// The agent starts: it recovers, learns the instance id, and looks for undelivered results.
    Start(Option<InjectedFault>),
    /// The service sends a command, and the agent performs it.
    HandOut(SimCommand, Option<InjectedFault>),
    /// The agent delivers the pending result.
    Deliver {
        /// Whether the answer gets lost.
        answer_lost: bool,
        /// The fault during the delivery.
        fault: Option<InjectedFault>,
    },
    /// `keypair-agent undo`.
    Undo(Option<InjectedFault>),
    /// The user edits a file.
    Edit(UserEdit),
    /// The component changes.
    Component(ComponentState),
    /// The disk starts as the disk of another instance.
    Clone,
    /// The clock passes the expiry time of the command that has one.
    ClockJump,
}

impl SimAction {
    /// The fault during this action.
    pub fn fault(&self) -> Option<InjectedFault> {
        match self {
            Self::Start(fault)
            | Self::HandOut(_, fault)
            | Self::Deliver { fault, .. }
            | Self::Undo(fault) => *fault,
            Self::Edit(_) | Self::Component(_) | Self::Clone | Self::ClockJump => None,
        }
    }

    pub fn with_fault(self, fault: InjectedFault) -> Self {
        let fault = Some(fault);
        match self {
            Self::Start(_) => Self::Start(fault),
            Self::HandOut(command, _) => Self::HandOut(command, fault),
            Self::Deliver { answer_lost, .. } => Self::Deliver { answer_lost, fault },
            Self::Undo(_) => Self::Undo(fault),
            other => other,
        }
    }
}

impl fmt::Display for SimAction {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start(_) => out.write_str("the agent starts")?,
            Self::HandOut(command, _) => write!(out, "the service hands out {command}")?,
            Self::Deliver { answer_lost: false, .. } => out.write_str("the agent delivers the result")?,
            Self::Deliver { answer_lost: true, .. } => {
                out.write_str("the agent delivers the result, and the answer is lost")?;
            }
            Self::Undo(_) => out.write_str("keypair-agent undo at the console")?,
            Self::Edit(edit) => write!(out, "{edit}")?,
            Self::Component(component) => write!(out, "the component is now {component:?}")?,
            Self::Clone => out.write_str("the disk is copied, and starts as another instance")?,
            Self::ClockJump => out.write_str("the clock passes the end of the first command")?,
        }
        match self.fault() {
            Some(fault) => write!(out, "; {fault}"),
            None => Ok(()),
        }
    }
}
