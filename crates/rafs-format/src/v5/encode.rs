//! Appenders for the on-disk records of a v5 bootstrap.

use zerocopy::IntoBytes as _;

use super::{ALIGNMENT, EXT_BLOB_SIZE, InodeFlags, SUPERBLOCK_SIZE, Superblock, VERSION};
use crate::raw::{ExtBlobV5Raw, InodeV5Raw, SuperblockV5Raw};
use crate::superblock::MAGIC_V5;
use crate::{BlobInfo, ChunkRecord, Digest, Error, FileType, encode};

/// Bytes of an inode without what follows it.
pub const INODE_SIZE: u64 = InodeV5Raw::SIZE as u64;

const _: () = assert!(EXT_BLOB_SIZE == ExtBlobV5Raw::SIZE as u64);

/// Appends zeros up to a multiple of 8.
fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(ALIGNMENT as usize), 0);
}

/// Appends the 8192 bytes of the superblock.
pub fn superblock(superblock: &Superblock, out: &mut Vec<u8>) {
    let raw = SuperblockV5Raw {
        magic: MAGIC_V5.into(),
        version: VERSION.into(),
        size: (SUPERBLOCK_SIZE as u32).into(),
        block_size: superblock.chunk_size.into(),
        flags: superblock.flags.bits().into(),
        inodes_count: superblock.inodes_count.into(),
        inode_table_offset: superblock.inode_table_offset.into(),
        prefetch_table_offset: superblock.prefetch_table_offset.into(),
        blob_table_offset: superblock.blob_table_offset.into(),
        inode_table_entries: superblock.inode_table_entries.into(),
        prefetch_table_entries: superblock.prefetch_table_entries.into(),
        blob_table_size: superblock.blob_table_size.into(),
        ext_blob_table_entries: superblock.ext_blob_table_entries.into(),
        ext_blob_table_offset: superblock.ext_blob_table_offset.into(),
    };
    let start = out.len();
    out.extend_from_slice(raw.as_bytes());
    out.resize(start + SUPERBLOCK_SIZE as usize, 0);
}

/// Appends a table of 32-bit numbers, padded to a multiple of 8: the inode table or the prefetch table.
pub fn numbers(numbers: impl IntoIterator<Item = u32>, out: &mut Vec<u8>) {
    for number in numbers {
        out.extend_from_slice(&number.to_le_bytes());
    }
    pad(out);
}

/// Appends the blob table: for each blob the range of bytes to fetch first (offset and size, 32 bits each) and its id,
/// a NUL between blobs, zeros up to a multiple of 8.
pub fn blob_table(blobs: &[BlobInfo], out: &mut Vec<u8>) {
    for (i, blob) in blobs.iter().enumerate() {
        if i > 0 {
            out.push(0);
        }
        out.extend_from_slice(&0_u32.to_le_bytes());
        out.extend_from_slice(&blob.readahead_size.to_le_bytes());
        out.extend_from_slice(blob.id.as_str().as_bytes());
    }
    pad(out);
}

/// Appends the 64 bytes of an extended blob table entry: chunk count and features (32 bits each), uncompressed size
/// and compressed size (64 bits each), zeros.
pub fn ext_blob(blob: &BlobInfo, out: &mut Vec<u8>) {
    let raw = ExtBlobV5Raw {
        chunk_count: blob.chunk_count.into(),
        features: blob.features.bits().into(),
        uncompressed_size: blob.uncompressed_size.into(),
        compressed_size: blob.compressed_size.into(),
        reserved: [0; 40],
    };
    out.extend_from_slice(raw.as_bytes());
}

