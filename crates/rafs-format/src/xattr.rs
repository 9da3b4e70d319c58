//! Extended attributes, stored right behind the inode.
//!
//! The area has a 12-byte head and then entries: length of the name without its prefix, number of the prefix, size
//! of the value (16 bits), name, value, zeros up to a multiple of 4.

use std::ops::Deref;

use crate::raw::{self, XattrEntryRaw, XattrHeaderRaw};
use crate::{Bootstrap, Error, Inode};

/// An extended attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Xattr<'a> {
    /// Full name, for instance `user.a`.
    pub name: Vec<u8>,
    /// Value, possibly empty.
    pub value: &'a [u8],
}

/// Prefixes by number. The two ACL names are complete: nothing follows.
const PREFIXES: [(u8, &[u8], bool); 5] = [
    (1, b"user.", false),
    (2, b"system.posix_acl_access", true),
    (3, b"system.posix_acl_default", true),
    (4, b"trusted.", false),
    (6, b"security.", false),
];

/// Prefix number and suffix of a full name; `None` in a namespace that the format does not know.
pub(crate) fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    PREFIXES.iter().find_map(|&(number, prefix, complete)| {
        let suffix = name.strip_prefix(prefix)?;
        (suffix.is_empty() == complete).then_some((number, suffix))
    })
}

/// Checks that no name stands twice; says which does.
pub(crate) fn check_names(xattrs: &[Xattr<'_>]) -> Result<(), String> {
    let mut names: Vec<_> = xattrs.iter().map(|xattr| xattr.name.as_slice()).collect();
    names.sort_unstable();
    match names.array_windows().find(|[a, b]| a == b) {
        Some([name, _]) => Err(format!(
            "has the extended attribute {} twice",
            name.escape_ascii()
        )),
        None => Ok(()),
    }
}

fn join(number: u8, suffix: &[u8]) -> Option<Vec<u8>> {
    let &(_, prefix, complete) = PREFIXES.iter().find(|p| p.0 == number)?;
    (suffix.is_empty() == complete).then(|| [prefix, suffix].concat())
}

impl<D: Deref<Target = [u8]>> Bootstrap<D> {
    /// The extended attributes of an inode, in stored order.
    ///
    /// # Errors
    /// [`Error`] if the area is damaged or uses shared attributes, which RAFS never does.
    pub fn xattrs(&self, inode: &Inode) -> Result<Vec<Xattr<'_>>, Error> {
        if !inode.has_xattrs() {
            return Ok(Vec::new());
        }
        let offset = inode.offset + u64::from(inode.inode_size);
        let size = u64::from(inode.xattr_size);
        let beyond = || {
            Error::bounds(
                "extended attributes",
                offset,
                size,
                self.data().len() as u64,
            )
        };
        let area = raw::slice(self.data(), offset, size).ok_or_else(beyond)?;
        let (head, mut rest) = area
            .split_at_checked(XattrHeaderRaw::SIZE)
            .ok_or_else(beyond)?;
        let head: &XattrHeaderRaw = raw::read(head).ok_or_else(beyond)?;
        if head.shared_count != 0 {
            return Err(Error::Unsupported {
                what: "extended attributes",
                offset,
                feature: format!("a count of {} shared attributes", head.shared_count),
            });
        }
        let mut xattrs = Vec::new();
        while !rest.is_empty() {
            let at = offset + size - rest.len() as u64;
            let (xattr, after) = entry(rest, at)?;
            xattrs.push(xattr);
            rest = after;
        }
        Ok(xattrs)
    }
}

/// The first entry of `bytes`, and what follows it. The area's size is a multiple of 4.
fn entry(bytes: &[u8], offset: u64) -> Result<(Xattr<'_>, &[u8]), Error> {
    let beyond = |size: usize| {
        Error::bounds(
            "an extended attribute",
            offset,
            size as u64,
            offset + bytes.len() as u64,
        )
    };
    let head: &XattrEntryRaw = raw::read(bytes).ok_or_else(|| beyond(XattrEntryRaw::SIZE))?;
    let name_end = XattrEntryRaw::SIZE + usize::from(head.name_len);
    let value_end = name_end + usize::from(head.value_size.get());
    let suffix = bytes
        .get(XattrEntryRaw::SIZE..name_end)
        .ok_or_else(|| beyond(value_end))?;
    let value = bytes
        .get(name_end..value_end)
        .ok_or_else(|| beyond(value_end))?;
    let after = bytes
        .get(value_end.next_multiple_of(4)..)
        .ok_or_else(|| beyond(value_end))?;
    if suffix.contains(&0) {
        return Err(Error::field(
            "name of an extended attribute",
            offset + 4,
            suffix.escape_ascii(),
            "no NUL",
        ));
    }
    let name = join(head.name_index, suffix).ok_or_else(|| {
        Error::field(
            "prefix number of an extended attribute",
            offset + 1,
            head.name_index,
            "1, 4 or 6 and a suffix, or 2 or 3 and none",
        )
    })?;
    Ok((Xattr { name, value }, after))
}
