//! `localdisk`: blobs as partitions of a disk, or of the image of a disk in a file.
//!
//! A GUID partition table (GPT) in sectors of 512 bytes says where they lie. Half of a blob's id, 32 characters, is the name
//! of its partition, the other half the partition's own GUID in hexadecimal. Partitions of the type "basic data", which
//! older tools make, have nothing but the first half.
//!
//! Offsets in the header, which is in the second sector and once more in the last one:
//!
//! | Offset | Size | Field |
//! |---|---|---|
//! | 0 | 8 | `EFI PART` |
//! | 12 | 4 | bytes of the header, at least 92 |
//! | 16 | 4 | CRC-32 of these, with zeros in its own place |
//! | 72 | 8 | sector of the entries |
//! | 80 | 4 | number of entries |
//! | 84 | 4 | bytes of an entry, at least 128 |
//! | 88 | 4 | CRC-32 of all entries |
//!
//! In an entry:
//!
//! | Offset | Size | Field |
//! |---|---|---|
//! | 0 | 16 | GUID of the type; zeros: no partition |
//! | 16 | 16 | GUID of the partition |
//! | 32 | 8 | first sector |
//! | 40 | 8 | last sector |
//! | 56 | 72 | name in UTF-16, up to a zero |

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::io::{Seek as _, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use storage::{BlobReader, FileBlob};

use crate::Error;
use crate::detour::Reading;
use crate::keys::Keys;

/// Name of this type of backend.
pub(crate) const KIND: &str = "localdisk";

/// Bytes of a sector. Readers that are deployed take no other.
const SECTOR: u64 = 512;
/// Most bytes of the entries: 8192 of the usual size.
const ENTRIES_MAX: u64 = 1 << 20;
/// Least bytes of an entry.
const ENTRY_MIN: u32 = 128;
/// The type "basic data", EBD0A0A2-B9E5-4433-87C0-68B6B72699C7, as it is on disk.
const BASIC_DATA: [u8; 16] = [
    0xa2, 0xa0, 0xd0, 0xeb, 0xe5, 0xb9, 0x33, 0x44, 0x87, 0xc0, 0x68, 0xb6, 0xb7, 0x26, 0x99, 0xc7,
];
/// Characters of an id that the name of a partition has.
const NAMED: usize = 32;

/// A disk whose partitions are known.
pub(crate) struct Disk {
    path: PathBuf,
    file: Arc<File>,
    partitions: Partitions,
}

/// Where blobs lie on a disk, in bytes, by id or the first half of it.
type Partitions = BTreeMap<String, Range<u64>>;

impl Disk {
    /// Reads the partition table of the disk that `device_path` names.
    pub(crate) fn open(keys: &Keys) -> Result<Self, Error> {
        if keys.switch("disable_gpt") {
            return Err(keys.wrong(
                "disable_gpt",
                "is true, but the partition table is what tells where blobs lie",
            ));
        }
        let path = Path::new(keys.needed("device_path")?);
        // Whoever reads later may have another working directory.
        let path = std::path::absolute(path).map_err(Error::io("find", path))?;
        let file = File::open(&path).map_err(Error::io("open", &path))?;
        // Metadata has no size of a device.
        let size = (&file).seek(SeekFrom::End(0));
        let size = size.map_err(Error::io("find the size of", &path))?;
        let file = Arc::new(file);
        let whole = FileBlob::window(Arc::clone(&file), 0, size);
        let partitions = partitions(&whole).map_err(|reason| Error::Disk {
            path: path.clone(),
            reason,
        })?;
        Ok(Self {
            path,
            file,
            partitions,
        })
    }
}

impl Reading for Disk {
    fn blob(&self, id: &str, _: Option<u64>) -> Result<Option<Arc<dyn BlobReader>>, Error> {
        let half = || self.partitions.get(id.get(..NAMED)?);
        let place = self.partitions.get(id).or_else(half);
        let window = |place: &Range<u64>| {
            let length = place.end.saturating_sub(place.start);
            FileBlob::window(Arc::clone(&self.file), place.start, length)
        };
        Ok(place.map(|place| Arc::new(window(place)) as _))
    }

    fn name(&self) -> String {
        format!("{KIND} backend {}", self.path.display())
    }
}

/// The partitions of a disk by its table, or by the copy at its end.
pub(crate) fn partitions(disk: &dyn BlobReader) -> Result<Partitions, &'static str> {
    let last = (disk.size() / SECTOR).saturating_sub(1);
    let (size, entries) =
        read_entries(disk, 1).or_else(|reason| read_entries(disk, last).map_err(|_| reason))?;
    let mut partitions = Partitions::new();
    for entry in entries.chunks_exact(size) {
        let Some((id, place)) = partition(entry).ok_or("a partition makes no sense")? else {
            continue;
        };
        if place.end > disk.size() {
            return Err("a partition ends behind the disk");
        }
        match partitions.entry(id) {
            Entry::Vacant(vacant) => vacant.insert(place),
            Entry::Occupied(_) => return Err("two partitions are of one blob"),
        };
    }
    Ok(partitions)
}

