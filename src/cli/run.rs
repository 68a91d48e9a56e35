//! `run`: the daemon's loop with the transaction engine of this machine.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::agent::{self, CommandEngine};
use crate::config::Config;
use crate::guest::Guest;
use crate::policy::command::Origin;
use crate::policy::types::{CommandId, InstanceId};
use crate::transaction::Engine;
use crate::transaction::owed::OwedProofOutcome;
use crate::transaction::perform::Execution;
use crate::transaction::state::StoredResult;

use super::{EXIT_OK, apply};

/// `run`.
pub(super) fn run(config: &Config) -> u8 {
    let settings = agent::AgentSettings {
        base_url: config.metadata_url.clone(),
        long_poll: Duration::from_secs(config.long_poll_seconds.into()),
        run_dir: config.run_dir.clone(),
    };
    match agent::run(settings, super::open_engine(config)) {
        Ok(()) => EXIT_OK,
        Err(error) => apply::print_failure(&error.to_string()),
    }
}

impl<G: Guest + Send + 'static> CommandEngine for Engine<G> {
    fn recover(&mut self) -> Result<(), String> {
        Self::recover(self).map_err(|failure| failure.to_string())
    }

    fn configured_instance_id(&self) -> Option<InstanceId> {
        self.settings().instance_id.clone()
    }

    fn adopt_instance_id(&mut self, id: &InstanceId) -> Result<(), String> {
        Self::adopt_instance_id(self, id).map_err(|failure| failure.to_string())
    }

    fn execute_command(&mut self, bytes: &[u8], stop: &AtomicBool) -> Execution {
        Self::execute_command(self, bytes, Origin::Channel, stop)
    }

    fn undelivered_result(&mut self) -> Result<Option<StoredResult>, String> {
        Self::undelivered_result(self).map_err(|failure| failure.to_string())
    }

    fn mark_delivered(&mut self, id: &CommandId) -> Result<(), String> {
        Self::mark_delivered(self, id).map_err(|failure| failure.to_string())
    }

    fn replace_result(&mut self, id: &CommandId, result: &str) -> Result<(), String> {
        Self::replace_result(self, id, result).map_err(|failure| failure.to_string())
    }

    fn check_owed_proof(&mut self) -> Result<OwedProofOutcome, String> {
        Self::check_owed_proof(self).map_err(|failure| failure.to_string())
    }

    fn expects_network(&mut self) -> bool {
        self.guest().is_network_pending()
    }

    fn build_agent_report(&mut self) -> String {
        Self::build_agent_report(self)
    }

    fn summary(&mut self) -> String {
        Self::summary(self)
    }
}
