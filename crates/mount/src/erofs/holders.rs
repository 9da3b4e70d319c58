//! The processes of a mount by the kernel, seen from outside.

use std::path::Path;

use super::kit::GUARD;

/// Who serves the mount of a cache, as far as this process may see.
#[derive(Debug, Default)]
pub(crate) struct Holders {
    pub(crate) guardians: Vec<u32>,
    pub(crate) fillers: Vec<u32>,
}

/// The processes that hold the lock in a directory: that of a mount by the kernel, or the one for changes.
pub(crate) fn holders(dir: &Path) -> Holders {
    let lock = dir.join("lock");
    let mut found = Holders::default();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(id) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let descriptors = std::fs::read_dir(entry.path().join("fd"));
        let mut descriptors = descriptors.into_iter().flatten().flatten();
        if descriptors.any(|fd| std::fs::read_link(fd.path()).is_ok_and(|path| path == lock)) {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let guards = line.split(|&byte| byte == 0).nth(1) == Some(GUARD.as_bytes());
            let list = if guards {
                &mut found.guardians
            } else {
                &mut found.fillers
            };
            list.push(id);
        }
    }
    found
}
