//! `--output-json`.

use std::path::Path;

use anyhow::Context as _;
use rafs_format::Compressor;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::output::{self, Unfinished};

/// The report of a command that wrote an image. All keys are always there.
#[derive(Debug, Serialize)]
pub struct Report {
    version: String,
    bootstrap: String,
    blobs: Vec<String>,
    external_bootstrap: String,
    external_blobs: Vec<String>,
    trace: Value,
    fs_version: String,
    compressor: String,
}

impl Report {
    pub fn new(bootstrap: Option<&Path>, blobs: Vec<String>, compressor: Compressor) -> Self {
        Self {
            version: format!("v{}-{}", env!("CARGO_PKG_VERSION"), env!("BUILD_COMMIT")),
            bootstrap: bootstrap
                .map(|path| path.display().to_string())
                .unwrap_or_default(),
            blobs,
            external_bootstrap: String::new(),
            external_blobs: Vec::new(),
            trace: Value::Null,
            fs_version: "6".to_owned(),
            compressor: compressor.to_string(),
        }
    }

    /// Adds how long things took, in seconds, and figures.
    pub fn trace<const N: usize>(
        mut self,
        times: [(&str, f64); N],
        events: Map<String, Value>,
    ) -> Self {
        let times: Map<String, Value> = times
            .iter()
            .map(|(name, time)| ((*name).to_owned(), json!(time)))
            .collect();
        self.trace = json!({ "consumed_time": times, "registered_events": events });
        self
    }

    pub fn write(&self, path: &Path, unfinished: &Unfinished) -> anyhow::Result<()> {
        let text = serde_json::to_vec_pretty(self).context("cannot encode the report")?;
        output::write(path, &text, unfinished)
    }

    /// The same on one line, as `check` does it.
    pub fn write_compact(&self, path: &Path, unfinished: &Unfinished) -> anyhow::Result<()> {
        let text = serde_json::to_vec(self).context("cannot encode the report")?;
        output::write(path, &text, unfinished)
    }
}
