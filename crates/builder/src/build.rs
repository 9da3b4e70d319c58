//! One source, one blob, one image.

use std::collections::HashMap;
use std::io::{BufRead, Write};

use rafs_format::{BLOBS_MAX, BlobFeatures, BlobId, BlobInfo, ChunkRecord, Digest, Version};
use tree::{Content, Image, InodeId, Tree};

use crate::pipeline::{self, Cutter, Home, Output};
use crate::prefetch::resolve_prefetch;
use crate::turn::{Finished, LowerLayer};
use crate::{BlobKey, BuildOptions, ChunkTable, Dedup, Encryption, Error, tail};

/// A layer that was built.
#[derive(Debug)]
pub struct BuiltLayer {
    /// The tree, the blobs it uses (at most one of them new) and their chunks. The new blob has its final id: the one
    /// asked for, else the SHA-256 of the blob file.
    pub image: Image,
    /// Position of the new blob in the image's blob table, if the layer stored any chunk.
    pub own_blob: Option<usize>,
    /// SHA-256 of the blob file.
    pub blob_digest: Digest,
    /// SHA-256 of the blob file without its array of chunk digests: what the deployed builder calls a blob by that it
    /// names itself.
    pub self_digest: Digest,
    /// Size of the blob file in bytes; 0 if nothing was written.
    pub blob_size: u64,
    /// SHA-256 of the bootstrap inside the blob file, if there is one.
    pub bootstrap_digest: Option<Digest>,
    /// The chunk table of the new blob, if it has one.
    pub table: Option<ChunkTable>,
    /// Figures.
    pub stats: Stats,
}

/// Figures of a build.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Chunks in the new blob.
    pub chunks: u64,
    /// Bytes of these chunks, without what aligns them.
    pub uncompressed_size: u64,
    /// Chunks that were not stored since they were known.
    pub duplicate_chunks: u64,
    /// Their size in bytes.
    pub duplicate_size: u64,
}

/// Builds a layer from an uncompressed tar stream, which is read to its end. The blob goes to `out`, front to back.
///
/// # Errors
/// [`Error`]; `out` then holds a useless part of a blob.
pub fn build_tar(
    source: impl BufRead,
    out: impl Write + Send,
    options: &BuildOptions,
    dedup: Dedup,
) -> Result<BuiltLayer, Error> {
    build(out, options, dedup, |cutter| {
        Ok(layer::read_tree(source, cutter, &options.layer)?)
    })
}

/// Builds from whatever `produce` feeds the cutter with; its tree has the cutter's provisional chunk ids.
pub(crate) fn build(
    out: impl Write + Send,
    options: &BuildOptions,
    dedup: Dedup,
    produce: impl FnOnce(&mut Cutter) -> Result<Tree, Error>,
) -> Result<BuiltLayer, Error> {
    options.validate()?;
    let parent = options.parent.as_ref();
    let known = parent.map(|parent| parent.known_to(options)).transpose()?;
    let options = known.as_ref().unwrap_or(options);
    let key = options.encryption.as_ref().map(Encryption::key);
    let key = key.transpose()?;
    let cipher = key.as_ref().map(BlobKey::cipher);
    let mut output = pipeline::run(options, cipher, dedup, out, produce)?;
    let finished = output
        .finish
        .take()
        .map(|finish| finish.wait(&options.cancel))
        .transpose()?;
    let own = output.chunks.iter().filter(|(home, _)| *home == Home::Own);
    let sizes = own.map(|(_, chunk)| u64::from(chunk.uncompressed_size));
    let stats = Stats {
        chunks: sizes.clone().count() as u64,
        uncompressed_size: sizes.sum(),
        duplicate_chunks: output.duplicates.0,
        duplicate_size: output.duplicates.1,
    };
    let (mut image, mut own) = assemble(&mut output, finished.as_ref(), options)?;
    if options.dictionary.is_some() && image.blobs.len() > BLOBS_MAX {
        return Err(Error::DictionaryBlobs(Box::new(stored_by_blob([&image]))));
    }
    if let (Some(own), Some(key)) = (own, &key) {
        key.record(&mut image.blobs[own]);
    }
    if let Some(parent) = parent {
        (image, own) = parent.under(image, own, &options.prefetch)?;
    }
    if options.readahead {
        image.prefetch.clear();
    }
    let kind = tail::Kind {
        options,
        places: &output.places,
        cipher: key.as_ref().map(BlobKey::cipher),
    };
    let blob = tail::finish(output.blob, &mut image, own, &kind)?;
    if let Some(finished) = finished {
        finished.pass(lower_layer(&image, own));
    }
    Ok(BuiltLayer {
        image,
        own_blob: own,
        blob_digest: blob.digest,
        self_digest: blob.self_digest,
        blob_size: blob.size,
        bootstrap_digest: blob.bootstrap_digest,
        table: blob.table,
        stats,
    })
}

/// Stored bytes that images have of each blob.
pub fn stored_by_blob<'a>(images: impl IntoIterator<Item = &'a Image>) -> HashMap<BlobId, u64> {
    let mut stored: HashMap<BlobId, u64> = HashMap::new();
    for image in images {
        for record in &image.chunks {
            if let Some(blob) = image.blobs.get(record.blob_index as usize) {
                // What a member of a batch takes is not known by itself.
                let size = match record.compressed_size {
                    0 => record.uncompressed_size,
                    size => size,
                };
                *stored.entry(blob.id.clone()).or_default() += u64::from(size);
            }
        }
    }
    stored
}

