//! `stat`: figures of images, and how many chunks they share.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use clap::builder::PossibleValuesParser;
use inspect::Statistics;
use tree::Image;

use crate::blobs::Config;
use crate::interrupt::Interrupt;
use crate::output;

#[derive(Debug, Args)]
pub struct Stat {
    /// Bootstrap, or native layer blob with a bootstrap inside
    #[arg(
        short = 'B',
        long,
        value_name = "BOOTSTRAP",
        required_unless_present = "blob_dir"
    )]
    bootstrap: Option<PathBuf>,
    /// Directory of bootstraps that are counted together: its files without extension; what is no bootstrap is skipped
    #[arg(short = 'D', long, value_name = "DIR")]
    blob_dir: Option<PathBuf>,
    /// Bootstrap to compare with the others
    #[arg(short = 'T', long, value_name = "BOOTSTRAP")]
    target: Option<PathBuf>,
    /// Configuration of a daemon; not needed, for bootstraps alone are read
    #[arg(short = 'C', long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Digester of the chunks; not needed, for bootstraps name it
    #[arg(long, value_parser = PossibleValuesParser::new(["blake3", "sha256"]))]
    digester: Option<String>,
    /// Write the figures to FILE instead of the standard output
    #[arg(short = 'J', long, value_name = "FILE")]
    output_json: Option<PathBuf>,
}

pub fn run(args: &Stat, interrupt: &Interrupt) -> anyhow::Result<()> {
    if let Some(path) = &args.config {
        Config::read(path)?;
    }
    if let Some(path) = &args.output_json {
        output::check_place(path)?;
    }
    // As with the deployed tool, a bootstrap goes before a directory.
    let dir = args
        .blob_dir
        .as_deref()
        .filter(|_| args.bootstrap.is_none());
    let mut statistics = Statistics::new(dir.is_some());
    if let Some(path) = &args.bootstrap {
        statistics.add_base(&load(path)?);
    }
    let mut skipped = 0;
    for path in dir.map_or(Ok(Vec::new()), |dir| files(dir, args.target.as_deref()))? {
        interrupt.cancel.check()?;
        match load(&path) {
            Ok(image) => statistics.add_base(&image),
            Err(error) => {
                tracing::debug!("skipped: {error:#}");
                skipped += 1;
            }
        }
    }
    if skipped != 0 {
        tracing::info!(
            "skipped {skipped} files that cannot be read as bootstraps (--log-level debug says why)"
        );
    }
    if let Some(path) = &args.target {
        statistics.add_target(&load(path)?);
    }
    match &args.output_json {
        Some(path) => {
            let text = serde_json::to_vec(&statistics).context("cannot encode the figures")?;
            output::write(path, &text, &interrupt.unfinished)
        }
        None => match print(&statistics) {
            Err(error) if !error.is_broken_pipe() => Err(error.into()),
            _ => Ok(()),
        },
    }
}

fn print(statistics: &Statistics) -> Result<(), inspect::Error> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    statistics.write(&mut out)?;
    Ok(out.flush()?)
}

fn load(path: &Path) -> anyhow::Result<Image> {
    let image = storage::load_bootstrap(path)?.image();
    image.with_context(|| format!("cannot load {}", path.display()))
}

/// The files of a directory that may be bootstraps, but for the target, in the order of their names.
fn files(dir: &Path, target: Option<&Path>) -> anyhow::Result<Vec<PathBuf>> {
    let failed = || format!("cannot read {}", dir.display());
    let target = target.and_then(|path| fs::canonicalize(path).ok());
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).with_context(failed)? {
        let path = entry.with_context(failed)?.path();
        let is_target = || target.is_some() && fs::canonicalize(&path).ok() == target;
        if path.extension().is_none() && path.is_file() && !is_target() {
            paths.push(path);
        }
    }
    paths.sort_unstable();
    Ok(paths)
}
