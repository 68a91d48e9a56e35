//! Every way there is, within a bound, through the simulated guest: stateright explores it, and the invariants hold in
//! every state and at every instant on the way to it.

#![allow(clippy::unwrap_used, clippy::panic)]

mod simulated;

use std::io::{self, Write};
use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model, Property};

use simulated::action::{Action, Budget};
use simulated::control_plane::{ControlPlane, Order};
use simulated::disk::Disk;
use simulated::edit::{Edit, Keys};
use simulated::keys::{self, Pair};
use simulated::place::{Trial, Who};
use simulated::property::Property as Invariant;
use simulated::world::{EXPIRY, Setting, World};

/// How a guest begins, and what is asked of it.
#[derive(Clone)]
struct Beginning {
    main: &'static str,
    keys: Option<String>,
    orders: [Order; 4],
    /// How a private sshd can be asked.
    trial: Trial,
}

/// A bounded space: where it begins, and what may come in between.
#[derive(Clone)]
struct Space {
    name: &'static str,
    beginnings: Vec<Beginning>,
    expires: bool,
    budget: Budget,
    setting: Setting,
    /// Words that some result has to say.
    meets: Vec<&'static str>,
}

impl Model for Space {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let begin = |Beginning { main, keys, orders, trial }: &Beginning| {
            let control_plane = ControlPlane {
                orders: orders.to_vec(),
                first_expires_at: self.expires.then_some(EXPIRY),
                instance: 0,
                results: Default::default(),
            };
            let mut disk = Disk::new(main, keys.as_deref());
            disk.place.trial = *trial;
            World::new(disk, control_plane, self.budget)
        };
        self.beginnings.iter().map(begin).collect()
    }

    fn actions(&self, state: &World, actions: &mut Vec<Action>) {
        actions.extend(state.actions(&self.setting));
    }

    fn next_state(&self, last: &World, action: Action) -> Option<World> {
        Some(last.after(&action))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let held = HOLDS.iter().zip(Invariant::ALL);
        let held = held.map(|(condition, invariant)| Property::always(invariant.name(), *condition));
        let met = MET.iter().zip(&self.meets).map(|(condition, what)| Property::sometimes(what, *condition));
        held.chain(met).collect()
    }
}

type Condition = fn(&Space, &World) -> bool;

/// Conditions are plain functions: one for each place in the list of invariants.
const HOLDS: [Condition; 10] = [
    holds::<0>, holds::<1>, holds::<2>, holds::<3>, holds::<4>, holds::<5>, holds::<6>, holds::<7>,
    holds::<8>, holds::<9>,
];

/// And for each in the list of what a space has to meet.
const MET: [Condition; 6] = [meets::<0>, meets::<1>, meets::<2>, meets::<3>, meets::<4>, meets::<5>];

fn holds<const N: usize>(_: &Space, world: &World) -> bool {
    world.machine.violation.as_ref().is_none_or(|violation| violation.property != Invariant::ALL[N])
}

fn meets<const N: usize>(space: &Space, world: &World) -> bool {
    space.meets.get(N).is_some_and(|word| {
        let word = format!("\"{word}\"");
        world.known.seen.values().any(|result| result.contains(&word))
    })
}

/// Explores all of a space. What is told is not captured: it is told on every run.
fn explore(space: Space) {
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
    // No limit cut it, and it was not about nothing.
    assert!(checker.is_done());
    for what in &space.meets {
        assert!(checker.discovery(what).is_some(), "{name}: no command comes to {what}");
    }
}

/// As Debian has it, but that root may use his password: else nobody would be locked out.
const WITH_INCLUDE: &str = "Include /etc/ssh/sshd_config.d/*.conf\nUsePAM yes\nPermitRootLogin yes\n";
/// Without a drop-in directory: ours is a block at the top.
const WITHOUT_INCLUDE: &str = "# mine\nUsePAM yes\nPermitRootLogin yes\nPasswordAuthentication yes\n";
/// One where no key lets in.
const WITHOUT_KEYS: &str = "UsePAM yes\nPermitRootLogin yes\nPubkeyAuthentication no\n";

fn attach(pair: Pair, passwords: bool) -> Order {
    Order::Attach { pair, passwords, replace: false }
}

fn replace(pair: Pair, passwords: bool) -> Order {
    Order::Attach { pair, passwords, replace: true }
}

/// Four commands each, so that between them every row of KP-4's table is met.
fn sequences() -> [[Order; 4]; 4] {
    use Order::{Detach, SetPasswordAuth};
    use Pair::{K, KWithAnotherKey, L};
    [
        [attach(K, false), attach(L, false), replace(L, true), Detach(L)],
        [attach(K, true), attach(K, false), SetPasswordAuth(true), Detach(K)],
        [Detach(K), SetPasswordAuth(false), attach(K, false), Detach(L)],
        [attach(K, false), replace(KWithAnotherKey, false), Detach(K), SetPasswordAuth(false)],
    ]
}

