//! The Prometheus metrics of this server. Only this module knows their names; callers use its methods.
//!
//! Every label value is the name of an enum variant. Ids, names and texts from a guest are not labels, because each
//! of them would create a new time series.

use std::time::Duration;

use keypair_agent::policy::command::ActionName;
use keypair_agent::policy::outcome::CommandResult;
use keypair_agent::policy::types::Sequence;
use prometheus::core::Collector;
use prometheus::{
    Error, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
};
use serde::Serialize;
use serde_json::Value;
use tracing::error;

use crate::clock;
use crate::ledger::CompletedCommand;

/// The kinds of answer to a poll.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PollAnswer {
    /// A command was sent.
    Command,
    /// There was no command.
    Nothing,
    /// The service shut down.
    Ended,
    /// The store failed, or the command could not be signed.
    Failed,
}

impl PollAnswer {
    /// All of them.
    const ALL: [Self; 4] = [Self::Command, Self::Nothing, Self::Ended, Self::Failed];
}

/// All actions.
const ALL_ACTIONS: [ActionName; 3] = [ActionName::Attach, ActionName::Detach, ActionName::SetPasswordAuth];

/// Bucket limits in seconds, from a delay that a person does not notice up to one hour.
const DURATION_BUCKETS_SECONDS: [f64; 12] =
    [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0];

/// The metrics of one server since its start.
pub struct Metrics {
    registry: Registry,
    waiting_polls: IntGauge,
    polls: IntCounterVec,
    queued: IntCounterVec,
    handed_out: IntCounterVec,
    results: IntCounterVec,
    reports: IntCounter,
    command_seconds: HistogramVec,
}

impl Metrics {
    /// Creates all metrics with the value 0. Those with few label values are exported from the start, so that
    /// Prometheus can compute their rates.
    ///
    /// # Errors
    /// None in practice: the names are well formed and unique.
    pub fn new() -> Result<Self, Error> {
        let registry = Registry::new();
        let counters = |name, help, labels: &[&str]| {
            register_collector(&registry, IntCounterVec::new(Opts::new(name, help), labels))
        };
        let polls = counters(
            "keypair_polls_total",
            "Polls for a command that were answered: with a command, with nothing, because the service ended, or with a \
             failure of the store. Polls of no known instance, and such as cannot be read, do not count.",
            &["answer"],
        )?;
        let queued = counters(
            "keypair_commands_queued_total",
            "Commands that this server queued. A request that found its command queued already does not count.",
            &["action"],
        )?;
        let handed_out = counters(
            "keypair_commands_handed_out_total",
            "Commands that this server handed out. One that is handed out again counts again.",
            &["action"],
        )?;
        let results = counters(
            "keypair_results_total",
            "Results that this server stored, by the command's action and the guest's word on it. The same result again \
             does not count.",
            &["action", "status", "code", "reason"],
        )?;
        let waiting_polls =
            IntGauge::new("keypair_waiting_polls", "Long polls that wait for a command here now.");
        let waiting_polls = register_collector(&registry, waiting_polls)?;
        let reports = IntCounter::new("keypair_reports_total", "Reports of agents that this server stored.");
        let reports = register_collector(&registry, reports)?;
        let seconds = HistogramOpts::new(
            "keypair_command_seconds",
            "Time from the queueing of a command, by whichever server, until this server stored its result.",
        );
        let seconds = HistogramVec::new(seconds.buckets(DURATION_BUCKETS_SECONDS.to_vec()), &["action"]);
        let command_seconds = register_collector(&registry, seconds)?;

        for answer in PollAnswer::ALL {
            polls.get_metric_with_label_values(&[label_value(answer)])?;
        }
        for action in ALL_ACTIONS.map(label_value) {
            queued.get_metric_with_label_values(&[&action])?;
            handed_out.get_metric_with_label_values(&[&action])?;
            command_seconds.get_metric_with_label_values(&[&action])?;
        }
        Ok(Self { registry, waiting_polls, polls, queued, handed_out, results, reports, command_seconds })
    }

