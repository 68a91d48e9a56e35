//! What a power cut leaves (KP-7.3). From the calls of a course, every state that the disk may be in is laid out
//! in the guest's folder, sshd boots on it, and the agent recovers. `KEYPAIR_POWER_CUTS=all` tries each state in each
//! way; else those are tried that differ in more than their temporaries.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use support::daemon::{Daemon, queued};
use support::disk::{Disk, Entry, Tree};
use support::metadata::Asked;
use support::scene::{Home, Scene, apart};
use support::strace::{self, Call, Point};
use support::{attach, available, detach, set_password_auth, wait_for, with};

const TOOLS: [&str; 6] = ["sshd", "ssh", "ssh-keygen", "strace", "ip", "mount"];

const ID: &str = "c-1";

/// What is looked at.
struct Course {
    home: Home,
    prepare: fn(&Scene) -> Vec<Value>,
    command: fn(&Scene) -> Value,
    /// Where the command was killed before: then its recovery is looked at.
    killed: Option<(&'static str, usize)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Apply,
    Run,
}

/// A state of the disk when the power came back.
struct Laid {
    tree: Tree,
    /// Behind which call.
    at: String,
    /// Whether the result was on its way.
    reported: bool,
}

/// How a state is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// The console comes first, then the daemon, which is handed the command again.
    Console,
    /// The daemon, which is handed the command again.
    Daemon,
    /// The daemon, where the service has the result already.
    Stored,
}

/// What the user sees of it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Look {
    /// The key file's lines outside our block.
    his: Option<String>,
    block: Vec<String>,
    /// Without the comments, which say when.
    setting: Option<Vec<String>>,
    /// All names, and their modes and owners.
    entries: Vec<(String, u32, (u32, u32))>,
    binding: Value,
    password_auth: Value,
}

fn look(scene: &Scene) -> Look {
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
    let state = scene.state();
    let shown = |(path, entry): (&std::path::PathBuf, &Entry)| {
        (!path.starts_with("state")).then(|| (path.display().to_string(), entry.mode, entry.owner))
    };
    Look {
        his: key_file.map(|_| his),
        block,
        setting,
        entries: Tree::read(scene.guest.folder.path()).0.iter().filter_map(shown).collect(),
        binding: state["binding"].clone(),
        password_auth: state["passWordAuth"].clone(),
    }
}

/// The calls of the course, carried out for once without a cut.
fn calls(scene: &Scene, course: &Course, by: By) -> Vec<Call> {
    let command = queued(ID, 7, (course.command)(scene));
    match (by, course.killed) {
        (By::Apply, None) => strace::calls_of_apply(&scene.guest, &command),
        (By::Apply, Some(_)) => strace::calls_of_apply(&scene.guest, &detach("nobodys")),
        (By::Run, None) => {
            scene.metadata.queue(command);
            strace::calls_of_run(&scene.guest, || wait_until_delivered(scene))
        }
        (By::Run, Some(_)) => {
            let asked = scene.metadata.asked().len();
            strace::calls_of_run(&scene.guest, || scene.wait_for_a_poll(asked))
        }
    }
}

/// Waits for the poll behind the result: then the state knows that it is delivered.
fn wait_until_delivered(scene: &Scene) {
    let sent = Asked::Result(ID.to_owned());
    wait_for("the result", || scene.metadata.asked().contains(&sent).then_some(()));
    let asked = scene.metadata.asked().iter().rposition(|asked| *asked == sent).unwrap();
    scene.wait_for_a_poll(asked);
}

/// Every state of the disk, from call to call; the model of it is held against the real one.
fn laid(scene: &Scene, start: &Tree, calls: &[Call], end: &Tree) -> Vec<Laid> {
    let mut disk = Disk::new(scene.guest.folder.path(), start);
    assert_eq!(disk.now(), *start);
    let mut seen = BTreeSet::new();
    let mut laid = Vec::new();
    let mut reported = false;
    for number in 0..=calls.len() {
        let mut at = "before the first call".to_owned();
        if let Some(last) = number.checked_sub(1) {
            disk.after(&calls[last]);
            reported |= calls[last] == Call::Report;
            at = format!("behind call {last}, {:?}", calls[last]);
        }
        for tree in disk.possible() {
            if seen.insert((reported, tree.clone())) {
                laid.push(Laid { tree, at: at.clone(), reported });
            }
        }
    }
    assert_eq!(disk.now(), *end, "the model of the disk: {calls:#?}");
    assert_eq!(disk.possible(), BTreeSet::from([end.clone()]), "something is not on the disk at the end");
    laid
}

