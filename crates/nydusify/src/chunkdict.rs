//! `nydusify chunkdict`: arguments, and what becomes of them.

mod report;
pub mod shelf;

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use chunkdict_store::{Store, Writer};
use clap::{ArgAction, Subcommand};
use image::{Location, Platform, PlatformChoice};
use indicatif::MultiProgress;
use serde::Serialize;

use crate::args::{Usage, any_path, switch};
use crate::backend::DictionaryOptions;
use crate::convert::{check_directory, write_report};
use crate::interrupt::Interrupt;
use crate::place::{InsecureArgs, Places, PushArgs, RegistryArgs, duration};
use crate::progress::{Mode, renderer};
use report::{Added, Collected, Found, Listed, Output, Rebuilt, Statistics, Verified};
use shelf::{Named, bare_name, name};

/// Arguments of `nydusify chunkdict`.
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct ChunkdictArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make one dictionary image of the chunks that at least two of several images have
    Generate(Box<GenerateArgs>),
    /// Take Nydus images up into a dictionary directory, which is made if there is none
    Add(AddArgs),
    /// Take images out of a dictionary directory: conversions do not use them any more
    Rm(RemoveArgs),
    /// List the images of a dictionary directory
    Ls(ShowArgs),
    /// Show which images of a dictionary directory share how much
    Stat(ShowArgs),
    /// Show where chunks lie
    Query(QueryArgs),
    /// Prove that every image, blob and chunk of a dictionary directory is still where it was
    Verify(VerifyArgs),
    /// Forget images that were removed or are gone, and delete what nobody uses any more
    Gc(GcArgs),
    /// Make a damaged dictionary directory anew of its images
    Rebuild(RebuildArgs),
    /// Write a dictionary directory as a bootstrap that every builder reads
    Export(ExportArgs),
}

/// Which dictionary.
#[derive(Debug, clap::Args)]
struct DictArgs {
    /// Directory of the dictionary
    #[arg(long, value_name = "DIR")]
    dict: PathBuf,
}

/// Where the images of a dictionary are read.
#[derive(Debug, clap::Args)]
struct ReadArgs {
    /// Do not check the certificates of registries
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false",
          hide_default_value = true, hide_possible_values = true, value_name = "BOOL", value_parser = switch)]
    insecure: bool,

    #[command(flatten)]
    registry: RegistryArgs,
}

/// Which images of an index.
#[derive(Debug, clap::Args)]
struct PlatformArgs {
    /// Which images of an index to take, as OS/ARCHITECTURE[/VARIANT], separated by commas
    /// [default: linux on this machine's architecture]
    #[arg(long, value_name = "PLATFORMS", value_delimiter = ',')]
    platform: Vec<Platform>,

    /// Take the images of all platforms
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false",
          hide_default_value = true, hide_possible_values = true, value_name = "BOOL", value_parser = switch)]
    all_platforms: bool,
}

impl PlatformArgs {
    fn choice(&self) -> PlatformChoice {
        match (self.all_platforms, &*self.platform) {
            (true, _) => PlatformChoice::All,
            (false, []) => PlatformChoice::Host,
            (false, platforms) => PlatformChoice::Only(platforms.to_vec()),
        }
    }
}

#[derive(Debug, clap::Args)]
struct AddArgs {
    #[command(flatten)]
    dict: DictArgs,

    /// Nydus images: names in registries, oci:DIR[:TAG] or oci-archive:FILE[:TAG]
    #[arg(value_name = "IMAGE", required_unless_present = "bootstrap")]
    images: Vec<String>,

    /// A bare bootstrap, or a blob with one inside, of any builder; may be given several times. Its blobs must be in the
    /// targets of conversions
    #[arg(long, value_name = "FILE", action = ArgAction::Append)]
    bootstrap: Vec<PathBuf>,

    #[command(flatten)]
    platform: PlatformArgs,

    #[command(flatten)]
    read: ReadArgs,
}

#[derive(Debug, clap::Args)]
struct RemoveArgs {
    #[command(flatten)]
    dict: DictArgs,

