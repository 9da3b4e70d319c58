//! Nothing in a bootstrap may lie on top of something else.

use super::CheckError;
use crate::Nid;
use crate::raw::DeviceSlotRaw;
use crate::superblock::{DEVICES_OFFSET, Superblock};

/// What occupies bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Owner {
    /// A table of the bootstrap.
    Table(&'static str),
    /// An inode, or data of one.
    Inode(Nid),
}

/// Occupied bytes.
pub(crate) struct Extents(Vec<(u64, u64, Owner)>);

/// Two things in one place.
pub(crate) struct Overlap {
    /// Where the second one begins.
    pub(crate) offset: u64,
    pub(crate) first: Owner,
    pub(crate) second: Owner,
}

impl Extents {
    /// None yet.
    pub(crate) fn empty() -> Self {
        Self(Vec::new())
    }

    /// The extents of the tables.
    pub(crate) fn new(superblock: &Superblock) -> Self {
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
    pub(crate) fn add(&mut self, offset: u64, size: u64, owner: Owner) {
        if size != 0 {
            self.0.push((offset, offset + size, owner));
        }
    }

    /// The first overlap in file order.
    pub(crate) fn overlap(mut self) -> Option<Overlap> {
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

impl From<Overlap> for CheckError {
    fn from(overlap: Overlap) -> Self {
        let name = |owner| match owner {
            Owner::Table(what) => what.to_owned(),
            Owner::Inode(nid) => format!("inode {nid} (or its data)"),
        };
        Self::table(
            overlap.offset,
            format!(
                "{} lies on top of {}",
                name(overlap.second),
                name(overlap.first)
            ),
        )
    }
}
