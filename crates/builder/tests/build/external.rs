//! Directories whose files lie elsewhere: what is refused, and how chunks are numbered and cut.

use std::fs;

use builder::{Attributes, BuildOptions, Error, ExternalImage, Whiteouts};
use rafs_format::{Bootstrap, ChunkFlags, Version};
use tree::{Content, Image};

use crate::options;

/// A directory with empty files of these paths.
fn source(paths: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for path in paths {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }
    dir
}

fn line(path: &str, size: u64, blob: u32, offset: u64, piece: &str, crcs: &str) -> String {
    let id = format!("{blob:02x}").repeat(32);
    format!(
        "/{path} type=external file_size={size} blob_index={blob} blob_id={id} chunk_size={piece} \
         chunk_0_compressed_offset={offset} compressed_size=100000000 crcs={crcs}\n"
    )
}

fn scan(dir: &tempfile::TempDir, lines: &str, version: Version) -> Result<ExternalImage, Error> {
    let attributes = Attributes::parse(lines.as_bytes()).unwrap();
    ExternalImage::scan(
        dir.path(),
        Whiteouts::None,
        &attributes,
        &options_of(version),
    )
}

fn options_of(version: Version) -> BuildOptions {
    BuildOptions {
        version,
        blob_toc: false,
        inline_meta: false,
        ..options()
    }
}

/// Stored offset, size and CRC of each chunk of a file.
fn chunks(image: &Image, path: &str) -> Vec<(u32, u64, u32, Option<u32>)> {
    let id = image.tree.lookup(path.as_bytes()).unwrap();
    let Content::Regular { chunks, .. } = &image.tree.inode(id).content else {
        panic!()
    };
    let chunks = chunks.iter().map(|id| &image.chunks[id.0 as usize]);
    chunks
        .map(|chunk| {
            assert_eq!(chunk.compressed_size, chunk.uncompressed_size);
            let crc = chunk.flags.contains(ChunkFlags::HAS_CRC32);
            (
                chunk.blob_index,
                chunk.compressed_offset,
                chunk.compressed_size,
                crc.then_some(chunk.crc32),
            )
        })
        .collect()
}

#[test]
fn chunks_point_to_where_the_data_is() {
    let dir = source(&["w/a", "w/b", "w/same", "c", "inside"]);
    let lines = [
        line("w/a", 2_500_000, 1, 5120, "1.0MiB", "0x1,0x0,0x3"),
        line("w/b", 3_000_000, 1, 2_600_448, "4MiB", ""),
        line("w/same", 2_500_000, 1, 5120, "1MiB", ""),
        line("c", 700, 0, 512, "64MiB", "0xff"),
    ]
    .concat();
    for version in [Version::V5, Version::V6] {
        let mut external = scan(&dir, &lines, version).unwrap();
        assert_eq!(external.image.chunk_size, 1 << 20);
        let mut out = Vec::new();
        let blob = external.write(&mut out, &options_of(version)).unwrap();
        assert_eq!(blob.size, out.len() as u64);
        assert_eq!(out.is_empty(), version == Version::V5);
        let bytes = builder::encode(&external.image).unwrap();
        let image = match version {
            Version::V6 => {
                let bootstrap = Bootstrap::parse(bytes).unwrap();
                bootstrap.check().unwrap();
                for info in bootstrap.blobs() {
                    let start = info.meta_offset as usize;
                    let end = start + info.meta_compressed_size as usize;
                    let magic = &out[end..end + 4];
                    assert_eq!(magic, 0xb10b_b10b_u32.to_le_bytes());
                    assert_eq!(info.meta_digest, blob.digest);
                }
                builder::load_image(&bootstrap).unwrap()
            }
            Version::V5 => {
                let bootstrap = rafs_format::v5::Bootstrap::parse(bytes).unwrap();
                bootstrap.check(codec::digest).unwrap();
                bootstrap::load_v5(&bootstrap).unwrap()
            }
        };
        let a = [
            (1, 5120, 1 << 20, Some(1)),
            (1, 5120 + (1 << 20), 1 << 20, None),
            (1, 5120 + (2 << 20), 402_848, Some(3)),
        ];
        assert_eq!(chunks(&image, "/w/a"), a);
        assert_eq!(chunks(&image, "/w/same"), a);
        let b = chunks(&image, "/w/b");
        assert_eq!((b.len(), b[0]), (3, (1, 2_600_448, 1 << 20, None)));
        assert_eq!(chunks(&image, "/c"), [(0, 512, 700, Some(0xff))]);
        assert_eq!(image.tree.lookup(b"/inside"), None);
        assert_eq!(image.blobs[1].chunk_count, 6);
    }
}

