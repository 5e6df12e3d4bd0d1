//! When a request to S3 is made again, and after how long: the standard mode of the AWS SDKs.
//!
//! ```text
//!   attempt ──fault──▶ tokens left? attempts left? time left? ──▶ wait random(0..=1) × min(20 s, base × 2^n) ──▶ attempt
//!                        │ no
//!                        ▼
//!                      give up
//! ```
//! Source: AWS SDKs and Tools Reference Guide, "Retry behavior"; the numbers are those of the SDK for Java 2. Full
//! jitter is from Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog 2015.
//!
//! Pure: time and randomness are arguments.

use std::time::Duration;

/// Attempts for one operation, the first included.
pub const ATTEMPTS_MAX: u32 = 3;
/// The longest wait before a further attempt, unless the store asks for more.
pub const WAIT_MAX: Duration = Duration::from_secs(20);
/// The first wait after a fault is a random part of this; each further one doubles it.
pub const WAIT_BASE: Duration = Duration::from_millis(100);
/// The same where the store says that it is asked too often.
pub const WAIT_BASE_THROTTLED: Duration = Duration::from_secs(1);
/// A store may lengthen a wait (`Retry-After`) by at most this.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(5);
/// Tokens in a full bucket of a whole process.
pub const QUOTA_TOKENS: u32 = 500;
/// What a further attempt takes from the bucket.
pub const RETRY_TOKENS: u32 = 5;
/// What a further attempt after a timeout takes: it has cost the most, and is the likeliest to be in vain.
pub const RETRY_TOKENS_TIMEOUT: u32 = 10;
/// What a success at the first attempt puts back.
pub const SUCCESS_TOKENS: u32 = 1;

/// The least that a share of the bucket may be: the further attempts of one operation.
const SHARE_TOKENS_MIN: u32 = RETRY_TOKENS_TIMEOUT * (ATTEMPTS_MAX - 1);

/// What went wrong with an attempt, as far as the wait is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A connection that failed, or one of the statuses 408, 409, 500, 502, 503, 504.
    Transient,
    /// No answer in time.
    Timeout,
    /// The store asks for fewer requests: 429, or 503 with such a code.
    Throttled,
}

/// The right to further attempts: a bucket of tokens that faults empty and successes fill, so that a store in trouble
/// is not asked three times as often as one in health.
///
/// Each helper thread has its own share, and none is locked or shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quota {
    tokens: u32,
    tokens_max: u32,
}

/// The attempts of one operation.
#[derive(Debug, Default)]
pub struct Attempts {
    failed_count: u32,
    /// What the last further attempt took; a success gives it back.
    lent_tokens: u32,
}

/// What to do after a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Try again after this.
    Wait(Duration),
    /// No attempts, tokens or time are left.
    GiveUp,
}

impl Quota {
    /// A full share of the process's bucket, for one of `shares` threads.
    ///
    /// # Panics
    /// When `shares` is 0.
    #[must_use]
    pub fn share(shares: u32) -> Self {
        let tokens = (QUOTA_TOKENS / shares).max(SHARE_TOKENS_MIN);
        Self { tokens, tokens_max: tokens }
    }

    fn put_back(&mut self, tokens: u32) {
        self.tokens = self.tokens.saturating_add(tokens).min(self.tokens_max);
    }
}

impl Attempts {
    /// Decides after a failed attempt.
    ///
    /// `asked_wait` is what the store wishes (`Retry-After`), `left` the time that the operation has left, and `random`
    /// is from the whole range of `u32`.
    pub fn after_fault(
        &mut self,
        quota: &mut Quota,
        fault: Fault,
        asked_wait: Option<Duration>,
        left: Duration,
        random: u32,
    ) -> Next {
        self.failed_count += 1;
        let cost = match fault {
            Fault::Timeout => RETRY_TOKENS_TIMEOUT,
            Fault::Transient | Fault::Throttled => RETRY_TOKENS,
        };
        let own = longest_wait(fault, self.failed_count).mul_f64(f64::from(random) / f64::from(u32::MAX));
        let wait = asked_wait.map_or(own, |asked| asked.clamp(own, own + RETRY_AFTER_MAX));

        if self.failed_count >= ATTEMPTS_MAX || quota.tokens < cost || wait >= left {
            return Next::GiveUp;
        }
        quota.tokens -= cost;
        self.lent_tokens = cost;
        Next::Wait(wait)
    }

    /// The store has answered: the tokens of the last further attempt go back, or one for none.
    pub fn succeeded(&self, quota: &mut Quota) {
        quota.put_back(self.lent_tokens.max(SUCCESS_TOKENS));
    }

    /// Attempts that have failed so far.
    #[must_use]
    pub fn failed_count(&self) -> u32 {
        self.failed_count
    }
}

