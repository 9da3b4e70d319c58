//! Paths as entries of a layer name them.
//!
//! How `..` is read differs by place, as it does in container runtimes: in the name of an entry and in the text of a
//! relative link it is taken out by the text alone, before any link is looked at; in the text of an absolute link and
//! in the target of a hard link it leads up from wherever the way has come to.

/// The names of a path, `..` included, without `.` and empty ones.
pub(crate) fn names(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|&byte| byte == b'/')
        .filter(|name| !matches!(*name, b"" | b"."))
}

/// The names of a path after each inner `..` has been taken out by the text. Those that lead above its beginning stay
/// in front.
pub(crate) fn clean(path: &[u8]) -> Vec<&[u8]> {
    let mut clean: Vec<&[u8]> = Vec::new();
    for name in names(path) {
        if name == b".." && clean.last().is_some_and(|last| *last != b"..") {
            clean.pop();
        } else {
            clean.push(name);
        }
    }
    clean
}

/// The names of a path below the root, which nothing leads above.
pub(crate) fn clean_below_root(path: &[u8]) -> Vec<&[u8]> {
    let mut clean = clean(path);
    clean.retain(|name| *name != b"..");
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleans_by_text() {
        assert_eq!(clean(b"./a//b/./c/"), [b"a", b"b", b"c"]);
        assert_eq!(clean(b"a/../b"), [b"b"]);
        assert_eq!(clean(b"../../a/../../b"), [&b".."[..], b"..", b"..", b"b"]);
        assert_eq!(clean_below_root(b"/../a/../../b/c"), [b"b", b"c"]);
        assert!(clean_below_root(b"./").is_empty());
        assert_eq!(
            names(b"/a/.././b/").collect::<Vec<_>>(),
            [&b"a"[..], b"..", b"b"]
        );
    }
}
