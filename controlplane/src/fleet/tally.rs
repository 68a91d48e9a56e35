//! The fleet's requests and their results, counted per second.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use serde::Serialize;

use crate::clock::now_millis;

/// The calls of an agent to the service (KP-3.5 to KP-3.9).
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

/// One line of the fleet's output. The counts are for one second; times are in milliseconds.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SecondStats {
    /// The end of the second, in milliseconds since 1970.
    at: u64,
    /// The long polls that wait at the end of the second.
    waiting: u32,
    /// The requests that were sent, by call.
    asked: BTreeMap<AgentCall, u32>,
    /// Those of them that are an agent's first retry after a failure.
    first_tries: u32,
    /// The requests that succeeded.
    answered: u32,
    /// The requests that failed, by kind of failure.
    failed: BTreeMap<String, u32>,
    /// For each received command: the time since it was queued.
    received: Vec<u64>,
    /// For each stored result: the time since its command was queued.
    reported: Vec<u64>,
}

/// The counters of all agents in the process. All agents run on one thread.
#[derive(Debug, Default)]
pub(super) struct Counters {
    second: RefCell<SecondStats>,
    waiting: Cell<u32>,
    has_failed: Cell<bool>,
}

impl Counters {
    /// Whether this is the first failure. Later calls return `false`.
    pub(super) fn is_first_failure(&self) -> bool {
        !self.has_failed.replace(true)
    }

    /// Returns the counts of the second that ends now, and resets them.
    pub(super) fn take(&self) -> SecondStats {
        let second = self.second.take();
        SecondStats { at: now_millis(), waiting: self.waiting.get(), ..second }
    }

    /// Counts a request that starts.
    pub(super) fn count_request(&self, call: AgentCall, first_try: bool) {
        let mut second = self.second.borrow_mut();
        *second.asked.entry(call).or_default() += 1;
        second.first_tries += u32::from(first_try);
    }

    /// Counts a request that ended. `failure` is the name of the failure; `None` means success.
    pub(super) fn count_response(&self, failure: Option<String>) {
        let mut second = self.second.borrow_mut();
        match failure {
            None => second.answered += 1,
            Some(failure) => *second.failed.entry(failure).or_default() += 1,
        }
    }

    /// Records that an agent received a command. `queued` is the time of queueing, in milliseconds since 1970.
    pub(super) fn record_command_latency(&self, queued: u64) {
        self.second.borrow_mut().received.push(now_millis().saturating_sub(queued));
    }

    /// Records that a result was stored. `queued` is the time when its command was queued, in milliseconds since
    /// 1970.
    pub(super) fn record_result_latency(&self, queued: u64) {
        self.second.borrow_mut().reported.push(now_millis().saturating_sub(queued));
    }

    /// Counts a waiting long poll for as long as the returned guard lives.
    pub(super) fn track_waiting_poll(&self) -> WaitingGuard<'_> {
        self.waiting.set(self.waiting.get() + 1);
        WaitingGuard(&self.waiting)
    }
}

/// Guard of a waiting long poll.
pub(super) struct WaitingGuard<'a>(&'a Cell<u32>);

impl Drop for WaitingGuard<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}
