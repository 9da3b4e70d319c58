//! `--chunk-dict`: what another image has is not stored again.

use std::path::{Path, PathBuf};

use serde_json::Value;
use testkit::tar::{Entry, Tar};
use testkit::{noise, shared_or_skip};

use crate::support::*;

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_layer_with_a_dictionary_is_the_deployed_builders() {
    let Some(shared) = shared_or_skip("a_layer_with_a_dictionary_is_the_deployed_builders") else {
        return;
    };
    let golden = shared.join("golden");
    let dir = tempfile::tempdir().unwrap();
    // Both have the name that ids are taken from.
    let (ours, theirs) = (
        dir.path().join("layer.blob"),
        dir.path().join("layer.theirs"),
    );
    std::fs::copy(golden.join("v6-dict-upper.blob"), &theirs).unwrap();
    let dictionary = golden.join("v6-separate.boot");
    let report = dir.path().join("report.json");
    let value = format!("bootstrap={}", dictionary.display());
    create(
        &golden.join("upper.tar"),
        &ours,
        &["--chunk-dict", &value, "--output-json", text(&report)],
    );
    let verbose = |path: &Path| nydus_image(["check", "-v", text(path)]).ok().stdout;
    assert_eq!(verbose(&ours), verbose(&theirs));
    let (ours, theirs) = (
        json(&report),
        json(&golden.join("v6-dict-upper.create.json")),
    );
    assert_eq!(ours["blobs"][1], theirs["blobs"][1]);
    assert_eq!(ours["blobs"].as_array().unwrap().len(), 2);
    for event in [
        "dedup_chunks",
        "dedup_uncompressed_size",
        "blob_uncompressed_size",
    ] {
        let event = |report: &Value| report["trace"]["registered_events"][event].clone();
        assert_eq!(event(&ours), event(&theirs));
    }
}

/// A layer of these files; where its blob is.
#[track_caller]
fn layer(dir: &Path, name: &str, files: &[u64], options: &[&str]) -> PathBuf {
    let mut tar = Tar::new();
    for file in files {
        tar.add(Entry::file(format!("{file}"), noise(*file, 30_000)));
    }
    let source = dir.join("layer.tar");
    std::fs::write(&source, tar.finish()).unwrap();
    create(&source, &dir.join(name), options)
}

#[test]
fn layers_with_a_dictionary_are_merged_and_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let known = layer(path, "known", &[1, 2], &[]);
    let dictionary = text(&known);
    let low = layer(path, "low", &[1, 3], &["--chunk-dict", dictionary]);
    // Nothing of its own: there is no blob but the bootstrap.
    let high = layer(path, "high", &[2], &["--chunk-dict", dictionary]);
    let merged = path.join("merged");
    let merge = |more: &[&str]| {
        let usual = [
            "merge",
            "--bootstrap",
            text(&merged),
            text(&low),
            text(&high),
        ];
        nydus_image(usual.iter().chain(more))
    };
    merge(&["--chunk-dict", dictionary]).ok();
    let blobs = nydus_image(["inspect", text(&merged), "--request", "blobs"]).ok();
    let blobs: Value = serde_json::from_str(&blobs.stdout).unwrap();
    let mut ids: Vec<&str> = blobs
        .as_array()
        .unwrap()
        .iter()
        .map(|blob| blob["blob_id"].as_str().unwrap())
        .collect();
    ids.sort_unstable();
    assert_eq!(ids, ["known", "low"]);
    let out = path.join("out.tar");
    let unpack = ["unpack", "-B", text(&merged), "--output", text(&out)];
    nydus_image(unpack.iter().chain(&["--blob-dir", text(path)])).ok();
    let bytes = std::fs::read(&out).unwrap();
    for file in 1..=3 {
        let content = noise(file, 30_000);
        assert!(bytes.windows(content.len()).any(|part| part == content));
    }
}

#[test]
fn what_is_no_dictionary_for_the_build_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let known = layer(dir.path(), "known", &[1], &[]);
    let (tar, blob) = (dir.path().join("layer.tar"), dir.path().join("blob"));
    let build = |value: &str, more: &[&str]| {
        let usual = [
            "create",
            "--type",
            "tar-rafs",
            "--blob-inline-meta",
            "--blob",
        ];
        let rest = [text(&blob), "--chunk-dict", value, text(&tar)];
        nydus_image(usual.iter().chain(&rest).chain(more))
    };
    build("registry=x", &[])
        .exits(2)
        .says(&["registry", "bootstrap=PATH"]);
    build("/nonexistent", &[]).exits(1).says(&["/nonexistent"]);
    build(text(&tar), &[]).exits(1).says(&["layer.tar"]);
    build(text(&known), &["--chunk-size", "0x10000"])
        .exits(1)
        .says(&["0x100000", "0x10000", "known"]);
    build(text(&known), &["--fs-version", "5"])
        .exits(1)
        .says(&["known", "same version"]);
    assert!(!blob.exists());
    // Chunks by another digest are others: no error, but nothing is found.
    let ran = build(text(&known), &["--digester", "sha256"]).ok();
    assert!(ran.stderr.contains("no effect"), "{ran}");
}

