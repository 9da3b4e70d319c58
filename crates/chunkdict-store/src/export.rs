//! A snapshot as an image that every reader takes.

use chunkdict::{GenerateError, Generated, Source, generate};
use rafs_format::ChunkRecord;
use tree::{Image, Tree};

use crate::coding::hex;
use crate::{Kind, Snapshot, SnapshotImage};

impl Snapshot {
    /// The dictionary of its images that [`chunkdict::generate`] makes.
    ///
    /// # Errors
    /// [`GenerateError`]
    pub fn export(&self) -> Result<Generated, GenerateError> {
        let records: Vec<ChunkRecord> = self.index().records_in_order().collect();
        let sources = self.images().iter().map(|image| Source {
            name: hex(&image.id),
            image: self.part(image, &records),
        });
        generate(sources.collect())
    }

    /// Blobs and chunks of one image. `records` are all, by blob and row.
    fn part(&self, image: &SnapshotImage, records: &[ChunkRecord]) -> Image {
        let Kind {
            version,
            digester,
            compressor,
            chunk_size,
        } = self.kind();
        let mut chunks = Vec::new();
        for held in &image.blobs {
            let of = |blob: u32| records.partition_point(|record| record.blob_index < blob);
            let rows = &records[of(held.blob)..of(held.blob + 1)];
            chunks.extend(rows.iter().filter(|record| held.has(record.index)));
        }
        Image {
            version,
            tree: Tree::new(),
            blobs: self.blobs().to_vec(),
            chunks,
            chunk_size,
            prefetch: Vec::new(),
            compressor,
            digester,
            explicit_owners: true,
            tarfs: false,
        }
    }
}
