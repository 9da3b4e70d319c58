//! Inodes of v5, with all that follows them.
//!
//! | Offset | Size | Field |
//! |---|---|---|
//! | 0 | 32 | `digest` |
//! | 32 | 8 | `parent` |
//! | 40 | 8 | `ino` |
//! | 48 | 4 | `uid` |
//! | 52 | 4 | `gid` |
//! | 56 | 4 | project id, 0 |
//! | 60 | 4 | `mode` |
//! | 64 | 8 | `size` |
//! | 72 | 8 | blocks of 512 bytes |
//! | 80 | 8 | `flags` |
//! | 88 | 4 | `nlink` |
//! | 92 | 4 | `child_index` |
//! | 96 | 4 | children of a directory, chunks of a regular file |
//! | 100 | 2 | length of the name |
//! | 102 | 2 | length of the target |
//! | 104 | 4 | `rdev` |
//! | 108 | 4 | `mtime_nsec` |
//! | 112 | 8 | `mtime` |
//! | 120 | 8 | reserved; the first byte marks an implied directory |
//!
//! Then follow, each padded with zeros to a multiple of 8: the name, the target of a symbolic link, the extended
//! attributes (a 64-bit size, then for each a 32-bit length, the name, a NUL and the value), and 80 bytes for each
//! chunk of a regular file.

use std::ops::{Deref, Range};

use bitflags::bitflags;

use super::{ALIGNMENT, Bootstrap, SUPERBLOCK_SIZE};
use crate::bootstrap::ChunkTable;
use crate::raw::{self, ChunkRecordRaw, InodeV5Raw, up};
use crate::{Digest, Error, FileType, NAME_MAX, Xattr, xattr};

bitflags! {
    /// Flags of an inode.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct InodeFlags: u64 {
        /// A symbolic link.
        const SYMLINK = 0x1;
        /// A file with several names. Directory builds of the deployed builder leave it out.
        const HARDLINK = 0x2;
        /// Extended attributes follow.
        const XATTR = 0x4;
        /// Declared by the format, never written.
        const HAS_HOLE = 0x8;
    }
}

/// An inode record, decoded; one for each name.
#[derive(Debug, Clone)]
pub struct Inode<'a> {
    /// Index of the name.
    pub index: u32,
    /// Where the record begins in the bootstrap.
    pub offset: u64,
    /// Digest of the chunk digests, the target, or the children's digests.
    pub digest: Digest,
    /// Inode number of the parent directory, 0 for the root.
    pub parent: u64,
    /// Inode number: the index of the file's first name.
    pub ino: u64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Type and permission bits, as in `st_mode`.
    pub mode: u32,
    /// Type of the file.
    pub file_type: FileType,
    /// Bytes of data; for a directory an estimate.
    pub size: u64,
    /// Blocks of 512 bytes that data and attributes take; informational.
    pub blocks: u64,
    /// See [`InodeFlags`].
    pub flags: InodeFlags,
    /// Names of the inode; for a directory 2 and its child directories.
    pub nlink: u32,
    /// Index of a directory's first child.
    pub child_index: u32,
    /// Children of a directory, chunks of a regular file.
    pub child_count: u32,
    /// Device number of a device; what it is for others means nothing.
    pub rdev: u32,
    /// Modification time in seconds.
    pub mtime: i64,
    /// Nanoseconds of the modification time.
    pub mtime_nsec: u32,
    /// A directory that exists only because an entry below it does.
    pub implied: bool,
    /// The name; `/` for the root.
    pub name: &'a [u8],
    /// The target of a symbolic link, else empty.
    pub target: &'a [u8],
    /// Where everything of the inode ends.
    pub(crate) end: u64,
    xattrs: &'a [u8],
    xattrs_offset: u64,
    chunks: &'a [u8],
    chunks_offset: u64,
}

/// Reads one piece after the other, each padded to a multiple of 8.
struct Pieces<'a> {
    data: &'a [u8],
    offset: u64,
}

