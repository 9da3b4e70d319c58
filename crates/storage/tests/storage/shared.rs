//! Several stores, and several processes, on one cache directory.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use storage::{ChunkStore, StoreOptions};

use crate::image::{Counting, Image, Kind, Source, bootstrap, cached, id, some_chunks};

const CHILD: &str = "STORAGE_TEST_SHARED_DIR";

fn image() -> Image {
    Image::new(
        some_chunks(300, 30_000),
        Kind {
            batch: 3,
            ..Kind::default()
        },
    )
}

fn open(image: &Image, source: &Arc<Counting>, dir: &Path) -> ChunkStore {
    let options = StoreOptions {
        request_max: 100_000,
        ..cached(dir)
    };
    let source = Arc::new(Source(Arc::clone(source)));
    ChunkStore::open(&image.bootstrap, source, options).unwrap()
}

#[test]
fn what_one_store_brings_in_others_have() {
    let image = image();
    let dir = tempfile::tempdir().unwrap();
    let (one, other) = (image.source(), image.source());
    let first = open(&image, &one, dir.path());
    let second = open(&image, &other, dir.path());
    image.check(&first).unwrap();
    assert!(second.is_complete(0));
    image.check(&second).unwrap();
    assert_eq!(other.reads(), 0);
    let stats = second.stats();
    assert_eq!((stats.fetches, stats.reverified), (0, 0), "{stats}");
    // Who has seen all by himself takes note of each.
    let third = open(&image, &other, dir.path());
    image.check(&third).unwrap();
    assert_eq!(other.reads(), 0);
}

#[test]
fn a_chunk_of_another_store_is_seen_when_it_is_read() {
    let image = image();
    let dir = tempfile::tempdir().unwrap();
    let (one, other) = (image.source(), image.source());
    let first = open(&image, &one, dir.path());
    let second = open(&image, &other, dir.path());
    for (pointer, chunk) in image.pointers.iter().zip(&image.chunks) {
        let mut bytes = vec![0; chunk.len()];
        first.read(*pointer, 0, &mut bytes, &[]).unwrap();
        second.read(*pointer, 0, &mut bytes, &[]).unwrap();
        assert!(bytes == *chunk);
    }
    assert_eq!(other.reads(), 0);
    assert_eq!(second.stats().chunks_of_others, 300, "{}", second.stats());
}

#[test]
fn stores_that_read_everything_at_once_fetch_nothing_twice() {
    let image = image();
    let dir = tempfile::tempdir().unwrap();
    let sources = [(); 4].map(|()| image.source());
    for source in &sources {
        *source.delay.lock().unwrap() = Duration::from_millis(2);
    }
    let stores = sources.each_ref().map(|s| open(&image, s, dir.path()));
    thread::scope(|scope| {
        for store in &stores {
            store.prefetch(&image.pointers);
            for _ in 0..2 {
                scope.spawn(|| image.check(store).unwrap());
            }
        }
    });
    let verified: u64 = stores
        .iter()
        .map(|store| store.stats().chunks_verified)
        .sum();
    assert_eq!(verified, 300);
    assert!(stores.iter().all(|store| store.is_complete(0)));
}

#[test]
fn an_image_that_disagrees_reads_without_the_cache_while_it_is_in_use() {
    let chunks: Vec<_> = (0..4).map(|at| testkit::noise(at, 9000)).collect();
    let one = Image::new(chunks, Kind::default());
    // Same blob id and size; other bytes in one chunk.
    let chunks = (0..4).map(|at| testkit::noise(at + at / 3, 9000)).collect();
    let other = Image::new(chunks, Kind::default());
    let dir = tempfile::tempdir().unwrap();
    let source = one.source();
    let first = open(&one, &source, dir.path());
    let map = dir.path().join(format!("{}.blob.map", id()));
    let agreed = fs::read(&map).unwrap();
    let second = open(&other, &other.source(), dir.path());
    for _ in 0..2 {
        other.check(&second).unwrap();
    }
    assert_eq!(second.stats().cache_conflicts, 1);
    assert!(second.hand_over().is_err());
    assert_eq!(fs::read(&map).unwrap(), agreed);
    one.check(&first).unwrap();
    one.check(&open(&one, &source, dir.path())).unwrap();
    drop((first, second));
    let third = open(&other, &other.source(), dir.path());
    other.check(&third).unwrap();
    assert_eq!(third.stats().cache_conflicts, 0);
    assert!(third.is_complete(0));
}

