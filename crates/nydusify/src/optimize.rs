//! `nydusify optimize`: arguments, and what becomes of them.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use clap::builder::PossibleValuesParser;
use convert::First;
use image::{Location, Store};
use indicatif::MultiProgress;
use trace::Trace;

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

    /// Trace of a start, which `mount --trace` or `run --trace` has recorded of this image: what was read is needed first, in
    /// that order. May be given several times; what only later ones have comes behind
    #[arg(long, value_name = "FILE", action = clap::ArgAction::Append)]
    trace: Vec<PathBuf>,

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
    let wanted = Wanted::read(args)?;
    let interrupt = Interrupt::watch()?;
    let cancel = interrupt.cancel();
    let places = Places::new(&args.registry, Some(&args.push), cancel);
    let backend = args.source_backend.choice().open(&places, None)?;
    let backend = backend.map(|backend| backend as Arc<dyn Store>);
    let progress = renderer(args.progress, terminal);
    let result = places
        .source(&source, args.insecure.source_insecure)
        .and_then(|source| {
            let source = source.with_backend(backend);
            let target = places.target(&target, args.insecure.target_insecure)?;
            Ok(convert::optimize_image(
                &source,
                target,
                wanted.first(),
                &*progress,
                cancel,
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

/// What is needed first, as it was named.
enum Wanted {
    List(Vec<u8>),
    Traces(Vec<(PathBuf, Trace)>),
}

impl Wanted {
    fn read(args: &OptimizeArgs) -> Result<Self> {
        match (given(args.prefetch_files.as_ref()), &*args.trace) {
            (Some(path), []) => {
                let list = std::fs::read(path);
                let list = list.with_context(|| format!("cannot read {}", path.display()))?;
                Ok(Self::List(list))
            }
            // The variable may be set for other images.
            (_, traces @ [_, ..]) => {
                let load = |path: &PathBuf| Ok((path.clone(), Trace::load(path)?));
                let traces = traces.iter().map(load).collect::<Result<_>>()?;
                Ok(Self::Traces(traces))
            }
            (None, []) => {
                let reason = "name a --trace of a start, or with --prefetch-files the list of the files that are needed first";
                Err(Usage(reason.to_owned()).into())
            }
        }
    }

    fn first(&self) -> First<'_> {
        match self {
            Self::List(list) => First::List(list),
            Self::Traces(traces) => First::Traces(traces),
        }
    }
}
