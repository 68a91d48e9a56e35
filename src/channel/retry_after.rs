//! Parses `Retry-After`: seconds or a date (KP-3.14).

use std::time::Duration;

use hyper::HeaderMap;
use hyper::header::{DATE, HeaderName, RETRY_AFTER};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

use super::backoff::MAX_RETRY_AFTER;

/// Returns the pause that a service requests, at most 10 min. Returns `None` if the header is missing or cannot be
/// parsed. A date is compared with the answer's own `Date`, because a guest's clock may be years wrong at boot. Only
/// without a `Date` is it compared with the guest's clock.
pub(super) fn parse_retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let pause = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // A number with too many digits for the type is still a number, and a large one.
        Duration::from_secs(text.parse().unwrap_or(u64::MAX))
    } else {
        let until = OffsetDateTime::parse(text, &Rfc2822).ok()?;
        let now = parse_date_header(headers, DATE).unwrap_or_else(OffsetDateTime::now_utc);
        // A date in the past requests no pause.
        Duration::try_from(until - now).unwrap_or(Duration::ZERO)
    };
    Some(pause.min(MAX_RETRY_AFTER))
}

fn parse_date_header(headers: &HeaderMap, name: HeaderName) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(headers.get(name)?.to_str().ok()?, &Rfc2822).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parsed_seconds(retry: &str, date: Option<&str>) -> Option<u64> {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, retry.parse().unwrap());
        if let Some(date) = date {
            headers.insert(DATE, date.parse().unwrap());
        }
        parse_retry_after(&headers).map(|pause| pause.as_secs())
    }

    /// KP-3.14.
    #[test]
    fn retry_after_seconds_are_parsed_and_capped() {
        assert_eq!(parsed_seconds("0", None), Some(0));
        assert_eq!(parsed_seconds(" 120 ", None), Some(120));
        assert_eq!(parsed_seconds("601", None), Some(600));
        assert_eq!(parsed_seconds("99999999999999999999999999", None), Some(600));
    }

    /// KP-3.14.
    #[test]
    fn retry_after_date_is_relative_to_date_header() {
        let date = Some("Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(parsed_seconds("Sun, 06 Nov 1994 08:50:07 GMT", date), Some(30));
        assert_eq!(parsed_seconds("Sun, 06 Nov 1994 08:49:07 GMT", date), Some(0));
        assert_eq!(parsed_seconds("Mon, 06 Nov 1995 08:49:37 GMT", date), Some(600));
        assert_eq!(parsed_seconds("Sun, 06 Nov 1994 08:49:37 GMT", None), Some(0));
        assert_eq!(parsed_seconds("Wed, 01 Jan 2200 00:00:00 GMT", None), Some(600));
    }

    #[test]
    fn retry_after_invalid_text_is_ignored() {
        for text in ["", "-1", "+1", "1.5", "soon", "Sun, 06 Nov"] {
            assert_eq!(parsed_seconds(text, None), None, "{text:?}");
        }
        assert_eq!(parse_retry_after(&HeaderMap::new()), None);
    }
}
