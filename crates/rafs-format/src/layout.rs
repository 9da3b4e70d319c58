//! Where things go in a v6 bootstrap: the regions of the file, the placement of inodes, the addresses of devices.
//!
//! A reader relies on none of this. Writers that follow it produce the same bootstraps as the deployed builder.

use std::collections::VecDeque;

use crate::bootstrap::Nid;
use crate::raw::{BlobInfoRaw, DeviceSlotRaw, up};
use crate::superblock::{DEVICES_OFFSET, TABLE_ALIGNMENT};
use crate::{BLOCK_SIZE, ChunkPointer, Error};

/// The unused block at the head of the metadata area, which keeps nid 0 from being an inode.
pub const META_HEAD: u64 = 4096;
/// Devices begin at multiples of this in the flat address space.
const DEVICE_ALIGNMENT: u64 = 0x8_0000;
/// One queue for each count of free 32-byte slots at the end of a block.
const QUEUES: usize = (BLOCK_SIZE / Nid::SLOT_SIZE) as usize;

/// Where the regions of a bootstrap begin, in bytes from its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Regions {
    /// The blob table.
    pub blob_table: u64,
    /// The prefetch table, right behind the blob table; meaningful if it has entries.
    pub prefetch_table: u64,
    /// The metadata area. What [`Allocator`] hands out counts from here.
    pub meta: u64,
}

impl Regions {
    /// The regions of a bootstrap with that many blobs and prefetch entries.
    pub const fn new(blobs: u64, prefetch: u64) -> Self {
        let blob_table =
            (DEVICES_OFFSET + DeviceSlotRaw::SIZE as u64 * blobs).next_multiple_of(TABLE_ALIGNMENT);
        let prefetch_table = blob_table + BlobInfoRaw::SIZE as u64 * blobs;
        let meta = if blobs == 0 {
            0
        } else {
            (prefetch_table + 4 * prefetch).next_multiple_of(TABLE_ALIGNMENT)
        };
        Self {
            blob_table,
            prefetch_table,
            meta,
        }
    }
}

/// Where a directory or symbolic link goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// Where its inode begins in the metadata area.
    pub offset: u64,
    /// Where its full blocks begin in the metadata area; without full blocks just where the cursor was.
    pub data_address: u64,
    /// Whether the rest behind the full blocks follows the inode and its xattrs (flat inline).
    pub inline: bool,
}

/// Hands out places for inodes in the order in which they are asked for.
///
/// All offsets count from the start of the metadata area; the first one is 4096. A cursor moves on from there, and
/// what is left of a block that it jumps out of is given to small things that come later: 128 first-in-first-out
/// queues, queue *k* for blocks with `32 * k` free bytes at their end.
#[derive(Debug, Clone)]
pub struct Allocator {
    block: u64,
    cursor: u64,
    free: Vec<VecDeque<u64>>,
    /// Bit *k*: queue *k* is not empty.
    filled: u128,
}

impl Default for Allocator {
    fn default() -> Self {
        Self::new()
    }
}

impl Allocator {
    /// An allocator for blocks of 4096 bytes.
    pub fn new() -> Self {
        Self::with_block_size(BLOCK_SIZE)
    }

    /// An allocator for blocks of `block` bytes: [`BLOCK_SIZE`], or [`TARFS_BLOCK_SIZE`](crate::TARFS_BLOCK_SIZE).
    pub fn with_block_size(block: u64) -> Self {
        Self {
            block,
            cursor: META_HEAD,
            free: vec![VecDeque::new(); QUEUES],
            filled: 0,
        }
    }

    /// Place of a regular file whose inode and xattrs have `head` bytes, followed by `chunks` chunk indexes.
    pub fn regular(&mut self, head: u64, chunks: u64) -> u64 {
        let size = head.next_multiple_of(8) + 8 * chunks;
        let offset = self.take_or_append(size);
        self.align();
        offset
    }

    /// Place of a device, FIFO or socket whose inode and xattrs have `head` bytes.
    pub fn special(&mut self, head: u64) -> u64 {
        let offset = self.append(head);
        self.align();
        offset
    }

    /// Place of a symbolic link whose inode and xattrs have `head` bytes, with a target of `size` bytes. Readers take
    /// the target as one run of bytes, so one that fills a block is never cut into blocks and an inline rest.
    pub fn symlink(&mut self, head: u64, size: u64) -> Placement {
        if size < self.block {
            return self.data(head, size);
        }
        let placement = self.plain(head, size);
        self.align();
        placement
    }

    /// Place of a directory whose inode and xattrs have `head` bytes, with `size` bytes of data.
    pub fn data(&mut self, head: u64, size: u64) -> Placement {
        let tail = size % self.block;
        let placement = if tail != 0 && head + tail <= self.block {
            self.inline(head, size, tail)
        } else {
            self.plain(head, size)
        };
        self.align();
        placement
    }

    /// End of all that was handed out, from the start of the metadata area.
    pub fn end(&self) -> u64 {
        self.cursor
    }

    fn inline(&mut self, head: u64, size: u64, tail: u64) -> Placement {
        let needed = head + tail;
        let offset = match self.take(needed) {
            Some(offset) => offset,
            None => {
                if self.block - self.cursor % self.block < needed {
                    self.close_block();
                }
                self.append(needed)
            }
        };
        if size != tail {
            self.close_block();
        }
        let data_address = self.append(size - tail);
        Placement {
            offset,
            data_address,
            inline: true,
        }
    }

