//! `--output-json`.

use std::path::Path;

use anyhow::Context as _;
use inspect::CommandReport;

use crate::output::{self, Unfinished};

/// Writes a report for people and programs.
pub fn write(report: &CommandReport, path: &Path, unfinished: &Unfinished) -> anyhow::Result<()> {
    let text = serde_json::to_vec_pretty(report).context("cannot encode the report")?;
    output::write(path, &text, unfinished)
}

/// The same on one line, as `check` does it.
pub fn write_compact(
    report: &CommandReport,
    path: &Path,
    unfinished: &Unfinished,
) -> anyhow::Result<()> {
    let text = serde_json::to_vec(report).context("cannot encode the report")?;
    output::write(path, &text, unfinished)
}
