//! The superblock of a v6 bootstrap: EROFS superblock, RAFS extension and device slots.
//!
//! Byte 1024 holds the EROFS superblock (128 bytes), byte 1152 its RAFS extension (256 bytes), and from byte 1408 on
//! there is one device slot (128 bytes) for each blob.

use bitflags::bitflags;

use crate::error::expect_equal;
use crate::raw::{self, DeviceSlotRaw, ExtSuperblockRaw, SuperblockRaw};
use crate::{BLOBS_MAX, CHUNK_SIZE_MAX, CHUNK_SIZE_MIN, Compressor, Digester, Error, Nid, Version};

/// Magic number of v5, at byte 0.
pub(crate) const MAGIC_V5: u32 = 0x5241_4653;
/// Magic number of EROFS and hence of v6, at byte 1024.
pub(crate) const MAGIC_V6: u32 = 0xe0f5_e1e2;
/// Where the EROFS superblock lies.
pub(crate) const SUPERBLOCK_OFFSET: u64 = 1024;
/// Where the RAFS extension lies.
pub(crate) const EXT_OFFSET: u64 = 1152;
/// Where the device slots begin, also in units of 128 bytes.
pub(crate) const DEVICES_OFFSET: u64 = 1408;
pub(crate) const DEVICES_SLOT: u16 = 11;
/// Marks a RAFS v6 bootstrap among EROFS images.
pub(crate) const FEATURE_COMPAT: u32 = 0x4000_0000;
/// EROFS chunk-based files and device table.
pub(crate) const FEATURE_INCOMPAT: u32 = 0xc;
/// The metadata area begins at a multiple of this, whatever the block size.
pub(crate) const TABLE_ALIGNMENT: u64 = 4096;
/// Largest bootstrap that is read.
pub(crate) const BOOTSTRAP_SIZE_MAX: u64 = 2 << 30;
/// Value of `blocks` that old builders wrote whatever the blobs were.
pub(crate) const BLOCKS_HISTORICAL: u32 = 4096;

bitflags! {
    /// Flags of the RAFS superblock extension.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct SuperFlags: u64 {
        /// The build's compressor was none.
        const COMPRESSION_NONE = 0x1;
        /// The build's compressor was lz4_block.
        const COMPRESSION_LZ4 = 0x2;
        /// Chunk digests are BLAKE3.
        const HASH_BLAKE3 = 0x4;
        /// Chunk digests are SHA-256.
        const HASH_SHA256 = 0x8;
        /// Inodes hold real owners.
        const EXPLICIT_UID_GID = 0x10;
        /// Some inode has xattrs.
        const HAS_XATTR = 0x20;
        /// The build's compressor was gzip.
        const COMPRESSION_GZIP = 0x40;
        /// The build's compressor was zstd.
        const COMPRESSION_ZSTD = 0x80;
        /// Every blob holds the digests of its chunks.
        const INLINED_CHUNK_DIGEST = 0x100;
        /// Blobs are raw tar files, blocks have 512 bytes.
        const TARFS_MODE = 0x200;
        /// Nothing is encrypted.
        const ENCRYPTION_NONE = 0x100_0000;
        /// Some blob is encrypted with AES-128-XTS.
        const ENCRYPTION_AES128_XTS = 0x200_0000;
        /// Six bits that are set aside for extensions which old readers may ignore.
        const COMPATIBLE = 0xfc00_0000;
    }
}

impl SuperFlags {
    /// Every compression bit.
    pub const COMPRESSION: Self = Self::COMPRESSION_NONE
        .union(Self::COMPRESSION_LZ4)
        .union(Self::COMPRESSION_GZIP)
        .union(Self::COMPRESSION_ZSTD);

    /// The bit that stands for a compressor.
    pub const fn of_compressor(compressor: Compressor) -> Self {
        match compressor {
            Compressor::None => Self::COMPRESSION_NONE,
            Compressor::Lz4Block => Self::COMPRESSION_LZ4,
            Compressor::Gzip => Self::COMPRESSION_GZIP,
            Compressor::Zstd => Self::COMPRESSION_ZSTD,
        }
    }

    /// The bit that stands for a digester.
    pub const fn of_digester(digester: Digester) -> Self {
        match digester {
            Digester::Blake3 => Self::HASH_BLAKE3,
            Digester::Sha256 => Self::HASH_SHA256,
        }
    }

