//! What one instance is bound to and what it has yet to do: the rules, without I/O, clock or chance.
//!
//! A ledger holds the binding that the guest last confirmed and the commands in sequence order. What is bound
//! *now* is the confirmed binding with every unanswered command taken as done: a queued attach counts as
//! attached, and when its result says `failed` it is no longer among the unanswered, so that the instance is
//! free again, or still bound to what it was bound to before.

use std::collections::VecDeque;

use keypair_agent::policy::command::{Action, ActionName, Command};
use keypair_agent::policy::outcome::{Outcome, Reason, Status};
use keypair_agent::policy::types::{CommandId, InstanceId, Invalid, KeyName, PasswordAuth, Sequence};

use crate::keypair::StoredKeyPair;

/// How many answered commands are kept to recognise a result that comes again; the agent keeps as many.
pub const ANSWERED_KEPT: usize = 128;

/// How long a command is kept after `BAD_SIGNATURE`, from when it was handed out first, in milliseconds.
pub const KEPT_FOR: u64 = 60 * 60 * 1000;

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
pub struct Answer {
    /// What it says.
    pub outcome: Outcome,
    /// How it was said: the same bytes again are the same result.
    pub bytes: Vec<u8>,
}

/// A command and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The command as it is handed out.
    pub command: Command,
    /// Its place in the order.
    pub sequence: Sequence,
    /// What an attach binds; `None` for the others.
    pub binding: Option<Binding>,
    /// When it was handed out first, in milliseconds since 1970.
    pub handed_out: Option<u64>,
    /// The guest's answer, once there is one.
    pub answer: Option<Answer>,
}

/// What a new command is stamped with.
#[derive(Debug, Clone)]
pub struct Stamp {
    /// Its id.
    pub id: CommandId,
    /// The time, in milliseconds since 1970.
    pub now: u64,
}

/// What has to be done so that a request is met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// The same was asked before and is not answered yet: that command.
    Waiting(CommandId),
    /// This is to be queued.
    Queue(Box<Entry>),
}

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotNow {
    /// A key pair is bound that does not give way.
    Bound,
    /// No sequence is left: the clock or a store stands beyond 2^53 milliseconds.
    NoSequence(Invalid),
}

/// What became of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// It is stored.
    Stored(Settlement),
    /// It is not, and its command is handed out again: what was refused may have been a forged copy.
    Kept,
    /// It was already, byte for byte.
    Again,
    /// Another one is.
    Conflict,
    /// There is no such command here.
    Unknown,
}

/// The command whose result is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settlement {
    /// What was to be done.
    pub action: ActionName,
    /// Its place in the order, which tells when it was queued.
    pub sequence: Sequence,
}

/// What the guest confirmed last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Confirmed {
    /// What is bound by that.
    pub binding: Option<Binding>,
    /// The command it comes from; `None` before the first.
    pub by: Option<Sequence>,
}

/// One instance's binding and commands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    confirmed: Confirmed,
    /// In sequence order; the answered ones are dropped once there are many.
    entries: VecDeque<Entry>,
    highest: u64,
}

impl Ledger {
    /// A ledger as a store kept it. Of the answered commands those are enough that somebody asks for: the rules are about
    /// the unanswered ones, which must be in sequence order.
    pub fn kept(confirmed: Confirmed, entries: VecDeque<Entry>, highest: u64) -> Self {
        Self { confirmed, entries, highest }
    }

    /// What the guest confirmed last.
    pub fn confirmed(&self) -> &Confirmed {
        &self.confirmed
    }

    /// What is bound, every unanswered command taken as done.
    pub fn binding(&self) -> Option<&Binding> {
        self.unanswered().fold(self.confirmed.binding.as_ref(), after)
    }

    /// The oldest command without a result.
    pub fn oldest_unanswered(&self) -> Option<&Command> {
        self.unanswered().next().map(|entry| &entry.command)
    }

