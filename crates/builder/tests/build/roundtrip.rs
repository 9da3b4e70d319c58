//! Trees of every shape survive encoding and loading.

use std::collections::BTreeMap;

use bootstrap::Parsed;
use builder::{encode_v5, encode_v6, load_image};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use rafs_format::{
    BlobFeatures, BlobId, BlobInfo, Bootstrap, ChunkFlags, ChunkRecord, Compressor, Digester,
    Version, v5,
};
use tree::{ChunkId, Content, Image, Inode, InodeId, Tree, mode};

/// What a random inode is.
#[derive(Debug, Clone)]
enum Node {
    Directory(BTreeMap<Vec<u8>, Node>),
    Symlink(Vec<u8>),
    Special(u32, u32),
    /// Another name of the file of any type that was met last, or a file if there is none.
    Link,
    /// A file of that size.
    File(u32),
}

/// Chunk size of random images, in bytes.
const CHUNK_SIZE: u32 = 0x1000;

/// What `add` has done so far.
struct State {
    /// Names.
    count: u32,
    /// The file that was met last.
    last: Option<InodeId>,
    chunks: Vec<ChunkRecord>,
    /// Ends of the blob's address spaces.
    stored: u64,
    end: u64,
    /// What chunks are aligned to.
    alignment: u64,
}

impl State {
    fn new(version: Version) -> Self {
        Self {
            count: 0,
            last: None,
            chunks: Vec::new(),
            stored: 0,
            end: 0,
            alignment: if version == Version::V5 { 1 } else { 4096 },
        }
    }

    /// The chunks of a file; now and then they are known ones.
    fn chunks(&mut self, size: u32) -> Box<[ChunkId]> {
        let offsets = (0..size).step_by(CHUNK_SIZE as usize);
        offsets
            .map(|offset| self.chunk(CHUNK_SIZE.min(size - offset)))
            .collect()
    }

    fn chunk(&mut self, size: u32) -> ChunkId {
        let index = self.chunks.len() as u32;
        let known = self.chunks.iter().position(|c| c.uncompressed_size == size);
        if let (Some(known), 0) = (known, self.count % 5) {
            return ChunkId(known as u32);
        }
        let compressed = index.is_multiple_of(3) && size > 1;
        let stored = if compressed { size / 2 } else { size };
        let mut flags = ChunkFlags::HAS_CRC32;
        flags.set(ChunkFlags::COMPRESSED, compressed);
        self.chunks.push(ChunkRecord {
            digest: codec::digest(Digester::Blake3, &index.to_le_bytes()),
            blob_index: 0,
            flags,
            compressed_size: stored,
            uncompressed_size: size,
            compressed_offset: self.stored,
            uncompressed_offset: self.end,
            file_offset: 0,
            index,
            crc32: index + 1,
        });
        self.stored += u64::from(stored);
        self.end += u64::from(size).next_multiple_of(self.alignment);
        ChunkId(index)
    }

    /// An image of the tree and all chunks.
    fn image(self, tree: Tree, version: Version) -> Image {
        let count = self.chunks.len() as u32;
        let mut features = BlobFeatures::CAP_TAR_TOC;
        features.set(BlobFeatures::ALIGNED, version == Version::V6);
        let table = match version {
            Version::V5 => 0,
            Version::V6 => u64::from(count) * 16,
        };
        let blob = BlobInfo {
            chunk_count: count,
            features,
            compressed_size: self.stored + table,
            uncompressed_size: self.end,
            meta_offset: if table == 0 { 0 } else { self.stored },
            meta_compressed_size: table,
            meta_uncompressed_size: table,
            ..BlobInfo::new(
                BlobId::new("b".repeat(64)).unwrap(),
                CHUNK_SIZE,
                Compressor::Zstd,
                Digester::Blake3,
            )
        };
        Image {
            version,
            blobs: if count == 0 { Vec::new() } else { vec![blob] },
            chunks: self.chunks,
            chunk_size: CHUNK_SIZE,
            ..image(tree)
        }
    }
}

/// A random image.
fn random(children: BTreeMap<Vec<u8>, Node>, version: Version) -> Image {
    let mut tree = Tree::new();
    tree.inode_mut(InodeId::ROOT).implied = false;
    let mut state = State::new(version);
    add(&mut tree, InodeId::ROOT, children, &mut state);
    let mut image = state.image(tree, version);
    image.compact().unwrap();
    image
}