    /// Images, as `ls` names them
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct ShowArgs {
    #[command(flatten)]
    dict: DictArgs,

    /// How to write the result
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Debug, clap::Args)]
struct QueryArgs {
    #[command(flatten)]
    show: ShowArgs,

    /// Digests of chunks, each of 64 hexadecimal digits
    #[arg(value_name = "DIGEST", required = true, value_parser = digest)]
    digests: Vec<rafs_format::Digest>,
}

#[derive(Debug, clap::Args)]
struct VerifyArgs {
    #[command(flatten)]
    show: ShowArgs,

    /// Read all blobs to their ends, too
    #[arg(long)]
    data: bool,

    #[command(flatten)]
    read: ReadArgs,
}

#[derive(Debug, clap::Args)]
struct GcArgs {
    #[command(flatten)]
    show: ShowArgs,

    /// How long images must have been removed or gone, such as 168h or 30m
    #[arg(long, value_name = "DURATION", default_value = "168h", value_parser = duration)]
    grace_period: Duration,
}

#[derive(Debug, clap::Args)]
struct RebuildArgs {
    #[command(flatten)]
    dict: DictArgs,

    #[command(flatten)]
    read: ReadArgs,
}

#[derive(Debug, clap::Args)]
struct ExportArgs {
    #[command(flatten)]
    dict: DictArgs,

    /// File to write the bootstrap to
    #[arg(long, value_name = "FILE")]
    bootstrap: PathBuf,
}

#[derive(Debug, clap::Args)]
struct GenerateArgs {
    /// Nydus images, separated by commas: names in registries, oci:DIR[:TAG] or oci-archive:FILE[:TAG]
    #[arg(
        long,
        env = "SOURCES",
        value_name = "IMAGES",
        value_delimiter = ',',
        required = true
    )]
    sources: Vec<String>,

    /// Where the dictionary goes: a name in a registry, oci:DIR[:TAG] or oci-archive:FILE[:TAG]
    #[arg(long, env = "TARGET", value_name = "IMAGE")]
    target: String,

    #[command(flatten)]
    insecure: InsecureArgs,

    #[command(flatten)]
    registry: RegistryArgs,

    #[command(flatten)]
    push: PushArgs,

    #[command(flatten)]
    platform: PlatformArgs,

    /// How to show progress
    #[arg(long, value_enum, default_value_t = Mode::Auto, value_name = "MODE")]
    progress: Mode,

    /// Write what the dictionary holds as JSON to this file
    #[arg(long, env = "OUTPUT_JSON", value_name = "FILE", value_parser = any_path())]
    output_json: Option<PathBuf>,

    /// Accepted and ignored: there is no temporary data
    #[arg(long, env = "WORK_DIR", value_name = "DIR", hide = true, value_parser = any_path())]
    work_dir: Option<PathBuf>,

    /// Accepted and ignored: no second program is needed
    #[arg(long, env = "NYDUS_IMAGE", value_name = "FILE", hide = true, value_parser = any_path())]
    nydus_image: Option<PathBuf>,

    #[command(flatten)]
    backend: DictionaryOptions,
}

fn digest(text: &str) -> Result<rafs_format::Digest, String> {
    let digest = image::Digest::from_hex(text);
    let digest = digest.ok_or_else(|| "it must have 64 lowercase hexadecimal digits".to_owned())?;
    Ok(*digest.bytes())
}

/// Does what was asked for.
pub fn run(args: &ChunkdictArgs, terminal: MultiProgress) -> Result<ExitCode> {
    let interrupt = Interrupt::watch()?;
    let result = match &args.command {
        Command::Generate(args) => generate(args, &interrupt, terminal),
        Command::Add(args) => add(args, &interrupt),
        Command::Rm(args) => remove(args, &interrupt),
        Command::Ls(args) => list(args),
        Command::Stat(args) => statistics(args),
        Command::Query(args) => query(args),
        Command::Verify(args) => verify(args, &interrupt),
        Command::Gc(args) => collect(args, &interrupt),
        Command::Rebuild(args) => rebuild(args, &interrupt),
        Command::Export(args) => export(args),
    };
    interrupt.settle(result)
}

