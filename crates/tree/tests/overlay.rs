//! Laying layers over each other: a test for each rule, and random layers against a model of paths and facts.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use tree::{ChunkId, Content, Inode, InodeId, Tree, Whiteouts, mode};

fn inode(kind: u32, tag: u32, content: Content) -> Inode {
    Inode {
        mode: kind | 0o644,
        uid: tag,
        implied: false,
        content,
        ..Inode::implied_directory()
    }
}

fn file(tag: u32) -> Inode {
    inode(
        mode::REGULAR,
        tag,
        Content::Regular {
            size: 1,
            chunks: Box::new([ChunkId(tag)]),
        },
    )
}

fn directory(tag: u32) -> Inode {
    inode(mode::DIRECTORY, tag, Content::Directory(BTreeMap::new()))
}

fn names(path: &str) -> Vec<&str> {
    path.split('/').filter(|name| !name.is_empty()).collect()
}

/// Puts an inode at a path, making parents.
fn put(tree: &mut Tree, path: &str, inode: Inode) -> InodeId {
    let id = tree.add(inode);
    put_id(tree, path, id);
    id
}

fn put_id(tree: &mut Tree, path: &str, id: InodeId) {
    let names = names(path);
    let (name, way) = names.split_last().expect("not the root");
    let mut parent = InodeId::ROOT;
    for name in way {
        let next = tree
            .entries(parent)
            .expect("a directory")
            .get(name.as_bytes())
            .copied();
        parent = next.unwrap_or_else(|| {
            let id = tree.add(Inode::implied_directory());
            tree.entries_mut(parent)
                .expect("a directory")
                .insert(name.as_bytes().into(), id);
            id
        });
    }
    tree.entries_mut(parent)
        .expect("a directory")
        .insert(name.as_bytes().into(), id);
}

/// A layer from `path tag` lines; a path that ends in a slash is a directory.
fn layer(lines: &[(&str, u32)]) -> Tree {
    let mut tree = Tree::new();
    for (path, tag) in lines {
        put(
            &mut tree,
            path,
            if path.ends_with('/') {
                directory(*tag)
            } else {
                file(*tag)
            },
        );
    }
    tree
}

/// Paths with their tags, directories with a slash; implied ones have the tag 0.
fn facts(tree: &Tree) -> BTreeMap<String, u32> {
    let mut walk = tree.walk();
    let mut facts = BTreeMap::new();
    while let Some(visit) = walk.next() {
        let mut path = String::from_utf8(walk.path(&visit)).expect("ASCII");
        let inode = tree.inode(visit.id);
        if inode.is_directory() && path != "/" {
            path.push('/');
        }
        facts.insert(path[1..].to_owned(), inode.uid);
    }
    facts
}

fn merged(layers: &[&[(&str, u32)]]) -> BTreeMap<String, u32> {
    let mut trees = layers.iter().map(|lines| layer(lines));
    let mut below = trees.next().expect("a layer");
    below.strip_whiteouts();
    for tree in trees {
        below.overlay(tree).expect("small");
    }
    facts(&below)
}

fn expect(facts: BTreeMap<String, u32>, want: &[(&str, u32)]) {
    let want = want
        .iter()
        .map(|(path, tag)| ((*path).to_owned(), *tag))
        .chain([(String::new(), 0)]);
    assert_eq!(facts, want.collect());
}

#[test]
fn upper_entries_are_added_and_replace() {
    expect(
        merged(&[&[("a", 1), ("b", 1)], &[("b", 2), ("c", 2)]]),
        &[("a", 1), ("b", 2), ("c", 2)],
    );
}

#[test]
fn a_directory_over_a_directory_joins_the_children_with_the_upper_metadata() {
    let got = merged(&[
        &[("d/", 1), ("d/a", 1), ("d/b", 1)],
        &[("d/", 2), ("d/b", 2)],
    ]);
    expect(got, &[("d/", 2), ("d/a", 1), ("d/b", 2)]);
}

