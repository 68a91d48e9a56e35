//! The course of `run` (KP-3.5 to KP-3.19): recover, learn the instance id, then repeat: deliver the due result,
//! poll, perform. It ends only if `stop` is set after a call that changes something.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::CommandEngine;
use super::report::{ChannelFault, ServiceManager, StatusReporter};
use super::worker::Worker;
use crate::channel::backoff::{Backoff, LONG_POLL_THRESHOLD, RetryClass, uniform_duration, uniform_seconds};
use crate::channel::{Channel, ChannelError, ChannelErrorKind, Delivery, Polled, StoreResponse};
use crate::policy::outcome::shorten_result;
use crate::policy::types::{CommandId, InstanceId};
use crate::transaction::owed::OwedProofOutcome;
use crate::transaction::perform::{CompletedCommand, Execution};
use crate::transaction::state::StoredResult;

mod tell;

/// The least time between the starts of two polls, if no command comes and nothing fails.
const MIN_POLL_INTERVAL: Duration = Duration::from_secs(2);

/// If a poll stays unanswered this long, the agent assumes that no further command waits, and announces.
const ANNOUNCE_DELAY: Duration = Duration::from_millis(500);

/// The pause before a connect that failed without a network is tried again, until `READY=1`.
const NO_NETWORK_PAUSE: Duration = Duration::from_millis(250);

/// The window over which agents announce what runs here again after an outage. `ANNOUNCE_SPREAD` applies if the
/// service was unreachable and may have lost its data. `ANNOUNCE_SPREAD_AFTER_OVERLOAD` applies if it still answered,
/// even if only with errors.
const ANNOUNCE_SPREAD: Duration = Duration::from_secs(60);
const ANNOUNCE_SPREAD_AFTER_OVERLOAD: Duration = Duration::from_secs(300);

/// How long the metadata address must refuse, or answer as another service, until the agent is sure that there is no
/// service. The second constant is the same for a missing route: a link may take that long to come up.
const SERVICE_ABSENT_AFTER: Duration = Duration::from_secs(1);
const ROUTE_ABSENT_AFTER: Duration = Duration::from_secs(2);

/// How many polls are short while a proof is owed and sshd has not started: about half a minute.
const MAX_SHORT_POLLS: u8 = 15;

/// The time limit of the one try to deliver the last result at a stop.
const FINAL_DELIVERY_TIMEOUT: Duration = Duration::from_secs(2);

/// How many ids of delivered results are remembered: as many as the state holds results.
const MAX_DELIVERED_IDS: usize = 128;

/// The data of the course, shared with the housekeeping task.
pub(super) struct PollLoop<C, T, M> {
    channel: C,
    worker: Worker<T>,
    report: StatusReporter<M>,
    long_poll: Duration,
    random: fn() -> u64,
    stop: Arc<AtomicBool>,
}

impl<C: Channel, T: CommandEngine, M: ServiceManager> PollLoop<C, T, M> {
    pub(super) fn new(
        channel: C,
        transactions: T,
        report: StatusReporter<M>,
        long_poll: Duration,
        random: fn() -> u64,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        Self { channel, worker: Worker::new(transactions), report, long_poll, random, stop }
    }

    pub(super) fn reporter(&self) -> &StatusReporter<M> {
        &self.report
    }

    /// The flag that asks a command in flight to stop.
    pub(super) fn stop_flag(&self) -> &AtomicBool {
        &self.stop
    }

    /// Whether a call is in flight.
    pub(super) fn is_working(&self) -> bool {
        self.worker.is_working()
    }

    /// Whether a call is in flight that the process must wait for.
    pub(super) fn is_writing(&self) -> bool {
        self.worker.is_writing()
    }

    /// Runs the whole course.
    pub(super) async fn run(&self) {
        // The only error is `Stopped`, and it carries no further information.
        let _ = LoopState::new(self).run().await;
    }
}

/// `stop` was set, and no further step begins.
struct Stopped;

