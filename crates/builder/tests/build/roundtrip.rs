//! Trees of every shape survive encoding and loading.

use std::collections::BTreeMap;

use builder::{encode_v6, load_image};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use rafs_format::{Bootstrap, Compressor, Digester};
use tree::{Content, Image, Inode, InodeId, Tree, mode};

/// What a random inode is.
#[derive(Debug, Clone)]
enum Node {
    Directory(BTreeMap<Vec<u8>, Node>),
    Symlink(Vec<u8>),
    Special(u32, u32),
    /// Another name of the file of any type that was met last, or a file if there is none.
    Link,
    File,
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
        Just(Node::File),
    ];
    leaf.prop_recursive(6, 300, 60, |inner| {
        btree_map(name(), inner, 0..60).prop_map(Node::Directory)
    })
}

fn add(
    tree: &mut Tree,
    parent: InodeId,
    children: BTreeMap<Vec<u8>, Node>,
    state: &mut (u32, Option<InodeId>),
) {
    for (name, node) in children {
        state.0 += 1;
        let link = matches!(node, Node::Link);
        let attributes = |kind: u32, content| Inode {
            mode: kind | (state.0 & 0o7777),
            uid: state.0.wrapping_mul(77_777),
            gid: state.0,
            rdev: 0,
            mtime: i64::from(state.0) - 10,
            mtime_nsec: state.0,
            implied: false,
            xattrs: state.0.is_multiple_of(3).then(|| {
                let value = vec![7; state.0 as usize % 50];
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
            Node::File | Node::Link => (
                attributes(
                    mode::REGULAR,
                    Content::Regular {
                        size: 0,
                        chunks: Box::default(),
                    },
                ),
                None,
            ),
        };
        let id = state.1.filter(|_| link).unwrap_or_else(|| tree.add(inode));
        if !tree.inode(id).is_directory() {
            state.1 = Some(id);
        }
        tree.entries_mut(parent).unwrap().insert(name.into(), id);
        if let Some(below) = below {
            add(tree, id, below, state);
        }
    }
}

fn image(tree: Tree) -> Image {
    Image {
        version: rafs_format::Version::V6,
        tree,
        blobs: Vec::new(),
        chunks: Vec::new(),
        chunk_size: 0x10_0000,
        prefetch: Vec::new(),
        compressor: Compressor::Zstd,
        digester: Digester::Blake3,
        explicit_owners: true,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn a_tree_is_the_same_after_encoding_and_loading(children in btree_map(name(), node(), 0..40)) {
        let mut image = image(Tree::new());
        image.tree.inode_mut(InodeId::ROOT).implied = false;
        add(&mut image.tree, InodeId::ROOT, children, &mut (0, None));
        image.compact().unwrap();
        let bootstrap = Bootstrap::parse(encode_v6(&image).unwrap()).unwrap();
        bootstrap.check().unwrap();
        let mut loaded = load_image(&bootstrap).unwrap();
        loaded.compact().unwrap();
        prop_assert_eq!(&loaded.tree, &image.tree);
        prop_assert_eq!(encode_v6(&loaded).unwrap(), encode_v6(&image).unwrap());
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
    for (image, path) in [
        (long, "/long-link"),
        (name, "/nnn"),
        (xattr, "/odd-xattr"),
        (missing, "/no-data"),
    ] {
        let text = encode_v6(&image).unwrap_err().to_string();
        assert!(text.contains(path), "{text}");
    }
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
    let bootstrap = Bootstrap::parse(encode_v6(&image(tree)).unwrap()).unwrap();
    let begun = std::time::Instant::now();
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
