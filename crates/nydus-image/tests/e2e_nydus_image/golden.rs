//! The same input as the deployed builder had gives the same tree and the same tables.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use testkit::rafsdump::dump;
use testkit::shared_or_skip;

use crate::support::*;

/// Fields of an object.
fn pick(value: &Value, fields: &[&str]) -> Value {
    fields
        .iter()
        .map(|field| ((*field).to_owned(), value[*field].clone()))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// Inodes by path, without what may differ.
fn inodes(dump: &Value) -> BTreeMap<String, Value> {
    let fields = [
        "nid",
        "layout",
        "mode",
        "size",
        "uid",
        "gid",
        "mtime",
        "mtime_nsec",
        "nlink",
        "ino",
        "xattrs",
        "target",
        "entries",
        "chunks",
        "chunk_format_bits",
    ];
    let inodes = dump["inodes"].as_array().unwrap().iter();
    inodes
        .map(|inode| {
            (
                inode["path"].as_str().unwrap().to_owned(),
                pick(inode, &fields),
            )
        })
        .collect()
}

/// Chunk records in the order of the table.
fn chunks(dump: &Value) -> Vec<Value> {
    let fields = [
        "digest",
        "blob_index",
        "uncompressed_size",
        "uncompressed_offset",
        "file_offset",
        "index",
        "crc32",
        "flags",
    ];
    dump["chunk_table"]
        .as_array()
        .unwrap()
        .iter()
        .map(|chunk| pick(chunk, &fields))
        .collect()
}

fn blobs(dump: &Value) -> Vec<Value> {
    let fields = [
        "blob_id",
        "blob_index",
        "chunk_size",
        "chunk_count",
        "compressor",
        "digester",
        "features",
        "uncompressed_size",
        "ci_compressor",
        "ci_uncompressed_size",
    ];
    dump["blobs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|blob| pick(blob, &fields))
        .collect()
}

#[track_caller]
fn assert_agree(name: &str, ours: &Value, theirs: &Value) {
    assert_eq!(ours["ext"], theirs["ext"], "{name}: extended superblock");
    assert_eq!(
        ours["superblock"], theirs["superblock"],
        "{name}: superblock"
    );
    assert_eq!(ours["devices"], theirs["devices"], "{name}: devices");
    assert_eq!(blobs(ours), blobs(theirs), "{name}: blobs");
    let (mut a, mut b) = (inodes(ours), inodes(theirs));
    a.retain(|path, inode| b.get(path) != Some(inode));
    b.retain(|path, _| a.contains_key(path) || !inodes(ours).contains_key(path));
    assert_eq!(json!(a), json!(b), "{name}: inodes");
    let (a, b) = (chunks(ours), chunks(theirs));
    assert_eq!(a.len(), b.len(), "{name}: number of chunks");
    for (at, (ours, theirs)) in a.iter().zip(&b).enumerate() {
        assert_eq!(ours, theirs, "{name}: chunk record {at}");
    }
}

#[test]
fn layers_agree_with_the_deployed_builder() {
    let Some(shared) = shared_or_skip("layers_agree_with_the_deployed_builder") else {
        return;
    };
    let golden = shared.join("golden");
    let dir = tempfile::tempdir().unwrap();
    let cases: [(&str, &str, &[&str]); 5] = [
        ("v6-zstd", "lower.tar", &[]),
        (
            "v6-lz4-sha256",
            "lower.tar",
            &["--compressor", "lz4_block", "--digester", "sha256"],
        ),
        ("v6-none", "lower.tar", &["--compressor", "none"]),
        ("v6-zstd-64k", "lower.tar", &["--chunk-size", "0x10000"]),
        ("v6-upper", "upper.tar", &[]),
    ];
    for (name, tar, options) in cases {
        let ours =
            std::fs::read(create(&golden.join(tar), &dir.path().join(name), options)).unwrap();
        let theirs = std::fs::read(golden.join(format!("{name}.blob"))).unwrap();
        let of = |blob: &[u8]| dump(&shared, &bootstrap(blob));
        assert_agree(name, &of(&ours), &of(&theirs));
        assert_eq!(
            section(&ours, "blob.digest"),
            section(&theirs, "blob.digest"),
            "{name}: digests in order"
        );
    }
}

#[test]
fn merged_bootstraps_agree_with_the_deployed_builder() {
    let Some(shared) = shared_or_skip("merged_bootstraps_agree_with_the_deployed_builder") else {
        return;
    };
    let golden = shared.join("golden");
    let dir = tempfile::tempdir().unwrap();
    // Their layers, merged by us.
    let mut arguments = vec![
        "merge".to_owned(),
        "--bootstrap".to_owned(),
        text(&dir.path().join("merged")).to_owned(),
    ];
    for name in ["v6-zstd.blob", "v6-upper.blob"] {
        let blob = std::fs::read(golden.join(name)).unwrap();
        let path = dir.path().join(testkit::sha256(&blob));
        std::fs::write(&path, bootstrap(&blob)).unwrap();
        arguments.push(text(&path).to_owned());
    }
    nydus_image(arguments).ok();
    let ours = dump(&shared, &std::fs::read(dir.path().join("merged")).unwrap());
    let theirs = dump(
        &shared,
        &std::fs::read(golden.join("merged/v6.boot")).unwrap(),
    );
    assert_agree("merged", &ours, &theirs);
}
