//! A small v5 bootstrap with one of everything, made record by record.
//!
//! | Index | Path | Inode |
//! |---|---|---|
//! | 1 | `/` | directory |
//! | 2 | `/-first` | regular, two chunks, attributes |
//! | 3 | `/device` | character device |
//! | 4 | `/link` | symbolic link |
//! | 5 | `/one` | regular, one chunk, another name is `/sub/two` |
//! | 6 | `/sub` | implied directory |
//! | 7 | `/sub/empty` | empty directory |
//! | 8 | `/sub/two` | as 5 |
//! | 9 | `/sub/zero` | empty regular file |

use rafs_format::v5::encode::{self, InodeFields};
use rafs_format::v5::{SUPERBLOCK_SIZE, Superblock};
use rafs_format::{
    BlobFeatures, BlobId, BlobInfo, ChunkFlags, ChunkRecord, Compressor, Digest, Digester,
    SuperFlags,
};

pub const CHUNK_SIZE: u32 = 4096;

/// A digest of little strength: enough to see a changed byte, and nothing that this crate would depend on.
pub fn hash(_: Digester, bytes: &[u8]) -> Digest {
    let mut state = 0xcbf2_9ce4_8422_2325_u64;
    let mut digest = [0; 32];
    for (byte, at) in digest.iter_mut().zip(0_u8..) {
        for &next in bytes.iter().chain([&at]) {
            state = (state ^ u64::from(next)).wrapping_mul(0x100_0000_01b3);
        }
        *byte = (state >> 32) as u8;
    }
    digest
}

pub fn blob(id: &str, index: u32, chunk_count: u32, sizes: (u64, u64)) -> BlobInfo {
    BlobInfo {
        index,
        chunk_count,
        features: BlobFeatures::CAP_TAR_TOC | BlobFeatures::HAS_TAR_HEADER,
        compressed_size: sizes.0,
        uncompressed_size: sizes.1,
        readahead_size: index * 100,
        ..BlobInfo::new(
            BlobId::new(id).unwrap(),
            CHUNK_SIZE,
            Compressor::Zstd,
            Digester::Blake3,
        )
    }
}

/// Blob, index, stored and full offset and size, offset in the file.
fn chunk(
    blob_index: u32,
    index: u32,
    stored: (u64, u32),
    full: (u64, u32),
    file: u64,
) -> ChunkRecord {
    let mut flags = ChunkFlags::HAS_CRC32;
    flags.set(ChunkFlags::COMPRESSED, stored.1 != full.1);
    ChunkRecord {
        digest: hash(Digester::Blake3, &[blob_index as u8, index as u8]),
        blob_index,
        flags,
        compressed_size: stored.1,
        uncompressed_size: full.1,
        compressed_offset: stored.0,
        uncompressed_offset: full.0,
        file_offset: file,
        index,
        crc32: 7,
    }
}

struct Builder {
    inodes: Vec<u8>,
    offsets: [u32; 9],
    start: u64,
}

impl Builder {
    fn put(
        &mut self,
        index: u32,
        fields: InodeFields<'_>,
        xattrs: &[(&[u8], &[u8])],
        chunks: &[ChunkRecord],
    ) {
        let at = self.start + self.inodes.len() as u64;
        self.offsets[index as usize - 1] = (at / 8) as u32;
        encode::inode(
            &fields,
            xattrs.iter().copied(),
            chunks.iter().copied(),
            &mut self.inodes,
        )
        .unwrap();
    }
}

fn fields(ino: u32, parent: u32, mode: u32, name: &[u8]) -> InodeFields<'_> {
    InodeFields {
        digest: hash(Digester::Blake3, b""),
        parent,
        ino,
        uid: 1000,
        gid: 70000,
        mode,
        size: 0,
        nlink: 1,
        child_index: 0,
        child_count: 0,
        rdev: 0,
        mtime: -5,
        mtime_nsec: 999_999_999,
        implied: false,
        name,
        target: b"",
    }
}

