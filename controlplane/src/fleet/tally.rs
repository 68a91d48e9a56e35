//! What the fleet asked and got in a second.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use serde::Serialize;

use crate::clock::now_millis;

/// What an agent asks of the service (KP-3.5 to KP-3.9).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum AgentCall {
    /// `GET instance-id`
    InstanceId,
    /// `GET keypair/command`
    Command,
    /// `PUT keypair/results/{commandId}`
    Result,
    /// `PUT keypair/agent`
    Agent,
}

/// One line of the fleet's output. Counts are of this second; times are in milliseconds.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SecondStats {
    /// When it ended, since 1970.
    at: u64,
    /// Long polls that wait at its end.
    waiting: u32,
    /// Requests that were begun, by what they ask.
    asked: BTreeMap<AgentCall, u32>,
    /// Those of them that are an agent's first after a failure.
    first_tries: u32,
    /// Requests that ended well.
    answered: u32,
    /// Requests that failed, by how.
    failed: BTreeMap<String, u32>,
    /// From the queueing of a command until an agent had it, for each.
    received: Vec<u64>,
    /// From the queueing of a command until its result was stored, for each.
    reported: Vec<u64>,
}

/// Counts for all agents of the process; they are on one thread.
#[derive(Debug, Default)]
pub(super) struct Counters {
    second: RefCell<SecondStats>,
    waiting: Cell<u32>,
    has_failed: Cell<bool>,
}

impl Counters {
    /// Whether no request has failed before this one.
    pub(super) fn is_first_failure(&self) -> bool {
        !self.has_failed.replace(true)
    }

    /// The second that ends now; the next one begins.
    pub(super) fn take(&self) -> SecondStats {
        let second = self.second.take();
        SecondStats { at: now_millis(), waiting: self.waiting.get(), ..second }
    }

    /// A request was begun.
    pub(super) fn count_request(&self, call: AgentCall, first_try: bool) {
        let mut second = self.second.borrow_mut();
        *second.asked.entry(call).or_default() += 1;
        second.first_tries += u32::from(first_try);
    }

    /// A request ended, in a failure of that name or well.
    pub(super) fn count_response(&self, failure: Option<String>) {
        let mut second = self.second.borrow_mut();
        match failure {
            None => second.answered += 1,
            Some(failure) => *second.failed.entry(failure).or_default() += 1,
        }
    }

    /// A command that was queued then is with its agent.
    pub(super) fn record_command_latency(&self, queued: u64) {
        self.second.borrow_mut().received.push(now_millis().saturating_sub(queued));
    }

    /// The result of a command that was queued then is stored.
    pub(super) fn record_result_latency(&self, queued: u64) {
        self.second.borrow_mut().reported.push(now_millis().saturating_sub(queued));
    }

    /// A long poll waits as long as the value lives.
    pub(super) fn track_waiting_poll(&self) -> WaitingGuard<'_> {
        self.waiting.set(self.waiting.get() + 1);
        WaitingGuard(&self.waiting)
    }
}

/// A long poll that waits.
pub(super) struct WaitingGuard<'a>(&'a Cell<u32>);

impl Drop for WaitingGuard<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}
