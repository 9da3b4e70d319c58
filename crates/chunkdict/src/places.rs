//! Where chunks lie, in a few bytes each.
//!
//! Chunks that follow one another in a blob differ from what is expected behind their predecessor in little but the stored
//! size. Records are coded in blocks of [`BLOCK`], the first of a block against nothing, so that any of them is
//! decoded alone. A record begins with a byte of flags that say what is as expected; what is not follows as variable-length
//! numbers (seven bits in a byte, low ones first) in this order:
//!
//! | Bit | As expected if it is set | Else |
//! |---|---|---|
//! | 0 | the same blob, the next row | blob, row |
//! | 1 | stored right behind the predecessor | offset in the blob |
//! | 2 | uncompressed data at the next multiple of 4096 behind it | bit 3 |
//! | 3 | uncompressed data right behind it | offset in the uncompressed address space |
//! | 4 | as many uncompressed bytes | uncompressed size |
//! | 5 | as many stored bytes as uncompressed ones | stored size |
//! | 6 | the same flags | flags |
//! | 7 | no CRC | CRC, four bytes, little-endian |
//!
//! The digest is kept elsewhere; the place in a file is not kept at all.

use rafs_format::{ChunkFlags, ChunkRecord};

/// Records in a block.
pub const BLOCK: usize = 16;

const NEXT_ROW: u8 = 1;
const NEXT_STORED: u8 = 1 << 1;
const NEXT_ALIGNED: u8 = 1 << 2;
const NEXT_PACKED: u8 = 1 << 3;
const SAME_SIZE: u8 = 1 << 4;
const STORED_PLAIN: u8 = 1 << 5;
const SAME_FLAGS: u8 = 1 << 6;
const NO_CRC: u8 = 1 << 7;

const ALIGNMENT: u64 = 4096;

/// What the first record of a block is compared with.
const NOTHING: ChunkRecord = ChunkRecord {
    digest: [0; 32],
    blob_index: 0,
    flags: ChunkFlags::empty(),
    compressed_size: 0,
    uncompressed_size: 0,
    compressed_offset: 0,
    uncompressed_offset: 0,
    file_offset: 0,
    index: u32::MAX,
    crc32: 0,
};

/// What is expected behind a record.
struct Expected {
    row: u32,
    stored: u64,
    packed: u64,
    aligned: u64,
}

impl Expected {
    fn behind(record: &ChunkRecord) -> Self {
        let packed = record
            .uncompressed_offset
            .wrapping_add(record.uncompressed_size.into());
        Self {
            row: record.index.wrapping_add(1),
            stored: record
                .compressed_offset
                .wrapping_add(record.compressed_size.into()),
            packed,
            aligned: packed.wrapping_add(ALIGNMENT - 1) & !(ALIGNMENT - 1),
        }
    }
}

/// Appends a record to a block, behind `before`.
fn encode(out: &mut Vec<u8>, record: &ChunkRecord, before: &ChunkRecord) {
    let expected = Expected::behind(before);
    let at = out.len();
    out.push(0);
    let mut flags = 0;
    let mut note = |as_expected: bool, flag: u8| {
        if as_expected {
            flags |= flag;
        }
        !as_expected
    };
    let next = record.blob_index == before.blob_index && record.index == expected.row;
    if note(next, NEXT_ROW) {
        put(out, record.blob_index.into());
        put(out, record.index.into());
    }
    if note(record.compressed_offset == expected.stored, NEXT_STORED) {
        put(out, record.compressed_offset);
    }
    let offset = record.uncompressed_offset;
    if note(offset == expected.aligned, NEXT_ALIGNED)
        && note(offset == expected.packed, NEXT_PACKED)
    {
        put(out, offset);
    }
    let size = record.uncompressed_size;
    if note(size == before.uncompressed_size, SAME_SIZE) {
        put(out, size.into());
    }
    if note(record.compressed_size == size, STORED_PLAIN) {
        put(out, record.compressed_size.into());
    }
    if note(record.flags == before.flags, SAME_FLAGS) {
        put(out, record.flags.bits().into());
    }
    if note(record.crc32 == 0, NO_CRC) {
        out.extend_from_slice(&record.crc32.to_le_bytes());
    }
    out[at] = flags;
}

