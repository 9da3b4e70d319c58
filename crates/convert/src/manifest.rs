//! One image: its layers, then bootstrap, configuration and manifest.

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::sync::Arc;

use builder::{Budget, BuildOptions, ChunkTable};
use image::nydus::{self, BootstrapLayer};
use image::{Descriptor, Digest, Manifest, Platform, Selected, Source, Target, media};
use progress::Cancel;
use rafs_format::{BLOBS_MAX, BlobId, Digester, Version};
use serde_json::Value;
use tree::{Image, Tree};

use crate::cache::Fresh;
use crate::layer::{Blob, ConvertedLayer, Places};
use crate::reuse::Origin;
use crate::{ChunkDictionary, ConvertOptions, Error, Savings, TOTAL, dictionary, layers, unplaced};

/// Layers that are inflated at the same time, at least: one often waits for the pool.
const LANES_MIN: usize = 2;

/// What all images of a conversion share.
pub(crate) struct Context<'a> {
    places: Places<'a>,
    options: &'a ConvertOptions,
    build: BuildOptions,
    /// Layers that are converted at the same time.
    lanes: usize,
    cancel: &'a Cancel,
}

/// An image of the result.
pub(crate) struct Converted {
    /// Its entry in the index.
    pub descriptor: Descriptor,
    /// Configuration and layers of the source, in bytes.
    pub source_size: u64,
    /// Configuration and layers of the result, in bytes.
    pub target_size: u64,
    /// Whether it is new, not a copy.
    pub converted: bool,
    /// Layers that had been converted before.
    pub reused: Reused,
    /// Those of them that were in the build cache.
    pub cached: Reused,
    /// Its layers, for the build cache.
    pub records: Vec<Fresh>,
    /// Blobs of the dictionary that it uses.
    pub dictionary: Vec<Descriptor>,
    /// What deduplication saved.
    pub savings: Savings,
}

/// Layers that need not be converted.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Reused {
    /// How many.
    pub layers: usize,
    /// Size of their blobs in bytes.
    pub bytes: u64,
}

impl Reused {
    fn of<'a>(layers: impl Iterator<Item = &'a ConvertedLayer>) -> Self {
        layers.fold(Self::default(), |sum, layer| Self {
            layers: sum.layers + 1,
            bytes: sum.bytes + layer.blob.size,
        })
    }
}

