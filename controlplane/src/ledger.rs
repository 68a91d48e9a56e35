//! What one instance is bound to and what it has yet to do: the rules, without I/O, clock or chance.
//!
//! A ledger holds the binding that the guest last confirmed and the commands in sequence order. What is bound
//! *now* is the confirmed binding with every unanswered command taken as done: a queued attach counts as
//! attached, and when its result says `failed` it is no longer among the unanswered, so that the instance is
//! free again, or still bound to what it was bound to before.

use std::collections::VecDeque;

use keypair_agent::policy::command::{Action, ActionName, Command};
use keypair_agent::policy::outcome::{CommandResult, Reason, Status};
use keypair_agent::policy::types::{CommandId, InstanceId, Invalid, KeyName, PasswordAuth, Sequence};

use crate::keypair::StoredKeyPair;

/// How many answered commands are kept to recognise a result that comes again; the agent keeps as many.
pub const MAX_ANSWERED_COMMANDS: usize = 128;

/// How long a command is kept after `BAD_SIGNATURE`, from when it was handed out first, in milliseconds.
pub const BAD_SIGNATURE_REDELIVERY_MILLIS: u64 = 60 * 60 * 1000;

/// A key pair that is bound to an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// What is bound; it may have been deleted on the platform since.
    pub key_pair: StoredKeyPair,
    /// The password setting it was bound with.
    pub password_auth: PasswordAuth,
}

/// The result of a command, with the bytes it came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceivedResult {
    /// What it says.
    pub outcome: CommandResult,
    /// How it was said: the same bytes again are the same result.
    pub bytes: Vec<u8>,
}

/// A command and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueEntry {
    /// The command as it is handed out.
    pub command: Command,
    /// Its place in the order.
    pub sequence: Sequence,
    /// What an attach binds; `None` for the others.
    pub binding: Option<Binding>,
    /// When it was handed out first, in milliseconds since 1970.
    pub handed_out: Option<u64>,
    /// The guest's answer, once there is one.
    pub answer: Option<ReceivedResult>,
}

/// What a new command is stamped with.
#[derive(Debug, Clone)]
pub struct CommandIdentity {
    /// Its id.
    pub id: CommandId,
    /// The time, in milliseconds since 1970.
    pub now: u64,
}

/// What has to be done so that a request is met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QueueDecision {
    /// The same was asked before and is not answered yet: that command.
    AlreadyQueued(CommandId),
    /// This is to be queued.
    Enqueue(Box<QueueEntry>),
}

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QueueError {
    /// A key pair is bound that does not give way.
    AlreadyBound,
    /// No sequence is left: the clock or a store stands beyond 2^53 milliseconds.
    SequenceExhausted(Invalid),
}

/// What became of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreResultOutcome {
    /// It is stored.
    Stored(CompletedCommand),
    /// It is not, and its command is handed out again: what was refused may have been a forged copy.
    Redelivered,
    /// It was already, byte for byte.
    Duplicate,
    /// Another one is.
    Conflict,
    /// There is no such command here.
    UnknownCommand,
}

/// The command whose result is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompletedCommand {
    /// What was to be done.
    pub action: ActionName,
    /// Its place in the order, which tells when it was queued.
    pub sequence: Sequence,
}

/// What the guest confirmed last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfirmedBinding {
    /// What is bound by that.
    pub binding: Option<Binding>,
    /// The command it comes from; `None` before the first.
    pub by: Option<Sequence>,
}

/// One instance's binding and commands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    confirmed: ConfirmedBinding,
    /// In sequence order; the answered ones are dropped once there are many.
    entries: VecDeque<QueueEntry>,
    highest: u64,
}

impl Ledger {
    /// A ledger as a store kept it. Of the answered commands those are enough that somebody asks for: the rules are about
    /// the unanswered ones, which must be in sequence order.
    pub fn from_parts(confirmed: ConfirmedBinding, entries: VecDeque<QueueEntry>, highest: u64) -> Self {
        Self { confirmed, entries, highest }
    }

