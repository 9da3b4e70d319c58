//! Conversions to RAFS v5.

use serde_json::Value;
use testkit::fixture::busybox;
use testkit::layout::{Flavour, Layer, Layout, Packing};
use testkit::run::run;
use testkit::tar::{Entry, Tar};

use crate::support::*;

/// The names in the bootstrap layer of an image, and the bootstrap.
fn bootstrap_layer(layout: &std::path::Path, manifest: &Value) -> (Vec<String>, Vec<u8>) {
    let digest = manifest["layers"].as_array().unwrap().last().unwrap()["digest"]
        .as_str()
        .unwrap();
    let path = layout.join("blobs").join(digest.replace(':', "/"));
    let gzip = std::fs::File::open(path).unwrap();
    let mut names = Vec::new();
    let mut bootstrap = Vec::new();
    let mut tar = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(gzip), &mut tar).unwrap();
    let mut at = 0;
    while tar[at] != 0 {
        let text = |from: usize, len: usize| {
            let field = tar[at + from..at + from + len].split(|b| *b == 0).next();
            String::from_utf8(field.unwrap().to_vec()).unwrap()
        };
        let size = usize::from_str_radix(&text(124, 12), 8).unwrap();
        names.push(text(0, 100));
        if names.last().unwrap() == "image/image.boot" {
            bootstrap = tar[at + 512..at + 512 + size].to_vec();
        }
        at += 512 + size.next_multiple_of(512);
    }
    (names, bootstrap)
}

#[test]
fn the_result_is_the_image_of_the_contract_in_v5() {
    let place = Place::new();
    let target = place.path("nydus");
    let reference = place.oci("nydus", "v5");
    convert(&fixture(), &reference, &["--fs-version", "5", "--check"]).ok();
    let manifest = manifest(&target, "v5");
    let version = "containerd.io/snapshot/nydus-fs-version";
    assert_eq!(manifest["annotations"][version], "5");
    let layers = manifest["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 4);
    assert_eq!(layers[3]["annotations"][version], "5");
    // Chunk tables of blobs are of v6 alone.
    let (names, bootstrap) = bootstrap_layer(&target, &manifest);
    assert_eq!(names, ["image/", "image/image.boot"]);
    assert!(bootstrap.starts_with(b"SFAR"));
    check(&fixture(), &reference).ok().says(&["verified image"]);
}

#[test]
fn every_option_gives_an_equal_image_in_v5() {
    let place = Place::new();
    for options in [
        &["--compressor", "lz4_block"][..],
        &["--compressor", "none", "--fs-align-chunk"],
        &["--fs-chunk-size", "0x1000", "--prefetch-dir", "/etc"],
        &["--dedup", "image"],
    ] {
        let target = place.oci("nydus", "v5");
        let options: Vec<&str> = ["--fs-version", "5", "--check"]
            .iter()
            .chain(options)
            .copied()
            .collect();
        convert(&fixture(), &target, &options).ok();
        std::fs::remove_dir_all(place.path("nydus")).unwrap();
    }
}

#[test]
fn layers_of_an_earlier_run_are_used_again_but_not_those_of_another_version() {
    let place = Place::new();
    let journal = place.path("journal").display().to_string();
    let reused = |tag: &str, version: &str| -> bool {
        let target = place.oci("nydus", tag);
        let options = [
            "--fs-version",
            version,
            "--journal-dir",
            &journal,
            "--check",
        ];
        let ran = convert(&fixture(), &target, &options).ok();
        ran.stderr.contains("had been converted by an earlier run")
    };
    assert!(!reused("v6", "6"));
    assert!(!reused("v5", "5"));
    assert!(reused("again", "5"));
    let layout = place.path("nydus");
    assert_eq!(digest(&layout, "again"), digest(&layout, "v5"));
}

#[test]
fn an_image_without_data_is_one_in_v5_too() {
    let place = Place::new();
    let mut layout = Layout::create(Box::leak(place.path("source").into_boxed_path()));
    let mut tar = Tar::new();
    tar.add(Entry::directory("empty"));
    let image = layout.manifest(&[Layer::new(&tar.finish(), Packing::Gzip)], Flavour::Oci);
    layout.tag(&image, "latest");
    let source = place.oci("source", "latest");
    let target = place.oci("nydus", "v5");
    convert(&source, &target, &["--fs-version", "5", "--check"]).ok();
    check(&source, &target).ok();
}

/// The check of a v5 image looks at its digests: one byte of a name's digest is enough.
#[test]
fn a_changed_digest_in_a_v5_bootstrap_is_found() {
    let place = Place::new();
    let target = place.path("nydus");
    convert(
        &fixture(),
        &place.oci("nydus", "v5"),
        &["--fs-version", "5"],
    )
    .ok();
    let (_, mut bootstrap) = bootstrap_layer(&target, &manifest(&target, "v5"));
    let table = u64::from_le_bytes(bootstrap[32..40].try_into().unwrap()) as usize;
    let root = u32::from_le_bytes(bootstrap[table..table + 4].try_into().unwrap()) as usize * 8;
    bootstrap[root] ^= 1;
    let path = place.path("changed.boot");
    std::fs::write(&path, bootstrap).unwrap();
    let bare = ["check", "--bootstrap", path.to_str().unwrap()];
    let ran = run(NYDUSIFY, bare).exits(1);
    let said = format!("{}{}", ran.stdout, ran.stderr);
    assert!(
        said.contains("the digest is not that of its children's digests"),
        "{said}"
    );
    assert!(busybox().exists());
}
