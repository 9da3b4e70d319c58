//! A small bootstrap of our own with one of everything: long directories, hard links, link targets, devices,
//! attributes, files of no, one and several chunks, contiguous or not, a prefetch table.

use rafs_format::encode::{self, InodeFields};
use rafs_format::layout::{Allocator, Placement, Regions, chunk_format, map_devices};
use rafs_format::{
    BlobFeatures, BlobId, BlobInfo, ChunkFlags, ChunkPointer, ChunkRecord, Compressor, DeviceSlot,
    Digester, DirEntry, FileType, Layout, Nid, SuperFlags, Superblock,
};

pub const CHUNK_SIZE: u32 = 0x1000;
const CHUNKS: u32 = 6;

enum Content {
    Dir(Vec<(Vec<u8>, usize)>),
    Regular { size: u64, chunks: Vec<u32> },
    Symlink(Vec<u8>),
    Device(u32),
}

struct Node {
    mode: u32,
    nlink: u32,
    xattrs: Vec<(&'static [u8], &'static [u8])>,
    content: Content,
    parent: usize,
    place: Placement,
}

impl Node {
    fn new(mode: u32, nlink: u32, content: Content) -> Self {
        let place = Placement {
            offset: 0,
            data_address: 0,
            inline: false,
        };
        Self {
            mode,
            nlink,
            xattrs: Vec::new(),
            content,
            parent: 0,
            place,
        }
    }

    fn head(&self) -> u64 {
        encode::INODE_SIZE + u64::from(encode::xattr_size(self.xattrs.iter().copied()).unwrap())
    }

    fn size(&self) -> u64 {
        match &self.content {
            Content::Dir(names) => {
                encode::directory_size(sorted(names, 0, 0).iter().map(|(name, _)| name.len()), 4096)
            }
            Content::Regular { size, .. } => *size,
            Content::Symlink(target) => target.len() as u64,
            Content::Device(_) => 0,
        }
    }
}

fn sorted(names: &[(Vec<u8>, usize)], this: usize, parent: usize) -> Vec<(Vec<u8>, usize)> {
    let dots = [(b".".to_vec(), this), (b"..".to_vec(), parent)];
    let mut all: Vec<_> = names.iter().cloned().chain(dots).collect();
    all.sort();
    all
}

fn nodes() -> Vec<Node> {
    let name = |text: &str| text.as_bytes().to_vec();
    let regular = |size, chunks: &[u32]| Content::Regular {
        size,
        chunks: chunks.to_vec(),
    };
    let long = (0..120)
        .map(|i| {
            (
                format!("a-rather-long-name-for-a-file-number-{i:04}").into_bytes(),
                5,
            )
        })
        .collect();
    let root = vec![
        (name("-first"), 6),
        (name("contiguous"), 2),
        (name("device"), 4),
        (name("link"), 3),
        (name("long"), 1),
        (name("other"), 7),
        (name("same"), 2),
        (name("sub"), 8),
    ];
    let mut nodes = vec![
        Node::new(0o040_755, 4, Content::Dir(root)),
        Node::new(0o040_700, 2, Content::Dir(long)),
        Node::new(0o100_644, 2, regular(3 * 4096 - 1, &[0, 1, 2])),
        Node::new(0o120_777, 1, Content::Symlink(name("some/where/else"))),
        Node::new(0o020_666, 1, Content::Device(0x103)),
        Node::new(0o100_600, 120, regular(0, &[])),
        Node::new(0o104_755, 1, regular(4096 + 5, &[3, 5])),
        Node::new(0o100_644, 1, regular(7, &[4])),
        Node::new(0o041_777, 2, Content::Dir(vec![])),
    ];
    nodes[6].xattrs = vec![(b"security.capability", b"\x01\0\0\x02"), (b"user.a", b"")];
    nodes[8].xattrs = vec![(b"system.posix_acl_default", b"acl")];
    nodes
}

fn place(nodes: &mut [Node], dir: usize, allocator: &mut Allocator) {
    nodes[dir].place = allocator.data(nodes[dir].head(), nodes[dir].size());
    let Content::Dir(names) = &nodes[dir].content else {
        panic!("not a directory")
    };
    let mut subdirs = Vec::new();
    for (_, child) in sorted(&names.clone(), dir, dir) {
        let node = &nodes[child];
        let (head, size) = (node.head(), node.size());
        let offset = match &node.content {
            Content::Dir(_) => {
                if child != dir {
                    subdirs.push(child);
                }
                continue;
            }
            _ if node.place.offset != 0 => continue,
            Content::Regular { chunks, .. } => allocator.regular(head, chunks.len() as u64),
            Content::Device(_) => allocator.special(head),
            Content::Symlink(_) => {
                nodes[child].place = allocator.data(head, size);
                continue;
            }
        };
        nodes[child].place.offset = offset;
    }
    for child in subdirs {
        nodes[child].parent = dir;
        place(nodes, child, allocator);
    }
}

fn record(index: u32) -> ChunkRecord {
    let size = [4096, 4096, 4095, 4096, 7, 5][index as usize];
    ChunkRecord {
        digest: [index as u8; 32],
        blob_index: 0,
        flags: ChunkFlags::HAS_CRC32,
        compressed_size: size,
        uncompressed_size: size,
        compressed_offset: u64::from(index) * 4096,
        uncompressed_offset: u64::from(index) * 4096,
        file_offset: 0,
        index,
        crc32: 1,
    }
}

fn blob() -> BlobInfo {
    BlobInfo {
        chunk_count: CHUNKS,
        features: BlobFeatures::ALIGNED | BlobFeatures::CAP_TAR_TOC,
        compressed_size: 30000,
        uncompressed_size: 6 * 4096,
        meta_offset: 25000,
        meta_compressed_size: 96,
        meta_uncompressed_size: 96,
        ..BlobInfo::new(
            BlobId::new("b".repeat(64)).unwrap(),
            CHUNK_SIZE,
            Compressor::Zstd,
            Digester::Blake3,
        )
    }
}

