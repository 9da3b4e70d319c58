//! The kernel reads files straight from layers' tars.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use std::path::{Path, PathBuf};

use testkit::oracle;
use testkit::run::{Ran, run};
use testkit::tar::{Entry, Tar};

#[track_caller]
fn nydus_image(args: &[&str]) -> Ran {
    run(env!("CARGO_BIN_EXE_nydus-image"), args)
}

/// Files of all kinds, links around a block of 512 bytes, more entries than a directory's block holds.
fn lower() -> Vec<u8> {
    let mut tar = Tar::new();
    for i in 0..100 {
        tar.add(Entry::file(format!("wide/{i:060}"), format!("{i}")));
    }
    for len in [1, 400, 480, 511, 512, 513, 1024, 4000, 4095] {
        tar.add(Entry::symlink(format!("links/{len}"), "x".repeat(len)));
    }
    tar.add(Entry::file("large", testkit::noise(1, 3_000_001)).xattr("user.a", "b"));
    tar.add(Entry::hard("links/hard", "large"))
        .add(Entry::fifo("fifo"))
        .add(Entry::file("empty", ""))
        .add(Entry::file("goes", "hidden by the upper layer"));
    tar.finish()
}

fn upper() -> Vec<u8> {
    let mut tar = Tar::new();
    tar.add(Entry::file(".wh.goes", ""))
        .add(Entry::file("new", "of the upper layer"))
        .add(Entry::file("links/512", "no link any more"));
    tar.finish()
}

/// Writes the tar under its digest and makes its layer; the bootstrap.
#[track_caller]
fn create(dir: &Path, tar: &[u8]) -> String {
    let id = testkit::sha256(tar);
    let path = dir.join(&id).display().to_string();
    std::fs::write(&path, tar).unwrap();
    let bootstrap = format!("{path}.boot");
    nydus_image(&[
        "create",
        "--type",
        "tar-tarfs",
        "--bootstrap",
        &bootstrap,
        "--blob-id",
        &id,
        &path,
    ])
    .ok();
    bootstrap
}

#[test]
fn privileged_the_kernel_reads_files_from_the_tars() {
    let name = "privileged_the_kernel_reads_files_from_the_tars";
    if let Some(why) = oracle::no_erofs() {
        return testkit::skip(name, why);
    }
    let dir = tempfile::tempdir().unwrap();
    let layers = [create(dir.path(), &lower()), create(dir.path(), &upper())];
    let merged = dir.path().join("merged");
    nydus_image(&[
        "merge",
        "--bootstrap",
        merged.to_str().unwrap(),
        &layers[0],
        &layers[1],
    ])
    .ok();
    let devices: Vec<PathBuf> = oracle::device_slots(&std::fs::read(&merged).unwrap())
        .iter()
        .map(|(id, _)| dir.path().join(id))
        .collect();
    assert_eq!(devices.len(), 2);
    let at = dir.path().join("root");
    std::fs::create_dir(&at).unwrap();
    let mount = oracle::kernel_mount(&merged, &devices, &at).unwrap();
    let read = |path: &str| std::fs::read(mount.path().join(path)).unwrap();
    assert_eq!(read("large"), testkit::noise(1, 3_000_001));
    assert_eq!(read("links/hard"), read("large"));
    for i in 0..100 {
        assert_eq!(read(&format!("wide/{i:060}")), format!("{i}").as_bytes());
    }
    for len in [1, 400, 480, 511, 513, 1024, 4000, 4095] {
        let target = std::fs::read_link(mount.path().join(format!("links/{len}"))).unwrap();
        assert_eq!(target.as_os_str().len(), len);
    }
    assert_eq!(read("links/512"), b"no link any more");
    assert_eq!(read("new"), b"of the upper layer");
    assert!(!mount.path().join("goes").exists());
    assert!(read("empty").is_empty());
}
