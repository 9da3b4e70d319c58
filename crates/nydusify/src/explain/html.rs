//! The page of a trace: figures, a timeline, tables.

use std::fmt::Write as _;

use indicatif::HumanBytes;
use trace::{Report, Trace};

use super::{phases, purpose, time};
use crate::page::{self, bar, escape, table, tiles};

mod timeline;

/// Rows of a table.
const ROWS: usize = 40;
/// What the phases are called in style sheets, in the order of [`phases`].
const PHASES: [&str; 5] = ["running", "network", "decoding", "memory", "serving"];

/// The page.
pub(super) fn page(trace: &Trace, report: &Report) -> String {
    let whole = report.last_read.saturating_sub(report.first_read);
    let totals = &report.totals;
    let mut body = format!(
        "<h1>{} until the last read</h1>\n<p><code>{}</code>, mounted with {}, bootstrap <code>sha256:{}</code></p>\n",
        time(whole),
        escape(&report.image),
        escape(&report.mode),
        escape(&report.bootstrap)
    );
    if report.servers > 1 {
        let servers = report.servers;
        let _ = writeln!(
            body,
            "<p>{servers} processes served it, one after the other.</p>"
        );
    }
    if report.dropped != 0 {
        let dropped = report.dropped;
        let _ = writeln!(
            body,
            "<p>{dropped} events came too fast and were left out: the figures are too low.</p>"
        );
    }
    let unread = report.unread_bytes();
    body += &tiles(&[
        (report.files.len().to_string(), "files read"),
        (
            HumanBytes(totals.read_bytes).to_string(),
            "read by the kernel",
        ),
        (HumanBytes(totals.fetched_bytes).to_string(), "fetched"),
        (totals.requests.to_string(), "requests"),
        (
            format!("{:.2}x", totals.amplification),
            "fetched for each byte used",
        ),
        (HumanBytes(unread).to_string(), "fetched and not read"),
    ]);
    body += "<h2>Where the time went</h2>\n<div class=\"card\">\n";
    let parts = phases(report);
    let parts: Vec<_> = PHASES
        .iter()
        .zip(parts)
        .map(|(class, (name, spent))| (*class, name, spent, time(spent)))
        .collect();
    body += &bar(&parts);
    body += "</div>\n<h2>Timeline</h2>\n<div class=\"card\">\n";
    body += &timeline::svg(trace, report);
    body += "<ul class=\"legend\">\n";
    for (class, name) in [
        ("read", "requests that a read waited for"),
        ("first", "requests for what the image puts first"),
        ("prefetch", "other requests ahead of reads"),
        ("serving", "reads"),
    ] {
        let _ = writeln!(body, "<li><i class=\"{class}\"></i>{name}</li>");
    }
    body += "</ul>\n</div>\n";
    body += &files(report);
    body += &requests(report);
    body += &unread_files(report);
    body += &new_files(report);
    page::page(&format!("Start of {}", report.image), &body)
}

/// A heading that says if not all is shown.
fn heading(what: &str, shown: usize, all: usize) -> String {
    match shown < all {
        true => format!("<h2>{what}: {shown} of {all}</h2>\n"),
        false => format!("<h2>{what}</h2>\n"),
    }
}

fn files(report: &Report) -> String {
    let mut files: Vec<_> = report.files.iter().collect();
    files.sort_by_key(|file| std::cmp::Reverse(file.time));
    files.truncate(ROWS);
    let rows: Vec<Vec<String>> = files
        .iter()
        .map(|file| {
            let new = if file.new {
                " <span class=\"tag new\">new</span>"
            } else {
                ""
            };
            vec![
                time(file.time),
                time(file.longest),
                time(file.decoding),
                HumanBytes(file.bytes).to_string(),
                file.reads.to_string(),
                time(file.at),
                format!("{}{new}", escape(&file.path)),
            ]
        })
        .collect();
    let heads = [
        "waited", "longest", "decoding", "read", "reads", "first at", "file",
    ];
    heading(
        "Files that were waited for longest",
        rows.len(),
        report.files.len(),
    ) + &table(&heads, &rows)
}

fn requests(report: &Report) -> String {
    let mut requests: Vec<_> = report.requests.iter().collect();
    requests.sort_by_key(|request| std::cmp::Reverse(request.took));
    requests.truncate(ROWS);
    let rows: Vec<Vec<String>> = requests
        .iter()
        .map(|request| {
            let blob: String = request.blob.chars().take(12).collect();
            let class = purpose(request.purpose);
            vec![
                time(request.at),
                time(request.took),
                time(request.waited),
                HumanBytes(request.size).to_string(),
                format!("{}/{}", request.chunks_read, request.chunks),
                format!(
                    "<span class=\"tag {class}\">{class}</span> {} at {}: {}{}",
                    escape(&blob),
                    request.offset,
                    escape(&request.file),
                    if request.failed { " (failed)" } else { "" },
                ),
            ]
        })
        .collect();
    let heads = [
        "at",
        "took",
        "for memory",
        "bytes",
        "chunks read",
        "request",
    ];
    heading("Slowest requests", rows.len(), report.requests.len()) + &table(&heads, &rows)
}

fn unread_files(report: &Report) -> String {
    if report.unread.is_empty() {
        return String::new();
    }
    let rows: Vec<Vec<String>> = report
        .unread
        .iter()
        .take(ROWS)
        .map(|file| {
            vec![
                HumanBytes(file.bytes).to_string(),
                file.chunks.to_string(),
                escape(&file.path),
            ]
        })
        .collect();
    heading("Fetched and not read", rows.len(), report.unread.len())
        + &table(&["stored bytes", "chunks", "file"], &rows)
}

fn new_files(report: &Report) -> String {
    let Some(new) = &report.new_files else {
        return String::new();
    };
    let shown: Vec<Vec<String>> = new
        .iter()
        .take(ROWS)
        .map(|path| vec![escape(path)])
        .collect();
    let heading = heading("Read now, and in no earlier trace", shown.len(), new.len());
    match shown.is_empty() {
        true => format!("{heading}<p>None.</p>\n"),
        false => heading + &table(&["file"], &shown),
    }
}
