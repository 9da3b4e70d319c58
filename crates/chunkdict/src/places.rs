//! Where chunks lie, in a few bytes each.
//!
//! Chunks that follow one another in a blob differ from what is expected behind their predecessor in little but the stored
//! size. Records are coded in blocks of [`BLOCK`], the first of a block against nothing, so that few have to be decoded for
//! one. Blocks begin at multiples of [`BLOCK`] bytes: where a block begins plus which of its records it is makes the
//! location of a record, one number. A record begins with a byte of flags that say what is as expected; what is not follows as variable-length
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
const BLOCK: usize = 4;

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
            aligned: align(packed),
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

/// Turns a record into the one behind it, which is taken off the front of a block; `None` if there is none.
#[inline]
fn advance(input: &mut &[u8], record: &mut ChunkRecord) -> Option<()> {
    let flags = byte(input)?;
    let set = |flag: u8| flags & flag != 0;
    if set(NEXT_ROW) {
        record.index = record.index.wrapping_add(1);
    } else {
        record.blob_index = number(input)?;
        record.index = number(input)?;
    }
    let before = u64::from(record.compressed_size);
    record.compressed_offset = match set(NEXT_STORED) {
        true => record.compressed_offset.wrapping_add(before),
        false => get(input)?,
    };
    let packed = record
        .uncompressed_offset
        .wrapping_add(record.uncompressed_size.into());
    record.uncompressed_offset = match (set(NEXT_ALIGNED), set(NEXT_PACKED)) {
        (true, _) => align(packed),
        (false, true) => packed,
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
        false => {
            let (crc, rest) = input.split_first_chunk::<4>()?;
            *input = rest;
            u32::from_le_bytes(*crc)
        }
    };
    Some(())
}

/// The next multiple of the alignment.
fn align(offset: u64) -> u64 {
    offset.wrapping_add(ALIGNMENT - 1) & !(ALIGNMENT - 1)
}

fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Takes a number off the front. What is no number, or does not fit, is `None`.
#[inline]
fn get(input: &mut &[u8]) -> Option<u64> {
    const ENDS: u64 = 0x8080_8080_8080_8080;
    let Some(head) = input.first_chunk::<8>() else {
        return get_slowly(input);
    };
    // All bytes at once: where numbers end is nothing that a processor could guess.
    let word = u64::from_le_bytes(*head);
    let ends = !word & ENDS;
    if ends == 0 {
        return get_slowly(input);
    }
    *input = input.get(ends.trailing_zeros() as usize / 8 + 1..)?;
    let word = word & (ends ^ (ends - 1)) & !ENDS;
    let word = (word & 0x7f00_7f00_7f00_7f00) >> 1 | (word & 0x007f_007f_007f_007f);
    let word = (word & 0x3fff_0000_3fff_0000) >> 2 | (word & 0x0000_3fff_0000_3fff);
    Some((word & 0x0fff_ffff_0000_0000) >> 4 | (word & 0x0000_0000_0fff_ffff))
}

/// As [`get`], of numbers of many bytes or near the end.
#[cold]
fn get_slowly(input: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = byte(input)?;
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

/// As [`get`], of at most 32 bits.
#[inline]
fn number(input: &mut &[u8]) -> Option<u32> {
    get(input)?.try_into().ok()
}

#[inline]
fn byte(input: &mut &[u8]) -> Option<u8> {
    let (byte, rest) = input.split_first()?;
    *input = rest;
    Some(*byte)
}

/// Codes records.
pub(crate) struct PlaceWriter {
    pub bytes: Vec<u8>,
    count: usize,
    /// Where the block begins.
    block: usize,
    before: ChunkRecord,
}

impl PlaceWriter {
    pub fn new() -> Self {
        Self {
            bytes: Vec::new(),
            count: 0,
            block: 0,
            before: NOTHING,
        }
    }

    /// Appends a record and gives its location; `None`, and nothing appended, if there is no room for it.
    pub fn push(&mut self, record: &ChunkRecord) -> Option<u32> {
        let place = self.count % BLOCK;
        let block = match place {
            0 => self.bytes.len().next_multiple_of(BLOCK),
            _ => self.block,
        };
        let location = u32::try_from(block + place).ok()?;
        if place == 0 {
            self.bytes.resize(block, 0);
            (self.block, self.before) = (block, NOTHING);
        }
        encode(&mut self.bytes, record, &self.before);
        self.before = *record;
        self.count += 1;
        Some(location)
    }
}

/// The record at a location; its digest is zeros. `None` if there is none, as far as that can be told.
pub(crate) fn record_at(bytes: &[u8], location: u32) -> Option<ChunkRecord> {
    let (block, place) = (location as usize / BLOCK * BLOCK, location as usize % BLOCK);
    let mut input = bytes.get(block..)?;
    let mut record = NOTHING;
    for _ in 0..=place {
        advance(&mut input, &mut record)?;
    }
    Some(record)
}

/// All records in the order in which they came, each with its location. Ends early where they are damaged.
pub(crate) fn iter(bytes: &[u8]) -> impl Iterator<Item = (u32, ChunkRecord)> + use<'_> {
    let mut input = bytes;
    let (mut block, mut place) = (0, 0);
    let mut record = NOTHING;
    std::iter::from_fn(move || {
        if place == BLOCK {
            let end = bytes.len() - input.len();
            (block, place) = (end.next_multiple_of(BLOCK), 0);
            input = bytes.get(block..)?;
            record = NOTHING;
        }
        advance(&mut input, &mut record)?;
        let location = u32::try_from(block + place).ok()?;
        place += 1;
        Some((location, record))
    })
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

    fn coded(records: &[ChunkRecord]) -> (Vec<u8>, Vec<u32>) {
        let mut writer = PlaceWriter::new();
        let locations = records.iter().map(|record| writer.push(record).unwrap());
        let locations = locations.collect();
        (writer.bytes, locations)
    }

    #[test]
    fn every_record_comes_back() {
        let records = records();
        for count in [0, 1, 7, 8, 9, 500] {
            let records = &records[..count];
            let (bytes, locations) = coded(records);
            let all = locations.iter().copied().zip(records.iter().copied());
            assert!(iter(&bytes).eq(all), "{count}");
            for (location, record) in locations.iter().zip(records) {
                assert_eq!(record_at(&bytes, *location), Some(*record), "{location}");
            }
            assert_eq!(record_at(&bytes, u32::MAX), None);
        }
    }

    #[test]
    fn chunks_in_a_row_take_nine_bytes_each() {
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
        let (bytes, _) = coded(&records);
        assert!(bytes.len() < 1600 * 9, "{}", bytes.len());
    }

    #[test]
    fn damaged_bytes_give_no_panic() {
        let (good, locations) = coded(&records());
        for at in 0..good.len() {
            for bit in [0x80, 0x01, 0xff] {
                let mut bad = good.clone();
                bad[at] ^= bit;
                bad.truncate(good.len() - at % 3);
                assert!(iter(&bad).count() <= good.len());
                let _ = record_at(&bad, locations[at % 500]);
            }
        }
    }
}
