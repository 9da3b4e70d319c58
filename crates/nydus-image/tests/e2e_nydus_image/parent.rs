//! `--parent-bootstrap` as `nydusify build` gives it: a directory over an image, the result read from both blobs.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use testkit::noise;
use testkit::run::{Ran, run_in};

use crate::support::*;
use crate::trees::trees;

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[track_caller]
fn run(dir: &Path, words: &str) -> Ran {
    run_in(dir, NYDUS_IMAGE, words)
}

/// Runs with patterns on standard input.
#[track_caller]
fn run_with(dir: &Path, words: &str, patterns: &str) -> Ran {
    let mut child = Command::new(NYDUS_IMAGE)
        .args(words.split_whitespace())
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(patterns.as_bytes()).ok();
    drop(stdin);
    Ran::new(words.to_owned(), child.wait_with_output().unwrap())
}

fn write(dir: &Path, path: &str, content: impl AsRef<[u8]>) {
    let path = dir.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

#[test]
fn pack_lays_a_directory_over_an_image() {
    for version in ["6", "5"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        let pack = |name: &str, more: &str| {
            run(
                path,
                &format!(
                    "create {more} --bootstrap {name}.meta --log-level warn --whiteout-spec oci --output-json \
                     output.json --blob blobs/{name}.blob --fs-version {version} --compressor zstd --chunk-size \
                     0x100000 {name}"
                ),
            )
            .ok();
            // The packer names the blob by its digest, if there is one.
            let blob = path.join(format!("blobs/{name}.blob"));
            if let Ok(data) = fs::read(&blob) {
                fs::rename(&blob, path.join("blobs").join(testkit::sha256(&data))).unwrap();
            }
            let report = json(&path.join("output.json"));
            assert_eq!(report["bootstrap"], format!("{name}.meta").as_str());
            report["blobs"].as_array().unwrap().clone()
        };
        fs::create_dir(path.join("blobs")).unwrap();
        write(path, "base/etc/kept", noise(1, 3000));
        write(path, "base/etc/gone", noise(2, 3000));
        write(path, "base/big", noise(3, 1_500_000));
        write(path, "upper/etc/.wh.gone", "");
        write(path, "upper/etc/new", noise(4, 3000));
        write(path, "upper/copy", noise(3, 1_500_000));
        write(path, "known/again", noise(4, 3000));
        let base = pack("base", "");
        let upper = pack("upper", "--parent-bootstrap base.meta --aligned-chunk");
        assert_eq!((base.len(), upper.len()), (1, 2));
        assert_eq!(base[0], upper[0], "the parent's blob comes first");
        let new = fs::metadata(path.join("blobs").join(upper[1].as_str().unwrap())).unwrap();
        assert!(new.len() < 20_000, "{} bytes", new.len());
        // Nothing new: no blob is left.
        fs::write(path.join("blobs/known.blob"), "").unwrap();
        let known = pack("known", "--parent-bootstrap upper.meta");
        assert_eq!(known, upper);
        let listed = run(path, "inspect known.meta --request blobs").ok();
        assert_eq!(listed.stderr, "");
        let listed: Value = serde_json::from_str(&listed.stdout).unwrap();
        assert_eq!(listed.as_array().unwrap().len(), 2);
        run(path, "check --bootstrap known.meta").ok();
        // What comes out is what lies over one another.
        write(path, "expected/etc/kept", noise(1, 3000));
        write(path, "expected/etc/new", noise(4, 3000));
        write(path, "expected/big", noise(3, 1_500_000));
        write(path, "expected/copy", noise(3, 1_500_000));
        write(path, "expected/again", noise(4, 3000));
        pack("expected", "");
        let unpack = |name: &str| {
            let words = format!("unpack --bootstrap {name}.meta --blob-dir blobs --output tar");
            run(path, &words).ok();
            fs::read(path.join("tar")).unwrap()
        };
        let (got, expected) = (unpack("known"), unpack("expected"));
        let [mut got, mut expected] = trees([&got, &expected]);
        for tree in [&mut got, &mut expected] {
            for id in 0..tree.len() as u32 {
                let inode = tree.inode_mut(tree::InodeId(id));
                (inode.mtime, inode.mtime_nsec) = (0, 0);
            }
        }
        assert!(got == expected, "RAFS {version}");
    }
}

#[test]
fn a_parent_that_does_not_fit_is_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    write(path, "base/file", "data");
    run(path, "create -B parent -b base.blob base").ok();
    let before = testkit::scan::names(path);
    for (options, what) in [
        ("--fs-version 5", "RAFS version"),
        ("--chunk-size 0x1000", "chunk size"),
        ("--repeatable", "explicit owners"),
        ("--parent-bootstrap missing", "missing"),
    ] {
        let parent = match options.contains("missing") {
            true => "",
            false => "--parent-bootstrap parent",
        };
        let words = format!("create {parent} {options} -B boot -b blob base");
        run(path, &words).exits(1).fails_with(&["parent", what]);
        assert_eq!(testkit::scan::names(path), before, "{words}");
    }
    run(path, "create -B boot -b blob --config base/file base")
        .exits(1)
        .fails_with(&["base/file"]);
}

#[test]
fn prefetched_files_are_the_head_of_the_blob_on_request() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    write(path, "source/a", noise(1, 5000));
    write(path, "source/z", noise(2, 7000));
    let readahead = |options: &str| {
        let words = format!(
            "create --compressor none --prefetch-policy blob -B boot -b blob {options} source"
        );
        run_with(path, &words, "/z\n").ok();
        let listed = run(path, "inspect boot --request blobs").ok().stdout;
        let listed: Value = serde_json::from_str(&listed).unwrap();
        assert_eq!(listed[0]["readahead_offset"], 0);
        let blob = fs::read(path.join("blob")).unwrap();
        assert!(blob.starts_with(&noise(2, 7000)), "{options}");
        run(path, "inspect boot --request prefetch").ok().stdout
            + &listed[0]["readahead_size"].to_string()
    };
    assert_eq!(readahead("--fs-version 5"), "[]7000");
    // v6 has no place for it.
    assert_eq!(readahead("--fs-version 6"), "[]0");
}
