//! The keypair agent: applies the SSH key that a cloud binds to this instance, and proves that it took effect.
//!
//! Five rooms, and a command walks through them once (docs/architecture.md has the picture): [`channel`] brings
//! it in bytes, [`transaction`] judges it and carries it out, [`guest`] is the machine it is carried out on,
//! [`policy`] decides what should happen, and [`cli`] is the person's way in. [`agent`] is the daemon's loop.

// They end the process where a descriptor is full or closed.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod agent;
pub mod channel;
pub mod cli;
pub mod config;
pub mod guest;
pub mod logging;
pub mod policy;
pub mod transaction;

/// This agent's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
