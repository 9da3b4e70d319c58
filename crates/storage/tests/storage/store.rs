//! What the store fetches, what it keeps, and what it refuses to serve.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use rafs_format::{ChunkPointer, ChunkRecord, Compressor};
use storage::{
    BlobReader, BlobSource, ChunkError, ChunkStore, Error, ReadCause, StoreOptions, cache_file,
};

use crate::image::{Counting, Image, Kind, Source, bootstrap, cached, id, some_chunks};

/// Requests that open a blob: its chunk table with the header.
const OPEN: u64 = 1;

fn open(image: &Image, source: &Arc<Counting>, options: StoreOptions) -> ChunkStore {
    ChunkStore::open(
        &image.bootstrap,
        Arc::new(Source(Arc::clone(source))),
        options,
    )
    .unwrap()
}

#[test]
fn every_kind_of_blob_reads_back() {
    for compressor in [Compressor::None, Compressor::Lz4Block, Compressor::Zstd] {
        for (encrypted, batch) in [(false, 0), (true, 0), (false, 5), (true, 5)] {
            let kind = Kind {
                compressor,
                encrypted,
                batch,
                ..Kind::default()
            };
            let image = Image::new(some_chunks(23, 9000), kind);
            let dir = tempfile::tempdir().unwrap();
            for options in [
                StoreOptions::default(),
                cached(dir.path()),
                cached(dir.path()),
            ] {
                let store = open(&image, &image.source(), options);
                image.check(&store).unwrap_or_else(|error| {
                    panic!("{compressor} {encrypted} {batch}: {:?}", error)
                });
            }
        }
    }
}

#[test]
fn many_readers_of_a_chunk_make_one_request() {
    for batch in [0, 4] {
        let image = Image::new(
            some_chunks(8, 60_000),
            Kind {
                batch,
                ..Kind::default()
            },
        );
        let dir = tempfile::tempdir().unwrap();
        for options in [cached(dir.path()), StoreOptions::default()] {
            let source = image.source();
            *source.delay.lock().unwrap() = Duration::from_millis(10);
            let store = open(&image, &source, options);
            let start = Barrier::new(16);
            thread::scope(|scope| {
                for _ in 0..16 {
                    scope.spawn(|| {
                        let mut bytes = vec![0; image.chunks[2].len()];
                        start.wait();
                        store.read(image.pointers[2], 0, &mut bytes, &[]).unwrap();
                        assert_eq!(bytes, image.chunks[2]);
                    });
                }
            });
            assert_eq!(source.reads(), OPEN + 1);
        }
    }
}

#[test]
fn many_readers_of_everything_fetch_nothing_twice() {
    let chunks = some_chunks(300, 30_000);
    let image = Image::new(chunks, Kind::default());
    let dir = tempfile::tempdir().unwrap();
    let source = image.source();
    let store = open(
        &image,
        &source,
        StoreOptions {
            request_max: 100_000,
            memory: 300_000,
            ..cached(dir.path())
        },
    );
    store.prefetch(&image.pointers);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| image.check(&store).unwrap());
        }
    });
    store.wait_prefetch();
    let stats = store.stats();
    assert_eq!(stats.chunks_verified, 300, "{stats}");
    assert!(stats.fetches < 150, "{stats}");
    assert!(store.is_complete(0));
}

#[test]
fn neighbours_come_along_up_to_the_limit() {
    let image = Image::new(
        (0..64).map(|at| testkit::noise(at, 50_000)).collect(),
        Kind::default(),
    );
    let dir = tempfile::tempdir().unwrap();
    let source = image.source();
    let store = open(
        &image,
        &source,
        StoreOptions {
            request_max: 1 << 20,
            ..cached(dir.path())
        },
    );
    image.check(&store).unwrap();
    // 20 chunks of 50,000 bytes fit in a request.
    assert_eq!(store.stats().fetches, 4, "{}", store.stats());
    let longest = source.ranges().into_values().max().unwrap();
    assert!((900_000..=1 << 20).contains(&longest), "{longest}");
}

