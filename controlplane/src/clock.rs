//! Time as a command's sequence and a store count it: milliseconds since 1970.

use time::OffsetDateTime;

/// A time so counted; what was before 1970 is 1970.
pub fn to_unix_millis(time: OffsetDateTime) -> u64 {
    u64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or(0)
}

/// Now.
pub fn now_millis() -> u64 {
    to_unix_millis(OffsetDateTime::now_utc())
}