/// Chunks without what only one of the files that use them says.
fn chunks(image: &Image) -> Vec<ChunkRecord> {
    let chunk = |chunk: &ChunkRecord| ChunkRecord {
        file_offset: 0,
        ..*chunk
    };
    image.chunks.iter().map(chunk).collect()
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_filter("legal in a name", |byte| *byte != 0 && *byte != b'/');
    vec(byte, 1..=255).prop_filter("not a dot", |name| name != b"." && name != b"..")
}

fn node() -> impl Strategy<Value = Node> {
    let leaf = prop_oneof![
        vec(1..=255_u8, 1..4096).prop_map(Node::Symlink),
        (0..4_usize, any::<u32>()).prop_map(|(kind, rdev)| {
            let kind = [mode::FIFO, mode::CHARACTER, mode::BLOCK, mode::SOCKET][kind];
            let device = kind == mode::CHARACTER || kind == mode::BLOCK;
            Node::Special(kind, if device { rdev } else { 0 })
        }),
        Just(Node::Link),
        (0..3 * CHUNK_SIZE).prop_map(Node::File),
        Just(Node::File(0)),
    ];
    leaf.prop_recursive(6, 300, 60, |inner| {
        btree_map(name(), inner, 0..60).prop_map(Node::Directory)
    })
}

fn add(tree: &mut Tree, parent: InodeId, children: BTreeMap<Vec<u8>, Node>, state: &mut State) {
    for (name, node) in children {
        state.count += 1;
        let link = matches!(node, Node::Link);
        let count = state.count;
        let attributes = |kind: u32, content| Inode {
            mode: kind | (count & 0o7777),
            uid: count.wrapping_mul(77_777),
            gid: count,
            rdev: 0,
            mtime: i64::from(count) - 10,
            mtime_nsec: count,
            implied: false,
            xattrs: count.is_multiple_of(3).then(|| {
                let value = vec![7; count as usize % 50];
                let names = [
                    &b"user.b"[..],
                    b"user.a",
                    b"security.capability",
                    b"trusted.x",
                ];
                Box::new(
                    names
                        .iter()
                        .map(|name| ((*name).into(), value.clone().into()))
                        .collect(),
                )
            }),
            content,
        };
        let (inode, below) = match node {
            Node::Directory(below) => (
                attributes(mode::DIRECTORY, Content::Directory(BTreeMap::new())),
                Some(below),
            ),
            Node::Symlink(target) => (
                attributes(mode::SYMLINK, Content::Symlink(target.into())),
                None,
            ),
            Node::Special(kind, rdev) => (
                Inode {
                    rdev,
                    ..attributes(kind, Content::Special)
                },
                None,
            ),
            Node::File(_) | Node::Link => {
                let size = match node {
                    Node::File(size) => size,
                    _ => 0,
                };
                let content = Content::Regular {
                    size: size.into(),
                    chunks: state.chunks(size),
                };
                (attributes(mode::REGULAR, content), None)
            }
        };
        let id = state
            .last
            .filter(|_| link)
            .unwrap_or_else(|| tree.add(inode));
        if !tree.inode(id).is_directory() {
            state.last = Some(id);
        }
        tree.entries_mut(parent).unwrap().insert(name.into(), id);
        if let Some(below) = below {
            add(tree, id, below, state);
        }
    }
}

