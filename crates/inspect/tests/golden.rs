//! What is said of the deployed builder's files.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::{Path, PathBuf};

use inspect::{Error, Next, Shell, check_blobs, write_blobs, write_files, write_valid};
use rafs_format::Bootstrap;
use serde_json::{Value, json};
use storage::{DirSource, FileBlob, LoadedBootstrap, NamedSource};

fn golden(name: &str, test: &str) -> Option<PathBuf> {
    Some(testkit::shared_or_skip(test)?.join("golden").join(name))
}

fn load(path: &Path) -> LoadedBootstrap {
    storage::load_bootstrap(path).unwrap()
}

fn request(loaded: &LoadedBootstrap, line: &str) -> Result<String, Error> {
    let mut out = Vec::new();
    Shell::new(loaded)?.request(line, &mut out)?;
    Ok(String::from_utf8(out).unwrap())
}

fn dialogue(loaded: &LoadedBootstrap, lines: &[&str]) -> String {
    let mut out = Vec::new();
    let mut shell = Shell::new(loaded).unwrap();
    for line in lines {
        assert_eq!(
            shell.interact(line, &mut out).unwrap(),
            Next::Continue,
            "{line}"
        );
    }
    String::from_utf8(out).unwrap()
}

#[test]
fn requests_are_answered_in_compact_json() {
    let Some(path) = golden("v6-separate.boot", "requests_are_answered_in_compact_json") else {
        return;
    };
    let loaded = load(&path);
    let id = "a54e801e574a7e1e8f153ec1366b45cfa4b6655d10ef6373f82bfa0511016990";
    let expected = format!(
        "[{{\"blob_id\":\"{id}\",\"readahead_offset\":0,\"readahead_size\":0,\"decompressed_size\":6057984,\"compressed_size\":693783}}]"
    );
    assert_eq!(request(&loaded, " blobs").unwrap(), expected);
    assert_eq!(request(&loaded, "stats").unwrap(), "{\"inodes_count\":335}");
    assert_eq!(request(&loaded, "prefetch").unwrap(), "[]");
    assert_eq!(request(&loaded, "cd usr").unwrap(), "null");
    assert_eq!(request(&loaded, "exit").unwrap(), "null");
    let listed = request(&loaded, "ls").unwrap();
    assert!(
        listed.contains("d    ") && listed.ends_with("null") && listed.contains("\"bin\"\n"),
        "{listed}"
    );
}

#[test]
fn bad_requests_are_told_apart() {
    let Some(path) = golden("v6-separate.boot", "bad_requests_are_told_apart") else {
        return;
    };
    let loaded = load(&path);
    for (line, expected) in [
        ("help", "help is not supported"),
        ("chunk x", "invalid arguments"),
        ("chunk", "invalid arguments"),
        ("icheck -1", "invalid arguments"),
        ("stat", "invalid arguments"),
        ("nonsense", "unsupported inspect request"),
        ("", "unsupported inspect request"),
    ] {
        let error = request(&loaded, line).unwrap_err().to_string();
        assert!(error.contains(expected), "{line}: {error}");
    }
}

#[test]
fn a_person_can_walk_the_tree() {
    let Some(path) = golden("v6-separate.boot", "a_person_can_walk_the_tree") else {
        return;
    };
    let loaded = load(&path);
    let out = dialogue(
        &loaded,
        &[
            "cd home/user",
            "stat notes",
            "stat .",
            "cd ../nowhere",
            "cd notes",
            "cd ..",
            "stat user",
            "nonsense",
        ],
    );
    for expected in [
        "Name:                       \"notes\"",
        "Mode:                       0x81A4",
        "Permissions:                644",
        "user.comment = \"hello\"",
        "chunk index: 14,",
        "Name:                       \"user\"",
        "Nlink:                      2",
        "../nowhere is not there",
        "notes is not a directory",
        "unsupported inspect request",
    ] {
        assert!(out.contains(expected), "{expected} in:\n{out}");
    }
    let out = dialogue(&loaded, &["stats", "blobs", "prefetch", "help", ""]);
    for expected in [
        "Chunk Size:                 1024KB",
        "Root Inode:                 128",
        "COMPRESSION_ZSTD",
        "Features:                   aligned cap_toc",
        "Mapped Block Address:       128",
        "Total Prefetching Files: 0",
        "icheck INODE",
    ] {
        assert!(out.contains(expected), "{expected} in:\n{out}");
    }
}

#[test]
fn chunks_and_inodes_are_found() {
    let Some(path) = golden("v6-separate.boot", "chunks_and_inodes_are_found") else {
        return;
    };
    let loaded = load(&path);
    let bootstrap = &loaded.bootstrap;
    let root = bootstrap.inode(bootstrap.root()).unwrap();
    let home = bootstrap.lookup(&root, b"home").unwrap().unwrap();
    let out = dialogue(
        &loaded,
        &[&format!("icheck {}", home.nid), "icheck 4", "icheck 128"],
    );
    assert!(out.starts_with("/home\nInode Number:"), "{out}");
    assert!(out.contains("inode 4 is not there\n/\n"), "{out}");
    let record = bootstrap.chunk_table().next().unwrap().unwrap();
    let out = dialogue(
        &loaded,
        &[&format!("chunk {:#x}", record.compressed_offset)],
    );
    assert!(
        out.contains(&format!("chunk index {}", record.index)),
        "{out}"
    );
}

