//! A backend as a place that images are read from and written to.

use std::fmt;
use std::io;
use std::sync::Arc;

use image::{BlobSink, Descriptor, Digest, Sink, Store, Target};
use progress::Cancel;
use registry::Client;
use storage::{BlobReader, BlobSource};

use crate::Error;
use crate::bucket::Bucket;
use crate::config::{self, Config};
use crate::detour::Reading;
use crate::hosts::MirrorHost;
use crate::local::{self, LocalWriter};
use crate::object::Object;
use crate::upload::Upload;

/// Where blobs lie outside of the image. Clones share all there is.
#[derive(Debug, Clone)]
pub struct Backend {
    place: Place,
}

#[derive(Debug, Clone)]
pub(crate) enum Place {
    Bucket(Arc<Bucket>),
    Local(Arc<config::Local>),
}

impl Backend {
    /// The backend of a configuration. Nothing is asked for yet. `client` has the connections for stores.
    ///
    /// # Errors
    /// [`Error::Key`] if a host is none.
    pub fn open(config: &Config, client: &Client) -> Result<Self, Error> {
        let place = Place::open(config, client, None)?;
        Ok(Self { place })
    }

    /// The backend for writing blobs, and nothing but blobs. A blob that is there already, with the size that it should
    /// have, is not written again, unless `force` says so.
    pub fn target(&self, force: bool) -> Target {
        let place = self.place.clone();
        Target::new(Arc::new(Writing { place, force }))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bucket(bucket) => bucket.fmt(f),
            Self::Local(local) => match local.dir.as_ref().or(local.file.as_ref()) {
                Some(path) => write!(f, "localfs backend {}", path.display()),
                None => f.write_str("localfs backend"),
            },
        }
    }
}

impl Place {
    /// The place of a configuration, its bucket by way of `mirror`.
    pub(crate) fn open(
        config: &Config,
        client: &Client,
        mirror: Option<&MirrorHost>,
    ) -> Result<Self, Error> {
        Ok(match &config.place {
            config::Place::Bucket(bucket) => {
                Self::Bucket(Arc::new(Bucket::new(bucket, client, mirror)?))
            }
            config::Place::Local(local) => Self::Local(Arc::new(local.clone())),
        })
    }
}

impl Reading for Place {
    fn blob(&self, id: &str, size: Option<u64>) -> Result<Option<Arc<dyn BlobReader>>, Error> {
        Ok(match self {
            Self::Bucket(bucket) => {
                let name = bucket.object(id);
                let size = match size {
                    Some(size) => Some(size),
                    None => bucket.size(&name)?,
                };
                let object = |size| Object::new(Arc::clone(bucket), &name, size);
                size.map(|size| Arc::new(object(size)) as Arc<dyn BlobReader>)
            }
            Self::Local(local) => local.find(id)?.map(local::reader),
        })
    }

    fn name(&self) -> String {
        self.to_string()
    }
}

impl Store for Backend {
    fn blob(
        &self,
        digest: &Digest,
        size: Option<u64>,
    ) -> Result<Arc<dyn BlobReader>, image::Error> {
        let found = self.place.blob(&digest.hex(), size)?;
        found.ok_or_else(|| image::Error::MissingBlob {
            digest: *digest,
            store: self.name(),
        })
    }

    fn name(&self) -> String {
        self.place.to_string()
    }
}

impl BlobSource for Backend {
    fn open(&self, id: &str) -> io::Result<Arc<dyn BlobReader>> {
        open_by_name(id, &self.name(), || self.place.blob(id, None))
    }
}

/// The blob that `find` finds by its id, which may be any name of an object.
pub(crate) fn open_by_name(
    id: &str,
    place: &str,
    find: impl FnOnce() -> Result<Option<Arc<dyn BlobReader>>, Error>,
) -> io::Result<Arc<dyn BlobReader>> {
    if id.is_empty() || id.starts_with('.') || id.contains(['/', '\0']) {
        let reason = format!("blob id {id:?} is no name of an object");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    }
    find()?.ok_or_else(|| {
        let reason = format!("blob {id} is missing from {place}");
        io::Error::new(io::ErrorKind::NotFound, reason)
    })
}

/// A backend that is written to.
struct Writing {
    place: Place,
    force: bool,
}

impl Sink for Writing {
    fn writer(self: Arc<Self>) -> Result<Box<dyn BlobSink>, image::Error> {
        Ok(match &self.place {
            Place::Bucket(bucket) => Box::new(Upload::new(Arc::clone(bucket), self.force)),
            Place::Local(local) => Box::new(LocalWriter::new(local, self.force)?),
        })
    }

    fn contains(&self, digest: &Digest, size: u64, _: &Cancel) -> Result<bool, image::Error> {
        let id = digest.hex();
        Ok(match &self.place {
            _ if self.force => false,
            Place::Bucket(bucket) => bucket.has(&bucket.object(&id), size)?,
            Place::Local(local) => local.has(&id, size),
        })
    }

    fn store(self: Arc<Self>) -> Arc<dyn Store> {
        Arc::new(Backend {
            place: self.place.clone(),
        })
    }

    /// Blobs are in place when they are finished, and nothing leads to them but the image.
    fn commit(&self, _: &Descriptor) -> Result<(), image::Error> {
        Ok(())
    }
}
