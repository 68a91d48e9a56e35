//! Random sshd configurations, key files and accounts; real logins say whether a command kept its promise.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

pub mod case;
pub mod judge;
pub mod pieces;
