//! Instances: list, show, start, stop, reboot and password reset, as far as key pairs depend on them.

use axum::Extension;
use axum::extract::{Path, State};
use futures_util::future::join_all;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tracing::info;

use super::bind::log_queued_commands;
use super::body::{RawBody, RequestFields};
use super::envelope::{HandlerResult, Reply};
use super::error::ApiError;
use super::keypairs;
use super::list_query::{self, ListQuery, RawQuery};
use crate::ids::RequestId;
use crate::inventory::{Instance, OsType, Status};
use crate::keypair::Region;
use crate::lifecycle::{self, InstanceAction};
use crate::platform::AppState;
use crate::store::{Order, OrderKind, StoreError};

/// Answers `GET /v1/regions/{region}/instances`.
///
/// # Errors
/// The errors of KP-9.3.
pub async fn list_instances(
    State(platform): State<AppState>,
    Path(region): Path<String>,
    query: RawQuery,
) -> HandlerResult {
    let region = keypairs::parse_region(&region)?;
    let query = ListQuery::from_pairs(&list_query::parse_query_pairs(query)?, &["instanceId", "status"])?;
    let here: Vec<_> = platform.inventory.iter().filter(|instance| instance.region == region).collect();
    let statuses = join_all(here.iter().map(|instance| platform.status(instance))).await;
    let mut wanted = Vec::new();
    for (instance, status) in here.into_iter().zip(statuses) {
        let status = status?;
        let words = status.to_string();
        if query.matches(|field| if field == "status" { &words } else { instance.id.as_str() }) {
            wanted.push((instance, status));
        }
    }
    let mut page = Vec::new();
    for (instance, status) in query.page(&wanted) {
        page.push(instance_to_json(&platform, instance, status).await?);
    }
    Ok(Reply(json!({ "instances": page, "totalCount": wanted.len() })))
}

/// Answers `GET /v1/regions/{region}/instances/{instanceId}`.
///
/// # Errors
/// The errors of KP-9.3.
pub async fn get_instance(
    State(platform): State<AppState>,
    Path((region, id)): Path<(String, String)>,
) -> HandlerResult {
    let region = keypairs::parse_region(&region)?;
    let instance = find_instance(&platform, &region, &id)?;
    let status = platform.status(instance).await?;
    Ok(Reply(json!({ "instance": instance_to_json(&platform, instance, &status).await? })))
}

/// Answers `POST /v1/regions/{region}/instances/{instanceId}:startInstance`.
///
/// # Errors
/// The errors of KP-9.3.
pub async fn start_instance(
    State(platform): State<AppState>,
    Path(target): Path<(String, String)>,
) -> HandlerResult {
    change_instance_state(&platform, target, InstanceAction::Start).await
}

/// Answers `POST /v1/regions/{region}/instances/{instanceId}:stopInstance`.
///
/// # Errors
/// The errors of KP-9.3.
pub async fn stop_instance(
    State(platform): State<AppState>,
    Path(target): Path<(String, String)>,
) -> HandlerResult {
    change_instance_state(&platform, target, InstanceAction::Stop).await
}

/// Answers `POST /v1/regions/{region}/instances/{instanceId}:rebootInstance`.
///
/// # Errors
/// The errors of KP-9.3.
pub async fn reboot_instance(
    State(platform): State<AppState>,
    Path(target): Path<(String, String)>,
) -> HandlerResult {
    change_instance_state(&platform, target, InstanceAction::Reboot).await
}

/// Answers `POST /v1/regions/{region}/instances/{instanceId}:modifyInstancePassword`. It turns password login on,
/// which is the agent's part of a reset. The password itself is neither set nor stored.
///
/// # Errors
/// The errors of KP-9.3.
pub async fn reset_password(
    State(platform): State<AppState>,
    Extension(request): Extension<RequestId>,
    Path((region, id)): Path<(String, String)>,
    body: RawBody,
) -> HandlerResult {
    let region = keypairs::parse_region(&region)?;
    validate_password(RequestFields::from_body(body)?.required_str("password")?)?;
    let instance = find_instance(&platform, &region, &id)?;
    require_running_or_stopped(&platform, instance).await?;
    if instance.os_type == OsType::Linux {
        let order =
            Order { request, region, verb: OrderKind::AllowPasswords, instances: vec![instance.id.clone()] };
        // The order names no key pair, and the current binding does not matter, so it is never refused.
        let placed = platform.queue_order(&order).await?.unwrap_or_default();
        log_queued_commands(&order, None, &placed);
    }
    Ok(Reply(json!({})))
}