#[test]
fn prefetch_lists_paths() {
    let Some(path) = golden("merged/v6.boot", "prefetch_lists_paths") else {
        return;
    };
    let loaded = load(&path);
    let bootstrap = &loaded.bootstrap;
    let files: Value = serde_json::from_str(&request(&loaded, "prefetch").unwrap()).unwrap();
    let nids: Vec<_> = bootstrap.prefetch().map(|nid| nid.0).collect();
    let listed: Vec<_> = files
        .as_array()
        .unwrap()
        .iter()
        .map(|file| file["inode"].as_u64().unwrap())
        .collect();
    assert_eq!(listed, nids);
    assert!(
        files
            .as_array()
            .unwrap()
            .iter()
            .all(|file| file["path"] != json!([]))
    );
}

#[test]
fn the_report_names_every_blob_inode_and_chunk() {
    let Some(path) = golden(
        "merged/v6.boot",
        "the_report_names_every_blob_inode_and_chunk",
    ) else {
        return;
    };
    let loaded = load(&path);
    let bootstrap = &loaded.bootstrap;
    let mut out = Vec::new();
    write_files(&loaded, &mut out).unwrap();
    let text = String::from_utf8(out).unwrap();
    let summary = bootstrap.check().unwrap();
    assert_eq!(
        text.lines()
            .filter(|line| line.starts_with("inode "))
            .count() as u64,
        summary.names
    );
    assert_eq!(
        text.lines()
            .filter(|line| line.starts_with("\tchunk "))
            .count() as u64,
        summary.chunk_references
    );
    let mut out = Vec::new();
    write_valid(&mut out).unwrap();
    write_blobs(&loaded, &mut out).unwrap();
    let text = String::from_utf8(out).unwrap();
    assert!(text.lines().next().unwrap().contains("valid"));
    for (info, line) in bootstrap.blobs().iter().zip(text.lines().skip(1)) {
        assert!(
            line.starts_with(&format!("\t{}: {}, ", info.index, info.id)),
            "{line}"
        );
        assert!(line.contains("features: aligned"), "{line}");
    }
}

#[test]
fn tables_in_blobs_are_compared() {
    let Some(path) = golden("v6-separate.boot", "tables_in_blobs_are_compared") else {
        return;
    };
    let bytes = fs::read(&path).unwrap();
    let bootstrap = Bootstrap::parse(bytes.clone()).unwrap();
    let mut source = NamedSource::new(None);
    let blob = std::sync::Arc::new(FileBlob::open(&path.with_extension("blob")).unwrap());
    source.insert(bootstrap.blobs()[0].id.as_str(), blob);
    check_blobs(&bootstrap, &source).unwrap();
    let mut damaged = bytes;
    damaged[bootstrap.superblock().chunk_table_offset as usize + 48] ^= 1;
    let error = check_blobs(&Bootstrap::parse(damaged).unwrap(), &source).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Contradiction {
                what: "the stored offset",
                ..
            }
        ),
        "{error}"
    );
    let error = check_blobs(&bootstrap, &DirSource(PathBuf::from("/nonexistent"))).unwrap_err();
    assert!(matches!(error, Error::Blob { .. }), "{error}");
}

#[test]
fn v5_is_told_as_it_is_on_disk() {
    let Some(path) = golden("merged/v5.boot", "v5_is_told_as_it_is_on_disk") else {
        return;
    };
    let loaded = load(&path);
    // A file with two names counts once.
    assert_eq!(request(&loaded, "stats").unwrap(), "{\"inodes_count\":334}");
    let blobs: Value = serde_json::from_str(&request(&loaded, "blobs").unwrap()).unwrap();
    assert_eq!(blobs[0]["decompressed_size"], json!(1_073_674));
    assert_eq!(blobs[1]["compressed_size"], json!(1_770_912));
    let out = dialogue(
        &loaded,
        &["stats", "blobs", "stat .", "cd usr/bin", "stat tool2"],
    );
    for expected in [
        "Version:                    5",
        "Root Inode:                 1\n",
        "Features:                   cap_toc tar-header",
        "Uncompressed Data Size:     4794753",
        "Compressor:                 lz4_block",
        "Size:                       4096",
        "Inode Number:               320",
        "Parent:                     318",
        // The first block is 20 bytes of another chunk: in v5 chunks are packed.
        "decompressed offset: 20,",
    ] {
        assert!(out.contains(expected), "{expected} in:\n{out}");
    }
    let out = dialogue(&loaded, &["icheck 320", "chunk 132919"]);
    assert!(out.starts_with("/usr/bin/tool\n/usr/bin/tool2\n"), "{out}");
    assert!(
        out.contains("/usr/lib/t1    file offset 0, chunk index 2"),
        "{out}"
    );
    let mut out = Vec::new();
    write_files(&loaded, &mut out).unwrap();
    let text = String::from_utf8(out).unwrap();
    assert!(text.starts_with("inode 1 mode 0o40755 nlink 8 "), "{text}");
    assert_eq!(
        text.lines()
            .filter(|line| line.starts_with("inode "))
            .count(),
        335
    );
}
