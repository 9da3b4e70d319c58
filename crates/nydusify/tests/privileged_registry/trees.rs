//! From a real registry to itself, checked, mounted lazily: the tree is the one that the image was made of.

use std::path::Path;
use std::process::Command;

use serde_json::json;
use testkit::docker_registry::{DockerRegistry, Options};
use testkit::expect::{compare, compare_with_stack};
use testkit::layout::{Flavour, Layer, Layout, Packing, layer_files};
use testkit::oracle::Stack;
use testkit::run::output;
use testkit::tar::{Entry, Tar};
use testkit::{fixture, shared_or_skip};

use crate::support::*;

/// Pushes a tag of a layout, as it is and as docker's; each is converted, checked, mounted and compared.
#[track_caller]
fn there_and_back(
    place: &Place,
    layout: &Path,
    tag: &str,
    prefetch: &str,
    differences: impl Fn(&Path) -> Vec<String>,
) {
    let server = DockerRegistry::start(Options::default());
    let name = "some/where";
    let source = repository(server.host(), name, None);
    for docker in [false, true] {
        push(layout, tag, docker, &source, tag);
        let from = format!("{}/{name}:{tag}", server.host());
        let to = format!("{}/nydus/{name}:{tag}", server.host());
        place.convert(&from, &to, &["--no-journal"]).ok();
        place.check(&from, &to, &[]).ok().says(&["verified image"]);
        let mount = place.mount_with(prefetch, &to, &[]);
        assert_equal(&differences(mount.path()));
        mount.stop().ok();
        assert_eq!(server.open_uploads(), 0, "uploads were left open");
        let kind = repository(server.host(), &format!("nydus/{name}"), None);
        let kind = kind.manifest(tag).unwrap().media_type;
        assert_eq!(kind.contains("docker"), docker, "{kind}");
    }
}

#[test]
fn privileged_the_fixture_goes_from_registry_to_registry() {
    let Some(place) = Place::new("privileged_the_fixture_goes_from_registry_to_registry") else {
        return;
    };
    let expect = fixture::busybox_expect();
    let (layout, tag) = (fixture::busybox(), fixture::BUSYBOX_TAG);
    there_and_back(&place, &layout, tag, "--no-prefetch", |root| {
        expect.compare(root)
    });
}

#[test]
fn privileged_the_torture_image_goes_from_registry_to_registry() {
    const NAME: &str = "privileged_the_torture_image_goes_from_registry_to_registry";
    let Some(shared) = shared_or_skip(NAME).map(|shared| shared.join("torture")) else {
        return;
    };
    let Some(place) = Place::new(NAME) else {
        return;
    };
    let layout = shared.join("image");
    there_and_back(&place, &layout, "torture", "--no-prefetch", |root| {
        compare(root, &shared.join("expect.json"))
    });
}

#[test]
fn privileged_reference_images_go_from_registry_to_registry() {
    const NAME: &str = "privileged_reference_images_go_from_registry_to_registry";
    let Some(images) = shared_or_skip(NAME).map(|shared| shared.join("images")) else {
        return;
    };
    for tag in ["base", "python", "app-1", "app-2", "node"] {
        let Some(place) = Place::new(NAME) else {
            return;
        };
        let stack = Stack::new(&layer_files(&images, tag)).unwrap();
        // File by file this server takes minutes for each: a request costs it some milliseconds.
        there_and_back(&place, &images, tag, "--prefetch", |root| {
            compare_with_stack(stack.path(), root)
        });
    }
}

