//! The replay against trees that others wrote down: the corner cases of the test kit and the reference images.

use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use image::{Location, PlatformChoice, Source};
use progress::{Cancel, Silent};
use rafs_format::{CHUNK_SIZE_MAX, Digester};
use testkit::expect::Expect;
use testkit::scan::Found;

use super::stream::Chunking;
use crate::model::{FileTree, NodeId, ROOT};
use crate::side::{Files, LayerFile, Side};
use crate::source::{Context, replay_image};

/// With these chunks the one digest of a file below 16 MiB is its SHA-256.
const WHOLE: Chunking = Chunking {
    size: CHUNK_SIZE_MAX,
    digester: Digester::Sha256,
};

fn replay(layers: &[LayerFile], options: &layer::Options) -> FileTree {
    let threads = NonZeroUsize::new(2).unwrap();
    let context = Context {
        chunking: WHOLE,
        options,
        threads,
        cancel: &Cancel::default(),
        progress: &Silent,
    };
    replay_image(layers, context).unwrap_or_else(|error| panic!("{error}: {:?}", error.source))
}

fn in_memory(tars: &[Vec<u8>]) -> Vec<LayerFile> {
    let layer = |tar: &Vec<u8>| {
        let tar = Arc::new(tar.clone());
        LayerFile::new("layer", tar.len() as u64, move || {
            Ok(Box::new(Cursor::new(Vec::clone(&tar))) as Box<dyn Read + Send>)
        })
    };
    tars.iter().map(layer).collect()
}

/// The tree in the shape of a listed directory.
fn found(tree: &FileTree) -> BTreeMap<Vec<u8>, Found> {
    let mut out = BTreeMap::new();
    let mut links = BTreeMap::new();
    let mut todo = vec![(ROOT, Vec::new())];
    while let Some((node, path)) = todo.pop() {
        *links.entry(tree.node(node).inode).or_insert(0) += 1;
        for (name, &child) in &tree.node(node).children {
            let mut path: Vec<u8> = path.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name);
            todo.push((child, path));
        }
        out.insert(path, fact(tree, node));
    }
    for file in out
        .values_mut()
        .filter(|file| file.mode & 0o170_000 != 0o040_000)
    {
        file.nlink = links[&u32::try_from(file.inode.1).unwrap()];
    }
    out
}

fn fact(tree: &FileTree, node: NodeId) -> Found {
    let inode = tree.inode_of(node);
    let regular = inode.mode & 0o170_000 == 0o100_000;
    let link = inode.mode & 0o170_000 == 0o120_000;
    let sha256 = match tree
        .contents
        .digest(inode.first_chunk)
        .filter(|_| inode.chunks == 1)
    {
        Some(digest) => hex::encode(digest),
        None => testkit::sha256(b""),
    };
    let xattrs = inode.xattrs.iter();
    Found {
        mode: inode.mode,
        uid: inode.uid,
        gid: inode.gid,
        size: if link {
            inode.link.len() as u64
        } else {
            inode.size
        },
        device: (
            inode.rdev >> 8 & 0xfff,
            inode.rdev & 0xff | inode.rdev >> 12 & 0xfff00,
        ),
        mtime: inode.mtime,
        mtime_nsec: inode.mtime_nsec,
        nlink: 0,
        inode: (0, tree.node(node).inode.into()),
        link: link.then(|| inode.link.to_vec()),
        sha256: regular.then_some(Ok(sha256)),
        xattrs: xattrs
            .map(|(name, value)| (name.to_vec(), value.to_vec()))
            .collect(),
    }
}

#[test]
fn the_corner_cases_are_as_written_down() {
    let corner = testkit::corner::image();
    let options = layer::Options::default();
    let differences = corner
        .expect
        .compare_found(found(&replay(&in_memory(&corner.layers), &options)));
    assert!(differences.is_empty(), "{differences:#?}");
}

fn open(shared: &Path, layout: &str, tag: &str) -> Side {
    let location = Location::OciLayout {
        dir: shared.join(layout),
        tag: Some(tag.to_owned()),
    };
    let source = Arc::new(Source::open(&location).unwrap());
    let (_, manifest) = source.manifests(&PlatformChoice::All).unwrap().remove(0);
    Side::image(&source, tag, manifest).unwrap()
}

#[test]
fn the_torture_image_is_as_expected() {
    let Some(shared) = testkit::shared_or_skip("the_torture_image_is_as_expected") else {
        return;
    };
    let side = open(&shared, "torture/image", "torture");
    let Files::Layers(layers) = &side.files else {
        panic!("an image of layers")
    };
    let expect = Expect::load(&shared.join("torture/expect.json")).unwrap();
    let differences = expect.compare_found(found(&replay(layers, &layer::Options::default())));
    assert!(differences.is_empty(), "{differences:#?}");
}

#[test]
fn the_reference_layers_are_as_expected() {
    let Some(shared) = testkit::shared_or_skip("the_reference_layers_are_as_expected") else {
        return;
    };
    let golden = shared.join("golden");
    let tars = ["lower.tar", "upper.tar"].map(|name| std::fs::read(golden.join(name)).unwrap());
    for (layers, expect) in [
        (&tars[..1], "lower.tar.expect.json"),
        (&tars[..], "merged.expect.json"),
    ] {
        let expect = Expect::load(&golden.join(expect)).unwrap();
        let differences = expect.compare_found(found(&replay(
            &in_memory(layers),
            &layer::Options::default(),
        )));
        assert!(differences.is_empty(), "{differences:#?}");
    }
}
