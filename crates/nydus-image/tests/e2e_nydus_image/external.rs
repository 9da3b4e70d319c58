//! Model images: `--attributes` and `--external-blob` as converters give them.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;
use std::thread;

use rafs_format::Bootstrap;
use serde_json::Value;
use testkit::run::{Ran, make_fifo, run_in};
use testkit::scan::names;

use crate::support::*;

#[track_caller]
fn run(dir: &Path, words: &str) -> Ran {
    run_in(dir, NYDUS_IMAGE, words)
}

/// A model: two files in blobs of their own, and two that are there. No piece of the blobs is read.
fn model() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("model/weights")).unwrap();
    for name in ["weights/a.bin", "config.json"] {
        fs::write(at("model").join(name), "").unwrap();
    }
    for name in ["weights/readme", "own"] {
        fs::write(at("model").join(name), "content").unwrap();
    }
    let lines = [
        format!(
            "/weights/a.bin type=external file_size=2500000 blob_index=0 blob_id={} chunk_size=1.0MiB \
             chunk_0_compressed_offset=1024 compressed_size=2600000 crcs=0x11,0x22,0x33",
            "a".repeat(64)
        ),
        format!(
            "/config.json type=external file_size=300 blob_index=1 blob_id={} chunk_size=4MiB \
             chunk_0_compressed_offset=512 compressed_size=2048 crcs=",
            "b".repeat(64)
        ),
    ];
    fs::write(at("attributes"), lines.join("\n")).unwrap();
    dir
}

fn report(dir: &Path) -> Value {
    serde_json::from_slice(&fs::read(dir.join("report")).unwrap()).unwrap()
}

