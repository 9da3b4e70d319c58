//! Writing into an OCI layout directory.
//!
//! Every writer holds a shared lock on `blobs/sha256` while it works, and an exclusive one on the layout directory
//! while it begins, changes `index.json` or gives up. Blobs appear under their names by renaming, so readers and other
//! writers never see half of one. A writer that gives up takes its new blobs away only if it is alone and no tag was
//! written since it began: else somebody may count on them. What killed writers left unfinished goes when the next
//! one begins alone.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use progress::Cancel;
use serde_json::Value;
use tempfile::NamedTempFile;

use super::behind::WriteBehind;
use super::{BlobSink, OCI_LAYOUT, Sink, empty_index, index_entry, named};
use crate::source::{Directory, Store, layout_images, names_of, read_file};
use crate::{
    ANNOTATION_CONTAINERD_NAME, ANNOTATION_REF_NAME, Descriptor, Digest, Error, Node, Source,
};

/// What the names of unfinished files begin with.
const UNFINISHED: &str = ".new-";

pub(super) struct Layout {
    dir: PathBuf,
    blobs: PathBuf,
    tag: Option<String>,
    /// Holds the shared lock.
    presence: File,
    /// `index.json` when this writer began.
    index_before: Option<Vec<u8>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Files and directories that this writer made, in order: taken away if it gives up.
    made: Vec<PathBuf>,
    /// Blobs that were there before and were written again.
    replaced: Vec<PathBuf>,
    committed: bool,
}

impl Layout {
    pub(super) fn open(dir: &Path, tag: Option<&str>) -> Result<Self, Error> {
        let mut made = Vec::new();
        let begun = prepare(dir, &mut made)
            .and_then(|presence| Ok((presence, read_file(&dir.join("index.json"))?)));
        match begun {
            Ok((presence, index_before)) => Ok(Self {
                dir: dir.to_owned(),
                blobs: dir.join("blobs/sha256"),
                tag: tag.map(str::to_owned),
                presence,
                index_before,
                state: Mutex::new(State {
                    made,
                    ..State::default()
                }),
            }),
            Err(error) => {
                take_away(&made);
                Err(error)
            }
        }
    }

    fn new_index(&self, path: &Path, root: &Descriptor) -> Result<Vec<u8>, Error> {
        let what = || format!("{}", path.display());
        let mut index = match read_file(path)? {
            Some(bytes) => serde_json::from_slice(&bytes).map_err(|source| Error::Json {
                what: what(),
                source,
            })?,
            None => empty_index(),
        };
        let Some(Value::Array(entries)) = index.get_mut("manifests") else {
            return Err(Error::Document {
                what: what(),
                reason: "it has no list of manifests".to_owned(),
            });
        };
        put_entry(entries, index_entry(root, self.tag.as_deref()));
        Ok(serde_json::to_vec(&index).expect("a JSON value always serialises"))
    }

    /// Brings the new blobs to stable storage.
    fn sync_blobs(&self) -> Result<(), Error> {
        let written = {
            let state = self.state();
            [state.made.clone(), state.replaced.clone()].concat()
        };
        for path in &written {
            sync(path)?;
        }
        sync(&self.blobs)
    }

    /// Whether this writer has written the file.
    fn has_written(&self, path: &Path) -> bool {
        let state = self.state();
        state
            .made
            .iter()
            .chain(&state.replaced)
            .any(|known| known == path)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sink for Layout {
    fn writer(self: Arc<Self>) -> Result<Box<dyn BlobSink>, Error> {
        let file = temporary(&self.blobs)?;
        Ok(Box::new(Writer {
            layout: self,
            file,
            size: 0,
            behind: WriteBehind::default(),
        }))
    }

    /// A blob that was there before is read to tell.
    fn contains(&self, digest: &Digest, size: u64, cancel: &Cancel) -> Result<bool, Error> {
        let path = self.blobs.join(digest.hex());
        if self.has_written(&path) {
            return Ok(true);
        }
        let Ok(file) = File::open(&path) else {
            return Ok(false);
        };
        Ok(file
            .metadata()
            .is_ok_and(|found| found.is_file() && found.len() == size)
            && Digest::of_reader(Interruptible {
                inner: file,
                cancel,
            })
            .is_ok_and(|found| found == *digest))
    }

    fn store(self: Arc<Self>) -> Arc<dyn Store> {
        Arc::new(Directory(self.dir.clone()))
    }

    fn commit(&self, root: &Descriptor) -> Result<(), Error> {
        self.sync_blobs()?;
        let _lock = lock(&self.dir)?;
        let path = self.dir.join("index.json");
        let index = self.new_index(&path, root)?;
        replace(&path, &index)?;
        self.state().committed = true;
        sync(&self.dir)
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if state.committed {
            return;
        }
        // Nobody begins while this is decided and done.
        let Ok(_lock) = lock(&self.dir) else { return };
        let alone = self.presence.try_lock().is_ok();
        let unchanged =
            read_file(&self.dir.join("index.json")).is_ok_and(|index| index == self.index_before);
        if alone && unchanged {
            take_away(&state.made);
        }
    }
}

/// Fields drop in this order: the file has to go before a layout that may be given up.
struct Writer {
    file: NamedTempFile,
    layout: Arc<Layout>,
    size: u64,
    behind: WriteBehind,
}

impl BlobSink for Writer {
    /// A blob of that name that is there already is replaced: it may be damaged.
    fn finish(self: Box<Self>, digest: Digest) -> Result<u64, Error> {
        let Self {
            file,
            layout,
            size,
            behind,
        } = *self;
        behind.ended(file.as_file(), size);
        let path = layout.blobs.join(digest.hex());
        let known = path.exists();
        file.persist(&path)
            .map_err(|error| Error::io("write", &path)(error.error))?;
        let mut state = layout.state();
        if known {
            state.replaced.push(path);
        } else {
            state.made.push(path);
        }
        Ok(size)
    }
}

impl Write for Writer {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written = self
            .file
            .write(buf)
            .map_err(|error| named(&self.layout.dir, error))?;
        self.size += written as u64;
        self.behind.reached(self.file.as_file(), self.size);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Fails once it is told to stop.
struct Interruptible<'a> {
    inner: File,
    cancel: &'a Cancel,
}

impl Read for Interruptible<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.cancel.check().map_err(io::Error::other)?;
        self.inner.read(buf)
    }
}

