//! Files by the deployed builder: every bootstrap parses, passes the check and says what an independent decoder says.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use rafs_format::blob_meta::{self, BlobMeta, Header, Placement};
use rafs_format::layout::{Allocator, Regions, map_devices};
use rafs_format::{
    BlobFeatures, Bootstrap, Compressor, Error, FileType, Inode, Layout, Nid, SuperFlags, toc,
};
use serde_json::Value;
use testkit::rafsdump::{self, text};

/// The bootstrap at the tail of a blob, if there is one.
fn inlined(blob: &[u8]) -> Option<Vec<u8>> {
    let tail = toc::parse_tail(
        &blob[blob.len().saturating_sub(toc::TAIL_SIZE)..],
        blob.len() as u64,
    )
    .unwrap();
    let boot = tail.bootstrap?;
    let stored = &blob[boot.offset as usize..(boot.offset + boot.compressed_size) as usize];
    Some(match boot.compressor {
        Compressor::None => stored.to_vec(),
        Compressor::Zstd => {
            zstd::bulk::decompress(stored, boot.uncompressed_size as usize).unwrap()
        }
        other => panic!("a bootstrap compressed with {other}"),
    })
}

/// Every v6 bootstrap among the golden files, by name.
fn bootstraps(shared: &Path) -> Vec<(String, Vec<u8>)> {
    let golden = shared.join("golden");
    let mut found = Vec::new();
    for dir in [golden.clone(), golden.join("merged"), golden.join("tarfs")] {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if !name.starts_with("v6") {
                continue;
            }
            match path.extension().and_then(|e| e.to_str()) {
                Some("boot") => found.push((name, fs::read(&path).unwrap())),
                Some("blob") => {
                    found.extend(inlined(&fs::read(&path).unwrap()).map(|boot| (name, boot)))
                }
                _ => {}
            }
        }
    }
    found.sort();
    found
}