impl<'a> Pieces<'a> {
    fn take(&mut self, what: &'static str, size: u64) -> Result<&'a [u8], Error> {
        let bytes = raw::slice(self.data, self.offset, size);
        let end = self
            .offset
            .checked_add(size)
            .and_then(|end| up(end, ALIGNMENT));
        let len = self.data.len() as u64;
        let beyond = || Error::bounds(what, self.offset, size, len);
        let (bytes, end) = bytes.zip(end).ok_or_else(beyond)?;
        if end > len {
            return Err(beyond());
        }
        self.offset = end;
        Ok(bytes)
    }
}

impl<D: Deref<Target = [u8]>> Bootstrap<D> {
    /// Where the inode with an index begins.
    ///
    /// # Errors
    /// [`Error`] if there is no such index, or if that is no place for an inode.
    pub fn inode_offset(&self, index: u32) -> Result<u64, Error> {
        let table = self.superblock.inode_table_offset;
        let names = self.names();
        let entry = index
            .checked_sub(1)
            .filter(|&at| at < names)
            .map(|at| table + u64::from(at) * 4)
            .and_then(|at| Some((at, raw::slice(&self.data, at, 4)?.first_chunk()?)));
        let Some((at, entry)) = entry else {
            let expected = format!("1 to {names}");
            return Err(Error::field("index of an inode", table, index, expected));
        };
        let offset = u64::from(u32::from_le_bytes(*entry)) * ALIGNMENT;
        if offset < SUPERBLOCK_SIZE {
            return Err(Error::field(
                "entry of the inode table",
                at,
                format!("{offset:#x}"),
                "an offset behind the superblock",
            ));
        }
        Ok(offset)
    }

    /// Decodes the inode with an index: 1 is the root.
    ///
    /// # Errors
    /// [`Error`] if it does not lie within the bootstrap or has a field that no inode can have.
    pub fn inode(&self, index: u32) -> Result<Inode<'_>, Error> {
        let offset = self.inode_offset(index)?;
        let data: &[u8] = &self.data;
        let mut pieces = Pieces { data, offset };
        let head = pieces.take("an inode", InodeV5Raw::SIZE as u64)?;
        let beyond = || Error::bounds("an inode", offset, 128, data.len() as u64);
        let raw: &InodeV5Raw = raw::read(head).ok_or_else(beyond)?;
        let wrong = |what, at, actual: String, expected: &str| {
            Error::field(what, offset + at, actual, expected)
        };
        let mode = raw.mode.get();
        let file_type = FileType::from_mode(mode).filter(|_| mode <= 0o177_777);
        let file_type = file_type.ok_or_else(|| {
            let actual = format!("{mode:#o}");
            wrong("mode of an inode", 60, actual, "a type of file")
        })?;
        let bits = raw.flags.get();
        let flags = InodeFlags::from_bits(bits).ok_or_else(|| {
            let actual = format!("{bits:#x}");
            wrong("flags of an inode", 80, actual, "no unknown bit")
        })?;
        let (name_size, target_size) = (raw.name_size.get(), raw.symlink_size.get());
        if name_size == 0 || usize::from(name_size) > NAME_MAX {
            let actual = name_size.to_string();
            return Err(wrong("length of a name", 100, actual, "1 to 255"));
        }
        if (target_size != 0) != (file_type == FileType::Symlink) {
            let actual = target_size.to_string();
            let expected = "more than 0 for a symbolic link, 0 for all else";
            return Err(wrong("length of a link target", 102, actual, expected));
        }
        let name = pieces.take("a name", name_size.into())?;
        let target = pieces.take("the target of a symbolic link", target_size.into())?;
        let mut size = 0;
        if flags.contains(InodeFlags::XATTR) {
            let bytes = pieces.take("extended attributes", 8)?;
            size = bytes.first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
        }
        let xattrs_offset = pieces.offset;
        let xattrs = pieces.take("extended attributes", size)?;
        let chunks_offset = pieces.offset;
        let count = if file_type == FileType::Regular {
            raw.child_count.get()
        } else {
            0
        };
        let chunks = pieces.take(
            "the chunk records of an inode",
            u64::from(count) * ChunkRecordRaw::SIZE as u64,
        )?;
        Ok(Inode {
            index,
            offset,
            digest: raw.digest,
            parent: raw.parent.get(),
            ino: raw.ino.get(),
            uid: raw.uid.get(),
            gid: raw.gid.get(),
            mode,
            file_type,
            size: raw.size.get(),
            blocks: raw.blocks.get(),
            flags,
            nlink: raw.nlink.get(),
            child_index: raw.child_index.get(),
            child_count: raw.child_count.get(),
            rdev: raw.rdev.get(),
            mtime: raw.mtime.get().cast_signed(),
            mtime_nsec: raw.mtime_nsec.get(),
            implied: raw.implied == 1 && file_type == FileType::Directory,
            name,
            target,
            end: pieces.offset,
            xattrs,
            xattrs_offset,
            chunks,
            chunks_offset,
        })
    }
}

