//! A Nydus image with what is needed first in a blob of its own.

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;

use builder::{Budget, BuildOptions, Origin, PrefetchFile, Selection, write_prefetch_blob};
use image::nydus::{self, ANNOTATION_PREFETCH_BLOB, BootstrapLayer, ImageBlobs, PREFETCH_LIST};
use image::{Descriptor, Digest, Manifest, PlatformChoice, Selected, Source, Target};
use progress::{Cancel, Progress};
use storage::LoadedBootstrap;
use trace::Trace;

use crate::copy::gather::{self, Gathered};
use crate::copy::{CopyOptions, Work};
use crate::{Error, TOTAL, unplaced};

/// Says what a container needs first.
#[derive(Debug, Clone, Copy)]
pub enum First<'a> {
    /// The text of a list as [`builder::parse_prefetch_list`] reads it.
    List(&'a [u8]),
    /// What was read in starts of the image; each with the file that it is from.
    Traces(&'a [(PathBuf, Trace)]),
}

impl<'a> First<'a> {
    /// The list of the files that the image with this bootstrap needs first.
    fn list(self, bootstrap: &[u8]) -> Result<Cow<'a, [u8]>, Error> {
        let traces = match self {
            Self::List(list) => return Ok(list.into()),
            Self::Traces(traces) => traces,
        };
        let digest = trace::bootstrap_digest(bootstrap);
        for (path, trace) in traces {
            trace
                .require(path, &digest)
                .map_err(|error| Error::Trace(Box::new(error)))?;
        }
        Ok(trace::prefetch_list(traces.iter().map(|(_, trace)| trace)).into())
    }
}

/// What became of an image.
#[derive(Debug)]
pub struct OptimizeReport {
    /// The image in the target.
    pub digest: Digest,
    /// The blob with what is needed first; `None` if there is nothing to be had earlier, and the image is as it was.
    pub blob: Option<Descriptor>,
    /// What the list has and the image has not, or has not as a file: a path and the reason.
    pub left_out: Vec<(String, &'static str)>,
}

/// Writes the Nydus image of `source` for this machine's platform to `target`, with one more blob: the chunks of the files that
/// are needed first, in the order of the list. All other blobs are copied, or taken over
/// where they are; those that lie in the source's backend become part of the image. The list comes along in the
/// bootstrap's layer. The tag comes last.
///
/// # Errors
/// [`Error`]; the target then has no new tag and no unfinished file.
pub fn optimize_image(
    source: &Source,
    target: Target,
    first: First<'_>,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<OptimizeReport, Error> {
    let result = optimize(source, target, first, progress, cancel);
    // Whatever fails once the work is to stop does so because of that.
    result.map_err(|error| match cancel.check() {
        Err(cancelled) => cancelled.into(),
        Ok(()) => error,
    })
}

fn optimize(
    source: &Source,
    target: Target,
    first: First<'_>,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<OptimizeReport, Error> {
    let parse = |list: &[u8]| {
        builder::parse_prefetch_list(list).map_err(|error| Error::List(Box::new(error)))
    };
    if let First::List(list) = first {
        // What is wrong with it is better known before anything is fetched.
        parse(list)?;
    }
    let image = find(source)?;
    let gathered = gather::gather(source, &image)?;
    let manifest = match &gathered {
        Some(gathered) => &gathered.manifest,
        None => &image.manifest,
    };
    let size = manifest.layers.iter().map(|layer| layer.size).sum();
    progress.started(TOTAL, Some(size));
    let loaded = load(source, &image, manifest)?;
    let list = first.list(loaded.bootstrap.data())?;
    let files = parse(&list)?;
    let work = Optimized::new(source, &image, &loaded, &files)?;
    let left_out = work.selection.left_out.clone();
    let copy = Work {
        source,
        target: &target,
        progress,
        total: true,
        cancel,
    };
    let mut blobs: Vec<&Descriptor> = image.manifest.layers.iter().collect();
    if !work.selection.is_empty() {
        // The bootstrap's layer.
        blobs.pop();
    }
    copy.copy_blobs(&blobs, CopyOptions::LANES)?;
    if let (Some(gathered), Some(backend)) = (&gathered, source.at_backend()) {
        let copy = Work {
            source: &backend,
            ..copy
        };
        copy.copy_blobs(
            &gathered.blobs.iter().collect::<Vec<_>>(),
            CopyOptions::LANES,
        )?;
    }
    let (root, blob) = match (work.selection.is_empty(), gathered) {
        (true, None) => {
            copy.copy_blobs(&[&image.manifest.config], CopyOptions::LANES)?;
            target.copy_document(source, &image.descriptor)?;
            (image.descriptor.clone(), None)
        }
        (true, Some(gathered)) => (gathered.put(image.descriptor.clone(), &target)?, None),
        (false, gathered) => {
            let (root, blob) = work.write(gathered, &list, &target, cancel)?;
            (root, Some(blob))
        }
    };
    let root = unplaced(&root);
    cancel.check()?;
    target.commit(&root)?;
    progress.finished(TOTAL, &format!("{size} bytes"));
    Ok(OptimizeReport {
        digest: root.digest,
        blob,
        left_out,
    })
}

/// The Nydus image for this machine's platform. An index may have a plain one for it, too.
fn find(source: &Source) -> Result<Selected, Error> {
    let mut images = source.select(&PlatformChoice::Host)?;
    images.retain(|image| !image.attestation && nydus::is_nydus(&image.manifest));
    match images.len() {
        0 => Err(Error::NotNydus(source.root().digest)),
        _ => Ok(images.swap_remove(0)),
    }
}

/// Reads the bootstrap of an image that lists its blobs in `listing`.
fn load(source: &Source, image: &Selected, listing: &Manifest) -> Result<LoadedBootstrap, Error> {
    let manifest = image.descriptor.digest;
    let failed =
        |source: Box<dyn std::error::Error + Send + Sync>| Error::Optimize { manifest, source };
    let bytes = nydus::read_bootstrap(source, &image.manifest)?;
    let loaded = LoadedBootstrap::from_bytes(bytes).map_err(|error| failed(error.into()))?;
    loaded.check().map_err(|error| failed(error.into()))?;
    // A blob that the image does not list would have to be in the new one's backend, and so would the new blob.
    let listed = |id: &str| {
        let mut layers = listing.layers.iter();
        layers.any(|layer| layer.digest.hex() == id)
    };
    match loaded.blobs().iter().find(|blob| {
        let table = blob.table_blob();
        !listed(blob.id.as_str()) && !table.is_some_and(|table| listed(table.as_str()))
    }) {
        Some(blob) => Err(Error::Unlisted {
            manifest,
            id: blob.id.to_string(),
        }),
        None => Ok(loaded),
    }
}

/// An image on its way.
struct Optimized<'a> {
    source: &'a Source,
    selected: &'a Selected,
    loaded: &'a LoadedBootstrap,
    image: tree::Image,
    selection: Selection,
}