#[test]
fn every_bootstrap_passes_the_check() {
    let Some(shared) = testkit::shared_or_skip("every_bootstrap_passes_the_check") else {
        return;
    };
    let all = bootstraps(&shared);
    assert!(all.len() >= 12, "only {} bootstraps found", all.len());
    for (name, bytes) in &all {
        let bootstrap =
            Bootstrap::parse(bytes.as_slice()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let summary = bootstrap
            .check()
            .unwrap_or_else(|e| panic!("{name}: {e} {:?}", e.source));
        assert_eq!(summary.names, bootstrap.superblock().inos, "{name}");
    }
}

#[test]
fn v5_is_a_typed_error() {
    let Some(shared) = testkit::shared_or_skip("v5_is_a_typed_error") else {
        return;
    };
    let bytes = fs::read(shared.join("golden/v5-separate.boot")).unwrap();
    assert!(matches!(
        Bootstrap::parse(bytes),
        Err(Error::OtherVersion { .. })
    ));
}

#[test]
fn says_what_the_independent_decoder_says() {
    let Some(shared) = testkit::shared_or_skip("says_what_the_independent_decoder_says") else {
        return;
    };
    if let Some(why) = rafsdump::no_python() {
        return testkit::skip("says_what_the_independent_decoder_says", why);
    }
    for (name, bytes) in bootstraps(&shared) {
        let expected = rafsdump::dump(&shared, &bytes);
        compare(&name, &Bootstrap::parse(bytes).unwrap(), &expected);
    }
}

fn number(value: &Value, key: &str) -> u64 {
    value[key]
        .as_u64()
        .unwrap_or_else(|| panic!("{key} in {value}"))
}

fn compare(name: &str, bootstrap: &Bootstrap<Vec<u8>>, expected: &Value) {
    compare_tables(name, bootstrap, expected);
    let chunks: Vec<_> = bootstrap.chunk_table().map(Result::unwrap).collect();
    let expected_chunks = expected["chunk_table"].as_array().unwrap();
    assert_eq!(chunks.len(), expected_chunks.len(), "{name}");
    for (ours, theirs) in chunks.iter().zip(expected_chunks) {
        let found = [
            ours.blob_index.into(),
            ours.flags.bits().into(),
            ours.compressed_size.into(),
            ours.uncompressed_size.into(),
            ours.compressed_offset,
            ours.uncompressed_offset,
            ours.file_offset,
            ours.index.into(),
            u64::from(ours.crc32),
        ];
        let keys = [
            "blob_index",
            "flags_raw",
            "compressed_size",
            "uncompressed_size",
            "compressed_offset",
            "uncompressed_offset",
            "file_offset",
            "index",
            "crc32",
        ];
        assert_eq!(
            found,
            keys.map(|key| number(theirs, key)),
            "{name}: chunk {}",
            ours.index
        );
        let digest: String = ours.digest.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(theirs["digest"], Value::from(digest), "{name}");
    }
    let mut inodes = 0;
    for theirs in expected["inodes"].as_array().unwrap() {
        compare_inode(name, bootstrap, theirs);
        inodes += 1;
    }
    assert!(inodes > 1, "{name}");
}

fn compare_tables(name: &str, bootstrap: &Bootstrap<Vec<u8>>, expected: &Value) {
    let ours = bootstrap.superblock();
    let (sb, ext) = (&expected["superblock"], &expected["ext"]);
    assert_eq!(ours.root.0, number(sb, "root_nid"), "{name}");
    assert_eq!(u64::from(ours.blocks), number(sb, "blocks"), "{name}");
    assert_eq!(ours.inos, number(sb, "inos"), "{name}");
    assert_eq!(
        u64::from(ours.block_bits),
        number(sb, "blkszbits"),
        "{name}"
    );
    assert_eq!(
        u64::from(ours.meta_blkaddr),
        number(sb, "meta_blkaddr"),
        "{name}"
    );
    assert_eq!(
        ours.flags,
        SuperFlags::from_bits(number(ext, "flags")).unwrap(),
        "{name}"
    );
    assert_eq!(
        ours.chunk_table_offset,
        number(ext, "chunk_table_offset"),
        "{name}"
    );
    assert_eq!(
        u64::from(ours.chunk_size),
        number(ext, "chunk_size"),
        "{name}"
    );
    let prefetch: Vec<_> = bootstrap.prefetch().map(|nid| nid.0).collect();
    assert_eq!(expected["prefetch"], Value::from(prefetch), "{name}");
    for (ours, theirs) in bootstrap
        .devices()
        .iter()
        .zip(expected["devices"].as_array().unwrap())
    {
        assert_eq!(theirs["tag"], ours.id.as_str(), "{name}");
        assert_eq!(u64::from(ours.blocks), number(theirs, "blocks"), "{name}");
        assert_eq!(
            u64::from(ours.mapped_blkaddr),
            number(theirs, "mapped_blkaddr"),
            "{name}"
        );
    }
    assert_eq!(
        bootstrap.blobs().len(),
        expected["blobs"].as_array().unwrap().len(),
        "{name}"
    );
    for (ours, theirs) in bootstrap
        .blobs()
        .iter()
        .zip(expected["blobs"].as_array().unwrap())
    {
        assert_eq!(theirs["blob_id"], ours.id.as_str(), "{name}");
        assert_eq!(
            u64::from(ours.chunk_count),
            number(theirs, "chunk_count"),
            "{name}"
        );
        assert_eq!(
            u64::from(ours.compressor.number()),
            number(theirs, "compressor"),
            "{name}"
        );
        assert_eq!(
            u64::from(ours.digester.number()),
            number(theirs, "digester"),
            "{name}"
        );
        assert_eq!(
            u64::from(ours.features.bits()),
            number(theirs, "features_raw"),
            "{name}"
        );
        assert_eq!(
            ours.compressed_size,
            number(theirs, "compressed_size"),
            "{name}"
        );
        assert_eq!(
            ours.uncompressed_size,
            number(theirs, "uncompressed_size"),
            "{name}"
        );
        assert_eq!(
            u64::from(ours.toc_size),
            number(theirs, "toc_size"),
            "{name}"
        );
        assert_eq!(
            u64::from(ours.meta_compressor.number()),
            number(theirs, "ci_compressor"),
            "{name}"
        );
        assert_eq!(ours.meta_offset, number(theirs, "ci_offset"), "{name}");
        assert_eq!(
            ours.meta_compressed_size,
            number(theirs, "ci_compressed_size"),
            "{name}"
        );
        assert_eq!(
            ours.meta_uncompressed_size,
            number(theirs, "ci_uncompressed_size"),
            "{name}"
        );
        assert_eq!(
            ours.features.contains(BlobFeatures::ENCRYPTED),
            ours.cipher_key().is_some(),
            "{name}"
        );
    }
}

/// Follows a path by lookup alone.
fn resolve(bootstrap: &Bootstrap<Vec<u8>>, path: &str) -> Inode {
    let mut inode = bootstrap.inode(bootstrap.root()).unwrap();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        let entry = bootstrap
            .lookup(&inode, part.as_bytes())
            .unwrap()
            .unwrap_or_else(|| panic!("{path}: {part}"));
        inode = bootstrap.inode(entry.nid).unwrap();
        assert_eq!(entry.file_type, inode.file_type, "{path}");
    }
    inode
}

