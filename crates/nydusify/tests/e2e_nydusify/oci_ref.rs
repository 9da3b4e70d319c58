//! `convert --oci-ref`: images that refer to the layers of their source.

use serde_json::Value;
use testkit::estargz::estargz;
use testkit::layout::{Flavour, Layer, Layout, Packing};
use testkit::tar::{Entry, Tar};
use testkit::{prose, shared_or_skip};

use crate::support::*;

const REF: &str = "containerd.io/snapshot/nydus-ref";

/// A layout with an image whose layers are stored in every way: a layer each, with whiteouts in between.
fn every_way(place: &Place) -> String {
    let mut lowest = Tar::new();
    lowest
        .add(Entry::directory("data/"))
        .add(Entry::file("data/prose", prose(1, 3_000_000)))
        .add(Entry::file("data/gone", prose(2, 70_000)))
        .add(Entry::file("top", "hidden by an upper layer"));
    let mut middle = Tar::new();
    middle
        .add(Entry::file("data/.wh.gone", b""))
        .add(Entry::file("data/members", prose(3, 500_000)))
        .add(Entry::hard("data/same", "data/members"));
    let mut plain = Tar::new();
    plain.add(Entry::file("plain", prose(4, 90_000)));
    let mut zstd = Tar::new();
    zstd.add(Entry::file("zstd", prose(5, 90_000)));
    let star = estargz(&[Entry::file("top", prose(6, 120_000))], 50_000);
    let mut layers: Vec<Layer> = [
        (lowest, Packing::Gzip),
        (middle, Packing::GzipMembers),
        (plain, Packing::None),
        (zstd, Packing::Zstd),
        (Tar::new(), Packing::Gzip),
    ]
    .iter()
    .map(|(tar, packing)| Layer::new(&tar.finish(), *packing))
    .collect();
    let mut tar = Vec::new();
    let mut inflate = flate2::read::MultiGzDecoder::new(&star.blob[..]);
    std::io::copy(&mut inflate, &mut tar).unwrap();
    layers.push(Layer {
        bytes: star.blob,
        ..Layer::new(&tar, Packing::Gzip)
    });
    let source = place.path("source");
    let mut layout = Layout::create(&source);
    let image = layout.manifest(&layers, Flavour::Docker);
    layout.tag(&image, "all");
    place.oci("source", "all")
}

#[test]
fn layers_stay_and_are_described_as_deployed_runtimes_want_it() {
    let place = Place::new();
    let source = every_way(&place);
    convert(
        &source,
        &place.oci("ref", "image"),
        &["--oci-ref", "--check"],
    )
    .ok();
    check(&source, &place.oci("ref", "image")).ok();
    let original = manifest(&place.path("source"), "all");
    let made = manifest(&place.path("ref"), "image");
    assert!(made["mediaType"].as_str().unwrap().contains("oci.image"));
    let (from, to) = (&original["layers"], made["layers"].as_array().unwrap());
    assert_eq!(to.len(), 7);
    for (at, layer) in to[..6].iter().enumerate() {
        let annotations = &layer["annotations"];
        assert_eq!(annotations["containerd.io/snapshot/nydus-blob"], "true");
        let digest = &from[at]["digest"];
        if at == 3 {
            assert_eq!(annotations[REF], Value::Null, "zstd is converted");
            continue;
        }
        assert_eq!(&annotations[REF], digest);
        let name = digest.as_str().unwrap().replace(':', "/");
        let [source, target] = ["source", "ref"]
            .map(|layout| std::fs::read(place.path(layout).join("blobs").join(&name)).unwrap());
        assert!(source == target);
        assert!(layer["size"].as_u64().unwrap() < 100_000, "{layer}");
    }

    // The same bytes again: from the journal, without it, and in an archive.
    let digest = digest(&place.path("ref"), "image");
    let again = |name: &str, more: &[&str]| {
        let options = [&["--oci-ref"], more].concat();
        convert(&source, &place.oci(name, "image"), &options).ok();
        super::support::digest(&place.path(name), "image")
    };
    assert_eq!(again("ref", &[]), digest);
    assert_eq!(again("anew", &["--no-journal", "--threads", "1"]), digest);
    let archive = format!("oci-archive:{}", place.path("ref.tar").display());
    convert(&source, &archive, &["--oci-ref", "--check"]).ok();
    check(&source, &archive).ok();
    // It is another kind of image than the converted one.
    convert(&source, &place.oci("ref", "plain"), &["--check"]).ok();
    let plain = manifest(&place.path("ref"), "plain");
    assert_eq!(plain["layers"][0]["annotations"][REF], Value::Null);
}

