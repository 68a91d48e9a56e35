//! What goes wrong in the midst of a call, and at which of its steps.

use std::fmt;

use super::edit::UserEdit;

/// One disturbance of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct InjectedFault {
    /// Before which step, counted from 0; for an edit, before which look at what is edited. The number of all of them
    /// stands for the end of the call, before its answer is used.
    pub at: usize,
    /// That step's name.
    pub step: &'static str,
    /// What happens.
    pub what: FaultKind,
}

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// The power goes, and the machine starts again: sshd reads its files as they stand.
    PowerCut {
        /// Whether a write that it cuts short leaves its temporary.
        temporary: bool,
    },
    /// The agent is killed; sshd runs on with what it has read.
    Kill,
    /// The step fails, once, and nothing came of it.
    StepFailure,
    /// The step fails, once, although the new state is in its place; a reload that the listener dies of.
    LateFailure,
    /// SIGTERM.
    Sigterm,
    /// The user edits a file.
    Edit(UserEdit),
}

impl FaultKind {
    /// Whether the agent comes to no end of the call.
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

/// The steps, by name.
pub const SAVE_STATE: &str = "save the state";
/// Our setting goes into one of sshd's files.
pub const WRITE_SETTING: &str = "write sshd's file";
/// A reload of sshd.
pub const RELOAD: &str = "reload sshd";
/// After a failed one.
pub const RESTORE_SSHD: &str = "bring sshd back";
/// The look that is a question to the running sshd.
pub const PROBE_SSHD: &str = "ask the running sshd";
/// The look that is a question to a private sshd.
pub const TRY_KEY: &str = "ask a private sshd";
/// Before the answer of a call is used.
pub const END_OF_CALL: &str = "its end";
