//! The keypair agent's binary: see [`keypair_agent`].

use std::process::ExitCode;

fn main() -> ExitCode {
    keypair_agent::cli::main()
}
