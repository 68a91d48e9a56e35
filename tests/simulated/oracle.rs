//! A second, manual implementation of KP-3.26's order and KP-4's table: the expected outcome of a command, from the
//! binding and the files. It does not use the product's own plans.

use std::collections::{BTreeMap, BTreeSet};

use super::control_plane::{SimCommand, SimOrder};
use super::disk::{Disk, KEY_FILE};
use super::keys::{self, PlatformKeyPair};
use super::machine::ComponentState;
use super::place::{AccountState, TrialMode};
use super::sshd::SimSshdConfig;

/// The number of interruptions after which a command gets the result `INTERRUPTED` (KP-7.5).
pub const MAX_INTERRUPTIONS: u32 = 3;

/// The expected binding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ExpectedBinding {
    /// The key pair.
    pub pair: PlatformKeyPair,
    /// Whether it came with an image.
    pub inherited: bool,
    /// Its key file.
    pub file: &'static str,
    /// Whether that file was on the volume of the first home.
    pub on_volume: bool,
}

/// The state that the agent must hold, derived from everything that it has answered so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReferenceState {
    /// The binding.
    pub bound: Option<ExpectedBinding>,
    /// The recorded results, by command id.
    pub seen: BTreeMap<String, String>,
    /// The highest sequence that passed its check, and its command id.
    pub highest: Option<(u64, String)>,
    /// The interrupted command, and the number of its interruptions.
    pub interrupted: Option<(String, u32)>,
    /// Commands that were answered although the state could not hold the answer.
    pub unrecorded: BTreeSet<String>,
    /// A result that `undo` left to be delivered. The agent forgets it after the delivery.
    pub fleeting: Option<String>,
    /// The index of this instance.
    pub instance: usize,
}

/// The expected outcome of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExpectedOutcome {
    /// The stored result, without any other effect.
    Repeated(String),
    /// A failure for this reason.
    Refused(&'static str),
    /// A success.
    Success,
}

/// The binding: the known one, otherwise the one in the key file.
pub fn effective_binding(known: &ReferenceState, rest: &Disk) -> Option<ExpectedBinding> {
    let standing = PlatformKeyPair::from_block(&keys::split_key_file(rest.read_key_file()).0);
    known.bound.or(standing.map(|pair| ExpectedBinding { inherited: true, ..new_binding(pair, rest) }))
}

/// A binding of this pair in the key file that sshd reads now.
fn new_binding(pair: PlatformKeyPair, rest: &Disk) -> ExpectedBinding {
    let file = rest.key_file();
    ExpectedBinding { pair, inherited: false, file, on_volume: file == KEY_FILE && rest.place.is_mounted }
}

/// Whether the command passes the checks that come before section 4.
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

/// The expected outcome of the command on this guest, without disturbances.
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

/// KP-4.2 to KP-4.8, and the guard (KP-6.19) as far as the simulated sshd has rules.
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
        // A detach needs no sshd.
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

/// Whether no file holds the bound block, and the volume on which it was written is not mounted.
fn is_block_unreachable(known: &ReferenceState, rest: &Disk) -> bool {
    let holds = |file: &str| !keys::split_key_file(rest.read_or_empty(file)).0.is_empty();
    known.bound.is_some_and(|bound| {
        bound.on_volume && !rest.place.is_mounted && !holds(bound.file) && !holds(rest.key_file())
    })
}

/// KP-10.6: whether the necessary key gives access, as far as an sshd can answer that.
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
    // The answer of a private sshd about a key: yes, no, or `None` if it cannot answer.
    let says = |is_planned: bool, stands: bool| match place.trial {
        _ if !config.permits_keys(place) => Some(false),
        TrialMode::Unavailable => None,
        TrialMode::WithoutPlannedFiles if is_planned => None,
        TrialMode::Available | TrialMode::WithoutPlannedFiles => Some(stands && config.takes_keys(place)),
    };
    match order {
        // The agent writes the key first; then the private sshd can answer about the file in place.
        SimOrder::Attach { pair, passwords: false, .. } if place.trial == TrialMode::WithoutPlannedFiles => {
            let is_changed = !rest.read_key_file().starts_with(pair.block().as_bytes());
            config.takes_keys(place) && !(is_changed && taken(pair).is_some())
        }
        SimOrder::Attach { passwords: false, .. } => says(true, true) == Some(true),
        SimOrder::Attach { pair, passwords: true, .. } => match taken(pair) {
            // The only key that gives access must not be replaced by one that does not.
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

/// The binding after a success.
pub fn binding_after(order: SimOrder, known: &ReferenceState, rest: &Disk) -> Option<ExpectedBinding> {
    match order {
        SimOrder::Attach { pair, .. } => Some(new_binding(pair, rest)),
        SimOrder::Detach(_) => None,
        // It reads no key file.
        SimOrder::SetPasswordAuth(true) => known.bound,
        SimOrder::SetPasswordAuth(false) => effective_binding(known, rest),
    }
}
