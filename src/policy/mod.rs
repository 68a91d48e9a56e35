//! What should happen: no I/O, no clock, no environment.

pub mod allowed_signers;
pub mod authorized_keys;
pub mod block;
pub mod command;
pub mod component;
pub mod connection;
pub mod edit;
pub mod effective;
pub mod image;
pub mod key_paths;
pub mod listener;
pub mod local_time;
pub mod lockout;
pub mod machine;
pub mod observation;
pub mod outcome;
pub mod pam;
pub mod password;
pub mod pattern;
pub mod plan;
pub mod proof;
pub mod public_key;
pub mod signature;
pub mod sshd_config;
pub mod types;
pub mod witness;
