//! Files that appear complete or not at all.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, ensure};
use rustix::fs::{Mode, OFlags};

use crate::Usage;

/// The unfinished files of this process, so that a signal can remove them.
#[derive(Debug, Clone, Default)]
pub struct Unfinished(Arc<Mutex<Vec<PathBuf>>>);

impl Unfinished {
    /// Removes every unfinished file.
    pub fn remove_all(&self) {
        for path in self.lock().drain(..) {
            fs::remove_file(path).ok();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<PathBuf>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A file that is being written: a regular one under a temporary name beside its place, anything else (a FIFO, a
/// device) as it is, front to back.
#[derive(Debug)]
pub struct Output {
    file: File,
    /// Temporary name; `None` if the file is not a regular one.
    temporary: Option<PathBuf>,
    unfinished: Unfinished,
}

impl Output {
    /// Begins the file `path`. A FIFO is opened exactly once, here.
    pub fn create(path: &Path, unfinished: &Unfinished) -> anyhow::Result<Self> {
        let special =
            fs::metadata(path).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir());
        if special {
            let file = OpenOptions::new().write(true).open(path);
            let file =
                file.with_context(|| format!("cannot open {} for writing", path.display()))?;
            return Ok(Self {
                file,
                temporary: None,
                unfinished: unfinished.clone(),
            });
        }
        let name = path
            .file_name()
            .with_context(|| format!("{} is not the name of a file", path.display()))?;
        let mut temporary = OsString::from(".");
        temporary.push(name);
        temporary.push(format!(".{}.tmp", std::process::id()));
        Self::create_temporary(path.with_file_name(temporary), unfinished)
    }

    /// Begins a file in `dir` whose name is not known yet; `kind` tells several of them apart.
    pub fn create_in(dir: &Path, kind: &str, unfinished: &Unfinished) -> anyhow::Result<Self> {
        Self::create_temporary(
            dir.join(format!(".{kind}.{}.tmp", std::process::id())),
            unfinished,
        )
    }

    fn create_temporary(temporary: PathBuf, unfinished: &Unfinished) -> anyhow::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&temporary);
        let file = file.with_context(|| format!("cannot create {}", temporary.display()))?;
        unfinished.lock().push(temporary.clone());
        Ok(Self {
            file,
            temporary: Some(temporary),
            unfinished: unfinished.clone(),
        })
    }

    /// Whether it is a regular file, as opposed to a FIFO or device.
    pub fn is_regular(&self) -> bool {
        self.temporary.is_some()
    }

    /// The file. A regular one can be read back, and written in any order.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Gives the finished file its name.
    pub fn commit(mut self, path: &Path) -> anyhow::Result<()> {
        if let Some(temporary) = self.temporary.take() {
            let renamed = fs::rename(&temporary, path);
            if renamed.is_err() {
                fs::remove_file(&temporary).ok();
            }
            self.unfinished.lock().retain(|other| *other != temporary);
            renamed.with_context(|| format!("cannot create {}", path.display()))?;
        }
        Ok(())
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Some(temporary) = self.temporary.take() {
            fs::remove_file(&temporary).ok();
            self.unfinished.lock().retain(|other| *other != temporary);
        }
    }
}

/// Writes a whole file that has no name until it is committed.
pub fn begin(path: &Path, content: &[u8], unfinished: &Unfinished) -> anyhow::Result<Output> {
    let mut output = Output::create(path, unfinished)?;
    output
        .write_all(content)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(output)
}

/// Writes a whole file that appears complete or not at all.
pub fn write(path: &Path, content: &[u8], unfinished: &Unfinished) -> anyhow::Result<()> {
    begin(path, content, unfinished)?.commit(path)
}

/// Gives finished files their names, in this order, or none of them.
pub fn commit_all(outputs: impl IntoIterator<Item = (Output, PathBuf)>) -> anyhow::Result<()> {
    let mut new: Vec<PathBuf> = Vec::new();
    for (output, path) in outputs {
        let known = path.exists();
        if let Err(error) = output.commit(&path) {
            for path in &new {
                // The first error is the one to tell.
                remove(path).ok();
            }
            return Err(error);
        }
        if !known {
            new.push(path);
        }
    }
    Ok(())
}

/// Refuses paths that could not be written later, before the work instead of after it, and two of a kind.
pub fn check_places<'a>(
    paths: impl IntoIterator<Item = Option<&'a PathBuf>>,
) -> anyhow::Result<()> {
    let mut known = BTreeSet::new();
    for path in paths.into_iter().flatten() {
        check_place(path)?;
        // A device such as /dev/null takes any number.
        let file = fs::metadata(path).map_or(true, |metadata| metadata.is_file());
        if file && !known.insert(path) {
            let reason = "is to become two files: give each a name of its own";
            return Err(Usage(format!("{} {reason}", path.display())).into());
        }
    }
    Ok(())
}

