//! The platform's API (contract 9): paths in, envelopes out.

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::Uri;
use axum::middleware::{from_fn, from_fn_with_state, map_request};
use axum::routing::{get, post};

use crate::platform::Platform;

pub mod authenticate;
pub mod bind;
pub mod body;
pub mod envelope;
pub mod error;
pub mod instances;
pub mod keypairs;
pub mod list_query;
pub mod requests;
pub mod signature;

/// The most that is read of a request's body.
const MAX_BODY: usize = 64 * 1024;

/// The API's routes. A verb stands behind a colon in the last segment, as in `my-test:attach`.
pub fn router(platform: Platform) -> Router {
    let routes = Router::new()
        .route("/v1/regions/{region}/keypairs", get(keypairs::describe).post(keypairs::create))
        .route("/v1/regions/{region}/keypairs:import", post(keypairs::import))
        .route("/v1/regions/{region}/keypairs/{target}", post(bind::post).delete(keypairs::delete))
        .route("/v1/regions/{region}/instances", get(instances::list))
        .route("/v1/regions/{region}/instances/{target}", get(instances::one).post(instances::post))
        .route("/v1/regions/{region}/requests/{request}", get(requests::one))
        .fallback(error::no_such_path)
        .method_not_allowed_fallback(error::no_such_method)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(platform.clone());
    // Around the routes, so that they see what these make of a request; the last one is the outermost.
    Router::new()
        .fallback_service(routes)
        .layer(map_request(with_plain_colons))
        .layer(from_fn_with_state(platform, authenticate::check))
        .layer(from_fn(envelope::wrap))
}

/// Some clients encode the colon before a verb; a route is found by the plain one.
async fn with_plain_colons(mut request: Request) -> Request {
    let uri = request.uri();
    if let Some(path) = uri.path_and_query() {
        let plain = path.path().replace("%3A", ":").replace("%3a", ":");
        let plain = match path.query() {
            Some(query) => format!("{plain}?{query}"),
            None => plain,
        };
        if let Ok(plain) = plain.parse::<Uri>() {
            *request.uri_mut() = plain;
        }
    }
    request
}
