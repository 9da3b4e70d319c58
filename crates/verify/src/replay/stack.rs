//! Layers laid under one another, top layer first.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Layer;
use crate::model::{Contents, FileTree, Inode, InodeIndex, Node, NodeId, ROOT};

/// What the layers still to come may add to a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Open {
    /// There is something of that name; otherwise a whiteout keeps the name free.
    present: bool,
    /// Entries of a directory of that name may come through.
    entries: bool,
    /// The directory was only implied so far: the metadata of the next one of that name counts.
    metadata: bool,
}

/// The files that are visible so far, and what is still open below them.
#[derive(Debug)]
pub(crate) struct Stack {
    tree: FileTree,
    open: Vec<Open>,
}

const UNMAPPED: InodeIndex = InodeIndex::MAX;

impl Stack {
    /// No layer yet.
    pub(crate) fn new() -> Self {
        Self {
            tree: FileTree::new(Inode::implied_directory(), Contents::Digests(Vec::new())),
            open: vec![Open {
                present: true,
                entries: true,
                metadata: true,
            }],
        }
    }

    /// Lays the next lower layer under those that are there.
    pub(crate) fn lay_under(&mut self, layer: &Layer) {
        let mut inodes = vec![UNMAPPED; layer.tree.inodes.len()];
        let mut hidden: Vec<(NodeId, &[u8])> = Vec::new();
        let mut opaque = Vec::new();
        let mut todo = Vec::new();
        self.meet_directory(&layer.tree, ROOT, ROOT, &mut todo);
        while let Some((below, above)) = todo.pop() {
            for (name, &child) in &layer.tree.node(below).children {
                match self.tree.node(above).children.get(name).copied() {
                    Some(there) => self.meet(&layer.tree, child, there, &mut todo),
                    None => self.adopt(&layer.tree, child, above, &mut inodes, &mut todo),
                }
            }
            let whiteouts = layer.whiteouts.get(&below).into_iter().flatten();
            hidden.extend(whiteouts.map(|name| (above, &**name)));
            if layer.opaque.contains(&below) {
                opaque.push(above);
            }
        }
        // What a layer hides is hidden of the layers below it only: so it is closed once its own files are in place.
        for directory in opaque {
            self.open[directory as usize].entries = false;
        }
        for (directory, name) in hidden {
            self.hide(directory, name);
        }
    }

    /// A name that no layer above has: it becomes visible.
    fn adopt(
        &mut self,
        layer: &FileTree,
        child: NodeId,
        parent: NodeId,
        inodes: &mut [InodeIndex],
        todo: &mut Vec<(NodeId, NodeId)>,
    ) {
        let Node { name, inode, .. } = layer.node(child);
        let mapped = &mut inodes[*inode as usize];
        if *mapped == UNMAPPED {
            *mapped = take_inode(&mut self.tree, layer, *inode);
        }
        let id = self.add(parent, name, *mapped);
        let inode = layer.inode_of(child);
        let directory = inode.is_directory();
        self.open.push(Open {
            present: true,
            entries: directory,
            metadata: inode.implied,
        });
        if directory {
            todo.push((child, id));
        }
    }

    fn add(&mut self, parent: NodeId, name: &Arc<[u8]>, inode: InodeIndex) -> NodeId {
        let id = u32::try_from(self.tree.nodes.len()).expect("memory ends before 2^32 names");
        self.tree.nodes.push(Node {
            parent,
            name: Arc::clone(name),
            inode,
            children: BTreeMap::new(),
        });
        self.tree.nodes[parent as usize]
            .children
            .insert(Arc::clone(name), id);
        id
    }

    /// A name that a layer above has, or keeps free.
    fn meet(
        &mut self,
        layer: &FileTree,
        child: NodeId,
        there: NodeId,
        todo: &mut Vec<(NodeId, NodeId)>,
    ) {
        if layer.inode_of(child).is_directory() {
            self.meet_directory(layer, child, there, todo);
        } else {
            self.close(there);
        }
    }

    fn meet_directory(
        &mut self,
        layer: &FileTree,
        child: NodeId,
        there: NodeId,
        todo: &mut Vec<(NodeId, NodeId)>,
    ) {
        let inode = layer.inode_of(child);
        let open = &mut self.open[there as usize];
        if open.metadata && !inode.implied {
            open.metadata = false;
            let index = self.tree.node(there).inode as usize;
            self.tree.inodes[index] = inode.clone();
        }
        if self.open[there as usize].entries {
            todo.push((child, there));
        }
    }

    fn hide(&mut self, directory: NodeId, name: &[u8]) {
        match self.tree.node(directory).children.get(name).copied() {
            Some(there) => self.close(there),
            None => {
                self.add(directory, &Arc::from(name), UNMAPPED);
                self.open.push(Open {
                    present: false,
                    entries: false,
                    metadata: false,
                });
            }
        }
    }

    fn close(&mut self, node: NodeId) {
        let open = &mut self.open[node as usize];
        open.entries = false;
        open.metadata = false;
    }

    /// The files of the whole image.
    pub(crate) fn finish(mut self) -> FileTree {
        for (id, open) in self.open.iter().enumerate() {
            if !open.present {
                let Node { parent, name, .. } = &self.tree.nodes[id];
                let (parent, name) = (*parent as usize, Arc::clone(name));
                self.tree.nodes[parent].children.remove(&name);
            }
        }
        self.tree
    }
}

/// Copies an inode and what it holds from a layer.
fn take_inode(tree: &mut FileTree, layer: &FileTree, index: InodeIndex) -> InodeIndex {
    let mut inode = layer.inodes[index as usize].clone();
    if let (Contents::Digests(all), Contents::Digests(own)) = (&mut tree.contents, &layer.contents)
    {
        let first = all.len();
        if let Some(digests) = own.get(inode.first_chunk..inode.first_chunk + inode.chunks) {
            all.extend_from_slice(digests);
        }
        inode.first_chunk = first;
    }
    tree.add_inode(inode)
}
