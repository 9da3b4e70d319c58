//! Blobs outside of the image: in buckets and directories.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use testkit::bucket::{Bucket, Fault};
use testkit::run::{Ran, run};

use crate::support::*;

/// Files in a layout's `blobs`.
fn blobs(layout: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(layout.join("blobs/sha256")).unwrap();
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name();
    entries
        .map(|entry| name(entry).into_string().unwrap())
        .collect()
}

/// Checks the image `v6` in the layout `nydus` with its blobs in a backend.
#[track_caller]
fn check_in(place: &Place, kind: &str, config: &str) -> Ran {
    let (source, target) = (fixture(), place.oci("nydus", "v6"));
    let words = ["check", "--source", &source, "--target", &target];
    let backend = [
        "--target-backend-type",
        kind,
        "--target-backend-config",
        config,
    ];
    run(NYDUSIFY, words.iter().chain(&backend))
}

/// The image `v6` in the layout `nydus` must be that of the contract; the ids of its blobs, which `have` holds.
#[track_caller]
fn assert_external(place: &Place, have: &BTreeSet<String>) {
    let layout = place.path("nydus");
    let manifest = manifest(&layout, "v6");
    let layers = manifest["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 1, "{manifest}");
    let notes = &layers[0]["annotations"];
    assert_eq!(notes["containerd.io/snapshot/nydus-bootstrap"], "true");
    let config = document(&layout, manifest["config"]["digest"].as_str().unwrap());
    let diff_ids = config["rootfs"]["diff_ids"].as_array().unwrap();
    assert_eq!(diff_ids.len(), 1);
    assert_eq!(notes["containerd.io/uncompressed"], diff_ids[0]);
    assert_eq!(
        config["history"],
        json!([{"created_by": "Nydus Converter", "comment": "Nydus Bootstrap Layer"}])
    );
    let named = |value: &Value| value["digest"].as_str().unwrap()["sha256:".len()..].to_owned();
    let own = BTreeSet::from([
        named(&layers[0]),
        named(&manifest["config"]),
        digest(&layout, "v6")["sha256:".len()..].to_owned(),
    ]);
    assert_eq!(blobs(&layout), own, "no blob is in the layout");
    assert_eq!(have.len(), 3, "one for each layer: {have:?}");
}

#[test]
fn blobs_in_a_bucket_are_those_of_the_image() {
    for store in [Bucket::s3(), Bucket::oss()] {
        let place = Place::new();
        let (kind, config) = (store.kind(), store.config("images/"));
        let more = [
            "--backend-type",
            kind,
            "--backend-config",
            &config,
            "--check",
            "--no-journal",
        ];
        let ran = convert(&fixture(), &place.oci("nydus", "v6"), &more).ok();
        assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("", ""));
        let objects = store.objects();
        for (name, bytes) in &objects {
            assert_eq!(*name, format!("images/{}", testkit::sha256(bytes)));
        }
        assert_external(&place, &objects.keys().cloned().collect());
        check_in(&place, kind, &config)
            .ok()
            .says(&["verified image"]);

        // The same image with its blobs: the same blobs.
        convert(&fixture(), &place.oci("whole", "v6"), &["--no-journal"]).ok();
        let whole = blobs(&place.path("whole"));
        for name in objects.keys() {
            assert!(whole.contains(&name["images/".len()..]), "{name}");
        }

        // A copy takes the blobs in, and is then an image like any other.
        let copy = |store: &str, target: &str| {
            let (source, target) = (place.oci("nydus", "v6"), place.oci(target, "v6"));
            let words = ["copy", "--source", &source, "--target", &target];
            let backend = [
                "--source-backend-type",
                kind,
                "--source-backend-config",
                store,
            ];
            run(NYDUSIFY, words.iter().chain(&backend))
        };
        copy(&config, "copied").ok();
        assert_gathered(&place.path("copied"), &objects.keys().cloned().collect());
        check(&fixture(), &place.oci("copied", "v6"))
            .ok()
            .says(&["verified image"]);
        copy(&store.config("elsewhere/"), "nothing")
            .exits(1)
            .says(&["is missing from", "bucket blobs"]);
        assert_clean(&place.path("nothing"), "v6");

        // Where no blob is, nothing is verified.
        check(&fixture(), &place.oci("nydus", "v6"))
            .exits(1)
            .says(&["cannot be opened"]);
        check_in(&place, kind, &store.config("elsewhere/"))
            .exits(1)
            .says(&["is missing from", "bucket blobs"]);
        let wrong = check_in(&place, kind, &store.config_with("images/", "wrong-sesame"));
        let wrong = wrong.exits(1).says(&["403"]);
        assert!(
            !wrong.stderr.contains("sesame") && !wrong.stdout.contains("sesame"),
            "{wrong}"
        );

        // A store that fails for good leaves no tag.
        store.fail(Fault {
            request: "PUT ",
            status: 403,
            body: "<Error><Code>AccessDenied</Code></Error>",
            times: 1000,
        });
        let more = [
            "--backend-type",
            kind,
            "--backend-config",
            &config,
            "--backend-force-push",
            "--no-journal",
        ];
        convert(&fixture(), &place.oci("failed", "v6"), &more)
            .fails_with(&["AccessDenied", "convert layer"]);
        assert_clean(&place.path("failed"), "v6");
    }
}

