//! Layers over each other.

use std::fmt::Display;

use rafs_format::{BLOBS_MAX, BlobFeatures, Version};
use tree::Image;

use crate::Error;

/// Lays images over each other by the rules of OCI layers, the lowest first, and drops what is then unused. Prefetch
/// lists of the layers are dropped: they are about the layers alone.
///
/// # Errors
/// [`Error::Inconsistent`] for layers that differ in what one image can have one of only, [`Error::TooManyBlobs`],
/// and contradictions between the layers.
pub fn merge(layers: Vec<Image>) -> Result<Image, Error> {
    check_compatible(&layers)?;
    let mut layers = layers.into_iter();
    let mut image = layers.next().ok_or(Error::NoLayers)?;
    image.tree.strip_whiteouts();
    for layer in layers {
        tree::overlay(&mut image, layer)?;
    }
    image.prefetch.clear();
    image.compact()?;
    for blob in &mut image.blobs {
        // It says that the id is to be replaced by a file name, which is so in the layer's own bootstrap only.
        blob.features -= BlobFeatures::INLINED_FS_META;
    }
    if image.blobs.len() > BLOBS_MAX {
        return Err(Error::TooManyBlobs(image.blobs.len()));
    }
    Ok(image)
}

/// Whether images can be merged at all.
///
/// # Errors
/// [`Error::Inconsistent`] naming the first layer that differs and in what.
pub fn check_compatible(layers: &[Image]) -> Result<(), Error> {
    let Some(first) = layers.first() else {
        return Ok(());
    };
    for (number, layer) in layers.iter().enumerate() {
        same(number, "RAFS version", first.version, layer.version)?;
        if first.version == Version::V5 {
            check_v5(number, first, layer)?;
        }
        same(number, "chunk size", first.chunk_size, layer.chunk_size)?;
        same(number, "tarfs mode", first.tarfs, layer.tarfs)?;
        same(
            number,
            "explicit owners",
            first.explicit_owners,
            layer.explicit_owners,
        )?;
    }
    Ok(())
}

/// The superblock of v5 names one digester and one compressor for all blobs.
fn check_v5(number: usize, first: &Image, layer: &Image) -> Result<(), Error> {
    same(number, "digester", first.digester, layer.digester)?;
    if first.blobs.is_empty() || layer.blobs.is_empty() {
        return Ok(());
    }
    same(number, "compressor", first.compressor, layer.compressor)
}

fn same<T: PartialEq + Display>(
    layer: usize,
    what: &'static str,
    expected: T,
    actual: T,
) -> Result<(), Error> {
    if expected == actual {
        return Ok(());
    }
    Err(Error::Inconsistent {
        layer,
        what,
        expected: expected.to_string(),
        actual: actual.to_string(),
    })
}