/// Of the states that differ in their temporaries alone, the last.
fn sample(laid: Vec<Laid>) -> Vec<Laid> {
    let mut sample: Vec<Laid> = Vec::new();
    for one in laid {
        sample.retain(|other| (other.reported, other.tree.named()) != (one.reported, one.tree.named()));
        sample.push(one);
    }
    sample
}

fn result_in(tree: &Tree) -> Option<String> {
    let state: Value = serde_json::from_slice(&tree.content("state/state.json")?).unwrap();
    let results = state["results"].as_array().unwrap();
    let stored = results.iter().find(|stored| stored["commandId"] == ID)?;
    Some(stored["result"].as_str().unwrap().to_owned())
}

/// What the disk holds before anybody recovers: old or new files, and a door that the user gets through.
fn assert_consistent(scene: &Scene, laid: &Laid, start: &Tree, end: &Tree) {
    let at = &laid.at;
    for (path, entry) in &laid.tree.named().0 {
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
        keys.iter().any(|key| scene.stands(key) && scene.guest.sshd.lets_in(key))
    };
    assert!(scene.files_allow_password() || lets_in(), "{at}: the owner is locked out");
}

fn at_every_cut(name: &str, course: &Course, by: By) {
    if !available(&TOOLS) {
        return;
    }
    apart(|| {
        let mut scene = Scene::of(course.home);
        scene.carry_out(course.prepare);
        let folder = scene.guest.folder.path().to_owned();
        let before = look(&scene);
        if let Some((call, nth)) = course.killed {
            let point = Point { call: call.to_owned(), nth, words: format!("{call} {nth}") };
            strace::killed(&scene.guest, &queued(ID, 7, (course.command)(&scene)), &point);
        }
        let start = Tree::read(&folder);
        let calls = calls(&scene, course, by);
        let end = Tree::read(&folder);
        let reported = scene.metadata.result(ID).map(|_| scene.metadata.results().remove(0).1);
        // To its end in any case.
        let result = scene.guest.apply(&queued(ID, 7, (course.command)(&scene)));
        assert_eq!((&result["status"], &result["changed"]), (&json!("succeeded"), &json!(true)), "{result}");
        let after = look(&scene);
        assert!(before.his.is_none() || before.his == after.his, "his bytes: {before:?} {after:?}");

        let all = std::env::var("KEYPAIR_POWER_CUTS").is_ok_and(|which| which == "all");
        let states = laid(&scene, &start, &calls, &end);
        let count = states.len();
        let states = if all { states } else { sample(states) };
        let mut tries = 0;
        for (number, laid) in states.iter().enumerate() {
            for (turn, way) in [Way::Console, Way::Daemon, Way::Stored].into_iter().enumerate() {
                if (way == Way::Stored && !laid.reported) || !(all || number % 2 == turn % 2) {
                    continue;
                }
                tries += 1;
                boot(&mut scene, &laid.tree);
                assert_consistent(&scene, laid, &start, &end);
                recovered(&scene, course, laid, way, &before, &after, reported.as_deref());
            }
        }
        eprintln!(
            "{name}: {} calls, {count} distinct states of the disk, {} of them tried in {tries} recoveries",
            calls.len(),
            states.len()
        );
    });
}

/// The power comes back: this is on the disk, and nothing is in /run.
fn boot(scene: &mut Scene, tree: &Tree) {
    tree.lay_out(scene.guest.folder.path());
    let _ = fs::remove_dir_all(scene.guest.path("run"));
    scene.metadata.forget();
    scene.guest.sshd.boot();
}

