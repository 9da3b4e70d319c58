//! What both versions demand of a tree.

use rafs_format::NAME_MAX;
use tree::{ChunkId, Image, Inode, InodeId, Tree};

use crate::Error;

/// Longest target of a symbolic link that readers accept.
const SYMLINK_MAX: usize = 4096;
/// Largest bootstrap that readers accept.
pub(crate) const BOOTSTRAP_MAX: u64 = 1 << 31;

/// Sequential numbers. Every name consumes one, in canonical order; an inode shows that of its first name.
pub(crate) struct Numbers {
    /// By inode id, 0 before the inode is met.
    first: Vec<u32>,
    names: u32,
}

impl Numbers {
    /// The root has number 1.
    pub(crate) fn new(tree: &Tree) -> Self {
        let mut first = vec![0; tree.len()];
        first[0] = 1;
        Self { first, names: 1 }
    }

    /// Names so far, the root included.
    pub(crate) fn names(&self) -> u32 {
        self.names
    }

    /// The number of an inode's first name.
    pub(crate) fn of(&self, id: InodeId) -> u32 {
        self.first[id.0 as usize]
    }

    /// Gives the next number to a name of an inode.
    pub(crate) fn enter(&mut self, image: &Image, name: &[u8], id: InodeId) -> Result<(), Error> {
        let file = |what: &str| Error::File {
            path: path(&image.tree, id),
            what: what.to_owned(),
        };
        let special = matches!(name, b"" | b"." | b"..");
        if special || name.len() > NAME_MAX || name.contains(&0) || name.contains(&b'/') {
            return Err(file(
                "the name is empty, a dot or two, longer than 255 bytes or holds a NUL or a slash",
            ));
        }
        if self.names == i32::MAX as u32 {
            return Err(Error::TooLarge {
                what: "the tree",
                limit: "2^31 - 1 names",
            });
        }
        self.names += 1;
        let known = &mut self.first[id.0 as usize];
        if *known == 0 {
            *known = self.names;
        } else if image.tree.inode(id).is_directory() {
            return Err(file("the directory has two names"));
        }
        Ok(())
    }
}

/// The extended attributes of an inode, as encoders take them.
pub(crate) fn xattrs(inode: &Inode) -> impl Iterator<Item = (&[u8], &[u8])> + Clone {
    inode
        .xattrs
        .iter()
        .flat_map(|xattrs| xattrs.iter())
        .map(|(name, value)| (&name[..], &value[..]))
}

pub(crate) fn check_target(image: &Image, id: InodeId, target: &[u8]) -> Result<(), Error> {
    if target.is_empty() || target.len() > SYMLINK_MAX {
        let what = format!(
            "the link's target has {} bytes; readers accept 1 to {SYMLINK_MAX}",
            target.len()
        );
        return Err(Error::File {
            path: path(&image.tree, id),
            what,
        });
    }
    Ok(())
}

pub(crate) fn check_chunks(
    image: &Image,
    id: InodeId,
    size: u64,
    chunks: &[ChunkId],
) -> Result<(), Error> {
    let expected = size.div_ceil(u64::from(image.chunk_size));
    let known = |chunk: &ChunkId| (chunk.0 as usize) < image.chunks.len();
    if chunks.len() as u64 != expected || !chunks.iter().all(known) {
        let what = format!(
            "{size} bytes need {expected} chunks, there are {}",
            chunks.len()
        );
        return Err(Error::Damaged {
            path: path(&image.tree, id),
            what,
        });
    }
    Ok(())
}

/// A path that leads to an inode, for messages.
pub(crate) fn path(tree: &Tree, id: InodeId) -> String {
    let mut walk = tree.walk();
    while let Some(visit) = walk.next() {
        if visit.id == id {
            return String::from_utf8_lossy(&walk.path(&visit)).into_owned();
        }
    }
    "an inode without a name".to_owned()
}
