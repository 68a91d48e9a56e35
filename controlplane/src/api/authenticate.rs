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

use super::MAX_BODY;
use super::body::too_long;
use super::error::ApiError;
use super::signature::{Authorization, SignedRequest, to_hex};
use crate::platform::Platform;

/// How far a client's clock may be off.
const SKEW: Duration = Duration::minutes(15);

/// Why a request is not taken for one of an access key's holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unauthentic {
    /// It is not signed.
    Unsigned,
    /// Its `Authorization` is no signature of a kind that is known.
    Garbled,
    /// `x-jdcloud-date` is missing, no time, or on another day than the signature.
    Undated,
    /// It was signed over 15 minutes ago, or will be.
    Stale,
    /// There is no such access key, or another secret or request was signed.
    Mismatch,
    /// The same signature came before.
    Replayed,
}

impl fmt::Display for Unauthentic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unsigned => "lack of header authorization[gw]",
            Self::Garbled => "header authorization is no JDCLOUD2-HMAC-SHA256 or JDCLOUD3-HMAC-SHA256 signature",
            Self::Undated => {
                "header x-jdcloud-date is missing, is not like 20261128T173741Z, or is not of the credential's day"
            }
            Self::Stale => "the request was signed over 15 minutes ago or ahead: check the clock, and sign it again",
            Self::Mismatch => "the access key is unknown, or the signature does not match the request",
            Self::Replayed => "this signature was used before: sign each request, in a second of its own",
        })
    }
}

/// Lets a request pass that is signed as it must be. Its body is read for that.
pub async fn check(State(platform): State<Platform>, request: Request, next: Next) -> Response {
    match authentic(&platform, request).await {
        Ok(request) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

async fn authentic(platform: &Platform, request: Request) -> Result<Request, ApiError> {
    let Some(access_keys) = &platform.access_keys else { return Ok(request) };
    let (parts, body) = request.into_parts();
    let text = |name| parts.headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let authorization = text(AUTHORIZATION.as_str()).ok_or(Unauthentic::Unsigned)?;
    let authorization = Authorization::parse(authorization).ok_or(Unauthentic::Garbled)?;
    let date = text("x-jdcloud-date").unwrap_or_default();
    let signed_at =
        instant(date).filter(|_| date.get(..8) == Some(authorization.date)).ok_or(Unauthentic::Undated)?;
    // Before the clock is looked at: a sender may take his time with it.
    let body = to_bytes(body, MAX_BODY).await.map_err(|_| too_long())?;
    if (OffsetDateTime::now_utc() - signed_at).abs() > SKEW {
        return Err(Unauthentic::Stale.into());
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
    if !authorization.signs(&signed, secret.unwrap_or_default()) || secret.is_none() {
        return Err(Unauthentic::Mismatch.into());
    }
    // Stale from one skew on, and remembered for another: servers' clocks may be apart.
    if !platform.store.is_first(&to_hex(&authorization.signature), signed_at + SKEW * 2).await? {
        return Err(Unauthentic::Replayed.into());
    }
    info!(access_key = authorization.access_key_id, "signed");
    Ok(Request::from_parts(parts, Body::from(body)))
}

/// The time that is written like `20261128T173741Z`.
fn instant(text: &str) -> Option<OffsetDateTime> {
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
    fn times_are_written_one_way() {
        assert_eq!(instant("19700101T000001Z"), OffsetDateTime::from_unix_timestamp(1).ok());
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
            assert_eq!(instant(text), None, "{text}");
        }
    }
}
