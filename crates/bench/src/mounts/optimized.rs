//! The same image before and after `optimize`, by the trace of one start.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::side::{Mode, Served, Side};
use super::work::Work;
use super::{Mounts, TARGET, drop_page_cache};
use crate::link::{Link, Shape};
use crate::tools::{remove, run};

/// The image made of the trace.
const OPTIMIZED: &str = "converted/image:optimized";
/// Round trips that a start may take beside the data.
const ROUND_TRIPS: f64 = 5.0;

impl Mounts<'_> {
    /// Records a start and makes an image of it.
    pub(super) fn optimize(&self, link: &Link) -> Result<()> {
        let trace = self.record(Mode::Fuse, link, TARGET)?.0;
        run(Command::new(&self.programs.nydusify)
            .args(["optimize", "--plain-http", "--trace"])
            .arg(&trace)
            .arg("--source")
            .arg(format!("{}/{TARGET}", self.server.host()))
            .arg("--target")
            .arg(format!("{}/{OPTIMIZED}", self.server.host())))
    }

    /// Starts with an empty cache, before and after.
    pub(super) fn before_and_after(
        &mut self,
        mode: Mode,
        link: &Link,
        shape: Shape,
        over: &str,
    ) -> Result<()> {
        for (image, which) in [(TARGET, "recorded"), (OPTIMIZED, "optimized")] {
            let (trace, seconds) = self.record(mode, link, image)?;
            let totals = self.totals(&trace)?;
            let figure = |name: &str| totals[name].as_f64().context("a figure in the report");
            let (side, name) = (Side::Lazy(mode).name(), Work::Start.name());
            let row = |what: &str| format!("{name}, {which}{over}{what}");
            self.table.add(&row(""), side, seconds);
            let counted = [
                (": requests", figure("requests")?),
                (": MB fetched", figure("fetched_bytes")? / 1e6),
                (": fetched of what is used, times", figure("amplification")?),
            ];
            for (what, figure) in counted {
                self.table.add(&row(what), side, figure);
            }
            if let Some(bandwidth) = shape.bandwidth {
                let trips = ROUND_TRIPS * shape.round_trip.as_secs_f64();
                let least = figure("used_bytes")? / bandwidth + trips;
                let what = ": of used bytes / bandwidth + 5 round trips, times";
                self.table.add(&row(what), side, seconds / least);
            }
        }
        Ok(())
    }

    /// The trace of a start with an empty cache, and how long the start took.
    fn record(&self, mode: Mode, link: &Link, image: &str) -> Result<(PathBuf, f64)> {
        let (cache, trace) = (self.work.join("cold.cache"), self.work.join("start.trace"));
        remove(&cache)?;
        remove(&trace)?;
        drop_page_cache()?;
        let image = format!("{}/{image}", link.host());
        let mnt = self.work.join("mnt");
        let more = ["--trace".as_ref(), trace.as_os_str()];
        let served = Served::lazily(&self.programs.nydusify, mode, &image, &mnt, &cache, &more)?;
        let seconds = Work::Start.run(served.root())?;
        served.stop()?;
        Ok((trace, seconds))
    }

    fn totals(&self, trace: &Path) -> Result<Value> {
        let explain = ["explain", "--output", "json"];
        let mut command = Command::new(&self.programs.nydusify);
        let output = command.args(explain).arg(trace).output()?;
        ensure!(
            output.status.success(),
            "explain: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let mut report: Value = serde_json::from_slice(&output.stdout)?;
        Ok(report["totals"].take())
    }
}
