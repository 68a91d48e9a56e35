//! Shows whether the worker makes progress. The watchdog depends on it, and `status` names the step.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

static PROGRESS_COUNT: AtomicU64 = AtomicU64::new(0);
static CURRENT_STEP: Mutex<&str> = Mutex::new("");

/// Records that a child, a look or a step has ended. Each of them has a time limit.
pub fn record_progress() {
    PROGRESS_COUNT.fetch_add(1, Ordering::Relaxed);
}

/// Records that a step begins. `name` is shown to a person.
pub fn begin_step(name: &'static str) {
    *CURRENT_STEP.lock().unwrap_or_else(PoisonError::into_inner) = name;
    record_progress();
}

/// The number of recorded events, and the step that began last.
pub fn read_progress() -> (u64, &'static str) {
    (PROGRESS_COUNT.load(Ordering::Relaxed), *CURRENT_STEP.lock().unwrap_or_else(PoisonError::into_inner))
}
