//! What follows the chunks in a blob file: chunk table, digests, bootstrap, table of contents.
//!
//! Each piece is followed by a tar header that names it, so a reader walks the file from its end:
//!
//! | Piece | Header | When |
//! |---|---|---|
//! | chunk data | `image.blob` | the blob has chunks, and they are in it; header with either of the two below |
//! | chunk table, then its 4096-byte header | `blob.meta` | v6 and the blob has chunks; header likewise |
//! | 32 bytes of digest per chunk | `blob.digest` | table of contents asked for and the blob has chunks |
//! | bootstrap | `image.boot` | inline metadata asked for |
//! | entries of 128 bytes | `rafs.blob.toc` | table of contents asked for |

use std::io::Write;

use codec::{BlobCipher, Encoder};
use rafs_format::blob_meta::{self, Header, StoredChunk};
use rafs_format::toc::{self, TocEntry};
use rafs_format::{BlobFeatures, BlobId, BlobInfo, ChunkRecord, Compressor, Digest, Version};
use sha2::{Digest as _, Sha256};
use tree::Image;

use crate::build::own_chunks;
use crate::pipeline::{BlobWriter, Places, Sealer};
use crate::transcode::table_apart;
use crate::{BuildOptions, Error};

/// How a record of the chunk table is written.
type Encode = fn(&StoredChunk, &mut Vec<u8>) -> Result<(), rafs_format::Error>;

/// A blob file that is complete.
pub(crate) struct Finished {
    /// SHA-256 of the file.
    pub digest: Digest,
    /// SHA-256 of the file without the array of chunk digests.
    pub self_digest: Digest,
    /// Size of the file.
    pub size: u64,
    /// SHA-256 of the bootstrap inside, if there is one.
    pub bootstrap_digest: Option<Digest>,
    /// The chunk table of the blob, if it has one.
    pub table: Option<ChunkTable>,
}

/// What decides about the form of a blob file.
pub(crate) struct Kind<'a> {
    pub options: &'a BuildOptions,
    pub places: &'a Places,
    pub cipher: Option<BlobCipher>,
}

/// The chunk table of a blob, as a reader of the blob knows it: decompressed and decrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkTable {
    /// One record per chunk, then one per batch or slice, then the dictionaries of slices.
    pub table: Vec<u8>,
    /// The header behind it.
    pub header: Vec<u8>,
}

impl ChunkTable {
    /// What readers keep of it beside their cache, in the file `<id>.blob.meta`: the table, filled up with zeros to a
    /// multiple of 4096 bytes, and the header.
    pub fn cache_file(&self) -> Vec<u8> {
        let mut file = self.table.clone();
        file.resize(file.len().next_multiple_of(blob_meta::HEADER_SIZE), 0);
        file.extend_from_slice(&self.header);
        file
    }
}

/// Writes all that follows the chunks and completes the entry of blob `own` in the image's blob table.
pub(crate) fn finish<W: Write>(
    blob: BlobWriter<W>,
    image: &mut Image,
    own: Option<usize>,
    kind: &Kind<'_>,
) -> Result<Finished, Error> {
    let options = kind.options;
    let mut tail = Tail {
        blob,
        without_digests: None,
        headers: options.inline_meta || options.blob_toc,
        toc: Vec::new(),
        bootstrap_digest: None,
        table: None,
    };
    // Chunks that stay in a layer's tar: the file holds what describes them alone.
    let separate = own.is_some_and(|own| {
        let features = image.blobs[own].features;
        features.contains(BlobFeatures::SEPARATE)
    });
    if let Some(own) = own {
        if !separate {
            tail.data(image.blobs[own].uncompressed_size)?;
        }
        if options.version == Version::V6 {
            tail.chunk_table(image, own, kind)?;
        }
        if options.blob_toc {
            tail.digests(image, own)?;
        }
        if !separate {
            image.blobs[own].compressed_size = tail.blob.position();
        }
    }
    if options.inline_meta {
        tail.bootstrap(image, options)?;
    }
    if options.blob_toc && !tail.toc.is_empty() {
        let (digest, size) = tail.table_of_contents()?;
        if let (Some(own), false) = (own, options.inline_meta) {
            image.blobs[own].toc_digest = digest;
            image.blobs[own].toc_size = size;
        }
    }
    let finished = tail.close()?;
    if let (Some(own), true) = (own, separate) {
        // The file itself cannot say so.
        if !options.inline_meta {
            image.blobs[own].meta_digest = finished.digest;
            image.blobs[own].meta_size = finished.size;
        }
    } else if let Some(own) = own {
        let info = &mut image.blobs[own];
        if !options.inline_meta {
            info.compressed_size = options.blob_offset + finished.size;
        }
        info.id = options.blob_id.clone().unwrap_or_else(|| {
            let id = if options.inline_meta {
                finished.digest
            } else {
                finished.self_digest
            };
            BlobId::new(hex::encode(id)).expect("64 hexadecimal digits make an id")
        });
    }
    Ok(finished)
}

