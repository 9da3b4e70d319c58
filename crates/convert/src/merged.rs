//! The index of `--merge-platform`: plain images first, for runtimes that know nothing else, then the Nydus images.
//!
//! A plain image gets an empty layer below all others, so that its chain of layers is not that of the source: a
//! snapshotter that has unpacked the one would else take it for the other.

use std::io::Write as _;
use std::sync::LazyLock;

use flate2::Compression;
use flate2::write::GzEncoder;
use image::{Descriptor, Digest, Index, Platform, Selected, Source, Target, media, nydus};
use progress::{Cancel, Progress};

use crate::copy::{CopyOptions, Work};
use crate::manifest::{Converted, platform};
use crate::{ConvertOptions, Error};

/// An empty layer, gzip-compressed, and the digest of the tar in it.
struct Empty {
    bytes: Vec<u8>,
    diff_id: Digest,
}

/// Two blocks of zeros.
static EMPTY: LazyLock<Empty> = LazyLock::new(|| {
    let tar = [0; 1024];
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(&tar)
        .expect("a vector takes all that is written");
    Empty {
        bytes: gzip.finish().expect("a vector takes all that is written"),
        diff_id: Digest::of(&tar),
    }
});

/// Writes the index over `images`, which were made of `selected`, and over copies of those that are no Nydus images.
pub(crate) fn put_index(
    source: &Source,
    target: &Target,
    (selected, images): (&[Selected], &[Converted]),
    options: &ConvertOptions,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Descriptor, Error> {
    let plain: Vec<&Selected> = selected
        .iter()
        .filter(|image| !nydus::is_nydus(&image.manifest))
        .collect();
    let mut layers: Vec<&Descriptor> = Vec::new();
    for layer in plain.iter().flat_map(|image| &image.manifest.layers) {
        if layers.iter().all(|known| known.digest != layer.digest) {
            layers.push(layer);
        }
    }
    let work = Work {
        source,
        target,
        progress,
        total: false,
        cancel,
    };
    work.copy_blobs(&layers, CopyOptions::LANES)?;
    let mut manifests = Vec::with_capacity(plain.len() + images.len());
    for image in plain {
        manifests.push(put_copy(source, target, image, options)?);
    }
    for (image, converted) in selected.iter().zip(images) {
        let mut descriptor = converted.descriptor.clone();
        descriptor
            .other
            .insert("artifactType".to_owned(), nydus::ARTIFACT_TYPE.into());
        descriptor.platform = Some(placed(source, image)?);
        manifests.push(descriptor);
    }
    let index = Index {
        schema_version: 2,
        media_type: media::OCI_INDEX.to_owned(),
        manifests,
        annotations: None,
        other: Default::default(),
    };
    Ok(target.put_document(&index.to_json(), &index.media_type)?)
}

/// Writes the copy of a plain image; its entry in the index. Its layers are in place.
fn put_copy(
    source: &Source,
    target: &Target,
    image: &Selected,
    options: &ConvertOptions,
) -> Result<Descriptor, Error> {
    let mut manifest = image.manifest.clone();
    let what = format!("configuration {}", manifest.config.digest);
    let config = nydus::with_empty_layer(&source.config(&manifest)?, EMPTY.diff_id, &what)?;
    if options.oci {
        nydus::to_oci(&mut manifest);
    }
    let config = serde_json::to_vec(&config).expect("a JSON value always serialises");
    manifest.config = target.put(&config, &manifest.config.media_type)?;
    let kind = nydus::layer_media_type(&manifest.media_type);
    let mut empty = target.put(&EMPTY.bytes, kind)?;
    empty.annotate(nydus::ANNOTATION_EMPTY_LAYER, "true");
    manifest.layers.insert(0, empty);
    let origin = image.descriptor.digest.to_string();
    manifest.annotate(nydus::ANNOTATION_SOURCE_DIGEST, origin.as_str());
    let put = target.put_document(&manifest.to_json(), &manifest.media_type)?;
    let mut entry = image.descriptor.clone();
    (entry.media_type, entry.digest, entry.size) = (put.media_type, put.digest, put.size);
    entry.annotate(nydus::ANNOTATION_SOURCE_DIGEST, origin);
    entry.platform = Some(placed(source, image)?);
    Ok(entry)
}

/// The platform of an image. Readers of such an index look into that of every entry: it is never left out.
fn placed(source: &Source, image: &Selected) -> Result<Platform, Error> {
    if let Some(platform) = &image.descriptor.platform {
        return Ok(platform.clone());
    }
    let config = source.config(&image.manifest)?;
    Ok(platform(&config).unwrap_or_else(|| Platform::new("", "")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_empty_layer_is_the_one_that_all_use() {
        assert_eq!(
            EMPTY.diff_id.hex(),
            "5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"
        );
    }
}
