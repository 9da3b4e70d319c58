//! `compact`: fewer and smaller blobs for an image.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use builder::{CompactOptions, CompactPlan, Origin, compact_group};
use clap::Args;

use crate::blobs::{BackendArgs, FirstOf};
use crate::dictionary;
use crate::interrupt::Interrupt;
use crate::output::{self, Output};
use crate::rewrite::{self, Rewritten};

#[derive(Debug, Args)]
pub struct Compact {
    /// Bootstrap, or native layer blob with a bootstrap inside
    #[arg(short = 'B', long, value_name = "BOOTSTRAP")]
    bootstrap: PathBuf,
    /// Directory of blobs, each named by its id: looked at first, and where new ones are written to
    #[arg(short = 'D', long, value_name = "DIR")]
    blob_dir: PathBuf,
    #[command(flatten)]
    backend: BackendArgs,
    /// Write a blob again if less than N percent of it are used
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u8).range(0..=100))]
    min_used_ratio: u8,
    /// Put blobs of less than N bytes together
    #[arg(long, value_name = "N", default_value_t = 10 << 20)]
    compact_blob_size: u64,
    /// Most bytes of a blob that was put together
    #[arg(long, value_name = "N", default_value_t = 100 << 20)]
    max_compact_size: u64,
    /// Leave images with fewer than N blobs as they are
    #[arg(long, value_name = "N", default_value_t = 32)]
    layers_to_compact: usize,
    /// Bootstrap of a chunk dictionary, whose blobs are left as they are: PATH or bootstrap=PATH
    #[arg(long, value_name = "ARG")]
    chunk_dict: Option<String>,
    /// Write the new bootstrap to FILE [default: that of --bootstrap with the extension bootstrap.compact]
    #[arg(short = 'O', long, value_name = "FILE")]
    output_bootstrap: Option<PathBuf>,
    /// Write a report to FILE
    #[arg(short = 'J', long, value_name = "FILE")]
    output_json: Option<PathBuf>,
}

pub fn run(args: &Compact, interrupt: &Interrupt) -> anyhow::Result<()> {
    let output = match &args.output_bootstrap {
        Some(path) => path.clone(),
        None => args.bootstrap.with_extension("bootstrap.compact"),
    };
    output::check_places([Some(&output), args.output_json.as_ref()])?;
    let dir = args.blob_dir.as_path();
    output::check_dir("--blob-dir", dir)?;
    let keep = args
        .chunk_dict
        .as_deref()
        .map(dictionary::blobs)
        .transpose()?;
    let start = Instant::now();
    let loaded = rewrite::load(&args.bootstrap)?;
    let failed = || format!("cannot compact {}", args.bootstrap.display());
    let mut image = loaded.image().with_context(failed)?;
    let read = start.elapsed().as_secs_f64();
    let wanted = CompactOptions {
        min_used_ratio: args.min_used_ratio,
        small: args.compact_blob_size,
        merged_max: args.max_compact_size,
        blobs_min: args.layers_to_compact,
        keep: keep.unwrap_or_default(),
    };
    let plan = CompactPlan::new(&mut image, &wanted).with_context(failed)?;
    if plan.is_empty() {
        tracing::info!("nothing to compact in {}", args.bootstrap.display());
        return Ok(());
    }
    let rest = args.backend.open(&interrupt.cancel)?;
    let origin = Origin {
        source: loaded.source(Some(Arc::new(FirstOf::new(dir, rest))))?,
        loaded: &loaded,
    };
    let options = rewrite::options(interrupt)?;
    let mut blobs = Vec::new();
    for (number, group) in plan.groups.iter().enumerate() {
        let mut out = Output::create_in(dir, &format!("compact-{number}"), &interrupt.unfinished)?;
        let new = compact_group(&image, group, &origin, &options, &mut out).with_context(failed)?;
        let ids: Vec<_> = group
            .iter()
            .map(|&index| image.blobs[index as usize].id.as_str())
            .collect();
        tracing::info!("blob {} replaces {}", new.info.id, ids.join(", "));
        blobs.push((out, new));
    }
    for id in &plan.unused {
        tracing::info!("blob {id} is not used any more");
    }
    let mut outputs = Vec::new();
    for (out, new) in blobs {
        outputs.push((out, dir.join(new.info.id.as_str())));
        new.adopt(&mut image);
    }
    image.compact().with_context(failed)?;
    rewrite::finish(
        Rewritten {
            image: &image,
            blobs: outputs,
            read,
            start,
        },
        &output,
        args.output_json.as_ref(),
        interrupt,
    )
}
