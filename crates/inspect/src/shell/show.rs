//! The text of single things: superblock, blobs, an inode.

use std::io::Write;
use std::ops::Deref;

use rafs_format::{Bootstrap, FileType, Inode, Nid};
use serde::Serialize;

use crate::Error;
use crate::report::{ChunkRecords, FileChunk, feature_words, file_chunks};

/// The letter that `ls` shows for a file type.
pub(super) fn letter(inode: &Inode) -> char {
    match inode.file_type {
        FileType::Regular => '-',
        FileType::Directory => 'd',
        FileType::Symlink => 'l',
        _ => ' ',
    }
}

/// One line of a table of fields.
fn field(out: &mut dyn Write, name: &str, value: impl std::fmt::Display) -> Result<(), Error> {
    Ok(writeln!(out, "{:<28}{value}", format!("{name}:"))?)
}

pub(super) fn stats<D: Deref<Target = [u8]>>(
    bootstrap: &Bootstrap<D>,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let superblock = bootstrap.superblock();
    let flags: Vec<_> = superblock
        .flags
        .iter_names()
        .map(|(name, _)| name)
        .collect();
    field(out, "Version", 6)?;
    field(out, "Inodes Count", superblock.inos)?;
    field(
        out,
        "Chunk Size",
        format!("{}KB", superblock.chunk_size / 1024),
    )?;
    field(out, "Root Inode", superblock.root)?;
    field(out, "Flags", flags.join(" | "))?;
    field(
        out,
        "Blob Table Offset",
        format!("{:#x}", superblock.blob_table_offset),
    )?;
    field(
        out,
        "Blob Table Size",
        format!("{:#x}", superblock.blob_table_size),
    )?;
    field(
        out,
        "Prefetch Table Offset",
        format!("{:#x}", superblock.prefetch_table_offset),
    )?;
    field(
        out,
        "Prefetch Table Size",
        format!("{:#x}", superblock.prefetch_table_size),
    )?;
    field(
        out,
        "Chunk Table Offset",
        format!("{:#x}", superblock.chunk_table_offset),
    )?;
    field(
        out,
        "Chunk Table Size",
        format!("{:#x}", superblock.chunk_table_size),
    )
}

pub(super) fn blobs<D: Deref<Target = [u8]>>(
    bootstrap: &Bootstrap<D>,
    out: &mut dyn Write,
) -> Result<(), Error> {
    for (info, device) in bootstrap.blobs().iter().zip(bootstrap.devices()) {
        field(out, "Blob Index", info.index)?;
        field(out, "Blob ID", &info.id)?;
        field(out, "Raw Blob ID", &device.id)?;
        field(out, "Blob Size", info.compressed_size)?;
        field(out, "Compressed Data Size", info.data_size())?;
        field(out, "Uncompressed Data Size", info.uncompressed_size)?;
        field(out, "Mapped Block Address", device.mapped_blkaddr)?;
        field(out, "Features", feature_words(info).join(" "))?;
        field(out, "Compressor", info.compressor)?;
        field(out, "Digester", info.digester)?;
        field(out, "Cipher", info.cipher)?;
        field(out, "Chunk Size", format!("{:#x}", info.chunk_size))?;
        field(out, "Chunk Count", info.chunk_count)?;
        // Ranges of blobs to fetch first exist in v5 only.
        field(out, "Prefetch Table Offset", 0)?;
        field(out, "Prefetch Table Size", 0)?;
        field(out, "Meta Compressor", info.meta_compressor)?;
        field(out, "Meta Offset", info.meta_offset)?;
        field(out, "Meta Compressed Size", info.meta_compressed_size)?;
        field(out, "Meta Uncompressed Size", info.meta_uncompressed_size)?;
        field(out, "ToC Digest", hex::encode(info.toc_digest))?;
        field(out, "ToC Size", info.toc_size)?;
        // In an encrypted blob the key and the tweak are in their place.
        let separate = info.cipher_key().is_none();
        field(
            out,
            "RAFS Blob Digest",
            if separate {
                hex::encode(info.meta_digest)
            } else {
                String::new()
            },
        )?;
        field(
            out,
            "RAFS Blob Size",
            if separate { info.meta_size } else { 0 },
        )?;
        writeln!(out)?;
    }
    Ok(())
}

