//! `keypairs/{keyName}:attach` and `:detach`. A request is refused for all of its instances, or queued for all of
//! them. Then the handler waits for the results.

use axum::Extension;
use axum::extract::{Path, State};
use futures_util::future::join_all;
use keypair_agent::channel::backoff::{random_u64, uniform_duration};
use keypair_agent::policy::outcome;
use keypair_agent::policy::types::KeyName;
use serde_json::json;
use tokio::time::{Duration, Instant};
use tracing::{debug, info, warn};

use super::body::{RawBody, RequestFields};
use super::envelope::{HandlerResult, Reply};
use super::error::ApiError;
use super::{instances, keypairs};
use crate::ids::RequestId;
use crate::inventory::{Instance, OsType, Status};
use crate::keypair::{Region, StoredKeyPair};
use crate::platform::AppState;
use crate::store::{Order, OrderError, OrderKind, QueuedCommand};

/// The shortest pause before a failed store is queried again.
const STORE_RETRY_DELAY: Duration = Duration::from_secs(2);

/// Whether the request attaches or detaches the key pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AttachKind {
    Attach,
    Detach,
}

/// Answers `POST /v1/regions/{region}/keypairs/{keyName}:attach`.
///
/// # Errors
/// The errors of KP-9.3 and KP-9.4.
pub async fn attach(
    State(platform): State<AppState>,
    Extension(request): Extension<RequestId>,
    Path(target): Path<(String, String)>,
    body: RawBody,
) -> HandlerResult {
    attach_or_detach(&platform, request, target, body, AttachKind::Attach).await
}

/// Answers `POST /v1/regions/{region}/keypairs/{keyName}:detach`.
///
/// # Errors
/// The errors of KP-9.3 and KP-9.4.
pub async fn detach(
    State(platform): State<AppState>,
    Extension(request): Extension<RequestId>,
    Path(target): Path<(String, String)>,
    body: RawBody,
) -> HandlerResult {
    attach_or_detach(&platform, request, target, body, AttachKind::Detach).await
}

async fn attach_or_detach(
    platform: &AppState,
    request: RequestId,
    (region, key_name): (String, String),
    body: RawBody,
    verb: AttachKind,
) -> HandlerResult {
    let region = keypairs::parse_region(&region)?;
    let fields = RequestFields::from_body(body)?;
    let ids = fields.instance_ids()?;
    let password_auth = match verb {
        AttachKind::Attach => Some(fields.password_auth()?),
        AttachKind::Detach => None,
    };
    // A name that is not valid cannot exist, so the answer is "not found".
    let no_key_pair = || ApiError::KeyPairNotFound(key_name.clone());
    let key_name: KeyName = key_name.parse().map_err(|_| no_key_pair())?;
    let key_pair = platform.store.find_key_pair(&region, &key_name).await?.ok_or_else(no_key_pair)?;
    let instances = find_eligible_instances(platform, &region, &ids).await?;
    let order = Order {
        request,
        region,
        verb: match password_auth {
            Some(password_auth) => OrderKind::Attach(key_name.clone(), password_auth),
            None => OrderKind::Detach(key_name.clone()),
        },
        instances: instances.iter().map(|(instance, _)| instance.id.clone()).collect(),
    };
    let placed = platform.queue_order(&order).await?.map_err(|refused| match (refused, verb) {
        (OrderError::KeyPairNotFound, _) => ApiError::KeyPairNotFound(key_name.to_string()),
        (OrderError::AlreadyBound(id), AttachKind::Attach) => ApiError::AlreadyAttached(id),
        (OrderError::AlreadyBound(id), AttachKind::Detach) => ApiError::OtherKeyPairAttached(id),
    })?;
    // Only an attach binds a key pair, so a detach logs none.
    log_queued_commands(&order, password_auth.is_some().then_some(&key_pair), &placed);
    let (mut succeeded, mut failed) = (Vec::new(), Vec::new());
    let deadline = Instant::now() + platform.attach_wait;
    // All instances are waited for at once, and their states were queried at once. The store answers many queries in
    // one batch.
    let waits = instances.iter().zip(&placed);
    let accepted = waits.map(|((_, status), placed)| wait_for_success(platform, status, placed, deadline));
    for ((instance, _), accepted) in instances.iter().zip(join_all(accepted).await) {
        match accepted {
            true => succeeded.push(instance.id.as_str()),
            false => failed.push(instance.id.as_str()),
        }
    }
    Ok(Reply(json!({ "successInstanceId": succeeded, "failInstanceId": failed })))
}

