//! A bootstrap of our own: it reads back as written, and no damage to it makes a reader panic or run for ever.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "damage/sample.rs"]
mod sample;
#[path = "damage/says.rs"]
mod says;

use proptest::prelude::*;
use rafs_format::{Bootstrap, CheckError, FileType, Inode, Nid, Summary};
use says::assert_says;

fn parse(bytes: &[u8]) -> Bootstrap<&[u8]> {
    Bootstrap::parse(bytes).unwrap()
}

fn find(bootstrap: &Bootstrap<&[u8]>, path: &str) -> Inode {
    let mut inode = bootstrap.inode(bootstrap.root()).unwrap();
    for part in path.split('/') {
        let entry = bootstrap.lookup(&inode, part.as_bytes()).unwrap().unwrap();
        inode = bootstrap.inode(entry.nid).unwrap();
    }
    inode
}

#[test]
fn sample_passes_the_check() {
    let bytes = sample::bootstrap();
    let summary = parse(&bytes)
        .check()
        .unwrap_or_else(|e| panic!("{e}: {:?}", e.source));
    let expected = Summary {
        inodes: 9,
        names: 129,
        directories: 3,
        regular_files: 4,
        symlinks: 1,
        chunks: 6,
        chunk_references: 6,
    };
    assert_eq!(summary, expected);
}

#[test]
fn sample_reads_back() {
    let bytes = sample::bootstrap();
    let bootstrap = parse(&bytes);
    assert_eq!(bootstrap.root(), Nid(128));
    assert_eq!(
        bootstrap
            .symlink(&find(&bootstrap, "link"))
            .unwrap()
            .as_ref(),
        b"some/where/else"
    );
    assert_eq!(find(&bootstrap, "device").rdev, 0x103);
    let file = find(&bootstrap, "-first");
    assert_eq!(
        (file.mode, file.uid, file.gid, file.mtime, file.mtime_nsec),
        (0o104_755, 1000, 70000, -5, 999_999_999)
    );
    let xattrs = bootstrap.xattrs(&file).unwrap();
    let found: Vec<_> = xattrs
        .iter()
        .map(|x| (x.name.as_slice(), x.value))
        .collect();
    assert_eq!(
        found,
        [
            (&b"security.capability"[..], &b"\x01\0\0\x02"[..]),
            (b"user.a", b"")
        ]
    );
    let chunks: Vec<_> = bootstrap
        .chunks(&file)
        .unwrap()
        .map(|c| c.unwrap().index)
        .collect();
    assert_eq!(chunks, [3, 5]);
    assert_eq!(
        bootstrap
            .chunks(&file)
            .unwrap()
            .nth(1)
            .unwrap()
            .unwrap()
            .index,
        5
    );
    assert!(bootstrap.chunks(&file).unwrap().nth(2).is_none());
    let sub = find(&bootstrap, "sub");
    assert!(sub.implied && !file.implied);
    assert_eq!(
        bootstrap.xattrs(&sub).unwrap()[0].name,
        b"system.posix_acl_default"
    );
    assert_eq!(
        find(&bootstrap, "contiguous").nid,
        find(&bootstrap, "same").nid
    );
    // Three chunks of 4096 in a row are announced as one of four blocks; two apart are not.
    assert_eq!(find(&bootstrap, "contiguous").chunk_format(), Some(0x22));
    assert_eq!(file.chunk_format(), Some(0x20));
    let prefetch: Vec<_> = bootstrap.prefetch().collect();
    assert_eq!(
        prefetch,
        [find(&bootstrap, "same").nid, find(&bootstrap, "long").nid]
    );
}

#[test]
fn long_directory_is_searched_and_resumed() {
    let bytes = sample::bootstrap();
    let bootstrap = parse(&bytes);
    let dir = find(&bootstrap, "long");
    let all: Vec<_> = bootstrap
        .entries(&dir)
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!(all.len(), 122);
    assert!(all.is_sorted_by_key(|entry| entry.name));
    for (i, entry) in all.iter().enumerate() {
        assert_eq!(
            bootstrap.lookup(&dir, entry.name).unwrap().as_ref(),
            Some(entry)
        );
        let rest: Vec<_> = bootstrap
            .entries_from(&dir, i as u64)
            .unwrap()
            .map(Result::unwrap)
            .collect();
        assert_eq!(rest, all[i..]);
        assert_eq!(
            bootstrap
                .lookup(&dir, &[entry.name, b"x"].concat())
                .unwrap(),
            None
        );
    }
    assert_eq!(bootstrap.lookup(&dir, b"").unwrap(), None);
    assert_eq!(bootstrap.lookup(&dir, b"zzz").unwrap(), None);
    assert!(bootstrap.lookup(&find(&bootstrap, "link"), b"x").is_err());
}

