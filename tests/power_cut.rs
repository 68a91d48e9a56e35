//! The state after a power cut (KP-7.3). From the calls of a command the test derives every state that the disk may
//! have. It writes each state into the guest's folder, starts sshd on it, and lets the agent recover.
//! `KEYPAIR_POWER_CUTS=all` tries each state in each way. Otherwise the test skips states that differ only in their
//! temporary files.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use support::daemon::{Daemon, make_channel_command};
use support::disk::{DiskModel, FileTree, FileTreeEntry};
use support::metadata::ServiceRequest;
use support::scene::{InterruptionFixture, KeyFileSetup, run_in_namespaces};
use support::strace::{self, DiskCall, SyscallPoint};
use support::{attach_command, detach_command, has_tools, set_password_auth_command, wait_for, with_field};

const TOOLS: [&str; 6] = ["sshd", "ssh", "ssh-keygen", "strace", "ip", "mount"];

const COMMAND_ID: &str = "c-1";

/// One tested command, and the situation before it.
struct PowerCutScenario {
    home: KeyFileSetup,
    prepare: fn(&InterruptionFixture) -> Vec<Value>,
    command: fn(&InterruptionFixture) -> Value,
    /// The point at which the command was killed before. Then the test examines its recovery.
    killed: Option<(&'static str, usize)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Apply,
    Run,
}

/// A state of the disk at the time when the power came back.
struct CrashState {
    tree: FileTree,
    /// The last call before the power cut.
    at: String,
    /// Whether the result had been sent.
    reported: bool,
}

/// How the recovery of a state is tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RecoveryPath {
    /// The console comes first, then the daemon, which gets the command again.
    Console,
    /// The daemon, which gets the command again.
    Daemon,
    /// The daemon; the service has the result already.
    Stored,
}

/// The guest as the user sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ObservedState {
    /// The key file's lines outside the agent's block.
    his: Option<String>,
    block: Vec<String>,
    /// Without the comments, because they contain the time.
    setting: Option<Vec<String>>,
    /// All names, with their modes and owners.
    entries: Vec<(String, u32, (u32, u32))>,
    binding: Value,
    password_auth: Value,
}

fn observe_state(scene: &InterruptionFixture) -> ObservedState {
    let file = |path: &Path| fs::read_to_string(path).ok();
    let key_file = file(&scene.guest.key_file());
    let mut is_ours = false;
    let (mut his, mut block) = (String::new(), Vec::new());
    for line in key_file.iter().flat_map(|text| text.split_inclusive('\n')) {
        is_ours |= line.starts_with("# BEGIN keypair-agent");
        match is_ours {
            true => block.push(line.to_owned()),
            false => his += line,
        }
        is_ours &= !line.starts_with("# END keypair-agent");
    }
    let setting = file(&scene.guest.drop_in())
        .map(|text| text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect());
    let state = scene.read_state();
    let shown = |(path, entry): (&std::path::PathBuf, &FileTreeEntry)| {
        (!path.starts_with("state")).then(|| (path.display().to_string(), entry.mode, entry.owner))
    };
    ObservedState {
        his: key_file.map(|_| his),
        block,
        setting,
        entries: FileTree::read(scene.guest.folder.path()).0.iter().filter_map(shown).collect(),
        binding: state["binding"].clone(),
        password_auth: state["passWordAuth"].clone(),
    }
}

/// The calls of the command, performed once without a power cut.
fn trace_calls(scene: &InterruptionFixture, course: &PowerCutScenario, by: By) -> Vec<DiskCall> {
    let command = make_channel_command(COMMAND_ID, 7, (course.command)(scene));
    match (by, course.killed) {
        (By::Apply, None) => strace::trace_apply(&scene.guest, &command),
        (By::Apply, Some(_)) => strace::trace_apply(&scene.guest, &detach_command("nobodys")),
        (By::Run, None) => {
            scene.metadata.queue(command);
            strace::trace_run(&scene.guest, || wait_until_delivered(scene))
        }
        (By::Run, Some(_)) => {
            let asked = scene.metadata.requests().len();
            strace::trace_run(&scene.guest, || scene.wait_for_poll(asked))
        }
    }
}

