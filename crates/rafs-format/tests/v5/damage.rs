//! The sample reads back as written, and no damage to it makes a reader panic or run for ever.

use proptest::prelude::*;
use rafs_format::Summary;
use rafs_format::v5::Bootstrap;

use crate::{parse, sample};

#[test]
fn sample_passes_the_check() {
    let bytes = sample::bootstrap();
    let summary = parse(&bytes)
        .check(sample::hash)
        .unwrap_or_else(|e| panic!("{e}: {:?}", e.source));
    let expected = Summary {
        inodes: 8,
        names: 9,
        directories: 3,
        regular_files: 3,
        symlinks: 1,
        chunks: 3,
        chunk_references: 3,
    };
    assert_eq!(summary, expected);
}

#[test]
fn sample_reads_back() {
    let bytes = sample::bootstrap();
    let bootstrap = parse(&bytes);
    let names: Vec<_> = (1..=bootstrap.names())
        .map(|index| bootstrap.inode(index).unwrap().name)
        .collect();
    let expected: [&[u8]; 9] = [
        b"/", b"-first", b"device", b"link", b"one", b"sub", b"empty", b"two", b"zero",
    ];
    assert_eq!(names, expected);
    let first = bootstrap.inode(2).unwrap();
    assert_eq!(
        (
            first.mode,
            first.uid,
            first.gid,
            first.mtime,
            first.mtime_nsec
        ),
        (0o104_755, 1000, 70000, -5, 999_999_999)
    );
    let xattrs = first.xattrs().unwrap();
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
    let chunks: Vec<_> = first.chunks().map(|chunk| chunk.unwrap().index).collect();
    assert_eq!(chunks, [0, 2]);
    assert_eq!(bootstrap.inode(3).unwrap().rdev, 0x103);
    assert_eq!(bootstrap.inode(4).unwrap().target, b"some/where/else");
    assert_eq!(bootstrap.inode(1).unwrap().children(), 2..7);
    assert!(bootstrap.inode(6).unwrap().implied && !bootstrap.inode(7).unwrap().implied);
    assert_eq!(bootstrap.inode(8).unwrap().ino, 5);
    let blobs = bootstrap.blobs();
    assert_eq!(
        (blobs[0].id.as_str(), blobs[0].readahead_size),
        ("first", 0)
    );
    assert_eq!(
        (blobs[1].id.as_str().len(), blobs[1].readahead_size),
        (64, 100)
    );
    assert_eq!(bootstrap.prefetch().collect::<Vec<_>>(), [5]);
    for index in [0, 10, u32::MAX] {
        assert!(bootstrap.inode(index).is_err());
    }
}

/// Builders took owner, mode and times of a name from its own entry in a tar.
#[test]
fn names_of_a_file_may_differ_in_what_is_not_data() {
    let mut bytes = sample::bootstrap();
    let second = parse(&bytes).inode(8).unwrap().offset as usize;
    for (at, value) in [(48, 1), (52, 1), (60, 0xed), (108, 7), (112, 9)] {
        bytes[second + at] = value;
        parse(&bytes).check(sample::hash).unwrap();
    }
    bytes[second + 64] = 47;
    parse(&bytes).check(sample::hash).unwrap_err();
}

/// Calls every accessor for every inode.
fn walk(bytes: &[u8]) {
    let Ok(bootstrap) = Bootstrap::parse(bytes) else {
        return;
    };
    let _ = bootstrap.check(sample::hash);
    let _ = bootstrap.prefetch().count();
    for index in 0..=bootstrap.names().saturating_add(1) {
        let Ok(inode) = bootstrap.inode(index) else {
            continue;
        };
        let _ = inode.xattrs();
        let _ = inode.children().len();
        let _ = inode.chunks().filter_map(Result::ok).count();
    }
}

#[test]
fn no_flipped_byte_makes_a_reader_panic() {
    let mut bytes = sample::bootstrap();
    for i in (0..80)
        .chain((80..8192).step_by(64))
        .chain(8192..bytes.len())
    {
        for flip in [0xff, 0x01, 0x80] {
            bytes[i] ^= flip;
            walk(&bytes);
            bytes[i] ^= flip;
        }
    }
}

/// Padding, reserved fields and what differs from one name of a file to the next may change unseen; nothing else.
#[test]
fn few_flipped_bytes_go_unnoticed() {
    let mut bytes = sample::bootstrap();
    let mut unnoticed = 0;
    for i in 8192..bytes.len() {
        bytes[i] ^= 0x10;
        let noticed =
            Bootstrap::parse(&bytes[..]).is_err() || parse(&bytes).check(sample::hash).is_err();
        unnoticed += u32::from(!noticed);
        bytes[i] ^= 0x10;
    }
    let all = bytes.len() as u32 - 8192;
    assert!(unnoticed * 2 < all, "{unnoticed} of {all}");
}

#[test]
fn no_truncation_makes_a_reader_panic() {
    let bytes = sample::bootstrap();
    for len in (0..bytes.len()).step_by(61).chain(8000..bytes.len()) {
        walk(&bytes[..len]);
        assert!(!Bootstrap::parse(&bytes[..len]).is_ok_and(|b| b.check(sample::hash).is_ok()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_set_of_overwritten_bytes_makes_a_reader_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>(), 1..9usize), 1..12)) {
        let mut bytes = sample::bootstrap();
        for (at, value, len) in changes {
            // Past the reserved bytes of the superblock, most of the time.
            let at = match at.index(bytes.len() - 8) {
                at if (80..8192).contains(&at) && at % 4 != 0 => 8192 + at % (bytes.len() - 8200),
                at => at,
            };
            bytes[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
        }
        walk(&bytes);
    }
}
