//! A fake service, a fake transaction engine and a fake systemd. All follow a script and write one common call log.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};

use sd_notify::NotifyState;
use tempfile::TempDir;
use tokio::time::Instant;

use crate::agent::course::PollLoop;
use crate::agent::report::{ServiceManager, StatusReporter};
use crate::agent::*;
use crate::channel::state::ChannelStatus;
use crate::channel::{ChannelError, Delivery, Polled, StoreResponse};
use crate::policy::command::Origin;
use crate::transaction::perform::CompletedCommand;

pub(super) const SECOND: Duration = Duration::from_secs(1);

/// The calls and their times in milliseconds.
#[derive(Clone)]
pub(super) struct CallLog {
    begun: Instant,
    lines: Arc<Mutex<Vec<(u64, String)>>>,
}

impl CallLog {
    pub(super) fn record(&self, line: impl Into<String>) {
        let at = u64::try_from(self.begun.elapsed().as_millis()).unwrap();
        self.lines.lock().unwrap().push((at, line.into()));
    }

    pub(super) fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().iter().map(|(_, line)| line.clone()).collect()
    }

    /// The times of the lines that begin with `prefix`.
    pub(super) fn times(&self, prefix: &str) -> Vec<u64> {
        let lines = self.lines.lock().unwrap();
        lines.iter().filter(|(_, line)| line.starts_with(prefix)).map(|(at, _)| *at).collect()
    }

    pub(super) fn count(&self, prefix: &str) -> usize {
        self.times(prefix).len()
    }

    /// The index of the first line that begins with `prefix`.
    pub(super) fn first_index(&self, prefix: &str) -> usize {
        let found = self.lines().iter().position(|line| line.starts_with(prefix));
        found.unwrap_or_else(|| panic!("no {prefix}: {:?}", self.lines()))
    }
}

/// Scripted answers in order, each after a delay. After the last one, the default answers follow.
pub(super) type Script<A> = RefCell<VecDeque<(Duration, Result<A, ChannelError>)>>;

pub(super) struct ScriptedService {
    diary: CallLog,
    pub(super) instance: Script<&'static str>,
    pub(super) next: Script<Polled>,
    pub(super) store: Script<StoreResponse>,
    pub(super) announce: Script<()>,
}

async fn next_scripted<A>(script: &Script<A>, usual: A) -> Result<A, ChannelError> {
    let scripted = script.borrow_mut().pop_front();
    let Some((after, answer)) = scripted else { return Ok(usual) };
    sleep(after).await;
    answer
}

impl Channel for ScriptedService {
    async fn fetch_instance_id(&self) -> Result<InstanceId, ChannelError> {
        self.diary.record("instance-id");
        Ok(next_scripted(&self.instance, "i-1").await?.parse().unwrap())
    }

    async fn poll_command(&self, wait: Duration) -> Result<Polled, ChannelError> {
        self.diary.record(format!("next {}", wait.as_secs()));
        if self.next.borrow().is_empty() {
            sleep(wait).await;
        }
        next_scripted(&self.next, Polled::NoCommand).await
    }

    async fn store_result(&self, id: &CommandId, result: &str) -> Result<StoreResponse, ChannelError> {
        self.diary.record(format!("store {id} {result}"));
        next_scripted(&self.store, StoreResponse::Accepted).await
    }

    async fn announce(&self, document: &str) -> Result<(), ChannelError> {
        self.diary.record(format!("announce {document}"));
        next_scripted(&self.announce, ()).await
    }
}

/// The fake transaction engine.
pub(super) struct FakeEngine {
    diary: CallLog,
    pub(super) configured: Option<InstanceId>,
    pub(super) undelivered: Option<StoredResult>,
    pub(super) adoptions: VecDeque<Result<(), String>>,
    pub(super) performed: VecDeque<Execution>,
    /// Holds a command in flight until a message comes, or `stop` is set.
    pub(super) hold: Option<Receiver<()>>,
    /// Whether a command in flight reacts to `stop`.
    pub(super) heeds_stop: bool,
    pub(super) recovered: Result<(), String>,
}

impl CommandEngine for FakeEngine {
    fn recover(&mut self) -> Result<(), String> {
        self.diary.record("recover");
        self.recovered.clone()
    }

    fn configured_instance_id(&self) -> Option<InstanceId> {
        self.configured.clone()
    }

    fn adopt_instance_id(&mut self, id: &InstanceId) -> Result<(), String> {
        self.diary.record(format!("adopt {id}"));
        self.adoptions.pop_front().unwrap_or(Ok(()))
    }

