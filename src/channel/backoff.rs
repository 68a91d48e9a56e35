//! Calculates how long the agent waits after a failure (KP-3.13 to KP-3.15). Pure functions: the caller supplies the
//! random number.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// The largest upper limit of a delay.
const MAX_BACKOFF: Duration = Duration::from_secs(60);

/// The range of random delays after an event that many agents see at the same moment.
const RETRY_SPREAD: Duration = Duration::from_secs(30);

/// If a long poll was held for longer than this, its end probably affects all agents at once.
pub const LONG_POLL_THRESHOLD: Duration = Duration::from_secs(5);

/// A longer `Retry-After` counts as this duration.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(600);

/// The class of a failure, which decides the delay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryClass {
    /// The failure says nothing about the delay.
    Ordinary,
    /// The service requested a pause.
    RetryAfter(Duration),
    /// The connection of a long poll ended without an answer after more than [`LONG_POLL_THRESHOLD`]. Probably the
    /// service restarts, which affects all agents at once.
    Disconnected,
    /// A service that holds long polls answers that it cannot work, or is unreachable for longer than one try. If a
    /// fleet retries within seconds, it doubles the load of a service that cannot work. It also waits as a crowd for a
    /// service that is unreachable.
    Busy,
}

/// The number of consecutive failures. The delay depends on it.
#[derive(Debug, Clone, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Records one more failure and returns the delay. The delay is a random duration from 0 to a limit:
    ///
    /// - 1, 2, 4 … 60 s for an ordinary failure;
    /// - 60 s if the service is busy;
    /// - 30 s if the first failure is a dropped long poll.
    ///
    /// If the service requested a pause, the delay is that pause, at most 10 min, plus a random addition. The addition
    /// is at most as long as the pause and at most 30 s, because the service sent other agents the same request. It is
    /// longer only if the back-off's limit is longer.
    /// `random` is uniform over all `u64`.
    pub fn record_failure(&mut self, hint: RetryClass, random: u64) -> Duration {
        let first = self.has_no_failures();
        let cap = Duration::from_secs(1u64.checked_shl(self.failures).unwrap_or(u64::MAX)).min(MAX_BACKOFF);
        self.failures = self.failures.saturating_add(1).min(u64::BITS - 1);
        match hint {
            RetryClass::Disconnected if first => uniform_duration(RETRY_SPREAD, random),
            RetryClass::Busy => uniform_duration(MAX_BACKOFF, random),
            RetryClass::RetryAfter(asked) => {
                let asked = asked.min(MAX_RETRY_AFTER);
                asked + uniform_duration(asked.min(RETRY_SPREAD).max(cap.saturating_sub(asked)), random)
            }
            RetryClass::Ordinary | RetryClass::Disconnected => uniform_duration(cap, random),
        }
    }

    /// Returns true if nothing has failed since the last success.
    pub fn has_no_failures(&self) -> bool {
        self.failures == 0
    }

    /// Records a success. The next failure counts as the first.
    pub fn record_success(&mut self) {
        self.failures = 0;
    }
}

