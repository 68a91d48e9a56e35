//! Time in milliseconds since 1970, as in the sequence of a command and in a store.

use time::OffsetDateTime;

/// Converts a time to milliseconds since 1970. A time before 1970 becomes 0.
pub fn to_unix_millis(time: OffsetDateTime) -> u64 {
    u64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or(0)
}

/// The current time, in milliseconds since 1970.
pub fn now_millis() -> u64 {
    to_unix_millis(OffsetDateTime::now_utc())
}
