//! The timeline: what the moments went for, how fast data came, requests, and reads by file.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;

use indicatif::HumanBytes;
use trace::{Event, Phase, Purpose, Report, Trace};

use crate::explain::{purpose, time};
use crate::page::escape;

/// Width of the drawing, and where its time axis begins and ends.
const WIDTH: f64 = 1120.0;
const LEFT: f64 = 92.0;
const RIGHT: f64 = 1112.0;
/// Columns of the curve of what came.
const COLUMNS: usize = 170;
/// Heights.
const STRIP: f64 = 46.0;
const CURVE: f64 = 84.0;
const REQUEST: f64 = 9.0;
const FILES_MAX: f64 = 420.0;
const GAP: f64 = 26.0;
/// Rows of requests: more than that at once are drawn over each other.
const LANES: usize = 24;
/// Marks of a kind that are drawn at most.
const DRAWN_MAX: usize = 20_000;

/// Microseconds to places.
struct Scale {
    end: f64,
}

impl Scale {
    fn x(&self, at: u64) -> f64 {
        LEFT + (RIGHT - LEFT) * (at as f64 / self.end).min(1.0)
    }

    /// Place and width of a time; so wide that it is seen.
    fn span(&self, from: u64, took: u64) -> (f64, f64) {
        let x = self.x(from);
        (x, (self.x(from.saturating_add(took)) - x).max(0.8))
    }
}

pub(super) fn svg(trace: &Trace, report: &Report) -> String {
    let scale = Scale {
        end: report.last_read.max(1) as f64,
    };
    let mut out = String::new();
    let mut y = 24.0;
    head(&mut out, y + 12.0, "moments");
    moments(&mut out, &scale, report, y);
    y += STRIP + GAP;
    curve(&mut out, &scale, report, y);
    y += CURVE + GAP;
    y += requests(&mut out, &scale, report, y) + GAP;
    y += reads(&mut out, &scale, trace, report, y) + 8.0;
    let grid = grid(&scale, report.last_read, y);
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {:.0}\" role=\"img\" aria-label=\"timeline\">\n{grid}{out}</svg>\n",
        y + 4.0
    )
}

/// What each column's time went for, one above the other.
fn moments(out: &mut String, scale: &Scale, report: &Report, y: f64) {
    let kinds = [
        Phase::Network,
        Phase::Decoding,
        Phase::Memory,
        Phase::Serving,
        Phase::Running,
    ];
    let spans = report.moments.iter().filter_map(|moment| {
        let kind = kinds.iter().position(|kind| *kind == moment.phase)?;
        let took = moment.to.saturating_sub(moment.from);
        Some((kind, moment.from as f64, took as f64, took as f64))
    });
    let columns = spread::<5>(scale, spans);
    let classes = ["network", "decoding", "memory", "serving", "running"];
    stacked(
        out,
        &columns,
        &classes,
        (y, STRIP),
        scale.end / COLUMNS as f64,
    );
}

/// Adds up what falls into each column of the drawing, by kind: of each span its kind, its beginning, how long it took, and an
/// amount that is spread over that time.
fn spread<const KINDS: usize>(
    scale: &Scale,
    spans: impl Iterator<Item = (usize, f64, f64, f64)>,
) -> Vec<[f64; KINDS]> {
    let width = scale.end / COLUMNS as f64;
    let mut columns = vec![[0.0_f64; KINDS]; COLUMNS];
    for (kind, from, took, amount) in spans {
        let took = took.max(1.0);
        // Conversions of floats saturate.
        let last = ((from + took) / width) as usize;
        let touched = columns.iter_mut().enumerate().skip((from / width) as usize);
        for (at, column) in touched.take_while(|(at, _)| *at <= last) {
            let start = (at as f64 * width).max(from);
            let end = ((at + 1) as f64 * width).min(from + took);
            if let Some(sum) = column.get_mut(kind) {
                *sum += amount * (end - start).max(0.0) / took;
            }
        }
    }
    columns
}

/// Draws columns that are as high as `(y, height)` says where they reach `most`.
fn stacked<const KINDS: usize>(
    out: &mut String,
    columns: &[[f64; KINDS]],
    classes: &[&str; KINDS],
    (y, height): (f64, f64),
    most: f64,
) {
    let step = (RIGHT - LEFT) / COLUMNS as f64;
    for (at, column) in columns.iter().enumerate() {
        let mut top = y + height;
        for (class, amount) in classes.iter().zip(column) {
            let height = height * amount / most;
            if height < 0.05 {
                continue;
            }
            top -= height;
            let x = LEFT + at as f64 * step;
            let _ = writeln!(
                out,
                "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{height:.1}\"/>",
                step - 0.8
            );
        }
    }
}

fn head(out: &mut String, y: f64, text: &str) {
    let _ = writeln!(
        out,
        "<text class=\"head\" x=\"0\" y=\"{y:.1}\">{text}</text>"
    );
}

fn note(out: &mut String, y: f64, text: &str) {
    let _ = writeln!(out, "<text x=\"0\" y=\"{y:.1}\">{text}</text>");
}

