//! `nydusify index`: what makes an image that nobody converted readable in pieces, made ahead of time.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, anyhow};
use convert::ImageIndex;
use image::{Location, Platform, PlatformChoice, nydus};
use indicatif::MultiProgress;
use progress::Cancel;

use crate::args::{Usage, given};
use crate::convert::check_directory;
use crate::interrupt::Interrupt;
use crate::place::{Places, PushArgs, RegistryArgs, reference};
use crate::progress::{Mode, renderer};

/// Arguments of `nydusify index`.
#[derive(Debug, clap::Args)]
pub struct IndexArgs {
    /// Image to index: a name in a registry, oci:DIR[:TAG], oci-archive:FILE[:TAG] or docker-archive:FILE[:TAG]
    #[arg(value_name = "IMAGE")]
    image: String,

    /// Store the index beside the image in its registry, as one of its referrers
    #[arg(long)]
    push: bool,

    /// Write the index to this file, as an OCI archive
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Directory of the chunk cache of mounts, where indexes are kept in the directory `index` [default:
    /// $XDG_CACHE_HOME/nydusify/blobs or ~/.cache/nydusify/blobs]
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,

    /// Which image of an index of platforms, as OS/ARCHITECTURE [default: this machine's]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,

    /// Do not check the certificate of the image's registry
    #[arg(long)]
    insecure: bool,

    #[command(flatten)]
    registry: RegistryArgs,

    #[command(flatten)]
    push_options: PushArgs,

    /// How to show progress
    #[arg(long, value_enum, default_value_t = Mode::Auto, value_name = "MODE")]
    progress: Mode,
}

/// Makes the index, and prints its digest.
pub fn run(args: &IndexArgs, terminal: MultiProgress) -> Result<ExitCode> {
    let interrupt = Interrupt::watch()?;
    let result = index(args, terminal, interrupt.cancel());
    interrupt.settle(result.map(|()| ExitCode::SUCCESS))
}

fn index(args: &IndexArgs, terminal: MultiProgress, cancel: &Cancel) -> Result<()> {
    let location: Location = args.image.parse()?;
    let output = given(args.output.as_ref());
    if let Some(file) = output {
        check_directory(file)?;
    }
    if args.push && !matches!(location, Location::Registry(_)) {
        return Err(Usage("--push is for images in registries".to_owned()).into());
    }
    let places = Places::new(&args.registry, Some(&args.push_options), cancel);
    let source = places.source(&location, args.insecure)?;
    let choice = match &args.platform {
        Some(platform) => PlatformChoice::Only(vec![platform.clone()]),
        None => PlatformChoice::Host,
    };
    let images = source.manifests(&choice)?;
    let (descriptor, manifest) = images
        .iter()
        .find(|(_, manifest)| !nydus::is_nydus(manifest))
        .ok_or_else(|| anyhow!("{}: it is converted, and needs no index", args.image))?;
    let store = crate::cache::of_indexes(args.cache_dir.as_deref())?;
    let progress = renderer(args.progress, terminal);
    let made = store.make(&source, (descriptor, manifest), None, &*progress, cancel);
    let index = made.with_context(|| format!("cannot index {}", args.image))?;
    drop(progress);
    if let Some(file) = output {
        let target = places.target(
            &Location::OciArchive {
                file: file.to_owned(),
                tag: None,
            },
            false,
        )?;
        index.copy(target, cancel)?;
    }
    if args.push {
        push(&index, &location, &places, args.insecure, cancel)?;
    }
    println!("{}", index.digest());
    Ok(())
}

/// Stores an index beside its image.
pub fn push(
    index: &ImageIndex,
    image: &Location,
    places: &Places,
    insecure: bool,
    cancel: &Cancel,
) -> Result<()> {
    let Location::Registry(name) = image else {
        return Err(Usage("an index is pushed to registries alone".to_owned()).into());
    };
    let beside = reference(name)?.with_digest(*index.digest());
    let target = places.client(insecure)?.target(&beside);
    let pushed = index.copy(target, cancel);
    pushed.with_context(|| format!("cannot store the index of {name}"))
}
