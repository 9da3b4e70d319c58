//! Finding places in a tree by the paths that archives give: nothing ever leads out of the root.

use std::borrow::Cow;

use tree::{Content, InodeId, Tree};

/// Symbolic links followed on one way, as in containerd.
const LINKS_MAX: u32 = 255;

/// The names of a path from the root, with `.`, `..` and empty names resolved by the text alone; `..` of the root
/// is the root.
pub fn clean(path: &[u8]) -> Vec<&[u8]> {
    let mut names = Vec::new();
    for name in path.split(|&b| b == b'/') {
        match name {
            b"" | b"." => {}
            b".." => {
                names.pop();
            }
            _ => names.push(name),
        }
    }
    names
}

/// The same path for messages and patterns: `/` before each name.
pub fn display(names: &[&[u8]]) -> Vec<u8> {
    names
        .iter()
        .flat_map(|name| [&b"/"[..], name])
        .flatten()
        .copied()
        .collect()
}

/// Where a directory is, or would be.
#[derive(Debug, PartialEq, Eq)]
pub struct Location {
    /// The deepest directory on the way that exists.
    pub directory: InodeId,
    /// Names that have to be made below it.
    pub missing: Vec<Box<[u8]>>,
}

/// Why a path leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Nowhere {
    /// Something on the way is neither a directory nor a link.
    #[error("{name:?} on the way to it is not a directory")]
    NotDirectory {
        /// The name that is in the way.
        name: String,
    },
    /// Links in circles, or too many of them.
    #[error("the way to it leads through more than {LINKS_MAX} symbolic links")]
    TooManyLinks,
}

/// Follows the names of a directory's path from the root, through symbolic links, which are taken as seen from
/// inside the tree: an absolute target begins at the root, `..` of the root is the root.
///
/// As in containerd, `..` in a relative target is resolved by the text, in an absolute one by the way gone.
///
/// # Errors
/// See [`Nowhere`].
pub fn locate<'a>(
    tree: &'a Tree,
    names: impl DoubleEndedIterator<Item = &'a [u8]>,
) -> Result<Location, Nowhere> {
    let mut todo = names
        .rev()
        .map(Cow::Borrowed)
        .collect::<Vec<Cow<'_, [u8]>>>();
    let mut way = vec![InodeId::ROOT];
    let mut missing: Vec<Box<[u8]>> = Vec::new();
    let mut links = 0;
    while let Some(name) = todo.pop() {
        match &*name {
            b"" | b"." => continue,
            b".." => {
                if missing.pop().is_none() && way.len() > 1 {
                    way.pop();
                }
                continue;
            }
            _ => {}
        }
        // The way always holds the root.
        let directory = way.last().copied().unwrap_or(InodeId::ROOT);
        let found = if missing.is_empty() {
            tree.entries(directory)
                .and_then(|entries| entries.get(&*name))
        } else {
            None
        };
        let Some(&id) = found else {
            missing.push(name.as_ref().into());
            continue;
        };
        match &tree.inode(id).content {
            Content::Directory(_) => way.push(id),
            Content::Symlink(target) => {
                links += 1;
                if links > LINKS_MAX {
                    return Err(Nowhere::TooManyLinks);
                }
                if target.starts_with(b"/") {
                    way.truncate(1);
                    todo.extend(target.split(|&b| b == b'/').rev().map(Cow::Borrowed));
                } else {
                    todo.extend(clean_relative(target).into_iter().rev().map(Cow::Borrowed));
                }
            }
            _ => {
                return Err(Nowhere::NotDirectory {
                    name: String::from_utf8_lossy(&name).into_owned(),
                });
            }
        }
    }
    Ok(Location {
        directory: way.last().copied().unwrap_or(InodeId::ROOT),
        missing,
    })
}

/// As [`clean`], keeping the `..` that lead above the beginning.
fn clean_relative(path: &[u8]) -> Vec<&[u8]> {
    let mut names: Vec<&[u8]> = Vec::new();
    for name in path.split(|&b| b == b'/') {
        match name {
            b"" | b"." => {}
            b".." if names.last().is_some_and(|last| *last != b"..") => {
                names.pop();
            }
            _ => names.push(name),
        }
    }
    names
}
