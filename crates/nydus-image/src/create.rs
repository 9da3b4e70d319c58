//! `create`: one source into one blob and one bootstrap.

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use builder::{
    Budget, BuildOptions, BuiltLayer, Dedup, Encryption, Parent, Whiteouts, build_directory,
    build_tar, build_tarfs, encode,
};
use inspect::CommandReport;
use layer::Compression;
use rafs_format::{BlobFeatures, BlobId, CHUNK_SIZE_DEFAULT, Compressor};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::Usage;
use crate::args::{Create, PrefetchPolicy, SourceType, WhiteoutSpec};
use crate::blobs::Config;
use crate::cache_files;
use crate::dictionary;
use crate::estargz;
use crate::external;
use crate::interrupt::Interrupt;
use crate::output::{self, Output};
use crate::parent;
use crate::prefetch;
use crate::report;
use crate::targz;

/// Memory for file data when none is asked for: this much per thread, but not less than twice as much.
const MEMORY_PER_THREAD: usize = 32 << 20;
/// Bytes of a tar that are read at a time; larger reads of file data pass through.
const BUFFER: usize = 256 << 10;

pub fn run(args: &Create, interrupt: &Interrupt) -> anyhow::Result<()> {
    check_conflicts(args)?;
    check_paths(args)?;
    if let Some(path) = &args.config {
        // Nothing needs a blob to be read, but a configuration has to be one.
        Config::read(path)?;
    }
    say_overridden(args);
    let start = Instant::now();
    let mut options = options(args, interrupt)?;
    if let Some(image) = parent::load(args.parent_bootstrap.as_deref())? {
        let whiteouts = whiteouts(args);
        options.parent = Some(Arc::new(Parent { image, whiteouts }));
    }
    if let Some(value) = &args.chunk_dict {
        options.dictionary = dictionary::load(value, &options)?;
    }
    let external = external::scan(args, whiteouts(args), &mut options)?;
    let mut blob = create_blob(args, interrupt)?;
    let layer = build(args, blob.as_mut(), &options)?;
    let built = start.elapsed().as_secs_f64();
    let own = layer.own_blob.map(|own| &layer.image.blobs[own]);
    // The id of a layer whose chunks stay in it is not that of the file that is written.
    let separate = BlobFeatures::SEPARATE;
    let id = own
        .filter(|blob| !blob.features.contains(separate))
        .map(|blob| blob.id.to_string());
    // All are complete before any gets its name.
    let bootstrap = if args.blob_inline_meta {
        None
    } else {
        Some(write_bootstrap(args, &layer, interrupt)?)
    };
    let cached = estargz::write_cached_table(args, &layer, interrupt)?;
    let external = match external {
        Some(external) => {
            // A FIFO ends before the next one begins: its reader may want them one after the other.
            blob = blob.filter(Output::is_regular);
            Some(external::write(external, args, &options, interrupt)?)
        }
        None => None,
    };
    // Files, and what must not be there, for there is nothing to put into it.
    let (mut files, mut useless) = (Vec::new(), Vec::new());
    match (blob, &args.blob_cache_dir) {
        (Some(blob), Some(dir)) => {
            files.extend(cache_files::write(
                dir,
                &blob,
                &layer,
                &interrupt.unfinished,
            )?);
        }
        (Some(blob), None) if layer.blob_size == 0 => {
            useless.extend(args.blob.clone().filter(|_| blob.is_regular()));
        }
        (Some(blob), None) => files.push((blob, blob_path(args, &layer, id.as_deref())?)),
        (None, _) => {}
    }
    files.extend(cached);
    let path = bootstrap.as_ref().map(|(_, path)| path.clone());
    files.extend(bootstrap);
    let external = external.map(|written| {
        let path = written.bootstrap.as_ref().map(|(_, path)| path.clone());
        files.extend(written.blob);
        files.extend(written.bootstrap);
        useless.extend(written.useless);
        (path, written.ids)
    });
    let blobs = layer.image.blobs.iter();
    let times = [
        ("build_tree", built),
        ("total_build", start.elapsed().as_secs_f64()),
    ];
    let report = CommandReport::new(
        path.as_deref(),
        layer.image.version,
        blobs.map(|blob| blob.id.to_string()).collect(),
        layer.image.compressor,
    )
    .external(external)
    .trace(times, events(&layer));
    files.extend(report::begin(
        &report,
        args.output_json.as_ref(),
        &interrupt.unfinished,
    )?);
    output::commit_all(files)?;
    useless.iter().try_for_each(|path| output::remove(path))
}

