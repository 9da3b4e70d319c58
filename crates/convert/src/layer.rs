//! One layer: from its stored bytes to a blob in the target and a tree in memory.

use std::io::Read;
use std::os::unix::fs::FileExt as _;

use builder::{BuildOptions, BuiltLayer, Dedup};
use image::{Descriptor, Digest, Source, Target};
use progress::{Cancel, Progress};
use rafs_format::BlobInfo;
use tree::Image;

use crate::TOTAL;
use crate::error::LayerError;
use crate::stream;

/// Size of the header behind a chunk table, in bytes.
const TABLE_HEADER: usize = 4096;

/// A layer that was converted.
#[derive(Debug)]
pub(crate) struct ConvertedLayer {
    /// Its tree, with its blob and chunks.
    pub image: Image,
    /// What it is in the target.
    pub blob: Blob,
}

/// A blob in the target.
#[derive(Debug)]
pub(crate) struct Blob {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Its chunk table; `None` without chunks.
    pub table: Option<ChunkTable>,
}

/// The chunk table of a blob.
#[derive(Debug)]
pub(crate) struct ChunkTable {
    /// The table, inflated.
    pub table: Vec<u8>,
    /// The header behind it.
    pub header: Vec<u8>,
}

/// Where layers come from and go to.
pub(crate) struct Places<'a> {
    pub source: &'a Source,
    pub target: &'a Target,
    pub progress: &'a dyn Progress,
}

/// Converts a layer. A damaged source is told from what damage does to those who read it: its digest is the error.
pub(crate) fn convert(
    places: &Places<'_>,
    descriptor: &Descriptor,
    diff_id: Digest,
    options: &BuildOptions,
    dedup: Dedup,
) -> Result<ConvertedLayer, LayerError> {
    let task = format!("layer {}", &descriptor.digest.hex()[..12]);
    places.progress.started(&task, Some(descriptor.size));
    let built = build(places, &task, descriptor, diff_id, options, dedup);
    let layer = match built {
        Ok(layer) => layer,
        Err(error) if options.cancel.is_cancelled() => return Err(error),
        Err(error) => {
            places.source.verify_blob(descriptor)?;
            return Err(error);
        }
    };
    let summary = format!(
        "blob {}, {} bytes",
        &layer.blob.digest.hex()[..12],
        layer.blob.size
    );
    places.progress.finished(&task, &summary);
    Ok(layer)
}

fn build(
    places: &Places<'_>,
    task: &str,
    descriptor: &Descriptor,
    diff_id: Digest,
    options: &BuildOptions,
    dedup: Dedup,
) -> Result<ConvertedLayer, LayerError> {
    let stored = Counted {
        inner: places.source.open_blob(descriptor)?,
        progress: places.progress,
        task,
    };
    let mut writer = places.target.blob_writer()?;
    let (built, actual) = std::thread::scope(|scope| {
        let stream = stream::open(scope, stored, &options.cancel);
        let built = builder::build_tar(stream.tar, &mut writer, options, dedup)?;
        Ok::<_, LayerError>((built, stream.diff_id.wait()?))
    })?;
    if actual != diff_id {
        return Err(LayerError::DiffId {
            expected: diff_id,
            actual,
        });
    }
    let digest = Digest::from(built.blob_digest);
    let size = writer.finish(digest)?;
    let table = read_table(places.target, &built, digest, &options.cancel)?;
    Ok(ConvertedLayer {
        image: built.image,
        blob: Blob {
            digest,
            size,
            table,
        },
    })
}

/// Reads the chunk table of a new blob back.
fn read_table(
    target: &Target,
    built: &BuiltLayer,
    blob: Digest,
    cancel: &Cancel,
) -> Result<Option<ChunkTable>, LayerError> {
    let id = blob.hex();
    let own = built
        .image
        .blobs
        .iter()
        .find(|info| built.has_data && info.id.as_str() == id);
    let Some(info) = own.filter(|info| info.meta_uncompressed_size != 0) else {
        return Ok(None);
    };
    cancel.check().map_err(builder::Error::from)?;
    let (file, offset, len) = target.file_blob(&blob)?;
    let stored = stored_table(info, len)?;
    let mut bytes = vec![0; stored];
    file.read_exact_at(&mut bytes, offset + info.meta_offset)
        .map_err(|error| LayerError::Table(error.into()))?;
    let header = bytes.split_off(stored - TABLE_HEADER);
    let mut table = vec![0; usize::try_from(info.meta_uncompressed_size).unwrap_or_default()];
    codec::decompress(info.meta_compressor, &bytes, &mut table)
        .map_err(|error| LayerError::Table(error.into()))?;
    Ok(Some(ChunkTable { table, header }))
}

/// Size of the stored table with its header; both must lie within the blob of `len` bytes.
fn stored_table(info: &BlobInfo, len: u64) -> Result<usize, LayerError> {
    let stored = info.meta_compressed_size.checked_add(TABLE_HEADER as u64);
    let end = stored.and_then(|stored| stored.checked_add(info.meta_offset));
    stored
        .filter(|_| end.is_some_and(|end| end <= len))
        .and_then(|stored| usize::try_from(stored).ok())
        .ok_or_else(|| LayerError::Table("it lies outside of the blob".into()))
}

/// Reports what is read through it.
struct Counted<'a, R> {
    inner: R,
    progress: &'a dyn Progress,
    task: &'a str,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let got = self.inner.read(buf)?;
        self.progress.advanced(self.task, got as u64);
        self.progress.advanced(TOTAL, got as u64);
        Ok(got)
    }
}
