//! Inodes of a v6 bootstrap.
//!
//! An inode lies at `metadata area + nid * 32`. Its first 16 bits give its length (bit 0: 32 or 64 bytes) and the
//! layout of its data (bits 1 to 3: 0 flat plain, 2 flat inline, 4 chunk based); the rest must be zero. Behind it
//! follow the xattr area and then, by layout, the tail of the data or the chunk indexes.

use crate::raw::{self, ChunkIndexRaw, InodeCompactRaw, InodeExtendedRaw};
use crate::{Bootstrap, Error, Nid};
use std::ops::Deref;

/// Type bits of a mode.
pub(crate) const TYPE_MASK: u32 = 0o170_000;

/// What kind of file an inode is, with the numbers that directory entries use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum FileType {
    /// A directory entry that does not say.
    Unknown = 0,
    /// Regular file.
    Regular = 1,
    /// Directory.
    Directory = 2,
    /// Character device.
    Character = 3,
    /// Block device.
    Block = 4,
    /// FIFO.
    Fifo = 5,
    /// Socket.
    Socket = 6,
    /// Symbolic link.
    Symlink = 7,
}

impl FileType {
    /// The type behind an on-disk number.
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::Unknown,
            1 => Self::Regular,
            2 => Self::Directory,
            3 => Self::Character,
            4 => Self::Block,
            5 => Self::Fifo,
            6 => Self::Socket,
            7 => Self::Symlink,
            _ => return None,
        })
    }

    /// The type in the type bits of a mode.
    pub const fn from_mode(mode: u32) -> Option<Self> {
        Some(match mode & TYPE_MASK {
            0o100_000 => Self::Regular,
            0o040_000 => Self::Directory,
            0o020_000 => Self::Character,
            0o060_000 => Self::Block,
            0o010_000 => Self::Fifo,
            0o140_000 => Self::Socket,
            0o120_000 => Self::Symlink,
            _ => return None,
        })
    }
}

/// How the data of an inode is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Layout {
    /// All data in blocks of its own.
    FlatPlain = 0,
    /// Full blocks apart, the rest behind the inode.
    FlatInline = 2,
    /// Chunk indexes behind the inode.
    ChunkBased = 4,
}

/// A decoded inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inode {
    /// Its number; also what users see as inode number.
    pub nid: Nid,
    /// Type and permission bits, as in `st_mode`.
    pub mode: u32,
    /// Names of the inode; for a directory 2 and its child directories.
    pub nlink: u32,
    /// Bytes of data; for a directory those of its entries, for a symbolic link those of its target.
    pub size: u64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time in seconds.
    pub mtime: i64,
    /// Nanoseconds of the modification time.
    pub mtime_nsec: u32,
    /// Device number of a device in Linux's 32-bit encoding, as stored for a FIFO or socket, else 0.
    pub rdev: u32,
    /// Sequential number, informational.
    pub ino: u32,
    /// A directory that exists only because an entry below it does.
    pub implied: bool,
    /// Layout of the data.
    pub layout: Layout,
    /// Type of the file.
    pub file_type: FileType,
    /// The type-dependent word: block address of the data, device number or chunk format.
    pub(crate) u: u32,
    /// Where the inode begins in the bootstrap.
    pub(crate) offset: u64,
    /// Bytes of the inode without xattrs: 32 or 64.
    pub(crate) inode_size: u32,
    /// Bytes of the xattr area: 0 or at least 12.
    pub(crate) xattr_size: u32,
}

impl Inode {
    /// Whether it is a directory.
    pub const fn is_dir(&self) -> bool {
        matches!(self.file_type, FileType::Directory)
    }

    /// Whether it is a regular file.
    pub const fn is_regular(&self) -> bool {
        matches!(self.file_type, FileType::Regular)
    }

    /// Whether it is a symbolic link.
    pub const fn is_symlink(&self) -> bool {
        matches!(self.file_type, FileType::Symlink)
    }

    /// Whether it is a character or block device.
    pub const fn is_device(&self) -> bool {
        matches!(self.file_type, FileType::Character | FileType::Block)
    }

