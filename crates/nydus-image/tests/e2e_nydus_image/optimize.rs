//! Optimisation: what is needed first in a blob of its own, the same files.

use std::fs;
use std::path::Path;

use rafs_format::BlobFeatures;
use testkit::run::Ran;
use testkit::scan::names;
use testkit::tar::{Entry, Tar};
use testkit::{noise, prose, shared_or_skip};

use crate::stack::{Stack, chunks, image, json};
use crate::support::*;
use crate::unpack::{assert_same, unpack};

fn layers() -> Vec<Vec<u8>> {
    let mut lower = Tar::new();
    lower
        .add(Entry::file("bin/large", noise(1, 50_000)))
        .add(Entry::hard("bin/link", "bin/large"))
        .add(Entry::file("bin/first", prose(2, 9000)))
        .add(Entry::file("bin/rest", prose(3, 20_000)))
        .add(Entry::file("bin/copy", prose(2, 9000)))
        .add(Entry::symlink("bin/symlink", "first"));
    let mut upper = Tar::new();
    upper
        .add(Entry::file("etc/config", prose(4, 3000)))
        .add(Entry::file("etc/again", prose(2, 9000)));
    vec![lower.finish(), upper.finish()]
}

const LIST: &str = r#"{"version": "v1", "files": [
    {"path": "/etc/config"},
    {"path": "relative"},
    {"path": "/bin/first"},
    {"path": "/etc/again"},
    {"path": "/bin/link", "ranges": [[5000, 10], [16384, 4097], [400000, 1]]},
    {"path": "/bin/symlink"},
    {"path": "/gone"},
    {"path": "/bin"},
    {"path": "/etc/config", "ranges": null}
]}"#;

/// Chunks of 4 KiB.
const SMALL: &str = "--chunk-size 0x1000";

#[track_caller]
fn optimize(stack: &Stack, list: &str) -> Ran {
    let path = stack.path("list.json");
    fs::write(&path, list).unwrap();
    let (blobs, out) = (stack.blobs(), stack.path("out"));
    let words = [
        "optimize",
        "-B",
        text(&stack.bootstrap),
        "-p",
        text(&path),
        "-O",
        text(&out),
    ];
    nydus_image(
        words
            .iter()
            .chain(&["--output-blob-dir", text(&blobs), "-D", text(&blobs)]),
    )
}

#[test]
fn listed_files_lie_in_the_last_blob_in_order() {
    for options in [
        "-v 6 --features blob-toc",
        "-v 6 --compressor lz4_block",
        "-v 6 --compressor none --digester sha256",
        "-v 5",
    ] {
        let stack = Stack::new(&layers(), &format!("{options} {SMALL}"));
        let ran = optimize(&stack, LIST).ok();
        for left_out in [
            "relative: the path is not absolute",
            "/bin/symlink: not a regular file",
            "/gone: the image has no such file",
            "/bin: not a regular file",
        ] {
            assert!(ran.stderr.contains(left_out), "{left_out}: {ran}");
        }
        let out = stack.path("out");
        nydus_image(["check", "-D", text(&stack.blobs()), text(&out)]).ok();
        let (old, new) = (image(&stack.bootstrap), image(&out));
        assert_eq!(new.blobs.len(), 3);
        for (old, new) in old.blobs.iter().zip(&new.blobs) {
            assert_eq!(old, new, "blobs that were there stay as they are");
        }
        let prefetch = &new.blobs[2];
        let kind = BlobFeatures::SEPARATED_WITH_PREFETCH_FILES | BlobFeatures::CAP_TAR_TOC;
        assert!(prefetch.features.contains(kind));
        let bytes = fs::read(stack.blobs().join(prefetch.id.as_str())).unwrap();
        assert_eq!(testkit::sha256(&bytes), prefetch.id.as_str());
        // One behind the other from the beginning on, stored as they were.
        let mut end = 0;
        let large = chunks(&new, "/bin/large");
        let wanted = [1, 4, 5].map(|at| large[at]);
        let listed = [
            chunks(&new, "/etc/config"),
            chunks(&new, "/bin/first"),
            wanted.to_vec(),
        ];
        for (blob, from, to) in listed.concat() {
            assert_eq!((blob, from), (2, end), "{options}");
            end = to;
        }
        assert_eq!(end, prefetch.data_size());
        assert_eq!(prefetch.chunk_count, 1 + 3 + 3);
        // Hard links, and files with the same chunks, follow; others stay.
        assert_eq!(chunks(&new, "/bin/link"), large);
        assert_eq!(chunks(&new, "/bin/copy"), chunks(&new, "/bin/first"));
        assert_eq!(chunks(&new, "/etc/again"), chunks(&new, "/bin/first"));
        assert_eq!(chunks(&new, "/bin/rest"), chunks(&old, "/bin/rest"));
        for (at, chunk) in large.iter().enumerate() {
            assert_eq!(chunk.0 == 2, [1, 4, 5].contains(&at));
        }
        assert_same(&stack.tar(&out), &stack.tar(&stack.bootstrap), options);
        // The same list gives the same blob and bootstrap.
        let bootstrap = fs::read(&out).unwrap();
        let blobs = names(&stack.blobs());
        optimize(&stack, LIST).ok();
        assert!(fs::read(&out).unwrap() == bootstrap);
        assert_eq!(names(&stack.blobs()), blobs);
    }
}

