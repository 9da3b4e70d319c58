//! Conversions with the chunk dictionary of another image.

use std::collections::HashSet;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;

use bootstrap::Parsed;
use convert::{ChunkDictionary, ConvertOptions, ConvertReport, DictionaryError, Error};
use image::{Digest, Location, Manifest, PlatformChoice, Source, nydus};
use progress::{Cancel, Progress, Silent};
use rafs_format::{BLOBS_MAX, Compressor, Version};
use testkit::layout::{self, Packing};
use testkit::noise;
use testkit::tar::{Entry, Tar};
use tree::Image;

use crate::world::{World, chain, oci, options, snapshot};

pub fn run(length: u32) -> NonZeroU32 {
    NonZeroU32::new(length).unwrap()
}

pub fn open(place: &Location) -> (Source, Manifest, Image) {
    let source = Source::open(place).unwrap();
    let manifest = source.manifests(&PlatformChoice::Host).unwrap().remove(0).1;
    let bytes = nydus::read_bootstrap(&source, &manifest).unwrap();
    let parsed = Parsed::parse(bytes).unwrap();
    parsed.check().unwrap();
    let image = parsed.load().unwrap();
    (source, manifest, image)
}

/// The dictionary of the image at `place`, whose blobs can be taken from there.
pub fn dictionary(place: &Location, length: u32) -> Option<ChunkDictionary> {
    let source = Source::open(place).unwrap();
    let found = ChunkDictionary::from_image("d", &source, &PlatformChoice::Host);
    Some(found.unwrap().with_min_run(run(length)))
}

pub fn convert(
    source: &Location,
    target: &Location,
    options: &ConvertOptions,
) -> Result<ConvertReport, Error> {
    convert::convert(source, target, options, &Silent, &Cancel::default())
}

/// A layer of files, a chunk of 4 KiB for each number; the same number is the same content.
pub fn files(numbers: &[u64]) -> Vec<u8> {
    let mut tar = Tar::new();
    // Layers must not cover one another.
    let name = numbers.iter().fold(7_u64, |hash, number| {
        hash.wrapping_mul(31).wrapping_add(*number)
    });
    for (at, &number) in numbers.iter().enumerate() {
        tar.add(Entry::file(format!("{name}-{at:04}"), noise(number, 4096)));
    }
    tar.finish()
}

/// A world with an image to make a dictionary of, converted to `d`.
pub fn world(layers: &[Vec<u8>]) -> (World, Location) {
    let world = World::new();
    let source = world.path("first");
    layout::write(&source, layers, Packing::None);
    let place = oci(&world.path("dictionary"), Some("d"));
    convert(&oci(&source, None), &place, &options()).unwrap();
    (world, place)
}

pub fn with(dictionary: Option<ChunkDictionary>) -> ConvertOptions {
    ConvertOptions {
        dictionary,
        ..options()
    }
}

#[test]
fn blobs_come_along_and_the_configuration_counts_them() {
    let (world, place) = world(&[files(&[1, 2, 3, 4]), files(&[5, 6])]);
    let (_, _, before) = open(&place);
    layout::write(&world.source(), &[files(&[9, 1, 2, 3])], Packing::None);
    let report = world.convert(&with(dictionary(&place, 3))).unwrap();
    let manifest = world.manifest();
    let used = before.blobs.iter().filter(|blob| {
        let layers = manifest.layers.iter();
        layers
            .map(|layer| layer.digest.hex())
            .any(|hex| hex == blob.id.as_str())
    });
    assert_eq!((used.count(), manifest.layers.len()), (1, 3));
    let config = world.config();
    assert_eq!(nydus::diff_ids(&config, "c").unwrap().len(), 3);
    let history = config["history"].as_array().unwrap();
    assert_eq!(
        history[history.len() - 2]["comment"],
        "Nydus Dictionary Blob"
    );
    let savings = &report.savings;
    assert_eq!((savings.dictionary.chunks, savings.again.chunks), (3, 0));
    assert_eq!((savings.blobs, savings.requests), (1, 1));
}

#[test]
fn short_runs_are_stored_again_and_counted() {
    let (world, place) = world(&[files(&[1, 2, 3, 4, 5, 6])]);
    // Runs of two, of three with a repetition in it, of one; 6 does not follow 4.
    let layer = files(&[1, 2, 9, 3, 4, 3, 5, 8, 6, 7, 4, 6]);
    layout::write(&world.source(), &[layer], Packing::None);
    for (length, taken, requests) in [(1, 6, 1), (2, 5, 1), (3, 3, 1), (4, 0, 0)] {
        let report = world.convert(&with(dictionary(&place, length))).unwrap();
        let savings = &report.savings;
        assert_eq!(savings.dictionary.chunks, taken, "{length}");
        assert_eq!(savings.again.chunks, 6 - taken, "{length}");
        assert_eq!(savings.requests, requests, "{length}");
        assert_eq!(savings.layer.chunks, 3, "3, 4 and 6 come twice: {length}");
    }
}

