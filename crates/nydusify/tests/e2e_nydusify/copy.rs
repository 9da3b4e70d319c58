//! Copies in all directions: the same bytes everywhere, and the tag last.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use testkit::fixture::busybox;
use testkit::layout::{Flavour, Layer, Layout, Packing, docker_archive, pack};
use testkit::registry::{Fault, Faults, Registry};
use testkit::run::{Ran, run, wait_until};

use crate::support::*;

#[track_caller]
fn copy(source: &str, target: &str, more: &[&str]) -> Ran {
    run(
        NYDUSIFY,
        ["copy", "--source", source, "--target", target]
            .iter()
            .chain(more),
    )
}

/// A registry with the busybox fixture as `app:latest`, and its digest.
fn with_app() -> (Registry, String) {
    let registry = Registry::new();
    let digest = registry.push_layout(&busybox(), "latest", "app", "latest");
    (registry, digest)
}

/// Adds `app:multi`: two platforms and their attestations. Digests of the index and of both images.
fn add_index(registry: &Registry, attested: bool) -> (String, [String; 2]) {
    let images = [("latest", "linux/amd64"), ("latest", "linux/arm64")];
    registry.make_index("app", &images, attested, "multi");
    // Written as no encoder here would, so that only a copy of its bytes has its digest.
    let (kind, bytes) = registry.manifest("app", "multi").unwrap();
    let index: Value = serde_json::from_slice(&bytes).unwrap();
    let pretty = serde_json::to_vec_pretty(&index).unwrap();
    let images = [0, 1].map(|at| {
        index["manifests"][at]["digest"]
            .as_str()
            .unwrap()
            .to_owned()
    });
    let index = registry.put_manifest("app", Some("multi"), &kind, &pretty);
    (index, images)
}

fn at(registry: &Registry, name: &str) -> String {
    format!("{}/{name}", registry.host())
}

fn file(place: &Place, name: &str) -> String {
    format!("file://{}", place.path(name).display())
}

#[track_caller]
fn report(place: &Place, name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(place.path(name)).unwrap()).unwrap()
}

#[test]
fn an_image_stays_the_same_from_place_to_place() {
    let place = Place::new();
    let (first, second) = (Registry::new(), Registry::new());
    let want = digest(&busybox(), "latest");
    copy(&fixture(), &at(&first, "a/app:1"), &[]).ok();
    assert_eq!(first.digest("a/app", "1").as_ref(), Some(&want));
    assert_eq!(first.missing_from("a/app", "1"), Vec::<String>::new());

    copy(&at(&first, "a/app:1"), &place.oci("layout", "2"), &[]).ok();
    assert_eq!(digest(&place.path("layout"), "2"), want);

    let archive = format!("oci-archive:{}:3", place.path("image.tar").display());
    copy(&place.oci("layout", "2"), &archive, &[]).ok();
    copy(&archive, &at(&second, "b:4"), &[]).ok();
    assert_eq!(second.digest("b", "4").as_ref(), Some(&want));
    assert_eq!(second.missing_from("b", "4"), Vec::<String>::new());

    copy(&at(&second, "b:4"), &at(&first, "c:5"), &[]).ok();
    assert_eq!(first.digest("c", "5").as_ref(), Some(&want));
    assert_eq!(first.missing_from("c", "5"), Vec::<String>::new());

    copy(&at(&second, "b:4"), &file(&place, "saved.tar"), &[]).ok();
    copy(&file(&place, "saved.tar"), &place.oci("layout", "6"), &[]).ok();
    assert_eq!(digest(&place.path("layout"), "6"), want);
    // The archive remembers what the image was called.
    let named = format!(
        "oci-archive:{}:{}",
        place.path("saved.tar").display(),
        at(&second, "b:4")
    );
    copy(&named, &place.oci("layout", "7"), &[]).ok();
    for registry in [&first, &second] {
        assert_eq!(registry.counters().open_uploads, 0);
        assert_eq!(registry.violations(), Vec::<String>::new());
    }
}

