//! Chunks that stay in the frames of a zstd layer.
//!
//! A frame, or several that follow one another, are what the format calls a batch: they are decoded as a whole, and each
//! chunk says where it begins in there. A chunk lies in the fewest frames that hold all of it, so batches may overlap.
//!
//! Deployed readers know batches, but none that lie in a layer: such images are for readers of this project.

use layer::Boundary;
use rafs_format::blob_meta::{BatchContext, Placement};
use storage::BATCH_SIZE_MAX;

use super::targz::Chunks;
use crate::Error;
use crate::pipeline::Places;

/// Gives the places of the chunks in frames that end at `ends`.
pub(super) fn batches(chunks: &Chunks<'_>, ends: &[Boundary]) -> Result<Places, Error> {
    let mut batches: Vec<(u64, BatchContext)> = Vec::new();
    let mut placements = Vec::with_capacity(chunks.records.len());
    let mut current = None;
    for (record, &start) in chunks.records.iter().zip(&chunks.offsets) {
        let end = start + u64::from(record.uncompressed_size);
        let no_place = || Error::NoPlace { size: start };
        // The first frame that ends behind the chunk's beginning, and the first that ends not before its end.
        let first = ends.partition_point(|frame| frame.out_offset <= start);
        let last = ends.partition_point(|frame| frame.out_offset < end);
        let begin = first.checked_sub(1).map_or(
            Boundary {
                in_offset: 0,
                out_offset: 0,
            },
            |before| ends[before],
        );
        let behind = ends.get(last).ok_or_else(no_place)?;
        if current != Some((first, last)) {
            current = Some((first, last));
            let sizes = (
                behind.in_offset - begin.in_offset,
                behind.out_offset - begin.out_offset,
            );
            if sizes.0.max(sizes.1) > BATCH_SIZE_MAX.into() {
                return Err(no_place());
            }
            let context = BatchContext {
                compressed_size: sizes.0 as u32,
                uncompressed_size: sizes.1 as u32,
            };
            batches.push((begin.in_offset, context));
        }
        placements.push(Placement::Batch {
            index: batches.len() as u32 - 1,
            offset: (start - begin.out_offset) as u32,
        });
    }
    Ok(Places::in_batches(batches, placements))
}
