//! Trees of eStargz layers by their tables of contents, and tables that make no sense.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use std::io::{self, BufRead, Read};

use flate2::read::GzDecoder;
use layer::estargz::{FOOTER_SIZE, Footer, read_contents, read_toc_member};
use layer::{Compression, DataSink, Error, FileInfo, Options, decompress, read_tree};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use testkit::estargz::{Estargz, estargz, footer, footer_legacy, toc_member};
use testkit::tar::{Entry, flag};
use tree::{ChunkId, Content, InodeId, Tree};

const CHUNK: usize = 4096;

/// Something of everything, with landmarks and odd paths.
fn sample() -> Vec<Entry> {
    vec![
        Entry::directory("usr/").mode(0o1755).owner(5, 6),
        Entry::file("usr/empty", ""),
        Entry::file(".prefetch.landmark", [15]),
        Entry::file("usr/small", "small").mode(0o4711).mtime(7),
        Entry::file("usr/large", testkit::noise(1, 3 * CHUNK + 5))
            .xattr("user.a", b"\x00\xff")
            .xattr("security.capability", "cap"),
        Entry::file("usr/two", testkit::prose(2, 2 * CHUNK)),
        Entry::hard("usr/hard", "usr/large").owner(1, 2),
        Entry::symlink("lib", "usr/lib"),
        Entry::file("lib/below/link", "followed"),
        Entry::device("dev/c", flag::CHARACTER, 4, 300),
        Entry::device("dev/b", flag::BLOCK, 259, 0x1_2345),
        Entry::fifo("run/fifo"),
        Entry::file("usr/.wh.gone", ""),
        Entry::file("../../escapes", "kept inside"),
        Entry::file("usr/small", "replaced"),
        Entry::file("umlaut-\u{fc}", "utf-8"),
    ]
}

fn contents(made: &Estargz) -> Result<layer::estargz::Contents, Error> {
    read_contents(&made.toc[..], CHUNK as u32, &Options::default())
}

/// Notes the data of each file as one chunk.
#[derive(Default)]
struct Files(Vec<Vec<u8>>);

impl DataSink for Files {
    fn file(&mut self, _: FileInfo<'_>, data: &mut dyn BufRead) -> io::Result<Box<[ChunkId]>> {
        let mut bytes = Vec::new();
        data.read_to_end(&mut bytes)?;
        self.0.push(bytes);
        Ok([ChunkId(self.0.len() as u32 - 1)].into())
    }
}

/// The tree without its chunks, and them.
fn split(mut tree: Tree) -> (Tree, Vec<Vec<ChunkId>>) {
    let mut all = Vec::new();
    for id in (0..tree.len() as u32).map(InodeId) {
        if let Content::Regular { chunks, .. } = &mut tree.inode_mut(id).content {
            all.push(std::mem::take(chunks).into());
        }
    }
    (tree, all)
}

#[test]
fn the_table_gives_the_tree_and_the_data_of_the_tar() {
    let made = estargz(&sample(), CHUNK);
    let by_table = contents(&made).unwrap();
    let mut files = Files::default();
    let tar = decompress(io::Cursor::new(made.blob.clone()), Compression::Gzip).unwrap();
    let options = Options {
        drop_estargz: true,
        concatenated: true,
        ..Options::default()
    };
    let by_tar = read_tree(io::BufReader::new(tar), &mut files, &options).unwrap();
    let ((tree, chunks), (expected, whole)) = (split(by_table.tree), split(by_tar));
    assert_eq!(tree, expected);
    assert!(chunks.iter().any(|chunks| chunks.len() == 4));
    for (chunks, whole) in chunks.iter().zip(&whole) {
        let mut data = Vec::new();
        for id in chunks {
            let chunk = &by_table.chunks[id.0 as usize];
            assert_eq!(chunk.file_offset, data.len() as u64);
            let end = chunk.next_member.unwrap_or(made.toc_offset) as usize;
            let mut bytes = vec![0; chunk.size as usize];
            GzDecoder::new(&made.blob[chunk.member as usize..end])
                .read_exact(&mut bytes)
                .unwrap();
            assert_eq!(<[u8; 32]>::from(Sha256::digest(&bytes)), chunk.digest);
            data.extend(bytes);
        }
        assert!(data == whole.first().map_or(&[][..], |id| &files.0[id.0 as usize]));
    }
}