#[test]
fn an_implied_directory_keeps_the_lower_metadata() {
    expect(
        merged(&[&[("d/", 1)], &[("d/a", 2)]]),
        &[("d/", 1), ("d/a", 2)],
    );
    expect(
        merged(&[&[("x", 1)], &[("d/a", 2)]]),
        &[("d/", 0), ("d/a", 2), ("x", 1)],
    );
}

#[test]
fn metadata_of_an_upper_directory_comes_with_its_attributes() {
    let mut below = layer(&[("d/", 1)]);
    let id = below.lookup(b"d").expect("there");
    below.inode_mut(id).xattrs = Some(Box::new([(b"user.low"[..].into(), b"1"[..].into())].into()));
    let mut upper = layer(&[("d/", 2)]);
    let id = upper.lookup(b"d").expect("there");
    upper.inode_mut(id).xattrs = Some(Box::new([(b"user.up"[..].into(), b"2"[..].into())].into()));
    let mut same = below.clone();
    same.overlay(upper.clone()).expect("small");
    let xattrs = same
        .inode(same.lookup(b"d").expect("there"))
        .xattrs
        .clone()
        .expect("attributes");
    assert_eq!(
        xattrs.keys().map(|k| &k[..]).collect::<Vec<_>>(),
        [b"user.up"]
    );
    // Without attributes above, there are none.
    below.overlay(layer(&[("d/", 3)])).expect("small");
    assert_eq!(below.inode(below.lookup(b"d").expect("there")).xattrs, None);
}

#[test]
fn the_root_takes_the_upper_metadata_unless_implied() {
    let mut below = layer(&[("a", 1)]);
    let mut upper = Tree::new();
    *upper.inode_mut(InodeId::ROOT) = directory(7);
    below.overlay(upper).expect("small");
    assert_eq!(below.inode(InodeId::ROOT).uid, 7);
    below.overlay(Tree::new()).expect("small");
    assert_eq!(
        (
            below.inode(InodeId::ROOT).uid,
            below.inode(InodeId::ROOT).implied
        ),
        (7, false)
    );
    assert!(below.lookup(b"a").is_some());
}

#[test]
fn a_file_over_a_directory_drops_the_children() {
    expect(merged(&[&[("d/e/f", 1)], &[("d", 2)]]), &[("d", 2)]);
}

#[test]
fn a_directory_over_a_file_replaces_it() {
    expect(
        merged(&[&[("d", 1)], &[("d/a", 2)]]),
        &[("d/", 0), ("d/a", 2)],
    );
    expect(merged(&[&[("d", 1)], &[("d/", 2)]]), &[("d/", 2)]);
}

#[test]
fn a_symbolic_link_below_is_not_followed() {
    let mut below = layer(&[("real/x", 1)]);
    put(
        &mut below,
        "l",
        inode(mode::SYMLINK, 1, Content::Symlink(b"real"[..].into())),
    );
    below.overlay(layer(&[("l/a", 2)])).expect("small");
    expect(
        facts(&below),
        &[("real/", 0), ("real/x", 1), ("l/", 0), ("l/a", 2)],
    );
}

#[test]
fn whiteouts_remove_lower_entries_and_leave_no_trace() {
    let got = merged(&[
        &[("a", 1), ("d/x", 1), ("d/y", 1), ("e/f/g", 1)],
        &[(".wh.a", 2), ("d/.wh.x", 2), (".wh.e", 2)],
    ]);
    expect(got, &[("d/", 0), ("d/y", 1)]);
}

#[test]
fn a_whiteout_of_nothing_is_no_error() {
    expect(
        merged(&[&[("a", 1)], &[(".wh.b", 2), ("n/.wh.c", 2)]]),
        &[("a", 1), ("n/", 0)],
    );
}

#[test]
fn whiteouts_do_not_hide_entries_of_their_own_layer() {
    expect(
        merged(&[
            &[("a", 1), ("d/x", 1)],
            &[(".wh.a", 2), ("a", 2), (".wh.d", 2), ("d/y", 2)],
        ]),
        &[("a", 2), ("d/", 0), ("d/y", 2)],
    );
}