/// A result that is not delivered yet.
struct PendingResult {
    id: CommandId,
    result: String,
    recorded: bool,
}

type AnnounceFuture<'a> = Pin<Box<dyn Future<Output = Result<(), ChannelError>> + 'a>>;

/// The mutable state of the course.
struct LoopState<'a, C, T, M> {
    course: &'a PollLoop<C, T, M>,
    backoff: Backoff,
    next_poll: Instant,
    /// Whether this service holds long polls. If so, what happens to this agent's poll happens to the polls of all
    /// agents.
    holds: bool,
    /// Whether the service has answered since the last success, even if only with an error.
    busy: bool,
    /// Whether other agents are likely to begin their long polls at the same time as this one.
    in_step: bool,
    /// Commands whose result got a final answer while this process ran.
    settled: VecDeque<CommandId>,
    announce: Announcer<'a>,
    /// Since when the agent has found no metadata service.
    absent_since: Option<Instant>,
    /// Whether the running sshd must give a proof as soon as it starts. If so, polls are short.
    owes_proof: bool,
    /// How many polls were short for this reason.
    short_polls: u8,
    /// Why the last try to get that proof failed, as already logged.
    proof_trouble: Option<String>,
}

/// Sends `PUT keypair/agent`. It runs beside the calls of the course, so that no call waits for it.
struct Announcer<'a> {
    due: bool,
    flying: Option<AnnounceFuture<'a>>,
    backoff: Backoff,
    not_before: Instant,
    /// The agent announces only after this time, so that not all agents announce at once.
    spread_until: Instant,
    failure: Option<ChannelErrorKind>,
}

