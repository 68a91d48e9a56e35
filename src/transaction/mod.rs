//! Making it happen, or not at all: the one path of `run` and `apply` (KP-4.9, KP-7.2 and KP-8.1).
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

/// What the configuration says about carrying out commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineSettings {
    /// Whose authorized_keys file the key goes into.
    pub target_user: String,
    /// Whether keyboard-interactive follows password login.
    pub kbd_interactive: KbdInteractive,
    /// Whether the running sshd is asked as well (KP-10.15).
    pub proof: bool,
    /// This instance's id, where the channel must not say it.
    pub instance_id: Option<InstanceId>,
    /// Whose signatures the channel's commands must bear; `None`: they need none.
    pub trusted_signers: Option<PathBuf>,
}

/// The transaction room: a guest, and how commands are carried out on it.
#[derive(Debug)]
pub struct Engine<G> {
    guest: G,
    settings: EngineSettings,
    /// Who the daemon learnt that this is: it outlives a state that is lost, or could not be written, under it.
    adopted: Option<InstanceId>,
}

/// Why nothing could be done, beyond any command's result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineError {
    /// Another process holds the lock; it is worth another try.
    Busy(String),
    /// The state cannot be read or written, or an open intent not be undone.
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
    /// The room for this guest.
    pub fn new(guest: G, settings: EngineSettings) -> Self {
        Self { guest, settings, adopted: None }
    }

    /// The guest, to look at.
    pub fn guest(&self) -> &G {
        &self.guest
    }

    /// How commands are carried out.
    pub fn settings(&self) -> &EngineSettings {
        &self.settings
    }

    /// The state as it stands.
    ///
    /// # Errors
    /// `IO_ERROR`: it cannot be read, or is a newer version's; the remedy is `undo`.
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

/// Whatever is wrong with the place of the state: nothing can be done without it (KP-4.11).
fn state_io_refusal(error: &FileError) -> Refusal {
    Refusal::new(Reason::IoError, format!("the state cannot be kept: {error}"))
}
