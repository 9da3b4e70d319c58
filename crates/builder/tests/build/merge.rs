//! Merging layers that were built, and refusing those that do not fit together.

use bootstrap::Parsed;
use builder::{BuildOptions, Error, encode, encode_v6, load_image, merge};
use rafs_format::{BlobFeatures, Bootstrap, Compressor, Digester, Version};
use testkit::tar::{Entry, Tar};

use crate::{build, bytes, content, options};

#[test]
fn layers_are_laid_over_each_other_and_unused_blobs_go() {
    let mut tars = [Tar::new(), Tar::new(), Tar::new()];
    tars[0]
        .add(Entry::file("gone/data", bytes(1, 10_000)))
        .add(Entry::file(".wh.nothing", ""));
    tars[1].add(Entry::file("keep/data", bytes(2, 10_000)).mode(0o600));
    tars[2]
        .add(Entry::file(".wh.gone", ""))
        .add(Entry::file("keep/more", bytes(3, 10_000)));
    let built = tars.map(|tar| build(&tar.finish(), &options()));
    let images = built.iter().map(|(layer, _)| layer.image.clone()).collect();
    let merged = merge(images).unwrap();
    assert_eq!(
        merged.blobs.len(),
        2,
        "the lowest layer's blob is not used any more"
    );
    assert!(
        merged
            .blobs
            .iter()
            .all(|blob| !blob.features.contains(BlobFeatures::INLINED_FS_META))
    );
    assert!(
        merged.tree.lookup(b"/gone").is_none() && merged.tree.lookup(b"/.wh.nothing").is_none()
    );
    assert!(content(&merged, &[&built[1].1, &built[2].1], "/keep/more") == bytes(3, 10_000));
    Bootstrap::parse(encode_v6(&merged).unwrap())
        .unwrap()
        .check()
        .unwrap();
}

#[test]
fn an_implied_directory_is_still_implied_after_a_round_trip() {
    let mut lower = Tar::new();
    lower
        .add(Entry::directory("d").mode(0o700).owner(7, 8))
        .add(Entry::file("d/a", "a"));
    let mut upper = Tar::new();
    upper.add(Entry::file("d/b", "b"));
    let images = [lower, upper].map(|tar| {
        let (layer, _) = build(&tar.finish(), &options());
        load_image(&Bootstrap::parse(encode_v6(&layer.image).unwrap()).unwrap()).unwrap()
    });
    let merged = merge(images.into()).unwrap();
    let directory = merged.tree.inode(merged.tree.lookup(b"/d").unwrap());
    assert_eq!(
        (directory.mode & 0o7777, directory.uid, directory.gid),
        (0o700, 7, 8)
    );
}

#[test]
fn layers_that_do_not_fit_together_are_told_apart_from_other_errors() {
    let mut tar = Tar::new();
    tar.add(Entry::file("f", "data"));
    let (layer, _) = build(&tar.finish(), &options());
    let mut other = options();
    other.chunk_size = 0x10000;
    let (small, _) = build(&tar.finish(), &other);
    let mut other = options();
    other.explicit_owners = false;
    let (ownerless, _) = build(&tar.finish(), &other);
    for (odd, name) in [(small, "chunk size"), (ownerless, "explicit owners")] {
        let error = merge(vec![layer.image.clone(), odd.image]).unwrap_err();
        assert!(
            matches!(error, Error::Inconsistent { layer: 1, what, .. } if what == name),
            "{error:?}"
        );
    }
    assert!(matches!(merge(Vec::new()), Err(Error::NoLayers)));
}

#[test]
fn more_than_255_blobs_are_refused() {
    let images: Vec<_> = (0..256)
        .map(|i| {
            let mut tar = Tar::new();
            tar.add(Entry::file(format!("f{i}"), format!("data {i}")));
            build(&tar.finish(), &options_small()).0.image
        })
        .collect();
    assert!(merge(images[..255].to_vec()).is_ok());
    assert!(matches!(merge(images), Err(Error::TooManyBlobs(256))));
}

fn options_small() -> BuildOptions {
    let mut options = crate::options_with(1, 1 << 20);
    (options.blob_toc, options.inline_meta) = (false, false);
    options
}

fn v5() -> BuildOptions {
    BuildOptions {
        version: Version::V5,
        blob_toc: false,
        ..options()
    }
}

/// The deployed builder forgets to announce the attributes of such a link, and all that follows is shifted.
#[test]
fn v5_links_to_a_file_with_attributes_have_them_too() {
    let mut tar = Tar::new();
    tar.add(Entry::file("file", "content").xattr("user.a", "value"))
        .add(Entry::hard("link", "file"))
        .add(Entry::file("zz-last", "last"));
    let (layer, _) = build(&tar.finish(), &v5());
    let parsed = Parsed::parse(encode(&layer.image).unwrap()).unwrap();
    assert_eq!(parsed.check().unwrap().inodes, 3);
    let Parsed::V5(bootstrap) = &parsed else {
        panic!("v5")
    };
    for index in [2, 3] {
        let xattrs = bootstrap.inode(index).unwrap().xattrs().unwrap();
        assert_eq!(
            (&xattrs[0].name[..], xattrs[0].value),
            (&b"user.a"[..], &b"value"[..])
        );
    }
    assert_eq!(bootstrap.inode(4).unwrap().name, b"zz-last");
    // It survives being merged.
    let merged = merge(vec![parsed.load().unwrap()]).unwrap();
    Parsed::parse(encode(&merged).unwrap())
        .unwrap()
        .check()
        .unwrap();
}

#[test]
fn v5_layers_must_agree_about_version_digester_and_compressor() {
    let mut tar = Tar::new();
    tar.add(Entry::file("file", "content"));
    let tar = tar.finish();
    let image = |options: &BuildOptions| build(&tar, options).0.image;
    let sha256 = BuildOptions {
        digester: Digester::Sha256,
        ..v5()
    };
    let lz4 = BuildOptions {
        compressor: Compressor::Lz4Block,
        ..v5()
    };
    for (other, what) in [
        (options(), "RAFS version"),
        (sha256, "digester"),
        (lz4, "compressor"),
    ] {
        let merged = merge(vec![image(&v5()), image(&other)]);
        assert!(
            matches!(merged, Err(Error::Inconsistent { layer: 1, what: found, .. }) if found == what)
        );
    }
}

#[test]
fn a_table_of_contents_is_refused_in_v5() {
    let refused = builder::build_tar(
        &Tar::new().finish()[..],
        Vec::new(),
        &BuildOptions {
            version: Version::V5,
            ..options()
        },
        builder::Dedup::Layer,
    );
    assert!(matches!(refused, Err(Error::NotInV5(_))));
}
