//! A failing disk, and a process without free descriptors (KP-7.9). Each call of `apply` and `run` on a file fails
//! once. The result is `IO_ERROR` with the errno and the path, and the guest is unchanged; or it is a correct
//! success.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod crash_support;
mod support;

use crash_support::TOOLS;
use crash_support::course;
use crash_support::points::{AgentMode, InjectionSuite, possible_errors};
use crash_support::subject::CrashScenario;
use support::has_tools;
use support::tracer::{self, Injection, TracedCall};

/// Selects each error at each writing call of `apply`. At the calls of `run`, whose commands take the same path, and
/// at reading calls, it selects one error in turn.
fn select_faults(subject: &CrashScenario, way: AgentMode, call: &TracedCall) -> Vec<Injection> {
    let path = call.path.as_str();
    // Excludes objects other than files, libraries, and the output for a person.
    if !path.contains('/') || path.contains(".so") || ["guest/out.log", "guest/err.log"].contains(&path) {
        return Vec::new();
    }
    let errors = possible_errors(call);
    let one = errors.iter().cycle().skip(call.nth).take(errors.len().min(1));
    let is_ours = path.starts_with("guest/") && path != "guest/";
    let reads = match (way, subject.name, call.name) {
        (AgentMode::Apply, "attach no" | "detach" | "recovery", "openat") => is_ours || call.nth <= 3,
        (AgentMode::Apply, "attach no" | "detach" | "recovery", "read") => is_ours,
        (AgentMode::Run, "attach no", "openat" | "read") => is_ours && call.nth % 4 == 1,
        _ => false,
    };
    match way {
        AgentMode::Apply if call.changes => errors.iter().map(|errno| Injection::Fail(*errno)).collect(),
        AgentMode::Run if call.changes => one.map(|errno| Injection::Fail(*errno)).collect(),
        _ if reads => one.map(|errno| Injection::Fail(*errno)).collect(),
        _ => Vec::new(),
    }
}

/// KP-7.9.
#[test]
fn syscall_failure_rolls_back_or_succeeds() {
    if !has_tools(&TOOLS) || !tracer::is_tracing_supported() {
        return;
    }
    InjectionSuite {
        name: "faults",
        includes: |subject, way| subject.is_main || (subject.interrupted && way == AgentMode::Apply),
        deeds: select_faults,
        attempt: course::check_failed,
        sample: 1,
    }
    .run();
}