#[test]
fn a_changed_original_is_found() {
    let place = Place::new();
    let source = every_way(&place);
    convert(&source, &place.oci("ref", "image"), &["--oci-ref"]).ok();
    let made = manifest(&place.path("ref"), "image");
    let original = made["layers"][0]["annotations"][REF].as_str().unwrap();
    let path = place.path("ref/blobs").join(original.replace(':', "/"));
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let ran = check(&source, &place.oci("ref", "image")).exits(1);
    assert!(
        ran.stdout.contains(&original["sha256:".len()..][..12]),
        "{ran}"
    );
}

#[test]
fn what_makes_no_sense_with_it_is_refused() {
    let place = Place::new();
    let source = every_way(&place);
    for more in [
        &["--batch-size", "0x10000"][..],
        &["--dedup", "image"],
        &["--chunk-dict", "bootstrap:local:nowhere"],
        &["--backend-type", "localfs", "--backend-config", "{}"],
    ] {
        let options = [&["--oci-ref"], more].concat();
        let ran = convert(&source, &place.oci("ref", "image"), &options).exits(2);
        assert!(ran.stderr.contains(more[0]), "{ran}");
    }
}

#[test]
fn what_it_overrides_is_said() {
    let place = Place::new();
    let source = every_way(&place);
    let plain = convert(&source, &place.oci("ref", "plain"), &["--oci-ref"]).ok();
    assert!(!plain.stderr.contains("WARN"), "{plain}");
    let forced = digest(&place.path("ref"), "plain");
    for (more, says) in [
        (&["--fs-version", "5"][..], "forces version 6"),
        (&["--fs-align-chunk"], "forces version 6"),
        (&["--docker-v2-format"], "forces OCI's media types"),
    ] {
        let options = [&["--oci-ref"], more].concat();
        let ran = convert(&source, &place.oci("ref", "image"), &options).ok();
        let line = ran.stderr.lines().find(|line| line.contains("WARN"));
        let line = line.unwrap_or_default();
        assert!(line.contains(more[0]) && line.contains(says), "{ran}");
        // It is the same image for all that.
        assert_eq!(digest(&place.path("ref"), "image"), forced);
    }
    // The zstd layer alone is stored in another way then.
    let options = ["--oci-ref", "--compressor", "none", "--check"];
    let ran = convert(&source, &place.oci("ref", "none"), &options).ok();
    assert!(ran.stderr.contains("cannot be read in pieces"), "{ran}");
    let [before, after] = ["plain", "none"].map(|tag| manifest(&place.path("ref"), tag));
    for at in 0..6 {
        let same = before["layers"][at]["digest"] == after["layers"][at]["digest"];
        assert_eq!(same, at != 3, "{at}");
    }
}

#[test]
fn the_reference_images_by_reference_equal_their_sources() {
    let name = "the_reference_images_by_reference_equal_their_sources";
    let Some(shared) = shared_or_skip(name) else {
        return;
    };
    let place = Place::new();
    for (layout, tag) in [("torture/image", "torture"), ("images", "base")] {
        let source = format!("oci:{}:{tag}", shared.join(layout).display());
        convert(&source, &place.oci("ref", tag), &["--oci-ref", "--check"]).ok();
        check(&source, &place.oci("ref", tag)).ok();
    }
}
