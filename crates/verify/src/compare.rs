//! Compares two file trees fact by fact.

use std::cmp::Ordering;
use std::collections::HashMap;

use tree::mode;

use crate::model::{FileTree, Inode, InodeIndex, NodeId, ROOT, escape};
use crate::report::{Differences, Fact};

/// Longest value shown in a difference, in bytes.
const VALUE_SHOWN_MAX: usize = 120;

/// Everything in which `target` differs from `source`. With `contents` both must have their files cut into the same
/// chunks.
pub(crate) fn compare(source: &FileTree, target: &FileTree, contents: bool) -> Differences {
    let mut comparison = Comparison {
        source,
        target,
        contents,
        found: Differences::default(),
        to_target: HashMap::new(),
        to_source: HashMap::new(),
    };
    comparison.walk();
    comparison.found
}

struct Comparison<'a> {
    source: &'a FileTree,
    target: &'a FileTree,
    contents: bool,
    found: Differences,
    /// Inode of the source to the inode of the target under its first name, and that name (of the source).
    to_target: HashMap<InodeIndex, (InodeIndex, NodeId)>,
    /// Inode of the target to its first name (of the source).
    to_source: HashMap<InodeIndex, NodeId>,
}

impl Comparison<'_> {
    /// Walks both trees side by side, names in order, without recursion.
    fn walk(&mut self) {
        let mut todo = Vec::new();
        if self.pair(ROOT, ROOT) {
            todo.push((ROOT, ROOT));
        }
        let (source_tree, target_tree) = (self.source, self.target);
        while let Some((source, target)) = todo.pop() {
            let mut sources = source_tree.node(source).children.iter().peekable();
            let mut targets = target_tree.node(target).children.iter().peekable();
            let deeper = todo.len();
            loop {
                let order = match (sources.peek(), targets.peek()) {
                    (None, None) => break,
                    (Some(_), None) => Ordering::Less,
                    (None, Some(_)) => Ordering::Greater,
                    (Some((source, _)), Some((target, _))) => source.cmp(target),
                };
                let source = if order.is_le() { sources.next() } else { None };
                let target = if order.is_ge() { targets.next() } else { None };
                match (source, target) {
                    (Some((_, &source)), Some((_, &target))) => {
                        if self.pair(source, target) {
                            todo.push((source, target));
                        }
                    }
                    (Some((_, &source)), None) => {
                        self.one_sided(source_tree, source, Fact::Missing)
                    }
                    (None, Some((_, &target))) => self.one_sided(target_tree, target, Fact::Extra),
                    (None, None) => {}
                }
            }
            todo[deeper..].reverse();
        }
    }

    /// Reports a name and all names below it.
    fn one_sided(&mut self, tree: &FileTree, top: NodeId, fact: Fact) {
        let mut todo = vec![top];
        while let Some(node) = todo.pop() {
            self.found.add(fact, || {
                let kind = type_name(tree.inode_of(node)).to_owned();
                let (source, target) = if fact == Fact::Missing {
                    (kind, "nothing".to_owned())
                } else {
                    ("nothing".to_owned(), kind)
                };
                (escape(&tree.path(node)), source, target)
            });
            todo.extend(tree.node(node).children.values().rev());
        }
    }

    /// Compares what one name leads to on both sides; true if both are directories to walk into.
    fn pair(&mut self, source: NodeId, target: NodeId) -> bool {
        let (old, new) = (self.source.inode_of(source), self.target.inode_of(target));
        if old.file_type() != new.file_type() {
            self.differ(source, Fact::Type, || {
                (type_name(old).to_owned(), type_name(new).to_owned())
            });
            return false;
        }
        if old.is_directory() {
            self.facts(source, old, new);
            return true;
        }
        if self.is_new_pair(source, target) {
            self.facts(source, old, new);
        }
        false
    }

    /// Notes which inodes share a name on the two sides. False if that very pair has been compared before, under
    /// another name. Two names that are one file on one side and two on the other are a difference.
    fn is_new_pair(&mut self, source: NodeId, target: NodeId) -> bool {
        let (old, new) = (
            self.source.node(source).inode,
            self.target.node(target).inode,
        );
        let counterpart = self.to_target.get(&old).copied();
        let first_of_new = self.to_source.get(&new).copied();
        if counterpart.is_some_and(|(counterpart, _)| counterpart == new) {
            return false;
        }
        let first_of_old = counterpart.map(|(_, name)| name);
        if first_of_old.or(first_of_new).is_some() {
            let tree = self.source;
            let describe = |first: Option<NodeId>| match first {
                Some(name) => format!("the same file as {}", escape(&tree.path(name))),
                None => "a file of its own".to_owned(),
            };
            self.differ(source, Fact::HardLink, || {
                (describe(first_of_old), describe(first_of_new))
            });
        }
        self.to_target.entry(old).or_insert((new, source));
        self.to_source.entry(new).or_insert(source);
        true
    }

    fn differ(&mut self, node: NodeId, fact: Fact, values: impl FnOnce() -> (String, String)) {
        let tree = self.source;
        self.found.add(fact, || {
            let (source, target) = values();
            (escape(&tree.path(node)), source, target)
        });
    }

    fn number(&mut self, node: NodeId, fact: Fact, source: u64, target: u64) {
        if source != target {
            self.differ(node, fact, || (source.to_string(), target.to_string()));
        }
    }

    fn facts(&mut self, node: NodeId, source: &Inode, target: &Inode) {
        if source.mode != target.mode && source.file_type() != mode::SYMLINK {
            self.differ(node, Fact::Mode, || {
                (
                    format!("{:04o}", source.mode & 0o7777),
                    format!("{:04o}", target.mode & 0o7777),
                )
            });
        }
        self.number(node, Fact::Uid, source.uid.into(), target.uid.into());
        self.number(node, Fact::Gid, source.gid.into(), target.gid.into());
        if source.rdev != target.rdev {
            self.differ(node, Fact::Device, || {
                (device(source.rdev), device(target.rdev))
            });
        }
        if source.link != target.link {
            self.differ(node, Fact::LinkTarget, || {
                (shorten(&source.link), shorten(&target.link))
            });
        }
        if (source.mtime, source.mtime_nsec) != (target.mtime, target.mtime_nsec) {
            self.differ(node, Fact::Mtime, || (time(source), time(target)));
        }
        self.xattrs(node, source, target);
        if source.size != target.size {
            self.number(node, Fact::Size, source.size, target.size);
        } else if self.contents {
            self.compare_contents(node, source, target);
        }
    }

    fn xattrs(&mut self, node: NodeId, source: &Inode, target: &Inode) {
        if source.xattrs == target.xattrs {
            return;
        }
        let added = target
            .xattrs
            .keys()
            .filter(|name| !source.xattrs.contains_key(*name));
        for name in source.xattrs.keys().chain(added) {
            let (old, new) = (source.xattrs.get(name), target.xattrs.get(name));
            if old != new {
                let show = |value: Option<&Box<[u8]>>| match value {
                    Some(value) => format!("{}={}", escape(name), shorten(value)),
                    None => format!("no {}", escape(name)),
                };
                self.differ(node, Fact::Xattr, || (show(old), show(new)));
            }
        }
    }

    /// Compares chunk by chunk; one difference per file, which names the first chunk that differs.
    fn compare_contents(&mut self, node: NodeId, source: &Inode, target: &Inode) {
        if source.chunks != target.chunks {
            self.differ(node, Fact::Content, || {
                (
                    format!("{} chunks", source.chunks),
                    format!("{} chunks", target.chunks),
                )
            });
            return;
        }
        for index in 0..source.chunks {
            let old = self.source.contents.digest(source.first_chunk + index);
            let new = self.target.contents.digest(target.first_chunk + index);
            if old.is_none() || old != new {
                let show = |digest: Option<&rafs_format::Digest>| {
                    format!(
                        "chunk {index} {}",
                        digest.map_or_else(|| "unknown".to_owned(), hex::encode)
                    )
                };
                self.differ(node, Fact::Content, || (show(old), show(new)));
                return;
            }
        }
    }
}

fn type_name(inode: &Inode) -> &'static str {
    match inode.file_type() {
        mode::DIRECTORY => "directory",
        mode::REGULAR => "regular file",
        mode::SYMLINK => "symbolic link",
        mode::CHARACTER => "character device",
        mode::BLOCK => "block device",
        mode::FIFO => "FIFO",
        mode::SOCKET => "socket",
        _ => "unknown type",
    }
}

fn device(rdev: u32) -> String {
    format!(
        "{}:{}",
        rdev >> 8 & 0xfff,
        rdev & 0xff | rdev >> 12 & 0xfff00
    )
}

fn time(inode: &Inode) -> String {
    format!("{}.{:09}", inode.mtime, inode.mtime_nsec)
}

fn shorten(value: &[u8]) -> String {
    match value.get(..VALUE_SHOWN_MAX) {
        Some(head) if value.len() > VALUE_SHOWN_MAX => {
            format!("{}... ({} bytes)", escape(head), value.len())
        }
        _ => escape(value),
    }
}
