//! Records as they lie on disk. All fields are little-endian and unaligned, so any bytes of the right length are a
//! record; whether they make sense is decided where a record is turned into a validated type.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

macro_rules! record {
    ($(#[$doc:meta])* $name:ident, $size:literal { $($field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
        #[repr(C)]
        pub(crate) struct $name { $(pub(crate) $field: $type,)* }

        impl $name {
            /// Length on disk, in bytes.
            pub(crate) const SIZE: usize = $size;
        }

        const _: () = assert!(size_of::<$name>() == $name::SIZE);
    };
}

record! {
    /// EROFS superblock, at byte 1024.
    SuperblockRaw, 128 {
        magic: U32,
        checksum: U32,
        feature_compat: U32,
        block_bits: u8,
        extra_slots: u8,
        root_nid: U16,
        inos: U64,
        build_time: U64,
        build_time_nsec: U32,
        blocks: U32,
        meta_blkaddr: U32,
        xattr_blkaddr: U32,
        uuid: [u8; 16],
        volume_name: [u8; 16],
        feature_incompat: U32,
        compression: U16,
        extra_devices: U16,
        device_slot_offset: U16,
        reserved: [u8; 38],
    }
}

record! {
    /// RAFS extension of the superblock, at byte 1152.
    ExtSuperblockRaw, 256 {
        flags: U64,
        blob_table_offset: U64,
        blob_table_size: U32,
        chunk_size: U32,
        chunk_table_offset: U64,
        chunk_table_size: U64,
        prefetch_table_offset: U64,
        prefetch_table_size: U32,
        padding: U32,
        reserved: [u8; 200],
    }
}

record! {
    /// EROFS device slot, from byte 1408.
    DeviceSlotRaw, 128 {
        tag: [u8; 64],
        blocks: U32,
        mapped_blkaddr: U32,
        reserved: [u8; 56],
    }
}

record! {
    /// Blob table entry.
    BlobInfoRaw, 256 {
        id: [u8; 64],
        index: U32,
        chunk_size: U32,
        chunk_count: U32,
        compressor: U32,
        digester: U32,
        features: U32,
        compressed_size: U64,
        uncompressed_size: U64,
        toc_size: U32,
        meta_compressor: U32,
        meta_offset: U64,
        meta_compressed_size: U64,
        meta_uncompressed_size: U64,
        toc_digest: [u8; 32],
        meta_digest: [u8; 32],
        meta_size: U64,
        cipher_iv: [u8; 8],
        cipher: U32,
        reserved: [u8; 36],
    }
}

record! {
    /// Compact inode.
    InodeCompactRaw, 32 {
        format: U16,
        xattr_icount: U16,
        mode: U16,
        nlink: U16,
        size: U32,
        reserved: U32,
        u: U32,
        ino: U32,
        uid: U16,
        gid: U16,
        reserved2: U32,
    }
}

record! {
    /// Extended inode. The first of the reserved bytes says that a directory is implied; readers of others ignore it.
    InodeExtendedRaw, 64 {
        format: U16,
        xattr_icount: U16,
        mode: U16,
        padding: U16,
        size: U64,
        u: U32,
        ino: U32,
        uid: U32,
        gid: U32,
        mtime: U64,
        mtime_nsec: U32,
        nlink: U32,
        implied: u8,
        reserved: [u8; 15],
    }
}

record! {
    /// Directory entry; its name lies further on in the block.
    DirentRaw, 12 {
        nid: U64,
        name_offset: U16,
        file_type: u8,
        reserved: u8,
    }
}

record! {
    /// Head of an xattr area.
    XattrHeaderRaw, 12 {
        name_filter: U32,
        shared_count: u8,
        reserved: [u8; 7],
    }
}

record! {
    /// One xattr; name suffix and value follow.
    XattrEntryRaw, 4 {
        name_len: u8,
        name_index: u8,
        value_size: U16,
    }
}

record! {
    /// One chunk of a regular file.
    ChunkIndexRaw, 8 {
        index_low: U16,
        device: u8,
        index_high: u8,
        blkaddr: U32,
    }
}

record! {
    /// Chunk table entry.
    ChunkRecordRaw, 80 {
        digest: [u8; 32],
        blob_index: U32,
        flags: U32,
        compressed_size: U32,
        uncompressed_size: U32,
        compressed_offset: U64,
        uncompressed_offset: U64,
        file_offset: U64,
        index: U32,
        crc32: U32,
    }
}

record! {
    /// Header of a blob's chunk table, without the reserved bytes and the second magic.
    MetaHeaderRaw, 60 {
        magic: U32,
        features: U32,
        compressor: U32,
        entries: U32,
        offset: U64,
        compressed_size: U64,
        uncompressed_size: U64,
        contexts_offset: U64,
        contexts_size: U64,
        contexts_count: U32,
    }
}

record! {
    /// Chunk record of 16 bytes.
    MetaChunkV1Raw, 16 {
        uncompressed: U64,
        compressed: U64,
    }
}

record! {
    /// Chunk record of 24 bytes.
    MetaChunkV2Raw, 24 {
        uncompressed: U64,
        compressed: U64,
        data: U64,
    }
}

record! {
    /// Where a batch lies.
    BatchContextRaw, 40 {
        compressed_size: U32,
        uncompressed_size: U32,
        reserved: [u8; 32],
    }
}

record! {
    /// Where a slice of a gzip stream lies and how to enter it.
    ZranContextRaw, 40 {
        in_offset: U64,
        out_offset: U64,
        dictionary_offset: U64,
        in_len: U32,
        out_len: U32,
        dictionary_size: U32,
        byte: u8,
        bits: u8,
        reserved: U16,
    }
}

record! {
    /// Entry of a table of contents.
    TocEntryRaw, 128 {
        flags: U32,
        reserved: U32,
        name: [u8; 16],
        digest: [u8; 32],
        compressed_offset: U64,
        compressed_size: U64,
        uncompressed_size: U64,
        reserved2: [u8; 48],
    }
}

record! {
    /// Superblock of v5, at byte 0, without its reserved bytes.
    SuperblockV5Raw, 80 {
        magic: U32,
        version: U32,
        size: U32,
        block_size: U32,
        flags: U64,
        inodes_count: U64,
        inode_table_offset: U64,
        prefetch_table_offset: U64,
        blob_table_offset: U64,
        inode_table_entries: U32,
        prefetch_table_entries: U32,
        blob_table_size: U32,
        ext_blob_table_entries: U32,
        ext_blob_table_offset: U64,
    }
}

record! {
    /// Entry of v5's extended blob table.
    ExtBlobV5Raw, 64 {
        chunk_count: U32,
        features: U32,
        uncompressed_size: U64,
        compressed_size: U64,
        reserved: [u8; 40],
    }
}

record! {
    /// Inode of v5; name, link target, xattrs and chunk records follow. The first of the reserved bytes says that a
    /// directory is implied, as in v6.
    InodeV5Raw, 128 {
        digest: [u8; 32],
        parent: U64,
        ino: U64,
        uid: U32,
        gid: U32,
        projid: U32,
        mode: U32,
        size: U64,
        blocks: U64,
        flags: U64,
        nlink: U32,
        child_index: U32,
        child_count: U32,
        name_size: U16,
        symlink_size: U16,
        rdev: U32,
        mtime_nsec: U32,
        mtime: U64,
        implied: u8,
        reserved: [u8; 7],
    }
}

/// The record at the head of `bytes`; `None` if they are too few.
pub(crate) fn read<T: FromBytes + Immutable + KnownLayout + Unaligned>(bytes: &[u8]) -> Option<&T> {
    T::ref_from_prefix(bytes).ok().map(|(record, _)| record)
}

/// The record at byte `offset` of `bytes`; `None` if it does not lie within.
pub(crate) fn read_at<T: FromBytes + Immutable + KnownLayout + Unaligned>(
    bytes: &[u8],
    offset: u64,
) -> Option<&T> {
    read(bytes.get(usize::try_from(offset).ok()?..)?)
}

/// `size` bytes from `offset`; `None` if they do not all lie within `bytes`.
pub(crate) fn slice(bytes: &[u8], offset: u64, size: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(usize::try_from(size).ok()?)?;
    bytes.get(start..end)
}

/// Text in a field that is filled up with NULs.
pub(crate) fn text(field: &[u8]) -> Option<&str> {
    let end = field
        .iter()
        .rposition(|&b| b != 0)
        .map_or(0, |last| last + 1);
    std::str::from_utf8(field.get(..end)?).ok()
}

/// `value` rounded up to a multiple of `to`, a power of two.
pub(crate) const fn up(value: u64, to: u64) -> Option<u64> {
    match value.checked_add(to - 1) {
        Some(sum) => Some(sum & !(to - 1)),
        None => None,
    }
}
