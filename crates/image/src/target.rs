//! Writing an image.

mod archive;
mod behind;
mod layout;
mod leaving;

use std::io::{self, Read as _, Write};
use std::sync::Arc;

use progress::Cancel;
use serde_json::{Value, json};
use storage::BlobReader;

pub use layout::remove_images;

use crate::source::{Store, tag_of};
use crate::{
    ANNOTATION_CONTAINERD_NAME, ANNOTATION_REF_NAME, Descriptor, Digest, Error, Location, Source,
};

/// A place that an image is written to, from many threads at once. Dropped without [`Sink::commit`], it takes away what
/// was written as far as it can.
pub trait Sink: Send + Sync {
    /// Begins a blob whose digest is not known yet.
    ///
    /// # Errors
    /// If the place cannot be written.
    fn writer(self: Arc<Self>) -> Result<Box<dyn BlobSink>, Error>;

    /// Whether a blob is in place already, and sound as far as the place can tell; `false` if that is not known yet when
    /// `cancel` says to stop.
    ///
    /// # Errors
    /// If the place cannot say.
    fn contains(&self, digest: &Digest, size: u64, cancel: &Cancel) -> Result<bool, Error>;

    /// Takes a manifest or an index whose blobs are in place. Nobody else need see it before [`Sink::commit`].
    ///
    /// # Errors
    /// If the place cannot be written.
    fn put_document(self: Arc<Self>, bytes: &[u8], descriptor: &Descriptor) -> Result<(), Error> {
        put_blob(self, bytes, descriptor)
    }

    /// Takes a blob over from where `source` has it, without a copy through this process. `false` if that can't be done.
    ///
    /// # Errors
    /// If the place cannot be written.
    fn adopt(&self, _source: &dyn Store, _descriptor: &Descriptor) -> Result<bool, Error> {
        Ok(false)
    }

    /// The place, for reading what was written.
    fn store(self: Arc<Self>) -> Arc<dyn Store>;

    /// Makes `root` the image that the target's tag leads to, once everything is on stable storage.
    ///
    /// # Errors
    /// If the place cannot be written.
    fn commit(&self, root: &Descriptor) -> Result<(), Error>;

    /// Forgets the documents that nobody else has seen: they are not part of the image after all.
    fn forget_documents(&self) {}

    /// Whether blobs have to be written one after another.
    fn is_sequential(&self) -> bool {
        false
    }

    /// Bytes of a blob that are in memory while it is written, at most.
    fn buffered(&self) -> usize {
        0
    }
}

/// One blob on its way into a [`Sink`]; dropped before [`BlobSink::finish`], it leaves nothing. Errors of [`Write`] carry
/// an [`Error`] that names the target.
pub trait BlobSink: Write + Send {
    /// Puts the blob in its place under `digest`; gives its size in bytes.
    ///
    /// # Errors
    /// If the target cannot be written.
    fn finish(self: Box<Self>, digest: Digest) -> Result<u64, Error>;
}

/// Where an image is being written. Dropped without [`Target::commit`], it takes away what it wrote.
///
/// * A layout directory is made if absent and extended if present: blobs of the same content are kept, the entry of
///   the same tag is replaced, all others stay. Several processes may write to one layout.
/// * An archive is written under a temporary name beside its own and replaces whatever was there. Its blobs are
///   written one after another: a second [`Target::blob_writer`] waits for the first.
/// * Other places are [`Sink`]s.
#[derive(Clone)]
pub struct Target {
    sink: Arc<dyn Sink>,
}

/// How a blob came to be in a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// It was there before.
    Present,
    /// The target took it over from where it was, without a copy through this process.
    Adopted,
    /// It was copied.
    Copied,
}

/// One blob being written. It is in the target only after [`BlobWriter::finish`]; dropped before, it leaves nothing.
///
/// Errors of [`Write`] carry an [`Error`] that names the target.
pub struct BlobWriter {
    inner: Box<dyn BlobSink>,
}

impl Target {
    /// A target that writes to `sink`.
    pub fn new(sink: Arc<dyn Sink>) -> Self {
        Self { sink }
    }

    /// The same target, where these blobs count as in place: they stay wherever they are.
    #[must_use]
    pub fn leaving(self, blobs: impl IntoIterator<Item = Digest>) -> Self {
        Self::new(Arc::new(leaving::Leaving {
            sink: self.sink,
            blobs: blobs.into_iter().collect(),
        }))
    }

    /// Makes ready for writing an image to local files.
    ///
    /// # Errors
    /// [`Error::Registry`] for registries, [`Error::Location`] for docker archives, which are only read; if the place
    /// cannot be written or holds something else.
    pub fn open(location: &Location) -> Result<Self, Error> {
        let sink: Arc<dyn Sink> = match location {
            Location::OciLayout { dir, tag } => {
                Arc::new(layout::Layout::open(dir, tag.as_deref())?)
            }
            Location::OciArchive { file, tag } => {
                Arc::new(archive::ArchiveFile::create(file, tag.as_deref())?)
            }
            Location::DockerArchive { .. } => {
                return Err(Error::Location {
                    location: location.to_string(),
                    reason: "docker archives can only be read; write an oci-archive: instead",
                });
            }
            Location::Registry(reference) => return Err(Error::Registry(reference.clone())),
        };
        Ok(Self::new(sink))
    }

    /// Whether blobs have to be written one after another.
    pub fn is_sequential(&self) -> bool {
        self.sink.is_sequential()
    }

    /// Bytes of each blob that are in memory while it is written, at most.
    pub fn buffered(&self) -> usize {
        self.sink.buffered()
    }

    /// Begins a blob whose digest is not known yet.
    ///
    /// # Errors
    /// If the target cannot be written.
    pub fn blob_writer(&self) -> Result<BlobWriter, Error> {
        let inner = Arc::clone(&self.sink).writer()?;
        Ok(BlobWriter { inner })
    }