impl<'a> Context<'a> {
    pub(crate) fn new(
        places: Places<'a>,
        options: &'a ConvertOptions,
        cancel: &'a Cancel,
    ) -> Result<Self, Error> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(options.threads.get())
            .build();
        let pool = Arc::new(pool.map_err(|error| Error::Threads(error.into()))?);
        let lanes = if places.blobs().is_sequential() {
            1
        } else {
            options.threads.get().max(LANES_MIN)
        };
        // What is held of each blob on its way comes out of the same budget, as far as half of it goes.
        let held = lanes.saturating_mul(places.blobs().buffered());
        let memory = options.memory.saturating_sub(held).max(options.memory / 2);
        let mut build = BuildOptions::new(pool, Budget::new(memory));
        build.version = options.version;
        build.aligned_chunk = options.aligned_chunk;
        // A v5 blob has no place for one.
        build.blob_toc = options.version == Version::V6;
        build.compressor = options.compressor;
        build.level = options.level;
        build.chunk_size = options.chunk_size;
        build.batch_size = options.batch_size;
        build.layer.max_inodes = options.layer_files_max;
        build.layer.max_content = options.layer_size_max;
        build.prefetch.clone_from(&options.prefetch);
        if options.reference {
            // What describes layers knows no other.
            build.digester = Digester::Sha256;
        }
        build.cancel = cancel.clone();
        if let Some(dictionary) = places.dictionary {
            dictionary.apply(&mut build);
        }
        Ok(Self {
            places,
            options,
            build,
            lanes,
            cancel,
        })
    }

    /// Converts or copies all chosen images, in their order.
    pub(crate) fn convert_all(&self, selected: &[Selected]) -> Result<Vec<Converted>, Error> {
        // Whatever can be refused by its name is, before any work.
        for image in selected.iter().filter(|image| is_to_convert(image)) {
            refuse(&image.manifest).map_err(|error| self.about(image, selected, error))?;
        }
        let size = selected
            .iter()
            .filter(|image| is_to_convert(image))
            .map(|image| layer_size(&image.manifest))
            .sum();
        self.places.progress.started(TOTAL, Some(size));
        let mut converted = Vec::with_capacity(selected.len());
        for image in selected {
            self.cancel.check()?;
            let result = if is_to_convert(image) {
                self.convert(image)
            } else {
                self.copy(image)
            };
            converted.push(result.map_err(|error| self.about(image, selected, error))?);
        }
        let size: u64 = converted.iter().map(|image| image.target_size).sum();
        let mut summary = format!("{size} bytes");
        let mut savings = Savings::default();
        for image in &converted {
            savings += image.savings.clone();
        }
        if !savings.is_empty() {
            summary = format!("{summary}; {savings}");
        }
        self.places.progress.finished(TOTAL, &summary);
        Ok(converted)
    }

    /// Says which image of an index an error is about.
    fn about(&self, image: &Selected, selected: &[Selected], error: Error) -> Error {
        if selected.len() == 1 || is_about_all(&error) {
            return error;
        }
        let platform = image.descriptor.platform.as_ref();
        Error::Entry {
            platform: platform
                .map_or_else(|| "an unnamed platform".to_owned(), Platform::to_string),
            digest: image.descriptor.digest,
            source: Box::new(error),
        }
    }

    fn copy_blob(&self, blob: &Descriptor) -> Result<(), Error> {
        let Places { source, target, .. } = &self.places;
        target
            .copy(source, blob, self.cancel)
            .map_err(|error| match error {
                image::Error::Cancelled(cancelled) => cancelled.into(),
                error => error.into(),
            })
    }

    /// Carries an image over as it is.
    fn copy(&self, image: &Selected) -> Result<Converted, Error> {
        for blob in std::iter::once(&image.manifest.config).chain(&image.manifest.layers) {
            self.copy_blob(blob)?;
        }
        self.places
            .target
            .copy_document(self.places.source, &image.descriptor)?;
        let size = image_size(&image.manifest);
        Ok(Converted {
            descriptor: image.descriptor.clone(),
            source_size: size,
            target_size: size,
            converted: false,
            reused: Reused::default(),
            cached: Reused::default(),
            records: Vec::new(),
            dictionary: Vec::new(),
            savings: Savings::default(),
        })
    }

    fn convert(&self, image: &Selected) -> Result<Converted, Error> {
        let (source, digest) = (&image.manifest, image.descriptor.digest);
        let config = self.places.source.config(source)?;
        let diff_ids =
            nydus::diff_ids(&config, &format!("configuration {}", source.config.digest))?;
        if diff_ids.len() != source.layers.len() {
            return Err(Error::LayerCount {
                manifest: digest,
                layers: source.layers.len(),
                diff_ids: diff_ids.len(),
            });
        }
        let layers = self.convert_layers(source, &diff_ids)?;
        let merged = self.merge(layers.images, digest)?;
        let foreign = foreign(&merged, &layers.blobs);
        let mut savings = layers.savings;
        savings.note_cost(&merged, &foreign);
        let dictionary = match self.places.dictionary {
            Some(dictionary) => dictionary.secure(&foreign, self.places.blobs(), self.cancel)?,
            None => Vec::new(),
        };
        let bootstrap = self.bootstrap(merged, &layers.blobs, digest)?;
        self.cancel.check()?;
        let blobs = layers
            .positions
            .iter()
            .map(|&position| &layers.blobs[position]);
        let blobs = blobs
            .map(|blob| match blob.original {
                Some(original) => nydus::ref_descriptor(blob.digest, blob.size, original),
                None => nydus::blob_descriptor(blob.digest, blob.size),
            })
            .collect();
        dictionary::look_again(&dictionary, self.places.blobs(), self.cancel)?;
        let manifest = self.put_documents(image, &config, (blobs, &dictionary), &bootstrap)?;
        let bytes = manifest.to_json();
        let put = self
            .places
            .target
            .put_document(&bytes, &manifest.media_type)?;
        if self.options.check {
            self.check(image, &put, &manifest)?;
        }
        let mut descriptor = image.descriptor.clone();
        (descriptor.media_type, descriptor.digest, descriptor.size) =
            (put.media_type, put.digest, put.size);
        if descriptor.platform.is_none() {
            descriptor.platform = platform(&config);
        }
        let (source_size, target_size) = (image_size(source), image_size(&manifest));
        Ok(Converted {
            descriptor,
            source_size,
            target_size,
            converted: true,
            reused: layers.reused,
            cached: layers.cached,
            records: layers.records,
            dictionary,
            savings,
        })
    }

    fn convert_layers(&self, source: &Manifest, diff_ids: &[Digest]) -> Result<Layers, Error> {
        let distinct = layers::distinct(&source.layers, diff_ids);
        let converted = layers::convert(
            &self.places,
            &distinct.layers,
            &self.build,
            self.options.dedup,
            self.lanes,
        )?;
        let reused = Reused::of(converted.iter().filter(|layer| layer.reused.is_some()));
        let of_cache = |layer: &&ConvertedLayer| layer.reused == Some(Origin::Cache);
        let cached = Reused::of(converted.iter().filter(of_cache));
        let pairs = std::iter::zip(&converted, &distinct.layers);
        let records = pairs.filter_map(|(layer, (source, _))| Fresh::of(layer, source));
        let records = records.collect();
        let mut savings = Savings::default();
        let chunks = self.places.dictionary.map(ChunkDictionary::chunks);
        for layer in &converted {
            savings += Savings::of_layer(&layer.image, &layer.blob.digest.hex(), chunks);
        }
        let (images, blobs): (Vec<Image>, Vec<Blob>) = converted
            .into_iter()
            .map(|layer| (layer.image, layer.blob))
            .unzip();
        if chunks.is_some() {
            limit_blobs(&images, blobs.len())?;
        }
        let images = topmost(images, &distinct.positions);
        Ok(Layers {
            savings,
            images,
            blobs,
            reused,
            cached,
            records,
            positions: distinct.positions,
        })
    }

    /// All layers laid over each other.
    fn merge(&self, images: Vec<Image>, manifest: Digest) -> Result<Image, Error> {
        let mut merged = if images.is_empty() {
            self.empty_image()
        } else {
            builder::merge(images).map_err(|source| Error::Merge {
                manifest,
                source: Box::new(source),
            })?
        };
        merged.prefetch = builder::resolve_prefetch(&merged.tree, &self.options.prefetch);
        Ok(merged)
    }

    /// The bootstrap of an image, packed as a layer.
    fn bootstrap(
        &self,
        merged: Image,
        blobs: &[Blob],
        manifest: Digest,
    ) -> Result<BootstrapLayer, Error> {
        let bootstrap = builder::encode(&merged).map_err(|error| Error::Merge {
            manifest,
            source: Box::new(error.into()),
        })?;
        drop(merged);
        let mut tables: Vec<nydus::Table> = Vec::new();
        // Who reads extended images takes the tables from the blobs: more than once they only cost time and room.
        let blobs = if self.options.extended { &[] } else { blobs };
        for blob in blobs {
            if let Some(ChunkTable { table, header }) = &blob.table
                && tables.iter().all(|known| known.blob != blob.digest)
            {
                tables.push(nydus::Table {
                    blob: blob.digest,
                    table,
                    header,
                });
            }
        }
        BootstrapLayer::pack(&bootstrap, &tables, &self.build.pool)
            .map_err(|source| Error::Pack { manifest, source })
    }

    /// An image of a root directory alone.
    fn empty_image(&self) -> Image {
        Image {
            version: self.build.version,
            tree: Tree::new(),
            blobs: Vec::new(),
            chunks: Vec::new(),
            chunk_size: self.build.chunk_size,
            prefetch: Vec::new(),
            compressor: self.build.compressor,
            digester: self.build.digester,
            explicit_owners: self.build.explicit_owners,
            tarfs: false,
        }
    }

    /// Writes bootstrap layer and configuration; gives the manifest over them.
    fn put_documents(
        &self,
        image: &Selected,
        config: &Value,
        (mut layers, dictionary): (Vec<Descriptor>, &[Descriptor]),
        bootstrap: &BootstrapLayer,
    ) -> Result<Manifest, Error> {
        layers.extend_from_slice(dictionary);
        let mut source = image.manifest.clone();
        if self.options.oci {
            nydus::to_oci(&mut source);
        }
        let target = self.places.target;
        let size = bootstrap.bytes.len() as u64;
        let mut last = nydus::bootstrap_layer_descriptor(
            &source.media_type,
            bootstrap.digest,
            size,
            self.build.version.digit(),
        );
        let external = self.places.backend.is_some();
        if external {
            layers.clear();
            let diff_id = bootstrap.diff_id.to_string();
            last.annotate(nydus::ANNOTATION_UNCOMPRESSED, diff_id);
        }
        target.put(&bootstrap.bytes, &last.media_type)?;
        let diff_ids: Vec<Digest> = layers
            .iter()
            .map(|blob| blob.digest)
            .chain([bootstrap.diff_id])
            .collect();
        layers.push(last);
        let what = format!("configuration {}", source.config.digest);
        let config = if external {
            nydus::external_config(config, bootstrap.diff_id, &what)?
        } else {
            let mut config = nydus::target_config(config, &diff_ids, &what)?;
            nydus::note_dictionary(&mut config, dictionary.len());
            config
        };
        let config = serde_json::to_vec(&config).expect("a JSON value always serialises");
        let kind = match self.options.merge {
            // Runtimes that know plain images only pass over it.
            true => nydus::CONFIG_MEDIA_TYPE,
            false => &source.config.media_type,
        };
        let config = target.put(&config, kind)?;
        let name = self.options.source_name.as_deref();
        let mut manifest = nydus::target_manifest(
            &source,
            image.descriptor.digest,
            name,
            config,
            layers,
            self.build.version.digit(),
        );
        if self.options.referrer {
            nydus::refer(&mut manifest, &unplaced(&image.descriptor));
        }
        Ok(manifest)
    }

    /// Compares the new image, not tagged yet, with its source.
    fn check(&self, image: &Selected, put: &Descriptor, manifest: &Manifest) -> Result<(), Error> {
        let digest = image.descriptor.digest;
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| Error::CheckFailed {
            manifest: digest,
            source: error,
        };
        let side = |source: Source, name: String, manifest: &Manifest| {
            verify::Side::image(&Arc::new(source), name, manifest.clone())
                .map_err(|error| failed(error.into()))
        };
        let source = side(
            self.places.source.clone(),
            digest.to_string(),
            &image.manifest,
        )?;
        let target = side(
            self.places
                .target
                .source(put)?
                .with_backend(self.places.backend.map(Target::store)),
            put.digest.to_string(),
            manifest,
        )?;
        let options = verify::Options {
            threads: NonZeroUsize::new(self.options.threads.get()).unwrap_or(NonZeroUsize::MIN),
            layers: self.build.layer.clone(),
            cancel: self.cancel,
            progress: self.places.progress,
        };
        let report =
            verify::check(Some(&source), &target, &options).map_err(|error| match error {
                verify::Error::Cancelled(_) => Error::Cancelled,
                error => failed(error.into()),
            })?;
        if report.verified {
            Ok(())
        } else {
            Err(Error::Different {
                manifest: digest,
                report: Box::new(report),
            })
        }
    }
}

