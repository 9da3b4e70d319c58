//! `nydusify optimize`: arguments, and what becomes of them.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use clap::builder::PossibleValuesParser;
use image::{Location, Store};
use indicatif::MultiProgress;

use crate::args::{Usage, any_path, given};
use crate::backend::SourceSide;
use crate::interrupt::Interrupt;
use crate::place::{InsecureArgs, Places, PushArgs, RegistryArgs};
use crate::progress::{Mode, renderer};

/// Arguments of `nydusify optimize`.
#[derive(Debug, clap::Args)]
pub struct OptimizeArgs {
    /// Nydus image: a name in a registry, oci:DIR[:TAG] or oci-archive:FILE[:TAG]
    #[arg(long, env = "SOURCE", value_name = "IMAGE")]
    source: String,

    /// Where the optimized image goes: a name in a registry, oci:DIR[:TAG] or oci-archive:FILE[:TAG]
    #[arg(long, env = "TARGET", value_name = "IMAGE")]
    target: String,

    /// JSON list of the files that are needed first:
    /// {"version":"v1","files":[{"path":P,"ranges":[[OFFSET,SIZE],...]},...]}
    #[arg(long, env = "PREFETCH_FILES", value_name = "FILE", value_parser = any_path())]
    prefetch_files: Option<PathBuf>,

    /// What to do with them
    #[arg(long, env = "OPTIMIZE_POLICY", value_name = "POLICY", default_value = "separated-blob-with-prefetch-files",
          value_parser = PossibleValuesParser::new(["separated-blob-with-prefetch-files"]))]
    policy: String,

    #[command(flatten)]
    insecure: InsecureArgs,

    #[command(flatten)]
    registry: RegistryArgs,

    #[command(flatten)]
    push: PushArgs,

    /// How to show progress
    #[arg(long, value_enum, default_value_t = Mode::Auto, value_name = "MODE")]
    progress: Mode,

    /// Accepted and ignored: there is no temporary data
    #[arg(long, env = "WORK_DIR", value_name = "DIR", hide = true, value_parser = any_path())]
    work_dir: Option<PathBuf>,

    /// Accepted and ignored: no second program is needed
    #[arg(long, env = "NYDUS_IMAGE", value_name = "FILE", hide = true, value_parser = any_path())]
    nydus_image: Option<PathBuf>,

    #[command(flatten)]
    source_backend: SourceSide,
}

/// Optimizes.
pub fn run(args: &OptimizeArgs, terminal: MultiProgress) -> Result<ExitCode> {
    let source: Location = args.source.parse()?;
    let target: Location = args.target.parse()?;
    if let location @ Location::DockerArchive { .. } = &target {
        let reason = format!(
            "docker archives can only be read: write an oci-archive: instead of {location}"
        );
        return Err(Usage(reason).into());
    }
    let Some(path) = given(args.prefetch_files.as_ref()) else {
        let reason = "--prefetch-files has to name the list of the files that are needed first";
        return Err(Usage(reason.to_owned()).into());
    };
    let list = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let interrupt = Interrupt::watch()?;
    let cancel = interrupt.cancel();
    let places = Places::new(&args.registry, Some(&args.push), cancel);
    let backend = args.source_backend.choice().open(&places)?;
    let backend = backend.map(|backend| Arc::new(backend) as Arc<dyn Store>);
    let progress = renderer(args.progress, terminal);
    let result = places
        .source(&source, args.insecure.source_insecure)
        .and_then(|source| {
            let source = source.with_backend(backend);
            let target = places.target(&target, args.insecure.target_insecure)?;
            Ok(convert::optimize_image(
                &source, target, &list, &*progress, cancel,
            )?)
        });
    drop(progress);
    interrupt.settle(result.map(|report| {
        for (path, why) in &report.left_out {
            tracing::warn!("{path}: {why}: left out");
        }
        match &report.blob {
            Some(blob) => tracing::info!("blob {}: {} bytes", blob.digest.hex(), blob.size),
            None => tracing::warn!("there is nothing to put first: the image is as it was"),
        }
        tracing::debug!("wrote {} as {}", report.digest, args.target);
        ExitCode::SUCCESS
    }))
}
