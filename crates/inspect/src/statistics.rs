//! What `nydus-image stat` counts.

use std::collections::HashSet;
use std::io::Write;

use rafs_format::{BLOCK_SIZE, BlobId, ChunkRecord, Digest, Digester};
use serde::Serialize;
use tree::{Content, Image, InodeId};

use crate::Error;

/// log2 of the chunk sizes that [`ImageStatistics::chunk_sizes`] is about.
const CHUNK_BITS: std::ops::RangeInclusive<u32> = 12..=20;
/// Counters of file sizes: by the number of bits of the size, the last for all that are larger.
const FILE_COUNTERS: usize = 45;

/// Figures of one or several base images, and of a target that may share chunks with them.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Statistics {
    /// Whether the base images are compared with one another.
    pub dedup_enabled: bool,
    /// Whether there is a target.
    pub target_enabled: bool,
    /// Figures of all base images together.
    pub base_image: ImageStatistics,
    /// Figures of the target.
    pub target_image: ImageStatistics,
    /// Chunks of the base images.
    #[serde(skip)]
    known: HashSet<ChunkName>,
}

/// Figures of one image, or of several together. Sizes are in bytes.
///
/// The keys in JSON, and what is counted in them, are those of the deployed tool.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ImageStatistics {
    /// Directories.
    pub dirs: u64,
    /// Names of regular files.
    pub files: u64,
    /// Names of symbolic links.
    pub symlinks: u64,
    /// Chunks of all files, each as often as files refer to it.
    pub chunks: u64,
    /// Lengths of all files. A file with several names counts once, here and below.
    pub file_size: u64,
    /// Stored sizes of `chunks`. A bootstrap does not know those of chunks in batches: they count as 0.
    pub comp_size: u64,
    /// Sizes of `chunks`, and `padding_size`.
    pub uncomp_size: u64,
    /// What it takes to fill the last block of each file.
    pub padding_size: u64,
    /// How many chunks there were if all files were cut into chunks of 2^12, 2^13, ..., 2^20 bytes.
    pub chunk_sizes: [u64; 9],
    /// Files by the number of bits of their size; empty ones come first, very large ones are the last.
    pub file_sizes: Vec<u64>,
    /// Distinct chunks of all base images together, if these are compared with one another.
    pub dedup_chunks: u64,
    /// Stored size of those.
    pub dedup_comp_size: u64,
    /// Uncompressed size of those.
    pub dedup_uncomp_size: u64,
    /// Distinct chunks of each image, summed up; of the target only those that no base image has.
    pub own_chunks: u64,
    /// Stored size of those.
    pub own_comp_size: u64,
    /// Uncompressed size of those.
    pub own_uncomp_size: u64,
    /// Distinct chunks of the target that a base image has.
    pub ref_chunks: u64,
    /// Stored size of those.
    pub ref_comp_size: u64,
    /// Uncompressed size of those.
    pub ref_uncomp_size: u64,
}

/// What makes two chunks one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum ChunkName {
    /// The same bytes.
    Content(Digester, Digest, u32),
    /// The same place in the same blob, where no digest is recorded.
    Place(BlobId, u64, u32),
}

impl Statistics {
    /// No images yet. `dedup`: the base images that are to come are compared with one another.
    pub fn new(dedup: bool) -> Self {
        Self {
            dedup_enabled: dedup,
            ..Self::default()
        }
    }

    /// Adds a base image.
    pub fn add_base(&mut self, image: &Image) {
        let counts = &mut self.base_image;
        for (name, record) in counts.add(image) {
            let sizes = sizes(record);
            count(
                [
                    &mut counts.own_chunks,
                    &mut counts.own_comp_size,
                    &mut counts.own_uncomp_size,
                ],
                sizes,
            );
            if self.known.insert(name) && self.dedup_enabled {
                count(
                    [
                        &mut counts.dedup_chunks,
                        &mut counts.dedup_comp_size,
                        &mut counts.dedup_uncomp_size,
                    ],
                    sizes,
                );
            }
        }
    }

