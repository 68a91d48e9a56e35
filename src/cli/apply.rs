//! `apply FILE`, `password-auth` and `detach`: one command at the console. It uses the same code as `run`.

use std::io::Read;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use crate::config::Config;
use crate::guest::Guest;
use crate::policy::command::{Action, Command, Origin, ReceivedCommand};
use crate::policy::types::PasswordAuth;
use crate::transaction::perform::{CompletedCommand, Execution};

use super::arguments::CommandSource;
use super::{EXIT_FAILED, EXIT_OK};

/// The most bytes that are read as a command: 64 KiB, as over the channel.
const MAX_COMMAND_BYTES: u64 = 64 * 1024;

/// `apply FILE`.
pub(super) fn apply_file(config: &Config, source: &CommandSource) -> u8 {
    match read_command(source) {
        Ok(bytes) => print_execution(super::open_engine(config).execute_command(
            &bytes,
            Origin::Console,
            &AtomicBool::new(false),
        )),
        Err(why) => print_failure(&why),
    }
}

/// `password-auth yes|no`.
pub(super) fn run_password_auth(config: &Config, password_auth: PasswordAuth) -> u8 {
    execute_action(config, Action::SetPasswordAuth { password_auth })
}

/// `detach`.
pub(super) fn detach(config: &Config) -> u8 {
    execute_action(config, Action::Detach { key_name: None })
}

fn execute_action(config: &Config, action: Action) -> u8 {
    let mut transaction = super::open_engine(config);
    let id = transaction.guest().random_id();
    let received =
        ReceivedCommand::from(Command { id, sequence: None, instance_id: None, action, expires_at: None });
    print_execution(transaction.execute_received(&received, Origin::Console, &AtomicBool::new(false)))
}

/// Reads the bytes of a command.
pub(super) fn read_command(source: &CommandSource) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let (name, done) = match source {
        CommandSource::StandardInput => (
            Path::new("standard input"),
            std::io::stdin().take(MAX_COMMAND_BYTES + 1).read_to_end(&mut bytes),
        ),
        CommandSource::File(path) => (
            path.as_path(),
            std::fs::File::open(path)
                .and_then(|file| file.take(MAX_COMMAND_BYTES + 1).read_to_end(&mut bytes)),
        ),
    };
    match done {
        Err(error) => Err(format!("{}: the command cannot be read: {error}", name.display())),
        Ok(_) if bytes.len() as u64 > MAX_COMMAND_BYTES => {
            Err(format!("{}: a command is at most 64 KiB long", name.display()))
        }
        Ok(_) => Ok(bytes),
    }
}

/// Prints a result, or the reason why there is none.
pub(super) fn print_execution(performed: Execution) -> u8 {
    match performed {
        Execution::Completed(CompletedCommand { result, succeeded, .. }) => {
            super::print(&format!("{result}\n"));
            if succeeded { EXIT_OK } else { EXIT_FAILED }
        }
        Execution::NotExecuted(why) => print_failure(&why),
    }
}

/// Prints the reason why there is no result.
pub(super) fn print_failure(why: &str) -> u8 {
    super::print_error(why);
    EXIT_FAILED
}
