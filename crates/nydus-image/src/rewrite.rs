//! What `compact` and `optimize` share: a bootstrap in, some of its chunks in other blobs, a bootstrap out.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use builder::{Budget, BuildOptions, encode};
use inspect::CommandReport;
use serde_json::Map;
use storage::{LoadedBootstrap, load_bootstrap};
use tree::Image;

use crate::interrupt::Interrupt;
use crate::output::{self, Output};
use crate::report;

/// Loads a bootstrap that is sound.
pub fn load(path: &Path) -> anyhow::Result<LoadedBootstrap> {
    let loaded = load_bootstrap(path)?;
    loaded
        .check()
        .with_context(|| format!("{} is not valid", path.display()))?;
    Ok(loaded)
}

/// The means to write blobs with; all else is as the image has it.
pub fn options(interrupt: &Interrupt) -> anyhow::Result<BuildOptions> {
    let pool = rayon::ThreadPoolBuilder::new().thread_name(|number| format!("work-{number}"));
    let pool = pool.build().context("cannot start threads")?;
    Ok(BuildOptions {
        cancel: interrupt.cancel.clone(),
        // No file data goes through the budget: chunks are read some at a time.
        ..BuildOptions::new(Arc::new(pool), Budget::new(0))
    })
}

/// An image with new blobs.
pub struct Rewritten<'a> {
    /// The image as it is now.
    pub image: &'a Image,
    /// The new blobs and their places.
    pub blobs: Vec<(Output, PathBuf)>,
    /// Seconds that reading took.
    pub read: f64,
    /// When the work began.
    pub start: Instant,
}

/// Writes the bootstrap, gives everything its name, and writes the report.
pub fn finish(
    rewritten: Rewritten<'_>,
    path: &Path,
    json: Option<&PathBuf>,
    interrupt: &Interrupt,
) -> anyhow::Result<()> {
    let Rewritten {
        image,
        mut blobs,
        read,
        start,
    } = rewritten;
    let bootstrap = encode(image).context("cannot encode the bootstrap")?;
    let output = output::begin(path, &bootstrap, &interrupt.unfinished)?;
    // Those that nothing refers to get their names first.
    blobs.push((output, path.to_owned()));
    let ids = image.blobs.iter().map(|blob| blob.id.to_string()).collect();
    let times = [
        ("load_tree_from_bootstrap", read),
        ("total_build", start.elapsed().as_secs_f64()),
    ];
    let report = CommandReport::new(Some(path), image.version, ids, image.compressor)
        .trace(times, Map::new());
    blobs.extend(report::begin(&report, json, &interrupt.unfinished)?);
    interrupt.cancel.check()?;
    output::commit_all(blobs)
}
