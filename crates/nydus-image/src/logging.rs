//! The log in the line format of the deployed tools:
//! `[YYYY-MM-DD HH:MM:SS.ffffff +00:00] LEVEL text`, with `[file:line]` after the level of all but INFO lines.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Sends the log to `file` (appending; `.log` is added to a name without extension) or else to stderr.
pub fn init(level: Level, file: Option<&Path>) -> anyhow::Result<()> {
    let format = |colour| Lines { colour };
    let builder = tracing_subscriber::fmt().with_max_level(level);
    match file {
        Some(path) => {
            let file = open(path)?;
            builder.event_format(format(false)).with_writer(file).init();
        }
        None => builder
            .event_format(format(io::stderr().is_terminal()))
            .with_writer(io::stderr)
            .init(),
    }
    Ok(())
}

fn open(path: &Path) -> anyhow::Result<File> {
    let path = if path.extension().is_some() {
        path.to_owned()
    } else {
        PathBuf::from(format!("{}.log", path.display()))
    };
    let file = OpenOptions::new().create(true).append(true).open(&path);
    file.with_context(|| format!("cannot open the log file {}", path.display()))
}

struct Lines {
    colour: bool,
}

impl<S: Subscriber + for<'a> LookupSpan<'a>, N: for<'a> FormatFields<'a> + 'static>
    FormatEvent<S, N> for Lines
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = *event.metadata().level();
        write!(out, "[{}] ", Timestamp(SystemTime::now()))?;
        match colour(level).filter(|_| self.colour) {
            Some(code) => write!(out, "\x1b[{code}m{level}\x1b[0m ")?,
            None => write!(out, "{level} ")?,
        }
        if level != Level::INFO {
            let (file, line) = (
                event.metadata().file().unwrap_or("?"),
                event.metadata().line().unwrap_or(0),
            );
            write!(out, "[{file}:{line}] ")?;
        }
        context.field_format().format_fields(out.by_ref(), event)?;
        writeln!(out)
    }
}

fn colour(level: Level) -> Option<u8> {
    match level {
        Level::ERROR => Some(31),
        Level::WARN => Some(33),
        Level::DEBUG => Some(32),
        Level::TRACE => Some(36),
        _ => None,
    }
}

/// A moment in UTC.
struct Timestamp(SystemTime);

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = self.0.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
        let (year, month, day) = civil(days);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        let micros = since.subsec_micros();
        write!(
            f,
            "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{micros:06} +00:00"
        )
    }
}

/// Year, month and day of a day counted from 1970-01-01, in years that begin in March so that leap days come last.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468; // from 0000-03-01
    let era = days / 146_097;
    let day = days % 146_097;
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_written_as_calendar_dates() {
        let at = |seconds: u64| {
            Timestamp(UNIX_EPOCH + Duration::from_micros(seconds * 1_000_000 + 7)).to_string()
        };
        assert_eq!(at(0), "1970-01-01 00:00:00.000007 +00:00");
        assert_eq!(at(951_782_399), "2000-02-28 23:59:59.000007 +00:00");
        assert_eq!(at(951_782_400), "2000-02-29 00:00:00.000007 +00:00");
        assert_eq!(at(1_700_000_000), "2023-11-14 22:13:20.000007 +00:00");
        assert_eq!(at(4_102_444_799), "2099-12-31 23:59:59.000007 +00:00");
    }
}
