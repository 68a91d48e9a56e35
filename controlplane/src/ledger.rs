//! The binding and the command queue of one instance: the rules, without I/O, clock or random numbers.
//!
//! A ledger holds the binding that the guest last confirmed, and the commands in sequence order. The *current*
//! binding is the confirmed one, as if every unanswered command had succeeded. A queued attach therefore counts as
//! attached. If its result is `failed`, the command is no longer unanswered. The instance is then unbound again, or
//! still has its earlier binding.

use std::collections::VecDeque;

use keypair_agent::policy::command::{Action, ActionName, Command};
use keypair_agent::policy::outcome::{CommandResult, Reason, Status};
use keypair_agent::policy::types::{CommandId, InstanceId, Invalid, KeyName, PasswordAuth, Sequence};

use crate::keypair::StoredKeyPair;

/// The number of answered commands that a ledger keeps, to recognise a repeated result. The agent keeps the same
/// number.
pub const MAX_ANSWERED_COMMANDS: usize = 128;

/// How long a command stays queued after `BAD_SIGNATURE` results, from its first hand-out, in milliseconds.
pub const BAD_SIGNATURE_REDELIVERY_MILLIS: u64 = 60 * 60 * 1000;

/// A key pair that is bound to an instance, with its password setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The key pair. It may have been deleted on the platform since.
    pub key_pair: StoredKeyPair,
    /// The password setting of the attach.
    pub password_auth: PasswordAuth,
}

/// The result of a command, parsed and as received bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceivedResult {
    /// The parsed result.
    pub outcome: CommandResult,
    /// The received bytes. A result with the same bytes is a repetition.
    pub bytes: Vec<u8>,
}

/// A command with its result, if there is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueEntry {
    /// The command as it is handed out.
    pub command: Command,
    /// The sequence of the command.
    pub sequence: Sequence,
    /// The binding that an attach creates; `None` for other commands.
    pub binding: Option<Binding>,
    /// The time of the first hand-out, in milliseconds since 1970.
    pub handed_out: Option<u64>,
    /// The result from the guest; `None` until it arrives.
    pub answer: Option<ReceivedResult>,
}

/// The id and the time of a new command.
#[derive(Debug, Clone)]
pub struct CommandIdentity {
    /// The command id.
    pub id: CommandId,
    /// The current time, in milliseconds since 1970.
    pub now: u64,
}

/// How to fulfil a request on one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QueueDecision {
    /// The same command is already queued and unanswered; holds its id.
    AlreadyQueued(CommandId),
    /// This command must be queued.
    Enqueue(Box<QueueEntry>),
}

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QueueError {
    /// A key pair is bound that must not be replaced or unbound.
    AlreadyBound,
    /// No sequence is left: the clock or the stored highest sequence is beyond 2^53 milliseconds.
    SequenceExhausted(Invalid),
}

/// The outcome of storing a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreResultOutcome {
    /// The result was stored.
    Stored(CompletedCommand),
    /// The result was not stored, and its command will be handed out again. The guest may have refused a forged copy.
    Redelivered,
    /// The same result, byte for byte, was already stored.
    Duplicate,
    /// Another result of this command is already stored.
    Conflict,
    /// The instance has no such command.
    UnknownCommand,
}

/// A command whose result was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompletedCommand {
    /// The action of the command.
    pub action: ActionName,
    /// The sequence of the command. It is also the time when the command was queued.
    pub sequence: Sequence,
}

/// The binding that the guest confirmed last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfirmedBinding {
    /// The confirmed binding; `None` if nothing is bound.
    pub binding: Option<Binding>,
    /// The sequence of the command that was confirmed; `None` before the first one.
    pub by: Option<Sequence>,
}

/// The binding and the command queue of one instance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    confirmed: ConfirmedBinding,
    /// In sequence order. The oldest answered entry is dropped if there are more than [`MAX_ANSWERED_COMMANDS`].
    entries: VecDeque<QueueEntry>,
    highest: u64,
}

impl Ledger {
    /// A ledger from the parts in a store. The unanswered commands must be complete and in sequence order, because
    /// the rules use them. Of the answered commands, only those that the caller needs must be included.
    pub fn from_parts(confirmed: ConfirmedBinding, entries: VecDeque<QueueEntry>, highest: u64) -> Self {
        Self { confirmed, entries, highest }
    }

