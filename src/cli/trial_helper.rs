//! `trial-helper`: the command that `keypair-agent-trial@.service` runs. It reads one question from standard input
//! and writes the answer to standard output.

use crate::config::Config;
use crate::guest::real::sshd_settings;
use crate::guest::trial::helper;

use super::{EXIT_OK, apply};

/// `trial-helper`.
pub(super) fn run_trial_helper(config: &Config) -> u8 {
    match helper::serve_trial_question(
        &sshd_settings(config),
        std::io::stdin().lock(),
        std::io::stdout().lock(),
    ) {
        Ok(()) => EXIT_OK,
        Err(error) => apply::print_failure(&format!("the question could not be answered: {error}")),
    }
}
