//! Points in time as registries and storage hosts write them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Days from 1970-01-01 to a date of the Gregorian calendar; `None` for what is no date after it.
fn days(year: u64, month: u64, day: u64) -> Option<u64> {
    const BEFORE: [u64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    if !(1970..10_000).contains(&year) || !(1..=31).contains(&day) {
        return None;
    }
    let before = BEFORE.get(usize::try_from(month).ok()?.checked_sub(1)?)?;
    // Leap days of the years before this one, and of this one from March on.
    let counted = if month > 2 { year } else { year - 1 };
    let leap = |y: u64| y / 4 - y / 100 + y / 400;
    Some((year - 1970) * 365 + leap(counted) - leap(1969) + before + day - 1)
}

fn at(year: u64, month: u64, day: u64, hour: u64, minute: u64, second: u64) -> Option<SystemTime> {
    let seconds = days(year, month, day)? * 86_400 + hour * 3600 + minute * 60 + second;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// `20261126T010203Z` or `2026-11-26T01:02:03Z`, whatever follows the seconds.
pub(crate) fn parse_iso(text: &str) -> Option<SystemTime> {
    let digits: String = text.chars().filter(char::is_ascii_digit).take(14).collect();
    let number = |from: usize, to: usize| digits.get(from..to)?.parse().ok();
    at(
        number(0, 4)?,
        number(4, 6)?,
        number(6, 8)?,
        number(8, 10)?,
        number(10, 12)?,
        number(12, 14)?,
    )
}

/// A point in time as RFC 3339 has it: `2026-11-26T01:02:03.5+01:00`; `None` for what is none after the beginning of 1970.
pub fn parse_rfc3339(text: &str) -> Option<SystemTime> {
    let number = |from: usize, to: usize| -> Option<u64> {
        let digits = text.get(from..to)?;
        let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
        digits.parse().ok().filter(|_| plain)
    };
    let between = |at: usize, wanted: &[u8]| {
        let byte = text.as_bytes().get(at)?;
        wanted.contains(byte).then_some(())
    };
    for (at, wanted) in [
        (4, &b"-"[..]),
        (7, b"-"),
        (10, b"Tt "),
        (13, b":"),
        (16, b":"),
    ] {
        between(at, wanted)?;
    }
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let local = at(
        number(0, 4)?,
        number(5, 7)?,
        number(8, 10)?,
        hour,
        minute,
        second,
    )?;
    let mut zone = 19;
    if between(zone, b".").is_some() {
        let fraction = text.get(zone + 1..)?;
        let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
        zone += 1 + digits;
        (digits > 0).then_some(())?;
    }
    match text.get(zone..)? {
        "Z" | "z" => Some(local),
        offset if offset.len() == 6 => {
            between(zone + 3, b":")?;
            let (hours, minutes) = (number(zone + 1, zone + 3)?, number(zone + 4, zone + 6)?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            let offset = Duration::from_secs(hours * 3600 + minutes * 60);
            match text.as_bytes().get(zone)? {
                b'+' => local.checked_sub(offset),
                b'-' => local.checked_add(offset),
                _ => None,
            }
        }
        _ => None,
    }
}

/// `Thu, 26 Nov 2026 01:02:03 GMT`.
pub(crate) fn parse_http(text: &str) -> Option<SystemTime> {
    const MONTHS: &str = "JanFebMarAprMayJunJulAugSepOctNovDec";
    let mut words = text.split_once(", ")?.1.split(' ');
    let day = words.next()?.parse().ok()?;
    let month = words.next().filter(|word| word.len() == 3)?;
    let month = MONTHS.find(month)? as u64 / 3 + 1;
    let year = words.next()?.parse().ok()?;
    let mut clock = words.next()?.split(':').map(|part| part.parse().ok());
    at(
        year,
        month,
        day,
        clock.next()??,
        clock.next()??,
        clock.next()??,
    )
}

/// Seconds since 1970.
pub(crate) fn parse_epoch(text: &str) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_secs(text.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_with_an_offset_are_read_strictly() {
        let expected = parse_epoch("1795654923").unwrap();
        for text in [
            "2026-11-26T01:02:03Z",
            "2026-11-26t01:02:03.123456789z",
            "2026-11-26 02:02:03+01:00",
            "2026-11-25T19:32:03.0-05:30",
        ] {
            assert_eq!(parse_rfc3339(text), Some(expected), "{text}");
        }
        for bad in [
            "",
            "2026-11-26",
            "2026-11-26T01:02:03",
            "2026-11-26T01:02:03.Z",
            "2026-11-26T01:02:03+1:00",
            "2026-11-26T01:02:03*01:00",
            "2026-11-26T01:02:03+01:000",
            "2026-11-26T24:02:03Z",
            "2026-11-26T+1:02:03Z",
            "2026-13-26T01:02:03Z",
            "20261126T010203Z",
            "2026-11-26T01:02:03\u{e9}1:00",
        ] {
            assert_eq!(parse_rfc3339(bad), None, "{bad}");
        }
    }

    #[test]
    fn times_are_read_in_all_spellings() {
        let expected = parse_epoch("1795654923").unwrap();
        for (text, parsed) in [
            ("20261126T010203Z", parse_iso("20261126T010203Z")),
            ("2026-11-26T01:02:03Z", parse_iso("2026-11-26T01:02:03.5Z")),
            (
                "Thu, 26 Nov 2026 01:02:03 GMT",
                parse_http("Thu, 26 Nov 2026 01:02:03 GMT"),
            ),
        ] {
            assert_eq!(parsed, Some(expected), "{text}");
        }
        assert_eq!(
            parse_iso("20240229T000000Z"),
            parse_epoch("1709164800"),
            "leap day"
        );
        for bad in ["", "2026", "20261301T000000Z", "20260100T000000Z"] {
            assert_eq!(parse_iso(bad), None, "{bad}");
        }
        for bad in ["", "5", "Thu, 26 Foo 2026 01:02:03 GMT", "Thu, 26 Nov"] {
            assert_eq!(parse_http(bad), None, "{bad}");
        }
    }
}