    /// Adds the target, to be compared with the base images that were added before.
    pub fn add_target(&mut self, image: &Image) {
        self.target_enabled = true;
        let counts = &mut self.target_image;
        for (name, record) in counts.add(image) {
            let counters = if self.known.contains(&name) {
                [
                    &mut counts.ref_chunks,
                    &mut counts.ref_comp_size,
                    &mut counts.ref_uncomp_size,
                ]
            } else {
                [
                    &mut counts.own_chunks,
                    &mut counts.own_comp_size,
                    &mut counts.own_uncomp_size,
                ]
            };
            count(counters, sizes(record));
        }
    }

    /// Writes the figures for a person.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn write(&self, out: &mut dyn Write) -> Result<(), Error> {
        let base = &self.base_image;
        writeln!(
            out,
            "Base image{}",
            if self.dedup_enabled { "s" } else { "" }
        )?;
        base.write(out)?;
        let line = |out: &mut dyn Write, name: &str, figures: [u64; 3]| {
            let [chunks, stored, size] = figures;
            let (stored, size) = (bytes(stored), bytes(size));
            writeln!(out, "  {name:<24}{chunks:>12}  {size}, stored {stored}")
        };
        line(
            out,
            "distinct chunks",
            [base.own_chunks, base.own_comp_size, base.own_uncomp_size],
        )?;
        if self.dedup_enabled {
            let figures = [
                base.dedup_chunks,
                base.dedup_comp_size,
                base.dedup_uncomp_size,
            ];
            line(out, "  in all images together", figures)?;
            let saved = base.own_comp_size.saturating_sub(base.dedup_comp_size);
            let part = percent(saved, base.own_comp_size);
            writeln!(
                out,
                "  sharing chunks saves    {part:>12}  {}",
                bytes(saved)
            )?;
        }
        if self.target_enabled {
            let target = &self.target_image;
            writeln!(out, "\nTarget image")?;
            target.write(out)?;
            let figures = [
                target.ref_chunks,
                target.ref_comp_size,
                target.ref_uncomp_size,
            ];
            line(out, "chunks of base images", figures)?;
            let figures = [
                target.own_chunks,
                target.own_comp_size,
                target.own_uncomp_size,
            ];
            line(out, "chunks of its own", figures)?;
            let all = target.ref_comp_size.saturating_add(target.own_comp_size);
            let part = percent(target.ref_comp_size, all);
            let saved = bytes(target.ref_comp_size);
            writeln!(out, "  sharing chunks saves    {part:>12}  {saved}")?;
        }
        Ok(())
    }
}

