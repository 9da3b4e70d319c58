//! The canonical walk: the order in which inodes are numbered and tables are written.

use std::collections::btree_map::Iter;

use crate::{InodeId, Tree};

/// One step of a [`Walk`]: a name and the inode behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Visit<'a> {
    /// Directory that holds the name; the root is its own parent.
    pub parent: InodeId,
    /// The name; empty for the root of the walk.
    pub name: &'a [u8],
    /// The inode. One with several names is visited once for each.
    pub id: InodeId,
    /// Number of names on the way from the root of the walk, 0 for itself.
    pub depth: usize,
}

type Entries<'a> = Iter<'a, Box<[u8]>, InodeId>;

/// Visits every name of a tree: the root, then per directory all children in name order, followed by the descent
/// into each child directory in that order.
///
/// It keeps its own stack, so the depth of a tree costs memory in proportion and nothing else.
#[derive(Debug)]
pub struct Walk<'a> {
    tree: &'a Tree,
    root: Option<InodeId>,
    /// The directory whose children are being given.
    current: Option<(InodeId, Entries<'a>)>,
    /// Directories that were given: what is left of each to descend into, and the path's length at that level.
    pending: Vec<(InodeId, Entries<'a>, usize)>,
    directory: Vec<u8>,
}

impl<'a> Walk<'a> {
    fn new(tree: &'a Tree, root: InodeId) -> Self {
        Self {
            tree,
            root: Some(root),
            current: None,
            pending: Vec::new(),
            directory: Vec::new(),
        }
    }

    /// Path of the directory that holds the name visited last: empty for the root of the walk and for what lies in
    /// it, else one slash before each name.
    pub fn directory(&self) -> &[u8] {
        &self.directory
    }

    /// Path of the name visited last: `/` for the root of the walk, else one slash before each name.
    pub fn path(&self, visit: &Visit<'_>) -> Vec<u8> {
        [&self.directory, &b"/"[..], visit.name].concat()
    }

    fn enter(&mut self, id: InodeId) {
        self.current = self.tree.entries(id).map(|entries| (id, entries.iter()));
    }

    /// The children of `id` have been given: queue it for the descent.
    fn leave(&mut self, id: InodeId) {
        if let Some(entries) = self.tree.entries(id) {
            self.pending
                .push((id, entries.iter(), self.directory.len()));
        }
    }

    /// Moves to the next directory in canonical order; false at the end.
    fn descend(&mut self) -> bool {
        while let Some((_, entries, length)) = self.pending.last_mut() {
            self.directory.truncate(*length);
            let next = entries.find(|(_, id)| self.tree.inode(**id).is_directory());
            match next {
                Some((name, id)) => {
                    self.directory.push(b'/');
                    self.directory.extend_from_slice(name);
                    self.enter(*id);
                    return true;
                }
                None => {
                    self.pending.pop();
                }
            }
        }
        false
    }
}

impl<'a> Iterator for Walk<'a> {
    type Item = Visit<'a>;

    fn next(&mut self) -> Option<Visit<'a>> {
        if let Some(root) = self.root.take() {
            self.enter(root);
            return Some(Visit {
                parent: root,
                name: b"",
                id: root,
                depth: 0,
            });
        }
        loop {
            if let Some((parent, entries)) = &mut self.current {
                let parent = *parent;
                if let Some((name, id)) = entries.next() {
                    return Some(Visit {
                        parent,
                        name,
                        id: *id,
                        depth: self.pending.len() + 1,
                    });
                }
                self.current = None;
                self.leave(parent);
            }
            if !self.descend() {
                return None;
            }
        }
    }
}

impl Tree {
    /// Walks the whole tree in canonical order, the root first.
    pub fn walk(&self) -> Walk<'_> {
        self.walk_from(InodeId::ROOT)
    }

    /// Walks what lies at and below an inode, in the order of [`Tree::walk`].
    pub fn walk_from(&self, id: InodeId) -> Walk<'_> {
        Walk::new(self, id)
    }

    /// The link count of every inode, by id: the number of its names, for a directory two and one for each child
    /// directory. Inodes that no name leads to have 0.
    pub fn link_counts(&self) -> Vec<u32> {
        let mut counts = vec![0u32; self.len()];
        for visit in self.walk() {
            if self.inode(visit.id).is_directory() {
                counts[visit.id.0 as usize] = 2;
                if visit.depth > 0 {
                    counts[visit.parent.0 as usize] += 1;
                }
            } else {
                counts[visit.id.0 as usize] += 1;
            }
        }
        counts
    }

    /// Number of names: the root and every directory entry, what the superblock counts as inodes.
    pub fn name_count(&self) -> u64 {
        self.walk().count() as u64
    }

    /// The inode at a path. Slashes separate names, empty ones count for nothing; `.` and `..` are plain names and
    /// symbolic links are not followed.
    pub fn lookup(&self, path: &[u8]) -> Option<InodeId> {
        path.split(|&b| b == b'/')
            .filter(|name| !name.is_empty())
            .try_fold(InodeId::ROOT, |id, name| {
                self.entries(id)?.get(name).copied()
            })
    }
}
