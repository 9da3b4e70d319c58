//! Layers that stay as they are: a blob is made that says where in the original layer each chunk lies, and that holds
//! the layer's tree. The data is read from the original layer.
//!
//! What cannot be read in pieces is converted in full, layer by layer: zstd, sparse files, gzip data in which inflating
//! can begin nowhere.

use std::io::{self, Read, Write as _};

use ::layer::Compression;
use builder::{BuildOptions, Onlooker};
use image::{BlobWriter, Descriptor, Digest, Hasher};
use rafs_format::toc::{self, TAR_HEADER_SIZE};
use rafs_format::{BlobFeatures, BlobInfo, Digester};
use storage::{BlobReader, CacheFill};
use tree::Image;

use crate::ChunkCache;
use crate::error::LayerError;
use crate::journal::Record;
use crate::layer::{Blob, ConvertedLayer, Places};
use crate::rewind::Rewind;

/// Bytes of a layer that are written at a time.
const PIECE: usize = 256 << 10;

/// Makes what describes a layer, in one pass over it. If it can't be described, and that turns out early, `stored` can be
/// read again.
pub(crate) fn build<R: Read + Send>(
    places: &Places<'_>,
    stored: &mut Rewind<R>,
    descriptor: &Descriptor,
    diff_id: Digest,
    options: &BuildOptions,
) -> Result<(ConvertedLayer, Option<Digest>), LayerError> {
    let copy = !places.blobs().is_sequential();
    let original = if copy && !arrived(places, descriptor, options)? {
        Some(places.blobs().blob_writer()?)
    } else {
        None
    };
    let mut stored = Tee {
        inner: stored,
        copy: original,
    };
    let mut first = Vec::new();
    let head = stored.by_ref().take(4).read_to_end(&mut first);
    head.map_err(builder::Error::Cut)?;
    let compression = ::layer::detect(&first);
    if compression == Compression::Zstd && !places.extended {
        let text = "the layer is compressed with zstd: only gzip can be read in pieces";
        let error = io::Error::new(io::ErrorKind::Unsupported, text);
        return Err(builder::Error::Cut(error).into());
    }
    if compression != Compression::Zstd {
        stored.inner.forget();
    }
    let mut blob = Vec::new();
    let mut passing = Passing {
        hasher: Hasher::new(),
        kept: places.chunk_cache.and_then(ChunkCache::begin),
    };
    let source = io::Cursor::new(first).chain(&mut stored);
    let built = builder::build_targz_with(source, compression, &mut blob, options, &mut passing)?;
    let actual = passing.hasher.finish();
    if actual != diff_id {
        return Err(LayerError::DiffId {
            expected: diff_id,
            actual,
        });
    }
    if let Some(copy) = stored.copy {
        copy.finish(descriptor.digest)?;
    }
    if let (Some(kept), Some(info)) = (passing.kept, built.image.blobs.first())
        && let Err(error) = kept.finish(info, &built.image.chunks)
    {
        // Whoever needs them fetches them again.
        tracing::warn!("the chunk cache did not get what passed by: {error}");
    }
    let (digest, size) = (Digest::from(built.blob_digest), blob.len() as u64);
    let mut writer = places.blobs().blob_writer()?;
    writer.write_all(&blob).map_err(builder::Error::Write)?;
    writer.finish(digest)?;
    let mut image = built.image;
    if let Some(info) = image.blobs.first_mut() {
        name_table(info, &blob, digest);
    }
    let layer = ConvertedLayer {
        image,
        blob: Blob {
            digest,
            size,
            table: built.table,
            original: Some(descriptor.digest),
        },
        reused: None,
        record: None,
    };
    Ok((layer, built.bootstrap_digest.map(Digest::from)))
}

/// What passes by while a layer is described.
struct Passing {
    hasher: Hasher,
    kept: Option<CacheFill>,
}

impl Onlooker for Passing {
    fn tar(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
    }

    fn takes_chunks(&self) -> bool {
        self.kept.is_some()
    }

    fn chunk(&mut self, offset: u64, bytes: &[u8]) {
        if let Some(kept) = &mut self.kept {
            kept.keep(offset, bytes);
        }
    }
}

/// Whether a layer says that it is one that cannot be read in pieces.
pub(crate) fn is_zstd(descriptor: &Descriptor) -> bool {
    descriptor.media_type.ends_with("+zstd")
}

