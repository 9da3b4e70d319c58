//! Several at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::images::*;

/// Each addition is there in the end, and readers always see a whole snapshot.
#[test]
fn many_add_read_and_collect_at_the_same_time() {
    let place = Place::new();
    place.add(&[import("first", &[("first", &all([1]))])]);
    let done = AtomicBool::new(false);
    let add = |writer: u32| {
        for at in 0..6 {
            let name = format!("{writer}-{at}");
            place.add(&[import(&name, &[(&name, &all([writer * 100 + at, 1]))])]);
        }
    };
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut seen = 0;
                    while !done.load(Ordering::Relaxed) {
                        let (snapshot, catalogue) = place.store().snapshot().unwrap();
                        assert_eq!(snapshot.images().len(), catalogue.images.len());
                        assert_eq!(places(&snapshot, 1).len(), catalogue.images.len());
                        seen += 1;
                    }
                    seen
                })
            })
            .collect();
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                place.writer().gc(Duration::ZERO).unwrap();
            }
        });
        let writers: Vec<_> = (1..4)
            .map(|writer| scope.spawn(move || add(writer)))
            .collect();
        writers
            .into_iter()
            .for_each(|writer| writer.join().unwrap());
        done.store(true, Ordering::Relaxed);
        readers
            .into_iter()
            .for_each(|reader| assert!(reader.join().unwrap() > 0));
    });
    assert_eq!(place.snapshot().images().len(), 19);
    place.writer().gc(Duration::ZERO).unwrap();
    assert_eq!(place.files(), [place.file()]);
}

/// Whatever a killed process leaves is as if it had not begun, or had ended.
#[test]
fn what_a_killed_writer_leaves_is_swept_away() {
    let place = Place::new();
    place.add(&[import("one", &[("a", &all([1, 2]))])]);
    let id = place.snapshot().id();
    let (dir, snapshots) = (place.path(), place.path().join("snapshots"));
    // Half a file, and a whole snapshot that no catalogue names.
    for path in [
        dir.join(".tmpabc"),
        snapshots.join(".tmpdef"),
        snapshots.join(hex::encode([5; 32])),
    ] {
        std::fs::write(path, "half").unwrap();
    }
    assert_eq!(place.snapshot().id(), id);
    place.add(&[import("two", &[("b", &all([3]))])]);
    assert!(!dir.join(".tmpabc").exists() && !snapshots.join(".tmpdef").exists());
    place.writer().gc(Duration::ZERO).unwrap();
    assert_eq!(place.files(), [place.file()]);
}