    /// The command of that id.
    pub fn entry(&self, id: &CommandId) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.command.id == *id)
    }

    /// What it takes to bind `key_pair`. A bound key pair gives way only where `is_live` says that it was
    /// deleted on the platform; then the command replaces it.
    ///
    /// # Errors
    /// [`NotNow::Bound`] where another attach came first, queued or done.
    pub fn attach(
        &self,
        instance: &InstanceId,
        wanted: &Binding,
        is_live: impl Fn(&StoredKeyPair) -> bool,
        stamp: Stamp,
    ) -> Result<Next, NotNow> {
        let replace = match self.binding() {
            None => false,
            // The last one that is about a binding: a reset of the password may have been queued since.
            Some(bound) => match self.unanswered().filter(|entry| binds(entry)).last() {
                Some(last) if last.binding.as_ref().is_some_and(|queued| same(queued, wanted)) => {
                    return Ok(Next::Waiting(last.command.id.clone()));
                }
                _ if !is_live(&bound.key_pair) => true,
                _ => return Err(NotNow::Bound),
            },
        };
        let action = Action::Attach {
            key_pair: wanted.key_pair.key_pair.clone(),
            password_auth: wanted.password_auth,
            replace,
        };
        self.queued(instance, action, Some(wanted.clone()), stamp)
    }

    /// What it takes to unbind the key pair of that name. With nothing bound the guest is asked all the same:
    /// it answers that there was nothing, and where this side forgot a binding it is gone afterwards.
    ///
    /// # Errors
    /// [`NotNow::Bound`] where a key pair of another name is bound.
    pub fn detach(&self, instance: &InstanceId, name: &KeyName, stamp: Stamp) -> Result<Next, NotNow> {
        let action = Action::Detach { key_name: Some(name.clone()) };
        match (self.binding(), self.unanswered().last()) {
            (Some(bound), _) if bound.key_pair.key_pair.key_name != *name => Err(NotNow::Bound),
            (None, Some(last)) if last.command.action == action => Ok(Next::Waiting(last.command.id.clone())),
            _ => self.queued(instance, action, None, stamp),
        }
    }

    /// What it takes to turn password login on: what a reset of the password asks for.
    ///
    /// # Errors
    /// [`NotNow::NoSequence`].
    pub fn allow_passwords(&self, instance: &InstanceId, stamp: Stamp) -> Result<Next, NotNow> {
        let action = Action::SetPasswordAuth { password_auth: PasswordAuth::Yes };
        match self.unanswered().last() {
            Some(last) if last.command.action == action => Ok(Next::Waiting(last.command.id.clone())),
            _ => self.queued(instance, action, None, stamp),
        }
    }

    /// Appends what one of the calls above said is to be queued.
    pub fn push(&mut self, entry: Entry) {
        self.highest = self.highest.max(entry.sequence.into());
        self.entries.push_back(entry);
    }

    /// Notes that the oldest command without a result is handed out; that command, where it is for the first time.
    pub fn hand_out(&mut self, now: u64) -> Option<&Command> {
        let entry = self.entries.iter_mut().find(|entry| entry.answer.is_none())?;
        if entry.handed_out.is_some() {
            return None;
        }
        entry.handed_out = Some(now);
        Some(&entry.command)
    }

    /// Whether a result closes nothing yet: after `BAD_SIGNATURE` a command stays for an hour from when it was handed out
    /// first. Who forges a copy of it must not close the real one.
    pub fn keeps(&self, outcome: &Outcome, now: u64) -> bool {
        let is_recent = |entry: &Entry| entry.handed_out.is_none_or(|at| now < at.saturating_add(KEPT_FOR));
        outcome.reason == Some(Reason::BadSignature)
            && self.entry(&outcome.command_id).is_some_and(|entry| entry.answer.is_none() && is_recent(entry))
    }

    /// Takes the result of a command, unless it [keeps](Self::keeps) that.
    pub fn settle_at(&mut self, answer: Answer, now: u64) -> Settled {
        if self.keeps(&answer.outcome, now) { Settled::Kept } else { self.settle(answer) }
    }

    /// Takes the result of a command.
    pub fn settle(&mut self, answer: Answer) -> Settled {
        let id = &answer.outcome.command_id;
        let Some(entry) = self.entries.iter_mut().find(|entry| entry.command.id == *id) else {
            return Settled::Unknown;
        };
        match &entry.answer {
            Some(stored) if stored.bytes == answer.bytes => return Settled::Again,
            Some(_) => return Settled::Conflict,
            None => {}
        }
        let settlement = Settlement { action: entry.command.action.name(), sequence: entry.sequence };
        let succeeded = answer.outcome.status == Status::Succeeded;
        entry.answer = Some(answer);
        // A guest acts in sequence order, so a late word on an older command says nothing about now.
        if succeeded && self.confirmed.by.is_none_or(|sequence| sequence < entry.sequence) {
            let binding = after(self.confirmed.binding.as_ref(), entry).cloned();
            self.confirmed = Confirmed { binding, by: Some(entry.sequence) };
        }
        self.drop_oldest_answered();
        Settled::Stored(settlement)
    }

    fn unanswered(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| entry.answer.is_none())
    }

    fn queued(
        &self,
        instance: &InstanceId,
        action: Action,
        binding: Option<Binding>,
        stamp: Stamp,
    ) -> Result<Next, NotNow> {
        let sequence =
            Sequence::try_from(stamp.now.max(self.highest.saturating_add(1))).map_err(NotNow::NoSequence)?;
        let command = Command {
            id: stamp.id,
            sequence: Some(sequence),
            instance_id: Some(instance.as_str().to_owned()),
            action,
            expires_at: None,
        };
        Ok(Next::Queue(Box::new(Entry { command, sequence, binding, handed_out: None, answer: None })))
    }

    fn drop_oldest_answered(&mut self) {
        let answered = self.entries.iter().filter(|entry| entry.answer.is_some()).count();
        if answered > ANSWERED_KEPT
            && let Some(oldest) = self.entries.iter().position(|entry| entry.answer.is_some())
        {
            self.entries.remove(oldest);
        }
    }
}

/// Whether a command changes what is bound.
fn binds(entry: &Entry) -> bool {
    match entry.command.action {
        Action::Attach { .. } | Action::Detach { .. } => true,
        Action::SetPasswordAuth { .. } => false,
    }
}

/// Whether two attaches ask the same.
fn same(one: &Binding, other: &Binding) -> bool {
    one.key_pair.id == other.key_pair.id && one.password_auth == other.password_auth
}

/// What is bound after a command, taken as done.
fn after<'a>(bound: Option<&'a Binding>, entry: &'a Entry) -> Option<&'a Binding> {
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
