//! The blobs of a Nydus image, by the ids that its bootstrap has for them.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use storage::{BlobReader, BlobSource};

use crate::{Digest, Manifest, Source};

/// The blobs of an image: where its source has them, or in the source's backend if the manifest does not list them.
pub struct ImageBlobs {
    source: Source,
    /// Sizes that the manifest states: remote places need not be asked for them.
    sizes: HashMap<Digest, u64>,
}

impl ImageBlobs {
    /// The blobs of the image of `manifest` in `source`.
    pub fn new(source: Source, manifest: &Manifest) -> Self {
        let sizes = manifest.layers.iter();
        let sizes = sizes.map(|layer| (layer.digest, layer.size)).collect();
        Self { source, sizes }
    }
}

impl BlobSource for ImageBlobs {
    fn open(&self, id: &str) -> io::Result<Arc<dyn BlobReader>> {
        let digest = Digest::from_hex(id).ok_or_else(|| {
            let what = format!("blob id {id:?} is no SHA-256");
            io::Error::new(io::ErrorKind::NotFound, what)
        })?;
        let size = self.sizes.get(&digest).copied();
        let blob = match self.source.backend() {
            Some(backend) if size.is_none() => backend.blob(&digest, None),
            _ => self.source.blob(&digest, size),
        };
        blob.map_err(io::Error::other)
    }
}
