//! `run`: the daemon's loop over the transaction room of this machine.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::agent::{self, Transactions};
use crate::config::Config;
use crate::guest::Guest;
use crate::policy::command::Origin;
use crate::policy::types::{CommandId, InstanceId};
use crate::transaction::Transaction;
use crate::transaction::owed::Settled;
use crate::transaction::perform::Performed;
use crate::transaction::state::StoredResult;

use super::{OK, apply};

/// `run`.
pub(super) fn run(config: &Config) -> u8 {
    let settings = agent::Settings {
        base_url: config.metadata_url.clone(),
        long_poll: Duration::from_secs(config.long_poll_seconds.into()),
        run_dir: config.run_dir.clone(),
    };
    match agent::run(settings, super::transaction(config)) {
        Ok(()) => OK,
        Err(error) => apply::fail(&error.to_string()),
    }
}

impl<G: Guest + Send + 'static> Transactions for Transaction<G> {
    fn recover(&mut self) -> Result<(), String> {
        Self::recover(self).map_err(|failure| failure.to_string())
    }

    fn configured_instance_id(&self) -> Option<InstanceId> {
        self.settings().instance_id.clone()
    }

    fn adopt(&mut self, id: &InstanceId) -> Result<(), String> {
        Self::adopt(self, id).map_err(|failure| failure.to_string())
    }

    fn perform(&mut self, bytes: &[u8], stop: &AtomicBool) -> Performed {
        Self::perform(self, bytes, Origin::Channel, stop)
    }

    fn undelivered(&mut self) -> Result<Option<StoredResult>, String> {
        Self::undelivered(self).map_err(|failure| failure.to_string())
    }

    fn delivered(&mut self, id: &CommandId) -> Result<(), String> {
        Self::delivered(self, id).map_err(|failure| failure.to_string())
    }

    fn replace_result(&mut self, id: &CommandId, result: &str) -> Result<(), String> {
        Self::replace_result(self, id, result).map_err(|failure| failure.to_string())
    }

    fn settle_proof(&mut self) -> Result<Settled, String> {
        Self::settle_proof(self).map_err(|failure| failure.to_string())
    }

    fn expects_network(&mut self) -> bool {
        self.guest().expects_network()
    }

    fn describe(&mut self) -> String {
        Self::describe(self)
    }

    fn summary(&mut self) -> String {
        Self::summary(self)
    }
}
