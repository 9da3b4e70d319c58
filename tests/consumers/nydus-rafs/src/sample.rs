//! Two layers with all that a reader has to understand.

use std::collections::BTreeMap;

use crate::estargz::{Estargz, estargz};
use crate::tar::{Entry, Tar, flag};

/// Bytes of file data in a gzip member of the eStargz layer.
pub const STAR_CHUNK: usize = 1 << 20;

/// A layer, and what its files hold.
pub struct Layer {
    /// The tar stream.
    pub tar: Vec<u8>,
    /// Data of the files of an image that ends with this layer, by path.
    pub files: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Data that does not compress.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    });
    next.take(len).collect()
}

/// Data that compresses well.
fn prose(seed: u64, len: usize) -> Vec<u8> {
    let lines = (0..).flat_map(|i| format!("{seed}: line {i} of a long text\n").into_bytes());
    lines.take(len).collect()
}

/// The lower layer.
pub fn lower() -> Layer {
    layer(&entries(), BTreeMap::new(), &[])
}

/// The lower layer as an eStargz layer, whose table of contents is text: without names that are none.
pub fn star() -> (Layer, Estargz) {
    let mut entries = entries();
    entries.retain(|entry| std::str::from_utf8(&entry.path).is_ok());
    let made = estargz(&entries, STAR_CHUNK);
    (layer(&entries, BTreeMap::new(), &[]), made)
}

fn entries() -> Vec<Entry> {
    let long = "n".repeat(255);
    let deep = (0..20)
        .map(|i| format!("directory-{i:02}/"))
        .collect::<String>();
    let mut entries = vec![
        Entry::directory("etc/").mode(0o1777).owner(7, 70_000),
        Entry::file("etc/config", "a = 1\n")
            .mode(0o4755)
            .owner(3_000_000, 1)
            .mtime(0),
        Entry::file("etc/empty", ""),
        Entry::hard("etc/hard", "etc/config"),
        Entry::hard("also-hard", "etc/config"),
        Entry::symlink("etc/link", "../a/target"),
        Entry::symlink("long-link", "t/".repeat(1500)),
        Entry::directory("dev/"),
        Entry::device("dev/null", flag::CHARACTER, 1, 3),
        Entry::device("dev/disk", flag::BLOCK, 259, 70_000),
        Entry::fifo("dev/fifo"),
        Entry::file("attributes", "x")
            .xattr("user.empty", "")
            .xattr("user.text", "text")
            .xattr("trusted.long", "v".repeat(3000))
            .xattr(
                "security.capability",
                [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            ),
        Entry::file(&long, "a long name"),
        Entry::file(b"not-\xff\xfe-utf8", "bytes"),
        Entry::file(format!("{deep}file"), "deep"),
        Entry::file("noise", noise(1, 2_500_001)),
        Entry::file("text", prose(1, 3_333_333)),
        Entry::file("same-text", prose(1, 3_333_333)),
        Entry::file("zeros", vec![0; 1 << 20]),
        Entry::file("block", noise(2, 4096)),
        Entry::directory("many/"),
    ];
    for i in 0..300 {
        entries.push(Entry::file(
            format!("many/file-{i:03}"),
            prose(i, 10 + 40 * i as usize),
        ));
    }
    entries
}

/// A layer above it: replaces, adds and hides.
pub fn upper(lower: &Layer) -> Layer {
    let entries = [
        Entry::file("etc/config", "a = 2\n"),
        Entry::file("etc/.wh.empty", ""),
        Entry::file("again", prose(1, 3_333_333)),
        Entry::file("new", noise(3, 1_200_000)),
        Entry::symlink("block", "new"),
    ];
    layer(&entries, lower.files.clone(), &["etc/empty", "block"])
}

fn layer(entries: &[Entry], below: BTreeMap<Vec<u8>, Vec<u8>>, gone: &[&str]) -> Layer {
    let (mut tar, mut files) = (Tar::new(), below);
    for path in gone {
        files.remove(format!("/{path}").as_bytes());
    }
    for entry in entries {
        tar.add(entry.clone());
        let path = |name: &[u8]| [b"/", name].concat();
        let data = match entry.flag {
            flag::FILE if !entry.path.windows(4).any(|part| part == b".wh.") => entry.data.clone(),
            flag::HARD => files[&path(&entry.link)].clone(),
            _ => continue,
        };
        files.insert(path(&entry.path), data);
    }
    Layer {
        tar: tar.finish(),
        files,
    }
}
