//! Compaction: fewer blobs, the same files.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use testkit::run::Ran;
use testkit::scan::names;
use testkit::tar::{Entry, Tar};
use testkit::{noise, prose, shared_or_skip};

use crate::stack::{Stack, image, json};
use crate::support::*;
use crate::unpack::assert_same;

/// Layers with some files each, one of which is in all of them.
fn small_layers(count: u64) -> Vec<Vec<u8>> {
    let layer = |number: u64| {
        let mut tar = Tar::new();
        tar.add(Entry::file(format!("{number}/same"), prose(100, 9000)))
            .add(Entry::file(
                format!("{number}/prose"),
                prose(number, 20_000),
            ))
            .add(Entry::file(format!("{number}/noise"), noise(number, 5000)))
            .add(Entry::hard(
                format!("{number}/link"),
                format!("{number}/prose"),
            ))
            .add(Entry::file(format!("{number}/empty"), ""));
        tar.finish()
    };
    (0..count).map(layer).collect()
}

/// A layer of large files, and one that leaves little of them.
fn half_used() -> Vec<Vec<u8>> {
    let (mut lower, mut upper) = (Tar::new(), Tar::new());
    for number in 0..10 {
        lower.add(Entry::file(format!("{number}"), noise(number, 150_000)));
        if number != 7 {
            upper.add(Entry::file(format!(".wh.{number}"), ""));
        }
    }
    upper.add(Entry::file("new", prose(1, 5000)));
    vec![lower.finish(), upper.finish()]
}

#[track_caller]
fn compact(stack: &Stack, more: &str) -> Ran {
    let blobs = stack.blobs();
    let usual = ["compact", "-B", text(&stack.bootstrap), "-D", text(&blobs)];
    nydus_image(usual.into_iter().chain(more.split_whitespace()))
}

#[track_caller]
fn check(stack: &Stack, bootstrap: &Path) {
    nydus_image(["check", "-D", text(&stack.blobs()), text(bootstrap)]).ok();
}

#[test]
fn many_small_blobs_become_one() {
    for options in [
        "-v 6 --features blob-toc",
        "-v 6 --compressor lz4_block --chunk-size 0x1000",
        "-v 6 --compressor none --digester sha256",
        "-v 5",
        "-v 5 --aligned-chunk --compressor lz4_block",
    ] {
        let stack = Stack::new(&small_layers(5), options);
        let before: BTreeSet<_> = names(&stack.blobs()).into_iter().collect();
        assert_eq!(before.len(), 5);
        let report = stack.path("report");
        compact(
            &stack,
            &format!("--layers-to-compact 5 -J {}", text(&report)),
        )
        .ok();
        // The extension of the input is replaced.
        let out = stack.path("image.bootstrap.compact");
        check(&stack, &out);
        let new: Vec<_> = names(&stack.blobs())
            .into_iter()
            .filter(|name| !before.contains(name))
            .collect();
        let [new] = &new[..] else {
            panic!("{options}: {new:?}")
        };
        let bytes = fs::read(stack.blobs().join(new)).unwrap();
        assert_eq!(testkit::sha256(&bytes), *new);
        let report = json(&report);
        assert_eq!(report["blobs"], serde_json::json!([new]), "{options}");
        assert_eq!(report["bootstrap"], text(&out));
        assert_same(&stack.tar(&out), &stack.tar(&stack.bootstrap), options);
        let image = image(&out);
        let digests: BTreeSet<_> = image.chunks.iter().map(|chunk| chunk.digest).collect();
        assert_eq!(
            digests.len(),
            image.blobs[0].chunk_count as usize,
            "each content once"
        );
        // Nothing is left to do, and the second time it is the same.
        let blobs = stack.blobs();
        let again = ["compact", "-B", text(&out), "-D", text(&blobs)];
        nydus_image(again.into_iter().chain(["--layers-to-compact", "0"])).ok();
        assert!(!stack.path("image.bootstrap.bootstrap.compact").exists());
        let twice = stack.path("twice");
        compact(
            &stack,
            &format!("--layers-to-compact 0 -O {}", text(&twice)),
        )
        .ok();
        assert!(fs::read(&twice).unwrap() == fs::read(&out).unwrap());
    }
}

