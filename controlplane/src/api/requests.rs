//! The status of a request's commands, by request id. A caller finds late results here.

use axum::extract::{Path, State};
use keypair_agent::policy::outcome::Status;
use serde_json::{Value, json};

use super::envelope::{HandlerResult, Reply};
use super::error::ApiError;
use super::keypairs;
use crate::ids::RequestId;
use crate::platform::AppState;
use crate::store::CommandStatus;

/// Answers `GET /v1/regions/{region}/requests/{requestId}`.
///
/// # Errors
/// [`ApiError::RequestNotFound`] if the request queued no command, or if all its commands are forgotten.
pub async fn get_request(
    State(platform): State<AppState>,
    Path((region, id)): Path<(String, String)>,
) -> HandlerResult {
    let region = keypairs::parse_region(&region)?;
    let mut fates = match id.parse::<RequestId>() {
        Ok(id) => platform.store.command_statuses(&id).await?,
        Err(_) => Vec::new(),
    };
    fates.retain(|fate| {
        platform.inventory.get(fate.instance.as_str()).is_some_and(|one| one.region == region)
    });
    if fates.is_empty() {
        return Err(ApiError::RequestNotFound(id));
    }
    let commands: Vec<Value> = fates.iter().map(command_status_to_json).collect();
    Ok(Reply(json!({ "requestId": id, "commands": commands })))
}

fn command_status_to_json(fate: &CommandStatus) -> Value {
    let status = match fate.outcome.as_ref().map(|outcome| outcome.status) {
        None => "queued",
        Some(Status::Succeeded) => "succeeded",
        Some(Status::Failed) => "failed",
    };
    json!({
        "instanceId": fate.instance.as_str(),
        "commandId": fate.command.id.as_str(),
        "action": fate.command.action.name(),
        "keyName": fate.command.action.key_name(),
        "status": status,
        "result": fate.outcome,
    })
}
