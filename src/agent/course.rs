//! The course of `run` (KP-3.5 to KP-3.19): recover, learn who we are, then for ever deliver what is due, poll,
//! perform. It ends only where `stop` is set after a call that changes something.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::Transactions;
use super::report::{Manager, Report, Trouble};
use super::worker::Worker;
use crate::channel::backoff::{Backoff, HELD, Hint, uniform, whole_seconds};
use crate::channel::{Channel, ChannelError, Delivery, Kind, Polled, Stored};
use crate::policy::outcome::short_form;
use crate::policy::types::{CommandId, InstanceId};
use crate::transaction::owed::Settled;
use crate::transaction::perform::{Answered, Performed};
use crate::transaction::state::StoredResult;

mod tell;

/// How far apart polls start where no command comes and nothing fails.
const SPACING: Duration = Duration::from_secs(2);

/// How long a poll goes unanswered before it is taken that no command stands behind the last one.
const QUIET: Duration = Duration::from_millis(500);

/// When a connect that never left the host is tried again, until `READY=1`.
const NO_NETWORK_PAUSE: Duration = Duration::from_millis(250);

/// Over what time a fleet tells anew what runs there, after an outage: to a service that may have forgotten it, and to one
/// that answered all along, if only that it could not.
const NEWS_SPREAD: Duration = Duration::from_secs(60);
const LATE_NEWS_SPREAD: Duration = Duration::from_secs(300);

/// How long the metadata address has to refuse, or to answer as another service, until there is none for certain; and how
/// long there has to be no way to it: a link may take that long to come up.
const NOBODY: Duration = Duration::from_secs(1);
const NO_WAY: Duration = Duration::from_secs(2);

/// How many polls are short while sshd is yet to start: half a minute's.
const SHORT_POLLS: u8 = 15;

/// The one try to deliver the last result when stopping.
const LAST_TRY: Duration = Duration::from_secs(2);

/// How many results with a final answer are remembered: as many as the state holds.
const SETTLED_MAX: usize = 128;

/// What the course needs, shared with who attends it.
pub(super) struct Course<C, T, M> {
    channel: C,
    worker: Worker<T>,
    report: Report<M>,
    long_poll: Duration,
    random: fn() -> u64,
    stop: Arc<AtomicBool>,
}

impl<C: Channel, T: Transactions, M: Manager> Course<C, T, M> {
    pub(super) fn new(
        channel: C,
        transactions: T,
        report: Report<M>,
        long_poll: Duration,
        random: fn() -> u64,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        Self { channel, worker: Worker::new(transactions), report, long_poll, random, stop }
    }

    pub(super) fn report(&self) -> &Report<M> {
        &self.report
    }

    /// Told to a command in flight.
    pub(super) fn stop(&self) -> &AtomicBool {
        &self.stop
    }

    /// Whether a call is in flight.
    pub(super) fn is_working(&self) -> bool {
        self.worker.is_working()
    }

    /// Whether a call is in flight that must be waited for.
    pub(super) fn is_writing(&self) -> bool {
        self.worker.is_writing()
    }

    /// All of it.
    pub(super) async fn run(&self) {
        // The end of it is `Stopped`, and there is nothing to add to that.
        let _ = Walk::new(self).run().await;
    }
}

/// `stop` was set, and no further step begins.
struct Stopped;

/// A result on its way.
struct Due {
    id: CommandId,
    result: String,
    recorded: bool,
}

type Announcing<'a> = Pin<Box<dyn Future<Output = Result<(), ChannelError>> + 'a>>;

/// What changes along the course.
struct Walk<'a, C, T, M> {
    course: &'a Course<C, T, M>,
    backoff: Backoff,
    next_poll: Instant,
    /// Whether this service holds long polls: what then happens to ours happens to everyone's.
    holds: bool,
    /// Whether it has answered since the last success, if only that it cannot do its work.
    busy: bool,
    /// Whether others are likely to begin their long polls when we do.
    in_step: bool,
    /// Commands whose result got a final answer from this process.
    settled: VecDeque<CommandId>,
    announce: Announce<'a>,
    /// Since when there has been no service for certain.
    absent_since: Option<Instant>,
    /// Whether the running sshd is to be asked as soon as there is one: then polls are short.
    owes_proof: bool,
    /// How many were, for that.
    short_polls: u8,
    /// Why the last try to take that proof failed, told already.
    proof_trouble: Option<String>,
}

