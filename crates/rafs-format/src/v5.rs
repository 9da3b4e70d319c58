//! Version 5 of the bootstrap: a private layout of tables and of inodes with everything that belongs to them.
//!
//! | Region | Size |
//! |---|---|
//! | superblock | 8192 |
//! | inode table: where each inode lies, in units of 8 bytes | 4 * names |
//! | prefetch table: inode numbers | 4 * entries |
//! | blob table: text | see [`encode::blob_table`] |
//! | extended blob table | 64 * blobs |
//! | inodes | up to the end of the file |
//!
//! Every region and every part of an inode begins at a multiple of 8. Names have successive indexes from 1 on: the
//! root, then per directory all children, followed by the descent into each child directory. Each name has an inode
//! record of its own; the names of a hard-linked file have the same inode number, the index of the first of them.
//! Inodes hold their chunk records, and a digest that covers all below them.

mod check;
pub mod encode;
mod inode;
mod tables;

use std::ops::Deref;

pub use inode::{Inode, InodeFlags};

use crate::error::expect_equal;
use crate::raw::{self, SuperblockV5Raw};
use crate::superblock::{BOOTSTRAP_SIZE_MAX, MAGIC_V5, Region, expect_version};
use crate::{
    BlobInfo, CHUNK_SIZE_MAX, CHUNK_SIZE_MIN, Compressor, Digester, Error, SuperFlags, Version,
};

/// Size of the superblock in bytes.
pub const SUPERBLOCK_SIZE: u64 = 8192;
/// The version number in the superblock.
const VERSION: u32 = 0x500;
/// What every offset is a multiple of, and the unit of the inode table.
const ALIGNMENT: u64 = 8;
/// Size of an entry of the extended blob table.
const EXT_BLOB_SIZE: u64 = 64;
/// Flags of v6 that mean nothing here.
const FOREIGN_FLAGS: SuperFlags = SuperFlags::TARFS_MODE.union(SuperFlags::ENCRYPTION_AES128_XTS);

/// The superblock, decoded.
///
/// | Offset | Size | Field |
/// |---|---|---|
/// | 0 | 4 | magic, 0x52414653 |
/// | 4 | 4 | version, 0x500 |
/// | 8 | 4 | size of the superblock, 8192 |
/// | 12 | 4 | `chunk_size` |
/// | 16 | 8 | `flags` |
/// | 24 | 8 | `inodes_count` |
/// | 32 | 8 | `inode_table_offset` |
/// | 40 | 8 | `prefetch_table_offset` |
/// | 48 | 8 | `blob_table_offset` |
/// | 56 | 4 | `inode_table_entries` |
/// | 60 | 4 | `prefetch_table_entries` |
/// | 64 | 4 | `blob_table_size` |
/// | 68 | 4 | `ext_blob_table_entries` |
/// | 72 | 8 | `ext_blob_table_offset` |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// Size of a chunk in bytes, a power of two.
    pub chunk_size: u32,
    /// See [`SuperFlags`].
    pub flags: SuperFlags,
    /// Inodes, a hard-linked file counted once.
    pub inodes_count: u64,
    /// Where the inode table begins, in bytes as all offsets.
    pub inode_table_offset: u64,
    /// Its entries: names, the root included.
    pub inode_table_entries: u32,
    /// Where the prefetch table begins.
    pub prefetch_table_offset: u64,
    /// Its entries.
    pub prefetch_table_entries: u32,
    /// Where the blob table begins.
    pub blob_table_offset: u64,
    /// Its size in bytes, padding included.
    pub blob_table_size: u32,
    /// Where the extended blob table begins.
    pub ext_blob_table_offset: u64,
    /// Its entries: as many as there are blobs.
    pub ext_blob_table_entries: u32,
}

impl Superblock {
    /// Parses and validates the superblock of a whole bootstrap.
    ///
    /// # Errors
    /// [`Error`] naming the first field that is wrong; v6 is [`Error::OtherVersion`].
    pub fn parse(data: &[u8]) -> Result<Self, Error> {
        expect_version(data, Version::V5)?;
        let len = data.len() as u64;
        let whole = raw::slice(data, 0, SUPERBLOCK_SIZE).and_then(raw::read);
        let raw: &SuperblockV5Raw =
            whole.ok_or_else(|| Error::bounds("the superblock", 0, SUPERBLOCK_SIZE, len))?;
        expect_equal(
            "magic number of the superblock",
            0,
            raw.magic.get(),
            MAGIC_V5,
        )?;
        expect_equal("version in the superblock", 4, raw.version.get(), VERSION)?;
        let size = u64::from(raw.size.get());
        expect_equal("size of the superblock", 8, size, SUPERBLOCK_SIZE)?;
        if len > BOOTSTRAP_SIZE_MAX {
            let limit = format!("at most {BOOTSTRAP_SIZE_MAX}");
            return Err(Error::field("bootstrap length", 0, len, limit));
        }
        let superblock = Self {
            chunk_size: raw.block_size.get(),
            flags: flags(raw.flags.get())?,
            inodes_count: raw.inodes_count.get(),
            inode_table_offset: raw.inode_table_offset.get(),
            inode_table_entries: raw.inode_table_entries.get(),
            prefetch_table_offset: raw.prefetch_table_offset.get(),
            prefetch_table_entries: raw.prefetch_table_entries.get(),
            blob_table_offset: raw.blob_table_offset.get(),
            blob_table_size: raw.blob_table_size.get(),
            ext_blob_table_offset: raw.ext_blob_table_offset.get(),
            ext_blob_table_entries: raw.ext_blob_table_entries.get(),
        };
        superblock.check(len)?;
        Ok(superblock)
    }