/// Writes the blob that goes with an image whose data lies elsewhere. In v6 it begins with the chunk tables of all blobs, one
/// behind the other, each with its header; the image's blob table says so.
pub(crate) fn finish_external<W: Write>(
    out: W,
    image: &mut Image,
    options: &BuildOptions,
) -> Result<Finished, Error> {
    let mut tail = Tail {
        blob: BlobWriter::new(out, 0),
        without_digests: None,
        headers: options.inline_meta || options.blob_toc,
        toc: Vec::new(),
        bootstrap_digest: None,
        table: None,
    };
    if image.version == Version::V6 {
        for index in 0..image.blobs.len() {
            let chunks = image.chunks.iter_mut();
            let chunks = chunks.filter(|chunk| chunk.blob_index as usize == index);
            let table = table_apart(&mut image.blobs[index], chunks, tail.blob.len())?;
            tail.append(&table)?;
        }
        if tail.blob.len() != 0 {
            tail.header(toc::META, tail.blob.len())?;
        }
    }
    if options.inline_meta {
        tail.bootstrap(image, options)?;
    }
    if options.blob_toc && !tail.toc.is_empty() {
        tail.table_of_contents()?;
    }
    let finished = tail.close()?;
    let apart = |blob: &&mut BlobInfo| blob.features.contains(BlobFeatures::SEPARATE);
    if !options.inline_meta {
        for blob in image.blobs.iter_mut().filter(apart) {
            blob.meta_digest = finished.digest;
            blob.meta_size = finished.size;
        }
    }
    Ok(finished)
}

struct Tail<W> {
    blob: BlobWriter<W>,
    /// The running digest that leaves the digest array out, once there is one.
    without_digests: Option<Sha256>,
    /// Whether pieces are followed by tar headers.
    headers: bool,
    toc: Vec<TocEntry>,
    bootstrap_digest: Option<Digest>,
    table: Option<ChunkTable>,
}

impl<W: Write> Tail<W> {
    fn append(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if let Some(sha256) = &mut self.without_digests {
            sha256.update(bytes);
        }
        self.blob.append(bytes)
    }

    fn header(&mut self, name: &str, size: u64) -> Result<(), Error> {
        if self.headers {
            self.append(&toc::tar_header(name, size))
        } else {
            Ok(())
        }
    }

    /// The chunks are there already; their entry's digest covers the header too.
    fn data(&mut self, uncompressed_size: u64) -> Result<(), Error> {
        let (offset, size) = (self.blob.position() - self.blob.len(), self.blob.len());
        self.header(toc::DATA, size)?;
        let digest = self.blob.sha256().finalize().into();
        self.entry(
            toc::DATA,
            Compressor::None,
            digest,
            offset,
            size,
            uncompressed_size,
        );
        Ok(())
    }

    /// Writes the chunk table. It and its header are encrypted like chunks; their digests are those of the plain bytes.
    fn chunk_table(&mut self, image: &mut Image, own: usize, kind: &Kind<'_>) -> Result<(), Error> {
        let options = kind.options;
        let table = encode_table(own_chunks(image, own), &image.blobs[own], kind.places)?;
        let mut sealer = Sealer {
            encoder: Encoder::new(options.compressor, options.level).map_err(Error::Compress)?,
            cipher: kind.cipher.as_ref(),
        };
        let (stored, compressed) = sealer.seal(&table).map_err(Error::Compress)?;
        let compressor = if compressed {
            options.compressor
        } else {
            Compressor::None
        };
        let info = &mut image.blobs[own];
        info.meta_compressor = compressor;
        info.meta_offset = self.blob.position();
        info.meta_compressed_size = stored.len() as u64;
        info.meta_uncompressed_size = table.len() as u64;
        let header = header_with_contexts(info, kind.places).encode();
        let (offset, size, full) = (
            info.meta_offset,
            info.meta_compressed_size,
            info.meta_uncompressed_size,
        );
        self.append(&stored)?;
        let mut stored_header = header.to_vec();
        if let Some(cipher) = &kind.cipher {
            cipher.encrypt(&mut stored_header, 0);
        }
        self.append(&stored_header)?;
        let header_size = header.len() as u64;
        self.header(toc::META, size + header_size)?;
        let digest = Sha256::digest(&table).into();
        self.entry(toc::META, compressor, digest, offset, size, full);
        let digest = Sha256::digest(header).into();
        self.entry(
            toc::META_HEADER,
            Compressor::None,
            digest,
            offset + size,
            header_size,
            header_size,
        );
        self.table = Some(ChunkTable {
            table,
            header: header.to_vec(),
        });
        Ok(())
    }

    fn digests(&mut self, image: &Image, own: usize) -> Result<(), Error> {
        let digests: Vec<u8> = own_chunks(image, own)
            .flat_map(|chunk| chunk.digest)
            .collect();
        let (offset, size) = (self.blob.position(), digests.len() as u64);
        self.without_digests = Some(self.blob.sha256());
        self.blob.append(&digests)?;
        self.header(toc::DIGESTS, size)?;
        self.entry(
            toc::DIGESTS,
            Compressor::None,
            Sha256::digest(&digests).into(),
            offset,
            size,
            size,
        );
        Ok(())
    }

