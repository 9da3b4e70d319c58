//! Writing an image.

mod archive;
mod behind;
mod layout;

use std::fs::File;
use std::io::{self, Read as _, Write};
use std::sync::Arc;

use progress::Cancel;
use serde_json::{Value, json};

use crate::source::{Store, Stored, tag_of};
use crate::{
    ANNOTATION_CONTAINERD_NAME, ANNOTATION_REF_NAME, Descriptor, Digest, Error, Location, Source,
};

/// Where an image is being written. Dropped without [`Target::commit`], it takes away what it wrote.
///
/// * A layout directory is made if absent and extended if present: blobs of the same content are kept, the entry of
///   the same tag is replaced, all others stay. Several processes may write to one layout.
/// * An archive is written under a temporary name beside its own and replaces whatever was there. Its blobs are
///   written one after another: a second [`Target::blob_writer`] waits for the first.
pub struct Target {
    inner: Inner,
}

enum Inner {
    Layout(Arc<layout::Layout>),
    Archive(Arc<archive::ArchiveFile>),
}

/// One blob being written. It is in the target only after [`BlobWriter::finish`]; dropped before, it leaves nothing.
///
/// Errors of [`Write`] carry an [`Error`] that names the target.
pub struct BlobWriter {
    inner: WriterInner,
}

enum WriterInner {
    Layout(layout::Writer),
    Archive(archive::Writer),
}

impl Target {
    /// Makes ready for writing an image to `location`.
    ///
    /// # Errors
    /// [`Error::Registry`], [`Error::Location`] for docker archives, which are only read; if the place cannot be
    /// written or holds something else.
    pub fn open(location: &Location) -> Result<Self, Error> {
        let inner = match location {
            Location::OciLayout { dir, tag } => {
                Inner::Layout(Arc::new(layout::Layout::open(dir, tag.as_deref())?))
            }
            Location::OciArchive { file, tag } => Inner::Archive(Arc::new(
                archive::ArchiveFile::create(file, tag.as_deref())?,
            )),
            Location::DockerArchive { .. } => {
                return Err(Error::Location {
                    location: location.to_string(),
                    reason: "docker archives can only be read; write an oci-archive: instead",
                });
            }
            Location::Registry(reference) => return Err(Error::Registry(reference.clone())),
        };
        Ok(Self { inner })
    }

    /// Whether blobs have to be written one after another.
    pub fn is_sequential(&self) -> bool {
        matches!(self.inner, Inner::Archive(_))
    }

    /// Begins a blob whose digest is not known yet.
    ///
    /// # Errors
    /// If the target cannot be written.
    pub fn blob_writer(&self) -> Result<BlobWriter, Error> {
        let inner = match &self.inner {
            Inner::Layout(layout) => WriterInner::Layout(layout.writer()?),
            Inner::Archive(archive) => WriterInner::Archive(archive.writer()?),
        };
        Ok(BlobWriter { inner })
    }

    /// Writes a small blob.
    ///
    /// # Errors
    /// If the target cannot be written.
    pub fn put(&self, bytes: &[u8], media_type: &str) -> Result<Descriptor, Error> {
        let digest = Digest::of(bytes);
        if !self.contains(&digest, bytes.len() as u64) {
            let mut writer = self.blob_writer()?;
            writer
                .write_all(bytes)
                .map_err(|error| self.writing(error))?;
            writer.finish(digest)?;
        }
        Ok(Descriptor::new(media_type, digest, bytes.len() as u64))
    }

