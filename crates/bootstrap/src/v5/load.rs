use std::collections::HashMap;
use std::ops::Deref;

use rafs_format::v5::{Bootstrap, Inode};
use rafs_format::{ChunkRecord, FileType, SuperFlags, Version};
use tree::{ChunkId, Content, Image, InodeId, Tree, mode};

use crate::Error;
use crate::load::attributes;

/// Decodes a whole v5 bootstrap. The names of a hard-linked file share one inode again, that of the first. Chunks lie
/// where the bootstrap says: packed, in most images.
///
/// # Errors
/// [`Error::Load`] and [`Error::Damaged`] naming the path at fault.
pub fn load_v5<D: Deref<Target = [u8]>>(bootstrap: &Bootstrap<D>) -> Result<Image, Error> {
    let mut loader = Loader {
        bootstrap,
        tree: Tree::new(),
        directories: HashMap::new(),
        links: HashMap::new(),
        claimed: vec![false; bootstrap.names() as usize + 1],
        chunks: Vec::new(),
        rows: HashMap::new(),
    };
    loader.load()?;
    let find = |ino: u32| {
        let ino = u64::from(ino);
        let directory = loader.directories.get(&ino);
        directory.or_else(|| loader.links.get(&ino)).copied()
    };
    let superblock = bootstrap.superblock();
    Ok(Image {
        tarfs: false,
        version: Version::V5,
        prefetch: bootstrap.prefetch().filter_map(find).collect(),
        tree: loader.tree,
        blobs: bootstrap.blobs().to_vec(),
        chunks: loader.chunks,
        chunk_size: superblock.chunk_size,
        compressor: bootstrap.compressor(),
        digester: bootstrap.digester(),
        explicit_owners: superblock.flags.contains(SuperFlags::EXPLICIT_UID_GID),
    })
}

struct Loader<'a, D> {
    bootstrap: &'a Bootstrap<D>,
    tree: Tree,
    /// Inodes of directories by number.
    directories: HashMap<u64, InodeId>,
    /// All other inodes by number, to find hard links.
    links: HashMap<u64, InodeId>,
    /// Names that a directory has, by index: none may have a second.
    claimed: Vec<bool>,
    chunks: Vec<ChunkRecord>,
    /// Chunks by blob index and number in the blob.
    rows: HashMap<(u32, u32), ChunkId>,
}

impl<'a, D: Deref<Target = [u8]>> Loader<'a, D> {
    fn load(&mut self) -> Result<(), Error> {
        let root = self.inode(1, 0)?;
        if !root.is_dir() {
            return Err(self.damaged(1, "the root is not a directory"));
        }
        self.claimed[1] = true;
        *self.tree.inode_mut(InodeId::ROOT) = self.decode(&root)?;
        self.directories.insert(root.ino, InodeId::ROOT);
        let mut todo = vec![(InodeId::ROOT, root)];
        while let Some((id, directory)) = todo.pop() {
            self.directory(id, &directory, &mut todo)?;
        }
        Ok(())
    }

    fn directory(
        &mut self,
        id: InodeId,
        directory: &Inode<'a>,
        todo: &mut Vec<(InodeId, Inode<'a>)>,
    ) -> Result<(), Error> {
        let children = directory.children();
        if children.len() != directory.child_count as usize {
            return Err(self.damaged(directory.index, "its children have no indexes"));
        }
        let mut entries = Vec::new();
        for index in children {
            let inode = self.inode(index, directory.index)?;
            match self.claimed.get_mut(index as usize) {
                Some(claimed) if !*claimed => *claimed = true,
                _ => return Err(self.damaged(index, "the name is in two directories")),
            }
            let child = if inode.is_dir() {
                let decoded = self.decode(&inode)?;
                let child = self.tree.add(decoded);
                self.directories.insert(inode.ino, child);
                todo.push((child, inode.clone()));
                child
            } else {
                self.file(&inode)?
            };
            entries.push((Box::from(inode.name), child));
        }
        let count = entries.len();
        let Some(map) = self.tree.entries_mut(id) else {
            return Err(self.damaged(directory.index, "not a directory"));
        };
        map.extend(entries);
        if map.len() != count {
            return Err(self.damaged(directory.index, "two entries have the same name"));
        }
        Ok(())
    }

    /// The inode behind a name that is no directory.
    fn file(&mut self, inode: &Inode<'a>) -> Result<InodeId, Error> {
        if let Some(&known) = self.links.get(&inode.ino) {
            return Ok(known);
        }
        // What the first name says counts, in whatever order they are met.
        let first = match u32::try_from(inode.ino) {
            Ok(index) if index != inode.index => Some(self.inode(index, 0)?),
            _ => None,
        };
        if let Some(first) = &first
            && (first.ino, first.file_type) != (inode.ino, inode.file_type)
        {
            let what = format!("inode {} is not what this name is a link to", inode.ino);
            return Err(self.damaged(inode.index, what));
        }
        let decoded = self.decode(first.as_ref().unwrap_or(inode))?;
        let id = self.tree.add(decoded);
        self.links.insert(inode.ino, id);
        Ok(id)
    }

    /// The inode with an index; `parent` is the index of its directory, for messages.
    fn inode(&self, index: u32, parent: u32) -> Result<Inode<'a>, Error> {
        self.bootstrap.inode(index).map_err(|source| Error::Load {
            path: format!("{} (child {index})", self.path(parent)),
            source,
        })
    }