/// Returns a duration from 0 to `limit`, in proportion to `random`.
pub fn uniform_duration(limit: Duration, random: u64) -> Duration {
    let nanos = (limit.as_nanos() * u128::from(random)) >> u64::BITS;
    // The product is below `limit`, which is a few minutes at most.
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// Returns a whole number of seconds from 1 to `most`, each with the same probability.
pub fn uniform_seconds(most: Duration, random: u64) -> u64 {
    1 + uniform_duration(most, random).as_secs()
}

/// Returns a random number that another guest's number does not reveal. The standard library seeds its hashers from
/// the kernel's generator. This is enough for a delay and needs no crate and no generator of its own.
pub fn random_u64() -> u64 {
    RandomState::new().hash_one(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// KP-3.13.
    #[test]
    fn backoff_cap_doubles_to_one_minute_until_success() {
        let mut backoff = Backoff::default();
        for cap in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
            let delay = backoff.record_failure(RetryClass::Ordinary, u64::MAX);
            assert!(delay <= cap * SECOND && delay > (cap * SECOND).mul_f64(0.999), "{cap}: {delay:?}");
        }
        for _ in 0..1000 {
            backoff.record_failure(RetryClass::Ordinary, 0);
        }
        assert!(backoff.record_failure(RetryClass::Ordinary, u64::MAX) > 59 * SECOND);
        backoff.record_success();
        assert!(backoff.record_failure(RetryClass::Ordinary, u64::MAX) <= SECOND);
    }

    /// KP-3.15.
    #[test]
    fn disconnected_long_poll_spreads_first_retry_only() {
        let mut backoff = Backoff::default();
        assert!(backoff.record_failure(RetryClass::Disconnected, u64::MAX) > 29 * SECOND);
        assert!(backoff.record_failure(RetryClass::Disconnected, u64::MAX) <= 2 * SECOND);
        backoff.record_success();
        assert!(backoff.record_failure(RetryClass::Ordinary, u64::MAX) <= SECOND);
    }

    #[test]
    fn busy_service_is_retried_within_a_minute() {
        let mut backoff = Backoff::default();
        for _ in 0..3 {
            assert!(backoff.record_failure(RetryClass::Busy, u64::MAX) > 59 * SECOND);
        }
        // If the service then becomes unreachable, the limit is the one for this number of failures.
        let after = backoff.record_failure(RetryClass::Ordinary, u64::MAX);
        assert!(after <= 8 * SECOND && after > 7 * SECOND);
    }

    /// KP-3.14.
    #[test]
    fn retry_after_is_capped_at_ten_minutes_and_spread() {
        for (asked, least, most) in [(3, 3, 6), (30, 30, 60), (600, 600, 630), (86_400, 600, 630), (0, 0, 1)]
        {
            let after =
                |random| Backoff::default().record_failure(RetryClass::RetryAfter(asked * SECOND), random);
            assert_eq!(after(0), least * SECOND);
            assert!(after(u64::MAX) <= most * SECOND && after(u64::MAX) > (most * SECOND).mul_f64(0.999));
        }
        // A requested pause does not make the back-off shorter.
        let mut backoff = Backoff::default();
        for _ in 0..6 {
            backoff.record_failure(RetryClass::Ordinary, 0);
        }
        assert!(backoff.record_failure(RetryClass::RetryAfter(3 * SECOND), u64::MAX) > 59 * SECOND);
    }

    #[test]
    fn backoff_makes_few_tries_and_spreads_guests() {
        let mut over_ten = 0;
        let mut firsts = Vec::new();
        for _ in 0..2000 {
            let mut backoff = Backoff::default();
            let mut elapsed = Duration::ZERO;
            let mut delays = 0;
            while elapsed < 20 * SECOND {
                let delay = backoff.record_failure(RetryClass::Ordinary, random_u64());
                if delays == 0 {
                    firsts.push(delay);
                }
                elapsed += delay;
                delays += 1;
            }
            over_ten += u32::from(delays > 10);
        }
        // At random, at most one guest in 150,000 makes more tries.
        assert!(over_ten <= 3, "{over_ten}");
        let early = firsts.iter().filter(|delay| **delay < SECOND / 2).count();
        assert!((800..1200).contains(&early), "{early}");
    }

    proptest! {
        #[test]
        fn backoff_delay_never_exceeds_cap(failures in 0u32..100, numbers: (u64, u64)) {
            let mut backoff = Backoff::default();
            for _ in 0..failures {
                backoff.record_failure(RetryClass::Ordinary, numbers.0);
            }
            let cap = if failures < 6 { SECOND * (1 << failures) } else { MAX_BACKOFF };
            prop_assert!(backoff.record_failure(RetryClass::Ordinary, numbers.1) <= cap);
        }
    }
}
