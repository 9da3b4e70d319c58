//! What makes an image a Nydus image: strings, manifest, configuration.

mod blobs;
mod bootstrap_layer;

use serde_json::{Value, json};

use crate::media;
use crate::{Descriptor, Digest, Error, Manifest, Source};

pub use blobs::ImageBlobs;
pub use bootstrap_layer::{BOOTSTRAP_SIZE_MAX, BootstrapLayer, Table, unpack_bootstrap};

/// Media type of a blob layer.
pub const BLOB_MEDIA_TYPE: &str = "application/vnd.oci.image.layer.nydus.blob.v1";
/// Media type of the configuration in images merged with their source.
pub const CONFIG_MEDIA_TYPE: &str = "application/vnd.nydus.image.config.v1+json";
/// Artifact type of a Nydus manifest in an index.
pub const ARTIFACT_TYPE: &str = "application/vnd.nydus.image.manifest.v1+json";
/// Feature of the operating system by which older converters mark a Nydus manifest in an index.
pub const OS_FEATURE: &str = "nydus.remoteimage.v1";
/// Marks a blob layer: `true`.
pub const ANNOTATION_BLOB: &str = "containerd.io/snapshot/nydus-blob";
/// Marks the bootstrap layer: `true`.
pub const ANNOTATION_BOOTSTRAP: &str = "containerd.io/snapshot/nydus-bootstrap";
/// Version of the bootstrap: `5` or `6`.
pub const ANNOTATION_FS_VERSION: &str = "containerd.io/snapshot/nydus-fs-version";
/// Digest of the original layer that a ref layer describes.
pub const ANNOTATION_REF: &str = "containerd.io/snapshot/nydus-ref";
/// Marks the empty layer below a plain image in an index with its Nydus image: `true`.
pub const ANNOTATION_EMPTY_LAYER: &str = "containerd.io/snapshot/nydus-empty-layer";
/// Digest of the source manifest; of the source layer in a build cache.
pub const ANNOTATION_SOURCE_DIGEST: &str = "containerd.io/snapshot/nydus-source-digest";
/// Version of a build cache, on its manifests.
pub const ANNOTATION_CACHE_VERSION: &str = "containerd.io/snapshot/nydus-cache-version";
/// What a record of a build cache depends on: layer, options, dictionary. Of this project alone.
pub const ANNOTATION_CACHE_KEY: &str = "containerd.io/snapshot/nydus-cache-key";
/// SHA-256 of the bootstrap in the tail of a build cache's blob. Of this project alone.
pub const ANNOTATION_CACHE_BOOTSTRAP: &str = "containerd.io/snapshot/nydus-cache-bootstrap";
/// Digest of a layer before compression: kept in manifests whose blobs lie elsewhere.
pub const ANNOTATION_UNCOMPRESSED: &str = "containerd.io/uncompressed";
/// Ids of blobs that lie elsewhere, in images of older converters.
pub const ANNOTATION_BLOB_IDS: &str = "containerd.io/snapshot/nydus-blob-ids";
/// Name of the source image.
pub const ANNOTATION_SOURCE_REFERENCE: &str = "containerd.io/snapshot/nydus-source-reference";

/// Id of the blob that `nydusify optimize` made of the files to fetch first, on the bootstrap layer.
pub const ANNOTATION_PREFETCH_BLOB: &str =
    "containerd.io/snapshot/nydus-separated-blob-with-prefetch-files";
/// Name of the list that such a blob was made by, in the bootstrap layer.
pub const PREFETCH_LIST: &str = "image/prefetch.files";

/// Whether an image is a Nydus image: its last layer is a bootstrap.
pub fn is_nydus(manifest: &Manifest) -> bool {
    bootstrap_descriptor(manifest).is_some()
}

/// Whether an entry of an index claims to lead to a Nydus image: by its artifact type, or as older converters have it.
pub fn is_nydus_entry(entry: &Descriptor) -> bool {
    let features = || {
        entry
            .platform
            .as_ref()?
            .other
            .get("os.features")?
            .as_array()
    };
    entry.other.get("artifactType").and_then(Value::as_str) == Some(ARTIFACT_TYPE)
        || features().is_some_and(|all| all.iter().any(|one| one == OS_FEATURE))
}

/// The bootstrap layer of a Nydus image.
pub fn bootstrap_descriptor(manifest: &Manifest) -> Option<&Descriptor> {
    manifest.layers.last().filter(|layer| {
        matches!(
            &*layer.media_type,
            media::OCI_LAYER_GZIP | media::DOCKER_LAYER_GZIP
        ) && layer.annotation(ANNOTATION_BOOTSTRAP) == Some("true")
    })
}

