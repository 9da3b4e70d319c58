use std::time::Duration;

use image::{Descriptor, Digest};
use serde::Serialize;

use super::Moved;

/// What a copy did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CopyReport {
    /// Name and version of this document's layout.
    #[serde(rename = "Schema")]
    pub schema: &'static str,
    /// Sizes of the configurations and layers, each counted once, in bytes.
    #[serde(rename = "TargetImageSize")]
    pub size: u64,
    /// Time for all of it, in nanoseconds.
    #[serde(rename = "CopyElapsed")]
    pub elapsed: u64,
    /// The image or index in the target.
    #[serde(rename = "TargetDigest")]
    pub digest: Digest,
    /// Its media type.
    #[serde(rename = "TargetMediaType")]
    pub media_type: String,
    /// Images and attestations that were copied.
    #[serde(rename = "CopiedImages")]
    pub images: usize,
    /// Blobs that went through this program.
    #[serde(rename = "CopiedBlobs")]
    pub copied_blobs: usize,
    /// Their size in bytes.
    #[serde(rename = "CopiedBytes")]
    pub copied_size: u64,
    /// Blobs that the registry took over from another of its repositories.
    #[serde(rename = "MountedBlobs")]
    pub mounted_blobs: usize,
    /// Their size in bytes.
    #[serde(rename = "MountedBytes")]
    pub mounted_size: u64,
    /// Blobs that the target had already.
    #[serde(rename = "PresentBlobs")]
    pub present_blobs: usize,
    /// Their size in bytes.
    #[serde(rename = "PresentBytes")]
    pub present_size: u64,
}

/// Layout of [`CopyReport`] as JSON.
const SCHEMA: &str = "nydusify-copy/1";

impl CopyReport {
    pub(super) fn new(
        root: &Descriptor,
        images: usize,
        size: u64,
        moved: Moved,
        elapsed: Duration,
    ) -> Self {
        Self {
            schema: SCHEMA,
            size,
            elapsed: u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX),
            digest: root.digest,
            media_type: root.media_type.clone(),
            images,
            copied_blobs: moved.copied.0,
            copied_size: moved.copied.1,
            mounted_blobs: moved.adopted.0,
            mounted_size: moved.adopted.1,
            present_blobs: moved.present.0,
            present_size: moved.present.1,
        }
    }
}
