//! Where the user's caches lie.

use std::path::PathBuf;

/// The directory of this program among the user's caches; `None` if nobody says where these are.
pub fn directory() -> Option<PathBuf> {
    let absolute = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let base =
        absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))?;
    Some(base.join("nydusify"))
}
