//! The matrix: one TOML file per configuration. Each is tested in its own guest, with real clients.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

pub mod client;
pub mod course;
pub mod guest;
pub mod judge;
pub mod lab;
pub mod land;
pub mod row;
pub mod snapshot;
