//! Which images share how much.

use std::collections::{BTreeMap, HashMap};

use rafs_format::ChunkRecord;

use crate::{ImageId, Snapshot};

/// Chunks, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    /// How many.
    pub chunks: u64,
    /// Their uncompressed bytes.
    pub bytes: u64,
    /// Their bytes as they are stored; 0 for members of batches.
    pub stored: u64,
}

/// Which images of a dictionary share how much. Chunks are counted by content: what an image has twice counts once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sharing {
    /// What each image has.
    pub images: Vec<Share>,
    /// What two images have in common, positions in `images` in ascending order; pairs without anything are left out.
    pub pairs: BTreeMap<(u32, u32), Amount>,
    /// What all images have.
    pub distinct: Amount,
    /// What lies in the blobs: more than that, if blobs hold the same.
    pub places: Amount,
}

/// What an image has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// The image.
    pub id: ImageId,
    /// All of it.
    pub all: Amount,
    /// What no other image has.
    pub own: Amount,
}

impl Amount {
    fn add(&mut self, record: &ChunkRecord) {
        *self += Self {
            chunks: 1,
            bytes: record.uncompressed_size.into(),
            stored: record.compressed_size.into(),
        };
    }
}

impl std::ops::AddAssign for Amount {
    fn add_assign(&mut self, other: Self) {
        self.chunks += other.chunks;
        self.bytes += other.bytes;
        self.stored += other.stored;
    }
}

impl Snapshot {
    /// Which of its images share how much.
    pub fn sharing(&self) -> Sharing {
        let mut sharing = Sharing {
            images: self
                .images()
                .iter()
                .map(|image| Share {
                    id: image.id,
                    all: Amount::default(),
                    own: Amount::default(),
                })
                .collect(),
            ..Sharing::default()
        };
        for (images, amount) in self.by_holders(&mut sharing.places) {
            sharing.distinct += amount;
            for (nth, &one) in images.iter().enumerate() {
                let share = &mut sharing.images[one as usize];
                share.all += amount;
                if images.len() == 1 {
                    share.own += amount;
                }
                for &other in &images[nth + 1..] {
                    *sharing.pairs.entry((one, other)).or_default() += amount;
                }
            }
        }
        sharing
    }

    /// Chunks by the images that have them.
    fn by_holders(&self, places: &mut Amount) -> HashMap<Vec<u32>, Amount> {
        let mut holders = vec![Vec::new(); self.blobs().len()];
        for (number, image) in (0_u32..).zip(self.images()) {
            for held in &image.blobs {
                holders[held.blob as usize].push((number, held));
            }
        }
        let mut amounts: HashMap<Vec<u32>, Amount> = HashMap::new();
        let mut note = |same: &mut Vec<ChunkRecord>| {
            // Another size is another chunk.
            same.sort_by_key(|record| record.uncompressed_size);
            for same in same.chunk_by(|a, b| a.uncompressed_size == b.uncompressed_size) {
                let mut images: Vec<u32> = Vec::new();
                for record in same {
                    let held = holders[record.blob_index as usize].iter();
                    let held = held.filter(|(_, held)| held.has(record.index));
                    images.extend(held.map(|(number, _)| *number));
                }
                images.sort_unstable();
                images.dedup();
                if let Some(record) = same.first() {
                    amounts.entry(images).or_default().add(record);
                }
            }
            same.clear();
        };
        let mut same: Vec<ChunkRecord> = Vec::new();
        for record in self.index().records() {
            places.add(&record);
            if same
                .first()
                .is_some_and(|first| first.digest != record.digest)
            {
                note(&mut same);
            }
            same.push(record);
        }
        note(&mut same);
        amounts
    }
}
