//! The platform's API (KP-9.2): the routes and their middleware.

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::handler::Handler;
use axum::http::Uri;
use axum::middleware::{from_fn, from_fn_with_state, map_request};
use axum::routing::{delete, get, post};

use crate::platform::AppState;

pub mod authenticate;
pub mod bind;
pub mod body;
pub mod envelope;
pub mod error;
pub mod instances;
pub mod keypairs;
pub mod list_query;
pub mod metrics;
pub mod requests;
pub mod signature;

/// The largest accepted request body. The ids of tens of thousands of instances fit into it.
const MAX_API_BODY_BYTES: usize = 1024 * 1024;

/// The API's routes. In a request, a verb follows a colon in the last segment, as in `my-test:attach`.
/// `split_action_segment` moves the verb into a segment of its own, so that each resource has its own methods.
pub fn router(platform: AppState) -> Router {
    let routes = Router::new()
        .route("/v1/regions/{region}/keypairs", get(keypairs::list_key_pairs).post(keypairs::create_key_pair))
        .route("/v1/regions/{region}/keypairs/!import", post(keypairs::import_key_pair))
        .route("/v1/regions/{region}/keypairs/{name}", delete(keypairs::delete_key_pair))
        .route("/v1/regions/{region}/keypairs/{name}/!attach", post(bind::attach))
        .route("/v1/regions/{region}/keypairs/{name}/!detach", post(bind::detach))
        .route("/v1/regions/{region}/instances", get(instances::list_instances))
        .route("/v1/regions/{region}/instances/{id}", get(instances::get_instance))
        .route("/v1/regions/{region}/instances/{id}/!startInstance", post(instances::start_instance))
        .route("/v1/regions/{region}/instances/{id}/!stopInstance", post(instances::stop_instance))
        .route("/v1/regions/{region}/instances/{id}/!rebootInstance", post(instances::reboot_instance))
        .route("/v1/regions/{region}/instances/{id}/!modifyInstancePassword", post(instances::reset_password))
        .route("/v1/regions/{region}/requests/{request}", get(requests::get_request))
        .fallback(error::path_not_found)
        .method_not_allowed_fallback(error::method_not_allowed)
        .layer(DefaultBodyLimit::max(MAX_API_BODY_BYTES))
        .with_state(platform.clone());
    // These layers wrap the whole router, so that they run before the routing and see every response. The last layer
    // is the outermost.
    let api = Router::new()
        .fallback_service(routes)
        .layer(map_request(split_action_segment))
        .layer(from_fn_with_state(platform.clone(), authenticate::require_signature))
        .layer(from_fn(envelope::wrap_in_envelope));
    // `/metrics` is outside of these layers: it has no signature and no envelope. A refused method still gets the
    // envelope.
    let method_not_allowed = error::method_not_allowed.layer(from_fn(envelope::wrap_in_envelope));
    Router::new()
        .route("/metrics", get(metrics::get_metrics).fallback(method_not_allowed))
        .with_state(platform)
        .fallback_service(api)
}

/// Moves the verb after the last colon of the last segment into a segment of its own. Some clients encode the colon.
/// A `!` in the caller's path is encoded first, so that it is not read as a verb.
async fn split_action_segment(mut request: Request) -> Request {
    let uri = request.uri();
    let mut path = uri.path().replace('!', "%21").replace("%3A", ":").replace("%3a", ":");
    if let Some((before, last)) = path.rsplit_once('/')
        && let Some((name, verb)) = last.rsplit_once(':')
    {
        path = format!("{before}/{name}/!{verb}");
    }
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    if let Ok(apart) = (path + &query).parse::<Uri>() {
        *request.uri_mut() = apart;
    }
    request
}