/// Changes the state of an instance. If another request changes it at the same time, the loop starts again with the
/// new state.
async fn change_instance_state(
    platform: &AppState,
    (region, id): (String, String),
    verb: InstanceAction,
) -> HandlerResult {
    let region = keypairs::parse_region(&region)?;
    let instance = find_instance(platform, &region, &id)?;
    loop {
        let before = platform.store.state(&instance.id).await?;
        let now = OffsetDateTime::now_utc();
        let status = lifecycle::current_status(instance, before.as_ref(), now);
        let to = verb.next_status(&status).ok_or(ApiError::InvalidStatus(status))?;
        let state = lifecycle::InstanceState { status: to, since: now };
        if platform.store.change_state(&instance.id, before.as_ref(), &state).await? {
            info!(instance = %instance.id, "it is {}", state.status);
            return Ok(Reply(json!({})));
        }
    }
}

/// The platform's rule for passwords: 8 to 30 characters, of at least three of the four kinds.
fn validate_password(password: &str) -> Result<(), ApiError> {
    let kinds: [fn(char) -> bool; 4] = [
        |c| c.is_ascii_uppercase(),
        |c| c.is_ascii_lowercase(),
        |c| c.is_ascii_digit(),
        |c| c.is_ascii_punctuation() || c == ' ' || c == '，',
    ];
    let used = kinds.iter().filter(|kind| password.chars().any(kind)).count();
    let known = password.chars().all(|c| kinds.iter().any(|kind| kind(c)));
    if !known || used < 3 || !(8..=30).contains(&password.chars().count()) {
        return Err(ApiError::InvalidArgument(
            "password is not 8 to 30 characters of three kinds out of upper case, lower case, digits and signs".into(),
        ));
    }
    Ok(())
}

/// Finds an instance by its id in a region.
///
/// # Errors
/// [`ApiError::InstanceNotFound`].
pub(super) fn find_instance<'a>(
    platform: &'a AppState,
    region: &Region,
    id: &str,
) -> Result<&'a Instance, ApiError> {
    let found = platform.inventory.get(id).filter(|instance| instance.region == *region);
    found.ok_or_else(|| ApiError::InstanceNotFound(id.to_owned()))
}

/// The state of an instance, which must be running or stopped. A running instance has an agent that answers now; a
/// stopped one, after the next boot.
///
/// # Errors
/// [`ApiError::InvalidStatus`].
pub(super) async fn require_running_or_stopped(
    platform: &AppState,
    instance: &Instance,
) -> Result<Status, ApiError> {
    match platform.status(instance).await? {
        status @ Status::Other(_) => Err(ApiError::InvalidStatus(status)),
        status => Ok(status),
    }
}

/// The JSON of an instance: the platform's fields, and the last report of its agent.
async fn instance_to_json(
    platform: &AppState,
    instance: &Instance,
    status: &Status,
) -> Result<Value, StoreError> {
    let bound = platform.store.binding(&instance.id).await?;
    // `put_agent_report` accepts only JSON objects, so this parse does not fail.
    let agent =
        platform.store.report(&instance.id).await?.and_then(|report| serde_json::from_slice(&report).ok());
    let agent: Option<Value> = agent;
    Ok(json!({
        "instanceId": instance.id.as_str(),
        "instanceName": instance.hostname,
        "hostname": instance.hostname,
        "osType": instance.os_type.as_str(),
        "status": status.to_string(),
        "privateIpAddress": instance.address.map(|address| address.to_string()),
        "keyNames": bound.map(|binding| binding.key_pair.key_pair.key_name.to_string()),
        "agent": agent,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn password_must_mix_three_kinds_of_characters() {
        for good in ["Abcdefg1", "abcdef1!", "ABCDEF1 ", "Aa!45678901234567890123456789z", "Abcdefg，"] {
            assert_eq!(validate_password(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "Abcdef1",
            "abcdefgh",
            "abcdefg1",
            "Aa!456789012345678901234567890z",
            "Abcdefg1é",
            "Abcdefg1\n",
        ] {
            let error = validate_password(bad).map_err(|error| error.to_string());
            assert!(error.as_ref().is_err_and(|text| bad.is_empty() || !text.contains(bad)), "{bad}");
        }
    }
}
