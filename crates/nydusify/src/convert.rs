//! `nydusify convert`: arguments, and what becomes of them.

mod reference;
mod stored;

use std::io::Read as _;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use chunkdict_store::Store;
use convert::{ChunkDictionary, ConvertOptions, ConvertReport, DedupScope, Error};
use image::nydus::BOOTSTRAP_SIZE_MAX;
use image::{Location, Platform, PlatformChoice, Source};
use indicatif::MultiProgress;
use rafs_format::{Compressor, Version};
use trace::Trace;

use crate::args::unsupported::{Flag, Table, Unsupported};
use crate::args::{Usage, any_path, given, refuse, switch};
use crate::backend::TargetOptions;
use crate::build_cache::BuildCacheArgs;
use crate::chunkdict::shelf::Named;
use crate::interrupt::Interrupt;
use crate::place::{self, InsecureArgs, Places, PushArgs, RegistryArgs};
use crate::progress::{Mode, renderer};
use stored::{Preset, batch_size, chunk_size};

/// Most bytes of prefetch patterns that are read from standard input.
const PATTERNS_MAX: u64 = 16 << 20;

/// Arguments of `nydusify convert`.
#[derive(Debug, clap::Args)]
pub struct ConvertArgs {
    /// Image to convert: a name in a registry, oci:DIR[:TAG], oci-archive:FILE[:TAG] or docker-archive:FILE[:TAG];
    /// with --source-archive the name of the image in it
    #[arg(long, env = "SOURCE", value_name = "IMAGE", required = true)]
    source: String,

    /// OCI or docker archive that holds the image
    #[arg(long, env = "SOURCE_ARCHIVE", value_name = "FILE", value_parser = any_path())]
    source_archive: Option<PathBuf>,

