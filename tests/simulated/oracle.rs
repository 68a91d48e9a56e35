//! The order of KP-3.26 and KP-4's table once more, by hand: what a command has to come to, given
//! what is bound and what stands. It knows nothing of the product's own plans.

use std::collections::{BTreeMap, BTreeSet};

use super::control_plane::{SimCommand, SimOrder};
use super::disk::{Disk, KEY_FILE};
use super::keys::{self, PlatformKeyPair};
use super::machine::ComponentState;
use super::place::{AccountState, TrialMode};
use super::sshd::SimSshdConfig;

/// How often a command may be interrupted before that is its result (KP-7.5).
pub const MAX_INTERRUPTIONS: u32 = 3;

/// What is bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ExpectedBinding {
    /// Which pair.
    pub pair: PlatformKeyPair,
    /// Whether it came with an image.
    pub inherited: bool,
    /// In which file.
    pub file: &'static str,
    /// Whether that was on the volume of the first home.
    pub on_volume: bool,
}

/// What the agent has to know, by all that it has promised so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReferenceState {
    /// What is bound.
    pub bound: Option<ExpectedBinding>,
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
pub enum ExpectedOutcome {
    /// Its stored result, and nothing is done.
    Repeated(String),
    /// A failure for this reason.
    Refused(&'static str),
    /// A success.
    Success,
}

/// What is bound: what is known, else what stands in the file.
pub fn effective_binding(known: &ReferenceState, rest: &Disk) -> Option<ExpectedBinding> {
    let standing = PlatformKeyPair::from_block(&keys::split_key_file(rest.read_key_file()).0);
    known.bound.or(standing.map(|pair| ExpectedBinding { inherited: true, ..new_binding(pair, rest) }))
}

/// This pair, bound where sshd reads now.
fn new_binding(pair: PlatformKeyPair, rest: &Disk) -> ExpectedBinding {
    let file = rest.key_file();
    ExpectedBinding { pair, inherited: false, file, on_volume: file == KEY_FILE && rest.place.is_mounted }
}

/// Whether the command passes what is judged ahead of section 4.
fn check_admission(
    command: &SimCommand,
    known: &ReferenceState,
    component: ComponentState,
    now: i64,
) -> Result<(), &'static str> {
    match component {
        ComponentState::Current => {}
        ComponentState::Outdated => return Err("COMPONENT_TOO_OLD"),
        ComponentState::Missing => return Err("COMPONENT_VERSION_UNREADABLE"),
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
pub fn raises_sequence(
    command: &SimCommand,
    known: &ReferenceState,
    component: ComponentState,
    now: i64,
) -> bool {
    !known.seen.contains_key(&command.id()) && check_admission(command, known, component, now).is_ok()
}

/// What the command has to come to on this guest, where nothing comes in between.
pub fn expected_outcome(
    command: &SimCommand,
    known: &ReferenceState,
    rest: &Disk,
    component: ComponentState,
    now: i64,
) -> ExpectedOutcome {
    if let Some(result) = known.seen.get(&command.id()) {
        return ExpectedOutcome::Repeated(result.clone());
    }
    match check_admission(command, known, component, now)
        .and_then(|()| check_action(command.order, known, rest))
    {
        Ok(()) => ExpectedOutcome::Success,
        Err(reason) => ExpectedOutcome::Refused(reason),
    }
}

/// KP-4.2 to KP-4.8, and the guard (KP-6.19) as far as this sshd has rules.
fn check_action(order: SimOrder, known: &ReferenceState, rest: &Disk) -> Result<(), &'static str> {
    match (order, effective_binding(known, rest)) {
        (
            SimOrder::Attach { pair, replace: false, .. },
            Some(ExpectedBinding { pair: other, inherited: false, .. }),
        ) if pair != other => {
            return Err("ALREADY_ATTACHED");
        }
        (SimOrder::Detach(_), _) if known.bound.is_none() && rest.place.who == AccountState::Deleted => {
            return Err("USER_NOT_FOUND");
        }
        (SimOrder::Detach(pair), Some(bound)) if pair.name() != bound.pair.name() => {
            return Err("NOT_ATTACHED");
        }
        // It needs no sshd.
        (SimOrder::Detach(_), _) if is_block_unreachable(known, rest) => return Err("IO_ERROR"),
        (SimOrder::Detach(_), _) => return Ok(()),
        _ => {}
    }
    let needs_account = order != SimOrder::SetPasswordAuth(true);
    if needs_account && rest.place.who == AccountState::Deleted {
        return Err("USER_NOT_FOUND");
    }
    let Ok(config) = SimSshdConfig::from_disk(rest, "") else { return Err("SSHD_CONFIG_ALREADY_INVALID") };
    if matches!(order, SimOrder::Attach { .. }) && is_block_unreachable(known, rest) {
        return Err("IO_ERROR");
    }
    match passes_lockout_guard(order, known, rest, &config) {
        true => Ok(()),
        false => Err("LOCKOUT_GUARD"),
    }
}

/// Whether the bound block is found nowhere, and where it was put is not mounted.
fn is_block_unreachable(known: &ReferenceState, rest: &Disk) -> bool {
    let holds = |file: &str| !keys::split_key_file(rest.read_or_empty(file)).0.is_empty();
    known.bound.is_some_and(|bound| {
        bound.on_volume && !rest.place.is_mounted && !holds(bound.file) && !holds(rest.key_file())
    })
}

/// KP-10.6: whether the key that is needed lets in, as far as that can be asked.
fn passes_lockout_guard(
    order: SimOrder,
    known: &ReferenceState,
    rest: &Disk,
    config: &SimSshdConfig,
) -> bool {
    let place = rest.place;
    let taken = |new: PlatformKeyPair| {
        effective_binding(known, rest).map(|bound| bound.pair).filter(|bound| *bound != new)
    };
    // What a private sshd says of a key: it does, it does not, or it cannot be asked.
    let says = |is_planned: bool, stands: bool| match place.trial {
        _ if !config.permits_keys(place) => Some(false),
        TrialMode::Unavailable => None,
        TrialMode::WithoutPlannedFiles if is_planned => None,
        TrialMode::Available | TrialMode::WithoutPlannedFiles => Some(stands && config.takes_keys(place)),
    };
    match order {
        // In place first, it can be asked about all the same.
        SimOrder::Attach { pair, passwords: false, .. } if place.trial == TrialMode::WithoutPlannedFiles => {
            let is_changed = !rest.read_key_file().starts_with(pair.block().as_bytes());
            config.takes_keys(place) && !(is_changed && taken(pair).is_some())
        }
        SimOrder::Attach { passwords: false, .. } => says(true, true) == Some(true),
        SimOrder::Attach { pair, passwords: true, .. } => match taken(pair) {
            // The only way in is not taken away for one that is none.
            Some(old) if !config.permits_password(place) => {
                says(true, true) == Some(true)
                    || says(false, keys::has_key(rest.read_key_file(), old.public_key())) == Some(false)
            }
            _ => true,
        },
        SimOrder::SetPasswordAuth(false) => {
            says(false, keys::has_any_key(rest.read_key_file())) == Some(true)
        }
        SimOrder::SetPasswordAuth(true) | SimOrder::Detach(_) => true,
    }
}

/// What is bound after a success.
pub fn binding_after(order: SimOrder, known: &ReferenceState, rest: &Disk) -> Option<ExpectedBinding> {
    match order {
        SimOrder::Attach { pair, .. } => Some(new_binding(pair, rest)),
        SimOrder::Detach(_) => None,
        // It looks at no key file.
        SimOrder::SetPasswordAuth(true) => known.bound,
        SimOrder::SetPasswordAuth(false) => effective_binding(known, rest),
    }
}
