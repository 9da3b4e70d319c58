//! Which extended attributes of a layer become part of its tree.

use tree::Xattrs;

use crate::error::show;

/// Longest attribute name, in bytes.
const NAME_MAX: usize = 255;
/// Longest attribute value that an image can hold, in bytes.
const VALUE_MAX: usize = u16::MAX as usize;
const ACLS: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];

/// Attributes that were left out.
#[derive(Default)]
pub(super) struct Dropped {
    count: u64,
    example: String,
}

impl Dropped {
    fn add(&mut self, path: &[u8], name: &[u8]) {
        if self.count == 0 {
            self.example = format!("{} of {}", show(name), show(path));
        }
        self.count += 1;
    }

    /// Says so, once for all of them.
    pub(super) fn report(&self) {
        if self.count > 0 {
            tracing::warn!(
                count = self.count,
                example = %self.example,
                "extended attributes that no file system of an image can hold were left out"
            );
        }
    }
}

/// Keeps the attributes that container engines keep. `trusted.*` is kept on request, but never overlayfs's own: in
/// an image they would act as whiteouts.
pub(super) fn filter(
    xattrs: Xattrs,
    keep_trusted: bool,
    path: &[u8],
    dropped: &mut Dropped,
) -> Result<Xattrs, String> {
    let mut kept = Xattrs::new();
    for (name, value) in xattrs {
        let trusted = name.starts_with(b"trusted.");
        let known = trusted
            || [&b"user."[..], b"security."]
                .iter()
                .any(|space| name.starts_with(space))
            || ACLS.contains(&&*name);
        if trusted && (!keep_trusted || name.starts_with(b"trusted.overlay.")) {
            continue;
        }
        if !known {
            dropped.add(path, &name);
            continue;
        }
        if name.ends_with(b".") || name.contains(&0) || name.len() > NAME_MAX {
            return Err(format!(
                "an extended attribute cannot be named {}",
                show(&name)
            ));
        }
        if value.len() > VALUE_MAX {
            return Err(format!(
                "its extended attribute {} has {} bytes, more than an image can hold ({VALUE_MAX})",
                show(&name),
                value.len()
            ));
        }
        kept.insert(name, value);
    }
    Ok(kept)
}
