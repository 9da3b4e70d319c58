//! Images that must not convert: an error that names the object, no tag, nothing left behind.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use convert::{ConvertOptions, DedupScope, Error};
use image::Location;
use progress::{Cancel, Progress};
use serde_json::{Value, json};
use testkit::layout::{Flavour, Layer, Layout, Packing};
use testkit::noise;

use crate::world::{World, chain, layer, oci, options, snapshot, tar};

/// Makes an image of two layers, changed on the way, and expects its conversion to fail with all of `words`.
fn refuse(
    words: &[&str],
    change: impl Fn(&mut [Layer], &mut Value, &mut Value),
    spoil: impl Fn(&World, &Value),
) {
    let world = World::new();
    let root = world.source();
    let mut source = Layout::create(&root);
    let mut layers = [
        layer("a", &noise(1, 300_000)),
        layer("b", &noise(2, 300_000)),
    ];
    change(&mut layers, &mut json!({}), &mut json!({}));
    let manifest = source.manifest_with(&layers, Flavour::Oci, |manifest, config| {
        change(&mut layers.clone(), manifest, config);
    });
    source.tag(&manifest, "latest");
    spoil(&world, &manifest);
    let other = World::new();
    testkit::layout::write(&other.source(), &[tar("other", b"stays")], Packing::Gzip);
    let before = snapshot(&other.source());
    let archive = other.path("out.tar");
    for dedup in [DedupScope::Layer, DedupScope::Image] {
        let options = ConvertOptions {
            dedup,
            check: false,
            ..options()
        };
        // To a layout that is not there yet, into one that is, and to an archive.
        let text = chain(&world.convert(&options).unwrap_err());
        for word in words {
            assert!(text.contains(word), "{word}: {text}");
        }
        assert!(
            !world.target().exists(),
            "{:?}",
            snapshot(&world.target()).keys()
        );
        for target in [
            oci(&other.source(), Some("t")),
            Location::OciArchive {
                file: archive.clone(),
                tag: None,
            },
        ] {
            let source = oci(&world.source(), None);
            convert::convert(
                &source,
                &target,
                &options,
                &progress::Silent,
                &Cancel::default(),
            )
            .unwrap_err();
            assert!(snapshot(&other.source()) == before);
            assert!(!archive.exists());
            assert_eq!(
                std::fs::read_dir(archive.parent().unwrap())
                    .unwrap()
                    .count(),
                1
            );
        }
    }
}

fn unchanged(_: &mut [Layer], _: &mut Value, _: &mut Value) {}

fn blob(world: &World, digest: &Value) -> PathBuf {
    let digest = digest.as_str().unwrap().strip_prefix("sha256:").unwrap();
    world.source().join("blobs/sha256").join(digest)
}

/// The stored file of the last layer.
fn last_layer(world: &World, manifest: &Value) -> (PathBuf, String) {
    let bytes = std::fs::read(blob(world, &manifest["digest"])).unwrap();
    let manifest: Value = serde_json::from_slice(&bytes).unwrap();
    let digest = &manifest["layers"][1]["digest"];
    (blob(world, digest), digest.as_str().unwrap().to_owned())
}

fn digest(layer: &Layer) -> String {
    format!("sha256:{}", testkit::sha256(&layer.bytes))
}

#[test]
fn a_corrupt_layer() {
    for position in [0, 1, 4, 12, 150_000, 300_000] {
        refuse(
            &[
                "cannot convert layer sha256:",
                "is corrupt: its content has digest",
            ],
            unchanged,
            |world, manifest| {
                let (path, _) = last_layer(world, manifest);
                let mut bytes = std::fs::read(&path).unwrap();
                let position = position.min(bytes.len() - 1);
                bytes[position] ^= 1;
                std::fs::write(path, bytes).unwrap();
            },
        );
    }
}

#[test]
fn a_truncated_layer() {
    for keep in [0, 10, 1000] {
        refuse(
            &["bytes instead of", "truncated"],
            unchanged,
            |world, manifest| {
                let (path, _) = last_layer(world, manifest);
                let bytes = std::fs::read(&path).unwrap();
                std::fs::write(path, &bytes[..keep]).unwrap();
            },
        );
    }
}