#[test]
fn wide_gaps_are_not_fetched() {
    let image = Image::new(
        (0..10).map(|at| testkit::noise(at, 50_000)).collect(),
        Kind::default(),
    );
    let source = image.source();
    let store = open(
        &image,
        &source,
        StoreOptions {
            gap_max: 60_000,
            ..StoreOptions::default()
        },
    );
    let want = [2, 6, 7].map(|at| image.pointers[at]);
    store
        .read(image.pointers[0], 0, &mut [0; 10], &want)
        .unwrap();
    store.wait_prefetch();
    // Chunk 1 is a gap worth fetching; 3 to 5 are not.
    assert_eq!(source.ranges().get(&0), Some(&150_000));
    assert_eq!(store.stats().fetches, 1);
    // Only what was read counts as used, however often.
    for _ in 0..2 {
        store.read(image.pointers[0], 5, &mut [0; 10], &[]).unwrap();
    }
    let stats = store.stats();
    assert_eq!((stats.chunks_used, stats.used_bytes), (1, 50_000));
    assert_eq!(stats.fetched_bytes, 150_000);
}

#[test]
fn a_range_of_a_file_reads_as_its_bytes() {
    let mut chunks: Vec<_> = (0..40).map(|at| testkit::prose(at, 8192)).collect();
    chunks.push(testkit::noise(99, 5000));
    let content = chunks.concat();
    let image = Image::new(
        chunks,
        Kind {
            chunk_size: 8192,
            ..Kind::default()
        },
    );
    let dir = tempfile::tempdir().unwrap();
    for options in [
        cached(dir.path()),
        StoreOptions {
            recent: 20_000,
            ..StoreOptions::default()
        },
    ] {
        let store = open(&image, &image.source(), options);
        let mut seed = 12345_usize;
        let mut next = |below: usize| {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        for _ in 0..400 {
            let start = next(content.len());
            let len = 1 + next((content.len() - start).min(70_000));
            let mut bytes = vec![0xEE; len];
            store
                .read_file_range(&image.pointers, 8192, start as u64, &mut bytes)
                .unwrap();
            assert!(
                bytes == content[start..start + len],
                "{len} bytes at {start}"
            );
        }
        let beyond =
            store.read_file_range(&image.pointers, 8192, content.len() as u64 - 1, &mut [0; 2]);
        assert!(matches!(
            *beyond.unwrap_err().cause,
            ReadCause::Bounds { .. }
        ));
        let beyond = store.read_file_range(&image.pointers, 8192, 1 << 40, &mut [0; 2]);
        assert!(matches!(*beyond.unwrap_err().cause, ReadCause::Unknown));
    }
}

#[test]
fn a_cached_range_is_one_hit() {
    let image = Image::new(
        (0..16).map(|at| testkit::noise(at, 4096)).collect(),
        Kind {
            chunk_size: 4096,
            ..Kind::default()
        },
    );
    let dir = tempfile::tempdir().unwrap();
    let store = open(&image, &image.source(), cached(dir.path()));
    image.check(&store).unwrap();
    let before = store.stats().hits;
    store
        .read_file_range(&image.pointers, 4096, 100, &mut [0; 60_000])
        .unwrap();
    assert_eq!(store.stats().hits, before + 1);
}

#[test]
fn a_flipped_byte_is_an_error_that_names_its_chunk() {
    for kind in [
        Kind {
            compressor: Compressor::None,
            ..Kind::default()
        },
        Kind::default(),
        Kind {
            encrypted: true,
            ..Kind::default()
        },
    ] {
        let image = Image::new((0..8).map(|at| testkit::noise(at, 10_000)).collect(), kind);
        let source = image.source();
        source.flip(35_000);
        let dir = tempfile::tempdir().unwrap();
        let store = open(&image, &source, cached(dir.path()));
        for at in [2, 3, 4, 3] {
            let mut bytes = vec![0; 10_000];
            // Good neighbours do not suffer.
            let read = store.read(image.pointers[at], 0, &mut bytes, &image.pointers);
            if at == 3 {
                let error = read.unwrap_err();
                assert!(
                    matches!(*error.cause, ReadCause::Decode(ChunkError::Digest { .. })),
                    "{:?}",
                    error.cause
                );
                let expected = format!(
                    "cannot read chunk 3 of blob {} (uncompressed offset 0x9000)",
                    id()
                );
                assert_eq!(error.to_string(), expected);
            } else {
                read.unwrap();
                assert_eq!(bytes, image.chunks[at]);
            }
        }
        assert!(!store.is_complete(0));
        assert!(store.stats().verify_failures >= 1);
    }
}

#[test]
fn no_flipped_byte_of_a_small_blob_gives_wrong_bytes() {
    for (encrypted, batch) in [(false, 0), (true, 0), (false, 3), (true, 2)] {
        let image = Image::new(
            some_chunks(6, 300),
            Kind {
                encrypted,
                batch,
                ..Kind::default()
            },
        );
        // Most of the header of the chunk table is reserved, and changes there do not matter.
        let header = image.blob.len() - 4096;
        let reserved = header + 64..image.blob.len() - 4;
        let (mut refused, mut served) = (0, 0);
        for at in (0..reserved.start)
            .chain(reserved.step_by(100))
            .chain(image.blob.len() - 4..image.blob.len())
        {
            let source = image.source();
            source.flip(at);
            let store = open(&image, &source, StoreOptions::default());
            *(if image.check(&store).is_ok() {
                &mut served
            } else {
                &mut refused
            }) += 1;
        }
        // In the header only the magics, the sizes and the contexts count.
        assert!(
            refused >= header + 8 && served > 0,
            "{refused} of {header} are refused, {served} served"
        );
    }
}

#[test]
fn a_blob_that_fails_is_asked_again_later() {
    let image = Image::new(some_chunks(4, 1000), Kind::default());
    let source = image.source();
    source.fail.store(true, Ordering::SeqCst);
    let store = open(&image, &source, StoreOptions::default());
    assert!(matches!(
        *image.check(&store).unwrap_err().cause,
        ReadCause::Meta(_)
    ));
    source.fail.store(false, Ordering::SeqCst);
    store.read(image.pointers[0], 0, &mut [0], &[]).unwrap();
    source.fail.store(true, Ordering::SeqCst);
    let error = store.read(image.pointers[1], 0, &mut [0], &[]).unwrap_err();
    assert!(matches!(*error.cause, ReadCause::Fetch { .. }));
    source.fail.store(false, Ordering::SeqCst);
    image.check(&store).unwrap();
    assert_eq!(store.stats().errors, 2);
}

#[test]
fn a_truncated_blob_serves_what_is_left() {
    let image = Image::new(
        (0..6).map(|at| testkit::noise(at, 10_000)).collect(),
        Kind::default(),
    );
    // The chunk table has been read by the time that the blob shrinks.
    let source = image.source();
    let store = open(&image, &source, StoreOptions::default());
    store.read(image.pointers[5], 0, &mut [0], &[]).unwrap();
    source.truncate(25_000);
    let mut bytes = vec![0; 10_000];
    store
        .read(image.pointers[0], 0, &mut bytes, &image.pointers)
        .unwrap();
    assert_eq!(bytes, image.chunks[0]);
    store
        .read(image.pointers[1], 0, &mut bytes, &image.pointers)
        .unwrap();
    assert!(
        store
            .read(image.pointers[2], 0, &mut bytes, &image.pointers)
            .is_err()
    );
}

#[test]
fn what_was_prefetched_is_there() {
    let image = Image::new(
        some_chunks(100, 20_000),
        Kind {
            batch: 7,
            ..Kind::default()
        },
    );
    let dir = tempfile::tempdir().unwrap();
    let source = image.source();
    let store = open(
        &image,
        &source,
        StoreOptions {
            request_max: 50_000,
            ..cached(dir.path())
        },
    );
    store.prefetch(&image.pointers[..50]);
    store.wait_prefetch();
    source.fail.store(true, Ordering::SeqCst);
    for at in 0..50 {
        store.read(image.pointers[at], 0, &mut [0], &[]).unwrap();
    }
    store.prefetch(&image.pointers);
    store.wait_prefetch();
    let stats = store.stats();
    assert_eq!((stats.prefetch_asked, stats.errors), (150, 0));
    assert!(
        stats.prefetch_errors > 0 && stats.prefetch_fetched >= 50,
        "{stats}"
    );
}

#[test]
fn a_read_that_waits_draws_prefetching_to_its_place() {
    let chunks = (0..2000).map(|at| testkit::noise(at, 10_000)).collect();
    let image = Image::new(chunks, Kind::default());
    let dir = tempfile::tempdir().unwrap();
    let source = image.source();
    let store = open(&image, &source, cached(dir.path()));
    thread::scope(|scope| {
        // No fetch ends before this is let go.
        let delay = source.delay.lock().unwrap();
        store.prefetch(&image.pointers[..600]);
        let read = scope.spawn(|| store.read(image.pointers[1500], 0, &mut [0], &[]));
        while store.stats().misses == 0 {
            thread::yield_now();
        }
        thread::sleep(Duration::from_millis(50));
        drop(delay);
        read.join().unwrap().unwrap();
    });
    store.wait_prefetch();
    source.fail.store(true, Ordering::SeqCst);
    // What lies around in the blob is there, though it was not on the list, and what was is there too.
    for at in [1501, 1900, 1499, 900, 599] {
        store.read(image.pointers[at], 0, &mut [0], &[]).unwrap();
    }
    assert!(store.read(image.pointers[700], 0, &mut [0], &[]).is_err());
}

#[test]
fn prefetching_what_is_there_already_overflows_no_stack() {
    let image = Image::new(some_chunks(1, 1000), Kind::default());
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions {
        prefetch_threads: 1,
        ..cached(dir.path())
    };
    let store = open(&image, &image.source(), options);
    // Each time the worker finds a queue that it empties without work, as with the files of a mount whose cache is
    // complete.
    for _ in 0..30_000 {
        store.prefetch(&image.pointers);
        store.wait_prefetch();
    }
    assert_eq!(store.stats().prefetch_asked, 30_000);
}

#[test]
fn whoever_prefetches_more_than_may_wait_waits() {
    let image = Image::new(some_chunks(2, 1000), Kind::default());
    let dir = tempfile::tempdir().unwrap();
    let source = image.source();
    let store = open(&image, &source, cached(dir.path()));
    let many = image.pointers.repeat(1 << 18);
    // No read ends before this is let go.
    let delay = source.delay.lock().unwrap();
    store.prefetch(&many);
    thread::scope(|scope| {
        let more = scope.spawn(|| store.prefetch(&many));
        thread::sleep(Duration::from_millis(50));
        assert!(!more.is_finished());
        store.cancel_prefetch();
        more.join().unwrap();
        drop(delay);
    });
    store.cancel_prefetch();
    store.wait_prefetch();
}

/// A source that does something before a blob is opened.
struct Before<F>(Source, F);

impl<F: Fn() + Send + Sync> BlobSource for Before<F> {
    fn open(&self, id: &str) -> std::io::Result<Arc<dyn BlobReader>> {
        (self.1)();
        self.0.open(id)
    }
}

#[test]
fn a_panic_of_a_prefetcher_keeps_nobody_waiting() {
    let image = Image::new(some_chunks(9, 9000), Kind::default());
    let dir = tempfile::tempdir().unwrap();
    let first = AtomicBool::new(true);
    let panic_once = move || assert!(!first.swap(false, Ordering::SeqCst), "as it should");
    let options = StoreOptions {
        prefetch_threads: 1,
        ..cached(dir.path())
    };
    let source = Arc::new(Before(Source(image.source()), panic_once));
    let store = Arc::new(ChunkStore::open(&image.bootstrap, source, options).unwrap());
    store.prefetch(&image.pointers);
    let (done, wait) = mpsc::channel();
    let waiting = Arc::clone(&store);
    thread::spawn(move || {
        waiting.wait_prefetch();
        done.send(()).unwrap();
    });
    wait.recv_timeout(Duration::from_secs(20)).unwrap();
    image.check(&store).unwrap();
}

#[test]
fn what_is_cached_is_read_while_the_blob_is_opened() {
    let image = Image::new(some_chunks(9, 9000), Kind::default());
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = vec![0; image.chunks[0].len()];
    let store = open(&image, &image.source(), cached(dir.path()));
    store.read(image.pointers[0], 0, &mut bytes, &[]).unwrap();
    drop(store);
    let (entered, opening) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    let hang = move || {
        entered.send(()).unwrap();
        // Until the other end is gone.
        let _ = released.lock().unwrap().recv();
    };
    let source = Arc::new(Before(Source(image.source()), hang));
    let store = ChunkStore::open(&image.bootstrap, source, cached(dir.path())).unwrap();
    let (done, wait) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut bytes = vec![0; image.chunks[5].len()];
            store.read(image.pointers[5], 0, &mut bytes, &[]).unwrap();
        });
        opening.recv().unwrap();
        scope.spawn(|| {
            store.read(image.pointers[0], 0, &mut bytes, &[]).unwrap();
            done.send(()).unwrap();
        });
        let read = wait.recv_timeout(Duration::from_secs(10));
        drop(release);
        read.unwrap();
    });
    assert_eq!(bytes, image.chunks[0]);
}

