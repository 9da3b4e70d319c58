//! What `--output-json` of the `nydus-image` commands holds.

use std::path::{Path, PathBuf};

use rafs_format::{Bootstrap, Compressor, Version};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// The report of a command that wrote or read an image. All keys are always there.
#[derive(Debug, Clone, Serialize)]
pub struct CommandReport {
    version: String,
    bootstrap: String,
    blobs: Vec<String>,
    external_bootstrap: String,
    external_blobs: Vec<String>,
    trace: Value,
    fs_version: String,
    compressor: String,
}

impl CommandReport {
    /// The report about the bootstrap at a path, if it has one, of this version, and the blobs of these ids.
    pub fn new(
        bootstrap: Option<&Path>,
        version: Version,
        blobs: Vec<String>,
        compressor: Compressor,
    ) -> Self {
        Self {
            version: format!("{}-{}", build_info::VERSION, build_info::COMMIT),
            bootstrap: bootstrap
                .map(|path| path.display().to_string())
                .unwrap_or_default(),
            blobs,
            external_bootstrap: String::new(),
            external_blobs: Vec::new(),
            trace: Value::Null,
            fs_version: version.digit().to_owned(),
            compressor: compressor.to_string(),
        }
    }

    /// Adds the external image: its bootstrap, if it has a file of its own, and the ids of its blobs.
    #[must_use]
    pub fn external(mut self, external: Option<(Option<PathBuf>, Vec<String>)>) -> Self {
        let (bootstrap, blobs) = external.unwrap_or_default();
        self.external_bootstrap = bootstrap
            .map(|path| path.display().to_string())
            .unwrap_or_default();
        self.external_blobs = blobs;
        self
    }

    /// What `nydus-image check` reports of a bootstrap that took it so many seconds to check.
    pub fn of_check(path: &Path, bootstrap: &Bootstrap<Vec<u8>>, seconds: f64) -> Self {
        let blobs = bootstrap.blobs().iter().map(|info| info.id.to_string());
        Self::new(
            Some(path),
            bootstrap.version(),
            blobs.collect(),
            bootstrap.compressor(),
        )
        .trace([("load_tree_from_bootstrap", seconds)], Map::new())
    }

    /// Adds how long things took, in seconds, and figures.
    #[must_use]
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
}