    /// Copies a blob from `source`, verified on the way.
    ///
    /// # Errors
    /// If it is missing or corrupt there, or the target cannot be written; [`Error::Cancelled`].
    pub fn copy(
        &self,
        source: &Source,
        descriptor: &Descriptor,
        cancel: &Cancel,
    ) -> Result<(), Error> {
        if self.has(&descriptor.digest, descriptor.size, cancel) {
            return Ok(());
        }
        let mut reader = source.open_blob(descriptor)?;
        let mut writer = self.blob_writer()?;
        let mut buffer = vec![0; 1 << 18];
        loop {
            cancel.check()?;
            match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(got) => writer
                    .write_all(&buffer[..got])
                    .map_err(|error| self.writing(error))?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(source.reading(&descriptor.digest, error)),
            }
        }
        writer.finish(descriptor.digest).map(drop)
    }

    /// Whether a blob is in place already. One that was there before is read to tell.
    pub fn contains(&self, digest: &Digest, size: u64) -> bool {
        self.has(digest, size, &Cancel::default())
    }

    /// Like [`Target::contains`]; false if it is not known yet when `cancel` says to stop.
    fn has(&self, digest: &Digest, size: u64, cancel: &Cancel) -> bool {
        match &self.inner {
            Inner::Layout(layout) => layout.contains(digest, size, cancel),
            Inner::Archive(archive) => archive.contains(digest),
        }
    }

    /// The file, offset and length of a blob that is in place, for reading at random.
    ///
    /// # Errors
    /// If there is no such blob.
    pub fn file_blob(&self, digest: &Digest) -> Result<(Arc<File>, u64, u64), Error> {
        let (stored, store) = match &self.inner {
            Inner::Layout(layout) => (layout.store().locate(digest)?, layout.store().name()),
            Inner::Archive(archive) => (archive.locate(digest)?, archive.name()),
        };
        match stored {
            Stored::Window { file, offset, len } => Ok((file, offset, len)),
            Stored::Bytes(_) => Err(Error::MissingBlob {
                digest: *digest,
                store,
            }),
        }
    }

    /// The image under `root` as it lies in the target, readable before it is committed.
    ///
    /// # Errors
    /// If `root` is no manifest or index.
    pub fn source(&self, root: &Descriptor) -> Result<Source, Error> {
        let store: Arc<dyn Store> = match &self.inner {
            Inner::Layout(layout) => Arc::new(layout.store()),
            Inner::Archive(archive) => Arc::clone(archive) as Arc<dyn Store>,
        };
        Source::new(store, root.clone(), None)
    }

    /// Makes `root` the image that the target's tag leads to. All its blobs must be in place. They are on stable
    /// storage before the tag is.
    ///
    /// # Errors
    /// If the target cannot be written; what was written is then taken away again.
    pub fn commit(self, root: &Descriptor) -> Result<(), Error> {
        match &self.inner {
            Inner::Layout(layout) => layout.commit(root),
            Inner::Archive(archive) => archive.commit(root),
        }
    }

    fn writing(&self, error: io::Error) -> Error {
        let path = match &self.inner {
            Inner::Layout(layout) => layout.dir(),
            Inner::Archive(archive) => archive.path(),
        };
        match error.downcast::<Error>() {
            Ok(inner) => inner,
            Err(source) => Error::Io {
                action: "write",
                path: path.to_owned(),
                source,
            },
        }
    }
}

impl BlobWriter {
    /// Puts the blob in its place under `digest`, which the caller has computed while writing.
    ///
    /// # Errors
    /// If the target cannot be written.
    pub fn finish(self, digest: Digest) -> Result<u64, Error> {
        match self.inner {
            WriterInner::Layout(writer) => writer.finish(digest),
            WriterInner::Archive(writer) => writer.finish(digest),
        }
    }
}

impl Write for BlobWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match &mut self.inner {
            WriterInner::Layout(writer) => writer.write(buf),
            WriterInner::Archive(writer) => writer.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An I/O error that names what it happened to, for those who only see a [`Write`].
fn named(path: &std::path::Path, error: io::Error) -> io::Error {
    io::Error::new(
        error.kind(),
        Error::Io {
            action: "write",
            path: path.to_owned(),
            source: error,
        },
    )
}

/// The content of `oci-layout`.
const OCI_LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// The entry of `index.json` for `root` under `tag`, a tag or a full image name.
fn index_entry(root: &Descriptor, tag: Option<&str>) -> Value {
    let mut entry = root.clone();
    entry.annotations = None;
    if let Some(tag) = tag {
        if tag.contains(['/', ':']) {
            entry.annotate(ANNOTATION_CONTAINERD_NAME, tag);
            entry.annotate(ANNOTATION_REF_NAME, tag_of(tag).unwrap_or(tag));
        } else {
            entry.annotate(ANNOTATION_REF_NAME, tag);
        }
    }
    serde_json::to_value(entry).expect("a descriptor always serialises")
}

/// An `index.json` without entries.
fn empty_index() -> Value {
    json!({"schemaVersion": 2, "mediaType": crate::media::OCI_INDEX, "manifests": []})
}
