//! `/metrics`: the server's counters for Prometheus. The response has no envelope, and the request needs no
//! signature.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use prometheus::TEXT_FORMAT;
use tracing::error;

use crate::platform::AppState;

/// Answers `GET /metrics`.
pub async fn get_metrics(State(platform): State<AppState>) -> Response {
    match platform.metrics.encode_text() {
        Ok(text) => ([(header::CONTENT_TYPE, TEXT_FORMAT)], text).into_response(),
        Err(error) => {
            error!("{error}");
            (StatusCode::INTERNAL_SERVER_ERROR, "the numbers cannot be written\n").into_response()
        }
    }
}
