//! Every path of the simulated guest within a bound. stateright explores the paths, and the invariants must hold in
//! every state and at every step between states.

#![allow(clippy::unwrap_used, clippy::panic)]

mod simulated;

use std::io::{self, Write};
use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model, Property};

use simulated::action::{Budget, SimAction};
use simulated::control_plane::{ControlPlane, SimOrder};
use simulated::disk::Disk;
use simulated::edit::{KeyFileMove, UserEdit};
use simulated::keys::{self, PlatformKeyPair};
use simulated::place::{AccountState, TrialMode};
use simulated::property::Invariant;
use simulated::world::{EXPIRY_SECONDS, Simulation, SimulationSetup};

/// The start of a guest, and the commands for it.
#[derive(Clone)]
struct InitialState {
    main: &'static str,
    keys: Option<String>,
    orders: [SimOrder; 4],
    /// The questions that a private sshd can answer.
    trial: TrialMode,
}

/// A bounded state space: its initial states and its possible disturbances.
#[derive(Clone)]
struct StateSpace {
    name: &'static str,
    beginnings: Vec<InitialState>,
    expires: bool,
    budget: Budget,
    setting: SimulationSetup,
    /// Words that must occur in some result.
    meets: Vec<&'static str>,
}

impl Model for StateSpace {
    type State = Simulation;
    type Action = SimAction;

    fn init_states(&self) -> Vec<Simulation> {
        let begin = |InitialState { main, keys, orders, trial }: &InitialState| {
            let control_plane = ControlPlane {
                orders: orders.to_vec(),
                first_expires_at: self.expires.then_some(EXPIRY_SECONDS),
                instance: 0,
                results: Default::default(),
            };
            let mut disk = Disk::new(main, keys.as_deref());
            disk.place.trial = *trial;
            Simulation::new(disk, control_plane, self.budget)
        };
        self.beginnings.iter().map(begin).collect()
    }

    fn actions(&self, state: &Simulation, actions: &mut Vec<SimAction>) {
        actions.extend(state.possible_actions(&self.setting));
    }

    fn next_state(&self, last: &Simulation, action: SimAction) -> Option<Simulation> {
        Some(last.successor(&action))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let held = INVARIANT_CONDITIONS.iter().zip(Invariant::ALL);
        let held = held.map(|(condition, invariant)| Property::always(invariant.name(), *condition));
        let met = REACHABILITY_CONDITIONS
            .iter()
            .zip(&self.meets)
            .map(|(condition, what)| Property::sometimes(what, *condition));
        held.chain(met).collect()
    }
}

type Condition = fn(&StateSpace, &Simulation) -> bool;

/// stateright takes conditions as plain functions, so there is one for each index in the list of invariants.
const INVARIANT_CONDITIONS: [Condition; 10] = [
    invariant_holds::<0>,
    invariant_holds::<1>,
    invariant_holds::<2>,
    invariant_holds::<3>,
    invariant_holds::<4>,
    invariant_holds::<5>,
    invariant_holds::<6>,
    invariant_holds::<7>,
    invariant_holds::<8>,
    invariant_holds::<9>,
];

/// One condition for each index in the list of required words.
const REACHABILITY_CONDITIONS: [Condition; 6] = [
    result_contains_word::<0>,
    result_contains_word::<1>,
    result_contains_word::<2>,
    result_contains_word::<3>,
    result_contains_word::<4>,
    result_contains_word::<5>,
];

fn invariant_holds<const N: usize>(_: &StateSpace, world: &Simulation) -> bool {
    world.machine.violation.as_ref().is_none_or(|violation| violation.property != Invariant::ALL[N])
}

fn result_contains_word<const N: usize>(space: &StateSpace, world: &Simulation) -> bool {
    space.meets.get(N).is_some_and(|word| {
        let word = format!("\"{word}\"");
        world.known.seen.values().any(|result| result.contains(&word))
    })
}

