//! Files by the deployed builder: every bootstrap passes the check, digests included, and says what an independent
//! decoder says.

use std::fs;
use std::path::Path;

use rafs_format::toc;
use rafs_format::v5::{Bootstrap, Inode};
use serde_json::{Value, json};
use testkit::rafsdump::{self, text};

/// Every v5 bootstrap among the golden files, by name.
fn bootstraps(shared: &Path) -> Vec<(String, Vec<u8>)> {
    let golden = shared.join("golden");
    let mut found = Vec::new();
    for name in ["v5-separate.boot", "merged/v5.boot"] {
        found.push((name.replace('/', "-"), fs::read(golden.join(name)).unwrap()));
    }
    for name in ["v5-lz4", "v5-upper", "v5-zstd-aligned-sha256"] {
        let blob = fs::read(golden.join(format!("{name}.blob"))).unwrap();
        let tail = &blob[blob.len().saturating_sub(toc::TAIL_SIZE)..];
        let inline = toc::parse_tail(tail, blob.len() as u64)
            .unwrap()
            .bootstrap
            .unwrap();
        let (start, size) = (inline.offset as usize, inline.compressed_size as usize);
        found.push((name.to_owned(), blob[start..start + size].to_vec()));
    }
    found
}

#[test]
fn every_bootstrap_passes_the_check() {
    let Some(shared) = testkit::shared_or_skip("every_bootstrap_passes_the_check") else {
        return;
    };
    for (name, bytes) in bootstraps(&shared) {
        let bootstrap = Bootstrap::parse(bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
        let summary = bootstrap
            .check(codec::digest)
            .unwrap_or_else(|e| panic!("{name}: {e} {:?}", e.source));
        assert_eq!(summary.names, u64::from(bootstrap.names()), "{name}");
        assert!(summary.chunks > 0 && summary.regular_files > 0, "{name}");
    }
}

#[test]
fn says_what_the_independent_decoder_says() {
    let Some(shared) = testkit::shared_or_skip("v5_says_what_the_independent_decoder_says") else {
        return;
    };
    if let Some(why) = rafsdump::no_python() {
        return testkit::skip("v5_says_what_the_independent_decoder_says", why);
    }
    for (name, bytes) in bootstraps(&shared) {
        let expected = rafsdump::dump(&shared, &bytes);
        compare(&name, &Bootstrap::parse(bytes).unwrap(), &expected);
    }
}

fn compare(name: &str, bootstrap: &Bootstrap<Vec<u8>>, expected: &Value) {
    let blobs = expected["blobs"].as_array().unwrap();
    assert_eq!(bootstrap.blobs().len(), blobs.len(), "{name}");
    for (ours, theirs) in bootstrap.blobs().iter().zip(blobs) {
        let found = json!({
            "blob_id": ours.id.as_str(),
            "prefetch_offset": 0,
            "prefetch_size": ours.readahead_size,
            "chunk_count": ours.chunk_count,
            "features": theirs["features"],
            "uncompressed_size": ours.uncompressed_size,
            "compressed_size": ours.compressed_size,
            "reserved_zero": true,
        });
        assert_eq!(&found, theirs, "{name}");
        let features = theirs["features"].as_array().unwrap().len();
        assert_eq!(
            ours.features.bits().count_ones() as usize,
            features,
            "{name}"
        );
    }
    let inodes = expected["inodes"].as_array().unwrap();
    assert_eq!(inodes.len(), bootstrap.names() as usize, "{name}");
    for theirs in inodes {
        let index = theirs["index"].as_u64().unwrap() as u32;
        compare_inode(name, &bootstrap.inode(index).unwrap(), theirs);
    }
}

fn compare_inode(name: &str, ours: &Inode<'_>, theirs: &Value) {
    let xattrs: serde_json::Map<String, Value> = ours
        .xattrs()
        .unwrap()
        .iter()
        .map(|x| (text(&x.name), json!(text(x.value))))
        .collect();
    let chunks: Vec<Value> = ours
        .chunks()
        .zip(theirs["chunks"].as_array().into_iter().flatten())
        .map(|(ours, theirs)| {
            let ours = ours.unwrap();
            json!({
                "digest": hex::encode(ours.digest),
                "blob_index": ours.blob_index,
                "flags_raw": ours.flags.bits(),
                "compressed_size": ours.compressed_size,
                "uncompressed_size": ours.uncompressed_size,
                "compressed_offset": ours.compressed_offset,
                "uncompressed_offset": ours.uncompressed_offset,
                "file_offset": ours.file_offset,
                "index": ours.index,
                "crc32": ours.crc32,
                "flags": theirs["flags"],
            })
        })
        .collect();
    let mut found = json!({
        "index": ours.index,
        "offset": ours.offset,
        "digest": hex::encode(ours.digest),
        "parent": ours.parent,
        "ino": ours.ino,
        "uid": ours.uid,
        "gid": ours.gid,
        "projid": 0,
        "mode": ours.mode,
        "size": ours.size,
        "blocks": ours.blocks,
        "flags": ours.flags.bits(),
        "nlink": ours.nlink,
        "child_index": ours.child_index,
        "child_count": ours.child_count,
        "rdev": ours.rdev,
        "mtime_nsec": ours.mtime_nsec,
        "mtime": ours.mtime,
        "name": text(ours.name),
        "xattrs": xattrs,
        "path": theirs["path"],
    });
    if !ours.target.is_empty() {
        found["target"] = json!(text(ours.target));
    }
    if ours.is_regular() {
        found["chunks"] = json!(chunks);
    }
    // The order of keys is no matter.
    for (key, value) in theirs.as_object().unwrap() {
        assert_eq!(&found[key], value, "{name}: {} {key}", theirs["path"]);
    }
}
