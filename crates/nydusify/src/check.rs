//! `nydusify check`: arguments, and how the result is shown.

mod dump;

use std::io::Write as _;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use ::backend::Blobs;
use anyhow::{Context as _, Result};
use convert::IndexStore;
use image::{Location, Manifest, Platform, PlatformChoice, Source, Store, nydus};
use indicatif::MultiProgress;
use progress::{Cancel, Silent};
use tempfile::TempDir;
use verify::{Files, Options, Report, Side};

use crate::args::{Named, Usage, any_path, check_blob_dir, given};
use crate::backend::{SourceSide, TargetSide};
use crate::interrupt::Interrupt;
use crate::place::{InsecureArgs, Places, RegistryArgs};
use crate::progress::{Mode, renderer};

/// Arguments of `nydusify check`.
#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    /// Image to compare with: a name in a registry, oci:DIR[:TAG], oci-archive:FILE[:TAG] or docker-archive:FILE[:TAG]
    #[arg(long, env = "SOURCE", value_name = "IMAGE")]
    source: Option<String>,

    /// Image to check: a name in a registry, oci:DIR[:TAG] or oci-archive:FILE[:TAG]
    #[arg(long, env = "TARGET", value_name = "IMAGE")]
    target: Option<String>,

    #[command(flatten)]
    insecure: InsecureArgs,

    #[command(flatten)]
    registry: RegistryArgs,

    #[command(flatten)]
    source_backend: SourceSide,

    #[command(flatten)]
    target_backend: TargetSide,

    /// Check bare RAFS instead of an image: a bootstrap, or a blob that holds its bootstrap
    #[arg(long, value_name = "FILE")]
    bootstrap: Option<PathBuf>,

    /// Directory with the blobs of --bootstrap, each named by its id [default: check the bootstrap alone]
    #[arg(long, value_name = "DIR", requires = "bootstrap")]
    blob_dir: Option<PathBuf>,

    /// Check the images of all platforms of an index
    #[arg(long, env = "MULTI_PLATFORM", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value = "false", hide_default_value = true, hide_possible_values = true, value_name = "BOOL",
          value_parser = crate::args::switch, conflicts_with = "platform")]
    multi_platform: bool,

    /// Which images of an index to check, as OS/ARCHITECTURE, separated by commas [default: this machine's]
    #[arg(long, value_name = "PLATFORMS", value_delimiter = ',')]
    platform: Vec<Platform>,

    /// How to write the result
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Output::Text)]
    output: Output,

    /// Threads to use [default: one per processor]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,

    /// How to show progress
    #[arg(long, value_enum, default_value_t = Mode::Auto, value_name = "MODE")]
    progress: Mode,

    /// Write what is looked at to DIR: documents, and the files of the bootstrap layer, below source/ and target/,
    /// which replace those of a former check [default: nothing is written]
    #[arg(long, value_name = "DIR", value_parser = any_path())]
    work_dir: Option<PathBuf>,

    /// Accepted and ignored: no second program is needed
    #[arg(long, env = "NYDUS_IMAGE", value_name = "FILE", hide = true, value_parser = any_path())]
    nydus_image: Option<PathBuf>,

    /// Accepted and ignored: no second program is needed
    #[arg(long, env = "NYDUSD", value_name = "FILE", hide = true, value_parser = any_path())]
    nydusd: Option<PathBuf>,
}

/// How the result is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// A table, and `verified image` if all is well
    Text,
    /// One JSON document per image, each on its line
    Json,
}

/// Checks, and shows what was found. Success is an image that passed every rule that applies.
pub fn run(args: &CheckArgs) -> Result<ExitCode> {
    let named = Named::new(args.target.as_deref(), args.bootstrap.as_deref())?;
    check_blob_dir(args.blob_dir.as_deref())?;
    let interrupt = Interrupt::watch()?;
    interrupt.settle(check(args, named, &interrupt))
}