    /// Where the new image goes: a name in a registry, oci:DIR[:TAG] or oci-archive:FILE[:TAG]; with --target-archive
    /// its name in there
    #[arg(
        long,
        env = "TARGET",
        value_name = "IMAGE",
        required_unless_present_any = ["target_archive", "target_suffix"]
    )]
    target: Option<String>,

    /// The new image goes beside the source, under its tag with this suffix
    #[arg(
        long,
        env = "TARGET_SUFFIX",
        value_name = "SUFFIX",
        allow_hyphen_values = true
    )]
    target_suffix: Option<String>,

    #[command(flatten)]
    insecure: InsecureArgs,

    #[command(flatten)]
    registry: RegistryArgs,

    #[command(flatten)]
    push: PushArgs,

    /// OCI archive to write the new image to
    #[arg(long, env = "TARGET_ARCHIVE", value_name = "FILE", value_parser = any_path())]
    target_archive: Option<PathBuf>,

    #[command(flatten)]
    backend: TargetOptions,

    /// Write blobs to the backend even if they are there
    #[arg(long, env = "BACKEND_FORCE_PUSH", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false",
          hide_default_value = true, hide_possible_values = true, value_name = "BOOL", value_parser = switch)]
    backend_force_push: bool,

    /// Which images of an index to convert, as OS/ARCHITECTURE[/VARIANT], separated by commas
    /// [default: linux on this machine's architecture]
    #[arg(long, value_name = "PLATFORMS", value_delimiter = ',')]
    platform: Vec<Platform>,

    /// Convert the images of all platforms
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false",
          hide_default_value = true, hide_possible_values = true, value_name = "BOOL", value_parser = switch)]
    all_platforms: bool,

    /// Write an index: the source's images, each with an empty layer below, then the new ones, so that every runtime
    /// finds its own under one tag
    #[arg(long, alias = "multi-platform", env = "MERGE_PLATFORM", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value = "false", hide_default_value = true,
          hide_possible_values = true, value_name = "BOOL", value_parser = switch)]
    merge_platform: bool,

    /// Make new manifests refer to those they are made of, so that they are found among their referrers
    #[arg(long, env = "WITH_REFERRER", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value = "false", hide_default_value = true, hide_possible_values = true, value_name = "BOOL",
          value_parser = switch)]
    with_referrer: bool,

    /// Leave the layers as they are and only describe them, so that they can be mounted lazily (zran): the new image
    /// refers to the original layers, which are brought to the target. Forces --oci and version 6
    #[arg(long, env = "OCI_REF", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value = "false", hide_default_value = true, hide_possible_values = true, value_name = "BOOL",
          value_parser = switch)]
    oci_ref: bool,

    /// Turn Docker's media types into OCI's
    #[arg(long, env = "OCI", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value = "false", hide_default_value = true, hide_possible_values = true, value_name = "BOOL",
          value_parser = switch)]
    oci: bool,

    /// Keep Docker's media types; wins over --oci
    #[arg(long, env = "DOCKER_V2_FORMAT", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value = "false", hide = true, value_parser = switch)]
    docker_v2_format: bool,

    /// Version of the RAFS format
    #[arg(long, env = "FS_VERSION", value_name = "VERSION", default_value = "6", value_parser = ["5", "6"])]
    fs_version: String,

    /// How to store file data where the options below don't say it
    #[arg(long, value_enum, value_name = "PROFILE", default_value_t = Preset::Compat)]
    profile: Preset,

    /// How to compress file data
    #[arg(long, env = "COMPRESSOR", value_name = "NAME", default_value = "zstd",
          value_parser = ["none", "lz4_block", "zstd"])]
    compressor: String,

    /// zstd level, up to 22
    #[arg(long, value_name = "LEVEL", allow_negative_numbers = true,
          value_parser = clap::value_parser!(i32).range(-131_072..=22))]
    compression_level: Option<i32>,

    /// Size of the pieces files are cut into: a power of two from 0x1000 to 0x1000000
    #[arg(long, alias = "chunk-size", env = "FS_CHUNK_SIZE", value_name = "BYTES", default_value = "0x100000",
          value_parser = chunk_size)]
    fs_chunk_size: u32,

    /// Compress files below half of this size together, in batches: a power of two from 0x1000 to the chunk size, 0 for
    /// never. Needs version 6 [default: what the profile says]
    #[arg(long, env = "BATCH_SIZE", value_name = "BYTES", value_parser = batch_size)]
    batch_size: Option<u32>,

    /// Where to look for a chunk before it is stored
    #[arg(long, value_enum, value_name = "SCOPE", default_value_t = Scope::Layer)]
    dedup: Scope,

    /// Take chunks of other images instead of storing them again: the directory of a dictionary (nydusify chunkdict),
    /// bootstrap:registry:IMAGE (a Nydus image in any place) or bootstrap:local:FILE (a bootstrap whose blobs are in the
    /// target)
    #[arg(long, env = "CHUNK_DICT", value_name = "DICT")]
    chunk_dict: Option<String>,

    /// Do not check the certificate of the dictionary's registry
    #[arg(long, env = "CHUNK_DICT_INSECURE", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value = "false", hide_default_value = true, hide_possible_values = true, value_name = "BOOL",
          value_parser = switch)]
    chunk_dict_insecure: bool,

    /// Chunks in a row that make a request into a blob of the dictionary worth it; 1 MiB always does
    #[arg(long, value_name = "N", default_value_t = ChunkDictionary::MIN_RUN)]
    dict_min_run: NonZeroU32,

    #[command(flatten)]
    build_cache: BuildCacheArgs,

    /// Directory to fetch first when the image is mounted
    #[arg(long, env = "PREFETCH_DIR", value_name = "DIR")]
    prefetch_dir: Option<String>,

    /// Read the files and directories to fetch first from standard input, one absolute path per line [default: /]
    #[arg(long, env = "PREFETCH_PATTERNS", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          default_value = "false", hide_default_value = true, hide_possible_values = true, value_name = "BOOL",
          value_parser = switch)]
    prefetch_patterns: bool,

    /// Fetch first what a start has read, which `mount --trace` or `run --trace` recorded, in that order. The trace may be of
    /// another version of the image. May be given several times; what only later ones have comes behind
    #[arg(long, value_name = "FILE", action = clap::ArgAction::Append,
          conflicts_with_all = ["prefetch_dir", "prefetch_patterns"])]
    trace: Vec<PathBuf>,

    /// Prove the new image equal to its source before it is tagged
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false",
          hide_default_value = true, hide_possible_values = true, value_name = "BOOL", value_parser = switch)]
    check: bool,

    /// Threads that compress and digest [default: one per processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,

    /// Memory for file data, such as 256MiB [default: 32 MiB per thread, at least 64 MiB]
    #[arg(long, value_name = "SIZE", value_parser = builder::parse_size)]
    memory: Option<usize>,

    /// Refuse a layer whose files have more than this together, holes included, such as 64GiB [default: no limit]
    #[arg(long, value_name = "SIZE", value_parser = crate::cache::size)]
    max_layer_size: Option<u64>,

    /// Refuse a layer of more files and directories than this
    #[arg(long, value_name = "N", default_value_t = 1 << 24, value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    max_layer_files: u32,

    /// Where to keep note of converted layers, so that an interrupted conversion goes on where it was
    /// [default: $XDG_CACHE_HOME/nydusify/journal or ~/.cache/nydusify/journal]
    #[arg(long, value_name = "DIR")]
    journal_dir: Option<PathBuf>,

    /// Keep no note of converted layers, and convert all of them
    #[arg(long)]
    no_journal: bool,

    /// How to show progress
    #[arg(long, value_enum, default_value_t = Mode::Auto, value_name = "MODE")]
    progress: Mode,

    /// Write sizes and times as JSON to this file
    #[arg(long, env = "OUTPUT_JSON", value_name = "FILE", value_parser = any_path())]
    output_json: Option<PathBuf>,

    /// Align chunks of v5 to 4096 bytes (always so in v6)
    #[arg(long, alias = "backend-aligned-chunk", env = "FS_ALIGN_CHUNK", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value = "false", hide_default_value = true, hide_possible_values = true,
          value_name = "BOOL", value_parser = switch)]
    fs_align_chunk: bool,

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

