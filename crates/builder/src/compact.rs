//! Compaction: blobs that are hardly used are written again with the chunks that are, small ones become one.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

use rafs_format::{BlobFeatures, BlobId, BlobInfo, CHUNKS_PER_BLOB_MAX, ChunkRecord, Compressor};
use tree::Image;

use crate::relocate::{self, Kind, NewBlob, Origin};
use crate::{BuildOptions, Error};

/// What is to be compacted.
#[derive(Debug, Clone)]
pub struct CompactOptions {
    /// A blob of which less than so many hundredths of the stored chunk data is used is written again.
    pub min_used_ratio: u8,
    /// A blob with less than so many bytes of chunk data is small.
    pub small: u64,
    /// Most bytes of chunk data that small blobs may make together.
    pub merged_max: u64,
    /// Images with fewer blobs are left as they are.
    pub blobs_min: usize,
    /// Blobs that are left as they are, for other images have them too.
    pub keep: BTreeSet<BlobId>,
}

/// What has to be done to compact an image.
#[derive(Debug, PartialEq, Eq)]
pub struct CompactPlan {
    /// Indexes of blobs that become one, lowest first; by lowest index.
    pub groups: Vec<Vec<u32>>,
    /// Blobs that no file uses any more, which go without a successor.
    pub unused: Vec<BlobId>,
}

impl CompactPlan {
    /// Decides what to do, and drops from `image` what no file uses.
    ///
    /// Blobs are put together from the smallest on, those of one compressor alone. Encrypted, batched and tarfs blobs,
    /// those that are layers of a plain image are left as they are.
    ///
    /// # Errors
    /// Contradictions in the image.
    pub fn new(image: &mut Image, options: &CompactOptions) -> Result<Self, Error> {
        let nothing = Self {
            groups: Vec::new(),
            unused: Vec::new(),
        };
        if image.blobs.len() < options.blobs_min {
            return Ok(nothing);
        }
        let before: Vec<BlobId> = image.blobs.iter().map(|blob| blob.id.clone()).collect();
        image.compact()?;
        relocate::settle(image);
        let left: BTreeSet<&BlobId> = image.blobs.iter().map(|blob| &blob.id).collect();
        let unused = before.into_iter().filter(|id| !left.contains(id)).collect();
        let candidates = candidates(image, options);
        Ok(Self {
            groups: group(candidates, options.merged_max),
            unused,
        })
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty() && self.unused.is_empty()
    }
}

/// Writes the blob that a group of [`CompactPlan::groups`] becomes: chunks blob by blob in the order in which they lie
/// there, each content once, their stored bytes as they are.
///
/// # Errors
/// [`Error::Blob`] and [`Error::Chunk`] if a chunk cannot be read or is not what its digest says.
pub fn compact_group(
    image: &Image,
    group: &[u32],
    origin: &Origin<'_>,
    options: &BuildOptions,
    out: impl Write,
) -> Result<NewBlob, Error> {
    let mut chunks: Vec<ChunkRecord> = image
        .chunks
        .iter()
        .filter(|chunk| group.contains(&chunk.blob_index))
        .copied()
        .collect();
    chunks.sort_unstable_by_key(|chunk| (chunk.blob_index, chunk.compressed_offset, chunk.index));
    let first = group
        .first()
        .and_then(|index| image.blobs.get(*index as usize));
    let compressor = first.ok_or(Error::Stopped)?.compressor;
    let kind = Kind {
        compressor,
        features: BlobFeatures::empty(),
    };
    relocate::write_blob(image, &chunks, kind, origin, options, out)
}

/// A blob that may be written again.
struct Candidate {
    index: u32,
    /// Number of the compressor.
    compressor: u32,
    /// Chunks in use.
    chunks: u32,
    /// Bytes stored of these.
    used: u64,
    /// Bytes by which it is small or not.
    size: u64,
    small: bool,
    /// Written again whether or not it goes with others.
    hardly_used: bool,
}

