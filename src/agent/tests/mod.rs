//! Tests of the loop with a scripted service and a scripted transaction engine. The tests control the clock.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod delivery;
mod ending;
mod fakes;
mod polling;
mod starting;