/// What an inode says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InodeFields<'a> {
    /// See [`super::Inode::digest`].
    pub digest: Digest,
    /// Inode number of the parent directory, 0 for the root.
    pub parent: u32,
    /// Inode number.
    pub ino: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Type and permission bits, as in `st_mode`.
    pub mode: u32,
    /// Bytes of data; of a directory what [`directory_size`] says.
    pub size: u64,
    /// Names of the inode; for a directory 2 and its child directories.
    pub nlink: u32,
    /// Index of a directory's first child, 0 for all else.
    pub child_index: u32,
    /// Children of a directory, chunks of a regular file.
    pub child_count: u32,
    /// Device number of a device, 0 for all else.
    pub rdev: u32,
    /// Modification time in seconds.
    pub mtime: i64,
    /// Nanoseconds of the modification time.
    pub mtime_nsec: u32,
    /// Whether it is a directory that exists only because an entry below it does.
    pub implied: bool,
    /// The name; `/` for the root.
    pub name: &'a [u8],
    /// The target of a symbolic link, else empty.
    pub target: &'a [u8],
}

/// The size that a directory shows: 8 bytes and the name for each child, in whole blocks of 4096, at least one.
pub fn directory_size(name_lengths: impl IntoIterator<Item = usize>) -> u64 {
    let size: u64 = name_lengths.into_iter().map(|len| len as u64 + 8).sum();
    size.max(1).next_multiple_of(4096)
}

/// Appends an inode, its name, target and attributes, and its chunk records.
///
/// # Errors
/// [`Error::TooLarge`] if a name, a target or an attribute is longer than readers accept;
/// [`Error::XattrNamespace`] for an attribute in an unknown namespace.
pub fn inode<'a>(
    fields: &InodeFields<'_>,
    xattrs: impl IntoIterator<Item = (&'a [u8], &'a [u8])> + Clone,
    chunks: impl IntoIterator<Item = ChunkRecord>,
    out: &mut Vec<u8>,
) -> Result<(), Error> {
    // What v6 can hold is what builders accept: the same limits, and the same namespaces.
    encode::xattr_size(xattrs.clone())?;
    let mut pairs: Vec<u8> = Vec::new();
    for (name, value) in xattrs {
        let size = name.len() + 1 + value.len();
        pairs.extend_from_slice(&(size as u32).to_le_bytes());
        pairs.extend_from_slice(name);
        pairs.push(0);
        pairs.extend_from_slice(value);
    }
    let narrow = |what, len: usize| {
        u16::try_from(len).map_err(|_| Error::TooLarge {
            what,
            value: len as u64,
            limit: u16::MAX.into(),
        })
    };
    let file_type = encode::file_type(fields.mode);
    let mut flags = InodeFlags::empty();
    flags.set(InodeFlags::SYMLINK, file_type == FileType::Symlink);
    flags.set(
        InodeFlags::HARDLINK,
        fields.nlink > 1 && file_type != FileType::Directory,
    );
    flags.set(InodeFlags::XATTR, !pairs.is_empty());
    let attributes = pairs.len().next_multiple_of(ALIGNMENT as usize) as u64;
    let raw = InodeV5Raw {
        digest: fields.digest,
        parent: u64::from(fields.parent).into(),
        ino: u64::from(fields.ino).into(),
        uid: fields.uid.into(),
        gid: fields.gid.into(),
        projid: 0.into(),
        mode: fields.mode.into(),
        size: fields.size.into(),
        blocks: (fields.size.saturating_add(attributes))
            .div_ceil(512)
            .into(),
        flags: flags.bits().into(),
        nlink: fields.nlink.into(),
        child_index: fields.child_index.into(),
        child_count: fields.child_count.into(),
        name_size: narrow("the length of a name", fields.name.len())?.into(),
        symlink_size: narrow("the length of a link target", fields.target.len())?.into(),
        rdev: fields.rdev.into(),
        mtime_nsec: fields.mtime_nsec.into(),
        mtime: fields.mtime.cast_unsigned().into(),
        implied: u8::from(fields.implied),
        reserved: [0; 7],
    };
    out.extend_from_slice(raw.as_bytes());
    for piece in [fields.name, fields.target] {
        out.extend_from_slice(piece);
        pad(out);
    }
    if !pairs.is_empty() {
        out.extend_from_slice(&(pairs.len() as u64).to_le_bytes());
        out.extend_from_slice(&pairs);
        pad(out);
    }
    for chunk in chunks {
        encode::chunk_record(&chunk, out);
    }
    Ok(())
}
