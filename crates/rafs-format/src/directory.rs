//! Directory entries.
//!
//! The data of a directory is an array of blocks. A block holds 12-byte entries in bytewise name order, then the
//! names back to back, then zeros; the first entry's name offset tells how many entries there are.

use std::cmp::Ordering;
use std::ops::Deref;

use crate::raw::{self, DirentRaw};
use crate::{Bootstrap, Error, FileType, Inode, Layout, NAME_MAX, Nid};

/// One name in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// The name, at most 255 bytes, without `/` or NUL. `.` and `..` occur.
    pub name: &'a [u8],
    /// The inode it leads to.
    pub nid: Nid,
    /// Type of that inode as the entry claims it.
    pub file_type: FileType,
}

/// One block of a directory, with its entry count validated.
#[derive(Clone, Copy)]
pub(crate) struct DirBlock<'a> {
    bytes: &'a [u8],
    /// Where the block begins in the bootstrap, for messages.
    offset: u64,
    count: usize,
}

impl<'a> DirBlock<'a> {
    fn parse(bytes: &'a [u8], offset: u64) -> Result<Self, Error> {
        let first =
            raw::read::<DirentRaw>(bytes).map_or(0, |entry| usize::from(entry.name_offset.get()));
        let legal = first >= DirentRaw::SIZE
            && first < bytes.len()
            && first.is_multiple_of(DirentRaw::SIZE);
        if !legal {
            return Err(Error::field(
                "first name offset of a directory block",
                offset + 8,
                first,
                format!("a multiple of 12 from 12 to below {}", bytes.len()),
            ));
        }
        Ok(Self {
            bytes,
            offset,
            count: first / DirentRaw::SIZE,
        })
    }

    fn get(&self, index: usize) -> Result<DirEntry<'a>, Error> {
        let at = index * DirentRaw::SIZE;
        let offset = self.offset + at as u64;
        let entry: &DirentRaw = self.bytes.get(at..).and_then(raw::read).ok_or_else(|| {
            Error::bounds(
                "a directory entry",
                offset,
                12,
                self.offset + self.bytes.len() as u64,
            )
        })?;
        let start = usize::from(entry.name_offset.get());
        let name = self.name(index, at, start).ok_or_else(|| {
            Error::field(
                "name offset of a directory entry",
                offset + 8,
                start,
                "an offset that increases from entry to entry within the block",
            )
        })?;
        if name.len() > NAME_MAX || name.iter().any(|&b| b == b'/' || b == 0) {
            return Err(Error::field(
                "name of a directory entry",
                offset,
                name.escape_ascii(),
                "1 to 255 bytes without '/' and NUL",
            ));
        }
        let file_type = FileType::from_number(entry.file_type).ok_or_else(|| {
            Error::field(
                "file type of a directory entry",
                offset + 10,
                entry.file_type,
                "0 to 7",
            )
        })?;
        Ok(DirEntry {
            name,
            nid: Nid(entry.nid.get()),
            file_type,
        })
    }

    /// A name ends where the next one begins; the last one at the first NUL or the end of the block.
    fn name(&self, index: usize, at: usize, start: usize) -> Option<&'a [u8]> {
        if start < self.count * DirentRaw::SIZE {
            return None;
        }
        let name = if index + 1 < self.count {
            let next: &DirentRaw = self.bytes.get(at + DirentRaw::SIZE..).and_then(raw::read)?;
            self.bytes.get(start..usize::from(next.name_offset.get()))?
        } else {
            let rest = self.bytes.get(start..)?;
            let end = rest.iter().position(|&b| b == 0).unwrap_or(rest.len());
            rest.get(..end)?
        };
        (!name.is_empty()).then_some(name)
    }

    /// Finds a name by binary search.
    fn find(&self, name: &[u8]) -> Result<Option<DirEntry<'a>>, Error> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            let entry = self.get(middle)?;
            match entry.name.cmp(name) {
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
                Ordering::Equal => return Ok(Some(entry)),
            }
        }
        Ok(None)
    }
}

/// The entries of a directory in order, see [`Bootstrap::entries`].
pub struct Entries<'a, D> {
    bootstrap: &'a Bootstrap<D>,
    dir: Inode,
    /// Number of the next block to load.
    next_block: u64,
    block: Option<DirBlock<'a>>,
    /// Next entry in `block`.
    index: usize,
}

