//! Carries out a command completely or not at all. `run` and `apply` both use this one path (KP-4.9, KP-7.2 and
//! KP-8.1).
//!
//! ```text
//!  bytes ─► parse ─► lock ─► state ─► recover ─► judge ─► observe ─► plan ─► intent ─► steps ─► result
//!                                        │                                              │
//!                                        └───────────────── undo ◄──────────────────────┘
//! ```

mod blocks;
pub mod identity;
pub mod judge;
pub mod look;
pub mod observe;
pub mod outbox;
pub mod owed;
pub mod perform;
pub mod proof;
pub mod recovery;
pub mod sheet;
pub mod signature;
pub mod state;
pub mod steps;
pub mod undo;

use std::fmt;
use std::path::PathBuf;

use crate::guest::files::FileError;
pub use crate::guest::pulse;
pub use crate::guest::scout::reset_scouts as at_rest;
use crate::guest::{Guest, LockFailure};
use crate::policy::foreign::sanitize_path;
use crate::policy::outcome::{Reason, Refusal};
use crate::policy::sshd_config::KbdInteractive;
use crate::policy::types::InstanceId;

use state::State;

/// The part of the configuration that says how the engine carries out commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineSettings {
    /// The user whose authorized_keys file gets the key.
    pub target_user: String,
    /// Whether the keyboard-interactive setting follows the setting for password login.
    pub kbd_interactive: KbdInteractive,
    /// Whether the engine also asks the running sshd for a proof (KP-10.15).
    pub proof: bool,
    /// The instance id from the configuration. If it is set, the id from the channel is not used.
    pub instance_id: Option<InstanceId>,
    /// The file with the signers that may sign the channel's commands. `None`: commands need no signature.
    pub trusted_signers: Option<PathBuf>,
}

/// The transaction engine: it holds a guest and carries out commands on that guest.
#[derive(Debug)]
pub struct Engine<G> {
    guest: G,
    settings: EngineSettings,
    /// The instance id that the daemon learned. It stays in memory if the state file is lost or could not be written.
    adopted: Option<InstanceId>,
}

/// Why the engine could do nothing at all. This is not the result of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineError {
    /// Another process holds the lock. The caller may try again.
    Busy(String),
    /// The state cannot be read or written, or an open intent cannot be undone.
    Refused(Refusal),
}

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy(who) => f.write_str(who),
            Self::Refused(refusal) => f.write_str(&refusal.message),
        }
    }
}

impl std::error::Error for EngineError {}

impl From<Refusal> for EngineError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<LockFailure> for EngineError {
    fn from(failure: LockFailure) -> Self {
        match failure {
            LockFailure::Busy(who) => Self::Busy(who),
            LockFailure::Directory(error) => Self::Refused(state_io_refusal(&error)),
        }
    }
}

impl<G: Guest> Engine<G> {
    /// Returns an engine for this guest.
    pub fn new(guest: G, settings: EngineSettings) -> Self {
        Self { guest, settings, adopted: None }
    }

    /// The guest, read-only.
    pub fn guest(&self) -> &G {
        &self.guest
    }

    /// The settings with which this engine carries out commands.
    pub fn settings(&self) -> &EngineSettings {
        &self.settings
    }

    /// Reads the current state.
    ///
    /// # Errors
    /// `IO_ERROR`: the state file cannot be read, or a newer version wrote it. The remedy is `undo`.
    pub fn load(&self) -> Result<State, Refusal> {
        let bytes = self.guest.load_state().map_err(|error| state_io_refusal(&error))?;
        State::parse(bytes.as_deref()).map_err(|error| {
            Refusal::new(
                Reason::IoError,
                format!(
                    "the state file {} is not usable: {error}; nothing was touched. \"keypair-agent undo\" takes back \
                     all that is ours and starts anew",
                    sanitize_path(&self.guest.state_file())
                ),
            )
        })
    }

    fn save(&mut self, state: &State) -> Result<(), Refusal> {
        let bytes = state.to_bounded_bytes().map_err(|error| {
            let file = sanitize_path(&self.guest.state_file());
            Refusal::new(Reason::IoError, format!("the state cannot be kept in {file}: {error}"))
        })?;
        self.guest.save_state(&bytes).map_err(|error| state_io_refusal(&error))
    }
}

/// Any error of the state directory or the state file. The engine does nothing without its state (KP-4.11).
fn state_io_refusal(error: &FileError) -> Refusal {
    Refusal::new(Reason::IoError, format!("the state cannot be kept: {error}"))
}
