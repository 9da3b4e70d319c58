//! Images in a registry, as [`image`] reads and writes them.
//!
//! A source reads documents and blobs when they are asked for; the size that a manifest states spares a question. A
//! target keeps manifests and indexes in memory until the very end: what does not come to its end leaves none.

use std::collections::{HashMap, HashSet};
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use image::{BlobSink, Descriptor, Digest, Manifest, Origin, Sink, Source, Store, Target};
use progress::Cancel;
use storage::{BlobReader, BlobSource};

use crate::{Client, Error, Reference, Repository, Upload};

impl Client {
    /// The image behind `reference`, for reading.
    ///
    /// # Errors
    /// [`Error::NotFound`] inside if there is none; if what is there is no image; and all that can go wrong on the way.
    pub fn source(&self, reference: &Reference) -> Result<Source, image::Error> {
        let repository = self.repository(reference);
        let root = repository.manifest(&reference.target())?;
        let descriptor = Descriptor::new(root.media_type, root.digest, root.bytes.len() as u64);
        let images = Images::new(repository);
        images.remember(root.digest, root.bytes);
        let name = reference.to_string();
        Source::new(Arc::new(images), descriptor, Some(name))
    }

    /// The image of `root` in the repository of `reference`, for reading. Nothing is asked for yet.
    ///
    /// # Errors
    /// If `root` is no manifest or index.
    pub fn source_of(
        &self,
        reference: &Reference,
        root: Descriptor,
    ) -> Result<Source, image::Error> {
        let images = Images::new(self.repository(reference));
        Source::new(Arc::new(images), root, Some(reference.to_string()))
    }

    /// The image to be behind `reference`, for writing. Nothing is asked for yet.
    pub fn target(&self, reference: &Reference) -> Target {
        Target::new(Arc::new(Pushing {
            images: Arc::new(Images::new(self.repository(reference))),
            reference: reference.clone(),
            state: Mutex::default(),
        }))
    }
}

/// A repository as a place to read from.
struct Images {
    repository: Repository,
    /// Documents that were read already, or are to be pushed.
    documents: Mutex<HashMap<Digest, Arc<Vec<u8>>>>,
}

impl Images {
    fn new(repository: Repository) -> Self {
        Self {
            repository,
            documents: Mutex::default(),
        }
    }

    fn documents(&self) -> MutexGuard<'_, HashMap<Digest, Arc<Vec<u8>>>> {
        self.documents
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, digest: Digest, bytes: Vec<u8>) -> Arc<Vec<u8>> {
        let bytes = Arc::new(bytes);
        self.documents().insert(digest, Arc::clone(&bytes));
        bytes
    }
}

impl Store for Images {
    fn blob(
        &self,
        digest: &Digest,
        size: Option<u64>,
    ) -> Result<Arc<dyn BlobReader>, image::Error> {
        let size = match size {
            Some(size) => size,
            None => {
                self.repository
                    .blob_size(digest)?
                    .ok_or_else(|| image::Error::MissingBlob {
                        digest: *digest,
                        store: self.name(),
                    })?
            }
        };
        Ok(self.repository.blob(digest, size))
    }

    fn document(&self, descriptor: &Descriptor) -> Result<Arc<dyn BlobReader>, image::Error> {
        let digest = descriptor.digest;
        let known = self.documents().get(&digest).cloned();
        Ok(match known {
            Some(bytes) => bytes,
            None => {
                let read = self.repository.manifest(&digest.to_string())?;
                self.remember(digest, read.bytes)
            }
        })
    }

    fn name(&self) -> String {
        self.repository.to_string()
    }

    fn origin(&self) -> Option<Origin> {
        Some(Origin {
            host: self.repository.host().to_owned(),
            repository: self.repository.name().to_owned(),
        })
    }
}

/// A blob in a registry.
struct RemoteBlob {
    repository: Repository,
    digest: Digest,
    size: u64,
}

impl BlobReader for RemoteBlob {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64);
        if end.is_none_or(|end| end > self.size) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(self.repository.read_range(&self.digest, offset, buf)?)
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn stream(self: Arc<Self>, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        let stream = self.repository.open_blob(&self.digest, self.size, offset);
        Ok(Box::new(stream.map_err(io::Error::other)?))
    }
}

impl Repository {
    /// A blob of `size` bytes, to be read at random. Nothing is asked for yet.
    pub fn blob(&self, digest: &Digest, size: u64) -> Arc<dyn BlobReader> {
        Arc::new(RemoteBlob {
            repository: self.clone(),
            digest: *digest,
            size,
        })
    }
}

/// Blobs whose ids are the hexadecimal SHA-256 that the registry knows them by.
impl BlobSource for Repository {
    fn open(&self, id: &str) -> io::Result<Arc<dyn BlobReader>> {
        let digest = Digest::from_hex(id).ok_or_else(|| {
            let reason = format!("blob id {id:?} is no SHA-256, by which registries name blobs");
            io::Error::new(io::ErrorKind::InvalidInput, reason)
        })?;
        let size = self.blob_size(&digest)?.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                format!("blob {id} is missing from {self}"),
            )
        })?;
        Ok(self.blob(&digest, size))
    }
}

