//! The build cache: an image whose layers are blobs that layers were converted to, so that no machine converts again what
//! another one has.
//!
//! It is an index with a manifest per platform. Each manifest says which version of the cache it is of, and has one layer
//! per record: the descriptor of the blob, annotated with the source layer it was made from. That is the form of the
//! deployed tool, whose records say nothing of options: ours say in two more annotations which key ([`Key`]) they
//! are of and what the bootstrap in the blob's tail must be. Records without a key are kept, and not used.
//!
//! A record is a hint from others. It is used if its blob is there and the bootstrap in the blob's tail is what the record
//! says and what these options make ([`crate::reuse`]). That the blob has the content of the source layer is what whoever may
//! write the cache vouches for; `check` proves it, and if it does not hold, all is converted again without the cache.

mod save;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use image::{Descriptor, Digest, Index, Manifest, Node, Platform, PlatformChoice, Source, nydus};
use progress::Cancel;

use crate::Error;
use crate::error::causes;
use crate::journal::{Key, Record};
use crate::layer::ConvertedLayer;
use crate::manifest::Converted;
use crate::reuse::Origin;

/// Most manifests that a build cache may have.
const MANIFESTS_MAX: usize = 64;

/// Where a build cache lies.
pub trait CachePlace: Send + Sync {
    /// The cache as it is now; `None` if there is none yet.
    ///
    /// # Errors
    /// Whatever keeps the place from being read.
    fn source(&self) -> Result<Option<Source>, CacheError>;

    /// The cache as a place to write to.
    ///
    /// # Errors
    /// Whatever keeps the place from being written.
    fn target(&self) -> Result<image::Target, CacheError>;
}

/// Why a build cache cannot be read or written: never a reason not to convert.
pub type CacheError = Box<dyn std::error::Error + Send + Sync>;

/// A build cache that a conversion takes layers from and adds its own to.
#[derive(Clone)]
pub struct BuildCache {
    /// What to call it in messages.
    pub name: String,
    /// Records under another version are not used, and go when the cache is written.
    pub version: String,
    /// Most records of a platform.
    pub max_records: usize,
    /// Where it lies.
    pub place: Arc<dyn CachePlace>,
}

impl std::fmt::Debug for BuildCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BuildCache")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// A build cache as it was before the conversion.
pub(crate) struct OpenCache {
    cache: BuildCache,
    /// Where its blobs are; `None` if there is no cache yet.
    source: Option<Source>,
    /// It could not be read, so it is not written either.
    broken: bool,
    records: HashMap<Digest, CacheRecord>,
    /// Layers that there are records of, under whatever key.
    layers: HashSet<Digest>,
    /// Whether a layer was taken from it.
    used: AtomicBool,
}

/// What a layer was converted to, by the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CacheRecord {
    pub record: Record,
    /// The source layer. The record counts as long as the cache's repository has it.
    pub layer: Option<Digest>,
}

/// A layer of this conversion, for the cache.
#[derive(Debug, Clone)]
pub(crate) struct Fresh {
    pub layer: Descriptor,
    pub key: Key,
    pub record: Record,
    /// Whether its blob holds all its chunks.
    pub alone: bool,
    /// Whether it was taken from the cache.
    pub cached: bool,
}

impl Fresh {
    /// The record of a converted layer; `None` if it can't be used again.
    pub(crate) fn of(converted: &ConvertedLayer, layer: &Descriptor) -> Option<Self> {
        let (key, record) = converted.record.clone()?;
        let own = record.blob.hex();
        let mut blobs = converted.image.blobs.iter();
        Some(Self {
            layer: layer.clone(),
            key,
            record,
            alone: blobs.all(|blob| blob.id.as_str() == own),
            cached: converted.reused == Some(Origin::Cache),
        })
    }
}