#[test]
fn a_directory_behind_its_own_whiteout_is_a_new_one() {
    // The lower directory is gone with its metadata.
    expect(
        merged(&[&[("d/", 1), ("d/x", 1)], &[(".wh.d", 2), ("d/y", 2)]]),
        &[("d/", 0), ("d/y", 2)],
    );
}

#[test]
fn an_opaque_directory_hides_lower_children_only() {
    let got = merged(&[
        &[("d/", 1), ("d/x", 1), ("d/e/z", 1)],
        &[("d/.wh..wh..opq", 2), ("d/y", 2), ("d/e/new", 2)],
    ]);
    expect(got, &[("d/", 1), ("d/y", 2), ("d/e/", 0), ("d/e/new", 2)]);
}

#[test]
fn an_opaque_root_hides_everything_below() {
    expect(
        merged(&[&[("a", 1), ("d/x", 1)], &[(".wh..wh..opq", 2), ("b", 2)]]),
        &[("b", 2)],
    );
}

#[test]
fn whiteouts_reach_through_all_layers_below_and_not_above() {
    let got = merged(&[
        &[("a", 1), ("b", 1)],
        &[("a", 2)],
        &[(".wh.a", 3)],
        &[("a", 4), (".wh.b", 4)],
        &[("b", 5)],
    ]);
    expect(got, &[("a", 4), ("b", 5)]);
}

#[test]
fn markers_of_the_lowest_layer_and_of_new_directories_are_dropped() {
    let got = merged(&[
        &[(".wh.a", 1), ("d/.wh..wh..opq", 1), ("d/.wh..wh.plnk", 1)],
        &[("n/m/.wh.x", 2), ("n/m/y", 2)],
    ]);
    expect(got, &[("d/", 0), ("n/", 0), ("n/m/", 0), ("n/m/y", 2)]);
}

#[test]
fn the_ways_of_overlayfs_mean_nothing() {
    let mut below = layer(&[("a", 1), ("d/x", 1)]);
    let mut upper = layer(&[("d/", 2)]);
    put(&mut upper, "a", inode(mode::CHARACTER, 2, Content::Special));
    let id = upper.lookup(b"d").expect("there");
    upper.inode_mut(id).xattrs = Some(Box::new(
        [(b"trusted.overlay.opaque"[..].into(), b"y"[..].into())].into(),
    ));
    below.overlay(upper).expect("small");
    expect(facts(&below), &[("a", 2), ("d/", 2), ("d/x", 1)]);
}

#[test]
fn whiteouts_of_overlayfs_hide_and_are_gone() {
    let opaque = |tree: &mut Tree, path: &[u8], value: &[u8]| {
        let id = tree.lookup(path).expect("there");
        tree.inode_mut(id).xattrs = Some(Box::new(
            [(b"trusted.overlay.opaque"[..].into(), value.into())].into(),
        ));
    };
    let device = |rdev| Inode {
        rdev,
        ..inode(mode::CHARACTER, 2, Content::Special)
    };
    let mut below = layer(&[("a", 1), ("b", 1), ("d/x", 1), ("e/x", 1), ("null", 1)]);
    let mut upper = layer(&[
        ("d/y", 2),
        ("e/y", 2),
        ("n/m", 2),
        (".wh.b", 2),
        (".wh..wh..opq", 2),
    ]);
    for path in ["a", "d/nothing", "n/o"] {
        put(&mut upper, path, device(0));
    }
    put(&mut upper, "null", device(0x103));
    opaque(&mut upper, b"d", b"y");
    opaque(&mut upper, b"e", b"x");
    opaque(&mut upper, b"n", b"y");
    let d = upper.lookup(b"d").expect("there");
    upper.inode_mut(d).implied = false;
    let (lower, above) = (below.clone(), upper.clone());
    below
        .overlay_with(upper, Whiteouts::Overlayfs)
        .expect("small");
    let of = |path: &[u8]| below.inode(below.lookup(path).expect("there"));
    assert_eq!(of(b"d").xattrs, None);
    assert_eq!(of(b"n").xattrs, None);
    assert_eq!(of(b"null").rdev, 0x103);
    let expected = [
        (".wh..wh..opq", 2),
        (".wh.b", 2),
        ("b", 1),
        ("d/", 0),
        ("d/y", 2),
        ("e/", 0),
        ("e/x", 1),
        ("e/y", 2),
        ("n/", 0),
        ("n/m", 2),
        ("null", 2),
    ];
    expect(facts(&below), &expected);
    let mut below = lower;
    below.overlay_with(above, Whiteouts::None).expect("small");
    for path in [&b"a"[..], b"b", b".wh.b", b"d/x", b"d/nothing", b"n/o"] {
        assert!(below.lookup(path).is_some(), "{path:?}");
    }
}

