//! `transcode`: the bootstrap of an image in the other version.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;
use clap::Args;
use clap::builder::PossibleValuesParser;
use inspect::CommandReport;
use rafs_format::Version;
use serde_json::Map;
use storage::{BlobSource, DirSource};

use crate::interrupt::Interrupt;
use crate::output;
use crate::report;

#[derive(Debug, Args)]
pub struct Transcode {
    /// Version of the new bootstrap
    #[arg(long, value_name = "VERSION", value_parser = PossibleValuesParser::new(["5", "6"]))]
    to: String,
    /// Bootstrap, or native layer blob with a bootstrap inside
    #[arg(short = 'B', long, value_name = "BOOTSTRAP")]
    bootstrap: PathBuf,
    /// Write the new bootstrap to FILE
    #[arg(short = 'O', long, value_name = "FILE")]
    output_bootstrap: PathBuf,
    /// Directory of the blobs, each named by its id. From v5 to v6 they are looked into, and one that holds no table
    /// of its chunks gets it in a blob beside it
    #[arg(short = 'D', long, value_name = "DIR")]
    blob_dir: Option<PathBuf>,
    /// Write a report to FILE
    #[arg(short = 'J', long, value_name = "FILE")]
    output_json: Option<PathBuf>,
}

pub fn run(args: &Transcode, interrupt: &Interrupt) -> anyhow::Result<()> {
    output::check_places([Some(&args.output_bootstrap), args.output_json.as_ref()])?;
    let version: Version = args.to.parse()?;
    let start = Instant::now();
    let loaded = storage::load_bootstrap(&args.bootstrap)?;
    let failed = || format!("cannot turn {} into {version}", args.bootstrap.display());
    loaded
        .check()
        .with_context(|| format!("{} is not valid", args.bootstrap.display()))?;
    let image = loaded.image().with_context(failed)?;
    let read = start.elapsed().as_secs_f64();
    let blobs = args.blob_dir.clone().map(DirSource);
    let blobs = blobs.as_ref().map(|blobs| blobs as &dyn BlobSource);
    let (image, tables) = builder::transcode(image, version, blobs).with_context(failed)?;
    let bootstrap = builder::encode(&image).with_context(failed)?;
    // All are complete before any gets its name, and those that nothing refers to get theirs first.
    let mut outputs = Vec::new();
    for table in &tables {
        let dir = args.blob_dir.as_deref().unwrap_or(Path::new("."));
        let path = dir.join(table.id.as_str());
        let output = output::begin(&path, &table.bytes, &interrupt.unfinished)?;
        outputs.push((output, path));
    }
    let path = args.output_bootstrap.clone();
    let output = output::begin(&path, &bootstrap, &interrupt.unfinished)?;
    outputs.push((output, path));
    let blobs = image.blobs.iter().map(|blob| blob.id.to_string()).collect();
    let path = Some(args.output_bootstrap.as_path());
    let times = [
        ("load_tree_from_bootstrap", read),
        ("dump_bootstrap", start.elapsed().as_secs_f64() - read),
    ];
    let report =
        CommandReport::new(path, version, blobs, image.compressor).trace(times, Map::new());
    outputs.extend(report::begin(
        &report,
        args.output_json.as_ref(),
        &interrupt.unfinished,
    )?);
    output::commit_all(outputs)?;
    for table in &tables {
        tracing::info!("the chunk table of blob {} is blob {}", table.of, table.id);
    }
    Ok(())
}