/// `PUT keypair/agent`. It goes on beside whatever the course waits for, so that nothing waits for it.
struct Announce<'a> {
    due: bool,
    flying: Option<Announcing<'a>>,
    backoff: Backoff,
    not_before: Instant,
    /// Until when others go first.
    spread_until: Instant,
    failure: Option<Kind>,
}

impl<'a, C: Channel, T: Transactions, M: Manager> Walk<'a, C, T, M> {
    fn new(course: &'a Course<C, T, M>) -> Self {
        let now = Instant::now();
        let announce = Announce {
            due: true,
            flying: None,
            backoff: Backoff::default(),
            not_before: now,
            spread_until: now,
            failure: None,
        };
        Self {
            course,
            backoff: Backoff::default(),
            next_poll: now,
            holds: false,
            busy: false,
            in_step: false,
            settled: VecDeque::new(),
            announce,
            absent_since: None,
            owes_proof: false,
            short_polls: 0,
            proof_trouble: None,
        }
    }

    async fn run(&mut self) -> Result<(), Stopped> {
        let course = self.course;
        course.report.begins(None);
        let recovered = self.write(T::recover).await;
        course.report.ends();
        recovered?.unwrap_or_else(|why| tell::trouble("recovery is not done", &why));
        self.summarize().await;
        let instance = self.instance().await;
        let mut adopted = self.adopt(&instance, true).await?;
        let mut due = match self.beside(course.worker.read(T::undelivered)).await.and_then(|state| state) {
            Ok(due) => {
                due.map(|StoredResult { command_id, result }| Due { id: command_id, result, recorded: true })
            }
            Err(why) => {
                tell::trouble("whether a result is undelivered is not known", &why);
                None
            }
        };
        loop {
            if let Some(mut due) = due.take() {
                self.deliver(&mut due).await?;
            }
            self.beside(sleep_until(self.next_poll)).await;
            if !adopted {
                adopted = self.adopt(&instance, false).await?;
            }
            self.settle_proof().await?;
            due = self.poll().await?;
        }
    }

    /// The proof that a command at the boot could not take. Not before sshd may start, which waits until we are ready.
    async fn settle_proof(&mut self) -> Result<(), Stopped> {
        self.owes_proof = false;
        if !self.course.report.is_ready() {
            return Ok(());
        }
        match self.write(T::settle_proof).await? {
            Ok(Settled::Nothing | Settled::Taken) => self.proof_trouble = None,
            Ok(Settled::Waits) => {
                self.owes_proof = self.short_polls < SHORT_POLLS;
                self.short_polls += u8::from(self.owes_proof);
            }
            Ok(Settled::Contradicted) => {
                self.announce.due = true;
                self.announce.spread_until = Instant::now();
                self.summarize().await;
            }
            Err(why) => {
                if self.proof_trouble.as_ref() != Some(&why) {
                    tell::trouble("the proof that is owed is not taken", &why);
                }
                self.proof_trouble = Some(why);
            }
        }
        Ok(())
    }

    /// Who we are; asked until it is answered.
    async fn instance(&mut self) -> InstanceId {
        let course = self.course;
        if let Ok(Some(id)) = course.worker.read(|transactions| transactions.configured_instance_id()).await {
            return id;
        }
        loop {
            match course.channel.instance_id().await {
                Ok(id) => {
                    tell::instance(&id);
                    let outage = course.report.works();
                    self.went_well(outage);
                    return id;
                }
                Err(error) => {
                    self.end_hold(&error).await;
                    let pause = self.pause(&error, None);
                    course.report.failed(Trouble::Call("asking for the instance id", error));
                    sleep(pause).await;
                }
            }
        }
    }

    async fn adopt(&mut self, id: &InstanceId, first: bool) -> Result<bool, Stopped> {
        let id = id.clone();
        match self.write(move |transactions| transactions.adopt(&id)).await? {
            Ok(()) => {
                self.summarize().await;
                Ok(true)
            }
            Err(why) => {
                if first {
                    tell::trouble("the instance id is not taken", &why);
                }
                Ok(false)
            }
        }
    }