#[test]
fn archives_may_be_compressed() {
    let place = Place::new();
    copy(&fixture(), &file(&place, "plain.tar"), &[]).ok();
    let plain = std::fs::read(place.path("plain.tar")).unwrap();
    for (name, packing) in [
        ("gz", Packing::Gzip),
        ("gzs", Packing::GzipMembers),
        ("zst", Packing::Zstd),
    ] {
        std::fs::write(place.path(name), pack(&plain, packing)).unwrap();
        copy(&file(&place, name), &place.oci("layout", name), &[]).ok();
        assert_eq!(
            digest(&place.path("layout"), name),
            digest(&busybox(), "latest")
        );
    }
    let mut cut = pack(&plain, Packing::Gzip);
    cut.truncate(cut.len() / 2);
    std::fs::write(place.path("cut"), cut).unwrap();
    copy(&file(&place, "cut"), &place.oci("layout", "cut"), &[]).fails_with(&["cut", "decompress"]);
    assert_clean(&place.path("layout"), "cut");
}

#[test]
fn docker_archives_are_sources() {
    let place = Place::new();
    let registry = Registry::new();
    let (tars, _) = testkit::fixture::busybox_layers(b"a binary");
    let archive = docker_archive(&tars, "app:1");
    std::fs::write(place.path("docker.tar"), &archive).unwrap();
    std::fs::write(place.path("docker.tar.gz"), pack(&archive, Packing::Gzip)).unwrap();
    let source = format!("docker-archive:{}", place.path("docker.tar").display());
    copy(&source, &at(&registry, "app:1"), &[]).ok();
    copy(&file(&place, "docker.tar.gz"), &at(&registry, "app:2"), &[]).ok();
    assert_eq!(registry.digest("app", "1"), registry.digest("app", "2"));
    assert_eq!(registry.missing_from("app", "1"), Vec::<String>::new());
    copy(
        &source,
        &format!("docker-archive:{}", place.path("x").display()),
        &[],
    )
    .exits(2)
    .says(&["only be read"]);
}

#[test]
fn an_index_is_copied_whole_or_made_anew() {
    let place = Place::new();
    let (registry, _) = with_app();
    let (index, [amd64, arm64]) = add_index(&registry, true);
    let source = at(&registry, "app:multi");
    let other = Registry::new();

    copy(&source, &at(&other, "all:1"), &["--all-platforms"]).ok();
    assert_eq!(other.digest("all", "1"), Some(index.clone()));
    assert_eq!(other.missing_from("all", "1"), Vec::<String>::new());
    assert_eq!(other.manifests("all").len(), 5);

    let both = ["--platform", "linux/arm64,linux/amd64"];
    copy(&source, &at(&other, "both:1"), &both).ok();
    let (_, bytes) = other.manifest("both", "1").unwrap();
    let made: Value = serde_json::from_slice(&bytes).unwrap();
    let digests: Vec<&Value> = made["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| &entry["digest"])
        .collect();
    assert_eq!(digests, [&json!(amd64), &json!(arm64)]);
    assert_eq!(other.missing_from("both", "1"), Vec::<String>::new());
    assert_eq!(other.manifests("both").len(), 3);

    let one = ["--platform", "linux/arm64"];
    copy(&source, &place.oci("layout", "arm"), &one).ok();
    assert_eq!(digest(&place.path("layout"), "arm"), arm64);
    copy(
        &source,
        &place.oci("layout", "x"),
        &["--platform", "linux/s390x"],
    )
    .fails_with(&["linux/s390x", "linux/arm64"]);

    // Everything that there is, though chosen by name.
    let (index, _) = add_index(&registry, false);
    copy(&source, &place.oci("layout", "whole"), &both).ok();
    assert_eq!(digest(&place.path("layout"), "whole"), index);
}

#[test]
fn what_a_registry_has_is_not_moved() {
    let place = Place::new();
    let (registry, want) = with_app();
    let blobs = registry.blobs("app").len();
    let json_report = place.path("report");
    let json_report = ["--output-json", json_report.to_str().unwrap()];
    let before = registry.counters().received;
    copy(
        &at(&registry, "app"),
        &at(&registry, "copy:1"),
        &json_report,
    )
    .ok();
    assert_eq!(registry.digest("copy", "1"), Some(want));
    assert_eq!(registry.missing_from("copy", "1"), Vec::<String>::new());
    assert_eq!(registry.counters().mounts, blobs as u64);
    assert!(registry.counters().received - before < 10_000);
    let first = report(&place, "report");
    assert_eq!(first["Schema"], "nydusify-copy/1");
    assert_eq!(first["MountedBlobs"], blobs);
    assert_eq!(first["CopiedBlobs"], 0);
    assert_eq!(first["TargetImageSize"], first["MountedBytes"]);

    copy(
        &at(&registry, "app"),
        &at(&registry, "copy:2"),
        &json_report,
    )
    .ok();
    assert_eq!(report(&place, "report")["PresentBlobs"], blobs);

    let without = Registry::start(testkit::registry::Options {
        mounts: false,
        ..Default::default()
    });
    without.push_layout(&busybox(), "latest", "app", "latest");
    copy(&at(&without, "app"), &at(&without, "copy:1"), &json_report).ok();
    assert_eq!(report(&place, "report")["CopiedBlobs"], blobs);
    assert_eq!(without.missing_from("copy", "1"), Vec::<String>::new());
    assert_eq!(without.counters().open_uploads, 0);
}

#[test]
fn damage_at_the_source_is_found_on_the_way() {
    let place = Place::new();
    let (registry, _) = with_app();
    let manifest = manifest(&busybox(), "latest");
    let layer = manifest["layers"][0]["digest"].as_str().unwrap();
    let mut bytes = registry.blob("app", layer).unwrap();
    bytes[100] ^= 1;
    registry.overwrite_blob(layer, &bytes);
    let other = Registry::new();
    copy(&at(&registry, "app"), &at(&other, "app:1"), &[]).fails_with(&[layer, "corrupt"]);
    assert_eq!(other.tags("app"), Vec::<String>::new());
    assert_eq!(other.manifests("app"), Vec::<String>::new());
    assert_eq!(other.counters().open_uploads, 0);
    copy(&at(&registry, "app"), &place.oci("layout", "1"), &[]).fails_with(&[layer, "corrupt"]);
    assert_clean(&place.path("layout"), "1");
    registry.remove_blob("app", layer);
    copy(&at(&registry, "app"), &at(&other, "app:1"), &[]).fails_with(&[layer]);
}

#[test]
fn an_interrupted_copy_leaves_nothing() {
    let (registry, _) = with_app();
    let other = Registry::new();
    let late = Faults::of(1, 1.0, &[Fault::Latency]).latency(Duration::from_secs(60));
    registry.set_faults(late.matching("/blobs/"));
    let child = Command::new(NYDUSIFY)
        .args(["copy", "--source", &at(&registry, "app"), "--target"])
        .arg(at(&other, "app:1"))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The targets have been asked, so the signals are watched for and blobs are on their way.
    wait_until("blobs to be asked for", || other.counters().requests > 2);
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.signal(), None);
    assert_eq!(output.status.code(), Some(130));
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "error: interrupted\n"
    );
    assert_eq!(other.tags("app"), Vec::<String>::new());
    assert_eq!(other.counters().open_uploads, 0);
}

