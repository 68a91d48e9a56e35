//! What is said of the course: to systemd, to `status`, to the log. Each thing once per change.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::path::PathBuf;

use sd_notify::NotifyState;

use crate::channel::ChannelError;
use crate::channel::state::{ChannelState, InFlight, Phase, since_boot};
use crate::logging::{Event, now};
use crate::policy::types::CommandId;
use crate::transaction::pulse;

/// Who started us and waits to hear from us.
pub(super) trait Manager {
    /// Tells it something.
    fn tell(&self, news: &[NotifyState<'_>]);
}

/// Nobody.
pub(super) struct Nobody;

impl Manager for Nobody {
    fn tell(&self, _: &[NotifyState<'_>]) {}
}

/// systemd, where it listens.
pub(super) struct Systemd;

impl Manager for Systemd {
    fn tell(&self, news: &[NotifyState<'_>]) {
        if let Err(error) = sd_notify::notify(news) {
            tracing::debug!("systemd was not told: {error}");
        }
    }
}

/// Why the channel counts as failing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    /// A call failed; what it was for.
    Call(&'static str, ChannelError),
    /// `404` where commands should be.
    NoQueue,
    /// What came cannot be answered.
    Unanswerable(String),
    /// What came was answered before, finally.
    HandedOutAgain(CommandId),
}

impl Trouble {
    /// Whether a person who was told of the one needs not be told of the other.
    fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Call(_, one), Self::Call(_, other)) => one.kind() == other.kind(),
            _ => self == other,
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call(what, error) => write!(f, "{what}: {error}"),
            Self::NoQueue => f.write_str("the service has no command queue for this instance (404)"),
            Self::Unanswerable(why) => write!(f, "what came cannot be answered: {why}"),
            Self::HandedOutAgain(id) => {
                write!(f, "the service hands out {id} again although it has answered its result")
            }
        }
    }
}

/// Keeps what was said last.
pub(super) struct Report<M> {
    /// Where `status` finds the channel's state; `None` where nobody asks.
    run_dir: Option<PathBuf>,
    manager: M,
    ready: Cell<bool>,
    said: RefCell<Said>,
}

struct Said {
    state: ChannelState,
    trouble: Option<Trouble>,
    summary: String,
    status: String,
    unwritable: bool,
}

impl<M: Manager> Report<M> {
    /// Writes the first state.
    pub(super) fn new(run_dir: Option<PathBuf>, manager: M) -> Self {
        let state = ChannelState {
            pid: std::process::id(),
            started_at: now(),
            state: Phase::Starting,
            last_poll_at: None,
            last_poll_succeeded: None,
            failure: None,
            failing_since: None,
            in_flight: None,
        };
        let said =
            Said { state, trouble: None, summary: String::new(), status: String::new(), unwritable: false };
        let report = Self { run_dir, manager, ready: Cell::new(false), said: RefCell::new(said) };
        report.say();
        report
    }

    /// `READY=1`, once.
    pub(super) fn ready(&self) {
        if !self.ready.replace(true) {
            self.manager.tell(&[NotifyState::Ready]);
        }
    }

    /// Whether `READY=1` was sent.
    pub(super) fn is_ready(&self) -> bool {
        self.ready.get()
    }

    /// `WATCHDOG=1`
    pub(super) fn watchdog(&self) {
        self.manager.tell(&[NotifyState::Watchdog]);
    }

    /// `STOPPING=1`
    pub(super) fn stopping(&self) {
        self.manager.tell(&[NotifyState::Stopping]);
    }

    /// Something begins to be carried out: this command, or what is left of an earlier one.
    pub(super) fn begins(&self, command_id: Option<CommandId>) {
        let in_flight =
            InFlight { command_id, since: now(), since_boot: since_boot(), step: pulse::seen().1.to_owned() };
        self.said.borrow_mut().state.in_flight = Some(in_flight);
        self.say();
    }

    /// It came to its end.
    pub(super) fn ends(&self) {
        self.said.borrow_mut().state.in_flight = None;
        self.say();
    }

    /// Which step it is in by now.
    pub(super) fn follow(&self) {
        let mut said = self.said.borrow_mut();
        let (_, step) = pulse::seen();
        match &mut said.state.in_flight {
            Some(in_flight) if in_flight.step != step => step.clone_into(&mut in_flight.step),
            _ => return,
        }
        drop(said);
        self.say();
    }

    /// What the guest's side looks like, in a few words.
    pub(super) fn summary(&self, summary: String) {
        self.said.borrow_mut().summary = summary;
        self.say_status();
    }

    /// A poll ended well. Says whether that ends an outage.
    pub(super) fn polled(&self) -> bool {
        self.end_of_poll(true);
        self.works()
    }

    /// A call of another kind ended well. Says whether that ends an outage.
    pub(super) fn works(&self) -> bool {
        let mut said = self.said.borrow_mut();
        let outage = said.trouble.take().is_some();
        if outage || said.state.state == Phase::Starting {
            tracing::info!(MESSAGE_ID = Event::ChannelWorks.id(), "the channel works");
        }
        said.state.state = Phase::Polling;
        said.state.failure = None;
        said.state.failing_since = None;
        drop(said);
        self.say();
        outage
    }

    /// A poll failed.
    pub(super) fn poll_failed(&self, trouble: Trouble) {
        self.end_of_poll(false);
        self.failed(trouble);
    }

    /// A call of another kind failed.
    pub(super) fn failed(&self, trouble: Trouble) {
        let mut said = self.said.borrow_mut();
        if !said.trouble.as_ref().is_some_and(|last| last.is_like(&trouble)) {
            let event = match trouble {
                Trouble::Unanswerable(_) => Event::CommandUnanswerable,
                _ => Event::ChannelFails,
            };
            tracing::warn!(MESSAGE_ID = event.id(), "the channel fails: {trouble}");
            said.state.failure = Some(trouble.to_string());
        }
        if said.trouble.is_none() {
            said.state.failing_since = Some(now());
        }
        said.state.state = Phase::Failing;
        said.trouble = Some(trouble);
        drop(said);
        self.say();
    }

    fn end_of_poll(&self, succeeded: bool) {
        let mut said = self.said.borrow_mut();
        said.state.last_poll_at = Some(now());
        said.state.last_poll_succeeded = Some(succeeded);
    }

    /// Writes the state for `status`, and tells systemd.
    fn say(&self) {
        if let Some(run_dir) = &self.run_dir {
            let mut said = self.said.borrow_mut();
            let written = said.state.write(run_dir);
            // Once per change here too: a full /run would be told at every poll otherwise.
            if let Err(error) = &written
                && !said.unwritable
            {
                tracing::warn!("{}: the channel's state cannot be written: {error}", run_dir.display());
            }
            said.unwritable = written.is_err();
        }
        self.say_status();
    }

    fn say_status(&self) {
        let mut said = self.said.borrow_mut();
        let channel = match (&said.state.state, &said.state.failure) {
            (Phase::Starting, _) => "starting".to_owned(),
            (Phase::Failing, Some(failure)) => format!("channel failing: {failure}"),
            _ => "waiting for commands".to_owned(),
        };
        let status = if said.summary.is_empty() { channel } else { format!("{}; {channel}", said.summary) };
        if status != said.status {
            // One line: systemd takes a newline for the next assignment.
            self.manager.tell(&[NotifyState::Status(&status.replace(['\n', '\r'], " "))]);
            said.status = status;
        }
    }
}