    /// The current metrics in Prometheus' text format.
    ///
    /// # Errors
    /// None in practice: every metric has a value.
    pub fn encode_text(&self) -> Result<String, Error> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }

    /// Counts a waiting poll for as long as the returned guard lives.
    #[must_use]
    pub fn track_waiting_poll(&self) -> WaitingPoll {
        self.waiting_polls.inc();
        WaitingPoll(self.waiting_polls.clone())
    }

    /// Counts an answered poll.
    pub fn count_poll(&self, answer: PollAnswer) {
        add_to_counter(&self.polls, &[label_value(answer)], 1);
    }

    /// Counts newly queued commands.
    pub fn count_queued(&self, action: ActionName, commands: usize) {
        add_to_counter(&self.queued, &[label_value(action)], u64::try_from(commands).unwrap_or(u64::MAX));
    }

    /// Counts a command that was handed out.
    pub fn count_handed_out(&self, action: ActionName) {
        add_to_counter(&self.handed_out, &[label_value(action)], 1);
    }

    /// Counts a stored result. The action comes from the ledger, not from the guest's result.
    pub fn observe_result(&self, settlement: CompletedCommand, outcome: &CommandResult) {
        let action = label_value(settlement.action);
        match self.command_seconds.get_metric_with_label_values(&[&action]) {
            Ok(seconds) => {
                seconds.observe(elapsed_since_queued(settlement.sequence, clock::now_millis()).as_secs_f64())
            }
            Err(error) => error!("{error}"),
        }
        let labels =
            [action, label_value(outcome.status), label_value(outcome.code), label_value(outcome.reason)];
        add_to_counter(&self.results, &labels, 1);
    }

    /// Counts a stored agent report.
    pub fn count_report(&self) {
        self.reports.inc();
    }
}

/// Guard of a waiting poll. Its drop decrements the gauge, however the poll ends.
#[derive(Debug)]
pub struct WaitingPoll(IntGauge);

impl Drop for WaitingPoll {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Registers a metric, so that it is exported.
fn register_collector<C: Collector + Clone + 'static>(
    registry: &Registry,
    made: Result<C, Error>,
) -> Result<C, Error> {
    let number = made?;
    registry.register(Box::new(number.clone()))?;
    Ok(number)
}

/// Adds `more` to the counter with these labels, in the order of their names. The only possible error is a wrong
/// number of labels.
fn add_to_counter(counters: &IntCounterVec, labels: &[String], more: u64) {
    match counters.get_metric_with_label_values(labels) {
        Ok(counter) => counter.inc_by(more),
        Err(error) => error!("{error}"),
    }
}

/// The text of an enum variant, as on the wire. `None` becomes an empty text.
fn label_value(of: impl Serialize) -> String {
    match serde_json::to_value(of) {
        Ok(Value::String(word)) => word,
        _ => String::new(),
    }
}

/// The time since a command was queued. Its sequence is the time of queueing, in milliseconds since 1970. The result
/// is zero if the clock went back, or if another server's clock is ahead.
fn elapsed_since_queued(sequence: Sequence, now: u64) -> Duration {
    Duration::from_millis(now.saturating_sub(sequence.into()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn elapsed_time_is_zero_when_clock_goes_back() {
        for (queued, milliseconds) in [(999_500, 500), (1_000_000, 0), (1_000_001, 0), ((1 << 53) - 1, 0)] {
            assert_eq!(
                elapsed_since_queued(Sequence::try_from(queued).unwrap(), 1_000_000),
                Duration::from_millis(milliseconds)
            );
        }
    }

    #[test]
    fn waiting_poll_gauge_drops_when_guard_is_dropped() {
        let metrics = Metrics::new().unwrap();
        let (one, two) = (metrics.track_waiting_poll(), metrics.track_waiting_poll());
        assert!(metrics.encode_text().unwrap().contains("\nkeypair_waiting_polls 2\n"));
        drop((one, two));
        assert!(metrics.encode_text().unwrap().contains("\nkeypair_waiting_polls 0\n"));
    }
}