/// Explores a whole state space. The summary goes to stderr directly, so it appears on every run.
fn explore_state_space(space: StateSpace) {
    let begun = Instant::now();
    let name = space.name;
    let checker =
        space.clone().checker().threads(1).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let mut uncaptured = io::stderr();
    writeln!(
        uncaptured,
        "{name}: {} states, {} of them unique, {} deep, {:.1} s",
        checker.state_count(),
        checker.unique_state_count(),
        checker.max_depth(),
        begun.elapsed().as_secs_f64()
    )
    .unwrap();
    for invariant in Invariant::ALL {
        let Some(path) = checker.discovery(invariant.name()) else { continue };
        let seen = path.last_state().machine.violation.clone();
        let way = path.into_actions();
        let way: String = way
            .iter()
            .enumerate()
            .map(|(number, action)| format!("\n  {:2}. {action}", number + 1))
            .collect();
        panic!("{name}: {} does not hold: {}{way}", invariant.name(), seen.unwrap().what);
    }
    // No limit stopped the exploration, and the required events have occurred.
    assert!(checker.is_done());
    for what in &space.meets {
        assert!(checker.discovery(what).is_some(), "{name}: no command comes to {what}");
    }
}

/// Debian's default, but root may log in with a password. Otherwise no command could lock root out.
const WITH_INCLUDE: &str = "Include /etc/ssh/sshd_config.d/*.conf\nUsePAM yes\nPermitRootLogin yes\n";
/// Without a drop-in directory: the agent's setting is a block at the top.
const WITHOUT_INCLUDE: &str = "# mine\nUsePAM yes\nPermitRootLogin yes\nPasswordAuthentication yes\n";
/// Here no key gives access.
const WITHOUT_KEYS: &str = "UsePAM yes\nPermitRootLogin yes\nPubkeyAuthentication no\n";

fn attach_order(pair: PlatformKeyPair, passwords: bool) -> SimOrder {
    SimOrder::Attach { pair, passwords, replace: false }
}

fn replace_order(pair: PlatformKeyPair, passwords: bool) -> SimOrder {
    SimOrder::Attach { pair, passwords, replace: true }
}

/// Sequences of four commands. Together they cover every row of KP-4's table.
fn order_sequences() -> [[SimOrder; 4]; 4] {
    use PlatformKeyPair::{K, KWithAnotherKey, L};
    use SimOrder::{Detach, SetPasswordAuth};
    [
        [attach_order(K, false), attach_order(L, false), replace_order(L, true), Detach(L)],
        [attach_order(K, true), attach_order(K, false), SetPasswordAuth(true), Detach(K)],
        [Detach(K), SetPasswordAuth(false), attach_order(K, false), Detach(L)],
        [attach_order(K, false), replace_order(KWithAnotherKey, false), Detach(K), SetPasswordAuth(false)],
    ]
}

/// Each sequence on one or two guests: with and without an Include, with keys of the user, with a block from an
/// image, and with an sshd that accepts no keys.
fn list_initial_states() -> Vec<InitialState> {
    let [first, second, third, fourth] = order_sequences();
    let block = PlatformKeyPair::K.block();
    let from = |main, keys: Option<&str>, orders| InitialState {
        main,
        keys: keys.map(str::to_owned),
        orders,
        trial: TrialMode::Available,
    };
    vec![
        from(WITH_INCLUDE, None, first),
        from(WITHOUT_INCLUDE, Some(keys::USERS_KEY), first),
        from(WITH_INCLUDE, Some(keys::USERS_KEY), third),
        from(WITHOUT_INCLUDE, None, third),
        from(WITH_INCLUDE, Some(keys::USERS_COPY_OF_K), second),
        from(WITH_INCLUDE, Some(&block), fourth),
        from(WITHOUT_KEYS, None, second),
    ]
}

const EDITS: [UserEdit; 7] = [
    UserEdit::AddKey,
    UserEdit::DisablePubkey,
    UserEdit::RemoveBlock,
    UserEdit::RemoveAllKeys,
    UserEdit::SetPasswordAuth(true),
    UserEdit::SetPasswordAuth(false),
    UserEdit::RemoveSetting,
];

