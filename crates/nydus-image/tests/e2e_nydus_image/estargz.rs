//! eStargz layers by their tables of contents: the layer stays as it is, all tools read files from it.

use std::path::Path;
use std::process::Command;

use rafs_format::blob_meta::BlobMeta;
use rafs_format::{BlobFeatures, Bootstrap, Compressor, Digester};
use testkit::estargz::{Estargz, estargz};
use testkit::run::Ran;
use testkit::tar::{Entry, Tar, flag};

use crate::support::*;
use crate::trees::trees;

const CHUNK: usize = 0x40_0000;

fn entries() -> Vec<Entry> {
    let mut entries = vec![
        Entry::directory("etc/").mode(0o755),
        Entry::file("etc/config", testkit::prose(1, 3000)).xattr("user.a", "b"),
        Entry::file(".no.prefetch.landmark", [15]),
        Entry::file("large", testkit::noise(2, 2 * CHUNK + 77)).owner(3, 4),
        Entry::hard("same", "large"),
        Entry::symlink("link", "etc/config"),
        Entry::device("null", flag::CHARACTER, 1, 3),
        Entry::fifo("fifo"),
        Entry::file("tiny", "x"),
        // Only the beginning of its member is the chunk: headers follow.
        Entry::file("before-many", "y"),
    ];
    entries.extend((0..300).map(|i| Entry::directory(format!("many/{i:090}"))));
    // Nothing but zeros, at the end: its stored bytes are far fewer than the bound.
    entries.push(Entry::file("last", vec![0; CHUNK]));
    entries
}

/// The tar of these entries without what eStargz puts into it.
fn tar(entries: &[Entry]) -> Vec<u8> {
    let mut tar = Tar::new();
    for entry in entries
        .iter()
        .filter(|entry| !entry.path.starts_with(b".no"))
    {
        tar.add(entry.clone());
    }
    tar.finish()
}

/// Writes the layer under its digest, and its table.
fn write(dir: &Path, made: &Estargz) -> String {
    let id = testkit::sha256(&made.blob);
    std::fs::write(dir.join(&id), &made.blob).unwrap();
    std::fs::write(dir.join("stargz.index.json"), &made.toc).unwrap();
    id
}

/// Runs the builder as the snapshotter does, for the table of contents.
#[track_caller]
fn create(dir: &Path, id: &str, bootstrap: &str, options: &[&str]) -> Ran {
    let meta = format!("{id}.blob.meta");
    let usual = [
        "create",
        "--source-type",
        "stargz_index",
        "--bootstrap",
        bootstrap,
        "--blob-id",
        id,
        "--repeatable",
        "--disable-check",
        "--fs-version",
        "6",
        "--chunk-size",
        "0x400000",
        "--blob-meta",
        &meta,
    ];
    let mut command = Command::new(NYDUS_IMAGE);
    command.args(usual).args(options).current_dir(dir);
    let output = command.output().unwrap();
    Ran::new(format!("{command:?}"), output)
}

#[track_caller]
fn unpack(dir: &Path, bootstrap: &str, args: &[&str]) -> Vec<u8> {
    let out = dir.join("out.tar");
    let boot = dir.join(bootstrap);
    let usual = ["unpack", "-B", text(&boot), "--output", text(&out)];
    nydus_image(usual.iter().chain(args)).ok();
    std::fs::read(out).unwrap()
}

#[test]
fn files_come_out_of_the_layer_by_its_table() {
    check_files(entries());
    // Little data and many headers in the last member with data, whose end has to be guessed.
    let mut headers_last = entries();
    headers_last.pop();
    check_files(headers_last);
}

