//! Parsers that are no part of the interface, for the fuzz targets.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use chunkdict::ChunkKey;

use crate::catalogue::Catalogue;
use crate::{ImageBlob, Snapshot};

/// Any bytes as a snapshot whose name is right, in the file `path`, which is written over. What is loaded is what was written, every
/// chunk is found, and all that is told of a snapshot can be.
pub fn snapshot(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).expect("a file can be written");
    let file = Arc::new(File::open(path).expect("what was written can be opened"));
    let id = *blake3::hash(bytes).as_bytes();
    let _ = Snapshot::load_images(path, &file);
    let file = Arc::new(File::open(path).expect("what was written can be opened"));
    let Ok(snapshot) = Snapshot::load(path, &file, id) else {
        return;
    };
    assert!(snapshot.to_bytes() == bytes, "other bytes than were read");
    assert_eq!(snapshot.file_size(), bytes.len() as u64);
    for record in snapshot.index().records() {
        let mut places = snapshot.index().places(&ChunkKey::from(&record));
        assert!(places.any(|place| place == record), "{record:?}");
    }
    assert_eq!(snapshot.extents().len(), snapshot.blobs().len());
    for (number, blob) in (0..).zip(snapshot.blobs()) {
        assert_eq!(snapshot.blob(&blob.id), Some(number));
        let _ = snapshot.blob_size(number);
    }
    for image in snapshot.images() {
        assert_eq!(snapshot.image(&image.id), Some(image));
        let _: u64 = image.blobs.iter().map(ImageBlob::chunks).sum();
    }
    let sharing = snapshot.sharing();
    assert_eq!(sharing.places.chunks, snapshot.index().len() as u64);
    let _ = snapshot.export();
}

/// Any JSON as a catalogue whose hash is right.
pub fn catalogue(json: &[u8]) {
    let Ok(catalogue) = Catalogue::parse(Path::new("catalogue"), &Catalogue::with_hash(json))
    else {
        return;
    };
    for entry in &catalogue.images {
        assert!(catalogue.named(&entry.name).any(|named| named == entry));
        let _ = catalogue.title(&entry.id);
    }
}
