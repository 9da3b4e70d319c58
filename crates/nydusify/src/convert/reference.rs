//! `convert --oci-ref`: which of the other options go with it.

use super::{ConvertArgs, Scope};
use crate::args::Usage;

/// Refuses what makes no sense where layers stay as they are.
pub fn check(args: &ConvertArgs) -> Result<(), Usage> {
    let wrong = [
        (
            args.chunk_dict.as_ref().is_some_and(|d| !d.is_empty()),
            "--chunk-dict",
        ),
        (
            args.batch_size.is_some_and(|size| size != 0),
            "--batch-size",
        ),
        (args.dedup == Scope::Image, "--dedup image"),
        (args.backend.choice().is_given(), "--backend-type"),
    ];
    match wrong.iter().find(|(given, _)| *given) {
        Some((_, flag)) => Err(Usage(format!(
            "{flag} cannot be used with --oci-ref: the layers stay as they are"
        ))),
        None => Ok(()),
    }
}

/// What was asked for and comes to nothing, a line each: the deployed tool overrides it, too.
pub fn overridden(args: &ConvertArgs) -> Vec<String> {
    let compressor = format!("--compressor {}", args.compressor);
    let all = [
        (
            args.fs_version != "6",
            "--fs-version 5",
            "has no effect with --oci-ref, which forces version 6",
        ),
        (
            args.docker_v2_format,
            "--docker-v2-format",
            "has no effect with --oci-ref, which forces OCI's media types",
        ),
        (
            args.fs_align_chunk,
            "--fs-align-chunk",
            "has no effect with --oci-ref, which forces version 6",
        ),
        (
            args.compressor != "zstd",
            &compressor,
            "is with --oci-ref for layers alone that cannot be read in pieces: the others stay as they are",
        ),
    ];
    let given = all.iter().filter(|(given, ..)| *given);
    given
        .map(|(_, flag, why)| format!("{flag} {why}"))
        .collect()
}
