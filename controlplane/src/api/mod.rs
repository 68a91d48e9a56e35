//! The platform's API (contract 9): paths in, envelopes out.

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};

use crate::platform::Platform;

pub mod bind;
pub mod body;
pub mod envelope;
pub mod error;
pub mod keypairs;
pub mod list_query;

/// The most that is read of a request's body.
const MAX_BODY: usize = 64 * 1024;

/// The API's routes. A verb stands behind a colon in the last segment, as in `my-test:attach`.
pub fn router(platform: Platform) -> Router {
    Router::new()
        .route("/v1/regions/{region}/keypairs", get(keypairs::describe))
        .route("/v1/regions/{region}/keypairs:import", post(keypairs::import))
        .route("/v1/regions/{region}/keypairs/{target}", post(bind::post).delete(keypairs::delete))
        .fallback(error::no_such_path)
        .method_not_allowed_fallback(error::no_such_method)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(axum::middleware::from_fn(envelope::wrap))
        .with_state(platform)
}
