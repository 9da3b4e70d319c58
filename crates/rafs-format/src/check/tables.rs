//! Device slots, blob table and chunk table against one another.

use std::ops::Deref;

use super::CheckError;
use crate::raw::{ChunkRecordRaw, DeviceSlotRaw, up};
use crate::superblock::{BLOCKS_HISTORICAL, DEVICES_OFFSET, EXT_OFFSET, SUPERBLOCK_OFFSET};
use crate::{
    BLOCK_SIZE, BlobFeatures, BlobId, BlobInfo, Bootstrap, ChunkFlags, ChunkPointer, ChunkRecord,
    SuperFlags,
};

fn slot_offset(index: usize) -> u64 {
    DEVICES_OFFSET + (index * DeviceSlotRaw::SIZE) as u64
}

/// Device slots must say of each blob what its table entry says, and be apart in the flat address space.
pub(super) fn check_devices<D: Deref<Target = [u8]>>(
    bootstrap: &Bootstrap<D>,
) -> Result<(), CheckError> {
    let superblock = bootstrap.superblock();
    let mut mapped = Vec::new();
    let mut total = 0;
    for (i, (device, blob)) in bootstrap
        .devices()
        .iter()
        .zip(bootstrap.blobs())
        .enumerate()
    {
        let offset = slot_offset(i);
        // The id in the table may have been replaced since, where the bootstrap has a placeholder.
        if device.id != blob.id.as_str() && device.id != BlobId::PLACEHOLDER {
            return Err(CheckError::table(
                offset,
                format!(
                    "device slot {i} is for {:?}, blob {i} is {}",
                    device.id, blob.id
                ),
            ));
        }
        let blocks = blob.uncompressed_size >> superblock.block_bits;
        if u64::from(device.blocks) != blocks {
            let what = format!(
                "device slot {i} has {} blocks, blob {} has {blocks}",
                device.blocks, blob.id
            );
            return Err(CheckError::table(offset + 64, what));
        }
        total += blocks;
        if device.mapped_blkaddr != 0 {
            let start = u64::from(device.mapped_blkaddr);
            mapped.push((start, start + blocks, i));
        }
    }
    if u64::from(superblock.blocks) != total && superblock.blocks != BLOCKS_HISTORICAL {
        let what = format!(
            "the superblock counts {} blocks, the devices have {total}",
            superblock.blocks
        );
        return Err(CheckError::table(SUPERBLOCK_OFFSET + 36, what));
    }
    check_mapped(
        mapped,
        bootstrap.data().len() as u64 >> superblock.block_bits,
    )
}

/// `mapped` are first block, end and index of the devices.
fn check_mapped(
    mut mapped: Vec<(u64, u64, usize)>,
    bootstrap_blocks: u64,
) -> Result<(), CheckError> {
    mapped.sort_unstable();
    let mut end = bootstrap_blocks;
    for (start, next_end, i) in mapped {
        if start < end {
            let what = format!(
                "device slot {i} is mapped to block {start}, which is taken up to block {end}"
            );
            return Err(CheckError::table(slot_offset(i) + 68, what));
        }
        end = next_end;
    }
    Ok(())
}

/// Flags of the superblock that speak of all blobs.
pub(super) fn check_flags<D: Deref<Target = [u8]>>(
    bootstrap: &Bootstrap<D>,
) -> Result<(), CheckError> {
    if !bootstrap
        .superblock()
        .flags
        .contains(SuperFlags::INLINED_CHUNK_DIGEST)
    {
        return Ok(());
    }
    match bootstrap
        .blobs()
        .iter()
        .find(|blob| !blob.features.contains(BlobFeatures::INLINED_CHUNK_DIGEST))
    {
        None => Ok(()),
        Some(blob) => {
            let what = format!(
                "the superblock says that blobs hold chunk digests, blob {} does not",
                blob.id
            );
            Err(CheckError::table(EXT_OFFSET, what))
        }
    }
}

/// What files need to know of an entry of the chunk table.
pub(crate) struct Entry {
    /// Blob index in the high, chunk index in the low half.
    key: u64,
    uncompressed_offset: u64,
    uncompressed_size: u32,
}

impl From<&ChunkRecord> for Entry {
    fn from(record: &ChunkRecord) -> Self {
        Self {
            key: key(record.blob_index, record.index),
            uncompressed_offset: record.uncompressed_offset,
            uncompressed_size: record.uncompressed_size,
        }
    }
}

/// The chunk table by blob and index.
pub(super) struct ChunkIndex {
    entries: Vec<Entry>,
    /// Chunk records are meaningless in tarfs images.
    tarfs: bool,
}

