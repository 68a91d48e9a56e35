//! Random sshd configurations, key files and accounts. Real logins show whether a command kept its promise.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

pub mod case;
pub mod judge;
pub mod pieces;