    /// The compressor, if exactly one compression bit is set.
    pub fn compressor(self) -> Option<Compressor> {
        [
            Compressor::None,
            Compressor::Lz4Block,
            Compressor::Gzip,
            Compressor::Zstd,
        ]
        .into_iter()
        .find(|&c| self & Self::COMPRESSION == Self::of_compressor(c))
    }

    /// The digester, if exactly one digest bit is set.
    pub fn digester(self) -> Option<Digester> {
        let both = Self::HASH_BLAKE3 | Self::HASH_SHA256;
        [Digester::Blake3, Digester::Sha256]
            .into_iter()
            .find(|&d| self & both == Self::of_digester(d))
    }
}

/// Both superblocks, decoded. Offsets are in bytes from the start of the bootstrap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// log2 of the block size: 12, or 9 in tarfs images.
    pub block_bits: u8,
    /// The root directory.
    pub root: Nid,
    /// Names in the tree, the root included.
    pub inos: u64,
    /// Blocks of all devices together; some old images hold 4096 instead.
    pub blocks: u32,
    /// Where the metadata area begins, in blocks; nids count from there.
    pub meta_blkaddr: u32,
    /// Number of device slots.
    pub extra_devices: u16,
    /// See [`SuperFlags`].
    pub flags: SuperFlags,
    /// Size of a chunk in bytes, a power of two.
    pub chunk_size: u32,
    /// Where the blob table begins.
    pub blob_table_offset: u64,
    /// Its size in bytes.
    pub blob_table_size: u32,
    /// Where the chunk table begins.
    pub chunk_table_offset: u64,
    /// Its size in bytes.
    pub chunk_table_size: u64,
    /// Where the prefetch table begins; 0 if there is none.
    pub prefetch_table_offset: u64,
    /// Its size in bytes.
    pub prefetch_table_size: u32,
}

impl Superblock {
    /// Size of a block in bytes.
    pub const fn block_size(&self) -> u64 {
        1 << self.block_bits
    }

    /// Where the metadata area begins, in bytes.
    pub const fn meta_offset(&self) -> u64 {
        (self.meta_blkaddr as u64) << self.block_bits
    }

    /// Where the inode `nid` begins, in bytes; `None` if that is beyond any file.
    pub const fn inode_offset(&self, nid: Nid) -> Option<u64> {
        match nid.0.checked_mul(Nid::SLOT_SIZE) {
            Some(offset) => offset.checked_add(self.meta_offset()),
            None => None,
        }
    }

    /// Parses and validates both superblocks of a whole bootstrap.
    ///
    /// # Errors
    /// [`Error`] naming the first field that is wrong; v5 is [`Error::OtherVersion`].
    pub fn parse(data: &[u8]) -> Result<Self, Error> {
        expect_version(data, Version::V6)?;
        let len = data.len() as u64;
        let missing = || Error::bounds("the superblock", SUPERBLOCK_OFFSET, 384, len);
        let sb: &SuperblockRaw = raw::read_at(data, SUPERBLOCK_OFFSET).ok_or_else(missing)?;
        let ext: &ExtSuperblockRaw = raw::read_at(data, EXT_OFFSET).ok_or_else(missing)?;
        let (flags, block_bits) = flags(ext, sb)?;
        check_fields(sb)?;
        if len > BOOTSTRAP_SIZE_MAX {
            return Err(Error::field(
                "bootstrap length",
                0,
                len,
                format!("at most {BOOTSTRAP_SIZE_MAX}"),
            ));
        }
        if len < 4096 || !len.is_multiple_of(1 << block_bits) {
            return Err(Error::field(
                "bootstrap length",
                0,
                len,
                "a multiple of the block size, at least 4096",
            ));
        }
        let superblock = Self {
            block_bits,
            root: Nid(u64::from(sb.root_nid.get())),
            inos: sb.inos.get(),
            blocks: sb.blocks.get(),
            meta_blkaddr: sb.meta_blkaddr.get(),
            extra_devices: sb.extra_devices.get(),
            flags,
            chunk_size: ext.chunk_size.get(),
            blob_table_offset: ext.blob_table_offset.get(),
            blob_table_size: ext.blob_table_size.get(),
            chunk_table_offset: ext.chunk_table_offset.get(),
            chunk_table_size: ext.chunk_table_size.get(),
            prefetch_table_offset: ext.prefetch_table_offset.get(),
            prefetch_table_size: ext.prefetch_table_size.get(),
        };
        superblock.check_tables(len)?;
        Ok(superblock)
    }