    /// The binding that the guest confirmed last.
    pub fn confirmed(&self) -> &ConfirmedBinding {
        &self.confirmed
    }

    /// The current binding, as if every unanswered command had succeeded.
    pub fn binding(&self) -> Option<&Binding> {
        self.unanswered().fold(self.confirmed.binding.as_ref(), binding_after)
    }

    /// The oldest command without a result.
    pub fn oldest_unanswered(&self) -> Option<&Command> {
        self.unanswered().next().map(|entry| &entry.command)
    }

    /// The entry of the command with this id.
    pub fn entry(&self, id: &CommandId) -> Option<&QueueEntry> {
        self.entries.iter().find(|entry| entry.command.id == *id)
    }

    /// Decides how to bind the key pair of `wanted`. If another key pair is bound, it is replaced only if `is_live`
    /// returns `false` for it. That means it was deleted on the platform.
    ///
    /// # Errors
    /// [`QueueError::AlreadyBound`] if another attach came first, whether it is queued or done.
    /// [`QueueError::SequenceExhausted`] if no sequence is left.
    pub fn attach(
        &self,
        instance: &InstanceId,
        wanted: &Binding,
        is_live: impl Fn(&StoredKeyPair) -> bool,
        stamp: CommandIdentity,
    ) -> Result<QueueDecision, QueueError> {
        let replace = match self.binding() {
            None => false,
            // Only commands that change the binding count here. A password reset may have been queued after the
            // attach.
            Some(bound) => match self.unanswered().filter(|entry| changes_binding(entry)).last() {
                Some(last) if last.binding.as_ref().is_some_and(|queued| is_same_attach(queued, wanted)) => {
                    return Ok(QueueDecision::AlreadyQueued(last.command.id.clone()));
                }
                _ if !is_live(&bound.key_pair) => true,
                _ => return Err(QueueError::AlreadyBound),
            },
        };
        let action = Action::Attach {
            key_pair: wanted.key_pair.key_pair.clone(),
            password_auth: wanted.password_auth,
            replace,
        };
        self.prepare_entry(instance, action, Some(wanted.clone()), stamp)
    }

    /// Decides how to unbind the key pair with this name. If nothing is bound, a command is queued all the same. The
    /// guest then reports that nothing was bound. If the control plane lost a binding, the command removes it.
    ///
    /// # Errors
    /// [`QueueError::AlreadyBound`] if a key pair with another name is bound. [`QueueError::SequenceExhausted`] if no
    /// sequence is left.
    pub fn detach(
        &self,
        instance: &InstanceId,
        name: &KeyName,
        stamp: CommandIdentity,
    ) -> Result<QueueDecision, QueueError> {
        let action = Action::Detach { key_name: Some(name.clone()) };
        match (self.binding(), self.unanswered().last()) {
            (Some(bound), _) if bound.key_pair.key_pair.key_name != *name => Err(QueueError::AlreadyBound),
            (None, Some(last)) if last.command.action == action => {
                Ok(QueueDecision::AlreadyQueued(last.command.id.clone()))
            }
            _ => self.prepare_entry(instance, action, None, stamp),
        }
    }

    /// Decides how to turn password login on, for a password reset.
    ///
    /// # Errors
    /// [`QueueError::SequenceExhausted`] if no sequence is left.
    pub fn allow_passwords(
        &self,
        instance: &InstanceId,
        stamp: CommandIdentity,
    ) -> Result<QueueDecision, QueueError> {
        let action = Action::SetPasswordAuth { password_auth: PasswordAuth::Yes };
        match self.unanswered().last() {
            Some(last) if last.command.action == action => {
                Ok(QueueDecision::AlreadyQueued(last.command.id.clone()))
            }
            _ => self.prepare_entry(instance, action, None, stamp),
        }
    }

    /// Appends an entry from [`QueueDecision::Enqueue`].
    pub fn push(&mut self, entry: QueueEntry) {
        self.highest = self.highest.max(entry.sequence.into());
        self.entries.push_back(entry);
    }

    /// Records the first hand-out of the oldest unanswered command. Returns that command, or `None` if it was handed
    /// out before.
    pub fn mark_handed_out(&mut self, now: u64) -> Option<&Command> {
        let entry = self.entries.iter_mut().find(|entry| entry.answer.is_none())?;
        if entry.handed_out.is_some() {
            return None;
        }
        entry.handed_out = Some(now);
        Some(&entry.command)
    }