#[test]
fn there_is_but_one_blob_to_fetch_first() {
    let mut stack = Stack::new(&layers(), "");
    optimize(&stack, LIST).ok();
    fs::rename(stack.path("out"), stack.path("once")).unwrap();
    stack.bootstrap = stack.path("once");
    optimize(
        &stack,
        r#"{"version":"v1","files":[{"path":"/bin/rest"},{"path":"/bin/first"}]}"#,
    )
    .ok();
    let out = stack.path("out");
    let first: Vec<bool> = image(&out)
        .blobs
        .iter()
        .map(|blob| {
            blob.features
                .contains(BlobFeatures::SEPARATED_WITH_PREFETCH_FILES)
        })
        .collect();
    assert_eq!(first, [false, false, false, true]);
    assert_same(&stack.tar(&out), &stack.tar(&stack.bootstrap), "twice");
}

#[test]
fn chunks_of_another_compressor_are_stored_again() {
    let layers = layers();
    let options = ["--compressor zstd", "--compressor lz4_block"];
    let stack = Stack::mixed(layers.iter().map(|tar| &tar[..]).zip(options));
    let list = r#"{"version":"v1","files":[{"path":"/etc/config"},{"path":"/bin/rest"}]}"#;
    optimize(&stack, list).ok();
    let out = stack.path("out");
    nydus_image(["check", "-D", text(&stack.blobs()), text(&out)]).ok();
    let image = image(&out);
    // Most of it was of the lower layer.
    assert_eq!(image.blobs[2].compressor.name(), "zstd");
    assert_eq!(chunks(&image, "/etc/config")[0].0, 2);
    assert_same(
        &stack.tar(&out),
        &stack.tar(&stack.bootstrap),
        "two compressors",
    );
}

