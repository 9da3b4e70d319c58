//! Conversions: every form of source and target, every option; the check agrees each time.

use serde_json::{Value, json};
use testkit::fixture::busybox;
use testkit::layout::{Flavour, Layer, Layout, Packing, docker_archive, oci_archive};
use testkit::tar::{Entry, Tar};
use testkit::{corner, noise, prose};

use crate::support::*;

const BLOB: &str = "application/vnd.oci.image.layer.nydus.blob.v1";

/// Layers with a little of everything, for tests of how images are put together.
fn small_layers(count: u64) -> Vec<Vec<u8>> {
    let layer = |seed| {
        let mut tar = Tar::new();
        tar.add(Entry::directory("etc/"))
            .add(Entry::file(format!("etc/{seed}"), prose(seed, 20_000)));
        tar.add(Entry::file("etc/last", seed.to_string()));
        tar.finish()
    };
    (0..count).map(layer).collect()
}

fn gzip_layers(count: u64) -> Vec<Layer> {
    small_layers(count)
        .iter()
        .map(|tar| Layer::new(tar, Packing::Gzip))
        .collect()
}

#[test]
fn the_result_is_the_image_of_the_contract() {
    let place = Place::new();
    let target = place.path("nydus");
    convert(&fixture(), &place.oci("nydus", "v6"), &[]).ok();
    let source = manifest(&busybox(), "latest");
    let source_config = document(&busybox(), source["config"]["digest"].as_str().unwrap());
    let manifest = manifest(&target, "v6");
    let config = document(&target, manifest["config"]["digest"].as_str().unwrap());

    assert_eq!(manifest["mediaType"], source["mediaType"]);
    assert_eq!(
        manifest["config"]["mediaType"],
        source["config"]["mediaType"]
    );
    let layers = manifest["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 4);
    let (bootstrap, blobs) = layers.split_last().unwrap();
    for blob in blobs {
        assert_eq!(blob["mediaType"], BLOB);
        assert_eq!(
            blob["annotations"]["containerd.io/snapshot/nydus-blob"],
            "true"
        );
        assert!(
            blob["annotations"]
                .get("containerd.io/uncompressed")
                .is_none()
        );
    }
    assert_eq!(
        bootstrap["mediaType"],
        "application/vnd.oci.image.layer.v1.tar+gzip"
    );
    assert_eq!(
        bootstrap["annotations"]["containerd.io/snapshot/nydus-bootstrap"],
        "true"
    );
    assert_eq!(
        bootstrap["annotations"]["containerd.io/snapshot/nydus-fs-version"],
        "6"
    );

    let path = target
        .join("blobs")
        .join(bootstrap["digest"].as_str().unwrap().replace(':', "/"));
    let mut tar = Vec::new();
    let gzip = std::fs::read(path).unwrap();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(gzip.as_slice()), &mut tar)
        .unwrap();
    let names: Vec<String> = tar_names(&tar);
    let meta = |blob: &Value| {
        format!(
            "image/{}.blob.meta",
            &blob["digest"].as_str().unwrap()["sha256:".len()..]
        )
    };
    let mut want = vec!["image".to_owned(), "image/image.boot".to_owned()];
    want.extend(blobs.iter().map(meta));
    assert_eq!(names, want);

    let mut diff_ids: Vec<Value> = blobs.iter().map(|blob| blob["digest"].clone()).collect();
    diff_ids.push(json!(format!("sha256:{}", testkit::sha256(&tar))));
    assert_eq!(config["rootfs"]["diff_ids"], json!(diff_ids));
    let (last, history) = config["history"].as_array().unwrap().split_last().unwrap();
    assert_eq!(json!(history), source_config["history"]);
    assert_eq!(
        *last,
        json!({"created_by": "Nydus Converter", "comment": "Nydus Bootstrap Layer"})
    );
    for key in ["config", "architecture", "os", "created"] {
        assert_eq!(config[key], source_config[key], "{key}");
    }
}

