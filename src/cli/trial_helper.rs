//! `trial-helper`: what `keypair-agent-trial@.service` runs. One question on standard input, its answer on standard output.

use crate::config::Config;
use crate::guest::real::sshd_settings;
use crate::guest::trial::helper;

use super::{OK, apply};

/// `trial-helper`.
pub(super) fn serve(config: &Config) -> u8 {
    match helper::serve(&sshd_settings(config), std::io::stdin().lock(), std::io::stdout().lock()) {
        Ok(()) => OK,
        Err(error) => apply::fail(&format!("the question could not be answered: {error}")),
    }
}
