//! Kills at any time (KP-7.3): right before and right after every system call by which `apply` and `run` change
//! anything. After the restart, the command is done or undone, and later changes of the user are kept. sshd behaves
//! as its files say, and exactly one result arrives.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod crash_support;
mod support;

use std::collections::BTreeMap;

use crash_support::TOOLS;
use crash_support::course::{self, PointOutcome};
use crash_support::points::{AgentMode, InjectionSuite};
use crash_support::scene::CommandState;
use crash_support::subject::CrashScenario;
use support::has_tools;
use support::tracer::{self, Injection, TracedCall};

/// Selects every call with an effect outside of the process, except input for a child. `run` rewrites its files for
/// `status` often; the first write is enough.
fn select_kills(_: &CrashScenario, way: AgentMode, call: &TracedCall) -> Vec<Injection> {
    let is_in_a_place = call.path.contains('/') || call.name == "kill";
    let again = way == AgentMode::Run && call.path.starts_with("guest/run/") && call.nth > 1;
    if call.changes && is_in_a_place && !again {
        vec![Injection::KillBefore, Injection::KillAfter]
    } else {
        Vec::new()
    }
}

/// KP-7.3.
#[test]
fn command_killed_at_any_syscall_recovers() {
    if !has_tools(&TOOLS) || !tracer::is_tracing_supported() {
        return;
    }
    let tried = InjectionSuite {
        name: "kills",
        includes: |subject, way| subject.is_main || way == AgentMode::Apply,
        deeds: select_kills,
        attempt: course::check_killed,
        sample: 1,
    }
    .run();
    // The command counts as done from one point on, and not before it.
    let mut courses: BTreeMap<&str, Vec<CommandState>> = BTreeMap::new();
    for (point, became) in &tried {
        if let (AgentMode::Apply, PointOutcome::Killed(now)) = (point.way, became) {
            courses.entry(point.subject.name).or_default().push(*now);
        }
    }
    for (name, course) in courses {
        assert!(course.is_sorted(), "{name}: {course:?}");
    }
}
