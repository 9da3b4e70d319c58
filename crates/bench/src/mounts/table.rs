//! The figures of mounts, as a table in Markdown, a plot and JSON.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use serde::Serialize;
use serde_json::json;

use crate::measure::median;
use crate::report;

/// Columns, in their order.
const SIDES: [&str; 5] = ["native", "mkfs.erofs", "fuse", "erofs", "pull and unpack"];
const COLOURS: [&str; 5] = ["#7f8c8d", "#b7950b", "#33557f", "#1e8449", "#c0392b"];

/// Figures by activity and side.
#[derive(Debug, Default, Serialize)]
pub struct Table {
    rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    what: String,
    cells: Vec<Cell>,
}

#[derive(Debug, Serialize)]
struct Cell {
    side: &'static str,
    runs: Vec<f64>,
}

impl Row {
    fn of(&self, side: &str) -> Option<f64> {
        let cell = self.cells.iter().find(|cell| cell.side == side)?;
        Some(median(cell.runs.clone()))
    }

    fn ratio(&self, above: &str, below: &str) -> String {
        match (self.of(above), self.of(below)) {
            (Some(a), Some(b)) if b > 0.0 && self.is_time() => format!("{:.2}", a / b),
            _ => String::new(),
        }
    }

    /// Whether the figures are seconds.
    fn is_time(&self) -> bool {
        !self.what.contains(": ") || self.what.contains("jobs")
    }
}

impl Table {
    /// Adds the figure of one run.
    pub fn add(&mut self, what: &str, side: &'static str, figure: f64) {
        let at = self.rows.iter().position(|row| row.what == what);
        let at = at.unwrap_or_else(|| {
            self.rows.push(Row {
                what: what.to_owned(),
                cells: Vec::new(),
            });
            self.rows.len() - 1
        });
        let cells = &mut self.rows[at].cells;
        match cells.iter_mut().find(|cell| cell.side == side) {
            Some(cell) => cell.runs.push(figure),
            None => cells.push(Cell {
                side,
                runs: vec![figure],
            }),
        }
    }

    /// The medians in Markdown.
    pub fn markdown(&self) -> String {
        let mut out = format!(
            "| What | {} | erofs / mkfs.erofs | fuse / native |\n|---|---:|---:|---:|---:|---:|---:|---:|\n",
            SIDES.join(" | ")
        );
        for row in &self.rows {
            let cells = SIDES.map(|side| {
                let digits = match row.is_time() {
                    true => 3,
                    false if row.what.ends_with("times") => 2,
                    false => 0,
                };
                row.of(side)
                    .map_or(String::new(), |figure| format!("{figure:.digits$}"))
            });
            let _ = writeln!(
                out,
                "| {} | {} | {} | {} |",
                row.what,
                cells.join(" | "),
                row.ratio("erofs", "mkfs.erofs"),
                row.ratio("fuse", "native"),
            );
        }
        out
    }

    /// Puts the table between its markers in the page, the plot and the raw runs beside it.
    pub fn write(&self, docs: &Path) -> Result<()> {
        let text = format!("{}\n\n{}", report::machine(), self.markdown());
        report::put(&docs.join("benchmarks.md"), "mounts", &text)?;
        std::fs::write(docs.join("img/mounts.svg"), self.plot())?;
        let raw =
            json!({ "schema": "bench-mount-1", "machine": report::machine(), "rows": self.rows });
        let raw = serde_json::to_string_pretty(&raw)? + "\n";
        std::fs::write(docs.join("benchmarks-mount.json"), raw)?;
        Ok(())
    }

    /// Bars of the starts and full reads, each row to its own scale.
    fn plot(&self) -> String {
        let shown = |row: &&Row| {
            row.is_time()
                && ["import", "read all", "print"]
                    .iter()
                    .any(|w| row.what.contains(w))
        };
        let rows: Vec<&Row> = self.rows.iter().filter(shown).collect();
        let (bar, left, width) = (15, 330, 430.0);
        let heights = rows.iter().map(|row| 16 + bar * row.cells.len());
        let height = 40 + heights.sum::<usize>();
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 860 {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"860\" height=\"{height}\" fill=\"white\"/>\n\
             <text x=\"10\" y=\"22\" font-weight=\"bold\">Seconds; every group has a scale of its own</text>\n"
        );
        let mut y = 40;
        for row in rows {
            let _ = writeln!(
                out,
                "<text x=\"10\" y=\"{}\">{}</text>",
                y + 12,
                row.what.replace('`', "")
            );
            let longest = SIDES
                .iter()
                .filter_map(|side| row.of(side))
                .fold(0.0, f64::max);
            for (side, colour) in SIDES.iter().zip(COLOURS) {
                let Some(seconds) = row.of(side) else {
                    continue;
                };
                let _ = writeln!(
                    out,
                    "<rect x=\"{left}\" y=\"{y}\" width=\"{:.1}\" height=\"{}\" fill=\"{colour}\"/>\
                     <text x=\"{:.1}\" y=\"{}\">{seconds:.2} {side}</text>",
                    width * seconds / longest * 0.75,
                    bar - 2,
                    f64::from(left) + width * seconds / longest * 0.75 + 6.0,
                    y + 11,
                );
                y += bar;
            }
            y += 16;
        }
        out + "</svg>\n"
    }
}