#[test]
fn batches_are_taken_apart_and_encrypted_blobs_are_left() {
    let name = "batches_are_taken_apart_and_encrypted_blobs_are_left";
    let Some(shared) = shared_or_skip(name) else {
        return;
    };
    let golden = shared.join("golden");
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    for (name, moved) in [("v6-batch", true), ("v6-encrypt", false), ("v5-lz4", true)] {
        let blob = path(name);
        fs::copy(golden.join(format!("{name}.blob")), &blob).unwrap();
        let before = image(&blob);
        let mut files = Vec::new();
        let mut walk = before.tree.walk();
        while let Some(visit) = walk.next() {
            if let tree::Content::Regular { size: 1.., .. } = before.tree.inode(visit.id).content
                && let Ok(path) = String::from_utf8(walk.path(&visit))
            {
                files.push(serde_json::json!({ "path": path }));
            }
        }
        assert!(files.len() > 5);
        let list = serde_json::json!({ "version": "v1", "files": files });
        fs::write(path("list"), list.to_string()).unwrap();
        let (out, report) = (path("out"), path("report"));
        let (list, new) = (path("list"), path("new"));
        fs::create_dir(&new).unwrap();
        let words = [
            "optimize",
            "-B",
            text(&blob),
            "-p",
            text(&list),
            "-O",
            text(&out),
            "-J",
        ];
        let more = [
            text(&report),
            "--output-blob-dir",
            text(&new),
            "-D",
            text(dir.path()),
        ];
        let ran = nydus_image(words.iter().chain(&more)).ok();
        let ids = json(&report)["blobs"].as_array().unwrap().len();
        assert_eq!(ids, 1 + usize::from(moved), "{name}");
        assert_eq!(names(&new).len(), usize::from(moved));
        assert_eq!(ran.stderr.contains("encrypted"), !moved, "{ran}");
        for blob in names(&new) {
            fs::rename(new.join(&blob), path(&blob)).unwrap();
        }
        fs::remove_dir(&new).unwrap();
        let tar = |bootstrap: &Path| {
            let words = ["-B", text(bootstrap), "-D", text(dir.path())];
            unpack(&path("tar"), &words)
        };
        assert_same(
            &tar(&out),
            &fs::read(golden.join("lower.tar")).unwrap(),
            name,
        );
    }
}

#[test]
fn batches_of_ours_are_taken_apart_and_encrypted_chunks_are_left() {
    let layers = layers();
    let options = ["--batch-size 0x8000", "--encrypt --batch-size 0x8000"];
    let stack = Stack::mixed(layers.iter().map(|tar| &tar[..]).zip(options));
    let ran = optimize(&stack, LIST).ok();
    assert!(
        ran.stderr.contains("/etc/config: its blob is encrypted"),
        "{ran}"
    );
    let out = stack.path("out");
    nydus_image(["check", "-D", text(&stack.blobs()), text(&out)]).ok();
    let image = image(&out);
    assert_eq!(chunks(&image, "/bin/first")[0].0, 2);
    // The file that lies in a batch and the one that does not.
    assert_eq!(image.blobs[2].chunk_count, 2);
    assert_same(
        &stack.tar(&out),
        &stack.tar(&stack.bootstrap),
        "batched and encrypted",
    );
    let blobs = stack.blobs();
    let words = ["compact", "-B", text(&stack.bootstrap), "-D", text(&blobs)];
    nydus_image(words.iter().chain(&["--layers-to-compact", "0"])).ok();
    assert!(!stack.path("image.bootstrap.compact").exists());
}

/// Only the bound of a chunk's stored size is known, and the compressor is one that is never written.
#[test]
fn chunks_of_an_estargz_layer_are_stored_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let entries = [
        Entry::file("first", prose(1, 70_000)),
        Entry::file("rest", noise(2, 9000)),
    ];
    let layer = testkit::estargz::estargz(&entries, 0x8000);
    let id = testkit::sha256(&layer.blob);
    fs::write(path(&id), &layer.blob).unwrap();
    let (boot, out, list, blob) = (path("boot"), path("out"), path("list"), path(&id));
    let words = ["create", "-t", "estargztoc-ref", "-B", text(&boot)];
    let more = ["--blob-id", &id, "--chunk-size", "0x8000", text(&blob)];
    nydus_image(words.iter().chain(&more)).ok();
    fs::write(
        &list,
        r#"{"version":"v1","files":[{"path":"/first","ranges":[[40000,1]]}]}"#,
    )
    .unwrap();
    let at = text(dir.path());
    let words = [
        "optimize",
        "-B",
        text(&boot),
        "-p",
        text(&list),
        "-O",
        text(&out),
    ];
    nydus_image(words.iter().chain(&["--output-blob-dir", at, "-D", at])).ok();
    nydus_image(["check", "-D", at, text(&out)]).ok();
    let image = image(&out);
    let blobs: Vec<_> = chunks(&image, "/first")
        .iter()
        .map(|chunk| chunk.0)
        .collect();
    assert_eq!(blobs, [0, 1, 0]);
    assert_eq!(image.blobs[1].compressor.name(), "zstd");
    let tar = |bootstrap: &Path| unpack(&path("tar"), &["-B", text(bootstrap), "-D", at]);
    assert_same(&tar(&out), &tar(&boot), "eStargz");
    // Nor is it compacted.
    let words = ["compact", "-B", text(&out), "-D", at, "-O", text(&list)];
    let before = fs::read(&list).unwrap();
    nydus_image(
        words
            .iter()
            .chain(&["--layers-to-compact", "0", "--min-used-ratio", "100"]),
    )
    .ok();
    assert!(fs::read(&list).unwrap() == before);
}