/// Takes the images with these names off the list of the layout in `dir`, and then removes the blobs that no image on the list
/// needs; what an image needs whose documents cannot be read is not known. While somebody writes to the layout no blob is
/// removed: writers may count on any that are there. Whoever removes from the layout next removes them then.
///
/// # Errors
/// If the list cannot be read, or is none; if it cannot be written, or a blob not removed.
pub fn remove_images(dir: &Path, unwanted: &[String]) -> Result<(), Error> {
    let path = dir.join("index.json");
    if !path.exists() {
        return Ok(());
    }
    let _lock = lock(dir)?;
    let is_unwanted = |names: &[String]| names.iter().any(|name| unwanted.contains(name));
    let images = layout_images(dir)?;
    if images.iter().any(|(names, _)| is_unwanted(names))
        && let Some(bytes) = read_file(&path)?
    {
        let json = |source| Error::Json {
            what: path.display().to_string(),
            source,
        };
        let mut index: Value = serde_json::from_slice(&bytes).map_err(json)?;
        if let Some(Value::Array(entries)) = index.get_mut("manifests") {
            entries.retain(|entry| !is_unwanted(&names_of(entry)));
        }
        let index = serde_json::to_vec(&index).expect("a JSON value always serialises");
        replace(&path, &index)?;
        sync(dir)?;
    }
    let blobs = dir.join("blobs/sha256");
    let presence = File::open(&blobs).map_err(Error::io("open", &blobs))?;
    if presence.try_lock().is_err() {
        return Ok(());
    }
    take_away_unfinished(&blobs)?;
    let kept = images.into_iter().filter(|(names, _)| !is_unwanted(names));
    let needed = needed(dir, kept.map(|(_, root)| root));
    for name in names(&blobs)? {
        let digest = name.to_str().map(|hex| format!("sha256:{hex}").parse());
        if !digest.is_some_and(|digest| digest.is_ok_and(|digest| needed.contains(&digest))) {
            let blob = blobs.join(name);
            fs::remove_file(&blob).map_err(Error::io("remove", &blob))?;
        }
    }
    Ok(())
}

/// The blobs that these images are made of, as far as their documents can be read.
fn needed(dir: &Path, roots: impl Iterator<Item = Descriptor>) -> HashSet<Digest> {
    let mut needed = HashSet::new();
    let mut documents: Vec<Descriptor> = roots.collect();
    while let Some(document) = documents.pop() {
        if !needed.insert(document.digest) {
            continue;
        }
        let source = Source::in_layout(dir, document.clone());
        match source.and_then(|source| source.node(&document)) {
            Ok(Node::Manifest(manifest)) => {
                needed.insert(manifest.config.digest);
                needed.extend(manifest.layers.iter().map(|layer| layer.digest));
            }
            Ok(Node::Index(index)) => documents.extend(index.manifests.iter().cloned()),
            Err(_) => {}
        }
    }
    needed
}

