//! The agent's HTTP channel with counters around each call.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use keypair_agent::channel::base_url::BaseUrl;
use keypair_agent::channel::http::HttpChannel;
use keypair_agent::channel::{Channel, ChannelError, ChannelErrorKind, Delivery, Polled, StoreResponse};
use keypair_agent::policy::types::{CommandId, InstanceId};

use super::stand_in::parse_received_command;
use super::tally::{AgentCall, Counters};

/// The channel of one agent.
pub(super) struct InstrumentedChannel {
    base: BaseUrl,
    channel: HttpChannel,
    tally: Rc<Counters>,
    /// The number of failed calls in a row. Reports (`announce`) do not count, because they run beside the loop.
    failures: Cell<u32>,
    /// When the current command was queued, in milliseconds since 1970.
    queued: Cell<Option<u64>>,
}

impl InstrumentedChannel {
    pub(super) fn new(base: BaseUrl, tally: Rc<Counters>) -> Self {
        Self {
            channel: HttpChannel::new(base.clone()),
            base,
            tally,
            failures: Cell::new(0),
            queued: Cell::new(None),
        }
    }

    fn record_call_start(&self, call: AgentCall) {
        self.tally.count_request(call, self.failures.get() == 1 && call != AgentCall::Agent);
    }

    fn record_call_end<A>(
        &self,
        call: AgentCall,
        answer: Result<A, ChannelError>,
    ) -> Result<A, ChannelError> {
        self.tally.count_response(answer.as_ref().err().map(failure_name));
        if let Err(error) = &answer {
            self.print_first_failure(error);
        }
        if call != AgentCall::Agent {
            self.failures.set(if answer.is_ok() { 0 } else { self.failures.get().saturating_add(1) });
        }
        answer
    }
}

impl InstrumentedChannel {
    /// Prints the first failure, so that the person who started the fleet sees the cause. Later failures are only
    /// counted.
    fn print_first_failure(&self, error: &ChannelError) {
        if self.tally.is_first_failure() {
            let remedy = match error.kind() {
                ChannelErrorKind::Status(404) => {
                    "; it does not know this instance: give it the file of --print-instances (serve --instances)"
                }
                ChannelErrorKind::ConnectionRefused => "; --metadata says where it is",
                _ => "",
            };
            eprintln!(
                "keypair-controlplane: the first request that failed, at {}: {error}{remedy}",
                self.base
            );
        }
    }
}

/// The name of a failure in the output: an HTTP status or a word.
fn failure_name(error: &ChannelError) -> String {
    match error.kind() {
        ChannelErrorKind::Status(status) => status.to_string(),
        ChannelErrorKind::ConnectionRefused => "refused".to_owned(),
        ChannelErrorKind::Disconnected => "cut".to_owned(),
        ChannelErrorKind::TimedOut => "timedOut".to_owned(),
        ChannelErrorKind::Forbidden
        | ChannelErrorKind::Unreachable
        | ChannelErrorKind::Connect(_)
        | ChannelErrorKind::Unusable(_) => error.to_string(),
    }
}

/// When a command was queued. Its sequence is that time, in milliseconds since 1970 (KP-9.8).
fn queued_at_millis(delivery: &Delivery) -> Option<u64> {
    parse_received_command(&delivery.bytes).ok()?.command.ok()?.sequence.map(u64::from)
}

impl Channel for InstrumentedChannel {
    async fn fetch_instance_id(&self) -> Result<InstanceId, ChannelError> {
        self.record_call_start(AgentCall::InstanceId);
        self.record_call_end(AgentCall::InstanceId, self.channel.fetch_instance_id().await)
    }

    async fn poll_command(&self, wait: Duration) -> Result<Polled, ChannelError> {
        self.record_call_start(AgentCall::Command);
        let waiting = (!wait.is_zero()).then(|| self.tally.track_waiting_poll());
        let polled = self.channel.poll_command(wait).await;
        drop(waiting);
        // To an agent, a missing queue is a failed poll.
        if matches!(polled, Ok(Polled::NoQueue(_))) {
            self.tally.count_response(Some("404".to_owned()));
            self.failures.set(self.failures.get().saturating_add(1));
            return polled;
        }
        if let Ok(Polled::Command(delivery)) = &polled {
            self.queued.set(queued_at_millis(delivery));
            self.queued.get().inspect(|queued| self.tally.record_command_latency(*queued));
        }
        self.record_call_end(AgentCall::Command, polled)
    }

    async fn store_result(&self, id: &CommandId, result: &str) -> Result<StoreResponse, ChannelError> {
        self.record_call_start(AgentCall::Result);
        let stored = self.record_call_end(AgentCall::Result, self.channel.store_result(id, result).await);
        if let (Ok(StoreResponse::Accepted), Some(queued)) = (&stored, self.queued.take()) {
            self.tally.record_result_latency(queued);
        }
        stored
    }

    async fn announce(&self, document: &str) -> Result<(), ChannelError> {
        self.record_call_start(AgentCall::Agent);
        self.record_call_end(AgentCall::Agent, self.channel.announce(document).await)
    }
}
