//! The order of KP-3.26 and KP-4's table once more, by hand: what a command has to come to, given
//! what is bound and what stands. It knows nothing of the product's own plans.

use std::collections::{BTreeMap, BTreeSet};

use super::control_plane::{Command, Order};
use super::disk::{Disk, KEY_FILE};
use super::keys::{self, Pair};
use super::machine::Component;
use super::place::{Trial, Who};
use super::sshd::Config;

/// How often a command may be interrupted before that is its result (KP-7.5).
pub const MOST_INTERRUPTIONS: u32 = 3;

/// What is bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Bound {
    /// Which pair.
    pub pair: Pair,
    /// Whether it came with an image.
    pub inherited: bool,
    /// In which file.
    pub file: &'static str,
    /// Whether that was on the volume of the first home.
    pub on_volume: bool,
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
    let standing = Pair::of_block(&keys::apart(rest.keys()).0);
    known.bound.or(standing.map(|pair| Bound { inherited: true, ..bound_now(pair, rest) }))
}

/// This pair, bound where sshd reads now.
fn bound_now(pair: Pair, rest: &Disk) -> Bound {
    let file = rest.key_file();
    Bound { pair, inherited: false, file, on_volume: file == KEY_FILE && rest.place.is_mounted }
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

/// KP-4.2 to KP-4.8, and the guard (KP-6.19) as far as this sshd has rules.
fn table(order: Order, known: &Known, rest: &Disk) -> Result<(), &'static str> {
    match (order, bound(known, rest)) {
        (Order::Attach { pair, replace: false, .. }, Some(Bound { pair: other, inherited: false, .. }))
            if pair != other =>
        {
            return Err("ALREADY_ATTACHED");
        }
        (Order::Detach(_), _) if known.bound.is_none() && rest.place.who == Who::Nobody => {
            return Err("USER_NOT_FOUND");
        }
        (Order::Detach(pair), Some(bound)) if pair.name() != bound.pair.name() => return Err("NOT_ATTACHED"),
        // It needs no sshd.
        (Order::Detach(_), _) if is_out_of_reach(known, rest) => return Err("IO_ERROR"),
        (Order::Detach(_), _) => return Ok(()),
        _ => {}
    }
    let needs_account = order != Order::SetPasswordAuth(true);
    if needs_account && rest.place.who == Who::Nobody {
        return Err("USER_NOT_FOUND");
    }
    let Ok(config) = Config::of(rest, "") else { return Err("SSHD_CONFIG_ALREADY_INVALID") };
    if matches!(order, Order::Attach { .. }) && is_out_of_reach(known, rest) {
        return Err("IO_ERROR");
    }
    match lets_in_then(order, known, rest, &config) {
        true => Ok(()),
        false => Err("LOCKOUT_GUARD"),
    }
}

/// Whether the bound block is found nowhere, and where it was put is not mounted.
fn is_out_of_reach(known: &Known, rest: &Disk) -> bool {
    let holds = |file: &str| !keys::apart(rest.text(file)).0.is_empty();
    known.bound.is_some_and(|bound| {
        bound.on_volume && !rest.place.is_mounted && !holds(bound.file) && !holds(rest.key_file())
    })
}

/// KP-10.6: whether the key that is needed lets in, as far as that can be asked.
fn lets_in_then(order: Order, known: &Known, rest: &Disk, config: &Config) -> bool {
    let place = rest.place;
    let taken = |new: Pair| bound(known, rest).map(|bound| bound.pair).filter(|bound| *bound != new);
    // What a private sshd says of a key: it does, it does not, or it cannot be asked.
    let says = |is_planned: bool, stands: bool| match place.trial {
        _ if !config.permits_keys(place) => Some(false),
        Trial::NotTaken => None,
        Trial::NotShown if is_planned => None,
        Trial::Told | Trial::NotShown => Some(stands && config.takes_keys(place)),
    };
    match order {
        // In place first, it can be asked about all the same.
        Order::Attach { pair, passwords: false, .. } if place.trial == Trial::NotShown => {
            let is_changed = !rest.keys().starts_with(pair.block().as_bytes());
            config.takes_keys(place) && !(is_changed && taken(pair).is_some())
        }
        Order::Attach { passwords: false, .. } => says(true, true) == Some(true),
        Order::Attach { pair, passwords: true, .. } => match taken(pair) {
            // The only way in is not taken away for one that is none.
            Some(old) if !config.permits_password(place) => {
                says(true, true) == Some(true)
                    || says(false, keys::holds(rest.keys(), old.key())) == Some(false)
            }
            _ => true,
        },
        Order::SetPasswordAuth(false) => says(false, keys::holds_a_key(rest.keys())) == Some(true),
        Order::SetPasswordAuth(true) | Order::Detach(_) => true,
    }
}

/// What is bound after a success.
pub fn bound_after(order: Order, known: &Known, rest: &Disk) -> Option<Bound> {
    match order {
        Order::Attach { pair, .. } => Some(bound_now(pair, rest)),
        Order::Detach(_) => None,
        // It looks at no key file.
        Order::SetPasswordAuth(true) => known.bound,
        Order::SetPasswordAuth(false) => bound(known, rest),
    }
}
