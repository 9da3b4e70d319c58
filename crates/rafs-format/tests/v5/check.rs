//! Every kind of damage that the check knows, and the words for it.

use rafs_format::CheckError;
use rafs_format::v5::Bootstrap;

use crate::says::assert_says;
use crate::{parse, sample};

/// The check's verdict after bytes at `offset` have been replaced.
#[track_caller]
fn verdict(offset: u64, bytes: &[u8]) -> CheckError {
    let mut file = sample::bootstrap();
    file[offset as usize..][..bytes.len()].copy_from_slice(bytes);
    let checked = parse(&file).check(sample::hash);
    checked.expect_err("the damage goes unnoticed")
}

/// Why the tables do not parse after bytes at `offset` have been replaced.
#[track_caller]
fn refusal(offset: u64, bytes: &[u8], what: &str) {
    let mut file = sample::bootstrap();
    file[offset as usize..][..bytes.len()].copy_from_slice(bytes);
    let error = Bootstrap::parse(&file[..])
        .map(drop)
        .expect_err("the damage goes unnoticed");
    assert!(error.to_string().contains(what), "{error}");
}

fn inode(index: u32) -> u64 {
    parse(&sample::bootstrap()).inode(index).unwrap().offset
}

/// Where the chunk records of an inode begin, from its end.
fn chunk(index: u32, number: u64) -> u64 {
    let bytes = sample::bootstrap();
    let count = u64::from(parse(&bytes).inode(index).unwrap().child_count);
    let end = if index == 9 {
        bytes.len() as u64
    } else {
        inode(index + 1)
    };
    end - (count - number) * 80
}

#[test]
fn tables_are_refused_by_name() {
    refusal(4, &[1], "version in the superblock");
    refusal(9, &[0], "size of the superblock");
    refusal(13, &[1], "chunk size in the superblock");
    refusal(16, &[0x82, 0], "flags of the superblock");
    refusal(17, &[0x2], "neither tarfs mode nor encryption");
    refusal(24, &[10], "inode count in the superblock");
    refusal(32, &[1], "the inode table");
    refusal(34, &[1], "the inode table");
    refusal(48, &[0], "no overlap");
    refusal(56, &[0xff, 0xff, 0xff, 0xff], "the inode table");
    refusal(68, &[1], "lacks blob");
    refusal(68, &[3], "number of extended blob table entries");
    refusal(71, &[1], "the extended blob table at");
    let ids = 8192 + 40 + 8;
    refusal(ids + 8, b"/", "id in the blob table");
    let ext = parse(&sample::bootstrap())
        .superblock()
        .ext_blob_table_offset;
    refusal(ext + 4, &[0x80], "features in an extended blob table entry");
    refusal(
        ext + 3,
        &[1, 0],
        "chunk count in an extended blob table entry",
    );
    refusal(
        ext + 14,
        &[1],
        "uncompressed size in an extended blob table entry",
    );
    refusal(
        ext + 22,
        &[1],
        "compressed size in an extended blob table entry",
    );
}

#[test]
fn counts_and_tables_must_fit_the_tree() {
    assert_says(&verdict(24, &[9]), None, "counts 9 inodes, the tree has 8");
    assert_says(&verdict(8192 + 40, &[11]), None, "names inode 11");
    assert_says(
        &verdict(8192, &[1, 0, 0, 0]),
        Some("/"),
        "entry of the inode table",
    );
    let at = (inode(3) / 8) as u32;
    // Two names of one record: the second is in the wrong place.
    let error = verdict(8192 + 4, &at.to_le_bytes());
    assert_says(&error, Some("/device"), "inode number is 3, expected 2");
}

#[test]
fn names_must_be_in_order_and_fit_to_be_names() {
    assert_says(&verdict(inode(3) + 128, b"zz"), Some("/"), "out of order");
    assert_says(
        &verdict(inode(3) + 130, b"/"),
        Some("/de/ice"),
        "NUL or a slash",
    );
    assert_says(&verdict(inode(1) + 128, b"x"), Some("/"), "the root is x");
    assert_says(
        &verdict(inode(4) + 100, &[0]),
        Some("/?"),
        "length of a name",
    );
    assert_says(
        &verdict(inode(4) + 102, &[0]),
        Some("/?"),
        "length of a link target",
    );
}

#[test]
fn every_name_is_in_one_directory_that_knows_it() {
    assert_says(
        &verdict(inode(8) + 32, &[1]),
        Some("/sub/two"),
        "parent is 1, expected 6",
    );
    assert_says(
        &verdict(inode(6) + 92, &[6]),
        Some("/sub"),
        "indexes above its own",
    );
    assert_says(&verdict(inode(6) + 92, &[8]), Some("/sub"), "up to 9");
    assert_says(
        &verdict(inode(6) + 96, &[2]),
        Some("/zero"),
        "is in no directory",
    );
    assert_says(
        &verdict(inode(7) + 92, &[9, 0, 0, 0, 1]),
        Some("/sub/empty"),
        "in part those of another directory",
    );
}

