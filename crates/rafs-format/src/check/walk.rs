//! The walk over the tree: breadth first and without recursion, every directory once.

use std::collections::BTreeMap;
use std::ops::Deref;

use super::extents::{Extents, Owner};
use super::file::{Fault, check_inode, check_regular, check_symlink};
use super::tables::ChunkIndex;
use super::{CheckError, Summary};
use crate::superblock::SUPERBLOCK_OFFSET;
use crate::{Bootstrap, DirEntry, FileType, Inode, Layout, Nid};

/// A directory that was met.
struct Dir<'a> {
    inode: Inode,
    /// Its name in `parent`; empty for the root.
    name: &'a [u8],
    /// Position of its parent; the root's is itself.
    parent: usize,
}

/// An inode that claims several names.
struct Links<'a> {
    claimed: u32,
    found: u32,
    dir: usize,
    name: &'a [u8],
}

/// State of the walk.
pub(super) struct Walk<'a, D> {
    bootstrap: &'a Bootstrap<D>,
    chunks: &'a ChunkIndex,
    /// One bit for each place where an inode can be.
    seen: Vec<u64>,
    dirs: Vec<Dir<'a>>,
    links: BTreeMap<Nid, Links<'a>>,
    extents: Extents,
    summary: Summary,
}

impl<'a, D: Deref<Target = [u8]>> Walk<'a, D> {
    pub(super) fn new(bootstrap: &'a Bootstrap<D>, chunks: &'a ChunkIndex) -> Self {
        let places = bootstrap.data().len() / Nid::SLOT_SIZE as usize;
        let summary = Summary {
            chunks: chunks.len() as u64,
            ..Summary::default()
        };
        Self {
            bootstrap,
            chunks,
            seen: vec![0; places.div_ceil(64)],
            dirs: Vec::new(),
            links: BTreeMap::new(),
            extents: Extents::new(bootstrap.superblock()),
            summary,
        }
    }

    pub(super) fn run(mut self) -> Result<Summary, CheckError> {
        self.enter_root()?;
        let mut next = 0;
        while next < self.dirs.len() {
            self.visit(next)?;
            next += 1;
        }
        self.check_links()?;
        self.check_prefetch()?;
        let expected = self.bootstrap.superblock().inos;
        if expected != self.summary.names {
            let what = format!(
                "the superblock counts {expected} names, the tree has {}",
                self.summary.names
            );
            return Err(CheckError::table(SUPERBLOCK_OFFSET + 16, what));
        }
        let summary = self.summary;
        match self.extents.overlap() {
            None => Ok(summary),
            Some(overlap) => Err(overlap.into()),
        }
    }

    fn enter_root(&mut self) -> Result<(), CheckError> {
        let nid = self.bootstrap.root();
        let root = self.bootstrap.inode(nid).map_err(|error| CheckError {
            path: Some(b"/".to_vec()),
            nid: Some(nid),
            ..CheckError::undecodable("the inode is damaged", error)
        })?;
        self.dirs.push(Dir {
            inode: root,
            name: b"",
            parent: 0,
        });
        self.mark(nid);
        self.summary.names = 1;
        if !root.is_dir() {
            return Err(self.fault(
                0,
                None,
                nid,
                format!("mode is {:#o}, the root must be a directory", root.mode).into(),
            ));
        }
        self.check_new(0, b"", &root)
    }

    /// Remembers an inode; whether it was new. Inodes lie within the bootstrap, so there is a bit for each.
    fn mark(&mut self, nid: Nid) -> bool {
        let bit = 1u64 << (nid.0 % 64);
        match usize::try_from(nid.0 / 64)
            .ok()
            .and_then(|word| self.seen.get_mut(word))
        {
            Some(word) if *word & bit == 0 => {
                *word |= bit;
                true
            }
            _ => false,
        }
    }

