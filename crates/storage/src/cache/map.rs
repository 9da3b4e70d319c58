//! The chunk map: a file that says which chunks of a blob lie in its cache file.
//!
//! It is a header of 4096 bytes and one record of 64 bytes for each chunk of the blob, at `4096 + 64 * index` where
//! `index` is the chunk's row in the blob's own chunk table. All integers are little-endian.
//!
//! | Offset | Size | Header field |
//! |---|---|---|
//! | 0 | 8 | magic `RAFSCMAP` |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | chunks of the blob |
//! | 16 | 8 | size of the cache file in bytes |
//! | 24 | 64 | blob id, NUL padded |
//! | 88 | 4 | CRC-32C of bytes 0 to 87 |
//! | 92 | 4004 | zeros |
//!
//! | Offset | Size | Record field |
//! |---|---|---|
//! | 0 | 32 | digest that the cached bytes were verified against |
//! | 32 | 8 | boot in which the record was written (an odd number); 0 once the bytes are on the disk; 2 as long as there are none |
//! | 40 | 8 | where the chunk begins in the cache file |
//! | 48 | 4 | size of the chunk in bytes |
//! | 52 | 4 | index of the chunk |
//! | 56 | 4 | zero |
//! | 60 | 4 | CRC-32C of bytes 0 to 59 |
//!
//! A record is a promise that the bytes at its place have its digest. It is written after the bytes, so it holds as
//! long as the page cache does: a record that names the running boot is good however the writer died. A record of
//! another boot may have reached the disk before its bytes did, and is only a hint to look and verify. A record whose
//! boot is 0 was written after the bytes had been synced (a *barrier*) and is good for ever.
//!
//! A record whose boot is 2 promises no bytes: it keeps the place for the chunk. Whoever opens the map leaves such a
//! record for each chunk that its image uses and that has none, so that all who have the map open agree where each chunk
//! lies and what its digest is.
//!
//! A record never straddles a sector. A torn or damaged one fails its checksum and counts as absent.

use rafs_format::Digest;

use crate::KnownChunk;

/// Size of the header, and where the records begin.
pub(super) const HEADER_SIZE: usize = 4096;
/// Size of one record.
pub(super) const RECORD_SIZE: usize = 64;
/// The layout described above. Maps of a greater version are refused, not overwritten.
pub(super) const VERSION: u32 = 1;

/// In place of a boot: the chunk has its place, but its bytes are not there.
pub(super) const AGREED: u64 = 2;

const MAGIC: &[u8; 8] = b"RAFSCMAP";
const HEADER_SUM: usize = 88;
const RECORD_SUM: usize = 60;

/// What the header must say for the records to be of use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub blob: String,
    pub chunk_count: u32,
    pub data_size: u64,
}

/// What the first bytes of a map file are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HeaderKind {
    /// This blob's map.
    Good,
    /// No map, a damaged one, or one of other content.
    Other,
    /// The map of a newer release.
    Newer(u32),
}

impl Header {
    pub fn encode(&self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.chunk_count.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.data_size.to_le_bytes());
        for (to, from) in bytes[24..HEADER_SUM].iter_mut().zip(self.blob.bytes()) {
            *to = from;
        }
        let sum = codec::crc32c(&bytes[..HEADER_SUM]);
        bytes[HEADER_SUM..HEADER_SUM + 4].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    pub fn recognise(&self, bytes: &[u8; HEADER_SIZE]) -> HeaderKind {
        let version = u32_at(bytes, 8);
        if bytes.starts_with(MAGIC) && version > VERSION {
            HeaderKind::Newer(version)
        } else if *bytes == self.encode() {
            HeaderKind::Good
        } else {
            HeaderKind::Other
        }
    }
}

/// One promise, see the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    pub digest: Digest,
    /// 0 for a record whose bytes are on the disk.
    pub boot: u64,
    pub offset: u64,
    pub size: u32,
    pub index: u32,
}

impl Record {
    /// The record of a chunk.
    pub fn of(known: &KnownChunk, boot: u64) -> Self {
        Self {
            digest: known.digest,
            boot,
            offset: known.offset,
            size: known.size,
            index: known.index,
        }
    }

    /// Whether it speaks of this very chunk at this very place.
    pub fn is_of(&self, known: &KnownChunk) -> bool {
        *self == Self::of(known, self.boot)
    }

    /// Where the record of chunk `index` lies in the map file.
    pub fn position(index: u32) -> u64 {
        HEADER_SIZE as u64 + RECORD_SIZE as u64 * u64::from(index)
    }

    pub fn encode(&self) -> [u8; RECORD_SIZE] {
        let mut bytes = [0; RECORD_SIZE];
        bytes[..32].copy_from_slice(&self.digest);
        bytes[32..40].copy_from_slice(&self.boot.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.offset.to_le_bytes());
        bytes[48..52].copy_from_slice(&self.size.to_le_bytes());
        bytes[52..56].copy_from_slice(&self.index.to_le_bytes());
        let sum = codec::crc32c(&bytes[..RECORD_SUM]);
        bytes[RECORD_SUM..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// The record in row `index`; `None` if there is none, or a damaged one.
    pub fn decode(bytes: &[u8; RECORD_SIZE], index: u32) -> Option<Self> {
        let mut digest = [0; 32];
        digest.copy_from_slice(&bytes[..32]);
        let record = Self {
            digest,
            boot: u64_at(bytes, 32),
            offset: u64_at(bytes, 40),
            size: u32_at(bytes, 48),
            index: u32_at(bytes, 52),
        };
        // The checksum of zeros is not zero, so an empty row fails here too.
        (record.index == index && record.encode() == *bytes).then_some(record)
    }
}

fn u32_at<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn u64_at<const N: usize>(bytes: &[u8; N], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_and_no_flipped_bit_does() {
        let record = Record {
            digest: [7; 32],
            boot: 5,
            offset: 0x12345000,
            size: 4097,
            index: 3,
        };
        let bytes = record.encode();
        assert_eq!(Record::decode(&bytes, 3), Some(record));
        assert_eq!(Record::decode(&bytes, 4), None);
        assert_eq!(Record::decode(&[0; RECORD_SIZE], 0), None);
        for bit in 0..RECORD_SIZE * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Record::decode(&damaged, 3), None, "bit {bit}");
        }
    }

    #[test]
    fn a_header_is_good_other_or_newer() {
        let header = Header {
            blob: "b".repeat(64),
            chunk_count: 9,
            data_size: 1 << 20,
        };
        let bytes = header.encode();
        assert_eq!(header.recognise(&bytes), HeaderKind::Good);
        assert_eq!(header.recognise(&[0; HEADER_SIZE]), HeaderKind::Other);
        assert_eq!(
            Header {
                chunk_count: 10,
                ..header.clone()
            }
            .recognise(&bytes),
            HeaderKind::Other
        );
        let mut newer = bytes;
        newer[8] = 2;
        assert_eq!(header.recognise(&newer), HeaderKind::Newer(2));
        let mut damaged = bytes;
        damaged[90] ^= 1;
        assert_eq!(header.recognise(&damaged), HeaderKind::Other);
    }
}