impl<'a> Inode<'a> {
    /// Whether it is a directory.
    pub const fn is_dir(&self) -> bool {
        matches!(self.file_type, FileType::Directory)
    }

    /// Whether it is a regular file.
    pub const fn is_regular(&self) -> bool {
        matches!(self.file_type, FileType::Regular)
    }

    /// Indexes of a directory's children, in name order; none for all else. They may be beyond the table.
    pub fn children(&self) -> Range<u32> {
        if self.is_dir() {
            self.child_index..self.child_index.saturating_add(self.child_count)
        } else {
            0..0
        }
    }

    /// The chunks of a regular file, in file order.
    pub fn chunks(&self) -> ChunkTable<'a> {
        ChunkTable::over(self.chunks, self.chunks_offset)
    }

    /// The extended attributes, in stored order.
    ///
    /// # Errors
    /// [`Error`] if they are damaged or in a namespace that RAFS does not know.
    pub fn xattrs(&self) -> Result<Vec<Xattr<'a>>, Error> {
        let mut xattrs = Vec::new();
        let mut rest = self.xattrs;
        while !rest.is_empty() {
            let offset = self.xattrs_offset + (self.xattrs.len() - rest.len()) as u64;
            let (xattr, after) = pair(rest, offset)?;
            xattrs.push(xattr);
            rest = after;
        }
        Ok(xattrs)
    }
}

/// The first attribute of `bytes`, and what follows it.
fn pair(bytes: &[u8], offset: u64) -> Result<(Xattr<'_>, &[u8]), Error> {
    let end = offset + bytes.len() as u64;
    let beyond = |size: u64| Error::bounds("an extended attribute", offset, size, end);
    let (head, rest) = bytes.split_first_chunk().ok_or_else(|| beyond(4))?;
    let size = u32::from_le_bytes(*head);
    let (text, after) = usize::try_from(size)
        .ok()
        .and_then(|size| rest.split_at_checked(size))
        .ok_or_else(|| beyond(4 + u64::from(size)))?;
    let name_len = text.iter().position(|&b| b == 0);
    let (name, value) = name_len
        .and_then(|len| Some((text.get(..len)?, text.get(len + 1..)?)))
        .ok_or_else(|| {
            let expected = "a name, a NUL and a value";
            Error::field("an extended attribute", offset + 4, "no NUL", expected)
        })?;
    if xattr::split(name).is_none() {
        return Err(Error::field(
            "name of an extended attribute",
            offset + 4,
            name.escape_ascii(),
            "one of the namespaces user, trusted and security, or a POSIX ACL",
        ));
    }
    let name = name.to_vec();
    Ok((Xattr { name, value }, after))
}