#[test]
fn the_longest_run_is_taken_then_the_lowest_id() {
    let (world, place) = world(&[
        files(&[1, 2, 30]),
        files(&[1, 2, 3, 4]),
        files(&[1, 2, 3, 5]),
    ]);
    let (_, _, before) = open(&place);
    let homes = |numbers: &[u64]| -> HashSet<String> {
        layout::write(&world.path("s"), &[files(numbers)], Packing::None);
        let target = oci(&world.target(), Some("t"));
        convert(
            &oci(&world.path("s"), None),
            &target,
            &with(dictionary(&place, 1)),
        )
        .unwrap();
        let (_, _, after) = open(&target);
        let ids = after.blobs.iter().map(|blob| blob.id.to_string());
        let theirs: HashSet<String> = before.blobs.iter().map(|b| b.id.to_string()).collect();
        std::fs::remove_dir_all(world.path("s")).unwrap();
        ids.filter(|id| theirs.contains(id)).collect()
    };
    let holding = |number: u64| -> String {
        let digest = codec::digest(rafs_format::Digester::Blake3, &noise(number, 4096));
        let chunk = before.chunks.iter().find(|chunk| chunk.digest == digest);
        before.blobs[chunk.unwrap().blob_index as usize]
            .id
            .to_string()
    };
    assert_eq!(homes(&[1, 2, 3, 4, 77]), [holding(4)].into());
    assert_eq!(homes(&[1, 2, 3, 5, 77]), [holding(5)].into());
    assert_eq!(homes(&[1, 2, 3, 77]).len(), 1);
}

#[test]
fn the_result_does_not_depend_on_threads_or_memory() {
    let numbers: Vec<u64> = (0..900).collect();
    let (world, place) = world(&[files(&numbers)]);
    let mixed: Vec<u64> = (0..900)
        .map(|n| if n % 7 < 5 { n } else { 10_000 + n })
        .collect();
    layout::write(
        &world.source(),
        &[files(&mixed), files(&numbers)],
        Packing::None,
    );
    let mut digests = HashSet::new();
    for (threads, memory) in [(1, 1), (3, 1 << 20), (2, 64 << 20)] {
        // Runs of five never reach it: every job is kept until the run has ended.
        let options = ConvertOptions {
            threads: NonZeroUsize::new(threads).unwrap(),
            memory,
            ..with(dictionary(&place, 200))
        };
        digests.insert(world.convert(&options).unwrap().digest);
    }
    assert_eq!(digests.len(), 1);
}

/// Removes blobs from a layout once something has happened.
struct Remove {
    blobs: Vec<PathBuf>,
    when: &'static str,
}

impl Progress for Remove {
    fn started(&self, _: &str, _: Option<u64>) {}
    fn advanced(&self, _: &str, _: u64) {}
    fn finished(&self, task: &str, _: &str) {
        if task.starts_with(self.when) {
            for blob in &self.blobs {
                std::fs::remove_file(blob).ok();
            }
        }
    }
}

/// Blobs vanish before the conversion, after a layer, and when only the tag is missing.
#[test]
fn an_image_never_points_into_nothing() {
    for (when, length) in [("never", 1), ("layer", 1), ("total", 1)] {
        let (world, place) = world(&[files(&[1, 2, 3]), files(&[4, 5, 6])]);
        let (_, _, before) = open(&place);
        let path = |id: &str| world.path("dictionary/blobs/sha256").join(id);
        let gone = path(before.blobs[0].id.as_str());
        layout::write(&world.source(), &[files(&[1, 2, 9, 4, 5])], Packing::None);
        let target = match when {
            // The blobs are in the target: what is removed there is gone.
            "total" => oci(&world.path("dictionary"), Some("t")),
            _ => oci(&world.target(), Some("t")),
        };
        let options = with(dictionary(&place, length));
        if when == "never" {
            std::fs::remove_file(&gone).unwrap();
        }
        let blobs = vec![gone];
        let remove = Remove { blobs, when };
        let source = oci(&world.source(), None);
        let cancel = Cancel::default();
        let report = convert::convert(&source, &target, &options, &remove, &cancel).unwrap();
        assert_eq!(report.savings.dictionary.chunks, 2, "{when}");
        let (source, manifest, after) = open(&target);
        assert_eq!((after.blobs.len(), manifest.layers.len()), (2, 3), "{when}");
        for layer in &manifest.layers {
            source.verify_blob(layer).unwrap();
        }
    }
}