fn image(tree: Tree) -> Image {
    Image {
        version: Version::V6,
        tree,
        blobs: Vec::new(),
        chunks: Vec::new(),
        chunk_size: 0x10_0000,
        prefetch: Vec::new(),
        compressor: Compressor::Zstd,
        digester: Digester::Blake3,
        explicit_owners: true,
        tarfs: false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn a_tree_is_the_same_after_encoding_and_loading(children in btree_map(name(), node(), 0..40)) {
        let image = random(children, Version::V6);
        let bootstrap = Bootstrap::parse(encode_v6(&image).unwrap()).unwrap();
        bootstrap.check().unwrap();
        let mut loaded = load_image(&bootstrap).unwrap();
        loaded.compact().unwrap();
        prop_assert_eq!(&loaded.tree, &image.tree);
        prop_assert_eq!(chunks(&loaded), chunks(&image));
        prop_assert_eq!(encode_v6(&loaded).unwrap(), encode_v6(&image).unwrap());
    }

    #[test]
    fn a_tree_is_the_same_after_encoding_and_loading_v5(children in btree_map(name(), node(), 0..40)) {
        let image = random(children, Version::V5);
        let bytes = encode_v5(&image).unwrap();
        let parsed = Parsed::parse(bytes.clone()).unwrap();
        let summary = parsed.check().unwrap();
        prop_assert_eq!(summary.names, image.tree.name_count());
        let mut loaded = parsed.load().unwrap();
        loaded.compact().unwrap();
        prop_assert_eq!(&loaded.tree, &image.tree);
        prop_assert_eq!(chunks(&loaded), chunks(&image));
        prop_assert_eq!(&loaded.blobs, &image.blobs);
        prop_assert_eq!(encode_v5(&loaded).unwrap(), bytes);
        // What readers work on is the same tree, its chunks apart from each other.
        let view = parsed.into_view().unwrap();
        prop_assert_eq!(view.check().unwrap().names, summary.names);
        let mut seen = load_image(&view).unwrap();
        seen.compact().unwrap();
        prop_assert_eq!(&seen.tree, &image.tree);
        prop_assert_eq!(seen.version, Version::V5);
    }

    #[test]
    fn v5_can_say_what_v6_says_of_plain_blobs(children in btree_map(name(), node(), 0..40)) {
        let image = random(children, Version::V6);
        let parsed = Parsed::parse(encode_v5(&image).unwrap()).unwrap();
        parsed.check().unwrap();
        let mut loaded = parsed.load().unwrap();
        loaded.compact().unwrap();
        prop_assert_eq!(&loaded.tree, &image.tree);
        prop_assert_eq!(chunks(&loaded), chunks(&image));
    }
}

fn with_root_entry(name: &[u8], inode: Inode) -> Image {
    let mut tree = Tree::new();
    let id = tree.add(inode);
    tree.entries_mut(InodeId::ROOT)
        .unwrap()
        .insert(name.into(), id);
    image(tree)
}

fn inode(content: Content) -> Inode {
    Inode {
        mode: mode::SYMLINK | 0o777,
        content,
        ..Inode::implied_directory()
    }
}

#[test]
fn what_the_format_cannot_say_is_refused_by_name() {
    let long = with_root_entry(
        b"long-link",
        inode(Content::Symlink(vec![b'x'; 4097].into())),
    );
    let longest = with_root_entry(b"link", inode(Content::Symlink(vec![b'x'; 4096].into())));
    let dots = with_root_entry(b"..", inode(Content::Symlink((*b"x").into())));
    let name = with_root_entry(&[b'n'; 256], inode(Content::Symlink((*b"x").into())));
    let mut xattr = inode(Content::Special);
    xattr.xattrs = Some(Box::new([((*b"odd.name").into(), (*b"").into())].into()));
    let xattr = with_root_entry(b"odd-xattr", xattr);
    let missing = with_root_entry(
        b"no-data",
        inode(Content::Regular {
            size: 5,
            chunks: Box::default(),
        }),
    );
    assert!(encode_v6(&longest).is_ok());
    assert!(encode_v5(&longest).is_ok());
    for (image, path) in [
        (long, "/long-link"),
        (name, "/nnn"),
        (dots, "/.."),
        (xattr, "/odd-xattr"),
        (missing, "/no-data"),
    ] {
        for encoded in [encode_v5(&image), encode_v6(&image)] {
            let text = encoded.unwrap_err().to_string();
            assert!(text.contains(path), "{text}");
        }
    }
}

#[test]
fn v5_refuses_blobs_that_it_has_no_words_for() {
    let image = || {
        let file = BTreeMap::from([(b"f".to_vec(), Node::File(9))]);
        random(file, Version::V6)
    };
    let kinds = [
        (BlobFeatures::BATCH, "in batches"),
        (BlobFeatures::ENCRYPTED, "encrypted"),
        (BlobFeatures::ZRAN, "gzip layer"),
        (BlobFeatures::TARFS, "raw tar"),
    ];
    for (feature, word) in kinds {
        let mut image = image();
        image.blobs[0].features |= feature;
        let text = encode_v5(&image).unwrap_err().to_string();
        assert!(text.contains("blob bbb") && text.contains(word), "{text}");
    }
    let mut two = image();
    two.blobs.push(BlobInfo {
        id: BlobId::new("other").unwrap(),
        index: 1,
        compressor: Compressor::Lz4Block,
        ..two.blobs[0].clone()
    });
    let text = encode_v5(&two).unwrap_err().to_string();
    assert!(
        text.contains("blob other") && text.contains("lz4_block"),
        "{text}"
    );
    two.blobs[1].compressor = Compressor::Zstd;
    two.blobs[1].digester = Digester::Sha256;
    let text = encode_v5(&two).unwrap_err().to_string();
    assert!(
        text.contains("blob other") && text.contains("sha256"),
        "{text}"
    );
}

#[test]
fn v6_refuses_blobs_without_a_chunk_table() {
    let file = BTreeMap::from([(b"f".to_vec(), Node::File(9))]);
    let text = encode_v6(&random(file, Version::V5))
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("blob bbb") && text.contains("no table of its chunks"),
        "{text}"
    );
}

