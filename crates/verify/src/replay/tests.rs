//! The replay against hand-written cases, and against a second, naive model: whole paths in one map, bottom layer first.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tree::{Xattrs, mode};

use super::layer::{Entry, Kind, Layer, Refusal};
use super::stack::Stack;
use crate::model::{FileTree, ROOT};

fn entry<'a>(path: &'a str, kind: Kind<'a>, uid: u32) -> Entry<'a> {
    Entry {
        path: path.as_bytes(),
        kind,
        permissions: 0o700,
        uid,
        gid: 0,
        rdev: 7,
        mtime: 5,
        mtime_nsec: 6,
        xattrs: Xattrs::new(),
    }
}

const FILE: Kind<'_> = Kind::Regular {
    size: 0,
    first_chunk: 0,
    chunks: 0,
};

fn link(target: &str) -> Kind<'_> {
    Kind::HardLink(target.as_bytes())
}

fn symlink(target: &str) -> Kind<'_> {
    Kind::Symlink(target.as_bytes())
}

/// Every path with type letter and owner; names of one file share the number behind `#`.
fn list(tree: &FileTree) -> Vec<String> {
    let mut files = BTreeMap::new();
    let mut todo = vec![ROOT];
    let mut out = Vec::new();
    while let Some(node) = todo.pop() {
        for &child in tree.node(node).children.values() {
            let inode = tree.inode_of(child);
            let letter = match inode.file_type() {
                mode::DIRECTORY => 'd',
                mode::SYMLINK => 'l',
                mode::REGULAR => 'f',
                _ => '?',
            };
            out.push((tree.path(child), letter, inode.uid, tree.node(child).inode));
            todo.push(child);
        }
    }
    out.sort();
    let mut lines = Vec::new();
    for (path, letter, uid, inode) in out {
        let next = files.len();
        let file = if letter == 'd' {
            String::new()
        } else {
            format!(" #{}", files.entry(inode).or_insert(next))
        };
        lines.push(format!(
            "{letter}{uid} {}{file}",
            String::from_utf8_lossy(&path)
        ));
    }
    lines
}