    fn decode(&mut self, inode: &Inode<'_>) -> Result<tree::Inode, Error> {
        let content = match inode.file_type {
            FileType::Directory => Content::Directory(Default::default()),
            FileType::Regular => Content::Regular {
                size: inode.size,
                chunks: self.chunks(inode)?,
            },
            FileType::Symlink => Content::Symlink(inode.target.into()),
            _ => Content::Special,
        };
        let xattrs = inode
            .xattrs()
            .map_err(|source| self.failed(inode.index, source))?;
        Ok(tree::Inode {
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            rdev: mode::device_number(inode.mode, inode.rdev),
            mtime: inode.mtime,
            mtime_nsec: inode.mtime_nsec,
            implied: inode.implied,
            xattrs: attributes(xattrs),
            content,
        })
    }

    fn chunks(&mut self, inode: &Inode<'_>) -> Result<Box<[ChunkId]>, Error> {
        let chunk_size = u64::from(self.bootstrap.superblock().chunk_size);
        let expected = inode.size.div_ceil(chunk_size);
        if u64::from(inode.child_count) != expected {
            let what = format!(
                "{} bytes need {expected} chunks, there are {}",
                inode.size, inode.child_count
            );
            return Err(self.damaged(inode.index, what));
        }
        let mut ids = Vec::with_capacity(inode.child_count as usize);
        for record in inode.chunks() {
            let record = record.map_err(|source| self.failed(inode.index, source))?;
            if record.blob_index as usize >= self.bootstrap.blobs().len() {
                let what = format!(
                    "a chunk is in blob {}, which is not there",
                    record.blob_index
                );
                return Err(self.damaged(inode.index, what));
            }
            let next = ChunkId(self.chunks.len() as u32);
            let key = (record.blob_index, record.index);
            let id = *self.rows.entry(key).or_insert(next);
            match self.chunks.get(id.0 as usize) {
                None => self.chunks.push(record),
                Some(known) if same(known, &record) => {}
                Some(_) => {
                    let (blob, index) = key;
                    let what = format!(
                        "chunk {index} of blob {blob} is described differently by another file"
                    );
                    return Err(self.damaged(inode.index, what));
                }
            }
            ids.push(id);
        }
        Ok(ids.into())
    }

    fn failed(&self, index: u32, source: rafs_format::Error) -> Error {
        Error::Load {
            path: self.path(index),
            source,
        }
    }

    fn damaged(&self, index: u32, what: impl Into<String>) -> Error {
        Error::Damaged {
            path: self.path(index),
            what: what.into(),
        }
    }

    /// The path of a name, as far as the parents of damaged inodes lead up.
    #[cold]
    fn path(&self, index: u32) -> String {
        let mut names = Vec::new();
        let mut at = index;
        while at > 1 {
            let Ok(inode) = self.bootstrap.inode(at) else {
                names.push(format!("index {at}"));
                break;
            };
            names.push(inode.name.escape_ascii().to_string());
            at = match u32::try_from(inode.parent) {
                Ok(parent) if parent < at => parent,
                _ => 0,
            };
        }
        names.reverse();
        format!("/{}", names.join("/"))
    }
}

/// Whether two records say the same of a chunk; where it lies in a file is not part of it.
fn same(a: &ChunkRecord, b: &ChunkRecord) -> bool {
    let file_offset = a.file_offset;
    *a == ChunkRecord { file_offset, ..*b }
}
