//! One point: the command is disturbed there, and what follows is held against the specification.

use std::fs;
use std::path::PathBuf;

use nix::sys::wait::WaitStatus;
use serde_json::{Value, json};

use super::points::{Point, Way};
use super::scene::{ID, Now, Scene};
use crate::support::daemon::{Daemon, queued};
use crate::support::metadata::Asked;
use crate::support::tracer::{self, Call, Deed, Ended, Tracee};
use crate::support::{Metadata, detach, wait_for, with};

/// What became of a point.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Became {
    /// The process did not come to this call this time.
    NotReached,
    /// It was killed, and the guest is then found so.
    Killed(Now),
    /// It lived through the fault: the command was done.
    Survived,
    /// It failed, with this reason.
    Refused(String),
    /// It said that it could not begin, and did not.
    NotBegun,
}

/// The calls of the command that nobody disturbs.
pub fn calls(scene: &Scene, way: Way) -> Vec<Call> {
    let metadata = scene.reset();
    let (ended, done) = disturbed(scene, &metadata, way, None);
    assert!(done && ended.status == WaitStatus::Exited(pid_of(&ended), 0), "{:?}", ended.status);
    scene.settled(&[], 1);
    assert_eq!(scene.look(&[]).masked(), scene.after);
    ended.calls
}

fn pid_of(ended: &Ended) -> nix::unistd::Pid {
    ended.status.pid().unwrap()
}

/// The command in a traced process; and whether it came to its end.
fn disturbed(scene: &Scene, metadata: &Metadata, way: Way, deed: Option<(Call, Deed)>) -> (Ended, bool) {
    match way {
        Way::Apply => {
            let ended = tracer::apply(&scene.guest, &scene.command(), deed);
            let done = matches!(ended.status, WaitStatus::Exited(..));
            (ended, done)
        }
        Way::Run => {
            metadata.queue(queued(ID, 5, scene.command()));
            let tracee = Tracee::start(&scene.guest, &["run"], deed);
            let done = wait_for("the result or the end", || {
                if is_done(metadata, 0) { Some(true) } else { tracee.has_ended().then_some(false) }
            });
            (tracee.terminate(), done)
        }
    }
}

/// Whether the result is stored and the daemon goes on: it polled since, and since so many requests.
fn is_done(metadata: &Metadata, since: usize) -> bool {
    let asked = metadata.asked();
    let last = asked.iter().rposition(|asked| matches!(asked, Asked::Result(_)));
    let polled = asked.iter().rposition(|asked| matches!(asked, Asked::Poll(_)));
    metadata.result(ID).is_some() && polled > last && polled >= Some(since)
}

/// The next start: a daemon, or a command at the console that finds nothing to do.
fn restart(scene: &Scene, metadata: &Metadata, by_daemon: bool) {
    if by_daemon {
        let asked = metadata.asked().len();
        let daemon = Daemon::start(&scene.guest);
        wait_for("a poll", || {
            metadata.asked()[asked..].iter().any(|asked| matches!(asked, Asked::Poll(_))).then_some(())
        });
        assert_eq!(daemon.terminate().code(), Some(0));
    } else {
        let result = scene.guest.apply(&detach("nobodys"));
        assert!(result["reason"].is_null() || result["reason"] == "NOT_ATTACHED", "{result}");
        assert_eq!(result["changed"], false, "{result}");
    }
}

/// A daemon that finishes the command, if that is yet to be done; exactly one result is stored.
fn finish(scene: &Scene, metadata: &Metadata) -> Value {
    let asked = metadata.asked().len();
    let daemon = Daemon::start(&scene.guest);
    wait_for("the result and a poll", || is_done(metadata, asked).then_some(()));
    assert_eq!(daemon.terminate().code(), Some(0));
    one_result(metadata)
}

/// In turns, and not in those of what is asked of the guest.
fn is_by_daemon(number: usize) -> bool {
    number.is_multiple_of(3) || number % 6 == 1
}

fn one_result(metadata: &Metadata) -> Value {
    let results = metadata.results();
    assert_eq!(results.len(), 1, "{results:#?}");
    for (id, text) in metadata.attempts() {
        assert_eq!((id, &text), (ID.to_owned(), &results[0].1), "another result was sent");
    }
    serde_json::from_str(&results[0].1).unwrap()
}

fn assert_succeeded(result: &Value, changed: bool) {
    assert_eq!((&result["status"], &result["changed"]), (&json!("succeeded"), &json!(changed)), "{result}");
}