/// The image `v6` in the layout must list the blobs of `objects` (in a bucket, by their names) before its bootstrap.
#[track_caller]
fn assert_gathered(layout: &Path, objects: &BTreeSet<String>) {
    let manifest = manifest(layout, "v6");
    let layers = manifest["layers"].as_array().unwrap();
    let (bootstrap, listed) = layers.split_last().unwrap();
    assert_eq!(
        bootstrap["annotations"]["containerd.io/snapshot/nydus-bootstrap"],
        "true"
    );
    let digests: Vec<&Value> = listed.iter().map(|layer| &layer["digest"]).collect();
    let names = digests.iter().map(|digest| {
        let digest = digest.as_str().unwrap().strip_prefix("sha256:").unwrap();
        format!("images/{digest}")
    });
    assert_eq!(names.collect::<BTreeSet<_>>(), *objects);
    for layer in listed {
        assert_eq!(
            layer["annotations"],
            json!({"containerd.io/snapshot/nydus-blob": "true"})
        );
    }
    let config = document(layout, manifest["config"]["digest"].as_str().unwrap());
    let diff_ids = config["rootfs"]["diff_ids"].as_array().unwrap();
    assert_eq!(diff_ids.len(), layers.len());
    assert!(
        diff_ids
            .iter()
            .zip(&digests)
            .all(|(id, digest)| id == *digest)
    );
}

#[test]
fn blobs_in_a_directory_are_found_by_all_commands() {
    let place = Place::new();
    let dir = place.path("blobs");
    let file = place.path("backend.json");
    std::fs::write(&file, json!({"dir": dir}).to_string()).unwrap();
    let (source, target, journal) = (fixture(), place.oci("nydus", "v6"), place.path("journal"));
    let journal = journal.to_str().unwrap();
    // As scripts of the deployed tool have it.
    let with = |words: &[&str]| {
        let output = Command::new(NYDUSIFY)
            .args(words)
            .env("BACKEND_TYPE", "localfs")
            .env("BACKEND_CONFIG_FILE", &file)
            .output()
            .unwrap();
        Ran::new(words.join(" "), output)
    };
    let words = [
        "convert",
        "--source",
        &source,
        "--target",
        &target,
        "--journal-dir",
        journal,
    ];
    with(&words).ok();
    let names = || -> BTreeSet<String> {
        let entries = std::fs::read_dir(&dir).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    };
    assert_external(&place, &names());
    with(&["check", "--source", &source, "--target", &target]).ok();

    // An earlier run's blobs are asked for where they are, and made again where they are not.
    let before = names();
    with(&words)
        .ok()
        .says(&["3 layers", "converted by an earlier run"]);
    std::fs::remove_file(dir.join(before.first().unwrap())).unwrap();
    with(&["check", "--target", &target])
        .exits(1)
        .says(&[before.first().unwrap()]);
    with(&words)
        .ok()
        .says(&["2 layers", "converted by an earlier run"]);
    assert_eq!(names(), before);
    with(&["check", "--target", &target]).ok();

    // A bare bootstrap with its blobs in a backend.
    let work = place.path("work");
    with(&[
        "check",
        "--target",
        &target,
        "--work-dir",
        work.to_str().unwrap(),
    ])
    .ok();
    let bootstrap = work.join("target/nydus_bootstrap/image/image.boot");
    let ran = with(&[
        "check",
        "--bootstrap",
        bootstrap.to_str().unwrap(),
        "--output",
        "json",
    ])
    .ok();
    assert!(ran.stdout.contains("\"chunks_read\""), "{ran}");
}

#[test]
fn mistakes_in_a_backends_options_are_named_before_any_work() {
    let place = Place::new();
    let target = place.oci("nydus", "v6");
    let cases: [(&[&str], &str); 5] = [
        (
            &["--backend-type", "ftp"],
            "the types are oss, s3 and localfs",
        ),
        (&["--backend-type", "s3"], "its configuration is empty"),
        (
            &["--backend-type", "s3", "--backend-config", "{}"],
            "\"region\" is missing",
        ),
        (
            &[
                "--backend-type",
                "s3",
                "--backend-config",
                "{\"access_key_secret\":\"sesame\"",
            ],
            "no JSON",
        ),
        (
            &[
                "--backend-config",
                "{\"access_key_secret\":\"sesame\"}",
                "--backend-config-file",
                "x",
            ],
            "exclude one another",
        ),
    ];
    for (more, word) in cases {
        let ran = convert(&fixture(), &target, more).exits(2);
        assert!(
            ran.stderr.contains(word) && !ran.stderr.contains("sesame"),
            "{}",
            ran.stderr
        );
        assert!(!place.path("nydus").exists());
    }
    let help = Command::new(NYDUSIFY)
        .args(["convert", "--help"])
        .env("BACKEND_CONFIG", "{\"access_key_secret\":\"sesame\"}")
        .output()
        .unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    assert!(
        help.contains("--backend-config <JSON>") && !help.contains("sesame"),
        "{help}"
    );
}