/// Reads the bootstrap of a Nydus image, its layer verified.
///
/// # Errors
/// If the image is none, or its bootstrap layer is missing, corrupt or holds no bootstrap.
pub fn read_bootstrap(source: &Source, manifest: &Manifest) -> Result<Vec<u8>, Error> {
    let descriptor = bootstrap_descriptor(manifest).ok_or_else(|| Error::Document {
        what: format!("image with the configuration {}", manifest.config.digest),
        reason: "it is no Nydus image: its last layer is no bootstrap".to_owned(),
    })?;
    let what = format!("bootstrap layer {}", descriptor.digest);
    unpack_bootstrap(source.open_blob(descriptor)?, &what).map(|(bootstrap, _)| bootstrap)
}

/// The layer descriptor of a blob.
pub fn blob_descriptor(digest: Digest, size: u64) -> Descriptor {
    let mut descriptor = Descriptor::new(BLOB_MEDIA_TYPE, digest, size);
    descriptor.annotate(ANNOTATION_BLOB, "true");
    descriptor
}

/// The layer descriptor of a blob that describes the layer `original`, which has the data.
pub fn ref_descriptor(digest: Digest, size: u64, original: Digest) -> Descriptor {
    let mut descriptor = blob_descriptor(digest, size);
    descriptor.annotate(ANNOTATION_REF, original.to_string());
    descriptor
}

/// The layer descriptor of a bootstrap, in the family of media types that `manifest_type` is of.
pub fn bootstrap_layer_descriptor(
    manifest_type: &str,
    digest: Digest,
    size: u64,
    fs_version: &str,
) -> Descriptor {
    let mut descriptor = Descriptor::new(layer_media_type(manifest_type), digest, size);
    descriptor.annotate(ANNOTATION_BOOTSTRAP, "true");
    descriptor.annotate(ANNOTATION_FS_VERSION, fs_version);
    descriptor
}

/// The media type of a gzip layer in the family of media types that `manifest_type` is of.
pub fn layer_media_type(manifest_type: &str) -> &'static str {
    if media::is_docker(manifest_type) {
        media::DOCKER_LAYER_GZIP
    } else {
        media::OCI_LAYER_GZIP
    }
}

/// The configuration of a Nydus image: that of its source with other diff ids and one more line of history. All else
/// stays, unknown keys and the order of keys included.
///
/// # Errors
/// [`Error::Document`] if the source's has no usable `rootfs` or `history`; `what` names it.
pub fn target_config(source: &Value, diff_ids: &[Digest], what: &str) -> Result<Value, Error> {
    with_layers(source, diff_ids, what, |history| {
        history.push(json!({"created_by": "Nydus Converter", "comment": "Nydus Bootstrap Layer"}));
    })
}

/// Notes in a configuration's history the blobs of a chunk dictionary, which precede the bootstrap: a line for each.
pub fn note_dictionary(config: &mut Value, blobs: usize) {
    if let Some(Value::Array(history)) = config.get_mut("history") {
        let line = json!({"created_by": "Nydus Converter", "comment": "Nydus Dictionary Blob"});
        let bootstrap = history.len().saturating_sub(1);
        history.splice(bootstrap..bootstrap, vec![line; blobs]);
    }
}

/// The configuration of a Nydus image that got one more blob before its bootstrap, with these diff ids.
///
/// # Errors
/// As [`target_config`].
pub fn with_prefetch_blob(source: &Value, diff_ids: &[Digest], what: &str) -> Result<Value, Error> {
    with_layers(source, diff_ids, what, |history| {
        let line = json!({"created_by": "Nydus Converter", "comment": "Nydus Prefetch Blob"});
        history.insert(history.len().saturating_sub(1), line);
    })
}

/// The configuration of a plain image in an index with its Nydus image: that of its source with an empty layer of this
/// diff id below all others.
///
/// # Errors
/// As [`target_config`], and if the source's diff ids are none.
pub fn with_empty_layer(source: &Value, diff_id: Digest, what: &str) -> Result<Value, Error> {
    let mut all = vec![diff_id];
    all.extend(diff_ids(source, what)?);
    with_layers(source, &all, what, |history| {
        let line = json!({"created_by": "Nydus Converter", "comment": "Nydus Empty Layer"});
        history.insert(0, line);
    })
}

fn with_layers(
    source: &Value,
    diff_ids: &[Digest],
    what: &str,
    note: impl FnOnce(&mut Vec<Value>),
) -> Result<Value, Error> {
    let invalid = |reason: &str| Error::Document {
        what: what.to_owned(),
        reason: reason.to_owned(),
    };
    let mut config = source.clone();
    let object = config
        .as_object_mut()
        .ok_or_else(|| invalid("it is no JSON object"))?;
    let rootfs = object
        .entry("rootfs")
        .or_insert_with(|| json!({"type": "layers"}));
    let rootfs = rootfs
        .as_object_mut()
        .ok_or_else(|| invalid("its rootfs is no object"))?;
    rootfs.insert("diff_ids".to_owned(), json!(diff_ids));
    let history = object.entry("history").or_insert(Value::Null);
    if history.is_null() {
        *history = Value::Array(Vec::new());
    }
    let history = history
        .as_array_mut()
        .ok_or_else(|| invalid("its history is no list"))?;
    note(history);
    Ok(config)
}

