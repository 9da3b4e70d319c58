//! Merging and compacting whole images: blobs, chunks, prefetch lists; and the canonical walk.

use std::collections::BTreeMap;

use rafs_format::{BlobId, BlobInfo, ChunkFlags, ChunkRecord, Compressor, Digester};
use tree::{ChunkId, Content, Error, Image, Inode, InodeId, Tree, mode, overlay};

fn blob(id: &str, index: u32) -> BlobInfo {
    BlobInfo {
        index,
        chunk_count: 10,
        ..BlobInfo::new(
            BlobId::new(id).expect("an id"),
            0x10_0000,
            Compressor::Zstd,
            Digester::Blake3,
        )
    }
}

fn chunk(blob_index: u32, index: u32, digest: u8) -> ChunkRecord {
    ChunkRecord {
        digest: [digest; 32],
        blob_index,
        flags: ChunkFlags::empty(),
        compressed_size: 1,
        uncompressed_size: 1,
        compressed_offset: u64::from(index),
        uncompressed_offset: u64::from(index) * 4096,
        file_offset: 0,
        index,
        crc32: 0,
    }
}

fn file(chunks: &[u32]) -> Inode {
    let chunks = chunks.iter().map(|id| ChunkId(*id)).collect();
    Inode {
        mode: mode::REGULAR | 0o644,
        implied: false,
        content: Content::Regular { size: 1, chunks },
        ..Inode::implied_directory()
    }
}

/// An image of files in the root (`a/b` makes a directory `a`).
fn image(blobs: &[&str], chunks: &[ChunkRecord], files: &[(&str, &[u32])]) -> Image {
    let mut tree = Tree::new();
    for (path, ids) in files {
        let id = tree.add(file(ids));
        let mut parent = InodeId::ROOT;
        let mut name = *path;
        if let Some((directory, rest)) = path.split_once('/') {
            name = rest;
            let known = tree.lookup(directory.as_bytes());
            let directory_id = known.unwrap_or_else(|| tree.add(Inode::implied_directory()));
            tree.entries_mut(parent)
                .expect("a directory")
                .insert(directory.as_bytes().into(), directory_id);
            parent = directory_id;
        }
        tree.entries_mut(parent)
            .expect("a directory")
            .insert(name.as_bytes().into(), id);
    }
    Image {
        version: rafs_format::Version::V6,
        tree,
        blobs: blobs
            .iter()
            .zip(0..)
            .map(|(id, index)| blob(id, index))
            .collect(),
        chunks: chunks.to_vec(),
        chunk_size: 0x10_0000,
        prefetch: Vec::new(),
        compressor: Compressor::Zstd,
        digester: Digester::Blake3,
        explicit_owners: true,
        tarfs: false,
    }
}

/// Digests of a file's chunks, with the ids of their blobs.
fn content(image: &Image, path: &str) -> Vec<(String, u8, u32)> {
    let id = image.tree.lookup(path.as_bytes()).expect("there");
    let Content::Regular { chunks, .. } = &image.tree.inode(id).content else {
        panic!("{path}")
    };
    let chunks = chunks.iter().map(|id| &image.chunks[id.0 as usize]);
    chunks
        .map(|c| {
            (
                image.blobs[c.blob_index as usize].id.to_string(),
                c.digest[0],
                c.index,
            )
        })
        .collect()
}

fn blob_ids(image: &Image) -> Vec<&str> {
    image.blobs.iter().map(|blob| blob.id.as_str()).collect()
}

#[test]
fn chunks_and_blobs_of_both_layers_are_kept_apart() {
    let mut lower = image(
        &["low"],
        &[chunk(0, 0, 1), chunk(0, 1, 2)],
        &[("a", &[0, 1]), ("b", &[1])],
    );
    let upper = image(&["up"], &[chunk(0, 0, 3)], &[("b", &[0]), ("c", &[0, 0])]);
    overlay(&mut lower, upper).expect("alike");
    lower.compact().expect("consistent");
    assert_eq!(
        content(&lower, "a"),
        [("low".into(), 1, 0), ("low".into(), 2, 1)]
    );
    assert_eq!(content(&lower, "b"), [("up".into(), 3, 0)]);
    assert_eq!(content(&lower, "c").len(), 2);
    assert_eq!(
        (lower.chunks.len(), blob_ids(&lower)),
        (3, vec!["low", "up"])
    );
}

#[test]
fn a_blob_that_both_know_is_shared() {
    let mut lower = image(
        &["one", "two"],
        &[chunk(0, 0, 1), chunk(1, 5, 2)],
        &[("a", &[0, 1])],
    );
    let upper = image(
        &["two", "three"],
        &[chunk(0, 5, 2), chunk(0, 6, 3), chunk(1, 0, 4)],
        &[("b", &[0, 1, 2])],
    );
    overlay(&mut lower, upper).expect("alike");
    lower.compact().expect("consistent");
    assert_eq!(blob_ids(&lower), ["one", "two", "three"]);
    assert_eq!(
        content(&lower, "b"),
        [
            ("two".into(), 2, 5),
            ("two".into(), 3, 6),
            ("three".into(), 4, 0)
        ]
    );
    assert_eq!(lower.chunks.len(), 4, "both named chunk 5 of blob two");
}

