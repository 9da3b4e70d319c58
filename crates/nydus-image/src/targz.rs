//! `create --type targz-ref` and `estargz-ref`: the chunks stay in the layer's tar, which is gzipped or plain.

use anyhow::Context as _;
use builder::{BuildOptions, BuiltLayer, build_targz};

use crate::Usage;
use crate::args::{Create, PrefetchPolicy, SourceType};
use crate::create::open_stream;
use crate::output::Output;
use crate::parent;

/// Whether the chunks stay in the tar.
pub fn is_ref(source: SourceType) -> bool {
    matches!(source, SourceType::TargzRef | SourceType::EstargzRef)
}

/// Refuses what such a layer has no place for.
pub fn check_conflicts(args: &Create) -> Result<(), Usage> {
    if !is_ref(args.source_type) {
        return Ok(());
    }
    let parent = parent::path(args.parent_bootstrap.as_deref());
    let conflicts = [
        ("--fs-version 5", args.fs_version != "6"),
        ("--blob-id", args.blob_id.is_some()),
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
    match conflicts.iter().find(|(_, given)| *given) {
        Some((flag, _)) => Err(Usage(format!(
            "{flag} cannot be used with --type targz-ref or estargz-ref: the chunks stay in the layer"
        ))),
        None => Ok(()),
    }
}

/// Builds the image of a layer's tar; what describes its chunks goes to `blob`.
pub fn build(
    args: &Create,
    blob: &mut Output,
    options: &BuildOptions,
) -> anyhow::Result<BuiltLayer> {
    let (compression, stream) = open_stream(&args.source)?;
    build_targz(stream, compression, blob, options)
        .with_context(|| format!("cannot build {}", args.source.display()))
}
