//! What a conversion did.

use std::time::Duration;

use image::{Descriptor, Digest};
use serde::Serialize;

use crate::Savings;
use crate::manifest::Converted;

/// What a conversion did. As JSON it has the keys of the deployed tool, and some more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConvertReport {
    /// Name and version of this document's layout.
    #[serde(rename = "Schema")]
    pub schema: &'static str,
    /// Sizes of the configurations and layers of the source images, in bytes.
    #[serde(rename = "SourceImageSize")]
    pub source_size: u64,
    /// Sizes of the configurations and layers of the new images, in bytes.
    #[serde(rename = "TargetImageSize")]
    pub target_size: u64,
    /// Time until the source's images were known, in nanoseconds; layers are fetched while they are converted.
    #[serde(rename = "SourcePullElapsed")]
    pub pull: u64,
    /// Time for converting, in nanoseconds.
    #[serde(rename = "ConversionElapsed")]
    pub conversion: u64,
    /// Time for bringing the result to stable storage and tagging it, in nanoseconds.
    #[serde(rename = "TargetPushElapsed")]
    pub push: u64,
    /// The new image or index.
    #[serde(rename = "TargetDigest")]
    pub digest: Digest,
    /// Its media type.
    #[serde(rename = "TargetMediaType")]
    pub media_type: String,
    /// Images that were converted.
    #[serde(rename = "ConvertedImages")]
    pub converted: usize,
    /// Images and attestations that were carried over as they are.
    #[serde(rename = "CopiedImages")]
    pub copied: usize,
    /// Layers that had been converted before, by an earlier run or in the build cache.
    #[serde(rename = "ReusedLayers")]
    pub reused_layers: usize,
    /// Size of their blobs in bytes.
    #[serde(rename = "ReusedBytes")]
    pub reused_size: u64,
    /// Those of them that were in the build cache.
    #[serde(rename = "CachedLayers")]
    pub cached_layers: usize,
    /// Size of their blobs in bytes.
    #[serde(rename = "CachedBytes")]
    pub cached_size: u64,
    /// What deduplication saved.
    #[serde(rename = "Deduplication")]
    pub savings: Savings,
}

/// Layout of [`ConvertReport`] as JSON.
const SCHEMA: &str = "nydusify-convert/1";

impl ConvertReport {
    /// The report about `root`; times count from the beginning.
    pub(crate) fn new(
        root: &Descriptor,
        images: &[Converted],
        pulled: Duration,
        converted: Duration,
        pushed: Duration,
    ) -> Self {
        let count = images.iter().filter(|image| image.converted).count();
        Self {
            schema: SCHEMA,
            source_size: images.iter().map(|image| image.source_size).sum(),
            target_size: images.iter().map(|image| image.target_size).sum(),
            pull: nanoseconds(pulled),
            conversion: nanoseconds(converted.saturating_sub(pulled)),
            push: nanoseconds(pushed.saturating_sub(converted)),
            digest: root.digest,
            media_type: root.media_type.clone(),
            converted: count,
            copied: images.len() - count,
            reused_layers: images.iter().map(|image| image.reused.layers).sum(),
            reused_size: images.iter().map(|image| image.reused.bytes).sum(),
            cached_layers: images.iter().map(|image| image.cached.layers).sum(),
            cached_size: images.iter().map(|image| image.cached.bytes).sum(),
            savings: images.iter().fold(Savings::default(), |mut sum, image| {
                sum += image.savings.clone();
                sum
            }),
        }
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
