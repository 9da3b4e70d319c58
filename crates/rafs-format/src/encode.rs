//! Appenders for the on-disk records of a v6 bootstrap. Where records go is [`crate::layout`]'s business.

use zerocopy::IntoBytes;

use crate::inode::{FileType, Layout};
use crate::raw::{
    BlobInfoRaw, ChunkIndexRaw, ChunkRecordRaw, DeviceSlotRaw, DirentRaw, ExtSuperblockRaw,
    InodeExtendedRaw, SuperblockRaw, XattrEntryRaw, XattrHeaderRaw,
};
use crate::superblock::{
    DEVICES_SLOT, DeviceSlot, FEATURE_COMPAT, FEATURE_INCOMPAT, MAGIC_V6, Superblock,
};
use crate::{BlobInfo, ChunkPointer, ChunkRecord, DirEntry, Error, NAME_MAX, xattr};

/// Bytes of an inode as this module writes it (always extended), without xattrs.
pub const INODE_SIZE: u64 = InodeExtendedRaw::SIZE as u64;
/// Bytes of a chunk table entry.
pub const CHUNK_RECORD_SIZE: u64 = ChunkRecordRaw::SIZE as u64;
/// Bytes of a blob table entry.
pub const BLOB_INFO_SIZE: u64 = BlobInfoRaw::SIZE as u64;
/// Longest full name of an extended attribute, in bytes.
const XATTR_NAME_MAX: u64 = 255;

/// Appends the 128 bytes of the EROFS superblock.
///
/// # Errors
/// [`Error::TooLarge`] if the root's nid does not fit 16 bits.
pub fn superblock(superblock: &Superblock, out: &mut Vec<u8>) -> Result<(), Error> {
    let limit = u64::from(u16::MAX);
    let root = u16::try_from(superblock.root.0).map_err(|_| Error::TooLarge {
        what: "root nid",
        value: superblock.root.0,
        limit,
    })?;
    let raw = SuperblockRaw {
        magic: MAGIC_V6.into(),
        checksum: 0.into(),
        feature_compat: FEATURE_COMPAT.into(),
        block_bits: superblock.block_bits,
        extra_slots: 0,
        root_nid: root.into(),
        inos: superblock.inos.into(),
        build_time: 0.into(),
        build_time_nsec: 0.into(),
        blocks: superblock.blocks.into(),
        meta_blkaddr: superblock.meta_blkaddr.into(),
        xattr_blkaddr: 0.into(),
        uuid: [0; 16],
        volume_name: [0; 16],
        feature_incompat: FEATURE_INCOMPAT.into(),
        compression: 0.into(),
        extra_devices: superblock.extra_devices.into(),
        device_slot_offset: DEVICES_SLOT.into(),
        reserved: [0; 38],
    };
    out.extend_from_slice(raw.as_bytes());
    Ok(())
}

/// Appends the 256 bytes of the RAFS superblock extension.
pub fn ext_superblock(superblock: &Superblock, out: &mut Vec<u8>) {
    let raw = ExtSuperblockRaw {
        flags: superblock.flags.bits().into(),
        blob_table_offset: superblock.blob_table_offset.into(),
        blob_table_size: superblock.blob_table_size.into(),
        chunk_size: superblock.chunk_size.into(),
        chunk_table_offset: superblock.chunk_table_offset.into(),
        chunk_table_size: superblock.chunk_table_size.into(),
        prefetch_table_offset: superblock.prefetch_table_offset.into(),
        prefetch_table_size: superblock.prefetch_table_size.into(),
        padding: 0.into(),
        reserved: [0; 200],
    };
    out.extend_from_slice(raw.as_bytes());
}

/// Appends the 128 bytes of a device slot.
///
/// # Errors
/// [`Error::TooLarge`] if the id is longer than 64 bytes.
pub fn device(device: &DeviceSlot, out: &mut Vec<u8>) -> Result<(), Error> {
    let raw = DeviceSlotRaw {
        tag: padded(&device.id)?,
        blocks: device.blocks.into(),
        mapped_blkaddr: device.mapped_blkaddr.into(),
        reserved: [0; 56],
    };
    out.extend_from_slice(raw.as_bytes());
    Ok(())
}

/// Appends the 256 bytes of a blob table entry.
pub fn blob_info(info: &BlobInfo, out: &mut Vec<u8>) {
    let mut id = [0; 64];
    for (to, from) in id.iter_mut().zip(info.id.as_str().bytes()) {
        *to = from;
    }
    let raw = BlobInfoRaw {
        id,
        index: info.index.into(),
        chunk_size: info.chunk_size.into(),
        chunk_count: info.chunk_count.into(),
        compressor: info.compressor.number().into(),
        digester: info.digester.number().into(),
        features: info.features.bits().into(),
        compressed_size: info.compressed_size.into(),
        uncompressed_size: info.uncompressed_size.into(),
        toc_size: info.toc_size.into(),
        meta_compressor: info.meta_compressor.number().into(),
        meta_offset: info.meta_offset.into(),
        meta_compressed_size: info.meta_compressed_size.into(),
        meta_uncompressed_size: info.meta_uncompressed_size.into(),
        toc_digest: info.toc_digest,
        meta_digest: info.meta_digest,
        meta_size: info.meta_size.into(),
        cipher_iv: info.cipher_iv,
        cipher: info.cipher.number().into(),
        reserved: [0; 36],
    };
    out.extend_from_slice(raw.as_bytes());
}

