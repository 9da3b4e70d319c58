//! Parsers that are no part of the interface, for the fuzz targets.

use image::Manifest;

use crate::{cache, journal};

/// Any JSON as a record of the journal.
pub fn record(json: &[u8]) {
    let _ = journal::parse(json);
}

/// Any manifest as a page of a build cache.
pub fn page(manifest: &Manifest) {
    let _ = cache::version(manifest);
    for blob in &manifest.layers {
        let _ = cache::source_layer(blob);
        if let Some((key, record)) = cache::read(blob) {
            assert_eq!(
                (record.blob, record.size),
                (blob.digest, blob.size),
                "{key}"
            );
        }
    }
}
