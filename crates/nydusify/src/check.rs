//! `nydusify check`: arguments, and how the result is shown.

use std::io::Write as _;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use image::{Location, Platform, PlatformChoice, Source};
use indicatif::MultiProgress;
use verify::{Error, Options, Report, Side};

use crate::args::unsupported::{Flag, Table, Unsupported};
use crate::args::{Named, Usage, any_path, check_blob_dir, refuse, switch};
use crate::interrupt::Interrupt;
use crate::place::{Places, RegistryArgs};
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

    /// Do not check the certificate of the source's registry
    #[arg(long, env = "SOURCE_INSECURE", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false",
          hide_default_value = true, hide_possible_values = true, value_name = "BOOL", value_parser = switch)]
    source_insecure: bool,

    /// Do not check the certificate of the target's registry
    #[arg(long, env = "TARGET_INSECURE", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false",
          hide_default_value = true, hide_possible_values = true, value_name = "BOOL", value_parser = switch)]
    target_insecure: bool,

    #[command(flatten)]
    registry: RegistryArgs,

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

    /// Accepted and ignored: there is no temporary data
    #[arg(long, env = "WORK_DIR", value_name = "DIR", hide = true, value_parser = any_path())]
    work_dir: Option<PathBuf>,

    /// Accepted and ignored: no second program is needed
    #[arg(long, env = "NYDUS_IMAGE", value_name = "FILE", hide = true, value_parser = any_path())]
    nydus_image: Option<PathBuf>,

    /// Accepted and ignored: no second program is needed
    #[arg(long, env = "NYDUSD", value_name = "FILE", hide = true, value_parser = any_path())]
    nydusd: Option<PathBuf>,

    #[command(flatten)]
    unsupported: Unsupported<Unbuilt>,
}

/// How the result is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// A table, and `verified image` if all is well
    Text,
    /// One JSON document per image, each on its line
    Json,
}

/// Flags for registries and object stores, which come later.
#[derive(Debug, Clone, Copy)]
struct Unbuilt;

impl Table for Unbuilt {
    const FLAGS: &'static [Flag] = &[
        Flag::value("source-backend-type", "BACKEND_TYPE"),
        Flag::value("source-backend-config", "BACKEND_CONFIG"),
        Flag::value("source-backend-config-file", "BACKEND_CONFIG_FILE"),
        Flag::value("target-backend-type", "BACKEND_TYPE"),
        Flag::value("target-backend-config", "BACKEND_CONFIG"),
        Flag::value("target-backend-config-file", "BACKEND_CONFIG_FILE"),
    ];
}

/// Checks, and shows what was found. Success is an image that passed every rule that applies.
pub fn run(args: &CheckArgs) -> Result<ExitCode> {
    refuse(args.unsupported.given())?;
    let named = Named::new(args.target.as_deref(), args.bootstrap.as_deref())?;
    check_blob_dir(args.blob_dir.as_deref())?;
    let interrupt = Interrupt::watch()?;
    let places = Places::new(&args.registry, None, interrupt.cancel());
    let pairs = open(args, named, &places)?;
    let progress = renderer(args.progress, MultiProgress::new());
    let threads = match args.threads {
        Some(threads) => threads,
        None => std::thread::available_parallelism()
            .context("cannot count the processors; use --threads")?,
    };
    let options = Options {
        threads,
        layers: layer::Options::default(),
        cancel: interrupt.cancel(),
        progress: &*progress,
    };
    let mut verified = true;
    for (source, target) in &pairs {
        let report = match verify::check(source.as_ref(), target, &options) {
            Err(Error::Cancelled(_)) => {
                drop(progress);
                eprintln!("error: interrupted");
                return Ok(interrupt.exit_code().unwrap_or(ExitCode::FAILURE));
            }
            result => result?,
        };
        verified &= report.verified;
        show(&report, args.output, pairs.len() > 1).context("cannot write the result")?;
    }
    Ok(if verified {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn open(
    args: &CheckArgs,
    named: Named<'_>,
    places: &Places,
) -> Result<Vec<(Option<Side>, Side)>> {
    let open_image = |name: &str, insecure| -> Result<Arc<Source>> {
        let location: Location = name.parse()?;
        Ok(Arc::new(places.source(&location, insecure)?))
    };
    let choice = match (args.multi_platform, &*args.platform) {
        (true, _) => PlatformChoice::All,
        (false, []) => PlatformChoice::Host,
        (false, platforms) => PlatformChoice::Only(platforms.to_vec()),
    };
    let source = args.source.as_deref().filter(|name| !name.is_empty());
    let source = source
        .map(|name| Ok::<_, anyhow::Error>((open_image(name, args.source_insecure)?, name)))
        .transpose()?;
    let source = source.as_ref().map(|(place, name)| (place, *name));
    match named {
        Named::Bare(bootstrap) => {
            let target = Side::bare(bootstrap, args.blob_dir.as_deref())?;
            // The bare files are the image of one platform, so only one source can be meant.
            let sources = match source {
                Some(source) => verify::images(None, source, &choice)?,
                None => return Ok(vec![(None, target)]),
            };
            match <[_; 1]>::try_from(sources) {
                Ok([(_, source)]) => Ok(vec![(Some(source), target)]),
                Err(_) => Err(Usage(
                    "the source has several images: choose one with --platform".to_owned(),
                )
                .into()),
            }
        }
        Named::Image(target) => Ok(verify::images(
            source,
            (&open_image(target, args.target_insecure)?, target),
            &choice,
        )?),
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
