//! With `--access-keys` every request must be signed: by whom, when, and only once.

use std::fmt;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};
use tracing::info;

use super::MAX_API_BODY_BYTES;
use super::body::body_too_long;
use super::error::ApiError;
use super::signature::{Authorization, SignedRequest, to_hex};
use crate::platform::AppState;

/// How far a client's clock may be off.
const MAX_CLOCK_SKEW: Duration = Duration::minutes(15);

/// Why a request is not taken for one of an access key's holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthError {
    /// It is not signed.
    Unsigned,
    /// Its `Authorization` is no signature of a kind that is known.
    MalformedHeader,
    /// `x-jdcloud-date` is missing, no time, or on another day than the signature.
    InvalidDate,
    /// It was signed over 15 minutes ago, or will be.
    Stale,
    /// There is no such access key, or another secret or request was signed.
    SignatureMismatch,
    /// The same signature came before.
    Replayed,
}

impl fmt::Display for AuthError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unsigned => "lack of header authorization[gw]",
            Self::MalformedHeader => "header authorization is no JDCLOUD2-HMAC-SHA256 or JDCLOUD3-HMAC-SHA256 signature",
            Self::InvalidDate => {
                "header x-jdcloud-date is missing, is not like 20261128T173741Z, or is not of the credential's day"
            }
            Self::Stale => "the request was signed over 15 minutes ago or ahead: check the clock, and sign it again",
            Self::SignatureMismatch => "the access key is unknown, or the signature does not match the request",
            Self::Replayed => "this signature was used before: sign each request, in a second of its own",
        })
    }
}

/// Lets a request pass that is signed as it must be. Its body is read for that.
pub async fn require_signature(State(platform): State<AppState>, request: Request, next: Next) -> Response {
    match authenticate_request(&platform, request).await {
        Ok(request) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

async fn authenticate_request(platform: &AppState, request: Request) -> Result<Request, ApiError> {
    let Some(access_keys) = &platform.access_keys else { return Ok(request) };
    let (parts, body) = request.into_parts();
    let text = |name| parts.headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let authorization = text(AUTHORIZATION.as_str()).ok_or(AuthError::Unsigned)?;
    let authorization = Authorization::parse(authorization).ok_or(AuthError::MalformedHeader)?;
    let date = text("x-jdcloud-date").unwrap_or_default();
    let signed_at = parse_iso8601_basic(date)
        .filter(|_| date.get(..8) == Some(authorization.date))
        .ok_or(AuthError::InvalidDate)?;
    // Before the clock is looked at: a sender may take his time with it.
    let body = to_bytes(body, MAX_API_BODY_BYTES).await.map_err(|_| body_too_long())?;
    if (OffsetDateTime::now_utc() - signed_at).abs() > MAX_CLOCK_SKEW {
        return Err(AuthError::Stale.into());
    }
    let signed = SignedRequest {
        method: parts.method.as_str(),
        path: parts.uri.path(),
        query: parts.uri.query().unwrap_or_default(),
        headers: &parts.headers,
        date,
        body: &body,
    };
    // Of an unknown key as long as of a known one.
    let secret = access_keys.secret(authorization.access_key_id);
    if !authorization.verify(&signed, secret.unwrap_or_default()) || secret.is_none() {
        return Err(AuthError::SignatureMismatch.into());
    }
    // Stale from one skew on, and remembered for another: servers' clocks may be apart.
    if !platform
        .store
        .record_signature(&to_hex(&authorization.signature), signed_at + MAX_CLOCK_SKEW * 2)
        .await?
    {
        return Err(AuthError::Replayed.into());
    }
    info!(access_key = authorization.access_key_id, "signed");
    Ok(Request::from_parts(parts, Body::from(body)))
}

/// The time that is written like `20261128T173741Z`.
fn parse_iso8601_basic(text: &str) -> Option<OffsetDateTime> {
    let digits = |range| text.get(range).filter(|part: &&str| part.bytes().all(|b| b.is_ascii_digit()));
    let (year, month, day) = (digits(0..4)?, digits(4..6)?, digits(6..8)?);
    let (hour, minute, second) = (digits(9..11)?, digits(11..13)?, digits(13..15)?);
    let written = format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z");
    OffsetDateTime::parse(&written, &Rfc3339)
        .ok()
        .filter(|_| text.get(8..9) == Some("T") && text.get(15..) == Some("Z"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iso8601_basic_is_the_only_accepted_date_format() {
        assert_eq!(parse_iso8601_basic("19700101T000001Z"), OffsetDateTime::from_unix_timestamp(1).ok());
        for text in [
            "",
            "19700101",
            "19700101T000001",
            "1970-01-01T00:00:01Z",
            "19700101T000001Zx",
            "19700101 000001Z",
            "+9700101T000001Z",
            "19701301T000001Z",
            "１９７０0101T000001Z",
        ] {
            assert_eq!(parse_iso8601_basic(text), None, "{text}");
        }
    }
}
