//! Telling of damage without flooding the log: a broken blob may be read a thousand times a second.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use rafs_format::Nid;

use crate::error::Fault;

/// Messages per [`PERIOD`] that are let through.
const BURST: u32 = 10;
const PERIOD: Duration = Duration::from_secs(10);

/// Rate-limited log of damaged objects.
#[derive(Debug, Default)]
pub(crate) struct DamageLog(Mutex<Option<Window>>);

#[derive(Debug, Clone, Copy)]
struct Window {
    began: Instant,
    seen: u32,
}

impl DamageLog {
    /// Logs that `what` failed on the inode `nid`, unless too much was logged just now.
    pub(crate) fn report(&self, what: &'static str, nid: Nid, fault: &Fault) {
        let Some(silenced) = self.admit(Instant::now()) else {
            return;
        };
        if silenced > 0 {
            tracing::error!("{silenced} more I/O errors were not logged");
        }
        tracing::error!("{what} of inode {}: I/O error: {}", nid.0, chain(fault));
    }

    /// `Some(number silenced before)` if a message may be logged now.
    fn admit(&self, now: Instant) -> Option<u32> {
        let mut window = self
            .0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        match window.as_mut() {
            Some(current) if now.duration_since(current.began) < PERIOD => {
                current.seen = current.seen.saturating_add(1);
                (current.seen <= BURST).then_some(0)
            }
            _ => {
                let silenced = window.map_or(0, |last| last.seen.saturating_sub(BURST));
                *window = Some(Window {
                    began: now,
                    seen: 1,
                });
                Some(silenced)
            }
        }
    }
}

/// An error with all its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_let_through_and_the_rest_is_counted() {
        let log = DamageLog::default();
        let start = Instant::now();
        let admitted = (0..25).filter(|_| log.admit(start).is_some()).count();
        assert_eq!(admitted, 10);
        assert_eq!(log.admit(start + PERIOD), Some(15));
        assert_eq!(log.admit(start + PERIOD), Some(0));
    }
}