fn digest(parts: &[Digest]) -> Digest {
    hash(Digester::Blake3, parts.as_flattened())
}

/// The bootstrap.
pub fn bootstrap() -> Vec<u8> {
    let blobs = [
        blob("first", 0, 3, (700, 5000)),
        blob(&"b".repeat(64), 1, 1, (560, 48)),
    ];
    let mut table = Vec::new();
    encode::blob_table(&blobs, &mut table);
    let prefetch = SUPERBLOCK_SIZE + 40;
    let blob_table = prefetch + 8;
    let ext = blob_table + table.len() as u64;
    let superblock = Superblock {
        chunk_size: CHUNK_SIZE,
        flags: SuperFlags::COMPRESSION_ZSTD
            | SuperFlags::HASH_BLAKE3
            | SuperFlags::EXPLICIT_UID_GID
            | SuperFlags::HAS_XATTR,
        inodes_count: 8,
        inode_table_offset: SUPERBLOCK_SIZE,
        inode_table_entries: 9,
        prefetch_table_offset: prefetch,
        prefetch_table_entries: 1,
        blob_table_offset: blob_table,
        blob_table_size: table.len() as u32,
        ext_blob_table_offset: ext,
        ext_blob_table_entries: 2,
    };
    let mut builder = Builder {
        inodes: Vec::new(),
        offsets: [0; 9],
        start: ext + 128,
    };
    let none = hash(Digester::Blake3, b"");
    let two = [
        chunk(0, 0, (0, 100), (0, 4096), 0),
        chunk(0, 2, (150, 38), (4946, 54), 4096),
    ];
    let one = [chunk(1, 0, (0, 48), (0, 48), 0)];
    let first = digest(&[two[0].digest, two[1].digest]);
    let linked = digest(&[one[0].digest]);
    let target = hash(Digester::Blake3, b"some/where/else");
    let sub = digest(&[none, linked, none]);
    let regular = |ino, parent, name| InodeFields {
        digest: linked,
        size: 48,
        nlink: 2,
        child_count: 1,
        ..fields(ino, parent, 0o100_600, name)
    };
    let directory = |ino, parent, name, child_index, child_count, directories: u32| InodeFields {
        size: 4096,
        nlink: 2 + directories,
        child_index,
        child_count,
        ..fields(ino, parent, 0o040_755, name)
    };
    builder.put(
        1,
        InodeFields {
            digest: digest(&[first, none, target, linked, sub]),
            ..directory(1, 0, b"/", 2, 5, 1)
        },
        &[],
        &[],
    );
    builder.put(
        2,
        InodeFields {
            digest: first,
            size: 4150,
            child_count: 2,
            ..fields(2, 1, 0o104_755, b"-first")
        },
        &[(b"security.capability", b"\x01\0\0\x02"), (b"user.a", b"")],
        &two,
    );
    builder.put(
        3,
        InodeFields {
            rdev: 0x103,
            ..fields(3, 1, 0o020_666, b"device")
        },
        &[],
        &[],
    );
    builder.put(
        4,
        InodeFields {
            digest: target,
            size: 15,
            target: b"some/where/else",
            ..fields(4, 1, 0o120_777, b"link")
        },
        &[],
        &[],
    );
    builder.put(5, regular(5, 1, b"one"), &[], &one);
    builder.put(
        6,
        InodeFields {
            digest: sub,
            implied: true,
            ..directory(6, 1, b"sub", 7, 3, 1)
        },
        &[],
        &[],
    );
    builder.put(7, directory(7, 6, b"empty", 10, 0, 0), &[], &[]);
    builder.put(8, regular(5, 6, b"two"), &[], &one);
    builder.put(9, fields(9, 6, 0o100_644, b"zero"), &[], &[]);

    let mut out = Vec::new();
    encode::superblock(&superblock, &mut out);
    encode::numbers(builder.offsets, &mut out);
    encode::numbers([5], &mut out);
    out.extend(table);
    blobs
        .iter()
        .for_each(|blob| encode::ext_blob(blob, &mut out));
    out.extend(builder.inodes);
    out
}
