//! The synchronous side: one blocking thread. It runs calls one after another, and no call is ever cancelled.

use std::cell::Cell;
use std::sync::{Arc, Mutex, PoisonError};

use super::CommandEngine;
use crate::transaction::at_rest;

/// Passes calls to the blocking thread.
pub(super) struct Worker<T> {
    transactions: Arc<Mutex<T>>,
    writing: Cell<bool>,
    /// How many calls have not ended yet.
    calls: Cell<usize>,
}

impl<T: CommandEngine> Worker<T> {
    pub(super) fn new(transactions: T) -> Self {
        Self {
            transactions: Arc::new(Mutex::new(transactions)),
            writing: Cell::new(false),
            calls: Cell::new(0),
        }
    }

    /// Runs a call that changes nothing. The process may end without waiting for this call.
    ///
    /// # Errors
    /// If the thread ended during the call.
    pub(super) async fn run_read_only<R: Send + 'static>(
        &self,
        call: impl FnOnce(&mut T) -> R + Send + 'static,
    ) -> Result<R, String> {
        let transactions = self.transactions.clone();
        self.calls.set(self.calls.get() + 1);
        let done = tokio::task::spawn_blocking(move || {
            let answer = call(&mut transactions.lock().unwrap_or_else(PoisonError::into_inner));
            at_rest();
            answer
        })
        .await;
        self.calls.set(self.calls.get() - 1);
        done.map_err(|_| "the working thread ended within a call".to_owned())
    }

    /// Runs a call that may change the guest or the state. The process waits for this call.
    ///
    /// # Errors
    /// As for [`Self::run_read_only`].
    pub(super) async fn run_mutating<R: Send + 'static>(
        &self,
        call: impl FnOnce(&mut T) -> R + Send + 'static,
    ) -> Result<R, String> {
        self.writing.set(true);
        let outcome = self.run_read_only(call).await;
        self.writing.set(false);
        outcome
    }

    /// Whether any call is in flight.
    pub(super) fn is_working(&self) -> bool {
        self.calls.get() > 0
    }

    /// Whether a call that may change something is in flight.
    pub(super) fn is_writing(&self) -> bool {
        self.writing.get()
    }
}
