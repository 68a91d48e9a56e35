//! The command line (KP-9.1).

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::store::StoreUrl;

/// Reference control plane for keypair-agent.
#[derive(Debug, Parser)]
#[command(name = "keypair-controlplane", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: CliCommand,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum CliCommand {
    /// Serve the platform's API and the metadata service until SIGTERM.
    Serve(ServeArgs),
    /// Run many agents in one process against a metadata service, until SIGTERM or SIGINT; a line of JSON a second says what they do.
    Fleet(FleetArgs),
}

/// The flags of `serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Where the platform's API listens; port 0 takes a free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8480")]
    pub api: SocketAddr,
    /// Where the metadata service listens; port 0 takes a free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8481")]
    pub metadata: SocketAddr,
    /// A running Linux instance in cn-north-1; may be repeated.
    #[arg(long = "instance", value_name = "ID")]
    pub instance_ids: Vec<String>,
    /// A TOML file, `[[instance]]` tables: id, and if wanted region, os_type, status, hostname and address.
    #[arg(long = "instances", value_name = "FILE")]
    pub instances_file: Option<PathBuf>,
    /// Where key pairs, bindings and commands are kept: memory: forgets them at the end, sqlite:PATH is a file of this
    /// process, postgres://… a database that several share.
    #[arg(long, value_name = "URL", default_value = "memory:")]
    pub store: StoreUrl,
    /// How long an attach or detach waits for its running guests, in seconds, 300 at most.
    #[arg(long, value_name = "SECONDS", default_value_t = 8, value_parser = clap::value_parser!(u64).range(0..=300))]
    pub attach_wait: u64,
    /// A TOML file, `[[access_key]]` tables: id and secret; given, every request to the API must be signed.
    #[arg(long, value_name = "FILE")]
    pub access_keys: Option<PathBuf>,
    /// An OpenSSH private key without a passphrase, Ed25519 or ECDSA: commands go out signed.
    #[arg(long, value_name = "FILE")]
    pub signing_key: Option<PathBuf>,
}

/// The flags of `fleet`.
#[derive(Debug, Args)]
pub struct FleetArgs {
    /// How many agents, a million at most; their instances are i-fleet-000000, i-fleet-000001, …
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub agents: u32,
    /// IP address and port of a metadata service, which must know these instances; may be repeated: the agents are dealt out.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8481")]
    pub metadata: Vec<SocketAddr>,
    /// The agents start spread over so many seconds, 3600 at most.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(0..=3600))]
    pub ramp: u64,
    /// How long an agent lets a poll wait: its long_poll_seconds, 300 at most.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=300))]
    pub long_poll: u32,
    /// Print the instances as `serve --instances` takes them, and end.
    #[arg(long)]
    pub print_instances: bool,
}
