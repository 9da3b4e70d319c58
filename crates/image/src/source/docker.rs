//! What `docker save` writes: `manifest.json`, configurations and layer tars.
//!
//! Such an archive has no image manifest; one of Docker's schema 2 is made up from what there is. The digest of a
//! layer that is not compressed is its diff id; that of a compressed one is in its name or computed here.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value};

use storage::{BlobReader, FileBlob};

use super::{Archive, Source, Store, pick};
use crate::{Descriptor, Digest, Error, Manifest, media};

type Known = BTreeMap<Digest, Arc<dyn BlobReader>>;

/// One entry of `manifest.json`.
#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "Config")]
    config: String,
    #[serde(rename = "RepoTags", default)]
    repo_tags: Option<Vec<String>>,
    #[serde(rename = "Layers", default)]
    layers: Option<Vec<String>>,
}

/// Opens the image `tag` of `archive`.
pub(super) fn open(archive: Archive, tag: Option<&str>) -> Result<Source, Error> {
    let name = archive.path().display().to_string();
    if !archive.contains("manifest.json") {
        let hint = if archive.contains("index.json") {
            "; it looks like oci-archive:"
        } else {
            ""
        };
        return Err(archive.error(format!(
            "it is no docker archive: it has no manifest.json{hint}"
        )));
    }
    let what = format!("manifest.json of {name}");
    let entries: Vec<Entry> = serde_json::from_slice(&archive.read("manifest.json")?)
        .map_err(|source| Error::Json { what, source })?;
    let candidates = entries
        .into_iter()
        .map(|entry| (entry.repo_tags.clone().unwrap_or_default(), entry))
        .collect();
    let (tag, entry) = pick(candidates, tag, &name)?;

    let mut blobs = Known::new();
    let manifest = synthesise(&archive, &entry, &mut blobs)?.to_json();
    let root = Descriptor::new(
        media::DOCKER_MANIFEST,
        Digest::of(&manifest),
        manifest.len() as u64,
    );
    blobs.insert(root.digest, Arc::new(manifest));
    Source::new(Arc::new(Blobs { name, blobs }), root, tag)
}

fn synthesise(archive: &Archive, entry: &Entry, blobs: &mut Known) -> Result<Manifest, Error> {
    let bytes = archive.read(&entry.config)?;
    let digest = Digest::of(&bytes);
    if let Some(expected) = digest_in_name(&entry.config)
        && expected != digest
    {
        return Err(Error::DigestMismatch {
            expected,
            actual: digest,
        });
    }
    let config: Value = serde_json::from_slice(&bytes).map_err(|source| Error::Json {
        what: format!("configuration {}", entry.config),
        source,
    })?;
    let diff_ids: Vec<Digest> = match config.pointer("/rootfs/diff_ids") {
        None | Some(Value::Null) => Vec::new(),
        Some(list) => Vec::deserialize(list).map_err(|source| Error::Json {
            what: format!("diff ids of configuration {}", entry.config),
            source,
        })?,
    };
    let names = entry.layers.as_deref().unwrap_or_default();
    if names.len() != diff_ids.len() {
        let reason = format!(
            "it lists {} layers, its configuration {} diff ids",
            names.len(),
            diff_ids.len()
        );
        return Err(archive.error(reason));
    }
    let layers = std::iter::zip(names, diff_ids)
        .map(|(name, diff_id)| layer(archive, name, diff_id, blobs))
        .collect::<Result<_, _>>()?;
    let descriptor = Descriptor::new(media::DOCKER_CONFIG, digest, bytes.len() as u64);
    blobs.insert(digest, Arc::new(bytes));
    Ok(Manifest {
        schema_version: 2,
        media_type: media::DOCKER_MANIFEST.to_owned(),
        config: descriptor,
        layers,
        annotations: None,
        other: Map::new(),
    })
}

fn layer(
    archive: &Archive,
    name: &str,
    diff_id: Digest,
    blobs: &mut Known,
) -> Result<Descriptor, Error> {
    let missing = || archive.error(format!("layer {name:?} is missing"));
    let (file, offset, len) = archive.locate(name).ok_or_else(missing)?;
    let mut magic = [0; 4];
    let known = usize::try_from(len).unwrap_or(4).min(4);
    file.read_exact_at(&mut magic[..known], offset)
        .map_err(Error::io("read", archive.path()))?;
    let (media_type, compressed) = match magic {
        [0x1f, 0x8b, ..] => (media::DOCKER_LAYER_GZIP, true),
        [0x28, 0xb5, 0x2f, 0xfd] => (media::DOCKER_LAYER_ZSTD, true),
        _ => (media::DOCKER_LAYER, false),
    };
    let blob = Arc::new(FileBlob::window(file, offset, len));
    let digest = match digest_in_name(name) {
        _ if !compressed => diff_id,
        Some(digest) => digest,
        None => Arc::clone(&blob)
            .stream(0)
            .and_then(Digest::of_reader)
            .map_err(Error::io("read", archive.path()))?,
    };
    blobs.insert(digest, blob);
    Ok(Descriptor::new(media_type, digest, len))
}

/// The digest in names such as `blobs/sha256/<hex>` and `<hex>.json`. A layer's `<id>/layer.tar` holds none.
fn digest_in_name(name: &str) -> Option<Digest> {
    let file = name.rsplit('/').next()?;
    Digest::from_hex(file.strip_suffix(".json").unwrap_or(file))
}

/// The blobs of one image, real and made up.
struct Blobs {
    name: String,
    blobs: Known,
}

impl Store for Blobs {
    fn blob(&self, digest: &Digest, _: Option<u64>) -> Result<Arc<dyn BlobReader>, Error> {
        let missing = || Error::MissingBlob {
            digest: *digest,
            store: self.name(),
        };
        self.blobs.get(digest).cloned().ok_or_else(missing)
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}