/// Refuses options that contradict each other.
fn check_conflicts(args: &Create) -> Result<(), Usage> {
    estargz::check_conflicts(args)?;
    targz::check_conflicts(args)?;
    external::check_conflicts(args, is_directory(args.source_type))?;
    if args.source_type == SourceType::TarTarfs {
        return check_tarfs(args);
    }
    if args.fs_version != "6" {
        let of_v6 = [
            ("--batch-size", args.batch_size != 0),
            ("--encrypt", args.encrypt),
            ("--blob-cache-dir", args.blob_cache_dir.is_some()),
            ("--features blob-toc", !args.features.is_empty()),
        ];
        refuse(
            &of_v6,
            "--fs-version 5: its blobs hold no table of their chunks",
        )?;
    }
    let chunk_size = chunk_size(args);
    if args.batch_size > chunk_size {
        return Err(Usage(format!(
            "--batch-size {:#x} is larger than the chunk size of {chunk_size:#x}",
            args.batch_size
        )));
    }
    if args.blob_cache_dir.is_none() {
        return Ok(());
    }
    if args.encrypt {
        return Err(Usage(
            "--blob-cache-dir cannot be used with --encrypt: cache files hold plain data"
                .to_owned(),
        ));
    }
    if args.source_type == SourceType::EstargzRafs {
        return Err(Usage(
            "--blob-cache-dir cannot be used with --type estargz-rafs; take targz-rafs".to_owned(),
        ));
    }
    Ok(())
}

/// Refuses what tarfs has no place for.
fn check_tarfs(args: &Create) -> Result<(), Usage> {
    let own = [
        ("--blob-inline-meta", args.blob_inline_meta),
        ("--features", !args.features.is_empty()),
    ];
    refuse_for_reference(args, &own, "--type tar-tarfs: the tar itself is the blob")
}

/// Refuses what a layer whose chunks stay in the source has no place for: the flags `own` of its type, and those that
/// need v6 or chunks in a new blob.
pub fn refuse_for_reference(args: &Create, own: &[(&str, bool)], with: &str) -> Result<(), Usage> {
    let parent = parent::path(args.parent_bootstrap.as_deref());
    refuse(&[("--fs-version 5", args.fs_version != "6")], with)?;
    refuse(own, with)?;
    let of_new_blobs = [
        ("--batch-size", args.batch_size != 0),
        ("--encrypt", args.encrypt),
        ("--blob-offset", args.blob_offset != 0),
        ("--chunk-dict", args.chunk_dict.is_some()),
        ("--parent-bootstrap", parent.is_some()),
        ("--blob-cache-dir", args.blob_cache_dir.is_some()),
        (
            "--prefetch-policy blob",
            args.prefetch_policy == PrefetchPolicy::Blob,
        ),
    ];
    refuse(&of_new_blobs, with)
}

/// Refuses the first of these flags that was given.
fn refuse(flags: &[(&str, bool)], with: &str) -> Result<(), Usage> {
    match flags.iter().find(|(_, given)| *given) {
        Some((flag, _)) => Err(Usage(format!("{flag} cannot be used with {with}"))),
        None => Ok(()),
    }
}

/// Says what was asked for although the type of the source decides it.
fn say_overridden(args: &Create) {
    let (compressor, digester) = match args.source_type {
        SourceType::TarTarfs => ("none", "sha256"),
        source if targz::is_ref(source) || estargz::is_toc(source) => ("gzip", "sha256"),
        _ => return,
    };
    let asked = [
        ("--compressor", &args.compressor, compressor),
        ("--digester", &args.digester, digester),
    ];
    for (flag, value, forced) in asked {
        if let Some(value) = value.as_deref().filter(|value| *value != forced) {
            tracing::info!("{flag} {value} has no effect: layers of this type are of {forced}");
        }
    }
}

