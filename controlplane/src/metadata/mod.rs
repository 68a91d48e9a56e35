//! The metadata service: the documented tree (KP-1.3) and the command channel (KP-3.6). Its base is
//! `/{instanceId}/metadata/latest`, or `/metadata/latest` for the caller's own instance.

use std::collections::HashMap;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRequestParts, Path};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use keypair_agent::channel::backoff::{random_u64, uniform_seconds};
use tracing::error;

use crate::face::PeerAddr;
use crate::inventory::Instance;
use crate::platform::AppState;
use crate::store::StoreError;

pub mod channel;
pub mod tree;

/// The largest accepted request body.
const MAX_METADATA_BODY_BYTES: usize = 64 * 1024;

/// The longest `Retry-After` that the service sends, in seconds.
const MAX_RETRY_AFTER_SECONDS: u64 = 30;

/// The routes of the metadata service.
pub fn router(platform: AppState) -> Router {
    Router::new()
        .nest("/metadata/latest", instance_routes())
        .nest("/{instance}/metadata/latest", instance_routes())
        .route("/metadata/latest/", get(tree::get_metadata))
        .route("/{instance}/metadata/latest/", get(tree::get_metadata))
        .layer(DefaultBodyLimit::max(MAX_METADATA_BODY_BYTES))
        .with_state(platform)
}

/// The routes below the base of one instance.
fn instance_routes() -> Router<AppState> {
    Router::new()
        .route("/keypair/command", get(channel::get_command))
        .route("/keypair/results/{command}", put(channel::put_result))
        .route("/keypair/agent", put(channel::put_agent_report))
        .route("/", get(tree::get_metadata))
        .route("/{*path}", get(tree::get_metadata))
}

/// The instance of a call. The path names it, or the caller's address identifies it.
pub struct CallerInstance(pub Instance);

impl FromRequestParts<AppState> for CallerInstance {
    type Rejection = MetadataError;

    async fn from_request_parts(parts: &mut Parts, platform: &AppState) -> Result<Self, MetadataError> {
        let Path(segments) = Path::<HashMap<String, String>>::from_request_parts(parts, platform)
            .await
            .map_err(|_| MetadataError::NotFound)?;
        let instance = match segments.get("instance") {
            Some(id) => platform.inventory.get(id),
            None => {
                let peer = parts.extensions.get::<PeerAddr>();
                peer.and_then(|PeerAddr(caller)| platform.inventory.find_by_caller(caller.ip()))
            }
        };
        instance.cloned().map(Self).ok_or(MetadataError::NotFound)
    }
}

/// The errors of the metadata service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetadataError {
    /// The path or the instance does not exist.
    NotFound,
    /// The request is invalid; holds the cause.
    BadRequest(String),
    /// Another result of this command is already stored.
    Conflict,
    /// The service shuts down. Another server, or this one after its restart, will answer.
    ShuttingDown,
    /// The store failed.
    Store(StoreError),
}

impl IntoResponse for MetadataError {
    fn into_response(self) -> Response {
        let (status, text) = match self {
            Self::NotFound => (StatusCode::NOT_FOUND, "not found".to_owned()),
            Self::BadRequest(why) => (StatusCode::BAD_REQUEST, why),
            Self::Conflict => (StatusCode::CONFLICT, "another result of this command is stored".to_owned()),
            Self::ShuttingDown => (StatusCode::SERVICE_UNAVAILABLE, "the service is ending".to_owned()),
            Self::Store(cause) => {
                error!("{cause}");
                (StatusCode::SERVICE_UNAVAILABLE, "the store is not available".to_owned())
            }
        };
        let mut response = (status, text + "\n").into_response();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(retry_after_seconds(random_u64())));
        }
        response
    }
}

/// A random `Retry-After` in seconds. Many agents receive it at the same moment, and they must not return at the same
/// moment.
fn retry_after_seconds(random: u64) -> u64 {
    uniform_seconds(Duration::from_secs(MAX_RETRY_AFTER_SECONDS), random)
}

impl From<StoreError> for MetadataError {
    fn from(cause: StoreError) -> Self {
        Self::Store(cause)
    }
}

/// A response with a JSON body.
fn respond_with_json(text: String) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// KP-9.11.
    #[test]
    fn retry_after_seconds_are_uniformly_distributed() {
        let step = u64::MAX / MAX_RETRY_AFTER_SECONDS;
        for seconds in 1..=MAX_RETRY_AFTER_SECONDS {
            assert_eq!(retry_after_seconds(step * (seconds - 1) + step / 2), seconds);
        }
        assert_eq!((retry_after_seconds(0), retry_after_seconds(u64::MAX)), (1, MAX_RETRY_AFTER_SECONDS));
    }
}
