//! `keypair-controlplane`: flags in, exit status out.

use std::process::ExitCode;

use clap::Parser;
use keypair_controlplane::args::{Cli, Verb};
use keypair_controlplane::serve;

fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_target(false).with_ansi(false).init();
    let Verb::Serve(args) = cli.verb;
    match serve::run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("keypair-controlplane: {error}");
            ExitCode::from(error.exit_status())
        }
    }
}