fn compare_inode(name: &str, bootstrap: &Bootstrap<Vec<u8>>, theirs: &Value) {
    let path = theirs["path"].as_str().unwrap();
    let inode = resolve(bootstrap, path);
    let found = [
        inode.nid.0,
        inode.offset(),
        inode.mode.into(),
        inode.size,
        inode.ino.into(),
        inode.uid.into(),
        inode.gid.into(),
        inode.mtime.cast_unsigned(),
        inode.mtime_nsec.into(),
        inode.nlink.into(),
    ];
    let keys = [
        "nid",
        "offset",
        "mode",
        "size",
        "ino",
        "uid",
        "gid",
        "mtime",
        "mtime_nsec",
        "nlink",
    ];
    assert_eq!(found, keys.map(|key| number(theirs, key)), "{name}: {path}");
    let xattrs = bootstrap.xattrs(&inode).unwrap();
    let expected = theirs["xattrs"].as_object().unwrap();
    assert_eq!(xattrs.len(), expected.len(), "{name}: {path}");
    for xattr in xattrs {
        assert_eq!(
            expected[&text(&xattr.name)],
            Value::from(text(xattr.value)),
            "{name}: {path}"
        );
    }
    match inode.file_type {
        FileType::Symlink => {
            let target = bootstrap.symlink(&inode).unwrap();
            assert_eq!(
                theirs["target"],
                Value::from(text(&target)),
                "{name}: {path}"
            );
        }
        FileType::Regular => {
            let chunks = bootstrap.chunks(&inode).unwrap();
            let expected = theirs["chunks"]
                .as_array()
                .map(Vec::as_slice)
                .unwrap_or_default();
            assert_eq!(chunks.len(), expected.len(), "{name}: {path}");
            for (ours, theirs) in chunks.zip(expected) {
                let ours = ours.unwrap();
                let blocks = ours.uncompressed_offset >> bootstrap.superblock().block_bits;
                let found = [u64::from(ours.blob_index), u64::from(ours.index), blocks];
                assert_eq!(
                    found,
                    ["blob_index", "ci", "blkaddr"].map(|key| number(theirs, key)),
                    "{name}: {path}"
                );
            }
        }
        FileType::Directory => {
            let entries: Vec<_> = bootstrap
                .entries(&inode)
                .unwrap()
                .map(Result::unwrap)
                .collect();
            assert_eq!(
                entries.len() as u64,
                number(theirs, "entries"),
                "{name}: {path}"
            );
            for (i, entry) in entries.iter().enumerate() {
                let from: Vec<_> = bootstrap
                    .entries_from(&inode, i as u64)
                    .unwrap()
                    .map(Result::unwrap)
                    .collect();
                assert_eq!(from, entries[i..], "{name}: {path}");
                assert_eq!(
                    bootstrap.lookup(&inode, entry.name).unwrap(),
                    Some(*entry),
                    "{name}: {path}"
                );
            }
            assert!(
                bootstrap
                    .entries_from(&inode, entries.len() as u64)
                    .unwrap()
                    .next()
                    .is_none()
            );
        }
        _ => assert_eq!(
            u64::from(inode.rdev),
            number(theirs, "rdev"),
            "{name}: {path}"
        ),
    }
}

/// Places all inodes below a directory again, as the format's description says.
fn replay(
    bootstrap: &Bootstrap<Vec<u8>>,
    dir: Inode,
    allocator: &mut Allocator,
    meta: u64,
    placed: &mut BTreeSet<Nid>,
) {
    let mut directories = Vec::new();
    let place = allocator.data(dir.head_size(), dir.size);
    assert_eq!(place.offset + meta, dir.offset(), "directory {}", dir.nid);
    assert_eq!(
        place.inline,
        dir.layout == Layout::FlatInline,
        "directory {}",
        dir.nid
    );
    for entry in bootstrap.entries(&dir).unwrap() {
        let entry = entry.unwrap();
        let inode = bootstrap.inode(entry.nid).unwrap();
        let name = entry.name.escape_ascii();
        let offset = match inode.file_type {
            _ if matches!(entry.name, b"." | b"..") => continue,
            FileType::Directory => {
                directories.push(inode);
                continue;
            }
            FileType::Regular if !placed.insert(inode.nid) => continue,
            FileType::Regular => allocator.regular(
                inode.head_size(),
                bootstrap.chunks(&inode).unwrap().len() as u64,
            ),
            FileType::Symlink => allocator.data(inode.head_size(), inode.size).offset,
            _ => allocator.special(inode.head_size()),
        };
        assert_eq!(offset + meta, inode.offset(), "{name}");
    }
    for dir in directories {
        replay(bootstrap, dir, allocator, meta, placed);
    }
}

