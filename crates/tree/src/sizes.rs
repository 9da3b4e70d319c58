//! What chunks take in their blobs.

use rafs_format::{BLOCK_SIZE, BlobFeatures, BlobInfo, ChunkRecord};

use crate::Image;

impl Image {
    /// Stored bytes of each chunk, in the order of [`Image::chunks`].
    ///
    /// A bootstrap does not say what the members of a batch take. But batches fill the gaps between the other chunks of
    /// their blob, so what a gap takes is known, and how many bytes it holds, also those of chunks that the image does not
    /// use: a member has the part of the stored bytes that it has of the others.
    pub fn stored_sizes(&self) -> Vec<u32> {
        let mut sizes: Vec<u32> = self.chunks.iter().map(|c| c.compressed_size).collect();
        let mut of_blob: Vec<Vec<usize>> = vec![Vec::new(); self.blobs.len()];
        for (at, chunk) in self.chunks.iter().enumerate() {
            if let Some(chunks) = of_blob.get_mut(chunk.blob_index as usize) {
                chunks.push(at);
            }
        }
        for (info, mut chunks) in self.blobs.iter().zip(of_blob) {
            if info.features.contains(BlobFeatures::BATCH) {
                chunks.sort_unstable_by_key(|&at| self.chunks[at].index);
                self.divide(info, &chunks, &mut sizes);
            }
        }
        sizes
    }

    /// Divides the gaps of a blob among the members of its batches. `chunks`: those of the blob, by row.
    fn divide(&self, info: &BlobInfo, chunks: &[usize], sizes: &mut [u32]) {
        let is_member = |at: &usize| self.chunks[*at].compressed_size == 0;
        let size = |at: &usize| u64::from(self.chunks[*at].uncompressed_size);
        let mut start = (0, 0);
        let mut groups = chunks
            .chunk_by(|a, b| is_member(a) == is_member(b))
            .peekable();
        while let Some(group) = groups.next() {
            if !group.first().is_some_and(is_member) {
                start = group.last().map_or(start, |at| ends(&self.chunks[*at]));
                continue;
            }
            let next = groups
                .peek()
                .and_then(|next| self.chunks.get(*next.first()?));
            let end = match next {
                Some(next) => (next.compressed_offset, next.uncompressed_offset),
                None => (info.data_size(), info.uncompressed_size),
            };
            let stored = u128::from(end.0.saturating_sub(start.0));
            let room: u64 = group.iter().map(|at| in_blocks(size(at))).sum();
            let unused = end.1.saturating_sub(start.1).saturating_sub(room);
            let all = group.iter().map(size).sum::<u64>().saturating_add(unused);
            for at in group {
                let part = stored * u128::from(size(at)) / u128::from(all.max(1));
                sizes[*at] = part.min(size(at).into()) as u32;
            }
        }
    }
}

/// Where a chunk ends, as it is stored and in the blob's uncompressed address space.
fn ends(chunk: &ChunkRecord) -> (u64, u64) {
    let stored = u64::from(chunk.compressed_size);
    let size = in_blocks(chunk.uncompressed_size.into());
    (
        chunk.compressed_offset.saturating_add(stored),
        chunk.uncompressed_offset.saturating_add(size),
    )
}

fn in_blocks(size: u64) -> u64 {
    size.next_multiple_of(BLOCK_SIZE)
}

#[cfg(test)]
mod tests {
    use rafs_format::{BlobId, ChunkFlags, Compressor, Digester, Version};

    use super::*;
    use crate::Tree;

    #[test]
    fn members_of_batches_share_what_lies_between_the_other_chunks() {
        let chunk = |index, size, block: u64, (offset, stored)| ChunkRecord {
            digest: [1; 32],
            blob_index: 0,
            flags: ChunkFlags::empty(),
            compressed_size: stored,
            uncompressed_size: size,
            compressed_offset: offset,
            uncompressed_offset: block * BLOCK_SIZE,
            file_offset: 0,
            index,
            crc32: 0,
        };
        let id = BlobId::new("blob").unwrap();
        let mut info = BlobInfo::new(id, 1 << 20, Compressor::Zstd, Digester::Blake3);
        (info.compressed_size, info.uncompressed_size) = (1000, 6 * BLOCK_SIZE);
        let mut image = Image {
            version: Version::V6,
            tree: Tree::new(),
            blobs: vec![info],
            // Not in the order of rows.
            chunks: vec![
                chunk(4, 900, 5, (0, 0)),
                chunk(0, 100, 0, (0, 0)),
                chunk(1, 300, 1, (0, 0)),
                chunk(2, 5000, 2, (200, 600)),
                chunk(3, 10, 4, (0, 0)),
            ],
            chunk_size: 1 << 20,
            prefetch: Vec::new(),
            compressor: Compressor::Zstd,
            digester: Digester::Blake3,
            explicit_owners: true,
            tarfs: false,
        };
        // Without batches nothing is known of them.
        assert_eq!(image.stored_sizes(), [0, 0, 0, 600, 0]);
        image.blobs[0].features |= BlobFeatures::BATCH;
        assert_eq!(image.stored_sizes(), [197, 50, 150, 600, 2]);
        // What the others have is not its own.
        image.chunks.remove(0);
        assert_eq!(image.stored_sizes(), [50, 150, 600, 0]);
        image.chunks[3].uncompressed_size = 4000;
        assert_eq!(image.stored_sizes(), [50, 150, 600, 98]);
        // Never more than what is stored as it is.
        image.blobs[0].compressed_size = 100_000;
        assert_eq!(image.stored_sizes()[3], 4000);
    }
}
