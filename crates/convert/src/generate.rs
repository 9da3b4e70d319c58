//! One dictionary image of many images.

use std::collections::{BTreeMap, BTreeSet};

use bootstrap::Parsed;
use image::nydus::{self, BootstrapLayer};
use image::{Descriptor, Digest, Manifest, PlatformChoice, Selected, Source, Target, media};
use progress::{Cancel, Progress};
use serde::Serialize;
use serde_json::{Value, json};

use crate::copy::{Work, gather};
use crate::shelf::no_image;
use crate::{CopyOptions, DictionaryError, Error, TOTAL};

/// What a dictionary image holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GenerateReport {
    /// Its manifest.
    #[serde(rename = "Digest")]
    pub digest: Digest,
    /// Blobs that it names.
    #[serde(rename = "Blobs")]
    pub blobs: usize,
    /// Chunks in it, by content.
    #[serde(rename = "Chunks")]
    pub chunks: usize,
    /// Bytes of file data in them.
    #[serde(rename = "Bytes")]
    pub bytes: u64,
    /// Chunks that are worth it and lie in blobs that there was no room for.
    #[serde(rename = "LeftOut")]
    pub left_out: usize,
}

/// Where a blob is copied from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Home {
    /// Position of the source.
    at: usize,
    /// Whether it lies in the source's backend.
    backend: bool,
}

/// Makes one dictionary of Nydus images, of the chosen platforms each, and writes it to `target` as an image: the blobs
/// that hold its chunks, and a bootstrap that names them ([`chunkdict::generate`]). Blobs that a source does not list are
/// taken from its backend, if it has one. The order of `sources` has no say in it.
///
/// # Errors
/// [`Error::Dictionary`] if there is no image, or they are not alike; whatever keeps one from being read or the target
/// from being written. The target then has no new tag.
pub fn generate_dictionary(
    sources: &[(String, Source)],
    target: Target,
    choice: &PlatformChoice,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<GenerateReport, Error> {
    let (mut images, mut homes) = (Vec::new(), BTreeMap::new());
    let mut platforms = Vec::new();
    for (at, (name, source)) in sources.iter().enumerate() {
        let before = images.len();
        for image in source.select(choice)? {
            cancel.check()?;
            if image.attestation || !nydus::is_nydus(&image.manifest) {
                continue;
            }
            let bytes = nydus::read_bootstrap(source, &image.manifest)?;
            let parsed = Parsed::parse(bytes).map_err(|source| DictionaryError::Format {
                name: name.clone(),
                source,
            })?;
            let loaded = parsed.load().map_err(|source| DictionaryError::Decode {
                name: name.clone(),
                source: Box::new(source),
            })?;
            images.push(chunkdict::Source {
                name: format!("{name} {}", image.descriptor.digest),
                image: loaded,
            });
            let config = source.config(&image.manifest)?;
            platforms.push((image.descriptor.digest, config));
            for blob in blobs_at_backend(source, &image)? {
                let home = Home { at, backend: true };
                homes.entry(blob.digest).or_insert((home, blob.size));
            }
            for layer in image.manifest.layers {
                let home = Home { at, backend: false };
                homes.entry(layer.digest).or_insert((home, layer.size));
            }
        }
        if images.len() == before {
            return Err(no_image(name));
        }
    }
    let made = chunkdict::generate(images).map_err(DictionaryError::Generate)?;
    let bootstrap =
        builder::encode(&made.image).map_err(|error| DictionaryError::Encode(Box::new(error)))?;
    let mut layers = Vec::new();
    let mut by_home: BTreeMap<Home, Vec<Descriptor>> = BTreeMap::new();
    for blob in &made.image.blobs {
        let digest = Digest::from_hex(blob.id.as_str());
        let Some((digest, &(home, size))) =
            digest.and_then(|digest| Some((digest, homes.get(&digest)?)))
        else {
            return Err(DictionaryError::Unlisted(blob.id.clone()).into());
        };
        let descriptor = nydus::blob_descriptor(digest, size);
        by_home.entry(home).or_default().push(descriptor.clone());
        layers.push(descriptor);
    }
    progress.started(TOTAL, Some(layers.iter().map(|layer| layer.size).sum()));
    for (home, blobs) in &by_home {
        let source = &sources[home.at].1;
        let backend = source.at_backend().filter(|_| home.backend);
        let work = Work {
            source: backend.as_ref().unwrap_or(source),
            target: &target,
            progress,
            total: true,
            cancel,
        };
        work.copy_blobs(&blobs.iter().collect::<Vec<_>>(), CopyOptions::LANES)?;
    }
    // Of several platforms that of the image with the lowest digest, so that the order has no say in it.
    let like = platforms.into_iter().min_by_key(|(digest, _)| *digest);
    let like = like.map(|(_, config)| config).unwrap_or_default();
    let root = put_documents(
        &target,
        layers,
        &like,
        &bootstrap,
        made.image.version.digit(),
    )?;
    cancel.check()?;
    target.commit(&root)?;
    progress.finished(TOTAL, &format!("{} blobs", made.image.blobs.len()));
    let ids: BTreeSet<_> = made.image.blobs.iter().map(|blob| &blob.id).collect();
    Ok(GenerateReport {
        digest: root.digest,
        blobs: ids.len(),
        chunks: made.chunks,
        bytes: made.bytes,
        left_out: made.left_out,
    })
}

/// The blobs of an image that it does not list, for they lie in a backend.
fn blobs_at_backend(source: &Source, image: &Selected) -> Result<Vec<Descriptor>, Error> {
    let gathered = gather::gather(source, image)?;
    Ok(gathered.map_or_else(Vec::new, |gathered| gathered.blobs))
}

/// Writes bootstrap layer, configuration and manifest, all of Docker's types as the deployed tool has them.
fn put_documents(
    target: &Target,
    mut layers: Vec<Descriptor>,
    like: &Value,
    bootstrap: &[u8],
    fs_version: &str,
) -> Result<Descriptor, Error> {
    let pool = rayon::ThreadPoolBuilder::new().build();
    let pool = pool.map_err(|error| Error::Threads(error.into()))?;
    let digest = Digest::of(bootstrap);
    let packed = BootstrapLayer::pack(bootstrap, &[], &pool).map_err(|source| Error::Pack {
        manifest: digest,
        source,
    })?;
    let size = packed.bytes.len() as u64;
    let last =
        nydus::bootstrap_layer_descriptor(media::DOCKER_MANIFEST, packed.digest, size, fs_version);
    target.put(&packed.bytes, &last.media_type)?;
    let mut diff_ids: Vec<Digest> = layers.iter().map(|layer| layer.digest).collect();
    diff_ids.push(packed.diff_id);
    layers.push(last);
    let mut config = json!({});
    for key in ["architecture", "os", "variant"] {
        if let Some(value) = like.get(key) {
            config[key] = value.clone();
        }
    }
    config["config"] = json!({});
    config["rootfs"] = json!({"type": "layers", "diff_ids": diff_ids});
    let config = serde_json::to_vec(&config).expect("a JSON value always serialises");
    let manifest = Manifest {
        schema_version: 2,
        media_type: media::DOCKER_MANIFEST.to_owned(),
        config: target.put(&config, media::DOCKER_CONFIG)?,
        layers,
        annotations: None,
        other: serde_json::Map::default(),
    };
    Ok(target.put_document(&manifest.to_json(), &manifest.media_type)?)
}
