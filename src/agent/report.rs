//! Reports the progress of the course to systemd, to `status` and to the log. Each fact is reported once for each
//! change.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::path::PathBuf;

use sd_notify::NotifyState;

use crate::channel::ChannelError;
use crate::channel::state::{ChannelPhase, ChannelStatus, InFlight, boottime_seconds};
use crate::logging::{Event, now_rfc3339};
use crate::policy::types::CommandId;
use crate::transaction::pulse;

/// The service manager that started the agent and waits for its notifications.
pub(super) trait ServiceManager {
    /// Sends these notifications to the service manager.
    fn notify(&self, news: &[NotifyState<'_>]);
}

/// No service manager: notifications are dropped.
pub(super) struct NoopManager;

impl ServiceManager for NoopManager {
    fn notify(&self, _: &[NotifyState<'_>]) {}
}

/// systemd, if it listens for notifications.
pub(super) struct Systemd;

impl ServiceManager for Systemd {
    fn notify(&self, news: &[NotifyState<'_>]) {
        if let Err(error) = sd_notify::notify(news) {
            tracing::debug!("systemd was not told: {error}");
        }
    }
}

/// Why the channel counts as failing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ChannelFault {
    /// A call failed. The text names its purpose.
    CallFailed(&'static str, ChannelError),
    /// The service answered `404` to the request for a command.
    NoQueue,
    /// The command that came cannot be answered.
    Unanswerable(String),
    /// The command that came already has a result with a final answer.
    Redelivered(CommandId),
}

impl ChannelFault {
    /// Whether both faults are of the same kind, so that a second log line is not needed.
    fn is_same_kind(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::CallFailed(_, one), Self::CallFailed(_, other)) => one.kind() == other.kind(),
            _ => self == other,
        }
    }
}

impl fmt::Display for ChannelFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CallFailed(what, error) => write!(f, "{what}: {error}"),
            Self::NoQueue => f.write_str("the service has no command queue for this instance (404)"),
            Self::Unanswerable(why) => write!(f, "what came cannot be answered: {why}"),
            Self::Redelivered(id) => {
                write!(f, "the service hands out {id} again although it has answered its result")
            }
        }
    }
}

/// Holds the last reported status.
pub(super) struct StatusReporter<M> {
    /// The directory in which `status` finds the channel's state; `None` if no `status` command reads it.
    run_dir: Option<PathBuf>,
    manager: M,
    ready: Cell<bool>,
    said: RefCell<ReportedStatus>,
}

struct ReportedStatus {
    state: ChannelStatus,
    trouble: Option<ChannelFault>,
    summary: String,
    status: String,
    unwritable: bool,
}

impl<M: ServiceManager> StatusReporter<M> {
    /// Writes the first state.
    pub(super) fn new(run_dir: Option<PathBuf>, manager: M) -> Self {
        let state = ChannelStatus {
            pid: std::process::id(),
            started_at: now_rfc3339(),
            state: ChannelPhase::Starting,
            last_poll_at: None,
            last_poll_succeeded: None,
            failure: None,
            failing_since: None,
            in_flight: None,
        };
        let said = ReportedStatus {
            state,
            trouble: None,
            summary: String::new(),
            status: String::new(),
            unwritable: false,
        };
        let report = Self { run_dir, manager, ready: Cell::new(false), said: RefCell::new(said) };
        report.publish();
        report
    }

    /// Sends `READY=1`, once.
    pub(super) fn notify_ready(&self) {
        if !self.ready.replace(true) {
            self.manager.notify(&[NotifyState::Ready]);
        }
    }

    /// Whether `READY=1` was sent.
    pub(super) fn is_ready(&self) -> bool {
        self.ready.get()
    }

    /// Sends `WATCHDOG=1`.
    pub(super) fn notify_watchdog(&self) {
        self.manager.notify(&[NotifyState::Watchdog]);
    }

    /// Sends `STOPPING=1`.
    pub(super) fn notify_stopping(&self) {
        self.manager.notify(&[NotifyState::Stopping]);
    }

