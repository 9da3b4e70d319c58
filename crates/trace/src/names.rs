//! What a bootstrap's numbers stand for: paths of inodes, files of chunks.

use std::collections::HashMap;
use std::ops::Range;

use rafs_format::{Bootstrap, Nid};
use storage::KnownChunks;

use crate::ChunkId;

/// Bytes of a path that is written; the format of images knows longer ones.
const PATH_MAX: usize = 4096;

/// Everything that has a name.
pub(crate) struct Names<'a> {
    bootstrap: &'a Bootstrap<Vec<u8>>,
    /// By inode: the directory and the name in it that were found first.
    entries: HashMap<Nid, (Nid, Box<[u8]>)>,
    /// By chunk: the file that was found first, and where the chunk begins in it.
    files: HashMap<ChunkId, (Nid, u64)>,
    /// By blob.
    chunks: Vec<KnownChunks>,
}

impl<'a> Names<'a> {
    /// Looks at the whole image. What is damaged is left out.
    pub fn of(bootstrap: &'a Bootstrap<Vec<u8>>) -> Self {
        let mut names = Self {
            bootstrap,
            entries: HashMap::new(),
            files: HashMap::new(),
            chunks: KnownChunks::of(bootstrap).unwrap_or_default(),
        };
        let root = bootstrap.root();
        let mut directories = vec![root];
        while let Some(directory) = directories.pop() {
            names.look_into(root, directory, &mut directories);
        }
        names
    }

    fn look_into(&mut self, root: Nid, directory: Nid, below: &mut Vec<Nid>) {
        let bootstrap = self.bootstrap;
        let inode = bootstrap.inode(directory);
        let entries = inode.and_then(|inode| bootstrap.entries(&inode));
        for entry in entries.into_iter().flatten().filter_map(Result::ok) {
            let new = entry.nid != root && !self.entries.contains_key(&entry.nid);
            if !new || entry.name == b"." || entry.name == b".." {
                continue;
            }
            self.entries
                .insert(entry.nid, (directory, entry.name.into()));
            match bootstrap.inode(entry.nid) {
                Ok(inode) if inode.is_dir() => below.push(entry.nid),
                Ok(inode) if inode.is_regular() => self.look_at_chunks(entry.nid, &inode),
                Ok(_) | Err(_) => {}
            }
        }
    }

    fn look_at_chunks(&mut self, nid: Nid, inode: &rafs_format::Inode) {
        let size = u64::from(self.bootstrap.superblock().chunk_size);
        let chunks = self.bootstrap.chunks(inode);
        let chunks = chunks.into_iter().flatten().filter_map(Result::ok);
        for (number, chunk) in (0_u64..).zip(chunks) {
            let id = ChunkId(chunk.blob_index, chunk.index);
            let place = (nid, number.saturating_mul(size));
            self.files.entry(id).or_insert(place);
        }
    }

    /// A path of the inode; empty if it has none.
    pub fn path(&self, nid: Nid) -> String {
        let (mut names, mut len, mut at) = (Vec::new(), 0, nid);
        while let Some((parent, name)) = self.entries.get(&at) {
            names.push(name);
            len += name.len() + 1;
            if len > PATH_MAX {
                return String::new();
            }
            at = *parent;
        }
        let mut path = String::with_capacity(len);
        for name in names.iter().rev() {
            path.push('/');
            path.push_str(&String::from_utf8_lossy(name));
        }
        path
    }

    /// The chunks of a file that have bytes of `range`.
    pub fn chunks_of(&self, nid: Nid, range: &Range<u64>) -> Vec<ChunkId> {
        let size = u64::from(self.bootstrap.superblock().chunk_size.max(1));
        let position = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
        let (first, last) = (range.start / size, range.end.saturating_sub(1) / size);
        let inode = self.bootstrap.inode(nid);
        let chunks = inode.and_then(|inode| {
            let chunks = self.bootstrap.chunks(&inode)?;
            let chunks = chunks
                .skip(position(first))
                .take(position(last.saturating_sub(first).saturating_add(1)));
            chunks.collect::<Result<Vec<_>, _>>()
        });
        let chunks = chunks.unwrap_or_default().into_iter();
        chunks
            .map(|chunk| ChunkId(chunk.blob_index, chunk.index))
            .collect()
    }

    /// The chunks of a blob that have bytes of `range` of its uncompressed address space, and how long they are.
    pub fn chunks_in(&self, blob: u32, range: &Range<u64>) -> Vec<(ChunkId, u64)> {
        let chunks = usize::try_from(blob)
            .ok()
            .and_then(|at| self.chunks.get(at));
        let slots = chunks.map(|chunks| (chunks, chunks.within(range)));
        let slots = slots
            .into_iter()
            .flat_map(|(chunks, slots)| slots.filter_map(|slot| chunks.get(slot)));
        slots
            .map(|known| (ChunkId(blob, known.index), u64::from(known.size)))
            .collect()
    }

    /// A file that has the chunk, and where it begins in it.
    pub fn file_of(&self, chunk: ChunkId) -> Option<(Nid, u64)> {
        self.files.get(&chunk).copied()
    }
}
