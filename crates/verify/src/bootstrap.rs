//! Reads the file tree out of a bootstrap.

use std::collections::{HashMap, HashSet};
use std::ops::Deref;
use std::sync::Arc;

use rafs_format::{Bootstrap, ChunkPointer, Digest, FileType, Inode as Record, Nid};

use crate::model::{Contents, FileTree, Inode, InodeIndex, NodeId, ROOT, escape};

/// Why no tree can be read from a bootstrap.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// A record is malformed.
    #[error("{path} (nid {nid})")]
    Format {
        /// Path of the file, escaped.
        path: String,
        /// Number of its inode.
        nid: Nid,
        /// What is wrong.
        source: rafs_format::Error,
    },
    /// The chunk table is malformed.
    #[error("chunk table")]
    ChunkTable(#[source] rafs_format::Error),
    /// A directory is reached twice.
    #[error("{path} (nid {nid}): the directory has a second name")]
    SecondName {
        /// Path of the second name, escaped.
        path: String,
        /// Number of its inode.
        nid: Nid,
    },
    /// A file uses a chunk that the chunk table lacks.
    #[error("{path}: chunk {index} of blob {blob_index} at {offset:#x} is not in the chunk table")]
    UnknownChunk {
        /// Path of the file, escaped.
        path: String,
        /// Position of the blob in the blob table.
        blob_index: u32,
        /// Row in the blob's chunk table.
        index: u32,
        /// Uncompressed offset.
        offset: u64,
    },
}

/// The tree that a bootstrap describes, its contents as digests from the chunk table.
pub(crate) fn read<D: Deref<Target = [u8]>>(
    bootstrap: &Bootstrap<D>,
) -> Result<FileTree, BootstrapError> {
    let chunks = ChunkRows::read(bootstrap).map_err(BootstrapError::ChunkTable)?;
    let contents = Contents::Rows {
        rows: Vec::new(),
        table: Arc::clone(&chunks.digests),
    };
    let mut reader = Reader {
        bootstrap,
        chunks,
        rows: Vec::new(),
        tree: FileTree::new(Inode::new(0), contents),
        inodes: HashMap::new(),
        directories: HashSet::new(),
    };
    reader.read()?;
    let mut tree = reader.tree;
    if let Contents::Rows { rows, .. } = &mut tree.contents {
        *rows = reader.rows;
    }
    Ok(tree)
}

/// The chunk table, to be searched by blob and index.
struct ChunkRows {
    digests: Arc<[Digest]>,
    /// Blob index and chunk index in one number, uncompressed offset, row.
    keys: Vec<(u64, u64, u32)>,
}

impl ChunkRows {
    fn read<D: Deref<Target = [u8]>>(bootstrap: &Bootstrap<D>) -> Result<Self, rafs_format::Error> {
        let table = bootstrap.chunk_table();
        let mut digests = Vec::with_capacity(table.len());
        let mut keys = Vec::with_capacity(table.len());
        for (row, record) in (0..).zip(table) {
            let record = record?;
            digests.push(record.digest);
            keys.push((
                key(record.blob_index, record.index),
                record.uncompressed_offset,
                row,
            ));
        }
        keys.sort_unstable();
        Ok(Self {
            digests: digests.into(),
            keys,
        })
    }

    fn find(&self, pointer: &ChunkPointer) -> Option<u32> {
        let wanted = (
            key(pointer.blob_index, pointer.index),
            pointer.uncompressed_offset,
        );
        let at = self
            .keys
            .binary_search_by_key(&wanted, |&(key, offset, _)| (key, offset))
            .ok()?;
        self.keys.get(at).map(|&(.., row)| row)
    }
}

fn key(blob: u32, index: u32) -> u64 {
    u64::from(blob) << 32 | u64::from(index)
}

struct Reader<'a, D> {
    bootstrap: &'a Bootstrap<D>,
    chunks: ChunkRows,
    rows: Vec<u32>,
    tree: FileTree,
    inodes: HashMap<Nid, InodeIndex>,
    directories: HashSet<Nid>,
}

