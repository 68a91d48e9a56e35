//! The command channel (KP-3.6, KP-3.37): hands out commands, and stores results and agent reports.

use std::time::Duration;

use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use keypair_agent::policy::outcome::CommandResult;
use keypair_agent::policy::types::CommandId;
use serde::Deserialize;
use serde_json::{Map, Value};
use time::OffsetDateTime;
use tokio::time::Instant;
use tracing::info;

use super::{CallerInstance, MetadataError, respond_with_json};
use crate::clock;
use crate::inventory::Instance;
use crate::ledger::{ReceivedResult, StoreResultOutcome};
use crate::metrics::PollAnswer;
use crate::platform::AppState;
use crate::store::StoreError;

/// The longest time that a poll waits, even if it asks for more.
const MAX_POLL_WAIT: Duration = Duration::from_secs(300);

/// The query of a poll: `wait` in seconds. Without it, the poll returns at once.
#[derive(Deserialize)]
pub struct PollQuery {
    #[serde(default)]
    wait: u64,
}

/// Answers `GET keypair/command` with the oldest command without a result. If there is none, it waits up to `wait`
/// seconds for one. The only change is the time of the first hand-out, so no command is lost if the client
/// disconnects.
///
/// # Errors
/// [`MetadataError`] if the query is invalid, the store fails, or the service shuts down during the wait.
pub async fn get_command(
    State(platform): State<AppState>,
    CallerInstance(instance): CallerInstance,
    poll: Result<Query<PollQuery>, QueryRejection>,
) -> Result<Response, MetadataError> {
    let Query(poll) =
        poll.map_err(|_| MetadataError::BadRequest("wait is not a number of seconds".into()))?;
    let command = wait_for_command(&platform, &instance, Duration::from_secs(poll.wait)).await;
    platform.metrics.count_poll(match &command {
        Ok(Some(_)) => PollAnswer::Command,
        Ok(None) => PollAnswer::Nothing,
        Err(MetadataError::ShuttingDown) => PollAnswer::Ended,
        Err(_) => PollAnswer::Failed,
    });
    Ok(command?.map_or_else(|| StatusCode::NO_CONTENT.into_response(), respond_with_json))
}

/// The text of the oldest command without a result, signed if there is a signing key. `None` if none arrives within
/// `wait`.
async fn wait_for_command(
    platform: &AppState,
    instance: &Instance,
    wait: Duration,
) -> Result<Option<String>, MetadataError> {
    let deadline = Instant::now() + wait.min(MAX_POLL_WAIT);
    let mut changes = platform.store.watch_changes(&instance.id);
    loop {
        changes.borrow_and_update();
        if let Some(command) = platform.store.hand_out(&instance.id, clock::now_millis()).await? {
            let text = match &platform.signing_key {
                None => {
                    serde_json::to_string(&command).map_err(|error| StoreError::Failed(error.to_string()))?
                }
                Some(key) => key
                    .sign_command(&command, OffsetDateTime::now_utc())
                    .map_err(|error| StoreError::Failed(error.to_string()))?,
            };
            info!(instance = %instance.id, command = %command.id, "handed out");
            platform.metrics.count_handed_out(command.action.name());
            return Ok(Some(text));
        }
        if wait.is_zero() {
            return Ok(None);
        }
        let _waiting = platform.metrics.track_waiting_poll();
        tokio::select! {
            changed = changes.changed() => changed.map_err(|_| StoreError::Failed("it tells no changes".into()))?,
            () = tokio::time::sleep_until(deadline) => return Ok(None),
            () = platform.shutdown.triggered() => return Err(MetadataError::ShuttingDown),
        }
    }
}

/// The path parameter: the id of the command to which the result belongs.
#[derive(Deserialize)]
pub struct ResultPath {
    command: String,
}

/// Answers `PUT keypair/results/{commandId}`.
///
/// # Errors
/// [`MetadataError`] if the command is unknown, the body is not a result of this command, another result is stored,
/// or the store fails.
pub async fn put_result(
    State(platform): State<AppState>,
    CallerInstance(instance): CallerInstance,
    Path(ResultPath { command }): Path<ResultPath>,
    body: Result<axum::body::Bytes, BytesRejection>,
) -> Result<StatusCode, MetadataError> {
    let id: CommandId = command.parse().map_err(|_| MetadataError::NotFound)?;
    let (outcome, bytes) = match parse_result_body(&id, body) {
        Ok(said) => said,
        // An unknown command is "not found", even if the body is invalid. For a valid body, `store_result` makes this
        // check.
        Err(_) if !platform.store.has_command(&instance.id, &id).await? => {
            return Err(MetadataError::NotFound);
        }
        Err(error) => return Err(error),
    };
    match platform.store_result(&instance.id, ReceivedResult { outcome, bytes }).await? {
        StoreResultOutcome::Stored(_) | StoreResultOutcome::Redelivered | StoreResultOutcome::Duplicate => {
            Ok(StatusCode::NO_CONTENT)
        }
        StoreResultOutcome::Conflict => Err(MetadataError::Conflict),
        StoreResultOutcome::UnknownCommand => Err(MetadataError::NotFound),
    }
}

/// Parses a body as the result of the command `id`. Also returns the received bytes, because the store keeps the
/// whole text with its unknown fields.
fn parse_result_body(
    id: &CommandId,
    body: Result<axum::body::Bytes, BytesRejection>,
) -> Result<(CommandResult, Vec<u8>), MetadataError> {
    let bytes = body.map_err(|_| MetadataError::BadRequest("a result has 64 KiB at most".into()))?;
    let text =
        std::str::from_utf8(&bytes).map_err(|_| MetadataError::BadRequest("a result is UTF-8".into()))?;
    let outcome: CommandResult = serde_json::from_str(text).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        MetadataError::BadRequest(format!("this is not a result (line {line}, column {column})"))
    })?;
    if outcome.command_id != *id {
        return Err(MetadataError::BadRequest("this is the result of another command".into()));
    }
    Ok((outcome, bytes.to_vec()))
}

/// Answers `PUT keypair/agent`: stores the agent's report until the next one replaces it.
///
/// # Errors
/// [`MetadataError::BadRequest`] if the body is not a JSON object, or is too long. [`MetadataError::Store`] if the
/// store fails.
pub async fn put_agent_report(
    State(platform): State<AppState>,
    CallerInstance(instance): CallerInstance,
    body: Result<axum::body::Bytes, BytesRejection>,
) -> Result<StatusCode, MetadataError> {
    let bytes = body.map_err(|_| MetadataError::BadRequest("a report has 64 KiB at most".into()))?;
    let report: Map<String, Value> = serde_json::from_slice(&bytes)
        .map_err(|_| MetadataError::BadRequest("a report is a JSON object".into()))?;
    let version = report.get("agentVersion").and_then(Value::as_str).unwrap_or_default();
    let component = report.get("componentVersion").and_then(Value::as_str).unwrap_or_default();
    info!(instance = %instance.id, ?version, ?component, "the agent reported");
    platform.store.store_report(&instance.id, bytes.to_vec()).await?;
    platform.metrics.count_report();
    Ok(StatusCode::NO_CONTENT)
}
