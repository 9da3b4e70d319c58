//! What can be checked: images and bare RAFS files.

use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use image::nydus::{self, ImageBlobs};
use image::{Descriptor, Manifest, Platform, Source};
use serde_json::Value;
use storage::{BlobSource, DirSource, LoadedBootstrap};

/// One side of a check.
pub struct Side {
    /// What reports call it.
    pub name: String,
    /// Manifest and configuration, unless it is bare RAFS files.
    pub document: Option<Document>,
    /// Where its files are.
    pub files: Files,
}

/// What the manifest rule looks at.
pub struct Document {
    /// The manifest.
    pub manifest: Manifest,
    /// The image configuration, as it is.
    pub config: Value,
    /// SHA-256 of the uncompressed bootstrap layer, if the image is a Nydus image.
    pub bootstrap_diff_id: Option<image::Digest>,
    /// The platform that the index states, if the image is in one.
    pub platform: Option<Platform>,
}

/// Where the files of an image are.
pub enum Files {
    /// In layers, lowest first.
    Layers(Vec<LayerFile>),
    /// In a bootstrap and its blobs.
    Rafs {
        /// The bootstrap.
        bootstrap: Arc<LoadedBootstrap>,
        /// The blobs; without them only what the bootstrap says is checked.
        blobs: Option<Arc<dyn BlobSource>>,
    },
}

type OpenLayer = dyn Fn() -> io::Result<Box<dyn Read + Send>> + Send + Sync;

/// A layer: a tar, possibly compressed.
pub struct LayerFile {
    /// What reports call it: its digest.
    pub name: String,
    /// Stored size in bytes, for progress.
    pub size: u64,
    open: Box<OpenLayer>,
}

impl LayerFile {
    /// A layer whose stored bytes `open` returns. A stream that turns out to be corrupt must fail at its end.
    pub fn new(
        name: impl Into<String>,
        size: u64,
        open: impl Fn() -> io::Result<Box<dyn Read + Send>> + Send + Sync + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            size,
            open: Box::new(open),
        }
    }

    /// The stored bytes from the start.
    ///
    /// # Errors
    /// What the place of the layer reports.
    pub fn open(&self) -> io::Result<Box<dyn Read + Send>> {
        (self.open)()
    }
}

/// Why a side cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The image cannot be read.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// The bootstrap is malformed.
    #[error("bootstrap of {name}")]
    Bootstrap {
        /// The image.
        name: String,
        /// What is wrong with it.
        source: Box<storage::Error>,
    },
    /// The index calls an image a Nydus image that is none.
    #[error("{name}: the index calls {digest} a Nydus image, but its last layer is no bootstrap")]
    NoBootstrap {
        /// The target.
        name: String,
        /// The manifest.
        digest: image::Digest,
    },
    /// The target has an image that the source has not.
    #[error("{source_name} has no image to compare with {name}")]
    NoCounterpart {
        /// The target.
        name: String,
        /// The source.
        source_name: String,
    },
    /// Bare RAFS files cannot be used.
    #[error(transparent)]
    Storage(#[from] storage::Error),
}

impl Side {
    /// An image of either kind, in a place that `source` reads.
    ///
    /// # Errors
    /// [`OpenError`] if its documents or its bootstrap cannot be read.
    pub fn image(
        source: &Arc<Source>,
        name: impl Into<String>,
        manifest: Manifest,
    ) -> Result<Self, OpenError> {
        let name = name.into();
        let config = source.config(&manifest)?;
        let Some(layer) = nydus::bootstrap_descriptor(&manifest) else {
            let layers = manifest
                .layers
                .iter()
                .map(|layer| layer_file(source, layer))
                .collect();
            let document = Document {
                manifest,
                config,
                bootstrap_diff_id: None,
                platform: None,
            };
            return Ok(Self {
                name,
                document: Some(document),
                files: Files::Layers(layers),
            });
        };
        let what = format!("bootstrap layer {}", layer.digest);
        let (bootstrap, diff_id) = nydus::unpack_bootstrap(source.open_blob(layer)?, &what)?;
        let bootstrap =
            LoadedBootstrap::from_bytes(bootstrap).map_err(|source| OpenError::Bootstrap {
                name: name.clone(),
                source: source.into(),
            })?;
        let blobs = ImageBlobs::new(Source::clone(source), &manifest);
        Ok(Self {
            name,
            document: Some(Document {
                manifest,
                config,
                bootstrap_diff_id: Some(diff_id),
                platform: None,
            }),
            files: Files::Rafs {
                bootstrap: Arc::new(bootstrap),
                blobs: Some(Arc::new(blobs)),
            },
        })
    }

    /// The same image, for which an index states a platform.
    #[must_use]
    pub fn on(mut self, platform: Option<Platform>) -> Self {
        if let Some(document) = &mut self.document {
            document.platform = platform;
        }
        self
    }

    /// A bootstrap (or a native layer blob, which holds one), and a directory with blobs named by their ids.
    ///
    /// # Errors
    /// [`OpenError::Storage`] if no bootstrap can be read there.
    pub fn bare(bootstrap: &Path, blob_dir: Option<&Path>) -> Result<Self, OpenError> {
        let loaded = storage::load_bootstrap(bootstrap)?;
        let rest = blob_dir.map(|dir| Arc::new(DirSource(dir.to_owned())) as Arc<dyn BlobSource>);
        let blobs = match (&loaded.own_blob, &rest) {
            (None, None) => None,
            _ => Some(loaded.source(rest)?),
        };
        Ok(Self {
            name: bootstrap.display().to_string(),
            document: None,
            files: Files::Rafs {
                bootstrap: Arc::new(loaded),
                blobs,
            },
        })
    }
}

fn layer_file(source: &Arc<Source>, layer: &Descriptor) -> LayerFile {
    let (source, descriptor) = (Arc::clone(source), layer.clone());
    LayerFile::new(layer.digest.to_string(), layer.size, move || {
        image::media::layer(&descriptor.media_type, &descriptor.digest.to_string())
            .map_err(io::Error::other)?;
        source.open_blob(&descriptor).map_err(io::Error::other)
    })
}
