//! Blobs as files of a directory.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::{BlobSink, Digest};
use storage::{BlobReader, FileBlob};
use tempfile::NamedTempFile;

use crate::{Error, config};

impl config::Local {
    /// The file of a blob, if there is one.
    pub(crate) fn find(&self, id: &str) -> Result<Option<FileBlob>, Error> {
        let in_dirs = self.dir.iter().chain(&self.others).map(|dir| dir.join(id));
        for path in self.file.iter().cloned().chain(in_dirs) {
            match FileBlob::open(&path) {
                Ok(file) => return Ok(Some(file)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::io("open", path)(error)),
            }
        }
        Ok(None)
    }

    /// The directory that is written to, made if absent.
    pub(crate) fn directory(&self) -> Result<&Path, Error> {
        let dir = self.dir.as_deref().ok_or(Error::Key {
            kind: config::Kind::Localfs.name(),
            key: "dir",
            reason: "is missing, and blobs are to be written there",
        })?;
        fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        Ok(dir)
    }

    /// Whether the directory that is written to has a blob of this size.
    pub(crate) fn has(&self, id: &str, size: u64) -> bool {
        let path = self.dir.as_ref().map(|dir| dir.join(id));
        path.is_some_and(|path| {
            fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() == size)
        })
    }
}

/// A blob on its way into a directory.
pub(crate) struct LocalWriter {
    place: Arc<config::Local>,
    dir: PathBuf,
    file: NamedTempFile,
    written: u64,
    force: bool,
}

impl LocalWriter {
    /// `force`: a file that is there already is replaced.
    pub(crate) fn new(place: &Arc<config::Local>, force: bool) -> Result<Self, Error> {
        let dir = place.directory()?.to_owned();
        let file = tempfile::Builder::new()
            .prefix(".uploading-")
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(&dir)
            .map_err(Error::io("create a file in", &dir))?;
        Ok(Self {
            place: Arc::clone(place),
            dir,
            file,
            written: 0,
            force,
        })
    }

    fn complete(self, digest: &Digest) -> Result<u64, Error> {
        let name = digest.hex();
        if !self.force && self.place.has(&name, self.written) {
            return Ok(self.written);
        }
        let path = self.dir.join(&name);
        self.file
            .as_file()
            .sync_all()
            .map_err(Error::io("sync", &path))?;
        let persisted = self.file.persist(&path).map_err(|error| error.error);
        persisted.map_err(Error::io("create", &path))?;
        let synced = File::open(&self.dir).and_then(|dir| dir.sync_all());
        synced.map_err(Error::io("sync", &self.dir))?;
        Ok(self.written)
    }
}

impl Write for LocalWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written = self.file.as_file_mut().write(buf);
        let written = written.map_err(|error| {
            let error = Error::io("write to", &self.dir)(error);
            io::Error::other(image::Error::from(error))
        })?;
        self.written += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl BlobSink for LocalWriter {
    fn finish(self: Box<Self>, digest: Digest) -> Result<u64, image::Error> {
        Ok(self.complete(&digest)?)
    }
}

/// A file as a blob.
pub(crate) fn reader(file: FileBlob) -> Arc<dyn BlobReader> {
    Arc::new(file)
}
