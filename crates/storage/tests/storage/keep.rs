//! Listing, pruning and verifying a cache directory.

use std::fs::{self, File};
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use rafs_format::BlobId;
use storage::{
    Besides, BlobReader, BlobSource, CachedBlob, ChunkStore, Prune, Room, StoreOptions, cache_file,
    cached_blobs, check_cache, prune_cache,
};

use crate::image::{Counting, Image, Kind, Source, bootstrap, cached, id, some_chunks};

/// A store of the image under another blob id.
fn open_as(image: &Image, id: &str, options: StoreOptions) -> ChunkStore {
    let mut info = image.info.clone();
    info.id = BlobId::new(id.to_owned()).unwrap();
    let bootstrap = bootstrap(&info, &image.records);
    let source = Arc::new(Any(image.source()));
    ChunkStore::open(&bootstrap, source, options).unwrap()
}

/// The blob, whatever it is called.
struct Any(Arc<Counting>);

impl BlobSource for Any {
    fn open(&self, _: &str) -> std::io::Result<Arc<dyn BlobReader>> {
        Source(Arc::clone(&self.0)).open(&id())
    }
}

fn names(blobs: &[CachedBlob]) -> Vec<&str> {
    blobs.iter().map(|blob| blob.id.as_str()).collect()
}

/// Blobs `a`, `b` and `c`, used in this order, each with all of the image.
fn three(image: &Image, dir: &Path) {
    for (name, age) in ["a", "b", "c"].iter().zip([300, 200, 100]) {
        let store = open_as(image, name, cached(dir));
        image.check(&store).unwrap();
        drop(store);
        let map = File::open(dir.join(format!("{name}.blob.map"))).unwrap();
        map.set_modified(SystemTime::now() - Duration::from_secs(age))
            .unwrap();
    }
}

#[test]
fn a_list_says_what_is_there_and_who_uses_it() {
    let image = Image::new(some_chunks(20, 9000), Kind::default());
    let dir = tempfile::tempdir().unwrap();
    assert!(cached_blobs(&dir.path().join("none")).unwrap().is_empty());
    let store = open_as(&image, "a", cached(dir.path()));
    store.read(image.pointers[3], 0, &mut [0], &[]).unwrap();
    fs::write(dir.path().join("orphan.blob.data"), b"what a crash left").unwrap();
    let list = cached_blobs(dir.path()).unwrap();
    assert_eq!(names(&list), ["a", "orphan"]);
    let blob = &list[0];
    assert_eq!((blob.chunks, blob.missing), (1, 19));
    assert_eq!(blob.cached, image.chunks[3].len() as u64);
    assert!(blob.in_use && !blob.is_complete() && blob.disk >= blob.cached);
    assert_eq!(blob.processes, [std::process::id()]);
    assert!(blob.last_used.elapsed().unwrap() < Duration::from_secs(60));
    image.check(&store).unwrap();
    drop(store);
    let list = cached_blobs(dir.path()).unwrap();
    assert!(list[0].is_complete() && !list[0].in_use && list[0].processes.is_empty());
}