/// `--target-suffix -nydus`: what begins with a dash is a value there, as the deployed tool has it.
#[test]
fn a_suffix_may_begin_with_a_dash() {
    let (registry, _) = with_app();
    let app = at(&registry, "app");
    run(
        NYDUSIFY,
        ["convert", "--source", &app, "--target-suffix", "-nydus"],
    )
    .ok();
    assert_eq!(registry.tags("app"), ["latest", "latest-nydus"]);
}

/// A layer of an image by reference only describes another one, which has the data and which no manifest lists.
#[test]
fn layers_that_others_describe_come_along() {
    let place = Place::new();
    let (from, to) = (place.path("from"), place.path("to"));
    let mut layout = Layout::create(&from);
    let original = layout.blob(b"the original layer", "application/octet-stream");
    let digest = original["digest"].as_str().unwrap();
    let described = Layer::new(b"describes it", Packing::None);
    let manifest = layout.manifest_with(&[described], Flavour::Oci, |manifest, _| {
        manifest["layers"][0]["annotations"] = json!({"containerd.io/snapshot/nydus-ref": digest});
    });
    layout.tag(&manifest, "ref");
    let source = format!("oci:{}:ref", from.display());
    let target = format!("oci:{}:ref", to.display());
    copy(&source, &target, &[]).ok();
    let name = |root: &Path| root.join("blobs").join(digest.replace(':', "/"));
    assert_eq!(std::fs::read(name(&to)).unwrap(), b"the original layer");
    // Without it the image is none.
    std::fs::remove_file(name(&from)).unwrap();
    std::fs::remove_dir_all(&to).unwrap();
    copy(&source, &target, &[]).exits(1).says(&[digest]);
}
