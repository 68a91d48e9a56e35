//! Random sshd configurations, key files, modes and accounts, each in a temporary guest. Only real logins decide.
//! `make fuzz-lockout` runs 2,000 cases. Without KEYPAIR_LOCKOUT_CASES, the test runs a few with a fixed seed.
//!
//! | variable | is | unless given |
//! |---|---|---|
//! | `KEYPAIR_LOCKOUT_CASES` | the number of cases | 10 |
//! | `KEYPAIR_LOCKOUT_SEED` | the RNG seed | with `KEYPAIR_LOCKOUT_CASES` another each time |
//! | `KEYPAIR_LOCKOUT_CASE` | the number of a single case, which runs alone with its full log | |
//! | `KEYPAIR_LOCKOUT_SECONDS` | the time after which no new case begins | |
//! | `KEYPAIR_MATRIX_OPENSSH`, `KEYPAIR_MATRIX_ROOT` | another OpenSSH, as for the matrix | |

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lockout_support;
mod matrix_support;
mod support;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lockout_support::case::FuzzCase;
use lockout_support::judge::{self, Finding, FindingKind, Verdict};
use matrix_support::guest::can_create_guests;
use matrix_support::lab::MatrixEnvironment;

/// The cases of `make test`.
const DEFAULT_CASES: u64 = 10;
const DEFAULT_SEED: u64 = 1;

/// The workers mostly wait, so there are more of them than cores.
const WORKERS: usize = 5;

/// The number of findings per kind that the test reduces to fewer pieces.
const MAX_SHRUNK_PER_KIND: usize = 3;

fn read_env_number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

#[derive(Default)]
struct FuzzSummary {
    ends: BTreeMap<String, usize>,
    skipped: BTreeMap<String, usize>,
    excuses: BTreeMap<&'static str, usize>,
    findings: BTreeMap<FindingKind, Vec<(u64, String)>>,
    logins: usize,
}

/// KP-10.2.
#[test]
fn random_configurations_lock_nobody_out() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: not root: no guest can be made");
        return;
    }
    let tools = ["sshd", "ssh", "ssh-keygen", "unshare", "nsenter", "ip", "chroot", "timeout"];
    if !support::has_tools(&tools) || !can_create_guests() {
        return;
    }
    let lab = MatrixEnvironment::new();
    let cases = read_env_number("KEYPAIR_LOCKOUT_CASES");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let seed =
        read_env_number("KEYPAIR_LOCKOUT_SEED").unwrap_or(if cases.is_some() { now } else { DEFAULT_SEED });
    if let Some(only) = read_env_number("KEYPAIR_LOCKOUT_CASE") {
        return run_single_case(&lab, seed, only);
    }
    let cases = cases.unwrap_or(DEFAULT_CASES);
    let seconds = read_env_number("KEYPAIR_LOCKOUT_SECONDS").map(Duration::from_secs);
    eprintln!("seed {seed}, {cases} cases, OpenSSH {}.{}", lab.version.0, lab.version.1);

    let next = AtomicU64::new(0);
    let report = Mutex::new(FuzzSummary::default());
    let shrunk: Mutex<BTreeMap<FindingKind, usize>> = Mutex::default();
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
                    let case = FuzzCase::new(&lab, seed, number);
                    let verdict = judge::run_fuzz_case(&lab, &case);
                    tried.fetch_add(1, Ordering::Relaxed);
                    for finding in &verdict.findings {
                        let text = describe_finding(&lab, seed, &case, finding, &shrunk);
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

/// Runs one case, and prints its full log.
fn run_single_case(lab: &MatrixEnvironment, seed: u64, only: u64) {
    let verdict = judge::run_fuzz_case(lab, &FuzzCase::new(lab, seed, only));
    eprintln!("{}", verdict.story);
    if let Some(why) = verdict.skipped {
        eprintln!("not tried: {why}");
    }
    for finding in &verdict.findings {
        eprintln!("{:?}: {}", finding.kind, finding.text);
    }
    assert!(verdict.findings.is_empty(), "{} findings", verdict.findings.len());
}

/// A description of a finding. The first findings of each kind are reduced to fewer pieces.
fn describe_finding(
    lab: &MatrixEnvironment,
    seed: u64,
    case: &FuzzCase,
    finding: &Finding,
    shrunk: &Mutex<BTreeMap<FindingKind, usize>>,
) -> String {
    let is_one_of_the_first = {
        let mut shrunk = shrunk.lock().unwrap();
        let count = shrunk.entry(finding.kind).or_default();
        *count += 1;
        *count <= MAX_SHRUNK_PER_KIND
    };
    let smaller = if is_one_of_the_first { shrink_case(lab, case, finding.kind) } else { case.clone() };
    format!(
        "\n{:?}: {}\n  case {} of seed {seed}: {smaller}\n  again: KEYPAIR_LOCKOUT_SEED={seed} \
         KEYPAIR_LOCKOUT_CASE={} make fuzz-lockout",
        finding.kind, finding.text, case.number, case.number
    )
}

/// Removes every piece that the finding does not need.
fn shrink_case(lab: &MatrixEnvironment, case: &FuzzCase, kind: FindingKind) -> FuzzCase {
    let mut smallest = case.clone();
    let mut index = smallest.pieces.len();
    while index > 0 {
        index -= 1;
        let smaller = smallest.without_piece(index);
        if judge::run_fuzz_case(lab, &smaller).findings.iter().any(|finding| finding.kind == kind) {
            smallest = smaller;
        }
    }
    smallest
}

impl FuzzSummary {
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
