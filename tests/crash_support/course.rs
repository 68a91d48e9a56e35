//! One injection point: the command is disturbed there, and the rest is compared with the specification.

use std::fs;
use std::path::PathBuf;

use nix::sys::wait::WaitStatus;
use serde_json::{Value, json};

use super::points::{AgentMode, InjectionPoint};
use super::scene::{COMMAND_ID, CommandState, CrashFixture};
use crate::support::daemon::{Daemon, make_channel_command};
use crate::support::metadata::ServiceRequest;
use crate::support::tracer::{self, Injection, TraceOutcome, TracedCall, Tracee};
use crate::support::{MetadataService, detach_command, wait_for, with_field};

/// The outcome of one injection point.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PointOutcome {
    /// The process did not reach this call.
    NotReached,
    /// The process was killed, and the guest is in this state.
    Killed(CommandState),
    /// The process survived the fault and completed the command.
    Survived,
    /// The command failed, with this reason.
    Refused(String),
    /// The process reported that it could not start.
    NotStarted,
}

/// The system calls of the undisturbed command.
pub fn trace_undisturbed(scene: &CrashFixture, way: AgentMode) -> Vec<TracedCall> {
    let metadata = scene.reset();
    let (ended, done) = run_disturbed(scene, &metadata, way, None);
    assert!(done && ended.status == WaitStatus::Exited(process_id(&ended), 0), "{:?}", ended.status);
    scene.assert_settled(&[], 1);
    assert_eq!(scene.take_snapshot(&[]).mask_timestamps(), scene.after);
    ended.calls
}

fn process_id(ended: &TraceOutcome) -> nix::unistd::Pid {
    ended.status.pid().unwrap()
}

/// Runs the command in a traced process. Also returns whether the command was completed.
fn run_disturbed(
    scene: &CrashFixture,
    metadata: &MetadataService,
    way: AgentMode,
    deed: Option<(TracedCall, Injection)>,
) -> (TraceOutcome, bool) {
    match way {
        AgentMode::Apply => {
            let ended = tracer::apply_traced(&scene.guest, &scene.command(), deed);
            let done = matches!(ended.status, WaitStatus::Exited(..));
            (ended, done)
        }
        AgentMode::Run => {
            metadata.queue(make_channel_command(COMMAND_ID, 5, scene.command()));
            let tracee = Tracee::start(&scene.guest, &["run"], deed);
            let done = wait_for("the result or the end", || {
                if has_delivered_result(metadata, 0) {
                    Some(true)
                } else {
                    tracee.has_ended().then_some(false)
                }
            });
            (tracee.terminate(), done)
        }
    }
}

/// Whether the result is stored and the daemon goes on, that is, it has polled after that and after `since` requests.
fn has_delivered_result(metadata: &MetadataService, since: usize) -> bool {
    let asked = metadata.requests();
    let last = asked.iter().rposition(|asked| matches!(asked, ServiceRequest::Result(_)));
    let polled = asked.iter().rposition(|asked| matches!(asked, ServiceRequest::Poll(_)));
    metadata.result(COMMAND_ID).is_some() && polled > last && polled >= Some(since)
}

/// The next start: a daemon, or a console command that finds nothing to do.
fn restart_agent(scene: &CrashFixture, metadata: &MetadataService, by_daemon: bool) {
    if by_daemon {
        let asked = metadata.requests().len();
        let daemon = Daemon::start(&scene.guest);
        wait_for("a poll", || {
            metadata.requests()[asked..]
                .iter()
                .any(|asked| matches!(asked, ServiceRequest::Poll(_)))
                .then_some(())
        });
        assert_eq!(daemon.terminate().code(), Some(0));
    } else {
        let result = scene.guest.apply(&detach_command("nobodys"));
        assert!(result["reason"].is_null() || result["reason"] == "NOT_ATTACHED", "{result}");
        assert_eq!(result["changed"], false, "{result}");
    }
}

/// Runs a daemon that completes the command if necessary. Exactly one result must be stored.
fn finish_command(scene: &CrashFixture, metadata: &MetadataService) -> Value {
    let asked = metadata.requests().len();
    let daemon = Daemon::start(&scene.guest);
    wait_for("the result and a poll", || has_delivered_result(metadata, asked).then_some(()));
    assert_eq!(daemon.terminate().code(), Some(0));
    read_single_result(metadata)
}

/// Alternates by number, independently of the checks that depend on the number too.
fn uses_daemon(number: usize) -> bool {
    number.is_multiple_of(3) || number % 6 == 1
}

fn read_single_result(metadata: &MetadataService) -> Value {
    let results = metadata.results();
    assert_eq!(results.len(), 1, "{results:#?}");
    for (id, text) in metadata.result_attempts() {
        assert_eq!((id, &text), (COMMAND_ID.to_owned(), &results[0].1), "another result was sent");
    }
    serde_json::from_str(&results[0].1).unwrap()
}

fn assert_succeeded(result: &Value, changed: bool) {
    assert_eq!((&result["status"], &result["changed"]), (&json!("succeeded"), &json!(changed)), "{result}");
}

