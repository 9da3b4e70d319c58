//! The command lines that the deployed converters run, word for word, and what they look at afterwards.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use testkit::layout::{Packing, pack};
use testkit::run::{Ran, make_fifo, output};
use testkit::tar::{Entry, Tar};
use testkit::{noise, prose};

use crate::support::*;

fn lower() -> Vec<u8> {
    let mut tar = Tar::new();
    tar.add(Entry::directory("etc/"))
        .add(Entry::file("etc/config", prose(1, 3000)));
    tar.add(Entry::file("data", noise(1, 1_500_000)))
        .add(Entry::file("old", b"goes"));
    tar.finish()
}

fn upper() -> Vec<u8> {
    let mut tar = Tar::new();
    tar.add(Entry::file(".wh.old", b""))
        .add(Entry::file("etc/config", b"new"));
    tar.finish()
}

/// Runs the converter's `create`: FIFOs on both ends, prefetch patterns on standard input. `behind` is what stands
/// behind the end mark of the tar; the source has to be drained all the same.
fn through_fifos(dir: &Path, tar: &[u8], behind: &[u8]) -> (Ran, Vec<u8>) {
    let (source, blob) = (dir.join("blob.targz"), dir.join("blob.rafs"));
    for path in [&source, &blob] {
        let _ = std::fs::remove_file(path);
        make_fifo(path);
    }
    let mut child = Command::new(NYDUS_IMAGE)
        .args([
            "create",
            "--log-level",
            "warn",
            "--prefetch-policy",
            "fs",
            "--blob",
            text(&blob),
        ])
        .args([
            "--whiteout-spec",
            "none",
            "--fs-version",
            "6",
            "--type",
            "tar-rafs",
            "--blob-inline-meta",
        ])
        .args([
            "--features",
            "blob-toc",
            "--compressor",
            "zstd",
            "--aligned-chunk",
            "--chunk-size",
            "0x100000",
        ])
        .arg(&source)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let stream = [tar, behind].concat();
    let writer = std::thread::spawn(move || {
        std::fs::OpenOptions::new()
            .write(true)
            .open(source)?
            .write_all(&stream)
    });
    let reader = std::thread::spawn(move || std::fs::read(blob).unwrap());
    child.stdin.take().unwrap().write_all(b"/\n").unwrap();
    let ran = Ran::new("create".into(), child.wait_with_output().unwrap()).ok();
    writer
        .join()
        .unwrap()
        .expect("the source is drained to its end");
    (ran, reader.join().unwrap())
}

