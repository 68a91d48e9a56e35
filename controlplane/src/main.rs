//! `keypair-controlplane`: parses the flags, runs the subcommand and sets the exit status.

use std::process::ExitCode;

use clap::Parser;
use keypair_controlplane::args::{Cli, CliCommand};
use keypair_controlplane::{fleet, serve};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let ended = match &cli.verb {
        CliCommand::Serve(args) => {
            tracing_subscriber::fmt().with_writer(std::io::stderr).with_target(false).with_ansi(false).init();
            serve::run(args).map_err(|error| (error.to_string(), error.exit_status()))
        }
        // A fleet writes no log, because ten thousand agents would write too much. It counts events instead.
        CliCommand::Fleet(args) => fleet::run(args).map_err(|error| (error.to_string(), error.exit_status())),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err((error, status)) => {
            eprintln!("keypair-controlplane: {error}");
            ExitCode::from(status)
        }
    }
}
