//! The injection points of a suite: their list, the selection, and their outcomes.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use nix::errno::Errno;

use super::course::{self, PointOutcome};
use super::scene::CrashFixture;
use super::subject::{CrashScenario, SCENARIOS};
use crate::support::tracer::{Injection, TracedCall};

/// The process that performs the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AgentMode {
    Apply,
    Run,
}

impl fmt::Display for AgentMode {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(if *self == Self::Apply { "apply" } else { "run" })
    }
}

/// One injection point. Its command, way, call, path, number and deed identify it.
#[derive(Clone)]
pub struct InjectionPoint {
    pub subject: &'static CrashScenario,
    pub way: AgentMode,
    pub call: TracedCall,
    pub deed: Injection,
    /// Its position in the course of the command.
    pub order: usize,
}

impl fmt::Display for InjectionPoint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { subject, way, call, .. } = self;
        write!(
            out,
            "{way} of {}, {}, {} {}, no. {}",
            subject.name,
            self.kind(),
            call.name,
            call.path,
            call.nth
        )
    }
}

impl InjectionPoint {
    /// The kind of its fault and call.
    pub fn kind(&self) -> String {
        match self.deed {
            Injection::KillBefore => "killed before".to_owned(),
            Injection::KillAfter => "killed after".to_owned(),
            Injection::Fail(errno) => format!("{errno:?}"),
        }
    }

    /// Whether the call concerns the files that a command writes, or the state.
    pub fn is_on_agent_files(&self) -> bool {
        let path = self.call.path.as_str();
        ["guest/state", "guest/keys", "guest/sshd_config"].iter().any(|ours| path.starts_with(ours))
            || path.contains("/ssh/")
    }
}

/// A suite: its faults at each call, and the sample for `make test`.
pub struct InjectionSuite {
    pub name: &'static str,
    /// Whether the suite tests a command in this way.
    pub includes: fn(&CrashScenario, AgentMode) -> bool,
    pub deeds: fn(&CrashScenario, AgentMode, &TracedCall) -> Vec<Injection>,
    pub attempt: fn(&CrashFixture, &InjectionPoint, usize) -> PointOutcome,
    /// The number of points per command, way and kind in `make test`.
    pub sample: usize,
}

/// The workers mostly wait, so there are more of them than cores.
const WORKER_COUNT: usize = 4;

impl InjectionSuite {
    /// Runs the points and returns them with their outcomes. `KEYPAIR_CRASH_POINTS=all` selects all of them, `list`
    /// only prints them. KEYPAIR_CRASH_ONLY selects those whose description contains its value.
    pub fn run(&self) -> Vec<(InjectionPoint, PointOutcome)> {
        let begun = Instant::now();
        let wanted = std::env::var("KEYPAIR_CRASH_POINTS").unwrap_or_default();
        let only = std::env::var("KEYPAIR_CRASH_ONLY").unwrap_or_default();
        let all = self.list_points(&only);
        if wanted == "list" {
            all.iter().for_each(|point| eprintln!("{}: {point}", self.name));
            return Vec::new();
        }
        let mut points = if wanted == "all" { all.clone() } else { self.sample_points(&all) };
        points.retain(|point| point.to_string().contains(&only));
        let tried: Mutex<Vec<(InjectionPoint, PointOutcome)>> = Mutex::default();
        let failures: Mutex<Vec<String>> = Mutex::default();
        run_on_workers(&points, |scene, number, point| {
            let slot = scene.take();
            let attempt = AssertUnwindSafe(|| {
                let scene = match slot {
                    Some(scene) if std::ptr::eq(scene.subject, point.subject) && scene.is_reusable() => scene,
                    _ => CrashFixture::new(point.subject),
                };
                let became = (self.attempt)(&scene, point, number);
                (scene, became)
            });
            match catch_unwind(attempt) {
                Ok((used, became)) => {
                    *scene = Some(used);
                    tried.lock().unwrap().push((point.clone(), became));
                }
                Err(panic) => {
                    let text = panic
                        .downcast_ref::<String>()
                        .cloned()
                        .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                    failures.lock().unwrap().push(format!("{point}: {}", text.unwrap_or_default()));
                }
            }
        });
        let (mut tried, failures) = (tried.into_inner().unwrap(), failures.into_inner().unwrap());
        let is_later = |deed| matches!(deed, Injection::KillAfter);
        tried.sort_by_key(|(point, _)| (point.way, point.subject.name, point.order, is_later(point.deed)));
        self.print_summary(all.len(), &tried, &failures, begun.elapsed().as_secs());
        assert!(failures.is_empty(), "{} of {} points failed", failures.len(), points.len());
        let reached = tried.iter().filter(|(_, became)| *became != PointOutcome::NotReached).count();
        assert!(reached * 10 >= points.len() * 9, "only {reached} of {} points were reached", points.len());
        tried
    }