/// Appends the 80 bytes of a chunk table entry.
pub fn chunk_record(record: &ChunkRecord, out: &mut Vec<u8>) {
    let raw = ChunkRecordRaw {
        digest: record.digest,
        blob_index: record.blob_index.into(),
        flags: record.flags.bits().into(),
        compressed_size: record.compressed_size.into(),
        uncompressed_size: record.uncompressed_size.into(),
        compressed_offset: record.compressed_offset.into(),
        uncompressed_offset: record.uncompressed_offset.into(),
        file_offset: record.file_offset.into(),
        index: record.index.into(),
        crc32: record.crc32.into(),
    };
    out.extend_from_slice(raw.as_bytes());
}

/// Appends the 8 bytes that point a file to a chunk. `block_bits` is that of the superblock.
///
/// # Errors
/// [`Error::TooLarge`] if blob, chunk or block have numbers that do not fit.
pub fn chunk_index(pointer: &ChunkPointer, block_bits: u8, out: &mut Vec<u8>) -> Result<(), Error> {
    let device = u64::from(pointer.blob_index) + 1;
    let block = pointer
        .uncompressed_offset
        .checked_shr(u32::from(block_bits))
        .unwrap_or(0);
    let index = pointer.index;
    let raw = ChunkIndexRaw {
        index_low: ((index & 0xffff) as u16).into(),
        device: narrow("device id", device, u64::from(u8::MAX))? as u8,
        index_high: narrow("chunk index", u64::from(index), 0xff_ffff)
            .map(|index| (index >> 16) as u8)?,
        blkaddr: (narrow("block address of a chunk", block, u64::from(u32::MAX))? as u32).into(),
    };
    out.extend_from_slice(raw.as_bytes());
    Ok(())
}

/// What an extended inode says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InodeFields {
    /// Type and permission bits, as in `st_mode`.
    pub mode: u32,
    /// Names of the inode; for a directory 2 and its child directories.
    pub nlink: u32,
    /// Bytes of data.
    pub size: u64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time in seconds.
    pub mtime: i64,
    /// Nanoseconds of the modification time.
    pub mtime_nsec: u32,
    /// Sequential number in the tree.
    pub ino: u32,
    /// Whether it is a directory that exists only because an entry below it does.
    pub implied: bool,
    /// Layout of the data.
    pub layout: Layout,
    /// Block address of the data of a directory or symbolic link (from the start of the file), device number of a
    /// device, [`crate::layout::chunk_format`] of a regular file.
    pub u: u32,
    /// Bytes of the xattr area, as [`xattr_size`] tells.
    pub xattr_size: u32,
}

/// Appends the 64 bytes of an extended inode.
///
/// # Errors
/// [`Error::TooLarge`] if the mode or the xattr area do not fit.
pub fn inode(fields: &InodeFields, out: &mut Vec<u8>) -> Result<(), Error> {
    let raw = InodeExtendedRaw {
        format: (1 | (fields.layout as u16) << 1).into(),
        xattr_icount: xattr_icount(fields.xattr_size)?.into(),
        mode: (narrow("file mode", u64::from(fields.mode), u64::from(u16::MAX))? as u16).into(),
        padding: 0.into(),
        size: fields.size.into(),
        u: fields.u.into(),
        ino: fields.ino.into(),
        uid: fields.uid.into(),
        gid: fields.gid.into(),
        mtime: fields.mtime.cast_unsigned().into(),
        mtime_nsec: fields.mtime_nsec.into(),
        nlink: fields.nlink.into(),
        implied: u8::from(fields.implied),
        reserved: [0; 15],
    };
    out.extend_from_slice(raw.as_bytes());
    Ok(())
}

fn xattr_icount(size: u32) -> Result<u16, Error> {
    if size == 0 {
        return Ok(0);
    }
    let count = u64::from(size).saturating_sub(XattrHeaderRaw::SIZE as u64) / 4 + 1;
    Ok(narrow(
        "size of all extended attributes in words",
        count,
        u64::from(u16::MAX),
    )? as u16)
}

/// Bytes of the area that holds these extended attributes (full name, value); 0 if there are none.
///
/// # Errors
/// [`Error::XattrNamespace`] for a name in a namespace that the format does not know, [`Error::TooLarge`] if name,
/// value or area do not fit.
pub fn xattr_size<'a>(
    xattrs: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
) -> Result<u32, Error> {
    let mut size = 0u64;
    for (name, value) in xattrs {
        let (_, suffix) = xattr_split(name)?;
        narrow(
            "length of an extended attribute's name",
            name.len() as u64,
            XATTR_NAME_MAX,
        )?;
        narrow(
            "size of an extended attribute",
            value.len() as u64,
            u64::from(u16::MAX),
        )?;
        size += (XattrEntryRaw::SIZE + suffix.len() + value.len()).next_multiple_of(4) as u64;
    }
    if size == 0 {
        return Ok(0);
    }
    let size = narrow(
        "size of all extended attributes",
        size + XattrHeaderRaw::SIZE as u64,
        u64::from(xattr_size_max()),
    )?;
    Ok(size as u32)
}

