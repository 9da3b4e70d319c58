use std::collections::BTreeSet;
use std::ops::{ControlFlow, Deref};

use rafs_format::{Bootstrap, Inode};

use crate::Error;

/// Calls `visit` for every name in the tree, directories before what is in them, in name order. A directory that is
/// met a second time, as damage can have it, is not entered again.
pub(crate) fn walk<D: Deref<Target = [u8]>>(
    bootstrap: &Bootstrap<D>,
    mut visit: impl FnMut(&[u8], &Inode) -> Result<ControlFlow<()>, Error>,
) -> Result<(), Error> {
    let damaged = |path: &[u8]| {
        let path = path.to_vec();
        move |source| Error::Damaged { path, source }
    };
    let root = bootstrap.inode(bootstrap.root()).map_err(damaged(b"/"))?;
    if visit(b"/", &root)?.is_break() {
        return Ok(());
    }
    let mut entered = BTreeSet::from([root.nid]);
    let mut path = Vec::new();
    let mut stack = vec![(bootstrap.entries(&root).map_err(damaged(b"/"))?, 0)];
    while let Some((entries, length)) = stack.last_mut() {
        path.truncate(*length);
        let Some(entry) = entries.next() else {
            stack.pop();
            continue;
        };
        let entry = entry.map_err(damaged(&path))?;
        if matches!(entry.name, b"." | b"..") {
            continue;
        }
        path.push(b'/');
        path.extend_from_slice(entry.name);
        let inode = bootstrap.inode(entry.nid).map_err(damaged(&path))?;
        if visit(&path, &inode)?.is_break() {
            return Ok(());
        }
        if inode.is_dir() && entered.insert(inode.nid) {
            stack.push((
                bootstrap.entries(&inode).map_err(damaged(&path))?,
                path.len(),
            ));
        }
    }
    Ok(())
}
