//! RAFS v5 from one end to the other, and from one version to the other.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::Command;

use bootstrap::Parsed;
use rafs_format::{BlobFeatures, Bootstrap, Version};
use testkit::run::{Ran, run_in};
use testkit::scan::names;
use testkit::tar::{Entry, Tar};

const NYDUS_IMAGE: &str = env!("CARGO_BIN_EXE_nydus-image");

/// A directory with two layers, an empty directory `out` and a directory `src` in it.
fn workplace() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut lower = Tar::new();
    lower
        .add(Entry::directory("usr").mode(0o755))
        .add(Entry::file("usr/file", testkit::prose(1, 3_000_000)).xattr("user.a", "b"))
        .add(Entry::hard("usr/link", "usr/file"))
        .add(Entry::symlink("usr/symlink", "file"))
        .add(Entry::file("gone", testkit::prose(2, 50_000)));
    fs::write(dir.path().join("lower.tar"), lower.finish()).unwrap();
    let mut upper = Tar::new();
    upper
        .add(Entry::file(".wh.gone", ""))
        .add(Entry::file("usr/new", testkit::prose(3, 70_000)));
    fs::write(dir.path().join("upper.tar"), upper.finish()).unwrap();
    for name in ["out", "src", "src/sub"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    fs::write(dir.path().join("src/sub/file"), testkit::noise(4, 30_000)).unwrap();
    fs::hard_link(dir.path().join("src/sub/file"), dir.path().join("src/link")).unwrap();
    dir
}

#[track_caller]
fn run(dir: &Path, words: &str) -> Ran {
    run_in(dir, NYDUS_IMAGE, words)
}

fn parsed(path: &Path) -> Parsed {
    Parsed::parse(fs::read(path).unwrap()).unwrap()
}

fn report(dir: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(dir.join("report")).unwrap()).unwrap()
}

/// Builds both layers into `out`, named by their digests as a registry has them, and merges them to `image.boot`.
fn image(dir: &Path, options: &str) {
    let mut sources = Vec::new();
    for layer in ["lower", "upper"] {
        let words = format!(
            "create -t tar-rafs --blob-inline-meta --whiteout-spec none -D out -J report {options} {layer}.tar"
        );
        run(dir, &words).ok();
        sources.push(format!("out/{}", report(dir)["blobs"][0].as_str().unwrap()));
    }
    run(
        dir,
        &format!("merge -B image.boot -J report {}", sources.join(" ")),
    )
    .ok();
}

#[test]
fn a_v5_image_is_built_merged_checked_and_inspected() {
    let dir = workplace();
    let at = dir.path();
    image(at, "-v 5");
    let report = report(at);
    assert_eq!(
        (&report["fs_version"], &report["compressor"]),
        (&"5".into(), &"zstd".into())
    );
    let blobs: Vec<&str> = report["blobs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|b| b.as_str().unwrap())
        .collect();
    let mut sorted = blobs.clone();
    sorted.sort_unstable();
    assert_eq!(names(&at.join("out")), sorted);
    for blob in &blobs {
        let bytes = fs::read(at.join("out").join(blob)).unwrap();
        assert_eq!(testkit::sha256(&bytes), *blob);
        // A v5 blob ends in its bootstrap: chunks, header, bootstrap, header.
        assert_eq!(&bytes[bytes.len() - 512..][..11], b"image.boot\0");
        run(at, &format!("check out/{blob}")).ok();
    }
    let checked = run(at, "check -v -D out image.boot").ok();
    assert!(
        checked.stdout.contains("RAFS metadata is valid"),
        "{checked}"
    );
    assert!(
        checked.stdout.contains("features: cap_toc tar-header"),
        "{checked}"
    );
    let stats = run(at, "inspect -R stats image.boot").ok();
    assert_eq!(stats.stdout, "{\"inodes_count\":5}");
    assert!(
        run(at, "inspect -R ls image.boot")
            .ok()
            .stdout
            .contains("\"usr\"")
    );
    let Parsed::V5(bootstrap) = parsed(&at.join("image.boot")) else {
        panic!("v6")
    };
    assert_eq!(bootstrap.names(), 6);
    let loaded = Parsed::V5(bootstrap).load().unwrap();
    assert!(loaded.tree.lookup(b"/gone").is_none());
    let file = loaded.tree.lookup(b"/usr/file").unwrap();
    assert_eq!(loaded.tree.lookup(b"/usr/link"), Some(file));
}

#[test]
fn a_directory_is_built_and_listed_first_files_are_kept() {
    use std::io::Write as _;
    let dir = workplace();
    let at = dir.path();
    let mut child = Command::new(NYDUS_IMAGE)
        .args("create -v 5 --prefetch-policy fs -b blob -B boot src".split(' '))
        .current_dir(at)
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"/sub\n/link\n")
        .unwrap();
    assert!(child.wait().unwrap().success());
    let Parsed::V5(bootstrap) = parsed(&at.join("boot")) else {
        panic!("v6")
    };
    bootstrap.check(codec::digest).unwrap();
    assert_eq!(bootstrap.prefetch().collect::<Vec<_>>(), [3, 2]);
    let prefetch = run(at, "inspect -R prefetch boot").ok().stdout;
    assert_eq!(
        prefetch,
        r#"[{"inode":3,"path":["/sub"]},{"inode":2,"path":["/link","/sub/file"]}]"#
    );
}