/// Where a chunk is looked for before it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Scope {
    /// In its own layer
    Layer,
    /// In its own layer and those below it
    Image,
}

/// Flags of the deployed tool that are not built.
#[derive(Debug, Clone, Copy)]
struct Unbuilt;

impl Table for Unbuilt {
    const FLAGS: &'static [Flag] = &[
        Flag::value("source-backend-type", "SOURCE_BACKEND_TYPE").without_variable(),
        Flag::value("source-backend-config", "SOURCE_BACKEND_CONFIG").without_variable(),
        Flag::switch("reverse", "REVERSE"),
    ];
}

/// Converts.
pub fn run(args: &ConvertArgs, terminal: MultiProgress) -> Result<ExitCode> {
    refuse(args.unsupported.given())?;
    let source_location = source_location(args)?;
    let target = target_location(args, source_location.as_ref())?;
    let output = given(args.output_json.as_ref());
    if let Some(path) = output {
        check_directory(path)?;
    }
    let options = options(args)?;
    let interrupt = Interrupt::watch()?;
    let progress = renderer(args.progress, terminal);
    let places = Places::new(&args.registry, Some(&args.push), interrupt.cancel());
    let places = Arc::new(places);
    let cache = args.build_cache.open(&places, &target)?;
    let backend = args.backend.choice().open_target(&places)?;
    let backend = backend.map(|backend| backend.target(args.backend_force_push));
    let source = match &source_location {
        Some(location) => places.source(location, args.insecure.source_insecure)?,
        None => Source::open_archive(
            given(args.source_archive.as_ref()).unwrap_or(Path::new("")),
            &args.source,
        )?,
    };
    let dictionary = dictionary(args, &places, &options)?;
    let options = ConvertOptions {
        dictionary,
        cache,
        source_name: source_name(args, &source),
        ..options
    };
    let place = places.target(&target, args.insecure.target_insecure)?;
    let (blobs, cancel) = (backend.as_ref(), interrupt.cancel());
    match convert::convert_image(&source, place, blobs, &options, &*progress, cancel) {
        Ok(report) => {
            drop(progress);
            if let Some(path) = output {
                write_report(path, &report)?;
            }
            say_reused(&report);
            if options.dictionary.is_some() {
                tracing::info!("{}", report.savings);
            }
            tracing::debug!("wrote {} as {target}", report.digest);
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            drop(progress);
            interrupt.settle(Err(explain(error)))
        }
    }
}

