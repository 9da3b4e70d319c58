//! The cache after kill -9 and after a power loss.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use storage::{ChunkStore, StoreOptions, cache_file};

use crate::image::{Image, Kind, Source, cached, id, some_chunks};

const CHILD: &str = "STORAGE_TEST_CACHE_DIR";

fn image() -> Image {
    Image::new(
        some_chunks(400, 20_000),
        Kind {
            batch: 3,
            ..Kind::default()
        },
    )
}

/// Small requests and frequent barriers, so that a kill meets all kinds of moments.
fn options(dir: &Path) -> StoreOptions {
    StoreOptions {
        request_max: 30_000,
        barrier_interval: Duration::from_millis(3),
        boot_id: Some("this boot".to_owned()),
        ..cached(dir)
    }
}

/// Not a test by itself: what the processes run that [`a_killed_process_leaves_no_wrong_bytes`] kills.
#[test]
fn fill_the_cache_until_killed() {
    let Some(dir) = std::env::var_os(CHILD) else {
        return;
    };
    let image = image();
    let source = image.source();
    *source.delay.lock().unwrap() = Duration::from_micros(300);
    let store = ChunkStore::open(
        &image.bootstrap,
        Arc::new(Source(source)),
        options(Path::new(&dir)),
    )
    .unwrap();
    store.prefetch(&image.pointers[200..]);
    image.check(&store).unwrap();
    store.wait_prefetch();
}

#[test]
fn a_killed_process_leaves_no_wrong_bytes() {
    let image = image();
    let dir = tempfile::tempdir().unwrap();
    let (mut kept, mut round) = (0, 0);
    // On a busy machine a round may come to nothing.
    while round < 12 || (kept <= 20 && round < 100) {
        round += 1;
        let mut child = Command::new(std::env::current_exe().unwrap());
        child
            .args(["--exact", "crash::fill_the_cache_until_killed"])
            .env(CHILD, dir.path());
        let mut child = child
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Let it get going, then a little further each time.
        let map = dir.path().join(format!("{}.blob.map", id()));
        // With a cache that is nearly complete it may be through before anybody looks.
        testkit::run::wait_until("the child uses the cache", || {
            File::open(&map).is_ok_and(|map| map.try_lock().is_err())
                || child.try_wait().is_ok_and(|ended| ended.is_some())
        });
        std::thread::sleep(Duration::from_millis(1 + (round * 7) % 13));
        child.kill().unwrap();
        child.wait().unwrap();
        // Either this boot or another one finds it.
        let boot = if round % 4 == 3 {
            "the next boot"
        } else {
            "this boot"
        };
        let options = StoreOptions {
            boot_id: Some(boot.to_owned()),
            ..options(dir.path())
        };
        let now = cached_chunks(&image, options);
        assert!(
            now >= kept,
            "round {round}: {now} chunks are left of {kept}"
        );
        kept = now;
    }
    assert!(kept > 20, "only {kept} chunks were ever cached");
}

/// How many chunks the cache serves without the blob; their bytes are compared.
fn cached_chunks(image: &Image, options: StoreOptions) -> usize {
    let source = image.source();
    source.fail.store(true, Ordering::SeqCst);
    let store = ChunkStore::open(&image.bootstrap, Arc::new(Source(source)), options).unwrap();
    let mut served = 0;
    for (pointer, chunk) in image.pointers.iter().zip(&image.chunks) {
        let mut bytes = vec![0; chunk.len()];
        if store.read(*pointer, 0, &mut bytes, &[]).is_ok() {
            assert!(bytes == *chunk, "chunk {} has wrong bytes", pointer.index);
            served += 1;
        }
    }
    served
}

/// Fills half of a cache durably and the rest not, and copies its files as a crash would leave them.
fn half_durable(image: &Image, crashed: &Path) {
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions {
        barrier_interval: Duration::from_secs(600),
        ..options(dir.path())
    };
    let store =
        ChunkStore::open(&image.bootstrap, Arc::new(Source(image.source())), options).unwrap();
    for pointer in &image.pointers[..200] {
        store.read(*pointer, 0, &mut [0], &[]).unwrap();
    }
    store.sync().unwrap();
    image.check(&store).unwrap();
    for name in [format!("{}.blob.data", id()), format!("{}.blob.map", id())] {
        fs::copy(dir.path().join(&name), crashed.join(&name)).unwrap();
    }
}

#[test]
fn after_a_power_loss_only_synced_chunks_are_trusted() {
    let image = image();
    let dir = tempfile::tempdir().unwrap();
    half_durable(&image, dir.path());
    // The disk never got the later chunks.
    let data = File::options()
        .write(true)
        .open(cache_file(dir.path(), &id()))
        .unwrap();
    for (pointer, chunk) in image.pointers.iter().zip(&image.chunks).skip(210) {
        data.write_all_at(&vec![0; chunk.len()], pointer.uncompressed_offset)
            .unwrap();
    }
    let source = image.source();
    let next = StoreOptions {
        boot_id: Some("the next boot".to_owned()),
        ..options(dir.path())
    };
    let store = ChunkStore::open(
        &image.bootstrap,
        Arc::new(Source(Arc::clone(&source))),
        next.clone(),
    )
    .unwrap();
    for pointer in &image.pointers[..200] {
        store.read(*pointer, 0, &mut [0], &[]).unwrap();
    }
    assert_eq!(
        (source.reads(), store.stats().reverified),
        (0, 0),
        "synced chunks need no second look"
    );
    image.check(&store).unwrap();
    let stats = store.stats();
    assert!(
        stats.reverified > 150 && stats.verify_failures > 150 && stats.fetches > 0,
        "{stats}"
    );
    drop(store);
    // By now all is synced again.
    let after = StoreOptions {
        boot_id: Some("a third boot".to_owned()),
        ..next
    };
    assert_eq!(cached_chunks(&image, after), 400);
}

#[test]
fn after_a_reboot_chunks_that_made_it_to_the_disk_are_used_again() {
    let image = image();
    let dir = tempfile::tempdir().unwrap();
    half_durable(&image, dir.path());
    let next = StoreOptions {
        boot_id: Some("the next boot".to_owned()),
        ..options(dir.path())
    };
    let source = image.source();
    let store = ChunkStore::open(
        &image.bootstrap,
        Arc::new(Source(Arc::clone(&source))),
        next,
    )
    .unwrap();
    assert!(!store.is_complete(0));
    image.check(&store).unwrap();
    assert!(store.is_complete(0));
    assert_eq!(source.reads(), 0);
    assert!(
        store.stats().reverified > 190 && store.stats().verify_failures == 0,
        "{}",
        store.stats()
    );
}

#[test]
fn in_the_same_boot_every_chunk_is_trusted() {
    let image = image();
    let dir = tempfile::tempdir().unwrap();
    half_durable(&image, dir.path());
    let source = image.source();
    let store = ChunkStore::open(
        &image.bootstrap,
        Arc::new(Source(Arc::clone(&source))),
        options(dir.path()),
    )
    .unwrap();
    assert!(store.is_complete(0));
    image.check(&store).unwrap();
    assert_eq!((source.reads(), store.stats().reverified), (0, 0));
}