#[test]
fn link_counts_are_counted() {
    assert_says(
        &verdict(inode(3) + 88, &[0]),
        Some("/device"),
        "link count is 0",
    );
    assert_says(
        &verdict(inode(6) + 88, &[2]),
        Some("/sub"),
        "expected 2 and 1",
    );
    assert_says(
        &verdict(inode(3) + 88, &[2]),
        Some("/device"),
        "the tree has 1 names",
    );
    assert_says(
        &verdict(inode(8) + 88, &[1]),
        Some("/sub/two"),
        "differs from the first",
    );
    assert_says(
        &verdict(inode(8) + 40, &[4]),
        Some("/sub/two"),
        "inode number is 4, expected 8",
    );
}

#[test]
fn digests_cover_data_targets_and_children() {
    assert_says(
        &verdict(inode(2), &[0]),
        Some("/-first"),
        "not that of its data",
    );
    assert_says(
        &verdict(inode(3), &[0]),
        Some("/device"),
        "not that of its data",
    );
    assert_says(
        &verdict(inode(4) + 128 + 8, b"S"),
        Some("/link"),
        "not that of its data",
    );
    assert_says(
        &verdict(chunk(2, 0), &[0]),
        Some("/-first"),
        "not that of its data",
    );
    assert_says(
        &verdict(inode(7), &[0]),
        Some("/sub/empty"),
        "its children's digests",
    );
    assert_says(
        &verdict(inode(1), &[0]),
        Some("/"),
        "its children's digests",
    );
}

#[test]
fn inodes_are_looked_into() {
    assert_says(
        &verdict(inode(2) + 111, &[0xff]),
        Some("/-first"),
        "nanoseconds",
    );
    assert_says(
        &verdict(inode(2) + 62, &[1]),
        Some("/?"),
        "mode of an inode",
    );
    assert_says(
        &verdict(inode(2) + 80, &[0x14]),
        Some("/?"),
        "flags of an inode",
    );
    assert_says(
        &verdict(inode(4) + 80, &[0]),
        Some("/link"),
        "disagree about a symbolic link",
    );
    assert_says(
        &verdict(inode(4) + 64, &[14]),
        Some("/link"),
        "the size is 14",
    );
    assert_says(
        &verdict(inode(4) + 128 + 8, &[0]),
        Some("/link"),
        "has a NUL",
    );
    assert_says(
        &verdict(16, &[0x94]),
        Some("/-first"),
        "says that there are none",
    );
    let xattrs = inode(2) + 128 + 8;
    assert_says(&verdict(xattrs, &[0xff]), Some("/-first"), "damaged");
    assert_says(
        &verdict(xattrs + 8, &[0xff]),
        Some("/-first"),
        "ends beyond",
    );
    assert_says(
        &verdict(xattrs + 8 + 4, b"x"),
        Some("/-first"),
        "one of the namespaces",
    );
    assert_says(
        &verdict(xattrs + 8 + 4 + 19, b"xxxxx"),
        Some("/-first"),
        "no NUL",
    );
}

#[test]
fn chunks_must_fit_file_and_blob() {
    assert_says(
        &verdict(inode(2) + 64, &[0, 0x10]),
        Some("/-first"),
        "has 2 chunks, expected 1",
    );
    assert_says(
        &verdict(inode(2) + 64, &[0x35]),
        Some("/-first"),
        "has 54 bytes, the file has 53",
    );
    assert_says(
        &verdict(chunk(2, 1) + 64, &[1]),
        Some("/-first"),
        "chunk 1: is at 0x1001",
    );
    assert_says(
        &verdict(chunk(2, 1) + 32, &[2]),
        Some("/-first"),
        "blob index is 2",
    );
    assert_says(
        &verdict(chunk(2, 1) + 36, &[0x20]),
        Some("/-first"),
        "flags of a chunk record",
    );
    assert_says(
        &verdict(chunk(2, 1) + 40, &[39]),
        Some("/-first"),
        "end beyond the 188 bytes",
    );
    assert_says(
        &verdict(chunk(2, 1) + 57, &[0x20]),
        Some("/-first"),
        "ends beyond",
    );
    assert_says(
        &verdict(chunk(2, 1) + 72, &[3]),
        Some("/-first"),
        "expected below the 3 chunks",
    );
    assert_says(
        &verdict(chunk(5, 0) + 40, &[47]),
        Some("/one"),
        "stored raw with 47 bytes",
    );
    assert_says(&verdict(chunk(2, 1) + 57, &[0]), None, "overlap");
    // One chunk under two descriptions.
    assert_says(
        &verdict(chunk(2, 1) + 72, &[0]),
        None,
        "describe chunk 0 of blob 0 differently",
    );
}

#[test]
fn nothing_lies_on_top_of_something_else() {
    // The name of the empty file at the end becomes one that reaches over the end.
    let mut file = sample::bootstrap();
    let last = inode(9) as usize;
    // A copy of the last inode, shifted into the one before.
    let record: Vec<u8> = file[last..].to_vec();
    let target = last - 16;
    file[target..target + record.len()].copy_from_slice(&record);
    file[8192 + 32..8192 + 36].copy_from_slice(&((target / 8) as u32).to_le_bytes());
    let error = parse(&file).check(sample::hash).unwrap_err();
    assert!(
        error.to_string().contains("lies on top of") || error.path.is_some(),
        "{error}"
    );
    // On top of a table it is noticed whatever it is.
    let mut file = sample::bootstrap();
    let table = parse(&file).superblock().prefetch_table_offset;
    file[8192 + 8..8192 + 12].copy_from_slice(&((table / 8) as u32).to_le_bytes());
    assert!(parse(&file).check(sample::hash).is_err());
}