#[test]
fn a_layer_goes_through_fifos_and_merges() {
    let dir = tempfile::tempdir().unwrap();
    let mut sources = Vec::new();
    for tar in [lower(), upper()] {
        // Far more than a pipe holds, behind the end mark.
        let (ran, blob) = through_fifos(dir.path(), &tar, &vec![0; 1 << 20]);
        assert_eq!(ran.stdout, "");
        for name in [
            "image.blob",
            "blob.meta",
            "blob.digest",
            "image.boot",
            "rafs.blob.toc",
        ] {
            assert!(section(&blob, name).is_some(), "{name}");
        }
        // The consumer names the bootstrap by the digest of the whole blob.
        let digest = testkit::sha256(&blob);
        std::fs::write(dir.path().join(&digest), bootstrap(&blob)).unwrap();
        sources.push(digest);
    }
    let (json, merged) = (
        dir.path().join("merge-output.json"),
        dir.path().join("bootstrap"),
    );
    let merge = || {
        let mut command = Command::new(NYDUS_IMAGE);
        command.args([
            "merge",
            "--log-level",
            "warn",
            "--prefetch-policy",
            "fs",
            "--output-json",
            text(&json),
        ]);
        command
            .args(["--bootstrap", text(&merged)])
            .args(sources.iter().map(|digest| dir.path().join(digest)));
        command
    };
    output(&mut merge()).ok();
    let report: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let mut blobs: Vec<&str> = report["blobs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|blob| blob.as_str().unwrap())
        .collect();
    blobs.sort_unstable();
    let mut want: Vec<&str> = sources.iter().map(String::as_str).collect();
    want.sort_unstable();
    assert_eq!(blobs, want);
    assert_eq!(report["fs_version"], "6");
    assert_eq!(report["compressor"], "zstd");
    for key in [
        "version",
        "bootstrap",
        "external_bootstrap",
        "external_blobs",
        "trace",
    ] {
        assert!(!report[key].is_null(), "{key}");
    }

    let checked = dir.path().join("check.json");
    let arguments = [
        "check",
        "--log-level",
        "warn",
        "--output-json",
        text(&checked),
        "--bootstrap",
        text(&merged),
    ];
    let ran = nydus_image(arguments).ok();
    assert!(ran.stdout.contains(sources[0].as_str()), "{ran}");
    let compact = std::fs::read_to_string(&checked).unwrap();
    let report: Value = serde_json::from_str(&compact).unwrap();
    assert_eq!(report["blobs"].as_array().unwrap().len(), 2);
    assert!(
        compact.contains("\"blobs\":["),
        "check writes its JSON compact: {compact}"
    );

    // The same command gives the same bytes, and options may follow the sources.
    let first = std::fs::read(&merged).unwrap();
    let digests = sources.join(",");
    output(merge().args(["--blob-digests", &digests])).ok();
    assert_eq!(std::fs::read(&merged).unwrap(), first);
}

#[test]
fn gzip_is_found_by_content_and_gives_the_same_blob() {
    let dir = tempfile::tempdir().unwrap();
    let (_, plain) = through_fifos(dir.path(), &lower(), b"");
    let (_, zipped) = through_fifos(dir.path(), &pack(&lower(), Packing::GzipMembers), b"");
    assert!(plain == zipped);
}

#[test]
fn features_are_found_in_the_short_help() {
    let ran = nydus_image(["create", "-h"]).ok();
    for word in ["--type", "tar-rafs", "--batch-size", "--encrypt"] {
        assert!(ran.stdout.contains(word), "{word}: {ran}");
    }
    assert_eq!(ran.stderr, "");
}

/// Help and error texts word for word: `TRYCMD=overwrite` writes them anew.
#[test]
fn help_and_messages() {
    trycmd::TestCases::new()
        .env("COLUMNS", "100")
        .case("tests/cmd/*.trycmd");
}

#[test]
fn the_version_is_found() {
    let ran = nydus_image(["--version"]).ok();
    let (_, version) = ran.stdout.split_once("Version:").unwrap();
    assert!(version.trim_start().starts_with('v'), "{ran}");
    assert!(ran.stdout.contains("Git Commit:"), "{ran}");
    assert!(
        nydus_image([] as [&str; 0])
            .ok()
            .stdout
            .contains("nydus-image")
    );
}

#[test]
fn exit_codes_tell_usage_and_inconsistent_layers_from_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("tar"), lower()).unwrap();
    for usage in [
        &["create", "--no-such-flag"][..],
        &["create", "--compressor", "brotli", "x"],
        &[
            "create",
            "--chunk-size",
            "0x1001",
            "--blob",
            "b",
            "--blob-inline-meta",
            "x",
        ],
        &["no-such-command"],
        &["merge", "--bootstrap", "x"],
    ] {
        assert_eq!(nydus_image(usage).exits(2).stdout, "");
    }
    create(&path("tar"), &path("a"), &[]);
    create(&path("tar"), &path("b"), &["--chunk-size", "0x10000"]);
    for name in ["a", "b"] {
        let bytes = std::fs::read(path(name)).unwrap();
        std::fs::write(path(&format!("{name}.boot")), bootstrap(&bytes)).unwrap();
    }
    let merge = |sources: [&str; 2]| {
        let sources = sources.map(|name| text(&path(name)).to_owned());
        let merged = text(&path("merged")).to_owned();
        nydus_image(
            ["merge", "--bootstrap", &merged]
                .into_iter()
                .chain(sources.iter().map(String::as_str)),
        )
    };
    merge(["a.boot", "b.boot"]).exits(2);
    assert!(!path("merged").exists());
    merge(["a.boot", "absent"]).exits(1).fails_with(&["absent"]);
    merge(["a.boot", "tar"]).exits(1).fails_with(&["tar"]);
    assert!(!path("merged").exists());
    let missing = [
        "create",
        "--type",
        "tar-rafs",
        "--blob",
        text(&path("x")).to_owned().leak(),
        "--blob-inline-meta",
    ];
    nydus_image(missing.iter().chain(&["/nowhere/layer.tar"]))
        .exits(1)
        .fails_with(&["/nowhere/layer.tar"]);
    assert!(!path("x").exists());
}

