//! `check --work-dir`.

use std::path::Path;

use serde_json::Value;
use testkit::run::{Ran, run};

use crate::support::*;

/// Every file below a directory.
fn files(root: &Path) -> Vec<String> {
    let found = testkit::scan::scan(root).unwrap();
    let files = found.into_iter().filter(|(_, file)| file.sha256.is_some());
    files
        .map(|(path, _)| String::from_utf8(path).unwrap())
        .collect()
}

fn json(path: &Path) -> Value {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).unwrap()
}

#[track_caller]
fn check_into(dir: &Path, target: &str) -> Ran {
    let dir = dir.to_str().unwrap();
    let words = ["check", "--source", &fixture(), "--target", target];
    run(NYDUSIFY, words.iter().chain(&["--work-dir", dir]))
}

#[test]
fn a_work_directory_holds_what_was_looked_at() {
    let place = Place::new();
    let target = place.oci("nydus", "v6");
    convert(&fixture(), &target, &[]).ok();
    let dir = place.path("work");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("mine"), b"").unwrap();
    // The second run replaces what the first one wrote.
    for _ in 0..2 {
        check_into(&dir, &target).ok();
        let found = files(&dir);
        for name in [
            "mine",
            "source/oci_config.json",
            "source/oci_manifest.json",
            "target/nydus_bootstrap/image/image.boot",
            "target/nydus_config.json",
            "target/nydus_manifest.json",
            "target/nydus_output.json",
        ] {
            assert!(found.iter().any(|path| path == name), "{name}: {found:#?}");
        }
    }
    let layout = place.path("nydus");
    let of_image = manifest(&layout, "v6");
    let dumped = dir.join("target/nydus_manifest.json");
    assert_eq!(json(&dumped), of_image);
    let text = std::fs::read_to_string(&dumped).unwrap();
    assert!(text.starts_with("{\n  \"schemaVersion\""), "{text}");
    let config = document(&layout, of_image["config"]["digest"].as_str().unwrap());
    assert_eq!(json(&dir.join("target/nydus_config.json")), config);
    let boot = std::fs::read(dir.join("target/nydus_bootstrap/image/image.boot")).unwrap();
    assert_eq!(boot[1024..1028], 0xE0F5_E1E2_u32.to_le_bytes());
    let output = json(&dir.join("target/nydus_output.json"));
    let blobs: Vec<&str> = of_image["layers"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|layer| layer["digest"].as_str()?.strip_prefix("sha256:"))
        .collect();
    for blob in output["blobs"].as_array().unwrap() {
        assert!(blobs.contains(&blob.as_str().unwrap()), "{output}");
    }
    assert_eq!(output["fs_version"], "6");
}

#[test]
fn nothing_of_others_in_a_work_directory_is_removed() {
    let place = Place::new();
    let target = place.oci("nydus", "v6");
    convert(&fixture(), &target, &[]).ok();
    for foreign in [
        "source/main.c",
        "target/nydus_config.json/x",
        "target/nydus_bootstrap",
    ] {
        let dir = place.path(&foreign.replace('/', "-"));
        let path = dir.join(foreign);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, b"precious").unwrap();
        check_into(&dir, &target)
            .exits(2)
            .fails_with(&["not of a former check"]);
        assert_eq!(files(&dir), [foreign]);
    }
    let dir = place.path("linked");
    std::fs::create_dir_all(dir.join("elsewhere")).unwrap();
    std::os::unix::fs::symlink("elsewhere", dir.join("source")).unwrap();
    check_into(&dir, &target).exits(2).fails_with(&["source"]);
}

#[test]
fn only_the_option_writes_anything() {
    let place = Place::new();
    let target = place.oci("nydus", "v6");
    convert(&fixture(), &target, &[]).ok();
    let here = place.path("here");
    std::fs::create_dir(&here).unwrap();
    let mut command = std::process::Command::new(NYDUSIFY);
    command
        .args(["check", "--target", &target])
        .env("WORK_DIR", "work")
        .current_dir(&here);
    testkit::run::output(&mut command).ok();
    assert_eq!(std::fs::read_dir(&here).unwrap().count(), 0);
}

/// Names in a bootstrap layer never lead out of the directory that it is unpacked to.
#[test]
fn a_hostile_bootstrap_layer_is_unpacked_safely() {
    use testkit::layout::{Flavour, Layer, Layout, Packing};
    use testkit::tar::{Entry, Tar};
    let place = Place::new();
    convert(&fixture(), &place.oci("nydus", "v6"), &[]).ok();
    let made = place.path("made");
    check_into(&made, &place.oci("nydus", "v6")).ok();
    let boot = std::fs::read(made.join("target/nydus_bootstrap/image/image.boot")).unwrap();
    let mut tar = Tar::new();
    tar.add(Entry::symlink("image", "../../../../elsewhere"))
        .add(Entry::file("image/image.boot", boot))
        .add(Entry::file("../../up", b"x"))
        .add(Entry::file("/absolute", b"x"))
        .add(Entry::hard("hard", "image/image.boot"));
    let layer = Layer::new(&tar.finish(), Packing::Gzip);
    let layout = place.path("hostile");
    let mut hostile = Layout::create(&layout);
    let image = hostile.manifest_with(&[layer], Flavour::Oci, |manifest, _| {
        manifest["layers"][0]["annotations"] = serde_json::json!({
            "containerd.io/snapshot/nydus-bootstrap": "true",
        });
    });
    hostile.tag(&image, "v6");
    let dir = place.path("work");
    check_into(&dir, &place.oci("hostile", "v6")).exits(1);
    let unpacked = dir.join("target/nydus_bootstrap");
    assert_eq!(files(&unpacked), ["absolute", "image/image.boot", "up"]);
    assert!(!place.path("up").exists() && !dir.join("up").exists());
}
