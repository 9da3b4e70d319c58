//! A bootstrap back into a tree.

use std::collections::HashMap;
use std::ops::Deref;

use rafs_format::{Bootstrap, ChunkRecord, Nid, Xattr};
use tree::{ChunkId, Content, Image, InodeId, Tree, Xattrs, mode};

use crate::Error;

/// Decodes a whole bootstrap in v6 layout. The names of a hard-linked file share one inode again.
///
/// The image of a v5 bootstrap's view is of v5, too, but its chunks lie where the view has them; [`crate::Parsed::load`]
/// gives them as they are on disk.
///
/// # Errors
/// [`Error::Load`] and [`Error::Damaged`] naming the path at fault.
pub fn load_image<D: Deref<Target = [u8]>>(bootstrap: &Bootstrap<D>) -> Result<Image, Error> {
    let superblock = bootstrap.superblock();
    let table = |source| Error::Load {
        path: "the chunk table".to_owned(),
        source,
    };
    // The table of a tarfs image says nothing: its chunks are known by the files that point to them.
    let chunks = match bootstrap.is_tarfs() {
        true => Vec::new(),
        false => bootstrap
            .chunk_table()
            .collect::<Result<Vec<_>, _>>()
            .map_err(table)?,
    };
    let rows = chunks
        .iter()
        .zip(0..)
        .map(|(chunk, id)| ((chunk.blob_index, chunk.index), ChunkId(id)))
        .collect();
    let mut loader = Loader {
        bootstrap,
        rows,
        chunks,
        tree: Tree::new(),
        inodes: HashMap::new(),
        met: Vec::new(),
    };
    loader.load()?;
    let prefetch = bootstrap
        .prefetch()
        .filter_map(|nid| loader.inodes.get(&nid.0).copied())
        .collect();
    Ok(Image {
        version: bootstrap.version(),
        tree: loader.tree,
        blobs: bootstrap.blobs().to_vec(),
        chunk_size: superblock.chunk_size,
        prefetch,
        compressor: bootstrap.compressor(),
        digester: bootstrap.digester(),
        explicit_owners: superblock
            .flags
            .contains(rafs_format::SuperFlags::EXPLICIT_UID_GID),
        tarfs: bootstrap.is_tarfs(),
        chunks: loader.chunks,
    })
}

/// Extended attributes as a tree has them.
pub(crate) fn attributes(xattrs: Vec<Xattr<'_>>) -> Option<Box<Xattrs>> {
    let pairs = xattrs
        .into_iter()
        .map(|xattr| (xattr.name.into(), xattr.value.into()));
    let all: Xattrs = pairs.collect();
    (!all.is_empty()).then(|| Box::new(all))
}

fn damaged(path: impl Into<String>, what: impl Into<String>) -> Error {
    Error::Damaged {
        path: path.into(),
        what: what.into(),
    }
}

struct Loader<'a, D> {
    bootstrap: &'a Bootstrap<D>,
    /// Chunks by blob index and row in the blob.
    rows: HashMap<(u32, u32), ChunkId>,
    chunks: Vec<ChunkRecord>,
    tree: Tree,
    /// Inodes by nid: of directories to find loops, of files to find hard links.
    inodes: HashMap<u64, InodeId>,
    /// The directories met, the root first, to tell paths from.
    met: Vec<Met>,
}

/// A directory's name and the position of its parent among those met.
struct Met {
    parent: usize,
    name: Box<[u8]>,
}

/// An entry, for messages: whole paths are put together only when something is wrong, for they may be long.
#[derive(Clone, Copy)]
struct Place<'a> {
    /// Position of the directory among those met.
    directory: usize,
    /// Name in the directory; empty for the directory itself.
    name: &'a [u8],
}

/// A directory to descend into.
struct Directory {
    id: InodeId,
    inode: rafs_format::Inode,
    /// Position among those met.
    met: usize,
}

/// Position of the root among the directories met.
const ROOT: usize = 0;