#[test]
fn prefetching_can_be_cancelled() {
    let image = Image::new(some_chunks(200, 2000), Kind::default());
    let dir = tempfile::tempdir().unwrap();
    let source = image.source();
    let store = open(
        &image,
        &source,
        StoreOptions {
            request_max: 1,
            ..cached(dir.path())
        },
    );
    // No read ends before this is let go.
    let mut delay = source.delay.lock().unwrap();
    store.prefetch(&image.pointers);
    store.cancel_prefetch();
    *delay = Duration::from_millis(200);
    drop(delay);
    store.wait_prefetch();
    assert!(store.stats().chunks_verified < 100, "{}", store.stats());
    store.prefetch(&image.pointers);
    // Dropping does not wait for all of it.
    drop(store);
    assert!(source.reads() < 150);
}

#[test]
fn requests_that_do_not_fit_are_refused() {
    let image = Image::new(some_chunks(3, 1000), Kind::default());
    let store = open(&image, &image.source(), StoreOptions::default());
    let size = image.chunks[1].len() as u32;
    let good = image.pointers[1];
    store.read(good, size - 1, &mut [0], &[]).unwrap();
    store.read(good, size, &mut [], &[]).unwrap();
    for (offset, len) in [(size, 1), (0, size as usize + 1), (u32::MAX, 1)] {
        let error = store
            .read(good, offset, &mut vec![0; len], &[])
            .unwrap_err();
        assert!(matches!(*error.cause, ReadCause::Bounds { .. }));
    }
    let strange = [
        ChunkPointer {
            blob_index: 1,
            ..good
        },
        ChunkPointer { index: 3, ..good },
        ChunkPointer {
            uncompressed_offset: 0,
            ..good
        },
    ];
    for pointer in strange {
        assert!(matches!(
            *store.read(pointer, 0, &mut [0], &[]).unwrap_err().cause,
            ReadCause::Unknown
        ));
    }
}

