//! A simulated guest with its control plane and network. The product's own `policy/` and `transaction/` run in it
//! unchanged, and each event is an action (docs/architecture.md, "The model").

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::panic, missing_docs)]

pub mod action;
pub mod calls;
pub mod control_plane;
pub mod disk;
pub mod edit;
pub mod fault;
pub mod guest;
pub mod judge;
pub mod keys;
pub mod machine;
pub mod oracle;
pub mod place;
pub mod property;
pub mod sameness;
pub mod sshd;
pub mod world;

/// Whether the larger bound is selected (`make test-model`).
pub fn is_large() -> bool {
    std::env::var_os("KEYPAIR_MODEL_LARGE").is_some()
}
