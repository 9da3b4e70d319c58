//! `--batch-size`, `--encrypt` and `--blob-cache-dir`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use storage::{DirSource, complete_cache_files, load_bootstrap};
use testkit::tar::{Entry, Tar};

use crate::support::*;
use crate::trees::trees;

/// Small files, larger ones between them, and copies; no two `seed`s have all in common.
fn tar(seed: u64) -> Vec<u8> {
    let mut tar = Tar::new();
    for number in 0..300_u64 {
        let data = testkit::prose(number / 2 * seed, 40 * number as usize);
        tar.add(Entry::file(format!("{seed}/{number}"), data));
    }
    tar.add(Entry::file("large", testkit::noise(1, 1_200_000)))
        .add(Entry::file("tiny", "x"))
        .add(Entry::hard("link", "tiny"));
    tar.finish()
}

/// A directory with a layer.
fn place() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("layer.tar");
    fs::write(&source, tar(1)).unwrap();
    (dir, source)
}

#[track_caller]
fn assert_unpacks(args: &[&str], out: &Path, expected: &[u8]) {
    nydus_image(["unpack", "--output", text(out)].iter().chain(args)).ok();
    let [before, after] = trees([expected, &fs::read(out).unwrap()]);
    assert!(before == after, "{args:?}");
}

#[test]
fn layers_with_batches_and_encryption_are_checked_and_read() {
    let (dir, source) = place();
    let out = dir.path().join("out.tar");
    for (number, options) in [
        &["--batch-size", "0x10000"][..],
        &["--batch-size", "4096", "--compressor", "lz4_block"],
        &["--encrypt"],
        &["-E", "--batch-size", "0x8000", "--digester", "sha256"],
        &[
            "--encrypt",
            "--compressor",
            "none",
            "--chunk-size",
            "0x1000",
        ],
    ]
    .iter()
    .enumerate()
    {
        let blob = create(&source, &dir.path().join(format!("{number}.blob")), options);
        nydus_image(["check", "-v", text(&blob)]).ok();
        assert_unpacks(&["-B", text(&blob)], &out, &tar(1));
    }
}

#[test]
fn batches_do_not_depend_on_threads_and_keys_are_new_each_time() {
    let (dir, source) = place();
    let made = |name: &str, options: &[&str]| {
        fs::read(create(&source, &dir.path().join(name), options)).unwrap()
    };
    let batched = ["--batch-size", "0x4000", "--threads"];
    let one = made("one", &[&batched[..], &["1", "--memory", "1"]].concat());
    assert!(one == made("four", &[&batched[..], &["4"]].concat()));
    let plain = made("plain", &["--encrypt"]);
    assert!(plain != made("again", &["--encrypt"]));
}

#[test]
fn batched_layers_are_merged_also_over_a_batched_dictionary() {
    let (dir, lower) = place();
    let path = dir.path();
    let upper = path.join("upper.tar");
    fs::write(&upper, tar(3)).unwrap();
    let batched = ["--batch-size", "0x10000"];
    let low = create(&lower, &path.join("low"), &batched);
    let dictionary = ["--chunk-dict", text(&low)];
    let high = create(&upper, &path.join("high"), &[batched, dictionary].concat());
    let merged = path.join("merged");
    let merge = ["merge", "-B", text(&merged), text(&low), text(&high)];
    nydus_image(merge.iter().chain(&dictionary)).ok();
    let mut both = Tar::new();
    for seed in [1, 3] {
        for number in 0..300_u64 {
            let data = testkit::prose(number / 2 * seed, 40 * number as usize);
            both.add(Entry::file(format!("{seed}/{number}"), data));
        }
    }
    both.add(Entry::file("large", testkit::noise(1, 1_200_000)))
        .add(Entry::file("tiny", "x"))
        .add(Entry::hard("link", "tiny"));
    let args = ["-B", text(&merged), "--blob-dir", text(path)];
    assert_unpacks(&args, &path.join("out.tar"), &both.finish());
    // What the dictionary has is not stored again, though it is in batches there.
    assert!(fs::metadata(&high).unwrap().len() < 700_000);
    let v5 = path.join("v5");
    nydus_image([
        "transcode",
        "--to",
        "5",
        "-B",
        text(&merged),
        "-O",
        text(&v5),
    ])
    .exits(1)
    .says(&["in batches"]);
    assert!(!v5.exists());
}