    fn has_seen(&self, nid: Nid) -> bool {
        let word = usize::try_from(nid.0 / 64)
            .ok()
            .and_then(|word| self.seen.get(word));
        word.is_some_and(|word| word >> (nid.0 % 64) & 1 == 1)
    }

    /// Checks the entries of a directory.
    fn visit(&mut self, index: usize) -> Result<(), CheckError> {
        let bootstrap = self.bootstrap;
        let Some(&Dir {
            inode: dir, parent, ..
        }) = self.dirs.get(index)
        else {
            return Ok(());
        };
        let parent = self
            .dirs
            .get(parent)
            .map_or(dir.nid, |parent| parent.inode.nid);
        let damaged = || Fault::undecodable("the directory is damaged");
        let entries = bootstrap
            .entries(&dir)
            .map_err(|e| self.fault(index, None, dir.nid, damaged()(e)))?;
        let mut previous: &[u8] = b"";
        let (mut dots, mut directories) = (0, 0u32);
        for entry in entries {
            let entry = entry.map_err(|e| self.fault(index, None, dir.nid, damaged()(e)))?;
            if entry.name <= previous {
                let what = format!(
                    "the names {} and {} are out of order",
                    previous.escape_ascii(),
                    entry.name.escape_ascii()
                );
                return Err(self.fault(index, None, dir.nid, what.into()));
            }
            previous = entry.name;
            let expected = match entry.name {
                b"." => dir.nid,
                b".." => parent,
                _ => {
                    directories += u32::from(self.check_child(index, &entry)?);
                    continue;
                }
            };
            dots += 1;
            if entry.nid != expected
                || !matches!(entry.file_type, FileType::Directory | FileType::Unknown)
            {
                let what = format!(
                    "leads to nid {} as {:?}, expected directory {expected}",
                    entry.nid, entry.file_type
                );
                return Err(self.fault(index, Some(entry.name), dir.nid, what.into()));
            }
        }
        if dots != 2 {
            return Err(self.fault(
                index,
                None,
                dir.nid,
                "the directory lacks '.' or '..'".to_owned().into(),
            ));
        }
        if dir.nlink.checked_sub(2) != Some(directories) {
            let what = format!(
                "link count is {}, expected 2 and {directories} for child directories",
                dir.nlink
            );
            return Err(self.fault(index, None, dir.nid, what.into()));
        }
        Ok(())
    }

    /// Checks what an entry leads to; whether that is a directory.
    fn check_child(&mut self, dir: usize, entry: &DirEntry<'a>) -> Result<bool, CheckError> {
        self.summary.names += 1;
        let inode = self.bootstrap.inode(entry.nid);
        let inode = inode.map_err(|e| {
            self.fault(
                dir,
                Some(entry.name),
                entry.nid,
                Fault::undecodable("the inode is damaged")(e),
            )
        })?;
        if entry.file_type != inode.file_type && entry.file_type != FileType::Unknown {
            let what = format!(
                "the entry says {:?}, the inode is a {:?}",
                entry.file_type, inode.file_type
            );
            return Err(self.fault(dir, Some(entry.name), entry.nid, what.into()));
        }
        if self.mark(entry.nid) {
            if inode.is_dir() {
                self.dirs.push(Dir {
                    inode,
                    name: entry.name,
                    parent: dir,
                });
            } else if inode.nlink > 1 {
                self.links.insert(
                    entry.nid,
                    Links {
                        claimed: inode.nlink,
                        found: 1,
                        dir,
                        name: entry.name,
                    },
                );
            }
            self.check_new(dir, entry.name, &inode)?;
        } else if inode.is_dir() {
            let what = "the directory has a second name, or is its own ancestor".to_owned();
            return Err(self.fault(dir, Some(entry.name), entry.nid, what.into()));
        } else {
            match self.links.get_mut(&entry.nid) {
                Some(links) => links.found = links.found.saturating_add(1),
                None => {
                    let what = "link count is 1, but this is another name of the inode".to_owned();
                    return Err(self.fault(dir, Some(entry.name), entry.nid, what.into()));
                }
            }
        }
        Ok(inode.is_dir())
    }

