//! With `--access-keys`, every request must carry a valid signature of a known key, be recent, and not be a replay.

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

/// The largest accepted difference between the client's clock and the server's.
const MAX_CLOCK_SKEW: Duration = Duration::minutes(15);

/// Why a request is not accepted as signed by the holder of an access key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthError {
    /// The request has no `Authorization` header.
    Unsigned,
    /// The `Authorization` header is not a signature of a known scheme.
    MalformedHeader,
    /// `x-jdcloud-date` is missing, is not a valid time, or is not on the day of the credential.
    InvalidDate,
    /// The signing time differs from the server's clock by more than 15 minutes, in either direction.
    Stale,
    /// The access key is unknown, or the signature does not match the secret or the request.
    SignatureMismatch,
    /// This signature was used before.
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

/// Middleware: passes a correctly signed request on to `next`. It reads the whole body, because the body is signed
/// too.
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
    // The body is read before the clock is compared, because a sender may send it slowly.
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
    // The signature is computed for an unknown key too, so that both cases take the same time.
    let secret = access_keys.secret(authorization.access_key_id);
    if !authorization.verify(&signed, secret.unwrap_or_default()) || secret.is_none() {
        return Err(AuthError::SignatureMismatch.into());
    }
    // A signature becomes stale after one skew. It is remembered for two, because the clocks of two servers may
    // differ.
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

/// Parses a time of the form `20261128T173741Z`.
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
