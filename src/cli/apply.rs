//! `apply FILE`, `password-auth` and `detach`: one command at the console, through the same code as `run`.

use std::io::Read;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use crate::config::Config;
use crate::guest::Guest;
use crate::policy::command::{Action, Command, Origin, Received};
use crate::policy::types::PasswordAuth;
use crate::transaction::perform::{Answered, Performed};

use super::arguments::Source;
use super::{FAILED, OK};

/// The most that is read as a command: 64 KiB, as over the channel.
const MAX_COMMAND: u64 = 64 * 1024;

/// `apply FILE`.
pub(super) fn file(config: &Config, source: &Source) -> u8 {
    match read(source) {
        Ok(bytes) => {
            show(super::transaction(config).perform(&bytes, Origin::Console, &AtomicBool::new(false)))
        }
        Err(why) => fail(&why),
    }
}

/// `password-auth yes|no`.
pub(super) fn password_auth(config: &Config, password_auth: PasswordAuth) -> u8 {
    word(config, Action::SetPasswordAuth { password_auth })
}

/// `detach`.
pub(super) fn detach(config: &Config) -> u8 {
    word(config, Action::Detach { key_name: None })
}

fn word(config: &Config, action: Action) -> u8 {
    let mut transaction = super::transaction(config);
    let id = transaction.guest().random_id();
    let received =
        Received::from(Command { id, sequence: None, instance_id: None, action, expires_at: None });
    show(transaction.perform_received(&received, Origin::Console, &AtomicBool::new(false)))
}

/// The bytes of a command.
pub(super) fn read(source: &Source) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let (name, done) = match source {
        Source::StandardInput => {
            (Path::new("standard input"), std::io::stdin().take(MAX_COMMAND + 1).read_to_end(&mut bytes))
        }
        Source::File(path) => (
            path.as_path(),
            std::fs::File::open(path).and_then(|file| file.take(MAX_COMMAND + 1).read_to_end(&mut bytes)),
        ),
    };
    match done {
        Err(error) => Err(format!("{}: the command cannot be read: {error}", name.display())),
        Ok(_) if bytes.len() as u64 > MAX_COMMAND => {
            Err(format!("{}: a command is at most 64 KiB long", name.display()))
        }
        Ok(_) => Ok(bytes),
    }
}

/// Prints a result, or why there is none.
pub(super) fn show(performed: Performed) -> u8 {
    match performed {
        Performed::Answered(Answered { result, succeeded, .. }) => {
            super::print(&format!("{result}\n"));
            if succeeded { OK } else { FAILED }
        }
        Performed::Unanswered(why) => fail(&why),
    }
}

/// Says why there is no result.
pub(super) fn fail(why: &str) -> u8 {
    super::complain(why);
    FAILED
}
