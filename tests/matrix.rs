//! The matrix: on every configuration in tests/matrix, the agent's statements about sshd match a client's
//! observations, and no scenario removes a working login. Each file there is a configuration.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod matrix_support;
mod support;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use matrix_support::course::{self, MatrixScenario};
use matrix_support::guest::can_create_guests;
use matrix_support::lab::MatrixEnvironment;
use matrix_support::row::MatrixCase;

const TOOLS: [&str; 9] =
    ["sshd", "ssh", "ssh-keygen", "strace", "unshare", "nsenter", "ip", "chroot", "timeout"];

/// The minimum number of tested configurations.
const MIN_CONFIGURATIONS: usize = 300;

/// The workers mostly wait, so there are more of them than cores.
const WORKERS: usize = 6;

/// KP-3.35, KP-10.11, KP-10.13.
#[test]
fn matrix_predictions_match_real_logins() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!(
            "SKIPPED: not root: no guest can be made, and shadow(5) (passwords, expiry) cannot be seen"
        );
        return;
    }
    if !support::has_tools(&TOOLS) || !can_create_guests() {
        return;
    }
    let lab = MatrixEnvironment::new();
    let all = MatrixCase::load_all(course::case_directory());
    assert!(all.len() >= MIN_CONFIGURATIONS, "only {} configurations", all.len());
    let only = std::env::var("KEYPAIR_MATRIX_ROW").unwrap_or_default();
    let rows: Vec<&MatrixCase> =
        all.iter().filter(|row| row.applies_to(&lab) && row.name.contains(&only)).collect();

    let next = AtomicUsize::new(0);
    let trials = AtomicUsize::new(0);
    let failures: Mutex<Vec<(String, MatrixScenario, String)>> = Mutex::default();
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let Some(row) = rows.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let (tried, faults) = course::run_case(&lab, row);
                    trials.fetch_add(tried, Ordering::Relaxed);
                    let named = faults.into_iter().map(|(trial, fault)| (row.name.clone(), trial, fault));
                    failures.lock().unwrap().extend(named);
                }
            });
        }
    });
    let mut failures = failures.into_inner().unwrap();
    failures.sort_by(|a, b| a.0.cmp(&b.0));
    for (row, trial, fault) in &failures {
        eprintln!("{row}, {trial}: {fault}");
    }
    eprintln!(
        "{} of {} configurations, {} trials, OpenSSH {}.{}, {} s",
        rows.len(),
        all.len(),
        trials.load(Ordering::Relaxed),
        lab.version.0,
        lab.version.1,
        begin.elapsed().as_secs()
    );
    assert!(failures.is_empty(), "{} failures", failures.len());
}
