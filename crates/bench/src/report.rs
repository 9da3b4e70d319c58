//! The table and the plot of `docs/benchmarks.md`, and the raw runs behind them.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::floor::{Stages, cores};
use crate::scenario::Row;

/// Puts the table into the page between its two markers, the plot and the raw runs beside it.
pub fn write(docs: &Path, rows: &[Row]) -> Result<()> {
    let text = format!("{}\n\n{}", machine(), table(rows));
    put(&docs.join("benchmarks.md"), "figures", &text)?;
    std::fs::write(docs.join("img/benchmarks.svg"), plot(rows))?;
    let raw = json!({ "schema": "bench-1", "machine": machine(), "rows": rows });
    std::fs::write(
        docs.join("benchmarks.json"),
        serde_json::to_string_pretty(&raw)? + "\n",
    )?;
    Ok(())
}

/// Replaces what is between the markers `<!-- NAME: begin -->` and `<!-- NAME: end -->` of a page.
pub fn put(page: &Path, name: &str, text: &str) -> Result<()> {
    let (begin, end) = (
        format!("<!-- {name}: begin -->"),
        format!("<!-- {name}: end -->"),
    );
    let old = std::fs::read_to_string(page).with_context(|| format!("read {}", page.display()))?;
    let parts = old.split_once(&begin).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(&end)?;
        Some((before, after))
    });
    let (before, after) =
        parts.with_context(|| format!("{} has no markers {begin} {end}", page.display()))?;
    std::fs::write(page, format!("{before}{begin}\n\n{text}\n{end}{after}"))?;
    Ok(())
}

/// The processor, the number of cores and the kernel.
pub fn machine() -> String {
    let file = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = file("/proc/cpuinfo");
    let model = cpu
        .lines()
        .find_map(|l| l.strip_prefix("model name"))
        .unwrap_or("unknown processor");
    let model = model.trim_start_matches(['\t', ' ', ':']);
    let kernel = file("/proc/sys/kernel/osrelease");
    format!("{model}, {} cores, Linux {}.", cores(), kernel.trim())
}

/// The table in Markdown.
pub fn table(rows: &[Row]) -> String {
    let mut out = String::from(
        "| Image | What | Wall s | Core-seconds | Floor | File copies | Peak MiB | MB out or read | Attainable s | Ratio |\n\
         |---|---|---:|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for row in rows {
        let usage = row.usage.median;
        let stages = |row: &Row, get: fn(&Stages) -> f64| {
            let sum: f64 = row.stages.iter().map(get).sum();
            if sum > 0.0 {
                format!("{sum:.2}")
            } else {
                String::new()
            }
        };
        let some = |value: f64, shown: String| if value > 0.0 { shown } else { String::new() };
        let _ = writeln!(
            out,
            "| {} | {} | {:.3} | {} | {} | {} | {} | {} | {} | {} |",
            row.input,
            row.what,
            usage.wall,
            some(usage.cpu, format!("{:.2}", usage.cpu)),
            stages(row, Stages::total),
            stages(row, |s| s.file_copies),
            some(
                usage.peak_kib as f64,
                format!("{:.0}", usage.peak_kib as f64 / 1024.0)
            ),
            some(row.bytes as f64, format!("{:.1}", row.bytes as f64 / 1e6)),
            row.attainable.map_or(String::new(), |a| format!("{a:.3}")),
            row.ratio
                .map_or(String::new(), |(value, what)| format!("{value:.2} {what}")),
        );
    }
    out
}

/// Bars: wall time and, inside it, the attainable part.
fn plot(rows: &[Row]) -> String {
    let rows: Vec<_> = rows
        .iter()
        .filter_map(|row| Some((row, row.attainable?)))
        .collect();
    let height = 50 + 34 * rows.len();
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 860 {height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"860\" height=\"{height}\" fill=\"white\"/>\n\
         <text x=\"10\" y=\"22\" font-weight=\"bold\">Attainable share of the wall time (dark); the target is 0.85 (line)</text>\n"
    );
    let (left, width) = (270.0, 480.0);
    for (i, (row, attainable)) in rows.iter().enumerate() {
        let y = 40 + 34 * i;
        let share = (attainable / row.usage.median.wall).min(1.0);
        let _ = writeln!(
            out,
            "<text x=\"10\" y=\"{}\">{}: {}</text>\
             <rect x=\"{left}\" y=\"{y}\" width=\"{width}\" height=\"22\" fill=\"#dbe5f1\"/>\
             <rect x=\"{left}\" y=\"{y}\" width=\"{:.1}\" height=\"22\" fill=\"#33557f\"/>\
             <text x=\"{}\" y=\"{}\">{share:.2} of {:.2} s</text>",
            y + 16,
            row.input,
            row.what,
            width * share,
            left + width + 8.0,
            y + 16,
            row.usage.median.wall,
        );
    }
    let line = left + width * 0.85;
    let _ = writeln!(
        out,
        "<path d=\"M{line} 34V{height}\" stroke=\"#c0392b\" stroke-dasharray=\"4 3\"/>\n</svg>"
    );
    out
}
