//! Flags in, text out (KP-8.1 to KP-8.10): a file a command.

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
use crate::guest::real::RealGuest;
use crate::guest::scout;
use crate::transaction::{Settings, Transaction};

use arguments::{Arguments, Invocation, Word};

/// It did what was asked.
const OK: u8 = 0;
/// It did not; what it printed says why.
const FAILED: u8 = 1;
/// The command line or the configuration is wrong.
const USAGE: u8 = 2;

/// Runs the program with the process's arguments.
pub fn main() -> ExitCode {
    let invocation = match arguments::parse(std::env::args_os().skip(1)) {
        Ok(invocation) => invocation,
        Err(error) => {
            complain(&format!("{error}\n\n{}", arguments::USAGE));
            return USAGE.into();
        }
    };
    let Arguments { config, word } = match invocation {
        Invocation::Help => return print(arguments::USAGE),
        Invocation::Version => return print(&format!("keypair-agent {}\n", crate::VERSION)),
        Invocation::Word(arguments) => arguments,
    };
    if word == Word::Scout {
        // It is sent by a process of ours; that one is gone if its answer cannot be written.
        let _gone = scout::serve(io::stdin().lock(), io::stdout().lock());
        return OK.into();
    }
    scout::enable();
    let config = match Config::load(config.as_deref()) {
        Ok(config) => config,
        Err(error) => {
            complain(&error.to_string());
            if matches!(word, Word::Undo | Word::PasswordAuth(_) | Word::Check { .. }) {
                complain("to go by the defaults instead, add '--config /dev/null'");
            }
            return USAGE.into();
        }
    };
    crate::logging::init();
    let status = match word {
        Word::Run => run::run(&config),
        Word::Apply(source) => apply::file(&config, &source),
        Word::PasswordAuth(password_auth) => apply::password_auth(&config, password_auth),
        Word::Detach => apply::detach(&config),
        Word::Plan(source) => plan::plan(&config, &source),
        Word::Undo => undo::undo(&config),
        Word::Recover => undo::recover(&config),
        Word::TrialHelper => trial_helper::serve(&config),
        Word::Scout => OK,
        Word::Status { json } => status::status(&config, json),
        Word::Check { json, image: false } => check::check(&config, json),
        Word::Check { json, image: true } => image::check(&config, json),
    };
    scout::rest();
    status.into()
}

/// The transaction room of this machine.
fn transaction(config: &Config) -> Transaction<RealGuest> {
    let settings = Settings {
        proof: config.proof,
        target_user: config.target_user.clone(),
        kbd_interactive: config.kbd_interactive,
        instance_id: config.instance_id.clone(),
        trusted_signers: config.trusted_signers.clone(),
    };
    Transaction::new(RealGuest::new(config), settings)
}

/// Prints to standard output.
fn print(text: &str) -> ExitCode {
    print_bytes(text.as_bytes());
    OK.into()
}

/// What was done, and the exit status, are the same where it cannot be told. That is said; a reader that went away knows.
fn print_bytes(bytes: &[u8]) {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            complain(&format!("cannot write to standard output: {error}"));
        }
        _ => {}
    }
}

/// Says something on standard error, and goes on where that is full or closed: `eprintln!` would end the process.
fn complain(text: &str) {
    let _nowhere_to_tell = io::stderr().write_all(format!("keypair-agent: {text}\n").as_bytes());
}
