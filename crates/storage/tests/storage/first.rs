//! What an image puts first, and what an observer is told.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use storage::{ChunkStore, Decoded, Fetch, Observer, Purpose, StoreOptions};

use crate::image::{Counting, Image, Kind, Source, cached, some_chunks};

/// Notes what it is told.
#[derive(Debug, Default)]
struct Notes {
    fetches: Mutex<Vec<Fetch>>,
    chunks: Mutex<Vec<Decoded>>,
}

impl Observer for Notes {
    fn fetched(&self, fetch: &Fetch) {
        self.fetches.lock().unwrap().push(fetch.clone());
    }

    fn decoded(&self, chunk: &Decoded) {
        self.chunks.lock().unwrap().push(chunk.clone());
    }
}

fn open(image: &Image, source: &Arc<Counting>, options: StoreOptions) -> (ChunkStore, Arc<Notes>) {
    let notes = Arc::new(Notes::default());
    let options = StoreOptions {
        request_max: 1 << 20,
        observer: Some(notes.clone()),
        ..options
    };
    let source = Arc::new(Source(Arc::clone(source)));
    let store = ChunkStore::open(&image.bootstrap, source, options).unwrap();
    (store, notes)
}

fn noisy() -> Image {
    let chunks = (0..64).map(|at| testkit::noise(at, 50_000)).collect();
    Image::new(chunks, Kind::default())
}

#[test]
fn what_comes_first_comes_once_in_its_order() {
    let image = noisy();
    let dir = tempfile::tempdir().unwrap();
    let (store, notes) = open(&image, &image.source(), cached(dir.path()));
    store.bring_first(&image.pointers, &AtomicBool::new(false));
    store.wait_prefetch();
    assert!(store.is_complete(0));
    let stats = store.stats();
    assert_eq!((stats.prefetch_asked, stats.prefetch_errors), (64, 0));
    let fetches = notes.fetches.lock().unwrap();
    assert!(
        fetches
            .iter()
            .all(|fetch| fetch.purpose == Purpose::First && !fetch.failed)
    );
    // 20 chunks of 50,000 bytes fit in a request.
    let mut ranges: Vec<_> = fetches.iter().map(|fetch| fetch.range.clone()).collect();
    ranges.sort_by_key(|range| range.start);
    assert_eq!(ranges.len(), 4, "{ranges:?}");
    assert!(ranges.is_sorted_by(|a, b| a.end == b.start), "{ranges:?}");
    assert!(
        ranges[..3]
            .iter()
            .all(|range| range.end - range.start > 900_000)
    );
    image.check(&store).unwrap();
    assert_eq!(store.stats().fetches, 4);
}

#[test]
fn what_comes_first_can_be_stopped_and_needs_a_cache() {
    let image = noisy();
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(&image, &image.source(), cached(dir.path()));
    store.bring_first(&image.pointers, &AtomicBool::new(true));
    assert_eq!(store.stats().fetches, 0);
    let (store, _) = open(&image, &image.source(), StoreOptions::default());
    store.bring_first(&image.pointers, &AtomicBool::new(false));
    assert_eq!(store.stats().fetches, 0);
}

#[test]
fn an_observer_is_told_of_requests_and_chunks() {
    for batch in [0, 4] {
        let kind = Kind {
            batch,
            ..Kind::default()
        };
        let image = Image::new(some_chunks(8, 20_000), kind);
        let dir = tempfile::tempdir().unwrap();
        let source = image.source();
        let (store, notes) = open(&image, &source, cached(dir.path()));
        let mut bytes = vec![0; image.chunks[0].len()];
        store
            .read(image.pointers[0], 0, &mut bytes, &image.pointers[1..])
            .unwrap();
        store.wait_prefetch();
        let fetches = notes.fetches.lock().unwrap();
        assert_eq!(fetches.len(), 1);
        assert_eq!((fetches[0].purpose, fetches[0].blob), (Purpose::Read, 0));
        let size = fetches[0].range.end - fetches[0].range.start;
        assert_eq!(size, store.stats().fetched_bytes);
        let chunks = notes.chunks.lock().unwrap();
        assert!(chunks.iter().all(|chunk| chunk.fetch == fetches[0].number));
        let mut indexes: Vec<u32> = chunks.iter().map(|chunk| chunk.index).collect();
        indexes.sort_unstable();
        assert_eq!(indexes, (0..8).collect::<Vec<_>>());
        // What the cache has is nobody's business.
        drop(fetches);
        image.check(&store).unwrap();
        assert_eq!(notes.fetches.lock().unwrap().len(), 1);
    }
}
