//! The text of `nydus-image check`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::ops::{ControlFlow, Deref};

use rafs_format::{BlobFeatures, BlobInfo, Bootstrap, ChunkRecord, Inode};
use storage::LoadedBootstrap;

use crate::Error;
use crate::walk::walk;

/// Writes the headline of a bootstrap that passed the check.
///
/// # Errors
/// [`Error::Write`].
pub fn write_valid(out: &mut dyn Write) -> Result<(), Error> {
    Ok(writeln!(out, "RAFS metadata is valid; data blobs:")?)
}

/// Writes one line for each blob.
///
/// # Errors
/// [`Error::Write`].
pub fn write_blobs(loaded: &LoadedBootstrap, out: &mut dyn Write) -> Result<(), Error> {
    for info in loaded.blobs() {
        writeln!(
            out,
            "\t{}: {}, compressed size {:#x}, uncompressed size {:#x}, chunk size {:#x}, chunk count {:#x}, features: {}",
            info.index,
            info.id,
            info.compressed_size,
            info.uncompressed_size,
            info.chunk_size,
            info.chunk_count,
            feature_words(info).join(" ")
        )?;
    }
    Ok(())
}

/// The features of a blob that have a word.
pub(crate) fn feature_words(info: &BlobInfo) -> Vec<&'static str> {
    const WORDS: [(BlobFeatures, &str); 12] = [
        (BlobFeatures::ALIGNED, "aligned"),
        (BlobFeatures::BATCH, "batch"),
        (BlobFeatures::CAP_TAR_TOC, "cap_toc"),
        (BlobFeatures::INLINED_CHUNK_DIGEST, "chunk-digest"),
        (BlobFeatures::CHUNK_INFO_V2, "chunk-v2"),
        (BlobFeatures::INLINED_FS_META, "fs-meta"),
        (BlobFeatures::SEPARATE, "separate"),
        (BlobFeatures::HAS_TAR_HEADER, "tar-header"),
        (BlobFeatures::HAS_TOC, "toc"),
        (BlobFeatures::ZRAN, "zran"),
        (BlobFeatures::ENCRYPTED, "encrypted"),
        (BlobFeatures::CHUNKDICT_GENERATED, "is-chunkdict-generated"),
    ];
    WORDS
        .iter()
        .filter(|(feature, _)| info.features.contains(*feature))
        .map(|(_, word)| *word)
        .collect()
}

/// Writes one line for each name in the tree and one for each chunk of a file, at the file's first name.
///
/// # Errors
/// [`Error::Write`], or [`Error::Damaged`] if the bootstrap does not pass the check.
pub fn write_files(loaded: &LoadedBootstrap, out: &mut dyn Write) -> Result<(), Error> {
    let bootstrap = &loaded.bootstrap;
    let records = ChunkRecords::load(loaded)?;
    let mut listed = BTreeSet::new();
    walk(bootstrap, |path, inode| {
        write_inode(path, inode, number(loaded, inode), out)?;
        if inode.is_regular() && listed.insert(inode.nid) {
            for (i, chunk) in file_chunks(bootstrap, path, inode, &records)?
                .iter()
                .enumerate()
            {
                write_chunk(i, chunk, out)?;
            }
        }
        Ok(ControlFlow::Continue(()))
    })
}

/// What users know an inode by: its place in v6, its sequential number in v5.
pub(crate) fn number(loaded: &LoadedBootstrap, inode: &Inode) -> u64 {
    match loaded.v5 {
        Some(_) => inode.ino.into(),
        None => inode.nid.0,
    }
}

fn write_inode(path: &[u8], inode: &Inode, number: u64, out: &mut dyn Write) -> Result<(), Error> {
    write!(
        out,
        "inode {number} mode {:#o} nlink {} uid {} gid {}",
        inode.mode, inode.nlink, inode.uid, inode.gid
    )?;
    write!(
        out,
        " size {} mtime {}.{:09} ",
        inode.size, inode.mtime, inode.mtime_nsec
    )?;
    out.write_all(path)?;
    Ok(writeln!(out)?)
}

fn write_chunk(number: usize, chunk: &FileChunk, out: &mut dyn Write) -> Result<(), Error> {
    write!(
        out,
        "\tchunk {number} file offset {} size {}",
        chunk.file_offset, chunk.size
    )?;
    write!(
        out,
        " blob {} index {} at {}",
        chunk.blob_index, chunk.index, chunk.uncompressed_offset
    )?;
    if let Some(record) = &chunk.record {
        write!(
            out,
            " stored {}+{}",
            record.compressed_offset, record.compressed_size
        )?;
        write!(out, " digest {}", hex::encode(record.digest))?;
    }
    Ok(writeln!(out)?)
}

/// The chunk records by blob and index. Tarfs images have none.
pub(crate) struct ChunkRecords(BTreeMap<(u32, u32), ChunkRecord>);

impl ChunkRecords {
    pub(crate) fn load(loaded: &LoadedBootstrap) -> Result<Self, Error> {
        let mut records = BTreeMap::new();
        if let Some(v5) = &loaded.v5 {
            for index in 1..=v5.names() {
                let damaged = |source| Error::Damaged {
                    path: format!("the inode with index {index}").into_bytes(),
                    source,
                };
                for record in v5.inode(index).map_err(damaged)?.chunks() {
                    let record = record.map_err(damaged)?;
                    records.insert((record.blob_index, record.index), record);
                }
            }
            return Ok(Self(records));
        }
        let bootstrap = &loaded.bootstrap;
        for record in bootstrap.chunk_table().filter(|_| !bootstrap.is_tarfs()) {
            let record = record.map_err(|source| Error::Damaged {
                path: b"the chunk table".to_vec(),
                source,
            })?;
            records.insert((record.blob_index, record.index), record);
        }
        Ok(Self(records))
    }
}

/// One chunk of a file, with its record if there is one.
pub(crate) struct FileChunk {
    pub(crate) file_offset: u64,
    pub(crate) size: u64,
    pub(crate) blob_index: u32,
    pub(crate) index: u32,
    pub(crate) uncompressed_offset: u64,
    pub(crate) record: Option<ChunkRecord>,
}

/// The chunks of a regular file.
pub(crate) fn file_chunks<D: Deref<Target = [u8]>>(
    bootstrap: &Bootstrap<D>,
    path: &[u8],
    inode: &Inode,
    records: &ChunkRecords,
) -> Result<Vec<FileChunk>, Error> {
    let damaged = |source| Error::Damaged {
        path: path.to_vec(),
        source,
    };
    let chunk_size = u64::from(bootstrap.superblock().chunk_size);
    let mut chunks = Vec::new();
    for (i, pointer) in bootstrap.chunks(inode).map_err(damaged)?.enumerate() {
        let pointer = pointer.map_err(damaged)?;
        let file_offset = i as u64 * chunk_size;
        let record = records.0.get(&(pointer.blob_index, pointer.index)).copied();
        chunks.push(FileChunk {
            file_offset,
            size: chunk_size.min(inode.size.saturating_sub(file_offset)),
            blob_index: pointer.blob_index,
            index: pointer.index,
            uncompressed_offset: record.map_or(pointer.uncompressed_offset, |record| {
                record.uncompressed_offset
            }),
            record,
        });
    }
    Ok(chunks)
}