impl ShowArgs {
    fn store(&self) -> Result<Store> {
        Ok(Store::open(&self.dict.dict)?)
    }

    fn show(&self, what: &(impl Serialize + std::fmt::Display)) -> Result<ExitCode> {
        let mut out = std::io::stdout().lock();
        let written = match self.output {
            Output::Json => serde_json::to_writer(&mut out, what)
                .map_err(std::io::Error::from)
                .and_then(|()| writeln!(out)),
            Output::Text => write!(out, "{what}"),
        };
        written.context("cannot write the result")?;
        Ok(ExitCode::SUCCESS)
    }
}

fn print(what: &impl std::fmt::Display) -> Result<ExitCode> {
    write!(std::io::stdout().lock(), "{what}").context("cannot write the result")?;
    Ok(ExitCode::SUCCESS)
}

/// Becomes the one who writes; says so if that takes a while.
fn writer(store: &Store, interrupt: &Interrupt) -> Result<Writer> {
    Ok(store.writer(interrupt.cancel())?)
}

fn add(args: &AddArgs, interrupt: &Interrupt) -> Result<ExitCode> {
    let mut names: Vec<String> = args
        .images
        .iter()
        .map(|text| name(text))
        .collect::<Result<_>>()?;
    names.extend(args.bootstrap.iter().map(|path| bare_name(path)));
    let cancel = interrupt.cancel();
    let places = Places::new(&args.read.registry, None, cancel);
    // A dictionary of something else is better known before the images are read.
    let store = Store::create(&args.dict.dict)?;
    let choice = args.platform.choice();
    let read = |name: &String| -> Result<Vec<_>> {
        if let Some(path) = convert::bare_path(name) {
            return Ok(vec![convert::read_bare(name, path)?]);
        }
        let source = places.source(&name.parse()?, args.read.insecure)?;
        Ok(convert::read_imports(name, &source, &choice)?)
    };
    let imports = convert::read_all(&names, cancel, &read)?;
    cancel.check()?;
    let images = imports.len();
    let changed = writer(&store, interrupt)?.add(imports)?;
    print(&Added { images, changed })
}

fn remove(args: &RemoveArgs, interrupt: &Interrupt) -> Result<ExitCode> {
    let store = Store::open(&args.dict.dict)?;
    let mut writer = writer(&store, interrupt)?;
    let known = |name: &str| writer.catalogue().named(name).next().is_some();
    let names = args.images.iter().map(|text| match known(text) {
        true => Ok(text.clone()),
        false => name(text),
    });
    let names: Vec<String> = names.collect::<Result<_>>()?;
    writer.remove(&names)?;
    Ok(ExitCode::SUCCESS)
}

fn list(args: &ShowArgs) -> Result<ExitCode> {
    let catalogue = args.store()?.catalogue()?;
    args.show(&Listed::new(&catalogue))
}

fn statistics(args: &ShowArgs) -> Result<ExitCode> {
    let (snapshot, catalogue) = args.store()?.snapshot()?;
    args.show(&Statistics::new(&snapshot, &catalogue))
}