/// Calls every accessor for every possible inode.
fn walk(bytes: &[u8]) {
    let Ok(bootstrap) = Bootstrap::parse(bytes) else {
        return;
    };
    let _ = bootstrap.check();
    let _ = bootstrap.chunk_table().filter_map(Result::ok).count();
    let _ = bootstrap
        .prefetch()
        .filter_map(|nid| bootstrap.inode(nid).ok())
        .count();
    for nid in 0..=bytes.len() as u64 / Nid::SLOT_SIZE {
        let Ok(inode) = bootstrap.inode(Nid(nid)) else {
            continue;
        };
        let _ = bootstrap.xattrs(&inode);
        let _ = bootstrap.symlink(&inode);
        if let Ok(chunks) = bootstrap.chunks(&inode) {
            let _ = chunks.filter_map(Result::ok).count();
        }
        if let Ok(entries) = bootstrap.entries(&inode) {
            for entry in entries.filter_map(Result::ok).take(300) {
                let _ = bootstrap.lookup(&inode, entry.name);
            }
            let _ = bootstrap
                .entries_from(&inode, 40)
                .map(|mut entries| entries.next());
        }
    }
}

#[test]
fn no_flipped_byte_makes_a_reader_panic() {
    let mut bytes = sample::bootstrap();
    for i in 0..bytes.len() {
        // Long runs of padding need one try only.
        let padding = bytes[i.saturating_sub(64)..bytes.len().min(i + 64)]
            .iter()
            .all(|&b| b == 0);
        if padding && i % 64 != 0 {
            continue;
        }
        for flip in [0xff, 0x01] {
            bytes[i] ^= flip;
            walk(&bytes);
            bytes[i] ^= flip;
        }
    }
}