/// The size of an entry, and all entries that the header in a sector is about.
fn read_entries(disk: &dyn BlobReader, sector: u64) -> Result<(usize, Vec<u8>), &'static str> {
    const SHORT: &str = "the disk ends before its partition table does";
    let mut header = [0; SECTOR as usize];
    let at = sector.checked_mul(SECTOR).ok_or(SHORT)?;
    disk.read_exact_at(&mut header, at).map_err(|_| SHORT)?;
    if !header.starts_with(b"EFI PART") {
        return Err("there is no GUID partition table");
    }
    let own = read_u32(&header, 12).filter(|size| *size >= 92);
    let own = own.and_then(|size| header.get(..size as usize));
    let mut own = own.ok_or("the header's size makes no sense")?.to_vec();
    let checksum = read_u32(&own, 16);
    if let Some(field) = own.get_mut(16..20) {
        field.fill(0);
    }
    if checksum != Some(crc32fast::hash(&own)) {
        return Err("the header is damaged: its checksum differs");
    }
    let place = read_u64(&own, 72).and_then(|sector| sector.checked_mul(SECTOR));
    let (Some(place), Some(count), Some(size), checksum) = (
        place,
        read_u32(&own, 80),
        read_u32(&own, 84).filter(|size| *size >= ENTRY_MIN),
        read_u32(&own, 88),
    ) else {
        return Err("the header makes no sense");
    };
    let length = u64::from(count) * u64::from(size);
    if length > ENTRIES_MAX {
        return Err("the partition table is larger than 1 MiB");
    }
    let mut entries = vec![0; length as usize];
    disk.read_exact_at(&mut entries, place).map_err(|_| SHORT)?;
    if checksum != Some(crc32fast::hash(&entries)) {
        return Err("the partition table is damaged: its checksum differs");
    }
    Ok((size as usize, entries))
}

/// The id of an entry, or the half of it that is known, and the bytes of the partition; `Some(None)` if the entry is free.
pub(crate) fn partition(entry: &[u8]) -> Option<Option<(String, Range<u64>)>> {
    let kind = entry.get(..16)?;
    if kind == [0; 16] {
        return Some(None);
    }
    let first = read_u64(entry, 32)?;
    let behind = read_u64(entry, 40)?.checked_add(1)?;
    let place = first.checked_mul(SECTOR)?..behind.checked_mul(SECTOR)?;
    let units = entry.get(56..128)?.as_chunks().0.iter();
    let units = units.map(|unit| u16::from_le_bytes(*unit));
    let name: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
    let mut id = String::from_utf16(&name).ok()?;
    if kind != BASIC_DATA {
        id.push_str(&hex::encode(in_text_order(entry.get(16..32)?)?));
    }
    (!id.is_empty() && place.start < place.end).then_some(Some((id, place)))
}

/// A GUID as it is written: its first three fields are little-endian on disk.
fn in_text_order(guid: &[u8]) -> Option<[u8; 16]> {
    let mut bytes: [u8; 16] = guid.try_into().ok()?;
    for field in [0..4, 4..6, 6..8] {
        bytes.get_mut(field)?.reverse();
    }
    Some(bytes)
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*field))
}

fn read_u64(bytes: &[u8], at: usize) -> Option<u64> {
    let field = bytes.get(at..)?.first_chunk()?;
    Some(u64::from_le_bytes(*field))
}

#[cfg(test)]
mod tests {
    use testkit::gpt;

    use super::*;

    fn ids() -> [String; 2] {
        [1, 2].map(|byte: u8| testkit::sha256(&[byte]))
    }

    fn disk() -> Vec<u8> {
        let [one, two] = ids();
        gpt::disk(&[(&one, &[1; 700]), (&two, &[2; 512])])
    }

    #[test]
    fn partitions_are_named_by_the_ids_of_their_blobs() {
        let found = partitions(&disk()).unwrap();
        let [one, two] = ids();
        let length = |id: &String| found[id].end - found[id].start;
        assert_eq!((found.len(), length(&one), length(&two)), (2, 1024, 512));
        let at = found[&two].start as usize;
        assert!(disk()[at..at + 512] == [2; 512]);
    }

    #[test]
    fn the_copy_at_the_end_is_taken_if_the_table_is_damaged() {
        for at in [
            SECTOR as usize,
            SECTOR as usize + 40,
            2 * SECTOR as usize + 60,
        ] {
            let mut damaged = disk();
            damaged[at] ^= 1;
            assert_eq!(partitions(&damaged), partitions(&disk()), "{at}");
            let last = damaged.len() - SECTOR as usize;
            damaged[last..].fill(0);
            assert!(partitions(&damaged).is_err(), "{at}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_told() {
        let [one, _] = ids();
        let long = 1 << 40;
        for (disk, reason) in [
            (vec![0; 4096], "no GUID partition table"),
            (vec![0; 600], "ends before"),
            (gpt::disk(&[(&one, &[1; 9]), (&one, &[2; 9])]), "one blob"),
            (gpt::with(&disk(), 0, 32, long), "makes no sense"),
            (gpt::with(&disk(), 0, 40, long), "behind the disk"),
            (gpt::with(&disk(), 0, 40, u64::MAX), "makes no sense"),
        ] {
            let found = partitions(&disk).unwrap_err();
            assert!(found.contains(reason), "{found}");
        }
    }
}