/// Names of the entries of a tar of plain headers, without trailing slashes.
fn tar_names(tar: &[u8]) -> Vec<String> {
    let mut at = 0;
    let mut names = Vec::new();
    while tar.get(at).is_some_and(|byte| *byte != 0) {
        let text = |range: std::ops::Range<usize>| {
            let field = &tar[at + range.start..at + range.end];
            String::from_utf8_lossy(field)
                .split('\0')
                .next()
                .unwrap_or_default()
                .to_owned()
        };
        names.push(text(0..100).trim_end_matches('/').to_owned());
        let size = usize::from_str_radix(text(124..136).trim(), 8).unwrap();
        at += 512 + size.next_multiple_of(512);
    }
    names
}

#[test]
fn check_tells_equal_from_different() {
    let place = Place::new();
    let target = place.oci("nydus", "v6");
    convert(&fixture(), &target, &[]).ok();
    check(&fixture(), &target).ok();
    testkit::run::run(NYDUSIFY, ["check", "--target", &target]).ok();

    let (other, _) = testkit::fixture::busybox_layers(b"another binary");
    testkit::layout::write(&place.path("other"), &other, Packing::Gzip);
    check(&place.oci("other", "latest"), &target)
        .exits(1)
        .says(&["bin/ash", "1982256"]);
}

#[test]
fn corner_cases_are_converted_and_checked_in_every_packing() {
    let image = corner::image();
    for packing in [
        Packing::None,
        Packing::Gzip,
        Packing::GzipMembers,
        Packing::Zstd,
    ] {
        let place = Place::new();
        testkit::layout::write(&place.path("source"), &image.layers, packing);
        let (source, target) = (place.oci("source", "latest"), place.oci("nydus", "v6"));
        convert(&source, &target, &["--check"]).ok();
    }
}

#[test]
fn output_depends_on_input_and_options_alone() {
    let image = corner::image();
    let place = Place::new();
    testkit::layout::write(&place.path("source"), &image.layers, Packing::Gzip);
    let source = place.oci("source", "latest");
    for more in [
        &[][..],
        &["--dedup", "image", "--compressor", "lz4_block"][..],
        &["--batch-size", "0x4000", "--memory", "1MiB"][..],
    ] {
        let digest = |name: &str, threads: &str| {
            let arguments: Vec<&str> = ["--threads", threads].iter().chain(more).copied().collect();
            convert(&source, &place.oci(name, "v6"), &arguments).ok();
            let digest = digest(&place.path(name), "v6");
            std::fs::remove_dir_all(place.path(name)).unwrap();
            digest
        };
        let first = digest("one", "1");
        assert_eq!(digest("another", "1"), first, "a second run differs");
        assert_eq!(digest("one", "2"), first, "two threads differ from one");
        assert_eq!(digest("one", "7"), first, "seven threads differ from one");
    }
}

#[test]
fn every_option_gives_an_equal_image() {
    let options: [&[&str]; 11] = [
        &["--compressor", "none"],
        &["--compressor", "lz4_block"],
        &["--compressor", "zstd", "--compression-level", "9"],
        &["--fs-chunk-size", "0x10000"],
        &["--chunk-size", "4096", "--compressor", "none"],
        &["--dedup", "image"],
        &["--batch-size", "0x10000"],
        &[
            "--batch-size",
            "4096",
            "--dedup",
            "image",
            "--compressor",
            "none",
        ],
        &["--prefetch-dir", "/etc"],
        &["--fs-version", "6", "--memory", "64MiB", "--threads", "1"],
        &[
            "--work-dir",
            "/nowhere",
            "--nydus-image",
            "/nowhere/nydus-image",
            "--nydusd",
            "/nowhere/nydusd",
        ],
    ];
    let place = Place::new();
    for (number, options) in options.into_iter().enumerate() {
        let target = place.oci("nydus", &format!("v{number}"));
        let arguments: Vec<&str> = options.iter().copied().chain(["--check"]).collect();
        convert(&fixture(), &target, &arguments).ok();
        check(&fixture(), &target).ok();
    }
}

