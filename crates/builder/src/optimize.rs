//! Optimisation: the chunks that a container needs first lie in one blob, in the order in which it needs them.

use std::collections::{BTreeMap, HashSet};
use std::io::Write;

use rafs_format::{BlobFeatures, ChunkFlags, ChunkRecord, Compressor, Version};
use serde::Deserialize;
use tree::{Content, Image};

use crate::relocate::{self, Kind, NewBlob, Origin, can_copy, is_movable};
use crate::{BuildOptions, Error};

/// The only version of the list that there is.
const LIST_VERSION: &str = "v1";

/// A file to fetch first, or parts of it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct PrefetchFile {
    /// Absolute path in the image.
    pub path: String,
    /// Where parts begin in the file and how long they are, in bytes; `None` for the whole file.
    pub ranges: Option<Vec<(u64, u64)>>,
}

impl PrefetchFile {
    /// Whether any of the `len` bytes from `offset` on is to be fetched first.
    fn wants(&self, offset: u64, len: u64) -> bool {
        let overlaps = |&(from, size): &(u64, u64)| {
            size != 0 && from < offset.saturating_add(len) && offset < from.saturating_add(size)
        };
        match &self.ranges {
            Some(ranges) => ranges.iter().any(overlaps),
            None => true,
        }
    }
}

/// Reads a list of files to fetch first: `{"version": "v1", "files": [{"path": P, "ranges": [[OFFSET, SIZE], ...]}, ...]}`,
/// where `ranges` may be left out. A list without text has no files.
///
/// # Errors
/// [`Error::PrefetchList`] if it is no such list.
pub fn parse_prefetch_list(text: &[u8]) -> Result<Vec<PrefetchFile>, Error> {
    #[derive(Deserialize)]
    struct Version {
        version: String,
    }
    #[derive(Deserialize)]
    struct List {
        files: Vec<PrefetchFile>,
    }
    if text.trim_ascii().is_empty() {
        return Ok(Vec::new());
    }
    let wrong = |error: serde_json::Error| Error::PrefetchList(error.to_string());
    let Version { version } = serde_json::from_slice(text).map_err(wrong)?;
    if version != LIST_VERSION {
        let what = format!("version {version:?} instead of {LIST_VERSION:?}");
        return Err(Error::PrefetchList(what));
    }
    let List { files } = serde_json::from_slice(text).map_err(wrong)?;
    Ok(files)
}

/// Chunks to fetch first.
#[derive(Debug, Default)]
pub struct Selection {
    /// In order, each once.
    chunks: Vec<ChunkRecord>,
    /// What was left out: a path and the reason.
    pub left_out: Vec<(String, &'static str)>,
}

impl Selection {
    /// The chunks of these files, in the order of the list and within a file. A chunk that is wanted in part is wanted
    /// as a whole; one that other files have as well is theirs from the new blob, too.
    ///
    /// Chunks of encrypted blobs stay there: their key is that of the blob.
    pub fn new(image: &Image, files: &[PrefetchFile]) -> Self {
        let mut selection = Self::default();
        let mut seen = HashSet::new();
        for file in files {
            if let Err(why) = selection.add(image, file, &mut seen) {
                selection.left_out.push((file.path.clone(), why));
            }
        }
        selection
    }

    /// Whether there is nothing to be had earlier.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    fn add(
        &mut self,
        image: &Image,
        file: &PrefetchFile,
        seen: &mut HashSet<(u32, u32)>,
    ) -> Result<(), &'static str> {
        if !file.path.starts_with('/') {
            return Err("the path is not absolute");
        }
        let id = image.tree.lookup(file.path.as_bytes());
        let inode = image.tree.inode(id.ok_or("the image has no such file")?);
        let Content::Regular { size, chunks } = &inode.content else {
            return Err("not a regular file");
        };
        let mut result = Ok(());
        let mut offset = 0;
        for id in chunks {
            let Some(chunk) = image.chunks.get(id.0 as usize) else {
                continue;
            };
            let len = u64::from(image.chunk_size).min(size.saturating_sub(offset));
            let wanted = file.wants(offset, len);
            offset = offset.saturating_add(u64::from(image.chunk_size));
            if !wanted {
                continue;
            }
            let blob = image.blobs.get(chunk.blob_index as usize);
            if !blob.is_some_and(is_movable) {
                result = Err(
                    "its blob is encrypted, external or a layer's tar, which its chunks cannot leave",
                );
            } else if seen.insert((chunk.blob_index, chunk.index)) {
                self.chunks.push(*chunk);
            }
        }
        result
    }
}

