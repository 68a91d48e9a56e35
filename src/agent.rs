//! The daemon (KP-3.5 to KP-3.19, KP-8.12 to KP-8.15). One thread waits for events, and one thread does blocking
//! work.
//!
//! ```text
//!                    serve
//!       ┌──────────────┼──────────────────┐
//!    course         attend               stop
//!  recover, ask,   READY=1 after 5 s,   SIGTERM, SIGINT
//!  deliver, poll,  WATCHDOG=1
//!  perform ──► worker: the one blocking thread; never cancelled
//! ```
//!
//! `course` is the main loop, `report` sends status to systemd, `status` and the log, and `worker` runs the blocking
//! calls.

mod course;
mod report;
mod worker;

use std::fmt;
use std::future::Future;
use std::io;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep};

use crate::channel::Channel;
use crate::channel::backoff;
use crate::channel::base_url::BaseUrl;
use crate::channel::http::HttpChannel;
use crate::channel::run_lock::{RunLock, RunLockError};
use crate::logging::Event;
use crate::policy::types::{CommandId, InstanceId};
use crate::transaction::owed::OwedProofOutcome;
use crate::transaction::perform::Execution;
use crate::transaction::pulse;
use crate::transaction::state::StoredResult;
use course::PollLoop;
use report::{NoopManager, ServiceManager, StatusReporter, Systemd};

/// The latest time at which the agent sends `READY=1`, whatever is in flight (KP-3.17).
const READY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a command in flight may take to finish after SIGTERM (KP-8.13).
const STOP_TIMEOUT: Duration = Duration::from_secs(15);

/// How often the agent publishes the current step of the command in flight.
const STEP_REFRESH_INTERVAL: Duration = Duration::from_secs(5);

/// The functions that the loop needs from the transaction engine. Every call is synchronous, takes the lock by
/// itself, and runs on the blocking thread. An error is one line of text for a person. The loop does not repeat a
/// failed call unless the function's description says so.
pub trait CommandEngine: Send + 'static {
    /// Undoes what an earlier process left open. The loop calls it at start, before anything else.
    ///
    /// # Errors
    /// If it could not be undone. The loop still takes commands, and [`Self::execute_command`] answers them.
    fn recover(&mut self) -> Result<(), String>;

    /// `instance_id` of the configuration. If it is set, the agent does not query the channel for it.
    fn configured_instance_id(&self) -> Option<InstanceId>;

    /// Takes the instance id, from the channel or from the configuration. Called once at start; after an error, again
    /// before each poll.
    ///
    /// # Errors
    /// If the id could not be stored, or is refused.
    fn adopt_instance_id(&mut self, id: &InstanceId) -> Result<(), String>;

    /// Carries out one command, from its bytes to its recorded result. `stop` is set when the process must end.
    fn execute_command(&mut self, bytes: &[u8], stop: &AtomicBool) -> Execution;

    /// The result that was not delivered yet, byte for byte; it survives restarts. Called once at start.
    ///
    /// # Errors
    /// If the state cannot be read.
    fn undelivered_result(&mut self) -> Result<Option<StoredResult>, String>;

    /// Records that the result of this command got a final answer.
    ///
    /// # Errors
    /// If the state cannot be written. The result is then delivered again after a restart.
    fn mark_delivered(&mut self, id: &CommandId) -> Result<(), String>;

    /// Replaces the stored result of this command by `result`, because the service refused the form of the stored
    /// one.
    ///
    /// # Errors
    /// If the state cannot be written. The old result is then delivered again after a restart.
    fn replace_result(&mut self, _id: &CommandId, _result: &str) -> Result<(), String> {
        Ok(())
    }

    /// Gets the proof that a command could not get because no sshd ran. Called before each poll after the agent has
    /// sent `READY=1` to systemd.
    ///
    /// # Errors
    /// If the proof could not be settled. The loop tries again.
    fn check_owed_proof(&mut self) -> Result<OwedProofOutcome, String> {
        Ok(OwedProofOutcome::NoneOwed)
    }

    /// Whether the network may still come up, after this host had no route to the service.
    fn expects_network(&mut self) -> bool {
        true
    }

    /// The document of KP-3.37.
    fn build_agent_report(&mut self) -> String;

    /// A short text for `systemctl status`: binding, password login, component.
    fn summary(&mut self) -> String;
}

/// The settings that `run` takes from the configuration.
#[derive(Debug, Clone)]
pub struct AgentSettings {
    /// `metadata_url`
    pub base_url: BaseUrl,
    /// `long_poll_seconds`
    pub long_poll: Duration,
    /// `run_dir`
    pub run_dir: PathBuf,
}

/// Why `run` did not start.
#[derive(Debug)]
pub enum AgentError {
    /// Another process runs, or the lock cannot be taken.
    Lock(RunLockError),
    /// The process could not be set up.
    Setup(io::Error),
}

impl fmt::Display for AgentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lock(error) => error.fmt(f),
            Self::Setup(error) => write!(f, "cannot set up signals and timers: {error}"),
        }
    }
}

impl std::error::Error for AgentError {}

impl From<RunLockError> for AgentError {
    fn from(error: RunLockError) -> Self {
        Self::Lock(error)
    }
}

impl From<io::Error> for AgentError {
    fn from(error: io::Error) -> Self {
        Self::Setup(error)
    }
}