    /// Writes a small blob.
    ///
    /// # Errors
    /// If the target cannot be written.
    pub fn put(&self, bytes: &[u8], media_type: &str) -> Result<Descriptor, Error> {
        let descriptor = Descriptor::new(media_type, Digest::of(bytes), bytes.len() as u64);
        put_blob(Arc::clone(&self.sink), bytes, &descriptor)?;
        Ok(descriptor)
    }

    /// Writes a manifest or an index. What it names must be in place.
    ///
    /// # Errors
    /// If the target cannot be written.
    pub fn put_document(&self, bytes: &[u8], media_type: &str) -> Result<Descriptor, Error> {
        let descriptor = Descriptor::new(media_type, Digest::of(bytes), bytes.len() as u64);
        Arc::clone(&self.sink).put_document(bytes, &descriptor)?;
        Ok(descriptor)
    }

    /// Forgets the manifests and indexes written so far: others take their place.
    pub fn forget_documents(&self) {
        self.sink.forget_documents();
    }

    /// The size of a blob in bytes if it is in place at this moment, whatever was known of it before.
    ///
    /// # Errors
    /// If the target cannot say.
    pub fn look_for(&self, digest: &Digest) -> Result<Option<u64>, Error> {
        match self.store().blob(digest, None) {
            Ok(blob) => Ok(Some(blob.size())),
            Err(Error::MissingBlob { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether a blob is in place already.
    ///
    /// # Errors
    /// If the target cannot say.
    pub fn contains(&self, digest: &Digest, size: u64) -> Result<bool, Error> {
        self.sink.contains(digest, size, &Cancel::default())
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
        self.copy_with(source, descriptor, cancel, &|_| {})
            .map(drop)
    }

    /// Whether a blob is in place, or could be taken over from `source` without a copy through this process.
    ///
    /// # Errors
    /// If the target cannot be written, or cannot say.
    pub fn take_over(
        &self,
        source: &Source,
        descriptor: &Descriptor,
        cancel: &Cancel,
    ) -> Result<bool, Error> {
        Ok(self
            .sink
            .contains(&descriptor.digest, descriptor.size, cancel)?
            || self.sink.adopt(source.store(), descriptor)?)
    }

    /// Copies a blob as [`Target::copy`] does, and tells `advanced` how many bytes went through each time.
    ///
    /// # Errors
    /// As [`Target::copy`].
    pub fn copy_with(
        &self,
        source: &Source,
        descriptor: &Descriptor,
        cancel: &Cancel,
        advanced: &dyn Fn(u64),
    ) -> Result<Arrival, Error> {
        let (digest, size) = (&descriptor.digest, descriptor.size);
        if self.sink.contains(digest, size, cancel)? {
            return Ok(Arrival::Present);
        }
        if self.sink.adopt(source.store(), descriptor)? {
            return Ok(Arrival::Adopted);
        }
        let mut reader = source.open_blob(descriptor)?;
        let mut writer = self.blob_writer()?;
        let mut buffer = vec![0; 1 << 18];
        loop {
            cancel.check()?;
            match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(got) => {
                    writer.write_all(&buffer[..got]).map_err(writing)?;
                    advanced(got as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(source.reading(digest, error)),
            }
        }
        writer.finish(*digest)?;
        Ok(Arrival::Copied)
    }

    /// Copies a manifest or an index from `source`, verified. What it names must be in place.
    ///
    /// # Errors
    /// As [`Target::copy`].
    pub fn copy_document(&self, source: &Source, descriptor: &Descriptor) -> Result<(), Error> {
        let bytes = source.read_document(descriptor)?;
        self.put_document(&bytes, &descriptor.media_type).map(drop)
    }

    /// A blob that is in place, for reading at random.
    ///
    /// # Errors
    /// If there is no such blob.
    pub fn blob(&self, digest: &Digest, size: u64) -> Result<Arc<dyn BlobReader>, Error> {
        self.store().blob(digest, Some(size))
    }

    /// The target as a place to read from.
    pub fn store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.sink).store()
    }

    /// The image under `root` as it lies in the target, readable before it is committed.
    ///
    /// # Errors
    /// If `root` is no manifest or index.
    pub fn source(&self, root: &Descriptor) -> Result<Source, Error> {
        Source::new(self.store(), root.clone(), None)
    }

    /// Makes `root` the image that the target's tag leads to. All its blobs must be in place. They are on stable
    /// storage before the tag is.
    ///
    /// # Errors
    /// If the target cannot be written; what was written is then taken away again.
    pub fn commit(self, root: &Descriptor) -> Result<(), Error> {
        self.sink.commit(root)
    }
}

impl BlobWriter {
    /// Puts the blob in its place under `digest`, which the caller has computed while writing.
    ///
    /// # Errors
    /// If the target cannot be written.
    pub fn finish(self, digest: Digest) -> Result<u64, Error> {
        self.inner.finish(digest)
    }
}

impl Write for BlobWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.inner.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Writes a small blob unless it is in place already.
fn put_blob<S: Sink + ?Sized>(
    sink: Arc<S>,
    bytes: &[u8],
    descriptor: &Descriptor,
) -> Result<(), Error> {
    if sink.contains(&descriptor.digest, descriptor.size, &Cancel::default())? {
        return Ok(());
    }
    let mut writer = sink.writer()?;
    writer.write_all(bytes).map_err(writing)?;
    writer.finish(descriptor.digest).map(drop)
}

/// The [`Error`] that a [`BlobSink`] failed with.
fn writing(error: io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(inner) => inner,
        Err(source) => Error::Io {
            action: "write",
            path: "the target".into(),
            source,
        },
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