/// The layers of an image, converted.
struct Layers {
    /// The trees of layers that differ, in the order in which they are to be laid over each other.
    images: Vec<Image>,
    /// Blobs of layers that differ.
    blobs: Vec<Blob>,
    /// Which blob each layer of the manifest is.
    positions: Vec<usize>,
    /// Layers that had been converted before.
    reused: Reused,
    /// Those of them that were in the build cache.
    cached: Reused,
    /// What the build cache is to know.
    records: Vec<Fresh>,
    /// What deduplication saved in each of them, together.
    savings: Savings,
}

/// Whether an error is about the whole conversion, not about one image of an index.
fn is_about_all(error: &Error) -> bool {
    matches!(
        error,
        Error::Cancelled | Error::DictionaryGone(_) | Error::TooManyBlobs { .. }
    )
}

/// The blobs of an image that none of its layers is, by id.
fn foreign(image: &Image, own: &[Blob]) -> Vec<BlobId> {
    let data = |blob: &Blob| blob.original.unwrap_or(blob.digest).hex();
    let own: HashSet<String> = own.iter().map(data).collect();
    let mut ids: Vec<BlobId> = image.blobs.iter().map(|blob| blob.id.clone()).collect();
    ids.retain(|id| !own.contains(id.as_str()));
    ids.sort_unstable();
    ids
}

