//! A service, a transaction room and a systemd that do as they are told, and write one diary.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};

use sd_notify::NotifyState;
use tempfile::TempDir;
use tokio::time::Instant;

use crate::agent::course::Course;
use crate::agent::report::{Manager, Report};
use crate::agent::*;
use crate::channel::state::ChannelState;
use crate::channel::{ChannelError, Delivery, Polled, Stored};
use crate::policy::command::Origin;
use crate::transaction::perform::Answered;

pub(super) const SECOND: Duration = Duration::from_secs(1);

/// What happened, and when, in milliseconds.
#[derive(Clone)]
pub(super) struct Diary {
    begun: Instant,
    lines: Arc<Mutex<Vec<(u64, String)>>>,
}

impl Diary {
    pub(super) fn note(&self, line: impl Into<String>) {
        let at = u64::try_from(self.begun.elapsed().as_millis()).unwrap();
        self.lines.lock().unwrap().push((at, line.into()));
    }

    pub(super) fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().iter().map(|(_, line)| line.clone()).collect()
    }

    /// When lines that begin so were written.
    pub(super) fn times(&self, prefix: &str) -> Vec<u64> {
        let lines = self.lines.lock().unwrap();
        lines.iter().filter(|(_, line)| line.starts_with(prefix)).map(|(at, _)| *at).collect()
    }

    pub(super) fn count(&self, prefix: &str) -> usize {
        self.times(prefix).len()
    }

    /// Where the first such line stands.
    pub(super) fn place(&self, prefix: &str) -> usize {
        let found = self.lines().iter().position(|line| line.starts_with(prefix));
        found.unwrap_or_else(|| panic!("no {prefix}: {:?}", self.lines()))
    }
}

/// Answers in order, each after a while; then the usual ones.
pub(super) type Script<A> = RefCell<VecDeque<(Duration, Result<A, ChannelError>)>>;

pub(super) struct Service {
    diary: Diary,
    pub(super) instance: Script<&'static str>,
    pub(super) next: Script<Polled>,
    pub(super) store: Script<Stored>,
    pub(super) announce: Script<()>,
}

async fn play<A>(script: &Script<A>, usual: A) -> Result<A, ChannelError> {
    let scripted = script.borrow_mut().pop_front();
    let Some((after, answer)) = scripted else { return Ok(usual) };
    sleep(after).await;
    answer
}

impl Channel for Service {
    async fn instance_id(&self) -> Result<InstanceId, ChannelError> {
        self.diary.note("instance-id");
        Ok(play(&self.instance, "i-1").await?.parse().unwrap())
    }

    async fn next(&self, wait: Duration) -> Result<Polled, ChannelError> {
        self.diary.note(format!("next {}", wait.as_secs()));
        if self.next.borrow().is_empty() {
            sleep(wait).await;
        }
        play(&self.next, Polled::Nothing).await
    }

    async fn store(&self, id: &CommandId, result: &str) -> Result<Stored, ChannelError> {
        self.diary.note(format!("store {id} {result}"));
        play(&self.store, Stored::Accepted).await
    }

    async fn announce(&self, document: &str) -> Result<(), ChannelError> {
        self.diary.note(format!("announce {document}"));
        play(&self.announce, ()).await
    }
}

/// The transaction room.
pub(super) struct Room {
    diary: Diary,
    pub(super) configured: Option<InstanceId>,
    pub(super) undelivered: Option<StoredResult>,
    pub(super) adoptions: VecDeque<Result<(), String>>,
    pub(super) performed: VecDeque<Performed>,
    /// Holds a command in flight until something comes, or `stop` is set.
    pub(super) hold: Option<Receiver<()>>,
    /// Whether a command in flight heeds `stop`.
    pub(super) heeds_stop: bool,
    pub(super) recovered: Result<(), String>,
}

impl Transactions for Room {
    fn recover(&mut self) -> Result<(), String> {
        self.diary.note("recover");
        self.recovered.clone()
    }

    fn configured_instance_id(&self) -> Option<InstanceId> {
        self.configured.clone()
    }