fn replay(layers: &[Vec<Entry<'_>>]) -> Result<FileTree, Refusal> {
    let mut stack = Stack::new();
    for entries in layers.iter().rev() {
        let mut layer = Layer::new();
        for entry in entries {
            layer.apply(entry.clone())?;
        }
        stack.lay_under(&layer);
    }
    Ok(stack.finish())
}

fn check(layers: &[Vec<Entry<'_>>], expected: &[&str]) {
    assert_eq!(list(&replay(layers).unwrap()), expected);
}

#[test]
fn paths_lead_through_links_of_their_own_layer_only() {
    check(
        &[
            vec![
                entry("real", Kind::Directory, 1),
                entry("alias", symlink("/real"), 2),
                entry("alias/f", FILE, 3),
            ],
            vec![entry("alias/g", FILE, 4)],
        ],
        &["d0 /alias", "f4 /alias/g #0", "d1 /real", "f3 /real/f #1"],
    );
}

#[test]
fn links_stay_inside_the_root() {
    check(
        &[vec![
            entry("a/up", symlink("../../../../b"), 1),
            entry("a/up/f", FILE, 2),
            entry("../../c", FILE, 3),
            entry("/d/../e", FILE, 4),
        ]],
        &[
            "d0 /a",
            "l1 /a/up #0",
            "d0 /b",
            "f2 /b/f #1",
            "f3 /c #2",
            "f4 /e #3",
        ],
    );
}

#[test]
fn endless_links_and_files_on_the_way_are_refused() {
    let one = |entries: Vec<Entry<'static>>| replay(&[entries]).map(|_| ()).unwrap_err();
    assert_eq!(
        one(vec![entry("l", symlink("l"), 0), entry("l/f", FILE, 0)]),
        Refusal::TooManyLinks {
            path: "l/f".to_owned()
        }
    );
    assert_eq!(
        one(vec![entry("f", FILE, 0), entry("f/g", FILE, 0)]),
        Refusal::NotADirectory {
            path: "f/g".to_owned()
        }
    );
    assert!(matches!(
        one(vec![entry(".wh.", FILE, 0)]),
        Refusal::BadWhiteout { .. }
    ));
    assert!(matches!(
        one(vec![entry("a/.wh...", FILE, 0)]),
        Refusal::BadWhiteout { .. }
    ));
    assert!(matches!(
        one(vec![entry("a\0b", FILE, 0)]),
        Refusal::BadName { .. }
    ));
    assert!(matches!(
        one(vec![entry("a/.wh.b/c", FILE, 0)]),
        Refusal::BelowWhiteout { .. }
    ));
    assert!(matches!(
        one(vec![entry("a", symlink(""), 0)]),
        Refusal::BadLinkTarget { .. }
    ));
}

#[test]
fn hard_links_need_a_target_before_them_in_their_layer() {
    let one = |entries: Vec<Entry<'static>>| {
        replay(&[vec![entry("low", FILE, 0)], entries])
            .map(|_| ())
            .unwrap_err()
    };
    assert!(matches!(
        one(vec![entry("a", link("b"), 0), entry("b", FILE, 0)]),
        Refusal::NoTarget { .. }
    ));
    assert!(matches!(
        one(vec![entry("a", link("low"), 0)]),
        Refusal::NoTarget { .. }
    ));
    assert!(matches!(
        one(vec![entry("a/b", FILE, 0), entry("a", link("a/b"), 0)]),
        Refusal::NoTarget { .. }
    ));
    assert!(matches!(
        one(vec![
            entry("d", Kind::Directory, 0),
            entry("a", link("d"), 0)
        ]),
        Refusal::LinkToDirectory { .. }
    ));
}

#[test]
fn a_hard_link_shares_the_inode_even_when_its_first_name_is_gone() {
    check(
        &[
            vec![
                entry("a", FILE, 1),
                entry("b", link("./a"), 2),
                entry("s", symlink("x"), 3),
                entry("t", link("/s"), 4),
            ],
            vec![entry("a", FILE, 5)],
        ],
        &["f5 /a #0", "f2 /b #1", "l4 /s #2", "l4 /t #2"],
    );
}

#[test]
fn whiteouts_hide_lower_layers_only_wherever_they_stand() {
    let lower = || {
        vec![
            entry("d/x", FILE, 1),
            entry("d/y", FILE, 1),
            entry("e", FILE, 1),
            entry("o/p", FILE, 1),
        ]
    };
    check(
        &[
            lower(),
            vec![
                entry("d", Kind::Directory, 2),
                entry("d/new", FILE, 2),
                entry(".wh.d", FILE, 2),
                entry("o/mine", FILE, 2),
                entry("o/.wh..wh..opq", FILE, 2),
                entry(".wh.none", FILE, 2),
                entry(".wh..wh.plnk/7", FILE, 2),
            ],
        ],
        &[
            "d2 /d",
            "f2 /d/new #0",
            "f1 /e #1",
            "d0 /o",
            "f2 /o/mine #2",
        ],
    );
}

#[test]
fn implied_directories_take_what_lower_layers_know() {
    check(
        &[
            vec![
                entry("a", Kind::Directory, 1),
                entry("a/b", Kind::Directory, 2),
                entry("w", Kind::Directory, 9),
            ],
            vec![entry("a/b/f", FILE, 3), entry(".wh.w", FILE, 3)],
            vec![entry("a/b/g", FILE, 4), entry("w/h", FILE, 4)],
        ],
        &[
            "d1 /a",
            "d2 /a/b",
            "f3 /a/b/f #0",
            "f4 /a/b/g #1",
            "d0 /w",
            "f4 /w/h #2",
        ],
    );
}

#[test]
fn a_later_entry_replaces_an_earlier_one_but_directories_keep_their_children() {
    check(
        &[vec![
            entry("a/x", FILE, 1),
            entry("a", Kind::Directory, 2),
            entry("b/y", FILE, 3),
            entry("b", FILE, 4),
            entry("c", FILE, 5),
            entry("c", Kind::Directory, 6),
        ]],
        &["d2 /a", "f1 /a/x #0", "f4 /b #1", "d6 /c"],
    );
}

#[test]
fn a_directory_chain_of_any_depth_is_replayed_in_linear_time() {
    let deep = "d/".repeat(20_000) + "f";
    let tree = replay(&[vec![entry(&deep, FILE, 1)], vec![entry(&deep, FILE, 2)]]).unwrap();
    assert_eq!(tree.nodes.len(), 20_002);
    assert_eq!(tree.inodes.last().map(|inode| inode.uid), Some(2));
}

/// The naive model: every path of the image in one map.
mod naive {
    use super::*;

    #[derive(Debug, Clone, PartialEq, Eq)]
    pub(super) enum What {
        Directory {
            implied: bool,
        },
        Other {
            letter: char,
            link: String,
            inode: usize,
        },
    }

    pub(super) type Files = BTreeMap<Vec<String>, (What, u32)>;

    type Paths = Vec<Vec<String>>;

    #[derive(Debug, Clone)]
    pub(super) enum Op {
        File(String),
        Directory(String),
        Symlink(String, String),
        Link(String, String),
        Whiteout(String, String),
        Opaque(String),
    }

    fn text(path: &str) -> Vec<String> {
        let mut out: Vec<String> = Vec::new();
        for part in path.split('/') {
            match part {
                "" | "." => {}
                ".." => {
                    out.pop();
                }
                part => out.push(part.to_owned()),
            }
        }
        out
    }

    /// Replaces the first link on the way by its target, again and again.
    fn real(files: &Files, path: &[String]) -> Option<Vec<String>> {
        let mut path = path.to_vec();
        let (mut at, mut links) = (0, 0);
        while at < path.len() {
            if path[at] == ".." {
                path.remove(at);
                if at > 0 {
                    path.remove(at - 1);
                }
                at = 0;
            } else if let Some((
                What::Other {
                    letter: 'l', link, ..
                },
                _,
            )) = files.get(&path[..=at])
            {
                links += 1;
                if links > 255 {
                    return None;
                }
                let rest = path.split_off(at + 1);
                path.pop();
                if link.starts_with('/') {
                    path = raw(link);
                } else {
                    path.extend(vec!["..".to_owned(); clean_ups(link)]);
                    path.extend(text(link));
                }
                path.extend(rest);
                at = 0;
            } else if let Some((What::Other { .. }, _)) = files.get(&path[..=at]) {
                return None;
            } else {
                at += 1;
            }
        }
        Some(path)
    }

    fn raw(path: &str) -> Vec<String> {
        path.split('/')
            .filter(|part| !part.is_empty())
            .map(str::to_owned)
            .collect()
    }

    /// How many `..` of a relative path lead above its beginning.
    fn clean_ups(link: &str) -> usize {
        let (mut depth, mut ups) = (0, 0);
        for part in link.split('/') {
            match part {
                "" | "." => {}
                ".." if depth == 0 => ups += 1,
                ".." => depth -= 1,
                _ => depth += 1,
            }
        }
        ups
    }

    fn remove(files: &mut Files, path: &[String]) {
        files.retain(|other, _| !other.starts_with(path));
    }

    /// Parents of an entry: resolved, and made where they are missing. `None` if one is no directory.
    fn parent(files: &mut Files, path: &[String]) -> Option<Vec<String>> {
        let path = real(files, path)?;
        for len in 1..=path.len() {
            match files.get(&path[..len]) {
                None => {
                    files.insert(path[..len].to_vec(), (What::Directory { implied: true }, 0));
                }
                Some((What::Directory { .. }, _)) => {}
                Some(_) => return None,
            }
        }
        Some(path)
    }

    /// One layer on its own, with what it hides. `None` if it is refused.
    pub(super) fn layer(ops: &[(Op, u32)], inodes: &mut usize) -> Option<(Files, Paths, Paths)> {
        let (mut files, mut hidden, mut opaque) = (Files::new(), Vec::new(), Vec::new());
        for (op, uid) in ops {
            match op {
                Op::Whiteout(dir, name) => {
                    let mut path = parent(&mut files, &text(dir))?;
                    path.push(name.clone());
                    hidden.push(path);
                    continue;
                }
                Op::Opaque(dir) => {
                    let path = parent(&mut files, &text(dir))?;
                    opaque.push(path);
                    continue;
                }
                _ => {}
            }
            let (Op::File(path) | Op::Directory(path) | Op::Symlink(path, _) | Op::Link(path, _)) =
                op
            else {
                continue;
            };
            let path = text(path);
            let Some((base, parents)) = path.split_last() else {
                continue;
            };
            let mut path = parent(&mut files, parents)?;
            path.push(base.clone());
            if matches!(op, Op::Directory(_))
                && matches!(files.get(&path), Some((What::Directory { .. }, _)))
            {
                files.insert(path, (What::Directory { implied: false }, *uid));
                continue;
            }
            if let Op::Link(_, target) = op
                && let Some(target) = link_target(&files, target)
                && let (
                    Some((What::Other { inode: old, .. }, _)),
                    Some((What::Other { inode: new, .. }, _)),
                ) = (files.get(&path), files.get(&target))
                && old == new
            {
                let this = *old;
                own(&mut files, this, *uid);
                continue;
            }
            // What a replaced directory hid is forgotten with it.
            hidden.retain(|other: &Vec<String>| {
                other.len() <= path.len() || !other.starts_with(&path)
            });
            opaque.retain(|other: &Vec<String>| !other.starts_with(&path));
            remove(&mut files, &path);
            let mut other = |letter, link: &str| {
                *inodes += 1;
                What::Other {
                    letter,
                    link: link.to_owned(),
                    inode: *inodes,
                }
            };
            let what = match op {
                Op::File(_) => other('f', ""),
                Op::Symlink(_, target) => other('l', target),
                Op::Directory(_) => What::Directory { implied: false },
                Op::Link(_, target) => {
                    let target = link_target(&files, target)?;
                    let (what, _) = files.get(&target)?.clone();
                    let What::Other { inode, .. } = what else {
                        return None;
                    };
                    own(&mut files, inode, *uid);
                    what
                }
                Op::Whiteout(..) | Op::Opaque(_) => continue,
            };
            files.insert(path, (what, *uid));
        }
        Some((files, hidden, opaque))
    }

    fn link_target(files: &Files, target: &str) -> Option<Vec<String>> {
        let mut parents = raw(target);
        let base = parents.pop().filter(|base| base != "..")?;
        let mut target = real(files, &parents)?;
        let there = |path: &[String]| {
            path.is_empty() || matches!(files.get(path), Some((What::Directory { .. }, _)))
        };
        if !there(&target) {
            return None;
        }
        target.push(base);
        Some(target)
    }

    fn own(files: &mut Files, inode: usize, uid: u32) {
        for (what, owner) in files.values_mut() {
            if matches!(what, What::Other { inode: this, .. } if *this == inode) {
                *owner = uid;
            }
        }
    }

    /// Lays layers over one another, lowest first.
    pub(super) fn image(layers: &[Vec<(Op, u32)>]) -> Option<Files> {
        let mut inodes = 0;
        let mut image = Files::new();
        for ops in layers {
            let (files, hidden, opaque) = layer(ops, &mut inodes)?;
            for path in &hidden {
                remove(&mut image, path);
            }
            for path in &opaque {
                image.retain(|other, _| other.len() <= path.len() || !other.starts_with(path));
            }
            for (path, (what, uid)) in files {
                match (&what, image.get(&path)) {
                    (What::Directory { implied: true }, Some((What::Directory { .. }, _))) => {
                        continue;
                    }
                    (What::Directory { .. }, Some((What::Directory { .. }, _))) => {}
                    _ => remove(&mut image, &path),
                }
                image.insert(path, (what, uid));
            }
        }
        Some(image)
    }

    pub(super) fn list(files: &Files) -> Vec<String> {
        let mut numbers = BTreeMap::new();
        let mut paths: Vec<(String, &(What, u32))> = files
            .iter()
            .map(|(path, file)| (format!("/{}", path.join("/")), file))
            .collect();
        paths.sort_by(|a, b| a.0.cmp(&b.0));
        let line = |(path, (what, uid)): (String, &(What, u32))| match what {
            What::Directory { .. } => format!("d{uid} {path}"),
            What::Other { letter, inode, .. } => {
                let next = numbers.len();
                format!(
                    "{letter}{uid} {path} #{}",
                    numbers.entry(*inode).or_insert(next)
                )
            }
        };
        paths.into_iter().map(line).collect()
    }
}

use naive::Op;

fn name() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a".to_owned(), "b".to_owned(), "c".to_owned()])
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop_oneof![6 => name(), 1 => Just("..".to_owned())], 1..4)
        .prop_map(|names| names.join("/"))
}

