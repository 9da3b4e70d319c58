use rafs_format::{Compressor, Digester, Version};

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

/// In what two kinds differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// What it is called.
    pub what: &'static str,
    /// Of the kind that was asked.
    pub ours: String,
    /// Of the other one.
    pub theirs: String,
}

impl Kind {
    /// The first thing in which another kind differs; `None` if it is the same.
    pub fn difference(&self, other: &Self) -> Option<Difference> {
        let facts = self.facts().into_iter().zip(other.facts());
        let mut differences = facts.filter(|((_, ours), (_, theirs))| ours != theirs);
        differences
            .next()
            .map(|((what, ours), (_, theirs))| Difference { what, ours, theirs })
    }

    fn facts(&self) -> [(&'static str, String); 4] {
        [
            ("RAFS version", self.version.to_string()),
            ("digester", self.digester.to_string()),
            ("compressor", self.compressor.to_string()),
            ("chunk size", format!("{:#x}", self.chunk_size)),
        ]
    }
}
