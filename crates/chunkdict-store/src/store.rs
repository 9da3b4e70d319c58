//! The directory that a dictionary is kept in.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use progress::Cancel;
use rafs_format::Digest;
use tempfile::NamedTempFile;

use crate::catalogue::{self, Catalogue};
use crate::coding::hex;
use crate::writer::Writer;
use crate::{Error, ImageId, Snapshot};

const SNAPSHOTS: &str = "snapshots";
const LOCK: &str = "lock";
/// How long to wait before looking again whether another writer is done.
const PAUSE: Duration = Duration::from_millis(50);
/// How often a snapshot is looked for that another process replaces again and again.
const TRIES: usize = 100;

/// A dictionary on disk: one writer at a time, any number of readers, in any number of processes.
///
/// * `catalogue` names the images and the snapshot of what they have. It is replaced as a whole, last of all.
/// * `snapshots/ID` never change. Whoever reads one holds a shared lock on it, a lease.
/// * `lock` is locked by the one who writes.
///
/// Whatever is killed at any moment, the catalogue is the one before or the one after, and its snapshot is complete.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
}

impl Store {
    /// The dictionary in `dir`, which is made if there is none.
    ///
    /// # Errors
    /// [`Error::Io`], also if something else is in the directory.
    pub fn create(dir: &Path) -> Result<Self, Error> {
        let snapshots = dir.join(SNAPSHOTS);
        if !dir.join(catalogue::FILE).exists() && dir.is_dir() {
            for entry in fs::read_dir(dir).map_err(Error::io("read", dir))? {
                let name = entry.map_err(Error::io("read", dir))?.file_name();
                let ours = name.to_str().is_some_and(|name| {
                    name == SNAPSHOTS
                        || name == LOCK
                        || name.starts_with(catalogue::FILE)
                        || is_unfinished(name)
                });
                if !ours {
                    let source = std::io::Error::other(format!(
                        "it holds other files, such as {}",
                        name.display()
                    ));
                    return Err(Error::io("make a chunk dictionary in", dir)(source));
                }
            }
        }
        fs::create_dir_all(&snapshots).map_err(Error::io("create", &snapshots))?;
        Ok(Self {
            dir: dir.to_owned(),
        })
    }