impl<'a, D: Deref<Target = [u8]>> Entries<'a, D> {
    fn step(&mut self) -> Result<Option<DirEntry<'a>>, Error> {
        loop {
            if let Some(block) = self.block
                && self.index < block.count
            {
                let entry = block.get(self.index)?;
                self.index += 1;
                return Ok(Some(entry));
            }
            if self.next_block >= self.bootstrap.dir_blocks(&self.dir) {
                return Ok(None);
            }
            self.block = Some(self.bootstrap.dir_block(&self.dir, self.next_block)?);
            self.next_block += 1;
            self.index = 0;
        }
    }

    fn stop(&mut self) {
        self.block = None;
        self.next_block = u64::MAX;
    }
}

impl<'a, D: Deref<Target = [u8]>> Iterator for Entries<'a, D> {
    type Item = Result<DirEntry<'a>, Error>;

    /// After an error there is nothing more.
    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step();
        if step.is_err() {
            self.stop();
        }
        step.transpose()
    }
}

impl<D: Deref<Target = [u8]>> Bootstrap<D> {
    /// The entries of a directory in bytewise order of names, `.` and `..` among them.
    ///
    /// # Errors
    /// [`Error`] if the inode is not a directory; the iterator reports damaged entries, and ends with the first.
    pub fn entries(&self, dir: &Inode) -> Result<Entries<'_, D>, Error> {
        require_dir(dir)?;
        Ok(Entries {
            bootstrap: self,
            dir: *dir,
            next_block: 0,
            block: None,
            index: 0,
        })
    }

    /// Like [`Bootstrap::entries`] but from the `index`-th entry on; only one field of each block before it is read.
    ///
    /// # Errors
    /// As [`Bootstrap::entries`], or if one of the blocks before is damaged.
    pub fn entries_from(&self, dir: &Inode, index: u64) -> Result<Entries<'_, D>, Error> {
        let mut entries = self.entries(dir)?;
        let mut left = index;
        while entries.next_block < self.dir_blocks(dir) {
            let block = self.dir_block(dir, entries.next_block)?;
            entries.next_block += 1;
            let count = block.count as u64;
            if left < count {
                entries.block = Some(block);
                entries.index = left as usize;
                return Ok(entries);
            }
            left -= count;
        }
        Ok(entries)
    }

    /// Looks a name up, by binary search over the blocks and then within one.
    ///
    /// # Errors
    /// [`Error`] if the inode is not a directory or the search meets a damaged block.
    pub fn lookup(&self, dir: &Inode, name: &[u8]) -> Result<Option<DirEntry<'_>>, Error> {
        require_dir(dir)?;
        // Blocks below `low` begin with a name that is not greater than the one searched for.
        let (mut low, mut high) = (0, self.dir_blocks(dir));
        while low < high {
            let middle = low + (high - low) / 2;
            if self.dir_block(dir, middle)?.get(0)?.name <= name {
                low = middle + 1
            } else {
                high = middle
            }
        }
        match low.checked_sub(1) {
            Some(block) => self.dir_block(dir, block)?.find(name),
            None => Ok(None),
        }
    }

    pub(crate) fn dir_blocks(&self, dir: &Inode) -> u64 {
        dir.size.div_ceil(self.superblock().block_size())
    }

    /// Block number `index`, which must be below [`Bootstrap::dir_blocks`].
    fn dir_block(&self, dir: &Inode, index: u64) -> Result<DirBlock<'_>, Error> {
        let block = self.superblock().block_size();
        let start = index * block;
        let size = block.min(dir.size.saturating_sub(start));
        let in_tail = dir.layout == Layout::FlatInline && size < block;
        let offset = if in_tail {
            self.tail_offset(dir)
        } else {
            self.data_offset(dir) + start
        };
        let bytes = raw::slice(self.data(), offset, size).ok_or_else(|| {
            Error::bounds("a directory block", offset, size, self.data().len() as u64)
        })?;
        DirBlock::parse(bytes, offset)
    }
}

fn require_dir(inode: &Inode) -> Result<(), Error> {
    if inode.is_dir() {
        return Ok(());
    }
    Err(Error::field(
        "mode of an inode",
        inode.offset,
        format!("{:#o}", inode.mode),
        "a directory",
    ))
}