impl<'a> Optimized<'a> {
    fn new(
        source: &'a Source,
        selected: &'a Selected,
        loaded: &'a LoadedBootstrap,
        files: &[PrefetchFile],
    ) -> Result<Self, Error> {
        let image = loaded.image().map_err(|error| Error::Optimize {
            manifest: selected.descriptor.digest,
            source: error.into(),
        })?;
        Ok(Self {
            source,
            selected,
            loaded,
            selection: Selection::new(&image, files),
            image,
        })
    }

    /// Writes all that is new; the manifest and the blob.
    fn write(
        mut self,
        gathered: Option<Gathered>,
        list: &[u8],
        target: &Target,
        cancel: &Cancel,
    ) -> Result<(Descriptor, Descriptor), Error> {
        let digest = self.selected.descriptor.digest;
        let failed = |error: builder::Error| Error::Optimize {
            manifest: digest,
            source: error.into(),
        };
        let manifest = &self.selected.manifest;
        let pool = rayon::ThreadPoolBuilder::new().build();
        let pool = Arc::new(pool.map_err(|error| Error::Threads(error.into()))?);
        let options = BuildOptions {
            cancel: cancel.clone(),
            // No file data goes through the budget: chunks are read some at a time.
            ..BuildOptions::new(Arc::clone(&pool), Budget::new(0))
        };
        let origin = Origin {
            loaded: self.loaded,
            source: Arc::new(ImageBlobs::new(self.source.clone(), manifest)),
        };
        let mut writer = target.blob_writer()?;
        let new = write_prefetch_blob(
            &mut self.image,
            &self.selection,
            &origin,
            &options,
            &mut writer,
        )
        .map_err(failed)?;
        let id = new.info.id.as_str();
        let blob = Digest::from_hex(id).ok_or_else(|| Error::BlobId {
            manifest: digest,
            id: id.to_owned(),
        })?;
        let blob = nydus::blob_descriptor(blob, writer.finish(blob)?);
        new.adopt(&mut self.image);
        let bootstrap = builder::encode(&self.image).map_err(|error| failed(error.into()))?;
        let layer = BootstrapLayer::pack_with(&bootstrap, &[], &[(PREFETCH_LIST, list)], &pool);
        let layer = layer.map_err(|source| Error::Pack {
            manifest: digest,
            source,
        })?;
        let root = self.put_documents(gathered, &blob, &layer, target)?;
        Ok((root, blob))
    }

    /// Writes bootstrap layer, configuration and manifest.
    fn put_documents(
        &self,
        gathered: Option<Gathered>,
        blob: &Descriptor,
        bootstrap: &BootstrapLayer,
        target: &Target,
    ) -> Result<Descriptor, Error> {
        let before = &self.selected.manifest;
        let (mut manifest, config) = match gathered {
            Some(Gathered {
                manifest, config, ..
            }) => (manifest, config),
            None => (before.clone(), self.source.config(before)?),
        };
        let what = format!("configuration {}", manifest.config.digest);
        let mut diff_ids = nydus::diff_ids(&config, &what)?;
        if diff_ids.len() != manifest.layers.len() {
            return Err(Error::LayerCount {
                manifest: self.selected.descriptor.digest,
                layers: manifest.layers.len(),
                diff_ids: diff_ids.len(),
            });
        }
        let last = manifest.layers.len() - 1;
        diff_ids.truncate(last);
        diff_ids.extend([blob.digest, bootstrap.diff_id]);
        let config = nydus::with_prefetch_blob(&config, &diff_ids, &what)?;
        let config = serde_json::to_vec(&config).expect("a JSON value always serialises");
        // It keeps its annotations.
        let mut layer = manifest.layers.split_off(last).remove(0);
        (layer.digest, layer.size) = (bootstrap.digest, bootstrap.bytes.len() as u64);
        layer.annotate(ANNOTATION_PREFETCH_BLOB, blob.digest.hex());
        target.put(&bootstrap.bytes, &layer.media_type)?;
        manifest.layers.extend([blob.clone(), layer]);
        let kind = manifest.config.media_type.clone();
        manifest.config = target.put(&config, &kind)?;
        Ok(target.put_document(&manifest.to_json(), &manifest.media_type)?)
    }
}