/// Lines at round times.
fn grid(scale: &Scale, end: u64, height: f64) -> String {
    // 1, 2, 5, 10, 20, ...: no more than ten of them.
    let mut step = 1_u64;
    while end / step > 10 {
        step = match step.to_string().starts_with('2') {
            true => step / 2 * 5,
            false => step.saturating_mul(2),
        };
    }
    let mut out = String::new();
    for at in (0..=end).step_by(usize::try_from(step).unwrap_or(usize::MAX)) {
        let (x, label) = (scale.x(at), round(at));
        let anchor = if x > RIGHT - 30.0 { "end" } else { "middle" };
        let _ = writeln!(
            out,
            "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"16\" y2=\"{height:.0}\"/>\
             <text x=\"{x:.1}\" y=\"11\" text-anchor=\"{anchor}\">{label}</text>"
        );
    }
    out
}

/// A round time.
fn round(micros: u64) -> String {
    match micros {
        0 => "0".to_owned(),
        1..1_000 => format!("{micros} us"),
        1_000..1_000_000 => format!("{} ms", micros as f64 / 1e3),
        _ => format!("{} s", micros as f64 / 1e6),
    }
}

/// How many bytes came when, what reads waited for at the bottom.
fn curve(out: &mut String, scale: &Scale, report: &Report, y: f64) {
    let order = [Purpose::Read, Purpose::First, Purpose::Prefetch];
    let answered = report.requests.iter().filter(|request| !request.failed);
    let spans = answered.filter_map(|request| {
        let kind = order.iter().position(|kind| *kind == request.purpose)?;
        let from = request.at.saturating_add(request.waited) as f64;
        Some((kind, from, request.took as f64, request.size as f64))
    });
    let columns = spread::<3>(scale, spans);
    let sums = columns.iter().map(|column| column.iter().sum::<f64>());
    let most = sums.fold(0.0, f64::max).max(1.0);
    head(out, y + 12.0, "arriving");
    let width = scale.end / COLUMNS as f64;
    let rate = HumanBytes((most / (width / 1e6)) as u64);
    note(out, y + 28.0, "up to");
    note(out, y + 43.0, &format!("{rate}/s"));
    let classes = order.map(purpose);
    stacked(out, &columns, &classes, (y, CURVE), most);
}

/// Each request a bar, in rows of their own those that were under way at once. How high that is.
fn requests(out: &mut String, scale: &Scale, report: &Report, y: f64) -> f64 {
    head(out, y + 9.0, "requests");
    let row = REQUEST + 1.5;
    let mut ends: Vec<u64> = Vec::new();
    let drawn = report.requests.iter().take(DRAWN_MAX);
    for request in drawn.filter(|request| request.at <= report.last_read) {
        let took = request.waited.saturating_add(request.took);
        let end = request.at.saturating_add(took);
        let free = ends.iter().position(|end| *end <= request.at);
        let lane = free.unwrap_or_else(|| ends.len().min(LANES - 1));
        match ends.get_mut(lane) {
            Some(last) => *last = end.max(*last),
            None => ends.push(end),
        }
        let (x, width) = scale.span(request.at, took);
        let top = y + lane as f64 * row;
        let class = purpose(request.purpose);
        let _ = writeln!(
            out,
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{REQUEST}\" rx=\"1.5\">\
             <title>{} after {}, {} of {} chunks read&#10;{}</title></rect>",
            HumanBytes(request.size),
            time(request.took),
            request.chunks_read,
            request.chunks,
            escape(&request.file),
        );
    }
    ends.len().max(1) as f64 * row
}

/// A mark: from where to where, and the time of its reads.
type Mark = (f64, f64, u64);

/// A row for each file, in the order of first reads; in it a mark for each time in which it was waited for.
fn reads(out: &mut String, scale: &Scale, trace: &Trace, report: &Report, y: f64) -> f64 {
    let files = report.files.iter().enumerate();
    let rows: HashMap<&str, usize> = files.map(|(row, file)| (&*file.path, row)).collect();
    head(out, y + 10.0, "files");
    note(out, y + 26.0, &format!("{} in the", rows.len()));
    note(out, y + 41.0, "order of their");
    note(out, y + 56.0, "first reads");
    let row = (FILES_MAX / rows.len().max(1) as f64).min(12.0);
    // Reads of a file that touch on the screen are one mark.
    let mut marks: BTreeMap<(usize, u64), Mark> = BTreeMap::new();
    for event in &trace.events {
        let Event::Read { at, took, file, .. } = event else {
            continue;
        };
        let Some(&number) = rows.get(&**file) else {
            continue;
        };
        let (x, width) = scale.span(*at, *took);
        let mark = marks.entry((number, x as u64)).or_insert((x, x, 0));
        mark.1 = mark.1.max(x + width);
        mark.2 = mark.2.saturating_add(*took);
    }
    let height = if row > 3.0 { row - 1.0 } else { row.max(1.6) };
    for ((number, _), (from, to, took)) in marks.into_iter().take(DRAWN_MAX) {
        let Some(file) = report.files.get(number) else {
            continue;
        };
        let top = y + number as f64 * row;
        let _ = writeln!(
            out,
            "<rect class=\"serving\" x=\"{from:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{height:.1}\">\
             <title>{}&#10;{}</title></rect>",
            to - from,
            escape(&file.path),
            time(took),
        );
    }
    (rows.len() as f64 * row).max(60.0)
}
