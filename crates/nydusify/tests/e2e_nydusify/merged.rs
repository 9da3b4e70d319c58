//! `--merge-platform` and `--with-referrer`: both kinds of an image under one tag, and one found from the other.

use registry::{Client, Reference, Settings};
use serde_json::{Value, json};
use testkit::fixture::busybox;
use testkit::layout::{Flavour, Layer, Layout, Packing};
use testkit::registry::{Options, Registry};
use testkit::run::run;

use crate::support::*;

const EMPTY: &str = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn with_app(options: Options) -> Registry {
    let registry = Registry::start(options);
    registry.push_layout(&busybox(), "latest", "app", "latest");
    registry
}

#[track_caller]
fn read(registry: &Registry, repository: &str, reference: &str) -> (String, Value) {
    let (kind, bytes) = registry.manifest(repository, reference).unwrap();
    (kind, serde_json::from_slice(&bytes).unwrap())
}

#[track_caller]
fn config(registry: &Registry, repository: &str, manifest: &Value) -> Value {
    let digest = manifest["config"]["digest"].as_str().unwrap();
    serde_json::from_slice(&registry.blob(repository, digest).unwrap()).unwrap()
}

/// Checks both entries of a platform against its source manifest.
#[track_caller]
fn assert_merged(registry: &Registry, repository: &str, [plain, nydus]: [&Value; 2], origin: &str) {
    let source_note = "containerd.io/snapshot/nydus-source-digest";
    let (_, source) = read(registry, "app", origin);
    assert_eq!(plain["annotations"][source_note], origin);
    assert_eq!(plain["artifactType"], Value::Null);
    let (_, manifest) = read(registry, repository, plain["digest"].as_str().unwrap());
    assert_eq!(manifest["annotations"][source_note], origin);
    let (empty, rest) = manifest["layers"]
        .as_array()
        .unwrap()
        .split_first()
        .unwrap();
    assert_eq!(json!(rest), source["layers"]);
    assert_eq!(
        empty["annotations"],
        json!({"containerd.io/snapshot/nydus-empty-layer": "true"})
    );
    let gzip = registry.blob(repository, empty["digest"].as_str().unwrap());
    let mut tar = Vec::new();
    std::io::Read::read_to_end(
        &mut flate2::read::GzDecoder::new(gzip.unwrap().as_slice()),
        &mut tar,
    )
    .unwrap();
    assert_eq!(format!("sha256:{}", testkit::sha256(&tar)), EMPTY);
    let (old, new) = (
        config(registry, "app", &source),
        config(registry, repository, &manifest),
    );
    let (first, rest) = new["rootfs"]["diff_ids"]
        .as_array()
        .unwrap()
        .split_first()
        .unwrap();
    assert_eq!(first, EMPTY);
    assert_eq!(json!(rest), old["rootfs"]["diff_ids"]);
    let (first, rest) = new["history"].as_array().unwrap().split_first().unwrap();
    assert_eq!(
        *first,
        json!({"created_by": "Nydus Converter", "comment": "Nydus Empty Layer"})
    );
    assert_eq!(json!(rest), old["history"]);

    assert_eq!(
        nydus["artifactType"],
        "application/vnd.nydus.image.manifest.v1+json"
    );
    let (_, manifest) = read(registry, repository, nydus["digest"].as_str().unwrap());
    assert_eq!(
        manifest["config"]["mediaType"],
        "application/vnd.nydus.image.config.v1+json"
    );
    assert_eq!(manifest["annotations"][source_note], origin);
    for entry in [plain, nydus] {
        assert!(entry["platform"]["architecture"].is_string(), "{entry}");
    }
}

#[test]
fn a_merged_index_has_both_kinds_and_is_checked() {
    let registry = with_app(Options::default());
    let source = format!("{}/app", registry.host());
    let target = format!("{}/merged:1", registry.host());
    convert(&source, &target, &["--merge-platform", "--check"]).ok();
    let (kind, index) = read(&registry, "merged", "1");
    assert_eq!(kind, INDEX);
    assert_eq!(index["mediaType"], INDEX);
    let entries = index["manifests"].as_array().unwrap();
    assert_eq!(entries.len(), 2);
    let origin = registry.digest("app", "latest").unwrap();
    assert_merged(&registry, "merged", [&entries[0], &entries[1]], &origin);
    assert_eq!(registry.missing_from("merged", "1"), Vec::<String>::new());
    check(&source, &target).ok().says(&["verified image"]);
    run(NYDUSIFY, ["check", "--target", &target]).ok();
    // The same index is both sides: the plain image in it is what the Nydus image equals.
    check(&target, &target).ok();

    let place = Place::new();
    let all = ["--all-platforms"];
    let copy = ["copy", "--source", &target, "--target"];
    let layout = place.oci("layout", "merged");
    run(NYDUSIFY, copy.iter().chain(&[&*layout]).chain(&all)).ok();
    assert_eq!(
        digest(&place.path("layout"), "merged"),
        registry.digest("merged", "1").unwrap()
    );
    convert(&source, &place.oci("local", "m"), &["--multi-platform"]).ok();
    assert_eq!(
        digest(&place.path("local"), "m"),
        registry.digest("merged", "1").unwrap(),
        "the place does not matter"
    );
}

