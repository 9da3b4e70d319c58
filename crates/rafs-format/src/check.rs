//! Strict check of a whole bootstrap: everything that a kernel or a daemon relies on, in near-linear time and with
//! memory proportional to the bootstrap.
//!
//! What no reader looks at is not checked either: reserved bytes, sequential inode numbers, the order of the chunk
//! table, the alignment of device addresses.

pub(crate) mod extents;
pub(crate) mod file;
pub(crate) mod tables;
mod walk;

use std::fmt;
use std::ops::Deref;

use crate::{Bootstrap, Error, Nid};

/// What a bootstrap holds, counted by [`Bootstrap::check`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// Inodes, each counted once.
    pub inodes: u64,
    /// Names in the tree, the root included.
    pub names: u64,
    /// Directories, the root included.
    pub directories: u64,
    /// Regular files, each counted once.
    pub regular_files: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Entries of the chunk table.
    pub chunks: u64,
    /// Chunks of all regular files, shared ones as often as they are used.
    pub chunk_references: u64,
}

/// What is wrong with a bootstrap, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckError {
    /// Path of the file it concerns, from the root; `None` if it concerns a table.
    pub path: Option<Vec<u8>>,
    /// The inode it concerns.
    pub nid: Option<Nid>,
    /// Where in the bootstrap, in bytes, if that is known.
    pub offset: Option<u64>,
    /// What is wrong, with the value found and the one expected.
    pub what: String,
    /// Why, if something could not be decoded.
    pub source: Option<Box<Error>>,
}

impl CheckError {
    /// A fault of something that is no file.
    #[cold]
    pub(crate) fn table(offset: u64, what: impl Into<String>) -> Self {
        Self {
            path: None,
            nid: None,
            offset: Some(offset),
            what: what.into(),
            source: None,
        }
    }

    /// A record that could not be decoded.
    #[cold]
    pub(crate) fn undecodable(what: &str, source: Error) -> Self {
        Self {
            path: None,
            nid: None,
            offset: None,
            what: what.to_owned(),
            source: Some(Box::new(source)),
        }
    }
}

impl fmt::Display for CheckError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(path) = &self.path {
            write!(f, "{}", path.escape_ascii())?;
        }
        match (self.nid, self.offset) {
            (Some(nid), Some(offset)) => write!(f, " (nid {nid}, byte {offset:#x}): ")?,
            (Some(nid), None) => write!(f, " (nid {nid}): ")?,
            (None, Some(offset)) if self.path.is_some() => write!(f, " (byte {offset:#x}): ")?,
            (None, Some(offset)) => write!(f, "at byte {offset:#x}: ")?,
            (None, None) if self.path.is_some() => f.write_str(": ")?,
            (None, None) => {}
        }
        f.write_str(&self.what)
    }
}

impl std::error::Error for CheckError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

impl<D: Deref<Target = [u8]>> Bootstrap<D> {
    /// Checks everything that a kernel or a daemon relies on, and counts what there is.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<Summary, CheckError> {
        tables::check_devices(self)?;
        tables::check_flags(self)?;
        let chunks = tables::ChunkIndex::build(self)?;
        walk::Walk::new(self, &chunks).run()
    }
}
