//! Chunks that stay in the frames of a zstd layer.
//!
//! A frame, or several that follow one another, are what the format calls a batch: they are decoded as a whole, and each
//! chunk says where it begins in there. A chunk lies in the fewest frames that hold all of it, so batches may overlap.
//!
//! Deployed readers know batches, but none that lie in a layer: such images are for readers of this project.

use layer::Boundary;
use rafs_format::ChunkRecord;
use rafs_format::blob_meta::{BatchContext, Placement};
use storage::BATCH_SIZE_MAX;

use crate::Error;
use crate::pipeline::Places;

/// Gives the places of chunks that begin at `offsets` of what frames that end at `ends` decode to.
pub(super) fn batches(
    records: &[ChunkRecord],
    offsets: &[u64],
    ends: &[Boundary],
) -> Result<Places, Error> {
    let mut batches: Vec<(u64, BatchContext)> = Vec::new();
    let mut placements = Vec::with_capacity(records.len());
    // The frames of the last batch, and where it begins in what they decode to.
    let mut current = None;
    for (record, &start) in records.iter().zip(offsets) {
        let end = start + u64::from(record.uncompressed_size);
        let no_place = || Error::NoPlace { size: start };
        // The first frame that ends behind the chunk's beginning, and the first that ends not before its end.
        let first = ends.partition_point(|frame| frame.out_offset <= start);
        let last = ends.partition_point(|frame| frame.out_offset < end);
        let begin = match current {
            Some((frames, begin)) if frames == (first, last) => begin,
            _ => {
                let (begin, context) = batch(ends, first, last).ok_or_else(no_place)?;
                batches.push((begin.in_offset, context));
                current = Some(((first, last), begin.out_offset));
                begin.out_offset
            }
        };
        placements.push(Placement::Batch {
            index: batches.len() as u32 - 1,
            offset: (start - begin) as u32,
        });
    }
    Ok(Places::in_batches(batches, placements))
}

/// The batch of the frames from `first` to `last`, and where it begins. A batch that is stored in as many bytes as it has
/// counts as one that is not compressed: such frames take more of those behind them along. `None` if that is too large, or
/// there are no such frames.
fn batch(ends: &[Boundary], first: usize, last: usize) -> Option<(Boundary, BatchContext)> {
    let beginning = Boundary {
        in_offset: 0,
        out_offset: 0,
    };
    let begin = match first.checked_sub(1) {
        Some(before) => *ends.get(before)?,
        None => beginning,
    };
    let mut sizes = ends.get(last..)?.iter().map(|behind| {
        let stored = behind.in_offset - begin.in_offset;
        (stored, behind.out_offset - begin.out_offset)
    });
    let (stored, decoded) = sizes.find(|(stored, decoded)| stored != decoded)?;
    let fits = stored.max(decoded) <= BATCH_SIZE_MAX.into();
    let context = BatchContext {
        compressed_size: stored as u32,
        uncompressed_size: decoded as u32,
    };
    fits.then_some((begin, context))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use layer::Compression;
    use storage::{ChunkDecoder, KnownChunk, decode_chunk, read_blob_meta};
    use testkit::tar::{Entry, Tar};

    use crate::{Budget, BuildOptions, build_targz_with};

    fn frame(bytes: &[u8]) -> Vec<u8> {
        zstd::encode_all(bytes, 3).unwrap()
    }

    /// Bytes that are as many as their frame has.
    fn unchanged() -> Vec<u8> {
        let mut candidates = (1..64).map(|zeros| [testkit::noise(1, 200), vec![0; zeros]].concat());
        let unchanged = candidates.find(|bytes| frame(bytes).len() == bytes.len());
        unchanged.unwrap()
    }

    #[test]
    fn frames_as_long_as_what_they_hold_are_not_taken_for_stored_bytes() {
        let content = unchanged();
        let mut tar = Tar::new();
        tar.add(Entry::file("file", content.clone()));
        let tar = tar.finish();
        let (head, rest) = tar.split_at(512);
        let (data, rest) = rest.split_at(content.len());
        assert_eq!(data, content);
        let layer = [head, data, rest].map(frame).concat();
        let pool = Arc::new(rayon::ThreadPoolBuilder::new().build().unwrap());
        let options = BuildOptions::new(pool, Budget::new(1 << 20));
        let mut blob = Vec::new();
        let built =
            build_targz_with(&layer[..], Compression::Zstd, &mut blob, &options, &mut ()).unwrap();
        let info = &built.image.blobs[0];
        let meta = read_blob_meta(info, &blob).unwrap();
        let record = meta.chunk(0).unwrap();
        let rafs_format::blob_meta::Placement::Batch { index, .. } = record.placement else {
            panic!("{record:?}");
        };
        let batch = meta.batch(index).unwrap();
        let start = record.compressed_offset as usize;
        let stored = &layer[start..start + batch.compressed_size as usize];
        let decoder = ChunkDecoder::new(info).unwrap();
        let known = KnownChunk::from(&built.image.chunks[0]);
        let chunk = decode_chunk(&decoder, &record, Some(&batch), &known, stored).unwrap();
        assert!(*chunk == content[..]);
    }
}