    /// Whether it has an xattr area.
    pub const fn has_xattrs(&self) -> bool {
        self.xattr_size != 0
    }

    /// Where the inode begins in the bootstrap, in bytes.
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes of the inode and its xattr area.
    pub const fn head_size(&self) -> u64 {
        self.inode_size as u64 + self.xattr_size as u64
    }

    /// The chunk format word of a regular file: bits 0 to 4 are the log2 of the blocks per chunk, bit 5 is set.
    pub const fn chunk_format(&self) -> Option<u32> {
        if self.is_regular() {
            Some(self.u)
        } else {
            None
        }
    }

    /// Where the chunk indexes of a regular file begin in the bootstrap.
    pub(crate) const fn chunk_indexes_offset(&self) -> u64 {
        self.offset + ((self.head_size() + 7) & !7)
    }

    fn from_compact(raw: &InodeCompactRaw) -> Self {
        Self {
            nid: Nid(0),
            mode: u32::from(raw.mode.get()),
            nlink: u32::from(raw.nlink.get()),
            size: u64::from(raw.size.get()),
            uid: u32::from(raw.uid.get()),
            gid: u32::from(raw.gid.get()),
            mtime: 0,
            mtime_nsec: 0,
            rdev: 0,
            ino: raw.ino.get(),
            implied: false,
            layout: Layout::FlatPlain,
            file_type: FileType::Unknown,
            u: raw.u.get(),
            offset: 0,
            inode_size: InodeCompactRaw::SIZE as u32,
            xattr_size: xattr_size(raw.xattr_icount.get()),
        }
    }

    fn from_extended(raw: &InodeExtendedRaw) -> Self {
        Self {
            nid: Nid(0),
            mode: u32::from(raw.mode.get()),
            nlink: raw.nlink.get(),
            size: raw.size.get(),
            uid: raw.uid.get(),
            gid: raw.gid.get(),
            mtime: raw.mtime.get().cast_signed(),
            mtime_nsec: raw.mtime_nsec.get(),
            rdev: 0,
            ino: raw.ino.get(),
            implied: raw.implied == 1,
            layout: Layout::FlatPlain,
            file_type: FileType::Unknown,
            u: raw.u.get(),
            offset: 0,
            inode_size: InodeExtendedRaw::SIZE as u32,
            xattr_size: xattr_size(raw.xattr_icount.get()),
        }
    }
}

/// Bytes of an xattr area with a given count in the inode.
pub(crate) const fn xattr_size(icount: u16) -> u32 {
    if icount == 0 {
        0
    } else {
        12 + (icount as u32 - 1) * 4
    }
}

impl<D: Deref<Target = [u8]>> Bootstrap<D> {
    /// Decodes the inode `nid`.
    ///
    /// # Errors
    /// [`Error`] if there is no legal inode, or if its data would lie beyond the end of the bootstrap.
    pub fn inode(&self, nid: Nid) -> Result<Inode, Error> {
        let data = self.data();
        let missing = |offset, size| Error::bounds("an inode", offset, size, data.len() as u64);
        let offset = self
            .superblock()
            .inode_offset(nid)
            .ok_or_else(|| missing(u64::MAX, 32))?;
        let tail = usize::try_from(offset)
            .ok()
            .and_then(|o| data.get(o..))
            .ok_or_else(|| missing(offset, 32))?;
        let compact: &InodeCompactRaw = raw::read(tail).ok_or_else(|| missing(offset, 32))?;
        let format = compact.format.get();
        let mut inode = if format & 1 == 0 {
            Inode::from_compact(compact)
        } else {
            Inode::from_extended(raw::read(tail).ok_or_else(|| missing(offset, 64))?)
        };
        inode.nid = nid;
        inode.offset = offset;
        inode.file_type = FileType::from_mode(inode.mode).ok_or_else(|| {
            Error::field(
                "mode of an inode",
                offset + 4,
                format!("{:#o}", inode.mode),
                "a file type",
            )
        })?;
        inode.layout = layout(format, inode.file_type, offset)?;
        if inode.nlink == 0 {
            return Err(Error::field(
                "link count of an inode",
                offset,
                0,
                "more than 0",
            ));
        }
        if matches!(
            inode.file_type,
            FileType::Character | FileType::Block | FileType::Fifo | FileType::Socket
        ) {
            inode.rdev = if inode.inode_size == 64 { inode.u } else { 0 };
        }
        self.check_extent(&inode, data.len() as u64)?;
        Ok(inode)
    }

