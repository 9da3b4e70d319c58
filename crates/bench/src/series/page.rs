//! The tables of `docs/chunkdict.md` and their plot.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;

use super::images::Version;
use super::{CHUNK_SIZES, DEFAULT_RUN, Figures, RUNS, Setting};
use crate::report;

/// The figures of all settings, each with one entry per version.
pub struct Page<'a> {
    /// The images, oldest first.
    pub versions: &'a [Version],
    /// What became of them.
    pub figures: &'a BTreeMap<Setting, Vec<Figures>>,
}

impl Page<'_> {
    /// Puts the tables into the page, the plot beside it.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn write(&self, docs: &Path) -> Result<()> {
        report::put(&docs.join("chunkdict.md"), "series", &self.text())?;
        std::fs::write(docs.join("img/series.svg"), self.plot())?;
        Ok(())
    }

    /// The tables in Markdown.
    pub fn text(&self) -> String {
        let stored = self.by_version("Stored, MB", |one| one.stored);
        let pulled = self.by_version("Pulled, MB", |one| one.pulled);
        format!("{stored}\n{pulled}\n{}", self.by_run())
    }

    fn of(&self, chunk_size: u32, min_run: Option<u32>) -> &[Figures] {
        &self.figures[&Setting {
            chunk_size,
            min_run,
        }]
    }

    /// A row per version; for each chunk size without a dictionary and with one.
    fn by_version(&self, what: &str, get: fn(&Figures) -> u64) -> String {
        let mut out = format!("| {what} | gzip |");
        for size in CHUNK_SIZES {
            let size = kib(size);
            let _ = write!(out, " {size}, without | {size}, with |");
        }
        out.push_str("\n|---|---:|");
        out.push_str(&"---:|---:|".repeat(CHUNK_SIZES.len()));
        let columns: Vec<Vec<u64>> = CHUNK_SIZES
            .iter()
            .flat_map(|&size| [self.of(size, None), self.of(size, Some(DEFAULT_RUN))])
            .map(|column| column.iter().map(get).collect())
            .collect();
        let sizes: Vec<u64> = self.versions.iter().map(|one| one.size).collect();
        let mut row = |name: &str, pick: &dyn Fn(&[u64]) -> u64| {
            let _ = write!(out, "\n| {name} | {} |", megabytes(pick(&sizes)));
            for column in &columns {
                let _ = write!(out, " {} |", megabytes(pick(column)));
            }
        };
        for (number, version) in self.versions.iter().enumerate() {
            row(version.day, &|column| column[number]);
        }
        row("all", &|column| column.iter().sum());
        out.push('\n');
        out
    }

    /// A row per chunk size and shortest run: the versions after the first together.
    fn by_run(&self) -> String {
        let mut out = String::from(
            "| Chunk size | `--dict-min-run` | Stored, MB | Pulled, MB | Extra requests per version | Older blobs in the last \
             version | Bytes saved per request more |\n|---|---|---:|---:|---:|---:|---:|\n",
        );
        for size in CHUNK_SIZES {
            let sum = |run, get: fn(&Figures) -> u64| -> u64 {
                self.of(size, run)[1..].iter().map(get).sum()
            };
            // Those with longer runs come after: each is compared with the next longer one, the longest with none at all.
            for (number, &run) in RUNS.iter().enumerate() {
                let longer = RUNS.get(number + 1).copied().unwrap_or(RUNS[0]);
                let saved =
                    sum(longer, |one| one.stored).saturating_sub(sum(run, |one| one.stored));
                let more =
                    sum(run, |one| one.requests).saturating_sub(sum(longer, |one| one.requests));
                let last = self.of(size, run).last().copied().unwrap_or_default();
                let later = self.versions.len() as u64 - 1;
                let _ = writeln!(
                    out,
                    "| {} | {} | {} | {} | {} | {} | {} |",
                    kib(size),
                    run.map_or("no dictionary".to_owned(), |run| run.to_string()),
                    megabytes(sum(run, |one| one.stored)),
                    megabytes(sum(run, |one| one.pulled)),
                    sum(run, |one| one.requests) / later,
                    last.blobs,
                    match (run, more) {
                        (None, _) | (_, 0) => String::new(),
                        _ => (saved / more).to_string(),
                    },
                );
            }
        }
        out
    }

    /// Lines: what all versions so far take, without and with a dictionary.
    fn plot(&self) -> String {
        let (left, top, width, height) = (70.0, 40.0, 560.0, 320.0);
        let lines: Vec<(String, &str, bool, Vec<u64>)> = CHUNK_SIZES
            .iter()
            .zip(["#33557f", "#2e8b57", "#c0392b"])
            .flat_map(|(&size, colour)| {
                [(None, "without"), (Some(DEFAULT_RUN), "with")].map(|(run, what)| {
                    let so_far = self.of(size, run).iter().scan(0, |sum, one| {
                        *sum += one.stored;
                        Some(*sum)
                    });
                    let name = format!("{}, {what}", kib(size));
                    (name, colour, run.is_some(), so_far.collect())
                })
            })
            .collect();
        let most = lines.iter().filter_map(|line| line.3.last()).max();
        let most = most.copied().unwrap_or(1) as f64;
        let x = |number: usize| left + width * number as f64 / (self.versions.len() - 1) as f64;
        let y = |bytes: f64| top + height * (1.0 - bytes / most);
        let mut out = String::from(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 860 410\" font-family=\"sans-serif\" font-size=\"13\">\n\
             <rect width=\"860\" height=\"410\" fill=\"white\"/>\n\
             <text x=\"10\" y=\"22\" font-weight=\"bold\">MB stored for all versions so far, without (dashed) and with a dictionary of those before</text>\n",
        );
        for step in 0..=4 {
            let bytes = most * f64::from(step) / 4.0;
            let _ = writeln!(
                out,
                "<path d=\"M{left} {y:.1}H{}\" stroke=\"#dddddd\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{:.0}</text>",
                left + width,
                left - 8.0,
                y(bytes) + 4.0,
                bytes / 1e6,
                y = y(bytes),
            );
        }
        for (number, version) in self.versions.iter().enumerate() {
            let _ = writeln!(
                out,
                "<text x=\"{:.1}\" y=\"385\" text-anchor=\"middle\" font-size=\"11\">{}</text>",
                x(number),
                version.day
            );
        }
        for (number, (name, colour, with, values)) in lines.iter().enumerate() {
            let points: Vec<String> = values
                .iter()
                .enumerate()
                .map(|(at, &bytes)| format!("{:.1},{:.1}", x(at), y(bytes as f64)))
                .collect();
            let dashes = if *with {
                ""
            } else {
                " stroke-dasharray=\"6 4\""
            };
            let at = 60 + 22 * number;
            let _ = writeln!(
                out,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"{dashes}/>\
                 <path d=\"M650 {at}h40\" stroke=\"{colour}\" stroke-width=\"2\"{dashes}/><text x=\"698\" y=\"{}\">{name}</text>",
                points.join(" "),
                at + 4,
            );
        }
        out.push_str("</svg>\n");
        out
    }
}

fn kib(size: u32) -> String {
    match size >> 10 {
        1024 => "1M".to_owned(),
        kib => format!("{kib}K"),
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / 1e6)
}
