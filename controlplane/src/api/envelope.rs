//! The envelope of every response: `requestId`, and `result` or `error` (KP-9.2).

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tracing::info;

use super::error::ApiError;
use crate::ids::RequestId;

/// The result of a handler. [`wrap_in_envelope`] puts it into the envelope.
#[derive(Debug, Clone)]
pub struct Reply(pub Value);

/// The return type of a handler.
pub type HandlerResult = Result<Reply, ApiError>;

#[derive(Clone)]
struct EnvelopeContent(Result<Value, ApiError>);

impl IntoResponse for Reply {
    fn into_response(self) -> Response {
        let mut response = StatusCode::OK.into_response();
        response.extensions_mut().insert(EnvelopeContent(Ok(self.0)));
        response
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.http_status().into_response();
        response.extensions_mut().insert(EnvelopeContent(Err(self)));
        response
    }
}

/// Middleware: gives the request an id, wraps the response in the envelope, and logs one line.
pub async fn wrap_in_envelope(mut request: Request, next: Next) -> Response {
    let id = RequestId::generate();
    request.extensions_mut().insert(id.clone());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut response = next.run(request).await;
    let content = match response.extensions_mut().remove::<EnvelopeContent>() {
        Some(EnvelopeContent(content)) => content,
        None => Err(ApiError::from_http_status(response.status())),
    };
    let body = match content {
        Ok(result) => {
            info!(request = %id, "{method} {path}: OK");
            json!({ "requestId": id.as_str(), "result": result })
        }
        Err(error) => {
            *response.status_mut() = error.http_status();
            info!(request = %id, "{method} {path}: {}", redact_for_log(&error));
            let (code, status) = (error.http_status().as_u16(), error.status());
            json!({ "requestId": id.as_str(), "error": { "code": code, "status": status, "message": error.to_string() } })
        }
    };
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Ok(value) = HeaderValue::from_str(id.as_str()) {
        headers.insert("x-jdcloud-request-id", value);
    }
    *response.body_mut() = Body::from(body.to_string());
    response
}

/// The error text for the log, without the text that the caller sent as a public key.
fn redact_for_log(error: &ApiError) -> String {
    match error {
        ApiError::MalformedPublicKey(_) => "Malformed PublicKey".to_owned(),
        // The message repeats text of the caller. It is quoted, so that it cannot forge a log line.
        other => format!("{} {:?}", other.status(), other.to_string()),
    }
}
