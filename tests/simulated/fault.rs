//! The faults that strike during a call, and the steps at which they strike.

use std::fmt;

use super::edit::UserEdit;

/// One fault during one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct InjectedFault {
    /// The step before which it strikes, counted from 0. For an edit: the look at the edited file before which it
    /// comes. The total number means the end of the call, before its answer is used.
    pub at: usize,
    /// That step's name.
    pub step: &'static str,
    /// The kind of the fault.
    pub what: FaultKind,
}

/// The kinds of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// The power fails, and the machine starts again: sshd reads the files that are on the disk.
    PowerCut {
        /// Whether an interrupted write leaves its temporary file.
        temporary: bool,
    },
    /// The agent is killed. sshd continues with the configuration that it has read.
    Kill,
    /// The step fails once, without any effect.
    StepFailure,
    /// The step fails once, although the new state is in place. For a reload: the listener dies of it.
    LateFailure,
    /// SIGTERM.
    Sigterm,
    /// The user edits a file.
    Edit(UserEdit),
}

impl FaultKind {
    /// Whether the agent does not finish the call.
    pub fn is_crash(self) -> bool {
        matches!(self, Self::PowerCut { .. } | Self::Kill)
    }
}

impl fmt::Display for InjectedFault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (number, step) = (self.at + 1, self.step);
        match self.what {
            FaultKind::PowerCut { temporary: true } => {
                write!(
                    out,
                    "the power goes in the midst of step {number} ({step}), which leaves its temporary"
                )
            }
            FaultKind::PowerCut { temporary: false } => {
                write!(out, "the power goes before step {number} ({step})")
            }
            FaultKind::Kill => write!(out, "the agent is killed before step {number} ({step})"),
            FaultKind::StepFailure => write!(out, "step {number} ({step}) fails"),
            FaultKind::LateFailure if step == RELOAD => {
                write!(out, "step {number} ({step}) fails: the listener dies")
            }
            FaultKind::LateFailure => {
                write!(out, "step {number} ({step}) fails, with the new bytes in their place")
            }
            FaultKind::Sigterm => write!(out, "SIGTERM before step {number} ({step})"),
            FaultKind::Edit(edit) => write!(out, "{edit} before look {number} ({step})"),
        }
    }
}

/// The names of the steps.
pub const SAVE_STATE: &str = "save the state";
/// The agent writes its setting into one of sshd's files.
pub const WRITE_SETTING: &str = "write sshd's file";
/// A reload of sshd.
pub const RELOAD: &str = "reload sshd";
/// The start of sshd after a failed reload.
pub const RESTORE_SSHD: &str = "bring sshd back";
/// The question to the running sshd (the proof).
pub const PROBE_SSHD: &str = "ask the running sshd";
/// The question to a private sshd (the trial).
pub const TRY_KEY: &str = "ask a private sshd";
/// The end of a call, before its answer is used.
pub const END_OF_CALL: &str = "its end";
