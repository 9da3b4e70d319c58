//! Where chunks lie in the blob once all is stored.

use rafs_format::blob_meta::{self, BatchContext, Placement, StoredChunk, ZranContext};
use rafs_format::{ChunkFlags, ChunkRecord};

use super::{COMPRESSED_MAX, StoredUnit};
use crate::Error;

/// Of the chunks of the new blob what their records in a bootstrap have no words for.
#[derive(Debug, Default)]
pub(crate) struct Places {
    /// The batches, each with its offset in the blob in bytes.
    batches: Vec<(u64, BatchContext)>,
    /// The slices of a gzip layer, and the dictionaries that they begin with.
    slices: (Vec<ZranContext>, Vec<u8>),
    /// Of each chunk, by index; empty if there is neither a batch nor a slice.
    placements: Vec<Placement>,
}

impl Places {
    /// Chunks that lie in slices of a gzip layer.
    pub fn in_slices(
        slices: Vec<ZranContext>,
        dictionaries: Vec<u8>,
        placements: Vec<Placement>,
    ) -> Self {
        Self {
            batches: Vec::new(),
            slices: (slices, dictionaries),
            placements,
        }
    }

    /// Chunks that lie in batches, each with its offset.
    pub fn in_batches(batches: Vec<(u64, BatchContext)>, placements: Vec<Placement>) -> Self {
        Self {
            batches,
            slices: Default::default(),
            placements,
        }
    }

    /// Enters into the records of the new chunks, in order, where and how they are stored. Those of a batch say nothing
    /// of it, as in the deployed builder's bootstraps: the blob's own table does. The first chunk lies at `offset`.
    pub(super) fn settle<'a>(
        mut own: impl Iterator<Item = &'a mut ChunkRecord>,
        units: &[StoredUnit],
        encrypted: bool,
        mut offset: u64,
    ) -> Result<Self, Error> {
        let mut places = Self::default();
        let any = units.iter().any(|unit| unit.members != 0);
        for unit in units {
            let mut filled = 0;
            for _ in 0..unit.members.max(1) {
                let record = own.next().ok_or(Error::Panicked { stage: "commit" })?;
                record.flags.set(ChunkFlags::ENCRYPTED, encrypted);
                if unit.members == 0 {
                    record.compressed_offset = offset;
                    record.compressed_size = unit.size;
                    record.flags.set(ChunkFlags::COMPRESSED, unit.compressed);
                }
                if any {
                    places.placements.push(match unit.members {
                        0 => Placement::Plain,
                        _ => Placement::Batch {
                            index: places.batches.len() as u32,
                            offset: filled,
                        },
                    });
                }
                filled += record.uncompressed_size;
            }
            if unit.members != 0 {
                let context = BatchContext {
                    compressed_size: unit.size,
                    uncompressed_size: filled,
                };
                places.batches.push((offset, context));
            }
            offset += u64::from(unit.size);
        }
        if offset > COMPRESSED_MAX {
            return Err(Error::TooLarge {
                what: "the blob",
                limit: "2^40 bytes",
            });
        }
        Ok(places)
    }

    /// Number of batches or slices.
    pub fn contexts(&self) -> u32 {
        (self.batches.len() + self.slices.0.len()) as u32
    }

    /// Appends what follows the chunk records in the blob's table: the batches, or the slices and their dictionaries.
    pub fn encode_contexts(&self, table: &mut Vec<u8>) {
        for (_, batch) in &self.batches {
            blob_meta::encode_batch(batch, table);
        }
        let (slices, dictionaries) = &self.slices;
        table.reserve_exact(slices.len() * blob_meta::CONTEXT_SIZE + dictionaries.len());
        for slice in slices {
            blob_meta::encode_zran(slice, table);
        }
        table.extend_from_slice(dictionaries);
    }

    /// What the blob's table says of a chunk.
    pub fn stored(&self, record: &ChunkRecord) -> StoredChunk {
        let stored = StoredChunk::from(record);
        match self.placements.get(record.index as usize).copied() {
            None | Some(Placement::Plain) => stored,
            // The record has no room for a checksum then.
            Some(placement @ Placement::Zran { .. }) => StoredChunk {
                crc32: None,
                placement,
                ..stored
            },
            Some(placement @ Placement::Batch { index, .. }) => {
                let batch = self.batches.get(index as usize);
                StoredChunk {
                    compressed_offset: batch.map_or(0, |(offset, _)| *offset),
                    compressed_size: 0,
                    compressed: true,
                    crc32: None,
                    placement,
                    ..stored
                }
            }
        }
    }
}
