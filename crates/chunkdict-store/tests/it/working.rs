//! Images come and go.

use std::time::Duration;

use chunkdict_store::{Amount, Error, Stays, Store};
use progress::Cancel;

use crate::images::*;

const LONG: Duration = Duration::from_secs(3600);

#[test]
fn chunks_are_found_where_images_have_them() {
    let place = Place::new();
    let none = Store::open(&place.path()).unwrap_err();
    assert!(matches!(none, Error::None(_)), "{none}");
    let empty = place.store().snapshot().unwrap_err();
    assert!(matches!(empty, Error::Empty(_)), "{empty}");
    place.add(&[import(
        "one",
        &[("a", &all([1, 2, 3])), ("b", &all([4, 5]))],
    )]);
    // The same blob, seen through another image, and what "a" has in a blob of its own.
    place.add(&[import(
        "two",
        &[("b", &[None, Some(5), Some(6)]), ("c", &all([3, 7]))],
    )]);
    let snapshot = place.snapshot();
    let at = |content| places(&snapshot, content);
    let want = |places: &[(&str, u32)]| -> Vec<(String, u32)> {
        places
            .iter()
            .map(|(blob, row)| ((*blob).to_owned(), *row))
            .collect()
    };
    assert_eq!(at(3), want(&[("a", 2), ("c", 0)]));
    assert_eq!(at(6), want(&[("b", 2)]));
    assert_eq!(at(8), want(&[]));
    assert_eq!(snapshot.index().len(), 8);
    let record = snapshot.index().places(&key(6)).next().unwrap();
    assert_eq!((record.compressed_offset, record.file_offset), (2000, 0));
    assert_eq!(snapshot.dictionary().find(&key(6)), Some(record));
}

#[test]
fn the_order_of_images_has_no_say_in_the_snapshot() {
    let images = [
        import("one", &[("a", &all(0..50)), ("b", &all(50..60))]),
        import("two", &[("b", &all(50..70))]),
        import("three", &[("a", &[None, Some(1)]), ("c", &all(0..200))]),
    ];
    let orders: [&[&[usize]]; 4] = [
        &[&[0, 1, 2]],
        &[&[2, 1, 0]],
        &[&[1], &[0, 2]],
        &[&[2], &[0], &[1]],
    ];
    let mut seen = Vec::new();
    for order in orders {
        let place = Place::new();
        for group in order {
            let group: Vec<_> = group.iter().map(|&at| images[at].clone()).collect();
            place.add(&group);
        }
        seen.push((place.snapshot().id(), std::fs::read(place.file()).unwrap()));
    }
    assert!(seen.windows(2).all(|pair| pair[0] == pair[1]));
    // What came and went leaves no trace.
    let place = Place::new();
    place.add(&images);
    place.writer().remove(&["two".to_owned()]).unwrap();
    let other = Place::new();
    other.add(&[images[2].clone(), images[0].clone()]);
    assert_eq!(place.snapshot().id(), other.snapshot().id());
    assert_ne!(place.snapshot().id(), seen[0].0);
    place.add(&images[1..2]);
    assert_eq!(place.snapshot().id(), seen[0].0);
}

