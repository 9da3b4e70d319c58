//! Dropping what no name leads to.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::mem;

use rafs_format::ChunkRecord;

use crate::{ChunkId, Content, Error, Image, InodeId, Tree};

impl Image {
    /// Drops inodes, chunks and blobs that nothing refers to, and numbers the rest by their first use in the
    /// canonical walk. Records that name the same chunk of the same blob become one. Prefetch entries without a
    /// name are dropped, as are repeated ones. A chunk's row in its blob does not change.
    ///
    /// # Errors
    /// A file with a chunk that the image does not have, a chunk of a blob that it does not have, or two records
    /// that contradict each other about one chunk. The image is unusable afterwards.
    pub fn compact(&mut self) -> Result<(), Error> {
        let renamed = self.tree.compact();
        let mut used = Used::new(self);
        for inode in &mut self.tree.inodes {
            if let Content::Regular { chunks, .. } = &mut inode.content {
                for chunk in chunks.iter_mut() {
                    *chunk = used.chunk(*chunk)?;
                }
            }
        }
        let Used {
            chunks, blob_order, ..
        } = used;
        let mut old = mem::take(&mut self.blobs)
            .into_iter()
            .map(Some)
            .collect::<Vec<_>>();
        for (index, from) in (0u32..).zip(blob_order) {
            if let Some(mut blob) = old.get_mut(from as usize).and_then(Option::take) {
                blob.index = index;
                self.blobs.push(blob);
            }
        }
        self.chunks = chunks;
        let mut seen = vec![false; self.tree.len()];
        self.prefetch = mem::take(&mut self.prefetch)
            .into_iter()
            .filter_map(|id| renamed.get(id.0 as usize).copied().flatten())
            .filter(|id| !mem::replace(&mut seen[id.0 as usize], true))
            .collect();
        Ok(())
    }
}

/// Chunks and blobs in the order of their first use.
struct Used {
    old: Vec<ChunkRecord>,
    /// New id of each old chunk.
    renamed: Vec<Option<ChunkId>>,
    chunks: Vec<ChunkRecord>,
    /// New id by (new blob index, row in the blob).
    by_row: HashMap<(u32, u32), ChunkId>,
    blobs: Vec<Option<u32>>,
    /// Old index of each new blob.
    blob_order: Vec<u32>,
}

impl Used {
    fn new(image: &mut Image) -> Self {
        let old = mem::take(&mut image.chunks);
        Self {
            renamed: vec![None; old.len()],
            chunks: Vec::with_capacity(old.len()),
            by_row: HashMap::with_capacity(old.len()),
            blobs: vec![None; image.blobs.len()],
            blob_order: Vec::new(),
            old,
        }
    }

    fn chunk(&mut self, id: ChunkId) -> Result<ChunkId, Error> {
        let unknown = Error::UnknownChunk { id: id.0 };
        let Some(renamed) = self.renamed.get(id.0 as usize) else {
            return Err(unknown);
        };
        if let Some(known) = renamed {
            return Ok(*known);
        }
        let Some(mut record) = self.old.get(id.0 as usize).copied() else {
            return Err(unknown);
        };
        record.blob_index = self.blob(record.blob_index)?;
        let next = ChunkId(u32::try_from(self.chunks.len()).map_err(|_| Error::TooManyChunks)?);
        let new = match self.by_row.entry((record.blob_index, record.index)) {
            Entry::Vacant(row) => {
                row.insert(next);
                self.chunks.push(record);
                next
            }
            Entry::Occupied(row) => {
                let known = &self.chunks[row.get().0 as usize];
                if (ChunkRecord {
                    file_offset: known.file_offset,
                    ..record
                }) != *known
                {
                    return Err(Error::ChunkConflict {
                        blob: record.blob_index,
                        row: record.index,
                    });
                }
                *row.get()
            }
        };
        self.renamed[id.0 as usize] = Some(new);
        Ok(new)
    }

    fn blob(&mut self, index: u32) -> Result<u32, Error> {
        let slot = self
            .blobs
            .get_mut(index as usize)
            .ok_or(Error::UnknownBlob { index })?;
        if let Some(known) = slot {
            return Ok(*known);
        }
        let new = u32::try_from(self.blob_order.len()).map_err(|_| Error::TooManyChunks)?;
        *slot = Some(new);
        self.blob_order.push(index);
        Ok(new)
    }
}

impl Tree {
    /// Drops inodes that no name leads to and numbers the rest in canonical order, the root being 0.
    /// Gives the new id of each old one.
    pub fn compact(&mut self) -> Vec<Option<InodeId>> {
        let mut renamed = vec![None; self.inodes.len()];
        let mut order = Vec::with_capacity(self.inodes.len());
        for visit in self.walk() {
            let slot: &mut Option<InodeId> = &mut renamed[visit.id.0 as usize];
            if slot.is_none() {
                // Positions fit: there are at most as many as there were ids.
                *slot = Some(InodeId(order.len() as u32));
                order.push(visit.id);
            }
        }
        let mut old = mem::take(&mut self.inodes)
            .into_iter()
            .map(Some)
            .collect::<Vec<_>>();
        self.inodes.reserve_exact(order.len());
        for id in order {
            let Some(mut inode) = old[id.0 as usize].take() else {
                continue;
            };
            if let Content::Directory(entries) = &mut inode.content {
                for id in entries.values_mut() {
                    *id = renamed[id.0 as usize].unwrap_or(*id);
                }
            }
            self.inodes.push(inode);
        }
        renamed
    }
}