#[test]
fn pruning_takes_what_was_not_used_for_longest_and_nothing_in_use() {
    let image = Image::new(some_chunks(20, 9000), Kind::default());
    let dir = tempfile::tempdir().unwrap();
    three(&image, dir.path());
    fs::write(dir.path().join("orphan.blob.data"), b"what a crash left").unwrap();
    let all = cached_blobs(dir.path()).unwrap();
    let one = all[0].disk;
    let most = |max_size| Prune {
        max_size: Some(max_size),
        ..Prune::default()
    };
    let dry = Prune {
        dry_run: true,
        ..most(one * 2)
    };
    let pruned = prune_cache(dir.path(), &dry).unwrap();
    assert_eq!(names(&pruned.removed), ["orphan", "a"]);
    assert_eq!(cached_blobs(dir.path()).unwrap(), all);

    // In use it stays, however long ago it was used.
    let store = open_as(&image, "a", cached(dir.path()));
    let pruned = prune_cache(dir.path(), &most(one * 2)).unwrap();
    assert_eq!(names(&pruned.removed), ["orphan", "b"]);
    assert_eq!((pruned.left, pruned.in_use), (one * 2, one));
    let old = Prune {
        older_than: Some(Duration::from_secs(50)),
        ..Prune::default()
    };
    assert_eq!(
        names(&prune_cache(dir.path(), &old).unwrap().removed),
        ["c"]
    );
    let everything = Prune {
        all: true,
        ..Prune::default()
    };
    assert!(
        prune_cache(dir.path(), &everything)
            .unwrap()
            .removed
            .is_empty()
    );
    image.check(&store).unwrap();
    assert_eq!(store.stats().fetches, 0);
    drop(store);
    prune_cache(dir.path(), &everything).unwrap();
    assert!(cached_blobs(dir.path()).unwrap().is_empty());
}

#[test]
fn opening_and_pruning_at_once_never_part_data_and_map() {
    let image = Image::new(some_chunks(6, 9000), Kind::default());
    let dir = tempfile::tempdir().unwrap();
    let end = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let all = Prune {
                all: true,
                ..Prune::default()
            };
            while !end.load(std::sync::atomic::Ordering::Relaxed) {
                prune_cache(dir.path(), &all).unwrap();
            }
        });
        let openers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..20 {
                        let store = open_as(&image, "a", cached(dir.path()));
                        image.check(&store).unwrap();
                        image.check(&store).unwrap();
                        let stats = store.stats();
                        assert_eq!((stats.verify_failures, stats.cache_conflicts), (0, 0));
                    }
                })
            })
            .collect();
        let done: Vec<_> = openers.into_iter().map(|opener| opener.join()).collect();
        end.store(true, std::sync::atomic::Ordering::Relaxed);
        done.into_iter().for_each(|opener| opener.unwrap());
    });
}

#[test]
fn verifying_finds_what_was_changed_behind_our_back() {
    let image = Image::new(some_chunks(20, 9000), Kind::default());
    let dir = tempfile::tempdir().unwrap();
    image
        .check(&open_as(&image, &id(), cached(dir.path())))
        .unwrap();
    let check_on = |threads| {
        let threads = NonZeroUsize::new(threads).unwrap();
        let all: Result<Vec<_>, _> = check_cache(dir.path(), threads).unwrap().collect();
        let [blob] = all.unwrap().try_into().unwrap();
        blob
    };
    for threads in [1, 3, 64] {
        let blob = check_on(threads);
        assert_eq!((blob.good, blob.bad.len(), blob.lost), (20, 0, 0));
    }
    let check = || check_on(3);
    let data = File::options()
        .write(true)
        .open(cache_file(dir.path(), &id()))
        .unwrap();
    let spoil = || {
        data.write_all_at(b"spoiled", image.pointers[5].uncompressed_offset)
            .unwrap();
    };
    spoil();
    let store = open_as(&image, &id(), cached(dir.path()));
    for threads in [1, 3, 64] {
        let blob = check_on(threads);
        assert_eq!((blob.good, blob.dropped), (19, false), "it is in use");
        assert_eq!(blob.bad[0].index, 5);
    }
    // Whoever mounts may look for himself.
    assert_eq!(store.verify_cached(), 1);
    image.check(&store).unwrap();
    assert_eq!(store.stats().fetches, 1);
    drop(store);
    spoil();
    assert!(check().dropped);
    let blob = check();
    assert_eq!((blob.good, blob.bad.len()), (19, 0));
    let store = open_as(&image, &id(), cached(dir.path()));
    image.check(&store).unwrap();
    assert_eq!(store.stats().fetches, 1);
}