    fn adopt(&mut self, id: &InstanceId) -> Result<(), String> {
        self.diary.note(format!("adopt {id}"));
        self.adoptions.pop_front().unwrap_or(Ok(()))
    }

    fn perform(&mut self, bytes: &[u8], stop: &AtomicBool) -> Performed {
        self.diary.note("perform");
        if let Some(hold) = &self.hold {
            while hold.recv_timeout(Duration::from_millis(5)).is_err() {
                if self.heeds_stop && stop.load(Ordering::SeqCst) {
                    self.diary.note("perform stopped");
                    break;
                }
            }
        }
        self.performed.pop_front().unwrap_or_else(|| answered(std::str::from_utf8(bytes).unwrap()))
    }

    fn undelivered(&mut self) -> Result<Option<StoredResult>, String> {
        self.diary.note("undelivered");
        Ok(self.undelivered.clone())
    }

    fn delivered(&mut self, id: &CommandId) -> Result<(), String> {
        self.diary.note(format!("delivered {id}"));
        Ok(())
    }

    fn replace_result(&mut self, id: &CommandId, _result: &str) -> Result<(), String> {
        self.diary.note(format!("replace {id}"));
        Ok(())
    }

    fn describe(&mut self) -> String {
        "document".to_owned()
    }

    fn summary(&mut self) -> String {
        "bound my-test".to_owned()
    }
}

impl Manager for Diary {
    fn tell(&self, news: &[NotifyState<'_>]) {
        for news in news {
            self.note(news.to_string());
        }
    }
}

/// Everything a test sets up before it lets the loop go.
pub(super) struct World {
    pub(super) diary: Diary,
    pub(super) service: Service,
    pub(super) room: Room,
    pub(super) watchdog: Option<Duration>,
    pub(super) random: fn() -> u64,
    pub(super) run_dir: TempDir,
}

impl World {
    pub(super) fn new() -> Self {
        let diary = Diary { begun: Instant::now(), lines: Arc::default() };
        let service = Service {
            diary: diary.clone(),
            instance: Script::default(),
            next: Script::default(),
            store: Script::default(),
            announce: Script::default(),
        };
        let room = Room {
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
        // Every delay is as long as it may be.
        Self { diary, service, room, watchdog: None, random: || u64::MAX, run_dir }
    }

    /// What the polls give, at once.
    pub(super) fn polls(self, polls: impl IntoIterator<Item = Result<Polled, ChannelError>>) -> Self {
        self.service.next.borrow_mut().extend(polls.into_iter().map(|polled| (Duration::ZERO, polled)));
        self
    }

    /// Lets the loop go until `stop`.
    pub(super) async fn until(self, stop: impl Future<Output = ()>) -> Ran {
        let report = Report::new(Some(self.run_dir.path().to_owned()), self.diary.clone());
        let course = Course::new(self.service, self.room, report, 60 * SECOND, self.random);
        serve(&course, stop, self.watchdog).await;
        self.diary.note("end");
        Ran { state: ChannelState::read(self.run_dir.path()).unwrap(), diary: self.diary }
    }

    pub(super) async fn for_seconds(self, seconds: u64) -> Ran {
        self.until(sleep(Duration::from_secs(seconds))).await
    }
}

/// What is left to look at.
pub(super) struct Ran {
    pub(super) diary: Diary,
    pub(super) state: ChannelState,
}

pub(super) fn command(id: &str) -> Result<Polled, ChannelError> {
    Ok(Polled::Command(Delivery { bytes: id.as_bytes().to_vec(), origin: Origin::Channel }))
}

pub(super) fn answered(id: &str) -> Performed {
    Performed::Answered(result_of(id))
}

pub(super) fn result_of(id: &str) -> Answered {
    Answered {
        id: id.parse().unwrap(),
        result: format!("result-{id}"),
        succeeded: true,
        changed: true,
        recorded: true,
        is_new: false,
        repeated: false,
    }
}

pub(super) fn status<A>(status: u16) -> Result<A, ChannelError> {
    Err(ChannelError::Status { status, retry_after: None })
}