    /// One poll and what follows from it: the result that is now due.
    async fn poll(&mut self) -> Result<Option<Due>, Stopped> {
        let course = self.course;
        let begun = Instant::now();
        let wait = self.wait();
        let mut next = pin!(course.channel.next(wait));
        let polled = match timeout(QUIET, self.beside(next.as_mut())).await {
            Ok(polled) => polled,
            Err(_) => {
                // A long poll may wait for minutes, and the news is of now. Before it is quiet the next command
                // would have to wait until sshd is asked for the document.
                if course.report.is_ready() {
                    self.announce_if_due();
                }
                self.beside(next).await
            }
        };
        let held = if wait.is_zero() { Duration::ZERO } else { begun.elapsed() };
        match polled {
            Ok(Polled::Command(delivery)) => {
                self.holds |= held > HELD;
                return self.command(delivery).await;
            }
            Ok(Polled::Nothing) => {
                self.learn_whether_it_holds(wait, held);
                course.report.ready();
                let outage = course.report.polled();
                self.went_well(outage);
                self.next_poll = begun + SPACING;
                self.announce_if_due();
                // Somebody at the console may have changed what is bound meanwhile.
                self.summarize().await;
            }
            Ok(Polled::NoQueue(pause)) => {
                course.report.ready();
                self.poll_failed(Trouble::NoQueue, pause.map_or(Hint::None, Hint::RetryAfter));
                self.announce_if_due();
            }
            Err(error) => {
                self.end_hold(&error).await;
                self.next_poll = Instant::now() + self.pause(&error, Some(held));
                course.report.poll_failed(Trouble::Call("asking for a command", error));
            }
        }
        Ok(None)
    }

    /// How long the next poll may be held. A part of the time by chance where a crowd begins its long polls at once, since
    /// they would all end, and begin anew, at once for ever.
    fn wait(&mut self) -> Duration {
        let course = self.course;
        if !course.report.is_ready() || self.owes_proof {
            return Duration::ZERO;
        }
        if std::mem::take(&mut self.in_step) {
            return Duration::from_secs(whole_seconds(course.long_poll, (course.random)()));
        }
        course.long_poll
    }

    /// A poll that was to wait so long ended without a command after that.
    fn learn_whether_it_holds(&mut self, wait: Duration, held: Duration) {
        if wait > HELD {
            let holds = held > HELD;
            // With the first one: others may have been started when we were.
            self.in_step |= holds && !self.holds;
            self.holds = holds;
        }
    }

    async fn command(&mut self, delivery: Delivery) -> Result<Option<Due>, Stopped> {
        let course = self.course;
        let read = tell::read(&delivery);
        let again = read.as_ref().is_some_and(|received| self.settled.contains(&received.id));
        if let (Some(received), false) = (&read, again) {
            tell::received(received);
        }
        let stop = course.stop.clone();
        let call = move |transactions: &mut T| transactions.perform(&delivery.bytes, &stop);
        course.report.begins(read.as_ref().map(|received| received.id.clone()));
        let performed = self.beside(course.worker.write(call)).await.unwrap_or_else(Performed::Unanswered);
        course.report.ends();
        let Answered { id, result, recorded, changed, is_new, repeated, .. } = match performed {
            Performed::Answered(answered) => answered,
            Performed::Unanswered(why) => {
                self.unless_stopped(())?;
                self.poll_failed(Trouble::Unanswerable(why), Hint::None);
                self.announce_if_due();
                return Ok(None);
            }
        };
        // What was answered before may have been another command that bore its id and did not count.
        let again = !is_new && (again || self.settled.contains(&id));
        if changed {
            self.announce.due = true;
            self.announce.spread_until = Instant::now();
        }
        let mut due = Due { id, result, recorded };
        if course.stop.load(Ordering::SeqCst) {
            tell::outcome(&due.id, &due.result, repeated);
            self.last_try(&due).await;
            return Err(Stopped);
        }
        if again {
            // Its result once more, whatever comes of it; then a pause.
            let sent = self.hand_over(&mut due).await?;
            tracing::debug!("the result of {} was sent again: {sent:?}", due.id);
            self.poll_failed(Trouble::HandedOutAgain(due.id), Hint::None);
            return Ok(None);
        }
        tell::outcome(&due.id, &due.result, repeated);
        let outage = course.report.polled();
        self.went_well(outage);
        self.in_step |= self.holds;
        self.next_poll = Instant::now();
        Ok(Some(due))
    }

