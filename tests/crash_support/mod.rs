//! Shared parts of the kill suite and the fault suite: the commands, a guest that is restored between two points, the
//! injection points, and the checks after each of them.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

pub mod course;
pub mod points;
pub mod scene;
pub mod subject;

/// The tools that the suites need.
pub const TOOLS: [&str; 3] = ["sshd", "ssh", "ssh-keygen"];