impl ImageStatistics {
    /// Counts what an image has; its distinct chunks.
    fn add<'a>(&mut self, image: &'a Image) -> Vec<(ChunkName, &'a ChunkRecord)> {
        self.file_sizes.resize(FILE_COUNTERS, 0);
        let mut seen = vec![false; image.tree.len()];
        let mut names = HashSet::new();
        let mut distinct = Vec::new();
        for visit in image.tree.walk() {
            let InodeId(id) = visit.id;
            match &image.tree.inode(visit.id).content {
                Content::Directory(_) => self.dirs += 1,
                Content::Symlink(_) => self.symlinks += 1,
                Content::Special => {}
                Content::Regular { size, chunks } => {
                    self.files += 1;
                    if std::mem::replace(&mut seen[id as usize], true) {
                        continue;
                    }
                    self.file(*size);
                    for record in chunks
                        .iter()
                        .filter_map(|id| image.chunks.get(id.0 as usize))
                    {
                        count(
                            [&mut self.chunks, &mut self.comp_size, &mut self.uncomp_size],
                            sizes(record),
                        );
                        let name = ChunkName::of(image, record);
                        if !names.contains(&name) {
                            names.insert(name.clone());
                            distinct.push((name, record));
                        }
                    }
                }
            }
        }
        distinct
    }

    fn file(&mut self, size: u64) {
        add(&mut self.file_size, size);
        let padding = size.wrapping_neg() % BLOCK_SIZE;
        add(&mut self.padding_size, padding);
        add(&mut self.uncomp_size, padding);
        let bits = (u64::BITS - size.leading_zeros()) as usize;
        self.file_sizes[bits.min(FILE_COUNTERS - 1)] += 1;
        for (counter, bits) in self.chunk_sizes.iter_mut().zip(CHUNK_BITS) {
            add(counter, size.div_ceil(1 << bits));
        }
    }

    fn write(&self, out: &mut dyn Write) -> Result<(), Error> {
        let (files, padding) = (bytes(self.file_size), bytes(self.padding_size));
        let size = bytes(self.uncomp_size.saturating_sub(self.padding_size));
        let stored = bytes(self.comp_size);
        writeln!(out, "  {:<24}{:>12}", "directories", self.dirs)?;
        writeln!(out, "  {:<24}{:>12}", "symbolic links", self.symlinks)?;
        writeln!(
            out,
            "  {:<24}{:>12}  {files}, and {padding} to fill blocks",
            "files", self.files
        )?;
        let mut low = 0;
        for (bits, &count) in self.file_sizes.iter().enumerate() {
            let high = (1_u64 << bits) - 1;
            if count != 0 {
                let range = match bits {
                    0 => "empty".to_owned(),
                    44.. => format!("{} and more", bytes(low)),
                    _ => format!("below {}", bytes(high + 1)),
                };
                writeln!(out, "    {range:<22}{count:>12}")?;
            }
            low = high + 1;
        }
        writeln!(
            out,
            "  {:<24}{:>12}  {size}, stored {stored}",
            "references to chunks", self.chunks
        )?;
        for (count, bits) in self.chunk_sizes.iter().zip(CHUNK_BITS) {
            let range = format!("if of {}", bytes(1 << bits));
            writeln!(out, "    {range:<22}{count:>12}")?;
        }
        Ok(())
    }
}

impl ChunkName {
    fn of(image: &Image, record: &ChunkRecord) -> Self {
        let blob = image.blobs.get(record.blob_index as usize);
        match blob {
            Some(blob) if record.digest == [0; 32] => Self::Place(
                blob.id.clone(),
                record.uncompressed_offset,
                record.uncompressed_size,
            ),
            _ => {
                let digester = blob.map_or(image.digester, |blob| blob.digester);
                Self::Content(digester, record.digest, record.uncompressed_size)
            }
        }
    }
}

/// Stored and uncompressed size of a chunk.
fn sizes(record: &ChunkRecord) -> [u64; 2] {
    [
        record.compressed_size.into(),
        record.uncompressed_size.into(),
    ]
}

/// Counts one more chunk, its stored and its uncompressed size.
fn count([chunks, stored, size]: [&mut u64; 3], [more_stored, more]: [u64; 2]) {
    add(chunks, 1);
    add(stored, more_stored);
    add(size, more);
}

/// Sizes in a bootstrap may be anything.
fn add(sum: &mut u64, more: u64) {
    *sum = sum.saturating_add(more);
}

/// A number of bytes for a person.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = count as f64;
    let mut unit = "bytes";
    for larger in UNITS {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, larger);
    }
    if value.fract() == 0.0 {
        format!("{value} {unit}")
    } else {
        format!("{value:.1} {unit}")
    }
}

fn percent(part: u64, whole: u64) -> String {
    match whole {
        0 => "0 %".to_owned(),
        _ => format!("{:.1} %", part as f64 * 100.0 / whole as f64),
    }
}

#[cfg(test)]
mod tests {
    use rafs_format::{BlobInfo, Compressor, Version};
    use tree::{ChunkId, Inode, Tree, mode};

    use super::*;

