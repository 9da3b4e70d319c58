//! Layers whose tar is the blob: as the snapshotter has them made, merged and looked at.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use testkit::run::make_fifo;
use testkit::shared_or_skip;
use testkit::tar::{Entry, Tar};

use crate::support::*;

/// Runs the snapshotter's command line: the tar comes through a FIFO that can be opened once.
#[track_caller]
fn create_tarfs(dir: &Path, tar: &[u8], name: &str) -> (PathBuf, String) {
    let (fifo, bootstrap) = (dir.join("fifo"), dir.join(name));
    let _ = std::fs::remove_file(&fifo);
    make_fifo(&fifo);
    let id = testkit::sha256(tar);
    let child = Command::new(NYDUS_IMAGE)
        .args(["create", "--type", "tar-tarfs", "--bootstrap"])
        .args([text(&bootstrap), "--blob-id", &id, "--blob-dir", text(dir)])
        .arg(&fifo)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut writer = std::fs::OpenOptions::new().write(true).open(&fifo).unwrap();
    writer.write_all(tar).unwrap();
    drop(writer);
    let output = child.wait_with_output().unwrap();
    testkit::run::Ran::new("create --type tar-tarfs".to_owned(), output).ok();
    (bootstrap, id)
}

fn lower() -> Vec<u8> {
    let mut tar = Tar::new();
    tar.add(Entry::file("large", testkit::noise(1, 3_000_001)))
        .add(Entry::file("goes", "hidden by the upper layer"));
    tar.finish()
}

fn upper() -> Vec<u8> {
    let mut tar = Tar::new();
    tar.add(Entry::file(".wh.goes", ""))
        .add(Entry::file("new", "of the upper layer"));
    tar.finish()
}

#[test]
fn a_layers_table_is_the_deployed_builders() {
    let Some(shared) = shared_or_skip("a_layers_table_is_the_deployed_builders") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let tar = std::fs::read(shared.join("golden/lower.tar")).unwrap();
    let (ours, _) = create_tarfs(dir.path(), &tar, "layer.boot");
    let (ours, theirs) = (
        std::fs::read(ours).unwrap(),
        std::fs::read(shared.join("golden/tarfs/v6-tarfs.boot")).unwrap(),
    );
    assert_eq!(ours.len(), theirs.len());
    // One directory exists only because of what is in it: its mark is all that differs.
    let differ = ours.iter().zip(&theirs).filter(|(a, b)| a != b);
    assert_eq!(differ.collect::<Vec<_>>(), [(&1, &0)]);
    let theirs = shared.join("golden/tarfs/v6-tarfs.boot");
    nydus_image(["check", text(&theirs)])
        .ok()
        .says(&["metadata is valid", "features: cap_toc"]);
}

#[test]
fn layers_are_merged_under_the_names_of_their_tars() {
    let dir = tempfile::tempdir().unwrap();
    let (low, low_id) = create_tarfs(dir.path(), &lower(), "low.boot");
    let (high, high_id) = create_tarfs(dir.path(), &upper(), "high.boot");
    let merged = dir.path().join("merged");
    nydus_image([
        "merge",
        "--bootstrap",
        text(&merged),
        text(&low),
        text(&high),
    ])
    .ok();
    nydus_image(["check", text(&merged)]).ok();
    // Option and value in one word, as the snapshotter has them.
    let blobs = nydus_image(["inspect", "-R blobs", text(&merged)]).ok();
    for id in [&low_id, &high_id] {
        let words = format!(r#""blob_id":"{id}""#);
        assert!(blobs.stdout.contains(&words), "{blobs}");
    }
    assert_eq!(blobs.stderr, "");
    // The tars are all the data that there is.
    let files = testkit::scan::names(dir.path());
    assert_eq!(files, ["fifo", "high.boot", "low.boot", "merged"]);
}

#[test]
fn what_has_no_place_in_a_tar_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (tar, boot) = (dir.path().join("layer.tar"), dir.path().join("boot"));
    let usual = [
        "create",
        "--type",
        "tar-tarfs",
        "--blob-dir",
        text(dir.path()),
    ];
    let create = |more: &[&str]| nydus_image(usual.iter().chain(more).chain(&[text(&tar)]));
    std::fs::write(&tar, upper()).unwrap();
    for flags in [
        &["--encrypt", "-B", text(&boot)][..],
        &["--blob-inline-meta"],
        &["--fs-version", "5", "-B", text(&boot)],
        &["--features", "blob-toc", "-B", text(&boot)],
        &["--batch-size", "0x1000", "-B", text(&boot)],
        &["--chunk-dict", "x", "-B", text(&boot)],
    ] {
        create(flags).exits(2).says(&["tar-tarfs", flags[0]]);
    }
    let gzip = testkit::layout::pack(&upper(), testkit::layout::Packing::Gzip);
    std::fs::write(&tar, gzip).unwrap();
    create(&["-B", text(&boot)])
        .exits(1)
        .says(&["is compressed", "plain tar"]);
    std::fs::write(&tar, &lower()[..2_000_000]).unwrap();
    create(&["-B", text(&boot)]).exits(1).says(&["layer.tar"]);
    assert!(!boot.exists());
}