/// Sees to it that layers together use no more blobs than the format has room for.
fn limit_blobs(layers: &[Image], own: usize) -> Result<(), Error> {
    let worth = builder::stored_by_blob(layers);
    if worth.len() <= BLOBS_MAX {
        return Ok(());
    }
    Err(Error::TooManyBlobs {
        own,
        worth: Box::new(worth),
    })
}

/// Each image once, where it occurs last: whatever a layer shows or hides, it does when it comes again, so what it
/// does below is never seen.
fn topmost(images: Vec<Image>, positions: &[usize]) -> Vec<Image> {
    let mut images: Vec<Option<Image>> = images.into_iter().map(Some).collect();
    let mut order: Vec<Image> = positions
        .iter()
        .rev()
        .filter_map(|&position| images[position].take())
        .collect();
    order.reverse();
    order
}

fn is_to_convert(image: &Selected) -> bool {
    !image.attestation && !nydus::is_nydus(&image.manifest)
}

/// Refuses layers that cannot be converted, by name.
fn refuse(manifest: &Manifest) -> Result<(), Error> {
    for layer in &manifest.layers {
        let what = format!("layer {}", layer.digest);
        if media::layer(&layer.media_type, &what)? == media::Layer::NydusBlob {
            return Err(Error::Image(image::Error::MediaType {
                media_type: layer.media_type.clone(),
                what,
                reason: "it is a Nydus blob in an image without a bootstrap",
            }));
        }
    }
    Ok(())
}