/// A repository as a place to write to.
struct Pushing {
    images: Arc<Images>,
    reference: Reference,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Blobs that are in place: pushed here, or found there.
    present: HashSet<Digest>,
    /// Documents that wait for the end, children before parents.
    documents: Vec<Descriptor>,
}

impl Pushing {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn repository(&self) -> &Repository {
        &self.images.repository
    }

    fn bytes(&self, digest: &Digest) -> Result<Arc<Vec<u8>>, image::Error> {
        let known = self.images.documents().get(digest).cloned();
        known.ok_or_else(|| image::Error::MissingBlob {
            digest: *digest,
            store: self.images.name(),
        })
    }

    /// Pushes a document under its digest, and sees to it that it is found from its subject.
    fn push(&self, descriptor: &Descriptor) -> Result<(), image::Error> {
        let bytes = self.bytes(&descriptor.digest)?;
        let name = descriptor.digest.to_string();
        let pushed = self
            .repository()
            .put_manifest(&name, &descriptor.media_type, &bytes)?;
        match referrer(descriptor, &bytes) {
            Some((subject, entry)) if !pushed.subject_noted => {
                Ok(self.repository().add_referrer(&subject, entry)?)
            }
            _ => Ok(()),
        }
    }
}

impl Sink for Pushing {
    /// One segment on the wire, and one that fills.
    fn buffered(&self) -> usize {
        2 * self.repository().core().settings.segment_size
    }

    fn writer(self: Arc<Self>) -> Result<Box<dyn BlobSink>, image::Error> {
        let upload = self.repository().upload()?;
        Ok(Box::new(Writer {
            upload,
            target: self,
        }))
    }

    fn contains(&self, digest: &Digest, size: u64, _: &Cancel) -> Result<bool, image::Error> {
        if self.state().present.contains(digest) {
            return Ok(true);
        }
        let found = self.repository().blob_size(digest)? == Some(size);
        if found {
            self.state().present.insert(*digest);
        }
        Ok(found)
    }

    fn put_document(
        self: Arc<Self>,
        bytes: &[u8],
        descriptor: &Descriptor,
    ) -> Result<(), image::Error> {
        self.images.remember(descriptor.digest, bytes.to_vec());
        let documents = &mut self.state().documents;
        if !documents
            .iter()
            .any(|known| known.digest == descriptor.digest)
        {
            documents.push(descriptor.clone());
        }
        Ok(())
    }

    fn adopt(&self, source: &dyn Store, descriptor: &Descriptor) -> Result<bool, image::Error> {
        let Some(origin) = source
            .origin()
            .filter(|origin| origin.host == self.repository().host())
        else {
            return Ok(false);
        };
        let digest = &descriptor.digest;
        let mounted = self.repository().mount_blob(digest, &origin.repository)?;
        if mounted {
            self.state().present.insert(*digest);
        }
        Ok(mounted)
    }

    fn forget_documents(&self) {
        self.state().documents.clear();
    }

    fn store(self: Arc<Self>) -> Arc<dyn Store> {
        Arc::clone(&self.images) as Arc<dyn Store>
    }

    fn commit(&self, root: &Descriptor) -> Result<(), image::Error> {
        let documents = self.state().documents.clone();
        for document in documents.iter().filter(|one| one.digest != root.digest) {
            self.push(document)?;
        }
        let bytes = self.bytes(&root.digest)?;
        if referrer(root, &bytes).is_some() || self.reference.tag().is_none() {
            self.push(root)?;
        }
        if let Some(tag) = self.reference.tag() {
            self.repository()
                .put_manifest(tag, &root.media_type, &bytes)?;
        }
        Ok(())
    }
}

/// What a document refers to, and its entry among the referrers of that.
fn referrer(descriptor: &Descriptor, bytes: &[u8]) -> Option<(Digest, Descriptor)> {
    let manifest: Manifest = serde_json::from_slice(bytes).ok()?;
    let subject = manifest.other.get("subject")?.get("digest")?.as_str()?;
    let mut entry = Descriptor::new(
        descriptor.media_type.clone(),
        descriptor.digest,
        descriptor.size,
    );
    let kind = manifest.other.get("artifactType");
    let kind = kind.and_then(serde_json::Value::as_str);
    let kind = kind.unwrap_or(&manifest.config.media_type);
    entry.other.insert("artifactType".to_owned(), kind.into());
    entry.annotations.clone_from(&manifest.annotations);
    Some((subject.parse().ok()?, entry))
}

/// A blob on its way into a registry.
struct Writer {
    upload: Upload,
    target: Arc<Pushing>,
}

impl Write for Writer {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.upload.write(buf).map_err(of_image)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.upload.flush().map_err(of_image)
    }
}

impl BlobSink for Writer {
    fn finish(self: Box<Self>, digest: Digest) -> Result<u64, image::Error> {
        let size = self.upload.finish(digest)?;
        self.target.state().present.insert(digest);
        Ok(size)
    }
}

/// An error of an upload with an error of `image` inside, as those who write blobs expect.
fn of_image(error: io::Error) -> io::Error {
    match error.downcast::<Error>() {
        Ok(inner) => io::Error::other(image::Error::from(inner)),
        Err(error) => error,
    }
}

impl From<Error> for image::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Cancelled(cancelled) => Self::Cancelled(cancelled),
            Error::UploadLost { .. } => Self::Lost(error.into()),
            _ => Self::Remote(error.into()),
        }
    }
}