    /// The bootstrap is compressed if there is a table of contents to say so.
    fn bootstrap(&mut self, image: &Image, options: &BuildOptions) -> Result<(), Error> {
        let bootstrap = bootstrap::encode(image)?;
        let mut encoder =
            Encoder::new(Compressor::Zstd, Encoder::ZSTD_LEVEL_DEFAULT).map_err(Error::Compress)?;
        let compressed = if options.blob_toc {
            encoder.compress(&bootstrap).map_err(Error::Compress)?
        } else {
            None
        };
        let compressor = if compressed.is_some() {
            Compressor::Zstd
        } else {
            Compressor::None
        };
        let stored = compressed.unwrap_or(&bootstrap);
        let (offset, size) = (self.blob.position(), stored.len() as u64);
        self.append(stored)?;
        self.header(toc::BOOTSTRAP, size)?;
        let digest = Sha256::digest(&bootstrap).into();
        self.bootstrap_digest = Some(digest);
        self.entry(
            toc::BOOTSTRAP,
            compressor,
            digest,
            offset,
            size,
            bootstrap.len() as u64,
        );
        Ok(())
    }

    /// Returns what the blob table may record of it: digest and size, with the header.
    fn table_of_contents(&mut self) -> Result<(Digest, u32), Error> {
        let mut bytes = Vec::new();
        for entry in &self.toc {
            entry.encode(&mut bytes).map_err(|source| Error::Encode {
                path: toc::TOC.to_owned(),
                source,
            })?;
        }
        bytes.extend_from_slice(&toc::tar_header(toc::TOC, bytes.len() as u64));
        self.append(&bytes)?;
        Ok((Sha256::digest(&bytes).into(), bytes.len() as u32))
    }

    fn entry(
        &mut self,
        name: &str,
        compressor: Compressor,
        digest: Digest,
        offset: u64,
        size: u64,
        full: u64,
    ) {
        self.toc.push(TocEntry {
            name: name.to_owned(),
            compressor,
            digest,
            compressed_offset: offset,
            compressed_size: size,
            uncompressed_size: full,
        });
    }

    fn close(mut self) -> Result<Finished, Error> {
        self.blob.flush()?;
        let digest: Digest = self.blob.sha256().finalize().into();
        let self_digest = self
            .without_digests
            .map_or(digest, |sha256| sha256.finalize().into());
        Ok(Finished {
            digest,
            self_digest,
            size: self.blob.len(),
            bootstrap_digest: self.bootstrap_digest,
            table: self.table,
        })
    }
}

/// The chunk table of a blob whose entry in the blob table is complete.
pub(crate) fn chunk_table(image: &Image, own: usize, places: &Places) -> Result<ChunkTable, Error> {
    let info = &image.blobs[own];
    Ok(ChunkTable {
        table: encode_table(own_chunks(image, own), info, places)?,
        header: header_with_contexts(info, places).encode().to_vec(),
    })
}

fn header_with_contexts(info: &BlobInfo, places: &Places) -> Header {
    let mut header = table_header(info);
    let contexts = BlobFeatures::BATCH | BlobFeatures::ZRAN;
    if info.features.intersects(contexts) {
        header.contexts_count = places.contexts();
        header.contexts_offset = u64::from(info.chunk_count) * blob_meta::CHUNK_V2_SIZE;
        header.contexts_size = info.meta_uncompressed_size - header.contexts_offset;
    }
    header
}

/// What stands behind the chunk table of a blob without batches and slices.
pub(crate) fn table_header(info: &BlobInfo) -> Header {
    Header {
        features: info.features,
        compressor: info.meta_compressor,
        entries: info.chunk_count,
        offset: info.meta_offset,
        compressed_size: info.meta_compressed_size,
        uncompressed_size: info.meta_uncompressed_size,
        contexts_offset: 0,
        contexts_size: 0,
        contexts_count: 0,
    }
}

/// The records of the chunks, and of the batches that they are in.
fn encode_table<'a>(
    chunks: impl Iterator<Item = &'a ChunkRecord>,
    info: &BlobInfo,
    places: &Places,
) -> Result<Vec<u8>, Error> {
    let (encode, size): (Encode, _) = if info.features.contains(BlobFeatures::CHUNK_INFO_V2) {
        (blob_meta::encode_v2, blob_meta::CHUNK_V2_SIZE)
    } else {
        (blob_meta::encode_v1, blob_meta::CHUNK_V1_SIZE)
    };
    let mut table = Vec::with_capacity(info.chunk_count as usize * size as usize);
    for chunk in chunks {
        encode(&places.stored(chunk), &mut table).map_err(|source| Error::Encode {
            path: format!("chunk {} of the chunk table", chunk.index),
            source,
        })?;
    }
    places.encode_contexts(&mut table);
    Ok(table)
}