/// The named instances, each with its state. All of them must exist in the region, run Linux, and be running or
/// stopped. Each of these conditions is checked on all instances before the next condition is checked.
async fn find_eligible_instances<'a>(
    platform: &'a AppState,
    region: &Region,
    ids: &[&str],
) -> Result<Vec<(&'a Instance, Status)>, ApiError> {
    let instances: Vec<&Instance> =
        ids.iter().map(|id| instances::find_instance(platform, region, id)).collect::<Result<_, _>>()?;
    if instances.iter().any(|instance| instance.os_type == OsType::Windows) {
        return Err(ApiError::WindowsOs);
    }
    let statuses =
        join_all(instances.iter().map(|instance| instances::require_running_or_stopped(platform, instance)))
            .await;
    instances.into_iter().zip(statuses).map(|(instance, status)| Ok((instance, status?))).collect()
}

/// Whether an instance counts as successful. A stopped instance succeeds at once. A running one succeeds if its guest
/// reports success before the deadline. A later result is stored all the same. The command is already queued here, so
/// a store error counts like a guest that has not answered yet.
async fn wait_for_success(
    platform: &AppState,
    status: &Status,
    placed: &QueuedCommand,
    deadline: Instant,
) -> bool {
    if *status == Status::Stopped {
        return true;
    }
    tokio::select! {
        // `biased`: a result that is already stored is returned even if the wait time is zero.
        biased;
        status = wait_for_outcome(platform, placed) => return status == outcome::Status::Succeeded,
        () = tokio::time::sleep_until(deadline) => {}
        () = platform.shutdown.triggered() => {}
    }
    warn!(instance = %placed.instance, command = %placed.command, "the guest is silent; the command stays queued");
    false
}

/// Waits for the result of a command and returns its status.
async fn wait_for_outcome(platform: &AppState, placed: &QueuedCommand) -> outcome::Status {
    let mut changes = platform.store.watch_changes(&placed.instance);
    loop {
        changes.borrow_and_update();
        match platform.store.outcome(&placed.instance, &placed.command).await {
            Ok(Some(outcome)) => return outcome.status,
            Ok(None) => {
                if changes.changed().await.is_err() {
                    // No more changes will arrive. The deadline or the shutdown in `wait_for_success` ends the wait.
                    std::future::pending().await
                }
            }
            Err(error) => {
                debug!(instance = %placed.instance, "{error}");
                // The random part prevents thousands of waits from retrying at the same moment.
                tokio::time::sleep(STORE_RETRY_DELAY + uniform_duration(STORE_RETRY_DELAY, random_u64()))
                    .await;
            }
        }
    }
}

/// Logs the commands of an order, and the key pair that they bind.
pub(super) fn log_queued_commands(order: &Order, bound: Option<&StoredKeyPair>, placed: &[QueuedCommand]) {
    let verb = order.verb.action();
    let key_name = order.verb.key_name().map(tracing::field::display);
    let key = bound.map(|bound| bound.key_pair.public_key.fingerprint().sha256);
    let key = key.as_deref();
    for QueuedCommand { instance, command, fresh } in placed {
        let said = if *fresh { "queued" } else { "asked for again, still queued" };
        info!(%instance, %command, key_name, key, "{verb}: {said}");
    }
}
