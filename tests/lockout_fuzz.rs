//! Random sshd configurations, key files, modes and accounts, each in a throw-away guest; real logins alone judge. `make
//! fuzz-lockout` tries 2,000; without KEYPAIR_LOCKOUT_CASES a few of a fixed seed are tried.
//!
//! | variable | is | unless given |
//! |---|---|---|
//! | `KEYPAIR_LOCKOUT_CASES` | how many | 10 |
//! | `KEYPAIR_LOCKOUT_SEED` | the luck | with `KEYPAIR_LOCKOUT_CASES` another each time |
//! | `KEYPAIR_LOCKOUT_CASE` | the number of one case that is tried alone, with all that was seen | |
//! | `KEYPAIR_LOCKOUT_SECONDS` | no new case begins after so long | |
//! | `KEYPAIR_MATRIX_OPENSSH`, `KEYPAIR_MATRIX_ROOT` | another OpenSSH, as for the matrix | |

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lockout_support;
mod matrix_support;
mod support;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lockout_support::case::Case;
use lockout_support::judge::{self, Finding, Kind, Verdict};
use matrix_support::guest::can_be_made;
use matrix_support::lab::Lab;

/// What `make test` tries.
const FEW: u64 = 10;
const SEED_OF_THE_FEW: u64 = 1;

/// Most of a case's time is spent waiting.
const WORKERS: usize = 5;

/// So many findings of a kind are made smaller.
const SHRUNK: usize = 3;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

#[derive(Default)]
struct Report {
    ends: BTreeMap<String, usize>,
    skipped: BTreeMap<String, usize>,
    excuses: BTreeMap<&'static str, usize>,
    findings: BTreeMap<Kind, Vec<(u64, String)>>,
    logins: usize,
}

/// KP-10.2.
#[test]
fn nobody_is_locked_out() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: not root: no guest can be made");
        return;
    }
    let tools = ["sshd", "ssh", "ssh-keygen", "unshare", "nsenter", "ip", "chroot", "timeout"];
    if !support::available(&tools) || !can_be_made() {
        return;
    }
    let lab = Lab::new();
    let cases = number("KEYPAIR_LOCKOUT_CASES");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let seed = number("KEYPAIR_LOCKOUT_SEED").unwrap_or(if cases.is_some() { now } else { SEED_OF_THE_FEW });
    if let Some(only) = number("KEYPAIR_LOCKOUT_CASE") {
        return one(&lab, seed, only);
    }
    let cases = cases.unwrap_or(FEW);
    let seconds = number("KEYPAIR_LOCKOUT_SECONDS").map(Duration::from_secs);
    eprintln!("seed {seed}, {cases} cases, OpenSSH {}.{}", lab.version.0, lab.version.1);

    let next = AtomicU64::new(0);
    let report = Mutex::new(Report::default());
    let shrunk: Mutex<BTreeMap<Kind, usize>> = Mutex::default();
    let tried = AtomicUsize::new(0);
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while seconds.is_none_or(|most| begin.elapsed() < most) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= cases {
                        break;
                    }
                    let case = Case::new(&lab, seed, number);
                    let verdict = judge::run(&lab, &case);
                    tried.fetch_add(1, Ordering::Relaxed);
                    for finding in &verdict.findings {
                        let text = told(&lab, seed, &case, finding, &shrunk);
                        eprintln!("{text}");
                    }
                    report.lock().unwrap().add(number, verdict);
                }
            });
        }
    });
    let report = report.into_inner().unwrap();
    let tried = tried.load(Ordering::Relaxed);
    report.print(seed, tried, begin.elapsed());
    let found: usize = report.findings.values().map(Vec::len).sum();
    assert!(found == 0, "{found} findings in {tried} cases of seed {seed}");
}

/// One case, with all that was seen.
fn one(lab: &Lab, seed: u64, only: u64) {
    let verdict = judge::run(lab, &Case::new(lab, seed, only));
    eprintln!("{}", verdict.story);
    if let Some(why) = verdict.skipped {
        eprintln!("not tried: {why}");
    }
    for finding in &verdict.findings {
        eprintln!("{:?}: {}", finding.kind, finding.text);
    }
    assert!(verdict.findings.is_empty(), "{} findings", verdict.findings.len());
}

/// A finding for a person, made smaller where it is among the first of its kind.
fn told(
    lab: &Lab,
    seed: u64,
    case: &Case,
    finding: &Finding,
    shrunk: &Mutex<BTreeMap<Kind, usize>>,
) -> String {
    let is_one_of_the_first = {
        let mut shrunk = shrunk.lock().unwrap();
        let count = shrunk.entry(finding.kind).or_default();
        *count += 1;
        *count <= SHRUNK
    };
    let smaller = if is_one_of_the_first { smallest(lab, case, finding.kind) } else { case.clone() };
    format!(
        "\n{:?}: {}\n  case {} of seed {seed}: {smaller}\n  again: KEYPAIR_LOCKOUT_SEED={seed} \
         KEYPAIR_LOCKOUT_CASE={} make fuzz-lockout",
        finding.kind, finding.text, case.number, case.number
    )
}

/// Without every piece that the finding does not need.
fn smallest(lab: &Lab, case: &Case, kind: Kind) -> Case {
    let mut smallest = case.clone();
    let mut index = smallest.pieces.len();
    while index > 0 {
        index -= 1;
        let smaller = smallest.without(index);
        if judge::run(lab, &smaller).findings.iter().any(|finding| finding.kind == kind) {
            smallest = smaller;
        }
    }
    smallest
}

impl Report {
    fn add(&mut self, number: u64, verdict: Verdict) {
        self.logins += verdict.logins;
        if let Some(why) = verdict.skipped {
            let why = why.lines().last().unwrap_or_default().to_owned();
            *self.skipped.entry(why.get(..100).unwrap_or(&why).to_owned()).or_default() += 1;
            return;
        }
        *self.ends.entry(verdict.end).or_default() += 1;
        for excuse in verdict.excuses {
            *self.excuses.entry(excuse).or_default() += 1;
        }
        for finding in verdict.findings {
            self.findings.entry(finding.kind).or_default().push((number, finding.text));
        }
    }

    fn print(&self, seed: u64, tried: usize, took: Duration) {
        eprintln!("\nseed {seed}: {tried} cases, {} logins, {} s", self.logins, took.as_secs());
        let skipped: usize = self.skipped.values().sum();
        eprintln!("  {skipped} that sshd does not take");
        for (what, count) in &self.ends {
            eprintln!("  {count} ended with {what}");
        }
        for (what, count) in &self.excuses {
            eprintln!("  {count} excused by {what}");
        }
        for (kind, found) in &self.findings {
            let numbers: Vec<String> = found.iter().map(|(number, _)| number.to_string()).collect();
            eprintln!("  {} {kind:?}: cases {}", found.len(), numbers.join(" "));
        }
        if std::env::var_os("KEYPAIR_LOCKOUT_SKIPPED").is_some() {
            for (why, count) in &self.skipped {
                eprintln!("  {count} not tried: {why}");
            }
        }
    }
}
