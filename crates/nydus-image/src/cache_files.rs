//! `create --blob-cache-dir`: what a daemon's cache holds of a blob once it has fetched all of it.
//!
//! | File | Content |
//! |---|---|
//! | `<id>.blob.data` | the blob's uncompressed address space: each chunk at its offset, zeros up to the next block |
//! | `<id>.blob.meta` | the chunk table, decompressed, zeros up to the next block, and the table's header |
//!
//! The first is the extra device of an EROFS mount of the layer.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek as _, Write};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use builder::BuiltLayer;
use rafs_format::BLOCK_SIZE;

use crate::output::{self, Output, Unfinished};

/// Writes the files of the layer's own blob, if it has one. `blob` is that blob, neither compressed nor encrypted. They have no
/// names until they are committed.
pub fn write(
    dir: &Path,
    blob: &Output,
    layer: &BuiltLayer,
    unfinished: &Unfinished,
) -> anyhow::Result<Vec<(Output, PathBuf)>> {
    let (Some(own), Some(table)) = (layer.own_blob, &layer.table) else {
        return Ok(Vec::new());
    };
    let own = &layer.image.blobs[own];
    let path = |kind: &str| dir.join(format!("{}.blob.{kind}", own.id));
    let mut data = Output::create_in(dir, "data", unfinished)?;
    let chunks = layer
        .image
        .chunks
        .iter()
        .filter(|chunk| chunk.blob_index == own.index);
    let sizes = chunks.map(|chunk| chunk.uncompressed_size);
    spread(blob.file(), sizes, &mut data)
        .with_context(|| format!("cannot write {}", path("data").display()))?;
    let meta = output::begin(&path("meta"), &table.cache_file(), unfinished)?;
    Ok(vec![(data, path("data")), (meta, path("meta"))])
}

/// Copies the chunks, which lie back to back and in order, each to the beginning of a block.
fn spread(blob: &File, sizes: impl Iterator<Item = u32>, out: impl Write) -> io::Result<()> {
    let mut blob = BufReader::new(blob);
    blob.rewind()?;
    let mut out = BufWriter::with_capacity(1 << 20, out);
    for size in sizes.map(u64::from) {
        let copied = io::copy(&mut blob.by_ref().take(size), &mut out)?;
        let padding = size.next_multiple_of(BLOCK_SIZE) - size;
        io::copy(&mut io::repeat(0).take(padding), &mut out)?;
        if copied != size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    out.flush()
}
