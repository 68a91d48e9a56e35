//! A home whose owner attacks it while the agent works in it, and the files around it that belong to others.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, unreachable_pub)]

pub mod land;
pub mod mounter;
pub mod user;
