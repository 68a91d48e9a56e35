//! Whether the one who works still moves: the watchdog is fed by that, and `status` names the step.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

static MOVES: AtomicU64 = AtomicU64::new(0);
static STEP: Mutex<&str> = Mutex::new("");

/// Something ended: a child, a look, a step. Each of them has a time limit.
pub fn moved() {
    MOVES.fetch_add(1, Ordering::Relaxed);
}

/// A step begins; `name` is for a person.
pub fn step(name: &'static str) {
    *STEP.lock().unwrap_or_else(PoisonError::into_inner) = name;
    moved();
}

/// How often something moved, and the step that began last.
pub fn seen() -> (u64, &'static str) {
    (MOVES.load(Ordering::Relaxed), *STEP.lock().unwrap_or_else(PoisonError::into_inner))
}
