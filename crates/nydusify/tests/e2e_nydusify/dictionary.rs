//! `convert --chunk-dict`.

use serde_json::Value;
use testkit::layout::{self, Packing};
use testkit::noise;
use testkit::tar::{Entry, Tar};

use crate::support::*;

/// A source of one layer with a file of this content.
fn source(place: &Place, name: &str, parts: &[u64]) -> String {
    let mut tar = Tar::new();
    for part in parts {
        tar.add(Entry::file(format!("{part}"), noise(*part, 50_000)));
    }
    layout::write(&place.path(name), &[tar.finish()], Packing::Gzip);
    format!("oci:{}", place.path(name).display())
}

#[test]
fn the_second_image_is_of_chunks_of_the_first() {
    let place = Place::new();
    let first = source(&place, "one", &[1, 2, 3, 4, 5]);
    let second = source(&place, "two", &[1, 2, 3, 4, 5, 6]);
    convert(&first, &place.oci("first", "t"), &[]).ok();
    let dictionary = format!("bootstrap:registry:{}", place.oci("first", "t"));
    let (target, json) = (place.oci("nydus", "t"), place.path("report.json"));
    let more = [
        "--chunk-dict",
        &dictionary,
        "--check",
        "--output-json",
        json.to_str().unwrap(),
    ];
    let ran = convert(&second, &target, &more).ok();
    assert!(
        ran.stderr.contains("250000 against the dictionary"),
        "{ran}"
    );
    let report: Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    let found = &report["Deduplication"];
    assert_eq!(found["Dictionary"]["Bytes"], 250_000);
    assert_eq!(
        (&found["DictionaryBlobs"], &found["ExtraRequests"]),
        (&1.into(), &1.into())
    );
    check(&second, &target).ok();
    // As progress in JSON, too.
    let ran = convert(
        &second,
        &place.oci("other", "t"),
        &["--chunk-dict", &dictionary, "--progress", "json"],
    );
    let ran = ran.ok();
    assert!(
        ran.stderr.contains("250000 against the dictionary"),
        "{ran}"
    );
}

#[test]
fn what_is_no_dictionary_is_refused_before_any_work() {
    let place = Place::new();
    let first = source(&place, "one", &[1]);
    let target = place.oci("nydus", "t");
    for text in ["x", "bootstrap:x", "bootstrap:local:", "bootstrap:s3:x"] {
        let ran = convert(&first, &target, &["--chunk-dict", text]).exits(2);
        assert!(ran.stderr.contains("--chunk-dict"), "{ran}");
    }
    let plain = format!("bootstrap:registry:{first}");
    let ran = convert(&first, &target, &["--chunk-dict", &plain]).exits(1);
    assert!(ran.stderr.contains("holds no Nydus image"), "{ran}");
    let missing = ["--chunk-dict", "bootstrap:local:/nonexistent"];
    let ran = convert(&first, &target, &missing).exits(1);
    assert!(ran.stderr.contains("/nonexistent"), "{ran}");
    convert(&first, &place.oci("first", "t"), &[]).ok();
    let dictionary = format!("bootstrap:registry:{}", place.oci("first", "t"));
    let other = ["--chunk-dict", &dictionary, "--fs-chunk-size", "0x10000"];
    let ran = convert(&first, &target, &other).exits(1);
    assert!(ran.stderr.contains("chunk size"), "{ran}");
    assert!(!place.path("nydus").exists());
}