impl<'a, C: Channel, T: CommandEngine, M: ServiceManager> LoopState<'a, C, T, M> {
    fn new(course: &'a PollLoop<C, T, M>) -> Self {
        let now = Instant::now();
        let announce = Announcer {
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
        course.report.set_in_flight(None);
        let recovered = self.run_engine_call(T::recover).await;
        course.report.clear_in_flight();
        recovered?.unwrap_or_else(|why| tell::log_failure("recovery is not done", &why));
        self.refresh_summary().await;
        let instance = self.resolve_instance_id().await;
        let mut adopted = self.try_adopt_instance_id(&instance, true).await?;
        let mut due = match self
            .await_with_announce(course.worker.run_read_only(T::undelivered_result))
            .await
            .and_then(|state| state)
        {
            Ok(due) => due.map(|StoredResult { command_id, result }| PendingResult {
                id: command_id,
                result,
                recorded: true,
            }),
            Err(why) => {
                tell::log_failure("whether a result is undelivered is not known", &why);
                None
            }
        };
        loop {
            if let Some(mut due) = due.take() {
                self.deliver_result(&mut due).await?;
            }
            self.await_with_announce(sleep_until(self.next_poll)).await;
            if !adopted {
                adopted = self.try_adopt_instance_id(&instance, false).await?;
            }
            self.retry_owed_proof().await?;
            due = self.poll_for_command().await?;
        }
    }

    /// Gets the proof that a command could not get during boot. sshd may start only after `READY=1`, so this waits
    /// for it.
    async fn retry_owed_proof(&mut self) -> Result<(), Stopped> {
        self.owes_proof = false;
        if !self.course.report.is_ready() {
            return Ok(());
        }
        match self.run_engine_call(T::check_owed_proof).await? {
            Ok(OwedProofOutcome::NoneOwed | OwedProofOutcome::Confirmed) => self.proof_trouble = None,
            Ok(OwedProofOutcome::StillOwed) => {
                self.owes_proof = self.short_polls < MAX_SHORT_POLLS;
                self.short_polls += u8::from(self.owes_proof);
            }
            Ok(OwedProofOutcome::Contradicted) => {
                self.announce.due = true;
                self.announce.spread_until = Instant::now();
                self.refresh_summary().await;
            }
            Err(why) => {
                if self.proof_trouble.as_ref() != Some(&why) {
                    tell::log_failure("the proof that is owed is not taken", &why);
                }
                self.proof_trouble = Some(why);
            }
        }
        Ok(())
    }

    /// Returns the instance id. Queries the channel until it answers.
    async fn resolve_instance_id(&mut self) -> InstanceId {
        let course = self.course;
        if let Ok(Some(id)) =
            course.worker.run_read_only(|transactions| transactions.configured_instance_id()).await
        {
            return id;
        }
        loop {
            match course.channel.fetch_instance_id().await {
                Ok(id) => {
                    tell::log_instance_id(&id);
                    let outage = course.report.record_channel_success();
                    self.handle_success(outage);
                    return id;
                }
                Err(error) => {
                    self.signal_ready_if_no_service(&error).await;
                    let pause = self.choose_retry_delay(&error, None);
                    course.report.record_channel_failure(ChannelFault::CallFailed(
                        "asking for the instance id",
                        error,
                    ));
                    sleep(pause).await;
                }
            }
        }
    }

    async fn try_adopt_instance_id(&mut self, id: &InstanceId, first: bool) -> Result<bool, Stopped> {
        let id = id.clone();
        match self.run_engine_call(move |transactions| transactions.adopt_instance_id(&id)).await? {
            Ok(()) => {
                self.refresh_summary().await;
                Ok(true)
            }
            Err(why) => {
                if first {
                    tell::log_failure("the instance id is not taken", &why);
                }
                Ok(false)
            }
        }
    }

    /// Makes one poll and handles its answer. Returns the result that is now due.
    async fn poll_for_command(&mut self) -> Result<Option<PendingResult>, Stopped> {
        let course = self.course;
        let begun = Instant::now();
        let wait = self.choose_poll_wait();
        let mut next = pin!(course.channel.poll_command(wait));
        let polled = match timeout(ANNOUNCE_DELAY, self.await_with_announce(next.as_mut())).await {
            Ok(polled) => polled,
            Err(_) => {
                // A long poll may take minutes, and the announcement must be current. But if it started at once, the
                // next command would have to wait until sshd was queried for the document.
                if course.report.is_ready() {
                    self.start_announce_if_due();
                }
                self.await_with_announce(next).await
            }
        };
        let held = if wait.is_zero() { Duration::ZERO } else { begun.elapsed() };
        match polled {
            Ok(Polled::Command(delivery)) => {
                self.holds |= held > LONG_POLL_THRESHOLD;
                return self.handle_command(delivery).await;
            }
            Ok(Polled::NoCommand) => {
                self.update_long_poll_support(wait, held);
                course.report.notify_ready();
                let outage = course.report.record_poll_success();
                self.handle_success(outage);
                self.next_poll = begun + MIN_POLL_INTERVAL;
                self.start_announce_if_due();
                // A person at the console may have changed the binding meanwhile.
                self.refresh_summary().await;
            }
            Ok(Polled::NoQueue(pause)) => {
                course.report.notify_ready();
                self.handle_poll_failure(
                    ChannelFault::NoQueue,
                    pause.map_or(RetryClass::Ordinary, RetryClass::RetryAfter),
                );
                self.start_announce_if_due();
            }
            Err(error) => {
                self.signal_ready_if_no_service(&error).await;
                self.next_poll = Instant::now() + self.choose_retry_delay(&error, Some(held));
                course.report.record_poll_failure(ChannelFault::CallFailed("asking for a command", error));
            }
        }
        Ok(None)
    }

    /// How long the service may hold the next poll. If many agents begin long polls at the same time, the agent
    /// chooses a random part of the time. Otherwise all polls would always end and begin together.
    fn choose_poll_wait(&mut self) -> Duration {
        let course = self.course;
        if !course.report.is_ready() || self.owes_proof {
            return Duration::ZERO;
        }
        if std::mem::take(&mut self.in_step) {
            return Duration::from_secs(uniform_seconds(course.long_poll, (course.random)()));
        }
        course.long_poll
    }

    /// A poll that could be held for `wait` ended without a command after `held`.
    fn update_long_poll_support(&mut self, wait: Duration, held: Duration) {
        if wait > LONG_POLL_THRESHOLD {
            let holds = held > LONG_POLL_THRESHOLD;
            // At the first held poll: other agents may have started at the same time as this one.
            self.in_step |= holds && !self.holds;
            self.holds = holds;
        }
    }

    async fn handle_command(&mut self, delivery: Delivery) -> Result<Option<PendingResult>, Stopped> {
        let course = self.course;
        let read = tell::parse_for_log(&delivery);
        let again = read.as_ref().is_some_and(|received| self.settled.contains(&received.id));
        if let (Some(received), false) = (&read, again) {
            tell::log_received(received);
        }
        let stop = course.stop.clone();
        let call = move |transactions: &mut T| transactions.execute_command(&delivery.bytes, &stop);
        course.report.set_in_flight(read.as_ref().map(|received| received.id.clone()));
        let performed = self
            .await_with_announce(course.worker.run_mutating(call))
            .await
            .unwrap_or_else(Execution::NotExecuted);
        course.report.clear_in_flight();
        let CompletedCommand { id, result, recorded, changed, is_new, repeated, .. } = match performed {
            Execution::Completed(answered) => answered,
            Execution::NotExecuted(why) => {
                self.check_stopped(())?;
                self.handle_poll_failure(ChannelFault::Unanswerable(why), RetryClass::Ordinary);
                self.start_announce_if_due();
                return Ok(None);
            }
        };
        // The earlier answer may have been for another command with the same id that was not recorded as seen.
        let again = !is_new && (again || self.settled.contains(&id));
        if changed {
            self.announce.due = true;
            self.announce.spread_until = Instant::now();
        }
        let mut due = PendingResult { id, result, recorded };
        if course.stop.load(Ordering::SeqCst) {
            tell::log_outcome(&due.id, &due.result, repeated);
            self.try_final_delivery(&due).await;
            return Err(Stopped);
        }
        if again {
            // Send its result once more, whatever the answer, then back off.
            let sent = self.send_result(&mut due).await?;
            tracing::debug!("the result of {} was sent again: {sent:?}", due.id);
            self.handle_poll_failure(ChannelFault::Redelivered(due.id), RetryClass::Ordinary);
            return Ok(None);
        }
        tell::log_outcome(&due.id, &due.result, repeated);
        let outage = course.report.record_poll_success();
        self.handle_success(outage);
        self.in_step |= self.holds;
        self.next_poll = Instant::now();
        Ok(Some(due))
    }

    /// Delivers a result until it gets a final answer.
    async fn deliver_result(&mut self, due: &mut PendingResult) -> Result<(), Stopped> {
        let course = self.course;
        loop {
            match self.send_result(due).await? {
                Ok(stored) => {
                    let outage = course.report.record_channel_success();
                    self.handle_success(outage);
                    self.finish_delivery(due, stored).await?;
                    self.refresh_summary().await;
                    return Ok(());
                }
                Err(error) => {
                    let pause = self.choose_retry_delay(&error, None);
                    course
                        .report
                        .record_channel_failure(ChannelFault::CallFailed("delivering a result", error));
                    self.await_with_announce(sleep(pause)).await;
                }
            }
        }
    }

    /// Sends a result. If the service refuses its form, the short form is sent instead.
    async fn send_result(
        &mut self,
        due: &mut PendingResult,
    ) -> Result<Result<StoreResponse, ChannelError>, Stopped> {
        let channel = &self.course.channel;
        let sent = self.await_with_announce(channel.store_result(&due.id, &due.result)).await;
        let status = match sent {
            Ok(stored @ StoreResponse::Refused(status)) if is_format_refusal(stored) => status,
            sent => return Ok(sent),
        };
        let Some(short) = shorten_result(&due.result, status) else {
            return Ok(Ok(StoreResponse::Refused(status)));
        };
        tell::log_shortened_result(&due.id, status);
        due.result.clone_from(&short);
        let id = due.id.clone();
        self.run_engine_call(move |transactions| transactions.replace_result(&id, &short))
            .await?
            .unwrap_or_else(|why| tell::log_failure("the short result is not kept", &why));
        Ok(self.await_with_announce(channel.store_result(&due.id, &due.result)).await)
    }

    /// At a stop, the last result gets one quick try. The next start does the rest.
    async fn try_final_delivery(&mut self, due: &PendingResult) {
        let store = self.course.channel.store_result(&due.id, &due.result);
        let sent = timeout(FINAL_DELIVERY_TIMEOUT, store).await;
        if let Ok(Ok(stored)) = sent
            && !is_format_refusal(stored)
        {
            let _ = self.finish_delivery(due, stored).await;
        }
    }

    async fn finish_delivery(&mut self, due: &PendingResult, stored: StoreResponse) -> Result<(), Stopped> {
        tell::log_delivery(&due.id, stored);
        if self.settled.len() == MAX_DELIVERED_IDS {
            self.settled.pop_front();
        }
        self.settled.push_back(due.id.clone());
        if due.recorded {
            let id = due.id.clone();
            self.run_engine_call(move |transactions| transactions.mark_delivered(&id))
                .await?
                .unwrap_or_else(|why| tell::log_failure("that a result was delivered is not kept", &why));
        }
        Ok(())
    }

    fn handle_poll_failure(&mut self, trouble: ChannelFault, hint: RetryClass) {
        self.next_poll = Instant::now() + self.backoff.record_failure(hint, (self.course.random)());
        self.course.report.record_poll_failure(trouble);
    }

    /// Sends `READY=1` early, so that sshd may start, if there has certainly been no metadata service for a while.
    async fn signal_ready_if_no_service(&mut self, error: &ChannelError) {
        let course = self.course;
        if course.report.is_ready() {
            return;
        }
        let certain_after = match error {
            ChannelError::Unreachable(_) => {
                let awaits = self
                    .await_with_announce(
                        course.worker.run_read_only(|transactions| transactions.expects_network()),
                    )
                    .await;
                (awaits == Ok(false)).then_some(ROUTE_ABSENT_AFTER)
            }
            error => error.is_from_other_service().then_some(SERVICE_ABSENT_AFTER),
        };
        let Some(certain_after) = certain_after else {
            self.absent_since = None;
            return;
        };
        if self.absent_since.get_or_insert_with(Instant::now).elapsed() >= certain_after {
            tracing::info!("there is no metadata service here ({error}): sshd is not held any longer");
            course.report.notify_ready();
        }
    }

    /// The pause after a failed call. `held` is how long the service held the call, if it was a poll.
    fn choose_retry_delay(&mut self, error: &ChannelError, held: Option<Duration>) -> Duration {
        if error.is_network_unreachable() && !self.course.report.is_ready() {
            return NO_NETWORK_PAUSE;
        }
        let hint = match held {
            Some(held) => self.classify_poll_error(error, held),
            None => to_retry_class(error),
        };
        self.backoff.record_failure(hint, (self.course.random)())
    }

    /// Classifies the error of a poll that was held for `held`, and updates the flags for the next polls.
    fn classify_poll_error(&mut self, error: &ChannelError, held: Duration) -> RetryClass {
        let affects_all_agents = self.holds || held > LONG_POLL_THRESHOLD;
        let hint = match error {
            ChannelError::Status { status: 429 | 500.., retry_after: None } if affects_all_agents => {
                RetryClass::Busy
            }
            ChannelError::Disconnected { .. }
                if held > LONG_POLL_THRESHOLD || self.holds && self.backoff.has_no_failures() =>
            {
                RetryClass::Disconnected
            }
            // All agents that wait for the end of the outage must slow down like this one. Otherwise they would all
            // return at once.
            ChannelError::Disconnected { .. }
            | ChannelError::ConnectionRefused
            | ChannelError::TimedOut(_)
                if self.holds && !self.backoff.has_no_failures() =>
            {
                RetryClass::Busy
            }
            _ => to_retry_class(error),
        };
        let answered = matches!(error, ChannelError::Status { .. });
        self.busy |= answered && affects_all_agents;
        // A poll that is rejected at once came at its own time and returns at its own time. All other polls ended
        // together.
        self.in_step |= self.holds && (!answered || held > LONG_POLL_THRESHOLD);
        hint
    }

    /// A call succeeded. If this ends an outage, the agent announces again what runs here.
    fn handle_success(&mut self, outage: bool) {
        self.backoff.record_success();
        let busy = std::mem::take(&mut self.busy);
        if outage && !self.announce.due {
            let spread = match (busy, self.holds) {
                (true, _) => ANNOUNCE_SPREAD_AFTER_OVERLOAD,
                (false, true) => ANNOUNCE_SPREAD,
                (false, false) => Duration::ZERO,
            };
            self.announce.due = true;
            self.announce.spread_until = Instant::now() + uniform_duration(spread, (self.course.random)());
        }
    }

    async fn refresh_summary(&mut self) {
        let course = self.course;
        if let Ok(summary) = self.await_with_announce(course.worker.run_read_only(T::summary)).await {
            course.report.set_summary(summary);
        }
    }

    fn start_announce_if_due(&mut self) {
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
            match course.worker.run_read_only(T::build_agent_report).await {
                Ok(document) => course.channel.announce(&document).await,
                Err(_) => Ok(()),
            }
        }));
    }

    /// Makes a call that changes something. If `stop` is set, the steps after it do not begin.
    async fn run_engine_call<R: Send + 'static>(
        &mut self,
        call: impl FnOnce(&mut T) -> Result<R, String> + Send + 'static,
    ) -> Result<Result<R, String>, Stopped> {
        let course = self.course;
        let outcome =
            self.await_with_announce(course.worker.run_mutating(call)).await.and_then(|outcome| outcome);
        self.check_stopped(outcome)
    }

    fn check_stopped<R>(&self, value: R) -> Result<R, Stopped> {
        if self.course.stop.load(Ordering::SeqCst) { Err(Stopped) } else { Ok(value) }
    }

    /// Waits for `main`, and lets an announcement continue meanwhile.
    async fn await_with_announce<F: Future>(&mut self, main: F) -> F::Output {
        let mut main = pin!(main);
        let random = self.course.random;
        poll_fn(|context| {
            if let Some(flying) = &mut self.announce.flying
                && let Poll::Ready(announced) = flying.as_mut().poll(context)
            {
                self.announce.handle_completion(announced, random);
            }
            main.as_mut().poll(context)
        })
        .await
    }
}

impl Announcer<'_> {
    fn handle_completion(&mut self, announced: Result<(), ChannelError>, random: fn() -> u64) {
        self.flying = None;
        match announced {
            Ok(()) => {
                self.backoff.record_success();
                self.failure = None;
            }
            Err(error) => {
                if self.failure.replace(error.kind()) != Some(error.kind()) {
                    tell::log_announce_failure(&error);
                }
                if !error.is_final() {
                    self.due = true;
                    self.not_before =
                        Instant::now() + self.backoff.record_failure(to_retry_class(&error), random());
                }
            }
        }
    }
}

/// Whether the service refused the form of a result, so that it may accept the short form.
fn is_format_refusal(stored: StoreResponse) -> bool {
    matches!(stored, StoreResponse::Refused(400 | 413 | 422))
}

/// The back-off class of an error.
fn to_retry_class(error: &ChannelError) -> RetryClass {
    error.retry_after().map_or(RetryClass::Ordinary, RetryClass::RetryAfter)
}
