//! The command line: reads the flags and prints text (KP-8.1 to KP-8.10). Each command has its own file.

mod apply;
mod arguments;
mod check;
mod diff;
mod image;
mod plan;
mod report;
mod run;
mod status;
mod trial_helper;
mod undo;

use std::io::{self, Write};
use std::process::ExitCode;

use crate::config::Config;
use crate::guest::real::LinuxGuest;
use crate::guest::scout;
use crate::transaction::{Engine, EngineSettings};

use arguments::{Arguments, Invocation, Subcommand};

/// The program did what the user requested.
const EXIT_OK: u8 = 0;
/// The program failed; its output says why.
const EXIT_FAILED: u8 = 1;
/// The command line or the configuration is wrong.
const EXIT_USAGE: u8 = 2;

/// Runs the program with the process's arguments.
pub fn main() -> ExitCode {
    let invocation = match arguments::parse_arguments(std::env::args_os().skip(1)) {
        Ok(invocation) => invocation,
        Err(error) => {
            print_error(&format!("{error}\n\n{}", arguments::USAGE_TEXT));
            return EXIT_USAGE.into();
        }
    };
    let Arguments { config, word } = match invocation {
        Invocation::Help => return print(arguments::USAGE_TEXT),
        Invocation::Version => return print(&format!("keypair-agent {}\n", crate::VERSION)),
        Invocation::Subcommand(arguments) => arguments,
    };
    if word == Subcommand::Scout {
        // Another process of the agent sends the questions. If the answer cannot be written, that process has ended.
        let _gone = scout::answer_questions(io::stdin().lock(), io::stdout().lock());
        return EXIT_OK.into();
    }
    scout::enable();
    let config = match Config::load(config.as_deref()) {
        Ok(config) => config,
        Err(error) => {
            print_error(&error.to_string());
            if matches!(word, Subcommand::Undo | Subcommand::PasswordAuth(_) | Subcommand::Check { .. }) {
                print_error("to go by the defaults instead, add '--config /dev/null'");
            }
            return EXIT_USAGE.into();
        }
    };
    crate::logging::init();
    let status = match word {
        Subcommand::Run => run::run(&config),
        Subcommand::Apply(source) => apply::apply_file(&config, &source),
        Subcommand::PasswordAuth(password_auth) => apply::run_password_auth(&config, password_auth),
        Subcommand::Detach => apply::detach(&config),
        Subcommand::Plan(source) => plan::plan(&config, &source),
        Subcommand::Undo => undo::undo(&config),
        Subcommand::Recover => undo::recover(&config),
        Subcommand::TrialHelper => trial_helper::run_trial_helper(&config),
        Subcommand::Scout => EXIT_OK,
        Subcommand::Status { json } => status::status(&config, json),
        Subcommand::Check { json, image: false } => check::check(&config, json),
        Subcommand::Check { json, image: true } => image::check_image(&config, json),
    };
    scout::reset_scouts();
    status.into()
}

/// The transaction engine of this machine.
fn open_engine(config: &Config) -> Engine<LinuxGuest> {
    let settings = EngineSettings {
        proof: config.proof,
        target_user: config.target_user.clone(),
        kbd_interactive: config.kbd_interactive,
        instance_id: config.instance_id.clone(),
        trusted_signers: config.trusted_signers.clone(),
    };
    Engine::new(LinuxGuest::new(config), settings)
}

/// Prints to standard output.
fn print(text: &str) -> ExitCode {
    print_bytes(text.as_bytes());
    EXIT_OK.into()
}

/// A failed write changes neither what was done nor the exit status. It is reported, except if the reader closed the
/// pipe.
fn print_bytes(bytes: &[u8]) {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            print_error(&format!("cannot write to standard output: {error}"));
        }
        _ => {}
    }
}

/// Writes to standard error and ignores a full or closed one: `eprintln!` would end the process.
fn print_error(text: &str) {
    let _nowhere_to_tell = io::stderr().write_all(format!("keypair-agent: {text}\n").as_bytes());
}
