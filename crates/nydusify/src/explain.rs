//! `nydusify explain`: where the time of a start went, out of its trace.

mod html;

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use indicatif::HumanBytes;
use serde_json::{Value, json};
use trace::{Purpose, Report, Trace};

use crate::page;

/// Arguments of `nydusify explain`.
#[derive(Debug, clap::Args)]
pub struct ExplainArgs {
    /// Traces that `mount --trace` or `run --trace` has recorded. The last one is explained; those before it say which files
    /// are usual
    #[arg(value_name = "TRACE", required = true)]
    traces: Vec<PathBuf>,

    /// How to say it
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    output: Output,

    /// Write a page with a timeline to this file, for a browser: it needs nothing else
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,

    /// Files, and requests, to list; the JSON has them all
    #[arg(long, value_name = "N", default_value_t = 10)]
    top: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Text,
    Json,
}

/// Explains.
pub fn run(args: &ExplainArgs) -> Result<ExitCode> {
    let load = |path: &PathBuf| Trace::load(path);
    let mut traces = args
        .traces
        .iter()
        .map(load)
        .collect::<Result<Vec<_>, _>>()?;
    let Some(last) = traces.pop() else {
        return Ok(ExitCode::SUCCESS);
    };
    for (path, trace) in args.traces.iter().zip(&traces) {
        // Files have names in all images, so this is still of use.
        if let Err(error) = trace.require(path, &last.header.bootstrap) {
            tracing::warn!("{error}");
        }
    }
    let report = Report::new(&last, &traces);
    if let Some(path) = &args.html {
        let text = html::page(&last, &report);
        page::write(path, &text)?;
    }
    let text = match args.output {
        Output::Json => format!("{}\n", document(&report)),
        Output::Text => table(&report, args.top, args.html.as_deref()),
    };
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("standard output")?;
    Ok(ExitCode::SUCCESS)
}

/// The report for machines.
fn document(report: &Report) -> Value {
    let mut document = json!({ "schema": 1 });
    if let (Some(document), Ok(Value::Object(report))) =
        (document.as_object_mut(), serde_json::to_value(report))
    {
        document.extend(report);
    }
    document
}

/// Microseconds for people.
fn time(micros: u64) -> String {
    match micros {
        0..1_000 => format!("{micros} us"),
        1_000..1_000_000 => format!("{:.1} ms", micros as f64 / 1e3),
        _ => format!("{:.2} s", micros as f64 / 1e6),
    }
}

/// What a request was made for, in a word.
fn purpose(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::Read => "read",
        Purpose::Prefetch => "prefetch",
        Purpose::First => "first",
    }
}