impl<D: Deref<Target = [u8]>> Loader<'_, D> {
    fn load(&mut self) -> Result<(), Error> {
        let root = self.bootstrap.root();
        self.met.push(Met {
            parent: ROOT,
            name: Box::default(),
        });
        let place = Place {
            directory: ROOT,
            name: b"",
        };
        let inode = self.inode(root, place)?;
        if !inode.is_dir() {
            return Err(damaged("/", "the root is not a directory"));
        }
        *self.tree.inode_mut(InodeId::ROOT) = self.decode(&inode, place)?;
        self.inodes.insert(root.0, InodeId::ROOT);
        let mut todo = vec![Directory {
            id: InodeId::ROOT,
            inode,
            met: ROOT,
        }];
        while let Some(directory) = todo.pop() {
            self.directory(&directory, &mut todo)?;
        }
        Ok(())
    }

    fn directory(&mut self, directory: &Directory, todo: &mut Vec<Directory>) -> Result<(), Error> {
        let bootstrap = self.bootstrap;
        let at = |name| Place {
            directory: directory.met,
            name,
        };
        let entries = bootstrap
            .entries(&directory.inode)
            .map_err(|source| self.failed(at(b""), source))?;
        let mut children = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|source| self.failed(at(b""), source))?;
            if entry.name == b"." || entry.name == b".." {
                continue;
            }
            let place = at(entry.name);
            let id = match self.inodes.get(&entry.nid.0) {
                Some(&id) if self.tree.inode(id).is_directory() => {
                    return Err(damaged(self.path(place), "the directory has a second name"));
                }
                Some(&id) => id,
                None => self.add(entry.nid, place, todo)?,
            };
            children.push((Box::from(entry.name), id));
        }
        let count = children.len();
        let Some(entries) = self.tree.entries_mut(directory.id) else {
            return Err(damaged(self.path(at(b"")), "not a directory"));
        };
        entries.extend(children);
        if entries.len() != count {
            return Err(damaged(
                self.path(at(b"")),
                "two entries have the same name",
            ));
        }
        Ok(())
    }

    fn add(
        &mut self,
        nid: Nid,
        place: Place<'_>,
        todo: &mut Vec<Directory>,
    ) -> Result<InodeId, Error> {
        let inode = self.inode(nid, place)?;
        let decoded = self.decode(&inode, place)?;
        let id = self.tree.add(decoded);
        self.inodes.insert(nid.0, id);
        if inode.is_dir() {
            todo.push(Directory {
                id,
                inode,
                met: self.met.len(),
            });
            self.met.push(Met {
                parent: place.directory,
                name: place.name.into(),
            });
        }
        Ok(id)
    }

    fn inode(&self, nid: Nid, place: Place<'_>) -> Result<rafs_format::Inode, Error> {
        self.bootstrap
            .inode(nid)
            .map_err(|source| self.failed(place, source))
    }

    fn decode(
        &mut self,
        inode: &rafs_format::Inode,
        place: Place<'_>,
    ) -> Result<tree::Inode, Error> {
        let content = match inode.mode & mode::TYPE_MASK {
            mode::DIRECTORY => Content::Directory(Default::default()),
            mode::REGULAR => Content::Regular {
                size: inode.size,
                chunks: self.chunks(inode, place)?,
            },
            mode::SYMLINK => Content::Symlink(
                self.bootstrap
                    .symlink(inode)
                    .map_err(|source| self.failed(place, source))?
                    .into_owned()
                    .into(),
            ),
            _ => Content::Special,
        };
        let xattrs = self
            .bootstrap
            .xattrs(inode)
            .map_err(|source| self.failed(place, source))?;
        Ok(tree::Inode {
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            rdev: mode::device_number(inode.mode, inode.rdev),
            mtime: inode.mtime,
            mtime_nsec: inode.mtime_nsec,
            implied: inode.implied && inode.is_dir(),
            xattrs: attributes(xattrs),
            content,
        })
    }

    fn chunks(
        &mut self,
        inode: &rafs_format::Inode,
        place: Place<'_>,
    ) -> Result<Box<[ChunkId]>, Error> {
        let bootstrap = self.bootstrap;
        let chunk_size = u64::from(bootstrap.superblock().chunk_size);
        let mut left = inode.size;
        bootstrap
            .chunks(inode)
            .map_err(|source| self.failed(place, source))?
            .map(|pointer| {
                let pointer = pointer.map_err(|source| self.failed(place, source))?;
                if bootstrap.is_tarfs() {
                    let size = left.min(chunk_size);
                    let place = (pointer.blob_index, pointer.index);
                    let start = pointer.uncompressed_offset;
                    let chunk = ChunkRecord::in_tar(place, start, inode.size - left, size as u32);
                    left -= size;
                    self.chunks.push(chunk);
                    return Ok(ChunkId(self.chunks.len() as u32 - 1));
                }
                let row = self.rows.get(&(pointer.blob_index, pointer.index)).copied();
                row.filter(|id| {
                    self.chunks[id.0 as usize].uncompressed_offset == pointer.uncompressed_offset
                })
                .ok_or_else(|| {
                    let (blob, index) = (pointer.blob_index, pointer.index);
                    damaged(
                        self.path(place),
                        format!("chunk {index} of blob {blob} is not in the chunk table"),
                    )
                })
            })
            .collect()
    }

    fn failed(&self, place: Place<'_>, source: rafs_format::Error) -> Error {
        Error::Load {
            path: self.path(place),
            source,
        }
    }

    /// The path of an entry.
    fn path(&self, place: Place<'_>) -> String {
        let mut names = vec![place.name];
        let mut at = place.directory;
        while at != ROOT {
            names.push(&self.met[at].name);
            at = self.met[at].parent;
        }
        names.retain(|name| !name.is_empty());
        names.push(b"");
        names.reverse();
        if names.len() == 1 {
            return "/".to_owned();
        }
        String::from_utf8_lossy(&names.join(&b'/')).into_owned()
    }
}