#[test]
fn memory_bounds_are_kept_by_chunks_that_exceed_them() {
    let image = Image::new(some_chunks(30, 100_000), Kind::default());
    let dir = tempfile::tempdir().unwrap();
    let store = open(
        &image,
        &image.source(),
        StoreOptions {
            memory: 1,
            ..cached(dir.path())
        },
    );
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| image.check(&store).unwrap());
        }
    });
    let store = open(
        &image,
        &image.source(),
        StoreOptions {
            recent: 0,
            memory: 1,
            ..StoreOptions::default()
        },
    );
    image.check(&store).unwrap();
}

#[test]
fn a_cache_of_a_newer_release_is_refused_and_left_alone() {
    let image = Image::new(some_chunks(3, 1000), Kind::default());
    let dir = tempfile::tempdir().unwrap();
    image
        .check(&open(&image, &image.source(), cached(dir.path())))
        .unwrap();
    let map = dir.path().join(format!("{}.blob.map", id()));
    let mut bytes = std::fs::read(&map).unwrap();
    bytes[8] = 9;
    std::fs::write(&map, &bytes).unwrap();
    let error = ChunkStore::open(
        &image.bootstrap,
        Arc::new(Source(image.source())),
        cached(dir.path()),
    )
    .err()
    .unwrap();
    assert!(
        matches!(error, Error::CacheVersion { version: 9, .. }),
        "{error}"
    );
    assert_eq!(std::fs::read(&map).unwrap(), bytes);
}