#[test]
fn a_blob_in_a_directory_has_its_own_name_and_not_that_of_the_dictionary() {
    let dir = tempfile::tempdir().unwrap();
    let known = layer(dir.path(), "known", &[1], &[]);
    let (tar, boot) = (dir.path().join("layer.tar"), dir.path().join("boot"));
    let mut layer = Tar::new();
    for file in [1, 2] {
        layer.add(Entry::file(format!("{file}"), noise(file, 30_000)));
    }
    std::fs::write(&tar, layer.finish()).unwrap();
    let out = dir.path().join("out");
    std::fs::create_dir(&out).unwrap();
    let args = [
        "create",
        "--type",
        "tar-rafs",
        "--chunk-dict",
        text(&known),
        "-B",
        text(&boot),
        "-D",
        text(&out),
        text(&tar),
    ];
    nydus_image(args).ok();
    let mut names = std::fs::read_dir(&out).unwrap().map(Result::unwrap);
    let blob = names.next().unwrap().path();
    assert!(names.next().is_none());
    let digest = testkit::sha256(&std::fs::read(&blob).unwrap());
    assert_eq!(blob.file_name().unwrap().to_str(), Some(digest.as_str()));
}

#[test]
fn a_dictionary_of_several_images_holds_what_two_of_them_have() {
    for version in ["6", "5"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        let report = path.join("report.json");
        let build = |name: &str, files: &[u64], more: &[&str]| match version {
            "6" => layer(path, name, files, more),
            // A layer of v5 has no table of contents.
            _ => {
                let (source, blob) = (path.join("files"), path.join(name));
                std::fs::create_dir(&source).unwrap();
                for file in files {
                    std::fs::write(source.join(file.to_string()), noise(*file, 30_000)).unwrap();
                }
                let usual = [
                    "create",
                    "--fs-version",
                    "5",
                    "--blob-inline-meta",
                    "--blob",
                ];
                let paths = [text(&blob), text(&source)];
                nydus_image(usual.iter().chain(&paths).chain(more)).ok();
                std::fs::remove_dir_all(&source).unwrap();
                blob
            }
        };
        let mut sources = Vec::new();
        for (name, files) in [("one", [1, 2, 3]), ("two", [3, 4, 1]), ("old", [5, 6, 7])] {
            let blob = build(name, &files, &[]);
            let place = path.join(format!("team:{name}:1"));
            std::fs::create_dir(&place).unwrap();
            let boot = place.join("nydus_bootstrap");
            nydus_image(["merge", "--bootstrap", text(&boot), text(&blob)]).ok();
            sources.push(boot);
        }
        // The command line of the deployed nydusify.
        let made = path.join("chunkdict_bootstrap");
        let database = format!("sqlite://{}/database.db", path.display());
        let generate = |sources: &[&str]| {
            let usual = [
                "chunkdict",
                "generate",
                "--log-level",
                "warn",
                "--bootstrap",
                text(&made),
                "--database",
                &database,
                "--output-json",
                text(&report),
            ];
            nydus_image(usual.iter().chain(sources)).ok();
            (std::fs::read(&made).unwrap(), json(&report))
        };
        let [one, two, old] = &sources[..] else {
            panic!()
        };
        let (bytes, _) = generate(&[text(one), text(two), text(old)]);
        let (again, told) = generate(&[text(old), text(two), text(one)]);
        assert!(bytes == again, "in any order");
        assert_eq!(told["blobs"], serde_json::json!(["one"]));
        assert_eq!(told["fs_version"], version);
        assert_eq!(told["trace"]["registered_events"]["dedup_chunks"], 2);
        nydus_image(["check", "--bootstrap", text(&made)]).ok();
        // 2 and 4 were of one image each: they are stored again.
        let value = format!("bootstrap={}", made.display());
        let next = build("next", &[1, 2, 3, 4], &["--chunk-dict", &value]);
        let boot = path.join("next.merged");
        let merge = [
            "merge",
            "--bootstrap",
            text(&boot),
            text(&next),
            "--chunk-dict",
            &value,
        ];
        nydus_image(merge).ok();
        let stat = nydus_image(["check", "-v", text(&boot)]).ok().stdout;
        assert!(stat.contains("one"), "{stat}");
        let out = path.join("out.tar");
        let unpack = ["unpack", "-B", text(&boot), "--output", text(&out)];
        nydus_image(unpack.iter().chain(&["--blob-dir", text(path)])).ok();
        let bytes = std::fs::read(&out).unwrap();
        for file in 1..=4 {
            let content = noise(file, 30_000);
            assert!(bytes.windows(content.len()).any(|part| part == content));
        }
        let stored = std::fs::metadata(&next).unwrap().len();
        assert!((60_000..90_000).contains(&stored), "{stored}");
        assert!(!path.join("database.db").exists());
    }
}