#[test]
fn chunks_are_shared_between_layers_on_request() {
    let place = Place::new();
    let data = noise(1, 400_000);
    let layer = |name: &str| {
        let mut tar = Tar::new();
        tar.add(Entry::file(name, &data));
        tar.finish()
    };
    testkit::layout::write(
        &place.path("source"),
        &[layer("a"), layer("b")],
        Packing::Gzip,
    );
    let size = |dedup: &str| -> u64 {
        convert(
            &place.oci("source", "latest"),
            &place.oci("nydus", dedup),
            &["--dedup", dedup, "--check"],
        )
        .ok();
        let manifest = manifest(&place.path("nydus"), dedup);
        manifest["layers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|layer| layer["size"].as_u64().unwrap())
            .sum()
    };
    let (alone, shared) = (size("layer"), size("image"));
    assert!(
        alone > 800_000 && shared < 500_000,
        "{alone} bytes alone, {shared} shared"
    );
}

#[test]
fn small_files_are_compressed_together() {
    let place = Place::new();
    let layer = |first: u64| {
        let mut tar = Tar::new();
        for number in first..first + 400 {
            tar.add(Entry::file(
                format!("{first}/{number}"),
                prose(number % 7, 900 + number as usize),
            ));
        }
        tar.add(Entry::file("large", noise(first, 50_000)));
        tar.finish()
    };
    testkit::layout::write(
        &place.path("source"),
        &[layer(0), layer(200)],
        Packing::Gzip,
    );
    let source = place.oci("source", "latest");
    let converted = |tag: &str, more: &[&str]| -> u64 {
        let options: Vec<&str> = more.iter().copied().chain(["--check"]).collect();
        convert(&source, &place.oci("nydus", tag), &options).ok();
        manifest(&place.path("nydus"), tag)["layers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|layer| layer["size"].as_u64().unwrap())
            .sum()
    };
    let batched = ["--batch-size", "0x40000"];
    let alone = converted("alone", &["--profile", "compat"]);
    let together = converted("batched", &batched);
    assert!(
        together * 2 < alone,
        "{alone} bytes alone, {together} together"
    );
    // The second time the layers are there already.
    let first = digest(&place.path("nydus"), "batched");
    converted("batched", &batched);
    assert_eq!(digest(&place.path("nydus"), "batched"), first);
    let shared = converted("shared", &["--dedup", "image", "--batch-size", "0x40000"]);
    assert!(shared < together, "{shared} bytes shared");

    // A batched image is a dictionary, too.
    let mut tar = Tar::new();
    for number in 100..500_u64 {
        tar.add(Entry::file(
            format!("{number}"),
            prose(number % 7, 900 + number as usize),
        ));
    }
    testkit::layout::write(&place.path("other"), &[tar.finish()], Packing::Gzip);
    let dictionary = format!("bootstrap:registry:{}", place.oci("nydus", "batched"));
    let options = [
        "--chunk-dict",
        &dictionary,
        "--batch-size",
        "0x40000",
        "--check",
    ];
    convert(
        &place.oci("other", "latest"),
        &place.oci("nydus", "other"),
        &options,
    )
    .ok();
    let other = manifest(&place.path("nydus"), "other");
    let layers = other["layers"].as_array().unwrap();
    assert_eq!(
        layers.len(),
        4,
        "own blob, two of the dictionary, bootstrap: {layers:?}"
    );

    for (options, words) in [
        (
            &["--batch-size", "0x1000", "--fs-version", "5"][..],
            "--fs-version 5",
        ),
        (
            &["--batch-size", "0x10000", "--chunk-size", "0x1000"],
            "0x10000",
        ),
        (&["--batch-size", "100"], "power of two"),
    ] {
        convert(&source, &place.oci("none", "v6"), options)
            .exits(2)
            .says(&[words]);
    }
    assert!(!place.path("none").exists());
}

#[test]
fn the_profile_says_how_files_are_stored_and_what_is_given_wins() {
    let place = Place::new();
    let mut tar = Tar::new();
    for number in 0..300_usize {
        let text = prose(number as u64 % 50, 500 + 40 * number);
        tar.add(Entry::file(format!("{number}"), text));
    }
    tar.add(Entry::file("large", prose(7, 1_500_000)));
    testkit::layout::write(&place.path("source"), &[tar.finish()], Packing::Gzip);
    let source = place.oci("source", "latest");
    let converted = |options: &[&str]| {
        let tag = options.join("").replace("--", "");
        let tag = format!("v{tag}");
        convert(&source, &place.oci("nydus", &tag), options).ok();
        check(&source, &place.oci("nydus", &tag)).ok();
        digest(&place.path("nydus"), &tag)
    };
    let (compat, profile) = (["--profile", "compat"], ["--profile", "dense"]);
    let (dense, plain) = (converted(&profile), converted(&compat));
    assert!(dense != plain);
    assert_eq!(converted(&["--batch-size", "0x40000"]), dense);
    let none = [&profile[..], &["--batch-size", "0"]].concat();
    assert_eq!(converted(&none), plain);
    // What is given wins.
    let batched = ["--batch-size", "0x4000"];
    let both = [compat, profile].map(|profile| converted(&[profile, batched].concat()));
    assert_eq!(both[0], both[1]);
    assert!(both[0] != dense);
    let chunks = ["--chunk-size", "0x10000"];
    assert_eq!(
        converted(&[&chunks[..], &["--batch-size", "0x10000"]].concat()),
        converted(&[profile, chunks].concat())
    );
    // Where there are no batches, the profiles are one.
    for other in [
        ["--fs-version", "5"],
        ["--compressor", "lz4_block"],
        ["--compressor", "none"],
        ["--oci-ref", "--no-journal"],
    ] {
        let both = [compat, profile].map(|profile| converted(&[profile, other].concat()));
        assert_eq!(both[0], both[1], "{other:?}");
    }
}

#[test]
fn archives_are_sources_and_targets() {
    let place = Place::new();
    let layers = small_layers(3);
    testkit::layout::write(&place.path("source"), &layers, Packing::Gzip);
    let from_layout = place.oci("source", "latest");
    std::fs::write(place.path("oci.tar"), oci_archive(&place.path("source"))).unwrap();
    std::fs::write(
        place.path("docker.tar"),
        docker_archive(&layers, "example/name:1.0"),
    )
    .unwrap();
    let archive = |kind: &str, name: &str| format!("{kind}:{}", place.path(name).display());

    convert(&from_layout, &place.oci("a", "v6"), &["--check"]).ok();
    convert(
        &archive("oci-archive", "oci.tar"),
        &place.oci("b", "v6"),
        &["--check"],
    )
    .ok();
    assert_eq!(
        manifest(&place.path("a"), "v6")["layers"],
        manifest(&place.path("b"), "v6")["layers"]
    );

    let docker = archive("docker-archive", "docker.tar");
    convert(&docker, &place.oci("c", "v6"), &["--check"]).ok();
    convert(
        &format!("{docker}:example/name:1.0"),
        &place.oci("d", "v6"),
        &[],
    )
    .ok();
    assert_eq!(
        manifest(&place.path("c"), "v6")["layers"]
            .as_array()
            .unwrap()
            .len(),
        4
    );

    let target = archive("oci-archive", "nydus.tar");
    convert(&from_layout, &format!("{target}:v6"), &["--check"]).ok();
    check(&from_layout, &format!("{target}:v6")).ok();
    let left: Vec<_> = std::fs::read_dir(place.path("nydus.tar").parent().unwrap())
        .unwrap()
        .flatten()
        .collect();
    assert!(
        left.iter()
            .all(|entry| !entry.file_name().to_string_lossy().contains("tmp")),
        "{left:?}"
    );

    // The flags of the deployed tool mean the same.
    let (from, to) = (place.path("oci.tar"), place.path("flags.tar"));
    let arguments = [
        "--source-archive",
        from.to_str().unwrap(),
        "--target-archive",
        to.to_str().unwrap(),
    ];
    testkit::run::run(
        NYDUSIFY,
        ["convert", "--source", "latest"].iter().chain(&arguments),
    )
    .ok();
    assert!(to.is_file());
}

#[test]
fn docker_manifests_stay_docker_manifests() {
    let place = Place::new();
    let root = place.path("source");
    let layers: Vec<Layer> = small_layers(2)
        .iter()
        .map(|tar| Layer::docker(tar))
        .collect();
    let mut layout = Layout::create(&root);
    let image = layout.manifest(&layers, Flavour::Docker);
    layout.tag(&image, "latest");
    convert(
        &place.oci("source", "latest"),
        &place.oci("nydus", "v6"),
        &["--check"],
    )
    .ok();
    let manifest = manifest(&place.path("nydus"), "v6");
    assert_eq!(
        manifest["mediaType"],
        "application/vnd.docker.distribution.manifest.v2+json"
    );
    let bootstrap = manifest["layers"].as_array().unwrap().last().unwrap();
    assert_eq!(
        bootstrap["mediaType"],
        "application/vnd.docker.image.rootfs.diff.tar.gzip"
    );
}

#[test]
fn an_index_that_calls_an_image_another_platforms_is_found_out() {
    let place = Place::new();
    let root = place.path("source");
    let mut layout = Layout::create(&root);
    let image = layout.manifest(&gzip_layers(1), Flavour::Oci);
    for (tag, architecture) in [("right", "amd64"), ("wrong", "riscv64")] {
        let platform = json!({ "os": "linux", "architecture": architecture });
        let index = layout.index(&[(image.clone(), platform)]);
        layout.tag(&index, tag);
    }
    for (tag, code, text) in [
        ("right", 0, "verified image"),
        (
            "wrong",
            1,
            r#"architecture "amd64" in the configuration, "riscv64" in the index"#,
        ),
    ] {
        let image = place.oci("source", tag);
        let words = ["check", "--multi-platform", "--target", &image];
        let ran = testkit::run::run(NYDUSIFY, words);
        ran.exits(code).says(&[text]);
    }
}

#[test]
fn an_index_is_resolved_by_platform() {
    let place = Place::new();
    let root = place.path("source");
    let mut layout = Layout::create(&root);
    let amd64 = layout.manifest(&gzip_layers(2), Flavour::Oci);
    let arm64 = layout.manifest_with(&gzip_layers(3), Flavour::Oci, |_, config| {
        config["architecture"] = json!("arm64")
    });
    let attestation = layout.manifest_with(&[], Flavour::Oci, |manifest, config| {
        manifest["layers"] = json!([{ "mediaType": "application/vnd.in-toto+json", "size": 2,
            "digest": format!("sha256:{}", testkit::sha256(b"{}")) }]);
        *config = json!({ "architecture": "unknown", "os": "unknown" });
    });
    layout.blob(b"{}", "application/vnd.in-toto+json");
    let platform = |os: &str, architecture: &str| json!({ "os": os, "architecture": architecture });
    let index = layout.index(&[
        (amd64.clone(), platform("linux", "amd64")),
        (arm64.clone(), platform("linux", "arm64")),
        (attestation.clone(), platform("unknown", "unknown")),
    ]);
    layout.tag(&index, "all");
    let source = place.oci("source", "all");

    // One platform: its manifest itself is the result. The other's layers need not even be there.
    let other = arm64["digest"].as_str().unwrap().replace(':', "/");
    let kept = std::fs::read(root.join("blobs").join(&other)).unwrap();
    std::fs::remove_file(root.join("blobs").join(&other)).unwrap();
    convert(
        &source,
        &place.oci("one", "v6"),
        &["--platform", "linux/amd64", "--check"],
    )
    .ok();
    assert_eq!(
        manifest(&place.path("one"), "v6")["layers"]
            .as_array()
            .unwrap()
            .len(),
        3
    );
    convert(
        &source,
        &place.oci("none", "v6"),
        &["--platform", "linux/s390x"],
    )
    .fails_with(&["linux/s390x"]);
    assert_clean(&place.path("none"), "v6");
    std::fs::write(root.join("blobs").join(&other), kept).unwrap();

    convert(&source, &place.oci("all", "v6"), &["--all-platforms"]).ok();
    let manifests = manifest(&place.path("all"), "v6")["manifests"]
        .as_array()
        .unwrap()
        .clone();
    assert_eq!(manifests.len(), 3);
    let of = |architecture: &str| {
        manifests
            .iter()
            .find(|m| m["platform"]["architecture"] == architecture)
            .unwrap()["digest"]
            .as_str()
            .unwrap()
    };
    assert_eq!(
        document(&place.path("all"), of("amd64"))["layers"]
            .as_array()
            .unwrap()
            .len(),
        3
    );
    assert_eq!(
        document(&place.path("all"), of("arm64"))["layers"]
            .as_array()
            .unwrap()
            .len(),
        4
    );
    assert_eq!(of("unknown"), attestation["digest"]);
    assert!(
        place
            .path("all")
            .join("blobs/sha256")
            .join(testkit::sha256(b"{}"))
            .is_file()
    );
}

#[test]
fn unusual_stacks_of_layers() {
    let place = Place::new();
    let root = place.path("source");
    let mut layout = Layout::create(&root);
    let mut empty = Tar::new();
    let layer = |tar: &[u8]| Layer::new(tar, Packing::Gzip);
    let one = gzip_layers(1).remove(0);
    let cases = [
        ("no-layers", vec![]),
        (
            "same-layer-twice",
            vec![one.clone(), one.clone(), one.clone()],
        ),
        ("empty-layer", vec![one.clone(), layer(&empty.finish())]),
        (
            "only-metadata",
            vec![layer(
                &empty
                    .add(Entry::directory("d/"))
                    .add(Entry::file("d/e", b""))
                    .finish(),
            )],
        ),
        (
            "mixed",
            vec![
                one.clone(),
                Layer::new(&small_layers(2)[1], Packing::Zstd),
                Layer::new(&small_layers(3)[2], Packing::None),
            ],
        ),
    ];
    for (name, layers) in &cases {
        let image = layout.manifest(layers, Flavour::Oci);
        layout.tag(&image, name);
    }
    for (name, layers) in &cases {
        let (source, target) = (place.oci("source", name), place.oci("nydus", name));
        convert(&source, &target, &["--check"]).ok();
        let converted = manifest(&place.path("nydus"), name);
        assert_eq!(
            converted["layers"].as_array().unwrap().len(),
            layers.len() + 1,
            "{name}"
        );
        // Nydus images pass through unchanged.
        convert(&target, &place.oci("again", name), &[]).ok();
        assert_eq!(
            digest(&place.path("again"), name),
            digest(&place.path("nydus"), name),
            "{name}"
        );
        check(&source, &place.oci("again", name)).ok();
    }
}

#[test]
fn an_existing_target_keeps_its_other_tags() {
    let place = Place::new();
    let target = place.path("nydus");
    convert(&fixture(), &place.oci("nydus", "one"), &[]).ok();
    let one = digest(&target, "one");
    convert(
        &fixture(),
        &place.oci("nydus", "two"),
        &["--compressor", "none"],
    )
    .ok();
    assert_eq!(digest(&target, "one"), one);
    convert(&fixture(), &place.oci("nydus", "two"), &[]).ok();
    assert_eq!(
        digest(&target, "two"),
        one,
        "a tag is moved to the new image"
    );
}