#[test]
fn what_v5_cannot_do_is_refused_and_leaves_nothing_behind() {
    let dir = workplace();
    let at = dir.path();
    let before = names(at);
    run(
        at,
        "create -v 5 -t tar-rafs -b blob --blob-inline-meta --features blob-toc lower.tar",
    )
    .exits(2)
    .fails_with(&["blob-toc", "--fs-version 5"]);
    assert_eq!(names(at), before);
    image(at, "-v 5");
    let lower = report(at)["blobs"][1].as_str().unwrap().to_owned();
    let before = names(at);
    run(at, "create -v 6 -t tar-rafs -b v6 -B v6.boot upper.tar").ok();
    run(at, &format!("merge -B mixed out/{lower} v6.boot"))
        .exits(2)
        .fails_with(&["RAFS version"]);
    run(
        at,
        "create -v 5 --compressor none -t tar-rafs -b none -B none.boot upper.tar",
    )
    .ok();
    run(at, &format!("merge -B mixed out/{lower} none.boot"))
        .exits(2)
        .fails_with(&["compressor"]);
    let after: Vec<_> = names(at)
        .into_iter()
        .filter(|name| !before.contains(name))
        .collect();
    assert_eq!(after, ["none", "none.boot", "v6", "v6.boot"]);
}

#[test]
fn damage_is_named_by_its_path() {
    let dir = workplace();
    let at = dir.path();
    image(at, "-v 5");
    let mut bytes = fs::read(at.join("image.boot")).unwrap();
    let name = bytes
        .windows(8)
        .position(|name| name == b"symlink\0")
        .unwrap();
    bytes[name + 8] ^= 1;
    fs::write(at.join("damaged"), bytes).unwrap();
    let ran = run(at, "check damaged").exits(1);
    ran.fails_with(&[
        "damaged is not valid",
        "/usr/symlink",
        "the digest is not that of its data",
    ]);
}

/// From v6 to v5 and back: blobs made for v6 hold their tables, so the way back needs nothing else.
#[test]
fn v6_becomes_v5_and_v6_again() {
    let dir = workplace();
    let at = dir.path();
    image(at, "-v 6 --features blob-toc");
    run(at, "transcode --to 5 -B image.boot -O five.boot -J report").ok();
    assert_eq!(report(at)["fs_version"], "5");
    run(at, "check -v five.boot").ok();
    let (six, five) = (
        parsed(&at.join("image.boot")),
        parsed(&at.join("five.boot")),
    );
    assert_eq!(five.version(), Version::V5);
    let (mut six, mut five) = (six.load().unwrap(), five.load().unwrap());
    six.compact().unwrap();
    five.compact().unwrap();
    assert_eq!(six.tree, five.tree);
    let files = names(&at.join("out"));
    run(at, "transcode --to 6 -B five.boot -O again.boot")
        .exits(1)
        .fails_with(&["no reader of v6", "blob "]);
    run(at, "transcode --to 6 -B five.boot -O again.boot -D out").ok();
    assert_eq!(
        names(&at.join("out")),
        files,
        "no table is written for a blob that has one"
    );
    let again = Bootstrap::parse(fs::read(at.join("again.boot")).unwrap()).unwrap();
    again.check().unwrap();
    run(at, "check -D out again.boot").ok();
    let places = |path: &str| -> Vec<_> {
        let bootstrap = Bootstrap::parse(fs::read(at.join(path)).unwrap()).unwrap();
        let table = bootstrap.chunk_table();
        table
            .map(|chunk| {
                let chunk = chunk.unwrap();
                (
                    chunk.blob_index,
                    chunk.index,
                    chunk.uncompressed_offset,
                    chunk.compressed_offset,
                )
            })
            .collect()
    };
    assert_eq!(places("again.boot"), places("image.boot"));
}