#[test]
fn placeholders_are_never_the_same_blob() {
    let placeholder = BlobId::PLACEHOLDER;
    let mut lower = image(&[placeholder], &[chunk(0, 0, 1)], &[("a", &[0])]);
    overlay(
        &mut lower,
        image(&[placeholder], &[chunk(0, 0, 2)], &[("b", &[0])]),
    )
    .expect("alike");
    assert_eq!(lower.blobs.len(), 2);
}

#[test]
fn unused_blobs_go_and_the_rest_is_numbered_by_first_use_in_the_walk() {
    let chunks = [
        chunk(0, 0, 1),
        chunk(1, 0, 2),
        chunk(2, 0, 3),
        chunk(3, 7, 4),
    ];
    // The root's children come before what lies in its first directory.
    let mut image = image(
        &["w", "x", "y", "z"],
        &chunks,
        &[("d/f", &[0]), ("e", &[3]), ("z", &[1])],
    );
    image.compact().expect("consistent");
    assert_eq!(blob_ids(&image), ["z", "x", "w"]);
    assert!(
        image
            .blobs
            .iter()
            .zip(0..)
            .all(|(blob, index)| blob.index == index)
    );
    assert_eq!(content(&image, "e"), [("z".into(), 4, 7)]);
    assert_eq!(content(&image, "d/f"), [("w".into(), 1, 0)]);
    assert_eq!(
        image.chunks.iter().map(|c| c.digest[0]).collect::<Vec<_>>(),
        [4, 2, 1]
    );
}

#[test]
fn replaced_files_take_their_chunks_along() {
    let mut lower = image(&["low"], &[chunk(0, 0, 1)], &[("a", &[0])]);
    overlay(
        &mut lower,
        image(&["up"], &[chunk(0, 0, 2)], &[("a", &[0])]),
    )
    .expect("alike");
    lower.compact().expect("consistent");
    assert_eq!(
        (blob_ids(&lower), lower.chunks.len(), lower.tree.len()),
        (vec!["up"], 1, 2)
    );
}

#[test]
fn prefetch_entries_follow_their_inodes() {
    let mut lower = image(
        &["low"],
        &[chunk(0, 0, 1)],
        &[("a", &[0]), ("d/x", &[0]), ("gone", &[0])],
    );
    let id = |image: &Image, path: &[u8]| image.tree.lookup(path).expect("there");
    lower.prefetch = vec![id(&lower, b"gone"), id(&lower, b"d"), id(&lower, b"a")];
    let mut upper = image(
        &["up"],
        &[chunk(0, 0, 2)],
        &[("d/y", &[0]), (".wh.gone", &[])],
    );
    upper.prefetch = vec![id(&upper, b"d"), id(&upper, b"d/y")];
    overlay(&mut lower, upper).expect("alike");
    lower.compact().expect("consistent");
    assert_eq!(
        lower.prefetch,
        [id(&lower, b"d"), id(&lower, b"a"), id(&lower, b"d/y")]
    );
}

#[test]
fn facts_of_the_superblock_are_the_upper_ones() {
    let mut lower = image(&[], &[], &[]);
    let upper = Image {
        compressor: Compressor::Lz4Block,
        digester: Digester::Sha256,
        explicit_owners: false,
        tarfs: false,
        ..image(&[], &[], &[])
    };
    overlay(&mut lower, upper).expect("alike");
    assert_eq!(
        (lower.compressor, lower.digester, lower.explicit_owners),
        (Compressor::Lz4Block, Digester::Sha256, false)
    );
}

#[test]
fn layers_of_different_versions_are_refused() {
    use rafs_format::Version::{V5, V6};
    let mut lower = image(&[], &[], &[]);
    let upper = Image {
        version: V5,
        ..image(&[], &[], &[])
    };
    let expected = Error::Version {
        lower: V6,
        upper: V5,
    };
    assert_eq!(overlay(&mut lower, upper), Err(expected));
}

#[test]
fn layers_of_different_chunk_sizes_are_refused() {
    let mut lower = image(&[], &[], &[]);
    let upper = Image {
        chunk_size: 0x1_0000,
        ..image(&[], &[], &[])
    };
    assert_eq!(
        overlay(&mut lower, upper),
        Err(Error::ChunkSize {
            lower: 0x10_0000,
            upper: 0x1_0000
        })
    );
}

#[test]
fn contradictions_about_a_blob_or_chunk_are_refused() {
    let mut lower = image(&["b"], &[chunk(0, 0, 1)], &[("x", &[0])]);
    let mut upper = lower.clone();
    upper.blobs[0].meta_offset = 7;
    assert_eq!(
        overlay(&mut lower, upper),
        Err(Error::BlobConflict { id: "b".into() })
    );
    overlay(&mut lower, image(&["b"], &[chunk(0, 0, 2)], &[("y", &[0])]))
        .expect("the blob is the same");
    assert_eq!(
        lower.compact(),
        Err(Error::ChunkConflict { blob: 0, row: 0 })
    );
}