    /// Inode, xattrs and data must lie within the bootstrap; so what is read of them later is there.
    fn check_extent(&self, inode: &Inode, len: u64) -> Result<(), Error> {
        let block = self.superblock().block_size();
        let beyond = |what, offset, size| Err(Error::bounds(what, offset, size, len));
        let head_end = inode.offset + inode.head_size();
        if head_end > len {
            return beyond(
                "an inode with its attributes",
                inode.offset,
                inode.head_size(),
            );
        }
        match inode.layout {
            Layout::ChunkBased => {
                let start = inode.chunk_indexes_offset();
                let size = self
                    .chunk_count(inode)
                    .saturating_mul(ChunkIndexRaw::SIZE as u64);
                match start.checked_add(size) {
                    Some(end) if end <= len => Ok(()),
                    _ => beyond("the chunk indexes of an inode", start, size),
                }
            }
            Layout::FlatInline | Layout::FlatPlain if !inode.is_dir() && !inode.is_symlink() => {
                Ok(())
            }
            Layout::FlatInline => {
                let tail = inode.size % block;
                if tail == 0 && inode.size != 0 {
                    return Err(Error::field(
                        "layout of an inode",
                        inode.offset,
                        "flat inline",
                        "flat plain, for no data is left for a tail",
                    ));
                }
                if head_end + tail > len {
                    return beyond("the data tail of an inode", head_end, tail);
                }
                self.check_blocks(inode, inode.size - tail, len)
            }
            Layout::FlatPlain => self.check_blocks(inode, inode.size, len),
        }
    }

    fn check_blocks(&self, inode: &Inode, size: u64, len: u64) -> Result<(), Error> {
        let start = self.data_offset(inode);
        match start.checked_add(size) {
            Some(end) if end <= len || size == 0 => Ok(()),
            _ => Err(Error::bounds("the data of an inode", start, size, len)),
        }
    }

    /// Where the first data block of a directory or symbolic link lies.
    pub(crate) fn data_offset(&self, inode: &Inode) -> u64 {
        u64::from(inode.u) << self.superblock().block_bits
    }

    /// Where the tail of flat inline data lies.
    pub(crate) fn tail_offset(&self, inode: &Inode) -> u64 {
        inode.offset + inode.head_size()
    }

    /// Number of chunks of a regular file.
    pub(crate) fn chunk_count(&self, inode: &Inode) -> u64 {
        inode.size.div_ceil(u64::from(self.superblock().chunk_size))
    }
}

/// The layout in a format word, if it is legal for the file type.
fn layout(format: u16, file_type: FileType, offset: u64) -> Result<Layout, Error> {
    let illegal = |expected: &'static str| {
        Error::field(
            "format of an inode",
            offset,
            format!("{format:#x}"),
            expected,
        )
    };
    match (format >> 1, file_type) {
        (8.., _) => Err(illegal("zeros in bits 4 to 15")),
        (4, FileType::Regular) => Ok(Layout::ChunkBased),
        (_, FileType::Regular) => Err(illegal("chunk based data, for it is a regular file")),
        (0, _) => Ok(Layout::FlatPlain),
        (2, FileType::Directory | FileType::Symlink) => Ok(Layout::FlatInline),
        (_, FileType::Directory | FileType::Symlink) => {
            Err(illegal("flat data, for it is a directory or symbolic link"))
        }
        _ => Err(illegal(
            "flat plain data, for it is a device, FIFO or socket",
        )),
    }
}
