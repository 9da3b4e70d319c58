//! Images in and out, in other shapes, and what is missing of them.

use serde_json::Value;
use testkit::fixture;
use testkit::registry::{Options, Registry};

use super::{client, digest};

fn with_busybox(options: Options) -> Registry {
    let registry = Registry::start(options);
    registry.push_layout(
        &fixture::busybox(),
        fixture::BUSYBOX_TAG,
        "tools/busybox",
        "1",
    );
    registry
}

fn parsed(registry: &Registry, reference: &str) -> Value {
    let (media_type, bytes) = registry
        .manifest("tools/busybox", reference)
        .expect("a manifest");
    let value: Value = serde_json::from_slice(&bytes).expect("a manifest");
    assert_eq!(value["mediaType"], media_type);
    value
}

#[test]
fn a_layout_goes_in_and_comes_out() {
    let directory = tempfile::tempdir().unwrap();
    let registry = with_busybox(Options {
        directory: Some(directory.path().join("registry")),
        ..Options::default()
    });
    assert!(registry.missing_from("tools/busybox", "1").is_empty());
    client(&registry)
        .get("/v2/tools/busybox/manifests/1")
        .is(200);
    let out = directory.path().join("out");
    registry.pull_layout("tools/busybox", "1", &out);
    let again = Registry::new();
    let pushed = again.push_layout(&out, "1", "x", "y");
    assert_eq!(Some(pushed), registry.digest("tools/busybox", "1"));
    assert!(again.missing_from("x", "y").is_empty());
    assert_eq!(again.blobs("x"), registry.blobs("tools/busybox"));
}

#[test]
fn what_is_missing_or_damaged_is_named() {
    let registry = with_busybox(Options::default());
    let manifest = parsed(&registry, "1");
    let layer = |index: usize| manifest["layers"][index]["digest"].as_str().unwrap();
    registry.remove_blob("tools/busybox", layer(0));
    registry.overwrite_blob(layer(1), b"other bytes");
    let wrong = registry.missing_from("tools/busybox", "1");
    assert_eq!(wrong.len(), 2, "{wrong:?}");
    let about = |index: usize| {
        wrong
            .iter()
            .find(|text| text.starts_with(layer(index)))
            .unwrap()
    };
    assert!(about(0).ends_with("no such blob"));
    assert!(about(1).ends_with(&digest(b"other bytes")));
    assert_eq!(registry.missing_from("tools/busybox", "none").len(), 1);
}

#[test]
fn an_image_gets_dockers_media_types() {
    let registry = with_busybox(Options::default());
    let digest = registry.as_docker("tools/busybox", "1", "docker");
    assert_eq!(registry.digest("tools/busybox", "docker"), Some(digest));
    assert!(registry.missing_from("tools/busybox", "docker").is_empty());
    let (oci, docker) = (parsed(&registry, "1"), parsed(&registry, "docker"));
    assert_eq!(
        docker["mediaType"],
        "application/vnd.docker.distribution.manifest.v2+json"
    );
    assert_eq!(
        docker["config"]["mediaType"],
        "application/vnd.docker.container.image.v1+json"
    );
    assert_eq!(
        docker["layers"][2]["mediaType"],
        "application/vnd.docker.image.rootfs.diff.tar.gzip"
    );
    assert_eq!(docker["layers"][2]["digest"], oci["layers"][2]["digest"]);
}

#[test]
fn an_index_has_platforms_and_attestations() {
    let registry = with_busybox(Options::default());
    registry.as_docker("tools/busybox", "1", "docker");
    let images = [("1", "linux/amd64"), ("docker", "linux/arm/v7")];
    registry.make_index("tools/busybox", &images, true, "all");
    assert!(registry.missing_from("tools/busybox", "all").is_empty());
    let entries = parsed(&registry, "all")["manifests"].clone();
    assert_eq!(entries.as_array().unwrap().len(), 4);
    assert_eq!(entries[1]["platform"]["variant"], "v7");
    let attestation = &entries[2];
    assert_eq!(attestation["platform"]["os"], "unknown");
    assert_eq!(
        attestation["annotations"]["vnd.docker.reference.digest"],
        entries[0]["digest"]
    );
    registry.as_docker("tools/busybox", "all", "list");
    assert!(registry.missing_from("tools/busybox", "list").is_empty());
    let list = parsed(&registry, "list");
    assert!(
        list["mediaType"]
            .as_str()
            .unwrap()
            .contains("manifest.list")
    );
    assert_ne!(list["manifests"][0]["digest"], entries[0]["digest"]);
    let directory = tempfile::tempdir().unwrap();
    registry.pull_layout("tools/busybox", "list", directory.path());
    assert!(directory.path().join("index.json").is_file());
}