    /// Delivers a result until it gets a final answer.
    async fn deliver(&mut self, due: &mut Due) -> Result<(), Stopped> {
        let course = self.course;
        loop {
            match self.hand_over(due).await? {
                Ok(stored) => {
                    let outage = course.report.works();
                    self.went_well(outage);
                    self.settle(due, stored).await?;
                    self.summarize().await;
                    return Ok(());
                }
                Err(error) => {
                    let pause = self.pause(&error, None);
                    course.report.failed(Trouble::Call("delivering a result", error));
                    self.beside(sleep(pause)).await;
                }
            }
        }
    }

    /// Sends a result; where the service refuses its form, the short one in its place.
    async fn hand_over(&mut self, due: &mut Due) -> Result<Result<Stored, ChannelError>, Stopped> {
        let channel = &self.course.channel;
        let sent = self.beside(channel.store(&due.id, &due.result)).await;
        let status = match sent {
            Ok(stored @ Stored::Refused(status)) if is_refused_form(stored) => status,
            sent => return Ok(sent),
        };
        let Some(short) = short_form(&due.result, status) else { return Ok(Ok(Stored::Refused(status))) };
        tell::shortened(&due.id, status);
        due.result.clone_from(&short);
        let id = due.id.clone();
        self.write(move |transactions| transactions.replace_result(&id, &short))
            .await?
            .unwrap_or_else(|why| tell::trouble("the short result is not kept", &why));
        Ok(self.beside(channel.store(&due.id, &due.result)).await)
    }

    /// The result that a stop leaves behind gets one quick try; the next start does the rest.
    async fn last_try(&mut self, due: &Due) {
        let store = self.course.channel.store(&due.id, &due.result);
        let sent = timeout(LAST_TRY, store).await;
        if let Ok(Ok(stored)) = sent
            && !is_refused_form(stored)
        {
            let _ = self.settle(due, stored).await;
        }
    }

    async fn settle(&mut self, due: &Due, stored: Stored) -> Result<(), Stopped> {
        tell::stored(&due.id, stored);
        if self.settled.len() == SETTLED_MAX {
            self.settled.pop_front();
        }
        self.settled.push_back(due.id.clone());
        if due.recorded {
            let id = due.id.clone();
            self.write(move |transactions| transactions.delivered(&id))
                .await?
                .unwrap_or_else(|why| tell::trouble("that a result was delivered is not kept", &why));
        }
        Ok(())
    }

    fn poll_failed(&mut self, trouble: Trouble, hint: Hint) {
        self.next_poll = Instant::now() + self.backoff.failure(hint, (self.course.random)());
        self.course.report.poll_failed(trouble);
    }

    /// Ends the hold of sshd before its time where there is no metadata service for certain, and has not been for a while.
    async fn end_hold(&mut self, error: &ChannelError) {
        let course = self.course;
        if course.report.is_ready() {
            return;
        }
        let certain_after = match error {
            ChannelError::NoWay(_) => {
                let awaits =
                    self.beside(course.worker.read(|transactions| transactions.expects_network())).await;
                (awaits == Ok(false)).then_some(NO_WAY)
            }
            error => error.is_anothers_answer().then_some(NOBODY),
        };
        let Some(certain_after) = certain_after else {
            self.absent_since = None;
            return;
        };
        if self.absent_since.get_or_insert_with(Instant::now).elapsed() >= certain_after {
            tracing::info!("there is no metadata service here ({error}): sshd is not held any longer");
            course.report.ready();
        }
    }

    /// How long to stay away after a failed call; of a long poll, that had been held so long.
    fn pause(&mut self, error: &ChannelError, held: Option<Duration>) -> Duration {
        if error.never_left_the_host() && !self.course.report.is_ready() {
            return NO_NETWORK_PAUSE;
        }
        let hint = match held {
            Some(held) => self.hint_of_poll(error, held),
            None => hint(error),
        };
        self.backoff.failure(hint, (self.course.random)())
    }