/// Refuses what could only fail later.
fn check_paths(args: &Create) -> anyhow::Result<()> {
    let source = &args.source;
    let kind = fs::metadata(source)
        .with_context(|| format!("cannot read {}", source.display()))?
        .file_type();
    if args.prefetch_policy != PrefetchPolicy::None && is_standard_input(source) {
        return Err(Usage(format!(
            "{} cannot be used with --prefetch-policy, which reads patterns from there",
            source.display()
        ))
        .into());
    }
    if is_directory(args.source_type) {
        ensure!(kind.is_dir(), "{} is not a directory", source.display());
    } else {
        let stream = kind.is_file() || kind.is_fifo() || kind.is_char_device();
        ensure!(
            stream,
            "{} is neither a file nor a FIFO nor a character device",
            source.display()
        );
    }
    for (flag, dir) in [
        ("--blob-dir", &args.blob_dir),
        ("--blob-cache-dir", &args.blob_cache_dir),
    ] {
        if let Some(dir) = dir {
            output::check_dir(flag, dir)?;
        }
    }
    let place = args.blob.is_some() || args.blob_dir.is_some() || args.blob_cache_dir.is_some();
    if writes_blob(args.source_type) && !place {
        bail!("there is no place for the blob: give --blob, --blob-dir or --blob-cache-dir");
    }
    let places = [
        &args.blob,
        &args.bootstrap,
        &args.external_blob,
        &args.output_json,
    ];
    output::check_places(places.map(Option::as_ref))
}

/// Whether a path leads to what is open as standard input.
fn is_standard_input(path: &Path) -> bool {
    let inode = |file: fs::Metadata| (file.dev(), file.ino());
    let own = io::stdin().as_fd().try_clone_to_owned();
    let own = own.and_then(|stdin| File::from(stdin).metadata());
    own.is_ok_and(|own| fs::metadata(path).is_ok_and(|source| inode(source) == inode(own)))
}

/// Whether the source itself is not the blob.
fn writes_blob(source: SourceType) -> bool {
    source != SourceType::TarTarfs && !estargz::is_toc(source)
}

fn chunk_size(args: &Create) -> u32 {
    args.chunk_size.unwrap_or_else(|| {
        if estargz::is_toc(args.source_type) {
            estargz::CHUNK_SIZE_DEFAULT
        } else {
            CHUNK_SIZE_DEFAULT
        }
    })
}

fn is_directory(source: SourceType) -> bool {
    matches!(source, SourceType::Directory | SourceType::DirRafs)
}

fn options(args: &Create, interrupt: &Interrupt) -> anyhow::Result<BuildOptions> {
    let threads = match args.threads {
        Some(threads) => usize::from(threads),
        None => thread::available_parallelism().map_or(1, usize::from),
    };
    let memory = args.memory.unwrap_or(MEMORY_PER_THREAD * threads.max(2));
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|number| format!("work-{number}"));
    let pool = pool.build().context("cannot start threads")?;
    let blob_id = match &args.blob_id {
        Some(id) => Some(
            BlobId::new(id.as_str()).with_context(|| {
                format!("--blob-id {id:?}: an id has at most 64 printable characters, begins with no dot and has no slash")
            })?,
        ),
        None => None,
    };
    Ok(BuildOptions {
        version: args.fs_version.parse()?,
        aligned_chunk: args.aligned_chunk,
        compressor: if args.blob_cache_dir.is_some() {
            Compressor::None
        } else {
            args.compressor.as_deref().unwrap_or("zstd").parse()?
        },
        level: args.compression_level,
        digester: args.digester.as_deref().unwrap_or("blake3").parse()?,
        chunk_size: chunk_size(args),
        batch_size: args.batch_size,
        encryption: args.encrypt.then_some(Encryption::Random),
        blob_toc: !args.features.is_empty(),
        inline_meta: args.blob_inline_meta,
        blob_id,
        explicit_owners: !args.repeatable,
        prefetch: prefetch::read(args.prefetch_policy)?,
        readahead: args.prefetch_policy == PrefetchPolicy::Blob,
        blob_offset: args.blob_offset,
        layer: layer::Options {
            drop_estargz: true,
            concatenated: true,
            ..layer::Options::default()
        },
        cancel: interrupt.cancel.clone(),
        ..BuildOptions::new(Arc::new(pool), Budget::new(memory))
    })
}

