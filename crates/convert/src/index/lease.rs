//! Who uses an index, and what is known to be sound of it.
//!
//! A file for each index, which all who use it lock, shared; only who has it exclusively removes the index, and the file with
//! it. It was last changed when the index was last used, and says which files were found to be sound.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

/// Largest note that is read, in bytes.
const NOTE_MAX: u64 = 1 << 20;

/// Keeps an index from being removed as long as any clone of it is there.
#[derive(Debug, Clone)]
pub struct Lease {
    file: Arc<Held>,
}

#[derive(Debug)]
struct Held {
    file: File,
}

impl Drop for Held {
    fn drop(&mut self) {
        // The last use ends now. If that can't be noted it counts from its beginning.
        let _ = self.file.set_modified(SystemTime::now());
    }
}

impl Lease {
    /// Takes the file at `path` in use, which is made if absent.
    ///
    /// # Errors
    /// What the system says, such as that nothing can be written there.
    pub(super) fn take(path: &Path) -> io::Result<Self> {
        loop {
            fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
            let file = open(path, true)?;
            file.lock_shared()?;
            // Whoever removed it meanwhile had locked this very file, which keeps nobody out any more.
            if storage::is_at(path, &file) {
                file.set_modified(SystemTime::now())?;
                let file = Arc::new(Held { file });
                return Ok(Self { file });
            }
        }
    }

    /// What was noted when the index was last found to be sound.
    pub(super) fn note(&self) -> Option<Vec<u8>> {
        let size = self.file.file.metadata().ok()?.len();
        let mut note = vec![0; usize::try_from(size).ok().filter(|_| size <= NOTE_MAX)?];
        self.file.file.read_exact_at(&mut note, 0).ok()?;
        Some(note)
    }

    /// Notes that. It is but a hint: if it can't be, all is looked at again.
    pub(super) fn put_note(&self, note: &[u8]) {
        let file = &self.file.file;
        let _ = file.set_len(0).and_then(|()| file.write_all_at(note, 0));
    }
}

/// The file at `path` for whoever wants to remove an index: nobody uses it while this value is there.
pub(super) struct Alone {
    path: PathBuf,
    _file: Option<File>,
}

impl Alone {
    /// `None` if somebody uses the index.
    pub(super) fn get(path: &Path) -> io::Result<Option<Self>> {
        let file = match open(path, false) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        match file.as_ref().map(File::try_lock) {
            None | Some(Ok(())) => Ok(Some(Self {
                path: path.to_owned(),
                _file: file,
            })),
            Some(Err(fs::TryLockError::WouldBlock)) => Ok(None),
            Some(Err(fs::TryLockError::Error(error))) => Err(error),
        }
    }

    /// Removes the file, when there is nothing left that it is for.
    pub(super) fn remove(self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn open(path: &Path, create: bool) -> io::Result<File> {
    let mut options = File::options();
    options
        .read(true)
        .write(true)
        .create(create)
        .truncate(false);
    options.open(path)
}
