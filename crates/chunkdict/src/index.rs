//! Many chunks by their digests, in few bytes each: what a dictionary looks chunks up in.
//!
//! Digests lie sorted in one piece of memory, 32 bytes each with 4 bytes that say where the chunk's record is, of which most
//! take 5 to 9 bytes ([`places`]). A table of first bits leads to the handful of digests that one is looked for in. So a
//! lookup reads memory at three places, each known from the one before: [`ChunkIndex::all_places`] does not wait for one
//! key's memory before it asks for that of the next.

use std::cmp::Ordering;
use std::ops::Range;

use rafs_format::{ChunkRecord, Digest};

use crate::ChunkKey;
use crate::places::{self, PlaceWriter};

/// Digests that share an entry of the table of first bits, on average at most.
const BUCKET: usize = 4;
/// Most bits of a digest that such a table has.
const BITS_MAX: u32 = 24;
/// Most digests that are looked at one by one.
const SCAN: usize = 32;
/// Keys that are looked for at the same time.
const GROUP: usize = 32;

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
    entries: Vec<IndexEntry>,
    places: PlaceWriter,
}

/// A digest, and the location of the record, little-endian.
pub type IndexEntry = [u8; 36];

fn entry(digest: &Digest, location: u32) -> IndexEntry {
    let mut entry = [0; 36];
    entry[..32].copy_from_slice(digest);
    entry[32..].copy_from_slice(&location.to_le_bytes());
    entry
}

fn digest(entry: &IndexEntry) -> &Digest {
    entry.first_chunk().expect("an entry begins with a digest")
}

fn location(entry: &IndexEntry) -> u32 {
    let bytes = entry.last_chunk().expect("an entry ends with a location");
    u32::from_le_bytes(*bytes)
}

/// There are more chunks than an index can have: 2^32 of them, or 4 GiB of places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there are more chunks than a dictionary has room for")]
pub struct IndexFull;

/// The parts of an index, as they are kept in a file: any bytes until [`ChunkIndex::from_parts`] has looked at them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parts {
    /// In ascending order of digests, those of equal digests in that of locations.
    pub entries: Vec<IndexEntry>,
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
            entries: Vec::with_capacity(chunks),
            places: PlaceWriter::new(),
        }
    }

    /// Takes a record up. Its place in a file is forgotten.
    ///
    /// # Errors
    /// [`IndexFull`]
    pub fn push(&mut self, record: &ChunkRecord) -> Result<(), IndexFull> {
        if self.entries.len() >= u32::MAX as usize {
            return Err(IndexFull);
        }
        let location = self.places.push(record).ok_or(IndexFull)?;
        self.entries.push(entry(&record.digest, location));
        Ok(())
    }

    /// The index of all that was taken up.
    pub fn finish(self) -> ChunkIndex {
        let mut entries = self.entries;
        entries.sort_unstable_by(in_order);
        ChunkIndex::new(Parts {
            entries,
            places: self.places.bytes,
        })
    }
}

/// The order of entries.
fn in_order(a: &IndexEntry, b: &IndexEntry) -> Ordering {
    let key = |entry| (digest(entry), location(entry));
    head(digest(a))
        .cmp(&head(digest(b)))
        .then_with(|| key(a).cmp(&key(b)))
}

/// The first eight bytes of a digest, in their order.
fn head(digest: &Digest) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *digest;
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