/// Waits for the poll after the result. By then the state records the delivery.
fn wait_until_delivered(scene: &InterruptionFixture) {
    let sent = ServiceRequest::Result(COMMAND_ID.to_owned());
    wait_for("the result", || scene.metadata.requests().contains(&sent).then_some(()));
    let asked = scene.metadata.requests().iter().rposition(|asked| *asked == sent).unwrap();
    scene.wait_for_poll(asked);
}

/// Every possible state of the disk after each call. Also compares the model of the disk with the real disk.
fn enumerate_crash_states(
    scene: &InterruptionFixture,
    start: &FileTree,
    calls: &[DiskCall],
    end: &FileTree,
) -> Vec<CrashState> {
    let mut disk = DiskModel::new(scene.guest.folder.path(), start);
    assert_eq!(disk.current_tree(), *start);
    let mut seen = BTreeSet::new();
    let mut laid = Vec::new();
    let mut reported = false;
    for number in 0..=calls.len() {
        let mut at = "before the first call".to_owned();
        if let Some(last) = number.checked_sub(1) {
            disk.apply_call(&calls[last]);
            reported |= calls[last] == DiskCall::PutResult;
            at = format!("behind call {last}, {:?}", calls[last]);
        }
        for tree in disk.crash_trees() {
            if seen.insert((reported, tree.clone())) {
                laid.push(CrashState { tree, at: at.clone(), reported });
            }
        }
    }
    assert_eq!(disk.current_tree(), *end, "the model of the disk: {calls:#?}");
    assert_eq!(disk.crash_trees(), BTreeSet::from([end.clone()]), "something is not on the disk at the end");
    laid
}

/// Keeps only the last of the states that differ only in their temporary files.
fn keep_last_of_equivalent(laid: Vec<CrashState>) -> Vec<CrashState> {
    let mut sample: Vec<CrashState> = Vec::new();
    for one in laid {
        sample.retain(|other| {
            (other.reported, other.tree.without_temp_files()) != (one.reported, one.tree.without_temp_files())
        });
        sample.push(one);
    }
    sample
}

fn stored_result(tree: &FileTree) -> Option<String> {
    let state: Value = serde_json::from_slice(&tree.content("state/state.json")?).unwrap();
    let results = state["results"].as_array().unwrap();
    let stored = results.iter().find(|stored| stored["commandId"] == COMMAND_ID)?;
    Some(stored["result"].as_str().unwrap().to_owned())
}

/// Asserts that before any recovery each file is old or new, and that the user has access.
fn assert_disk_consistent(scene: &InterruptionFixture, laid: &CrashState, start: &FileTree, end: &FileTree) {
    let at = &laid.at;
    for (path, entry) in &laid.tree.without_temp_files().0 {
        if entry.content.is_some() && !path.starts_with("state") {
            let is_known = [start, end].iter().any(|tree| tree.0.get(path) == Some(entry));
            assert!(is_known, "{at}: {} is neither old nor new: {entry:?}", path.display());
        }
    }
    if let Some(state) = laid.tree.content("state/state.json") {
        let state = serde_json::from_slice::<Value>(&state);
        assert!(state.is_ok_and(|state| state["version"] == 1), "{at}: the state is garbled");
    }
    let lets_in = || {
        let keys = [&scene.own, &scene.key, &scene.other];
        keys.iter().any(|key| scene.key_file_contains(key) && scene.guest.sshd.accepts_key(key))
    };
    assert!(scene.config_allows_password() || lets_in(), "{at}: the owner is locked out");
}