    /// An image of files, each of which is chunks by digest.
    fn image(files: &[&[u8]]) -> Image {
        let mut tree = Tree::new();
        let mut chunks = Vec::new();
        for (at, digests) in files.iter().enumerate() {
            let first = chunks.len() as u32;
            for &digest in *digests {
                chunks.push(ChunkRecord {
                    digest: [digest; 32],
                    compressed_size: 10,
                    ..ChunkRecord::in_tar((0, 0), 0, 0, 100)
                });
            }
            let ids = (first..chunks.len() as u32).map(ChunkId);
            let file = tree.add(Inode {
                mode: mode::REGULAR | 0o644,
                content: Content::Regular {
                    size: 100 * digests.len() as u64,
                    chunks: ids.collect(),
                },
                ..Inode::implied_directory()
            });
            let root = tree.entries_mut(InodeId::ROOT).unwrap();
            root.insert(format!("{at}").into_bytes().into(), file);
        }
        let id = BlobId::new("b").unwrap();
        Image {
            version: Version::V6,
            tree,
            blobs: vec![BlobInfo::new(id, 4096, Compressor::Zstd, Digester::Blake3)],
            chunks,
            chunk_size: 4096,
            prefetch: Vec::new(),
            compressor: Compressor::Zstd,
            digester: Digester::Blake3,
            explicit_owners: true,
            tarfs: false,
        }
    }

    #[test]
    fn shared_chunks_are_told_from_own_ones() {
        let mut statistics = Statistics::new(true);
        statistics.add_base(&image(&[&[1, 2], &[2, 3], &[3]]));
        statistics.add_base(&image(&[&[3, 4]]));
        statistics.add_target(&image(&[&[1, 5], &[5, 1], &[4], &[6]]));
        let base = &statistics.base_image;
        assert_eq!((base.dirs, base.files, base.chunks), (2, 4, 7));
        assert_eq!(
            (base.own_chunks, base.dedup_chunks, base.ref_chunks),
            (5, 4, 0)
        );
        assert_eq!((base.dedup_comp_size, base.dedup_uncomp_size), (40, 400));
        let target = &statistics.target_image;
        assert_eq!(
            (target.chunks, target.comp_size, target.file_size),
            (6, 60, 600)
        );
        assert_eq!(
            (target.own_chunks, target.ref_chunks, target.dedup_chunks),
            (2, 2, 0)
        );
        assert_eq!((target.own_comp_size, target.ref_uncomp_size), (20, 200));
        assert_eq!(target.uncomp_size, 600 + target.padding_size);
        // Of another digester, or without being asked to compare.
        let mut alone = Statistics::new(false);
        alone.add_base(&image(&[&[1], &[1]]));
        let mut other = image(&[&[1]]);
        other.blobs[0].digester = Digester::Sha256;
        alone.add_target(&other);
        assert_eq!(
            (alone.base_image.own_chunks, alone.base_image.dedup_chunks),
            (1, 0)
        );
        assert_eq!(
            (alone.target_image.own_chunks, alone.target_image.ref_chunks),
            (1, 0)
        );
        // Without digests the place counts.
        let mut places = image(&[&[0], &[0]]);
        places.chunks[1].uncompressed_offset = 512;
        let mut tarfs = Statistics::new(true);
        tarfs.add_base(&places);
        tarfs.add_base(&places);
        assert_eq!(
            (tarfs.base_image.own_chunks, tarfs.base_image.dedup_chunks),
            (4, 2)
        );
    }

    #[test]
    fn any_size_can_be_counted() {
        let mut counts = ImageStatistics {
            file_sizes: vec![0; FILE_COUNTERS],
            ..ImageStatistics::default()
        };
        for size in [0, 1, 4096, 4097, (1 << 44) - 1, 1 << 44, u64::MAX] {
            counts.file(size);
        }
        assert_eq!(counts.file_size, u64::MAX);
        assert_eq!(counts.padding_size, 4095 + 4095 + 1 + 1);
        let filled: Vec<usize> = (0..FILE_COUNTERS)
            .filter(|&bits| counts.file_sizes[bits] != 0)
            .collect();
        assert_eq!(filled, [0, 1, 13, 44]);
        assert_eq!(counts.file_sizes[13], 2);
        assert_eq!(counts.chunk_sizes[0], 4 + (1 << 32) * 2 + (1 << 52));
        let mut out = Vec::new();
        counts.write(&mut out).unwrap();
        assert!(String::from_utf8(out).unwrap().contains("8 TiB and more"));
    }

    #[test]
    fn numbers_of_bytes_are_read_easily() {
        for (count, text) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
        assert_eq!(
            (percent(1, 3), percent(0, 0)),
            ("33.3 %".to_owned(), "0 %".to_owned())
        );
    }
}
