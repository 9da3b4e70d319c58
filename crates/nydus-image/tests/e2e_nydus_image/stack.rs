//! Images of several layers, their blobs in one directory.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tree::{Content, Image};

use crate::support::*;
use crate::unpack::unpack;

/// A merged image.
pub struct Stack {
    /// Where everything is; the blobs are in `blobs`.
    pub dir: tempfile::TempDir,
    pub bootstrap: PathBuf,
}

impl Stack {
    /// Builds a layer of each tar with these options and merges them.
    #[track_caller]
    pub fn new(tars: &[Vec<u8>], options: &str) -> Self {
        Self::mixed(tars.iter().map(|tar| (&tar[..], options)))
    }

    /// The same with options for each tar.
    #[track_caller]
    pub fn mixed<'a>(tars: impl IntoIterator<Item = (&'a [u8], &'a str)>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (blobs, tar, report) = (
            dir.path().join("blobs"),
            dir.path().join("layer.tar"),
            dir.path().join("report"),
        );
        fs::create_dir(&blobs).unwrap();
        let mut layers = Vec::new();
        for (bytes, options) in tars {
            fs::write(&tar, bytes).unwrap();
            let usual = "create -t tar-rafs --blob-inline-meta --whiteout-spec none -D";
            let words = usual
                .split(' ')
                .chain([text(&blobs), "-J", text(&report), text(&tar)]);
            nydus_image(words.chain(options.split_whitespace())).ok();
            let id = json(&report)["blobs"]
                .as_array()
                .unwrap()
                .last()
                .cloned()
                .unwrap();
            layers.push(blobs.join(id.as_str().unwrap()));
        }
        fs::remove_file(tar).unwrap();
        fs::remove_file(report).unwrap();
        let bootstrap = dir.path().join("image.boot");
        let words = ["merge", "-B", text(&bootstrap)];
        nydus_image(
            words
                .into_iter()
                .chain(layers.iter().map(|layer| text(layer))),
        )
        .ok();
        Self { dir, bootstrap }
    }

    /// Another file of the image.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where the blobs are.
    pub fn blobs(&self) -> PathBuf {
        self.path("blobs")
    }

    /// The files of a bootstrap as a tar.
    #[track_caller]
    pub fn tar(&self, bootstrap: &Path) -> Vec<u8> {
        let blobs = self.blobs();
        let out = self.path("out.tar");
        let tar = unpack(&out, &["-B", text(bootstrap), "-D", text(&blobs)]);
        fs::remove_file(out).unwrap();
        tar
    }
}

pub fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// What a bootstrap says.
#[track_caller]
pub fn image(bootstrap: &Path) -> Image {
    storage::load_bootstrap(bootstrap).unwrap().image().unwrap()
}

/// For each chunk of a file the index of its blob and where its stored bytes begin and end.
#[track_caller]
pub fn chunks(image: &Image, path: &str) -> Vec<(u32, u64, u64)> {
    let id = image.tree.lookup(path.as_bytes()).unwrap();
    let Content::Regular { chunks, .. } = &image.tree.inode(id).content else {
        panic!("{path} is no file")
    };
    let place = |id: &tree::ChunkId| {
        let chunk = image.chunks[id.0 as usize];
        let start = chunk.compressed_offset;
        (
            chunk.blob_index,
            start,
            start + u64::from(chunk.compressed_size),
        )
    };
    chunks.iter().map(place).collect()
}
