//! Real images, each converted with the dictionary of the one before it: what they have in common is not stored again.

use std::collections::{HashMap, HashSet};
use std::io::Read as _;

use bootstrap::Parsed;
use convert::{ChunkDictionary, ConvertOptions, DedupScope};
use image::{Location, Manifest, Source};
use layer::tar::{EntryKind, Reader};
use rafs_format::{ChunkRecord, Version};
use testkit::layout::{self, Packing};
use tree::Image;

use crate::dictionary::{convert, dictionary, open};
use crate::world::{World, oci, options};

pub fn keys(chunks: &[ChunkRecord]) -> HashSet<([u8; 32], u32)> {
    let key = |chunk: &ChunkRecord| (chunk.digest, chunk.uncompressed_size);
    chunks.iter().map(key).collect()
}

/// The chunks in the blobs of an image that `others` lacks, as the bootstraps in these blobs have them.
pub fn stored(source: &Source, manifest: &Manifest, others: &Image) -> Vec<ChunkRecord> {
    let mut chunks = Vec::new();
    for layer in &manifest.layers[..manifest.layers.len() - 1] {
        let hex = layer.digest.hex();
        if others.blobs.iter().any(|blob| blob.id.as_str() == hex) {
            continue;
        }
        let blob = source.blob(&layer.digest, Some(layer.size)).unwrap();
        let bytes = storage::extract_bootstrap(&*blob).unwrap();
        let image = Parsed::parse(bytes).unwrap().load().unwrap();
        let own = |chunk: &&ChunkRecord| {
            let blob = &image.blobs[chunk.blob_index as usize];
            blob.id.is_placeholder()
        };
        chunks.extend(image.chunks.iter().filter(own));
    }
    chunks
}

/// Converts `old`, and `new` with its dictionary, checked: nothing is stored again with runs of one, and with the default
/// just what the report says.
fn assert_nothing_again(old: &Location, new: &Location, scope: DedupScope, version: Version) {
    let world = World::new();
    let place = |tag| oci(&world.target(), Some(tag));
    let options = ConvertOptions {
        chunk_size: 1 << 20,
        dedup: scope,
        version,
        check: false,
        ..options()
    };
    convert(old, &place("old"), &options).unwrap();
    let (_, _, before) = open(&place("old"));
    for length in [1, ChunkDictionary::MIN_RUN.get()] {
        let options = ConvertOptions {
            check: true,
            dictionary: dictionary(&place("old"), length),
            ..options.clone()
        };
        let report = convert(new, &place("new"), &options).unwrap();
        let (source, manifest, after) = open(&place("new"));
        let known = keys(&before.chunks);
        let again: u64 = stored(&source, &manifest, &before)
            .iter()
            .filter(|chunk| known.contains(&(chunk.digest, chunk.uncompressed_size)))
            .map(|chunk| u64::from(chunk.compressed_size))
            .sum();
        assert_eq!(again, report.savings.again.stored, "{new} {length}");
        assert!(length != 1 || again == 0, "{new}: {again} bytes");
        assert!(report.savings.dictionary.chunks > 0 && report.savings.requests > 0);
        // The manifest lists all that the bootstrap refers to.
        let listed: HashSet<String> = manifest.layers.iter().map(|l| l.digest.hex()).collect();
        let mut blobs = after.blobs.iter();
        assert!(blobs.all(|blob| listed.contains(blob.id.as_str())));
    }
}

/// The images of the reference data, by tag.
fn shared(test: &str) -> Option<impl Fn(&str) -> Location> {
    let images = testkit::shared_or_skip(test)?.join("images");
    Some(move |tag: &str| oci(&images, Some(tag)))
}

#[test]
fn an_image_stores_no_chunk_that_the_one_before_it_has() {
    let Some(image) = shared("an_image_stores_no_chunk_that_the_one_before_it_has") else {
        return;
    };
    for (old, new) in [("app-1", "app-2"), ("base", "python")] {
        assert_nothing_again(&image(old), &image(new), DedupScope::Layer, Version::V6);
    }
}

#[test]
fn nor_does_it_in_v5_or_with_chunks_of_lower_layers() {
    let Some(image) = shared("nor_does_it_in_v5_or_with_chunks_of_lower_layers") else {
        return;
    };
    let (old, new) = (image("app-1"), image("app-2"));
    assert_nothing_again(&old, &new, DedupScope::Layer, Version::V5);
    assert_nothing_again(&old, &new, DedupScope::Image, Version::V6);
    assert_nothing_again(&old, &new, DedupScope::Image, Version::V5);
}

#[test]
fn nor_does_it_where_layers_are_cut_elsewhere() {
    const NAME: &str = "nor_does_it_where_layers_are_cut_elsewhere";
    let (Some(image), Some(shared)) = (shared(NAME), testkit::shared()) else {
        return;
    };
    let tars = layout::layer_files(&shared.join("images"), "python");
    let tars: Vec<Vec<u8>> = tars
        .iter()
        .map(|path| {
            let file = std::fs::File::open(path).unwrap();
            let mut tar = Vec::new();
            let (kind, stored) = layer::detecting(file).unwrap();
            let mut stream = layer::decompress(stored, kind).unwrap();
            stream.read_to_end(&mut tar).unwrap();
            tar
        })
        .collect();
    let [base, python] = &tars[..] else {
        panic!("{} layers", tars.len());
    };
    let (cuts, end) = cuts(base);
    let near = |bytes: usize| *cuts.iter().find(|&&cut| cut >= bytes).unwrap();
    let (first, second) = (near(end / 3), near(end * 2 / 3));
    assert!(0 < first && first < second && second < end);
    let world = World::new();
    let layers = [
        base[..first].to_vec(),
        base[first..second].to_vec(),
        [&base[second..end], python].concat(),
    ];
    layout::write(&world.source(), &layers, Packing::None);
    let new = oci(&world.source(), None);
    assert_nothing_again(&image("base"), &new, DedupScope::Layer, Version::V6);
    assert_nothing_again(&image("base"), &new, DedupScope::Image, Version::V6);
}

/// Where a tar can be cut in two so that hard links stay with their targets, and where its last entry ends.
fn cuts(tar: &[u8]) -> (Vec<usize>, usize) {
    let mut reader = Reader::new(tar);
    let (mut ends, mut first, mut links) = (vec![0], HashMap::new(), Vec::new());
    while let Some(entry) = reader.next().unwrap() {
        assert!(!reader.is_sparse());
        let number = ends.len() - 1;
        if let EntryKind::HardLink(target) = &entry.kind {
            links.push((first[target], number));
        }
        first.entry(entry.path).or_insert(number);
        let end = entry.offset + entry.size.next_multiple_of(512);
        ends.push(usize::try_from(end).unwrap());
    }
    let apart = |number: usize| {
        let mut links = links.iter();
        links.any(|&(target, link)| target < number && number <= link)
    };
    let end = ends[ends.len() - 1];
    let numbers = (0..ends.len()).filter(|&number| !apart(number));
    (numbers.map(|number| ends[number]).collect(), end)
}