/// Whether a layer cannot be described, so that it has to be converted.
pub(crate) fn is_unfit(error: &LayerError) -> bool {
    let LayerError::Build(error) = error else {
        return false;
    };
    let unsupported = |error: &io::Error| error.kind() == io::ErrorKind::Unsupported;
    match error {
        builder::Error::NoPlace { .. } => true,
        builder::Error::Cut(error) => unsupported(error),
        builder::Error::Layer(::layer::Error::Data { source, .. }) => unsupported(source),
        _ => false,
    }
}

/// Brings the original of a described layer to where the image goes, if it is not there yet: runtimes read from there.
pub(crate) fn take_along(
    places: &Places<'_>,
    descriptor: &Descriptor,
    layer: &ConvertedLayer,
    options: &BuildOptions,
) -> Result<(), LayerError> {
    if layer.blob.original.is_some() {
        places
            .blobs()
            .copy(places.source, descriptor, &options.cancel)?;
    }
    Ok(())
}

/// Completes what the bootstrap in a describing blob says of it, which is nothing. `None` if the layer was converted in
/// full.
pub(crate) fn load(
    image: &mut Image,
    blob: &dyn BlobReader,
    layer: &Descriptor,
    record: &Record,
    options: &BuildOptions,
) -> Result<Option<Blob>, Box<dyn std::error::Error + Send + Sync>> {
    let described = |info: &BlobInfo| info.features.contains(BlobFeatures::SEPARATE);
    if !image.blobs.iter().any(described) {
        return Ok(None);
    }
    let [info] = &mut image.blobs[..] else {
        return Err(format!("blob {} describes several layers", record.blob).into());
    };
    let same = info.id.as_str() == layer.digest.hex()
        && info.compressed_size == layer.size
        && info.digester == Digester::Sha256
        && info.chunk_size == options.chunk_size
        && image.chunk_size == options.chunk_size
        && image.version == options.version
        && image.explicit_owners == options.explicit_owners
        && !image.tarfs;
    if !same {
        return Err(format!("blob {} describes something else", record.blob).into());
    }
    let mut bytes = vec![0; usize::try_from(blob.size())?];
    blob.read_exact_at(&mut bytes, 0)?;
    if Digest::of(&bytes) != record.blob {
        return Err(format!("blob {} is damaged", record.blob).into());
    }
    name_table(info, &bytes, record.blob);
    let (table, header) = storage::read_chunk_table(info, blob)?;
    Ok(Some(Blob {
        digest: record.blob,
        size: record.size,
        table: Some(builder::ChunkTable {
            table,
            header: header.to_vec(),
        }),
        original: Some(layer.digest),
    }))
}

/// Enters which blob describes the layer. The digest of its table of contents is over the entries alone, as deployed
/// converters have it.
fn name_table(info: &mut BlobInfo, blob: &[u8], digest: Digest) {
    info.meta_digest = *digest.bytes();
    info.meta_size = blob.len() as u64;
    let tail = &blob[blob.len().saturating_sub(toc::TAIL_SIZE)..];
    let tail = toc::parse_tail(tail, blob.len() as u64).unwrap_or_default();
    if let Some(found) = tail.toc {
        let start = usize::try_from(found.offset).unwrap_or(blob.len());
        let entries = blob.get(start..blob.len().saturating_sub(TAR_HEADER_SIZE));
        info.toc_digest = codec::digest(Digester::Sha256, entries.unwrap_or_default());
    }
}

/// Whether the target has a layer, or could take it over.
fn arrived(
    places: &Places<'_>,
    descriptor: &Descriptor,
    options: &BuildOptions,
) -> Result<bool, LayerError> {
    let target = places.blobs();
    Ok(target.take_over(places.source, descriptor, &options.cancel)?)
}

/// Reads, and writes what was read to the target. Whatever goes wrong there ends the copy, not the reading: the layer is
/// copied again afterwards.
struct Tee<R> {
    inner: R,
    copy: Option<BlobWriter>,
}

impl<R: Read> Read for Tee<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let want = buf.len().min(PIECE);
        let got = self.inner.read(&mut buf[..want])?;
        if let Some(copy) = &mut self.copy
            && let Err(error) = copy.write_all(&buf[..got])
        {
            tracing::debug!("the layer is copied again: {error}");
            self.copy = None;
        }
        Ok(got)
    }
}