#[test]
fn encrypted_layers_are_merged_as_converters_do_it() {
    let (dir, lower) = place();
    let path = dir.path();
    let upper = path.join("upper.tar");
    let mut tar = Tar::new();
    fs::write(
        &upper,
        tar.add(Entry::file("new", "of the upper layer")).finish(),
    )
    .unwrap();
    let blobs = path.join("blobs");
    fs::create_dir(&blobs).unwrap();
    let mut layers = Vec::new();
    for (name, source) in [("low", &lower), ("high", &upper)] {
        let blob = create(
            source,
            &path.join(name),
            &["--encrypt", "--batch-size", "0x1000"],
        );
        let bytes = fs::read(&blob).unwrap();
        let boot = path.join(format!("{name}.boot"));
        fs::write(&boot, bootstrap(&bytes)).unwrap();
        let digest = testkit::sha256(&bytes);
        fs::rename(&blob, blobs.join(&digest)).unwrap();
        let toc = section(&bytes, "rafs.blob.toc").unwrap();
        layers.push((boot, digest, bytes.len(), testkit::sha256(&toc)));
    }
    let [(low, first, size, toc), (high, second, size2, toc2)] = &layers[..] else {
        panic!("two layers")
    };
    let merged = path.join("merged");
    let digests = format!("{first},{second}");
    let (sizes, tocs) = (format!("{size},{size2}"), format!("{toc},{toc2}"));
    nydus_image([
        "merge",
        "--bootstrap",
        text(&merged),
        text(low),
        text(high),
        "--blob-digests",
        &digests,
        "--blob-sizes",
        &sizes,
        "--blob-toc-digests",
        &tocs,
    ])
    .ok();
    let args = ["-B", text(&merged), "--blob-dir", text(&blobs)];
    let out = path.join("out.tar");
    nydus_image(["unpack", "--output", text(&out)].iter().chain(&args)).ok();
    let bytes = fs::read(&out).unwrap();
    for content in [testkit::noise(1, 1_200_000), b"of the upper layer".to_vec()] {
        assert!(bytes.windows(content.len()).any(|part| part == content));
    }
    // Nothing of the data is in clear.
    let stored = fs::read(blobs.join(first)).unwrap();
    let noise = testkit::noise(1, 64);
    assert!(!stored.windows(64).any(|part| part == noise));
}

#[test]
fn chunk_data_alone_will_do_unless_nothing_says_where_batches_end() {
    let (dir, source) = place();
    let (boot, data) = (dir.path().join("image.boot"), dir.path().join("image.blob"));
    let out = dir.path().join("out.tar");
    let args = ["-B", text(&boot), "--blob", text(&data)];
    let cut = |options: &[&str]| {
        let blob = create(&source, &dir.path().join("layer.blob"), options);
        let bytes = fs::read(&blob).unwrap();
        fs::write(&boot, bootstrap(&bytes)).unwrap();
        fs::write(&data, section(&bytes, "image.blob").unwrap()).unwrap();
    };
    for options in [
        &["--encrypt"][..],
        &["--batch-size", "0x10000"],
        &["--batch-size", "0x1000"],
        &["--batch-size", "0x100000", "--digester", "sha256"],
        &["--batch-size", "0x8000", "--compressor", "none"],
    ] {
        cut(options);
        assert_unpacks(&args, &out, &tar(1));
        fs::remove_file(&out).unwrap();
    }
    for options in [
        &["--batch-size", "0x10000", "--compressor", "lz4_block"][..],
        &["--batch-size", "0x10000", "--encrypt"],
    ] {
        cut(options);
        nydus_image(["unpack", "--output", text(&out)].iter().chain(&args))
            .exits(1)
            .says(&["batches", "whole blob"]);
        assert!(!out.exists());
    }
    // What does not compress is stored as it is, several files in a row.
    let mut noise = Tar::new();
    for number in 0..100 {
        noise.add(Entry::file(
            format!("{number}"),
            testkit::noise(number, 700),
        ));
        if number % 30 == 0 {
            noise.add(Entry::file(
                format!("text{number}"),
                testkit::prose(number, 900),
            ));
        }
    }
    let noise = noise.finish();
    fs::write(&source, &noise).unwrap();
    cut(&["--batch-size", "0x1000"]);
    assert_unpacks(&args, &out, &noise);
    fs::remove_file(&out).unwrap();
    fs::write(&source, tar(1)).unwrap();
    // Damage is found, wherever it is.
    cut(&["--batch-size", "0x10000"]);
    let sound = fs::read(&data).unwrap();
    for at in [0, 5, 40, sound.len() / 2, sound.len() - 1] {
        let mut damaged = sound.clone();
        damaged[at] ^= 0x55;
        fs::write(&data, damaged).unwrap();
        nydus_image(["unpack", "--output", text(&out)].iter().chain(&args)).exits(1);
        assert!(!out.exists(), "{at}");
    }
}