    /// All points: the calls of each command, in both ways.
    fn list_points(&self, only: &str) -> Vec<InjectionPoint> {
        let courses: Vec<(usize, AgentMode)> = (0..SCENARIOS.len())
            .flat_map(|number| [(number, AgentMode::Apply), (number, AgentMode::Run)])
            .filter(|(number, way)| (self.includes)(&SCENARIOS[*number], *way))
            .filter(|(number, way)| {
                let course = format!("{way} of {},", SCENARIOS[*number].name);
                !only.contains(" of ") || course.contains(only) || only.contains(&course)
            })
            .collect();
        let found: Mutex<BTreeMap<(usize, AgentMode), Vec<InjectionPoint>>> = Mutex::default();
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..WORKER_COUNT {
                scope.spawn(|| {
                    while let Some((number, way)) = courses.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let subject = &SCENARIOS[*number];
                        let calls = course::trace_undisturbed(&CrashFixture::new(subject), *way);
                        let points = calls.iter().enumerate().flat_map(|(order, call)| {
                            let deeds = (self.deeds)(subject, *way, call).into_iter();
                            deeds.map(move |deed| InjectionPoint {
                                subject,
                                way: *way,
                                call: call.clone(),
                                deed,
                                order,
                            })
                        });
                        found.lock().unwrap().insert((*number, *way), points.collect());
                    }
                });
            }
        });
        let points: Vec<InjectionPoint> = found.into_inner().unwrap().into_values().flatten().collect();
        let distinct: HashSet<_> =
            points.iter().map(|point| (point.subject.name, point.way, &point.call, point.kind())).collect();
        assert_eq!(distinct.len(), points.len(), "points that are the same");
        points
    }

    /// A sample for each command, way and kind. It is the same on every run.
    fn sample_points(&self, all: &[InjectionPoint]) -> Vec<InjectionPoint> {
        let mut groups: BTreeMap<(usize, AgentMode, String), Vec<&InjectionPoint>> = BTreeMap::new();
        for point in all {
            let number = SCENARIOS.iter().position(|subject| std::ptr::eq(subject, point.subject)).unwrap();
            groups.entry((number, point.way, point.kind())).or_default().push(point);
        }
        let mut sample = Vec::new();
        for (number, group) in groups.into_values().enumerate() {
            // Each group starts at a different position, so that the sample does not cover the same calls of each.
            let step = (group.len() / self.sample).max(1);
            let first = (number * 7) % step;
            sample.extend(group.into_iter().skip(first).step_by(step).take(self.sample).cloned());
        }
        sample
    }

    fn print_summary(
        &self,
        all: usize,
        tried: &[(InjectionPoint, PointOutcome)],
        failures: &[String],
        seconds: u64,
    ) {
        let reached = tried.iter().filter(|(_, became)| *became != PointOutcome::NotReached);
        let mut kinds: BTreeMap<String, (usize, BTreeMap<PointOutcome, usize>)> = BTreeMap::new();
        for (point, became) in reached.clone() {
            let (count, what) = kinds.entry(point.kind()).or_default();
            *count += 1;
            *what.entry(became.clone()).or_default() += 1;
        }
        for (kind, (count, what)) in &kinds {
            let what: Vec<String> =
                what.iter().map(|(became, count)| format!("{count} {became:?}")).collect();
            eprintln!("{}: {kind}: {count} points ({})", self.name, what.join(", "));
        }
        for (point, became) in tried {
            if *became == PointOutcome::NotReached {
                eprintln!("{}: not reached, not counted: {point}", self.name);
            }
        }
        for failure in failures {
            eprintln!("{}: FAILED: {failure}", self.name);
        }
        eprintln!(
            "{}: {} distinct points tried of {all}, {} failed, {seconds} s",
            self.name,
            reached.count() + failures.len(),
            failures.len()
        );
    }
}

/// Distributes the points to workers. Each worker keeps its guest from one point to the next.
fn run_on_workers(
    points: &[InjectionPoint],
    attempt: impl Fn(&mut Option<CrashFixture>, usize, &InjectionPoint) + Sync,
) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..WORKER_COUNT {
            scope.spawn(|| {
                let mut scene = None;
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(point) = points.get(number) else { return };
                    attempt(&mut scene, number, point);
                }
            });
        }
    });
}

/// The errors that a call can return on a failing or full disk, and in a process without free descriptors.
pub fn possible_errors(call: &TracedCall) -> &'static [Errno] {
    match call.name {
        "openat for writing" => {
            &[Errno::ENOSPC, Errno::EIO, Errno::EDQUOT, Errno::EROFS, Errno::EMFILE, Errno::EINTR]
        }
        "openat" => &[Errno::EIO, Errno::EMFILE, Errno::EINTR],
        "read" => &[Errno::EIO, Errno::EINTR],
        "write" => &[Errno::ENOSPC, Errno::EIO, Errno::EDQUOT, Errno::EINTR],
        "fsync" | "fdatasync" | "rename" => {
            &[Errno::ENOSPC, Errno::EIO, Errno::EDQUOT, Errno::EROFS, Errno::EINTR]
        }
        "mkdir" => &[Errno::ENOSPC, Errno::EIO, Errno::EDQUOT, Errno::EROFS],
        "unlink" | "fchmod" | "chmod" | "fchown" | "ftruncate" => &[Errno::EIO, Errno::EROFS],
        "flock" => &[Errno::EINTR, Errno::EIO],
        _ => &[],
    }
}