/// Most machines that run this have no fs-verity; all but the seal itself holds there as well.
#[test]
fn a_complete_blob_is_sealed_where_that_is_possible() {
    let image = Image::new(some_chunks(20, 9000), Kind::default());
    let dir = tempfile::tempdir().unwrap();
    let sealing = || StoreOptions {
        seal: true,
        ..cached(dir.path())
    };
    let open = |options| open_as(&image, &id(), options);
    let is_sealed = || cached_blobs(dir.path()).unwrap()[0].sealed;
    let path = cache_file(dir.path(), &id());
    let write = || File::options().write(true).open(&path);
    let store = open(sealing());
    let nineteen = image.pointers.iter().skip(1);
    nineteen.for_each(|&pointer| store.read(pointer, 0, &mut [0], &[]).unwrap());
    drop(store);
    // It lacks a chunk.
    let store = open(sealing());
    assert!(!is_sealed());
    image.check(&store).unwrap();
    // Now it is complete, but in use.
    let other = open(sealing());
    assert!(!is_sealed());
    drop((store, other));

    let store = open(sealing());
    match is_sealed() {
        true => assert_eq!(write().unwrap_err().raw_os_error(), Some(1), "EPERM"),
        false => {
            eprintln!("no fs-verity here");
            write().unwrap();
        }
    }
    assert_eq!(store.verify_cached(), 0);
    image.check(&store).unwrap();
    assert_eq!(store.stats().fetches, 0);
    let threads = NonZeroUsize::new(2).unwrap();
    let checked: Result<Vec<_>, _> = check_cache(dir.path(), threads).unwrap().collect();
    assert_eq!(checked.unwrap()[0].good, 20);
    drop(store);

    // A chunk is lost: what is sealed takes none, so the blob begins anew.
    let was_sealed = is_sealed();
    let map = File::options()
        .write(true)
        .open(dir.path().join(format!("{}.blob.map", id())))
        .unwrap();
    map.write_all_at(&[0; 64], 4096 + 64 * 3).unwrap();
    let store = open(cached(dir.path()));
    assert!(!is_sealed() || !was_sealed);
    image.check(&store).unwrap();
    let decoded = store.stats().chunks_verified;
    assert_eq!(decoded, if was_sealed { 20 } else { 1 });
    drop(store);
    write().unwrap();
}

#[test]
fn a_limit_evicts_what_nobody_uses_and_then_keeps_no_more() {
    let image = Image::new(some_chunks(60, 30_000), Kind::default());
    let dir = tempfile::tempdir().unwrap();
    three(&image, dir.path());
    let one = cached_blobs(dir.path()).unwrap()[0].disk;
    let limited = |limit| StoreOptions {
        cache_limit: Some(limit),
        barrier_interval: Duration::ZERO,
        recent: 0,
        ..cached(dir.path())
    };
    let store = open_as(&image, "d", limited(one * 5 / 2));
    image.check(&store).unwrap();
    assert_eq!(store.stats().cache_evicted, 2, "{}", store.stats());
    assert_eq!(names(&cached_blobs(dir.path()).unwrap()), ["c", "d"]);

    // What is left is in use.
    let other = open_as(&image, "e", limited(one / 2));
    image.check(&other).unwrap();
    image.check(&other).unwrap();
    let stats = other.stats();
    assert!(stats.cache_refused != 0 && stats.errors == 0, "{stats}");
    drop(store);
    image.check(&other).unwrap();
    let blobs = cached_blobs(dir.path()).unwrap();
    assert_eq!(names(&blobs), ["e"]);
    assert!(blobs[0].disk <= one / 2 + one / 4, "{blobs:?}");
    // Who reads the file itself can't do without.
    other.hand_over().unwrap();
    other.fill(0, 0..image.info.uncompressed_size).unwrap();
    assert!(other.is_complete(0));
}

/// Something else in the cache directory; what was asked of it.
#[derive(Debug, Default)]
struct Else {
    disk: u64,
    asked: Mutex<Vec<u64>>,
}

