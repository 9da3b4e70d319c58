//! Many chunks by their digests, in few bytes each: what a dictionary looks chunks up in.
//!
//! Digests lie sorted in one piece of memory, 32 bytes each and a number of 4 bytes beside them: the number of the
//! chunk's record among [`Places`], of which most take 4 to 8 bytes. A table of first bits leads to the handful of digests
//! that one is looked for in.

use rafs_format::{ChunkRecord, Digest};

use crate::ChunkKey;
use crate::places::{BLOCK, PlaceWriter, Places};

/// Digests that share an entry of the table of first bits, on average at most.
const BUCKET: usize = 8;
/// Most bits of a digest that such a table has.
const BITS_MAX: u32 = 24;

/// Where chunks lie, found by their digests. A chunk may lie at several places.
#[derive(Clone, Default)]
pub struct ChunkIndex {
    parts: Parts,
    /// Where digests with these first bits begin, by these bits; one more entry at the end.
    first: Vec<u32>,
    bits: u32,
}

/// Takes records up into a [`ChunkIndex`].
pub struct IndexBuilder {
    digests: Vec<Digest>,
    places: PlaceWriter,
}

/// There are more chunks than an index can have: 2^32 of them, or 4 GiB of places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there are more chunks than a dictionary has room for")]
pub struct IndexFull;

/// The parts of an index, as they are kept in a file: any bytes until [`ChunkIndex::from_parts`] has looked at them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parts {
    /// Digests in ascending order.
    pub digests: Vec<Digest>,
    /// Of each digest the number of its record, little-endian; of equal digests in ascending order.
    pub numbers: Vec<[u8; 4]>,
    /// Where each block of records begins in `places`, little-endian.
    pub blocks: Vec<[u8; 4]>,
    /// The records.
    pub places: Vec<u8>,
}

impl Default for IndexBuilder {
    fn default() -> Self {
        Self::with_capacity(0)
    }
}

impl IndexBuilder {
    /// With room for so many chunks.
    pub fn with_capacity(chunks: usize) -> Self {
        Self {
            digests: Vec::with_capacity(chunks),
            places: PlaceWriter::new(),
        }
    }

    /// Takes a record up. Its place in a file is forgotten.
    ///
    /// # Errors
    /// [`IndexFull`]
    pub fn push(&mut self, record: &ChunkRecord) -> Result<(), IndexFull> {
        if self.digests.len() >= u32::MAX as usize || !self.places.push(record) {
            return Err(IndexFull);
        }
        self.digests.push(record.digest);
        Ok(())
    }

    /// The index of all that was taken up.
    pub fn finish(self) -> ChunkIndex {
        let digests = self.digests;
        let mut order: Vec<(u64, u32)> = digests.iter().map(head).zip(0..).collect();
        order.sort_unstable_by(|a, b| {
            let whole = |number: u32| &digests[number as usize];
            (a.0, whole(a.1), a.1).cmp(&(b.0, whole(b.1), b.1))
        });
        let sorted = order.iter().map(|&(_, number)| digests[number as usize]);
        let sorted: Vec<Digest> = sorted.collect();
        drop(digests);
        let numbers = order.iter().map(|(_, number)| number.to_le_bytes());
        ChunkIndex::new(Parts {
            numbers: numbers.collect(),
            digests: sorted,
            blocks: self.places.blocks,
            places: self.places.bytes,
        })
    }
}

/// The first eight bytes of a digest, in their order.
fn head(digest: &Digest) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *digest;
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

impl ChunkIndex {
    fn new(parts: Parts) -> Self {
        let digests = &parts.digests;
        let bits = (digests.len() / BUCKET).max(1).ilog2().min(BITS_MAX);
        let mut first = vec![0_u32; (1 << bits) + 1];
        for digest in digests {
            first[bucket(digest, bits) + 1] += 1;
        }
        let mut sum = 0;
        for entry in &mut first {
            sum += *entry;
            *entry = sum;
        }
        Self { parts, first, bits }
    }

