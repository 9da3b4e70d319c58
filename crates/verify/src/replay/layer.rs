//! One layer, unpacked on its own.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use tree::{Xattrs, mode};

use super::path::{clean, clean_below_root, names};
use crate::model::{Contents, FileTree, Inode, NodeId, ROOT, escape};

/// Most symbolic links that the path of one entry may lead through.
const LINKS_MAX: usize = 255;
/// Longest name of a file.
const NAME_MAX: usize = 255;
/// Longest target of a symbolic link.
const LINK_TARGET_MAX: usize = 4095;
const WHITEOUT: &[u8] = b".wh.";
const WHITEOUT_META: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What an entry creates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind<'a> {
    Regular {
        size: u64,
        first_chunk: usize,
        chunks: usize,
    },
    HardLink(&'a [u8]),
    Symlink(&'a [u8]),
    Character,
    Block,
    Fifo,
    Directory,
}

/// An entry of a layer as its header describes it.
#[derive(Debug, Clone)]
pub(crate) struct Entry<'a> {
    pub(crate) path: &'a [u8],
    pub(crate) kind: Kind<'a>,
    /// Permission bits.
    pub(crate) permissions: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) rdev: u32,
    pub(crate) mtime: i64,
    pub(crate) mtime_nsec: u32,
    pub(crate) xattrs: Xattrs,
}

/// Why a layer cannot be unpacked: container runtimes refuse such a layer too.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The path leads through something that is not a directory.
    #[error("{path}: a part of the path is not a directory")]
    NotADirectory {
        /// The entry, escaped.
        path: String,
    },
    /// Too many symbolic links on the way.
    #[error("{path}: the path leads through more than {LINKS_MAX} symbolic links")]
    TooManyLinks {
        /// The entry, escaped.
        path: String,
    },
    /// A hard link to something that the layer does not have, or not yet.
    #[error("{path}: hard link to {target}, which does not come before it in the layer")]
    NoTarget {
        /// The entry, escaped.
        path: String,
        /// The target, escaped.
        target: String,
    },
    /// A hard link to a directory.
    #[error("{path}: hard link to the directory {target}")]
    LinkToDirectory {
        /// The entry, escaped.
        path: String,
        /// The target, escaped.
        target: String,
    },
    /// A whiteout of nothing that has a name.
    #[error("{path}: whiteout without a file name")]
    BadWhiteout {
        /// The entry, escaped.
        path: String,
    },
    /// An entry below a whiteout.
    #[error("{path}: the entry lies below a whiteout")]
    BelowWhiteout {
        /// The entry, escaped.
        path: String,
    },
    /// A symbolic link that no file system takes.
    #[error("{path}: a symbolic link cannot have a target of {len} bytes, or one with a NUL")]
    BadLinkTarget {
        /// The entry, escaped.
        path: String,
        /// Length of the target.
        len: usize,
    },
    /// A name that no file can have.
    #[error("{path}: a part of the path is longer than {NAME_MAX} bytes or holds a NUL")]
    BadName {
        /// The entry, escaped.
        path: String,
    },
}

/// A layer's own files, and what it hides of the layers below.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    /// The files.
    pub(crate) tree: FileTree,
    /// Names that the layers below must not have, by directory.
    pub(crate) whiteouts: BTreeMap<NodeId, BTreeSet<Box<[u8]>>>,
    /// Directories whose entries in the layers below are hidden.
    pub(crate) opaque: BTreeSet<NodeId>,
}

impl Layer {
    /// A layer of nothing.
    pub(crate) fn new() -> Self {
        Self {
            tree: FileTree::new(Inode::implied_directory(), Contents::Digests(Vec::new())),
            whiteouts: BTreeMap::new(),
            opaque: BTreeSet::new(),
        }
    }