#[test]
fn a_bare_bootstrap_serves_where_its_blobs_are() {
    let (world, place) = world(&[files(&[1, 2, 3])]);
    let (source, manifest, _) = open(&place);
    let bytes = nydus::read_bootstrap(&source, &manifest).unwrap();
    let bare = ChunkDictionary::from_bootstrap("b", bytes).unwrap();
    layout::write(&world.source(), &[files(&[1, 2, 3, 4])], Packing::None);
    let options = with(Some(bare.with_min_run(run(1))));
    let report = world.convert(&options).unwrap();
    assert_eq!(
        report.savings.dictionary.chunks, 0,
        "the target has no such blob"
    );
    let beside = oci(&world.path("dictionary"), Some("t"));
    let report = convert(&oci(&world.source(), None), &beside, &options).unwrap();
    assert_eq!(report.savings.dictionary.chunks, 3);
}

#[test]
fn a_dictionary_of_other_chunks_is_refused_before_any_work() {
    let (world, place) = world(&[files(&[1, 2, 3])]);
    layout::write(&world.source(), &[files(&[1])], Packing::None);
    let base = with(dictionary(&place, 1));
    let cases = [
        (
            ConvertOptions {
                chunk_size: 0x2000,
                ..base.clone()
            },
            "chunk size",
        ),
        (
            ConvertOptions {
                compressor: Compressor::None,
                ..base.clone()
            },
            "compressor",
        ),
        (
            ConvertOptions {
                version: Version::V5,
                ..base
            },
            "RAFS version",
        ),
    ];
    for (options, what) in cases {
        let error = world.convert(&options).unwrap_err();
        assert!(chain(&error).contains(what), "{}", chain(&error));
        let Error::Dictionary(error) = error else {
            panic!("{error}");
        };
        assert!(matches!(*error, DictionaryError::Other { .. }));
        // Opening the target makes a layout, but nothing is in it.
        let blobs = snapshot(&world.target().join("blobs"));
        assert!(blobs.is_empty());
    }
    let plain = Source::open(&oci(&world.source(), None)).unwrap();
    let error = ChunkDictionary::from_image("p", &plain, &PlatformChoice::Host).unwrap_err();
    assert!(matches!(error, DictionaryError::NoImage { .. }));
    for bytes in [vec![], vec![0; 9000]] {
        let error = ChunkDictionary::from_bootstrap("p", bytes).unwrap_err();
        assert!(matches!(error, DictionaryError::Format { .. }));
    }
}

#[test]
fn the_journal_knows_with_which_dictionary_a_layer_was_converted() {
    let (world, place) = world(&[files(&[1, 2, 3])]);
    layout::write(&world.source(), &[files(&[1, 2, 3, 4])], Packing::None);
    let convert = |dictionary| {
        let options = ConvertOptions {
            journal: Some(world.path("journal")),
            ..with(dictionary)
        };
        world.convert(&options).unwrap()
    };
    let first = convert(dictionary(&place, 1));
    let second = convert(dictionary(&place, 1));
    assert_eq!((second.reused_layers, second.digest), (1, first.digest));
    assert_eq!(second.savings, first.savings);
    assert_eq!(convert(None).reused_layers, 0);
    assert_eq!(convert(dictionary(&place, 2)).reused_layers, 0);
}

#[test]
fn blobs_stay_within_what_the_format_has_room_for() {
    // One blob of the dictionary for each number, more of them than an image can have beside its own.
    let layers: Vec<Vec<u8>> = (0..BLOBS_MAX as u64).map(|n| files(&[n])).collect();
    let (world, place) = world(&layers);
    let numbers: Vec<u64> = (0..BLOBS_MAX as u64).collect();
    let (low, high) = numbers.split_at(100);
    layout::write(
        &world.source(),
        &[files(low), files(high), files(&[500])],
        Packing::None,
    );
    let report = world.convert(&with(dictionary(&place, 1))).unwrap();
    assert_eq!(report.savings.blobs as usize, BLOBS_MAX - 3);
    assert_eq!(report.savings.dictionary.chunks as usize, BLOBS_MAX - 3);
    let _: Digest = report.digest;
}