    /// The index that these parts are of. `blobs` is the number of blobs that records may be of. `None` if the parts do
    /// not fit together, so that afterwards every chunk is found where it lies.
    pub fn from_parts(parts: Parts, blobs: u32) -> Option<Self> {
        let count = parts.digests.len();
        let fits = parts.digests.is_sorted()
            && parts.numbers.len() == count
            && count <= u32::MAX as usize
            && parts.blocks.len() == count.div_ceil(BLOCK);
        if !fits {
            return None;
        }
        let mut seen = vec![false; count];
        for number in &parts.numbers {
            let seen = seen.get_mut(u32::from_le_bytes(*number) as usize)?;
            if std::mem::replace(seen, true) {
                return None;
            }
        }
        let index = Self::new(parts);
        let mut records = 0;
        for record in index.bare_records() {
            records += 1;
            if record.blob_index >= blobs {
                return None;
            }
        }
        (records == count).then_some(index)
    }

    /// The parts to keep in a file.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    fn coded(&self) -> Places<'_> {
        Places {
            blocks: &self.parts.blocks,
            bytes: &self.parts.places,
        }
    }

    /// Every place of a chunk with that content, in the order in which they were taken up.
    pub fn places<'a>(&'a self, key: &ChunkKey) -> impl Iterator<Item = ChunkRecord> + use<'a> {
        let (digest, size) = (key.digest, key.size);
        self.range(&digest)
            .filter_map(move |at| self.record(at))
            .filter(move |record| record.uncompressed_size == size)
    }

    /// All records in the order of their digests.
    pub fn records(&self) -> impl Iterator<Item = ChunkRecord> {
        (0..self.parts.digests.len()).filter_map(|at| self.record(at))
    }

    /// All records in the order in which they were taken up, without their digests: these are zeros.
    pub fn bare_records(&self) -> impl Iterator<Item = ChunkRecord> {
        self.coded().iter()
    }

    /// All records in the order in which they were taken up.
    pub fn records_in_order(&self) -> impl Iterator<Item = ChunkRecord> {
        let mut positions = vec![0_u32; self.parts.digests.len()];
        for (position, number) in (0..).zip(&self.parts.numbers) {
            if let Some(entry) = positions.get_mut(u32::from_le_bytes(*number) as usize) {
                *entry = position;
            }
        }
        let digest = move |at: u32| {
            self.parts
                .digests
                .get(at as usize)
                .copied()
                .unwrap_or_default()
        };
        self.coded().iter().zip(positions).map(move |(record, at)| {
            let digest = digest(at);
            ChunkRecord { digest, ..record }
        })
    }

    /// Number of places.
    pub fn len(&self) -> usize {
        self.parts.digests.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.parts.digests.is_empty()
    }

    /// What it takes in memory, in bytes.
    pub fn memory(&self) -> usize {
        let Parts {
            digests,
            numbers,
            blocks,
            places,
        } = &self.parts;
        size_of_val(&digests[..])
            + size_of_val(&numbers[..])
            + size_of_val(&blocks[..])
            + places.len()
            + size_of_val(&self.first[..])
    }

    /// Positions of a digest.
    fn range<'a>(&'a self, digest: &Digest) -> impl Iterator<Item = usize> + use<'a> {
        let bucket = bucket(digest, self.bits);
        let bound = |at: usize| self.first.get(at).map_or(0, |first| *first as usize);
        let (start, end) = (bound(bucket), bound(bucket + 1));
        let near = self.parts.digests.get(start..end).unwrap_or_default();
        let from = near.partition_point(|known| known < digest);
        let digest = *digest;
        let found = near[from..]
            .iter()
            .take_while(move |known| **known == digest);
        found.zip(start + from..).map(|(_, at)| at)
    }

    fn record(&self, at: usize) -> Option<ChunkRecord> {
        let number = u32::from_le_bytes(*self.parts.numbers.get(at)?);
        let digest = *self.parts.digests.get(at)?;
        let record = self.coded().get(number as usize)?;
        Some(ChunkRecord { digest, ..record })
    }
}