#[test]
fn a_name_that_leads_to_another_image_gives_up_the_one_before() {
    let place = Place::new();
    place.add(&[import("app", &[("a", &all([1, 2]))])]);
    let mut next = import("next", &[("b", &all([2, 3]))]);
    next.name = "app".to_owned();
    place.add(&[next]);
    let (snapshot, catalogue) = place.store().snapshot().unwrap();
    assert_eq!(places(&snapshot, 1), []);
    assert_eq!(places(&snapshot, 2).len(), 1);
    assert_eq!((catalogue.images.len(), catalogue.removed.len()), (1, 1));
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_changes() {
    let place = Place::new();
    place.add(&[import("one", &[("a", &all([1, 2, 3]))])]);
    let before = std::fs::read(place.path().join("catalogue")).unwrap();
    let refused = |name: &str, change: &dyn Fn(&mut tree::Image)| {
        let mut image = image(&[("a", &all([1, 2, 3]))]);
        change(&mut image);
        let imported = of_image(name, image);
        let error = imported.and_then(|import| place.writer().add(vec![import]));
        assert_eq!(
            std::fs::read(place.path().join("catalogue")).unwrap(),
            before
        );
        error.unwrap_err().to_string()
    };
    use rafs_format::{BlobFeatures, Compressor, Digester, Version};
    let says = |text: String, what: &str| assert!(text.contains(what), "{text}");
    says(
        refused("two", &|i| i.chunk_size = 8192),
        "two has chunk size 0x2000, the chunk dictionary 0x1000",
    );
    says(
        refused("two", &|i| i.digester = Digester::Sha256),
        "digester sha256",
    );
    says(
        refused("two", &|i| i.blobs[0].compressor = Compressor::None),
        "compressor none",
    );
    says(refused("two", &|i| i.version = Version::V5), "RAFS version");
    says(
        refused("two", &|i| i.chunks[1].digest = [9; 32]),
        "about chunk 1 of blob a",
    );
    says(
        refused("two", &|i| i.chunks[1].compressed_offset += 1),
        "about chunk 1 of blob a",
    );
    says(
        refused("two", &|i| i.blobs[0].chunk_count += 1),
        "about the table entry of blob a",
    );
    says(
        refused("two", &|i| i.blobs[0].features = BlobFeatures::ZRAN),
        "has no blob whose chunks",
    );
    says(
        refused("two", &|i| i.chunks.clear()),
        "has no blob whose chunks",
    );
    let unknown = place.writer().remove(&["x".to_owned()]).unwrap_err();
    says(unknown.to_string(), "no image x");
    // Somebody else's directory is left alone.
    let other = tempfile::tempdir().unwrap();
    std::fs::write(other.path().join("letter"), "").unwrap();
    Store::create(other.path()).unwrap_err();
    assert!(!other.path().join("snapshots").exists());
}

#[test]
fn gc_forgets_what_was_removed_once_nobody_uses_it() {
    let place = Place::new();
    place.add(&[import("one", &[("a", &all([1, 2]))])]);
    place.add(&[import("two", &[("b", &all([2, 3]))])]);
    // A conversion that began before the image was removed.
    let lease = place.snapshot();
    place.writer().remove(&["two".to_owned()]).unwrap();
    let (now, catalogue) = place.store().snapshot().unwrap();
    assert_eq!((places(&now, 3).len(), catalogue.removed.len()), (0, 1));
    drop(now);
    let kept = place.writer().gc(Duration::ZERO).unwrap();
    // The first snapshot is the current one again.
    assert_eq!((kept.dropped.len(), kept.snapshots), (0, 0));
    assert_eq!(kept.kept[0].1, Stays::Leased);
    assert_eq!(places(&lease, 3).len(), 1);
    assert_eq!(place.files().len(), 2);
    let clone = lease.clone();
    drop(lease);
    assert_eq!(place.writer().gc(Duration::ZERO).unwrap().dropped.len(), 0);
    drop(clone);
    let early = place.writer().gc(LONG).unwrap();
    assert_eq!((early.dropped.len(), early.kept[0].1), (0, Stays::Grace));
    assert_eq!(
        place.files(),
        [place.file()],
        "snapshots have no grace period"
    );
    let done = place.writer().gc(Duration::ZERO).unwrap();
    assert_eq!(done.dropped[0].name, "two");
    assert_eq!(place.store().catalogue().unwrap().removed, []);
    assert_eq!(
        place.writer().gc(Duration::ZERO).unwrap(),
        Default::default()
    );
    assert_eq!(places(&place.snapshot(), 2).len(), 1);
}

#[test]
fn gc_takes_absent_images_out() {
    let place = Place::new();
    place.add(&[
        import("one", &[("a", &all([1, 2]))]),
        import("two", &[("b", &all([2, 3]))]),
    ]);
    let note = |absent: bool| {
        let mut writer = place.writer();
        writer
            .note_absent(|entry| (entry.name == "two").then_some(absent))
            .unwrap();
        writer.gc(Duration::ZERO).unwrap()
    };
    assert_eq!(note(false).dropped, []);
    place.writer().note_absent(|_| Some(true)).unwrap();
    assert_eq!(place.writer().gc(LONG).unwrap().kept.len(), 2);
    place.writer().note_absent(|_| Some(false)).unwrap();
    let lease = place.snapshot();
    assert_eq!(note(true).kept[0].1, Stays::Leased);
    drop(lease);
    assert_eq!(note(true).dropped.len(), 1);
    assert_eq!(places(&place.snapshot(), 3), []);
    assert_eq!(place.files().len(), 1);
    // The last one goes, too.
    place.writer().note_absent(|_| Some(true)).unwrap();
    place.writer().gc(Duration::ZERO).unwrap();
    assert!(matches!(place.store().snapshot(), Err(Error::Empty(_))));
    assert_eq!(place.files().len(), 0);
}

#[test]
fn sharing_counts_contents() {
    let place = Place::new();
    place.add(&[
        import("one", &[("a", &all([1, 2, 2, 3]))]),
        import("two", &[("a", &[None, Some(2)]), ("b", &all([3, 9]))]),
        import("three", &[("c", &all([1, 2]))]),
    ]);
    let (snapshot, catalogue) = place.store().snapshot().unwrap();
    let sharing = snapshot.sharing();
    let chunks = |n: u64| Amount {
        chunks: n,
        bytes: n * u64::from(CHUNK),
        stored: n * 1000,
    };
    let nth = |name: &str| {
        let id = catalogue.named(name).next().unwrap().id;
        sharing
            .images
            .iter()
            .position(|share| share.id == id)
            .unwrap()
    };
    let share = |name: &str| sharing.images[nth(name)];
    let pair = |a: &str, b: &str| {
        let (a, b) = (nth(a) as u32, nth(b) as u32);
        sharing.pairs.get(&(a.min(b), a.max(b))).copied()
    };
    assert_eq!((share("one").all, share("one").own), (chunks(3), chunks(0)));
    assert_eq!((share("two").all, share("two").own), (chunks(3), chunks(1)));
    assert_eq!(pair("one", "two"), Some(chunks(2)));
    assert_eq!(pair("one", "three"), Some(chunks(2)));
    assert_eq!(pair("two", "three"), Some(chunks(1)));
    assert_eq!((sharing.distinct, sharing.places), (chunks(4), chunks(8)));
}

#[test]
fn an_export_is_what_two_images_have() {
    let place = Place::new();
    place.add(&[
        import("one", &[("a", &all([1, 2, 3]))]),
        import("two", &[("b", &all([3, 2, 9]))]),
    ]);
    let made = place.snapshot().export().unwrap();
    let digests: Vec<_> = made.image.chunks.iter().map(|chunk| chunk.digest).collect();
    assert_eq!(digests, [key(2).digest, key(3).digest]);
    assert_eq!(made.image.blobs[0].id.as_str(), "a");
}

#[test]
fn a_cancelled_writer_does_not_wait() {
    let place = Place::new();
    let _busy = place.writer();
    let cancel = Cancel::default();
    cancel.cancel();
    let error = place.store().writer(&cancel).unwrap_err();
    assert!(matches!(error, Error::Cancelled));
}