/// Takes the record behind `before` off the front of a block; `None` if there is none.
fn decode(input: &mut &[u8], before: &ChunkRecord) -> Option<ChunkRecord> {
    let expected = Expected::behind(before);
    let flags = take(input, 1)?[0];
    let set = |flag: u8| flags & flag != 0;
    let mut record = *before;
    if set(NEXT_ROW) {
        record.index = expected.row;
    } else {
        record.blob_index = number(input)?;
        record.index = number(input)?;
    }
    record.compressed_offset = match set(NEXT_STORED) {
        true => expected.stored,
        false => get(input)?,
    };
    record.uncompressed_offset = match (set(NEXT_ALIGNED), set(NEXT_PACKED)) {
        (true, _) => expected.aligned,
        (false, true) => expected.packed,
        (false, false) => get(input)?,
    };
    if !set(SAME_SIZE) {
        record.uncompressed_size = number(input)?;
    }
    record.compressed_size = match set(STORED_PLAIN) {
        true => record.uncompressed_size,
        false => number(input)?,
    };
    if !set(SAME_FLAGS) {
        record.flags = ChunkFlags::from_bits_retain(number(input)?);
    }
    record.crc32 = match set(NO_CRC) {
        true => 0,
        false => u32::from_le_bytes(take(input, 4)?.try_into().ok()?),
    };
    Some(record)
}

fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn get(input: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = take(input, 1)?[0];
        let bits = u64::from(byte & 0x7f);
        // What does not fit is no number.
        if bits << shift >> shift != bits {
            return None;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn number(input: &mut &[u8]) -> Option<u32> {
    get(input)?.try_into().ok()
}

fn take<'a>(input: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (head, rest) = input.split_at_checked(length)?;
    *input = rest;
    Some(head)
}

/// Records in the order in which they came, without digests.
#[derive(Clone, Copy)]
pub(crate) struct Places<'a> {
    /// Where each block begins in `bytes`, little-endian.
    pub blocks: &'a [[u8; 4]],
    pub bytes: &'a [u8],
}

/// Codes records for [`Places`].
pub(crate) struct PlaceWriter {
    pub blocks: Vec<[u8; 4]>,
    pub bytes: Vec<u8>,
    count: usize,
    before: ChunkRecord,
}

impl PlaceWriter {
    pub fn new() -> Self {
        Self {
            blocks: Vec::new(),
            bytes: Vec::new(),
            count: 0,
            before: NOTHING,
        }
    }

    /// Appends a record. `false`, and nothing appended, if there is no room for it.
    #[must_use]
    pub fn push(&mut self, record: &ChunkRecord) -> bool {
        let Ok(at) = u32::try_from(self.bytes.len()) else {
            return false;
        };
        if self.count.is_multiple_of(BLOCK) {
            self.blocks.push(at.to_le_bytes());
            self.before = NOTHING;
        }
        encode(&mut self.bytes, record, &self.before);
        self.before = *record;
        self.count += 1;
        true
    }
}

impl<'a> Places<'a> {
    /// The record with that number; its digest is zeros.
    pub fn get(self, number: usize) -> Option<ChunkRecord> {
        let mut input = self.block(number / BLOCK)?;
        let mut record = NOTHING;
        for _ in 0..=number % BLOCK {
            record = decode(&mut input, &record)?;
        }
        Some(record)
    }

