//! `/metrics`: the server's numbers, for whoever scrapes them. Neither in an envelope nor signed.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use prometheus::TEXT_FORMAT;
use tracing::error;

use crate::platform::Platform;

/// Answers `GET /metrics`.
pub async fn show(State(platform): State<Platform>) -> Response {
    match platform.metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, TEXT_FORMAT)], text).into_response(),
        Err(error) => {
            error!("{error}");
            (StatusCode::INTERNAL_SERVER_ERROR, "the numbers cannot be written\n").into_response()
        }
    }
}
