//! Taking blobs that lie in a backend into the image they belong to.

use bootstrap::Parsed;
use image::nydus::{self, ANNOTATION_BLOB_IDS};
use image::{Descriptor, Digest, Manifest, Selected, Source, Target};

use serde_json::Value;

use crate::Error;

/// An image as it is once it lists its blobs.
pub(crate) struct Gathered {
    /// The blobs, which lie in the backend.
    pub blobs: Vec<Descriptor>,
    /// The configuration with their diff ids.
    pub config: Value,
    /// The manifest that lists them, but for the configuration.
    pub manifest: Manifest,
}

/// What becomes of `image` if its blobs lie in the source's backend; `None` if it stays as it is.
///
/// # Errors
/// [`Error`] if the bootstrap cannot be read, or if the backend does not have one of the blobs.
pub(crate) fn gather(source: &Source, image: &Selected) -> Result<Option<Gathered>, Error> {
    let manifest = &image.manifest;
    let Some(backend) = source.backend().filter(|_| nydus::is_nydus(manifest)) else {
        return Ok(None);
    };
    let bytes = nydus::read_bootstrap(source, manifest)?;
    let bootstrap = Parsed::parse(bytes).map_err(|source| Error::Bootstrap {
        manifest: image.descriptor.digest,
        source,
    })?;
    let mut blobs = Vec::new();
    for blob in bootstrap.blobs() {
        // Blobs with other names than their digests are in no registry.
        let digest = Digest::from_hex(blob.id.as_str()).ok_or_else(|| Error::BlobId {
            manifest: image.descriptor.digest,
            id: blob.id.to_string(),
        })?;
        if manifest.layers.iter().all(|layer| layer.digest != digest) {
            let size = backend.blob(&digest, None)?.size();
            blobs.push(nydus::blob_descriptor(digest, size));
        }
    }
    if blobs.is_empty() {
        return Ok(None);
    }
    let what = format!("configuration {}", manifest.config.digest);
    let ids: Vec<Digest> = blobs.iter().map(|blob| blob.digest).collect();
    let config = nydus::with_blobs(&source.config(manifest)?, &ids, &what)?;
    let mut manifest = manifest.clone();
    for layer in &mut manifest.layers {
        if let Some(annotations) = &mut layer.annotations {
            annotations.remove(ANNOTATION_BLOB_IDS);
        }
    }
    manifest.layers.splice(0..0, blobs.iter().cloned());
    Ok(Some(Gathered {
        config,
        blobs,
        manifest,
    }))
}

impl Gathered {
    /// Writes configuration and manifest; gives the image's entry in the index, which was `entry`, as it is now. The
    /// layers are in place.
    pub(crate) fn put(
        mut self,
        mut entry: Descriptor,
        target: &Target,
    ) -> Result<Descriptor, Error> {
        let kind = self.manifest.config.media_type.clone();
        let config = serde_json::to_vec(&self.config).expect("a JSON value always serialises");
        self.manifest.config = target.put(&config, &kind)?;
        let put = target.put_document(&self.manifest.to_json(), &self.manifest.media_type)?;
        (entry.media_type, entry.digest, entry.size) = (put.media_type, put.digest, put.size);
        Ok(entry)
    }
}