impl BuildCache {
    /// Reads the records of the chosen platforms. A cache that cannot be read counts as none, and is said to.
    ///
    /// # Errors
    /// [`Error::NotCache`] if there is something else in its place, which must not be written over.
    pub(crate) fn open(&self, choice: &PlatformChoice) -> Result<OpenCache, Error> {
        let mut open = OpenCache {
            cache: self.clone(),
            source: None,
            broken: false,
            records: HashMap::new(),
            layers: HashSet::new(),
            used: AtomicBool::new(false),
        };
        let read = self.place.source().and_then(|source| match source {
            None => Ok(None),
            Some(source) => Ok(Some((manifests(&source)?, source))),
        });
        match read {
            Ok(None) => tracing::debug!("there is no build cache {} yet", self.name),
            Ok(Some((Content::Other(what), _))) => {
                let name = self.name.clone();
                return Err(Error::NotCache { name, what });
            }
            Ok(Some((Content::Cache(_, manifests), source))) => {
                for (entry, manifest) in &manifests {
                    let platform = entry.platform.as_ref();
                    if platform.is_none_or(|platform| choice.wants(platform)) {
                        open.take(manifest);
                    }
                }
                open.source = Some(source);
            }
            Err(error) => {
                let cause = causes(&*error);
                tracing::warn!("the build cache {} is not used: {cause}", self.name);
                open.broken = true;
            }
        }
        Ok(open)
    }
}

impl OpenCache {
    /// The cache's blobs, if it has any.
    pub(crate) fn source(&self) -> Option<&Source> {
        self.source.as_ref()
    }

    /// Forgets what the cache said, for something of it was not true; it is written all the same. `false` if nothing of it
    /// was used.
    pub(crate) fn distrust(&mut self) -> bool {
        self.records.clear();
        *self.used.get_mut()
    }

    /// Notes that a layer was taken from it.
    pub(crate) fn trust(&self) {
        self.used.store(true, Ordering::Relaxed);
    }

    /// What to call it.
    pub(crate) fn name(&self) -> &str {
        &self.cache.name
    }

    /// What a layer was converted to with these options.
    pub(crate) fn find(&self, key: &Key) -> Option<&CacheRecord> {
        self.records.get(&key.digest())
    }

    /// Whether there is any record of a layer.
    pub(crate) fn knows(&self, layer: &Digest) -> bool {
        self.layers.contains(layer)
    }

    fn take(&mut self, manifest: &Manifest) {
        if version(manifest) != Some(&*self.cache.version) {
            tracing::info!(
                "the build cache {} is of version {:?}, not {:?}: it is not used",
                self.cache.name,
                version(manifest).unwrap_or_default(),
                self.cache.version
            );
            return;
        }
        for blob in &manifest.layers {
            let layer = source_layer(blob);
            self.layers.extend(layer);
            if let Some((key, record)) = read(blob) {
                // The first one stays, as it does when the cache is written.
                let record = CacheRecord { record, layer };
                self.records.entry(key).or_insert(record);
            }
        }
    }
}

