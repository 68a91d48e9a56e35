//! A home whose owner does what he can while the agent works in it, and what lies around it that is none of his.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, unreachable_pub)]

pub mod land;
pub mod mounter;
pub mod user;
