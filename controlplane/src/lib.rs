//! The reference control plane of `keypair-agent`. It has the platform's API on one side, and the metadata service
//! with the command channel on the other. One store connects the two.
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
//! Only [`ledger`] decides what an instance is bound to. A store keeps ledgers, key pairs and results, and notifies
//! waiting calls of changes. The API and the metadata service only translate HTTP and never decide about a binding.

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
