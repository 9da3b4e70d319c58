//! Damaged files.

use chunkdict_store::Error;
use progress::Cancel;

use crate::images::*;

#[test]
fn a_damaged_snapshot_is_told_and_rebuilt() {
    let place = Place::new();
    let images = [
        import("one", &[("a", &all(0..40)), ("b", &all(40..45))]),
        import("two", &[("b", &all(40..50))]),
    ];
    place.add(&images);
    let (id, file) = (place.snapshot().id(), place.file());
    let good = std::fs::read(&file).unwrap();
    let told = |bytes: &[u8]| {
        std::fs::write(&file, bytes).unwrap();
        let error = place.store().snapshot().unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
        assert!(error.to_string().contains("rebuild"), "{error}");
        let error = place
            .writer()
            .add(vec![import("three", &[("c", &all([1]))])]);
        assert!(matches!(error, Err(Error::Damaged { .. })));
    };
    for at in (0..good.len()).step_by(3) {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        told(&bad);
    }
    for length in [0, 5, 64, good.len() - 1] {
        told(&good[..length]);
    }
    told(&[&good[..], b"x"].concat());
    std::fs::remove_file(&file).unwrap();
    let error = place.store().snapshot().unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
    let mut writer = place.store().rebuilder(&Cancel::default()).unwrap();
    let changed = writer.rebuild(images.to_vec()).unwrap();
    assert_eq!(changed.snapshot, Some(id));
    drop(writer);
    assert_eq!(std::fs::read(&file).unwrap(), good);
    assert_eq!(place.snapshot().id(), id);
    // What can't be had any more is taken out.
    let mut writer = place.store().rebuilder(&Cancel::default()).unwrap();
    writer.rebuild(images[..1].to_vec()).unwrap();
    assert_eq!(writer.catalogue().removed[0].entry.name, "two");
    drop(writer);
    assert_eq!(places(&place.snapshot(), 46), []);
}

#[test]
fn a_damaged_catalogue_is_told_and_rebuilt_of_the_one_before() {
    let place = Place::new();
    let image = import("one", &[("a", &all([1, 2]))]);
    place.add(std::slice::from_ref(&image));
    place.writer().note_absent(|_| Some(false)).unwrap();
    let path = place.path().join("catalogue");
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    for bytes in [Some(bytes), None] {
        match bytes {
            Some(bytes) => std::fs::write(&path, bytes).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        let error = place.store().snapshot().unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
        let error = place.store().writer(&Cancel::default()).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
        let mut writer = place.store().rebuilder(&Cancel::default()).unwrap();
        writer.rebuild(vec![image.clone()]).unwrap();
        drop(writer);
        assert_eq!(places(&place.snapshot(), 2).len(), 1);
    }
}
