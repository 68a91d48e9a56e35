//! The platform's API (KP-9.2): paths in, envelopes out.

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::handler::Handler;
use axum::http::Uri;
use axum::middleware::{from_fn, from_fn_with_state, map_request};
use axum::routing::{delete, get, post};

use crate::platform::Platform;

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

/// The most that is read of a request's body: the ids of tens of thousands of instances fit in.
const MAX_BODY: usize = 1024 * 1024;

/// The API's routes. A verb stands behind a colon in the last segment, as in `my-test:attach`; `with_verb_apart` makes
/// a segment of its own of it, so that each resource knows its own methods.
pub fn router(platform: Platform) -> Router {
    let routes = Router::new()
        .route("/v1/regions/{region}/keypairs", get(keypairs::describe).post(keypairs::create))
        .route("/v1/regions/{region}/keypairs/!import", post(keypairs::import))
        .route("/v1/regions/{region}/keypairs/{name}", delete(keypairs::delete))
        .route("/v1/regions/{region}/keypairs/{name}/!attach", post(bind::attach))
        .route("/v1/regions/{region}/keypairs/{name}/!detach", post(bind::detach))
        .route("/v1/regions/{region}/instances", get(instances::list))
        .route("/v1/regions/{region}/instances/{id}", get(instances::one))
        .route("/v1/regions/{region}/instances/{id}/!startInstance", post(instances::start))
        .route("/v1/regions/{region}/instances/{id}/!stopInstance", post(instances::stop))
        .route("/v1/regions/{region}/instances/{id}/!rebootInstance", post(instances::reboot))
        .route("/v1/regions/{region}/instances/{id}/!modifyInstancePassword", post(instances::reset_password))
        .route("/v1/regions/{region}/requests/{request}", get(requests::one))
        .fallback(error::no_such_path)
        .method_not_allowed_fallback(error::no_such_method)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(platform.clone());
    // Around the routes, so that they see what these make of a request; the last one is the outermost.
    let api = Router::new()
        .fallback_service(routes)
        .layer(map_request(with_verb_apart))
        .layer(from_fn_with_state(platform.clone(), authenticate::check))
        .layer(from_fn(envelope::wrap));
    // Beside all that: who scrapes does not sign, and reads no envelope; but what is refused stands in one.
    let no_such_method = error::no_such_method.layer(from_fn(envelope::wrap));
    Router::new()
        .route("/metrics", get(metrics::show).fallback(no_such_method))
        .with_state(platform)
        .fallback_service(api)
}

/// Finds the verb behind the last segment's last colon, which some clients encode. What the caller wrote himself in the
/// form of the result is encoded first, and so is no verb.
async fn with_verb_apart(mut request: Request) -> Request {
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