impl std::fmt::Debug for ChunkIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChunkIndex")
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

fn bucket(digest: &Digest, bits: u32) -> usize {
    match bits {
        0 => 0,
        bits => (head(digest) >> (64 - bits)) as usize,
    }
}

#[cfg(test)]
mod tests {
    use rafs_format::ChunkFlags;

    use super::*;

    /// Records whose contents repeat every `period`.
    fn records(count: u32, period: u32) -> Vec<ChunkRecord> {
        let record = |at: u32| {
            let content = at % period;
            let mut digest = [(content.wrapping_mul(0x9e37_79b9) >> 24) as u8; 32];
            digest[20..24].copy_from_slice(&content.to_be_bytes());
            ChunkRecord {
                digest,
                blob_index: at / 1000,
                flags: ChunkFlags::COMPRESSED,
                compressed_size: 100 + content % 5,
                uncompressed_size: 4096,
                compressed_offset: u64::from(at) * 100,
                uncompressed_offset: u64::from(at) * 4096,
                file_offset: 0,
                index: at % 1000,
                crc32: 0,
            }
        };
        (0..count).map(record).collect()
    }

    fn index(records: &[ChunkRecord]) -> ChunkIndex {
        let mut builder = IndexBuilder::with_capacity(records.len());
        records
            .iter()
            .for_each(|record| builder.push(record).unwrap());
        builder.finish()
    }

    #[test]
    fn every_place_of_a_chunk_is_found_in_order() {
        for (count, period) in [(0, 1), (1, 1), (3000, 1), (3000, 700), (3000, 3000)] {
            let records = records(count, period);
            let index = index(&records);
            assert_eq!(index.len(), records.len());
            assert!(index.records_in_order().eq(records.iter().copied()));
            for record in records.iter().step_by(13) {
                let key = ChunkKey::from(record);
                let same = records.iter().filter(|other| ChunkKey::from(*other) == key);
                assert!(index.places(&key).eq(same.copied()));
                let other = ChunkKey { size: 1, ..key };
                assert_eq!(index.places(&other).count(), 0);
            }
            let unknown = ChunkKey {
                digest: [0xff; 32],
                size: 4096,
            };
            assert_eq!(index.places(&unknown).count(), 0);
            assert!(index.records().is_sorted_by_key(|record| record.digest));
        }
    }

    #[test]
    fn parts_make_the_same_index() {
        let records = records(3000, 700);
        let made = index(&records);
        let again = ChunkIndex::from_parts(made.parts().clone(), 3).unwrap();
        assert_eq!(again.parts(), made.parts());
        assert!(again.records().eq(made.records()));
        assert!(made.memory() < 3000 * 48, "{}", made.memory());
    }

    #[test]
    fn parts_that_do_not_fit_together_are_none() {
        let good = index(&records(100, 100));
        let bad = |change: &dyn Fn(&mut Parts)| {
            let mut parts = good.parts().clone();
            change(&mut parts);
            ChunkIndex::from_parts(parts, 1).is_none()
        };
        assert!(!bad(&|_| {}));
        assert!(bad(&|parts| parts.digests.swap(0, 99)));
        assert!(bad(&|parts| parts.digests.truncate(99)));
        assert!(bad(&|parts| parts.numbers[3] = [0, 0, 0, 1]));
        assert!(bad(&|parts| parts.numbers[3] = parts.numbers[4]));
        assert!(bad(&|parts| parts.numbers.truncate(4)));
        assert!(bad(&|parts| parts.blocks.truncate(4)));
        assert!(bad(&|parts| parts.blocks.push([0; 4])));
        assert!(bad(&|parts| parts.places.truncate(300)));
        assert!(ChunkIndex::from_parts(good.parts().clone(), 0).is_none());
    }
}
