//! Whole images: documents, damaged blobs, damaged layers.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

mod common;

use std::path::Path;
use std::sync::Arc;

use common::{assert_verified, build, build_options, check};
use image::{Location, PlatformChoice, Source, nydus};
use serde_json::{Value, json};
use testkit::layout::{Flavour, Layer, Layout, Packing};
use testkit::tar::{Entry, Tar};
use verify::{Outcome, Report, Rule, Side};

fn tars() -> Vec<Vec<u8>> {
    let mut lower = Tar::new();
    lower
        .add(Entry::file("a", testkit::prose(1, 50_000)))
        .add(Entry::file("gone", "x"));
    let mut upper = Tar::new();
    upper
        .add(Entry::file("d/b", testkit::noise(2, 20_000)))
        .add(Entry::file(".wh.gone", ""));
    vec![lower.finish(), upper.finish()]
}

fn layer(bytes: Vec<u8>, diff_id: String, media_type: &str) -> Layer {
    Layer {
        bytes,
        diff_id,
        media_type: media_type.to_owned(),
    }
}

/// Writes the image and its Nydus form, with a last change to the latter's manifest and configuration.
fn write(root: &Path, change: impl FnOnce(&mut Value, &mut Value)) {
    let tars = tars();
    let options = build_options();
    let (image, blobs) = build(&tars, &options);
    let bootstrap = builder::encode_v6(&image).unwrap();
    let pack = nydus::BootstrapLayer::pack(&bootstrap, &[], &options.pool).unwrap();
    let blob = |blob: Vec<u8>| {
        let digest = testkit::sha256(&blob);
        layer(blob, digest, nydus::BLOB_MEDIA_TYPE)
    };
    let mut layers: Vec<Layer> = blobs.into_iter().map(blob).collect();
    layers.push(layer(
        pack.bytes,
        pack.diff_id.hex(),
        image::media::OCI_LAYER_GZIP,
    ));
    let mut layout = Layout::create(root);
    let plain: Vec<Layer> = tars
        .iter()
        .map(|tar| Layer::new(tar, Packing::Gzip))
        .collect();
    let source = layout.manifest(&plain, Flavour::Oci);
    let target = layout.manifest_with(&layers, Flavour::Oci, |manifest, config| {
        let (last, blobs) = manifest["layers"]
            .as_array_mut()
            .unwrap()
            .split_last_mut()
            .unwrap();
        blobs
            .iter_mut()
            .for_each(|blob| blob["annotations"] = json!({ nydus::ANNOTATION_BLOB: "true" }));
        last["annotations"] =
            json!({ nydus::ANNOTATION_BOOTSTRAP: "true", nydus::ANNOTATION_FS_VERSION: "6" });
        change(manifest, config);
    });
    layout.tag(&source, "source");
    layout.tag(&target, "target");
}

fn open(root: &Path) -> Result<(Option<Side>, Side), Box<dyn std::error::Error>> {
    let place = |tag: &str| {
        let location = Location::OciLayout {
            dir: root.to_owned(),
            tag: Some(tag.to_owned()),
        };
        Source::open(&location).map(Arc::new)
    };
    let (source, target) = (place("source")?, place("target")?);
    let mut pairs = verify::images(
        Some((&source, "source")),
        (&target, "target"),
        &PlatformChoice::Host,
    )?;
    Ok(pairs.remove(0))
}

fn checked(change: impl FnOnce(&mut Value, &mut Value)) -> Report {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), change);
    let (source, target) = open(dir.path()).unwrap();
    check(source.as_ref(), &target)
}

#[test]
fn a_sound_image_passes_every_rule() {
    let report = checked(|_, _| {});
    assert_verified(&report);
    assert!(
        report
            .rules
            .iter()
            .all(|rule| rule.outcome == Outcome::Passed),
        "{report}"
    );
    assert_eq!(report.rules.len(), 4);
}

/// The manifest rule fails with these words, and no other rule does.
fn assert_manifest_fails(change: impl FnOnce(&mut Value, &mut Value), words: &str) {
    let report = checked(change);
    for rule in &report.rules {
        assert_eq!(
            rule.outcome == Outcome::Failed,
            rule.rule == Rule::Manifest,
            "{report}"
        );
    }
    let problems = &report.rule(Rule::Manifest).unwrap().problems;
    assert!(
        problems.len() == 1 && problems[0].contains(words),
        "{report}"
    );
}

#[test]
fn each_fault_of_the_documents_is_found() {
    let diff_ids = |config: &mut Value, change: &dyn Fn(&mut Vec<Value>)| {
        change(config["rootfs"]["diff_ids"].as_array_mut().unwrap());
    };
    let other = json!(format!("sha256:{}", "1".repeat(64)));
    assert_manifest_fails(
        |_, config| diff_ids(config, &|ids| ids.push(other.clone())),
        "3 layers, but 4 diff ids",
    );
    assert_manifest_fails(
        |_, config| diff_ids(config, &|ids| ids[2] = other.clone()),
        "which is not its diff id",
    );
    assert_manifest_fails(
        |_, config| diff_ids(config, &|ids| ids[0] = other.clone()),
        "is not its digest",
    );
    assert_manifest_fails(
        |manifest, _| manifest["layers"][0]["annotations"] = json!({}),
        "not annotated as blob",
    );
    assert_manifest_fails(
        |manifest, _| manifest["layers"][1]["mediaType"] = json!(image::media::OCI_LAYER_GZIP),
        "has media type",
    );
    assert_manifest_fails(
        |_, config| config["config"]["Env"] = json!(["X=1"]),
        "config.Env",
    );
    assert_manifest_fails(|_, config| config["os"] = json!("plan9"), "os: source");
}

#[test]
fn what_encoders_leave_out_is_no_difference() {
    assert_verified(&checked(|_, config| {
        config["config"]["ArgsEscaped"] = json!(true);
        config["config"]["Volumes"] = Value::Null;
        config["config"]["OnBuild"] = json!([]);
    }));
}

#[test]
fn a_blob_that_is_no_layer_is_found() {
    let report = checked(|manifest, config| {
        manifest["layers"].as_array_mut().unwrap().remove(1);
        config["rootfs"]["diff_ids"]
            .as_array_mut()
            .unwrap()
            .remove(1);
    });
    let bootstrap = report.rule(Rule::Bootstrap).unwrap();
    assert_eq!(bootstrap.outcome, Outcome::Failed, "{report}");
    assert!(
        bootstrap.problems[0].contains("not among the layers"),
        "{report}"
    );
}

#[test]
fn any_damaged_byte_of_an_image_is_found() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), |_, _| {});
    let blobs = dir.path().join("blobs/sha256");
    for entry in std::fs::read_dir(&blobs).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        for at in (0..bytes.len()).step_by((bytes.len() / 9).max(1)) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            std::fs::write(&path, damaged).unwrap();
            if let Ok((source, target)) = open(dir.path()) {
                let report = check(source.as_ref(), &target);
                assert!(!report.verified, "byte {at} of {}", path.display());
            }
        }
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        if let Ok((source, target)) = open(dir.path()) {
            assert!(
                !check(source.as_ref(), &target).verified,
                "half of {}",
                path.display()
            );
        }
        std::fs::write(&path, bytes).unwrap();
    }
    let (source, target) = open(dir.path()).unwrap();
    assert_verified(&check(source.as_ref(), &target));
}