fn xattr_size_max() -> u32 {
    crate::inode::xattr_size(u16::MAX)
}

fn xattr_split(name: &[u8]) -> Result<(u8, &[u8]), Error> {
    xattr::split(name)
        .filter(|(_, suffix)| !suffix.contains(&0))
        .ok_or_else(|| Error::XattrNamespace {
            name: name.escape_ascii().to_string(),
        })
}

/// Appends the xattr area of an inode, in the order given: nothing if there are no attributes.
///
/// # Errors
/// As [`xattr_size`].
pub fn xattrs<'a>(
    xattrs: impl IntoIterator<Item = (&'a [u8], &'a [u8])> + Clone,
    out: &mut Vec<u8>,
) -> Result<(), Error> {
    if xattr_size(xattrs.clone())? == 0 {
        return Ok(());
    }
    let head = XattrHeaderRaw {
        name_filter: 0.into(),
        shared_count: 0,
        reserved: [0; 7],
    };
    out.extend_from_slice(head.as_bytes());
    for (name, value) in xattrs {
        let (number, suffix) = xattr_split(name)?;
        let entry = XattrEntryRaw {
            name_len: suffix.len() as u8,
            name_index: number,
            value_size: (value.len() as u16).into(),
        };
        let size = XattrEntryRaw::SIZE + suffix.len() + value.len();
        out.extend_from_slice(entry.as_bytes());
        out.extend_from_slice(suffix);
        out.extend_from_slice(value);
        out.extend(std::iter::repeat_n(0, size.next_multiple_of(4) - size));
    }
    Ok(())
}

/// Bytes of directory data for names of these lengths, in order, `.` and `..` included.
pub fn directory_size(name_lengths: impl IntoIterator<Item = usize>, block_size: u64) -> u64 {
    let (mut full, mut used) = (0, 0);
    for length in name_lengths {
        let needed = (DirentRaw::SIZE + length) as u64;
        if used + needed > block_size {
            full += block_size;
            used = 0;
        }
        used += needed;
    }
    full + used
}

/// Appends the data of a directory. The entries must be all there, `.` and `..` included, in bytewise name order.
///
/// # Errors
/// [`Error::TooLarge`] if a name is longer than 255 bytes.
pub fn directory(
    entries: &[DirEntry<'_>],
    block_size: u64,
    out: &mut Vec<u8>,
) -> Result<(), Error> {
    let mut rest = entries;
    while !rest.is_empty() {
        let mut used = 0;
        let fit = rest
            .iter()
            .take_while(|entry| {
                used += (DirentRaw::SIZE + entry.name.len()) as u64;
                used <= block_size
            })
            .count();
        let (block, later) = rest.split_at(fit.max(1));
        rest = later;
        let start = out.len();
        directory_block(block, out)?;
        if !rest.is_empty() {
            out.resize(start + block_size as usize, 0);
        }
    }
    Ok(())
}

fn directory_block(entries: &[DirEntry<'_>], out: &mut Vec<u8>) -> Result<(), Error> {
    let mut name_offset = entries.len() * DirentRaw::SIZE;
    for entry in entries {
        narrow(
            "length of a file name",
            entry.name.len() as u64,
            NAME_MAX as u64,
        )?;
        let raw = DirentRaw {
            nid: entry.nid.0.into(),
            name_offset: (narrow("name offset", name_offset as u64, u64::from(u16::MAX))? as u16)
                .into(),
            file_type: entry.file_type as u8,
            reserved: 0,
        };
        out.extend_from_slice(raw.as_bytes());
        name_offset += entry.name.len();
    }
    for entry in entries {
        out.extend_from_slice(entry.name);
    }
    Ok(())
}

/// Appends one entry of the prefetch table.
///
/// # Errors
/// [`Error::TooLarge`] if the nid does not fit 32 bits.
pub fn prefetch(nid: crate::Nid, out: &mut Vec<u8>) -> Result<(), Error> {
    let nid = narrow("nid in the prefetch table", nid.0, u64::from(u32::MAX))? as u32;
    out.extend_from_slice(&nid.to_le_bytes());
    Ok(())
}

/// The number that directory entries use for the type in a mode.
pub fn file_type(mode: u32) -> FileType {
    FileType::from_mode(mode).unwrap_or(FileType::Unknown)
}

/// `value` if it is at most `limit`.
pub(crate) fn narrow(what: &'static str, value: u64, limit: u64) -> Result<u64, Error> {
    if value <= limit {
        Ok(value)
    } else {
        Err(Error::TooLarge { what, value, limit })
    }
}

fn padded(id: &str) -> Result<[u8; 64], Error> {
    narrow("length of a blob id", id.len() as u64, 64)?;
    let mut field = [0; 64];
    for (to, from) in field.iter_mut().zip(id.bytes()) {
        *to = from;
    }
    Ok(field)
}