    fn check_tables(&self, len: u64) -> Result<(), Error> {
        let size = self.chunk_size;
        if !size.is_power_of_two() || !(CHUNK_SIZE_MIN..=CHUNK_SIZE_MAX).contains(&size) {
            return Err(Error::field(
                "chunk size in the superblock",
                EXT_OFFSET + 20,
                size,
                "a power of two from 0x1000 to 0x1000000",
            ));
        }
        if usize::from(self.extra_devices) > BLOBS_MAX {
            return Err(Error::field(
                "device count in the superblock",
                SUPERBLOCK_OFFSET + 86,
                self.extra_devices,
                "at most 255",
            ));
        }
        if self.extra_devices == 0 && self.blocks != 0 && self.blocks != BLOCKS_HISTORICAL {
            return Err(Error::field(
                "block count in the superblock",
                SUPERBLOCK_OFFSET + 36,
                self.blocks,
                "0, for there is no blob",
            ));
        }
        if self.meta_offset() > len {
            return Err(Error::bounds(
                "the metadata area",
                self.meta_offset(),
                0,
                len,
            ));
        }
        let devices = u64::from(self.extra_devices) * DeviceSlotRaw::SIZE as u64;
        let blobs = Region::new(
            "the blob table",
            self.blob_table_offset,
            u64::from(self.blob_table_size),
        );
        let chunks = Region::new(
            "the chunk table",
            self.chunk_table_offset,
            self.chunk_table_size,
        );
        let prefetch = Region::new(
            "the prefetch table",
            self.prefetch_table_offset,
            u64::from(self.prefetch_table_size),
        );
        blobs.check(TABLE_ALIGNMENT, 256, len)?;
        if blobs.offset < TABLE_ALIGNMENT {
            return Err(Error::field(
                "offset of the blob table",
                EXT_OFFSET + 8,
                blobs.offset,
                "at least 4096",
            ));
        }
        chunks.check(TABLE_ALIGNMENT, 80, len)?;
        prefetch.check(1, 4, len)?;
        let head = Region::new("the superblock", 0, DEVICES_OFFSET + devices);
        let regions = [head, blobs, chunks, prefetch];
        for (i, a) in regions.iter().enumerate() {
            for b in regions.iter().skip(i + 1) {
                a.check_disjoint(b)?;
            }
        }
        Ok(())
    }
}

/// A table in the bootstrap.
pub(crate) struct Region {
    pub(crate) what: &'static str,
    pub(crate) offset: u64,
    pub(crate) size: u64,
}

impl Region {
    pub(crate) fn new(what: &'static str, offset: u64, size: u64) -> Self {
        Self { what, offset, size }
    }

    /// Alignment, length in whole records, and place within `len` bytes.
    pub(crate) fn check(&self, alignment: u64, record: u64, len: u64) -> Result<(), Error> {
        if !self.offset.is_multiple_of(alignment) {
            return Err(Error::field(
                self.what,
                self.offset,
                self.offset,
                format!("a multiple of {alignment}"),
            ));
        }
        if !self.size.is_multiple_of(record) {
            return Err(Error::field(
                self.what,
                self.offset,
                format!("{} bytes long", self.size),
                format!("a multiple of {record}"),
            ));
        }
        match self.offset.checked_add(self.size) {
            Some(end) if end <= len => Ok(()),
            _ => Err(Error::bounds(self.what, self.offset, self.size, len)),
        }
    }

    /// Both lie within the file, so sums cannot overflow.
    pub(crate) fn check_disjoint(&self, other: &Self) -> Result<(), Error> {
        let apart =
            self.offset + self.size <= other.offset || other.offset + other.size <= self.offset;
        if self.size == 0 || other.size == 0 || apart {
            return Ok(());
        }
        Err(Error::field(
            other.what,
            other.offset,
            format!("{} bytes long", other.size),
            format!("no overlap with {}", self.what),
        ))
    }
}

/// The version whose magic number is where its bootstraps have it. The first 1028 bytes tell.
///
/// # Errors
/// [`Error::NotBootstrap`] if there is none.
pub fn version(data: &[u8]) -> Result<Version, Error> {
    let magic_at =
        |offset: u64| raw::read_at::<zerocopy::little_endian::U32>(data, offset).map(|m| m.get());
    if magic_at(0) == Some(MAGIC_V5) {
        Ok(Version::V5)
    } else if magic_at(SUPERBLOCK_OFFSET) == Some(MAGIC_V6) {
        Ok(Version::V6)
    } else {
        Err(Error::NotBootstrap { len: data.len() })
    }
}