#[test]
fn a_layer_truncated_before_it_was_digested() {
    let cut =
        |layers: &mut [Layer], _: &mut Value, _: &mut Value| layers[1].bytes.truncate(100_000);
    refuse(&["cannot convert layer sha256:", "gzip"], cut, |_, _| {});
}

#[test]
fn garbage_behind_a_layer() {
    let add = |layers: &mut [Layer], _: &mut Value, _: &mut Value| {
        layers[1].bytes.extend_from_slice(b"garbage")
    };
    refuse(&["cannot convert layer sha256:", "gzip"], add, |_, _| {});
}

#[test]
fn a_missing_layer() {
    refuse(
        &["cannot convert layer sha256:", "is missing from"],
        unchanged,
        |world, manifest| {
            std::fs::remove_file(last_layer(world, manifest).0).unwrap();
        },
    );
}

#[test]
fn a_wrong_diff_id() {
    let wrong = layer("b", b"something else").diff_id;
    let word = format!("the configuration says sha256:{wrong}");
    let change = |_: &mut [Layer], _: &mut Value, config: &mut Value| {
        if let Some(id) = config.pointer_mut("/rootfs/diff_ids/1") {
            *id = json!(format!("sha256:{wrong}"));
        }
    };
    refuse(&["cannot convert layer sha256:", &word], change, |_, _| {});
}

#[test]
fn more_layers_than_diff_ids() {
    let change = |_: &mut [Layer], _: &mut Value, config: &mut Value| {
        if let Some(ids) = config
            .pointer_mut("/rootfs/diff_ids")
            .and_then(Value::as_array_mut)
        {
            ids.pop();
        }
    };
    refuse(
        &["has 2 layers, its configuration 1 diff ids"],
        change,
        |_, _| {},
    );
}

#[test]
fn media_types_that_are_no_layers() {
    for media_type in [
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
        "application/vnd.oci.image.layer.nydus.blob.v1",
        "application/octet-stream",
    ] {
        let change = |layers: &mut [Layer], _: &mut Value, _: &mut Value| {
            media_type.clone_into(&mut layers[1].media_type)
        };
        refuse(
            &["unsupported media type", media_type, "layer sha256:"],
            change,
            |_, _| {},
        );
    }
}

#[test]
fn digests_of_other_algorithms() {
    let change = |_: &mut [Layer], manifest: &mut Value, _: &mut Value| {
        if let Some(layer) = manifest.pointer_mut("/layers/1") {
            layer["digest"] = json!(format!("sha512:{}", "0".repeat(128)));
        }
    };
    refuse(&["malformed manifest sha256:", "sha512"], change, |_, _| {});
}

#[test]
fn a_corrupt_manifest_or_configuration() {
    refuse(&["is corrupt"], unchanged, |world, manifest| {
        let path = blob(world, &manifest["digest"]);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(path, text.replace("layers", "layerz")).unwrap();
    });
    refuse(&["is corrupt"], unchanged, |world, manifest| {
        let bytes = std::fs::read(blob(world, &manifest["digest"])).unwrap();
        let parsed: Value = serde_json::from_slice(&bytes).unwrap();
        let path = blob(world, &parsed["config"]["digest"]);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(path, text.replace("amd64", "arm64")).unwrap();
    });
}

#[test]
fn an_unknown_manifest_type() {
    let world = World::new();
    let root = world.source();
    let mut source = Layout::create(&root);
    let odd = source.blob(b"{}", "application/vnd.oci.artifact.v9+json");
    source.tag(&odd, "latest");
    let text = chain(&world.convert(&options()).unwrap_err());
    assert!(
        text.contains("application/vnd.oci.artifact.v9+json"),
        "{text}"
    );
    assert!(!world.target().exists());
}

