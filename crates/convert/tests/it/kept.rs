//! Conversions with a dictionary in a directory.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use chunkdict_store::{Stays, Store};
use convert::{ChunkDictionary, Error, Proof, Shelf};
use image::{Digest, Location, PlatformChoice, Source};
use progress::{Cancel, Progress};
use rafs_format::{BLOBS_MAX, Compressor};
use testkit::layout::{self, Packing};

use crate::dictionary::{convert, dictionary, files, open, run, with, world};
use crate::known_chunks::{keys, stored};
use crate::world::{World, chain, oci, options, snapshot};

/// Layouts named by `DIR:TAG`.
struct Layouts;

fn location(name: &str) -> Location {
    let (dir, tag) = name.rsplit_once(':').unwrap();
    oci(Path::new(dir), Some(tag))
}

impl Shelf for Layouts {
    fn image(&self, name: &str, _: Digest) -> Result<Option<Source>, image::Error> {
        self.place(name)
    }

    fn place(&self, name: &str) -> Result<Option<Source>, image::Error> {
        let location = location(name);
        if matches!(&location, Location::OciLayout { dir, .. } if !dir.exists()) {
            return Ok(None);
        }
        match Source::open(&location) {
            Ok(source) => Ok(Some(source)),
            Err(image::Error::NoSuchTag { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn name(place: &Location) -> String {
    match place {
        Location::OciLayout { dir, tag } => format!("{}:{}", dir.display(), tag.clone().unwrap()),
        _ => unreachable!(),
    }
}

/// Adds images to the dictionary in `dir`, one after another.
fn add(dir: &Path, places: &[&Location]) -> Store {
    let store = Store::create(dir).unwrap();
    for place in places {
        let source = Source::open(place).unwrap();
        let imports = convert::read_imports(&name(place), &source, &PlatformChoice::Host).unwrap();
        store
            .writer(&Cancel::default())
            .unwrap()
            .add(imports)
            .unwrap();
    }
    store
}

fn kept(store: &Store, length: u32) -> Option<ChunkDictionary> {
    let (snapshot, catalogue) = store.snapshot().unwrap();
    let found = ChunkDictionary::from_snapshot("kept", snapshot, &catalogue, &Layouts);
    Some(found.unwrap().with_min_run(run(length)))
}

fn verify(store: &Store, data: bool) -> Vec<Proof> {
    let (snapshot, catalogue) = store.snapshot().unwrap();
    convert::verify_dictionary(&snapshot, &catalogue, &Layouts, data, &Cancel::default()).unwrap()
}

#[test]
fn it_serves_as_the_image_itself_does_whatever_the_order() {
    let (world, first) = world(&[files(&[1, 2, 3, 4]), files(&[5, 6, 7])]);
    let second = oci(&world.path("dictionary"), Some("e"));
    layout::write(
        &world.path("second"),
        &[files(&[20, 21, 22, 3, 23])],
        Packing::None,
    );
    convert(&oci(&world.path("second"), None), &second, &options()).unwrap();
    layout::write(
        &world.source(),
        &[files(&[9, 1, 2, 3, 21, 22, 8])],
        Packing::None,
    );
    let alone = add(&world.path("alone"), &[&first]);
    let direct = world.convert(&with(dictionary(&first, 2))).unwrap();
    let through = world.convert(&with(kept(&alone, 2))).unwrap();
    assert_eq!(
        (through.digest, &through.savings),
        (direct.digest, &direct.savings)
    );
    let one = add(&world.path("one"), &[&first, &second]);
    let other = add(&world.path("other"), &[&second, &first]);
    let id = |store: &Store| store.snapshot().unwrap().0.id();
    assert_eq!(id(&one), id(&other));
    let (a, b) = (
        world.convert(&with(kept(&one, 2))).unwrap(),
        world.convert(&with(kept(&other, 2))).unwrap(),
    );
    assert_eq!(a.digest, b.digest);
    assert_eq!((a.savings.dictionary.chunks, a.savings.blobs), (5, 2));
    // The journal knows snapshots apart.
    let noted = |dictionary| {
        let options = convert::ConvertOptions {
            journal: Some(world.path("journal")),
            ..with(dictionary)
        };
        world.convert(&options).unwrap().reused_layers
    };
    assert_eq!(noted(kept(&one, 2)), 0);
    assert_eq!(noted(kept(&other, 2)), 1);
    assert_eq!(noted(kept(&alone, 2)), 0);
}

/// Removes an image from the dictionary and collects once something is done.
struct Collect<'a> {
    store: &'a Store,
    name: String,
    kept: Mutex<Vec<Stays>>,
}

impl Progress for Collect<'_> {
    fn started(&self, _: &str, _: Option<u64>) {}
    fn advanced(&self, _: &str, _: u64) {}
    fn finished(&self, task: &str, _: &str) {
        if task.starts_with("layer") {
            let mut writer = self.store.writer(&Cancel::default()).unwrap();
            let _ = writer.remove(std::slice::from_ref(&self.name));
            let collected = writer.gc(Duration::ZERO).unwrap();
            let mut kept = self.kept.lock().unwrap();
            kept.extend(collected.kept.iter().map(|(_, stays)| *stays));
            assert_eq!((collected.dropped.len(), collected.snapshots), (0, 0));
        }
    }
}

#[test]
fn gc_leaves_what_a_conversion_uses() {
    let (world, place) = world(&[files(&[1, 2, 3])]);
    let store = add(&world.path("kept"), &[&place]);
    layout::write(&world.source(), &[files(&[1, 2, 3, 4])], Packing::None);
    let collect = Collect {
        store: &store,
        name: name(&place),
        kept: Mutex::default(),
    };
    let target = oci(&world.target(), Some("t"));
    let options = with(kept(&store, 1));
    let source = oci(&world.source(), None);
    let report =
        convert::convert(&source, &target, &options, &collect, &Cancel::default()).unwrap();
    assert_eq!(report.savings.dictionary.chunks, 3);
    assert_eq!(*collect.kept.lock().unwrap(), [Stays::Leased]);
    drop(options);
    let mut writer = store.writer(&Cancel::default()).unwrap();
    assert_eq!(writer.gc(Duration::ZERO).unwrap().dropped.len(), 1);
}

fn blob(world: &World, at: usize) -> PathBuf {
    let (_, _, image) = open(&oci(&world.path("dictionary"), Some("d")));
    let id = image.blobs[at].id.to_string();
    world.path("dictionary/blobs/sha256").join(id)
}

#[test]
fn what_is_gone_is_not_used_and_said_aloud() {
    let (world, place) = world(&[files(&[1, 2, 3]), files(&[4, 5, 6])]);
    let store = add(&world.path("kept"), &[&place]);
    let proofs = verify(&store, true);
    assert_eq!((proofs[0].blobs, proofs[0].chunks), (2, 6));
    assert!(
        proofs[0].problems.is_empty() && !proofs[0].absent,
        "{proofs:?}"
    );
    layout::write(
        &world.source(),
        &[files(&[1, 2, 3, 4, 5, 6, 7])],
        Packing::None,
    );
    let taken = || {
        world
            .convert(&with(kept(&store, 1)))
            .unwrap()
            .savings
            .dictionary
            .chunks
    };
    assert_eq!(taken(), 6);
    // Other bytes of the same number: only reading them tells.
    let path = blob(&world, 0);
    let good = std::fs::read(&path).unwrap();
    let mut bad = good.clone();
    bad[10] ^= 1;
    std::fs::write(&path, &bad).unwrap();
    assert!(verify(&store, false)[0].problems.is_empty());
    assert!(verify(&store, true)[0].problems[0].contains("is damaged"));
    for (length, says) in [(Some(good.len() - 1), "bytes, not"), (None, "is gone")] {
        match length {
            Some(length) => std::fs::write(&path, &good[..length]).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        let proof = &verify(&store, false)[0];
        assert!(
            proof.absent && proof.problems[0].contains(says),
            "{proof:?}"
        );
    }
    let fresh = |name: &str| oci(&world.path(name), Some("t"));
    let source = oci(&world.source(), None);
    let report = convert(&source, &fresh("fresh"), &with(kept(&store, 1))).unwrap();
    assert_eq!(
        report.savings.dictionary.chunks, 3,
        "of the blob that is left"
    );
    // The whole image, behind our back.
    std::fs::remove_dir_all(world.path("dictionary")).unwrap();
    let proof = &verify(&store, false)[0];
    assert_eq!(
        (proof.absent, &*proof.problems[0]),
        (true, "the image is gone")
    );
    let report = convert(&source, &fresh("last"), &with(kept(&store, 1))).unwrap();
    assert_eq!(report.savings.dictionary.chunks, 0);
}

#[test]
fn another_image_under_the_name_is_noticed() {
    let (world, place) = world(&[files(&[1, 2, 3])]);
    let store = add(&world.path("kept"), &[&place]);
    layout::write(&world.source(), &[files(&[7, 8])], Packing::None);
    convert(&oci(&world.source(), None), &place, &options()).unwrap();
    let proof = &verify(&store, false)[0];
    assert_eq!(
        (proof.absent, &*proof.problems[0]),
        (true, "the image is gone")
    );
}

#[test]
fn one_of_other_chunks_is_refused_before_any_work() {
    let (world, place) = world(&[files(&[1, 2, 3])]);
    let store = add(&world.path("kept"), &[&place]);
    layout::write(&world.source(), &[files(&[1])], Packing::None);
    let base = with(kept(&store, 1));
    let other = [
        (
            convert::ConvertOptions {
                chunk_size: 0x2000,
                ..base.clone()
            },
            "chunk size",
        ),
        (
            convert::ConvertOptions {
                compressor: Compressor::None,
                ..base.clone()
            },
            "compressor",
        ),
        (
            convert::ConvertOptions {
                version: rafs_format::Version::V5,
                ..base.clone()
            },
            "RAFS version",
        ),
    ];
    for (options, what) in other {
        let error = world.convert(&options).unwrap_err();
        assert!(
            matches!(error, Error::Dictionary(_)) && chain(&error).contains(what),
            "{error}"
        );
        assert!(snapshot(&world.target().join("blobs")).is_empty());
    }
    // Nor does the dictionary take such an image up.
    let second = oci(&world.path("dictionary"), Some("none"));
    let options = convert::ConvertOptions {
        compressor: Compressor::None,
        ..options()
    };
    convert(&oci(&world.source(), None), &second, &options).unwrap();
    let source = Source::open(&second).unwrap();
    let imports = convert::read_imports("second", &source, &PlatformChoice::Host).unwrap();
    let error = store
        .writer(&Cancel::default())
        .unwrap()
        .add(imports)
        .unwrap_err();
    assert!(
        error.to_string().contains("second has compressor none"),
        "{error}"
    );
}

/// One layer alone could use more blobs than an image has room for.
#[test]
fn blobs_of_one_layer_stay_within_what_the_format_has_room_for() {
    let many = BLOBS_MAX as u64 + 20;
    let halves = [(0..150, "d"), (150..many, "e")];
    let (world, _) = world(&[files(&[1000])]);
    let mut places = Vec::new();
    for (numbers, tag) in halves {
        let layers: Vec<Vec<u8>> = numbers.map(|n| files(&[n])).collect();
        layout::write(&world.path(tag), &layers, Packing::None);
        let place = oci(&world.path("dictionary"), Some(tag));
        convert(&oci(&world.path(tag), None), &place, &options()).unwrap();
        places.push(place);
    }
    let store = add(&world.path("kept"), &places.iter().collect::<Vec<_>>());
    let numbers: Vec<u64> = (0..many).collect();
    layout::write(&world.source(), &[files(&numbers)], Packing::None);
    let report = world.convert(&with(kept(&store, 1))).unwrap();
    assert_eq!(report.savings.blobs as usize, BLOBS_MAX - 1);
    assert_eq!(report.savings.dictionary.chunks as usize, BLOBS_MAX - 1);
}

#[test]
fn the_next_version_of_a_service_stores_no_chunk_again() {
    let Some(shared) =
        testkit::shared_or_skip("the_next_version_of_a_service_stores_no_chunk_again")
    else {
        return;
    };
    let images = shared.join("images");
    let world = World::new();
    let place = |tag| oci(&world.target(), Some(tag));
    let options = convert::ConvertOptions {
        chunk_size: 1 << 20,
        check: false,
        ..options()
    };
    convert(&oci(&images, Some("app-1")), &place("old"), &options).unwrap();
    let (_, _, before) = open(&place("old"));
    let store = add(&world.path("kept"), &[&place("old")]);
    for length in [1, ChunkDictionary::MIN_RUN.get()] {
        let convert_with = |dictionary, tag| {
            let options = convert::ConvertOptions {
                dictionary,
                ..options.clone()
            };
            convert(&oci(&images, Some("app-2")), &place(tag), &options).unwrap()
        };
        let report = convert_with(kept(&store, length), "new");
        let direct = convert_with(dictionary(&place("old"), length), "direct");
        assert_eq!(report.digest, direct.digest);
        let (source, manifest, _) = open(&place("new"));
        let known = keys(&before.chunks);
        let again: u64 = stored(&source, &manifest, &before)
            .iter()
            .filter(|chunk| known.contains(&(chunk.digest, chunk.uncompressed_size)))
            .map(|chunk| u64::from(chunk.compressed_size))
            .sum();
        assert_eq!(again, report.savings.again.stored);
        assert!(length != 1 || again == 0, "{again} bytes");
    }
    assert_eq!(verify(&store, false)[0].problems, [""; 0]);
}