fn at_every_cut(name: &str, course: &PowerCutScenario, by: By) {
    if !has_tools(&TOOLS) {
        return;
    }
    run_in_namespaces(|| {
        let mut scene = InterruptionFixture::with_key_file(course.home);
        scene.apply_all(course.prepare);
        let folder = scene.guest.folder.path().to_owned();
        let before = observe_state(&scene);
        if let Some((call, nth)) = course.killed {
            let point = SyscallPoint { call: call.to_owned(), nth, words: format!("{call} {nth}") };
            strace::kill_apply_at(
                &scene.guest,
                &make_channel_command(COMMAND_ID, 7, (course.command)(&scene)),
                &point,
            );
        }
        let start = FileTree::read(&folder);
        let calls = trace_calls(&scene, course, by);
        let end = FileTree::read(&folder);
        let reported = scene.metadata.result(COMMAND_ID).map(|_| scene.metadata.results().remove(0).1);
        // The recovered command must succeed in any case.
        let result = scene.guest.apply(&make_channel_command(COMMAND_ID, 7, (course.command)(&scene)));
        assert_eq!((&result["status"], &result["changed"]), (&json!("succeeded"), &json!(true)), "{result}");
        let after = observe_state(&scene);
        assert!(before.his.is_none() || before.his == after.his, "his bytes: {before:?} {after:?}");

        let all = std::env::var("KEYPAIR_POWER_CUTS").is_ok_and(|which| which == "all");
        let states = enumerate_crash_states(&scene, &start, &calls, &end);
        let count = states.len();
        let states = if all { states } else { keep_last_of_equivalent(states) };
        let mut tries = 0;
        for (number, laid) in states.iter().enumerate() {
            for (turn, way) in
                [RecoveryPath::Console, RecoveryPath::Daemon, RecoveryPath::Stored].into_iter().enumerate()
            {
                if (way == RecoveryPath::Stored && !laid.reported) || !(all || number % 2 == turn % 2) {
                    continue;
                }
                tries += 1;
                boot_from(&mut scene, &laid.tree);
                assert_disk_consistent(&scene, laid, &start, &end);
                assert_recovers(&scene, course, laid, way, &before, &after, reported.as_deref());
            }
        }
        eprintln!(
            "{name}: {} calls, {count} distinct states of the disk, {} of them tried in {tries} recoveries",
            calls.len(),
            states.len()
        );
    });
}

/// Starts the guest after a power cut: this tree is on the disk, and /run is empty.
fn boot_from(scene: &mut InterruptionFixture, tree: &FileTree) {
    tree.restore_to(scene.guest.folder.path());
    let _ = fs::remove_dir_all(scene.guest.path("run"));
    scene.metadata.reset();
    scene.guest.sshd.start_listener_again();
}

/// Asserts that recovery completes or undoes the command, and that the repeated command then succeeds with one
/// result.
fn assert_recovers(
    scene: &InterruptionFixture,
    course: &PowerCutScenario,
    laid: &CrashState,
    way: RecoveryPath,
    before: &ObservedState,
    after: &ObservedState,
    reported: Option<&str>,
) {
    let at = format!("{way:?}, {}", laid.at);
    let kept = stored_result(&laid.tree);
    if way == RecoveryPath::Console {
        scene.run_recovery(false);
        scene.assert_settled(&at);
        let is_done = kept.is_some();
        assert_eq!(
            observe_state(scene),
            if is_done { after } else { before }.clone(),
            "{at}: done: {is_done}"
        );
    }
    let asked = scene.metadata.requests().len();
    if way == RecoveryPath::Stored {
        scene.metadata.insert_result(COMMAND_ID, reported.unwrap());
    } else {
        scene.metadata.queue(make_channel_command(COMMAND_ID, 7, (course.command)(scene)));
    }
    let daemon = Daemon::start(&scene.guest);
    match way {
        RecoveryPath::Stored => scene.wait_for_poll(asked),
        RecoveryPath::Console | RecoveryPath::Daemon => wait_until_delivered(scene),
    }
    assert_eq!(daemon.terminate().code(), Some(0), "{at}");
    scene.assert_settled(&at);
    assert_eq!(observe_state(scene), *after, "{at}");
    assert_eq!(scene.read_state()["undelivered"], Value::Null, "{at}");
    let results = scene.metadata.results();
    assert_eq!(results.len(), 1, "{at}: {results:?}");
    let result: Value = serde_json::from_str(&results[0].1).unwrap();
    assert_eq!(
        (&result["status"], &result["changed"]),
        (&json!("succeeded"), &json!(true)),
        "{at}: {result}"
    );
    assert!(
        scene.metadata.result_attempts().iter().all(|attempt| *attempt == results[0]),
        "{at}: two results"
    );
    assert!(kept.is_none_or(|kept| kept == results[0].1), "{at}: not the result that was on the disk");
    if laid.reported {
        assert_eq!(Some(results[0].1.as_str()), reported, "{at}: not the result that was on its way");
    }
}

