//! Records of the deployed builder (golden file v5-separate.boot), decoded and encoded again.

use rafs_format::v5::encode::{self, InodeFields};
use rafs_format::v5::{Bootstrap, InodeFlags, Superblock};
use rafs_format::{
    BlobFeatures, ChunkFlags, ChunkRecord, Compressor, Digester, Error, FileType, SuperFlags,
    Version, version,
};

use crate::{parse, sample};

const SUPERBLOCK: &str = "5346415200050000002000000000100036000000000000004e010000000000000020000000000000402500000000000040250000000000004f0100000000000048000000010000008825000000000000";
const BLOB_TABLE: &str = "000000000000000062326238626535346563656237373938663165323332613535663037333433663937306533376161323563343663636161643562353539623139626261653263";
const EXT_BLOB: &str = "3e010000000000408129490000000000a0031b0000000000";
/// `/home/user`, a directory with an attribute.
const DIRECTORY: &str = "dbbedd9024d8c49d7829a2ed96b8960b55388c1b9a67c3857165e73d0084a16105000000000000000e00000000000000e8030000e803000000000000c0410000001000000000000009000000000000000400000000000000020000000f0000000200000004000000ffffffff0000000000f1536500000000000000000000000075736572000000000e000000000000000a000000757365722e64697200640000";
/// `/usr/bin/tool2`, a second name.
const LINK: &str = "b9932c808b3fdf231934458dbb6faaecb22e831270051878e6a2e40977a973703f010000000000004101000000000000000000000000000000000000ed890000e0930400000000004a02000000000000020000000000000002000000000000000100000005000000ffffffff0000000000f15365000000000000000000000000746f6f6c32000000d1d761d2f98e2586d1502acad490a4d7b2daeb3fe31d5e5ac1ac9d55801380ae000000001100000023070200e093040014000000000000001400000000000000000000000000000001000000923b18d8";
/// `/bin`, a symbolic link.
const SYMLINK: &str = "a59cc41990f203d7277687d15f53b3df07db60baf6268d8f2dcc9b12a05c378901000000000000000200000000000000000000000000000000000000ffa1000007000000000000000100000000000000010000000000000001000000000000000000000003000700ffffffff0000000000f1536500000000000000000000000062696e00000000007573722f62696e00";

fn bytes(hex: &str) -> Vec<u8> {
    hex::decode(hex).unwrap()
}

/// A bootstrap whose inode 1 is the record given.
fn with_inode(record: &str) -> Vec<u8> {
    let mut file = sample::bootstrap();
    let at = file.len().next_multiple_of(8);
    file.resize(at, 0);
    file.extend(bytes(record));
    file[8192..8196].copy_from_slice(&((at / 8) as u32).to_le_bytes());
    file
}

#[test]
fn the_superblock_reads_and_writes() {
    let expected = Superblock {
        chunk_size: 0x10_0000,
        flags: SuperFlags::COMPRESSION_LZ4
            | SuperFlags::HASH_BLAKE3
            | SuperFlags::EXPLICIT_UID_GID
            | SuperFlags::HAS_XATTR,
        inodes_count: 334,
        inode_table_offset: 8192,
        inode_table_entries: 335,
        prefetch_table_offset: 9536,
        prefetch_table_entries: 0,
        blob_table_offset: 9536,
        blob_table_size: 72,
        ext_blob_table_offset: 9608,
        ext_blob_table_entries: 1,
    };
    let mut file = bytes(SUPERBLOCK);
    assert_eq!(version(&file), Ok(Version::V5));
    file.resize(9672, 0);
    assert_eq!(Superblock::parse(&file), Ok(expected));
    let mut out = Vec::new();
    encode::superblock(&expected, &mut out);
    assert_eq!(out, file[..8192]);
}

#[test]
fn blob_tables_read_and_write() {
    let mut file = bytes(SUPERBLOCK);
    file.resize(9536, 0);
    file.extend(bytes(BLOB_TABLE));
    file.extend(bytes(EXT_BLOB));
    file.resize(9672, 0);
    let bootstrap = parse(&file);
    let [blob] = bootstrap.blobs() else {
        panic!("{:?}", bootstrap.blobs())
    };
    assert_eq!(
        blob.id.as_str(),
        "b2b8be54eceb7798f1e232a55f07343f970e37aa25c46ccaad5b559b19bbae2c"
    );
    assert_eq!(
        (blob.chunk_count, blob.features),
        (318, BlobFeatures::CAP_TAR_TOC)
    );
    assert_eq!(
        (blob.uncompressed_size, blob.compressed_size),
        (4_794_753, 1_770_400)
    );
    assert_eq!(blob.compressor, Compressor::Lz4Block);
    assert_eq!(blob.digester, Digester::Blake3);
    assert!(!blob.has_chunk_table());
    assert_eq!(blob.data_size(), 1_770_400);
    let mut out = Vec::new();
    encode::blob_table(bootstrap.blobs(), &mut out);
    encode::ext_blob(blob, &mut out);
    assert_eq!(out, file[9536..]);
}