#[test]
fn hard_links_stay_shared_and_survive_each_other() {
    let mut below = layer(&[("a", 1)]);
    let a = below.lookup(b"a").expect("there");
    put_id(&mut below, "b", a);
    put_id(&mut below, "c", a);
    let mut upper = layer(&[("a", 2), (".wh.c", 2)]);
    let a = upper.lookup(b"a").expect("there");
    put_id(&mut upper, "d", a);
    below.overlay(upper).expect("small");
    expect(facts(&below), &[("a", 2), ("b", 1), ("d", 2)]);
    assert_eq!(below.lookup(b"a"), below.lookup(b"d"));
    let counts = below.link_counts();
    let count = |path: &[u8]| counts[below.lookup(path).expect("there").0 as usize];
    assert_eq!((count(b"a"), count(b"b")), (2, 1));
}

/// What one random layer says: entries in order, as `(path, what)`.
#[derive(Debug, Clone, Copy, PartialEq)]
enum What {
    File,
    Directory,
    Whiteout,
    Opaque,
}

type Ops = Vec<(Vec<u8>, What)>;

fn ops() -> impl Strategy<Value = Ops> {
    let what = prop_oneof![3 => Just(What::File), 3 => Just(What::Directory), 2 => Just(What::Whiteout), 1 => Just(What::Opaque)];
    proptest::collection::vec((proptest::collection::vec(0u8..3, 1..4), what), 0..12)
}

fn path_of(names: &[u8]) -> String {
    names
        .iter()
        .map(|n| format!("/{}", char::from(b'a' + n)))
        .collect::<String>()[1..]
        .to_owned()
}

/// Facts of a layer by itself: entries (directory or tag), and what it hides.
#[derive(Default, Clone)]
struct Model {
    entries: BTreeMap<String, (bool, u32)>,
    whiteouts: BTreeSet<String>,
    opaque: BTreeSet<String>,
}

fn parents(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at])
}

fn below(path: &str, dir: &str) -> bool {
    path.strip_prefix(dir)
        .is_some_and(|rest| rest.starts_with('/'))
}

/// Builds the same layer as tree and as model. Entries below a file of the layer are left out.
fn build(ops: &Ops, tag: u32) -> (Tree, Model) {
    let (mut tree, mut model) = (Tree::new(), Model::default());
    for (names, what) in ops {
        let path = path_of(names);
        let dir = if *what == What::Opaque {
            Some(path.as_str())
        } else {
            path.rsplit_once('/').map(|(dir, _)| dir)
        };
        if dir.is_some_and(|dir| {
            parents(dir)
                .chain([dir])
                .any(|p| model.entries.get(p).is_some_and(|e| !e.0))
        }) {
            continue;
        }
        for parent in dir.iter().flat_map(|dir| parents(dir).chain([*dir])) {
            model.entries.entry(parent.to_owned()).or_insert((true, 0));
        }
        match what {
            What::File => {
                model.entries.retain(|p, _| !below(p, &path));
                model.whiteouts.retain(|p| !below(p, &path));
                model.opaque.retain(|p| p != &path && !below(p, &path));
                model.entries.insert(path.clone(), (false, tag));
                put(&mut tree, &path, file(tag));
            }
            What::Directory => match model.entries.insert(path.clone(), (true, tag)) {
                Some((true, _)) => {
                    let id = tree.lookup(path.as_bytes()).expect("there");
                    let inode = tree.inode_mut(id);
                    (inode.uid, inode.implied) = (tag, false);
                }
                _ => {
                    put(&mut tree, &path, directory(tag));
                }
            },
            What::Whiteout => {
                let (dir, name) = path.rsplit_once('/').unwrap_or(("", &path));
                put(&mut tree, &format!("{dir}/.wh.{name}"), file(tag));
                model.whiteouts.insert(path);
            }
            What::Opaque => {
                put(&mut tree, &format!("{path}/.wh..wh..opq"), file(tag));
                model.opaque.insert(path);
            }
        }
    }
    (tree, model)
}

