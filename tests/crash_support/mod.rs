//! What the suites of kills and of faults share: the commands, a guest that is put back between two points, the
//! points, and what must be so after each of them.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

pub mod course;
pub mod points;
pub mod scene;
pub mod subject;

/// What the suites need of the machine.
pub const TOOLS: [&str; 3] = ["sshd", "ssh", "ssh-keygen"];
