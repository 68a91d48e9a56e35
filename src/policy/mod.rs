//! What should happen: no I/O, no clock, no environment.

pub mod authorized_keys;
pub mod block;
pub mod command;
pub mod component;
pub mod effective;
pub mod observation;
pub mod outcome;
pub mod public_key;
pub mod types;