    fn execute_command(&mut self, bytes: &[u8], stop: &AtomicBool) -> Execution {
        self.diary.record("perform");
        if let Some(hold) = &self.hold {
            while hold.recv_timeout(Duration::from_millis(5)).is_err() {
                if self.heeds_stop && stop.load(Ordering::SeqCst) {
                    self.diary.record("perform stopped");
                    break;
                }
            }
        }
        self.performed.pop_front().unwrap_or_else(|| completed(std::str::from_utf8(bytes).unwrap()))
    }

    fn undelivered_result(&mut self) -> Result<Option<StoredResult>, String> {
        self.diary.record("undelivered");
        Ok(self.undelivered.clone())
    }

    fn mark_delivered(&mut self, id: &CommandId) -> Result<(), String> {
        self.diary.record(format!("delivered {id}"));
        Ok(())
    }

    fn replace_result(&mut self, id: &CommandId, _result: &str) -> Result<(), String> {
        self.diary.record(format!("replace {id}"));
        Ok(())
    }

    fn build_agent_report(&mut self) -> String {
        "document".to_owned()
    }

    fn summary(&mut self) -> String {
        "bound my-test".to_owned()
    }
}

impl ServiceManager for CallLog {
    fn notify(&self, news: &[NotifyState<'_>]) {
        for news in news {
            self.record(news.to_string());
        }
    }
}

/// The setup of a test, before the loop starts.
pub(super) struct AgentFixture {
    pub(super) diary: CallLog,
    pub(super) service: ScriptedService,
    pub(super) room: FakeEngine,
    pub(super) watchdog: Option<Duration>,
    pub(super) random: fn() -> u64,
    pub(super) run_dir: TempDir,
}

impl AgentFixture {
    pub(super) fn new() -> Self {
        let diary = CallLog { begun: Instant::now(), lines: Arc::default() };
        let service = ScriptedService {
            diary: diary.clone(),
            instance: Script::default(),
            next: Script::default(),
            store: Script::default(),
            announce: Script::default(),
        };
        let room = FakeEngine {
            diary: diary.clone(),
            configured: None,
            undelivered: None,
            adoptions: VecDeque::new(),
            performed: VecDeque::new(),
            hold: None,
            heeds_stop: true,
            recovered: Ok(()),
        };
        let run_dir = tempfile::tempdir().unwrap();
        // Every random delay has its greatest value.
        Self { diary, service, room, watchdog: None, random: || u64::MAX, run_dir }
    }

    /// Adds answers to polls; each comes without a delay.
    pub(super) fn with_polls(self, polls: impl IntoIterator<Item = Result<Polled, ChannelError>>) -> Self {
        self.service.next.borrow_mut().extend(polls.into_iter().map(|polled| (Duration::ZERO, polled)));
        self
    }

    /// Runs the loop until `stop`.
    pub(super) async fn run_loop_until(self, stop: impl Future<Output = ()>) -> FinishedRun {
        let report = StatusReporter::new(Some(self.run_dir.path().to_owned()), self.diary.clone());
        let course = PollLoop::new(self.service, self.room, report, 60 * SECOND, self.random);
        run_until_stopped(&course, stop, self.watchdog).await;
        self.diary.record("end");
        FinishedRun { state: ChannelStatus::read(self.run_dir.path()).unwrap(), diary: self.diary }
    }

    pub(super) async fn run_for_seconds(self, seconds: u64) -> FinishedRun {
        self.run_loop_until(sleep(Duration::from_secs(seconds))).await
    }
}

/// The data that a test checks after the run.
pub(super) struct FinishedRun {
    pub(super) diary: CallLog,
    pub(super) state: ChannelStatus,
}

pub(super) fn polled_command(id: &str) -> Result<Polled, ChannelError> {
    Ok(Polled::Command(Delivery { bytes: id.as_bytes().to_vec(), origin: Origin::Channel }))
}

pub(super) fn completed(id: &str) -> Execution {
    Execution::Completed(completed_command(id))
}

pub(super) fn completed_command(id: &str) -> CompletedCommand {
    CompletedCommand {
        id: id.parse().unwrap(),
        result: format!("result-{id}"),
        succeeded: true,
        changed: true,
        recorded: true,
        is_new: false,
        repeated: false,
    }
}

pub(super) fn status_error<A>(status: u16) -> Result<A, ChannelError> {
    Err(ChannelError::Status { status, retry_after: None })
}
