//! `--config`: where a daemon would find the blobs.

use std::path::{Path, PathBuf};

use testkit::tar::{Entry, Tar};

use crate::support::*;

/// A separate bootstrap, and its blob under its id in `blobs`.
#[track_caller]
fn image(dir: &Path) -> PathBuf {
    let mut tar = Tar::new();
    tar.add(Entry::file("data", testkit::noise(1, 100_000)));
    std::fs::write(dir.join("layer.tar"), tar.finish()).unwrap();
    std::fs::create_dir(dir.join("blobs")).unwrap();
    let bootstrap = dir.join("layer.boot");
    let blobs = dir.join("blobs");
    let options = ["create", "--type", "tar-rafs", "--blob-dir", text(&blobs)];
    let paths = ["--bootstrap", text(&bootstrap)];
    let tar = dir.join("layer.tar");
    nydus_image(options.iter().chain(&paths).chain(&[text(&tar)])).ok();
    bootstrap
}

/// One configuration in each form that daemons take.
fn configs(blobs: &Path) -> [String; 3] {
    let blobs = text(blobs);
    [
        format!(
            r#"{{"version":2,"id":"a","backend":{{"type":"localfs","localfs":{{"dir":"{blobs}"}}}}}}"#
        ),
        format!(
            "version = 2\n[backend]\ntype = \"localfs\"\n[backend.localfs]\ndir = \"{blobs}\"\n"
        ),
        format!(
            r#"{{"device":{{"backend":{{"type":"localfs","config":{{"dir":"{blobs}"}}}}}},"mode":"direct"}}"#
        ),
    ]
}

#[test]
fn blobs_are_checked_where_a_daemon_would_find_them() {
    let dir = tempfile::tempdir().unwrap();
    let bootstrap = image(dir.path());
    let config = dir.path().join("config");
    for (place, found) in [("blobs", true), ("nowhere", false)] {
        for form in configs(&dir.path().join(place)) {
            std::fs::write(&config, form).unwrap();
            let ran = nydus_image(["check", text(&bootstrap), "-C", text(&config)]);
            if found {
                ran.ok();
            } else {
                ran.exits(1).fails_with(&["do not fit together", "missing"]);
            }
            // Consumers that say -B have no blobs at hand.
            nydus_image(["check", "-B", text(&bootstrap), "-C", text(&config)]).ok();
            nydus_image([
                "inspect",
                text(&bootstrap),
                "-C",
                text(&config),
                "-R",
                "stats",
            ])
            .ok();
        }
    }
    std::fs::write(&config, "version = 3\n").unwrap();
    let out = dir.path().join("out");
    for words in [
        &["check", "-B", text(&bootstrap)][..],
        &["inspect", text(&bootstrap), "-R", "stats"],
        &["merge", "-B", text(&out), text(&bootstrap)],
        &["stat", "-B", text(&bootstrap)],
    ] {
        nydus_image(words.iter().chain(&["-C", text(&config)]))
            .exits(1)
            .fails_with(&["config", "version"]);
    }
    assert!(!out.exists());
}

#[test]
fn a_merge_that_can_read_blobs_keeps_their_names() {
    let dir = tempfile::tempdir().unwrap();
    let bootstrap = image(dir.path());
    let blob = std::fs::read_dir(dir.path().join("blobs")).unwrap();
    let blob = blob.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let blob = blob.collect::<Vec<_>>().concat();
    let config = dir.path().join("config");
    let [form, ..] = configs(&dir.path().join("blobs"));
    std::fs::write(&config, form).unwrap();
    let merged = dir.path().join("merged");
    let id = |options: &[&str]| {
        let words = ["merge", "-B", text(&merged), text(&bootstrap)];
        nydus_image(words.iter().chain(options)).ok();
        let answer = nydus_image(["inspect", text(&merged), "-R", "blobs"]).ok();
        let answer: serde_json::Value = serde_json::from_str(&answer.stdout).unwrap();
        answer[0]["blob_id"].as_str().unwrap().to_owned()
    };
    assert_eq!(id(&[]), "layer");
    assert_eq!(id(&["-C", text(&config)]), blob);
    assert_eq!(
        id(&["-C", text(&config), "--original-blob-ids", "other"]),
        blob
    );
    let digest = "ab".repeat(32);
    assert_eq!(
        id(&["-C", text(&config), "--blob-digests", &digest]),
        digest
    );
}
