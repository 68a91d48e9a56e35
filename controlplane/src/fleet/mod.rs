//! `fleet`: many agents in one process, as a load test of a metadata service. The loop and the channel are the real
//! agent's. Only the guest is replaced (`stand_in`).
//!
//! ```text
//!   agent's loop ── watched ── agent's HTTP channel ──► metadata service
//!        │             │
//!     stand_in       tally ──► one line a second
//! ```

mod stand_in;
mod tally;
mod watched;

use std::fmt;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use keypair_agent::agent;
use keypair_agent::channel::base_url::{BaseUrl, InvalidUrl};
use tokio::task::LocalSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};

use crate::args::FleetArgs;
use crate::descriptors;
use crate::shutdown::{Shutdown, TerminationSignals};
use stand_in::NullGuest;
use tally::Counters;
use watched::InstrumentedChannel;

/// The descriptors for everything except the agents' connections.
const RESERVED_DESCRIPTORS: u64 = 64;

/// The number of threads for the blocking calls of all agents. On one machine, more threads would not be faster.
const GUEST_THREADS: usize = 2;

/// The time that the agents have to end after the shutdown.
const AGENT_STOP_GRACE_PERIOD: Duration = Duration::from_secs(2);

/// Why the fleet cannot run.
#[derive(Debug)]
pub enum FleetError {
    /// The limit of file descriptors is too low.
    TooFewDescriptors {
        /// The number that is needed.
        needed: u64,
        /// The number that is allowed.
        allowed: u64,
    },
    /// The base URL of an instance is invalid for an agent.
    InvalidMetadataUrl(InvalidUrl),
    /// A system call that every process needs failed; holds the action and the error.
    System(&'static str, io::Error),
}

impl FleetError {
    /// The exit status: 1, because the fault is in the environment, not in the arguments.
    pub fn exit_status(&self) -> u8 {
        1
    }
}

impl fmt::Display for FleetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooFewDescriptors { needed, allowed } => write!(
                f,
                "so many agents need {needed} descriptors, and this process may have {allowed}: raise the hard limit \
                 (ulimit -Hn), or start fewer (--agents)"
            ),
            Self::InvalidMetadataUrl(error) => write!(f, "--metadata: {error}"),
            Self::System(what, cause) => write!(f, "{what}: {cause}"),
        }
    }
}

impl std::error::Error for FleetError {}

/// The instance id of the agent with this number.
fn fleet_instance_id(number: u32) -> String {
    format!("i-fleet-{number:06}")
}

/// Runs the agents until SIGTERM or SIGINT. With `--print-instances` it prints their instances instead.
///
/// # Errors
/// The fleet cannot start, or cannot write to the standard output.
pub fn run(args: &FleetArgs) -> Result<(), FleetError> {
    if args.print_instances {
        return print_instances(args.agents)
            .map_err(|cause| FleetError::System("cannot write to the standard output", cause));
    }
    let allowed = descriptors::raise_nofile_limit()
        .map_err(|cause| FleetError::System("cannot raise the limit of descriptors", cause))?;
    // Each agent needs one descriptor for its poll, and a second one for its report. Not all agents report at the
    // same time.
    let needed = u64::from(args.agents) * 3 / 2 + RESERVED_DESCRIPTORS;
    if allowed < needed {
        return Err(FleetError::TooFewDescriptors { needed, allowed });
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(GUEST_THREADS)
        .build()
        .map_err(|cause| FleetError::System("cannot start the runtime", cause))?;
    let agents = LocalSet::new();
    let ended = agents.block_on(&runtime, run_agents(args, &agents));
    runtime.shutdown_background();
    ended
}

/// Prints the agents' instances as the TOML file for `serve --instances`.
fn print_instances(agents: u32) -> io::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    for number in 0..agents {
        writeln!(out, "[[instance]]\nid = \"{}\"", fleet_instance_id(number))?;
    }
    out.flush()
}

async fn run_agents(args: &FleetArgs, agents: &LocalSet) -> Result<(), FleetError> {
    let mut signals =
        TerminationSignals::register().map_err(|cause| FleetError::System("cannot catch signals", cause))?;
    let tally = Rc::new(Counters::default());
    let (trigger, shutdown) = Shutdown::channel();
    let ramp = Duration::from_secs(args.ramp);
    let long_poll = Duration::from_secs(args.long_poll.into());
    let mut running = Vec::new();
    for (number, server) in (0..args.agents).zip(args.metadata.iter().cycle()) {
        let channel = InstrumentedChannel::new(metadata_base_url(*server, number)?, tally.clone());
        let start = ramp * number / args.agents;
        let shutdown = shutdown.clone();
        running.push(agents.spawn_local(async move {
            tokio::select! {
                () = sleep(start) => {}
                () = shutdown.triggered() => return,
            }
            agent::run_embedded(channel, NullGuest::default(), long_poll, shutdown.triggered()).await;
        }));
    }
    let second = Duration::from_secs(1);
    let mut seconds = interval_at(Instant::now() + second, second);
    // After a late tick the next one comes a full second later, so that no two lines follow at once.
    seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = seconds.tick() => {
                print_second(&tally).map_err(|cause| FleetError::System("cannot write to the standard output", cause))?;
            }
            () = signals.recv() => break,
        }
    }
    trigger.fire();
    let ends = async {
        for agent in running {
            // An agent that panicked has ended too, so its error is ignored.
            let _ = agent.await;
        }
    };
    // Agents that are still in a call end with the process.
    let _ = tokio::time::timeout(AGENT_STOP_GRACE_PERIOD, ends).await;
    Ok(())
}

fn metadata_base_url(server: SocketAddr, number: u32) -> Result<BaseUrl, FleetError> {
    format!("http://{server}/{}/metadata/latest", fleet_instance_id(number))
        .parse()
        .map_err(FleetError::InvalidMetadataUrl)
}

/// Prints one line of JSON with the counts since the last line.
fn print_second(tally: &Counters) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, &tally.take())?;
    out.write_all(b"\n")?;
    out.flush()
}