fn target() -> impl Strategy<Value = String> {
    (prop::bool::ANY, path())
        .prop_map(|(absolute, path)| if absolute { format!("/{path}") } else { path })
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => path().prop_map(Op::File),
        4 => path().prop_map(Op::Directory),
        2 => (path(), target()).prop_map(|(path, target)| Op::Symlink(path, target)),
        2 => (path(), path()).prop_map(|(path, target)| Op::Link(path, target)),
        2 => (path(), name()).prop_map(|(path, name)| Op::Whiteout(path, name)),
        1 => path().prop_map(Op::Opaque),
    ]
}

fn to_layers<'a>(layers: &'a [Vec<(Op, u32)>], paths: &'a [Vec<String>]) -> Vec<Vec<Entry<'a>>> {
    let entries = |(ops, paths): (&'a Vec<(Op, u32)>, &'a Vec<String>)| {
        let entry = |((op, uid), path): (&'a (Op, u32), &'a String)| match op {
            Op::File(_) | Op::Whiteout(..) | Op::Opaque(_) => entry(path, FILE, *uid),
            Op::Directory(_) => entry(path, Kind::Directory, *uid),
            Op::Symlink(_, target) => entry(path, symlink(target), *uid),
            Op::Link(_, target) => entry(path, link(target), *uid),
        };
        ops.iter().zip(paths).map(entry).collect()
    };
    layers.iter().zip(paths).map(entries).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn any_stack_of_layers_is_what_the_naive_model_says(
        layers in prop::collection::vec(prop::collection::vec((op(), 1_u32..9), 0..8), 1..4)
    ) {
        // A layer that is refused as a whole says little: leave out the entries that are.
        let mut kept: Vec<Vec<(Op, u32)>> = Vec::new();
        for ops in layers {
            let mut good: Vec<(Op, u32)> = Vec::new();
            for op in ops {
                good.push(op);
                let refused = naive::layer(&good, &mut 0).is_none();
                let paths = vec![raw_paths(&good)];
                prop_assert_eq!(replay(&to_layers(std::slice::from_ref(&good), &paths)).is_err(), refused, "{:?}", good);
                if refused {
                    good.pop();
                }
            }
            kept.push(good);
        }
        let paths: Vec<Vec<String>> = kept.iter().map(|ops| raw_paths(ops)).collect();
        let tree = replay(&to_layers(&kept, &paths)).expect("no entry is refused");
        let model = naive::image(&kept).expect("no entry is refused");
        prop_assert_eq!(list(&tree), naive::list(&model), "{:?}", kept);
    }
}

fn raw_paths(ops: &[(Op, u32)]) -> Vec<String> {
    let raw = |(op, _): &(Op, u32)| match op {
        Op::File(path) | Op::Directory(path) | Op::Symlink(path, _) | Op::Link(path, _) => {
            path.clone()
        }
        Op::Whiteout(dir, name) => format!("{dir}/.wh.{name}"),
        Op::Opaque(dir) => format!("{dir}/.wh..wh..opq"),
    };
    ops.iter().map(raw).collect()
}
