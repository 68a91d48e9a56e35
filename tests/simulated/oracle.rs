//! Contract 3's order of judgement and contract 4's table once more, by hand: what a command has to come to, given
//! what is bound and what stands. It knows nothing of the product's own plans.

use std::collections::{BTreeMap, BTreeSet};

use super::control_plane::{Command, Order};
use super::disk::{Disk, KEY_FILE};
use super::keys::{self, Pair};
use super::machine::Component;
use super::sshd::Config;

/// How often a command may be interrupted before that is its result (contract 7).
pub const MOST_INTERRUPTIONS: u32 = 3;

/// What is bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Bound {
    /// Which pair.
    pub pair: Pair,
    /// Whether it came with an image.
    pub inherited: bool,
}

/// What the agent has to know, by all that it has promised so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// What is bound.
    pub bound: Option<Bound>,
    /// The results that it has recorded, by command.
    pub seen: BTreeMap<String, String>,
    /// The highest sequence that passed its check, and whose it was.
    pub highest: Option<(u64, String)>,
    /// How often a command was found interrupted.
    pub interrupted: Option<(String, u32)>,
    /// Commands that were answered, while the state could not hold the answer.
    pub unrecorded: BTreeSet<String>,
    /// A result that `undo` left to be delivered, and that is forgotten then.
    pub fleeting: Option<String>,
    /// Which instance this is.
    pub instance: usize,
}

/// What a command has to come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// Its stored result, and nothing is done.
    Repeated(String),
    /// A failure for this reason.
    Refused(&'static str),
    /// A success.
    Succeeds,
}

/// What is bound: what is known, else what stands in the file.
pub fn bound(known: &Known, rest: &Disk) -> Option<Bound> {
    let standing = Pair::of_block(&keys::apart(rest.text(KEY_FILE)).0);
    known.bound.or(standing.map(|pair| Bound { pair, inherited: true }))
}

/// Whether the command passes what is judged ahead of section 4.
fn passes(command: &Command, known: &Known, component: Component, now: i64) -> Result<(), &'static str> {
    match component {
        Component::New => {}
        Component::Old => return Err("COMPONENT_TOO_OLD"),
        Component::Missing => return Err("COMPONENT_VERSION_UNREADABLE"),
    }
    if command.instance != known.instance {
        return Err("WRONG_INSTANCE");
    }
    if command.expires_at.is_some_and(|at| now >= at) {
        return Err("EXPIRED");
    }
    match &known.highest {
        Some((highest, whose)) if command.sequence() <= *highest && command.id() != *whose => {
            Err("STALE_COMMAND")
        }
        _ => Ok(()),
    }
}

/// Whether the command raises the highest sequence.
pub fn raises(command: &Command, known: &Known, component: Component, now: i64) -> bool {
    !known.seen.contains_key(&command.id()) && passes(command, known, component, now).is_ok()
}

/// What the command has to come to on this guest, where nothing comes in between.
pub fn expect(command: &Command, known: &Known, rest: &Disk, component: Component, now: i64) -> Expected {
    if let Some(result) = known.seen.get(&command.id()) {
        return Expected::Repeated(result.clone());
    }
    match passes(command, known, component, now).and_then(|()| table(command.order, known, rest)) {
        Ok(()) => Expected::Succeeds,
        Err(reason) => Expected::Refused(reason),
    }
}

/// Contract 4, and the guard of contract 6 as far as this sshd has rules.
fn table(order: Order, known: &Known, rest: &Disk) -> Result<(), &'static str> {
    match (order, bound(known, rest)) {
        (Order::Attach { pair, replace: false, .. }, Some(Bound { pair: other, inherited: false }))
            if pair != other =>
        {
            return Err("ALREADY_ATTACHED");
        }
        (Order::Detach(pair), Some(bound)) if pair.name() != bound.pair.name() => return Err("NOT_ATTACHED"),
        // It needs no sshd.
        (Order::Detach(_), _) => return Ok(()),
        _ => {}
    }
    let Ok(config) = Config::of(rest, "") else { return Err("SSHD_CONFIG_ALREADY_INVALID") };
    let has_key = matches!(order, Order::Attach { .. }) || keys::holds_a_key(rest.text(KEY_FILE));
    match order.passwords() {
        Some(false) if !has_key || !config.takes_keys_of_root() => Err("LOCKOUT_GUARD"),
        _ => Ok(()),
    }
}

/// What is bound after a success.
pub fn bound_after(order: Order, known: &Known, rest: &Disk) -> Option<Bound> {
    match order {
        Order::Attach { pair, .. } => Some(Bound { pair, inherited: false }),
        Order::Detach(_) => None,
        Order::SetPasswordAuth(_) => bound(known, rest),
    }
}
