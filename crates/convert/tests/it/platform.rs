//! Indexes and the choice among their images.

use convert::ConvertOptions;
use image::{Node, PlatformChoice, Source, media, nydus};
use serde_json::{Value, json};
use testkit::layout::{Flavour, Layer, Layout, Packing};

use crate::world::{World, chain, layer, oci, options, tar};

fn only(platform: &str) -> PlatformChoice {
    PlatformChoice::Only(vec![platform.parse().unwrap()])
}

fn amd64() -> Value {
    json!({"os": "linux", "architecture": "amd64"})
}

fn arm64() -> Value {
    json!({"os": "linux", "architecture": "arm64", "variant": "v8"})
}

/// An index over images for amd64 and arm64, and an attestation about the first.
fn multi_platform(world: &World) -> Value {
    let root = world.source();
    let mut source = Layout::create(&root);
    let first = source.manifest(&[layer("a", b"for amd64")], Flavour::Oci);
    let second = source.manifest_with(&[layer("a", b"for arm64")], Flavour::Oci, |_, config| {
        config["architecture"] = json!("arm64");
    });
    let statement = Layer {
        media_type: "application/vnd.in-toto+json".into(),
        bytes: b"{}".into(),
        diff_id: testkit::sha256(b"{}"),
    };
    let mut about = source.manifest(&[statement], Flavour::Oci);
    about["annotations"] = json!({
        "vnd.docker.reference.type": "attestation-manifest",
        "vnd.docker.reference.digest": first["digest"],
    });
    let unknown = json!({"os": "unknown", "architecture": "unknown"});
    let index = source.index(&[
        (first, amd64()),
        (second, arm64()),
        (about.clone(), unknown),
    ]);
    source.tag(&index, "multi");
    about
}

#[test]
fn one_platform_of_an_index_is_a_manifest() {
    let world = World::new();
    multi_platform(&world);
    for (platform, architecture) in [("linux/amd64", "amd64"), ("linux/arm64", "arm64")] {
        world
            .convert(&ConvertOptions {
                platform: only(platform),
                ..options()
            })
            .unwrap();
        assert_eq!(world.open().root().media_type, media::OCI_MANIFEST);
        assert_eq!(world.config()["architecture"], architecture);
    }
}

#[test]
fn all_platforms_stay_an_index_with_its_attestations() {
    let world = World::new();
    let about = multi_platform(&world);
    let report = world
        .convert(&ConvertOptions {
            platform: PlatformChoice::All,
            ..options()
        })
        .unwrap();
    assert_eq!((report.converted, report.copied), (2, 1));
    let target = world.open();
    let Node::Index(index) = target.node(target.root()).unwrap() else {
        panic!("an index")
    };
    let platforms: Vec<String> = index
        .manifests
        .iter()
        .map(|m| m.platform.as_ref().unwrap().to_string())
        .collect();
    assert_eq!(
        platforms,
        ["linux/amd64", "linux/arm64/v8", "unknown/unknown"]
    );
    for entry in &index.manifests[..2] {
        let Node::Manifest(manifest) = target.node(entry).unwrap() else {
            panic!("a manifest")
        };
        assert!(nydus::is_nydus(&manifest));
    }
    let kept = serde_json::to_value(&index.manifests[2]).unwrap();
    for field in ["digest", "size", "mediaType", "annotations"] {
        assert_eq!(kept[field], about[field]);
    }
    let Node::Manifest(attestation) = target.node(&index.manifests[2]).unwrap() else {
        panic!("a manifest")
    };
    target.verify_blob(&attestation.layers[0]).unwrap();
    target.verify_blob(&attestation.config).unwrap();
}

#[test]
fn a_platform_that_is_not_there_is_refused_with_those_that_are() {
    let world = World::new();
    multi_platform(&world);
    let error = world
        .convert(&ConvertOptions {
            platform: only("linux/s390x"),
            ..options()
        })
        .unwrap_err();
    let text = chain(&error);
    assert!(
        text.contains("linux/s390x") && text.contains("linux/arm64/v8"),
        "{text}"
    );
    assert!(!world.target().exists());
}

#[test]
fn a_lone_manifest_is_for_whom_it_says() {
    let world = World::new();
    let root = world.source();
    let mut source = Layout::create(&root);
    let manifest = source.manifest(&[layer("a", b"x")], Flavour::Oci);
    source.tag(&manifest, "t");
    world
        .convert(&ConvertOptions {
            platform: only("linux/amd64"),
            ..options()
        })
        .unwrap();
    let error = world
        .convert(&ConvertOptions {
            platform: only("linux/riscv64"),
            ..options()
        })
        .unwrap_err();
    assert!(chain(&error).contains("linux/amd64"), "{error}");
}

#[test]
fn platforms_that_are_not_wanted_need_not_be_there() {
    let world = World::new();
    let root = world.source();
    let mut source = Layout::create(&root);
    let first = source.manifest(&[layer("a", b"x")], Flavour::Oci);
    let missing = json!({
        "mediaType": media::OCI_MANIFEST,
        "digest": format!("sha256:{}", "7".repeat(64)),
        "size": 7,
    });
    let index = source.index(&[(missing, arm64()), (first, amd64())]);
    source.tag(&index, "sparse");
    world
        .convert(&ConvertOptions {
            platform: only("linux/amd64"),
            ..options()
        })
        .unwrap();
    let error = world
        .convert(&ConvertOptions {
            platform: PlatformChoice::All,
            ..options()
        })
        .unwrap_err();
    assert!(chain(&error).contains(&"7".repeat(64)), "{error}");
}

#[test]
fn an_entry_that_cannot_be_converted_is_named() {
    let world = World::new();
    let root = world.source();
    let mut source = Layout::create(&root);
    let good = source.manifest(&[layer("a", b"x")], Flavour::Oci);
    let foreign = Layer {
        media_type: "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip".into(),
        ..Layer::new(&tar("w", b"x"), Packing::Gzip)
    };
    let bad = source.manifest(&[foreign], Flavour::Oci);
    let index = source.index(&[
        (good, amd64()),
        (
            bad.clone(),
            json!({"os": "windows", "architecture": "amd64"}),
        ),
    ]);
    source.tag(&index, "mixed");
    let error = world
        .convert(&ConvertOptions {
            platform: PlatformChoice::All,
            ..options()
        })
        .unwrap_err();
    let text = chain(&error);
    for word in ["windows/amd64", bad["digest"].as_str().unwrap(), "foreign"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    assert!(!world.target().exists());
}

#[test]
fn an_index_in_an_index_is_flattened() {
    let world = World::new();
    let root = world.source();
    let mut source = Layout::create(&root);
    let first = source.manifest(&[layer("a", b"x")], Flavour::Oci);
    let inner = source.index(&[(first, amd64())]);
    let outer = json!({
        "schemaVersion": 2,
        "mediaType": media::OCI_INDEX,
        "manifests": [inner],
    });
    let outer = source.blob(outer.to_string().as_bytes(), media::OCI_INDEX);
    source.tag(&outer, "nested");
    world
        .convert(&ConvertOptions {
            platform: only("linux/amd64"),
            ..options()
        })
        .unwrap();
    assert!(nydus::is_nydus(&world.manifest()));
    assert!(Source::open(&oci(&world.target(), Some("t"))).is_ok());
}
