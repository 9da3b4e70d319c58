//! `create --type targz-ref` and `estargz-ref`: the chunks stay in the layer's tar, which is gzipped or plain.

use anyhow::Context as _;
use builder::{BuildOptions, BuiltLayer, build_targz};

use crate::Usage;
use crate::args::{Create, SourceType};
use crate::create::{open_stream, refuse_for_reference};
use crate::output::Output;

/// Whether the chunks stay in the tar.
pub fn is_ref(source: SourceType) -> bool {
    matches!(source, SourceType::TargzRef | SourceType::EstargzRef)
}

/// Refuses what such a layer has no place for.
pub fn check_conflicts(args: &Create) -> Result<(), Usage> {
    if !is_ref(args.source_type) {
        return Ok(());
    }
    refuse_for_reference(
        args,
        &[("--blob-id", args.blob_id.is_some())],
        "--type targz-ref or estargz-ref: the chunks stay in the layer",
    )
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
