//! Killed at any instant (KP-7.3): at every system call by which `apply` and `run` change anything, right before
//! and right after it. After the restart a command is done or undone, what the user changed since stands, sshd does
//! what its files say, and exactly one result arrives.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod crash_support;
mod support;

use std::collections::BTreeMap;

use crash_support::TOOLS;
use crash_support::course::{self, Became};
use crash_support::points::{Suite, Way};
use crash_support::scene::Now;
use crash_support::subject::Subject;
use support::available;
use support::tracer::{self, Call, Deed};

/// Everything that changes something outside of the process; what a child is told does not. What `run` writes for
/// `status` again and again is taken once.
fn deeds(_: &Subject, way: Way, call: &Call) -> Vec<Deed> {
    let is_in_a_place = call.path.contains('/') || call.name == "kill";
    let again = way == Way::Run && call.path.starts_with("guest/run/") && call.nth > 1;
    if call.changes && is_in_a_place && !again { vec![Deed::KillBefore, Deed::KillAfter] } else { Vec::new() }
}

/// KP-7.3.
#[test]
fn killed_at_any_instant() {
    if !available(&TOOLS) || !tracer::available() {
        return;
    }
    let tried = Suite {
        name: "kills",
        includes: |subject, way| subject.is_main || way == Way::Apply,
        deeds,
        attempt: course::killed,
        sample: 1,
    }
    .run();
    // It counts as done from one point on, and not before.
    let mut courses: BTreeMap<&str, Vec<Now>> = BTreeMap::new();
    for (point, became) in &tried {
        if let (Way::Apply, Became::Killed(now)) = (point.way, became) {
            courses.entry(point.subject.name).or_default().push(*now);
        }
    }
    for (name, course) in courses {
        assert!(course.is_sorted(), "{name}: {course:?}");
    }
}
