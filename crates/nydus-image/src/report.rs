//! `--output-json`.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use inspect::CommandReport;

use crate::output::{self, Output, Unfinished};

/// Writes a report for people and programs, if there is to be one. It has no name until it is committed.
pub fn begin(
    report: &CommandReport,
    path: Option<&PathBuf>,
    unfinished: &Unfinished,
) -> anyhow::Result<Option<(Output, PathBuf)>> {
    let Some(path) = path else { return Ok(None) };
    let text = serde_json::to_vec_pretty(report).context("cannot encode the report")?;
    let output = output::begin(path, &text, unfinished)?;
    Ok(Some((output, path.clone())))
}

/// Writes a report on one line, as `check` does it.
pub fn write_compact(
    report: &CommandReport,
    path: &Path,
    unfinished: &Unfinished,
) -> anyhow::Result<()> {
    let text = serde_json::to_vec(report).context("cannot encode the report")?;
    output::write(path, &text, unfinished)
}
