//! The in-memory file tree of a layer or of a whole image.
//!
//! A [`Tree`] is an arena of inodes; directories map names to inodes, so all names of a hard-linked file share one
//! [`Inode`]. Names are ordered bytewise, hence every walk is deterministic. One tree, several encoders: nothing
//! here knows a bootstrap's layout, only that file data is a list of chunks.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use rafs_format::{BlobInfo, ChunkRecord};

mod compact;
mod error;
pub mod marker;
mod overlay;
mod sizes;
mod walk;

pub use error::Error;
pub use overlay::{Whiteouts, overlay, overlay_with};
pub use walk::{Visit, Walk};

/// Type bits of `st_mode`.
pub mod mode {
    /// Mask of the type bits.
    pub const TYPE_MASK: u32 = 0o170_000;
    /// FIFO.
    pub const FIFO: u32 = 0o010_000;
    /// Character device.
    pub const CHARACTER: u32 = 0o020_000;
    /// Directory.
    pub const DIRECTORY: u32 = 0o040_000;
    /// Block device.
    pub const BLOCK: u32 = 0o060_000;
    /// Regular file.
    pub const REGULAR: u32 = 0o100_000;
    /// Symbolic link.
    pub const SYMLINK: u32 = 0o120_000;
    /// Socket.
    pub const SOCKET: u32 = 0o140_000;

    /// The device number of an inode with this mode: what stands in its place means nothing for other types.
    pub fn device_number(mode: u32, rdev: u32) -> u32 {
        match mode & TYPE_MASK {
            CHARACTER | BLOCK => rdev,
            _ => 0,
        }
    }
}

/// Position of an inode in its [`Tree`]. The root is [`InodeId::ROOT`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InodeId(pub u32);

impl InodeId {
    /// The root directory.
    pub const ROOT: Self = Self(0);
}

/// Position of a chunk in [`Image::chunks`] (or in the chunk list of the layer being built).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChunkId(pub u32);

/// Extended attributes, by full name (`user.a`), in bytewise order.
pub type Xattrs = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// An inode: everything about a file but its names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    /// Type and permission bits, as in `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a character or block device in Linux's 32-bit encoding
    /// (`minor & 0xff | major << 8 | (minor & !0xff) << 12`), 0 for all else.
    pub rdev: u32,
    /// Seconds of the modification time.
    pub mtime: i64,
    /// Nanoseconds of the modification time, below 10^9.
    pub mtime_nsec: u32,
    /// A directory that exists only because an entry below it does: on a merge it keeps the lower layer's metadata.
    pub implied: bool,
    /// Extended attributes; `None` when there are none.
    pub xattrs: Option<Box<Xattrs>>,
    /// What the type needs beyond that.
    pub content: Content,
}

/// The part of an inode that depends on its type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A directory and its entries.
    Directory(BTreeMap<Box<[u8]>, InodeId>),
    /// A regular file.
    Regular {
        /// Length in bytes.
        size: u64,
        /// Chunks in file order: chunk *i* holds bytes from `i * chunk_size`.
        chunks: Box<[ChunkId]>,
    },
    /// A symbolic link and its target.
    Symlink(Box<[u8]>),
    /// A device, FIFO or socket.
    Special,
}

impl Inode {
    /// A directory that nothing describes: mode 0755, owned by root, modified at 0.
    pub fn implied_directory() -> Self {
        Self {
            mode: mode::DIRECTORY | 0o755,
            uid: 0,
            gid: 0,
            rdev: 0,
            mtime: 0,
            mtime_nsec: 0,
            implied: true,
            xattrs: None,
            content: Content::Directory(BTreeMap::new()),
        }
    }

    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        matches!(self.content, Content::Directory(_))
    }

    /// The same metadata but for attributes and content.
    fn clone_header(&self) -> Self {
        Self {
            xattrs: None,
            content: Content::Special,
            ..*self
        }
    }
}

/// A file tree. Inodes that no name leads to any more may linger in the arena; walks do not see them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    inodes: Vec<Inode>,
}

impl Default for Tree {
    fn default() -> Self {
        Self {
            inodes: vec![Inode::implied_directory()],
        }
    }
}

impl Tree {
    /// A tree of an (implied) root alone.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an inode that has no name yet.
    pub fn add(&mut self, inode: Inode) -> InodeId {
        let id =
            InodeId(u32::try_from(self.inodes.len()).expect("a tree holds fewer than 2^32 inodes"));
        self.inodes.push(inode);
        id
    }

    /// The inode behind an id of this tree.
    pub fn inode(&self, id: InodeId) -> &Inode {
        &self.inodes[id.0 as usize]
    }

    /// The inode behind an id of this tree, to change it.
    pub fn inode_mut(&mut self, id: InodeId) -> &mut Inode {
        &mut self.inodes[id.0 as usize]
    }

    /// Number of inodes in the arena, lingering ones included: ids are below it.
    pub fn len(&self) -> usize {
        self.inodes.len()
    }

    /// Never: there is always a root.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The entries of a directory; `None` if the inode is not one.
    pub fn entries(&self, id: InodeId) -> Option<&BTreeMap<Box<[u8]>, InodeId>> {
        match &self.inode(id).content {
            Content::Directory(entries) => Some(entries),
            _ => None,
        }
    }

    /// The entries of a directory, to change them; `None` if the inode is not one.
    pub fn entries_mut(&mut self, id: InodeId) -> Option<&mut BTreeMap<Box<[u8]>, InodeId>> {
        match &mut self.inode_mut(id).content {
            Content::Directory(entries) => Some(entries),
            _ => None,
        }
    }
}

/// A tree with the blobs and chunks that its files are made of: what a bootstrap says, decoded.
#[derive(Debug, Clone)]
pub struct Image {
    /// Layout of the bootstrap that it came from, or that is to be written of it.
    pub version: rafs_format::Version,
    /// The files.
    pub tree: Tree,
    /// Blobs in blob table order; `blobs[i].index == i`.
    pub blobs: Vec<BlobInfo>,
    /// Every chunk that files refer to by [`ChunkId`].
    pub chunks: Vec<ChunkRecord>,
    /// Chunk size in bytes, a power of two.
    pub chunk_size: u32,
    /// Files and directories to fetch first, in order.
    pub prefetch: Vec<InodeId>,
    /// Compressor that the superblock names: the build default, each blob has its own.
    pub compressor: rafs_format::Compressor,
    /// Digester of all chunks.
    pub digester: rafs_format::Digester,
    /// Whether inodes carry real owners (false in images built "repeatable").
    pub explicit_owners: bool,
    /// Whether blobs are uncompressed layer tars that serve as devices of 512-byte blocks ("tarfs"). Such chunks have no
    /// digests.
    pub tarfs: bool,
}

impl Image {
    /// Size of a block of the image's devices, in bytes.
    pub fn block_size(&self) -> u64 {
        if self.tarfs {
            rafs_format::TARFS_BLOCK_SIZE
        } else {
            rafs_format::BLOCK_SIZE
        }
    }
}
