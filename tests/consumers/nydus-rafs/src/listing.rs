//! What a bootstrap says, as text that two readers can be compared by.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Result, ensure};

/// One line for each blob and for each path.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// The blob table.
    pub blobs: Vec<String>,
    /// What lies at each path, which begins with a slash.
    pub paths: BTreeMap<Vec<u8>, String>,
}

/// Most differences that are told.
const TOLD: usize = 6;

impl Listing {
    /// Fails telling the first differences.
    pub fn expect(&self, ours: &Self) -> Result<()> {
        let mut said = String::new();
        let mut differences = 0;
        let mut differ = |what: String, theirs: Option<&String>, ours: Option<&String>| {
            if theirs != ours {
                differences += 1;
                if differences <= TOLD {
                    let none = "(none)".to_owned();
                    let (theirs, ours) = (theirs.unwrap_or(&none), ours.unwrap_or(&none));
                    let _ = write!(said, "\n  {what}\n    reader {theirs}\n    ours   {ours}");
                }
            }
        };
        for i in 0..self.blobs.len().max(ours.blobs.len()) {
            differ(format!("blob {i}"), self.blobs.get(i), ours.blobs.get(i));
        }
        for path in self
            .paths
            .keys()
            .chain(ours.paths.keys().filter(|p| !self.paths.contains_key(*p)))
        {
            let name = path.escape_ascii().to_string();
            differ(name, self.paths.get(path), ours.paths.get(path));
        }
        ensure!(differences == 0, "{differences} differences{said}");
        Ok(())
    }
}

/// Attributes of an inode.
pub struct Attributes {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub mtime: (u64, u32),
    pub nlink: u32,
    /// 0 for directories, whose size is a matter of layout.
    pub size: u64,
    pub target: Vec<u8>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub chunks: Vec<Chunk>,
}

/// A chunk of a file.
pub struct Chunk {
    pub blob: u32,
    pub index: u32,
    pub compressed: (u64, u32),
    pub uncompressed: (u64, u32),
    pub digest: [u8; 32],
    pub is_compressed: bool,
    pub is_batch: bool,
    pub is_encrypted: bool,
}

impl Attributes {
    /// All of it in one line.
    pub fn line(&self) -> String {
        let mut line = format!(
            "mode {:o} owner {}:{} rdev {:#x} mtime {}.{} nlink {} size {}",
            self.mode,
            self.uid,
            self.gid,
            self.rdev,
            self.mtime.0,
            self.mtime.1,
            self.nlink,
            self.size
        );
        if !self.target.is_empty() {
            let _ = write!(line, " -> {}", self.target.escape_ascii());
        }
        for (name, value) in &self.xattrs {
            let _ = write!(line, " {}={}", name.escape_ascii(), value.escape_ascii());
        }
        for c in &self.chunks {
            let digest: String = c.digest[..8].iter().map(|b| format!("{b:02x}")).collect();
            let _ = write!(
                line,
                " [{}/{} {}+{} of {}+{} {digest}{}{}{}]",
                c.blob,
                c.index,
                c.compressed.0,
                c.compressed.1,
                c.uncompressed.0,
                c.uncompressed.1,
                if c.is_compressed { " compressed" } else { "" },
                if c.is_batch { " batch" } else { "" },
                if c.is_encrypted { " encrypted" } else { "" },
            );
        }
        line
    }
}
