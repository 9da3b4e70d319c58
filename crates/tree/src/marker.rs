//! Names that OCI layers give to whiteouts.

/// Prefix of every marker.
pub const PREFIX: &[u8] = b".wh.";
/// Prefix of markers that are about the storage and not about a file.
pub const META_PREFIX: &[u8] = b".wh..wh.";
/// Name of the marker that makes its directory opaque.
pub const OPAQUE: &[u8] = b".wh..wh..opq";

/// What a file name says about the layers below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marker<'a> {
    /// Nothing: an ordinary name.
    None,
    /// The lower entry of this name is gone.
    Whiteout(&'a [u8]),
    /// All lower entries of the directory are gone.
    Opaque,
    /// Bookkeeping of a storage driver (`.wh..wh.*`), which means nothing here.
    Meta,
    /// A marker that names no entry: `.wh.`, or one that would reach `.` or `..`.
    Invalid,
}

impl<'a> Marker<'a> {
    /// Reads a file name (a single component).
    pub fn parse(name: &'a [u8]) -> Self {
        if name == OPAQUE {
            return Self::Opaque;
        }
        if name.starts_with(META_PREFIX) {
            return Self::Meta;
        }
        match name.strip_prefix(PREFIX) {
            None => Self::None,
            Some(b"" | b"." | b"..") => Self::Invalid,
            Some(hidden) => Self::Whiteout(hidden),
        }
    }

    /// Whether the name is any kind of marker.
    pub fn is_marker(name: &[u8]) -> bool {
        name.starts_with(PREFIX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart() {
        assert_eq!(Marker::parse(b"file"), Marker::None);
        assert_eq!(Marker::parse(b".wh"), Marker::None);
        assert_eq!(Marker::parse(b".wh.a"), Marker::Whiteout(b"a"));
        assert_eq!(Marker::parse(b".wh....."), Marker::Whiteout(b"...."));
        assert_eq!(Marker::parse(b".wh.\xff"), Marker::Whiteout(b"\xff"));
        assert_eq!(Marker::parse(b".wh..wh..opq"), Marker::Opaque);
        assert_eq!(Marker::parse(b".wh..wh.plnk"), Marker::Meta);
        assert_eq!(Marker::parse(b".wh..wh..opqx"), Marker::Meta);
        for name in [&b".wh."[..], b".wh..", b".wh..."] {
            assert_eq!(Marker::parse(name), Marker::Invalid, "{name:?}");
        }
    }
}
