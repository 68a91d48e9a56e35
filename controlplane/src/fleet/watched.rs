//! The agent's HTTP channel, and what passes through it counted.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use keypair_agent::channel::base_url::BaseUrl;
use keypair_agent::channel::http::HttpChannel;
use keypair_agent::channel::{Channel, ChannelError, Delivery, Kind, Polled, Stored};
use keypair_agent::policy::types::{CommandId, InstanceId};

use super::stand_in::read;
use super::tally::{Call, Tally};

/// One agent's channel.
pub(super) struct Watched {
    base: BaseUrl,
    channel: HttpChannel,
    tally: Rc<Tally>,
    /// How many calls failed one after another; what runs here is told beside and does not count.
    failures: Cell<u32>,
    /// When the command in hand was queued.
    queued: Cell<Option<u64>>,
}

impl Watched {
    pub(super) fn new(base: BaseUrl, tally: Rc<Tally>) -> Self {
        Self {
            channel: HttpChannel::new(base.clone()),
            base,
            tally,
            failures: Cell::new(0),
            queued: Cell::new(None),
        }
    }

    fn begin(&self, call: Call) {
        self.tally.asked(call, self.failures.get() == 1 && call != Call::Agent);
    }

    fn end<A>(&self, call: Call, answer: Result<A, ChannelError>) -> Result<A, ChannelError> {
        self.tally.ended(answer.as_ref().err().map(failure));
        if let Err(error) = &answer {
            self.say_if_first(error);
        }
        if call != Call::Agent {
            self.failures.set(if answer.is_ok() { 0 } else { self.failures.get().saturating_add(1) });
        }
        answer
    }
}

impl Watched {
    /// A person who starts a fleet wants to know why nothing comes of it; what follows is counted.
    fn say_if_first(&self, error: &ChannelError) {
        if self.tally.is_first_failure() {
            let remedy = match error.kind() {
                Kind::Status(404) => {
                    "; it does not know this instance: give it the file of --print-instances (serve --instances)"
                }
                Kind::Refused => "; --metadata says where it is",
                _ => "",
            };
            eprintln!(
                "keypair-controlplane: the first request that failed, at {}: {error}{remedy}",
                self.base
            );
        }
    }
}

/// A failure's name: a status, or a word.
fn failure(error: &ChannelError) -> String {
    match error.kind() {
        Kind::Status(status) => status.to_string(),
        Kind::Refused => "refused".to_owned(),
        Kind::Cut => "cut".to_owned(),
        Kind::TimedOut => "timedOut".to_owned(),
        Kind::Forbidden | Kind::NoWay | Kind::Connect(_) | Kind::Unusable(_) => error.to_string(),
    }
}

/// When a command was queued: its sequence is the time, in milliseconds since 1970 (KP-9.8).
fn queued(delivery: &Delivery) -> Option<u64> {
    read(&delivery.bytes).ok()?.command.ok()?.sequence.map(u64::from)
}

impl Channel for Watched {
    async fn instance_id(&self) -> Result<InstanceId, ChannelError> {
        self.begin(Call::InstanceId);
        self.end(Call::InstanceId, self.channel.instance_id().await)
    }

    async fn next(&self, wait: Duration) -> Result<Polled, ChannelError> {
        self.begin(Call::Command);
        let waiting = (!wait.is_zero()).then(|| self.tally.waits());
        let polled = self.channel.next(wait).await;
        drop(waiting);
        // No queue is a failed poll to an agent.
        if matches!(polled, Ok(Polled::NoQueue(_))) {
            self.tally.ended(Some("404".to_owned()));
            self.failures.set(self.failures.get().saturating_add(1));
            return polled;
        }
        if let Ok(Polled::Command(delivery)) = &polled {
            self.queued.set(queued(delivery));
            self.queued.get().inspect(|queued| self.tally.received(*queued));
        }
        self.end(Call::Command, polled)
    }

    async fn store(&self, id: &CommandId, result: &str) -> Result<Stored, ChannelError> {
        self.begin(Call::Result);
        let stored = self.end(Call::Result, self.channel.store(id, result).await);
        if let (Ok(Stored::Accepted), Some(queued)) = (&stored, self.queued.take()) {
            self.tally.reported(queued);
        }
        stored
    }

    async fn announce(&self, document: &str) -> Result<(), ChannelError> {
        self.begin(Call::Agent);
        self.end(Call::Agent, self.channel.announce(document).await)
    }
}