#[test]
fn the_other_image_has_all_the_rest() {
    let dir = source(&["only/external/x", "both/x", "both/own", "own"]);
    fs::create_dir(dir.path().join("empty")).unwrap();
    let lines = [
        line("only/external/x", 10, 0, 512, "4MiB", ""),
        line("both/x", 10, 0, 1536, "4MiB", ""),
    ]
    .concat();
    let attributes = Attributes::parse(lines.as_bytes()).unwrap();
    let options = BuildOptions {
        external: Some(attributes.into()),
        ..options_of(Version::V6)
    };
    let layer = builder::build_directory(
        dir.path(),
        Whiteouts::None,
        Vec::new(),
        &options,
        builder::Dedup::Layer,
    )
    .unwrap();
    let paths = |image: &Image| {
        let mut walk = image.tree.walk();
        let mut paths = Vec::new();
        while let Some(visit) = walk.next() {
            paths.push(String::from_utf8(walk.path(&visit)).unwrap());
        }
        paths.sort();
        paths
    };
    let inside = paths(&layer.image);
    assert_eq!(inside, ["/", "/both", "/both/own", "/empty", "/own"]);
    let outside = scan(&dir, &lines, Version::V6).unwrap().image;
    assert_eq!(
        paths(&outside),
        [
            "/",
            "/both",
            "/both/x",
            "/only",
            "/only/external",
            "/only/external/x"
        ]
    );
}

#[test]
fn chunks_are_as_large_as_is_asked_for_and_the_format_allows() {
    let dir = source(&["a", "b"]);
    let size = |lines: &[String]| {
        let external = scan(&dir, &lines.concat(), Version::V6).unwrap();
        external.image.chunk_size
    };
    let a = |size, piece| line("a", size, 0, 0, piece, "");
    assert_eq!(size(&[a(100 << 10, "64MiB")]), 1 << 20, "that of the build");
    assert_eq!(size(&[a(90 << 20, "64MiB")]), 16 << 20);
    let b = |crcs| line("b", 9 << 20, 1, 0, "4MiB", crcs);
    assert_eq!(size(&[a(90 << 20, "64MiB"), b("")]), 4 << 20);
    assert_eq!(size(&[a(5 << 20, "1MiB"), b("1,2,3")]), 4 << 20);
    let whole = line("b", 3 << 20, 1, 0, "4MiB", "1");
    assert_eq!(size(&[a(5 << 20, "1MiB"), whole]), 4 << 20);
}

#[test]
fn what_cannot_be_is_named() {
    let dir = source(&["a", "b"]);
    let full = line("a", 9 << 20, 0, 512, "4MiB", "1,2,3");
    let without = |name: &str| {
        let words = full.split_whitespace();
        let words = words.filter(|word| !word.starts_with(name));
        words.collect::<Vec<_>>().join(" ")
    };
    for (lines, words) in [
        (without("blob_index"), "/a (line 1): blob_index is missing"),
        (without("blob_id"), "blob_id is missing"),
        (without("compressed_size"), "compressed_size is missing"),
        (without("chunk_size"), "chunk_size is missing"),
        (without("chunk_0"), "chunk_0_compressed_offset is missing"),
        (line("a", 9, 0, 99_999_992, "4MiB", ""), "beyond"),
        (line("a", u64::MAX, 0, 512, "4MiB", ""), "beyond"),
        (line("a", 9 << 20, 0, 0, "4MiB", "1,2"), "there are 2 crcs"),
        (line("a", 9 << 20, 1, 0, "4MiB", ""), "no file of blob 0"),
        (line("a", 9 << 20, 0, 0, "3MiB", "1,2,3"), "power of two"),
        (line("a", 90 << 20, 0, 0, "32MiB", "1,2,3"), "power of two"),
        (
            full.clone() + &line("b", 9 << 20, 0, 20 << 20, "8MiB", "1,2"),
            "one chunk size",
        ),
        (
            full.clone() + &line("b", 7 << 20, 0, 20 << 20, "8MiB", "1"),
            "one chunk size",
        ),
        (
            full.clone() + &line("b", 100, 0, 600, "4MiB", ""),
            "overlaps",
        ),
        (
            full.clone() + &line("b", 9 << 20, 0, 512, "4MiB", "1,2,4"),
            "overlaps",
        ),
        (
            full.clone() + &line("b", 10, 0, 20 << 20, "4MiB", "").replace("100000000", "99999999"),
            "another one",
        ),
        (
            full.clone() + &line("b", 10, 1, 0, "4MiB", "").replace("01010101", "00000000"),
            "the same id",
        ),
    ] {
        let error = scan(&dir, &lines, Version::V6).unwrap_err().to_string();
        assert!(error.contains(words), "{words}: {error}");
    }
    fs::write(dir.path().join("a"), "four").unwrap();
    let error = scan(&dir, &full, Version::V6).unwrap_err().to_string();
    assert!(error.contains("has 4 bytes"), "{error}");
    // More chunks than a blob can have, of a file that is said to be huge.
    let huge =
        line("b", 1 << 39, 0, 0, "4KiB", "").replace("100000000", &(1_u64 << 39).to_string());
    let error = scan(&dir, &huge, Version::V6).unwrap_err().to_string();
    assert!(error.contains("2^24 - 1 chunks"), "{error}");
}