/// The configuration of a Nydus image whose blobs lie outside of it: the bootstrap is its only layer, in the diff ids as
/// in the history.
///
/// # Errors
/// As [`target_config`].
pub fn external_config(source: &Value, bootstrap: Digest, what: &str) -> Result<Value, Error> {
    let mut config = target_config(source, &[bootstrap], what)?;
    if let Some(Value::Array(history)) = config.get_mut("history") {
        history.drain(..history.len() - 1);
    }
    Ok(config)
}

/// The configuration of an image that did not list its blobs, once it does: their diff ids come first.
///
/// # Errors
/// As [`target_config`], and if the diff ids are none.
pub fn with_blobs(source: &Value, blobs: &[Digest], what: &str) -> Result<Value, Error> {
    let mut all = blobs.to_vec();
    all.extend(diff_ids(source, what)?);
    with_layers(source, &all, what, |_| {})
}

/// The diff ids of a configuration.
///
/// # Errors
/// If they are no list of SHA-256 digests; `what` names the configuration.
pub fn diff_ids(config: &Value, what: &str) -> Result<Vec<Digest>, Error> {
    match config.pointer("/rootfs/diff_ids") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(list) => serde::Deserialize::deserialize(list).map_err(|source| Error::Json {
            what: format!("diff ids of {what}"),
            source,
        }),
    }
}

/// Makes a manifest refer to `subject`.
pub fn refer(manifest: &mut Manifest, subject: &Descriptor) {
    manifest.other.insert("subject".to_owned(), json!(subject));
}

/// The media types of a manifest and its configuration, of Docker's kind, as OCI's.
pub fn to_oci(manifest: &mut Manifest) {
    if manifest.media_type == media::DOCKER_MANIFEST {
        media::OCI_MANIFEST.clone_into(&mut manifest.media_type);
    }
    if manifest.config.media_type == media::DOCKER_CONFIG {
        media::OCI_CONFIG.clone_into(&mut manifest.config.media_type);
    }
}

/// The manifest of a Nydus image made from `source`: same media type and extra fields, other configuration and
/// layers, annotations that say where it comes from.
pub fn target_manifest(
    source: &Manifest,
    source_digest: Digest,
    source_reference: Option<&str>,
    config: Descriptor,
    layers: Vec<Descriptor>,
    fs_version: &str,
) -> Manifest {
    let mut manifest = Manifest {
        config,
        layers,
        ..source.clone()
    };
    manifest.annotate(ANNOTATION_SOURCE_DIGEST, source_digest.to_string());
    if let Some(reference) = source_reference {
        manifest.annotate(ANNOTATION_SOURCE_REFERENCE, reference);
    }
    manifest.annotate(ANNOTATION_FS_VERSION, fs_version);
    manifest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_keeps_what_it_does_not_know() {
        let source: Value = serde_json::from_str(
            r#"{"os":"linux","zeta":[1,{"x":null}],"rootfs":{"type":"layers","diff_ids":[],"odd":1},"config":{"Env":["A=<b>"]},"history":[{"created_by":"x","empty_layer":true}]}"#,
        )
        .unwrap();
        let id = Digest::of(b"");
        let target = target_config(&source, &[id], "c").unwrap();
        assert_eq!(
            serde_json::to_string(&target).unwrap(),
            format!(
                r#"{{"os":"linux","zeta":[1,{{"x":null}}],"rootfs":{{"type":"layers","diff_ids":["{id}"],"odd":1}},"config":{{"Env":["A=<b>"]}},"history":[{{"created_by":"x","empty_layer":true}},{{"created_by":"Nydus Converter","comment":"Nydus Bootstrap Layer"}}]}}"#
            )
        );
        assert_eq!(diff_ids(&target, "c").unwrap(), [id]);
    }

    #[test]
    fn an_image_with_blobs_elsewhere_has_one_layer() {
        let source = json!({"os": "linux", "history": [{"created_by": "x"}, {}], "rootfs": {"diff_ids": [1, 2]}});
        let id = Digest::of(b"");
        let target = external_config(&source, id, "c").unwrap();
        assert_eq!(target["rootfs"]["diff_ids"], json!([id]));
        assert_eq!(
            target["history"],
            json!([{"created_by": "Nydus Converter", "comment": "Nydus Bootstrap Layer"}])
        );
        assert_eq!(target["os"], "linux");
    }

    #[test]
    fn a_configuration_without_history_gets_one() {
        for source in [json!({}), json!({"history": null, "rootfs": {}})] {
            let target = target_config(&source, &[], "c").unwrap();
            assert_eq!(target["history"].as_array().unwrap().len(), 1);
        }
        assert!(target_config(&json!({"history": 3}), &[], "c").is_err());
        assert!(target_config(&json!([]), &[], "c").is_err());
    }
}
