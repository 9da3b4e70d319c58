//! Disks whose partitions are blobs.

use flate2::Crc;

const SECTOR: usize = 512;
const ENTRY: usize = 128;
const ENTRIES: usize = 128;
/// Sectors that the entries take.
const TABLE: usize = ENTRIES * ENTRY / SECTOR;

/// The image of a disk with a partition for each blob, its id 64 hexadecimal digits: the first half is the name of the partition, the
/// second its GUID.
pub fn disk(blobs: &[(&str, &[u8])]) -> Vec<u8> {
    let mut entries = vec![0; ENTRIES * ENTRY];
    let mut sectors = vec![0; (2 + TABLE) * SECTOR];
    for (entry, (id, bytes)) in entries.chunks_exact_mut(ENTRY).zip(blobs) {
        let first = sectors.len() / SECTOR;
        sectors.extend(*bytes);
        sectors.resize(sectors.len().next_multiple_of(SECTOR), 0);
        let last = sectors.len() / SECTOR - 1;
        let (name, guid) = id.split_at(32);
        // "Linux filesystem data", for one.
        entry[..16].copy_from_slice(&guid_on_disk("0fc63daf848347728e793d69d8477de4"));
        entry[16..32].copy_from_slice(&guid_on_disk(guid));
        entry[32..40].copy_from_slice(&(first as u64).to_le_bytes());
        entry[40..48].copy_from_slice(&(last as u64).to_le_bytes());
        for (unit, byte) in entry[56..].chunks_exact_mut(2).zip(name.bytes()) {
            unit[0] = byte;
        }
    }
    // The copy of the table is before that of the header, which ends the disk.
    let copy = sectors.len() / SECTOR;
    sectors.resize(sectors.len() + (TABLE + 1) * SECTOR, 0);
    write(&mut sectors, &entries, copy);
    sectors
}

/// The same disk with `value` at `offset` of an entry.
pub fn with(disk: &[u8], entry: usize, offset: usize, value: u64) -> Vec<u8> {
    let mut disk = disk.to_vec();
    let mut entries = disk[2 * SECTOR..(2 + TABLE) * SECTOR].to_vec();
    entries[entry * ENTRY + offset..][..8].copy_from_slice(&value.to_le_bytes());
    let copy = disk.len() / SECTOR - TABLE - 1;
    write(&mut disk, &entries, copy);
    disk
}

/// The same disk, an entry of the type of older tools: the name of its partition is all that there is of the id.
pub fn older(disk: &[u8], entry: usize) -> Vec<u8> {
    let kind = guid_on_disk("ebd0a0a2b9e5443387c068b6b72699c7");
    let (low, high) = kind.split_at(8);
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
    with(&with(disk, entry, 0, number(low)), entry, 8, number(high))
}

/// Writes the table and its copy, which begins at sector `copy`.
fn write(disk: &mut [u8], entries: &[u8], copy: usize) {
    let last = disk.len() / SECTOR - 1;
    for (own, other, table) in [(1, last, 2), (last, 1, copy)] {
        disk[table * SECTOR..][..entries.len()].copy_from_slice(entries);
        let header = header([own, other, 2 + TABLE, copy - 1], table, entries);
        disk[own * SECTOR..][..SECTOR].copy_from_slice(&header);
    }
}

fn header(places: [usize; 4], table: usize, entries: &[u8]) -> [u8; SECTOR] {
    let mut header = [0; SECTOR];
    header[..8].copy_from_slice(b"EFI PART");
    let mut set = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    set(8, &0x1_0000_u32.to_le_bytes());
    set(12, &92_u32.to_le_bytes());
    for (at, sector) in (24..).step_by(8).zip(places) {
        set(at, &(sector as u64).to_le_bytes());
    }
    set(56, &[7; 16]);
    set(72, &(table as u64).to_le_bytes());
    set(80, &(ENTRIES as u32).to_le_bytes());
    set(84, &(ENTRY as u32).to_le_bytes());
    set(88, &crc32(entries).to_le_bytes());
    let checksum = crc32(&header[..92]);
    header[16..20].copy_from_slice(&checksum.to_le_bytes());
    header
}

/// 32 hexadecimal digits as they lie on disk: the first three fields are little-endian.
fn guid_on_disk(text: &str) -> [u8; 16] {
    let mut bytes: [u8; 16] = hex::decode(text)
        .expect("hexadecimal digits")
        .try_into()
        .expect("16 bytes");
    bytes[..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    bytes
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum()
}