#[test]
fn a_blob_that_is_hardly_used_keeps_what_is_used() {
    for options in ["-v 6", "-v 5"] {
        let stack = Stack::new(&half_used(), options);
        let before = names(&stack.blobs());
        // Ten percent are used.
        let alone = "--layers-to-compact 0 --compact-blob-size 0 --min-used-ratio";
        compact(&stack, &format!("{alone} 10")).ok();
        assert_eq!(names(&stack.blobs()), before);
        let out = stack.path("image.bootstrap.compact");
        assert!(!out.exists());
        compact(&stack, &format!("{alone} 11")).ok();
        check(&stack, &out);
        let (old, new) = (image(&stack.bootstrap), image(&out));
        assert_eq!(new.blobs.len(), 2);
        let kept: Vec<_> = new
            .blobs
            .iter()
            .filter(|blob| old.blobs.contains(blob))
            .collect();
        assert_eq!(kept.len(), 1, "the upper layer stays as it is");
        let rebuilt = new
            .blobs
            .iter()
            .find(|blob| !old.blobs.contains(blob))
            .unwrap();
        assert_eq!(rebuilt.data_size(), 150_000);
        assert_same(&stack.tar(&out), &stack.tar(&stack.bootstrap), options);
    }
}

#[test]
fn blobs_become_no_larger_than_is_asked() {
    // Five blobs of some 15 KB each: two of them go together.
    let stack = Stack::new(&small_layers(5), "--compressor none");
    let out = stack.path("out");
    let run = |more: &str| compact(&stack, &format!("-O {} {more}", text(&out)));
    run("--layers-to-compact 6").ok();
    run("").ok();
    run("--layers-to-compact 0 --compact-blob-size 34000").ok();
    run("--layers-to-compact 0 --max-compact-size 50000").ok();
    assert!(!out.exists());
    run("--layers-to-compact 0 --compact-blob-size 34001 --max-compact-size 68000").ok();
    let image = image(&out);
    let mut sizes: Vec<_> = image.blobs.iter().map(|blob| blob.data_size()).collect();
    sizes.sort_unstable();
    // The file that both have is stored once.
    assert_eq!(sizes, [34_000, 59_000, 59_000]);
    assert_same(&stack.tar(&out), &stack.tar(&stack.bootstrap), "pairs");
}

#[test]
fn blobs_of_the_dictionary_and_of_other_compressors_stay_apart() {
    let layers = small_layers(4);
    let options = [
        "--compressor none",
        "--compressor zstd",
        "",
        "--compressor none",
    ];
    let stack = Stack::mixed(layers.iter().map(|tar| &tar[..]).zip(options));
    let out = stack.path("out");
    let before = image(&stack.bootstrap).blobs;
    // The dictionary is the second layer.
    let dictionary = stack.blobs().join(before[1].id.as_str());
    let dictionary = text(&dictionary);
    compact(
        &stack,
        &format!(
            "--layers-to-compact 0 -O {} --chunk-dict bootstrap={dictionary}",
            text(&out)
        ),
    )
    .ok();
    let after = image(&out).blobs;
    assert_eq!(after.len(), 3);
    for stays in &before[1..3] {
        assert!(after.iter().any(|blob| blob.id == stays.id));
    }
    assert_same(&stack.tar(&out), &stack.tar(&stack.bootstrap), "dictionary");
    compact(&stack, "--layers-to-compact 0 --chunk-dict registry=x").exits(2);
}

#[test]
fn images_of_the_deployed_builder_are_compacted() {
    let name = "images_of_the_deployed_builder_are_compacted";
    let Some(shared) = shared_or_skip(name) else {
        return;
    };
    let golden = shared.join("golden");
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let copy = |name: &str| {
        fs::copy(golden.join(format!("{name}.blob")), path(name)).unwrap();
    };
    for (lower, upper, movable) in [
        ("v6-zstd", "v6-upper", true),
        ("v5-lz4", "v5-upper", true),
        ("v6-batch", "v6-upper", false),
        ("v6-encrypt", "v6-upper", false),
    ] {
        copy(lower);
        copy(upper);
        let (merged, out) = (path("merged"), path("out"));
        let sources = [path(lower), path(upper)];
        let words = [
            "merge",
            "-B",
            text(&merged),
            text(&sources[0]),
            text(&sources[1]),
        ];
        let ran = nydus_image(words);
        if lower == "v5-lz4" && ran.code != 0 {
            // Layers of two compressors cannot be one image of v5.
            continue;
        }
        ran.ok();
        let words = ["compact", "-B", text(&merged), "-D", text(dir.path())];
        let more = ["-O", text(&out), "--layers-to-compact", "0"];
        nydus_image(words.into_iter().chain(more)).ok();
        assert_eq!(out.exists(), movable, "{lower}");
        if movable {
            let tar = |bootstrap: &Path| {
                let words = ["-B", text(bootstrap), "-D", text(dir.path())];
                crate::unpack::unpack(&path("tar"), &words)
            };
            assert_eq!(image(&out).blobs.len(), 1);
            assert_same(&tar(&out), &tar(&merged), lower);
            fs::remove_file(out).unwrap();
        }
    }
}