impl ChunkIndex {
    /// Checks every entry of the chunk table by itself and indexes them.
    pub(super) fn build<D: Deref<Target = [u8]>>(
        bootstrap: &Bootstrap<D>,
    ) -> Result<Self, CheckError> {
        let tarfs = bootstrap.is_tarfs();
        let mut entries = Vec::new();
        if tarfs {
            return Ok(Self { entries, tarfs });
        }
        let table = bootstrap.chunk_table();
        entries.reserve_exact(table.len());
        for (i, record) in table.enumerate() {
            let offset =
                bootstrap.superblock().chunk_table_offset + (i * ChunkRecordRaw::SIZE) as u64;
            let record = record
                .map_err(|error| CheckError::undecodable("the chunk table is damaged", error))?;
            check_record(
                &record,
                bootstrap.blobs(),
                bootstrap.superblock().chunk_size,
            )
            .map_err(|what| CheckError::table(offset, format!("chunk record {i}: {what}")))?;
            entries.push(Entry::from(&record));
        }
        entries.sort_unstable_by_key(|entry| entry.key);
        if let Some([twice, _]) = entries.array_windows().find(|[a, b]| a.key == b.key) {
            let (blob, chunk) = (twice.key >> 32, twice.key & 0xffff_ffff);
            let what = format!("the chunk table has two records of chunk {chunk} of blob {blob}");
            return Err(CheckError::table(
                bootstrap.superblock().chunk_table_offset,
                what,
            ));
        }
        check_apart(&entries)
            .map_err(|what| CheckError::table(bootstrap.superblock().chunk_table_offset, what))?;
        Ok(Self { entries, tarfs })
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The record must say of a chunk what the file says that points to it. `size` is what the file holds of it.
    pub(super) fn check(
        &self,
        pointer: &ChunkPointer,
        size: u64,
        blob: &BlobInfo,
    ) -> Result<(), String> {
        if self.tarfs
            || (self.entries.is_empty()
                && blob.features.contains(BlobFeatures::INLINED_CHUNK_DIGEST))
        {
            return Ok(());
        }
        let key = key(pointer.blob_index, pointer.index);
        let entry = self
            .entries
            .binary_search_by_key(&key, |entry| entry.key)
            .ok()
            .and_then(|i| self.entries.get(i));
        let Some(entry) = entry else {
            return Err("is not in the chunk table".to_owned());
        };
        if entry.uncompressed_offset != pointer.uncompressed_offset {
            let (file, table) = (pointer.uncompressed_offset, entry.uncompressed_offset);
            return Err(format!(
                "begins at {file:#x} for the file and at {table:#x} in the chunk table"
            ));
        }
        if u64::from(entry.uncompressed_size) != size {
            return Err(format!(
                "has {size} bytes for the file and {} in the chunk table",
                entry.uncompressed_size
            ));
        }
        Ok(())
    }
}

/// No two chunks of a blob may share bytes of its uncompressed address space: one cached over the other is wrong data.
pub(crate) fn check_apart(entries: &[Entry]) -> Result<(), String> {
    let mut places: Vec<(u64, u64, &Entry)> = entries
        .iter()
        .map(|entry| (entry.key >> 32, entry.uncompressed_offset, entry))
        .collect();
    // By index they mostly are in order already, and then this takes linear time.
    places.sort_by_key(|&(blob, offset, _)| (blob, offset));
    let overlap = places
        .array_windows()
        .find(|[(blob, offset, a), (next, after, _)]| {
            // The sum was checked against the size of the blob.
            blob == next && offset + u64::from(a.uncompressed_size) > *after
        });
    let Some([(blob, offset, a), (_, after, b)]) = overlap else {
        return Ok(());
    };
    let number = |entry: &Entry| entry.key & 0xffff_ffff;
    Err(format!(
        "chunks {} and {} of blob {blob} overlap: they begin at {offset:#x} and {after:#x}, the first has {} bytes",
        number(a),
        number(b),
        a.uncompressed_size
    ))
}

fn key(blob_index: u32, index: u32) -> u64 {
    u64::from(blob_index) << 32 | u64::from(index)
}

/// What can be said of one entry of the chunk table.
pub(crate) fn check_record(
    record: &ChunkRecord,
    blobs: &[BlobInfo],
    chunk_size: u32,
) -> Result<(), String> {
    let Some(blob) = blobs.get(record.blob_index as usize) else {
        return Err(format!(
            "blob index is {}, expected below {}",
            record.blob_index,
            blobs.len()
        ));
    };
    check_index(record.index, blob)?;
    let size = record.uncompressed_size;
    if size == 0 || size > chunk_size {
        return Err(format!("size is {size}, expected 1 to {chunk_size}"));
    }
    check_place(record.uncompressed_offset, u64::from(size), blob)?;
    let stored = u64::from(record.compressed_size);
    let bound = blob.data_size();
    if record
        .compressed_offset
        .checked_add(stored)
        .is_none_or(|end| end > bound)
    {
        let offset = record.compressed_offset;
        return Err(format!(
            "stored bytes {offset} + {stored} end beyond the {bound} bytes of data in blob {}",
            blob.id
        ));
    }
    if stored == 0 {
        let elsewhere = blob
            .features
            .intersects(BlobFeatures::BATCH | BlobFeatures::SEPARATE);
        return if elsewhere {
            Ok(())
        } else {
            Err("stored size is 0".to_owned())
        };
    }
    let raw = !record
        .flags
        .intersects(ChunkFlags::COMPRESSED | ChunkFlags::ENCRYPTED | ChunkFlags::BATCH);
    if raw && record.compressed_size != size {
        return Err(format!(
            "is stored raw with {stored} bytes, expected {size}"
        ));
    }
    Ok(())
}

/// A chunk's number must be below the count of its blob.
pub(super) fn check_index(index: u32, blob: &BlobInfo) -> Result<(), String> {
    if index < blob.chunk_count || blob.features.contains(BlobFeatures::CHUNKDICT_GENERATED) {
        return Ok(());
    }
    Err(format!(
        "index is {index}, expected below the {} chunks of blob {}",
        blob.chunk_count, blob.id
    ))
}

/// A chunk must lie in the uncompressed address space of its blob, at a block boundary.
pub(super) fn check_place(offset: u64, size: u64, blob: &BlobInfo) -> Result<(), String> {
    if blob.features.contains(BlobFeatures::ALIGNED) && !offset.is_multiple_of(BLOCK_SIZE) {
        return Err(format!("offset {offset:#x} is not a multiple of 4096"));
    }
    let bound = up(blob.uncompressed_size, BLOCK_SIZE).unwrap_or(u64::MAX);
    if offset.checked_add(size).is_none_or(|end| end > bound) {
        return Err(format!(
            "data {offset:#x} + {size} ends beyond the {bound:#x} bytes of blob {}",
            blob.id
        ));
    }
    Ok(())
}
