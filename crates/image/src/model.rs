//! Descriptors, manifests and indexes, of OCI and Docker alike. Unknown fields are kept.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::media::{self, Document};
use crate::{Digest, Error, Platform};

/// Most bytes that the blobs of an image have together: sums over some thousands of images fit into 64 bits.
const IMAGE_SIZE_MAX: u64 = 1 << 50;

/// Names a blob: its type, digest and size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Media type of the blob.
    pub media_type: String,
    /// Digest of the blob.
    pub digest: Digest,
    /// Size of the blob in bytes.
    pub size: u64,
    /// Annotations, ordered by key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
    /// Platform of the image behind an index entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// All other fields.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Descriptor {
    /// A descriptor without annotations or platform.
    pub fn new(media_type: impl Into<String>, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.into(),
            digest,
            size,
            annotations: None,
            platform: None,
            other: Map::new(),
        }
    }

    /// The value of an annotation.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
    }

    /// Adds or replaces an annotation.
    pub fn annotate(&mut self, key: &str, value: impl Into<String>) {
        self.annotations
            .get_or_insert_default()
            .insert(key.to_owned(), value.into());
    }
}

/// An image manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// Media type; once parsed it is always there.
    #[serde(default)]
    pub media_type: String,
    /// The image configuration.
    pub config: Descriptor,
    /// The layers, lowest first.
    pub layers: Vec<Descriptor>,
    /// Annotations, ordered by key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
    /// All other fields.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Manifest {
    /// Adds or replaces an annotation.
    pub fn annotate(&mut self, key: &str, value: impl Into<String>) {
        self.annotations
            .get_or_insert_default()
            .insert(key.to_owned(), value.into());
    }

    /// The manifest as the JSON that is stored.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("maps with string keys always serialise")
    }
}

/// An image index (Docker: manifest list).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// Media type; once parsed it is always there.
    #[serde(default)]
    pub media_type: String,
    /// The entries.
    pub manifests: Vec<Descriptor>,
    /// Annotations, ordered by key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
    /// All other fields.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Index {
    /// The index as the JSON that is stored.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("maps with string keys always serialise")
    }
}

/// What a descriptor in an index leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// One image.
    Manifest(Box<Manifest>),
    /// A list of images.
    Index(Index),
}

impl Node {
    /// Parses the document behind `descriptor`; its own media type, when it states one, has to agree.
    ///
    /// # Errors
    /// [`Error::Json`], [`Error::Document`] or [`Error::MediaType`], with the digest; [`Error::TooLarge`] for an image whose
    /// blobs are said to have more than 1 PiB together.
    pub fn parse(descriptor: &Descriptor, bytes: &[u8]) -> Result<Self, Error> {
        let kind = media::document(&descriptor.media_type, &descriptor.digest.to_string())?;
        let what = match kind {
            Document::Manifest => format!("manifest {}", descriptor.digest),
            Document::Index => format!("index {}", descriptor.digest),
        };
        let value: Value = serde_json::from_slice(bytes).map_err(|source| Error::Json {
            what: what.clone(),
            source,
        })?;
        let invalid = |reason: String| Error::Document {
            what: what.clone(),
            reason,
        };
        if value.get("layers").is_some() && value.get("manifests").is_some() {
            return Err(invalid("it has both layers and manifests".to_owned()));
        }
        match value.get("mediaType") {
            None => {}
            Some(stated) if stated.as_str() == Some(&descriptor.media_type) => {}
            Some(stated) => {
                let reason = format!(
                    "it calls itself {stated}, its descriptor {:?}",
                    descriptor.media_type
                );
                return Err(invalid(reason));
            }
        }
        if value.get("schemaVersion").and_then(Value::as_u64) != Some(2) {
            return Err(invalid("its schema version is not 2".to_owned()));
        }
        let json = |source| Error::Json {
            what: what.clone(),
            source,
        };
        Ok(match kind {
            Document::Manifest => {
                let mut manifest: Manifest = serde_json::from_value(value).map_err(json)?;
                manifest.media_type.clone_from(&descriptor.media_type);
                let blobs = manifest.layers.iter().chain([&manifest.config]);
                let size = blobs.fold(0_u64, |sum, blob| sum.saturating_add(blob.size));
                if size > IMAGE_SIZE_MAX {
                    return Err(Error::TooLarge {
                        what: format!("the image of {what}"),
                        size,
                        limit: IMAGE_SIZE_MAX,
                    });
                }
                Self::Manifest(Box::new(manifest))
            }
            Document::Index => {
                let mut index: Index = serde_json::from_value(value).map_err(json)?;
                index.media_type.clone_from(&descriptor.media_type);
                Self::Index(index)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(media_type: &str, bytes: &[u8]) -> Descriptor {
        Descriptor::new(media_type, Digest::of(bytes), bytes.len() as u64)
    }

    #[test]
    fn unknown_fields_and_their_order_survive() {
        let config = Digest::of(b"c");
        let json = format!(
            r#"{{"schemaVersion":2,"mediaType":"{m}","config":{{"mediaType":"c","digest":"{config}","size":1,"data":"YQ=="}},"layers":[],"zeta":{{"b":1,"a":2}},"alpha":null}}"#,
            m = media::OCI_MANIFEST
        );
        let Node::Manifest(manifest) = Node::parse(
            &descriptor(media::OCI_MANIFEST, json.as_bytes()),
            json.as_bytes(),
        )
        .unwrap() else {
            panic!("a manifest")
        };
        assert_eq!(String::from_utf8(manifest.to_json()).unwrap(), json);
    }

    #[test]
    fn sizes_beyond_all_bounds_are_refused() {
        let parse = |size: u64| {
            let digest = Digest::of(b"b");
            let blob = format!(r#"{{"mediaType":"m","digest":"{digest}","size":{size}}}"#);
            let json = format!(r#"{{"schemaVersion":2,"config":{blob},"layers":[{blob},{blob}]}}"#);
            Node::parse(
                &descriptor(media::OCI_MANIFEST, json.as_bytes()),
                json.as_bytes(),
            )
        };
        assert!(parse(1 << 48).is_ok());
        for size in [1 << 50, u64::MAX] {
            assert!(matches!(parse(size), Err(Error::TooLarge { .. })), "{size}");
        }
    }

    #[test]
    fn a_document_that_contradicts_its_descriptor_is_refused() {
        let cases = [
            (
                format!(
                    r#"{{"schemaVersion":2,"mediaType":"{}"}}"#,
                    media::OCI_INDEX
                ),
                "calls itself",
            ),
            (
                r#"{"schemaVersion":2,"layers":[],"manifests":[]}"#.to_owned(),
                "both",
            ),
            (
                r#"{"schemaVersion":1,"layers":[]}"#.to_owned(),
                "schema version",
            ),
            (
                r#"{"schemaVersion":2"#.to_owned(),
                "malformed manifest sha256:",
            ),
        ];
        for (json, word) in cases {
            let error = Node::parse(
                &descriptor(media::OCI_MANIFEST, json.as_bytes()),
                json.as_bytes(),
            )
            .unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