#[test]
fn blobs_come_from_a_backend_if_they_are_not_in_the_directory() {
    let stack = Stack::new(&small_layers(3), "");
    let out = stack.path("out");
    let new = stack.path("new");
    fs::create_dir(&new).unwrap();
    let ids = names(&stack.blobs());
    fs::rename(stack.blobs().join(&ids[0]), new.join(&ids[0])).unwrap();
    // The rest in another directory, on a disk, and on one that older tools made.
    let rest: Vec<_> = ids[1..]
        .iter()
        .map(|id| (&**id, fs::read(stack.blobs().join(id)).unwrap()))
        .collect();
    let rest: Vec<_> = rest.iter().map(|(id, bytes)| (*id, &bytes[..])).collect();
    let disk = testkit::gpt::disk(&rest);
    for (name, disk) in [("older", testkit::gpt::older(&disk, 0)), ("disk", disk)] {
        fs::write(stack.path(name), disk).unwrap();
    }
    let device = |name: &str| format!(r#"{{"device_path":"{}"}}"#, text(&stack.path(name)));
    let mut results = Vec::new();
    for (kind, config) in [
        (
            "localfs",
            format!(r#"{{"dir":"{}"}}"#, text(&stack.blobs())),
        ),
        ("localdisk", device("disk")),
        ("localdisk", device("older")),
    ] {
        let words = format!(
            "compact -B {} -D {} -O {} --layers-to-compact 0 --backend-type {kind} --backend-config {config}",
            text(&stack.bootstrap),
            text(&new),
            text(&out),
        );
        nydus_image(words.split(' ')).ok();
        let mut made = names(&new);
        assert_eq!(made.len(), 2, "{config}");
        nydus_image(["check", "-D", text(&new), text(&out)]).ok();
        made.retain(|name| *name != ids[0]);
        fs::remove_file(new.join(&made[0])).unwrap();
        results.extend(made);
    }
    results.dedup();
    assert_eq!(results.len(), 1, "wherever they came from");
}

#[test]
fn what_cannot_be_compacted_leaves_nothing() {
    let stack = Stack::new(&small_layers(3), "--compressor none");
    let before = names(stack.dir.path());
    let blobs = names(&stack.blobs());
    let blob = stack.blobs().join(&blobs[1]);
    let bytes = fs::read(&blob).unwrap();
    let mut damaged = bytes.clone();
    damaged[1000] ^= 1;
    fs::write(&blob, damaged).unwrap();
    let run = || compact(&stack, "--layers-to-compact 0");
    run()
        .exits(1)
        .fails_with(&["image.boot", &blobs[1], "digest"]);
    fs::write(&blob, &bytes[..2000]).unwrap();
    run().exits(1).fails_with(&[&blobs[1]]);
    assert_eq!(names(&stack.blobs()), blobs);
    fs::remove_file(&blob).unwrap();
    run().exits(1).fails_with(&[&blobs[1], "No such file"]);
    fs::write(&blob, bytes).unwrap();
    compact(&stack, "--layers-to-compact 0 -O nowhere/x")
        .exits(1)
        .fails_with(&["nowhere"]);
    compact(&stack, "--layers-to-compact 0 --min-used-ratio 101").exits(2);
    compact(&stack, "--layers-to-compact 0 --backend-type s3").exits(2);
    assert_eq!(names(&stack.blobs()), blobs);
    assert_eq!(names(stack.dir.path()), before);
}

#[test]
fn the_independent_decoder_verifies_a_compacted_image() {
    let name = "the_independent_decoder_verifies_a_compacted_image";
    let Some(shared) = shared_or_skip(name) else {
        return;
    };
    // SHA-256 is in Python's library, zstd is not.
    let stack = Stack::new(&small_layers(3), "--compressor none --digester sha256");
    let out = stack.path("out");
    compact(&stack, &format!("--layers-to-compact 0 -O {}", text(&out))).ok();
    let tool = shared.join("tools/rafsdump.py");
    let words = [text(&tool), "boot", text(&out), "--blob-dir"];
    let blobs = stack.blobs();
    let more = [text(&blobs), "--verify", "--no-inodes"];
    let dump = testkit::run::run("python3", words.into_iter().chain(more)).ok();
    let dump: serde_json::Value = serde_json::from_str(&dump.stdout).unwrap();
    assert_eq!(dump["verify"][0]["chunks_verified"], 7, "{dump}");
}
