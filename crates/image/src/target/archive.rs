//! Writing an OCI archive: a tar of an OCI layout.
//!
//! A blob's name and size are known only at its end: room for its header is left free and filled in then. Nothing in
//! the archive depends on the clock or the user: the same image gives the same bytes.
//!
//! It is written to a hidden file beside the archive, named after it and locked as long as its writer lives. Such a
//! file that nobody has locked is of a writer that was killed, and goes when the next one begins.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions, TryLockError};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use progress::Cancel;
use storage::{BlobReader, FileBlob};
use tempfile::NamedTempFile;

use super::behind::WriteBehind;
use super::{BlobSink, OCI_LAYOUT, Sink, empty_index, index_entry, named};
use crate::source::Store;
use crate::{Descriptor, Digest, Error};

/// Size of a tar header, and what members are padded to.
const BLOCK: u64 = 512;
/// Bytes of the archive's name that the names of unfinished files have: what is added must fit too.
const NAME_MAX: usize = 200;
/// Letters and digits that end those names.
const RANDOM: usize = 6;

pub(super) struct ArchiveFile {
    path: PathBuf,
    tag: Option<String>,
    file: Arc<File>,
    state: Mutex<State>,
    free: Condvar,
}

struct State {
    /// `None` once the archive has its name.
    temporary: Option<NamedTempFile>,
    /// Where the next member begins; always a multiple of [`BLOCK`].
    end: u64,
    /// Offset and length of the blobs in place.
    blobs: BTreeMap<Digest, (u64, u64)>,
    /// A [`Writer`] lives.
    busy: bool,
}

impl ArchiveFile {
    pub(super) fn create(path: &Path, tag: Option<&str>) -> Result<Self, Error> {
        if path.is_dir() {
            let reason = "it is a directory; use oci:DIR for an image layout".to_owned();
            return Err(Error::Archive {
                path: path.to_owned(),
                reason,
            });
        }
        let dir = match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        if !dir.is_dir() {
            return Err(Error::Archive {
                path: path.to_owned(),
                reason: format!("the directory {} does not exist", dir.display()),
            });
        }
        let prefix = unfinished(path);
        remove_abandoned(dir, &prefix);
        let temporary = temporary(dir, &prefix).map_err(Error::io("create", path))?;
        let file = temporary
            .as_file()
            .try_clone()
            .map_err(Error::io("create", path))?;
        let state = State {
            temporary: Some(temporary),
            end: 0,
            blobs: BTreeMap::new(),
            busy: false,
        };
        let archive = Self {
            path: path.to_owned(),
            tag: tag.map(str::to_owned),
            file: Arc::new(file),
            state: Mutex::new(state),
            free: Condvar::new(),
        };
        archive.member("oci-layout", OCI_LAYOUT)?;
        archive.directory("blobs/")?;
        archive.directory("blobs/sha256/")?;
        Ok(archive)
    }

    /// Appends a small file.
    fn member(&self, name: &str, content: &[u8]) -> Result<(), Error> {
        let mut state = self.state();
        let size = content.len() as u64;
        self.write_at(
            &header(name, size, tar::EntryType::Regular, 0o644),
            state.end,
        )?;
        self.write_at(content, state.end + BLOCK)?;
        state.end = self.pad(state.end + BLOCK + size)?;
        Ok(())
    }

    fn directory(&self, name: &str) -> Result<(), Error> {
        let mut state = self.state();
        self.write_at(
            &header(name, 0, tar::EntryType::Directory, 0o755),
            state.end,
        )?;
        state.end += BLOCK;
        Ok(())
    }

