//! `stat`: figures of images, and what they share.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use testkit::shared_or_skip;
use testkit::tar::{Entry, Tar};

use crate::support::*;

/// What `--output-json` says.
#[track_caller]
fn stat(dir: &Path, args: &[&str]) -> Value {
    let report = dir.join("report.json");
    let ran = nydus_image(["stat", "-J", text(&report)].iter().chain(args)).ok();
    assert_eq!(ran.stdout, "");
    serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap()
}

/// A native layer of files that are one chunk each.
#[track_caller]
fn layer(dir: &Path, name: &str, seeds: &[u64]) -> PathBuf {
    let mut tar = Tar::new();
    for seed in seeds {
        let data = testkit::noise(*seed, 10_000 + *seed as usize);
        tar.add(Entry::file(format!("f{seed}"), data));
    }
    tar.add(Entry::hard("hard", format!("f{}", seeds[0])))
        .add(Entry::symlink("link", "hard"));
    let source = dir.join(format!("{name}.tar"));
    std::fs::write(&source, tar.finish()).unwrap();
    create(&source, &dir.join(name), &["--compressor", "none"])
}

#[test]
fn chunks_that_images_share_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let images = dir.path().join("images");
    std::fs::create_dir(&images).unwrap();
    layer(&images, "a", &[1, 2, 3]);
    layer(&images, "b", &[3, 4]);
    let target = layer(&images, "target", &[4, 1, 5, 6]);
    std::fs::write(images.join("no-bootstrap"), "text").unwrap();
    let found = stat(dir.path(), &["-D", text(&images), "-T", text(&target)]);
    assert_eq!(
        (&found["dedup_enabled"], &found["target_enabled"]),
        (&json!(true), &json!(true))
    );
    let keys = |image: &Value| {
        image
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect::<Vec<_>>()
    };
    let names = "dirs files symlinks chunks file_size comp_size uncomp_size padding_size chunk_sizes file_sizes \
        dedup_chunks dedup_comp_size dedup_uncomp_size own_chunks own_comp_size own_uncomp_size \
        ref_chunks ref_comp_size ref_uncomp_size";
    let names: Vec<&str> = names.split_whitespace().collect();
    for image in ["base_image", "target_image"] {
        assert_eq!(keys(&found[image]), names);
    }
    let (base, target) = (&found["base_image"], &found["target_image"]);
    // Two roots; a hard link is a name more, but no chunk more.
    for (key, value) in [
        ("dirs", 2),
        ("files", 7),
        ("symlinks", 2),
        ("chunks", 5),
        ("own_chunks", 5),
        ("dedup_chunks", 4),
        ("ref_chunks", 0),
        ("file_size", 50_013),
        ("own_uncomp_size", 50_013),
        ("dedup_uncomp_size", 40_010),
    ] {
        assert_eq!(base[key], value, "{key}");
    }
    for (key, value) in [
        ("dirs", 1),
        ("files", 5),
        ("chunks", 4),
        ("ref_chunks", 2),
        ("ref_uncomp_size", 20_005),
        ("own_chunks", 2),
        ("own_uncomp_size", 20_011),
        ("own_comp_size", 20_011),
        ("dedup_chunks", 0),
    ] {
        assert_eq!(target[key], value, "{key}");
    }
    assert_eq!(base["file_sizes"].as_array().unwrap().len(), 45);
    assert_eq!(base["file_sizes"][14], 5);
    assert_eq!(base["chunk_sizes"], json!([15, 10, 5, 5, 5, 5, 5, 5, 5]));
    // For a person, on stdout.
    let ran = nydus_image([
        "stat",
        "-D",
        text(&images),
        "-T",
        text(&images.join("target")),
    ]);
    ran.ok().says(&[
        "Base images\n",
        "Target image\n",
        "sharing chunks saves          50.0 %  19.5 KiB\n",
        "skipped 1 files",
    ]);
    nydus_image(["stat"]).exits(2);
    nydus_image(["stat", "-B", text(&images.join("no-bootstrap"))]).exits(1);
}

#[test]
fn the_deployed_builders_images_are_counted() {
    let Some(shared) = shared_or_skip("the_deployed_builders_images_are_counted") else {
        return;
    };
    let golden = shared.join("golden");
    let dir = tempfile::tempdir().unwrap();
    let figures = |name: &str, args: &[&str]| {
        let path = golden.join(name);
        stat(dir.path(), &[&["-B", text(&path)], args].concat())
    };
    let v6 = figures("v6-zstd.blob", &[]);
    let base = |of: &Value, key: &str| of["base_image"][key].clone();
    // Whatever the layout and the compressor, it is one tree.
    for name in [
        "v5-lz4.blob",
        "v5-separate.boot",
        "v6-lz4-sha256.blob",
        "v6-none.blob",
        "v6-zran.blob",
    ] {
        let other = figures(name, &[]);
        for key in [
            "dirs",
            "files",
            "symlinks",
            "file_size",
            "file_sizes",
            "chunk_sizes",
            "padding_size",
            "uncomp_size",
        ] {
            assert_eq!(base(&other, key), base(&v6, key), "{name}: {key}");
        }
    }
    // An image has all its chunks in itself.
    let path = golden.join("v6-zstd.blob");
    let same = figures("v6-zstd.blob", &["-T", text(&path)]);
    assert_eq!(same["target_image"]["ref_chunks"], base(&v6, "own_chunks"));
    assert_eq!(same["target_image"]["own_chunks"], 0);
    assert_ne!(base(&v6, "own_chunks"), base(&v6, "chunks"));
}