/// Each on a guest or two: with and without an Include, keys of the user's, a block that an image brought, an sshd that takes
/// no keys.
fn beginnings() -> Vec<Beginning> {
    let [first, second, third, fourth] = sequences();
    let block = Pair::K.block();
    let from = |main, keys: Option<&str>, orders| Beginning {
        main,
        keys: keys.map(str::to_owned),
        orders,
        trial: Trial::Told,
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

const EDITS: [Edit; 7] = [
    Edit::AddsKey,
    Edit::RefusesKeys,
    Edit::RemovesBlock,
    Edit::RemovesAllKeys,
    Edit::SetsPasswords(true),
    Edit::SetsPasswords(false),
    Edit::RemovesSetting,
];

/// Explores a space from each of its beginnings; by the larger bound, with more of everything.
fn explore_within(
    name: &'static str,
    budget: Budget,
    edits: &[Edit],
    from: &[usize],
    meets: &[&'static str],
) {
    explore_from(name, budget, edits, &beginnings(), from, meets);
}

/// The same from others.
fn explore_from(
    name: &'static str,
    budget: Budget,
    edits: &[Edit],
    all: &[Beginning],
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
    let setting = Setting { edits: edits.to_vec() };
    let meets = meets.to_vec();
    explore(Space { name, beginnings, expires: budget.delays > 0, budget, setting, meets });
}

/// KP-7.3, KP-7.5.
#[test]
fn interruptions() {
    let budget = Budget { crashes: 4, ..Budget::default() };
    explore_within(
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
fn deliveries() {
    let budget =
        Budget { crashes: 2, repeats: 1, reorders: 1, lost: 1, disturbances: 2, ..Budget::default() };
    explore_within(
        "two crashes; deliveries lost, repeated, reordered",
        budget,
        &[],
        &[0],
        &["succeeded", "ALREADY_ATTACHED", "STALE_COMMAND"],
    );
}

/// KP-4.9, KP-7.3.
#[test]
fn failures() {
    let budget = Budget { crashes: 1, failures: 1, stops: 1, disturbances: 2, ..Budget::default() };
    explore_within(
        "a crash; a step that fails, SIGTERM",
        budget,
        &[],
        &[0, 5],
        &["succeeded", "IO_ERROR", "SSHD_RELOAD_FAILED"],
    );
}

/// KP-5.9.
#[test]
fn edits() {
    let budget = Budget { crashes: 1, edits: 1, disturbances: 1, ..Budget::default() };
    explore_within(
        "a crash; the user edits a file",
        budget,
        &EDITS,
        &[0, 1, 6],
        &["succeeded", "PROOF_CONTRADICTED", "LOCKOUT_GUARD"],
    );
}

#[test]
fn two_edits() {
    let edits = [Edit::AddsKey, Edit::RemovesBlock, Edit::SetsPasswords(true)];
    let budget = Budget { edits: 2, disturbances: 2, ..Budget::default() };
    explore_within(
        "a crash; the user edits twice",
        budget,
        &edits,
        &[1],
        &["succeeded", "PROOF_CONTRADICTED"],
    );
}

#[test]
fn misspelt() {
    let budget = Budget { crashes: 1, edits: 2, disturbances: 2, ..Budget::default() };
    let edits = [Edit::Misspells, Edit::Corrects];
    explore_within(
        "a crash; a line that sshd does not know",
        budget,
        &edits,
        &[0, 5],
        &["succeeded", "SSHD_CONFIG_ALREADY_INVALID"],
    );
}

/// KP-2.4, KP-3.28, KP-3.29, KP-4.3, KP-7.10.
#[test]
fn instances() {
    let budget =
        Budget { components: 2, clones: 1, delays: 1, repeats: 1, disturbances: 2, ..Budget::default() };
    explore_within(
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
fn console() {
    let budget = Budget { undos: 1, repeats: 1, edits: 1, disturbances: 2, ..Budget::default() };
    explore_within("a crash; undo at the console", budget, &[Edit::RemovesSetting], &[0, 5], &["succeeded"]);
}

/// A private sshd cannot be shown the planned key file, cannot be asked at all, or refuses for a reason of its own.
/// KP-10.6.
#[test]
fn trials() {
    let edits = [Edit::OpensHome, Edit::Asks(Trial::Told)];
    let budget = Budget { edits: 1, disturbances: 1, ..Budget::default() };
    let all: Vec<Beginning> = [Trial::Told, Trial::NotShown, Trial::NotTaken]
        .into_iter()
        .flat_map(|trial| beginnings().into_iter().map(move |beginning| Beginning { trial, ..beginning }))
        .collect();
    let beginnings = all.len() / 3;
    explore_from(
        "a crash; what a private sshd says",
        budget,
        &edits,
        &all,
        &[0, beginnings, 2 * beginnings],
        &["succeeded", "LOCKOUT_GUARD", "KEY_NOT_USABLE", "PROOF_CONTRADICTED"],
    );
}

/// The home moves; the user is another one, or gone.
#[test]
fn places() {
    let edits = [
        Edit::Moves(Keys::Moved),
        Edit::Moves(Keys::Copied),
        Edit::Moves(Keys::Left),
        Edit::Becomes(Who::Renamed),
        Edit::Becomes(Who::Heir),
        Edit::Becomes(Who::Anew),
        Edit::Becomes(Who::Nobody),
    ];
    let budget = Budget { edits: 1, disturbances: 1, ..Budget::default() };
    explore_within(
        "a crash; the home moves, the user is another",
        budget,
        &edits,
        &[0, 4, 5],
        &["succeeded", "USER_NOT_FOUND", "LOCKOUT_GUARD"],
    );
}

/// The home's volume goes and comes, and the home may move meanwhile.
#[test]
fn volumes() {
    let edits = [Edit::SwitchesVolume, Edit::Moves(Keys::Copied)];
    let budget = Budget { edits: 2, disturbances: 2, ..Budget::default() };
    explore_within(
        "a crash; the home is not mounted",
        budget,
        &edits,
        &[0, 4],
        &["succeeded", "IO_ERROR", "ALREADY_ATTACHED"],
    );
}

/// Everything that may come in between, one of it, beside a crash; by the larger bound, beside two.
#[test]
fn everything() {
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
    let edits = [Edit::AddsKey, Edit::RefusesKeys, Edit::RemovesBlock];
    explore_within("crashes; everything", budget, &edits, &[0], &["succeeded"]);
}