/// The wait after the `failed_count`-th failed attempt (from 1), before chance makes it shorter.
fn longest_wait(fault: Fault, failed_count: u32) -> Duration {
    let base = match fault {
        Fault::Throttled => WAIT_BASE_THROTTLED,
        Fault::Transient | Fault::Timeout => WAIT_BASE,
    };
    base.saturating_mul(1 << (failed_count - 1).min(16)).min(WAIT_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(600);

    fn next(attempts: &mut Attempts, quota: &mut Quota, fault: Fault) -> Next {
        attempts.after_fault(quota, fault, None, LONG, u32::MAX)
    }

    #[test]
    fn the_third_failed_attempt_is_the_last() {
        let (mut attempts, mut quota) = (Attempts::default(), Quota::share(1));
        assert_eq!(next(&mut attempts, &mut quota, Fault::Transient), Next::Wait(WAIT_BASE));
        assert_eq!(next(&mut attempts, &mut quota, Fault::Transient), Next::Wait(WAIT_BASE * 2));
        assert_eq!(next(&mut attempts, &mut quota, Fault::Transient), Next::GiveUp);
        assert_eq!(attempts.failed_count(), 3);
    }

    #[test]
    fn a_wait_is_a_random_part_of_the_whole() {
        for (random, wait) in [(0, Duration::ZERO), (u32::MAX, WAIT_BASE)] {
            let next = Attempts::default().after_fault(&mut Quota::share(1), Fault::Transient, None, LONG, random);
            assert_eq!(next, Next::Wait(wait));
        }
    }

    #[test]
    fn a_throttled_request_waits_longer() {
        let next = next(&mut Attempts::default(), &mut Quota::share(1), Fault::Throttled);
        assert_eq!(next, Next::Wait(WAIT_BASE_THROTTLED));
    }

    #[test]
    fn no_wait_is_longer_than_the_cap() {
        assert_eq!(longest_wait(Fault::Throttled, 4), Duration::from_secs(8));
        assert_eq!(longest_wait(Fault::Throttled, 6), WAIT_MAX);
        assert_eq!(longest_wait(Fault::Transient, u32::MAX), WAIT_MAX);
    }

    #[test]
    fn a_store_that_asks_for_a_wait_gets_it_within_bounds() {
        let cases = [(0, WAIT_BASE), (3_000, Duration::from_secs(3)), (3_600_000, WAIT_BASE + RETRY_AFTER_MAX)];
        for (asked_ms, wait) in cases {
            let asked = Some(Duration::from_millis(asked_ms));
            let next = Attempts::default().after_fault(&mut Quota::share(1), Fault::Transient, asked, LONG, u32::MAX);
            assert_eq!(next, Next::Wait(wait), "asked for {asked_ms} ms");
        }
    }

    #[test]
    fn a_wait_that_outlasts_the_operation_is_not_begun() {
        let left = WAIT_BASE;
        let next = Attempts::default().after_fault(&mut Quota::share(1), Fault::Transient, None, left, u32::MAX);
        assert_eq!(next, Next::GiveUp);
    }

    #[test]
    fn an_outage_empties_the_bucket_and_successes_fill_it_again() {
        let mut quota = Quota::share(1);
        let mut further_attempts = 0;
        for _ in 0..1000 {
            let mut attempts = Attempts::default();
            while let Next::Wait(_) = next(&mut attempts, &mut quota, Fault::Transient) {
                further_attempts += 1;
            }
        }
        assert_eq!(further_attempts, QUOTA_TOKENS / RETRY_TOKENS);

        for _ in 0..RETRY_TOKENS {
            assert_eq!(next(&mut Attempts::default(), &mut quota, Fault::Transient), Next::GiveUp);
            Attempts::default().succeeded(&mut quota);
        }
        let mut attempts = Attempts::default();
        assert!(matches!(next(&mut attempts, &mut quota, Fault::Transient), Next::Wait(_)));
        attempts.succeeded(&mut quota);
        assert_eq!(quota.tokens, RETRY_TOKENS, "a further attempt that succeeds costs nothing");
    }

    #[test]
    fn the_bucket_never_overflows_and_every_share_allows_one_whole_operation() {
        for shares in [1, 8, 64, 500, 10_000] {
            let mut quota = Quota::share(shares);
            let full = quota.clone();
            Attempts::default().succeeded(&mut quota);
            assert_eq!(quota, full);
            let mut attempts = Attempts::default();
            assert!(matches!(next(&mut attempts, &mut quota, Fault::Timeout), Next::Wait(_)));
            assert!(matches!(next(&mut attempts, &mut quota, Fault::Timeout), Next::Wait(_)));
        }
    }
}