#[test]
fn the_footer_leads_to_the_table() {
    let made = estargz(&sample(), CHUNK);
    let len = made.blob.len();
    for (found, size) in [
        (
            Footer::parse(&made.blob[len - FOOTER_SIZE..], len as u64),
            51,
        ),
        (
            Footer::parse(&footer_legacy(made.toc_offset), len as u64),
            47,
        ),
        (
            Footer::parse(
                &[b"tail", &footer_legacy(made.toc_offset)[..]].concat(),
                len as u64,
            ),
            47,
        ),
    ] {
        let found = found.unwrap();
        assert_eq!((found.toc_offset, found.size), (made.toc_offset, size));
    }
    let member = made.blob[made.toc_offset as usize..len - FOOTER_SIZE].to_vec();
    let mut json = Vec::new();
    let read = |toc: &mut dyn Read| {
        toc.read_to_end(&mut json).unwrap();
        Ok(())
    };
    read_toc_member(io::Cursor::new(member), read).unwrap();
    assert!(json == made.toc);
}

#[test]
fn a_footer_that_is_none_is_refused() {
    let good = footer(100);
    let mut sign = good.clone();
    sign[16] = b'+';
    for tail in [
        &[][..],
        &good[1..],
        &good[..50],
        &sign,
        &footer(1000),
        &footer(949),
        &[0; 51],
    ] {
        let found = Footer::parse(tail, 1000);
        assert!(matches!(found, Err(Error::Footer { .. })), "{found:?}");
    }
    assert!(Footer::parse(&footer(948), 1000).is_ok());
    let mut tar = testkit::tar::Tar::new();
    tar.add(Entry::file("other", "{}"));
    let mut gzip = Vec::new();
    flate2::read::GzEncoder::new(&tar.finish()[..], flate2::Compression::fast())
        .read_to_end(&mut gzip)
        .unwrap();
    for member in [gzip, toc_member(b"{}")[..40].to_vec(), Vec::new()] {
        assert!(read_toc_member(io::Cursor::new(member), |_| Ok(())).is_err());
    }
}

/// Why a table with these entries is refused.
#[track_caller]
fn refusal(entries: Value) -> String {
    let toc = json!({"version": 1, "entries": entries}).to_string();
    refusal_of(toc.as_bytes())
}

#[track_caller]
fn refusal_of(toc: &[u8]) -> String {
    let error = read_contents(toc, CHUNK as u32, &Options::default()).unwrap_err();
    let cause =
        std::error::Error::source(&error).map_or(String::new(), |cause| format!(": {cause}"));
    format!("{error}{cause}")
}

fn with(mut entry: Value, changes: Value) -> Value {
    for (key, value) in changes.as_object().unwrap() {
        entry[key] = value.clone();
    }
    entry
}