    /// All records in their order. Ends early where they are damaged.
    pub fn iter(self) -> impl Iterator<Item = ChunkRecord> + use<'a> {
        (0..self.blocks.len()).flat_map(move |block| {
            let mut input = self.block(block).unwrap_or_default();
            let mut before = NOTHING;
            std::iter::from_fn(move || {
                if input.is_empty() {
                    return None;
                }
                before = decode(&mut input, &before)?;
                Some(before)
            })
        })
    }

    fn block(self, number: usize) -> Option<&'a [u8]> {
        let offset = |number: usize| Some(u32::from_le_bytes(*self.blocks.get(number)?) as usize);
        let end = offset(number + 1).unwrap_or(self.bytes.len());
        self.bytes.get(offset(number)?..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> Vec<ChunkRecord> {
        let mut seed = 7_u64;
        let mut draw = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % below
        };
        let mut record = NOTHING;
        let odd = [0, 1, 127, 128, u64::from(u32::MAX)];
        (0..500)
            .map(|at| {
                let expected = Expected::behind(&record);
                record.index = expected.row;
                record.compressed_offset = expected.stored;
                record.uncompressed_offset = match at % 50 < 25 {
                    true => expected.aligned,
                    false => expected.packed,
                };
                match draw(9) {
                    0 => record.blob_index = odd[draw(5) as usize] as u32,
                    1 => record.index = odd[draw(5) as usize] as u32,
                    2 => record.uncompressed_offset = u64::MAX,
                    3 => record.compressed_offset = draw(1 << 40),
                    4 => record.uncompressed_size = odd[draw(5) as usize] as u32,
                    5 => record.compressed_size = odd[draw(5) as usize] as u32,
                    6 => record.flags = ChunkFlags::from_bits_retain(draw(32) as u32),
                    7 => record.crc32 = draw(1 << 31) as u32,
                    _ => {}
                }
                record
            })
            .collect()
    }

    fn coded(records: &[ChunkRecord]) -> PlaceWriter {
        let mut writer = PlaceWriter::new();
        records
            .iter()
            .for_each(|record| assert!(writer.push(record)));
        writer
    }

    fn of(writer: &PlaceWriter) -> Places<'_> {
        Places {
            blocks: &writer.blocks,
            bytes: &writer.bytes,
        }
    }

    #[test]
    fn every_record_comes_back() {
        let records = records();
        let written = coded(&records);
        let places = of(&written);
        assert!(places.iter().eq(records.iter().copied()));
        for (number, record) in records.iter().enumerate() {
            assert_eq!(places.get(number), Some(*record), "{number}");
        }
        assert_eq!(places.get(512), None);
        assert_eq!(of(&coded(&[])).get(0), None);
    }

    #[test]
    fn chunks_in_a_row_take_six_bytes_each() {
        let mut record = NOTHING;
        let records: Vec<ChunkRecord> = (0..1600)
            .map(|at| {
                let expected = Expected::behind(&record);
                record = ChunkRecord {
                    index: expected.row,
                    compressed_offset: expected.stored,
                    uncompressed_offset: expected.aligned,
                    uncompressed_size: 1 << 20,
                    compressed_size: 300_000 + at % 7,
                    flags: ChunkFlags::COMPRESSED,
                    ..record
                };
                record
            })
            .collect();
        let written = coded(&records);
        let size = written.bytes.len() + written.blocks.len() * 4;
        assert!(size < 1600 * 6, "{size}");
    }

    #[test]
    fn damaged_bytes_give_no_panic() {
        let mut written = coded(&records());
        let good = written.bytes.clone();
        for at in 0..good.len() {
            for bit in [0x80, 0x01, 0xff] {
                written.bytes.clone_from(&good);
                written.bytes[at] ^= bit;
                written.bytes.truncate(good.len() - at % 3);
                let bad = of(&written);
                assert!(bad.iter().count() <= good.len());
                let _ = bad.get(at % 500);
            }
        }
        written.blocks[3] = [0xff; 4];
        let bad = of(&written);
        assert_eq!((bad.get(40), bad.get(50)), (None, None));
    }
}
