//! Blobs and images as a snapshot's file has them: little-endian fields one behind the other.

use rafs_format::{BlobFeatures, BlobId, BlobInfo, Cipher, Compressor, Digest, Digester};

use crate::rows::Rows;
use crate::snapshot::{ImageBlob, SnapshotImage};

/// A blob of [`rafs_format`]; its position is its index.
pub(crate) fn put_blob(out: &mut Vec<u8>, blob: &BlobInfo) {
    let id = blob.id.as_str().as_bytes();
    out.push(id.len() as u8);
    out.extend_from_slice(id);
    for number in [
        blob.chunk_size,
        blob.chunk_count,
        blob.compressor.number(),
        blob.digester.number(),
        blob.features.bits(),
        blob.toc_size,
        blob.meta_compressor.number(),
        blob.cipher.number(),
        blob.readahead_size,
    ] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    for number in [
        blob.compressed_size,
        blob.uncompressed_size,
        blob.meta_offset,
        blob.meta_compressed_size,
        blob.meta_uncompressed_size,
        blob.meta_size,
    ] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.extend_from_slice(&blob.toc_digest);
    out.extend_from_slice(&blob.meta_digest);
    out.extend_from_slice(&blob.cipher_iv);
}

fn blob(input: &mut Input<'_>, index: u32) -> Option<BlobInfo> {
    let length = input.array::<1>()?[0];
    let id = std::str::from_utf8(input.take(length.into())?).ok()?;
    let id = BlobId::new(id)?;
    let mut numbers = [0; 9];
    for number in &mut numbers {
        *number = input.number()?;
    }
    let [
        chunk_size,
        chunk_count,
        compressor,
        digester,
        features,
        toc_size,
        meta_compressor,
        cipher,
        readahead_size,
    ] = numbers;
    let mut sizes = [0; 6];
    for size in &mut sizes {
        *size = input.size()?;
    }
    let [
        compressed_size,
        uncompressed_size,
        meta_offset,
        meta_compressed_size,
        meta_uncompressed_size,
        meta_size,
    ] = sizes;
    Some(BlobInfo {
        id,
        index,
        chunk_size,
        chunk_count,
        compressor: Compressor::from_number(compressor)?,
        digester: Digester::from_number(digester)?,
        features: BlobFeatures::from_bits_retain(features),
        compressed_size,
        uncompressed_size,
        toc_size,
        meta_compressor: Compressor::from_number(meta_compressor)?,
        meta_offset,
        meta_compressed_size,
        meta_uncompressed_size,
        meta_size,
        cipher: Cipher::from_number(cipher)?,
        readahead_size,
        toc_digest: input.array()?,
        meta_digest: input.array()?,
        cipher_iv: input.array()?,
    })
}

/// All blobs of a snapshot, in ascending order of their ids.
pub(crate) fn blobs(bytes: &[u8]) -> Option<Vec<BlobInfo>> {
    let mut input = Input(bytes);
    let mut blobs: Vec<BlobInfo> = Vec::new();
    while !input.0.is_empty() {
        let blob = blob(&mut input, u32::try_from(blobs.len()).ok()?)?;
        if blobs.last().is_some_and(|before| before.id >= blob.id) {
            return None;
        }
        blobs.push(blob);
    }
    Some(blobs)
}

pub(crate) fn put_image(out: &mut Vec<u8>, image: &SnapshotImage) {
    out.extend_from_slice(&image.id);
    out.extend_from_slice(&(image.blobs.len() as u32).to_le_bytes());
    for held in &image.blobs {
        let runs = held.rows.runs();
        out.extend_from_slice(&held.blob.to_le_bytes());
        out.extend_from_slice(&held.size.to_le_bytes());
        out.extend_from_slice(&(runs.len() as u32).to_le_bytes());
        for (first, count) in runs {
            out.extend_from_slice(&first.to_le_bytes());
            out.extend_from_slice(&count.to_le_bytes());
        }
    }
}

fn image(input: &mut Input<'_>) -> Option<SnapshotImage> {
    let id = input.array()?;
    let mut held = Vec::new();
    for _ in 0..input.number()? {
        let (blob, size) = (input.number()?, input.size()?);
        let mut runs = Vec::new();
        for _ in 0..input.number()? {
            runs.push((input.number()?, input.number()?));
        }
        let rows = Rows::from_runs(runs)?;
        held.push(ImageBlob { blob, size, rows });
    }
    let in_order = held.is_sorted_by(|a, b| a.blob < b.blob);
    in_order.then_some(SnapshotImage { id, blobs: held })
}

/// All images of a snapshot, in ascending order of their ids.
pub(crate) fn images(bytes: &[u8]) -> Option<Vec<SnapshotImage>> {
    let mut input = Input(bytes);
    let mut images = Vec::new();
    while !input.0.is_empty() {
        images.push(image(&mut input)?);
    }
    images
        .is_sorted_by(|a: &SnapshotImage, b| a.id < b.id)
        .then_some(images)
}

/// Bytes that fields are taken from.
pub(crate) struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head)
    }

    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub fn number(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn size(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}

/// A digest as names of files have it.
pub(crate) fn hex(digest: &Digest) -> String {
    hex::encode(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_comes_back_and_no_shorter_one_is_taken() {
        let id = BlobId::new("ab").unwrap();
        let info = BlobInfo {
            index: 0,
            chunk_count: 3,
            compressed_size: u64::MAX,
            meta_offset: 7,
            meta_digest: [9; 32],
            cipher_iv: [1; 8],
            features: BlobFeatures::BATCH,
            readahead_size: 5,
            ..BlobInfo::new(id, 4096, Compressor::Zstd, Digester::Sha256)
        };
        let mut bytes = Vec::new();
        put_blob(&mut bytes, &info);
        assert_eq!(blobs(&bytes), Some(vec![info.clone()]));
        for length in 1..bytes.len() {
            assert_eq!(blobs(&bytes[..length]), None, "{length}");
        }
        put_blob(&mut bytes, &info);
        assert_eq!(blobs(&bytes), None, "the same blob twice");
    }

    #[test]
    fn an_image_comes_back_and_no_shorter_one_is_taken() {
        let rows = Rows::of([1, 2, 9]);
        let held = |blob| ImageBlob {
            blob,
            size: 77,
            rows: rows.clone(),
        };
        let one = SnapshotImage {
            id: [3; 32],
            blobs: vec![held(0), held(4)],
        };
        let mut bytes = Vec::new();
        put_image(&mut bytes, &one);
        assert_eq!(images(&bytes), Some(vec![one.clone()]));
        for length in 1..bytes.len() {
            assert_eq!(images(&bytes[..length]), None, "{length}");
        }
        put_image(&mut bytes, &one);
        assert_eq!(images(&bytes), None, "the same image twice");
    }
}