impl Besides for Else {
    fn disk_usage(&self) -> u64 {
        self.disk
    }

    fn make_room(&self, limit: u64) -> std::io::Result<Room> {
        self.asked.lock().unwrap().push(limit);
        Ok(Room {
            removed: 3,
            left: limit + 1,
        })
    }
}

#[test]
fn what_lies_besides_blobs_counts_and_makes_room() {
    let image = Image::new(some_chunks(60, 30_000), Kind::default());
    let dir = tempfile::tempdir().unwrap();
    three(&image, dir.path());
    let one = cached_blobs(dir.path()).unwrap()[0].disk;
    for (disk, is_over) in [(one, false), (one * 7, true)] {
        let besides = Arc::new(Else {
            disk,
            ..Else::default()
        });
        let limit = one * 8;
        let options = StoreOptions {
            cache_limit: Some(limit),
            besides: Some(besides.clone()),
            barrier_interval: Duration::ZERO,
            ..cached(dir.path())
        };
        let store = open_as(&image, &format!("d{disk}"), options);
        image.check(&store).unwrap();
        let stats = store.stats();
        let asked = besides.asked.lock().unwrap();
        assert_eq!(!asked.is_empty(), is_over, "{stats}");
        assert_eq!(stats.cache_refused != 0, is_over, "{stats}");
        assert_eq!(stats.cache_evicted, 3 * asked.len() as u64, "{stats}");
        assert!(asked.iter().all(|&asked| asked == limit));
    }
}

#[test]
fn a_chunk_in_the_cache_of_another_blob_is_copied_and_not_fetched() {
    let image = Image::new(some_chunks(40, 9000), Kind::default());
    let dir = tempfile::tempdir().unwrap();
    let one = open_as(&image, "a", cached(dir.path()));
    for pointer in &image.pointers[..20] {
        one.read(*pointer, 0, &mut [0], &[]).unwrap();
    }
    let other = open_as(&image, "b", cached(dir.path()));
    let read = |store: &ChunkStore, at: usize| {
        let mut bytes = vec![0; image.chunks[at].len()];
        store.read(image.pointers[at], 0, &mut bytes, &[]).unwrap();
        assert!(bytes == image.chunks[at], "chunk {at}");
    };
    (0..20).for_each(|at| read(&other, at));
    let stats = other.stats();
    assert_eq!((stats.chunks_copied, stats.fetches), (20, 0), "{stats}");
    image.check(&other).unwrap();
    assert!(other.is_complete(0));
    assert_ne!(other.stats().fetches, 0);

    // What lies there is believed after a look at it.
    drop((one, other));
    for name in ["a", "b"] {
        let data = File::options()
            .write(true)
            .open(cache_file(dir.path(), name))
            .unwrap();
        data.write_all_at(b"spoiled", image.pointers[5].uncompressed_offset)
            .unwrap();
    }
    let third = open_as(&image, "c", cached(dir.path()));
    (0..20).for_each(|at| read(&third, at));
    let stats = third.stats();
    assert_eq!((stats.chunks_copied, stats.fetches), (19, 1), "{stats}");
}

#[test]
fn a_chunk_that_an_image_has_twice_is_fetched_once() {
    let mut chunks = some_chunks(4, 9000);
    chunks.push(chunks[1].clone());
    let image = Image::new(chunks, Kind::default());
    let dir = tempfile::tempdir().unwrap();
    let store = open_as(&image, "a", cached(dir.path()));
    for at in [1, 4] {
        let mut bytes = vec![0; image.chunks[at].len()];
        store.read(image.pointers[at], 0, &mut bytes, &[]).unwrap();
        assert!(bytes == image.chunks[at]);
    }
    let stats = store.stats();
    assert_eq!((stats.fetches, stats.chunks_copied), (1, 1), "{stats}");
}