/// What starting a small program costs: what is fetched is little more than the chunks of which it reads anything.
#[test]
fn privileged_a_program_starts_with_little_more_than_it_reads() {
    const NAME: &str = "privileged_a_program_starts_with_little_more_than_it_reads";
    let Some(images) = shared_or_skip(NAME).map(|shared| shared.join("images")) else {
        return;
    };
    let Some(place) = Place::new(NAME) else {
        return;
    };
    let server = DockerRegistry::start(Options::default());
    let repository = repository(server.host(), "python", None);
    push(&images, "python", false, &repository, "plain");
    let [source, target] = ["plain", "nydus"].map(|tag| format!("{}/python:{tag}", server.host()));
    place.convert(&source, &target, &[]).ok();

    let mount = place.mount(&target, &[]);
    let mut python = Command::new("chroot");
    python.arg(mount.path()).args(["python3", "-c", "print(1)"]);
    let started = output(&mut python);
    assert_eq!(started.ok().stdout, "1\n");
    let ran = mount.stop().ok();
    let value = |name: &str| -> u64 {
        let text = ran.stderr.split(&format!("{name}=")).nth(1);
        let text = text.unwrap_or_else(|| panic!("no {name} in {ran}"));
        text.split([' ', '\n']).next().unwrap().parse().unwrap()
    };
    let (fetched, used) = (value("fetched_bytes"), value("used_bytes"));
    assert!(used > 1 << 20, "{ran}");
    assert!(fetched <= used + used / 2, "{fetched} bytes for {used}");
}

/// Three platforms, each with its own tree, and an attestation of the first.
#[test]
fn privileged_an_index_goes_from_registry_to_registry() {
    let Some(place) = Place::new("privileged_an_index_goes_from_registry_to_registry") else {
        return;
    };
    let platforms = [
        (
            "linux/amd64",
            json!({ "os": "linux", "architecture": "amd64" }),
        ),
        (
            "linux/arm64",
            json!({ "os": "linux", "architecture": "arm64" }),
        ),
        (
            "linux/arm/v7",
            json!({ "os": "linux", "architecture": "arm", "variant": "v7" }),
        ),
    ];
    let root = place.path("source");
    let mut layout = Layout::create(&root);
    let mut entries = Vec::new();
    for (name, platform) in &platforms {
        let mut tar = Tar::new();
        tar.add(Entry::file("name", name)).add(Entry::file(
            "data",
            testkit::noise(name.len() as u64, 3_000_000),
        ));
        let layers = [Layer::new(&tar.finish(), Packing::Gzip)];
        let image = layout.manifest_with(&layers, Flavour::Oci, |_, config| {
            for (key, value) in platform.as_object().unwrap() {
                config[key] = value.clone();
            }
        });
        entries.push((image, platform.clone()));
    }
    let statement = layout.blob(b"{}", "application/vnd.in-toto+json");
    let attestation = layout.manifest_with(&[], Flavour::Oci, |manifest, config| {
        manifest["layers"] = json!([statement]);
        *config = json!({ "os": "unknown", "architecture": "unknown" });
    });
    let mut attestation = attestation;
    attestation["annotations"] = json!({
        "vnd.docker.reference.digest": entries[0].0["digest"],
        "vnd.docker.reference.type": "attestation-manifest",
    });
    entries.push((
        attestation.clone(),
        json!({ "os": "unknown", "architecture": "unknown" }),
    ));
    let index = layout.index(&entries);
    layout.tag(&index, "all");

    let server = DockerRegistry::start(Options::default());
    push(
        &root,
        "all",
        false,
        &repository(server.host(), "image", None),
        "all",
    );
    let from = format!("{}/image:all", server.host());
    let to = format!("{}/nydus:all", server.host());
    place.convert(&from, &to, &["--all-platforms"]).ok();
    place.check(&from, &to, &["--multi-platform"]).ok();
    let target = repository(server.host(), "nydus", None);
    let index: serde_json::Value =
        serde_json::from_slice(&target.manifest("all").unwrap().bytes).unwrap();
    let manifests = index["manifests"].as_array().unwrap();
    assert_eq!(manifests.len(), 4, "{index}");
    let carried = manifests
        .iter()
        .find(|entry| entry["digest"] == attestation["digest"]);
    assert!(carried.is_some(), "{index}");
    let digest = attestation["digest"].as_str().unwrap();
    assert!(target.manifest(digest).is_ok());
    for (name, _) in &platforms {
        let mount = place.mount(&to, &["--platform", name]);
        let read = |file: &str| std::fs::read(mount.path().join(file)).unwrap();
        assert_eq!(read("name"), name.as_bytes());
        assert!(read("data") == testkit::noise(name.len() as u64, 3_000_000));
        mount.stop().ok();
    }
    assert_eq!(server.open_uploads(), 0);
}