#[track_caller]
fn check_files(mut expected: Vec<Entry>) {
    let dir = tempfile::tempdir().unwrap();
    let made = estargz(&expected, CHUNK);
    let id = write(dir.path(), &made);
    let size = format!("{:#x}", made.toc_offset);
    create(dir.path(), &id, "guessed", &["stargz.index.json"]).ok();
    create(
        dir.path(),
        &id,
        "told",
        &["--blob-data-size", &size, "stargz.index.json"],
    )
    .ok();
    create(dir.path(), &id, "found", &[&id]).ok();
    let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
    assert!(
        read("told") == read("found"),
        "the footer says where the data ends"
    );

    // Repeatable images have no owners.
    expected
        .iter_mut()
        .for_each(|entry| (entry.uid, entry.gid) = (0, 0));
    let expected = tar(&expected);
    let blob = dir.path().join(&id);
    for bootstrap in ["guessed", "told"] {
        let got = unpack(dir.path(), bootstrap, &["--blob-dir", text(dir.path())]);
        let [left, right] = trees([&got, &expected]);
        assert!(left == right, "{bootstrap}");
        assert!(got == unpack(dir.path(), bootstrap, &["--blob", text(&blob)]));
        let boot = dir.path().join(bootstrap);
        nydus_image(["check", "-B", text(&boot), "-D", text(dir.path())]).ok();
    }
    // v5 says the same, and so do readers of it.
    let (boot, v5) = (dir.path().join("guessed"), dir.path().join("v5"));
    nydus_image(["transcode", "--to", "5", "-B", text(&boot), "-O", text(&v5)]).ok();
    let got = unpack(dir.path(), "v5", &["--blob-dir", text(dir.path())]);
    let [left, right] = trees([&got, &expected]);
    assert!(left == right, "v5");
    let boot = dir.path().join("told");
    let blobs = nydus_image(["inspect", "-R blobs", text(&boot)]).ok();
    blobs.says(&[&format!(r#""blob_id":"{id}""#)]);
}

#[test]
fn the_table_for_the_readers_cache_says_what_the_bootstrap_says() {
    let dir = tempfile::tempdir().unwrap();
    let made = estargz(&entries(), CHUNK);
    let id = write(dir.path(), &made);
    create(dir.path(), &id, "boot", &["stargz.index.json"]).ok();
    let bootstrap = Bootstrap::parse(std::fs::read(dir.path().join("boot")).unwrap()).unwrap();
    let info = &bootstrap.blobs()[0];
    assert_eq!((info.id.as_str(), info.chunk_size), (&*id, CHUNK as u32));
    assert_eq!(
        (info.compressor, info.digester),
        (Compressor::Gzip, Digester::Sha256)
    );
    assert_eq!(
        info.features,
        BlobFeatures::ALIGNED | BlobFeatures::CAP_TAR_TOC
    );
    let meta = std::fs::read(dir.path().join(format!("{id}.blob.meta"))).unwrap();
    let size = info.meta_uncompressed_size as usize;
    assert_eq!(meta.len(), size.next_multiple_of(4096) + 4096);
    let header = meta.last_chunk().unwrap();
    let table = BlobMeta::parse(&meta[..size], header, info).unwrap();
    assert!(meta[size..meta.len() - 4096].iter().all(|&b| b == 0));
    assert_eq!(table.len() as usize, bootstrap.chunk_table().count());
    for record in bootstrap.chunk_table() {
        let record = record.unwrap();
        let stored = table.chunk(record.index).unwrap();
        assert_eq!(
            (
                stored.compressed_offset,
                stored.compressed_size,
                stored.uncompressed_offset,
                stored.uncompressed_size
            ),
            (
                record.compressed_offset,
                record.compressed_size,
                record.uncompressed_offset,
                record.uncompressed_size
            )
        );
        assert!(stored.compressed);
    }
    // Into a directory it goes by the blob's name.
    std::fs::create_dir(dir.path().join("cache")).unwrap();
    create(
        dir.path(),
        &id,
        "boot",
        &["--blob-meta=cache", "stargz.index.json"],
    )
    .exits(2);
    nydus_image([
        "create",
        "-t",
        "estargztoc-ref",
        "--blob-id",
        &id,
        "-B",
        text(&dir.path().join("boot")),
        "--blob-meta",
        text(&dir.path().join("cache")),
        text(&dir.path().join(&id)),
    ])
    .ok();
    let cached = dir.path().join(format!("cache/{id}.blob.meta"));
    assert_eq!(std::fs::read(cached).unwrap().len(), meta.len());
}

#[test]
fn layers_are_merged_whiteouts_and_all() {
    let dir = tempfile::tempdir().unwrap();
    let lower = entries();
    let upper = [
        Entry::file(".wh.tiny", ""),
        Entry::file("etc/.wh..wh..opq", ""),
        Entry::file("etc/other", "of the upper layer"),
    ];
    // Merging takes the ids of blobs from the names of the bootstraps, where the snapshotter has them.
    std::fs::create_dir(dir.path().join("boots")).unwrap();
    let boots = [&lower[..], &upper[..]].map(|layer| {
        let id = write(dir.path(), &estargz(layer, CHUNK));
        let boot = format!("boots/{id}");
        create(dir.path(), &id, &boot, &["stargz.index.json"]).ok();
        dir.path().join(boot)
    });
    let merged = dir.path().join("merged");
    nydus_image([
        "merge",
        "--bootstrap",
        text(&merged),
        text(&boots[0]),
        text(&boots[1]),
    ])
    .ok();
    let got = unpack(dir.path(), "merged", &["--blob-dir", text(dir.path())]);
    let mut expected: Vec<Entry> = lower
        .into_iter()
        .filter(|entry| !matches!(&*entry.path, b"tiny" | b"etc/config"))
        .collect();
    expected.push(upper[2].clone());
    expected
        .iter_mut()
        .for_each(|entry| (entry.uid, entry.gid) = (0, 0));
    let [left, right] = trees([&got, &tar(&expected)]);
    assert!(left == right);
}

#[test]
fn damaged_layers_are_told_and_never_read_as_good() {
    let dir = tempfile::tempdir().unwrap();
    let mut made = estargz(&entries(), CHUNK);
    let id = write(dir.path(), &made);
    create(dir.path(), &id, "boot", &["stargz.index.json"]).ok();
    // Within the second chunk of the large file, whose bytes are stored as they are.
    made.blob[CHUNK + CHUNK / 2] ^= 1;
    std::fs::write(dir.path().join(&id), &made.blob).unwrap();
    let (boot, out) = (dir.path().join("boot"), dir.path().join("out"));
    let unpack = || {
        nydus_image([
            "unpack",
            "-B",
            text(&boot),
            "-O",
            text(&out),
            "-D",
            text(dir.path()),
        ])
    };
    unpack().exits(1).fails_with(&["large", "digest"]);
    std::fs::write(dir.path().join(&id), &made.blob[..CHUNK]).unwrap();
    unpack().exits(1).fails_with(&["large"]);
    assert!(!out.exists());
}

#[test]
fn what_makes_no_sense_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let made = estargz(&entries(), CHUNK);
    let id = write(dir.path(), &made);
    for (options, says) in [
        (&["--blob-data-size", "12g", "stargz.index.json"][..], "12g"),
        (&["--blob-data-size", "+12", "stargz.index.json"], "+12"),
        (&["--blob", "b", "stargz.index.json"], "--blob cannot"),
        (&["--encrypt", "stargz.index.json"], "--encrypt cannot"),
    ] {
        create(dir.path(), &id, "boot", options)
            .exits(2)
            .fails_with(&[says]);
    }
    let toc = dir.path().join("stargz.index.json");
    nydus_image(["create", "-t", "stargz_index", "-B", "boot", text(&toc)])
        .exits(2)
        .fails_with(&["--blob-id"]);
    nydus_image([
        "create",
        "-B",
        "boot",
        "-b",
        "x",
        "--blob-data-size",
        "1",
        text(&toc),
    ])
    .exits(2)
    .fails_with(&["--blob-data-size"]);
    create(
        dir.path(),
        &id,
        "boot",
        &["--blob-data-size", "1000", "stargz.index.json"],
    )
    .exits(1)
    .fails_with(&["ends at byte 4096"]);
    std::fs::write(dir.path().join("bad"), &made.toc[..made.toc.len() / 2]).unwrap();
    create(dir.path(), &id, "boot", &["bad"])
        .exits(1)
        .fails_with(&["bad", "table of contents"]);
    std::fs::write(dir.path().join("bad"), &made.blob[..made.blob.len() - 1]).unwrap();
    create(dir.path(), &id, "boot", &["bad"])
        .exits(1)
        .fails_with(&["bad", "footer"]);
    let mut left = testkit::scan::names(dir.path());
    left.retain(|name| *name != id);
    assert_eq!(left, ["bad", "stargz.index.json"]);
}