/// The image of what the pipeline put out, and the index of the blob that is being written, if it has any chunk.
fn assemble<W>(
    output: &mut Output<W, Tree>,
    lower: Option<&Finished>,
    options: &BuildOptions,
) -> Result<(Image, Option<usize>), Error> {
    let mut blobs = Blobs {
        own: None,
        table: Vec::new(),
        known: HashMap::new(),
    };
    let mut chunks = Vec::with_capacity(output.chunks.len());
    for &(home, record) in &output.chunks {
        let (blob, mut record) = match home {
            Home::Own => (None, record),
            Home::Dictionary => {
                let dictionary = options.dictionary.as_ref().ok_or(Error::Stopped)?;
                (
                    Some(dictionary.blob(record.blob_index).ok_or(Error::Stopped)?),
                    record,
                )
            }
            Home::Lower(place) => {
                let (blob, record) = lower
                    .and_then(|lower| lower.chunk(place))
                    .ok_or(Error::LowerLayer)?;
                (Some(blob), record)
            }
        };
        record.blob_index = match blob {
            Some(blob) => blobs.index(blob),
            None => blobs.own(options),
        };
        chunks.push(record);
    }
    let mut tree = std::mem::take(&mut output.produced);
    for id in (0..tree.len() as u32).map(InodeId) {
        if let Content::Regular { chunks, .. } = &mut tree.inode_mut(id).content {
            for chunk in chunks {
                *chunk = *output
                    .ids
                    .get(chunk.0 as usize)
                    .ok_or(Error::Panicked { stage: "dedup" })?;
            }
        }
    }
    if let Some(own) = blobs.own {
        blobs.table[own].chunk_count = output
            .chunks
            .iter()
            .filter(|(home, _)| *home == Home::Own)
            .count() as u32;
        blobs.table[own].uncompressed_size = output.uncompressed_size;
        if options.readahead {
            // A hint: what does not fit is fetched when it is read.
            blobs.table[own].readahead_size = output.head_end().try_into().unwrap_or(u32::MAX);
        }
    }
    let image = Image {
        version: options.version,
        prefetch: resolve_prefetch(&tree, &options.prefetch),
        tree,
        blobs: blobs.table,
        chunks,
        chunk_size: options.chunk_size,
        compressor: options.compressor,
        digester: options.digester,
        explicit_owners: options.explicit_owners,
        tarfs: false,
    };
    Ok((image, blobs.own))
}

/// The blob table while it grows: blobs in order of first use.
struct Blobs {
    own: Option<usize>,
    table: Vec<BlobInfo>,
    known: HashMap<BlobId, u32>,
}

impl Blobs {
    /// Index of a blob that exists already.
    fn index(&mut self, blob: &BlobInfo) -> u32 {
        let next = self.table.len() as u32;
        *self.known.entry(blob.id.clone()).or_insert_with(|| {
            // Its id is final, not one that is to be replaced by a file name.
            let features = blob.features - BlobFeatures::INLINED_FS_META;
            self.table.push(BlobInfo {
                index: next,
                features,
                ..blob.clone()
            });
            next
        })
    }

    /// Index of the blob that is being written.
    fn own(&mut self, options: &BuildOptions) -> u32 {
        let index = *self.own.get_or_insert_with(|| {
            self.table.push(own_blob(self.table.len() as u32, options));
            self.table.len() - 1
        });
        index as u32
    }
}

/// What is known of the blob before its tail is written.
pub(crate) fn own_blob(index: u32, options: &BuildOptions) -> BlobInfo {
    let mut features = BlobFeatures::CAP_TAR_TOC;
    // In v5 nothing says so, whether they are or not.
    features.set(BlobFeatures::ALIGNED, options.version == Version::V6);
    if options.inline_meta {
        features |= BlobFeatures::INLINED_FS_META | BlobFeatures::HAS_TAR_HEADER;
    }
    if options.batch_size != 0 {
        // Even if nothing is small enough: the deployed builder does so, too.
        features |= BlobFeatures::CHUNK_INFO_V2 | BlobFeatures::BATCH;
    }
    if options.encryption.is_some() {
        features |= BlobFeatures::CHUNK_INFO_V2;
    }
    if options.blob_toc {
        features |= BlobFeatures::HAS_TOC
            | BlobFeatures::HAS_TAR_HEADER
            | BlobFeatures::INLINED_CHUNK_DIGEST;
    }
    BlobInfo {
        index,
        features,
        ..BlobInfo::new(
            BlobId::placeholder(),
            options.chunk_size,
            options.compressor,
            options.digester,
        )
    }
}

/// What upper layers of the same image need to refer to this one's chunks.
fn lower_layer(image: &Image, own: Option<usize>) -> LowerLayer {
    let chunks = match own {
        Some(own) => own_chunks(image, own).copied().collect(),
        None => Vec::new(),
    };
    LowerLayer {
        blob: own.map(|own| image.blobs[own].clone()),
        chunks,
    }
}

/// The chunks of the new blob, by index.
pub(crate) fn own_chunks(image: &Image, own: usize) -> impl Iterator<Item = &ChunkRecord> {
    image
        .chunks
        .iter()
        .filter(move |chunk| chunk.blob_index as usize == own)
}