/// What lies where a build cache should.
enum Content {
    Cache(Index, Vec<(Descriptor, Manifest)>),
    Other(&'static str),
}

/// Reads the manifests of a build cache.
fn manifests(source: &Source) -> Result<Content, CacheError> {
    let Node::Index(index) = source.node(source.root())? else {
        return Ok(Content::Other("a single image"));
    };
    if index.manifests.len() > MANIFESTS_MAX {
        return Ok(Content::Other("an index of too many images"));
    }
    let mut manifests = Vec::with_capacity(index.manifests.len());
    for entry in &index.manifests {
        match source.node(entry)? {
            Node::Manifest(manifest) if version(&manifest).is_some() => {
                manifests.push((entry.clone(), *manifest));
            }
            _ => return Ok(Content::Other("an index of images")),
        }
    }
    Ok(Content::Cache(index, manifests))
}

pub(crate) fn version(manifest: &Manifest) -> Option<&str> {
    let annotations = manifest.annotations.as_ref()?;
    annotations
        .get(nydus::ANNOTATION_CACHE_VERSION)
        .map(String::as_str)
}

/// The source layer that a record is of.
pub(crate) fn source_layer(blob: &Descriptor) -> Option<Digest> {
    let digest = blob.annotation(nydus::ANNOTATION_SOURCE_DIGEST)?;
    digest.parse().ok()
}

/// Reads a record of ours: its key, and the rest.
pub(crate) fn read(blob: &Descriptor) -> Option<(Digest, Record)> {
    let digest = |key| blob.annotation(key)?.parse().ok();
    let record = Record::new(
        blob.digest,
        blob.size,
        digest(nydus::ANNOTATION_CACHE_BOOTSTRAP)?,
    );
    Some((digest(nydus::ANNOTATION_CACHE_KEY)?, record))
}

/// The record of a layer. `named`: readers that know the source layer alone may use it, too.
fn write(fresh: &Fresh, named: bool) -> Descriptor {
    let Record {
        blob,
        size,
        bootstrap,
        ..
    } = &fresh.record;
    let mut descriptor = nydus::blob_descriptor(*blob, *size);
    let key = fresh.key.digest().to_string();
    descriptor.annotate(nydus::ANNOTATION_CACHE_KEY, key);
    descriptor.annotate(nydus::ANNOTATION_CACHE_BOOTSTRAP, bootstrap.to_string());
    if named {
        let layer = fresh.layer.digest.to_string();
        descriptor.annotate(nydus::ANNOTATION_SOURCE_DIGEST, layer);
    }
    descriptor
}

/// Adds the layers of a conversion to the cache. The conversion does not fail for it.
pub(crate) fn note(
    cache: &OpenCache,
    images: &[Converted],
    source: &Source,
    blobs: &Source,
    cancel: &Cancel,
) {
    let made = save::Made {
        images,
        source,
        blobs,
    };
    let name = cache.name();
    match cache.save(&made, cancel) {
        Err(_) if cancel.is_cancelled() => {}
        Err(error) => {
            let cause = causes(&*error);
            tracing::warn!("the build cache {name} is not written: {cause}");
        }
        Ok(saved) => {
            if saved.new != 0 {
                tracing::info!("the build cache {name} has {} layers more", saved.new);
            }
            if saved.no_room != 0 {
                tracing::warn!(
                    "the build cache {name} is full, {} layers were left out: raise --build-cache-max-records, or begin anew with another --build-cache-version",
                    saved.no_room
                );
            }
        }
    }
}

/// Whether the manifest of an entry is for images of a platform.
fn is_for(entry: &Descriptor, platform: &Platform) -> bool {
    let of = entry.platform.as_ref();
    of.is_some_and(|of| of.fits(platform))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh() -> Fresh {
        Fresh {
            layer: Descriptor::new("t", Digest::of(b"layer"), 5),
            key: Key::of(Digest::of(b"key")),
            record: Record::new(Digest::of(b"blob"), 7, Digest::of(b"boot")),
            alone: true,
            cached: false,
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let fresh = fresh();
        let key = fresh.key.digest();
        for named in [true, false] {
            let blob = write(&fresh, named);
            assert_eq!(read(&blob), Some((key, fresh.record.clone())));
            assert_eq!(source_layer(&blob), named.then_some(fresh.layer.digest));
            assert_eq!(blob.annotation(nydus::ANNOTATION_BLOB), Some("true"));
            assert_eq!(blob.media_type, nydus::BLOB_MEDIA_TYPE);
        }
    }

    #[test]
    fn a_record_with_a_broken_annotation_is_none() {
        for key in [
            nydus::ANNOTATION_CACHE_KEY,
            nydus::ANNOTATION_CACHE_BOOTSTRAP,
        ] {
            for value in ["", "x", "sha256:", "sha512:aa"] {
                let mut blob = write(&fresh(), true);
                blob.annotate(key, value);
                assert_eq!(read(&blob), None, "{key} {value}");
            }
        }
    }
}