    /// Whether a `BAD_SIGNATURE` result must be ignored. The command stays queued for an hour from its first
    /// hand-out. Otherwise the sender of a forged copy could close the genuine command.
    pub fn must_redeliver(&self, outcome: &CommandResult, now: u64) -> bool {
        let is_recent = |entry: &QueueEntry| {
            entry.handed_out.is_none_or(|at| now < at.saturating_add(BAD_SIGNATURE_REDELIVERY_MILLIS))
        };
        outcome.reason == Some(Reason::BadSignature)
            && self.entry(&outcome.command_id).is_some_and(|entry| entry.answer.is_none() && is_recent(entry))
    }

    /// Stores the result of a command, unless the command [must be redelivered](Self::must_redeliver).
    pub fn store_result_at(&mut self, answer: ReceivedResult, now: u64) -> StoreResultOutcome {
        if self.must_redeliver(&answer.outcome, now) {
            StoreResultOutcome::Redelivered
        } else {
            self.store_result(answer)
        }
    }

    /// Stores the result of a command.
    pub fn store_result(&mut self, answer: ReceivedResult) -> StoreResultOutcome {
        let id = &answer.outcome.command_id;
        let Some(entry) = self.entries.iter_mut().find(|entry| entry.command.id == *id) else {
            return StoreResultOutcome::UnknownCommand;
        };
        match &entry.answer {
            Some(stored) if stored.bytes == answer.bytes => return StoreResultOutcome::Duplicate,
            Some(_) => return StoreResultOutcome::Conflict,
            None => {}
        }
        let settlement = CompletedCommand { action: entry.command.action.name(), sequence: entry.sequence };
        let succeeded = answer.outcome.status == Status::Succeeded;
        entry.answer = Some(answer);
        // A guest executes commands in sequence order, so a late result of an older command must not change the
        // binding.
        if succeeded && self.confirmed.by.is_none_or(|sequence| sequence < entry.sequence) {
            let binding = binding_after(self.confirmed.binding.as_ref(), entry).cloned();
            self.confirmed = ConfirmedBinding { binding, by: Some(entry.sequence) };
        }
        self.drop_oldest_answered();
        StoreResultOutcome::Stored(settlement)
    }

    fn unanswered(&self) -> impl Iterator<Item = &QueueEntry> {
        self.entries.iter().filter(|entry| entry.answer.is_none())
    }

    fn prepare_entry(
        &self,
        instance: &InstanceId,
        action: Action,
        binding: Option<Binding>,
        stamp: CommandIdentity,
    ) -> Result<QueueDecision, QueueError> {
        let sequence = Sequence::try_from(stamp.now.max(self.highest.saturating_add(1)))
            .map_err(QueueError::SequenceExhausted)?;
        let command = Command {
            id: stamp.id,
            sequence: Some(sequence),
            instance_id: Some(instance.as_str().to_owned()),
            action,
            expires_at: None,
        };
        Ok(QueueDecision::Enqueue(Box::new(QueueEntry {
            command,
            sequence,
            binding,
            handed_out: None,
            answer: None,
        })))
    }

    fn drop_oldest_answered(&mut self) {
        let answered = self.entries.iter().filter(|entry| entry.answer.is_some()).count();
        if answered > MAX_ANSWERED_COMMANDS
            && let Some(oldest) = self.entries.iter().position(|entry| entry.answer.is_some())
        {
            self.entries.remove(oldest);
        }
    }
}

/// Whether a command changes the binding.
fn changes_binding(entry: &QueueEntry) -> bool {
    match entry.command.action {
        Action::Attach { .. } | Action::Detach { .. } => true,
        Action::SetPasswordAuth { .. } => false,
    }
}

/// Whether two attaches have the same key pair and password setting.
fn is_same_attach(one: &Binding, other: &Binding) -> bool {
    one.key_pair.id == other.key_pair.id && one.password_auth == other.password_auth
}

/// The binding after a command, if the command succeeds.
fn binding_after<'a>(bound: Option<&'a Binding>, entry: &'a QueueEntry) -> Option<&'a Binding> {
    match &entry.command.action {
        Action::Attach { .. } => entry.binding.as_ref(),
        Action::Detach { key_name } => {
            bound.filter(|binding| Some(&binding.key_pair.key_pair.key_name) != key_name.as_ref())
        }
        Action::SetPasswordAuth { .. } => bound,
    }
}

#[cfg(test)]
mod tests;