#[test]
fn without_files_there_is_no_blob() {
    let stack = Stack::new(&layers(), "");
    let blobs = names(&stack.blobs());
    for list in [
        "",
        r#"{"version":"v1","files":[]}"#,
        r#"{"version":"v1","files":[{"path":"/none"}]}"#,
    ] {
        let ran = optimize(&stack, list).ok();
        assert!(ran.stderr.contains("no blob is written"), "{ran}");
        assert!(fs::read(stack.path("out")).unwrap() == fs::read(&stack.bootstrap).unwrap());
        assert_eq!(names(&stack.blobs()), blobs);
    }
}

#[test]
fn what_cannot_be_optimized_leaves_nothing() {
    let stack = Stack::new(&layers(), "");
    let blobs = names(&stack.blobs());
    optimize(&stack, "/bin/first\n")
        .exits(1)
        .fails_with(&["list.json", "JSON such as"]);
    optimize(&stack, r#"{"version":"v2","files":[]}"#)
        .exits(1)
        .fails_with(&["\"v2\""]);
    let bytes: Vec<_> = blobs
        .iter()
        .map(|name| fs::read(stack.blobs().join(name)).unwrap())
        .collect();
    for (name, bytes) in blobs.iter().zip(&bytes) {
        let mut damaged = bytes.clone();
        damaged[100] ^= 1;
        fs::write(stack.blobs().join(name), damaged).unwrap();
    }
    let all = r#"{"version":"v1","files":[{"path":"/bin/large"},{"path":"/etc/config"}]}"#;
    optimize(&stack, all)
        .exits(1)
        .fails_with(&["image.boot", "chunk 0"]);
    assert_eq!(names(&stack.blobs()), blobs);
    assert!(!stack.path("out").exists());
    let list = stack.path("list.json");
    let words = [
        "optimize",
        "-B",
        text(&stack.bootstrap),
        "-p",
        text(&list),
        "--output-blob-dir",
    ];
    let run = |more: &[&str]| nydus_image(words.iter().chain(more));
    run(&[text(&stack.blobs())])
        .exits(2)
        .says(&["--blob-dir", "--backend-type"]);
    run(&["/nonexistent"]).exits(1).says(&["--output-blob-dir"]);
    run(&[text(&stack.blobs()), "-C", "/nonexistent"])
        .exits(1)
        .says(&["/nonexistent"]);
    // The directory of a daemon's configuration has the blobs, which are damaged.
    let config = stack.path("config.json");
    let backend = serde_json::json!({ "type": "localfs", "config": { "dir": stack.blobs() } });
    let text_of = serde_json::json!({ "device": { "backend": backend } }).to_string();
    fs::write(&config, text_of).unwrap();
    run(&[text(&stack.blobs()), "-C", text(&config)])
        .exits(1)
        .fails_with(&["chunk 0"]);
    fs::remove_file(config).unwrap();
    assert_eq!(
        names(stack.dir.path()),
        ["blobs", "image.boot", "list.json"]
    );
}