    /// Checks an inode when its first name is met. `name` is empty for the root.
    fn check_new(&mut self, dir: usize, name: &'a [u8], inode: &Inode) -> Result<(), CheckError> {
        let summary = &mut self.summary;
        summary.inodes += 1;
        let checked = check_inode(self.bootstrap, inode).and_then(|()| match inode.file_type {
            FileType::Regular => {
                summary.regular_files += 1;
                summary.chunk_references += check_regular(self.bootstrap, inode, self.chunks)?;
                Ok(())
            }
            FileType::Symlink => {
                summary.symlinks += 1;
                check_symlink(self.bootstrap, inode)
            }
            FileType::Directory => {
                summary.directories += 1;
                Ok(())
            }
            _ => Ok(()),
        });
        checked.map_err(|fault| {
            self.fault(dir, (!name.is_empty()).then_some(name), inode.nid, fault)
        })?;
        self.occupy(inode);
        Ok(())
    }

    /// Adds what the inode takes of the bootstrap. Everything was found to lie within it.
    fn occupy(&mut self, inode: &Inode) {
        let owner = Owner::Inode(inode.nid);
        let flat = inode.is_dir() || inode.is_symlink();
        let block = self.bootstrap.superblock().block_size();
        let tail = if flat && inode.layout == Layout::FlatInline {
            inode.size % block
        } else {
            0
        };
        let indexes_end = inode.chunk_indexes_offset() + 8 * self.bootstrap.chunk_count(inode);
        let behind = if inode.is_regular() {
            indexes_end - inode.offset()
        } else {
            inode.head_size() + tail
        };
        self.extents.add(inode.offset(), behind, owner);
        if flat {
            self.extents
                .add(self.bootstrap.data_offset(inode), inode.size - tail, owner);
        }
    }

    fn check_links(&self) -> Result<(), CheckError> {
        match self
            .links
            .iter()
            .find(|(_, links)| links.claimed != links.found)
        {
            None => Ok(()),
            Some((&nid, links)) => {
                let what = format!(
                    "link count is {}, but the tree has {} names of it",
                    links.claimed, links.found
                );
                Err(self.fault(links.dir, Some(links.name), nid, what.into()))
            }
        }
    }

    fn check_prefetch(&self) -> Result<(), CheckError> {
        for (i, nid) in self.bootstrap.prefetch().enumerate() {
            if !self.has_seen(nid) {
                let offset = self.bootstrap.superblock().prefetch_table_offset + 4 * i as u64;
                return Err(CheckError::table(
                    offset,
                    format!("the prefetch table names nid {nid}, which is not in the tree"),
                ));
            }
        }
        Ok(())
    }

    /// An error about the entry `name` of a directory, or about the directory itself.
    #[cold]
    fn fault(&self, dir: usize, name: Option<&[u8]>, nid: Nid, fault: Fault) -> CheckError {
        let Fault(what, source) = fault;
        let offset = self.bootstrap.superblock().inode_offset(nid);
        CheckError {
            path: Some(self.path(dir, name)),
            nid: Some(nid),
            offset,
            what,
            source: source.map(Box::new),
        }
    }

    fn path(&self, dir: usize, name: Option<&[u8]>) -> Vec<u8> {
        let mut parts: Vec<&[u8]> = name.into_iter().collect();
        let mut at = dir;
        while let Some(dir) = self.dirs.get(at).filter(|_| at != 0) {
            parts.push(dir.name);
            at = dir.parent;
        }
        let mut path = Vec::new();
        for part in parts.iter().rev() {
            path.push(b'/');
            path.extend_from_slice(part);
        }
        if path.is_empty() { b"/".to_vec() } else { path }
    }
}