fn candidates(image: &Image, options: &CompactOptions) -> Vec<Candidate> {
    let mut uses = vec![(0_u32, 0_u64); image.blobs.len()];
    for chunk in &image.chunks {
        let (chunks, used) = &mut uses[chunk.blob_index as usize];
        *chunks += 1;
        *used += u64::from(chunk.compressed_size);
    }
    let movable = |blob: &BlobInfo| {
        // One blob of it is what readers expect, and fetch first.
        let first = BlobFeatures::SEPARATED_WITH_PREFETCH_FILES;
        // A layer of a plain image, which stays there anyway.
        let layer =
            blob.features.contains(BlobFeatures::SEPARATE) && blob.compressor == Compressor::Gzip;
        relocate::is_plain(blob)
            && !blob.features.contains(first)
            && !layer
            && !options.keep.contains(&blob.id)
    };
    let blobs = image.blobs.iter().zip(uses);
    let candidate = |(blob, (chunks, used)): (&BlobInfo, (u32, u64))| {
        let data = blob.data_size();
        let hardly_used =
            u128::from(used) * 100 < u128::from(data) * u128::from(options.min_used_ratio);
        let size = if hardly_used { used } else { data };
        Candidate {
            index: blob.index,
            compressor: blob.compressor.number(),
            chunks,
            used,
            size,
            small: size < options.small,
            hardly_used,
        }
    };
    blobs
        .filter(|(blob, _)| movable(blob))
        .map(candidate)
        .filter(|candidate| candidate.small || candidate.hardly_used)
        .collect()
}

/// Puts small blobs of one compressor together, the smallest first, as long as they are not too large together.
fn group(mut candidates: Vec<Candidate>, merged_max: u64) -> Vec<Vec<u32>> {
    candidates.sort_by_key(|candidate| (candidate.compressor, candidate.size, candidate.index));
    let mut groups: Vec<Vec<u32>> = Vec::new();
    let mut alone: BTreeMap<u32, bool> = BTreeMap::new();
    // What the last group is: compressor, bytes and chunks.
    let mut open: Option<(u32, u64, u32)> = None;
    for candidate in candidates {
        alone.insert(candidate.index, candidate.hardly_used);
        let joined = open
            .filter(|_| candidate.small)
            .and_then(|(compressor, used, chunks)| {
                let used = used.checked_add(candidate.used)?;
                let chunks = chunks.checked_add(candidate.chunks)?;
                let fits = compressor == candidate.compressor
                    && used <= merged_max
                    && chunks <= CHUNKS_PER_BLOB_MAX;
                fits.then_some((compressor, used, chunks))
            });
        match (joined, groups.last_mut()) {
            (Some(joined), Some(group)) => {
                group.push(candidate.index);
                open = Some(joined);
            }
            _ => {
                groups.push(vec![candidate.index]);
                open = candidate.small.then_some((
                    candidate.compressor,
                    candidate.used,
                    candidate.chunks,
                ));
            }
        }
    }
    groups.retain(|group| match group[..] {
        [index] => alone.get(&index).copied().unwrap_or_default(),
        _ => true,
    });
    groups.iter_mut().for_each(|group| group.sort_unstable());
    groups.sort_unstable();
    groups
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SMALL: u64 = 100;

    fn candidate((compressor, size, hardly_used): (u32, u64, bool)) -> Candidate {
        Candidate {
            index: 0,
            compressor,
            chunks: 1,
            used: size,
            size,
            small: size < SMALL,
            hardly_used,
        }
    }

    proptest! {
        #[test]
        fn groups_hold_each_blob_once_and_are_not_too_large(
            blobs in prop::collection::vec((0_u32..3, 0_u64..150, any::<bool>()), 0..40),
            merged_max in 0_u64..400,
        ) {
            let candidates = blobs.iter().zip(0..).map(|(&blob, index)| Candidate {
                index,
                ..candidate(blob)
            });
            let wanted = candidates.filter(|blob| blob.small || blob.hardly_used);
            let groups = group(wanted.collect(), merged_max);
            let mut seen = BTreeSet::new();
            for group in &groups {
                prop_assert!(group.iter().all(|index| seen.insert(*index)));
                let members: Vec<_> = group.iter().map(|&index| blobs[index as usize]).collect();
                match members[..] {
                    [(_, _, hardly_used)] => prop_assert!(hardly_used),
                    _ => {
                        prop_assert!(members.iter().all(|(of, size, _)| *of == members[0].0 && *size < SMALL));
                        prop_assert!(members.iter().map(|(_, size, _)| size).sum::<u64>() <= merged_max);
                    }
                }
            }
            for (index, (_, _, hardly_used)) in blobs.iter().enumerate() {
                prop_assert!(!hardly_used || seen.contains(&(index as u32)));
            }
        }
    }
}