/// Runs the daemon: it receives, decides, applies and reports until SIGTERM or SIGINT.
///
/// # Errors
/// [`AgentError`] if the daemon cannot start. Once started, it shuts down in order.
pub fn run<T: CommandEngine>(settings: AgentSettings, transactions: T) -> Result<(), AgentError> {
    let _lock = RunLock::acquire(&settings.run_dir)?;
    let signals = StopSignals::install_handlers()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .max_blocking_threads(1)
        // An idle thread keeps its stack in memory, so it ends soon after each command.
        .thread_keep_alive(Duration::from_millis(100))
        .build()?;
    tracing::info!(MESSAGE_ID = Event::Started.id(), url = %settings.base_url, "keypair-agent {} started", crate::VERSION);
    let course = PollLoop::new(
        HttpChannel::new(settings.base_url),
        transactions,
        StatusReporter::new(Some(settings.run_dir), Systemd),
        settings.long_poll,
        backoff::random_u64,
    );
    let served = runtime.block_on(async {
        let stop = signals.into_stop_future()?;
        run_until_stopped(&course, stop, sd_notify::watchdog_enabled()).await;
        Ok(())
    });
    // A command that did not end in time is cut off here, as by a power failure. The next start recovers.
    runtime.shutdown_background();
    tracing::info!(MESSAGE_ID = Event::Stopped.id(), "keypair-agent stopped");
    served
}

/// Runs the same loop until `stop`, for one of many agents in a process. It has no lock, no signals, no systemd and
/// no state for `status`. The service cannot tell it from `run`, so that load tests can run it in large numbers.
pub async fn run_embedded<C: Channel, T: CommandEngine>(
    channel: C,
    transactions: T,
    long_poll: Duration,
    stop: impl Future<Output = ()>,
) {
    let course = PollLoop::new(
        channel,
        transactions,
        StatusReporter::new(None, NoopManager),
        long_poll,
        backoff::random_u64,
    );
    run_until_stopped(&course, stop, None).await;
}

/// The signals that end `run`. SIGHUP gets a handler that does nothing. If SIGHUP were set to "ignored" instead, the
/// child processes would ignore it too.
struct StopSignals {
    reader: StdUnixStream,
}

impl StopSignals {
    fn install_handlers() -> io::Result<Self> {
        let (reader, writer) = StdUnixStream::pair()?;
        reader.set_nonblocking(true)?;
        writer.set_nonblocking(true)?;
        signal_hook::low_level::pipe::register(SIGTERM, writer.try_clone()?)?;
        signal_hook::low_level::pipe::register(SIGINT, writer)?;
        signal_hook::flag::register(SIGHUP, Arc::new(AtomicBool::new(false)))?;
        Ok(Self { reader })
    }

    /// Completes at the first signal, even if the signal came before this call.
    fn into_stop_future(self) -> io::Result<impl Future<Output = ()>> {
        let reader = UnixStream::from_std(self.reader)?;
        Ok(async move {
            // After an error of the socket pair no signal could stop the agent in order, so the error counts as a
            // stop.
            let _ = reader.readable().await;
        })
    }
}

/// Runs the course until `stop`. An idle course ends at once. A command in flight gets the stop flag, and the agent
/// waits for it.
async fn run_until_stopped<C: Channel, T: CommandEngine, M: ServiceManager>(
    course: &PollLoop<C, T, M>,
    stop: impl Future<Output = ()>,
    watchdog: Option<Duration>,
) {
    let mut work = pin!(course.run());
    let mut attendance = pin!(run_housekeeping(course, watchdog));
    tokio::select! {
        () = &mut work => return,
        () = &mut attendance => return,
        () = stop => {}
    }
    course.reporter().notify_stopping();
    course.stop_flag().store(true, Ordering::SeqCst);
    if course.is_writing() {
        tokio::select! {
            () = &mut work => {}
            () = &mut attendance => {}
            () = sleep(STOP_TIMEOUT) => tracing::warn!(
                MESSAGE_ID = Event::TransactionFailed.id(),
                "the command in flight did not end within {} s; the next start recovers", STOP_TIMEOUT.as_secs()
            ),
        }
    }
}

/// The periodic work that must go on whatever the course waits for. It never returns.
async fn run_housekeeping<C: Channel, T: CommandEngine, M: ServiceManager>(
    course: &PollLoop<C, T, M>,
    watchdog: Option<Duration>,
) {
    let report = course.reporter();
    let ready = async {
        sleep(READY_TIMEOUT).await;
        report.notify_ready();
    };
    let beat = async {
        let Some(limit) = watchdog else { return std::future::pending().await };
        let mut pulse = WorkerLiveness::new();
        loop {
            sleep(limit / 2).await;
            if pulse.has_moved_within(limit, course.is_working()) {
                report.notify_watchdog();
            }
        }
    };
    let follow = async {
        loop {
            sleep(STEP_REFRESH_INTERVAL).await;
            report.refresh_step();
        }
    };
    tokio::join!(ready, beat, follow);
}

/// Whether the worker makes progress. Every step has a time limit, so a step that exceeds the watchdog's limit hangs.
struct WorkerLiveness {
    moves: u64,
    moved_at: Instant,
    told: bool,
}

impl WorkerLiveness {
    fn new() -> Self {
        Self { moves: pulse::read_progress().0, moved_at: Instant::now(), told: false }
    }

    /// Whether the worker is idle, or made progress within this time.
    fn has_moved_within(&mut self, limit: Duration, is_working: bool) -> bool {
        let (moves, step) = pulse::read_progress();
        if !is_working || moves != self.moves {
            *self = Self { moves, moved_at: Instant::now(), told: false };
        }
        let moves = self.moved_at.elapsed() < limit;
        if !moves && !self.told {
            self.told = true;
            tracing::error!(
                MESSAGE_ID = Event::TransactionFailed.id(),
                "what is in flight has not moved for {} s (step: {step}); the watchdog is not fed any more",
                limit.as_secs()
            );
        }
        moves
    }
}

#[cfg(test)]
mod tests;