/// Refuses bytes of another version than the one that is to be parsed.
pub(crate) fn expect_version(data: &[u8], expected: Version) -> Result<(), Error> {
    match version(data)? {
        actual if actual == expected => Ok(()),
        version => Err(Error::OtherVersion { version }),
    }
}

/// Fields of the EROFS superblock that can have one value only.
fn check_fields(sb: &SuperblockRaw) -> Result<(), Error> {
    let at = |offset: u64| SUPERBLOCK_OFFSET + offset;
    let compat = sb.feature_compat.get();
    if compat & FEATURE_COMPAT == 0 {
        return Err(Error::field(
            "compatible features in the superblock",
            at(8),
            format!("{compat:#x}"),
            "the RAFS v6 bit 0x40000000",
        ));
    }
    expect_equal("checksum in the superblock", at(4), sb.checksum.get(), 0)?;
    expect_equal("extra slots in the superblock", at(13), sb.extra_slots, 0)?;
    expect_equal(
        "shared xattr address in the superblock",
        at(44),
        sb.xattr_blkaddr.get(),
        0,
    )?;
    expect_equal(
        "incompatible features in the superblock",
        at(80),
        sb.feature_incompat.get(),
        FEATURE_INCOMPAT,
    )?;
    expect_equal(
        "compression algorithms in the superblock",
        at(84),
        sb.compression.get(),
        0,
    )?;
    expect_equal(
        "device slot offset in the superblock",
        at(88),
        sb.device_slot_offset.get(),
        DEVICES_SLOT,
    )
}

/// Flags of the extension, and the block size that must go with them.
fn flags(ext: &ExtSuperblockRaw, sb: &SuperblockRaw) -> Result<(SuperFlags, u8), Error> {
    let word = ext.flags.get();
    let show = || format!("{word:#x}");
    let flags = SuperFlags::from_bits(word).ok_or_else(|| {
        Error::field(
            "flags of the superblock",
            EXT_OFFSET,
            show(),
            "no unknown bit",
        )
    })?;
    if flags.compressor().is_none() {
        return Err(Error::field(
            "flags of the superblock",
            EXT_OFFSET,
            show(),
            "exactly one compression bit",
        ));
    }
    if flags.digester().is_none() {
        return Err(Error::field(
            "flags of the superblock",
            EXT_OFFSET,
            show(),
            "exactly one digest bit",
        ));
    }
    let bits = if flags.contains(SuperFlags::TARFS_MODE) {
        9
    } else {
        12
    };
    expect_equal(
        "block size bits in the superblock",
        SUPERBLOCK_OFFSET + 12,
        sb.block_bits,
        bits,
    )?;
    Ok((flags, bits))
}

/// One extra device: what EROFS knows of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceSlot {
    /// Blob id.
    pub id: String,
    /// Uncompressed size in blocks.
    pub blocks: u32,
    /// Where the device lies in the flat address space behind the bootstrap, in blocks; 0 if it does not.
    pub mapped_blkaddr: u32,
}

impl DeviceSlot {
    /// Parses the slots of all devices.
    pub(crate) fn parse_all(data: &[u8], count: u16) -> Result<Vec<Self>, Error> {
        let mut slots = Vec::with_capacity(usize::from(count));
        for i in 0..u64::from(count) {
            let offset = DEVICES_OFFSET + i * DeviceSlotRaw::SIZE as u64;
            let slot = raw::read_at(data, offset).ok_or_else(|| {
                Error::bounds(
                    "a device slot",
                    offset,
                    DeviceSlotRaw::SIZE as u64,
                    data.len() as u64,
                )
            })?;
            slots.push(Self::from_raw(slot, offset)?);
        }
        Ok(slots)
    }

    fn from_raw(slot: &DeviceSlotRaw, offset: u64) -> Result<Self, Error> {
        let id = raw::text(&slot.tag)
            .filter(|id| !id.is_empty() && !id.contains('\0'))
            .ok_or_else(|| Error::field("tag of a device slot", offset, "not text", "a blob id"))?;
        if slot.blocks.get() == 0 {
            return Err(Error::field(
                "block count of a device slot",
                offset + 64,
                0,
                "more than 0",
            ));
        }
        Ok(Self {
            id: id.to_owned(),
            blocks: slot.blocks.get(),
            mapped_blkaddr: slot.mapped_blkaddr.get(),
        })
    }
}
