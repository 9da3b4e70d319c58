//! Strict check of a whole bootstrap: everything that a reader relies on, digests included, in near-linear time and
//! with memory proportional to the bootstrap.

use std::collections::BTreeMap;
use std::ops::Deref;

use super::{Bootstrap, Inode, InodeFlags, Region};
use crate::bootstrap::SYMLINK_MAX;
use crate::check::extents::{Extents, Owner};
use crate::check::file::Fault;
use crate::check::tables::{Entry, check_apart, check_record};
use crate::{
    CheckError, ChunkRecord, Digest, Digester, Error, FileType, Nid, Summary, SuperFlags, xattr,
};

/// Digests bytes.
type Hash = fn(Digester, &[u8]) -> Digest;

fn undecodable(index: u32, error: Error) -> Fault {
    Fault::undecodable(&format!("the inode with index {index} is damaged"))(error)
}

/// An inode with several names, as its first name has it.
struct Links {
    claimed: u32,
    found: u32,
    size: u64,
    rdev: u32,
    digest: Digest,
    file_type: FileType,
}

/// State of the check.
struct Check<'a, D> {
    bootstrap: &'a Bootstrap<D>,
    hash: Hash,
    /// The directory of each name by index, 0 for names that no directory has claimed (yet). A directory has a lower
    /// index than what is in it.
    parents: Vec<u32>,
    /// Digests by index.
    digests: Vec<Digest>,
    /// Names that are directories, by index.
    directories: Vec<bool>,
    links: BTreeMap<u64, Links>,
    chunks: Vec<ChunkRecord>,
    extents: Extents,
    summary: Summary,
}

impl<D: Deref<Target = [u8]>> Bootstrap<D> {
    /// Checks everything that a reader relies on, and counts what there is. `hash` computes the digests of inodes.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self, hash: fn(Digester, &[u8]) -> Digest) -> Result<Summary, CheckError> {
        let names = self.names() as usize;
        let mut extents = Extents::empty();
        for Region { what, offset, size } in self.superblock.regions() {
            extents.add(offset, size, Owner::Table(what));
        }
        Check {
            bootstrap: self,
            hash,
            parents: vec![0; names + 1],
            digests: vec![[0; 32]; names + 1],
            directories: vec![false; names + 1],
            links: BTreeMap::new(),
            chunks: Vec::new(),
            extents,
            summary: Summary::default(),
        }
        .run()
    }
}