#[test]
fn an_image_that_disagrees_about_a_blob_gets_none_of_its_cache() {
    let one = Image::new(
        (0..4).map(|at| testkit::noise(at, 9000)).collect(),
        Kind::default(),
    );
    // Same blob id and size; other bytes in one chunk, or the same bytes elsewhere.
    let other = Image::new(
        (0..4).map(|at| testkit::noise(at + at / 3, 9000)).collect(),
        Kind::default(),
    );
    let moved = Image::new(
        [4096, 12_288, 9000, 9000]
            .into_iter()
            .zip(0..)
            .map(|(len, at)| testkit::noise(at, len))
            .collect(),
        Kind::default(),
    );
    let dir = tempfile::tempdir().unwrap();
    for image in [&one, &other, &one, &moved, &one] {
        let store = open(image, &image.source(), cached(dir.path()));
        image.check(&store).unwrap();
        assert_ne!(store.stats().fetches, 0);
        drop(store);
        let store = open(image, &image.source(), cached(dir.path()));
        image.check(&store).unwrap();
        assert_eq!(store.stats().fetches, 0);
    }
}

#[test]
fn images_share_the_cache_of_a_blob() {
    let image = Image::new(some_chunks(9, 9000), Kind::default());
    let part = |keep: fn(u32) -> bool| {
        let records: Vec<_> = image
            .records
            .iter()
            .filter(|record| keep(record.index))
            .copied()
            .collect();
        let bootstrap = bootstrap(&image.info, &records);
        (bootstrap, records)
    };
    let dir = tempfile::tempdir().unwrap();
    for (bootstrap, records) in [
        part(|index| index % 2 == 0),
        part(|index| index % 3 == 1),
        part(|_| true),
    ] {
        let store = ChunkStore::open(
            &bootstrap,
            Arc::new(Source(image.source())),
            cached(dir.path()),
        )
        .unwrap();
        for record in records {
            let at = record.index as usize;
            let mut bytes = vec![0; image.chunks[at].len()];
            store.read(image.pointers[at], 0, &mut bytes, &[]).unwrap();
            assert_eq!(bytes, image.chunks[at]);
        }
        assert!(store.is_complete(0));
    }
    let store = open(&image, &image.source(), cached(dir.path()));
    image.check(&store).unwrap();
    assert_eq!(store.stats().fetches, 0);
    drop(store);

    // An image that puts its only chunk over others must not write there and leave the promises of the others.
    let mut record = image.records[3];
    record.uncompressed_offset = 0;
    let liar = bootstrap(&image.info, &[record]);
    drop(ChunkStore::open(&liar, Arc::new(Source(image.source())), cached(dir.path())).unwrap());
    let store = open(&image, &image.source(), cached(dir.path()));
    image.check(&store).unwrap();
    assert_ne!(store.stats().fetches, 0);
}

