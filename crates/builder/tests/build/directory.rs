//! Directories as the source.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use builder::{BuildOptions, BuiltLayer, Dedup, Whiteouts, build_directory};
use tree::Content;

use crate::{content, options};

fn source() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for name in ["b-dir", "a-dir", "a-dir/deep"] {
        fs::create_dir(at(name)).unwrap();
    }
    for name in [
        "z",
        "m",
        "b-dir/x",
        "a-dir/deep/y",
        "a-dir/w",
        ".wh.gone",
        "a-dir/.wh..wh..opq",
    ] {
        fs::write(at(name), format!("content of {name}")).unwrap();
    }
    fs::hard_link(at("m"), at("a-dir/link")).unwrap();
    symlink("../z", at("b-dir/s")).unwrap();
    fs::set_permissions(at("z"), fs::Permissions::from_mode(0o4750)).unwrap();
    dir
}

fn build(
    dir: &tempfile::TempDir,
    whiteouts: Whiteouts,
    options: &BuildOptions,
) -> (BuiltLayer, Vec<u8>) {
    let mut blob = Vec::new();
    let layer = build_directory(dir.path(), whiteouts, &mut blob, options, Dedup::Layer).unwrap();
    (layer, blob)
}

/// The files by where their (only) chunk lies in the blob.
fn order(layer: &BuiltLayer) -> Vec<String> {
    let mut files = Vec::new();
    let mut walk = layer.image.tree.walk();
    while let Some(visit) = walk.next() {
        if let Content::Regular { chunks, .. } = &layer.image.tree.inode(visit.id).content {
            let path = String::from_utf8(walk.path(&visit)).unwrap();
            files.push((layer.image.chunks[chunks[0].0 as usize].index, path));
        }
    }
    files.sort();
    files.into_iter().map(|(_, path)| path).collect()
}

#[test]
fn files_are_stored_in_canonical_order_without_whiteouts() {
    let dir = source();
    let (layer, blob) = build(&dir, Whiteouts::Oci, &options());
    assert_eq!(
        order(&layer),
        [
            "/a-dir/link",
            "/m",
            "/z",
            "/a-dir/w",
            "/a-dir/deep/y",
            "/b-dir/x"
        ]
    );
    let tree = &layer.image.tree;
    assert_eq!(tree.lookup(b"/m"), tree.lookup(b"/a-dir/link"));
    assert_eq!(
        tree.inode(tree.lookup(b"/z").unwrap()).mode & 0o7777,
        0o4750
    );
    assert_eq!(
        tree.inode(tree.lookup(b"/b-dir/s").unwrap()).content,
        Content::Symlink((*b"../z").into())
    );
    assert_eq!(
        tree.inode(tree::InodeId::ROOT).mtime,
        0,
        "the root's time would be that of the checkout"
    );
    assert_ne!(tree.inode(tree.lookup(b"/z").unwrap()).mtime, 0);
    assert_eq!(
        content(&layer.image, &[&blob], "/a-dir/w"),
        b"content of a-dir/w"
    );
}

#[test]
fn whiteouts_are_files_when_asked_for() {
    let dir = source();
    let (layer, _) = build(&dir, Whiteouts::None, &options());
    assert!(layer.image.tree.lookup(b"/.wh.gone").is_some());
    assert!(layer.image.tree.lookup(b"/a-dir/.wh..wh..opq").is_some());
}

#[test]
fn prefetched_files_come_first_by_pattern() {
    let dir = source();
    let mut options = options();
    options.prefetch = vec![
        b"/b-dir/x".to_vec(),
        b"/nothing".to_vec(),
        b"/a-dir/".to_vec(),
    ];
    let (layer, _) = build(&dir, Whiteouts::Oci, &options);
    assert_eq!(
        order(&layer),
        [
            "/b-dir/x",
            "/a-dir/link",
            "/m",
            "/a-dir/w",
            "/a-dir/deep/y",
            "/z"
        ]
    );
    let names =
        [b"/b-dir/x".as_slice(), b"/a-dir"].map(|path| layer.image.tree.lookup(path).unwrap());
    assert_eq!(layer.image.prefetch, names);
}

#[test]
fn a_missing_directory_is_named() {
    let error = build_directory(
        "/no/such/place".as_ref(),
        Whiteouts::Oci,
        Vec::new(),
        &options(),
        Dedup::Layer,
    );
    assert!(error.unwrap_err().to_string().contains("/no/such/place"));
}

#[test]
fn a_link_to_a_directory_is_followed_and_a_file_is_refused() {
    let dir = source();
    let links = tempfile::tempdir().unwrap();
    let link = links.path().join("link");
    symlink(dir.path(), &link).unwrap();
    let build = |path: &std::path::Path| {
        build_directory(path, Whiteouts::Oci, Vec::new(), &options(), Dedup::Layer)
    };
    let (direct, _) = self::build(&dir, Whiteouts::Oci, &options());
    assert_eq!(build(&link).unwrap().image.tree, direct.image.tree);
    assert!(
        build(&dir.path().join("z"))
            .unwrap_err()
            .to_string()
            .ends_with("/z")
    );
}