/// Says which layers were not converted.
fn say_reused(report: &ConvertReport) {
    let (cached, bytes) = (report.cached_layers, report.cached_size);
    let (layers, all) = (report.reused_layers, report.reused_size);
    if layers > cached {
        tracing::info!(
            "{} layers ({} bytes) had been converted by an earlier run",
            layers - cached,
            all.saturating_sub(bytes)
        );
    }
    if cached != 0 {
        tracing::info!("{cached} layers ({bytes} bytes) were in the build cache");
    }
}

/// Shows what a check found before the error that follows from it.
fn explain(error: Error) -> anyhow::Error {
    if let Error::Different { report, .. } = &error {
        eprint!("{report}");
    }
    error.into()
}

/// `None` if the source is an archive of either kind.
fn source_location(args: &ConvertArgs) -> Result<Option<Location>> {
    let location: Location = args.source.parse()?;
    match (given(args.source_archive.as_ref()), location) {
        (None, location) => Ok(Some(location)),
        (Some(_), Location::Registry(_)) => Ok(None),
        (Some(_), _) => Err(Usage(
            "with --source-archive, --source is the name of the image in it".to_owned(),
        )
        .into()),
    }
}

fn target_location(args: &ConvertArgs, source: Option<&Location>) -> Result<Location> {
    let named: Option<Location> = args
        .target
        .as_deref()
        .filter(|t| !t.is_empty())
        .map(str::parse)
        .transpose()?;
    let suffix = args.target_suffix.as_deref().filter(|s| !s.is_empty());
    let named = match (named, suffix) {
        (Some(_), Some(_)) => {
            return Err(
                Usage("--target and --target-suffix exclude one another".to_owned()).into(),
            );
        }
        (None, Some(suffix)) => Some(beside(source, suffix)?),
        (named, None) => named,
    };
    match (given(args.target_archive.as_ref()), named) {
        (None, Some(location @ Location::DockerArchive { .. })) => Err(Usage(format!(
            "docker archives can only be read: write an oci-archive: instead of {location}"
        ))
        .into()),
        (None, Some(location)) => Ok(location),
        (Some(file), None) => Ok(Location::OciArchive {
            file: file.to_owned(),
            tag: None,
        }),
        (Some(file), Some(Location::Registry(name))) => Ok(Location::OciArchive {
            file: file.to_owned(),
            tag: Some(name),
        }),
        (Some(_), Some(_)) => Err(Usage(
            "with --target-archive, --target is the name of the image in it".to_owned(),
        )
        .into()),
        (None, None) => Err(Usage("--target is empty".to_owned()).into()),
    }
}

/// The source's own place, its tag with a suffix.
fn beside(source: Option<&Location>, suffix: &str) -> Result<Location> {
    let Some(Location::Registry(name)) = source else {
        let reason = "--target-suffix needs a source in a registry; name the target with --target";
        return Err(Usage(reason.to_owned()).into());
    };
    let reference = place::reference(name)?;
    let tag = reference
        .tag()
        .filter(|_| reference.digest().is_none())
        .ok_or_else(|| {
            Usage(format!(
                "--target-suffix: the source {name} is named by its digest, not by a tag"
            ))
        })?;
    let target = reference.with_tag(&format!("{tag}{suffix}"))?;
    Ok(Location::Registry(target.to_string()))
}

/// What the manifest calls its source: never a path, so that the result does not depend on where things lie.
fn source_name(args: &ConvertArgs, source: &Source) -> Option<String> {
    match given(args.source_archive.as_ref()) {
        Some(_) => Some(args.source.clone()),
        None => source.name().map(str::to_owned),
    }
}

