//! Reading tar archives: ustar, PAX, GNU, sparse files of all dialects.
//!
//! Field layout comes from the `tar` crate; numbers, names, extended headers and sparse maps are read here, since
//! layers need more than it gives: sub-second and negative times, binary attributes, PAX sparse files, blank device
//! numbers, and the exact rules of the readers that container engines use for sizes and names.
//!
//! Two zero blocks end an archive, as in container engines and GNU tar; what follows is read and ignored. A reader
//! of [concatenated](Reader::concatenated) archives skips zero blocks instead, and ignores only what is no header.

use tree::Xattrs;

mod header;
mod map;
mod pax;
mod reader;
mod sparse;

pub(crate) use header::device_number;
pub(crate) use reader::NAME_MAX;
pub use reader::{Data, Reader};

/// One entry of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Path as the archive has it, not cleaned.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits with set-id and sticky bits, no type.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length of a regular file in bytes, holes included; 0 for all else.
    pub size: u64,
    /// Seconds of the modification time, rounded down.
    pub mtime: i64,
    /// Nanoseconds of the modification time, below 10^9.
    pub mtime_nsec: u32,
    /// Device number of a character or block device in Linux's 32-bit encoding, 0 for all else.
    pub rdev: u32,
    /// Extended attributes by full name, of any namespace.
    pub xattrs: Xattrs,
    /// Where the entry's data begins in the tar stream, in bytes.
    pub offset: u64,
}

/// Type of an entry, with link targets as the archive has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// Regular file.
    Regular,
    /// Another name of an earlier entry.
    HardLink(Vec<u8>),
    /// Symbolic link.
    Symlink(Vec<u8>),
    /// Character device.
    Character,
    /// Block device.
    Block,
    /// Directory.
    Directory,
    /// FIFO.
    Fifo,
}
