//! What the tests here share.

use std::path::{Path, PathBuf};

use testkit::run::{Ran, run};

/// The program under test.
pub const NYDUS_IMAGE: &str = env!("CARGO_BIN_EXE_nydus-image");

/// Runs the program.
#[track_caller]
pub fn nydus_image<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Ran {
    run(NYDUS_IMAGE, args)
}

/// Text of a path.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Builds a native layer from a tar with these further options; where it is.
#[track_caller]
pub fn create(tar: &Path, blob: &Path, options: &[&str]) -> PathBuf {
    let usual = [
        "create",
        "--type",
        "tar-rafs",
        "--blob-inline-meta",
        "--features",
        "blob-toc",
        "--whiteout-spec",
    ];
    let paths = ["none", "--blob", text(blob), text(tar)];
    nydus_image(usual.iter().chain(&paths).chain(options)).ok();
    blob.to_path_buf()
}

/// The section `name` of a native layer, found as consumers do it: headers follow their data, the last one ends the
/// file.
pub fn section(blob: &[u8], name: &str) -> Option<Vec<u8>> {
    let mut end = blob.len();
    while let Some(at) = end.checked_sub(512) {
        let header = &blob[at..end];
        let field =
            |range: std::ops::Range<usize>| String::from_utf8_lossy(&header[range]).into_owned();
        let own = field(0..100).trim_end_matches('\0').to_owned();
        let size = usize::from_str_radix(field(124..136).trim_matches(['\0', ' ']), 8).unwrap();
        let from = at.checked_sub(size).unwrap();
        if own == name {
            return Some(blob[from..at].to_vec());
        }
        end = from;
    }
    None
}

/// The bootstrap inside a native layer, decompressed as its TOC says.
pub fn bootstrap(blob: &[u8]) -> Vec<u8> {
    let toc = section(blob, "rafs.blob.toc").unwrap();
    let entry = toc
        .chunks_exact(128)
        .find(|entry| entry[8..].starts_with(b"image.boot\0"))
        .unwrap();
    let stored = section(blob, "image.boot").unwrap();
    match entry[0] {
        1 => stored,
        2 => zstd::decode_all(stored.as_slice()).unwrap(),
        other => panic!("compressor {other}"),
    }
}