/// What programs are told of a blob. The order of the keys is part of it.
#[derive(Serialize)]
pub(super) struct BlobRequest {
    blob_id: String,
    readahead_offset: u32,
    readahead_size: u32,
    decompressed_size: u64,
    compressed_size: u64,
}

pub(super) fn blob_requests<D: Deref<Target = [u8]>>(bootstrap: &Bootstrap<D>) -> Vec<BlobRequest> {
    let request = |info: &rafs_format::BlobInfo| BlobRequest {
        blob_id: info.id.to_string(),
        readahead_offset: 0,
        readahead_size: 0,
        decompressed_size: info.uncompressed_size,
        compressed_size: info.compressed_size,
    };
    bootstrap.blobs().iter().map(request).collect()
}

/// Everything about an inode but its other names.
pub(super) fn inode<D: Deref<Target = [u8]>>(
    bootstrap: &Bootstrap<D>,
    name: &[u8],
    inode: &Inode,
    parent: Nid,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let damaged = |source| Error::Damaged {
        path: name.to_vec(),
        source,
    };
    field(out, "Inode Number", inode.nid)?;
    field(out, "Name", format!("\"{}\"", name.escape_ascii()))?;
    field(out, "Size", inode.size)?;
    field(out, "Parent", parent)?;
    field(out, "Mode", format!("{:#X}", inode.mode))?;
    field(out, "Permissions", format!("{:o}", inode.mode & 0o7777))?;
    field(out, "Nlink", inode.nlink)?;
    field(out, "UID", inode.uid)?;
    field(out, "GID", inode.gid)?;
    field(out, "Mtime", inode.mtime)?;
    field(out, "MtimeNsec", inode.mtime_nsec)?;
    field(out, "Blocks", inode.size.div_ceil(512))?;
    if inode.is_symlink() {
        field(
            out,
            "Target",
            format!(
                "\"{}\"",
                bootstrap.symlink(inode).map_err(damaged)?.escape_ascii()
            ),
        )?;
    }
    if inode.is_device() {
        field(out, "Device", format!("{:#x}", inode.rdev))?;
    }
    for xattr in bootstrap.xattrs(inode).map_err(damaged)? {
        field(
            out,
            "Xattr",
            format!(
                "{} = \"{}\"",
                xattr.name.escape_ascii(),
                xattr.value.escape_ascii()
            ),
        )?;
    }
    if inode.is_regular() {
        writeln!(out, "Chunk list:")?;
        let records = ChunkRecords::load(bootstrap)?;
        for chunk in file_chunks(bootstrap, name, inode, &records)? {
            file_chunk(bootstrap, &chunk, out)?;
        }
    }
    Ok(())
}

fn file_chunk<D: Deref<Target = [u8]>>(
    bootstrap: &Bootstrap<D>,
    chunk: &FileChunk,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let blob = bootstrap
        .blobs()
        .get(chunk.blob_index as usize)
        .map_or("?", |info| info.id.as_str());
    write!(
        out,
        "    file offset: {}, chunk index: {}",
        chunk.file_offset, chunk.index
    )?;
    match &chunk.record {
        Some(record) => writeln!(
            out,
            ", compressed size: {}, decompressed size: {}, compressed offset: {}, decompressed offset: {}, blob id: {blob}, chunk id: {}",
            record.compressed_size,
            record.uncompressed_size,
            record.compressed_offset,
            record.uncompressed_offset,
            hex::encode(record.digest)
        )?,
        None => writeln!(
            out,
            ", decompressed size: {}, decompressed offset: {}, blob id: {blob}",
            chunk.size, chunk.uncompressed_offset
        )?,
    }
    Ok(())
}
