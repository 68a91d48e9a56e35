//! The daemon (KP-3.5 to KP-3.19, KP-8.12 to KP-8.15): one thread that waits, and one that works.
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
//! `course` is the sequence of things, `report` what is said of it, `worker` the synchronous side.

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

/// When `READY=1` is sent at the latest, whatever is in flight (KP-3.17).
const READY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a command in flight may take to end after SIGTERM (KP-8.13).
const STOP_TIMEOUT: Duration = Duration::from_secs(15);

/// How often the step of what is in flight is looked at.
const STEP_REFRESH_INTERVAL: Duration = Duration::from_secs(5);

/// What the loop needs of the transaction room. Every call is synchronous, takes the lock for itself, and runs
/// on the blocking thread. An error is one line for a person; the call is not repeated unless said so here.
pub trait CommandEngine: Send + 'static {
    /// Undoes what an earlier process left open; at start, before anything else.
    ///
    /// # Errors
    /// Where it could not be undone; commands go on to be taken, and `perform` answers them.
    fn recover(&mut self) -> Result<(), String>;

    /// `instance_id` of the configuration: then the channel is not asked.
    fn configured_instance_id(&self) -> Option<InstanceId>;

    /// Takes the instance's id, learnt from the channel or configured, once a start; again before each poll
    /// after an error.
    ///
    /// # Errors
    /// Where it could not be kept, or is refused.
    fn adopt_instance_id(&mut self, id: &InstanceId) -> Result<(), String>;

    /// One command, from its bytes to its recorded result. `stop` is set when the process is to end.
    fn execute_command(&mut self, bytes: &[u8], stop: &AtomicBool) -> Execution;

    /// The result that was not delivered yet, by its exact bytes; it survives restarts. Asked once a start.
    ///
    /// # Errors
    /// Where the state cannot be read.
    fn undelivered_result(&mut self) -> Result<Option<StoredResult>, String>;

    /// The result of this command got a final answer.
    ///
    /// # Errors
    /// Where the state cannot be written; the result is then delivered again after a restart.
    fn mark_delivered(&mut self, id: &CommandId) -> Result<(), String>;

    /// `result` takes the place of the kept result of this command: the service refused the form of that one.
    ///
    /// # Errors
    /// Where the state cannot be written; the other one is then delivered again after a restart.
    fn replace_result(&mut self, _id: &CommandId, _result: &str) -> Result<(), String> {
        Ok(())
    }

    /// Takes the proof that a command could not take because no sshd ran; asked before each poll once systemd was told
    /// that we are ready.
    ///
    /// # Errors
    /// Where it could not be settled; it is tried again.
    fn check_owed_proof(&mut self) -> Result<OwedProofOutcome, String> {
        Ok(OwedProofOutcome::NoneOwed)
    }

    /// Whether the network may still be on its way, after this host had no way to the service.
    fn expects_network(&mut self) -> bool {
        true
    }

    /// The document of KP-3.37.
    fn build_agent_report(&mut self) -> String;

    /// A few words for `systemctl status`: binding, password login, component.
    fn summary(&mut self) -> String;
}

/// What `run` takes from the configuration.
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
    /// Another one runs, or the lock cannot be had.
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

/// The daemon: receives, decides, applies, reports, until SIGTERM or SIGINT.
///
/// # Errors
/// [`AgentError`] where it cannot begin; once begun, it ends in order.
pub fn run<T: CommandEngine>(settings: AgentSettings, transactions: T) -> Result<(), AgentError> {
    let _lock = RunLock::acquire(&settings.run_dir)?;
    let signals = StopSignals::install_handlers()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .max_blocking_threads(1)
        // An idle thread keeps its stack: it ends soon after each command.
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
    // A command that did not end in time is cut off here, as by a power failure: the next start recovers.
    runtime.shutdown_background();
    tracing::info!(MESSAGE_ID = Event::Stopped.id(), "keypair-agent stopped");
    served
}

/// The same loop for one agent of many in a process, until `stop`: without a lock, signals, systemd or a state for `status`.
/// It is what `run` is towards a service, to be tried in numbers.
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

/// The signals that end `run`. SIGHUP gets a handler that does nothing: it is ignored here and not in the
/// children, as it would be if it were ignored outright.
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

    /// Ends with the first signal, also with one that came before.
    fn into_stop_future(self) -> io::Result<impl Future<Output = ()>> {
        let reader = UnixStream::from_std(self.reader)?;
        Ok(async move {
            // An error of the socket pair leaves nothing that could stop us in order: it is taken as a stop.
            let _ = reader.readable().await;
        })
    }
}

/// Runs the course until `stop`. An idle one ends at once; a command in flight is told to stop and waited for.
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

/// What must happen whatever the course waits for; does not end.
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

/// Whether the worker moves: every step of it has a time limit, and one that exceeds the watchdog's does not end.
struct WorkerLiveness {
    moves: u64,
    moved_at: Instant,
    told: bool,
}

impl WorkerLiveness {
    fn new() -> Self {
        Self { moves: pulse::read_progress().0, moved_at: Instant::now(), told: false }
    }

    /// Whether it is idle, or moved within this time.
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