impl ChunkIndex {
    fn new(parts: Parts) -> Self {
        let entries = &parts.entries;
        let bits = (entries.len() / BUCKET).max(1).ilog2().min(BITS_MAX);
        let mut first = vec![0_u32; (1 << bits) + 1];
        for entry in entries {
            first[bucket(digest(entry), bits) + 1] += 1;
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
        let count = parts.entries.len();
        let sorted = parts
            .entries
            .is_sorted_by(|a, b| in_order(a, b) == Ordering::Less);
        if !sorted || count > u32::MAX as usize {
            return None;
        }
        // Each record is the one of one entry: their locations are below the end of what holds them.
        let mut free = vec![0_u64; parts.places.len() / 64 + 1];
        let at = |location: u32| (location as usize / 64, 1_u64 << (location % 64));
        let mut records = 0;
        for (location, record) in places::iter(&parts.places) {
            let (word, bit) = at(location);
            *free.get_mut(word)? |= bit;
            records += 1;
            if record.blob_index >= blobs {
                return None;
            }
        }
        for entry in &parts.entries {
            let (word, bit) = at(location(entry));
            let word = free.get_mut(word)?;
            if *word & bit == 0 {
                return None;
            }
            *word &= !bit;
        }
        (records == count).then(|| Self::new(parts))
    }

    /// The parts to keep in a file.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// Every place of a chunk with that content, in the order in which they were taken up.
    pub fn places<'a>(&'a self, key: &ChunkKey) -> impl Iterator<Item = ChunkRecord> + use<'a> {
        let size = key.size;
        self.with_digest(&key.digest)
            .filter(move |record| record.uncompressed_size == size)
    }

    /// Every place of chunks with that digest, whatever their size.
    pub fn with_digest<'a>(
        &'a self,
        digest: &Digest,
    ) -> impl Iterator<Item = ChunkRecord> + use<'a> {
        self.range(digest).filter_map(|entry| self.record(entry))
    }

    /// All records in the order of their digests.
    pub fn records(&self) -> impl Iterator<Item = ChunkRecord> {
        let entries = self.parts.entries.iter();
        entries.filter_map(|entry| self.record(entry))
    }

    /// All records in the order in which they were taken up, without their digests: these are zeros.
    pub fn bare_records(&self) -> impl Iterator<Item = ChunkRecord> {
        places::iter(&self.parts.places).map(|(_, record)| record)
    }

    /// All records in the order in which they were taken up.
    pub fn records_in_order(&self) -> impl Iterator<Item = ChunkRecord> {
        let entries = &self.parts.entries;
        let mut order: Vec<(u32, u32)> = entries.iter().map(location).zip(0..).collect();
        order.sort_unstable();
        let records = self.bare_records();
        records.zip(order).map(|(record, (_, at))| {
            let digest = *digest(&entries[at as usize]);
            ChunkRecord { digest, ..record }
        })
    }

    /// Number of places.
    pub fn len(&self) -> usize {
        self.parts.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.parts.entries.is_empty()
    }

    /// What it takes in memory, in bytes.
    pub fn memory(&self) -> usize {
        let Parts { entries, places } = &self.parts;
        size_of_val(&entries[..]) + places.len() + size_of_val(&self.first[..])
    }

    /// Entries of a digest.
    fn range<'a>(&'a self, wanted: &Digest) -> impl Iterator<Item = &'a IndexEntry> + use<'a> {
        self.same(self.position(self.near(wanted), wanted), wanted)
    }

    /// Entries from there on as long as they are of a digest.
    fn same<'a>(
        &'a self,
        from: usize,
        wanted: &Digest,
    ) -> impl Iterator<Item = &'a IndexEntry> + use<'a> {
        let wanted = *wanted;
        let entries = self.parts.entries.get(from..).unwrap_or_default().iter();
        entries.take_while(move |known| *digest(known) == wanted)
    }

    /// Among which entries a digest is.
    fn near(&self, wanted: &Digest) -> Range<usize> {
        let bucket = bucket(wanted, self.bits);
        let bound = |at: usize| self.first.get(at).map_or(0, |first| *first as usize);
        bound(bucket)..bound(bucket + 1)
    }

    /// The first of these entries that is not below a digest.
    fn position(&self, near: Range<usize>, wanted: &Digest) -> usize {
        let begin = near.start;
        let near = self.parts.entries.get(near).unwrap_or_default();
        if near.len() > SCAN {
            return begin + near.partition_point(|known| digest(known) < wanted);
        }
        // All are read at once, and nothing hangs on a guess: less than half the time of a binary search.
        let sought = head(wanted);
        let below = near.iter().filter(|known| head(digest(known)) < sought);
        let at = below.count();
        let same = near[at..].iter();
        let below =
            same.take_while(|known| head(digest(known)) == sought && digest(known) < wanted);
        begin + at + below.count()
    }

    /// As [`ChunkIndex::places`] of many keys: `found` gets the position of each, in their order, and its places.
    pub fn all_places(&self, keys: &[ChunkKey], mut found: impl FnMut(usize, &[ChunkRecord])) {
        let mut near: [Range<usize>; GROUP] = std::array::from_fn(|_| 0..0);
        let mut at = [0; GROUP];
        let mut places = Vec::new();
        for (group, keys) in keys.chunks(GROUP).enumerate() {
            for (near, key) in near.iter_mut().zip(keys) {
                *near = self.near(&key.digest);
            }
            for ((at, near), key) in at.iter_mut().zip(&near).zip(keys) {
                *at = self.position(near.clone(), &key.digest);
            }
            // What is read here is in the processor's cache when the records are decoded.
            let touched = at.iter().zip(keys).fold(0, |sum, (at, key)| {
                let known = self.same(*at, &key.digest).next();
                let place = known.and_then(|known| self.parts.places.get(location(known) as usize));
                sum ^ place.copied().unwrap_or(0)
            });
            std::hint::black_box(touched);
            for ((position, key), at) in keys.iter().enumerate().zip(&at) {
                let same = self.same(*at, &key.digest);
                let records = same.filter_map(|entry| self.record(entry));
                places.clear();
                places.extend(records.filter(|record| record.uncompressed_size == key.size));
                found(group * GROUP + position, &places);
            }
        }
    }

    fn record(&self, entry: &IndexEntry) -> Option<ChunkRecord> {
        let record = places::record_at(&self.parts.places, location(entry))?;
        let digest = *digest(entry);
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
            let mut keys: Vec<ChunkKey> = records.iter().map(ChunkKey::from).collect();
            keys.insert(keys.len() / 2, unknown);
            let mut next = 0;
            index.all_places(&keys, |at, places| {
                assert_eq!(at, next);
                assert!(index.places(&keys[at]).eq(places.iter().copied()), "{at}");
                next += 1;
            });
            assert_eq!(next, keys.len());
            assert!(index.records().is_sorted_by_key(|record| record.digest));
        }
    }

    #[test]
    fn digests_that_begin_alike_are_told_apart() {
        for count in [SCAN as u32 / 2, SCAN as u32 * 4] {
            let mut records = records(count, count);
            for record in &mut records {
                record.digest[..16].fill(7);
            }
            let index = index(&records);
            for record in &records {
                assert!(index.places(&ChunkKey::from(record)).eq([*record]));
                let mut other = ChunkKey::from(record);
                other.digest[31] ^= 1;
                assert_eq!(index.places(&other).count(), 0);
            }
        }
    }

    #[test]
    fn parts_make_the_same_index() {
        let records = records(3000, 700);
        let made = index(&records);
        let again = ChunkIndex::from_parts(made.parts().clone(), 3).unwrap();
        assert_eq!(again.parts(), made.parts());
        assert!(again.records().eq(made.records()));
        assert!(made.memory() < 3000 * 52, "{}", made.memory());
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
        assert!(bad(&|parts| parts.entries.swap(0, 99)));
        assert!(bad(&|parts| parts.entries.truncate(99)));
        assert!(bad(&|parts| parts.entries[3][35] = 1));
        assert!(bad(
            &|parts| parts.entries[3][32..].copy_from_slice(&[7, 0, 0, 0])
        ));
        assert!(bad(&|parts| parts.places.truncate(300)));
        assert!(bad(&|parts| parts.places.truncate(0)));
        assert!(bad(&|parts| parts.places.extend([0xff; 8])));
        assert!(ChunkIndex::from_parts(good.parts().clone(), 0).is_none());
    }
}