#[test]
fn tables_that_make_no_sense_are_refused_by_name() {
    let digest = format!("sha256:{}", "0".repeat(64));
    let file = json!({"name": "f", "type": "reg", "size": 5, "offset": 100, "chunkDigest": digest});
    let large = with(file.clone(), json!({"size": 5000, "chunkSize": 4096}));
    let rest = json!({"name": "f", "type": "chunk", "offset": 200, "chunkOffset": 4096, "chunkDigest": digest});
    for (entries, expected) in [
        (
            json!([{"name": "x", "type": "socket"}]),
            "entries of type \"socket\"",
        ),
        (
            json!([{"name": "x", "type": "dir", "modtime": "soon"}]),
            "\"soon\" is no time",
        ),
        (
            json!([{"name": "x", "type": "char", "devMajor": 4096}]),
            "device number 4096,0",
        ),
        (
            json!([{"name": "x", "type": "char", "devMinor": -1}]),
            "device number 0,-1",
        ),
        (
            json!([{"name": "x", "type": "dir", "uid": -1}]),
            "expected u32",
        ),
        (
            json!([{"name": "x", "type": "dir", "xattrs": {"user.a": "?"}}]),
            "\"user.a\" is not in Base64",
        ),
        (json!([{"name": "x\0", "type": "dir"}]), "cannot hold a NUL"),
        (
            json!([{"name": "x".repeat(256), "type": "dir"}]),
            "256 bytes is above the limit",
        ),
        (
            json!([{"name": "x/".repeat(40_000), "type": "dir"}]),
            "more than 65536 bytes",
        ),
        (
            json!([{"name": "x", "type": "symlink"}]),
            "cannot be the target",
        ),
        (
            json!([{"name": "x", "type": "hardlink", "linkName": "no"}]),
            "no earlier entry",
        ),
        (json!([{"type": "dir"}]), "missing field `name`"),
        (json!([7]), "invalid type"),
        (json!([rest]), "file that is not right before it"),
        (
            json!([large, {"name": "x", "type": "dir"}, rest]),
            "its chunks have 4096 bytes, the file has 5000",
        ),
        (
            json!([large, with(rest.clone(), json!({"name": "g"}))]),
            "not right before it",
        ),
        (json!([large]), "its chunks have 4096 bytes"),
        (
            json!([large, rest, rest]),
            "those before it end at byte 5000",
        ),
        (
            json!([large, with(rest.clone(), json!({"chunkOffset": 4095}))]),
            "for byte 4095",
        ),
        (
            json!([large, with(rest.clone(), json!({"chunkSize": 905}))]),
            "905 bytes where the file has 904",
        ),
        (
            json!([with(large.clone(), json!({"chunkSize": 2048}))]),
            "0x800 bytes, but the chunk size is 0x1000",
        ),
        (
            json!([with(large.clone(), json!({"chunkSize": 0}))]),
            "0x1388 bytes, but the chunk size",
        ),
        (
            json!([with(
                large.clone(),
                json!({"size": u64::MAX, "chunkSize": u64::MAX})
            )]),
            "0xffffffffffffffff",
        ),
        (
            json!([with(file.clone(), json!({"chunkDigest": "md5:00"}))]),
            "\"md5:00\" is no digest",
        ),
        (
            json!([with(file.clone(), json!({"chunkDigest": ""}))]),
            "there is no digest",
        ),
        (
            json!([with(file.clone(), json!({"innerOffset": 7}))]),
            "shares a gzip member",
        ),
        (
            json!([with(file.clone(), json!({"offset": -1}))]),
            "expected u64",
        ),
        (
            json!([
                file,
                with(file.clone(), json!({"name": "g", "offset": 119}))
            ]),
            "bytes 100 and 119",
        ),
        (
            json!([file, with(file.clone(), json!({"name": "g"}))]),
            "bytes 100 and 100",
        ),
    ] {
        let refusal = refusal(entries);
        assert!(
            refusal.contains(expected),
            "{refusal:?} has no {expected:?}"
        );
    }
    for (toc, expected) in [
        (r#"{"version": 2, "entries": []}"#, "version is 2"),
        (r#"{"entries": []}"#, "missing field `version`"),
        (r#"{"version": 1}"#, "missing field `entries`"),
        (
            r#"{"version": 1, "entries": [], "entries": []}"#,
            "duplicate field `entries`",
        ),
        (r#"{"version": 1, "entries": []} x"#, "trailing characters"),
        (
            r#"{"version": 1, "entries": {}}"#,
            "expected a list of entries",
        ),
        ("[]", "expected the table of contents"),
        ("", "EOF"),
    ] {
        let refusal = refusal_of(toc.as_bytes());
        assert!(
            refusal.contains(expected),
            "{refusal:?} has no {expected:?}"
        );
    }
    let deep = format!(r#"{{"version": 1, "x": {}"#, "[".repeat(100_000));
    // What nobody asked for is passed over without recursion.
    assert!(refusal_of(deep.as_bytes()).contains("EOF"));
}

/// `head`, then `unit` for ever.
struct Endless(&'static [u8], &'static [u8], usize);

impl Read for Endless {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        for byte in buf.iter_mut() {
            *byte = match self.0.get(self.2) {
                Some(&byte) => byte,
                None => self.1[(self.2 - self.0.len()) % self.1.len()],
            };
            self.2 += 1;
        }
        Ok(buf.len())
    }
}

#[test]
fn no_entry_takes_endless_memory() {
    let head = br#"{"version": 1, "entries": [{"name": ""#;
    let endless = Endless(head, b"x", 0);
    let error = read_contents(endless, CHUNK as u32, &Options::default()).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(
        cause.contains("one of its entries has more than 16777216 bytes"),
        "{cause}"
    );
    let endless = Endless(
        br#"{"version": 1, "entries": ["#,
        br#"{"name": "x", "type": "dir"},"#,
        0,
    );
    let error = read_contents(
        endless.take(1 << 20),
        CHUNK as u32,
        &Options {
            max_inodes: 2000,
            ..Options::default()
        },
    );
    // The same directory again and again takes no memory, so what ends this is the end of the stream.
    assert!(matches!(error, Err(Error::Toc { .. })), "{error:?}");
}

#[test]
fn whole_files_may_do_with_the_digest_of_the_file() {
    let digest = format!("sha256:{}", "ab".repeat(32));
    let toc = json!({"version": 1, "entries": [
        {"name": "f", "type": "reg", "size": 5, "offset": 100, "digest": digest},
    ]});
    let contents = read_contents(
        toc.to_string().as_bytes(),
        CHUNK as u32,
        &Options::default(),
    );
    assert_eq!(contents.unwrap().chunks[0].digest, [0xab; 32]);
}
