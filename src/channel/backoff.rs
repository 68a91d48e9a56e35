//! How long to stay away after a failure (KP-3.13 to KP-3.15). Pure: the caller brings the random number.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// The longest cap of a delay.
const CAP_MAX: Duration = Duration::from_secs(60);

/// The spread of what everybody was told, or saw, at one moment.
const SPREAD: Duration = Duration::from_secs(30);

/// How long a long poll must have been held for its end to look like everyone's.
pub const HELD: Duration = Duration::from_secs(5);

/// The most that a `Retry-After` counts.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(600);

/// What the failure itself says about the delay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hint {
    /// Nothing.
    None,
    /// The service named a pause.
    RetryAfter(Duration),
    /// A long poll that had been held over [`HELD`] was cut without an answer: it is likely that the service restarts
    /// under everyone at once.
    Cut,
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
    pub fn failure(&mut self, hint: Hint, random: u64) -> Duration {
        let first = self.is_new();
        let cap = Duration::from_secs(1u64.checked_shl(self.failures).unwrap_or(u64::MAX)).min(CAP_MAX);
        self.failures = self.failures.saturating_add(1).min(u64::BITS - 1);
        match hint {
            Hint::Cut if first => uniform(SPREAD, random),
            Hint::Busy => uniform(CAP_MAX, random),
            Hint::RetryAfter(asked) => {
                let asked = asked.min(RETRY_AFTER_MAX);
                asked + uniform(asked.min(SPREAD).max(cap.saturating_sub(asked)), random)
            }
            Hint::None | Hint::Cut => uniform(cap, random),
        }
    }

    /// Whether nothing has failed since the last success.
    pub fn is_new(&self) -> bool {
        self.failures == 0
    }

    /// A success: the next failure counts as the first.
    pub fn success(&mut self) {
        self.failures = 0;
    }
}

/// A duration in 0 to `limit`, in proportion to `random`.
pub fn uniform(limit: Duration, random: u64) -> Duration {
    let nanos = (limit.as_nanos() * u128::from(random)) >> u64::BITS;
    // The product is below `limit`, which is minutes at most.
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// A whole number of seconds from 1 to `most`, each as often.
pub fn whole_seconds(most: Duration, random: u64) -> u64 {
    1 + uniform(most, random).as_secs()
}

/// A number nobody can guess from another guest's: the standard library keys its hashers from the kernel's
/// generator, which is all the randomness a delay needs, without a crate or a generator of our own.
pub fn random() -> u64 {
    RandomState::new().hash_one(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// KP-3.13.
    #[test]
    fn caps_double_up_to_a_minute_and_a_success_resets_them() {
        let mut backoff = Backoff::default();
        for cap in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
            let delay = backoff.failure(Hint::None, u64::MAX);
            assert!(delay <= cap * SECOND && delay > (cap * SECOND).mul_f64(0.999), "{cap}: {delay:?}");
        }
        for _ in 0..1000 {
            backoff.failure(Hint::None, 0);
        }
        assert!(backoff.failure(Hint::None, u64::MAX) > 59 * SECOND);
        backoff.success();
        assert!(backoff.failure(Hint::None, u64::MAX) <= SECOND);
    }

    /// KP-3.15.
    #[test]
    fn only_the_first_retry_after_a_cut_long_poll_is_spread() {
        let mut backoff = Backoff::default();
        assert!(backoff.failure(Hint::Cut, u64::MAX) > 29 * SECOND);
        assert!(backoff.failure(Hint::Cut, u64::MAX) <= 2 * SECOND);
        backoff.success();
        assert!(backoff.failure(Hint::None, u64::MAX) <= SECOND);
    }

    #[test]
    fn a_busy_service_is_asked_once_a_minute_until_it_does_its_work() {
        let mut backoff = Backoff::default();
        for _ in 0..3 {
            assert!(backoff.failure(Hint::Busy, u64::MAX) > 59 * SECOND);
        }
        // Where it then is gone, the steps are those after as many failures.
        let after = backoff.failure(Hint::None, u64::MAX);
        assert!(after <= 8 * SECOND && after > 7 * SECOND);
    }

    /// KP-3.14.
    #[test]
    fn the_service_may_ask_for_ten_minutes_at_most_and_is_not_asked_by_all_at_once() {
        for (asked, least, most) in [(3, 3, 6), (30, 30, 60), (600, 600, 630), (86_400, 600, 630), (0, 0, 1)]
        {
            let after = |random| Backoff::default().failure(Hint::RetryAfter(asked * SECOND), random);
            assert_eq!(after(0), least * SECOND);
            assert!(after(u64::MAX) <= most * SECOND && after(u64::MAX) > (most * SECOND).mul_f64(0.999));
        }
        // What it asks for does not make the back-off shorter.
        let mut backoff = Backoff::default();
        for _ in 0..6 {
            backoff.failure(Hint::None, 0);
        }
        assert!(backoff.failure(Hint::RetryAfter(3 * SECOND), u64::MAX) > 59 * SECOND);
    }

    #[test]
    fn few_tries_in_twenty_seconds_and_guests_that_do_not_march_in_step() {
        let mut over_ten = 0;
        let mut firsts = Vec::new();
        for _ in 0..2000 {
            let mut backoff = Backoff::default();
            let mut elapsed = Duration::ZERO;
            let mut delays = 0;
            while elapsed < 20 * SECOND {
                let delay = backoff.failure(Hint::None, random());
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
        fn a_delay_is_never_longer_than_its_cap(failures in 0u32..100, numbers: (u64, u64)) {
            let mut backoff = Backoff::default();
            for _ in 0..failures {
                backoff.failure(Hint::None, numbers.0);
            }
            let cap = if failures < 6 { SECOND * (1 << failures) } else { CAP_MAX };
            prop_assert!(backoff.failure(Hint::None, numbers.1) <= cap);
        }
    }
}