#[test]
fn a_model_goes_through_two_fifos() {
    for (version, toc) in [("6", "--features blob-toc"), ("5", "")] {
        let dir = model();
        let path = dir.path();
        for name in ["blob", "external"] {
            make_fifo(&path.join(name));
        }
        // One after the other: a reader need not be at both at once.
        let (blob, external) = (path.join("blob"), path.join("external"));
        let reader = thread::spawn(move || {
            [blob, external].map(|path| {
                let mut bytes = Vec::new();
                File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
                bytes
            })
        });
        run(
            path,
            &format!(
                "create --log-level warn --prefetch-policy fs --blob blob --external-blob external --whiteout-spec none \
                 --fs-version {version} --blob-inline-meta {toc} --type dir-rafs --attributes attributes -J report model"
            ),
        )
        .ok();
        let [blob, external] = reader.join().unwrap();
        let report = report(path);
        assert_eq!(report["external_bootstrap"], "");
        let ids = ["a".repeat(64), "b".repeat(64)];
        assert_eq!(report["external_blobs"], serde_json::json!(ids));
        assert_eq!(report["blobs"][0], testkit::sha256(&blob).as_str());
        for (name, blob, paths) in [
            ("own", &blob, ["/own", "/weights/readme"]),
            ("outside", &external, ["/config.json", "/weights/a.bin"]),
        ] {
            let bootstrap = match toc {
                "" => section(blob, "image.boot").unwrap(),
                _ => bootstrap(blob),
            };
            fs::write(path.join(name), bootstrap).unwrap();
            let listed = run(path, &format!("check -v --bootstrap {name}"))
                .ok()
                .stdout;
            for path in paths {
                assert!(listed.contains(path), "{listed}");
            }
        }
        let listed = run(path, "inspect outside --request blobs").ok();
        let listed: Value = serde_json::from_str(&listed.stdout).unwrap();
        assert_eq!(listed[1]["blob_id"], ids[1].as_str());
        // No ids from file names.
        run(path, "merge -B merged outside -J report").ok();
        let merged = self::report(path);
        let mut blobs: Vec<&str> = merged["blobs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|id| id.as_str().unwrap())
            .collect();
        blobs.sort_unstable();
        assert_eq!(blobs, ids);
        // What readers say of data that is not theirs.
        fs::create_dir(path.join("blobs")).unwrap();
        for id in &ids {
            fs::write(path.join("blobs").join(id), vec![0; 2_600_000]).unwrap();
        }
        run(
            path,
            "unpack --bootstrap outside --blob-dir blobs --output tar",
        )
        .exits(1)
        .fails_with(&[&ids[0], "external"]);
        assert!(!path.join("tar").exists());
    }
}

#[test]
fn files_of_an_external_image_lie_beside_the_others() {
    let dir = model();
    let path = dir.path();
    fs::write(path.join("external"), "old").unwrap();
    let more = "--attributes attributes -J report model";
    run(
        path,
        &format!("create -B image.boot -b blob --external-blob external {more}"),
    )
    .ok();
    assert_eq!(report(path)["external_bootstrap"], "image.external");
    let bootstrap = Bootstrap::parse(fs::read(path.join("image.external")).unwrap()).unwrap();
    bootstrap.check().unwrap();
    let digest = hex::encode(bootstrap.blobs()[0].meta_digest);
    assert_eq!(
        digest,
        testkit::sha256(&fs::read(path.join("external")).unwrap())
    );
    // v5 has no tables, so that there is nothing to write.
    run(
        path,
        &format!("create --fs-version 5 -B image.boot -b blob --external-blob external {more}"),
    )
    .ok();
    run(path, "check image.external").ok();
    assert!(!path.join("external").exists());
    fs::create_dir(path.join("out")).unwrap();
    run(path, &format!("create -D out {more}")).ok();
    let report = report(path);
    let external = report["external_bootstrap"].as_str().unwrap().to_owned();
    let found = names(&path.join("out"));
    assert_eq!(found.len(), 4);
    let named = external.strip_prefix("out/").unwrap();
    assert!(found.iter().any(|name| name == named), "{found:?}");
    let bytes = fs::read(path.join(&external)).unwrap();
    assert_eq!(format!("{}.external", testkit::sha256(&bytes)), named);
    // The same input gives the same bytes.
    run(path, &format!("create -D out {more}")).ok();
    assert_eq!(names(&path.join("out")), found);
}

#[test]
fn what_has_no_external_files_is_refused_and_leaves_nothing() {
    let dir = model();
    let path = dir.path();
    fs::write(path.join("wrong"), "/own type=external crcs=x\n").unwrap();
    fs::write(path.join("bare"), "/own type=external\n").unwrap();
    fs::write(path.join("layer.tar"), testkit::tar::Tar::new().finish()).unwrap();
    let before = names(path);
    for (words, status, what) in [
        (
            "-t tar-rafs --attributes attributes -B boot -b blob layer.tar",
            2,
            "--attributes",
        ),
        (
            "-t tar-rafs --external-blob x -B boot -b blob layer.tar",
            2,
            "--external-blob",
        ),
        (
            "--attributes attributes --parent-bootstrap x -B boot -b blob model",
            2,
            "--parent-bootstrap",
        ),
        (
            "--attributes attributes -B boot.external -b blob model",
            2,
            ".external",
        ),
        (
            "--attributes attributes -B boot -b blob model",
            1,
            "--external-blob",
        ),
        (
            "--attributes attributes --blob-inline-meta -b blob model",
            1,
            "--external-blob",
        ),
        ("--attributes wrong -B boot -b blob model", 1, "line 1"),
        ("--attributes missing -B boot -b blob model", 1, "missing"),
        (
            "--attributes bare -B boot -b blob model",
            1,
            "/own (line 1): blob_index",
        ),
    ] {
        run(path, &format!("create {words}"))
            .exits(status)
            .fails_with(&[what]);
        assert_eq!(names(path), before, "{words}");
    }
    // A line about nothing is told of.
    fs::write(path.join("wrong"), "/nothing type=external\n").unwrap();
    let ran = run(path, "create --attributes wrong -B boot -b blob model").ok();
    assert!(ran.stderr.contains("/nothing"), "{}", ran.stderr);
}
