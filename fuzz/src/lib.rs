//! What each fuzz target does with its bytes, and what has to hold whatever they are: nothing panics, and what was
//! read is what it says it is. `make fuzz` runs them; tests/fuzz_corpus.rs goes through what they found.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod files;
mod sshd;
mod wire;

pub use files::{authorized_keys, component, state};
pub use sshd::{sshd_answer, sshd_config};
pub use wire::{command, envelope, http, is_valid_envelope};

/// A target: what it is called, and what it does.
pub type FuzzTarget = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: [FuzzTarget; 8] = [
    ("command", command),
    ("envelope", envelope),
    ("component", component),
    ("authorized_keys", authorized_keys),
    ("sshd_config", sshd_config),
    ("sshd_answer", sshd_answer),
    ("state", state),
    ("http", http),
];

/// A key to bind.
const TEST_KEY_LINE: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHUyBWDs8q6c7Ekkf3PN6Aq1BLsvk8tO3nYyTpUKq4wE";

/// What is said to people and put into the journal: short, and no byte in it that moves a cursor or begins a line.
fn assert_printable(text: &str) {
    assert!(text.len() < 2_000, "{} bytes: {text:.200}", text.len());
    assert!(!text.contains(char::is_control), "{text:?}");
}