#[test]
fn allocator_puts_inodes_where_the_deployed_builder_does() {
    let Some(shared) =
        testkit::shared_or_skip("allocator_puts_inodes_where_the_deployed_builder_does")
    else {
        return;
    };
    for (name, bytes) in bootstraps(&shared) {
        let bootstrap = Bootstrap::parse(bytes).unwrap();
        if bootstrap.is_tarfs() {
            continue;
        }
        let superblock = *bootstrap.superblock();
        let regions = Regions::new(
            bootstrap.blobs().len() as u64,
            bootstrap.prefetch().count() as u64,
        );
        assert_eq!(regions.meta, superblock.meta_offset(), "{name}");
        assert_eq!(regions.blob_table, superblock.blob_table_offset, "{name}");
        let mut allocator = Allocator::new();
        let root = bootstrap.inode(bootstrap.root()).unwrap();
        replay(
            &bootstrap,
            root,
            &mut allocator,
            regions.meta,
            &mut BTreeSet::new(),
        );
        let end = (regions.meta + allocator.end()).next_multiple_of(4096);
        assert_eq!(end, superblock.chunk_table_offset, "{name}");
        let blocks = bootstrap.devices().iter().map(|device| device.blocks);
        let mapped = map_devices(
            bootstrap.data().len() as u64,
            rafs_format::BLOCK_SIZE,
            blocks,
        )
        .unwrap();
        assert!(
            mapped.iter().eq(bootstrap
                .devices()
                .iter()
                .map(|device| &device.mapped_blkaddr)),
            "{name}"
        );
    }
}

/// The chunk tables in blobs agree with the chunk table of the bootstrap, and are encoded to the same bytes.
#[test]
fn chunk_tables_of_blobs_agree_with_bootstraps() {
    let Some(shared) = testkit::shared_or_skip("chunk_tables_of_blobs_agree_with_bootstraps")
    else {
        return;
    };
    let mut checked = 0;
    for name in [
        "v6-separate",
        "v6-none",
        "v6-zstd",
        "v6-zstd-64k",
        "v6-batch",
        "v6-upper",
        "v6-zran",
    ] {
        let blob = fs::read(shared.join(format!("golden/{name}.blob"))).unwrap();
        let boot = inlined(&blob)
            .unwrap_or_else(|| fs::read(shared.join(format!("golden/{name}.boot"))).unwrap());
        let bootstrap = Bootstrap::parse(boot).unwrap();
        let info = &bootstrap.blobs()[0];
        let start = info.meta_offset as usize;
        let end = start + info.meta_compressed_size as usize;
        let table = match info.meta_compressor {
            Compressor::None => blob[start..end].to_vec(),
            Compressor::Zstd => {
                zstd::bulk::decompress(&blob[start..end], info.meta_uncompressed_size as usize)
                    .unwrap()
            }
            other => panic!("{name}: {other}"),
        };
        let header: &[u8; 4096] = blob[end..end + 4096].try_into().unwrap();
        let meta = BlobMeta::parse(&table, header, info).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(&Header::parse(header).unwrap().encode(), header, "{name}");
        let mut again = Vec::new();
        for chunk in meta.chunks() {
            if info.features.contains(BlobFeatures::CHUNK_INFO_V2) {
                blob_meta::encode_v2(&chunk, &mut again).unwrap();
            } else {
                blob_meta::encode_v1(&chunk, &mut again).unwrap();
            }
        }
        (0..)
            .map_while(|i| meta.batch(i))
            .filter(|_| name == "v6-batch")
            .for_each(|b| blob_meta::encode_batch(&b, &mut again));
        (0..)
            .map_while(|i| meta.zran(i))
            .filter(|_| name == "v6-zran")
            .for_each(|z| blob_meta::encode_zran(&z, &mut again));
        assert_eq!(again, table[..again.len()], "{name}");
        assert!(name == "v6-zran" || again.len() == table.len(), "{name}");
        for record in bootstrap.chunk_table().map(Result::unwrap) {
            let stored = meta.chunk(record.index).unwrap();
            assert_eq!(
                stored.uncompressed_offset, record.uncompressed_offset,
                "{name}"
            );
            assert_eq!(stored.uncompressed_size, record.uncompressed_size, "{name}");
            if stored.placement == Placement::Plain {
                assert_eq!(stored.compressed_offset, record.compressed_offset, "{name}");
                assert_eq!(stored.compressed_size, record.compressed_size, "{name}");
            }
            checked += 1;
        }
    }
    assert!(checked > 1000);
}
