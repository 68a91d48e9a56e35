//! The result of a command while the agent fills it in.

use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::guest::Guest;
use crate::policy::command::ReceivedCommand;
use crate::policy::outcome::{Code, CommandResult, Refusal, Status, Warning, escape_unprintable};
use crate::policy::types::InstanceId;

use super::proof::ProbeSession;

/// An unfinished result, and when the agent first received its command.
#[derive(Debug, Clone)]
pub struct ResultBuilder {
    /// The result so far. Its status is not valid yet.
    pub outcome: CommandResult,
    /// Additional texts for the message of a success, from the last observation.
    pub notes: Vec<String>,
    /// The questions to the running sshd, over all tries.
    pub asked: ProbeSession,
    started: Duration,
}

impl ResultBuilder {
    /// A new sheet for a command that was just received.
    pub fn new(guest: &impl Guest, received: &ReceivedCommand) -> Self {
        let public_key = received.command.as_ref().ok().and_then(|command| command.action.public_key());
        Self {
            started: guest.elapsed(),
            notes: Vec::new(),
            asked: ProbeSession::default(),
            outcome: CommandResult {
                command_id: received.id.clone(),
                instance_id: received.instance_id.clone(),
                action: received.action,
                status: Status::Failed,
                code: Code::Internal,
                reason: None,
                message: String::new(),
                changed: false,
                key_name: received.key_name.clone(),
                fingerprint: public_key.map(|key| key.fingerprint()),
                user: None,
                authorized_keys_file: None,
                password_auth: received.password_auth,
                effective: None,
                trial: None,
                proof: None,
                warnings: Vec::new(),
                component_version: None,
                agent_version: crate::VERSION.to_owned(),
                finished_at: String::new(),
                duration_ms: 0,
            },
        }
    }

    /// Sets the id of this instance, if it is known.
    pub fn set_instance_id(&mut self, id: Option<&InstanceId>) {
        if let Some(id) = id {
            self.outcome.instance_id = Some(id.as_str().to_owned());
        }
    }

    /// The result of a command that succeeded.
    pub fn succeed(
        mut self,
        guest: &impl Guest,
        message: String,
        changed: bool,
        warnings: Vec<Warning>,
    ) -> CommandResult {
        self.outcome.status = Status::Succeeded;
        self.outcome.code = Code::Ok;
        self.outcome.reason = None;
        let words: Vec<String> = std::iter::once(message).chain(self.notes.drain(..)).collect();
        self.outcome.message = escape_unprintable(&words.join("; "));
        self.outcome.changed = changed;
        self.outcome.warnings = warnings;
        self.finish(guest)
    }

    /// The result of a command that failed.
    pub fn fail(mut self, guest: &impl Guest, refusal: Refusal) -> CommandResult {
        self.outcome.status = Status::Failed;
        self.outcome.code = refusal.reason.code();
        self.outcome.reason = Some(refusal.reason);
        self.outcome.message = refusal.message;
        self.outcome.changed = false;
        self.outcome.warnings = Vec::new();
        self.finish(guest)
    }

    fn finish(mut self, guest: &impl Guest) -> CommandResult {
        self.outcome.trial = self.asked.trial;
        self.outcome.proof = self.asked.proof;
        self.outcome.finished_at = current_timestamp(guest);
        let took = guest.elapsed().saturating_sub(self.started);
        self.outcome.duration_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        self.outcome
    }
}

/// The current time in RFC 3339, in whole seconds.
pub fn current_timestamp(guest: &impl Guest) -> String {
    format_rfc3339(guest.now())
}

/// A time in RFC 3339, in whole seconds.
pub fn format_rfc3339(moment: OffsetDateTime) -> String {
    moment.replace_nanosecond(0).unwrap_or(moment).format(&Rfc3339).unwrap_or_default()
}
