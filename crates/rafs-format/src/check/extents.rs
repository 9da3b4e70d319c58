//! Nothing in a bootstrap may lie on top of something else.

use crate::Nid;
use crate::raw::DeviceSlotRaw;
use crate::superblock::{DEVICES_OFFSET, Superblock};

/// What occupies bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Owner {
    /// A table of the bootstrap.
    Table(&'static str),
    /// An inode, or data of one.
    Inode(Nid),
}

/// Occupied bytes.
pub(super) struct Extents(Vec<(u64, u64, Owner)>);

/// Two things in one place.
pub(super) struct Overlap {
    /// Where the second one begins.
    pub(super) offset: u64,
    pub(super) first: Owner,
    pub(super) second: Owner,
}

impl Extents {
    /// The extents of the tables.
    pub(super) fn new(superblock: &Superblock) -> Self {
        let mut extents = Self(Vec::new());
        let devices = u64::from(superblock.extra_devices) * DeviceSlotRaw::SIZE as u64;
        extents.add(0, DEVICES_OFFSET + devices, Owner::Table("the superblock"));
        extents.add(
            superblock.blob_table_offset,
            superblock.blob_table_size.into(),
            Owner::Table("the blob table"),
        );
        extents.add(
            superblock.chunk_table_offset,
            superblock.chunk_table_size,
            Owner::Table("the chunk table"),
        );
        let prefetch = superblock.prefetch_table_size.into();
        extents.add(
            superblock.prefetch_table_offset,
            prefetch,
            Owner::Table("the prefetch table"),
        );
        extents
    }

    /// Adds bytes, which must lie within the file.
    pub(super) fn add(&mut self, offset: u64, size: u64, owner: Owner) {
        if size != 0 {
            self.0.push((offset, offset + size, owner));
        }
    }

    /// The first overlap in file order.
    pub(super) fn overlap(mut self) -> Option<Overlap> {
        self.0.sort_unstable();
        let pair = self
            .0
            .array_windows()
            .find(|[(_, end, _), (start, ..)]| start < end);
        pair.map(|&[(_, _, first), (offset, _, second)]| Overlap {
            offset,
            first,
            second,
        })
    }
}