fn nid(node: &Node) -> Nid {
    Nid(node.place.offset / Nid::SLOT_SIZE)
}

fn put(file: &mut [u8], offset: u64, bytes: &[u8]) {
    file[offset as usize..][..bytes.len()].copy_from_slice(bytes);
}

fn write_node(file: &mut [u8], nodes: &[Node], this: usize, meta: u64) {
    let node = &nodes[this];
    let size = node.size();
    let (mut layout, mut u, mut flat, mut indexes) = (Layout::FlatPlain, 0, Vec::new(), Vec::new());
    match &node.content {
        Content::Device(rdev) => u = *rdev,
        Content::Symlink(target) => flat = target.clone(),
        Content::Dir(names) => {
            let all = sorted(names, this, node.parent);
            let entries: Vec<_> = all
                .iter()
                .map(|(name, child)| DirEntry {
                    name,
                    nid: nid(&nodes[*child]),
                    file_type: FileType::from_mode(nodes[*child].mode).unwrap(),
                })
                .collect();
            encode::directory(&entries, 4096, &mut flat).unwrap();
            assert_eq!(flat.len() as u64, size);
        }
        Content::Regular { size, chunks } => {
            let pointers: Vec<_> = chunks
                .iter()
                .map(|&index| ChunkPointer {
                    blob_index: 0,
                    index,
                    uncompressed_offset: u64::from(index) * 4096,
                })
                .collect();
            for pointer in &pointers {
                encode::chunk_index(pointer, 12, &mut indexes).unwrap();
            }
            layout = Layout::ChunkBased;
            u = chunk_format(*size, CHUNK_SIZE, rafs_format::BLOCK_SIZE, &pointers);
        }
    }
    let is_flat = matches!(node.content, Content::Dir(_) | Content::Symlink(_));
    if is_flat {
        layout = if node.place.inline {
            Layout::FlatInline
        } else {
            Layout::FlatPlain
        };
        u = ((node.place.data_address + meta) / 4096) as u32;
    }
    let mut bytes = Vec::new();
    let fields = InodeFields {
        mode: node.mode,
        nlink: node.nlink,
        size,
        uid: 1000,
        gid: 70000,
        mtime: -5,
        mtime_nsec: 999_999_999,
        ino: this as u32 + 1,
        implied: this == 8,
        layout,
        u,
        xattr_size: (node.head() - encode::INODE_SIZE) as u32,
    };
    encode::inode(&fields, &mut bytes).unwrap();
    encode::xattrs(node.xattrs.iter().copied(), &mut bytes).unwrap();
    let tail = if node.place.inline {
        flat.split_off(flat.len() / 4096 * 4096)
    } else {
        Vec::new()
    };
    bytes.extend(tail);
    if layout == Layout::ChunkBased {
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes.extend(indexes);
    }
    put(file, meta + node.place.offset, &bytes);
    if is_flat && !flat.is_empty() {
        put(file, meta + node.place.data_address, &flat);
    }
}

/// The bytes of the bootstrap.
pub fn bootstrap() -> Vec<u8> {
    let mut nodes = nodes();
    let mut allocator = Allocator::new();
    place(&mut nodes, 0, &mut allocator);
    let regions = Regions::new(1, 2);
    let chunk_table = (regions.meta + allocator.end()).next_multiple_of(4096);
    let len = (chunk_table + u64::from(CHUNKS) * encode::CHUNK_RECORD_SIZE).next_multiple_of(4096);
    let mut file = vec![0; len as usize];
    let superblock = Superblock {
        block_bits: 12,
        root: nid(&nodes[0]),
        inos: 9 + 120,
        blocks: 6,
        meta_blkaddr: (regions.meta / 4096) as u32,
        extra_devices: 1,
        flags: SuperFlags::COMPRESSION_ZSTD
            | SuperFlags::HASH_BLAKE3
            | SuperFlags::EXPLICIT_UID_GID
            | SuperFlags::HAS_XATTR
            | SuperFlags::ENCRYPTION_NONE,
        chunk_size: CHUNK_SIZE,
        blob_table_offset: regions.blob_table,
        blob_table_size: 256,
        chunk_table_offset: chunk_table,
        chunk_table_size: u64::from(CHUNKS) * encode::CHUNK_RECORD_SIZE,
        prefetch_table_offset: regions.prefetch_table,
        prefetch_table_size: 8,
    };
    let mut head = Vec::new();
    encode::superblock(&superblock, &mut head).unwrap();
    encode::ext_superblock(&superblock, &mut head);
    let mapped_blkaddr = map_devices(len, rafs_format::BLOCK_SIZE, [6]).unwrap()[0];
    encode::device(
        &DeviceSlot {
            id: "b".repeat(64),
            blocks: 6,
            mapped_blkaddr,
        },
        &mut head,
    )
    .unwrap();
    put(&mut file, 1024, &head);
    let mut tables = Vec::new();
    encode::blob_info(&blob(), &mut tables);
    encode::prefetch(nid(&nodes[2]), &mut tables).unwrap();
    encode::prefetch(nid(&nodes[1]), &mut tables).unwrap();
    put(&mut file, regions.blob_table, &tables);
    for this in 0..nodes.len() {
        write_node(&mut file, &nodes, this, regions.meta);
    }
    let mut chunks = Vec::new();
    for index in 0..CHUNKS {
        encode::chunk_record(&record(index), &mut chunks);
    }
    put(&mut file, chunk_table, &chunks);
    file
}