    /// The dictionary in `dir`.
    ///
    /// # Errors
    /// [`Error::None`] if there is none.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let is_one = [catalogue::FILE, catalogue::BEFORE]
            .iter()
            .any(|name| dir.join(name).is_file());
        match is_one {
            true => Ok(Self {
                dir: dir.to_owned(),
            }),
            false => Err(Error::None(dir.to_owned())),
        }
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Which images it is of, at this moment.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Layout`], [`Error::Io`].
    pub fn catalogue(&self) -> Result<Catalogue, Error> {
        let path = self.dir.join(catalogue::FILE);
        match Catalogue::load(&path)? {
            Some(catalogue) => Ok(catalogue),
            None if self.dir.join(catalogue::BEFORE).exists() => {
                Err(Error::damaged(&path, "it is missing"))
            }
            None => Ok(Catalogue::default()),
        }
    }

    /// What its images have, at this moment, with the catalogue that goes with it. As long as the snapshot or a clone
    /// of it is held, `gc` forgets none of its images.
    ///
    /// # Errors
    /// [`Error::Empty`], [`Error::Damaged`], [`Error::Layout`], [`Error::Io`].
    pub fn snapshot(&self) -> Result<(Snapshot, Catalogue), Error> {
        let mut missing = None;
        for _ in 0..TRIES {
            let catalogue = self.catalogue()?;
            let id = catalogue
                .snapshot
                .ok_or_else(|| Error::Empty(self.dir.clone()))?;
            let path = self.snapshot_path(&id);
            let file = match File::open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    // Replaced and collected meanwhile, or gone for good.
                    if missing == Some(id) {
                        return Err(Error::damaged(&path, "it is missing"));
                    }
                    missing = Some(id);
                    continue;
                }
                Err(error) => return Err(Error::io("open", &path)(error)),
            };
            file.lock_shared().map_err(Error::io("lock", &path))?;
            let links = file.metadata().map_err(Error::io("read", &path))?.nlink();
            if links == 0 {
                continue;
            }
            return Ok((Snapshot::load(&path, &Arc::new(file), id)?, catalogue));
        }
        Err(Error::damaged(
            &self.dir,
            "its snapshots are replaced all the time",
        ))
    }

    /// Becomes the one who writes; waits for another one to be done.
    ///
    /// # Errors
    /// [`Error::Cancelled`], [`Error::Damaged`], [`Error::Layout`], [`Error::Io`].
    pub fn writer(&self, cancel: &Cancel) -> Result<Writer, Error> {
        let lock = self.lock(cancel)?;
        let catalogue = self.catalogue()?;
        Ok(Writer::new(self.clone(), lock, catalogue))
    }

    /// Becomes the one who writes, of a dictionary that may be damaged: with the last catalogue that is sound.
    ///
    /// # Errors
    /// As [`Store::writer`]; [`Error::Damaged`] only if no catalogue is sound.
    pub fn rebuilder(&self, cancel: &Cancel) -> Result<Writer, Error> {
        let lock = self.lock(cancel)?;
        let catalogue = match self.catalogue() {
            Err(error @ Error::Damaged { .. }) => {
                let before = Catalogue::load(&self.dir.join(catalogue::BEFORE));
                before.ok().flatten().ok_or(error)?
            }
            read => read?,
        };
        Ok(Writer::new(self.clone(), lock, catalogue))
    }

    fn lock(&self, cancel: &Cancel) -> Result<File, Error> {
        let path = self.dir.join(LOCK);
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let lock = options.open(&path).map_err(Error::io("open", &path))?;
        loop {
            cancel.check()?;
            match lock.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) => std::thread::sleep(PAUSE),
                Err(TryLockError::Error(error)) => return Err(Error::io("lock", &path)(error)),
            }
        }
        // What those who were killed left behind: nobody else writes now.
        for dir in [&self.dir, &self.dir.join(SNAPSHOTS)] {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                if entry.file_name().to_str().is_some_and(is_unfinished) {
                    let _ = fs::remove_file(entry.path());
                }
            }
        }
        Ok(lock)
    }

    pub(crate) fn snapshots(&self) -> PathBuf {
        self.dir.join(SNAPSHOTS)
    }

    pub(crate) fn snapshot_path(&self, id: &Digest) -> PathBuf {
        self.snapshots().join(hex(id))
    }

    /// The snapshot of a catalogue, without a lease: for the one who writes.
    pub(crate) fn load(&self, id: Digest) -> Result<Snapshot, Error> {
        let path = self.snapshot_path(&id);
        let file = File::open(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Error::damaged(&path, "it is missing"),
            _ => Error::io("open", &path)(error),
        })?;
        Snapshot::load(&path, &Arc::new(file), id)
    }

    /// Images in snapshots that somebody holds.
    pub(crate) fn leased(&self) -> Result<BTreeSet<ImageId>, Error> {
        let mut images = BTreeSet::new();
        for path in self.snapshot_files()? {
            let Ok(file) = File::open(&path) else {
                continue;
            };
            if matches!(file.try_lock(), Err(TryLockError::WouldBlock))
                && let Ok(held) = Snapshot::load_images(&path, &file)
            {
                images.extend(held.into_iter().map(|image| image.id));
            }
        }
        Ok(images)
    }

    pub(crate) fn snapshot_files(&self) -> Result<Vec<PathBuf>, Error> {
        let dir = self.snapshots();
        let failed = || Error::io("read", &dir);
        let mut files = Vec::new();
        for entry in fs::read_dir(&dir).map_err(failed())? {
            files.push(entry.map_err(failed())?.path());
        }
        files.sort();
        Ok(files)
    }
}

/// The beginning of names of files that are being written.
fn is_unfinished(name: &str) -> bool {
    name.starts_with(".tmp")
}

/// A file that is to get another name once it is written, and that others may read then.
pub(crate) fn unfinished(dir: &Path) -> std::io::Result<NamedTempFile> {
    let mode = fs::Permissions::from_mode(0o644);
    tempfile::Builder::new().permissions(mode).tempfile_in(dir)
}

/// Makes names in a directory last.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), Error> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(Error::io("write", dir))
}
