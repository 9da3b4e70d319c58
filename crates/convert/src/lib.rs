//! Converts OCI images to Nydus images: one stream from the layer's tar to the blob, no unpacking, no temporary data.
//!
//! [`convert`] chooses the images of the platforms asked for, converts their layers side by side (each is fetched,
//! inflated, digested and cut into chunks at the same time), lays the layer trees over each other, writes bootstrap
//! layer, configuration and manifest, and sets the tag last. What fails or is cancelled leaves no tag and no
//! unfinished file. What comes out depends on the source and the options alone. [`copy_image`] moves images as they are, [`optimize_image`] with
//! one more blob.
//!
//! * An index is reduced to the chosen platforms before anything else is read; if a single image is left, that is
//!   the result. Attestations are carried over untouched when all platforms are chosen.
//! * Images that are Nydus images already are copied as they are.
//! * With [`ConvertOptions::merge`] the result is an index of plain and Nydus images, without attestations.
//! * A layer that occurs twice is converted once and listed twice.
//! * An image without layers becomes one whose only layer is the bootstrap of an empty root directory.
#![forbid(unsafe_code)]

mod cache;
mod copy;
mod dictionary;
mod error;
mod generate;
mod index;
mod journal;
mod layer;
mod layers;
mod manifest;
mod merged;
mod optimize;
mod options;
mod profile;
mod prune;
mod reference;
mod report;
mod reuse;
mod rewind;
mod savings;
mod shelf;
mod stream;
mod toc;

use std::time::Instant;

use image::{Descriptor, Index, Location, Node, Selected, Source, Target, media};
use progress::{Cancel, Progress};
use rafs_format::BLOBS_MAX;

pub use cache::{BuildCache, CacheError, CachePlace};
pub use copy::{CopyOptions, CopyReport, copy_image, open_archive};
pub use dictionary::{ChunkDictionary, DictionaryError};
pub use error::Error;
pub use generate::{GenerateReport, generate_dictionary};
pub use index::{ImageIndex, IndexStore, KeptIndex, Lease, subject};
pub use optimize::{First, OptimizeReport, optimize_image};
pub use options::{ChunkCache, ConvertOptions, DedupScope};
pub use profile::Profile;
pub use prune::{BesideBlobs, Pruned, prune_cache};
pub use report::ConvertReport;
pub use savings::{Amount, Savings};
pub use shelf::{
    Proof, Shelf, bare_path, read_again, read_all, read_bare, read_imports, verify_dictionary,
};
pub use toc::is_pinned as has_pinned_toc;

/// Name of the task that is the sum of all others, in bytes of compressed layers.
pub const TOTAL: &str = "total";

/// Converts the image at `source` and writes the result to `target`, both in local files.
///
/// # Errors
/// [`Error`]; the target then has no new tag and no unfinished file.
pub fn convert(
    source: &Location,
    target: &Location,
    options: &ConvertOptions,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<ConvertReport, Error> {
    let (source, target) = (Source::open(source)?, Target::open(target)?);
    convert_image(&source, target, None, options, progress, cancel)
}

/// Converts an image that is open already, to wherever `target` writes. With a `backend`, the blobs go there and the
/// manifest does not list them; it is never committed.
///
/// # Errors
/// As [`convert`].
pub fn convert_image(
    source: &Source,
    target: Target,
    backend: Option<&Target>,
    options: &ConvertOptions,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<ConvertReport, Error> {
    let begun = Instant::now();
    let mut selected = source.select(&options.platform)?;
    if options.merge {
        // They are about images that are not in the result.
        selected.retain(|image| !image.attestation);
    }
    let pulled = begun.elapsed();

    let journal = options.journal.as_deref().map(journal::Journal::open);
    let blobs = backend.unwrap_or(&target);
    let mut dictionary = match &options.dictionary {
        None => None,
        Some(dictionary) => {
            dictionary.check(options)?;
            Some(dictionary.present(blobs, cancel)?)
        }
    };
    let cache = options.cache.as_ref();
    let mut cache = cache
        .map(|cache| cache.open(&options.platform))
        .transpose()?;
    let (images, root) = loop {
        let places = layer::Places {
            source,
            target: &target,
            backend,
            journal: journal.as_ref(),
            cache: cache.as_ref(),
            dictionary: dictionary.as_ref(),
            reference: options.reference,
            extended: options.extended,
            chunk_cache: options.chunk_cache.as_ref(),
            progress,
        };
        let error = match attempt(places, &selected, options, cancel) {
            Ok(done) => break done,
            Err(error) => error,
        };
        if let (Error::Different { .. }, Some(open)) = (&error, &mut cache)
            && open.distrust()
        {
            let name = open.name();
            tracing::warn!("converting again without the build cache {name}: {error}");
            target.forget_documents();
            continue;
        }
        let Some(before) = dictionary.take() else {
            return Err(error);
        };
        let after = match &error {
            Error::DictionaryGone(gone) => before.without(gone),
            Error::TooManyBlobs { own, worth, .. } => {
                before.limited(BLOBS_MAX.saturating_sub(*own), worth)
            }
            _ => return Err(error),
        };
        if after.chunks().blobs().len() == before.chunks().blobs().len() {
            return Err(error);
        }
        tracing::warn!("converting again with less of the chunk dictionary: {error}");
        dictionary = Some(after);
        target.forget_documents();
    };
    let converted = begun.elapsed();
    if let Some(cache) = &cache {
        let blobs = blobs.source(&root)?;
        cache::note(cache, &images, source, &blobs, cancel);
    }
    cancel.check()?;
    target.commit(&root)?;
    Ok(ConvertReport::new(
        &root,
        &images,
        pulled,
        converted,
        begun.elapsed(),
    ))
}

/// Converts everything and writes the root document; nothing but the commit is left then.
fn attempt(
    places: layer::Places<'_>,
    selected: &[Selected],
    options: &ConvertOptions,
    cancel: &Cancel,
) -> Result<(Vec<manifest::Converted>, Descriptor), Error> {
    let (source, target) = (places.source, places.target);
    let images = manifest::Context::new(places, options, cancel)?.convert_all(selected)?;
    let root = match (&images[..], source.node(source.root())?) {
        _ if options.merge => {
            let pairs = (selected, &images[..]);
            merged::put_index(source, target, pairs, options, places.progress, cancel)?
        }
        ([one], _) => unplaced(&one.descriptor),
        (_, Node::Index(index)) => put_index(target, index, &images, options)?,
        (_, Node::Manifest(_)) => return Err(Error::NoImage),
    };
    for image in &images {
        dictionary::look_again(&image.dictionary, places.blobs(), cancel)?;
    }
    Ok((images, root))
}

/// A descriptor without what only says something in an index.
fn unplaced(descriptor: &Descriptor) -> Descriptor {
    Descriptor::new(
        descriptor.media_type.clone(),
        descriptor.digest,
        descriptor.size,
    )
}

/// Writes the index over all images: the source's, with other entries.
fn put_index(
    target: &Target,
    source: Index,
    images: &[manifest::Converted],
    options: &ConvertOptions,
) -> Result<Descriptor, Error> {
    let mut index = source;
    index.manifests = images
        .iter()
        .map(|image| image.descriptor.clone())
        .collect();
    if options.oci {
        media::OCI_INDEX.clone_into(&mut index.media_type);
    }
    Ok(target.put_document(&index.to_json(), &index.media_type)?)
}
