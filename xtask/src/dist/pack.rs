//! A `tar.gz` for each architecture, and what trees look like in tars.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context, Result};
use testkit::layout::{Packing, pack as compress};
use testkit::tar::{Entry, Tar};

use super::{Architecture, Place, Release, read, write};

/// Documents that go with the binaries.
const DOCUMENTS: [&str; 4] = ["README.md", "CHANGELOG.md", "LICENSE", "docs/install.md"];

/// Completes the tree of an architecture and packs it.
pub fn pack(
    place: &Place,
    release: &Release,
    architecture: &Architecture,
    notices: &str,
) -> Result<()> {
    let tree = place.tree(architecture);
    let documents = tree.join("share/doc/nydus-tools");
    for name in DOCUMENTS {
        let from = place.workspace.join(name);
        let name = from.file_name().context("a document has no name")?;
        write(&documents.join(name), &read(&from)?)?;
    }
    write(&documents.join("THIRD-PARTY"), notices.as_bytes())?;
    let name = format!("{}-linux-{}", release.name(), architecture.name);
    let mut tar = Tar::new();
    tar.add(Entry::directory(format!("{name}/")).mtime(release.time));
    add(&mut tar, &tree, &name, release.time)?;
    let packed = compress(&tar.finish(), Packing::Gzip);
    write(&place.dist().join(format!("{name}.tar.gz")), &packed)
}

/// Adds what lies below a directory under `name`, in order of names, owned by root. What is executable stays so; nothing
/// else depends on this machine.
pub fn add(tar: &mut Tar, directory: &Path, name: &str, time: u64) -> Result<()> {
    let entries = std::fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    let mut entries = entries.collect::<std::io::Result<Vec<_>>>()?;
    entries.sort_unstable_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let name = format!("{name}/{}", entry.file_name().to_string_lossy());
        let data = entry.metadata()?;
        if data.is_dir() {
            tar.add(Entry::directory(format!("{name}/")).mtime(time));
            add(tar, &entry.path(), &name, time)?;
        } else {
            let executable = data.permissions().mode() & 0o100 != 0;
            let file = Entry::file(name, read(&entry.path())?).mtime(time);
            tar.add(file.mode(if executable { 0o755 } else { 0o644 }));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tar_depends_on_names_and_content_alone() {
        let tar = |names: &[&str]| {
            let dir = tempfile::tempdir().unwrap();
            for name in names {
                write(&dir.path().join(name), name.as_bytes()).unwrap();
            }
            let mode = std::fs::Permissions::from_mode(0o700);
            std::fs::set_permissions(dir.path().join("bin/b"), mode).unwrap();
            let mut tar = Tar::new();
            add(&mut tar, dir.path(), "top", 1_700_000_000).unwrap();
            tar.finish()
        };
        let first = tar(&["bin/b", "bin/a", "z"]);
        assert_eq!(first, tar(&["z", "bin/a", "bin/b"]));
        let name = |at: usize| String::from_utf8_lossy(&first[at..at + 8]).replace('\0', "");
        assert_eq!(
            [0, 512, 1536, 2560].map(name),
            ["top/bin/", "top/bin/", "top/bin/", "top/z"]
        );
        let mode = |at: usize| String::from_utf8_lossy(&first[at + 100..at + 107]).into_owned();
        assert_eq!([512, 1536].map(mode), ["0000644", "0000755"]);
    }
}