/// Writes the blob with the selected chunks. [`NewBlob::adopt`] makes it the last blob of the image, which is where
/// readers expect the one to fetch first; there is but one of the kind.
///
/// Its compressor is that of most of the stored bytes, which are then copied; chunks of other compressors, batches
/// and gzip slices are stored again.
///
/// # Errors
/// [`Error::Blob`] and [`Error::Chunk`] if a chunk cannot be read or is not what its digest says.
pub fn write_prefetch_blob(
    image: &mut Image,
    selection: &Selection,
    origin: &Origin<'_>,
    options: &BuildOptions,
    out: impl Write,
) -> Result<NewBlob, Error> {
    const KIND: BlobFeatures = BlobFeatures::SEPARATED_WITH_PREFETCH_FILES;
    for blob in &mut image.blobs {
        blob.features -= KIND;
    }
    let kind = Kind {
        compressor: compressor(image, &selection.chunks),
        features: KIND,
    };
    relocate::write_blob(image, &selection.chunks, kind, origin, options, out)
}

fn compressor(image: &Image, chunks: &[ChunkRecord]) -> Compressor {
    let of = |chunk: &ChunkRecord| {
        let blob = image.blobs.get(chunk.blob_index as usize);
        blob.map_or(image.compressor, |blob| blob.compressor)
    };
    let default = match (image.version, chunks.first()) {
        // One for all blobs.
        (Version::V5, Some(first)) => return of(first),
        // Chunks are never written with gzip.
        _ if image.compressor == Compressor::Gzip => Compressor::Zstd,
        _ => image.compressor,
    };
    let mut stored: BTreeMap<u32, (u64, Compressor)> = BTreeMap::new();
    for chunk in chunks {
        let compressor = of(chunk);
        let compressed = chunk.flags.contains(ChunkFlags::COMPRESSED);
        if compressed && compressor != Compressor::Gzip && can_copy(image, chunk, compressor) {
            let entry = stored.entry(compressor.number()).or_insert((0, compressor));
            entry.0 += u64::from(chunk.compressed_size);
        }
    }
    let most = stored.values().max_by_key(|(size, _)| *size);
    most.map_or(default, |(_, compressor)| *compressor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_of_version_1() {
        let parse = |text: &str| parse_prefetch_list(text.as_bytes());
        assert_eq!(parse(" \n").unwrap(), []);
        let list = r#"{"version":"v1","files":[{"path":"/a"},{"path":"/b","ranges":[[0,10],[4096,1]]},
            {"path":"c","ranges":null,"size":3}]}"#;
        let files = parse(list).unwrap();
        assert_eq!(files[0].ranges, None);
        assert_eq!(files[1].ranges, Some(vec![(0, 10), (4096, 1)]));
        assert_eq!(files[2].path, "c");
        for (wrong, why) in [
            (r#"{"version":"v2","files":0}"#, "\"v2\""),
            ("/bin/sh\n/etc/passwd\n", "JSON such as"),
            (r#"{"version":"v1"}"#, "files"),
            (
                r#"{"version":"v1","files":[{"path":"/a","ranges":[[1]]}]}"#,
                "length 1",
            ),
            (
                r#"{"version":"v1","files":[{"path":"/a","ranges":[[-1,2]]}]}"#,
                "-1",
            ),
        ] {
            let error = parse(wrong).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn ranges_want_the_chunks_that_they_touch() {
        let file = |ranges: &[(u64, u64)]| PrefetchFile {
            path: "/a".to_owned(),
            ranges: Some(ranges.to_vec()),
        };
        let wanted = |ranges: &[(u64, u64)]| -> Vec<u64> {
            let file = file(ranges);
            (0..4).filter(|i| file.wants(i * 10, 10)).collect()
        };
        assert_eq!(wanted(&[(0, 10)]), [0]);
        assert_eq!(wanted(&[(9, 2)]), [0, 1]);
        assert_eq!(wanted(&[(10, 0)]), [] as [u64; 0]);
        assert_eq!(wanted(&[(35, u64::MAX), (0, 1)]), [0, 3]);
        assert_eq!(wanted(&[(u64::MAX, 1)]), [] as [u64; 0]);
        assert_eq!(wanted(&[]), [] as [u64; 0]);
    }
}
