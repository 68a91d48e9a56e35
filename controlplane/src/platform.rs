//! The state that the API and the metadata service share.

use std::sync::Arc;
use std::time::Duration;

use keypair_agent::policy::outcome::{self, CommandResult};
use keypair_agent::policy::types::InstanceId;
use time::OffsetDateTime;
use tracing::{info, warn};

use crate::access_keys::AccessKeys;
use crate::inventory::{Instance, Inventory, Status};
use crate::ledger::{ReceivedResult, StoreResultOutcome};
use crate::lifecycle;
use crate::metrics::Metrics;
use crate::shutdown::Shutdown;
use crate::signing::SigningKey;
use crate::store::{Order, OrderError, QueuedCommand, Store, StoreError};

/// The state that the API and the metadata service share. A clone is cheap.
#[derive(Clone)]
pub struct AppState {
    /// Key pairs, bindings, commands and results.
    pub store: Arc<dyn Store>,
    /// All instances.
    pub inventory: Arc<Inventory>,
    /// The access keys that may call the API; with `None` every caller may.
    pub access_keys: Option<Arc<AccessKeys>>,
    /// How long an attach or detach waits for the running guests.
    pub attach_wait: Duration,
    /// The key that signs commands at hand-out; with `None` they are not signed.
    pub signing_key: Option<Arc<SigningKey>>,
    /// The metrics of this server.
    pub metrics: Arc<Metrics>,
    /// Ends waiting calls when the service shuts down.
    pub shutdown: Shutdown,
}

impl AppState {
    /// The current state of an instance.
    ///
    /// # Errors
    /// The store fails.
    pub async fn status(&self, instance: &Instance) -> Result<Status, StoreError> {
        let state = self.store.state(&instance.id).await?;
        Ok(lifecycle::current_status(instance, state.as_ref(), OffsetDateTime::now_utc()))
    }

    /// Calls [`Store::queue_order`] and counts the queued commands.
    ///
    /// # Errors
    /// The store fails.
    pub async fn queue_order(
        &self,
        order: &Order,
    ) -> Result<Result<Vec<QueuedCommand>, OrderError>, StoreError> {
        let (platform, order) = (self.clone(), order.clone());
        spawn_to_completion(async move {
            let placed = platform.store.queue_order(&order).await?;
            let fresh = placed.iter().flatten().filter(|placed| placed.fresh).count();
            platform.metrics.count_queued(order.verb.action(), fresh);
            Ok(placed)
        })
        .await
    }

    /// Calls [`Store::store_result`], and counts and logs the result.
    ///
    /// # Errors
    /// The store fails.
    pub async fn store_result(
        &self,
        instance: &InstanceId,
        answer: ReceivedResult,
    ) -> Result<StoreResultOutcome, StoreError> {
        let (platform, instance, outcome) = (self.clone(), instance.clone(), answer.outcome.clone());
        spawn_to_completion(async move {
            let settled = platform.store.store_result(&instance, answer).await?;
            match settled {
                StoreResultOutcome::Stored(settlement) => {
                    platform.metrics.observe_result(settlement, &outcome);
                    log_result(&instance, &outcome);
                }
                StoreResultOutcome::Redelivered => {
                    let command = &outcome.command_id;
                    warn!(%instance, %command, message = ?outcome.message, "refused for its signature: handed out again");
                }
                StoreResultOutcome::Duplicate | StoreResultOutcome::Conflict | StoreResultOutcome::UnknownCommand => {}
            }
            Ok(settled)
        })
        .await
    }
}

/// Logs the result of a command. Texts from the guest are quoted, so that they cannot forge a log line.
fn log_result(instance: &InstanceId, outcome: &CommandResult) {
    let command = &outcome.command_id;
    match outcome.status {
        outcome::Status::Succeeded => info!(%instance, %command, changed = outcome.changed, "succeeded"),
        outcome::Status::Failed => warn!(
            %instance, %command, reason = outcome.reason.map(tracing::field::display), message = ?outcome.message,
            "failed in the guest"
        ),
    }
    for warning in &outcome.warnings {
        let message = &warning.message;
        warn!(%instance, %command, reason = %warning.reason, ?message, "warned by the guest");
    }
}

/// Runs `work` in a task of its own. If the caller disconnects, a change that was stored is still counted and logged.
async fn spawn_to_completion<T: Send + 'static>(
    work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::spawn(work).await.unwrap_or_else(|error| Err(StoreError::Uncertain(error.to_string())))
}