impl<D: Deref<Target = [u8]>> Check<'_, D> {
    fn run(mut self) -> Result<Summary, CheckError> {
        let bootstrap = self.bootstrap;
        let mut previous: (u32, &[u8]) = (0, b"");
        for index in 1..=bootstrap.names() {
            let inode = bootstrap
                .inode(index)
                .map_err(|error| self.fault(index, undecodable(index, error)))?;
            let parent = self.parent(index);
            if index > 1 && parent == 0 {
                return Err(self.fault(index, "is in no directory".to_owned().into()));
            }
            self.check_name(&inode, parent)
                .and_then(|()| self.check_inode(&inode))
                .and_then(|()| self.check_content(&inode))
                .map_err(|fault| self.fault(index, fault))?;
            if previous.0 == parent && inode.name <= previous.1 {
                let what = format!(
                    "the names {} and {} are out of order",
                    previous.1.escape_ascii(),
                    inode.name.escape_ascii()
                );
                return Err(self.fault(parent, what.into()));
            }
            previous = (parent, inode.name);
            self.extents.add(
                inode.offset,
                inode.end - inode.offset,
                Owner::Inode(Nid(index.into())),
            );
        }
        self.check_directories()?;
        self.check_links()?;
        self.check_chunks()?;
        self.check_tables()?;
        let summary = self.summary;
        match self.extents.overlap() {
            None => Ok(summary),
            Some(overlap) => Err(overlap.into()),
        }
    }

    fn parent(&self, index: u32) -> u32 {
        self.parents.get(index as usize).copied().unwrap_or(0)
    }

    /// Name, number and place in the tree.
    fn check_name(&mut self, inode: &Inode<'_>, parent: u32) -> Result<(), Fault> {
        self.summary.names += 1;
        if inode.index == 1 {
            if inode.name != b"/" || !inode.is_dir() || inode.parent != 0 {
                let (mode, name) = (inode.mode, inode.name.escape_ascii());
                return Err(format!(
                    "the root is {name} with mode {mode:#o} and parent {}, expected the directory / without one",
                    inode.parent
                )
                .into());
            }
        } else {
            let special = matches!(inode.name, b"." | b"..");
            if special || inode.name.iter().any(|&b| b == 0 || b == b'/') {
                return Err("the name is . or .. or holds a NUL or a slash"
                    .to_owned()
                    .into());
            }
            if inode.parent != u64::from(parent) {
                return Err(format!("parent is {}, expected {parent}", inode.parent).into());
            }
        }
        let own = u64::from(inode.index);
        if inode.ino == own {
            self.summary.inodes += 1;
            if inode.nlink > 1 && !inode.is_dir() {
                self.links.insert(own, Links::first(inode));
            }
            return if inode.nlink == 0 {
                Err("link count is 0".to_owned().into())
            } else {
                Ok(())
            };
        }
        match self.links.get_mut(&inode.ino) {
            Some(links) if inode.ino < own && links.agrees(inode) => {
                links.found = links.found.saturating_add(1);
                Ok(())
            }
            Some(_) => Err(format!(
                "is another name of inode {}, but differs from the first in type, data or link count",
                inode.ino
            )
            .into()),
            None => {
                let what = format!(
                    "inode number is {}, expected {own}, or that of an earlier file with several names",
                    inode.ino
                );
                Err(what.into())
            }
        }
    }

    /// What goes for every type of inode.
    fn check_inode(&self, inode: &Inode<'_>) -> Result<(), Fault> {
        if inode.mtime_nsec >= 1_000_000_000 {
            let nanoseconds = inode.mtime_nsec;
            return Err(format!("nanoseconds of the modification time are {nanoseconds}").into());
        }
        let symlink = inode.file_type == FileType::Symlink;
        if inode.flags.contains(InodeFlags::SYMLINK) != symlink {
            return Err("flags and mode disagree about a symbolic link"
                .to_owned()
                .into());
        }
        let xattrs = inode
            .xattrs()
            .map_err(Fault::undecodable("the extended attributes are damaged"))?;
        let flags = self.bootstrap.superblock.flags;
        if !xattrs.is_empty() && !flags.contains(SuperFlags::HAS_XATTR) {
            let what = "has extended attributes, but the superblock says that there are none";
            return Err(what.to_owned().into());
        }
        Ok(xattr::check_names(&xattrs)?)
    }

    fn check_content(&mut self, inode: &Inode<'_>) -> Result<(), Fault> {
        let at = inode.index as usize;
        if let Some(digest) = self.digests.get_mut(at) {
            *digest = inode.digest;
        }
        let first = inode.ino == u64::from(inode.index);
        match inode.file_type {
            FileType::Directory => {
                self.summary.directories += 1;
                if let Some(directory) = self.directories.get_mut(at) {
                    *directory = true;
                }
                self.claim(inode)
            }
            FileType::Symlink => {
                self.summary.symlinks += u64::from(first);
                check_target(inode)?;
                self.compare(inode, inode.target)
            }
            FileType::Regular => {
                self.summary.regular_files += u64::from(first);
                let digests = self.check_regular(inode, first)?;
                self.compare(inode, &digests)
            }
            _ => self.compare(inode, b""),
        }
    }

    /// Enters a directory as the parent of its children. Its digest is compared once all of theirs are known.
    fn claim(&mut self, inode: &Inode<'_>) -> Result<(), Fault> {
        let children = inode.children();
        if children.is_empty() {
            return Ok(());
        }
        let range = children.start as usize..children.end as usize;
        let (start, end, names) = (children.start, children.end, self.bootstrap.names());
        let slots = self
            .parents
            .get_mut(range)
            .filter(|slots| start > inode.index && slots.len() == inode.child_count as usize);
        let Some(slots) = slots else {
            return Err(format!(
                "its children are {} from index {start} on, expected indexes above its own and up to {names}",
                inode.child_count
            )
            .into());
        };
        if let Some(position) = slots.iter().position(|&slot| slot != 0) {
            let index = u64::from(start) + position as u64;
            return Err(format!("its children {start} to {end} are in part those of another directory, the one with index {index} among them").into());
        }
        slots.fill(inode.index);
        Ok(())
    }

    fn check_regular(&mut self, inode: &Inode<'_>, first: bool) -> Result<Vec<u8>, Fault> {
        let chunk_size = u64::from(self.bootstrap.superblock.chunk_size);
        let expected = inode.size.div_ceil(chunk_size);
        if u64::from(inode.child_count) != expected {
            let count = inode.child_count;
            return Err(format!("has {count} chunks, expected {expected} for its size").into());
        }
        let mut digests = Vec::with_capacity(inode.child_count as usize * 32);
        for (record, number) in inode.chunks().zip(0_u64..) {
            let record = record.map_err(Fault::undecodable("a chunk record is damaged"))?;
            let offset = number * chunk_size;
            let size = chunk_size.min(inode.size - offset);
            let problem = if record.file_offset != offset {
                format!("is at {:#x} of the file", record.file_offset)
            } else if u64::from(record.uncompressed_size) != size {
                format!(
                    "has {} bytes, the file has {size} there",
                    record.uncompressed_size
                )
            } else {
                let (blobs, size) = (&self.bootstrap.blobs, self.bootstrap.superblock.chunk_size);
                check_record(&record, blobs, size).err().unwrap_or_default()
            };
            if !problem.is_empty() {
                return Err(format!("chunk {number}: {problem}").into());
            }
            digests.extend_from_slice(&record.digest);
            if first {
                self.summary.chunk_references += 1;
                self.chunks.push(record);
            }
        }
        Ok(digests)
    }

    /// Compares an inode's digest with that of what it covers.
    fn compare(&self, inode: &Inode<'_>, content: &[u8]) -> Result<(), Fault> {
        if (self.hash)(self.bootstrap.digester, content) == inode.digest {
            return Ok(());
        }
        let what = if inode.is_dir() {
            "the digest is not that of its children's digests"
        } else {
            "the digest is not that of its data"
        };
        Err(what.to_owned().into())
    }

    /// Digests and link counts of directories, when all of their children are known; the lowest first.
    fn check_directories(&self) -> Result<(), CheckError> {
        for index in (1..=self.bootstrap.names()).rev() {
            if !self.directories.get(index as usize).is_some_and(|is| *is) {
                continue;
            }
            let inode = self
                .bootstrap
                .inode(index)
                .map_err(|error| self.fault(index, undecodable(index, error)))?;
            let children = inode.children();
            let range = children.start as usize..children.end as usize;
            // Empty directories may have any first child.
            let digests = self.digests.get(range.clone()).unwrap_or_default();
            let below = self.directories.get(range).unwrap_or_default();
            let directories = below.iter().filter(|is| **is).count() as u64;
            if u64::from(inode.nlink) != 2 + directories {
                let what = format!(
                    "link count is {}, expected 2 and {directories} for child directories",
                    inode.nlink
                );
                return Err(self.fault(index, what.into()));
            }
            self.compare(&inode, digests.as_flattened())
                .map_err(|fault| self.fault(index, fault))?;
        }
        Ok(())
    }

    fn check_links(&self) -> Result<(), CheckError> {
        match self
            .links
            .iter()
            .find(|(_, links)| links.claimed != links.found)
        {
            None => Ok(()),
            Some((&ino, links)) => {
                let what = format!(
                    "link count is {}, but the tree has {} names of it",
                    links.claimed, links.found
                );
                Err(self.fault(u32::try_from(ino).unwrap_or(0), what.into()))
            }
        }
    }

    /// Records of one chunk must agree, and no two chunks of a blob may share bytes of its address space.
    fn check_chunks(&mut self) -> Result<(), CheckError> {
        let contradiction = |what: String| CheckError {
            path: None,
            nid: None,
            offset: None,
            what,
            source: None,
        };
        for chunk in &mut self.chunks {
            chunk.file_offset = 0;
        }
        let key = |chunk: &ChunkRecord| (chunk.blob_index, chunk.index);
        self.chunks.sort_by_key(key);
        self.chunks.dedup();
        if let Some([a, _]) = self.chunks.array_windows().find(|[a, b]| key(a) == key(b)) {
            let (blob, index) = key(a);
            return Err(contradiction(format!(
                "two files describe chunk {index} of blob {blob} differently"
            )));
        }
        self.summary.chunks = self.chunks.len() as u64;
        let entries: Vec<Entry> = self.chunks.iter().map(Entry::from).collect();
        check_apart(&entries).map_err(contradiction)
    }

    /// What the superblock and the prefetch table say of the tree.
    fn check_tables(&self) -> Result<(), CheckError> {
        let superblock = self.bootstrap.superblock();
        if superblock.inodes_count != self.summary.inodes {
            let what = format!(
                "the superblock counts {} inodes, the tree has {}",
                superblock.inodes_count, self.summary.inodes
            );
            return Err(CheckError::table(24, what));
        }
        let names = self.bootstrap.names();
        let unknown = self
            .bootstrap
            .prefetch()
            .zip(0_u64..)
            .find(|(ino, _)| !(1..=names).contains(ino));
        match unknown {
            None => Ok(()),
            Some((ino, at)) => {
                let what =
                    format!("the prefetch table names inode {ino}, which is not in the tree");
                Err(CheckError::table(
                    superblock.prefetch_table_offset + 4 * at,
                    what,
                ))
            }
        }
    }

    /// An error about the name with an index.
    #[cold]
    fn fault(&self, index: u32, fault: Fault) -> CheckError {
        let Fault(what, source) = fault;
        CheckError {
            path: Some(self.path(index)),
            nid: None,
            offset: self.bootstrap.inode_offset(index).ok(),
            what,
            source: source.map(Box::new),
        }
    }

    fn path(&self, index: u32) -> Vec<u8> {
        let mut names = Vec::new();
        let mut at = index;
        // Parents have lower indexes, so this ends.
        while at > 1 {
            names.push(
                self.bootstrap
                    .inode(at)
                    .map_or(&b"?"[..], |inode| inode.name),
            );
            at = self.parent(at);
        }
        let mut path = Vec::new();
        for name in names.iter().rev() {
            path.push(b'/');
            path.extend_from_slice(name);
        }
        if path.is_empty() { b"/".to_vec() } else { path }
    }
}

impl Links {
    fn first(inode: &Inode<'_>) -> Self {
        Self {
            claimed: inode.nlink,
            found: 1,
            size: inode.size,
            rdev: inode.rdev,
            digest: inode.digest,
            file_type: inode.file_type,
        }
    }

    /// Whether an inode is what the first name is. Owner, mode and times may differ: builders took them from each
    /// entry of a tar.
    fn agrees(&self, inode: &Inode<'_>) -> bool {
        let device = matches!(self.file_type, FileType::Character | FileType::Block);
        (self.file_type, self.size, self.digest, self.claimed)
            == (inode.file_type, inode.size, inode.digest, inode.nlink)
            && (!device || self.rdev == inode.rdev)
    }
}

/// Checks the target of a symbolic link.
fn check_target(inode: &Inode<'_>) -> Result<(), Fault> {
    let len = inode.target.len() as u64;
    if len > SYMLINK_MAX || inode.size != len {
        return Err(format!(
            "the link target has {len} bytes, the size is {}, expected the same number, up to {SYMLINK_MAX}",
            inode.size
        )
        .into());
    }
    if inode.target.contains(&0) {
        let target = inode.target.escape_ascii();
        return Err(format!("the link target {target} has a NUL").into());
    }
    Ok(())
}
