//! The reference control plane of `keypair-agent`: the platform's API on one side, the metadata service with
//! the command channel on the other, and one store between the two.
//!
//! ```text
//!   owner's client                                              agent in the guest
//!        │  ▲                                                        ▲   │
//!        ▼  │ envelope                                  command      │   ▼ result
//!      api/ ┴── order ──►  store/ ◄── next, settle ─────────────  metadata/
//!                            │
//!                            ▼ the rules, without I/O
//!                          ledger
//! ```
//!
//! What an instance is bound to is decided by [`ledger`] alone; a store keeps ledgers, key pairs and results
//! and says when something changed; the two faces translate HTTP, and what an instance is bound to they never decide.

pub mod access_keys;
pub mod api;
pub mod args;
pub mod clock;
pub mod descriptors;
pub mod face;
pub mod fleet;
pub mod ids;
pub mod inventory;
pub mod keypair;
pub mod ledger;
pub mod lifecycle;
pub mod metadata;
pub mod metrics;
pub mod platform;
pub mod serve;
pub mod shutdown;
pub mod signing;
pub mod store;
pub mod toml_file;