#[test]
fn what_is_not_there_is_refused() {
    let mut lower = image(&["b"], &[], &[]);
    let error = overlay(&mut lower, image(&[], &[chunk(3, 0, 1)], &[]));
    assert_eq!(error, Err(Error::UnknownBlob { index: 3 }));
    assert_eq!(
        image(&["b"], &[], &[("x", &[9])]).compact(),
        Err(Error::UnknownChunk { id: 9 })
    );
    let error = image(&["b"], &[chunk(1, 0, 1)], &[("x", &[0])]).compact();
    assert_eq!(error, Err(Error::UnknownBlob { index: 1 }));
}

#[test]
fn the_walk_gives_all_children_before_it_descends() {
    let image = image(
        &[],
        &[],
        &[
            ("b/x", &[]),
            ("a/z", &[]),
            ("a/y", &[]),
            ("a.b", &[]),
            ("c", &[]),
        ],
    );
    let mut walk = image.tree.walk();
    let mut steps = Vec::new();
    while let Some(visit) = walk.next() {
        steps.push(format!(
            "{} in {:?} at {}",
            String::from_utf8_lossy(&walk.path(&visit)),
            String::from_utf8_lossy(walk.directory()),
            visit.depth
        ));
    }
    let want = [
        r#"/ in "" at 0"#,
        r#"/a in "" at 1"#,
        r#"/a.b in "" at 1"#,
        r#"/b in "" at 1"#,
        r#"/c in "" at 1"#,
        r#"/a/y in "/a" at 2"#,
        r#"/a/z in "/a" at 2"#,
        r#"/b/x in "/b" at 2"#,
    ];
    assert_eq!(steps, want);
    let from = image
        .tree
        .walk_from(image.tree.lookup(b"/a/").expect("there"));
    assert_eq!(
        from.map(|visit| visit.name.to_vec()).collect::<Vec<_>>(),
        [&b""[..], b"y", b"z"]
    );
}

#[test]
fn parents_in_the_walk_are_the_directories_that_hold_the_name() {
    let image = image(&[], &[], &[("b/x", &[]), ("a/y", &[])]);
    for visit in image.tree.walk().skip(1) {
        assert_eq!(
            image
                .tree
                .entries(visit.parent)
                .expect("a directory")
                .get(visit.name),
            Some(&visit.id)
        );
    }
}

#[test]
fn link_counts_are_those_of_a_file_system() {
    let mut tree = image(&[], &[], &[("d/x", &[]), ("e/y", &[]), ("f", &[])]).tree;
    let f = tree.lookup(b"f").expect("there");
    tree.entries_mut(InodeId::ROOT)
        .expect("a directory")
        .insert(b"g"[..].into(), f);
    let lost = tree.add(file(&[]));
    let counts = tree.link_counts();
    let count = |path: &[u8]| counts[tree.lookup(path).expect("there").0 as usize];
    assert_eq!(
        (
            count(b"/"),
            count(b"d"),
            count(b"f"),
            count(b"d/x"),
            counts[lost.0 as usize]
        ),
        (4, 2, 2, 1, 0)
    );
}

#[test]
fn lookup_takes_names_literally() {
    let tree = image(&[], &[], &[("d/x", &[])]).tree;
    assert!(tree.lookup(b"//d///x/").is_some());
    for path in [&b"d/../d"[..], b"x", b"d/x/y", b"./d"] {
        assert_eq!(tree.lookup(path), None);
    }
}

#[test]
fn three_layers_of_20000_inodes_merge_quickly() {
    let layer = |n: u32| {
        let chunks = (0..20_000)
            .map(|i| chunk(0, i, n as u8))
            .collect::<Vec<_>>();
        let mut image = image(&[["l0", "l1", "l2"][n as usize]], &chunks, &[]);
        let mut directories = BTreeMap::new();
        for i in 0..20_000u32 {
            let directory = *directories.entry(i % 500).or_insert_with(|| {
                let id = image.tree.add(Inode::implied_directory());
                let name = format!("directory{}", i % 500);
                image
                    .tree
                    .entries_mut(InodeId::ROOT)
                    .expect("the root")
                    .insert(name.as_bytes().into(), id);
                id
            });
            let id = image.tree.add(file(&[i]));
            let name = format!("file{}", i + n * 10_000);
            image
                .tree
                .entries_mut(directory)
                .expect("a directory")
                .insert(name.as_bytes().into(), id);
        }
        image
    };
    let mut layers = (0..3).map(layer);
    let mut image = layers.next().expect("three");
    let rest = layers.collect::<Vec<_>>();
    let begun = std::time::Instant::now();
    image.tree.strip_whiteouts();
    for layer in rest {
        overlay(&mut image, layer).expect("alike");
    }
    image.compact().expect("consistent");
    let took = begun.elapsed();
    eprintln!("merged in {took:?}");
    assert_eq!(image.tree.name_count(), 1 + 500 + 40_000);
    assert!(took.as_millis() < 2000, "{took:?}");
}
