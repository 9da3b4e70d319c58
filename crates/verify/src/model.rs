//! A file tree as facts: what both sides of a check are brought to before they are compared.

use std::collections::BTreeMap;
use std::sync::Arc;

use rafs_format::Digest;
use tree::{Xattrs, mode};

/// Position of a name in [`FileTree::nodes`].
pub(crate) type NodeId = u32;
/// Position of an inode in [`FileTree::inodes`].
pub(crate) type InodeIndex = u32;

/// The root directory's name and inode.
pub(crate) const ROOT: NodeId = 0;

/// A name in a directory. Paths are never stored: they follow from the parents, so deep trees cost no more than flat ones.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    /// The directory; the root is its own parent.
    pub(crate) parent: NodeId,
    /// Name within the directory; empty for the root.
    pub(crate) name: Arc<[u8]>,
    /// What the name leads to.
    pub(crate) inode: InodeIndex,
    /// Entries, if it is a directory.
    pub(crate) children: BTreeMap<Arc<[u8]>, NodeId>,
}

/// Everything about a file but its names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Inode {
    /// Type and permissions as in `st_mode`.
    pub(crate) mode: u32,
    /// Owner.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
    /// Device number in Linux's 32-bit encoding; 0 unless a device.
    pub(crate) rdev: u32,
    /// Seconds of the modification time.
    pub(crate) mtime: i64,
    /// Nanoseconds of the modification time.
    pub(crate) mtime_nsec: u32,
    /// Extended attributes by full name.
    pub(crate) xattrs: Xattrs,
    /// Target of a symbolic link; empty for all else.
    pub(crate) link: Box<[u8]>,
    /// Length in bytes of a regular file; 0 for all else.
    pub(crate) size: u64,
    /// The first of the file's chunks in [`FileTree::contents`].
    pub(crate) first_chunk: usize,
    /// Number of its chunks.
    pub(crate) chunks: usize,
    /// A directory that only exists because of something below it.
    pub(crate) implied: bool,
}

impl Inode {
    /// An inode without contents.
    pub(crate) fn new(mode: u32) -> Self {
        Self {
            mode,
            uid: 0,
            gid: 0,
            rdev: 0,
            mtime: 0,
            mtime_nsec: 0,
            xattrs: Xattrs::new(),
            link: Box::default(),
            size: 0,
            first_chunk: 0,
            chunks: 0,
            implied: false,
        }
    }

    /// A directory that nothing describes.
    pub(crate) fn implied_directory() -> Self {
        Self {
            implied: true,
            ..Self::new(mode::DIRECTORY | 0o755)
        }
    }

    /// The type bits of the mode.
    pub(crate) fn file_type(&self) -> u32 {
        self.mode & mode::TYPE_MASK
    }

    /// Whether it is a directory.
    pub(crate) fn is_directory(&self) -> bool {
        self.file_type() == mode::DIRECTORY
    }
}

/// Digests of the chunks of all files of a tree, one after another.
#[derive(Debug, Clone)]
pub(crate) enum Contents {
    /// The digests themselves.
    Digests(Vec<Digest>),
    /// Rows of a table of digests, as a bootstrap has it.
    Rows {
        /// Row of each chunk.
        rows: Vec<u32>,
        /// The digests.
        table: Arc<[Digest]>,
    },
}

impl Contents {
    /// Digest of a chunk; `None` if there is no such chunk.
    pub(crate) fn digest(&self, chunk: usize) -> Option<&Digest> {
        match self {
            Self::Digests(digests) => digests.get(chunk),
            Self::Rows { rows, table } => rows.get(chunk).and_then(|&row| table.get(row as usize)),
        }
    }
}

/// A file tree.
#[derive(Debug, Clone)]
pub(crate) struct FileTree {
    /// Names; those that no directory lists (any more) are not part of the tree.
    pub(crate) nodes: Vec<Node>,
    /// Inodes; names of one hard-linked file share one.
    pub(crate) inodes: Vec<Inode>,
    /// What the files hold.
    pub(crate) contents: Contents,
}

impl FileTree {
    /// A tree of a root directory alone.
    pub(crate) fn new(root: Inode, contents: Contents) -> Self {
        let node = Node {
            parent: ROOT,
            name: Arc::from(&[][..]),
            inode: 0,
            children: BTreeMap::new(),
        };
        Self {
            nodes: vec![node],
            inodes: vec![root],
            contents,
        }
    }

    /// The name `id`.
    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id as usize]
    }

    /// The inode that the name `id` leads to.
    pub(crate) fn inode_of(&self, id: NodeId) -> &Inode {
        &self.inodes[self.node(id).inode as usize]
    }

    /// Adds an inode without a name.
    pub(crate) fn add_inode(&mut self, inode: Inode) -> InodeIndex {
        let index = u32::try_from(self.inodes.len()).expect("memory ends before 2^32 inodes");
        self.inodes.push(inode);
        index
    }

    /// Adds (or replaces) a name in the directory `parent`.
    pub(crate) fn add_name(&mut self, parent: NodeId, name: &[u8], inode: InodeIndex) -> NodeId {
        let id = u32::try_from(self.nodes.len()).expect("memory ends before 2^32 names");
        let name: Arc<[u8]> = Arc::from(name);
        self.nodes.push(Node {
            parent,
            name: Arc::clone(&name),
            inode,
            children: BTreeMap::new(),
        });
        self.nodes[parent as usize].children.insert(name, id);
        id
    }

    /// Number of names, the root's included.
    pub(crate) fn names(&self) -> u64 {
        // What no directory lists has no entries itself.
        1 + self
            .nodes
            .iter()
            .map(|node| node.children.len() as u64)
            .sum::<u64>()
    }

    /// The absolute path of a name, as raw bytes.
    pub(crate) fn path(&self, id: NodeId) -> Vec<u8> {
        let mut names = Vec::new();
        let mut at = id;
        while at != ROOT {
            names.push(&self.node(at).name);
            at = self.node(at).parent;
        }
        if names.is_empty() {
            return b"/".to_vec();
        }
        let mut path = Vec::new();
        for name in names.into_iter().rev() {
            path.push(b'/');
            path.extend_from_slice(name);
        }
        path
    }
}

/// Shows raw bytes of a path or value in ASCII so that nothing is lost: what is not printable becomes `\xNN`, a
/// backslash `\\`.
pub(crate) fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'\\' => text.push_str("\\\\"),
            0x20..=0x7e => text.push(char::from(byte)),
            _ => text.push_str(&format!("\\x{byte:02x}")),
        }
    }
    text
}
