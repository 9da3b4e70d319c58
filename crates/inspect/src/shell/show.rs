//! The text of single things: superblock, blobs, an inode.

use std::io::Write;
use std::ops::Deref;

use rafs_format::{Bootstrap, DeviceSlot, FileType, Inode, v5};
use serde::Serialize;
use storage::LoadedBootstrap;

use crate::Error;
use crate::report::{ChunkRecords, FileChunk, feature_words, file_chunks, number};

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

/// Inodes as the superblock counts them: names in v6, files in v5.
pub(super) fn inodes_count(loaded: &LoadedBootstrap) -> u64 {
    match &loaded.v5 {
        Some(v5) => v5.superblock().inodes_count,
        None => loaded.bootstrap.superblock().inos,
    }
}

pub(super) fn stats(loaded: &LoadedBootstrap, out: &mut dyn Write) -> Result<(), Error> {
    let superblock = loaded.bootstrap.superblock();
    let v6 = (
        superblock.flags,
        superblock.root.0,
        [
            superblock.blob_table_offset,
            superblock.blob_table_size.into(),
            superblock.prefetch_table_offset,
            superblock.prefetch_table_size.into(),
            superblock.chunk_table_offset,
            superblock.chunk_table_size,
        ],
    );
    let (flags, root, tables) = match loaded.v5.as_ref().map(|v5| v5.superblock()) {
        None => v6,
        Some(v5) => {
            let prefetch_size = u64::from(v5.prefetch_table_entries) * 4;
            let tables = [
                v5.blob_table_offset,
                v5.blob_table_size.into(),
                v5.prefetch_table_offset,
                prefetch_size,
                0,
                0,
            ];
            (v5.flags, 1, tables)
        }
    };
    let flags: Vec<_> = flags.iter_names().map(|(name, _)| name).collect();
    let size = superblock.chunk_size / 1024;
    field(out, "Version", loaded.bootstrap.version().digit())?;
    field(out, "Inodes Count", inodes_count(loaded))?;
    field(out, "Chunk Size", format!("{size}KB"))?;
    field(out, "Root Inode", root)?;
    field(out, "Flags", flags.join(" | "))?;
    let names = [
        "Blob Table Offset",
        "Blob Table Size",
        "Prefetch Table Offset",
        "Prefetch Table Size",
        "Chunk Table Offset",
        "Chunk Table Size",
    ];
    names
        .iter()
        .zip(tables)
        .try_for_each(|(name, value)| field(out, name, format!("{value:#x}")))
}

/// Id and place of each blob as they are on disk, ids that are left open included.
fn devices(loaded: &LoadedBootstrap) -> Vec<(String, u32)> {
    let Some(v5) = &loaded.v5 else {
        let device = |device: &DeviceSlot| (device.id.clone(), device.mapped_blkaddr);
        return loaded.bootstrap.devices().iter().map(device).collect();
    };
    // It was parsed before, but has got its ids since.
    let raw = v5::Bootstrap::parse(v5.data());
    let blobs = raw.as_ref().map_or(v5.blobs(), |raw| raw.blobs());
    blobs.iter().map(|info| (info.id.to_string(), 0)).collect()
}

pub(super) fn blobs(loaded: &LoadedBootstrap, out: &mut dyn Write) -> Result<(), Error> {
    for (info, (raw_id, mapped)) in loaded.blobs().iter().zip(devices(loaded)) {
        field(out, "Blob Index", info.index)?;
        field(out, "Blob ID", &info.id)?;
        field(out, "Raw Blob ID", raw_id)?;
        field(out, "Blob Size", info.compressed_size)?;
        field(out, "Compressed Data Size", info.data_size())?;
        field(out, "Uncompressed Data Size", info.uncompressed_size)?;
        field(out, "Mapped Block Address", mapped)?;
        field(out, "Features", feature_words(info).join(" "))?;
        field(out, "Compressor", info.compressor)?;
        field(out, "Digester", info.digester)?;
        field(out, "Cipher", info.cipher)?;
        field(out, "Chunk Size", format!("{:#x}", info.chunk_size))?;
        field(out, "Chunk Count", info.chunk_count)?;
        field(out, "Prefetch Table Offset", 0)?;
        field(out, "Prefetch Table Size", info.readahead_size)?;
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

pub(super) fn blob_requests(loaded: &LoadedBootstrap) -> Vec<BlobRequest> {
    let request = |info: &rafs_format::BlobInfo| BlobRequest {
        blob_id: info.id.to_string(),
        readahead_offset: 0,
        readahead_size: info.readahead_size,
        decompressed_size: info.uncompressed_size,
        compressed_size: info.compressed_size,
    };
    loaded.blobs().iter().map(request).collect()
}

/// Everything about an inode but its other names.
pub(super) fn inode(
    loaded: &LoadedBootstrap,
    name: &[u8],
    inode: &Inode,
    parent: u64,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let bootstrap = &loaded.bootstrap;

    let damaged = |source| Error::Damaged {
        path: name.to_vec(),
        source,
    };
    let (size, blocks) = match &loaded.v5 {
        Some(v5) => {
            let inode = v5.inode(inode.ino).map_err(damaged)?;
            (inode.size, inode.blocks)
        }
        None => (inode.size, inode.size.div_ceil(512)),
    };
    field(out, "Inode Number", number(loaded, inode))?;
    field(out, "Name", format!("\"{}\"", name.escape_ascii()))?;
    field(out, "Size", size)?;
    field(out, "Parent", parent)?;
    field(out, "Mode", format!("{:#X}", inode.mode))?;
    field(out, "Permissions", format!("{:o}", inode.mode & 0o7777))?;
    field(out, "Nlink", inode.nlink)?;
    field(out, "UID", inode.uid)?;
    field(out, "GID", inode.gid)?;
    field(out, "Mtime", inode.mtime)?;
    field(out, "MtimeNsec", inode.mtime_nsec)?;
    field(out, "Blocks", blocks)?;
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
        let records = ChunkRecords::load(loaded)?;
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