#[test]
fn no_truncation_makes_a_reader_panic() {
    let bytes = sample::bootstrap();
    for len in (0..bytes.len())
        .step_by(509)
        .chain((0..bytes.len()).step_by(4096))
    {
        walk(&bytes[..len]);
        assert!(!Bootstrap::parse(&bytes[..len]).is_ok_and(|b| b.check().is_ok()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_set_of_overwritten_bytes_makes_a_reader_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>(), 1..9usize), 1..12)) {
        let mut bytes = sample::bootstrap();
        for (at, value, len) in changes {
            let at = at.index(bytes.len() - 8);
            bytes[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
        }
        walk(&bytes);
    }
}

/// The check's verdict after bytes at `offset` have been replaced.
fn verdict(offset: u64, bytes: &[u8]) -> CheckError {
    let mut file = sample::bootstrap();
    file[offset as usize..][..bytes.len()].copy_from_slice(bytes);
    parse(&file).check().expect_err("the damage goes unnoticed")
}

fn offset_of(path: &str) -> u64 {
    let bytes = sample::bootstrap();
    find(&parse(&bytes), path).offset()
}

#[test]
fn check_names_the_file_with_a_wrong_link_count() {
    assert_says(
        &verdict(offset_of("same") + 44, &[3]),
        Some("/contiguous"),
        "link count is 3, but the tree has 2",
    );
    assert_says(
        &verdict(offset_of("same") + 44, &[1]),
        Some("/same"),
        "another name of the inode",
    );
    assert_says(
        &verdict(offset_of("sub") + 44, &[3]),
        Some("/sub"),
        "expected 2 and 0",
    );
}

#[test]
fn check_refuses_a_directory_that_is_its_own_ancestor() {
    let bytes = sample::bootstrap();
    let bootstrap = parse(&bytes);
    let root = bootstrap.inode(bootstrap.root()).unwrap();
    // Entries of the root: -first . .. contiguous device link long other same sub, inline behind the inode.
    let entry = root.offset() + root.head_size() + 12 * 6;
    assert_says(
        &verdict(entry, &128u64.to_le_bytes()),
        Some("/long"),
        "second name, or is its own ancestor",
    );
    let dotdot = root.offset() + root.head_size() + 12 * 2;
    assert_says(
        &verdict(dotdot, &find(&bootstrap, "sub").nid.0.to_le_bytes()),
        Some("/.."),
        "expected directory 128",
    );
    assert_says(
        &verdict(entry, &find(&bootstrap, "link").nid.0.to_le_bytes()),
        Some("/long"),
        "the inode is a Symlink",
    );
}

#[test]
fn check_refuses_names_out_of_order() {
    let bytes = sample::bootstrap();
    let bootstrap = parse(&bytes);
    let root = bootstrap.inode(bootstrap.root()).unwrap();
    let names = root.offset() + root.head_size() + 12 * 10;
    assert_says(&verdict(names, b"x"), Some("/"), "out of order");
}

#[test]
fn check_joins_chunks_with_the_tables() {
    let file = offset_of("other");
    let index = file + 64;
    assert_says(
        &verdict(index, &[3]),
        Some("/other"),
        "begins at 0x4000 for the file and at 0x3000",
    );
    assert_says(
        &verdict(index, &[6]),
        Some("/other"),
        "expected below the 6 chunks",
    );
    assert_says(
        &verdict(index + 2, &[2]),
        Some("/other"),
        "device of a chunk index",
    );
    assert_says(&verdict(index + 4, &[9]), Some("/other"), "ends beyond");
    assert_says(
        &verdict(file + 8, &[8]),
        Some("/other"),
        "has 8 bytes for the file and 7",
    );
    assert_says(
        &verdict(file + 16, &[0x00]),
        Some("/other"),
        "chunk format word",
    );
    assert_says(
        &verdict(offset_of("-first") + 16, &[0x21]),
        Some("/-first"),
        "chunk format word",
    );
}

#[test]
fn check_looks_at_tables_flags_and_counts() {
    let bytes = sample::bootstrap();
    let table = parse(&bytes).superblock().chunk_table_offset;
    assert_says(&verdict(table + 72, &[1]), None, "two records of chunk 1");
    assert_says(&verdict(table + 32, &[1]), None, "blob index is 1");
    // The uncompressed offset of chunk 0 is made that of chunk 1.
    assert_says(
        &verdict(table + 57, &[0x10]),
        None,
        "chunks 0 and 1 of blob 0 overlap",
    );
    assert_says(
        &verdict(table + 36, &[0x20]),
        None,
        "flags of a chunk record",
    );
    assert_says(
        &verdict(1024 + 16, &[7]),
        None,
        "counts 7 names, the tree has 129",
    );
    assert_says(&verdict(1024 + 36, &[7]), None, "counts 7 blocks");
    assert_says(&verdict(1408, b"x"), None, "device slot 0 is for");
    assert_says(&verdict(1408 + 64, &[7]), None, "has 7 blocks");
    assert_says(&verdict(1408 + 68, &[1]), None, "mapped to block 1");
    assert_says(&verdict(4096 + 256, &[1]), None, "names nid");
    assert_says(&verdict(1152, &[0x94, 1]), None, "blobs hold chunk digests");
    assert_says(
        &verdict(1152, &[0x94]),
        Some("/-first"),
        "says that there are none",
    );
}

#[test]
fn check_looks_into_inodes() {
    let first = offset_of("-first");
    assert_says(
        &verdict(first + 43, &[0xff]),
        Some("/-first"),
        "nanoseconds",
    );
    assert_says(
        &verdict(first + 64 + 12 + 1, &[9]),
        Some("/-first"),
        "prefix number",
    );
    assert_says(
        &verdict(first + 64 + 4, &[1]),
        Some("/-first"),
        "shared attributes",
    );
    let link = offset_of("link");
    assert_says(&verdict(link + 64, &[0]), Some("/link"), "NUL");
    assert_says(&verdict(link + 8, &[0]), Some("/link"), "has 0 bytes");
    assert_says(&verdict(link + 5, &[0]), Some("/link"), "inode is damaged");
    assert_says(&verdict(link, &[0x19]), Some("/link"), "bits 4 to 15");
}

#[test]
fn check_refuses_two_things_in_one_place() {
    let bytes = sample::bootstrap();
    let bootstrap = parse(&bytes);
    let dir = find(&bootstrap, "sub");
    let link = find(&bootstrap, "link");
    assert_eq!(dir.file_type, FileType::Directory);
    // Data blocks of the long directory on top of the inodes' block.
    let long = offset_of("long");
    let block = (link.offset() / 4096) as u32;
    let mut file = sample::bootstrap();
    let start = block as usize * 4096;
    let u = u32::from_le_bytes(file[long as usize + 16..][..4].try_into().unwrap()) as usize * 4096;
    let data: Vec<u8> = file[u..u + 4096].to_vec();
    assert_ne!(u, start);
    // Elsewhere the very same entries are fine; on top of the chunk table they are not.
    let table = bootstrap.superblock().chunk_table_offset as usize;
    file[table..table + 4096].copy_from_slice(&data);
    file[long as usize + 16..][..4].copy_from_slice(&((table / 4096) as u32).to_le_bytes());
    assert!(parse(&file).check().is_err());
}

#[test]
fn compact_inodes_are_read() {
    let mut file = sample::bootstrap();
    let at = offset_of("other") as usize;
    let index = file[at + 64..at + 72].to_vec();
    let mut compact = vec![0x08, 0, 0, 0]; // chunk based, no attributes
    compact.extend(0o100_640u16.to_le_bytes());
    compact.extend(1u16.to_le_bytes()); // link count
    compact.extend(7u32.to_le_bytes()); // size
    compact.extend([0; 4]);
    compact.extend(0x20u32.to_le_bytes()); // chunk format
    compact.extend(8u32.to_le_bytes()); // number
    compact.extend(1000u16.to_le_bytes());
    compact.extend(65535u16.to_le_bytes());
    compact.extend([0; 4]);
    compact.extend(index);
    file[at..at + 72].fill(0);
    file[at..at + 40].copy_from_slice(&compact);
    let bootstrap = parse(&file);
    bootstrap.check().unwrap_or_else(|e| panic!("{e}"));
    let inode = find(&bootstrap, "other");
    let found = (
        inode.mode,
        inode.size,
        inode.uid,
        inode.gid,
        inode.mtime,
        inode.ino,
        inode.head_size(),
    );
    assert_eq!(found, (0o100_640, 7, 1000, 65535, 0, 8, 32));
    assert_eq!(
        bootstrap
            .chunks(&inode)
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .index,
        4
    );
}