/// Kills the agent at this point, restarts it, and checks the guest.
pub fn check_killed(scene: &CrashFixture, point: &InjectionPoint, number: usize) -> PointOutcome {
    let metadata = scene.reset();
    let (ended, _) = run_disturbed(scene, &metadata, point.way, Some((point.call.clone(), point.deed)));
    if !ended.reached {
        return PointOutcome::NotReached;
    }
    assert!(ended.was_killed(), "{:?}", ended.status);
    let edited = if number % 8 < 4 { scene.apply_user_edits() } else { Vec::new() };
    let by_daemon = uses_daemon(number);
    match point.way {
        AgentMode::Apply => {
            restart_agent(scene, &metadata, by_daemon);
            let now = scene.assert_settled(&edited, number);
            // If the command is done, it is not performed again under its id, and another id changes nothing.
            // Otherwise it can be performed now. Half of the points test that here; `run` tests it every time.
            if now == CommandState::After || number % 8 >= 4 {
                assert_succeeded(&scene.guest.apply(&scene.command()), scene.changes_files());
                assert_eq!(scene.take_snapshot(&edited).mask_timestamps(), scene.after);
            }
            if now == CommandState::After {
                let again = with_field(scene.command(), "commandId", json!("c-2"));
                assert_succeeded(&scene.guest.apply(&again), false);
                assert_eq!(scene.take_snapshot(&edited).mask_timestamps(), scene.after);
            }
            PointOutcome::Killed(now)
        }
        AgentMode::Run => {
            let now = if by_daemon {
                None
            } else {
                restart_agent(scene, &metadata, false);
                Some(scene.assert_settled_except_delivery(&edited))
            };
            assert_succeeded(&finish_command(scene, &metadata), true);
            assert_eq!(scene.assert_settled(&edited, number), CommandState::After);
            PointOutcome::Killed(now.unwrap_or(CommandState::After))
        }
    }
}

/// Lets the call fail, and checks the guest.
pub fn check_failed(scene: &CrashFixture, point: &InjectionPoint, number: usize) -> PointOutcome {
    let metadata = scene.reset();
    let (ended, done) = run_disturbed(scene, &metadata, point.way, Some((point.call.clone(), point.deed)));
    if !ended.reached {
        return PointOutcome::NotReached;
    }
    let WaitStatus::Exited(_, code) = ended.status else { panic!("{:?}", ended.status) };
    let said = fs::read_to_string(scene.guest.path("err.log")).unwrap();
    let result: Option<Value> = match point.way {
        AgentMode::Apply => {
            let text = fs::read_to_string(scene.guest.path("out.log")).unwrap();
            let result: Option<Value> = serde_json::from_str(&text).ok();
            let succeeded = result.as_ref().is_some_and(|result| result["status"] == "succeeded");
            assert_eq!(code == 0, succeeded, "{code}: {text}{said}");
            result
        }
        AgentMode::Run if done => {
            assert_eq!(code, 0, "{said}");
            Some(read_single_result(&metadata))
        }
        AgentMode::Run => None,
    };
    let became = match &result {
        None => {
            assert!(code == 1 || code == 2, "{code}: {said}");
            assert!(said.contains("os error") || said.contains("lock"), "it does not say why: {said:?}");
            PointOutcome::NotStarted
        }
        Some(result) if result["status"] == "succeeded" => {
            assert_succeeded(result, scene.changes_files());
            assert_eq!(scene.take_snapshot(&[]).mask_timestamps(), scene.after, "not done: {result}");
            PointOutcome::Survived
        }
        Some(result) => {
            assert_reports_failure(scene, point, result);
            PointOutcome::Refused(result["reason"].as_str().unwrap().to_owned())
        }
    };
    let edited: Vec<PathBuf> = if number % 8 < 4 { scene.apply_user_edits() } else { Vec::new() };
    if point.way == AgentMode::Run && result.is_none() {
        assert_succeeded(&finish_command(scene, &metadata), true);
        assert_eq!(scene.assert_settled(&edited, number), CommandState::After);
        return became;
    }
    let by_daemon = uses_daemon(number);
    restart_agent(scene, &metadata, by_daemon);
    if point.way == AgentMode::Run && !by_daemon {
        restart_agent(scene, &metadata, true);
    }
    let now = scene.assert_settled(&edited, number);
    if scene.changes_files() {
        assert_eq!(now == CommandState::After, became == PointOutcome::Survived, "{result:?}");
    }
    // The disk works again.
    let again = with_field(scene.command(), "commandId", json!("c-2"));
    assert_succeeded(&scene.guest.apply(&again), scene.changes_files() && now == CommandState::Before);
    assert_eq!(scene.take_snapshot(&edited).mask_timestamps(), scene.after);
    became
}

/// Asserts that the failure names the failed object.
fn assert_reports_failure(scene: &CrashFixture, point: &InjectionPoint, result: &Value) {
    let Injection::Fail(errno) = point.deed else { panic!("{:?}", point.deed) };
    assert_eq!((&result["status"], &result["changed"]), (&json!("failed"), &json!(false)), "{result}");
    let message = result["message"].as_str().unwrap();
    let folder = scene.guest.folder.path().file_name().unwrap().to_str().unwrap();
    if point.is_on_agent_files() {
        assert_eq!(
            (&result["code"], &result["reason"]),
            (&json!("INTERNAL"), &json!("IO_ERROR")),
            "{result}"
        );
        assert!(message.contains(&format!("os error {}", errno as i32)), "{message}");
        assert!(message.contains(folder), "{message}");
    }
}