fn check(args: &CheckArgs, named: Named<'_>, interrupt: &Interrupt) -> Result<ExitCode> {
    let places = Places::new(&args.registry, None, interrupt.cancel());
    let Opened {
        source,
        target,
        pairs,
        _indexes,
        drop_estargz,
    } = open(args, named, &places, interrupt.cancel())?;
    if let Some(dir) = given(args.work_dir.as_ref()) {
        for (old, new) in &pairs {
            let dir = match pairs.len() {
                1 => dir.to_owned(),
                _ => dump::platform_dir(dir, new),
            };
            let old = source.as_deref().zip(old.as_ref());
            dump::write(&dir, old, (target.as_deref(), new))?;
        }
    }
    let progress = renderer(args.progress, MultiProgress::new());
    let threads = match args.threads {
        Some(threads) => threads,
        None => std::thread::available_parallelism()
            .context("cannot count the processors; use --threads")?,
    };
    let options = Options {
        threads,
        layers: layer::Options {
            drop_estargz,
            ..layer::Options::default()
        },
        cancel: interrupt.cancel(),
        progress: &*progress,
    };
    let mut verified = true;
    for (source, target) in &pairs {
        let report = verify::check(source.as_ref(), target, &options)?;
        // A place that was left in the middle of a read has no verdict.
        interrupt.cancel().check()?;
        verified &= report.verified;
        show(&report, args.output, pairs.len() > 1).context("cannot write the result")?;
    }
    Ok(if verified {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What is to be compared, and where it lies.
struct Opened {
    /// The place of the sources, if there are any.
    source: Option<Arc<Source>>,
    /// The place of the targets, unless they are bare files.
    target: Option<Arc<Source>>,
    pairs: Vec<(Option<Side>, Side)>,
    /// Indexes of images that nobody converted, as long as they are looked at.
    _indexes: Option<TempDir>,
    /// What only helps readers of eStargz layers does not count.
    drop_estargz: bool,
}

fn open(args: &CheckArgs, named: Named<'_>, places: &Places, cancel: &Cancel) -> Result<Opened> {
    let open_image = |name: &str, insecure, backend: Option<&Arc<Blobs>>| -> Result<Arc<Source>> {
        let location: Location = name.parse()?;
        let backend = backend.map(|backend| Arc::clone(backend) as Arc<dyn Store>);
        let source = places.source(&location, insecure)?;
        Ok(Arc::new(source.with_backend(backend)))
    };
    let source_backend = args.source_backend.choice().open(places, None)?;
    let target_backend = args.target_backend.choice().open(places, None)?;
    let choice = match (args.multi_platform, &*args.platform) {
        (true, _) => PlatformChoice::All,
        (false, []) => PlatformChoice::Host,
        (false, platforms) => PlatformChoice::Only(platforms.to_vec()),
    };
    let name = args.source.as_deref().filter(|name| !name.is_empty());
    let source = name
        .map(|name| open_image(name, args.insecure.source_insecure, source_backend.as_ref()))
        .transpose()?;
    let named_source = source.as_ref().zip(name);
    let mut indexes = None;
    let (target, pairs) = match named {
        Named::Bare(bootstrap) => {
            let mut side = Side::bare(bootstrap, args.blob_dir.as_deref())?;
            if let (
                Files::Rafs {
                    blobs: blobs @ None,
                    ..
                },
                Some(backend),
            ) = (&mut side.files, target_backend)
            {
                *blobs = Some(backend);
            }
            (None, vec![(bare_source(named_source, &choice)?, side)])
        }
        Named::Image(name) => {
            let target = open_image(name, args.insecure.target_insecure, target_backend.as_ref())?;
            let mut pairs = verify::images(named_source, (&target, name), &choice)?;
            if source.is_none() {
                indexes = with_indexes(&mut pairs, &target, &choice, cancel)?;
            }
            (Some(target), pairs)
        }
    };
    Ok(Opened {
        source,
        target,
        drop_estargz: indexes.is_some() && has_pinned_toc(&pairs),
        _indexes: indexes,
        pairs,
    })
}

/// Whether a layer of the sources is described by its table of contents, in an index.
fn has_pinned_toc(pairs: &[(Option<Side>, Side)]) -> bool {
    let documents = pairs
        .iter()
        .filter_map(|(old, _)| old.as_ref()?.document.as_ref());
    let mut layers = documents.flat_map(|document| &document.manifest.layers);
    layers.any(convert::has_pinned_toc)
}

/// Has images that nobody converted compared with what a mount would make of them: an index, in the directory that is
/// returned.
fn with_indexes(
    pairs: &mut [(Option<Side>, Side)],
    target: &Arc<Source>,
    choice: &PlatformChoice,
    cancel: &Cancel,
) -> Result<Option<TempDir>> {
    let mut dir = None;
    for (old, new) in pairs {
        let Some(document) = new.document.as_ref() else {
            continue;
        };
        if nydus::is_nydus(&document.manifest) {
            continue;
        }
        let images = target.manifests(choice)?;
        let same = |(_, manifest): &&(_, Manifest)| *manifest == document.manifest;
        let Some((descriptor, manifest)) = images.iter().find(same) else {
            continue;
        };
        if dir.is_none() {
            dir = Some(tempfile::tempdir().context("a directory for an index")?);
        }
        let Some(store) = dir.as_ref().map(|dir| IndexStore::new(dir.path())) else {
            continue;
        };
        let index = store.make(target, (descriptor, manifest), None, &Silent, cancel);
        let index = index.with_context(|| format!("cannot index {}", new.name))?;
        let source = index.source.with_backend(Some(target.shared_store()));
        let name = format!("index of {}", new.name);
        let platform = document.platform.clone();
        let index = Side::image(&Arc::new(source), name, index.manifest)?.on(platform);
        *old = Some(std::mem::replace(new, index));
    }
    Ok(dir)
}

/// What bare files are compared with: they are the image of one platform, so only one source can be meant.
fn bare_source(
    source: Option<(&Arc<Source>, &str)>,
    choice: &PlatformChoice,
) -> Result<Option<Side>> {
    let Some(source) = source else {
        return Ok(None);
    };
    match <[_; 1]>::try_from(verify::images(None, source, choice)?) {
        Ok([(_, source)]) => Ok(Some(source)),
        Err(_) => Err(Usage(
            "the source has several images: choose one with --platform".to_owned(),
        )
        .into()),
    }
}

/// Writes a report; `headed` says whose it is, if there are several.
fn show(report: &Report, output: Output, headed: bool) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    match output {
        Output::Json => {
            serde_json::to_writer(&mut out, report)?;
            writeln!(out)
        }
        Output::Text => {
            if headed {
                writeln!(out, "{}:", report.target)?;
            }
            write!(out, "{report}")?;
            if report.verified {
                writeln!(out, "verified image")
            } else {
                writeln!(out, "NOT verified: {}", report.target)
            }
        }
    }
}