/// The merge by definition: of each path, the topmost layer that has it and is not covered from above.
fn model_merge(layers: &[Model]) -> BTreeMap<String, u32> {
    let hides = |layer: &Model, path: &str| {
        let whiteout = parents(path)
            .chain([path])
            .any(|p| layer.whiteouts.contains(p));
        let opaque = parents(path).any(|p| layer.opaque.contains(p));
        let replaced = parents(path).any(|p| layer.entries.get(p).is_some_and(|e| !e.0));
        whiteout || opaque || replaced
    };
    let mut out = BTreeMap::from([(String::new(), 0)]);
    let paths = layers
        .iter()
        .flat_map(|layer| layer.entries.keys())
        .collect::<BTreeSet<_>>();
    for path in paths {
        let mut found: Option<(bool, u32)> = None;
        for layer in layers.iter().rev() {
            if let Some(&(is_directory, tag)) = layer.entries.get(path) {
                match found {
                    None => found = Some((is_directory, tag)),
                    // An implied directory takes the metadata of a directory below, if there is one in sight.
                    Some((true, 0)) if is_directory => found = Some((true, tag)),
                    _ => {}
                }
                if !is_directory {
                    break;
                }
            }
            if found.is_some_and(|(is_directory, tag)| !is_directory || tag != 0)
                || hides(layer, path)
            {
                break;
            }
        }
        if let Some((is_directory, tag)) = found {
            out.insert(
                if is_directory {
                    format!("{path}/")
                } else {
                    path.clone()
                },
                tag,
            );
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..Default::default() })]

    #[test]
    fn random_layers_merge_as_the_model_says(layers in proptest::collection::vec(ops(), 1..5)) {
        let (trees, models): (Vec<_>, Vec<_>) =
            layers.iter().enumerate().map(|(i, ops)| build(ops, i as u32 + 1)).unzip();
        let mut trees = trees.into_iter();
        let mut below = trees.next().expect("one at least");
        below.strip_whiteouts();
        for tree in trees {
            below.overlay(tree).expect("small");
        }
        prop_assert_eq!(facts(&below), model_merge(&models));
        let before = facts(&below);
        below.compact();
        prop_assert_eq!(facts(&below), before);
        prop_assert_eq!(below.len() as u64, below.name_count());
    }

    #[test]
    fn a_layer_that_comes_again_counts_only_where_it_comes_last(
        layers in proptest::collection::vec(ops(), 1..4),
        order in proptest::collection::vec(any::<proptest::sample::Index>(), 1..7),
    ) {
        let trees: Vec<Tree> =
            layers.iter().enumerate().map(|(i, ops)| build(ops, i as u32 + 1).0).collect();
        let order: Vec<usize> = order.iter().map(|index| index.index(trees.len())).collect();
        let merge = |order: &[usize]| {
            let mut below = trees[order[0]].clone();
            below.strip_whiteouts();
            for &layer in &order[1..] {
                below.overlay(trees[layer].clone()).expect("small");
            }
            below.compact();
            below
        };
        let last = |at: usize| !order[at + 1..].contains(&order[at]);
        let once: Vec<usize> = (0..order.len()).filter(|&at| last(at)).map(|at| order[at]).collect();
        prop_assert_eq!(merge(&order), merge(&once));
    }
}
