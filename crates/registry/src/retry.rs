//! When and how often something is tried again.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use reqwest::StatusCode;
use reqwest::header::{HeaderMap, RETRY_AFTER};

use crate::Settings;
use crate::time;

/// The first pause; each further one may be twice as long.
const PAUSE: Duration = Duration::from_millis(200);
/// The longest pause that a registry can ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);
/// Attempts beyond the first that a host is worth when it never answers, and how fast they grow back.
const BUDGET: f64 = 20.0;
const BUDGET_PER_SECOND: f64 = 0.2;

/// Locks even if another thread panicked meanwhile: what is guarded here has no broken states.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Attempts that all operations on a host have together, so that a dead one is not hammered by each of them.
#[derive(Debug)]
pub(crate) struct Budget(Mutex<(f64, Instant)>);

impl Budget {
    pub(crate) fn new() -> Self {
        Self(Mutex::new((BUDGET, Instant::now())))
    }

    /// Takes an attempt; `false` if none is left.
    pub(crate) fn take(&self) -> bool {
        let mut state = lock(&self.0);
        let now = Instant::now();
        let grown = state.0 + now.duration_since(state.1).as_secs_f64() * BUDGET_PER_SECOND;
        *state = (grown.min(BUDGET), now);
        let left = state.0 >= 1.0;
        if left {
            state.0 -= 1.0;
        }
        left
    }

    /// The host answered: one attempt more.
    pub(crate) fn refund(&self) {
        let mut state = lock(&self.0);
        state.0 = (state.0 + 1.0).min(BUDGET);
    }
}

/// Pauses with full jitter.
#[derive(Debug)]
pub(crate) struct Backoff {
    retries: u32,
    longest: Duration,
    impatient: bool,
    random: Mutex<fastrand::Rng>,
}

impl Backoff {
    pub(crate) fn new(settings: &Settings) -> Self {
        let random = settings
            .seed
            .map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed);
        Self {
            retries: settings.retries,
            longest: settings.retry_delay,
            impatient: settings.impatient,
            random: Mutex::new(random),
        }
    }

    /// The pause before attempt `attempt` (counted from 1), or `None` if there is to be none.
    pub(crate) fn pause(&self, attempt: u32, asked: Option<Duration>) -> Option<Duration> {
        if attempt > self.retries || (self.impatient && asked.is_some()) {
            return None;
        }
        let most = PAUSE
            .saturating_mul(1 << (attempt - 1).min(16))
            .min(self.longest);
        let jitter = most.mul_f64(lock(&self.random).f64());
        // What the registry asks for is waited out, and then some, so that not all come back at once.
        Some(match asked {
            Some(asked) => asked.min(RETRY_AFTER_MAX) + jitter.min(PAUSE),
            None => jitter,
        })
    }
}

/// Whether a status may pass by itself.
pub(crate) fn may_pass(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 425 | 429 | 500 | 502..=504 | 506..=599)
}

/// The pause that a registry asks for.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => time::parse_http(text)?
            .duration_since(SystemTime::now())
            .ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backoff(seed: u64) -> Backoff {
        Backoff::new(&Settings {
            retries: 12,
            retry_delay: Duration::from_secs(2),
            seed: Some(seed),
            ..Settings::default()
        })
    }

    #[test]
    fn pauses_grow_are_capped_and_repeat_with_the_seed() {
        let pauses = |seed| -> Vec<_> {
            let backoff = backoff(seed);
            (1..=12).map_while(|n| backoff.pause(n, None)).collect()
        };
        let first = pauses(7);
        assert_eq!(first.len(), 12);
        assert_eq!(first, pauses(7));
        assert_ne!(first, pauses(8));
        for (n, pause) in first.iter().enumerate() {
            let most = PAUSE * (1 << n.min(10));
            assert!(*pause <= most.min(Duration::from_secs(2)), "{n}: {pause:?}");
        }
        assert!(first.iter().any(|pause| *pause > PAUSE));
        assert_eq!(backoff(1).pause(13, None), None);
    }

    #[test]
    fn what_the_registry_asks_for_is_a_minimum_up_to_a_minute() {
        let pause = backoff(1).pause(1, Some(Duration::from_secs(7))).unwrap();
        assert!((7.0..7.3).contains(&pause.as_secs_f64()), "{pause:?}");
        let pause = backoff(1).pause(1, Some(Duration::from_secs(3600)));
        assert!(pause.unwrap() < Duration::from_secs(61));
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, "12".parse().unwrap());
        assert_eq!(retry_after(&headers), Some(Duration::from_secs(12)));
        headers.insert(
            RETRY_AFTER,
            "Fri, 31 Dec 9999 23:59:59 GMT".parse().unwrap(),
        );
        assert!(retry_after(&headers).unwrap() > Duration::from_secs(1 << 30));
        headers.insert(RETRY_AFTER, "soon".parse().unwrap());
        assert_eq!(retry_after(&headers), None);
    }

    #[test]
    fn a_host_that_never_answers_is_tried_a_bounded_number_of_times() {
        let budget = Budget::new();
        let taken = (0..100).filter(|_| budget.take()).count();
        assert_eq!(taken, BUDGET as usize);
        budget.refund();
        assert!(budget.take() && !budget.take());
    }
}