/// The chunk dictionary, looked at before any work.
fn dictionary(
    args: &ConvertArgs,
    places: &Places,
    options: &ConvertOptions,
) -> Result<Option<ChunkDictionary>> {
    let Some(text) = args.chunk_dict.as_deref().filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let wrong = || {
        Usage(format!(
            "--chunk-dict {text:?} is neither bootstrap:registry:IMAGE nor bootstrap:local:FILE nor a directory"
        ))
    };
    let Some(rest) = text.strip_prefix("bootstrap:") else {
        let dir = Path::new(text);
        if !dir.is_dir() {
            return Err(wrong().into());
        }
        return kept_dictionary(args, dir, places, options).map(Some);
    };
    let dictionary = match rest.split_once(':') {
        Some(("registry", name)) if !name.is_empty() => {
            let source = places.source(&name.parse()?, args.chunk_dict_insecure)?;
            ChunkDictionary::from_image(name, &source, &options.platform)?
        }
        Some(("local", path)) if !path.is_empty() => {
            let bootstrap = read_bootstrap(Path::new(path))?;
            ChunkDictionary::from_bootstrap(path, bootstrap)?
        }
        _ => return Err(wrong().into()),
    };
    dictionary.check(options)?;
    Ok(Some(dictionary.with_min_run(args.dict_min_run)))
}

/// The dictionary in a directory.
fn kept_dictionary(
    args: &ConvertArgs,
    dir: &Path,
    places: &Places,
    options: &ConvertOptions,
) -> Result<ChunkDictionary> {
    let (snapshot, catalogue) = Store::open(dir)?.snapshot()?;
    let shelf = Named {
        places,
        insecure: args.chunk_dict_insecure,
    };
    let name = dir.display().to_string();
    let dictionary = ChunkDictionary::from_snapshot(&name, snapshot, &catalogue, &shelf)?;
    dictionary.check(options)?;
    Ok(dictionary.with_min_run(args.dict_min_run))
}

fn read_bootstrap(path: &Path) -> Result<Vec<u8>> {
    let failed = || format!("cannot read the chunk dictionary {}", path.display());
    let file = std::fs::File::open(path).with_context(failed)?;
    let mut bytes = Vec::new();
    file.take(BOOTSTRAP_SIZE_MAX + 1)
        .read_to_end(&mut bytes)
        .with_context(failed)?;
    if bytes.len() as u64 > BOOTSTRAP_SIZE_MAX {
        anyhow::bail!("{}: it has more than {BOOTSTRAP_SIZE_MAX} bytes", failed());
    }
    Ok(bytes)
}

fn options(args: &ConvertArgs) -> Result<ConvertOptions> {
    let compressor: Compressor = args.compressor.parse()?;
    if args.compression_level.is_some() && compressor != Compressor::Zstd {
        return Err(Usage("--compression-level is for zstd only".to_owned()).into());
    }
    stored::check(args)?;
    let threads = match args
        .threads
        .and_then(|threads| NonZeroUsize::new(threads.into()))
    {
        Some(threads) => threads,
        None => std::thread::available_parallelism()
            .context("cannot count the processors; use --threads")?,
    };
    let defaults = ConvertOptions::new(threads);
    if args.oci_ref {
        reference::check(args)?;
        for line in reference::overridden(args) {
            tracing::warn!("{line}");
        }
    }
    let version = match args.oci_ref {
        true => Version::V6,
        false => args.fs_version.parse()?,
    };
    Ok(ConvertOptions {
        platform: match (args.all_platforms, &*args.platform) {
            (true, _) => PlatformChoice::All,
            (false, []) => PlatformChoice::Host,
            (false, platforms) => PlatformChoice::Only(platforms.to_vec()),
        },
        version,
        aligned_chunk: args.fs_align_chunk,
        compressor,
        level: args.compression_level.unwrap_or(defaults.level),
        chunk_size: args.fs_chunk_size,
        batch_size: stored::batches(args, version, compressor),
        dedup: match args.dedup {
            Scope::Layer => DedupScope::Layer,
            Scope::Image => DedupScope::Image,
        },
        prefetch: prefetch(args)?,
        oci: args.oci_ref || args.oci && !args.docker_v2_format,
        reference: args.oci_ref,
        memory: args.memory.unwrap_or(defaults.memory),
        layer_files_max: args.max_layer_files,
        layer_size_max: args.max_layer_size.unwrap_or(defaults.layer_size_max),
        check: args.check,
        merge: args.merge_platform,
        referrer: args.with_referrer,
        journal: journal(args),
        ..defaults
    })
}