    fn plain(&mut self, head: u64, size: u64) -> Placement {
        let offset = self.take_or_append(head);
        self.close_block();
        let data_address = self.append(size);
        self.cursor = self.cursor.next_multiple_of(self.block);
        Placement {
            offset,
            data_address,
            inline: false,
        }
    }

    fn append(&mut self, size: u64) -> u64 {
        let offset = self.cursor;
        self.cursor += size;
        offset
    }

    fn take_or_append(&mut self, size: u64) -> u64 {
        match self.take(size) {
            Some(offset) => offset,
            None => self.append(size),
        }
    }

    fn align(&mut self) {
        self.cursor = self.cursor.next_multiple_of(Nid::SLOT_SIZE);
    }

    /// Leaves the current block, if it is begun, to later inodes.
    fn close_block(&mut self) {
        self.give(self.cursor);
        self.cursor = self.cursor.next_multiple_of(self.block);
    }

    /// Offers what is left of a block from `offset` on.
    fn give(&mut self, offset: u64) {
        let used = offset % self.block;
        if used == 0 {
            return;
        }
        let slots = (self.block - used) / Nid::SLOT_SIZE;
        if let Some(queue) = self.free.get_mut(slots as usize) {
            queue.push_back(offset - used);
            self.filled |= 1 << slots;
        }
    }

    /// Takes `size` bytes from the fullest block that has them; what remains of it is offered again.
    fn take(&mut self, size: u64) -> Option<u64> {
        if size >= self.block {
            return None;
        }
        let slots = size.div_ceil(Nid::SLOT_SIZE);
        // What needs all 128 slots is never found: a block that is wholly free is in no queue.
        let fitting = self.filled & u128::MAX.checked_shl(slots as u32).unwrap_or(0);
        let found = u64::from(fitting.trailing_zeros());
        let queue = self.free.get_mut(found as usize)?;
        let block = queue.pop_front()?;
        if queue.is_empty() {
            self.filled &= !(1 << found);
        }
        let offset = block + self.block - found * Nid::SLOT_SIZE;
        self.give(offset + slots * Nid::SLOT_SIZE);
        Some(offset)
    }
}

/// Addresses, in blocks of `block_size` bytes, at which devices appear behind a bootstrap of `bootstrap_len` bytes in one flat space.
///
/// # Errors
/// [`Error::TooLarge`] if the space does not fit 32-bit block addresses.
pub fn map_devices(
    bootstrap_len: u64,
    block_size: u64,
    blocks: impl IntoIterator<Item = u32>,
) -> Result<Vec<u32>, Error> {
    let mut position = bootstrap_len;
    let mut mapped = Vec::new();
    for blocks in blocks {
        let start = up(position, DEVICE_ALIGNMENT).unwrap_or(u64::MAX);
        let address = start / block_size;
        let fits = u32::try_from(address)
            .ok()
            .filter(|a| a.checked_add(blocks).is_some());
        let what = "flat block address of a device";
        mapped.push(fits.ok_or(Error::TooLarge {
            what,
            value: address,
            limit: u64::from(u32::MAX - blocks),
        })?);
        position = start + u64::from(blocks) * block_size;
    }
    Ok(mapped)
}

/// The chunk format word of a regular file of `size` bytes with these chunks, in an image of blocks of `block_size`
/// bytes.
///
/// Bits 0 to 4 are the log2 of the blocks per chunk, bit 5 says that chunk indexes follow. A file of several chunks
/// that follow one another without gap in one blob is announced as one chunk of a power of two, so that the kernel
/// sees one extent.
pub fn chunk_format(size: u64, chunk_size: u32, block_size: u64, chunks: &[ChunkPointer]) -> u32 {
    let announced = match size.checked_next_power_of_two() {
        Some(whole) if size > u64::from(chunk_size) && contiguous(chunk_size, chunks) => whole,
        _ => u64::from(chunk_size),
    };
    0x20 | announced.ilog2().saturating_sub(block_size.ilog2())
}

/// Whether each chunk lies `chunk_size` behind the one before, in the same blob.
pub(crate) fn contiguous(chunk_size: u32, chunks: &[ChunkPointer]) -> bool {
    chunks.windows(2).all(|pair| match pair {
        [a, b] => {
            a.blob_index == b.blob_index
                && a.uncompressed_offset.checked_add(u64::from(chunk_size))
                    == Some(b.uncompressed_offset)
        }
        _ => true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_needs_nearly_a_whole_block_is_appended() {
        let mut allocator = Allocator::new();
        let first = allocator.data(64, 32);
        // Takes a new block and leaves the rest of the one before free.
        let second = allocator.data(64, BLOCK_SIZE - 64 - 8);
        assert_eq!(
            second.offset,
            first.offset.next_multiple_of(BLOCK_SIZE) + BLOCK_SIZE
        );
        // That rest is found again, exactly as long as it has room.
        let rest = allocator.data(64, BLOCK_SIZE - 96 - 64);
        assert_eq!(rest.offset, first.offset + 96);
        assert!(allocator.data(64, 32).offset > second.offset);
    }
}