/// Recovery, and the command once more: it is done or undone, and then done, with one result.
fn recovered(
    scene: &Scene,
    course: &Course,
    laid: &Laid,
    way: Way,
    before: &Look,
    after: &Look,
    reported: Option<&str>,
) {
    let at = format!("{way:?}, {}", laid.at);
    let kept = result_in(&laid.tree);
    if way == Way::Console {
        scene.restart(false);
        scene.assert_settled(&at);
        let is_done = kept.is_some();
        assert_eq!(look(scene), if is_done { after } else { before }.clone(), "{at}: done: {is_done}");
    }
    let asked = scene.metadata.asked().len();
    if way == Way::Stored {
        scene.metadata.has_stored(ID, reported.unwrap());
    } else {
        scene.metadata.queue(queued(ID, 7, (course.command)(scene)));
    }
    let daemon = Daemon::start(&scene.guest);
    match way {
        Way::Stored => scene.wait_for_a_poll(asked),
        Way::Console | Way::Daemon => wait_until_delivered(scene),
    }
    assert_eq!(daemon.terminate().code(), Some(0), "{at}");
    scene.assert_settled(&at);
    assert_eq!(look(scene), *after, "{at}");
    assert_eq!(scene.state()["undelivered"], Value::Null, "{at}");
    let results = scene.metadata.results();
    assert_eq!(results.len(), 1, "{at}: {results:?}");
    let result: Value = serde_json::from_str(&results[0].1).unwrap();
    assert_eq!(
        (&result["status"], &result["changed"]),
        (&json!("succeeded"), &json!(true)),
        "{at}: {result}"
    );
    assert!(scene.metadata.attempts().iter().all(|attempt| *attempt == results[0]), "{at}: two results");
    assert!(kept.is_none_or(|kept| kept == results[0].1), "{at}: not the result that was on the disk");
    if laid.reported {
        assert_eq!(Some(results[0].1.as_str()), reported, "{at}: not the result that was on its way");
    }
}

/// A course, by `apply` and by `run`.
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

/// Before this call both files are written, and sshd is not told.
const RELOAD: (&str, usize) = ("kill", 1);

/// Before this call the key is in place, and the new drop-in has not its name yet.
const DROP_IN: (&str, usize) = ("renameat2", 1);

at_every_cut!(
    attach_with_passwords_off,
    Course {
        home: Home::NoKey,
        prepare: |_| vec![],
        command: |scene| attach("my-test", &scene.key, "no"),
        killed: None,
    }
);

at_every_cut!(
    attach_that_makes_the_directory,
    Course {
        home: Home::Nothing,
        prepare: |_| vec![],
        command: |scene| attach("my-test", &scene.key, "no"),
        killed: None,
    }
);

at_every_cut!(
    replace,
    Course {
        home: Home::NoKey,
        prepare: |scene| vec![attach("my-test", &scene.key, "no")],
        command: |scene| with(attach("other", &scene.other, "yes"), "replace", json!(true)),
        killed: None,
    }
);

at_every_cut!(
    detach_of_the_bound_key,
    Course {
        home: Home::Key,
        prepare: |scene| vec![attach("my-test", &scene.key, "no")],
        command: |_| detach("my-test"),
        killed: None,
    }
);

at_every_cut!(
    passwords_off,
    Course {
        home: Home::NoKey,
        prepare: |scene| vec![attach("my-test", &scene.key, "yes")],
        command: |_| set_password_auth("no"),
        killed: None,
    }
);

at_every_cut!(
    undo_of_an_attach,
    Course {
        home: Home::NoKey,
        prepare: |_| vec![],
        command: |scene| attach("my-test", &scene.key, "no"),
        killed: Some(RELOAD),
    }
);

at_every_cut!(
    undo_of_an_attach_that_made_the_directory,
    Course {
        home: Home::Nothing,
        prepare: |_| vec![],
        command: |scene| attach("my-test", &scene.key, "no"),
        killed: Some(RELOAD),
    }
);

at_every_cut!(
    undo_of_a_replace,
    Course {
        home: Home::NoKey,
        prepare: |scene| vec![attach("my-test", &scene.key, "yes")],
        command: |scene| with(attach("other", &scene.other, "no"), "replace", json!(true)),
        killed: Some(RELOAD),
    }
);

at_every_cut!(
    undo_of_half_an_attach,
    Course {
        home: Home::NoKey,
        prepare: |_| vec![detach("nobodys")],
        command: |scene| attach("my-test", &scene.key, "no"),
        killed: Some(DROP_IN),
    }
);