#[test]
fn requests_to_inspect_answer_on_standard_output_alone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tar"), lower()).unwrap();
    let blob = create(&dir.path().join("tar"), &dir.path().join("blob"), &[]);
    let boot = dir.path().join("boot");
    std::fs::write(&boot, bootstrap(&std::fs::read(blob).unwrap())).unwrap();
    // The snapshotter passes flag and value as one argument.
    for request in [
        &["inspect", text(&boot), "--request", "blobs"][..],
        &["inspect", "-R blobs", text(&boot)],
    ] {
        let ran = nydus_image(request).ok();
        assert_eq!(ran.stderr, "");
        assert!(ran.stdout.contains("\"blob_id\":\""), "compact: {ran}");
        let blobs: Value = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!(blobs.as_array().unwrap().len(), 1);
        for key in [
            "readahead_offset",
            "readahead_size",
            "decompressed_size",
            "compressed_size",
        ] {
            assert!(blobs[0][key].is_u64(), "{key}");
        }
    }
    let ran = nydus_image(["inspect", text(&boot), "--request", "stats"]).ok();
    assert_eq!(
        serde_json::from_str::<Value>(&ran.stdout).unwrap()["inodes_count"],
        5
    );
    let mut child = Command::new(NYDUS_IMAGE)
        .args(["inspect", text(&boot)])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"ls\nstat data\ncd etc\nls\nblobs\nnonsense\n")
        .unwrap();
    let mut shown = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut shown)
        .unwrap();
    assert!(child.wait().unwrap().success());
    assert!(
        shown.contains("Inspecting RAFS :> ")
            && shown.contains("config")
            && shown.contains("1500000"),
        "{shown}"
    );
}

/// A directory, with the whiteouts of a layer kept as files, for consumers that do not know tar sources.
#[test]
fn a_directory_gives_the_tree_of_its_tar() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    std::fs::create_dir(&root).unwrap();
    std::fs::write(dir.path().join("tar"), lower()).unwrap();
    testkit::run::run(
        "tar",
        ["-xf", text(&dir.path().join("tar")), "-C", text(&root)],
    )
    .ok();
    let blob = dir.path().join("blob");
    let arguments = [
        "create",
        "--source-type",
        "directory",
        "--inline-bootstrap",
        "--blob",
        text(&blob),
        text(&root),
    ];
    nydus_image(arguments).ok();
    // Without a TOC the bootstrap ends the file, as it is.
    let boot = section(&std::fs::read(&blob).unwrap(), "image.boot").unwrap();
    let path = dir.path().join("boot");
    std::fs::write(&path, boot).unwrap();
    nydus_image(["check", text(&path)]).ok();
    let ran = nydus_image(["inspect", text(&path), "--request", "stats"]).ok();
    assert!(ran.stdout.contains("5"), "{ran}");
}

/// Runs a command that fails until whoever waits at the FIFOs is let go. They may be late, so it is run again.
#[track_caller]
fn fails_until_let_go(words: &[&str], waiting: Vec<std::thread::JoinHandle<()>>) {
    for _ in 0..50 {
        std::thread::sleep(std::time::Duration::from_millis(20));
        nydus_image(words).exits(1);
        if waiting.iter().all(|thread| thread.is_finished()) {
            waiting
                .into_iter()
                .for_each(|thread| thread.join().unwrap());
            return;
        }
    }
    panic!("somebody still waits: {words:?}");
}

#[test]
fn whoever_waits_at_a_fifo_is_let_go_when_a_command_fails() {
    let dir = tempfile::tempdir().unwrap();
    let [source, blob, boot] =
        ["source", "blob", "boot"].map(|name| dir.path().join(name).display().to_string());
    make_fifo(Path::new(&source));
    make_fifo(Path::new(&blob));
    let write = |bytes: Vec<u8>| {
        let path = source.clone();
        std::thread::spawn(move || {
            let mut fifo = std::fs::OpenOptions::new().write(true).open(path).unwrap();
            // Nobody takes all of it.
            fifo.write_all(&bytes).unwrap_err();
        })
    };
    let read = |path: &str| {
        let path = path.to_owned();
        std::thread::spawn(move || assert_eq!(std::fs::read(path).unwrap(), b""))
    };
    // Before either end was opened.
    let create = ["create", "-t", "tar-rafs", "-b", &blob, "-B", &boot];
    let words = [&create[..], &["--chunk-dict", "nowhere", &source]].concat();
    fails_until_let_go(&words, vec![write(noise(1, 1 << 20)), read(&blob)]);
    let words = [&create[..], &["-L", "/nowhere/log", &source]].concat();
    fails_until_let_go(&words, vec![write(noise(1, 1 << 20)), read(&blob)]);
    // In the middle of the source: what is written by then may be read.
    let words = [&create[..], &[&source]].concat();
    let path = blob.clone();
    let reader = std::thread::spawn(move || drop(std::fs::read(path).unwrap()));
    let writer = write(noise(2, 1 << 20));
    nydus_image(words).exits(1);
    writer.join().unwrap();
    reader.join().unwrap();
    let unpack = ["unpack", "-B", "nowhere", "--output", &blob];
    fails_until_let_go(&unpack, vec![read(&blob)]);
    let mut left = testkit::scan::names(dir.path());
    left.sort();
    assert_eq!(left, ["blob", "source"]);
}