    /// Records that work begins: this command, or with `None` the recovery of an earlier one.
    pub(super) fn set_in_flight(&self, command_id: Option<CommandId>) {
        let in_flight = InFlight {
            command_id,
            since: now_rfc3339(),
            since_boot: boottime_seconds(),
            step: pulse::read_progress().1.to_owned(),
        };
        self.said.borrow_mut().state.in_flight = Some(in_flight);
        self.publish();
    }

    /// Records that the work in flight has ended.
    pub(super) fn clear_in_flight(&self) {
        self.said.borrow_mut().state.in_flight = None;
        self.publish();
    }

    /// Publishes the current step of the work in flight.
    pub(super) fn refresh_step(&self) {
        let mut said = self.said.borrow_mut();
        let (_, step) = pulse::read_progress();
        match &mut said.state.in_flight {
            Some(in_flight) if in_flight.step != step => step.clone_into(&mut in_flight.step),
            _ => return,
        }
        drop(said);
        self.publish();
    }

    /// Publishes a short summary of the guest.
    pub(super) fn set_summary(&self, summary: String) {
        self.said.borrow_mut().summary = summary;
        self.publish_status_line();
    }

    /// Records a successful poll. Returns whether this ends an outage.
    pub(super) fn record_poll_success(&self) -> bool {
        self.record_poll_end(true);
        self.record_channel_success()
    }

    /// Records a successful call of another kind. Returns whether this ends an outage.
    pub(super) fn record_channel_success(&self) -> bool {
        let mut said = self.said.borrow_mut();
        let outage = said.trouble.take().is_some();
        if outage || said.state.state == ChannelPhase::Starting {
            tracing::info!(MESSAGE_ID = Event::ChannelUp.id(), "the channel works");
        }
        said.state.state = ChannelPhase::Polling;
        said.state.failure = None;
        said.state.failing_since = None;
        drop(said);
        self.publish();
        outage
    }

    /// Records a failed poll.
    pub(super) fn record_poll_failure(&self, trouble: ChannelFault) {
        self.record_poll_end(false);
        self.record_channel_failure(trouble);
    }

    /// Records a failed call of another kind.
    pub(super) fn record_channel_failure(&self, trouble: ChannelFault) {
        let mut said = self.said.borrow_mut();
        if !said.trouble.as_ref().is_some_and(|last| last.is_same_kind(&trouble)) {
            let event = match trouble {
                ChannelFault::Unanswerable(_) => Event::CommandUnanswerable,
                _ => Event::ChannelDown,
            };
            tracing::warn!(MESSAGE_ID = event.id(), "the channel fails: {trouble}");
            said.state.failure = Some(trouble.to_string());
        }
        if said.trouble.is_none() {
            said.state.failing_since = Some(now_rfc3339());
        }
        said.state.state = ChannelPhase::Failing;
        said.trouble = Some(trouble);
        drop(said);
        self.publish();
    }

    fn record_poll_end(&self, succeeded: bool) {
        let mut said = self.said.borrow_mut();
        said.state.last_poll_at = Some(now_rfc3339());
        said.state.last_poll_succeeded = Some(succeeded);
    }

    /// Writes the state for `status`, and notifies systemd.
    fn publish(&self) {
        if let Some(run_dir) = &self.run_dir {
            let mut said = self.said.borrow_mut();
            let written = said.state.write(run_dir);
            // Log this once for each change too: otherwise a full /run would give a log line at every poll.
            if let Err(error) = &written
                && !said.unwritable
            {
                tracing::warn!("{}: the channel's state cannot be written: {error}", run_dir.display());
            }
            said.unwritable = written.is_err();
        }
        self.publish_status_line();
    }

    fn publish_status_line(&self) {
        let mut said = self.said.borrow_mut();
        let channel = match (&said.state.state, &said.state.failure) {
            (ChannelPhase::Starting, _) => "starting".to_owned(),
            (ChannelPhase::Failing, Some(failure)) => format!("channel failing: {failure}"),
            _ => "waiting for commands".to_owned(),
        };
        let status = if said.summary.is_empty() { channel } else { format!("{}; {channel}", said.summary) };
        if status != said.status {
            // One line only: systemd reads a newline as the start of the next assignment.
            self.manager.notify(&[NotifyState::Status(&status.replace(['\n', '\r'], " "))]);
            said.status = status;
        }
    }
}
