//! A snapshot in the making: what a set of images has, blob by blob and row by row.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use chunkdict::IndexBuilder;
use rafs_format::{BlobId, BlobInfo, ChunkRecord};

use crate::import::contradiction;
use crate::rows::Rows;
use crate::snapshot::{ImageBlob, Snapshot, SnapshotImage};
use crate::{Error, ImageId, Import, Kind, kind};

#[derive(Default)]
pub(crate) struct Draft {
    kind: Option<Kind>,
    blobs: BTreeMap<BlobId, DraftBlob>,
    images: BTreeMap<ImageId, BTreeMap<BlobId, (u64, Rows)>>,
}

struct DraftBlob {
    info: BlobInfo,
    /// In the order of their rows.
    rows: Vec<ChunkRecord>,
}

impl Draft {
    /// What a snapshot has.
    pub fn of(snapshot: &Snapshot) -> Self {
        let mut blobs: Vec<DraftBlob> = snapshot
            .blobs()
            .iter()
            .map(|info| DraftBlob {
                info: BlobInfo {
                    index: 0,
                    ..info.clone()
                },
                rows: Vec::new(),
            })
            .collect();
        for record in snapshot.index().records_in_order() {
            if let Some(blob) = blobs.get_mut(record.blob_index as usize) {
                blob.rows.push(ChunkRecord {
                    blob_index: 0,
                    ..record
                });
            }
        }
        let images = snapshot.images().iter().map(|image| {
            let held = image.blobs.iter().filter_map(|held| {
                let id = snapshot.blobs().get(held.blob as usize)?.id.clone();
                Some((id, (held.size, held.rows.clone())))
            });
            (image.id, held.collect())
        });
        Self {
            kind: Some(snapshot.kind()),
            images: images.collect(),
            blobs: blobs
                .into_iter()
                .map(|blob| (blob.info.id.clone(), blob))
                .collect(),
        }
    }

    /// Adds what an image has. An image that is known is left as it is.
    pub fn add(&mut self, import: Import) -> Result<(), Error> {
        let Import { name, id, kind, .. } = &import;
        kind::same(self.kind.get_or_insert(*kind), name, kind)?;
        if self.images.contains_key(id) {
            return Ok(());
        }
        // Looked at first, so that what is refused changes nothing.
        for (blob, imported) in &import.blobs {
            if let Some(known) = self.blobs.get(blob) {
                known.agrees(name, &imported.info, &imported.rows)?;
            }
        }
        let mut held = BTreeMap::new();
        for (blob, imported) in import.blobs {
            let rows = Rows::of(imported.rows.iter().map(|record| record.index));
            held.insert(blob.clone(), (imported.size, rows));
            match self.blobs.entry(blob) {
                Entry::Occupied(mut known) => known.get_mut().merge(imported.rows),
                Entry::Vacant(entry) => drop(entry.insert(DraftBlob {
                    info: imported.info,
                    rows: imported.rows,
                })),
            }
        }
        self.images.insert(import.id, held);
        Ok(())
    }

    /// Takes images out, and whatever they alone have.
    pub fn remove(&mut self, gone: impl Fn(&ImageId) -> bool) {
        let before = self.images.len();
        self.images.retain(|id, _| !gone(id));
        if self.images.len() == before {
            return;
        }
        for (id, blob) in &mut self.blobs {
            let held = self.images.values().filter_map(|image| image.get(id));
            let held: Vec<&Rows> = held.map(|(_, rows)| rows).collect();
            blob.rows
                .retain(|record| held.iter().any(|rows| rows.contains(record.index)));
        }
        self.blobs.retain(|_, blob| !blob.rows.is_empty());
    }

    /// The snapshot; `None` of no images.
    pub fn finish(self) -> Result<Option<Snapshot>, Error> {
        let Some(kind) = self.kind.filter(|_| !self.images.is_empty()) else {
            return Ok(None);
        };
        let chunks = self.blobs.values().map(|blob| blob.rows.len()).sum();
        let mut index = IndexBuilder::with_capacity(chunks);
        let mut positions = BTreeMap::new();
        let mut blobs = Vec::with_capacity(self.blobs.len());
        for (position, (id, blob)) in (0..).zip(self.blobs) {
            for record in blob.rows {
                index.push(&ChunkRecord {
                    blob_index: position,
                    ..record
                })?;
            }
            blobs.push(BlobInfo {
                index: position,
                ..blob.info
            });
            positions.insert(id, position);
        }
        let images = self.images.into_iter().map(|(id, held)| {
            let blobs = held.into_iter().filter_map(|(blob, (size, rows))| {
                let blob = *positions.get(&blob)?;
                Some(ImageBlob { blob, size, rows })
            });
            SnapshotImage {
                id,
                blobs: blobs.collect(),
            }
        });
        let images = images.collect();
        Ok(Some(Snapshot::new(kind, blobs, images, index.finish())))
    }
}

impl DraftBlob {
    /// Sees to it that an image says the same of the blob as those before it.
    fn agrees(&self, name: &str, info: &BlobInfo, rows: &[ChunkRecord]) -> Result<(), Error> {
        if self.info != *info {
            return Err(Error::Contradiction {
                name: name.to_owned(),
                blob: info.id.clone(),
                what: "the table entry".to_owned(),
            });
        }
        let mut known = self.rows.iter().peekable();
        for record in rows {
            while known.next_if(|known| known.index < record.index).is_some() {}
            match known.peek() {
                Some(known) if known.index == record.index && *known != record => {
                    return Err(contradiction(name, &info.id, record.index));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn merge(&mut self, rows: Vec<ChunkRecord>) {
        self.rows.extend(rows);
        // Two runs in order: next to no work for a sort that looks for such.
        self.rows.sort_by_key(|record| record.index);
        self.rows.dedup_by_key(|record| record.index);
    }
}
