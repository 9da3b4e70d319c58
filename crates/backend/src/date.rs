//! The current time as signatures have it.

use std::time::{SystemTime, UNIX_EPOCH};

/// A moment, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    /// Days since 1970-01-01.
    days: u64,
    /// Seconds of the day.
    seconds: u64,
}

impl Moment {
    pub(crate) fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Self::at(since.unwrap_or_default().as_secs())
    }

    /// So many seconds after the beginning of 1970.
    pub(crate) fn at(seconds: u64) -> Self {
        Self {
            days: seconds / 86_400,
            seconds: seconds % 86_400,
        }
    }

    /// Year, month (from 1) and day (from 1): the civil calendar counts from March, in eras of 400 years.
    fn date(self) -> (u64, u64, u64) {
        let days = self.days + 719_468;
        let (era, of_era) = (days / 146_097, days % 146_097);
        let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year + year / 4 - year / 100);
        let shifted = (5 * of_year + 2) / 153;
        let day = of_year - (153 * shifted + 2) / 5 + 1;
        let month = if shifted < 10 {
            shifted + 3
        } else {
            shifted - 9
        };
        (era * 400 + year + u64::from(month <= 2), month, day)
    }

    fn clock(self) -> (u64, u64, u64) {
        (
            self.seconds / 3600,
            self.seconds / 60 % 60,
            self.seconds % 60,
        )
    }

    /// `20130524T000000Z`.
    pub(crate) fn basic(self) -> String {
        let ((year, month, day), (hour, minute, second)) = (self.date(), self.clock());
        format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
    }

    /// `Thu, 17 Nov 2005 18:49:58 GMT`.
    pub(crate) fn http(self) -> String {
        const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
        const MONTHS: [&str; 12] = [
            "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
        ];
        let ((year, month, day), (hour, minute, second)) = (self.date(), self.clock());
        let name = DAYS[usize::try_from(self.days % 7).unwrap_or(0)];
        let month = MONTHS[usize::try_from(month - 1).unwrap_or(0)];
        format!("{name}, {day:02} {month} {year:04} {hour:02}:{minute:02}:{second:02} GMT")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_in_both_ways() {
        for (seconds, basic, http) in [
            (0, "19700101T000000Z", "Thu, 01 Jan 1970 00:00:00 GMT"),
            (
                1_132_253_398,
                "20051117T184958Z",
                "Thu, 17 Nov 2005 18:49:58 GMT",
            ),
            (
                1_369_353_600,
                "20130524T000000Z",
                "Fri, 24 May 2013 00:00:00 GMT",
            ),
            (
                1_709_164_799,
                "20240228T235959Z",
                "Wed, 28 Feb 2024 23:59:59 GMT",
            ),
            (
                1_709_164_800,
                "20240229T000000Z",
                "Thu, 29 Feb 2024 00:00:00 GMT",
            ),
            (
                4_107_542_400,
                "21000301T000000Z",
                "Mon, 01 Mar 2100 00:00:00 GMT",
            ),
        ] {
            assert_eq!(Moment::at(seconds).basic(), basic);
            assert_eq!(Moment::at(seconds).http(), http);
        }
    }
}