/// Explores a space from each default initial state. The larger bound allows more of each disturbance.
fn explore_default_states(
    name: &'static str,
    budget: Budget,
    edits: &[UserEdit],
    from: &[usize],
    meets: &[&'static str],
) {
    explore_selected_states(name, budget, edits, &list_initial_states(), from, meets);
}

/// The same from other initial states.
fn explore_selected_states(
    name: &'static str,
    budget: Budget,
    edits: &[UserEdit],
    all: &[InitialState],
    from: &[usize],
    meets: &[&'static str],
) {
    let is_large = simulated::is_large();
    let beginnings = all.iter().enumerate().filter(|(number, _)| is_large || from.contains(number));
    let beginnings = beginnings.map(|(_, beginning)| beginning.clone()).collect();
    let more = u8::from(is_large);
    let budget = Budget {
        crashes: budget.crashes.max(1 + more),
        disturbances: budget.disturbances + more * u8::from(budget.disturbances > 0),
        ..budget
    };
    let setting = SimulationSetup { edits: edits.to_vec() };
    let meets = meets.to_vec();
    explore_state_space(StateSpace { name, beginnings, expires: budget.delays > 0, budget, setting, meets });
}

/// KP-7.3, KP-7.5.
#[test]
fn invariants_hold_with_four_crashes() {
    let budget = Budget { crashes: 4, ..Budget::default() };
    explore_default_states(
        "four crashes",
        budget,
        &[],
        &[0, 1, 2, 3, 4, 5, 6],
        &[
            "INTERRUPTED",
            "ALREADY_ATTACHED",
            "NOT_ATTACHED",
            "LOCKOUT_GUARD",
            "NO_WAY_IN",
            "KEY_STILL_PRESENT",
        ],
    );
}

#[test]
fn invariants_hold_with_disturbed_deliveries() {
    let budget =
        Budget { crashes: 2, repeats: 1, reorders: 1, lost: 1, disturbances: 2, ..Budget::default() };
    explore_default_states(
        "two crashes; deliveries lost, repeated, reordered",
        budget,
        &[],
        &[0],
        &["succeeded", "ALREADY_ATTACHED", "STALE_COMMAND"],
    );
}

/// KP-4.9, KP-7.3.
#[test]
fn invariants_hold_with_failed_step() {
    let budget = Budget { crashes: 1, failures: 1, stops: 1, disturbances: 2, ..Budget::default() };
    explore_default_states(
        "a crash; a step that fails, SIGTERM",
        budget,
        &[],
        &[0, 5],
        &["succeeded", "IO_ERROR", "SSHD_RELOAD_FAILED"],
    );
}

/// KP-5.9.
#[test]
fn invariants_hold_with_user_edit() {
    let budget = Budget { crashes: 1, edits: 1, disturbances: 1, ..Budget::default() };
    explore_default_states(
        "a crash; the user edits a file",
        budget,
        &EDITS,
        &[0, 1, 6],
        &["succeeded", "PROOF_CONTRADICTED", "LOCKOUT_GUARD"],
    );
}

#[test]
fn invariants_hold_with_two_user_edits() {
    let edits = [UserEdit::AddKey, UserEdit::RemoveBlock, UserEdit::SetPasswordAuth(true)];
    let budget = Budget { edits: 2, disturbances: 2, ..Budget::default() };
    explore_default_states(
        "a crash; the user edits twice",
        budget,
        &edits,
        &[1],
        &["succeeded", "PROOF_CONTRADICTED"],
    );
}

#[test]
fn invariants_hold_with_invalid_sshd_keyword() {
    let budget = Budget { crashes: 1, edits: 2, disturbances: 2, ..Budget::default() };
    let edits = [UserEdit::BreakConfig, UserEdit::RepairConfig];
    explore_default_states(
        "a crash; a line that sshd does not know",
        budget,
        &edits,
        &[0, 5],
        &["succeeded", "SSHD_CONFIG_ALREADY_INVALID"],
    );
}

/// KP-2.4, KP-3.28, KP-3.29, KP-4.3, KP-7.10.
#[test]
fn invariants_hold_with_clone_and_component_change() {
    let budget =
        Budget { components: 2, clones: 1, delays: 1, repeats: 1, disturbances: 2, ..Budget::default() };
    explore_default_states(
        "a crash; component, clone, clock, a stray command",
        budget,
        &[],
        &[0, 5],
        &[
            "COMPONENT_TOO_OLD",
            "COMPONENT_VERSION_UNREADABLE",
            "WRONG_INSTANCE",
            "EXPIRED",
            "INHERITED_KEY_REPLACED",
        ],
    );
}

#[test]
fn invariants_hold_with_console_undo() {
    let budget = Budget { undos: 1, repeats: 1, edits: 1, disturbances: 2, ..Budget::default() };
    explore_default_states(
        "a crash; undo at the console",
        budget,
        &[UserEdit::RemoveSetting],
        &[0, 5],
        &["succeeded"],
    );
}

/// A private sshd cannot read the planned key file, cannot answer at all, or refuses the key for a reason of its own.
/// KP-10.6.
#[test]
fn invariants_hold_with_failing_key_trial() {
    let edits = [UserEdit::LoosenHomeMode, UserEdit::SetTrialMode(TrialMode::Available)];
    let budget = Budget { edits: 1, disturbances: 1, ..Budget::default() };
    let all: Vec<InitialState> =
        [TrialMode::Available, TrialMode::WithoutPlannedFiles, TrialMode::Unavailable]
            .into_iter()
            .flat_map(|trial| {
                list_initial_states().into_iter().map(move |beginning| InitialState { trial, ..beginning })
            })
            .collect();
    let beginnings = all.len() / 3;
    explore_selected_states(
        "a crash; what a private sshd says",
        budget,
        &edits,
        &all,
        &[0, beginnings, 2 * beginnings],
        &["succeeded", "LOCKOUT_GUARD", "KEY_NOT_USABLE", "PROOF_CONTRADICTED"],
    );
}

/// The home moves, or the user changes or is deleted.
#[test]
fn invariants_hold_with_moved_home_or_user() {
    let edits = [
        UserEdit::MoveHome(KeyFileMove::Moved),
        UserEdit::MoveHome(KeyFileMove::Copied),
        UserEdit::MoveHome(KeyFileMove::Left),
        UserEdit::ReplaceAccount(AccountState::Renamed),
        UserEdit::ReplaceAccount(AccountState::Successor),
        UserEdit::ReplaceAccount(AccountState::Recreated),
        UserEdit::ReplaceAccount(AccountState::Deleted),
    ];
    let budget = Budget { edits: 1, disturbances: 1, ..Budget::default() };
    explore_default_states(
        "a crash; the home moves, the user is another",
        budget,
        &edits,
        &[0, 4, 5],
        &["succeeded", "USER_NOT_FOUND", "LOCKOUT_GUARD"],
    );
}

/// The home's volume is unmounted and mounted, and the home may move in between.
#[test]
fn invariants_hold_with_unmounted_home() {
    let edits = [UserEdit::ToggleVolume, UserEdit::MoveHome(KeyFileMove::Copied)];
    let budget = Budget { edits: 2, disturbances: 2, ..Budget::default() };
    explore_default_states(
        "a crash; the home is not mounted",
        budget,
        &edits,
        &[0, 4],
        &["succeeded", "IO_ERROR", "ALREADY_ATTACHED"],
    );
}

/// One disturbance of any kind, together with one crash; with the larger bound, together with two.
#[test]
fn invariants_hold_with_every_disturbance() {
    let budget = Budget {
        crashes: 1,
        failures: 1,
        stops: 1,
        edits: 1,
        components: 1,
        clones: 1,
        repeats: 1,
        reorders: 1,
        lost: 1,
        undos: 1,
        delays: 1,
        disturbances: 1,
    };
    let edits = [UserEdit::AddKey, UserEdit::DisablePubkey, UserEdit::RemoveBlock];
    explore_default_states("crashes; everything", budget, &edits, &[0], &["succeeded"]);
}