/// The file of the blob; `None` if the source itself is the blob.
fn create_blob(args: &Create, interrupt: &Interrupt) -> anyhow::Result<Option<Output>> {
    if !writes_blob(args.source_type) {
        return Ok(None);
    }
    // Cache files are made from the blob, which is not kept then.
    let dir = args.blob_cache_dir.as_ref().or(args.blob_dir.as_ref());
    let output = match (&args.blob, dir) {
        (Some(path), _) => Output::create(path, &interrupt.unfinished),
        (None, Some(dir)) => Output::create_in(dir, "blob", &interrupt.unfinished),
        (None, None) => bail!("there is no place for the blob"),
    };
    output.map(Some)
}

/// Builds the layer; its data goes to `blob` unless there is none.
fn build(
    args: &Create,
    blob: Option<&mut Output>,
    options: &BuildOptions,
) -> anyhow::Result<BuiltLayer> {
    let failed = || format!("cannot build {}", args.source.display());
    let built = match blob {
        None if estargz::is_toc(args.source_type) => Ok(estargz::build(args, options)?),
        None => build_tarfs(open_plain_tar(&args.source)?, options),
        Some(blob) if targz::is_ref(args.source_type) => Ok(targz::build(args, blob, options)?),
        Some(blob) if is_directory(args.source_type) => {
            build_directory(&args.source, whiteouts(args), blob, options, Dedup::Layer)
        }
        Some(blob) => {
            let tar = BufReader::with_capacity(BUFFER, open_tar(&args.source)?);
            build_tar(tar, blob, options, Dedup::Layer)
        }
    };
    built.with_context(failed)
}

fn whiteouts(args: &Create) -> Whiteouts {
    match args.whiteout_spec {
        WhiteoutSpec::Oci => Whiteouts::Oci,
        WhiteoutSpec::Overlayfs => Whiteouts::Overlayfs,
        WhiteoutSpec::None => Whiteouts::None,
    }
}

/// The tar stream of a file or FIFO, which is opened once and read front to back.
fn open_tar(path: &Path) -> anyhow::Result<Box<dyn Read + Send>> {
    let (compression, stream) = open_stream(path)?;
    layer::decompress(stream, compression)
        .with_context(|| format!("cannot read {}", path.display()))
}

/// The tar stream of a file or FIFO that is to be used as it is.
fn open_plain_tar(path: &Path) -> anyhow::Result<Box<dyn Read + Send>> {
    let (compression, stream) = open_stream(path)?;
    ensure!(
        compression == Compression::None,
        "{} is compressed: the kernel reads files straight from a tarfs layer, so it has to be a plain tar",
        path.display()
    );
    Ok(stream)
}

/// The bytes of a file or FIFO, and how they are compressed.
pub fn open_stream(path: &Path) -> anyhow::Result<(Compression, Box<dyn Read + Send>)> {
    let failed = || format!("cannot read {}", path.display());
    let file = File::open(path).with_context(failed)?;
    layer::detecting(file).with_context(failed)
}

/// Where the blob goes.
fn blob_path(args: &Create, layer: &BuiltLayer, id: Option<&str>) -> anyhow::Result<PathBuf> {
    let digest = hex::encode(layer.blob_digest);
    let in_dir = |dir: &PathBuf| dir.join(id.unwrap_or(&digest));
    let path = args.blob.clone().or(args.blob_dir.as_ref().map(in_dir));
    path.context("there is no place for the blob")
}

fn write_bootstrap(
    args: &Create,
    layer: &BuiltLayer,
    interrupt: &Interrupt,
) -> anyhow::Result<(Output, PathBuf)> {
    let bootstrap = encode(&layer.image).context("cannot encode the bootstrap")?;
    let path = match (&args.bootstrap, &args.blob_dir) {
        (Some(path), _) => path.clone(),
        (None, Some(dir)) => dir.join(hex::encode(Sha256::digest(&bootstrap))),
        (None, None) => bail!("there is no place for the bootstrap"),
    };
    let output = output::begin(&path, &bootstrap, &interrupt.unfinished)?;
    Ok((output, path))
}

fn events(layer: &BuiltLayer) -> Map<String, Value> {
    let stats = &layer.stats;
    let mut events = Map::new();
    events.insert(
        "blob_uncompressed_size".to_owned(),
        json!(stats.uncompressed_size),
    );
    if stats.duplicate_chunks != 0 {
        events.insert("dedup_chunks".to_owned(), json!(stats.duplicate_chunks));
        events.insert(
            "dedup_uncompressed_size".to_owned(),
            json!(stats.duplicate_size),
        );
    }
    events
}
