//! A disk that fails, a process short of descriptors (KP-7.9): each call of `apply` and `run` on a file fails once.
//! `IO_ERROR` with the errno and the path, and the guest as it was; or an honest success.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod crash_support;
mod support;

use crash_support::TOOLS;
use crash_support::course;
use crash_support::points::{Suite, Way, errors_of};
use crash_support::subject::Subject;
use support::available;
use support::tracer::{self, Call, Deed};

/// Each error at each call that writes, of `apply`; an error in turn at those of `run`, whose commands walk the same
/// way, and at those that read.
fn deeds(subject: &Subject, way: Way, call: &Call) -> Vec<Deed> {
    let path = call.path.as_str();
    // What is no file, libraries, and where a person reads.
    if !path.contains('/') || path.contains(".so") || ["guest/out.log", "guest/err.log"].contains(&path) {
        return Vec::new();
    }
    let errors = errors_of(call);
    let one = errors.iter().cycle().skip(call.nth).take(errors.len().min(1));
    let is_ours = path.starts_with("guest/") && path != "guest/";
    let reads = match (way, subject.name, call.name) {
        (Way::Apply, "attach no" | "detach" | "recovery", "openat") => is_ours || call.nth <= 3,
        (Way::Apply, "attach no" | "detach" | "recovery", "read") => is_ours,
        (Way::Run, "attach no", "openat" | "read") => is_ours && call.nth % 4 == 1,
        _ => false,
    };
    match way {
        Way::Apply if call.changes => errors.iter().map(|errno| Deed::Fail(*errno)).collect(),
        Way::Run if call.changes => one.map(|errno| Deed::Fail(*errno)).collect(),
        _ if reads => one.map(|errno| Deed::Fail(*errno)).collect(),
        _ => Vec::new(),
    }
}

/// KP-7.9.
#[test]
fn each_call_fails_once() {
    if !available(&TOOLS) || !tracer::available() {
        return;
    }
    Suite {
        name: "faults",
        includes: |subject, way| subject.is_main || (subject.interrupted && way == Way::Apply),
        deeds,
        attempt: course::failed,
        sample: 1,
    }
    .run();
}