#[test]
fn a_configuration_that_is_no_image() {
    let world = World::new();
    let root = world.source();
    let mut source = Layout::create(&root);
    let config = source.blob(b"{}", "application/vnd.cncf.helm.config.v1+json");
    let manifest = json!({
        "schemaVersion": 2, "mediaType": image::media::OCI_MANIFEST, "config": config, "layers": [],
    });
    let manifest = source.blob(manifest.to_string().as_bytes(), image::media::OCI_MANIFEST);
    source.tag(&manifest, "chart");
    let text = chain(&world.convert(&options()).unwrap_err());
    assert!(text.contains("helm.config"), "{text}");
    assert!(!world.target().exists());
}

/// Cancels once so many bytes have passed.
struct CancelAfter {
    bytes: AtomicU64,
    cancel: Cancel,
}

impl Progress for CancelAfter {
    fn started(&self, _: &str, _: Option<u64>) {}
    fn advanced(&self, _: &str, bytes: u64) {
        if self.bytes.fetch_sub(bytes, Ordering::Relaxed) < 2 * bytes {
            self.cancel.cancel();
        }
    }
    fn finished(&self, _: &str, _: &str) {}
}

#[test]
fn cancelling_leaves_nothing() {
    let world = World::new();
    let tars: Vec<Vec<u8>> = (0..4)
        .map(|seed| tar("a", &noise(seed, 3_000_000)))
        .collect();
    testkit::layout::write(&world.source(), &tars, Packing::Gzip);
    let source = oci(&world.source(), None);
    let archive = Location::OciArchive {
        file: world.path("out.tar"),
        tag: None,
    };
    for target in [oci(&world.target(), Some("t")), archive] {
        for bytes in [1, 1_000_000, 10_000_000, 20_000_000] {
            let cancel = Cancel::default();
            let progress = CancelAfter {
                bytes: AtomicU64::new(bytes),
                cancel: cancel.clone(),
            };
            let result = convert::convert(&source, &target, &options(), &progress, &cancel);
            assert!(
                matches!(result, Err(Error::Cancelled)),
                "{bytes}: {result:?}"
            );
            assert_eq!(
                std::fs::read_dir(world.path("")).unwrap().count(),
                1,
                "only the source is there"
            );
        }
    }
}

#[test]
fn targets_that_cannot_be_written() {
    let world = World::new();
    testkit::layout::write(&world.source(), &[tar("a", b"x")], Packing::Gzip);
    let source = oci(&world.source(), None);
    std::fs::write(world.path("file"), b"x").unwrap();
    std::fs::create_dir(world.path("full")).unwrap();
    std::fs::write(world.path("full/precious"), b"x").unwrap();
    for (target, word) in [
        (oci(&world.path("file"), None), "file"),
        (oci(&world.path("file/below"), None), "file"),
        (oci(&world.path("full"), None), "no OCI image layout"),
        (
            Location::OciArchive {
                file: world.path("full"),
                tag: None,
            },
            "directory",
        ),
        (
            Location::OciArchive {
                file: world.path("none/out.tar"),
                tag: None,
            },
            "none/out.tar",
        ),
        (
            Location::DockerArchive {
                file: world.path("d.tar"),
                tag: None,
            },
            "only be read",
        ),
        (
            Location::Registry("example.com/x:y".to_owned()),
            "not supported yet",
        ),
    ] {
        let text = chain(
            &convert::convert(
                &source,
                &target,
                &options(),
                &progress::Silent,
                &Cancel::default(),
            )
            .unwrap_err(),
        );
        assert!(text.contains(word), "{word}: {text}");
    }
    assert_eq!(snapshot(&world.path("full")).len(), 1);
    assert!(!world.path("none").exists());
}

#[test]
fn a_layer_digest_is_in_every_message_about_it() {
    let bad = layer("x", b"y");
    let digest = digest(&bad);
    let world = World::new();
    let root = world.source();
    let mut source = Layout::create(&root);
    let manifest = source.manifest_with(&[bad], Flavour::Oci, |_, config| {
        config["rootfs"]["diff_ids"][0] = json!(format!("sha256:{}", "1".repeat(64)));
    });
    source.tag(&manifest, "t");
    let text = chain(&world.convert(&options()).unwrap_err());
    assert!(text.contains(&digest), "{text}");
}