#[test]
fn a_directory_reads_and_writes() {
    let file = with_inode(DIRECTORY);
    let bootstrap = parse(&file);
    let inode = bootstrap.inode(1).unwrap();
    assert_eq!((inode.parent, inode.ino, inode.nlink), (5, 14, 2));
    assert_eq!((inode.uid, inode.gid, inode.mode), (1000, 1000, 0o040_700));
    assert_eq!(
        (inode.size, inode.blocks, inode.flags),
        (4096, 9, InodeFlags::XATTR)
    );
    assert_eq!((inode.mtime, inode.mtime_nsec), (1_700_000_000, 0));
    assert_eq!((inode.name, inode.children()), (&b"user"[..], 15..17));
    let xattrs = inode.xattrs().unwrap();
    assert_eq!(
        (&xattrs[0].name[..], xattrs[0].value),
        (&b"user.dir"[..], &b"d"[..])
    );
    let fields = InodeFields {
        digest: inode.digest,
        parent: 5,
        ino: 14,
        uid: 1000,
        gid: 1000,
        mode: 0o040_700,
        size: encode::directory_size([5, 6]),
        nlink: 2,
        child_index: 15,
        child_count: 2,
        rdev: u32::MAX,
        mtime: 1_700_000_000,
        mtime_nsec: 0,
        implied: false,
        name: b"user",
        target: b"",
    };
    let mut out = Vec::new();
    encode::inode(&fields, [(&b"user.dir"[..], &b"d"[..])], [], &mut out).unwrap();
    assert_eq!(hex::encode(out), DIRECTORY);
}

#[test]
fn a_name_of_a_linked_file_reads_and_writes() {
    let file = with_inode(LINK);
    let bootstrap = parse(&file);
    let inode = bootstrap.inode(1).unwrap();
    assert_eq!(inode.file_type, FileType::Regular);
    assert_eq!((inode.parent, inode.ino, inode.nlink), (319, 321, 2));
    assert_eq!((inode.flags, inode.child_count), (InodeFlags::HARDLINK, 1));
    let chunks: Vec<ChunkRecord> = inode.chunks().map(Result::unwrap).collect();
    let chunk = chunks[0];
    assert_eq!(chunk.flags, ChunkFlags::COMPRESSED | ChunkFlags::HAS_CRC32);
    assert_eq!(
        (chunk.compressed_offset, chunk.compressed_size),
        (20, 132_899)
    );
    assert_eq!(
        (chunk.uncompressed_offset, chunk.uncompressed_size),
        (20, 300_000)
    );
    assert_eq!((chunk.index, chunk.crc32), (1, 0xd818_3b92));
    let fields = InodeFields {
        digest: inode.digest,
        parent: 319,
        ino: 321,
        uid: 0,
        gid: 0,
        mode: 0o104_755,
        size: 300_000,
        nlink: 2,
        child_index: 0,
        child_count: 1,
        rdev: u32::MAX,
        mtime: 1_700_000_000,
        mtime_nsec: 0,
        implied: false,
        name: b"tool2",
        target: b"",
    };
    let mut out = Vec::new();
    encode::inode(&fields, [], chunks, &mut out).unwrap();
    assert_eq!(hex::encode(out), LINK);
}

#[test]
fn a_symbolic_link_reads() {
    let file = with_inode(SYMLINK);
    let bootstrap = parse(&file);
    let inode = bootstrap.inode(1).unwrap();
    assert_eq!((inode.name, inode.target), (&b"bin"[..], &b"usr/bin"[..]));
    assert_eq!((inode.size, inode.flags), (7, InodeFlags::SYMLINK));
}

#[test]
fn what_the_format_has_no_room_for_is_refused() {
    let name = vec![b'n'; 65536];
    let file = sample::bootstrap();
    let bootstrap = parse(&file);
    let inode = bootstrap.inode(3).unwrap();
    let fields = InodeFields {
        digest: inode.digest,
        parent: 1,
        ino: 3,
        uid: 0,
        gid: 0,
        mode: inode.mode,
        size: 0,
        nlink: 1,
        child_index: 0,
        child_count: 0,
        rdev: 0,
        mtime: 0,
        mtime_nsec: 0,
        implied: false,
        name: &name,
        target: b"",
    };
    let refused = encode::inode(&fields, [], [], &mut Vec::new());
    assert!(
        matches!(refused, Err(Error::TooLarge { .. })),
        "{refused:?}"
    );
    let fields = InodeFields {
        name: b"n",
        ..fields
    };
    let odd = [(&b"system.odd"[..], &b""[..])];
    let refused = encode::inode(&fields, odd, [], &mut Vec::new());
    assert!(
        matches!(refused, Err(Error::XattrNamespace { .. })),
        "{refused:?}"
    );
}

#[test]
fn versions_are_told_apart() {
    let file = sample::bootstrap();
    assert!(matches!(
        rafs_format::Bootstrap::parse(&file[..]),
        Err(Error::OtherVersion {
            version: Version::V5
        })
    ));
    let mut v6 = vec![0; 4096];
    v6[1024..1028].copy_from_slice(&0xe0f5_e1e2_u32.to_le_bytes());
    assert!(matches!(
        Bootstrap::parse(&v6[..]),
        Err(Error::OtherVersion {
            version: Version::V6
        })
    ));
    assert!(matches!(
        Bootstrap::parse(&[0; 9][..]),
        Err(Error::NotBootstrap { len: 9 })
    ));
}