    /// Fills up to the next block from `position`; returns where that begins.
    fn pad(&self, position: u64) -> Result<u64, Error> {
        let end = position.next_multiple_of(BLOCK);
        let padding = usize::try_from(end - position).unwrap_or(0);
        self.write_at(&[0; BLOCK as usize][..padding], position)?;
        Ok(end)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), Error> {
        self.file
            .write_all_at(bytes, offset)
            .map_err(Error::io("write", &self.path))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sink for ArchiveFile {
    /// Waits until no other writer lives.
    fn writer(self: Arc<Self>) -> Result<Box<dyn BlobSink>, Error> {
        let mut state = self.state();
        while state.busy {
            state = self
                .free
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.busy = true;
        let end = state.end;
        drop(state);
        Ok(Box::new(Writer {
            start: end + BLOCK,
            size: 0,
            behind: WriteBehind::from(end),
            archive: self,
        }))
    }

    fn contains(&self, digest: &Digest, _: u64, _: &Cancel) -> Result<bool, Error> {
        Ok(self.state().blobs.contains_key(digest))
    }

    fn store(self: Arc<Self>) -> Arc<dyn Store> {
        self
    }

    fn commit(&self, root: &Descriptor) -> Result<(), Error> {
        let mut index = empty_index();
        index["manifests"] = serde_json::Value::Array(vec![index_entry(root, self.tag.as_deref())]);
        self.member(
            "index.json",
            &serde_json::to_vec(&index).expect("a JSON value always serialises"),
        )?;
        let mut state = self.state();
        self.write_at(&[0; 2 * BLOCK as usize], state.end)?;
        self.file
            .sync_all()
            .map_err(Error::io("write", &self.path))?;
        if let Some(temporary) = state.temporary.take() {
            temporary
                .persist(&self.path)
                .map_err(|error| Error::io("write", &self.path)(error.error))?;
        }
        let dir = self
            .path
            .parent()
            .filter(|dir| !dir.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        File::open(dir)
            .and_then(|dir| dir.sync_all())
            .map_err(Error::io("sync", dir))
    }

    fn is_sequential(&self) -> bool {
        true
    }
}

impl Store for ArchiveFile {
    fn blob(&self, digest: &Digest, _: Option<u64>) -> Result<Arc<dyn BlobReader>, Error> {
        let missing = || Error::MissingBlob {
            digest: *digest,
            store: self.name(),
        };
        let (offset, len) = *self.state().blobs.get(digest).ok_or_else(missing)?;
        Ok(Arc::new(FileBlob::window(
            Arc::clone(&self.file),
            offset,
            len,
        )))
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }
}

struct Writer {
    archive: Arc<ArchiveFile>,
    /// Where the content begins; the header is before it.
    start: u64,
    size: u64,
    behind: WriteBehind,
}

impl BlobSink for Writer {
    fn finish(self: Box<Self>, digest: Digest) -> Result<u64, Error> {
        if self.archive.state().blobs.contains_key(&digest) {
            return Ok(self.size);
        }
        let name = format!("blobs/sha256/{}", digest.hex());
        let header = header(&name, self.size, tar::EntryType::Regular, 0o644);
        self.archive.write_at(&header, self.start - BLOCK)?;
        let end = self.archive.pad(self.start + self.size)?;
        let mut state = self.archive.state();
        state.end = end;
        state.blobs.insert(digest, (self.start, self.size));
        Ok(self.size)
    }
}

impl Write for Writer {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let offset = self.start + self.size;
        let written = self
            .archive
            .file
            .write_at(buf, offset)
            .map_err(|error| named(&self.archive.path, error))?;
        self.size += written as u64;
        self.behind
            .reached(&self.archive.file, self.start + self.size);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Writer {
    /// Lets the next writer begin; what is not part of the archive is cut off.
    fn drop(&mut self) {
        let mut state = self.archive.state();
        if state.end < self.start {
            // A failure here leaves bytes that the next member overwrites.
            let _ = self.archive.file.set_len(state.end);
        }
        state.busy = false;
        self.archive.free.notify_one();
    }
}

/// What the names of unfinished files of the archive at `path` begin with.
fn unfinished(path: &Path) -> OsString {
    let name = path.file_name().unwrap_or_default().as_bytes();
    let mut prefix = OsString::from(".");
    prefix.push(OsStr::from_bytes(&name[..name.len().min(NAME_MAX)]));
    prefix.push(".unfinished-");
    prefix
}

/// A locked file in `dir` that vanishes unless it is renamed.
fn temporary(dir: &Path, prefix: &OsStr) -> io::Result<NamedTempFile> {
    loop {
        let file = tempfile::Builder::new()
            .prefix(prefix)
            .rand_bytes(RANDOM)
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(dir)?;
        match file.as_file().try_lock() {
            // Until it was locked, it looked abandoned.
            Ok(()) if !is_file_at(file.as_file(), file.path()) => {}
            Err(TryLockError::WouldBlock) => {}
            // Without locks nobody can take it for abandoned either.
            Ok(()) | Err(TryLockError::Error(_)) => return Ok(file),
        }
    }
}

/// Removes unfinished files whose writers are gone, as far as possible.
fn remove_abandoned(dir: &Path, prefix: &OsStr) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let random = name.as_bytes().strip_prefix(prefix.as_bytes());
        if random.is_none_or(|random| {
            random.len() != RANDOM || !random.iter().all(u8::is_ascii_alphanumeric)
        }) {
            continue;
        }
        let path = entry.path();
        let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits();
        let file = fs::OpenOptions::new()
            .read(true)
            .custom_flags(flags.cast_signed())
            .open(&path);
        let Ok(file) = file else { continue };
        let regular = file.metadata().is_ok_and(|found| found.is_file());
        // While it is locked here, the name can't pass to another file.
        if regular && file.try_lock().is_ok() && is_file_at(&file, &path) {
            let _ = fs::remove_file(&path);
        }
    }
}

/// Whether `path` still names the open `file`.
fn is_file_at(file: &File, path: &Path) -> bool {
    let id = |metadata: io::Result<fs::Metadata>| metadata.map(|m| (m.dev(), m.ino())).ok();
    let open = id(file.metadata());
    open.is_some() && open == id(fs::symlink_metadata(path))
}

fn header(name: &str, size: u64, kind: tar::EntryType, mode: u32) -> [u8; BLOCK as usize] {
    let mut header = tar::Header::new_ustar();
    header
        .set_path(name)
        .expect("names here are short and relative");
    header.set_size(size);
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    *header.as_bytes()
}