#[test]
fn a_chunk_that_would_lie_over_another_ones_place_is_found_out_before_it_is_written() {
    let image = Image::new(some_chunks(9, 9000), Kind::default());
    let part = |index: usize| bootstrap(&image.info, &[image.records[index]]);
    let dir = tempfile::tempdir().unwrap();
    let source = || Arc::new(Source(image.source()));
    // Nothing is cached yet, and the two share no chunk.
    let honest = ChunkStore::open(&part(0), source(), cached(dir.path())).unwrap();
    let mut record = image.records[3];
    record.uncompressed_offset = 0;
    let liar = bootstrap(&image.info, &[record]);
    let liar = ChunkStore::open(&liar, source(), cached(dir.path())).unwrap();
    assert_eq!(liar.stats().cache_conflicts, 1);
    let friend = ChunkStore::open(&part(5), source(), cached(dir.path())).unwrap();
    assert_eq!(friend.stats().cache_conflicts, 0);
    let mut bytes = vec![0; image.chunks[0].len()];
    honest.read(image.pointers[0], 0, &mut bytes, &[]).unwrap();
    assert!(bytes == image.chunks[0]);
}

#[test]
fn a_deleted_directory_is_made_again_for_the_next() {
    let image = image();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cache");
    let source = image.source();
    let first = open(&image, &source, &path);
    fs::remove_dir_all(&path).unwrap();
    image.check(&first).unwrap();
    let reads = source.reads();
    let second = open(&image, &source, &path);
    image.check(&second).unwrap();
    assert!(source.reads() > reads);
    image.check(&first).unwrap();
    first.sync().unwrap();
    image.check(&open(&image, &source, &path)).unwrap();
}

/// Not a test by itself: what the processes run that [`killed_processes_leave_the_others_alone`] starts.
#[test]
fn read_everything_in_a_process_of_its_own() {
    let Some(dir) = std::env::var_os(CHILD) else {
        return;
    };
    let image = image();
    let source = image.source();
    *source.delay.lock().unwrap() = Duration::from_micros(500);
    let options = StoreOptions {
        request_max: 30_000,
        barrier_interval: Duration::from_millis(3),
        ..cached(Path::new(&dir))
    };
    let source = Arc::new(Source(source));
    let store = ChunkStore::open(&image.bootstrap, source, options).unwrap();
    store.prefetch(&image.pointers[150..]);
    image.check(&store).unwrap();
    store.wait_prefetch();
    assert!(store.is_complete(0));
}

#[test]
fn killed_processes_leave_the_others_alone() {
    let image = image();
    let dir = tempfile::tempdir().unwrap();
    let start = || {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child
            .args(["--exact", "shared::read_everything_in_a_process_of_its_own"])
            .env(CHILD, dir.path());
        let child = child.stdout(Stdio::null()).stderr(Stdio::null());
        child.spawn().unwrap()
    };
    let mut children: Vec<Child> = (0..24).map(|_| start()).collect();
    for (at, child) in children.iter_mut().enumerate().take(12) {
        thread::sleep(Duration::from_millis(1 + (at as u64 * 7) % 13));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    for child in &mut children[12..] {
        assert!(child.wait().unwrap().success());
    }
    let source = image.source();
    source.fail.store(true, Ordering::SeqCst);
    let store = open(&image, &source, dir.path());
    assert!(store.is_complete(0));
    image.check(&store).unwrap();
}