fn query(args: &QueryArgs) -> Result<ExitCode> {
    let (snapshot, catalogue) = args.show.store()?.snapshot()?;
    let found = Found::new(&snapshot, &catalogue, &args.digests);
    args.show.show(&found)?;
    Ok(match found.is_complete() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn verify(args: &VerifyArgs, interrupt: &Interrupt) -> Result<ExitCode> {
    let store = args.show.store()?;
    let (snapshot, catalogue) = store.snapshot()?;
    let cancel = interrupt.cancel();
    let places = Places::new(&args.read.registry, None, cancel);
    let shelf = Named {
        places: &places,
        insecure: args.read.insecure,
    };
    let proofs = convert::verify_dictionary(&snapshot, &catalogue, &shelf, args.data, cancel)?;
    drop(snapshot);
    let looked_at = |entry: &chunkdict_store::Entry| {
        let mut pairs = catalogue.images.iter().zip(&proofs);
        let same = |known: &chunkdict_store::Entry| {
            (&known.name, &known.platform, known.id) == (&entry.name, &entry.platform, entry.id)
        };
        pairs
            .find(|(known, _)| same(known))
            .map(|(_, proof)| proof.absent)
    };
    writer(&store, interrupt)?.note_absent(looked_at)?;
    let verified = Verified::new(&catalogue, &proofs);
    args.show.show(&verified)?;
    Ok(match verified.is_sound() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn collect(args: &GcArgs, interrupt: &Interrupt) -> Result<ExitCode> {
    let store = args.show.store()?;
    let collected = writer(&store, interrupt)?.gc(args.grace_period)?;
    args.show.show(&Collected::new(&collected))
}

fn rebuild(args: &RebuildArgs, interrupt: &Interrupt) -> Result<ExitCode> {
    let cancel = interrupt.cancel();
    let mut writer = Store::open(&args.dict.dict)?.rebuilder(cancel)?;
    let places = Places::new(&args.read.registry, None, cancel);
    let shelf = Named {
        places: &places,
        insecure: args.read.insecure,
    };
    let before = writer.catalogue().clone();
    let imports = convert::read_again(&before, &shelf, cancel)?;
    let changed = writer.rebuild(imports)?;
    print(&Rebuilt::new(&before, writer.catalogue(), changed))
}

fn export(args: &ExportArgs) -> Result<ExitCode> {
    let (snapshot, _) = Store::open(&args.dict.dict)?.snapshot()?;
    let made = snapshot.export()?;
    let bytes = builder::encode(&made.image).context("cannot encode the chunk dictionary")?;
    write_whole(&args.bootstrap, &bytes)?;
    tracing::info!(
        "{}: {} chunks of {} bytes in {} blobs",
        args.bootstrap.display(),
        made.chunks,
        made.bytes,
        made.image.blobs.len()
    );
    if made.left_out != 0 {
        tracing::warn!(
            "{} more chunks lie in blobs that there was no room for",
            made.left_out
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes a file as a whole, or not at all.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let failed = || format!("cannot write {}", path.display());
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let mode = std::fs::Permissions::from_mode(0o644);
    let file = tempfile::Builder::new()
        .permissions(mode)
        .tempfile_in(dir.unwrap_or(Path::new(".")));
    let mut file = file.with_context(failed)?;
    file.write_all(bytes).with_context(failed)?;
    file.persist(path).with_context(failed)?;
    Ok(())
}

fn generate(
    args: &GenerateArgs,
    interrupt: &Interrupt,
    terminal: MultiProgress,
) -> Result<ExitCode> {
    let target: Location = args.target.parse()?;
    if let location @ Location::DockerArchive { .. } = &target {
        let reason = format!(
            "docker archives can only be read: write an oci-archive: instead of {location}"
        );
        return Err(Usage(reason).into());
    }
    let output = crate::args::given(args.output_json.as_ref());
    if let Some(path) = output {
        check_directory(path)?;
    }
    let cancel = interrupt.cancel();
    let places = Places::new(&args.registry, Some(&args.push), cancel);
    let backend = args.backend.choice().open(&places, None)?;
    let backend = backend.map(|backend| backend as Arc<dyn image::Store>);
    let mut sources = Vec::with_capacity(args.sources.len());
    for text in args.sources.iter().filter(|text| !text.is_empty()) {
        let source = places.source(&text.parse()?, args.insecure.source_insecure)?;
        sources.push((name(text)?, source.with_backend(backend.clone())));
    }
    let target = places.target(&target, args.insecure.target_insecure)?;
    let progress = renderer(args.progress, terminal);
    let result = convert::generate_dictionary(
        &sources,
        target,
        &args.platform.choice(),
        &*progress,
        cancel,
    );
    drop(progress);
    let report = result?;
    if let Some(path) = output {
        write_report(path, &report)?;
    }
    tracing::info!(
        "chunk dictionary: {} chunks of {} bytes in {} blobs",
        report.chunks,
        report.bytes,
        report.blobs
    );
    if report.left_out != 0 {
        tracing::warn!(
            "{} more chunks lie in blobs that there was no room for",
            report.left_out
        );
    }
    Ok(ExitCode::SUCCESS)
}
