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
use keypair_agent::channel::backoff::{random, whole_seconds};
use tracing::error;

use crate::face::Peer;
use crate::inventory::Instance;
use crate::platform::Platform;
use crate::store::StoreError;

pub mod channel;
pub mod tree;

/// The most that is read of a body.
const MAX_BODY: usize = 64 * 1024;

/// The longest that an agent is told to stay away, in seconds.
const AWAY_MAX: u64 = 30;

/// The metadata service's routes.
pub fn router(platform: Platform) -> Router {
    Router::new()
        .nest("/metadata/latest", base())
        .nest("/{instance}/metadata/latest", base())
        .route("/metadata/latest/", get(tree::get))
        .route("/{instance}/metadata/latest/", get(tree::get))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(platform)
}

/// What one instance's base holds.
fn base() -> Router<Platform> {
    Router::new()
        .route("/keypair/command", get(channel::command))
        .route("/keypair/results/{command}", put(channel::result))
        .route("/keypair/agent", put(channel::agent))
        .route("/", get(tree::get))
        .route("/{*path}", get(tree::get))
}

/// The instance that a call is about: the path names it, or the caller's address does.
pub struct Subject(pub Instance);

impl FromRequestParts<Platform> for Subject {
    type Rejection = MetadataError;

    async fn from_request_parts(parts: &mut Parts, platform: &Platform) -> Result<Self, MetadataError> {
        let Path(segments) = Path::<HashMap<String, String>>::from_request_parts(parts, platform)
            .await
            .map_err(|_| MetadataError::NotFound)?;
        let instance = match segments.get("instance") {
            Some(id) => platform.inventory.get(id),
            None => {
                let peer = parts.extensions.get::<Peer>();
                peer.and_then(|Peer(caller)| platform.inventory.of_caller(caller.ip()))
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
    Bad(String),
    /// Another result is stored.
    Conflict,
    /// The service ends; another one, or the next, will answer.
    Ending,
    /// The store does not do its work.
    Store(StoreError),
}

impl IntoResponse for MetadataError {
    fn into_response(self) -> Response {
        let (status, text) = match self {
            Self::NotFound => (StatusCode::NOT_FOUND, "not found".to_owned()),
            Self::Bad(why) => (StatusCode::BAD_REQUEST, why),
            Self::Conflict => (StatusCode::CONFLICT, "another result of this command is stored".to_owned()),
            Self::Ending => (StatusCode::SERVICE_UNAVAILABLE, "the service is ending".to_owned()),
            Self::Store(cause) => {
                error!("{cause}");
                (StatusCode::SERVICE_UNAVAILABLE, "the store is not available".to_owned())
            }
        };
        let mut response = (status, text + "\n").into_response();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(away(random())));
        }
        response
    }
}

/// How many seconds one agent stays away: all are sent away at once, and must not come back at once.
fn away(random: u64) -> u64 {
    whole_seconds(Duration::from_secs(AWAY_MAX), random)
}

impl From<StoreError> for MetadataError {
    fn from(cause: StoreError) -> Self {
        Self::Store(cause)
    }
}

/// A JSON answer.
fn json(text: String) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// KP-9.11.
    #[test]
    fn agents_stay_away_for_each_number_of_seconds_as_often() {
        let step = u64::MAX / AWAY_MAX;
        for seconds in 1..=AWAY_MAX {
            assert_eq!(away(step * (seconds - 1) + step / 2), seconds);
        }
        assert_eq!((away(0), away(u64::MAX)), (1, AWAY_MAX));
    }
}