/// `app:multi`: two images whose files differ, each with an attestation beside it.
fn add_index(registry: &Registry) {
    let place = Place::new();
    let path = place.path("other");
    let (tars, _) = testkit::fixture::busybox_layers(b"another binary");
    let layers: Vec<Layer> = tars
        .iter()
        .map(|tar| Layer::new(tar, Packing::Gzip))
        .collect();
    let mut layout = Layout::create(&path);
    let manifest = layout.manifest_with(&layers, Flavour::Oci, |_, config| {
        config["architecture"] = "arm64".into();
    });
    layout.tag(&manifest, "arm");
    registry.push_layout(&path, "arm", "app", "arm");
    let images = [("latest", "linux/amd64"), ("arm", "linux/arm64")];
    registry.make_index("app", &images, true, "multi");
}

#[test]
fn all_platforms_are_merged_in_the_order_of_the_contract() {
    let registry = with_app(Options::default());
    add_index(&registry);
    let source = format!("{}/app:multi", registry.host());
    let target = format!("{}/merged:1", registry.host());
    convert(&source, &target, &["--merge-platform", "--all-platforms"]).ok();
    let (_, index) = read(&registry, "merged", "1");
    let [amd_plain, arm_plain, amd, arm] = &index["manifests"].as_array().unwrap()[..] else {
        panic!("two images of both kinds, and no attestations: {index}");
    };
    let origin = |tag| registry.digest("app", tag).unwrap();
    assert_merged(&registry, "merged", [amd_plain, amd], &origin("latest"));
    assert_merged(&registry, "merged", [arm_plain, arm], &origin("arm"));
    assert_eq!(arm["platform"]["architecture"], "arm64");
    assert_eq!(registry.missing_from("merged", "1"), Vec::<String>::new());
    let all = ["check", "--multi-platform", "--source", &source, "--target"];
    let ran = run(NYDUSIFY, all.iter().chain(&[&*target])).ok();
    assert_eq!(ran.stdout.matches("verified image").count(), 2, "{ran}");
}

#[test]
fn an_entry_that_claims_to_be_nydus_has_to_be() {
    let registry = with_app(Options::default());
    let (kind, bytes) = registry.manifest("app", "latest").unwrap();
    let entry = |more: Value, platform: Value| {
        let mut entry = json!({
            "mediaType": kind,
            "digest": registry.digest("app", "latest").unwrap(),
            "size": bytes.len(),
            "platform": platform,
        });
        for (key, value) in more.as_object().unwrap() {
            entry[key] = value.clone();
        }
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry] });
        registry.put_manifest("app", Some("claims"), INDEX, index.to_string().as_bytes());
    };
    let target = format!("{}/app:claims", registry.host());
    let host =
        |features: Value| json!({"os": "linux", "architecture": "amd64", "os.features": features});
    let multi = ["check", "--multi-platform", "--target", &target];
    entry(json!({}), host(json!(["win32k"])));
    run(NYDUSIFY, multi).ok();
    entry(json!({}), host(json!(["nydus.remoteimage.v1"])));
    run(NYDUSIFY, multi).fails_with(&["calls sha256:", "no bootstrap"]);
    let kind = "application/vnd.nydus.image.manifest.v1+json";
    entry(json!({ "artifactType": kind }), host(json!([])));
    run(NYDUSIFY, multi).fails_with(&["calls sha256:", "no bootstrap"]);
}

#[test]
fn a_nydus_image_is_found_from_its_source() {
    for referrers in [true, false] {
        let registry = with_app(Options {
            referrers,
            ..Options::default()
        });
        let source = format!("{}/app", registry.host());
        let origin = registry.digest("app", "latest").unwrap();
        let (kind, bytes) = registry.manifest("app", "latest").unwrap();
        // Into the source's repository, and into one where the source is not.
        for name in ["app:nydus", "elsewhere:nydus"] {
            let target = format!("{}/{name}", registry.host());
            convert(&source, &target, &["--with-referrer"]).ok();
            check(&source, &target).ok();
            let repository = name.split(':').next().unwrap();
            let (_, manifest) = read(&registry, repository, "nydus");
            assert_eq!(
                manifest["subject"],
                json!({ "mediaType": kind, "digest": origin, "size": bytes.len() })
            );
            assert_eq!(
                registry.missing_from(repository, "nydus"),
                Vec::<String>::new()
            );
            let reference: Reference = target.parse().unwrap();
            let client = Client::new(Settings::default()).unwrap();
            let found = client
                .repository(&reference)
                .referrers(&origin.parse().unwrap())
                .unwrap();
            let found: Vec<String> = found.iter().map(|one| one.digest.to_string()).collect();
            assert_eq!(found, [registry.digest(repository, "nydus").unwrap()]);
            let fallback = origin.replace(':', "-");
            assert_eq!(
                registry.tags(repository).contains(&fallback),
                !referrers,
                "the tag stands in for what is missing"
            );
        }
    }
}

#[test]
fn all_platforms_have_their_own_source_as_subject() {
    let registry = with_app(Options::default());
    add_index(&registry);
    let source = format!("{}/app:multi", registry.host());
    let target = format!("{}/merged:1", registry.host());
    let more = ["--with-referrer", "--merge-platform", "--all-platforms"];
    convert(&source, &target, &more).ok();
    let (_, index) = read(&registry, "merged", "1");
    let subjects: Vec<Value> = index["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| {
            let (_, manifest) = read(&registry, "merged", entry["digest"].as_str().unwrap());
            manifest["subject"]["digest"].clone()
        })
        .collect();
    let origin = |tag| json!(registry.digest("app", tag).unwrap());
    let want = [Value::Null, Value::Null, origin("latest"), origin("arm")];
    assert_eq!(subjects, want);
}