/// Refuses a directory that is none.
pub fn check_dir(flag: &str, dir: &Path) -> anyhow::Result<()> {
    let missing = if dir.exists() {
        "it is no directory"
    } else {
        "there is no such directory"
    };
    ensure!(dir.is_dir(), "{flag} {}: {missing}", dir.display());
    Ok(())
}

/// Refuses a path that could not be written later.
pub fn check_place(path: &Path) -> anyhow::Result<()> {
    ensure!(!path.is_dir(), "{} is a directory", path.display());
    let dir = path
        .parent()
        .filter(|dir| !dir.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    ensure!(
        dir.is_dir(),
        "cannot write {}: the directory {} does not exist",
        path.display(),
        dir.display()
    );
    Ok(())
}

/// Lets go whoever waits until the other end of one of these FIFOs is opened: a failure may come before it is. Who opens one
/// later waits all the same.
pub fn let_go<'a>(paths: impl IntoIterator<Item = &'a Path>) {
    for path in paths {
        let fifo = fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo());
        if !fifo {
            continue;
        }
        for access in [OFlags::RDONLY, OFlags::WRONLY] {
            // Neither waits. A FIFO that nobody reads can't be opened for writing: then nobody has to be let go.
            let flags = access | OFlags::NONBLOCK | OFlags::CLOEXEC;
            drop(rustix::fs::open(path, flags, Mode::empty()));
        }
    }
}

/// Removes a file if it is there.
pub fn remove(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn a_file_appears_when_it_is_committed_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let unfinished = Unfinished::default();
        let mut output = Output::create(&dir.path().join("blob"), &unfinished).unwrap();
        output.write_all(b"data").unwrap();
        assert!(!dir.path().join("blob").exists());
        output.commit(&dir.path().join("blob")).unwrap();
        assert_eq!(fs::read(dir.path().join("blob")).unwrap(), b"data");
        assert_eq!(names(dir.path()), ["blob"]);
    }

    #[test]
    fn what_is_not_committed_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let unfinished = Unfinished::default();
        fs::write(dir.path().join("blob"), b"old").unwrap();
        drop(Output::create(&dir.path().join("blob"), &unfinished).unwrap());
        let kept = Output::create_in(dir.path(), "blob", &unfinished).unwrap();
        unfinished.remove_all();
        std::mem::forget(kept);
        assert_eq!(names(dir.path()), ["blob"]);
        assert_eq!(fs::read(dir.path().join("blob")).unwrap(), b"old");
    }

    #[test]
    fn all_files_get_their_names_or_none_does() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let unfinished = Unfinished::default();
        fs::write(path("old"), b"old").unwrap();
        fs::create_dir_all(path("taken/by a directory")).unwrap();
        let begun = |name: &str| {
            (
                begin(&path(name), b"data", &unfinished).unwrap(),
                path(name),
            )
        };
        let files = ["new", "old", "taken", "last"].map(begun);
        commit_all(files).unwrap_err();
        let mut left = names(dir.path());
        left.sort();
        assert_eq!(left, ["old", "taken"]);
        commit_all(["new", "last"].map(begun)).unwrap();
        assert_eq!(fs::read(path("new")).unwrap(), b"data");
        assert_eq!(names(dir.path()).len(), 4);
    }
}
