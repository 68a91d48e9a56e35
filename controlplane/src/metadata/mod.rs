//! The metadata service: the documented tree (KP-1.3) and the command channel (KP-3.6), at
//! `/{instanceId}/metadata/latest` and, for the caller's own instance, at `/metadata/latest`.

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

/// The most that is read of a body.
const MAX_METADATA_BODY_BYTES: usize = 64 * 1024;

/// The longest that an agent is told to stay away, in seconds.
const MAX_RETRY_AFTER_SECONDS: u64 = 30;

/// The metadata service's routes.
pub fn router(platform: AppState) -> Router {
    Router::new()
        .nest("/metadata/latest", instance_routes())
        .nest("/{instance}/metadata/latest", instance_routes())
        .route("/metadata/latest/", get(tree::get_metadata))
        .route("/{instance}/metadata/latest/", get(tree::get_metadata))
        .layer(DefaultBodyLimit::max(MAX_METADATA_BODY_BYTES))
        .with_state(platform)
}

/// What one instance's base holds.
fn instance_routes() -> Router<AppState> {
    Router::new()
        .route("/keypair/command", get(channel::get_command))
        .route("/keypair/results/{command}", put(channel::put_result))
        .route("/keypair/agent", put(channel::put_agent_report))
        .route("/", get(tree::get_metadata))
        .route("/{*path}", get(tree::get_metadata))
}

/// The instance that a call is about: the path names it, or the caller's address does.
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

/// What the metadata service answers when it has nothing to give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetadataError {
    /// Nothing of that name, or no such instance.
    NotFound,
    /// The call makes no sense, and why.
    BadRequest(String),
    /// Another result is stored.
    Conflict,
    /// The service ends; another one, or the next, will answer.
    ShuttingDown,
    /// The store does not do its work.
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

/// How many seconds one agent stays away: all are sent away at once, and must not come back at once.
fn retry_after_seconds(random: u64) -> u64 {
    uniform_seconds(Duration::from_secs(MAX_RETRY_AFTER_SECONDS), random)
}

impl From<StoreError> for MetadataError {
    fn from(cause: StoreError) -> Self {
        Self::Store(cause)
    }
}

/// A JSON answer.
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