    /// What the guest confirmed last.
    pub fn confirmed(&self) -> &ConfirmedBinding {
        &self.confirmed
    }

    /// What is bound, every unanswered command taken as done.
    pub fn binding(&self) -> Option<&Binding> {
        self.unanswered().fold(self.confirmed.binding.as_ref(), binding_after)
    }

    /// The oldest command without a result.
    pub fn oldest_unanswered(&self) -> Option<&Command> {
        self.unanswered().next().map(|entry| &entry.command)
    }

    /// The command of that id.
    pub fn entry(&self, id: &CommandId) -> Option<&QueueEntry> {
        self.entries.iter().find(|entry| entry.command.id == *id)
    }

    /// What it takes to bind `key_pair`. A bound key pair gives way only where `is_live` says that it was
    /// deleted on the platform; then the command replaces it.
    ///
    /// # Errors
    /// [`QueueError::AlreadyBound`] where another attach came first, queued or done.
    pub fn attach(
        &self,
        instance: &InstanceId,
        wanted: &Binding,
        is_live: impl Fn(&StoredKeyPair) -> bool,
        stamp: CommandIdentity,
    ) -> Result<QueueDecision, QueueError> {
        let replace = match self.binding() {
            None => false,
            // The last one that is about a binding: a reset of the password may have been queued since.
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

    /// What it takes to unbind the key pair of that name. With nothing bound the guest is asked all the same:
    /// it answers that there was nothing, and where this side forgot a binding it is gone afterwards.
    ///
    /// # Errors
    /// [`QueueError::AlreadyBound`] where a key pair of another name is bound.
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

    /// What it takes to turn password login on: what a reset of the password asks for.
    ///
    /// # Errors
    /// [`QueueError::SequenceExhausted`].
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

    /// Appends what one of the calls above said is to be queued.
    pub fn push(&mut self, entry: QueueEntry) {
        self.highest = self.highest.max(entry.sequence.into());
        self.entries.push_back(entry);
    }

    /// Notes that the oldest command without a result is handed out; that command, where it is for the first time.
    pub fn mark_handed_out(&mut self, now: u64) -> Option<&Command> {
        let entry = self.entries.iter_mut().find(|entry| entry.answer.is_none())?;
        if entry.handed_out.is_some() {
            return None;
        }
        entry.handed_out = Some(now);
        Some(&entry.command)
    }

    /// Whether a result closes nothing yet: after `BAD_SIGNATURE` a command stays for an hour from when it was handed out
    /// first. Who forges a copy of it must not close the real one.
    pub fn must_redeliver(&self, outcome: &CommandResult, now: u64) -> bool {
        let is_recent = |entry: &QueueEntry| {
            entry.handed_out.is_none_or(|at| now < at.saturating_add(BAD_SIGNATURE_REDELIVERY_MILLIS))
        };
        outcome.reason == Some(Reason::BadSignature)
            && self.entry(&outcome.command_id).is_some_and(|entry| entry.answer.is_none() && is_recent(entry))
    }

    /// Takes the result of a command, unless it [must_redeliver](Self::must_redeliver) that.
    pub fn store_result_at(&mut self, answer: ReceivedResult, now: u64) -> StoreResultOutcome {
        if self.must_redeliver(&answer.outcome, now) {
            StoreResultOutcome::Redelivered
        } else {
            self.store_result(answer)
        }
    }

    /// Takes the result of a command.
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
        // A guest acts in sequence order, so a late word on an older command says nothing about now.
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

/// Whether a command changes what is bound.
fn changes_binding(entry: &QueueEntry) -> bool {
    match entry.command.action {
        Action::Attach { .. } | Action::Detach { .. } => true,
        Action::SetPasswordAuth { .. } => false,
    }
}

/// Whether two attaches ask the same.
fn is_same_attach(one: &Binding, other: &Binding) -> bool {
    one.key_pair.id == other.key_pair.id && one.password_auth == other.password_auth
}

/// What is bound after a command, taken as done.
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