/// Killed there, then restarted.
pub fn killed(scene: &Scene, point: &Point, number: usize) -> Became {
    let metadata = scene.reset();
    let (ended, _) = disturbed(scene, &metadata, point.way, Some((point.call.clone(), point.deed)));
    if !ended.reached {
        return Became::NotReached;
    }
    assert!(ended.was_killed(), "{:?}", ended.status);
    let edited = if number % 8 < 4 { scene.user_edits() } else { Vec::new() };
    let by_daemon = is_by_daemon(number);
    match point.way {
        Way::Apply => {
            restart(scene, &metadata, by_daemon);
            let now = scene.settled(&edited, number);
            // It is done, and not once more under its id, with nothing left to do under another; or it can be done
            // now, which is tried half the time: `run` does so every time.
            if now == Now::After || number % 8 >= 4 {
                assert_succeeded(&scene.guest.apply(&scene.command()), scene.changes());
                assert_eq!(scene.look(&edited).masked(), scene.after);
            }
            if now == Now::After {
                let again = with(scene.command(), "commandId", json!("c-2"));
                assert_succeeded(&scene.guest.apply(&again), false);
                assert_eq!(scene.look(&edited).masked(), scene.after);
            }
            Became::Killed(now)
        }
        Way::Run => {
            let now = if by_daemon {
                None
            } else {
                restart(scene, &metadata, false);
                Some(scene.settled_but_for_the_daemon(&edited))
            };
            assert_succeeded(&finish(scene, &metadata), true);
            assert_eq!(scene.settled(&edited, number), Now::After);
            Became::Killed(now.unwrap_or(Now::After))
        }
    }
}

/// The call failed.
pub fn failed(scene: &Scene, point: &Point, number: usize) -> Became {
    let metadata = scene.reset();
    let (ended, done) = disturbed(scene, &metadata, point.way, Some((point.call.clone(), point.deed)));
    if !ended.reached {
        return Became::NotReached;
    }
    let WaitStatus::Exited(_, code) = ended.status else { panic!("{:?}", ended.status) };
    let said = fs::read_to_string(scene.guest.path("err.log")).unwrap();
    let result: Option<Value> = match point.way {
        Way::Apply => {
            let text = fs::read_to_string(scene.guest.path("out.log")).unwrap();
            let result: Option<Value> = serde_json::from_str(&text).ok();
            let succeeded = result.as_ref().is_some_and(|result| result["status"] == "succeeded");
            assert_eq!(code == 0, succeeded, "{code}: {text}{said}");
            result
        }
        Way::Run if done => {
            assert_eq!(code, 0, "{said}");
            Some(one_result(&metadata))
        }
        Way::Run => None,
    };
    let became = match &result {
        None => {
            assert!(code == 1 || code == 2, "{code}: {said}");
            assert!(said.contains("os error") || said.contains("lock"), "it does not say why: {said:?}");
            Became::NotBegun
        }
        Some(result) if result["status"] == "succeeded" => {
            assert_succeeded(result, scene.changes());
            assert_eq!(scene.look(&[]).masked(), scene.after, "not done: {result}");
            Became::Survived
        }
        Some(result) => {
            is_honest(scene, point, result);
            Became::Refused(result["reason"].as_str().unwrap().to_owned())
        }
    };
    let edited: Vec<PathBuf> = if number % 8 < 4 { scene.user_edits() } else { Vec::new() };
    if point.way == Way::Run && result.is_none() {
        assert_succeeded(&finish(scene, &metadata), true);
        assert_eq!(scene.settled(&edited, number), Now::After);
        return became;
    }
    let by_daemon = is_by_daemon(number);
    restart(scene, &metadata, by_daemon);
    if point.way == Way::Run && !by_daemon {
        restart(scene, &metadata, true);
    }
    let now = scene.settled(&edited, number);
    if scene.changes() {
        assert_eq!(now == Now::After, became == Became::Survived, "{result:?}");
    }
    // The disk is well again.
    let again = with(scene.command(), "commandId", json!("c-2"));
    assert_succeeded(&scene.guest.apply(&again), scene.changes() && now == Now::Before);
    assert_eq!(scene.look(&edited).masked(), scene.after);
    became
}

/// A failure that says what failed.
fn is_honest(scene: &Scene, point: &Point, result: &Value) {
    let Deed::Fail(errno) = point.deed else { panic!("{:?}", point.deed) };
    assert_eq!((&result["status"], &result["changed"]), (&json!("failed"), &json!(false)), "{result}");
    let message = result["message"].as_str().unwrap();
    let folder = scene.guest.folder.path().file_name().unwrap().to_str().unwrap();
    if point.is_about_our_files() {
        assert_eq!(
            (&result["code"], &result["reason"]),
            (&json!("INTERNAL"), &json!("IO_ERROR")),
            "{result}"
        );
        assert!(message.contains(&format!("os error {}", errno as i32)), "{message}");
        assert!(message.contains(folder), "{message}");
    }
}
