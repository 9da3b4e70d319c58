//! `nydusify copy`: arguments, and what becomes of them.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use convert::CopyOptions;
use image::{Location, Platform, PlatformChoice, Source, Store};
use indicatif::MultiProgress;
use progress::Cancel;

use crate::args::{Usage, any_path, given, switch};
use crate::backend::SourceSide;
use crate::convert::{check_directory, write_report};
use crate::interrupt::Interrupt;
use crate::place::{InsecureArgs, Places, PushArgs, RegistryArgs};
use crate::progress::{Mode, renderer};

/// Arguments of `nydusify copy`.
#[derive(Debug, clap::Args)]
pub struct CopyArgs {
    /// Image to copy: a name in a registry, oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:TAG], or
    /// file://FILE for an archive of either kind, which may be compressed with gzip or zstd
    #[arg(long, env = "SOURCE", value_name = "IMAGE")]
    source: String,

    /// Where the copy goes: a name in a registry, oci:DIR[:TAG], oci-archive:FILE[:TAG], or file://FILE for an OCI
    /// archive
    #[arg(long, env = "TARGET", value_name = "IMAGE")]
    target: String,

    #[command(flatten)]
    insecure: InsecureArgs,

    #[command(flatten)]
    registry: RegistryArgs,

    #[command(flatten)]
    push: PushArgs,

    /// Which images of an index to copy, as OS/ARCHITECTURE[/VARIANT], separated by commas
    /// [default: linux on this machine's architecture]
    #[arg(long, value_name = "PLATFORMS", value_delimiter = ',')]
    platform: Vec<Platform>,

    /// Copy the images of all platforms, and the index as it is
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false",
          hide_default_value = true, hide_possible_values = true, value_name = "BOOL", value_parser = switch)]
    all_platforms: bool,

    /// How to show progress
    #[arg(long, value_enum, default_value_t = Mode::Auto, value_name = "MODE")]
    progress: Mode,

    /// Write sizes and times as JSON to this file
    #[arg(long, env = "OUTPUT_JSON", value_name = "FILE", value_parser = any_path())]
    output_json: Option<PathBuf>,

    /// Accepted and ignored: there is no temporary data but a decompressed archive, in the system's directory for it
    #[arg(long, env = "WORK_DIR", value_name = "DIR", hide = true, value_parser = any_path())]
    work_dir: Option<PathBuf>,

    /// Accepted and ignored: no second program is needed
    #[arg(long, env = "NYDUS_IMAGE", value_name = "FILE", hide = true, value_parser = any_path())]
    nydus_image: Option<PathBuf>,

    #[command(flatten)]
    source_backend: SourceSide,
}

/// Copies.
pub fn run(args: &CopyArgs, terminal: MultiProgress) -> Result<ExitCode> {
    let output = given(args.output_json.as_ref());
    if let Some(path) = output {
        check_directory(path)?;
    }
    let target = Place::parse(&args.target)?;
    target.check_target()?;
    let source = Place::parse(&args.source)?;
    let options = CopyOptions {
        platform: match (args.all_platforms, &*args.platform) {
            (true, _) => PlatformChoice::All,
            (false, []) => PlatformChoice::Host,
            (false, platforms) => PlatformChoice::Only(platforms.to_vec()),
        },
        lanes: CopyOptions::LANES,
    };
    let interrupt = Interrupt::watch()?;
    let places = Places::new(&args.registry, Some(&args.push), interrupt.cancel());
    let progress = renderer(args.progress, terminal);
    let backend = args.source_backend.choice().open(&places, None)?;
    let backend = backend.map(|backend| backend as Arc<dyn Store>);
    let result = source
        .open(&places, args.insecure.source_insecure, interrupt.cancel())
        .and_then(|source| {
            let source = source.with_backend(backend);
            let target = places.target(&target.location(&source), args.insecure.target_insecure)?;
            let cancel = interrupt.cancel();
            Ok(convert::copy_image(
                &source, target, &options, &*progress, cancel,
            )?)
        });
    drop(progress);
    interrupt.settle(result.and_then(|report| {
        if let Some(path) = output {
            write_report(path, &report)?;
        }
        tracing::debug!("wrote {} as {}", report.digest, args.target);
        Ok(ExitCode::SUCCESS)
    }))
}

/// A place as the deployed tool's `copy` spells it, or as all commands do.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// `file://FILE`: an archive.
    File(PathBuf),
    /// All else.
    Location(Location),
}

impl Place {
    fn parse(text: &str) -> Result<Self> {
        match text.strip_prefix("file://") {
            Some("") => Err(Usage(format!("{text:?} names no file")).into()),
            Some(path) => Ok(Self::File(path.into())),
            None => Ok(Self::Location(text.parse()?)),
        }
    }

    fn check_target(&self) -> Result<(), Usage> {
        match self {
            Self::Location(location @ Location::DockerArchive { .. }) => Err(Usage(format!(
                "docker archives can only be read: write an oci-archive: instead of {location}"
            ))),
            _ => Ok(()),
        }
    }

    fn open(&self, places: &Places, insecure: bool, cancel: &Cancel) -> Result<Source> {
        match self {
            Self::File(file) => Ok(convert::open_archive(file, cancel)?),
            Self::Location(location) => places.source(location, insecure),
        }
    }

    /// Where a copy of `source` goes. An archive remembers the name of the image.
    fn location(&self, source: &Source) -> Location {
        match self {
            Self::File(file) => Location::OciArchive {
                file: file.clone(),
                tag: source
                    .name()
                    .filter(|name| !name.contains('@'))
                    .map(str::to_owned),
            },
            Self::Location(location) => location.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deployed_spelling_of_archives_is_read() {
        assert_eq!(
            Place::parse("file:///tmp/x.tar").unwrap(),
            Place::File("/tmp/x.tar".into())
        );
        assert_eq!(
            Place::parse("file://x.tar").unwrap(),
            Place::File("x.tar".into())
        );
        assert!(Place::parse("file://").is_err());
        assert!(matches!(
            Place::parse("quay.io/a:b").unwrap(),
            Place::Location(Location::Registry(_))
        ));
        let docker = Place::parse("docker-archive:x.tar").unwrap();
        assert!(docker.check_target().is_err());
    }
}
