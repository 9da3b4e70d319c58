//! An image as one disk that the kernel's EROFS mounts without extra devices.
//!
//! A bootstrap says of each blob where it lies in a flat address space behind the bootstrap (`mapped_blkaddr` of its
//! device slot). When the kernel mounts an image that has device slots but is given no devices, it looks there for
//! their blocks. So a disk is:
//!
//! 1. the bootstrap, byte for byte;
//! 2. for each blob, at its mapped block, what would be its device: the tar itself in tarfs images, else each chunk that
//!    files refer to at its uncompressed offset;
//! 3. on request, from the next multiple of 4096 bytes on, the hash tree of dm-verity over all of that.
//!
//! All between is zeros. What is zeros is a hole in the file: blocks between blobs, chunks that no file refers to any
//! more, and chunks of zeros.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use progress::Cancel;
use rafs_format::{Bootstrap, ChunkPointer, Digest};
use storage::{BlobSource, ChunkStore, Forward};
use tree::Image;

use crate::Error;
use crate::verity::{HASH_BLOCK, HashTree};

/// Bytes that are written, or left out as zeros, at once.
const PIECE: usize = 128 << 10;

/// Where the data of an image's blobs comes from.
pub enum DiskData {
    /// Chunks, decoded and verified.
    Chunks(ChunkStore),
    /// Tars, as they are: those of a tarfs image.
    Tars(Arc<dyn BlobSource>),
}

/// What came of [`write_disk`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSummary {
    /// Size of a block of the file system in bytes.
    pub block_size: u64,
    /// Blocks of the disk, without the hash tree.
    pub blocks: u64,
    /// Bytes of it that are no hole.
    pub written: u64,
    /// The hash tree, if one was asked for.
    pub verity: Option<Verity>,
}

/// A hash tree of dm-verity: format 1, SHA-256, no salt, data blocks of the file system's block size, hash blocks of 4096
/// bytes, no superblock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verity {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Digest of its top block.
    pub root: Digest,
}

/// Writes the image of `bootstrap` as a disk to `out`, an empty regular file. `image` must be loaded from that
/// bootstrap, and `data` be of it. Memory does not grow with the disk.
///
/// # Errors
/// [`Error`]; `out` then holds a part of a disk. [`Error::Disk`] if the bootstrap gives a blob no place.
pub fn write_disk(
    bootstrap: &Bootstrap<Vec<u8>>,
    image: &Image,
    data: &DiskData,
    out: &File,
    verity: bool,
    cancel: &Cancel,
) -> Result<DiskSummary, Error> {
    let block_size = bootstrap.superblock().block_size();
    let areas = areas(bootstrap)?;
    let end = areas.last().map_or(0, |area| area.range.end);
    let end = end.max(bootstrap.data().len() as u64);
    let offset = end.next_multiple_of(HASH_BLOCK as u64);
    let blocks = end / block_size;
    let tree = verity.then(|| HashTree::new(out, offset, blocks, block_size as usize));
    out.set_len(tree.as_ref().map_or(end, HashTree::end))?;
    let mut writer = Writer {
        file: out,
        position: 0,
        written: 0,
        tree,
        cancel,
    };
    writer.data(bootstrap.data())?;
    match data {
        DiskData::Tars(source) => areas
            .iter()
            .try_for_each(|area| writer.tar(&**source, area))?,
        DiskData::Chunks(store) => writer.chunks(store, image, &areas)?,
    }
    writer.skip_to(end)?;
    let written = writer.written;
    let root = writer.tree.map(HashTree::finish).transpose()?;
    Ok(DiskSummary {
        block_size,
        blocks,
        written,
        verity: root.map(|root| Verity { offset, root }),
    })
}

/// Where a blob lies on the disk.
struct Area {
    blob_index: u32,
    id: String,
    /// In bytes.
    range: Range<u64>,
}