    fn check(&self, len: u64) -> Result<(), Error> {
        let size = self.chunk_size;
        if !size.is_power_of_two() || !(CHUNK_SIZE_MIN..=CHUNK_SIZE_MAX).contains(&size) {
            return Err(Error::field(
                "chunk size in the superblock",
                12,
                size,
                "a power of two from 0x1000 to 0x1000000",
            ));
        }
        let names = u64::from(self.inode_table_entries);
        if self.inodes_count == 0 || self.inodes_count > names {
            return Err(Error::field(
                "inode count in the superblock",
                24,
                self.inodes_count,
                format!("1 to {names}, the number of names"),
            ));
        }
        let regions = self.regions();
        for region in &regions {
            region.check(ALIGNMENT, 1, len)?;
        }
        for (i, a) in regions.iter().enumerate() {
            for b in regions.iter().skip(i + 1) {
                a.check_disjoint(b)?;
            }
        }
        Ok(())
    }

    /// What lies in the file besides inodes.
    fn regions(&self) -> [Region; 5] {
        let entries = |count: u32, size: u64| u64::from(count) * size;
        [
            Region::new("the superblock", 0, SUPERBLOCK_SIZE),
            Region::new(
                "the inode table",
                self.inode_table_offset,
                entries(self.inode_table_entries, 4),
            ),
            Region::new(
                "the prefetch table",
                self.prefetch_table_offset,
                entries(self.prefetch_table_entries, 4),
            ),
            Region::new(
                "the blob table",
                self.blob_table_offset,
                self.blob_table_size.into(),
            ),
            Region::new(
                "the extended blob table",
                self.ext_blob_table_offset,
                entries(self.ext_blob_table_entries, EXT_BLOB_SIZE),
            ),
        ]
    }
}

fn flags(word: u64) -> Result<SuperFlags, Error> {
    let wrong = |expected: &str| {
        Error::field(
            "flags of the superblock",
            16,
            format!("{word:#x}"),
            expected,
        )
    };
    let flags = SuperFlags::from_bits(word).ok_or_else(|| wrong("no unknown bit"))?;
    if flags.intersects(FOREIGN_FLAGS) {
        return Err(wrong("neither tarfs mode nor encryption"));
    }
    if flags.compressor().is_none() {
        return Err(wrong("exactly one compression bit"));
    }
    if flags.digester().is_none() {
        return Err(wrong("exactly one digest bit"));
    }
    Ok(flags)
}

/// A bootstrap over any bytes: a vector, a slice, a shared buffer.
///
/// The tables are validated when it is parsed, inodes when they are looked at; [`Bootstrap::check`] looks at all.
#[derive(Debug, Clone)]
pub struct Bootstrap<D> {
    data: D,
    superblock: Superblock,
    blobs: Vec<BlobInfo>,
    compressor: Compressor,
    digester: Digester,
}

impl<D: Deref<Target = [u8]>> Bootstrap<D> {
    /// Parses the superblock and both blob tables.
    ///
    /// # Errors
    /// [`Error`] naming the first field that is wrong.
    pub fn parse(data: D) -> Result<Self, Error> {
        let superblock = Superblock::parse(&data)?;
        let (Some(compressor), Some(digester)) =
            (superblock.flags.compressor(), superblock.flags.digester())
        else {
            return Err(flags(superblock.flags.bits())
                .err()
                .unwrap_or(Error::NotBootstrap { len: data.len() }));
        };
        let blobs = tables::parse(&data, &superblock, compressor, digester)?;
        Ok(Self {
            data,
            superblock,
            blobs,
            compressor,
            digester,
        })
    }

    /// All bytes of the bootstrap.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// The superblock.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// The blob tables. Blobs hold no chunk table; compressor and digester are those of the superblock.
    pub fn blobs(&self) -> &[BlobInfo] {
        &self.blobs
    }

    /// The blob tables, to put real ids where placeholders are. The bytes stay as they are.
    pub fn blobs_mut(&mut self) -> &mut [BlobInfo] {
        &mut self.blobs
    }

    /// The compressor of all chunks.
    pub fn compressor(&self) -> Compressor {
        self.compressor
    }

    /// The digester of chunks and inodes.
    pub fn digester(&self) -> Digester {
        self.digester
    }

    /// Number of names: indexes are 1 to this.
    pub fn names(&self) -> u32 {
        self.superblock.inode_table_entries
    }

    /// Numbers of files and directories to fetch first, in order.
    pub fn prefetch(&self) -> impl Iterator<Item = u32> {
        let (offset, count) = (
            self.superblock.prefetch_table_offset,
            self.superblock.prefetch_table_entries,
        );
        let table = raw::slice(&self.data, offset, u64::from(count) * 4).unwrap_or_default();
        let (entries, _) = table.as_chunks();
        entries.iter().map(|bytes| u32::from_le_bytes(*bytes))
    }
}
