//! Tarfs: the layer's uncompressed tar is the blob, and the kernel's extra device, of 512-byte blocks.
//!
//! A chunk's only address is where it lies in the tar. Nothing is digested but, for its name, the tar as a whole, so
//! there are no chunk digests, no chunk is shared, and no blob is written.

use std::io::{self, BufRead, BufReader, Read};

use layer::{DataSink, FileInfo};
use rafs_format::{
    BlobFeatures, BlobId, BlobInfo, CHUNKS_PER_BLOB_MAX, ChunkRecord, Compressor, Digester,
    TARFS_BLOCK_SIZE, Version,
};
use sha2::{Digest as _, Sha256};
use tree::{ChunkId, Image};

use super::sparse;
use crate::build::own_blob;
use crate::prefetch::resolve_prefetch;
use crate::{BuildOptions, BuiltLayer, Error, Stats};

/// Bytes of the tar that are read at a time.
const BUFFER: usize = 256 << 10;

/// Makes a tarfs image of an uncompressed tar stream, which is read to its end. Its blob is that tar: nothing is
/// written. Of the options, compressor, digester and all that is about a blob file count for nothing; the id is that of
/// the options, else the SHA-256 of the tar.
///
/// # Errors
/// [`Error`]; among others for sparse files, whose holes are not in the tar.
pub fn build_tarfs(source: impl Read, options: &BuildOptions) -> Result<BuiltLayer, Error> {
    options.validate_chunk_size()?;
    let source = Counted::new(source, options.blob_id.as_ref());
    let mut source = BufReader::with_capacity(BUFFER, source);
    let mut places = Places {
        options,
        chunks: Vec::new(),
    };
    let tree = layer::read_tree(&mut source, &mut places, &options.layer)?;
    let chunks = places.chunks;
    let (len, id) = source.into_inner().finish(options.blob_id.as_ref())?;
    // The last block counts even if a careless writer has left its padding out.
    let size = len.next_multiple_of(TARFS_BLOCK_SIZE);
    let blob = BlobInfo {
        id,
        chunk_count: chunks.len() as u32,
        compressor: Compressor::None,
        digester: Digester::Sha256,
        features: BlobFeatures::TARFS | BlobFeatures::CAP_TAR_TOC,
        compressed_size: size,
        uncompressed_size: size,
        // There is no table, and this is what the deployed builder names then.
        meta_compressor: Compressor::Lz4Block,
        ..own_blob(0, options)
    };
    let stats = Stats {
        chunks: chunks.len() as u64,
        uncompressed_size: size,
        ..Stats::default()
    };
    let has_data = !chunks.is_empty();
    let image = Image {
        version: Version::V6,
        prefetch: resolve_prefetch(&tree, &options.prefetch),
        tree,
        blobs: has_data.then_some(blob).into_iter().collect(),
        chunks,
        chunk_size: options.chunk_size,
        compressor: Compressor::None,
        digester: Digester::Sha256,
        explicit_owners: options.explicit_owners,
        tarfs: true,
    };
    Ok(BuiltLayer {
        image,
        own_blob: has_data.then_some(0),
        blob_digest: [0; 32],
        self_digest: [0; 32],
        blob_size: 0,
        bootstrap_digest: None,
        table: None,
        stats,
    })
}

/// Notes where chunks lie; their bytes are passed over.
struct Places<'a> {
    options: &'a BuildOptions,
    chunks: Vec<ChunkRecord>,
}

impl DataSink for Places<'_> {
    fn file(&mut self, file: FileInfo<'_>, data: &mut dyn BufRead) -> io::Result<Box<[ChunkId]>> {
        self.options.cancel.check().map_err(io::Error::other)?;
        let offset = file.offset.ok_or_else(sparse)?;
        // Only a file that is there may take memory for its chunks, whatever its header says.
        io::copy(data, &mut io::sink())?;
        let chunk_size = u64::from(self.options.chunk_size);
        let count = file.size.div_ceil(chunk_size);
        let first = self.chunks.len() as u64;
        if first + count >= u64::from(CHUNKS_PER_BLOB_MAX) {
            return Err(io::Error::other(
                "the layer has more than 2^24 - 1 chunks: choose a larger chunk size",
            ));
        }
        for (index, start) in (first..).zip((0..count).map(|i| i * chunk_size)) {
            let size = (file.size - start).min(chunk_size) as u32;
            let place = (0, index as u32);
            self.chunks
                .push(ChunkRecord::in_tar(place, offset + start, start, size));
        }
        Ok((first..first + count)
            .map(|id| ChunkId(id as u32))
            .collect())
    }
}

/// A source whose bytes are counted and, for its id, digested.
struct Counted<R> {
    inner: R,
    len: u64,
    sha256: Option<Sha256>,
}

impl<R: Read> Counted<R> {
    /// `id` is the one to use instead of the digest.
    fn new(inner: R, id: Option<&BlobId>) -> Self {
        Self {
            inner,
            len: 0,
            sha256: id.is_none().then(Sha256::new),
        }
    }

    /// Length in bytes and id of what was read.
    fn finish(self, id: Option<&BlobId>) -> Result<(u64, BlobId), Error> {
        let own = self
            .sha256
            .and_then(|sha256| BlobId::new(hex::encode(sha256.finalize())));
        let id = id.cloned().or(own).ok_or(Error::Stopped)?;
        Ok((self.len, id))
    }
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        if let Some(sha256) = &mut self.sha256 {
            sha256.update(&buf[..n]);
        }
        self.len += n as u64;
        Ok(n)
    }
}
