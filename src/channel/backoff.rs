//! How long to stay away after a failure (KP-3.13 to KP-3.15). Pure: the caller brings the random number.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// The longest cap of a delay.
const MAX_BACKOFF: Duration = Duration::from_secs(60);

/// The spread of what everybody was told, or saw, at one moment.
const RETRY_SPREAD: Duration = Duration::from_secs(30);

/// How long a long poll must have been held for its end to look like everyone's.
pub const LONG_POLL_THRESHOLD: Duration = Duration::from_secs(5);

/// The most that a `Retry-After` counts.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(600);

/// What the failure itself says about the delay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryClass {
    /// Nothing.
    Ordinary,
    /// The service named a pause.
    RetryAfter(Duration),
    /// A long poll that had been held over [`LONG_POLL_THRESHOLD`] was cut without an answer: it is likely that the service restarts
    /// under everyone at once.
    Disconnected,
    /// A service that holds long polls answers that it cannot do its work, or is away for longer than one try. A fleet that
    /// asks again within seconds doubles what it asks of the one, and waits as a crowd for the other.
    Busy,
}

/// Consecutive failures, and the delay that follows from them.
#[derive(Debug, Clone, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The delay after one more failure: uniform in 0 to a cap of 1, 2, 4 … 60 s; to 60 s where the service is busy; to 30 s
    /// where the first failure cuts a long poll. Where the service asked for a pause it is that pause, 10 min at most, and
    /// as long again at the most, but not over half a minute more: it asked others at the same time.
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

    /// Whether nothing has failed since the last success.
    pub fn has_no_failures(&self) -> bool {
        self.failures == 0
    }

    /// A success: the next failure counts as the first.
    pub fn record_success(&mut self) {
        self.failures = 0;
    }
}

/// A duration in 0 to `limit`, in proportion to `random`.
pub fn uniform_duration(limit: Duration, random: u64) -> Duration {
    let nanos = (limit.as_nanos() * u128::from(random)) >> u64::BITS;
    // The product is below `limit`, which is minutes at most.
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// A whole number of seconds from 1 to `most`, each as often.
pub fn uniform_seconds(most: Duration, random: u64) -> u64 {
    1 + uniform_duration(most, random).as_secs()
}

/// A number nobody can guess from another guest's: the standard library keys its hashers from the kernel's
/// generator, which is all the randomness a delay needs, without a crate or a generator of our own.
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
        // Where it then is gone, the steps are those after as many failures.
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
        // What it asks for does not make the back-off shorter.
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
        // By chance at most one guest in 150,000 has more.
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
