//! The loop against a scripted service and a scripted transaction room, under a clock that the tests drive.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod delivery;
mod ending;
mod fakes;
mod polling;
mod starting;
