//! Ten thousand agents against the control plane, on this machine: what they cost while nothing happens, an attach to all of
//! them, restarts, a service in trouble. What was seen is written into docs/scale.md, and held against what is promised there.
//!
//! `KEYPAIR_SCALE_AGENTS` says how many, 10,000 unless given; with others nothing is written.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

#[path = "../../tests/support/mod.rs"]
mod support;

mod fleet;
mod page;
mod plot;
mod process;
mod scenes;
mod trouble;

use keypair_controlplane::descriptors::raise_nofile_limit;

use page::Measurements;
use trouble::ProxyFault;

/// How many the figures in docs/scale.md are of.
const DEFAULT_AGENTS: u64 = 10_000;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, word, to] = arguments.as_slice()
        && word == trouble::PROXY_SUBCOMMAND
    {
        return trouble::run_proxy(to.parse().unwrap());
    }
    let agents =
        std::env::var("KEYPAIR_SCALE_AGENTS").map_or(DEFAULT_AGENTS, |number| number.parse().unwrap());
    raise_nofile_limit().unwrap();
    let quiet = scenes::measure_quiet(agents);
    let shared = scenes::measure_attach_shared(agents);
    let memory = scenes::measure_attach_in_memory(agents);
    let idle = scenes::measure_idle(agents);
    // Two at a time: what is measured here are counts.
    let ((half_fails, killed), (slow, ended)) = std::thread::scope(|threads| {
        let one = threads.spawn(|| {
            (
                scenes::measure_fault(agents, ProxyFault::HalfFails),
                scenes::measure_restart(agents, "KILL", 20),
            )
        });
        let other = threads.spawn(|| {
            (scenes::measure_fault(agents, ProxyFault::Slow), scenes::measure_restart(agents, "TERM", 2))
        });
        (one.join().unwrap(), other.join().unwrap())
    });
    let figures = Measurements { agents, quiet, idle, memory, shared, killed, ended, half_fails, slow };
    println!("{}", figures.measurements_table());
    if agents == DEFAULT_AGENTS {
        figures.update_docs();
    }
    let broken = figures.failed_expectations();
    assert!(broken.is_empty(), "not as promised: {broken:#?}");
}