    /// Unpacks the next entry of the layer.
    pub(crate) fn apply(&mut self, entry: Entry<'_>) -> Result<(), Refusal> {
        let path = clean_below_root(entry.path);
        let Some((&base, parents)) = path.split_last() else {
            if entry.kind == Kind::Directory {
                self.describe(ROOT, &entry);
            }
            return Ok(());
        };
        if base != OPAQUE && base.starts_with(WHITEOUT_META)
            || parents.iter().any(|name| name.starts_with(WHITEOUT_META))
        {
            return Ok(());
        }
        check_name(base, entry.path)?;
        let parent = self.make_directories(parents, entry.path)?;
        if base == OPAQUE {
            self.opaque.insert(parent);
            return Ok(());
        }
        if let Some(hidden) = base.strip_prefix(WHITEOUT) {
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(Refusal::BadWhiteout {
                    path: escape(entry.path),
                });
            }
            self.whiteouts
                .entry(parent)
                .or_default()
                .insert(hidden.into());
            return Ok(());
        }
        self.put(parent, base, entry)
    }

    /// Creates the entry `base` of the directory `parent`, replacing what is there, but for a directory over a directory.
    fn put(&mut self, parent: NodeId, base: &[u8], entry: Entry<'_>) -> Result<(), Refusal> {
        if let Some(&old) = self.tree.node(parent).children.get(base) {
            if self.may_stay(old, &entry) {
                self.describe(old, &entry);
                return Ok(());
            }
            // Before anything else: the target of a hard link may lie below.
            self.tree.nodes[parent as usize].children.remove(base);
        }
        let (file_type, rdev, link) = match entry.kind {
            Kind::HardLink(target) => {
                let found = self.link_target(target, entry.path)?;
                self.link(parent, base, found, &entry);
                return Ok(());
            }
            Kind::Regular { .. } => (mode::REGULAR, 0, &[][..]),
            Kind::Symlink(target)
                if !(1..=LINK_TARGET_MAX).contains(&target.len()) || target.contains(&0) =>
            {
                return Err(Refusal::BadLinkTarget {
                    path: escape(entry.path),
                    len: target.len(),
                });
            }
            Kind::Symlink(target) => (mode::SYMLINK, 0, target),
            Kind::Character => (mode::CHARACTER, entry.rdev, &[][..]),
            Kind::Block => (mode::BLOCK, entry.rdev, &[][..]),
            Kind::Fifo => (mode::FIFO, 0, &[][..]),
            Kind::Directory => (mode::DIRECTORY, 0, &[][..]),
        };
        let mut inode = Inode {
            rdev,
            link: link.into(),
            ..Inode::new(file_type)
        };
        if let Kind::Regular {
            size,
            first_chunk,
            chunks,
        } = entry.kind
        {
            (inode.size, inode.first_chunk, inode.chunks) = (size, first_chunk, chunks);
        }
        let inode = self.tree.add_inode(inode);
        let node = self.tree.add_name(parent, base, inode);
        self.describe(node, &entry);
        Ok(())
    }

    /// Gives an existing file another name; the metadata of the link's own header counts.
    fn link(&mut self, parent: NodeId, base: &[u8], found: NodeId, entry: &Entry<'_>) {
        let inode = self.tree.node(found).inode;
        let node = self.tree.add_name(parent, base, inode);
        self.describe(node, entry);
    }

    /// The file that a hard link names. It has to be there before the link, and must not be a directory.
    fn link_target(&self, target: &[u8], entry: &[u8]) -> Result<NodeId, Refusal> {
        let missing = || Refusal::NoTarget {
            path: escape(entry),
            target: escape(target),
        };
        let is_directory = || Refusal::LinkToDirectory {
            path: escape(entry),
            target: escape(target),
        };
        let mut parents = names(target);
        let name = parents
            .next_back()
            .filter(|name| *name != b"..")
            .ok_or_else(is_directory)?;
        let directory = match Walk::new(parents).run(&self.tree) {
            Ok((directory, missing)) if missing.is_empty() => directory,
            _ => return Err(missing()),
        };
        let &found = self
            .tree
            .node(directory)
            .children
            .get(name)
            .ok_or_else(missing)?;
        if self.tree.inode_of(found).is_directory() {
            return Err(is_directory());
        }
        Ok(found)
    }

    /// Takes over the metadata of a header. Attributes are set one by one, so those set before and not named stay.
    fn describe(&mut self, node: NodeId, entry: &Entry<'_>) {
        let inode = self.tree.nodes[node as usize].inode as usize;
        let inode = &mut self.tree.inodes[inode];
        inode.mode = inode.file_type() | (entry.permissions & 0o7777);
        inode.uid = entry.uid;
        inode.gid = entry.gid;
        inode.mtime = entry.mtime;
        inode.mtime_nsec = entry.mtime_nsec;
        inode.implied = false;
        inode.xattrs.extend(
            entry
                .xattrs
                .iter()
                .map(|(name, value)| (name.clone(), value.clone())),
        );
    }

    /// Whether an entry only changes what is there: a directory over a directory, a file linked to itself.
    fn may_stay(&self, old: NodeId, entry: &Entry<'_>) -> bool {
        match entry.kind {
            Kind::Directory => self.tree.inode_of(old).is_directory(),
            Kind::HardLink(target) => self
                .link_target(target, entry.path)
                .is_ok_and(|found| self.tree.node(found).inode == self.tree.node(old).inode),
            _ => false,
        }
    }

    /// The directory that `names` lead to, creating what is missing.
    fn make_directories(&mut self, names: &[&[u8]], entry: &[u8]) -> Result<NodeId, Refusal> {
        let (mut directory, missing) = Walk::new(names.iter().copied()).run(&self.tree).map_err(
            |obstacle| match obstacle {
                Obstacle::NotADirectory => Refusal::NotADirectory {
                    path: escape(entry),
                },
                Obstacle::TooManyLinks => Refusal::TooManyLinks {
                    path: escape(entry),
                },
            },
        )?;
        for name in missing {
            check_name(&name, entry)?;
            if name.starts_with(WHITEOUT) {
                return Err(Refusal::BelowWhiteout {
                    path: escape(entry),
                });
            }
            let inode = self.tree.add_inode(Inode::implied_directory());
            directory = self.tree.add_name(directory, &name, inode);
        }
        Ok(directory)
    }
}