fn layer_size(manifest: &Manifest) -> u64 {
    let mut seen = Vec::new();
    let mut size = 0_u64;
    for layer in &manifest.layers {
        if !seen.contains(&layer.digest) {
            seen.push(layer.digest);
            size = size.saturating_add(layer.size);
        }
    }
    size
}

fn image_size(manifest: &Manifest) -> u64 {
    manifest
        .layers
        .iter()
        .fold(manifest.config.size, |sum, layer| {
            sum.saturating_add(layer.size)
        })
}

/// The platform that a configuration states.
pub(crate) fn platform(config: &Value) -> Option<Platform> {
    let text = |key: &str| config.get(key).and_then(Value::as_str);
    let mut platform = Platform::new(text("os")?, text("architecture")?);
    platform.variant = text("variant").map(str::to_owned);
    Some(platform)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_listed_many_times_is_laid_over_the_others_once() {
        let image = |chunk_size| Image {
            version: Version::V6,
            tree: Tree::new(),
            blobs: Vec::new(),
            chunks: Vec::new(),
            chunk_size,
            prefetch: Vec::new(),
            compressor: rafs_format::Compressor::None,
            digester: Digester::Blake3,
            explicit_owners: true,
            tarfs: false,
        };
        let order = |positions: &[usize]| -> Vec<u32> {
            let images = topmost(vec![image(0), image(1), image(2)], positions);
            images.iter().map(|image| image.chunk_size).collect()
        };
        assert_eq!(order(&[0, 1, 2]), [0, 1, 2]);
        assert_eq!(order(&[0, 1, 0, 2, 1, 1]), [0, 2, 1]);
        assert_eq!(order(&[[0, 1, 2, 0].as_slice(); 50].concat()), [1, 2, 0]);
    }
}
