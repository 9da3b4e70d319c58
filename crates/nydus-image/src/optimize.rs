//! `optimize`: what is needed first in a blob of its own.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context as _;
use builder::{Origin, Selection, parse_prefetch_list, write_prefetch_blob};
use clap::Args;

use crate::Usage;
use crate::blobs::{self, BackendArgs, Config};
use crate::interrupt::Interrupt;
use crate::output::{self, Output};
use crate::rewrite::{self, Rewritten};

#[derive(Debug, Args)]
pub struct Optimize {
    /// Bootstrap, or native layer blob with a bootstrap inside
    #[arg(short = 'B', long, value_name = "BOOTSTRAP")]
    bootstrap: PathBuf,
    /// JSON list of the files that are needed first: {"version":"v1","files":[{"path":P,"ranges":[[OFFSET,SIZE],...]},...]}
    #[arg(short = 'p', long, value_name = "FILE")]
    prefetch_files: PathBuf,
    /// Write the new blob into DIR, named by its digest
    #[arg(long, value_name = "DIR")]
    output_blob_dir: PathBuf,
    /// Write the new bootstrap to FILE
    #[arg(
        short = 'O',
        long,
        value_name = "FILE",
        default_value = "optimized_bootstrap"
    )]
    output_bootstrap: PathBuf,
    /// Directory of the blobs, each named by its id
    #[arg(short = 'D', long, value_name = "DIR", conflicts_with = "backend_type")]
    blob_dir: Option<PathBuf>,
    #[command(flatten)]
    backend: BackendArgs,
    /// Configuration of a daemon, which says where the blobs are
    #[arg(short = 'C', long, value_name = "FILE", conflicts_with_all = ["blob_dir", "backend_type"])]
    config: Option<PathBuf>,
    /// Write a report to FILE
    #[arg(short = 'J', long, value_name = "FILE")]
    output_json: Option<PathBuf>,
}

pub fn run(args: &Optimize, interrupt: &Interrupt) -> anyhow::Result<()> {
    output::check_places([Some(&args.output_bootstrap), args.output_json.as_ref()])?;
    let dir = args.output_blob_dir.as_path();
    output::check_dir("--output-blob-dir", dir)?;
    let list = args.prefetch_files.display();
    let text = fs::read(&args.prefetch_files).with_context(|| format!("cannot read {list}"))?;
    let files = parse_prefetch_list(&text).with_context(|| format!("cannot use {list}"))?;
    let start = Instant::now();
    let loaded = rewrite::load(&args.bootstrap)?;
    let failed = || format!("cannot optimize {}", args.bootstrap.display());
    let mut image = loaded.image().with_context(failed)?;
    let read = start.elapsed().as_secs_f64();
    let selection = Selection::new(&image, &files);
    for (path, why) in &selection.left_out {
        tracing::warn!("{path}: {why}: left out");
    }
    let mut outputs = Vec::new();
    if selection.is_empty() {
        tracing::warn!("there is nothing to put first: no blob is written");
    } else {
        let rest = match &args.config {
            Some(config) => Some(Config::read(config)?.open(&interrupt.cancel)?),
            None => blobs::choose(
                None,
                args.blob_dir.as_deref(),
                &args.backend,
                &interrupt.cancel,
            )?,
        };
        if rest.is_none() && loaded.own_blob.is_none() {
            let needed = "say with --blob-dir, --backend-type or --config where the blobs are";
            return Err(Usage(needed.to_owned()).into());
        }
        let origin = Origin {
            source: loaded.source(rest)?,
            loaded: &loaded,
        };
        let options = rewrite::options(interrupt)?;
        let mut out = Output::create_in(dir, "prefetch", &interrupt.unfinished)?;
        let new = write_prefetch_blob(&mut image, &selection, &origin, &options, &mut out)
            .with_context(failed)?;
        tracing::info!("blob {}: {} chunks", new.info.id, new.info.chunk_count);
        outputs.push((out, dir.join(new.info.id.as_str())));
        new.adopt(&mut image);
    }
    rewrite::finish(
        Rewritten {
            image: &image,
            blobs: outputs,
            read,
            start,
        },
        &args.output_bootstrap,
        args.output_json.as_ref(),
        interrupt,
    )
}
