//! `--chunk-dict`: a bootstrap whose chunks need not be stored again.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use builder::BuildOptions;
use chunkdict::{Dictionary, is_usable};
use rafs_format::BlobId;
use storage::{LoadedBootstrap, load_bootstrap};

use crate::Usage;

/// The path in the value of the option: `PATH` or `bootstrap=PATH`.
pub fn path(value: &str) -> Result<PathBuf, Usage> {
    match value.split_once('=') {
        None => Ok(PathBuf::from(value)),
        Some(("bootstrap", path)) => Ok(PathBuf::from(path)),
        Some((kind, _)) => Err(Usage(format!(
            "--chunk-dict: there is no kind {kind:?} of dictionary; give bootstrap=PATH"
        ))),
    }
}

/// Loads the dictionary for a build; `None`, with a warning, if its chunks have other digests and so none is known.
///
/// # Errors
/// If it cannot be read, or its chunks are of another version or size than the build makes.
pub fn load(value: &str, options: &BuildOptions) -> anyhow::Result<Option<Arc<Dictionary>>> {
    let path = path(value)?;
    let image = read(&path)?.image()?;
    let shown = path.display();
    ensure!(
        image.version == options.version,
        "chunk dictionary {shown} is RAFS {}, the build makes {}: give one of the same version",
        image.version,
        options.version
    );
    ensure!(
        image.chunk_size == options.chunk_size,
        "chunk dictionary {shown} has chunks of {:#x} bytes, the build makes {:#x}: build with --chunk-size {0:#x}",
        image.chunk_size,
        options.chunk_size
    );
    if image.digester != options.digester {
        tracing::warn!(
            "chunk dictionary {shown} knows its chunks by another digester than the build: it has no effect"
        );
        return Ok(None);
    }
    let usable = |record: &rafs_format::ChunkRecord| {
        let blob = image.blobs.get(record.blob_index as usize);
        blob.is_some_and(is_usable)
    };
    let chunks: Vec<_> = image.chunks.iter().copied().filter(usable).collect();
    tracing::info!("chunk dictionary {shown}: {} chunks", chunks.len());
    Ok(Some(Arc::new(Dictionary::new(image.blobs, chunks))))
}

/// The ids of the dictionary's blobs.
///
/// # Errors
/// If it cannot be read.
pub fn blobs(value: &str) -> anyhow::Result<BTreeSet<BlobId>> {
    let loaded = read(&path(value)?)?;
    Ok(loaded.blobs().iter().map(|blob| blob.id.clone()).collect())
}

fn read(path: &Path) -> anyhow::Result<LoadedBootstrap> {
    let failed = || format!("cannot read the chunk dictionary {}", path.display());
    load_bootstrap(path).with_context(failed)
}
