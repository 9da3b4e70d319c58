//! The kernel reads images that were compacted or optimized.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use storage::DirSource;
use testkit::oracle;
use testkit::run::run_in;
use testkit::tar::{Entry, Tar};

#[track_caller]
fn nydus_image(dir: &Path, words: &str) {
    run_in(dir, env!("CARGO_BIN_EXE_nydus-image"), words).ok();
}

/// Builds the layer `number` into `blobs`; where it is.
#[track_caller]
fn layer(dir: &Path, number: u64) -> String {
    let mut tar = Tar::new();
    tar.add(Entry::file(
        format!("{number}/large"),
        testkit::noise(number, 70_000),
    ))
    .add(Entry::file(
        format!("{number}/small"),
        testkit::prose(number, 3000),
    ))
    .add(Entry::hard(
        format!("{number}/link"),
        format!("{number}/large"),
    ));
    fs::write(dir.join("layer.tar"), tar.finish()).unwrap();
    nydus_image(
        dir,
        "create -t tar-rafs --chunk-size 0x4000 --blob-inline-meta --whiteout-spec none -D blobs -J report layer.tar",
    );
    let report = fs::read(dir.join("report")).unwrap();
    let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
    format!("blobs/{}", report["blobs"][0].as_str().unwrap())
}

#[test]
fn privileged_the_kernel_reads_images_with_new_blobs() {
    let name = "privileged_the_kernel_reads_images_with_new_blobs";
    if let Some(why) = oracle::no_erofs() {
        return testkit::skip(name, why);
    }
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for name in ["blobs", "root"] {
        fs::create_dir(dir.join(name)).unwrap();
    }
    let layers: Vec<_> = (0..3).map(|number| layer(dir, number)).collect();
    nydus_image(dir, &format!("merge -B merged {}", layers.join(" ")));
    let list = r#"{"version":"v1","files":[{"path":"/2/small"},{"path":"/1/link","ranges":[[0,1],[40000,9]]}]}"#;
    fs::write(dir.join("list"), list).unwrap();
    nydus_image(
        dir,
        "compact -B merged -D blobs --layers-to-compact 0 -O compacted",
    );
    for source in ["merged", "compacted"] {
        nydus_image(
            dir,
            &format!(
                "optimize -B {source} -D blobs -p list --output-blob-dir blobs -O optimized-{source}"
            ),
        );
    }
    for (bootstrap, blobs) in [
        ("compacted", 1),
        ("optimized-merged", 4),
        ("optimized-compacted", 2),
    ] {
        let path = dir.join(bootstrap);
        let loaded = storage::load_bootstrap(&path).unwrap();
        let cache = dir.join(format!("cache-{bootstrap}"));
        fs::create_dir(&cache).unwrap();
        let source = Arc::new(DirSource(dir.join("blobs")));
        let devices: Vec<PathBuf> =
            storage::complete_cache_files(&loaded.bootstrap, source, &cache).unwrap();
        assert_eq!(devices.len(), blobs, "{bootstrap}");
        let mount = oracle::kernel_mount(&path, &devices, &dir.join("root")).unwrap();
        let read = |path: String| fs::read(mount.path().join(path)).unwrap();
        for number in 0..3 {
            let large = testkit::noise(number, 70_000);
            assert!(read(format!("{number}/large")) == large, "{bootstrap}");
            assert!(read(format!("{number}/link")) == large, "{bootstrap}");
            let small = testkit::prose(number, 3000);
            assert!(read(format!("{number}/small")) == small, "{bootstrap}");
        }
    }
}
