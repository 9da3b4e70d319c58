//! What a run reuses of an earlier one.

use convert::{ConvertOptions, DedupScope};
use image::Location;

use crate::world::{World, oci, options, snapshot};

fn busybox() -> Location {
    oci(&testkit::fixture::busybox(), None)
}

fn keeping(world: &World) -> ConvertOptions {
    ConvertOptions {
        journal: Some(world.path("journal")),
        ..options()
    }
}

/// Converts every image there is here, twice.
#[test]
fn a_second_run_converts_nothing_and_gives_the_same_image() {
    let mut sources = vec![busybox()];
    if let Some(shared) =
        testkit::shared_or_skip("a_second_run_converts_nothing_and_gives_the_same_image")
    {
        sources.push(oci(&shared.join("torture/image"), None));
        sources.push(oci(&shared.join("images"), Some("base")));
    }
    for source in sources {
        let world = World::new();
        let first = world.convert_from(&source, &keeping(&world)).unwrap();
        assert_eq!((first.reused_layers, first.reused_size), (0, 0));
        let before = snapshot(&world.target());
        let second = world.convert_from(&source, &keeping(&world)).unwrap();
        assert!(second.reused_layers >= 1 && second.reused_size > 0);
        assert_eq!(second.digest, first.digest);
        assert!(snapshot(&world.target()) == before);
        assert!(!snapshot(&world.path("journal")).is_empty());
    }
}

#[test]
fn other_options_and_other_places_share_nothing() {
    let world = World::new();
    world.convert_from(&busybox(), &keeping(&world)).unwrap();
    let reused = |options: &ConvertOptions| {
        let report = world.convert_from(&busybox(), options).unwrap();
        report.reused_layers
    };
    let chunks = ConvertOptions {
        chunk_size: 0x2000,
        ..keeping(&world)
    };
    assert_eq!(reused(&chunks), 0);
    let image = ConvertOptions {
        dedup: DedupScope::Image,
        ..keeping(&world)
    };
    assert_eq!(reused(&image), 0, "a blob may depend on the layers below");
    assert_eq!(reused(&options()), 0, "no journal was asked for");
    assert_eq!(reused(&keeping(&world)), 3);
    std::fs::remove_dir_all(world.target()).unwrap();
    assert_eq!(reused(&keeping(&world)), 0, "the blobs are gone");
}

#[test]
fn a_damaged_blob_is_converted_again() {
    let world = World::new();
    let first = world.convert_from(&busybox(), &keeping(&world)).unwrap();
    let good = snapshot(&world.target());
    for layer in &world.manifest().layers {
        let blob = world.target().join("blobs/sha256").join(layer.digest.hex());
        let mut bytes = std::fs::read(&blob).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&blob, bytes).unwrap();
    }
    let second = world.convert_from(&busybox(), &keeping(&world)).unwrap();
    assert_eq!(second.reused_layers, 0);
    assert_eq!(second.digest, first.digest);
    assert!(snapshot(&world.target()) == good);
}

#[test]
fn a_record_that_does_not_fit_its_blob_is_not_used() {
    let world = World::new();
    let first = world.convert_from(&busybox(), &keeping(&world)).unwrap();
    let records: Vec<_> = snapshot(&world.path("journal")).into_iter().collect();
    let (path, record) = &records[0];
    let text = String::from_utf8(record.clone()).unwrap();
    let at = text.find("\"bootstrap\":\"sha256:").unwrap() + 20;
    let other = if &text[at..at + 1] == "0" { "1" } else { "0" };
    std::fs::write(path, [&text[..at], other, &text[at + 1..]].concat()).unwrap();
    let second = world.convert_from(&busybox(), &keeping(&world)).unwrap();
    assert_eq!(second.reused_layers, 2);
    assert_eq!(second.digest, first.digest);
}