/// The places of all blobs, in the order of the disk: behind the bootstrap, and apart.
fn areas(bootstrap: &Bootstrap<Vec<u8>>) -> Result<Vec<Area>, Error> {
    let block_size = bootstrap.superblock().block_size();
    let mut areas = Vec::new();
    let blobs = bootstrap.devices().iter().zip(bootstrap.blobs());
    for ((device, info), blob_index) in blobs.zip(0..) {
        let id = info.id.to_string();
        if device.mapped_blkaddr == 0 {
            return Err(Error::Disk(format!(
                "the bootstrap gives blob {id} no place in a flat address space; `nydus-image merge` writes one that does"
            )));
        }
        let start = u64::from(device.mapped_blkaddr) * block_size;
        let mut size = u64::from(device.blocks) * block_size;
        if !bootstrap.is_tarfs() {
            // The last chunk fills no block, should the size say so.
            let whole = info.uncompressed_size.checked_next_multiple_of(block_size);
            size = size.max(whole.unwrap_or(0));
        }
        let range = start..start.saturating_add(size);
        areas.push(Area {
            blob_index,
            id,
            range,
        });
    }
    areas.sort_by_key(|area| area.range.start);
    let mut taken = bootstrap.data().len() as u64;
    for Area { id, range, .. } in &areas {
        if range.start < taken {
            let start = range.start;
            return Err(Error::Disk(format!(
                "blob {id} is mapped to byte {start:#x}, which is taken up to {taken:#x}"
            )));
        }
        taken = range.end;
    }
    Ok(areas)
}

/// A disk on its way to a file, front to back.
struct Writer<'a> {
    file: &'a File,
    position: u64,
    written: u64,
    tree: Option<HashTree<'a>>,
    cancel: &'a Cancel,
}

impl Writer<'_> {
    /// Writes the next bytes, except for zeros.
    fn data(&mut self, bytes: &[u8]) -> Result<(), Error> {
        for piece in bytes.chunks(PIECE) {
            self.cancel.check()?;
            if piece.iter().any(|&byte| byte != 0) {
                self.file.write_all_at(piece, self.position)?;
                self.written += piece.len() as u64;
            }
            if let Some(tree) = &mut self.tree {
                tree.data(piece)?;
            }
            self.position += piece.len() as u64;
        }
        Ok(())
    }

    /// Leaves zeros out up to a place.
    fn skip_to(&mut self, position: u64) -> Result<(), Error> {
        let count = position - self.position;
        if let Some(tree) = &mut self.tree {
            tree.zeros(count, self.cancel)?;
        }
        self.position = position;
        Ok(())
    }

    /// Copies a tar.
    fn tar(&mut self, source: &dyn BlobSource, area: &Area) -> Result<(), Error> {
        let failed = |source| Error::Blob {
            id: area.id.clone(),
            source,
        };
        let size = area.range.end - area.range.start;
        let blob = source.open(&area.id).map_err(failed)?;
        if blob.size() < size {
            let (id, has) = (&area.id, blob.size());
            return Err(Error::Disk(format!(
                "blob {id} has {has} bytes, the bootstrap needs {size}: it is another tar, or a part of it"
            )));
        }
        self.skip_to(area.range.start)?;
        let mut blob = Forward::new(blob);
        let mut buffer = vec![0; PIECE];
        let mut done = 0;
        while done < size {
            let want = (size - done).min(PIECE as u64);
            let piece = &mut buffer[..want as usize];
            blob.read_exact_at(piece, done).map_err(failed)?;
            self.data(piece)?;
            done += want;
        }
        Ok(())
    }

    /// Writes every chunk that a file refers to, once.
    fn chunks(&mut self, store: &ChunkStore, image: &Image, areas: &[Area]) -> Result<(), Error> {
        let mut pointers: Vec<(u64, ChunkPointer)> = Vec::with_capacity(image.chunks.len());
        let mut area_of = vec![None; areas.len()];
        for area in areas {
            if let Some(entry) = area_of.get_mut(area.blob_index as usize) {
                *entry = Some(area);
            }
        }
        for record in &image.chunks {
            let end = record
                .uncompressed_offset
                .checked_add(record.uncompressed_size.into());
            let area = area_of.get(record.blob_index as usize).copied().flatten();
            let area = area.filter(|area| {
                let size = area.range.end - area.range.start;
                end.is_some_and(|end| end <= size)
            });
            let Some(area) = area else {
                return Err(Error::Disk(format!(
                    "chunk {} of blob index {} ends beyond the blob's blocks",
                    record.index, record.blob_index
                )));
            };
            let pointer = ChunkPointer {
                blob_index: record.blob_index,
                index: record.index,
                uncompressed_offset: record.uncompressed_offset,
            };
            pointers.push((area.range.start + record.uncompressed_offset, pointer));
        }
        pointers.sort_unstable();
        pointers.dedup();
        let (places, pointers): (Vec<u64>, Vec<ChunkPointer>) = pointers.into_iter().unzip();
        for (place, chunk) in places.into_iter().zip(store.sequence(pointers)) {
            let chunk = chunk.map_err(Error::Chunk)?;
            if place < self.position {
                return Err(Error::Disk(format!(
                    "two chunks lie over one another at byte {place:#x}"
                )));
            }
            self.skip_to(place)?;
            self.data(&chunk)?;
        }
        Ok(())
    }
}