/// Tests one command through `apply` and through `run`.
macro_rules! at_every_cut {
    ($name:ident, $course:expr) => {
        mod $name {
            use super::*;

            /// KP-7.3.
            #[test]
            fn by_apply() {
                at_every_cut(concat!(stringify!($name), " by apply"), &$course, By::Apply);
            }

            /// KP-7.3.
            #[test]
            fn by_run() {
                at_every_cut(concat!(stringify!($name), " by run"), &$course, By::Run);
            }
        }
    };
}

/// Before this call both files are written, and sshd is not reloaded.
const BEFORE_RELOAD: (&str, usize) = ("kill", 1);

/// Before this call the key is in place, and the new drop-in does not have its name yet.
const BEFORE_DROP_IN: (&str, usize) = ("renameat2", 1);

at_every_cut!(
    attach_with_passwords_off,
    PowerCutScenario {
        home: KeyFileSetup::WithoutUserKey,
        prepare: |_| vec![],
        command: |scene| attach_command("my-test", &scene.key, "no"),
        killed: None,
    }
);

at_every_cut!(
    attach_that_makes_the_directory,
    PowerCutScenario {
        home: KeyFileSetup::Missing,
        prepare: |_| vec![],
        command: |scene| attach_command("my-test", &scene.key, "no"),
        killed: None,
    }
);

at_every_cut!(
    replace,
    PowerCutScenario {
        home: KeyFileSetup::WithoutUserKey,
        prepare: |scene| vec![attach_command("my-test", &scene.key, "no")],
        command: |scene| with_field(attach_command("other", &scene.other, "yes"), "replace", json!(true)),
        killed: None,
    }
);

at_every_cut!(
    detach_of_the_bound_key,
    PowerCutScenario {
        home: KeyFileSetup::WithUserKey,
        prepare: |scene| vec![attach_command("my-test", &scene.key, "no")],
        command: |_| detach_command("my-test"),
        killed: None,
    }
);

at_every_cut!(
    passwords_off,
    PowerCutScenario {
        home: KeyFileSetup::WithoutUserKey,
        prepare: |scene| vec![attach_command("my-test", &scene.key, "yes")],
        command: |_| set_password_auth_command("no"),
        killed: None,
    }
);

at_every_cut!(
    undo_of_an_attach,
    PowerCutScenario {
        home: KeyFileSetup::WithoutUserKey,
        prepare: |_| vec![],
        command: |scene| attach_command("my-test", &scene.key, "no"),
        killed: Some(BEFORE_RELOAD),
    }
);

at_every_cut!(
    undo_of_an_attach_that_made_the_directory,
    PowerCutScenario {
        home: KeyFileSetup::Missing,
        prepare: |_| vec![],
        command: |scene| attach_command("my-test", &scene.key, "no"),
        killed: Some(BEFORE_RELOAD),
    }
);

at_every_cut!(
    undo_of_a_replace,
    PowerCutScenario {
        home: KeyFileSetup::WithoutUserKey,
        prepare: |scene| vec![attach_command("my-test", &scene.key, "yes")],
        command: |scene| with_field(attach_command("other", &scene.other, "no"), "replace", json!(true)),
        killed: Some(BEFORE_RELOAD),
    }
);

at_every_cut!(
    undo_of_half_an_attach,
    PowerCutScenario {
        home: KeyFileSetup::WithoutUserKey,
        prepare: |_| vec![detach_command("nobodys")],
        command: |scene| attach_command("my-test", &scene.key, "no"),
        killed: Some(BEFORE_DROP_IN),
    }
);