fn check_name(name: &[u8], entry: &[u8]) -> Result<(), Refusal> {
    if name.len() > NAME_MAX || name.contains(&0) {
        return Err(Refusal::BadName {
            path: escape(entry),
        });
    }
    Ok(())
}

enum Obstacle {
    NotADirectory,
    TooManyLinks,
}

/// A directory, and names below it that are not there.
type Place<'a> = (NodeId, Vec<Cow<'a, [u8]>>);

/// Resolution of a path inside a layer. Links lead back into the layer's root, wherever they point.
struct Walk<'a> {
    /// Directories from below the root to the last one that exists.
    trail: Vec<NodeId>,
    /// Names below that do not exist.
    missing: Vec<Cow<'a, [u8]>>,
    /// Names still to follow, the next one last.
    ahead: Vec<Cow<'a, [u8]>>,
    links: usize,
}

impl<'a> Walk<'a> {
    fn new(names: impl DoubleEndedIterator<Item = &'a [u8]>) -> Self {
        Self {
            trail: Vec::new(),
            missing: Vec::new(),
            ahead: names.rev().map(Cow::Borrowed).collect(),
            links: 0,
        }
    }

    /// Where the path leads: a directory, and names below it that are still to be made.
    fn run(mut self, tree: &FileTree) -> Result<Place<'a>, Obstacle> {
        while let Some(name) = self.ahead.pop() {
            if *name == *b".." {
                if self.missing.pop().is_none() {
                    self.trail.pop();
                }
                continue;
            }
            let child = if self.missing.is_empty() {
                tree.node(self.here()).children.get(&*name)
            } else {
                None
            };
            let Some(&child) = child else {
                self.missing.push(name);
                continue;
            };
            let inode = tree.inode_of(child);
            match inode.file_type() {
                mode::DIRECTORY => self.trail.push(child),
                mode::SYMLINK => self.follow(&inode.link)?,
                _ => return Err(Obstacle::NotADirectory),
            }
        }
        Ok((self.here(), self.missing))
    }

    fn here(&self) -> NodeId {
        self.trail.last().copied().unwrap_or(ROOT)
    }

    fn follow(&mut self, target: &[u8]) -> Result<(), Obstacle> {
        self.links += 1;
        if self.links > LINKS_MAX {
            return Err(Obstacle::TooManyLinks);
        }
        let owned = |name: &[u8]| Cow::Owned(name.to_vec());
        if target.starts_with(b"/") {
            self.trail.clear();
            self.ahead.extend(names(target).rev().map(owned));
        } else {
            self.ahead
                .extend(clean(target).into_iter().rev().map(owned));
        }
        Ok(())
    }
}