#[test]
fn cache_files_are_those_of_a_complete_cache() {
    let (dir, source) = place();
    let path = dir.path();
    let cache = path.join("cache");
    fs::create_dir(&cache).unwrap();
    let boot = path.join("boot");
    for more in [
        &[][..],
        &["--features", "blob-toc"],
        &["--batch-size", "0x10000"],
        &["--chunk-size", "0x1000", "--digester", "sha256"],
        &["--blob-id", "name"],
    ] {
        let usual = [
            "create",
            "--type",
            "tar-rafs",
            "-B",
            text(&boot),
            text(&source),
        ];
        let made = |place: &[&str]| {
            nydus_image(usual.iter().chain(more).chain(place)).ok();
            fs::read(&boot).unwrap()
        };
        let with_cache = made(&["--blob-cache-dir", text(&cache)]);
        let blobs = path.join("blobs");
        fs::create_dir(&blobs).unwrap();
        // The image is the one whose blob would have been written.
        let with_blob = made(&["--blob-dir", text(&blobs), "--compressor", "none"]);
        assert!(with_cache == with_blob, "{more:?}");

        let loaded = load_bootstrap(&boot).unwrap();
        let source = Arc::new(DirSource(blobs.clone()));
        let filled = path.join("filled");
        let files = complete_cache_files(&loaded.bootstrap, source, &filled).unwrap();
        let info = &loaded.bootstrap.blobs()[0];
        let of = |kind: &str| fs::read(cache.join(format!("{}.blob.{kind}", info.id))).unwrap();
        assert!(of("data") == fs::read(&files[0]).unwrap(), "{more:?}");

        let blob = storage::FileBlob::open(&blobs.join(info.id.as_str())).unwrap();
        let (mut table, header) = storage::read_chunk_table(info, &blob).unwrap();
        table.resize(table.len().next_multiple_of(4096), 0);
        table.extend(header);
        assert!(of("meta") == table, "{more:?}");
        // Neither the blob nor anything unfinished.
        assert_eq!(fs::read_dir(&cache).unwrap().count(), 2);
        for dir in [&blobs, &filled] {
            fs::remove_dir_all(dir).unwrap();
        }
        fs::remove_dir_all(&cache).unwrap();
        fs::create_dir(&cache).unwrap();
    }
}

#[test]
fn a_layer_without_data_leaves_no_cache_files() {
    let (dir, source) = place();
    let mut tar = Tar::new();
    fs::write(&source, tar.add(Entry::directory("d")).finish()).unwrap();
    let cache = dir.path().join("cache");
    fs::create_dir(&cache).unwrap();
    let boot = dir.path().join("boot");
    let words = [
        "create",
        "--type",
        "tar-rafs",
        "-B",
        text(&boot),
        text(&source),
    ];
    nydus_image(words.iter().chain(&["--blob-cache-dir", text(&cache)])).ok();
    assert!(boot.exists());
    assert_eq!(fs::read_dir(&cache).unwrap().count(), 0);
    // A failure leaves none either.
    fs::write(&source, &self::tar(1)[..5000]).unwrap();
    nydus_image(words.iter().chain(&["--blob-cache-dir", text(&cache)])).exits(1);
    assert_eq!(fs::read_dir(&cache).unwrap().count(), 0);
}

#[test]
fn contradictions_are_told_before_any_work() {
    let (dir, source) = place();
    let (boot, blob) = (dir.path().join("boot"), dir.path().join("blob"));
    let place = ["-b", text(&blob)];
    let cache = ["--blob-cache-dir", text(dir.path())];
    for (place, options, words) in [
        (
            place,
            &["--batch-size", "0x1000", "--fs-version", "5"][..],
            "--batch-size",
        ),
        (place, &["--batch-size", "0x200000"], "0x100000"),
        (place, &["--batch-size", "5000"], "power of two"),
        (place, &["--encrypt", "--fs-version", "5"], "--encrypt"),
        (cache, &["--fs-version", "5"], "--blob-cache-dir"),
        (cache, &["--encrypt"], "--encrypt"),
        (cache, &["-t", "estargz-rafs"], "estargz-rafs"),
        (cache, &["--compressor", "zstd"], "--compressor"),
        (cache, &["-b", "x"], "--blob"),
    ] {
        let kind = if options[0] == "-t" {
            &[][..]
        } else {
            &["-t", "tar-rafs"]
        };
        let usual = ["create", "-B", text(&boot), text(&source)];
        nydus_image(usual.iter().chain(kind).chain(&place).chain(options))
            .exits(2)
            .says(&[words]);
        assert!(!boot.exists() && !blob.exists(), "{options:?}");
    }
}