/// What the phases are called, and how long they were.
fn phases(report: &Report) -> [(&'static str, u64); 5] {
    let phases = &report.phases;
    [
        ("the program ran", phases.running),
        ("reads waited for the network", phases.network),
        ("reads waited for decoding", phases.decoding),
        ("reads waited for memory", phases.memory),
        ("reads were answered", phases.serving),
    ]
}

/// A part of a whole in percent.
fn percent(part: u64, whole: u64) -> f64 {
    part as f64 * 100.0 / whole.max(1) as f64
}

/// The report for people.
fn table(report: &Report, top: usize, html: Option<&Path>) -> String {
    let mut out = String::new();
    let totals = &report.totals;
    let whole = report.last_read.saturating_sub(report.first_read);
    // Writing to a string can't fail.
    let mut row = |name: &str, value: String| {
        let _ = writeln!(out, "{name:<10} {value}");
    };
    row("image", line(&report.image));
    row("mode", line(&report.mode));
    let again = match report.servers {
        0 | 1 => String::new(),
        servers => format!(", served by {servers} processes one after the other"),
    };
    let first = time(report.first_read);
    row(
        "start",
        format!(
            "{} from the first read to the last, {first} after the mount began{again}",
            time(whole)
        ),
    );
    for (name, spent) in phases(report) {
        row(
            "",
            format!("{:>9} {:>5.1}%  {name}", time(spent), percent(spent, whole)),
        );
    }
    let bytes = HumanBytes;
    row(
        "reads",
        format!(
            "{} of {} files, {}, {} together",
            totals.reads,
            report.files.len(),
            bytes(totals.read_bytes),
            time(totals.read_time)
        ),
    );
    row(
        "requests",
        format!(
            "{}, {} of them ahead of reads, {} failed, {} together",
            totals.requests,
            totals.ahead,
            totals.failed,
            time(totals.request_time)
        ),
    );
    row(
        "fetched",
        format!(
            "{}, {} of it twice; {:.2} times what was used",
            bytes(totals.fetched_bytes),
            bytes(totals.fetched_twice),
            totals.amplification
        ),
    );
    row(
        "chunks",
        format!(
            "{}, {} of them read; decoding took {} of all threads",
            totals.chunks,
            totals.chunks_read,
            time(totals.decode_time)
        ),
    );
    if report.dropped != 0 {
        row(
            "left out",
            format!(
                "{} events, which came too fast: the figures are too low",
                report.dropped
            ),
        );
    }
    files(&mut out, report, top);
    requests(&mut out, report, top);
    unread(&mut out, report, top);
    if let Some(new) = &report.new_files {
        let _ = writeln!(
            out,
            "\nread now, and in none of the traces before: {} files",
            new.len()
        );
        for path in new.iter().take(top) {
            let _ = writeln!(out, "  {}", shown(path));
        }
    }
    if let Some(path) = html {
        let _ = writeln!(out, "\npage       {}", path.display());
    }
    out
}

fn files(out: &mut String, report: &Report, top: usize) {
    let mut slowest: Vec<_> = report.files.iter().collect();
    slowest.sort_by_key(|file| std::cmp::Reverse(file.time));
    slowest.truncate(top);
    if slowest.is_empty() {
        return;
    }
    let _ = writeln!(
        out,
        "\n{:>9} {:>9} {:>9} {:>10} {:>6}  file",
        "waited", "longest", "decoding", "read", "reads"
    );
    for file in slowest {
        let _ = writeln!(
            out,
            "{:>9} {:>9} {:>9} {:>10} {:>6}  {}{}",
            time(file.time),
            time(file.longest),
            time(file.decoding),
            HumanBytes(file.bytes).to_string(),
            file.reads,
            shown(&file.path),
            if file.new { "  (new)" } else { "" },
        );
    }
}

fn requests(out: &mut String, report: &Report, top: usize) {
    let mut slowest: Vec<_> = report.requests.iter().collect();
    slowest.sort_by_key(|request| std::cmp::Reverse(request.took));
    slowest.truncate(top);
    if slowest.is_empty() {
        return;
    }
    let _ = writeln!(
        out,
        "\n{:>9} {:>9} {:>9} {:>10} {:>9}  {:<8}  request",
        "at", "took", "memory", "bytes", "chunks", "for"
    );
    for request in slowest {
        let blob: String = request.blob.chars().take(12).collect();
        let blob = line(&blob);
        let _ = writeln!(
            out,
            "{:>9} {:>9} {:>9} {:>10} {:>9}  {:<8}  {blob} at {}: {}",
            time(request.at),
            time(request.took),
            time(request.waited),
            HumanBytes(request.size).to_string(),
            format!("{}/{}", request.chunks_read, request.chunks),
            purpose(request.purpose),
            request.offset,
            shown(&request.file),
        );
    }
}

fn unread(out: &mut String, report: &Report, top: usize) {
    let chunks: u64 = report.unread.iter().map(|file| file.chunks).sum();
    if chunks == 0 {
        return;
    }
    let _ = writeln!(
        out,
        "\nfetched and not read: {chunks} chunks, {}",
        HumanBytes(report.unread_bytes())
    );
    for file in report.unread.iter().take(top) {
        let size = HumanBytes(file.bytes).to_string();
        let _ = writeln!(out, "{size:>10} {:>4}  {}", file.chunks, shown(&file.path));
    }
}

/// A path on one line, whatever is in it.
fn shown(path: &str) -> String {
    match path {
        "" => "(no file)".to_owned(),
        path => line(path),
    }
}

/// Text on one line, whatever is in it.
fn line(text: &str) -> String {
    text.escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use trace::{ChunkId, Event, Header};

    use super::*;

    #[test]
    fn a_hostile_trace_neither_speaks_to_the_terminal_nor_overflows() {
        let hostile = "\u{1b}]0;x\u{7}\u{9b}2J<script>\n".to_owned();
        let unread = |index, file: &str| Event::Chunk {
            at: u64::MAX,
            took: u64::MAX,
            fetch: 0,
            chunk: ChunkId(0, index),
            size: u64::MAX,
            stored: u64::MAX,
            file: file.to_owned(),
            offset: 0,
        };
        let trace = Trace {
            header: Header {
                version: 1,
                image: hostile.clone(),
                bootstrap: hostile.clone(),
                started: u64::MAX,
                blobs: vec![hostile.clone()],
            },
            events: vec![
                Event::Serving {
                    at: 0,
                    mode: hostile.clone(),
                    process: 0,
                },
                Event::Fetch {
                    at: u64::MAX,
                    waited: u64::MAX,
                    took: u64::MAX,
                    number: 0,
                    purpose: Purpose::Read,
                    blob: 0,
                    offset: u64::MAX,
                    size: u64::MAX,
                    failed: false,
                },
                unread(1, "/a"),
                unread(2, &hostile),
                Event::Read {
                    at: 0,
                    took: u64::MAX,
                    file: hostile.clone(),
                    offset: u64::MAX,
                    size: u64::MAX,
                    chunks: Vec::new(),
                },
            ],
        };
        let report = Report::new(&trace, std::slice::from_ref(&trace));
        for text in [table(&report, 10, None), html::page(&trace, &report)] {
            let spoken = text.chars().find(|c| c.is_control() && *c != '\n');
            assert_eq!(spoken, None, "{text}");
            assert!(text.contains("x\\u{7}"), "{text}");
        }
    }
}
