//! Chunks shared by the layers of an image, and with other images.

use std::num::NonZeroU32;
use std::sync::Arc;

use builder::{BuildOptions, Dedup, Error, Turn, build_tar, encode_v6, merge};
use chunkdict::Dictionary;
use rafs_format::Bootstrap;
use testkit::tar::{Entry, Tar};

use crate::{build, bytes, content, options, options_with};

fn layers() -> Vec<Vec<u8>> {
    let mut base = Tar::new();
    base.add(Entry::file("a", bytes(1, 3_000_000)))
        .add(Entry::file("b", bytes(2, 500)));
    let mut middle = Tar::new();
    middle
        .add(Entry::file("new", bytes(3, 2_000_000)))
        .add(Entry::file("a2", bytes(1, 3_000_000)));
    let mut top = Tar::new();
    // Nothing of its own: from the base, from the middle, and once more.
    top.add(Entry::file("b2", bytes(2, 500)))
        .add(Entry::file("new2", bytes(3, 2_000_000)));
    top.add(Entry::file("b3", bytes(2, 500)));
    vec![base.finish(), middle.finish(), top.finish()]
}

#[test]
fn a_chunk_is_stored_by_the_lowest_layer_that_has_it() {
    let tars = layers();
    let mut blobs = vec![Vec::new(); 3];
    let options = options_with(2, 2 << 20);
    let turns = Turn::for_layers(3);
    let built: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = tars
            .iter()
            .zip(&mut blobs)
            .zip(turns)
            .map(|((tar, blob), turn)| {
                let options = &options;
                scope.spawn(move || build_tar(&tar[..], blob, options, Dedup::Image(turn)).unwrap())
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert_eq!(
        built
            .iter()
            .map(|layer| layer.stats.chunks)
            .collect::<Vec<_>>(),
        [4, 2, 0]
    );
    assert_eq!(
        built
            .iter()
            .map(|layer| layer.own_blob.is_some())
            .collect::<Vec<_>>(),
        [true, true, false]
    );
    assert_eq!(built[2].image.blobs.len(), 2, "only blobs of lower layers");
    for layer in &built {
        let bootstrap = Bootstrap::parse(encode_v6(&layer.image).unwrap()).unwrap();
        bootstrap.check().unwrap();
    }
    let merged = merge(built.into_iter().map(|layer| layer.image).collect()).unwrap();
    assert_eq!(merged.blobs.len(), 2);
    let by_index: Vec<&[u8]> = merged
        .blobs
        .iter()
        .map(|info| {
            use sha2::{Digest as _, Sha256};
            let named = |blob: &&Vec<u8>| hex::encode(Sha256::digest(blob)) == info.id.as_str();
            blobs.iter().find(named).unwrap().as_slice()
        })
        .collect();
    for (path, expected) in [
        ("/a2", bytes(1, 3_000_000)),
        ("/b3", bytes(2, 500)),
        ("/new2", bytes(3, 2_000_000)),
        ("/b", bytes(2, 500)),
    ] {
        assert!(content(&merged, &by_index, path) == expected, "{path}");
    }
}

#[test]
fn upper_layers_fail_with_the_lower_one_and_do_not_wait_for_ever() {
    let tars = layers();
    let options = options_with(2, 2 << 20);
    let mut turns = Turn::for_layers(3).into_iter();
    let broken = build_tar(
        &tars[0][..700],
        std::io::sink(),
        &options,
        Dedup::Image(turns.next().unwrap()),
    );
    assert!(matches!(broken, Err(Error::Layer(_))));
    for (tar, turn) in tars[1..].iter().zip(turns) {
        let error = build_tar(&tar[..], std::io::sink(), &options, Dedup::Image(turn)).unwrap_err();
        assert!(matches!(error, Error::LowerLayer), "{error:?}");
    }
}

#[test]
fn a_layer_that_is_not_built_passes_its_turn_on() {
    let tars = layers();
    let options = options_with(2, 2 << 20);
    let mut turns = Turn::for_layers(2).into_iter();
    turns.next().unwrap().skip(&options.cancel).unwrap();
    let layer = build_tar(
        &tars[2][..],
        std::io::sink(),
        &options,
        Dedup::Image(turns.next().unwrap()),
    )
    .unwrap();
    assert_eq!(layer.stats.chunks, 3);
}

/// Small files, all of one job; the same number is the same content.
fn small_files(numbers: &[u64]) -> Vec<u8> {
    let mut tar = Tar::new();
    for (at, number) in numbers.iter().enumerate() {
        tar.add(Entry::file(format!("{at:03}"), bytes(*number, 900)));
    }
    tar.finish()
}

#[test]
fn chunks_of_a_dictionary_may_come_again_within_a_job() {
    let (lower, lower_blob) = build(&small_files(&[1, 2, 3, 4, 5]), &options());
    let dictionary = Arc::new(Dictionary::new(lower.image.blobs, lower.image.chunks));
    // Runs: 1 2 3 with repetitions in between, 5 alone, 4 alone; 8 and 9 are new.
    let numbers = [1, 1, 2, 1, 3, 2, 8, 8, 5, 5, 9, 5, 4, 8, 4, 1, 9];
    for (run, own) in [(None, 2), (Some(1), 2), (Some(2), 4), (Some(4), 7)] {
        let options = BuildOptions {
            dictionary: Some(Arc::clone(&dictionary)),
            dictionary_run: run.and_then(NonZeroU32::new),
            ..options()
        };
        let (layer, blob) = build(&small_files(&numbers), &options);
        assert_eq!(layer.stats.chunks, own, "{run:?}");
        let image = &layer.image;
        // Each content once, wherever it lies.
        assert_eq!(image.chunks.len(), 7, "{run:?}");
        let mut blobs = vec![&lower_blob[..]; image.blobs.len()];
        blobs[layer.own_blob.unwrap()] = &blob;
        for (at, number) in numbers.iter().enumerate() {
            let found = content(image, &blobs, &format!("/{at:03}"));
            assert!(found == bytes(*number, 900), "{run:?} {at}");
        }
        let bootstrap = Bootstrap::parse(encode_v6(image).unwrap()).unwrap();
        bootstrap.check().unwrap();
    }
}
