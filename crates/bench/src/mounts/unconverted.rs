//! `bench unconverted`: the first start of an image that nobody converted, over the far link; the same with an index from the
//! registry; that of the converted image; and by pulling and unpacking.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::process::Command;
use std::time::Instant;

use anyhow::Result;

use super::side::{Mode, Served};
use super::work::Work;
use super::{Mounts, SOURCE, TARGET, drop_page_cache};
use crate::link::{Link, Shape};
use crate::measure::median;
use crate::report;
use crate::tools::{output, remove};

/// What is measured of each way, as the table's columns.
const COLUMNS: [&str; 6] = [
    "`print(1)`, s",
    "MB",
    "requests",
    "`import tensorflow`, s",
    "MB",
    "requests",
];

/// Figures by way, in order, and column; of every round.
#[derive(Debug, Default)]
pub struct Ways(BTreeMap<(usize, String), [Vec<f64>; COLUMNS.len()]>);

impl Ways {
    fn add(&mut self, way: (usize, &str), column: usize, figures: &[f64]) {
        let figures_of = self.0.entry((way.0, way.1.to_owned())).or_default();
        for (column, figure) in figures_of[column..].iter_mut().zip(figures) {
            column.push(*figure);
        }
    }

    /// The medians in Markdown.
    pub fn markdown(&self) -> String {
        let mut out = format!(
            "{}\n\n| Way | {} |\n|---|---:|---:|---:|---:|---:|---:|\n",
            report::machine(),
            COLUMNS.join(" | ")
        );
        for ((_, way), columns) in &self.0 {
            let cells = columns.iter().zip(COLUMNS).map(|(runs, column)| {
                if runs.is_empty() {
                    return String::new();
                }
                let figure = median(runs.clone());
                match column.ends_with(", s") {
                    true => format!("{figure:.2}"),
                    false => format!("{figure:.0}"),
                }
            });
            let cells: Vec<String> = cells.collect();
            let _ = writeln!(out, "| {way} | {} |", cells.join(" | "));
        }
        out
    }
}

impl Mounts<'_> {
    /// Measures every way `runs` times.
    pub fn unconverted(self, runs: usize) -> Result<Ways> {
        let far = Link::start(self.server.host(), Shape::FAR)?;
        let index = self.push_index()?;
        let index = ["--index-digest".as_ref(), OsStr::new(&index)];
        let mut ways = Ways::default();
        for round in 0..runs {
            eprintln!("round {} of {runs}", round + 1);
            for (number, mode) in Mode::ALL.into_iter().enumerate() {
                let name = |what: &str| format!("{what}, {}", mode.name());
                let mut way = |order: usize, what: &str, image, works: &[Work], more: &[&OsStr]| {
                    for &work in works {
                        let figures = self.first_start(mode, &far, image, work, more)?;
                        let column = if work == Work::Hello { 0 } else { 3 };
                        ways.add((2 * order + number, &name(what)), column, &figures);
                    }
                    anyhow::Ok(())
                };
                let (start, both) = ([Work::Start], [Work::Hello, Work::Start]);
                way(0, "nobody converted it", SOURCE, &start, &[])?;
                way(1, "with an index from the registry", SOURCE, &both, &index)?;
                way(2, "converted", TARGET, &both, &[])?;
            }
            let before = far.traffic();
            let times = self.pulled(&far)?;
            let traffic = far.traffic();
            let rest = [
                (traffic.bytes - before.bytes) as f64 / 1e6,
                (traffic.requests - before.requests) as f64,
            ];
            for (column, (_, seconds)) in [0, 3].into_iter().zip(times) {
                ways.add((6, "pull and unpack"), column, &[seconds, rest[0], rest[1]]);
            }
        }
        Ok(ways)
    }

    /// Puts an index of the image beside it; its digest.
    fn push_index(&self) -> Result<String> {
        let (image, cache) = (
            format!("{}/{SOURCE}", self.server.host()),
            self.work.join("index.cache"),
        );
        let mut command = Command::new(&self.programs.nydusify);
        command.args(["index", "--plain-http", "--push", "--cache-dir"]);
        let digest = output(command.arg(&cache).arg(&image))?;
        Ok(String::from_utf8(digest)?.trim().to_owned())
    }

    /// Seconds from the command to the end of the work, MB and requests, with an empty cache.
    fn first_start(
        &self,
        mode: Mode,
        link: &Link,
        image: &str,
        work: Work,
        more: &[&OsStr],
    ) -> Result<[f64; 3]> {
        let cache = self.work.join("cold.cache");
        remove(&cache)?;
        drop_page_cache()?;
        let (before, started) = (link.traffic(), Instant::now());
        let image = format!("{}/{image}", link.host());
        let mnt = self.work.join("mnt");
        let served = Served::lazily(&self.programs.nydusify, mode, &image, &mnt, &cache, more)?;
        work.run(served.root())?;
        let (seconds, traffic) = (started.elapsed().as_secs_f64(), link.traffic());
        served.stop()?;
        Ok([
            seconds,
            (traffic.bytes - before.bytes) as f64 / 1e6,
            (traffic.requests - before.requests) as f64,
        ])
    }
}