/// The directory of the journal; none if nobody says where the user's caches are.
fn journal(args: &ConvertArgs) -> Option<PathBuf> {
    if args.no_journal {
        return None;
    }
    let default = || Some(crate::cache::directory()?.join("journal"));
    args.journal_dir.clone().or_else(default)
}

fn prefetch(args: &ConvertArgs) -> Result<Vec<Vec<u8>>> {
    if !args.trace.is_empty() {
        return files_read(&args.trace);
    }
    let dir = args.prefetch_dir.as_deref().filter(|dir| !dir.is_empty());
    match (dir, args.prefetch_patterns) {
        (Some(_), true) => Err(Usage(
            "--prefetch-dir and --prefetch-patterns exclude one another".to_owned(),
        )
        .into()),
        (Some(dir), false) if dir.starts_with('/') => Ok(vec![dir.as_bytes().to_vec()]),
        (Some(dir), false) => Err(Usage(format!("--prefetch-dir {dir:?} is not absolute")).into()),
        (None, false) => Ok(vec![b"/".to_vec()]),
        (None, true) => {
            let mut text = Vec::new();
            std::io::stdin()
                .take(PATTERNS_MAX)
                .read_to_end(&mut text)
                .context("cannot read standard input")?;
            Ok(patterns(&text))
        }
    }
}

/// The files that were read in the starts that these are the traces of.
fn files_read(traces: &[PathBuf]) -> Result<Vec<Vec<u8>>> {
    let load = |path: &PathBuf| Ok(Trace::load(path)?);
    let loaded: Vec<Trace> = traces.iter().map(load).collect::<Result<_>>()?;
    let files = trace::files_read(&loaded);
    if files.is_empty() {
        let names: Vec<_> = traces.iter().map(|path| path.to_string_lossy()).collect();
        anyhow::bail!("no file was read in {}: record a start", names.join(", "));
    }
    let files = files.into_iter();
    Ok(files.map(|path| path.as_bytes().to_vec()).collect())
}

/// One pattern per line; without any, everything.
fn patterns(text: &[u8]) -> Vec<Vec<u8>> {
    let mut patterns = Vec::new();
    for line in text
        .split(|&byte| byte == b'\n')
        .map(<[u8]>::trim_ascii)
        .filter(|line| !line.is_empty())
    {
        if line.starts_with(b"/") {
            patterns.push(line.to_vec());
        } else {
            tracing::warn!(
                "prefetch pattern {:?} is not absolute, it is skipped",
                String::from_utf8_lossy(line)
            );
        }
    }
    if patterns.is_empty() {
        vec![b"/".to_vec()]
    } else {
        patterns
    }
}

/// A path that cannot be written is better known before the work than after.
pub(crate) fn check_directory(path: &Path) -> Result<()> {
    let dir = path
        .parent()
        .filter(|dir| !dir.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    if dir.is_dir() && !path.is_dir() {
        return Ok(());
    }
    Err(Usage(format!(
        "--output-json {}: its directory does not exist, or it is one",
        path.display()
    ))
    .into())
}

pub(crate) fn write_report(path: &Path, report: &impl serde::Serialize) -> Result<()> {
    let mut json = serde_json::to_vec_pretty(report)?;
    json.push(b'\n');
    std::fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_absolute_paths() {
        assert_eq!(
            patterns(b"/usr/bin\nrelative\n\n /etc \r\n"),
            [b"/usr/bin".to_vec(), b"/etc".to_vec()]
        );
        assert_eq!(patterns(b""), [b"/".to_vec()]);
    }
}