#[test]
fn impossible_chunk_tables_are_refused() {
    let image = Image::new(some_chunks(4, 9000), Kind::default());
    let refused = |change: fn(&mut Vec<ChunkRecord>)| {
        let mut records = image.records.clone();
        change(&mut records);
        let bootstrap = bootstrap(&image.info, &records);
        ChunkStore::open(
            &bootstrap,
            Arc::new(Source(image.source())),
            StoreOptions::default(),
        )
        .err()
        .unwrap()
    };
    type Change = (fn(&mut Vec<ChunkRecord>), &'static str);
    let changes: [Change; 7] = [
        (
            |records| records[1].uncompressed_offset = 0,
            "another chunk lies at the same uncompressed offset",
        ),
        (|records| records[1].index = 0, "it has two entries"),
        (|records| records[1].index = 4, "the blob has 4 chunks"),
        (
            |records| records[1].uncompressed_size = 0,
            "its size of 0 bytes",
        ),
        (|records| records[3].uncompressed_size = 5000, "ends beyond"),
        (
            |records| records[1].uncompressed_offset = u64::MAX << 12,
            "ends beyond",
        ),
        (
            |records| records[1].uncompressed_offset += 1,
            "no multiple of 4096",
        ),
    ];
    for (change, word) in changes {
        let error = refused(change);
        assert!(
            matches!(error, Error::Invalid { .. }) && error.to_string().contains(word),
            "{error}"
        );
    }
    assert!(matches!(
        refused(|records| records[1].digest = [0; 32]),
        Error::Unsupported { .. }
    ));
    assert!(matches!(
        refused(|records| records[1].blob_index = 7),
        Error::Invalid { .. } | Error::Format { .. }
    ));
}

#[test]
fn a_blob_that_disagrees_with_the_bootstrap_is_not_believed() {
    let image = Image::new(some_chunks(4, 9000), Kind::default());
    let mut records = image.records.clone();
    records.truncate(1);
    records[0].uncompressed_offset = 4096;
    let bootstrap = bootstrap(&image.info, &records);
    let store = ChunkStore::open(
        &bootstrap,
        Arc::new(Source(image.source())),
        StoreOptions::default(),
    )
    .unwrap();
    let pointer = ChunkPointer {
        uncompressed_offset: 4096,
        ..image.pointers[0]
    };
    assert!(matches!(
        *store.read(pointer, 0, &mut [0], &[]).unwrap_err().cause,
        ReadCause::Mismatch { .. }
    ));
}

#[test]
fn a_damaged_cache_is_filled_again() {
    let image = Image::new(some_chunks(40, 9000), Kind::default());
    let dir = tempfile::tempdir().unwrap();
    let map = dir.path().join(format!("{}.blob.map", id()));
    let data = cache_file(dir.path(), &id());
    image
        .check(&open(&image, &image.source(), cached(dir.path())))
        .unwrap();
    let good = std::fs::read(&map).unwrap();
    for damage in 0..6 {
        let mut bytes = good.clone();
        match damage {
            0 => bytes.truncate(3000),
            1 => bytes.truncate(5000),
            2 => bytes.clear(),
            3 => bytes[4096..]
                .iter_mut()
                .step_by(7)
                .for_each(|byte| *byte ^= 0x55),
            4 => bytes[20] ^= 1,
            _ => std::fs::File::options()
                .write(true)
                .open(&data)
                .unwrap()
                .set_len(4096)
                .unwrap(),
        }
        std::fs::write(&map, bytes).unwrap();
        let store = open(&image, &image.source(), cached(dir.path()));
        image.check(&store).unwrap();
        assert_ne!(store.stats().fetches, 0, "damage {damage}");
    }
    std::fs::remove_file(&data).unwrap();
    image
        .check(&open(&image, &image.source(), cached(dir.path())))
        .unwrap();
}

#[test]
fn cache_files_that_shrink_under_a_mount_are_noticed() {
    let image = Image::new(some_chunks(10, 9000), Kind::default());
    let dir = tempfile::tempdir().unwrap();
    let store = open(&image, &image.source(), cached(dir.path()));
    image.check(&store).unwrap();
    let data = std::fs::File::options()
        .write(true)
        .open(cache_file(dir.path(), &id()))
        .unwrap();
    data.set_len(0).unwrap();
    image.check(&store).unwrap();
    assert_ne!(store.stats().cache_errors, 0);
}

#[test]
fn statistics_are_text_and_json() {
    let image = Image::new(some_chunks(2, 1000), Kind::default());
    let store = open(&image, &image.source(), StoreOptions::default());
    store.read(image.pointers[0], 0, &mut [0; 1], &[]).unwrap();
    let stats = store.stats();
    assert!(
        stats.to_json().starts_with(
            "{\"requests\":1,\"bytes_served\":1,\"hits\":0,\"misses\":1,\"errors\":0,"
        )
    );
    assert!(stats.to_string().starts_with("requests=1 bytes_served=1 "));
}