    /// What the failure of a poll that was held so long says, and what follows for the next ones.
    fn hint_of_poll(&mut self, error: &ChannelError, held: Duration) -> Hint {
        let is_everyones = self.holds || held > HELD;
        let hint = match error {
            ChannelError::Status { status: 429 | 500.., retry_after: None } if is_everyones => Hint::Busy,
            ChannelError::Cut { .. } if held > HELD || self.holds && self.backoff.is_new() => Hint::Cut,
            // All who wait for its end come back as seldom as this, or it would find a crowd at its door.
            ChannelError::Cut { .. } | ChannelError::Refused | ChannelError::TimedOut(_)
                if self.holds && !self.backoff.is_new() =>
            {
                Hint::Busy
            }
            _ => hint(error),
        };
        let answered = matches!(error, ChannelError::Status { .. });
        self.busy |= answered && is_everyones;
        // Who is sent away at once came in his turn, and comes back in it; all others lost theirs together.
        self.in_step |= self.holds && (!answered || held > HELD);
        hint
    }

    /// A call ended well, and with it maybe an outage: then what runs here is told anew.
    fn went_well(&mut self, outage: bool) {
        self.backoff.success();
        let busy = std::mem::take(&mut self.busy);
        if outage && !self.announce.due {
            let spread = match (busy, self.holds) {
                (true, _) => LATE_NEWS_SPREAD,
                (false, true) => NEWS_SPREAD,
                (false, false) => Duration::ZERO,
            };
            self.announce.due = true;
            self.announce.spread_until = Instant::now() + uniform(spread, (self.course.random)());
        }
    }

    async fn summarize(&mut self) {
        let course = self.course;
        if let Ok(summary) = self.beside(course.worker.read(T::summary)).await {
            course.report.summary(summary);
        }
    }

    fn announce_if_due(&mut self) {
        let course = self.course;
        let announce = &mut self.announce;
        if !announce.due
            || announce.flying.is_some()
            || Instant::now() < announce.not_before.max(announce.spread_until)
        {
            return;
        }
        announce.due = false;
        announce.flying = Some(Box::pin(async move {
            match course.worker.read(T::describe).await {
                Ok(document) => course.channel.announce(&document).await,
                Err(_) => Ok(()),
            }
        }));
    }

    /// A call that changes something; what comes after it is no longer begun once `stop` is set.
    async fn write<R: Send + 'static>(
        &mut self,
        call: impl FnOnce(&mut T) -> Result<R, String> + Send + 'static,
    ) -> Result<Result<R, String>, Stopped> {
        let course = self.course;
        let outcome = self.beside(course.worker.write(call)).await.and_then(|outcome| outcome);
        self.unless_stopped(outcome)
    }

    fn unless_stopped<R>(&self, value: R) -> Result<R, Stopped> {
        if self.course.stop.load(Ordering::SeqCst) { Err(Stopped) } else { Ok(value) }
    }

    /// Waits for `main`, and lets an announcement go on meanwhile.
    async fn beside<F: Future>(&mut self, main: F) -> F::Output {
        let mut main = pin!(main);
        let random = self.course.random;
        poll_fn(|context| {
            if let Some(flying) = &mut self.announce.flying
                && let Poll::Ready(announced) = flying.as_mut().poll(context)
            {
                self.announce.landed(announced, random);
            }
            main.as_mut().poll(context)
        })
        .await
    }
}

impl Announce<'_> {
    fn landed(&mut self, announced: Result<(), ChannelError>, random: fn() -> u64) {
        self.flying = None;
        match announced {
            Ok(()) => {
                self.backoff.success();
                self.failure = None;
            }
            Err(error) => {
                if self.failure.replace(error.kind()) != Some(error.kind()) {
                    tell::announce_failed(&error);
                }
                if !error.is_final() {
                    self.due = true;
                    self.not_before = Instant::now() + self.backoff.failure(hint(&error), random());
                }
            }
        }
    }
}

/// Whether it is the form of a result that the service refuses: a short one may be taken.
fn is_refused_form(stored: Stored) -> bool {
    matches!(stored, Stored::Refused(400 | 413 | 422))
}

/// What a failure says about the pause after it.
fn hint(error: &ChannelError) -> Hint {
    error.retry_after().map_or(Hint::None, Hint::RetryAfter)
}