/// A blob made for v5 gets its table in a blob of its own.
#[test]
fn v5_becomes_v6_with_a_table_beside_the_blob() {
    let dir = workplace();
    let at = dir.path();
    image(at, "-v 5");
    let files = names(&at.join("out"));
    run(at, "transcode --to 6 -B image.boot -O six.boot")
        .exits(1)
        .fails_with(&["hold a table of its chunks", "blob "]);
    assert!(!at.join("six.boot").exists());
    run(at, "transcode --to 6 -B image.boot -O six.boot -D out").ok();
    let bootstrap = Bootstrap::parse(fs::read(at.join("six.boot")).unwrap()).unwrap();
    bootstrap.check().unwrap();
    let new: Vec<_> = names(&at.join("out"))
        .into_iter()
        .filter(|name| !files.contains(name))
        .collect();
    let mut tables = Vec::new();
    for info in bootstrap.blobs() {
        assert!(
            info.features
                .contains(BlobFeatures::SEPARATE | BlobFeatures::CHUNK_INFO_V2)
        );
        let id = hex::encode(info.meta_digest);
        let bytes = fs::read(at.join("out").join(&id)).unwrap();
        assert_eq!(
            (testkit::sha256(&bytes), bytes.len() as u64),
            (id.clone(), info.meta_size)
        );
        tables.push(id);
    }
    tables.sort();
    assert_eq!(new, tables);
    let mut six = parsed(&at.join("six.boot")).load().unwrap();
    let mut five = parsed(&at.join("image.boot")).load().unwrap();
    six.compact().unwrap();
    five.compact().unwrap();
    assert_eq!(six.tree, five.tree);
    run(at, "check -D out six.boot").ok();
    // Another blob under the name of one of them is noticed, and nothing is written.
    let id = bootstrap.blobs()[0].id.to_string();
    fs::remove_file(at.join("out").join(&id)).unwrap();
    run(at, "create -t tar-rafs -b other -B other.boot upper.tar").ok();
    fs::rename(at.join("other"), at.join("out").join(&id)).unwrap();
    run(at, "transcode --to 6 -B image.boot -O seven.boot -D out")
        .exits(1)
        .fails_with(&[&id]);
    assert!(!at.join("seven.boot").exists());
}

/// What an independent decoder makes of the result: it reads the table and verifies every chunk.
#[test]
fn the_independent_decoder_verifies_a_transcoded_image() {
    let Some(shared) =
        testkit::shared_or_skip("the_independent_decoder_verifies_a_transcoded_image")
    else {
        return;
    };
    let dir = workplace();
    let at = dir.path();
    // Neither the chunk nor its table of 24 bytes shrinks, and SHA-256 is in Python's library.
    run(
        at,
        "create -v 5 --compressor none --digester sha256 -D out -B boot src",
    )
    .ok();
    run(at, "transcode --to 6 -B boot -O six.boot -D out").ok();
    let dump = testkit::run::run(
        "python3",
        [
            shared.join("tools/rafsdump.py").to_str().unwrap(),
            "boot",
            at.join("six.boot").to_str().unwrap(),
            "--blob-dir",
            at.join("out").to_str().unwrap(),
            "--verify",
            "--no-inodes",
        ],
    )
    .ok();
    let dump: serde_json::Value = serde_json::from_str(&dump.stdout).unwrap();
    assert_eq!(dump["verify"][0]["chunks_verified"], 1, "{dump}");
}