impl<D: Deref<Target = [u8]>> Reader<'_, D> {
    fn read(&mut self) -> Result<(), BootstrapError> {
        let root = self.bootstrap.root();
        let format = |source| BootstrapError::Format {
            path: "/".to_owned(),
            nid: root,
            source,
        };
        let record = self.bootstrap.inode(root).map_err(format)?;
        self.tree.inodes[0] = self.facts(&record).map_err(format)?;
        self.directories.insert(root);
        let mut todo = vec![(ROOT, record)];
        while let Some((node, record)) = todo.pop() {
            self.directory(node, &record, &mut todo)?;
        }
        Ok(())
    }

    fn directory(
        &mut self,
        node: NodeId,
        directory: &Record,
        todo: &mut Vec<(NodeId, Record)>,
    ) -> Result<(), BootstrapError> {
        let bootstrap = self.bootstrap;
        let entries = bootstrap
            .entries(directory)
            .map_err(|source| self.format(node, directory.nid, source))?;
        for entry in entries {
            let entry = entry.map_err(|source| self.format(node, directory.nid, source))?;
            if matches!(entry.name, b"." | b"..") {
                continue;
            }
            let nid = entry.nid;
            if let Some(&inode) = self.inodes.get(&nid) {
                self.tree.add_name(node, entry.name, inode);
                continue;
            }
            let child = self.tree.add_name(node, entry.name, 0);
            let record = bootstrap
                .inode(nid)
                .map_err(|source| self.format(child, nid, source))?;
            let mut facts = self
                .facts(&record)
                .map_err(|source| self.format(child, nid, source))?;
            if record.is_regular() {
                facts.first_chunk = self.rows.len();
                self.contents(child, &record)?;
                facts.chunks = self.rows.len() - facts.first_chunk;
            }
            let inode = self.tree.add_inode(facts);
            self.tree.nodes[child as usize].inode = inode;
            if record.is_dir() {
                if !self.directories.insert(nid) {
                    return Err(BootstrapError::SecondName {
                        path: self.path(child),
                        nid,
                    });
                }
                todo.push((child, record));
            } else {
                self.inodes.insert(nid, inode);
            }
        }
        Ok(())
    }

    fn facts(&self, record: &Record) -> Result<Inode, rafs_format::Error> {
        let xattrs = self.bootstrap.xattrs(record)?;
        Ok(Inode {
            uid: record.uid,
            gid: record.gid,
            rdev: if record.is_device() { record.rdev } else { 0 },
            mtime: record.mtime,
            mtime_nsec: record.mtime_nsec,
            xattrs: xattrs
                .into_iter()
                .map(|xattr| (xattr.name.into(), xattr.value.into()))
                .collect(),
            link: if record.is_symlink() {
                self.bootstrap.symlink(record)?.into()
            } else {
                Box::default()
            },
            size: if record.file_type == FileType::Regular {
                record.size
            } else {
                0
            },
            ..Inode::new(record.mode)
        })
    }

    fn contents(&mut self, node: NodeId, record: &Record) -> Result<(), BootstrapError> {
        let bootstrap = self.bootstrap;
        for pointer in bootstrap
            .chunks(record)
            .map_err(|source| self.format(node, record.nid, source))?
        {
            let pointer = pointer.map_err(|source| self.format(node, record.nid, source))?;
            let row = self
                .chunks
                .find(&pointer)
                .ok_or_else(|| BootstrapError::UnknownChunk {
                    path: self.path(node),
                    blob_index: pointer.blob_index,
                    index: pointer.index,
                    offset: pointer.uncompressed_offset,
                })?;
            self.rows.push(row);
        }
        Ok(())
    }

    fn path(&self, node: NodeId) -> String {
        escape(&self.tree.path(node))
    }

    fn format(&self, node: NodeId, nid: Nid, source: rafs_format::Error) -> BootstrapError {
        BootstrapError::Format {
            path: self.path(node),
            nid,
            source,
        }
    }
}
