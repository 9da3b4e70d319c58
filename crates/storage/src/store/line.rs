//! What requests to the blobs' place have cost so far: a part that does not depend on their length, and a time per byte.
//!
//! While reads wait now and again, requests in the background have to be short, for the next read queues behind them. How
//! short depends on the line: on a long and narrow one the bytes decide; a registry next door takes its time for every
//! request, however short, so that many of them keep it, and a processor that it shares, from whoever waits.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Requests after which one counts e times less.
const MEMORY: f64 = 64.0;
/// Fewer tell nothing.
const ENOUGH: f64 = 12.0;
/// Lengths that differ less, as their standard deviation in bytes, tell nothing either.
const ALIKE: f64 = 4096.0;
/// A request that took longer was held up by something else, in seconds.
const LONGEST: f64 = 1.0;

/// A straight line through the last requests: their lengths, and how long they took.
#[derive(Default)]
pub(super) struct Line(Mutex<Sums>);

/// Weighted sums over requests, in bytes and seconds.
#[derive(Debug, Default, Clone, Copy)]
struct Sums {
    count: f64,
    size: f64,
    time: f64,
    size_size: f64,
    size_time: f64,
    time_time: f64,
}

impl Line {
    /// Notes a request that was answered.
    pub fn note(&self, bytes: u64, took: Duration) {
        let (size, time) = (bytes as f64, took.as_secs_f64().min(LONGEST));
        let mut sums = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let keep = |sum: f64| sum * (1.0 - 1.0 / MEMORY);
        *sums = Sums {
            count: keep(sums.count) + 1.0,
            size: keep(sums.size) + size,
            time: keep(sums.time) + time,
            size_size: keep(sums.size_size) + size * size,
            size_time: keep(sums.size_time) + size * time,
            time_time: keep(sums.time_time) + time * time,
        };
    }

    /// How many bytes a request may have for them to take no longer than `time`, going by what is likely at most; 0 as long
    /// as too little is known.
    pub fn bytes_within(&self, time: Duration) -> u64 {
        let sums = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match sums.time_per_byte() {
            // A float's conversion saturates.
            Some(per_byte) => (time.as_secs_f64() / per_byte) as u64,
            None => 0,
        }
    }
}

impl Sums {
    /// The slope of the line, and twice its standard error on top; `None` if there is too little to go by.
    fn time_per_byte(&self) -> Option<f64> {
        let spread = self.size_size - self.size * self.size / self.count;
        if self.count < ENOUGH || spread < self.count * ALIKE * ALIKE {
            return None;
        }
        let common = self.size_time - self.size * self.time / self.count;
        let slope = common / spread;
        let unexplained =
            (self.time_time - self.time * self.time / self.count - slope * common).max(0.0);
        let error = (unexplained / self.count / spread).sqrt();
        Some(slope.max(0.0) + 2.0 * error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Duration = Duration::from_millis(40);

    /// What is known after some requests of 1 to 256 KiB over such a line, of which every third is held up a little.
    fn after(requests: u64, each: Duration, per_second: u64) -> u64 {
        let line = Line::default();
        for number in 0..requests {
            let size = 1 + number * 7919 % (256 << 10);
            let own = Duration::from_nanos(size * 1_000_000_000 / per_second);
            let held_up = each / 4 * u32::from(number % 3 == 0);
            line.note(size, each + own + held_up);
        }
        line.bytes_within(TIME)
    }

    #[test]
    fn a_narrow_line_wants_short_requests_and_a_near_server_few() {
        let (near, far) = (Duration::from_millis(6), Duration::from_millis(20));
        // 40 ms of 6 MB per second are 240 kB.
        let narrow = after(100, far, 6_000_000);
        assert!((150_000..=240_000).contains(&narrow), "{narrow}");
        let wide = after(100, near, 1_000_000_000);
        assert!(wide > 2 << 20, "{wide}");
        // Nothing is known of a line that nobody has used, or of one where all requests were alike.
        assert_eq!(after(5, near, 1_000_000_000), 0);
        let alike = Line::default();
        (0..100).for_each(|_| alike.note(1000, near));
        assert_eq!(alike.bytes_within(TIME), 0);
    }

    #[test]
    fn a_line_that_changes_is_seen_anew() {
        let line = Line::default();
        let note =
            |size: u64, per_byte: u64| line.note(size, Duration::from_nanos(size * per_byte));
        (0..1000).for_each(|number| note(1 + number * 7919 % 200_000, 1));
        let wide = line.bytes_within(TIME);
        (0..400).for_each(|number| note(1 + number * 7919 % 200_000, 200));
        let narrow = line.bytes_within(TIME);
        assert!(wide > 10_000_000 && narrow < 250_000, "{wide}, {narrow}");
    }
}
