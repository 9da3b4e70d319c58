//! `check`: walks a bootstrap and says what is wrong, or which blobs it needs.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use clap::Args;
use inspect::CommandReport;
use progress::Cancel;
use storage::{BlobSource, DirSource, LoadedBootstrap, load_bootstrap};

use crate::blobs::Config;
use crate::interrupt::Interrupt;
use crate::{output, report};

#[derive(Debug, Args)]
pub struct Check {
    #[command(flatten)]
    pub input: Input,
    /// List every file and every chunk
    #[arg(short = 'v', long)]
    pub verbose: bool,
    /// Write a report to FILE
    #[arg(short = 'J', long, value_name = "FILE")]
    pub output_json: Option<PathBuf>,
}

/// A bootstrap, with or without its flag.
#[derive(Debug, Args)]
pub struct BootstrapArg {
    /// Bootstrap, or native layer blob with a bootstrap inside
    #[arg(value_name = "BOOTSTRAP", required_unless_present = "bootstrap_flag")]
    bootstrap: Option<PathBuf>,
    /// The same
    #[arg(
        short = 'B',
        long = "bootstrap",
        value_name = "BOOTSTRAP",
        conflicts_with = "bootstrap"
    )]
    bootstrap_flag: Option<PathBuf>,
}

impl BootstrapArg {
    /// Path of the bootstrap.
    pub fn path(&self) -> anyhow::Result<&Path> {
        let path = self.bootstrap.as_deref().or(self.bootstrap_flag.as_deref());
        path.context("there is no bootstrap to look at")
    }
}

/// The bootstrap that `check` and `inspect` look at. With the flag its blobs are taken as unreachable.
#[derive(Debug, Args)]
pub struct Input {
    #[command(flatten)]
    bootstrap: BootstrapArg,
    /// Configuration of a daemon, which says where the blobs are
    #[arg(short = 'C', long, value_name = "FILE", conflicts_with = "blob_dir")]
    config: Option<PathBuf>,
    /// Directory of the blobs, each named by its id
    #[arg(short = 'D', long, value_name = "DIR")]
    blob_dir: Option<PathBuf>,
}

impl Input {
    /// Path of the bootstrap.
    pub fn path(&self) -> anyhow::Result<&Path> {
        self.bootstrap.path()
    }

    pub fn load(&self) -> anyhow::Result<LoadedBootstrap> {
        Ok(load_bootstrap(self.path()?)?)
    }

    /// Where blobs can be looked at. A configuration has to be one even if they cannot.
    pub fn blobs(&self, cancel: &Cancel) -> anyhow::Result<Option<Arc<dyn BlobSource>>> {
        let source: Arc<dyn BlobSource> = match (&self.config, &self.blob_dir) {
            (Some(config), _) => Config::read(config)?.open(cancel)?,
            (None, Some(dir)) => Arc::new(DirSource(dir.clone())),
            (None, None) => return Ok(None),
        };
        Ok(Some(source).filter(|_| self.bootstrap.bootstrap_flag.is_none()))
    }
}

pub fn run(args: &Check, interrupt: &Interrupt) -> anyhow::Result<()> {
    if let Some(path) = &args.output_json {
        output::check_place(path)?;
    }
    let start = Instant::now();
    let blobs = args.input.blobs(&interrupt.cancel)?;
    let loaded = args.input.load()?;
    let path = args.input.path()?;
    loaded
        .check()
        .with_context(|| format!("{} is not valid", path.display()))?;
    if let Some(source) = blobs {
        // The file that the bootstrap was found in is a blob, too.
        let source = loaded.source(Some(source))?;
        inspect::check_blobs(&loaded.bootstrap, &*source)
            .with_context(|| format!("{} and its blobs do not fit together", path.display()))?;
    }
    let checked = start.elapsed().as_secs_f64();
    if let Err(error) = print(args, &loaded)
        && !error.is_broken_pipe()
    {
        return Err(error.into());
    }
    if let Some(json) = &args.output_json {
        let report = CommandReport::of_check(path, &loaded.bootstrap, checked);
        report::write_compact(&report, json, &interrupt.unfinished)?;
    }
    Ok(())
}

fn print(args: &Check, loaded: &LoadedBootstrap) -> Result<(), inspect::Error> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    if args.verbose {
        inspect::write_files(loaded, &mut out)?;
    }
    inspect::write_valid(&mut out)?;
    inspect::write_blobs(loaded, &mut out)?;
    Ok(out.flush()?)
}