#[test]
fn deep_trees_need_no_deep_stack() {
    let mut tree = Tree::new();
    let mut at = InodeId::ROOT;
    for _ in 0..20_000 {
        let id = tree.add(Inode::implied_directory());
        tree.entries_mut(at).unwrap().insert((*b"d").into(), id);
        at = id;
    }
    let v5 = Parsed::parse(encode_v5(&image(tree.clone())).unwrap()).unwrap();
    v5.check().unwrap();
    assert_eq!(v5.load().unwrap().tree.len(), 20_001);
    let bootstrap = Bootstrap::parse(encode_v6(&image(tree)).unwrap()).unwrap();
    assert_eq!(load_image(&bootstrap).unwrap().tree.len(), 20_001);
}

#[test]
fn loading_a_deep_tree_takes_no_quadratic_time() {
    let mut tree = Tree::new();
    let mut at = InodeId::ROOT;
    for _ in 0..30_000 {
        let id = tree.add(Inode::implied_directory());
        let name = vec![b'd'; 200];
        tree.entries_mut(at).unwrap().insert(name.into(), id);
        at = id;
    }
    let v5 = Parsed::parse(encode_v5(&image(tree.clone())).unwrap()).unwrap();
    let bootstrap = Bootstrap::parse(encode_v6(&image(tree)).unwrap()).unwrap();
    let begun = std::time::Instant::now();
    v5.check().unwrap();
    assert_eq!(v5.load().unwrap().tree.len(), 30_001);
    assert_eq!(load_image(&bootstrap).unwrap().tree.len(), 30_001);
    // The paths together have 90 GB.
    assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
}

#[test]
fn what_is_damaged_in_a_bootstrap_is_named_by_its_path() {
    let mut tree = Tree::new();
    let mut at = InodeId::ROOT;
    for name in ["outer", "inner"] {
        let id = tree.add(Inode::implied_directory());
        let entries = tree.entries_mut(at).unwrap();
        entries.insert(name.as_bytes().into(), id);
        at = id;
    }
    for name in ["twin-1", "twin-2"] {
        let id = tree.add(inode(Content::Special));
        tree.inode_mut(id).mode = mode::FIFO | 0o600;
        let entries = tree.entries_mut(at).unwrap();
        entries.insert(name.as_bytes().into(), id);
    }
    let mut bytes = encode_v6(&image(tree)).unwrap();
    let twin = bytes.windows(6).position(|name| name == b"twin-2").unwrap();
    bytes[twin + 5] = b'1';
    let error = load_image(&Bootstrap::parse(bytes).unwrap()).unwrap_err();
    assert!(error.to_string().contains("/outer/inner"), "{error}");
}

/// Damage that the check would find must not get past the loader either.
#[test]
fn a_damaged_v5_bootstrap_is_loaded_or_refused_but_never_followed_in_circles() {
    let file = |size| Node::File(size);
    let inner = BTreeMap::from([
        (b"deep".to_vec(), file(5000)),
        (b"link".to_vec(), Node::Link),
    ]);
    let children = BTreeMap::from([
        (b"a".to_vec(), file(9000)),
        (b"dir".to_vec(), Node::Directory(inner)),
        (b"zero".to_vec(), file(0)),
    ]);
    let bytes = encode_v5(&random(children, Version::V5)).unwrap();
    let mut refused = 0;
    for at in (16..80).chain(8192..bytes.len()) {
        for flip in [0x01, 0x80, 0xff] {
            let mut damaged = bytes.clone();
            damaged[at] ^= flip;
            let Ok(parsed) = v5::Bootstrap::parse(damaged) else {
                refused += 1;
                continue;
            };
            let _ = bootstrap::view_v5(&parsed);
            refused += u32::from(bootstrap::load_v5(&parsed).is_err());
        }
    }
    assert!(refused > 200, "{refused}");
}

#[test]
fn a_tree_with_a_directory_in_two_places_is_refused() {
    let mut tree = Tree::new();
    let id = tree.add(Inode::implied_directory());
    for name in [*b"a", *b"b"] {
        tree.entries_mut(InodeId::ROOT)
            .unwrap()
            .insert(name.into(), id);
    }
    assert!(matches!(
        encode_v6(&image(tree)),
        Err(bootstrap::Error::File { .. })
    ));
}
