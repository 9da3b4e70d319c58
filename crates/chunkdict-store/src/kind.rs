use rafs_format::{Compressor, Digester, Version};

use crate::Error;

/// What all chunks of a dictionary have in common: an image of another kind can't share any with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// RAFS version of the images.
    pub version: Version,
    /// What chunks are known by.
    pub digester: Digester,
    /// How chunks are stored.
    pub compressor: Compressor,
    /// Size of a whole chunk, in bytes.
    pub chunk_size: u32,
}

impl Kind {
    /// Sees to it that the image `name`, which is of `other`, is of this kind.
    pub(crate) fn same(&self, name: &str, other: &Self) -> Result<(), Error> {
        let size = |size: u32| format!("{size:#x}");
        let facts = [
            (
                "RAFS version",
                self.version.to_string(),
                other.version.to_string(),
            ),
            (
                "digester",
                self.digester.to_string(),
                other.digester.to_string(),
            ),
            (
                "compressor",
                self.compressor.to_string(),
                other.compressor.to_string(),
            ),
            ("chunk size", size(self.chunk_size), size(other.chunk_size)),
        ];
        match facts.into_iter().find(|(_, ours, theirs)| ours != theirs) {
            None => Ok(()),
            Some((what, ours, theirs)) => Err(Error::Other {
                name: name.to_owned(),
                what,
                theirs,
                ours,
            }),
        }
    }
}
