//! What both faces share.

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

/// What both faces share; cheap to clone.
#[derive(Clone)]
pub struct AppState {
    /// Key pairs, bindings, commands and results.
    pub store: Arc<dyn Store>,
    /// The instances there are.
    pub inventory: Arc<Inventory>,
    /// Who may call the API; `None`: everybody.
    pub access_keys: Option<Arc<AccessKeys>>,
    /// How long an attach or detach waits for its running guests.
    pub attach_wait: Duration,
    /// What commands are signed with as they are handed out; `None`: they go out unsigned.
    pub signing_key: Option<Arc<SigningKey>>,
    /// What this server counts.
    pub metrics: Arc<Metrics>,
    /// Ends what waits.
    pub shutdown: Shutdown,
}

impl AppState {
    /// The state that an instance is in now.
    ///
    /// # Errors
    /// Where the store fails.
    pub async fn status(&self, instance: &Instance) -> Result<Status, StoreError> {
        let state = self.store.state(&instance.id).await?;
        Ok(lifecycle::current_status(instance, state.as_ref(), OffsetDateTime::now_utc()))
    }

    /// [`Store::queue_order`], counted.
    ///
    /// # Errors
    /// Where the store fails.
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

    /// [`Store::store_result`], counted and logged.
    ///
    /// # Errors
    /// Where the store fails.
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

/// Says what became of a command. What a guest says is quoted, so that it cannot forge a line of the log.
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

/// Does a piece of work to its end: what is stored is counted and logged also where its caller has hung up.
async fn spawn_to_completion<T: Send + 'static>(
    work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::spawn(work).await.unwrap_or_else(|error| Err(StoreError::Uncertain(error.to_string())))
}