/// Makes what is missing of an empty layout, and takes the shared lock.
fn prepare(dir: &Path, made: &mut Vec<PathBuf>) -> Result<File, Error> {
    let _lock = lock_or_make(dir, made)?;
    let version = dir.join("oci-layout");
    if !version.exists() {
        if names(dir)?.any(|name| !is_unfinished(&name)) {
            let reason = "it is not empty and no OCI image layout".to_owned();
            return Err(Error::Document {
                what: format!("target {}", dir.display()),
                reason,
            });
        }
        replace(&version, OCI_LAYOUT)?;
        made.push(version);
    }
    let blobs = dir.join("blobs/sha256");
    make_directories(&blobs, made)?;
    let presence = File::open(&blobs).map_err(Error::io("open", &blobs))?;
    // Of writers that were killed: files are put into the directory itself only by those who hold its lock, and
    // into that of the blobs by those who are present.
    take_away_unfinished(dir)?;
    if presence.try_lock().is_ok() {
        take_away_unfinished(&blobs)?;
    }
    presence.lock_shared().map_err(Error::io("lock", &blobs))?;
    Ok(presence)
}

/// The exclusive lock on a layout directory, which is made if absent.
fn lock_or_make(dir: &Path, made: &mut Vec<PathBuf>) -> Result<File, Error> {
    loop {
        make_directories(dir, made)?;
        let lock = match lock(dir) {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        // A writer that gives up takes away the directory that it made: a lock on that one keeps nobody out.
        let id = |metadata: io::Result<fs::Metadata>| metadata.map(|m| (m.dev(), m.ino())).ok();
        if id(lock.metadata()) == id(fs::metadata(dir)) {
            return Ok(lock);
        }
    }
}

/// Waits for the exclusive lock on a directory.
fn lock(dir: &Path) -> Result<File, Error> {
    let lock = File::open(dir).map_err(Error::io("open", dir))?;
    lock.lock().map_err(Error::io("lock", dir))?;
    Ok(lock)
}

/// What lies in a directory.
fn names(dir: &Path) -> Result<impl Iterator<Item = OsString>, Error> {
    let entries = fs::read_dir(dir).map_err(Error::io("read", dir))?;
    Ok(entries.filter_map(|entry| Some(entry.ok()?.file_name())))
}

fn is_unfinished(name: &OsString) -> bool {
    name.as_encoded_bytes().starts_with(UNFINISHED.as_bytes())
}

fn take_away_unfinished(dir: &Path) -> Result<(), Error> {
    let left: Vec<PathBuf> = names(dir)?
        .filter(is_unfinished)
        .map(|name| dir.join(name))
        .collect();
    take_away(&left);
    Ok(())
}

fn make_directories(dir: &Path, made: &mut Vec<PathBuf>) -> Result<(), Error> {
    let missing: Vec<&Path> = dir
        .ancestors()
        .take_while(|path| !path.as_os_str().is_empty() && !path.exists())
        .collect();
    for path in missing.into_iter().rev() {
        match fs::create_dir(path) {
            Ok(()) => made.push(path.to_owned()),
            // Another writer was faster.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
            Err(error) => return Err(Error::io("create", path)(error)),
        }
    }
    if dir.is_dir() {
        return Ok(());
    }
    Err(Error::Document {
        what: format!("target {}", dir.display()),
        reason: "it is no directory".to_owned(),
    })
}

/// Removes files and (empty) directories in the reverse order of their making, as far as possible.
fn take_away(made: &[PathBuf]) {
    for path in made.iter().rev() {
        if path.is_dir() {
            let _ = fs::remove_dir(path);
        } else {
            let _ = fs::remove_file(path);
        }
    }
}

/// A file in `dir` that vanishes unless it is renamed.
fn temporary(dir: &Path) -> Result<NamedTempFile, Error> {
    tempfile::Builder::new()
        .prefix(UNFINISHED)
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(dir)
        .map_err(Error::io("create a file in", dir))
}

/// Writes `bytes` to stable storage under the name `path` as one step.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut file = temporary(dir)?;
    file.write_all(bytes).map_err(Error::io("write", path))?;
    file.as_file()
        .sync_all()
        .map_err(Error::io("write", path))?;
    file.persist(path)
        .map_err(|error| Error::io("write", path)(error.error))?;
    Ok(())
}

fn sync(path: &Path) -> Result<(), Error> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(Error::io("sync", path))
}

/// Puts `entry` where the first one of the same name is, or at the end; others of that name go.
fn put_entry(entries: &mut Vec<Value>, entry: Value) {
    let name = |entry: &Value| -> [Option<String>; 2] {
        [ANNOTATION_REF_NAME, ANNOTATION_CONTAINERD_NAME].map(|key| {
            Some(
                entry
                    .pointer("/annotations")?
                    .get(key)?
                    .as_str()?
                    .to_owned(),
            )
        })
    };
    let wanted = name(&entry);
    let at = entries
        .iter()
        .position(|old| name(old) == wanted)
        .unwrap_or(entries.len());
    entries.retain(|old| name(old) != wanted);
    entries.insert(at, entry);
}
