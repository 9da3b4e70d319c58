//! Where `create` and `merge` put things, what they refuse, and that a failure leaves nothing behind.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rafs_format::Bootstrap;
use rustix::process::{Pid, Signal, kill_process};
use sha2::{Digest as _, Sha256};
use testkit::run::{Ran, code, make_fifo, run_in};
use testkit::scan::names;
use testkit::tar::{Entry, Tar};

const NYDUS_IMAGE: &str = env!("CARGO_BIN_EXE_nydus-image");

/// A directory with `layer.tar` in it and an empty directory `out`.
fn workplace() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut tar = Tar::new();
    tar.add(Entry::directory("usr").mode(0o755))
        .add(Entry::file("usr/file", testkit::prose(1, 300_000)));
    tar.add(Entry::file("other", "data"));
    fs::write(dir.path().join("layer.tar"), tar.finish()).unwrap();
    fs::create_dir(dir.path().join("out")).unwrap();
    dir
}

#[track_caller]
fn run(dir: &Path, words: &str) -> Ran {
    run_in(dir, NYDUS_IMAGE, words)
}

fn sha256(path: PathBuf) -> String {
    hex::encode(Sha256::digest(fs::read(path).unwrap()))
}

fn report(dir: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(dir.join("report")).unwrap()).unwrap()
}

#[test]
fn a_blob_directory_holds_files_named_by_their_digests() {
    let dir = workplace();
    let out = dir.path().join("out");
    run(dir.path(), "create -t tar-rafs -D out -J report layer.tar").ok();
    let report = report(dir.path());
    let (blob, bootstrap) = (
        report["blobs"][0].as_str().unwrap(),
        report["bootstrap"].as_str().unwrap(),
    );
    let name = bootstrap.strip_prefix("out/").unwrap();
    let mut expected = [blob.to_owned(), name.to_owned()];
    expected.sort();
    assert_eq!(names(&out), expected);
    assert_eq!(sha256(out.join(blob)), blob);
    assert_eq!(sha256(out.join(name)), name);
    assert_eq!(
        (&report["fs_version"], &report["compressor"]),
        (&"6".into(), &"zstd".into())
    );
    assert!(report["trace"]["consumed_time"]["total_build"].is_number());
}

#[test]
fn a_native_layer_is_one_file_named_by_its_digest() {
    let dir = workplace();
    run(
        dir.path(),
        "create -t tar-rafs -D out --blob-inline-meta --features blob-toc -J report layer.tar",
    )
    .ok();
    let name = report(dir.path())["blobs"][0].as_str().unwrap().to_owned();
    assert_eq!(names(&dir.path().join("out")), [name.as_str()]);
    assert_eq!(sha256(dir.path().join("out").join(&name)), name);
}

#[test]
fn a_table_of_contents_beside_a_separate_bootstrap_leaves_the_digests_out_of_the_id() {
    let dir = workplace();
    run(
        dir.path(),
        "create -t tar-rafs -b blob -B boot --features blob-toc -J report layer.tar",
    )
    .ok();
    let bootstrap = Bootstrap::parse(fs::read(dir.path().join("boot")).unwrap()).unwrap();
    let id = bootstrap.blobs()[0].id.to_string();
    assert_eq!(report(dir.path())["blobs"][0], id.as_str());
    assert_ne!(sha256(dir.path().join("blob")), id);
}

#[test]
fn archives_may_follow_one_another() {
    let dir = workplace();
    let more = Tar::new().add(Entry::file("behind", "x")).finish();
    let mut layer = fs::OpenOptions::new()
        .append(true)
        .open(dir.path().join("layer.tar"))
        .unwrap();
    layer.write_all(&more).unwrap();
    run(dir.path(), "create -t tar-rafs -D out -B boot layer.tar").ok();
    let bootstrap = Bootstrap::parse(fs::read(dir.path().join("boot")).unwrap()).unwrap();
    let root = bootstrap.inode(bootstrap.root()).unwrap();
    for name in ["other", "behind"] {
        let found = bootstrap.lookup(&root, name.as_bytes()).unwrap();
        assert!(found.is_some(), "{name}");
    }
}

#[test]
fn a_chosen_id_is_recorded() {
    let dir = workplace();
    run(
        dir.path(),
        "create -t tar-rafs -D out -B boot --blob-id my-blob -J report layer.tar",
    )
    .ok();
    assert_eq!(names(&dir.path().join("out")), ["my-blob"]);
    let bootstrap = Bootstrap::parse(fs::read(dir.path().join("boot")).unwrap()).unwrap();
    assert_eq!(bootstrap.blobs()[0].id.as_str(), "my-blob");
}

#[test]
fn a_layer_without_data_leaves_no_blob() {
    let dir = workplace();
    let mut tar = Tar::new();
    tar.add(Entry::directory("d"));
    fs::write(dir.path().join("layer.tar"), tar.finish()).unwrap();
    fs::write(dir.path().join("blob"), "old").unwrap();
    run(dir.path(), "create -t tar-rafs -b blob -B boot layer.tar").ok();
    assert_eq!(names(dir.path()), ["boot", "layer.tar", "out"]);
}

#[test]
fn owners_are_left_out_on_request() {
    let dir = workplace();
    let mut tar = Tar::new();
    tar.add(Entry::file("f", "x").owner(1000, 1000));
    fs::write(dir.path().join("layer.tar"), tar.finish()).unwrap();
    run(
        dir.path(),
        "create -t tar-rafs -b blob -B boot --repeatable layer.tar",
    )
    .ok();
    let bootstrap = Bootstrap::parse(fs::read(dir.path().join("boot")).unwrap()).unwrap();
    assert!(
        !bootstrap
            .superblock()
            .flags
            .contains(rafs_format::SuperFlags::EXPLICIT_UID_GID)
    );
    let root = bootstrap.inode(bootstrap.root()).unwrap();
    let file = bootstrap.lookup(&root, b"f").unwrap().unwrap();
    assert_eq!(bootstrap.inode(file.nid).unwrap().uid, 0);
}

#[test]
fn patterns_from_standard_input_become_the_prefetch_table() {
    let dir = workplace();
    for (policy, expected) in [("fs", 2), ("none", 0)] {
        let words =
            format!("create -t tar-rafs -b blob -B boot --prefetch-policy {policy} layer.tar");
        let mut child = Command::new(NYDUS_IMAGE)
            .args(words.split_whitespace())
            .current_dir(dir.path())
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // With the policy "none" nobody reads them.
        child
            .stdin
            .take()
            .unwrap()
            .write_all(b"/usr\n/usr/file\nrelative\n/missing\n/other\n")
            .ok();
        Ran::new(words, child.wait_with_output().unwrap()).ok();
        let bootstrap = Bootstrap::parse(fs::read(dir.path().join("boot")).unwrap()).unwrap();
        assert_eq!(bootstrap.prefetch().count(), expected, "{policy}");
    }
}

#[test]
fn an_empty_parent_is_none() {
    let dir = workplace();
    run(
        dir.path(),
        "create -t tar-rafs -b blob -B boot --parent-bootstrap= layer.tar",
    )
    .ok();
}

#[test]
fn a_wrong_source_or_place_is_told_before_any_work() {
    let dir = workplace();
    for (words, name) in [
        ("create -t tar-rafs -b blob -B boot out", "out"),
        ("create -t dir-rafs -b blob -B boot layer.tar", "layer.tar"),
        ("create -t tar-rafs -B boot layer.tar", "--blob"),
        ("create -t tar-rafs -B boot -D missing layer.tar", "missing"),
    ] {
        run(dir.path(), words).exits(1).fails_with(&[name]);
        assert_eq!(names(dir.path()), ["layer.tar", "out"], "{words}");
    }
}

#[test]
fn a_truncated_source_leaves_nothing() {
    let dir = workplace();
    let tar = fs::read(dir.path().join("layer.tar")).unwrap();
    fs::write(dir.path().join("layer.tar"), &tar[..100_000]).unwrap();
    fs::write(dir.path().join("blob"), "old").unwrap();
    for place in ["-b blob", "-D out"] {
        run(
            dir.path(),
            &format!("create -t tar-rafs {place} -B boot -J report layer.tar"),
        )
        .exits(1)
        .fails_with(&["layer.tar", "/usr/file"]);
        assert_eq!(names(dir.path()), ["blob", "layer.tar", "out"]);
        assert_eq!(names(&dir.path().join("out")), [] as [&str; 0]);
    }
    assert_eq!(fs::read(dir.path().join("blob")).unwrap(), b"old");
}

#[test]
fn a_bootstrap_that_cannot_be_written_leaves_no_blob_either() {
    let dir = workplace();
    run(
        dir.path(),
        "create -t tar-rafs -b blob -B missing/boot layer.tar",
    )
    .exits(1)
    .fails_with(&["missing"]);
    let mut tar = Tar::new();
    tar.add(Entry::file("f", "data").pax("SCHILY.xattr.user.x", vec![b'v'; 70_000]));
    fs::write(dir.path().join("layer.tar"), tar.finish()).unwrap();
    run(dir.path(), "create -t tar-rafs -b blob -B boot layer.tar")
        .exits(1)
        .fails_with(&["refused"]);
    assert_eq!(names(dir.path()), ["layer.tar", "out"]);
}

#[test]
fn a_signal_ends_it_and_leaves_nothing_even_while_the_source_is_silent() {
    let dir = workplace();
    let source = dir.path().join("fifo");
    make_fifo(&source);
    for (signal, status) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let mut child = Command::new(NYDUS_IMAGE)
            .args("create -t tar-rafs -b out/blob --blob-inline-meta fifo".split_whitespace())
            .current_dir(dir.path())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut writer = fs::OpenOptions::new().write(true).open(&source).unwrap();
        writer
            .write_all(&fs::read(dir.path().join("layer.tar")).unwrap()[..2000])
            .unwrap();
        testkit::run::wait_until("the blob is begun", || {
            !names(&dir.path().join("out")).is_empty()
        });
        std::thread::sleep(Duration::from_millis(50));
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(code(child.wait().unwrap()), status);
        assert_eq!(names(&dir.path().join("out")), [] as [&str; 0]);
    }
}

/// A native layer's bootstrap as `NAME`, and its blob's digest.
fn bootstrap(dir: &Path, name: &str, content: &str) -> String {
    let mut tar = Tar::new();
    tar.add(Entry::file(format!("file-{content}"), content));
    fs::write(dir.join("layer.tar"), tar.finish()).unwrap();
    run(
        dir,
        "create -t tar-rafs -b blob --blob-inline-meta --features blob-toc layer.tar",
    )
    .ok();
    let blob = storage::FileBlob::open(&dir.join("blob")).unwrap();
    fs::write(dir.join(name), storage::extract_bootstrap(&blob).unwrap()).unwrap();
    sha256(dir.join("blob"))
}

#[test]
fn merge_names_blobs_by_files_unless_told_otherwise() {
    let dir = workplace();
    bootstrap(dir.path(), "first.boot.x", "1");
    bootstrap(dir.path(), "second", "2");
    // No blob could be called that.
    let long = "z".repeat(70);
    fs::copy(dir.path().join("second"), dir.path().join(&long)).unwrap();
    run(dir.path(), &format!("merge {long} -B merged"))
        .exits(1)
        .fails_with(&[&long]);
    let digests = ["a".repeat(64), "b".repeat(64)].join(",");
    let ids = |words: &str| {
        run(dir.path(), &format!("merge {words} -J report")).ok();
        let bootstrap = Bootstrap::parse(fs::read(dir.path().join("merged")).unwrap()).unwrap();
        bootstrap.check().unwrap();
        assert_eq!(report(dir.path())["bootstrap"], "merged");
        bootstrap
            .blobs()
            .iter()
            .map(|blob| blob.id.to_string())
            .collect::<Vec<_>>()
            .join(",")
    };
    assert_eq!(ids("first.boot.x second -B merged"), "first,second");
    assert_eq!(
        ids("-B merged first.boot.x second --original-blob-ids x,y"),
        "x,y"
    );
    assert_eq!(
        ids(&format!(
            "-B merged first.boot.x second --blob-digests {digests}"
        )),
        digests
    );
    assert_eq!(
        ids("-B merged second --parent-bootstrap first.boot.x"),
        "first,second"
    );
    ids(&format!(
        "-B merged first.boot.x second --blob-toc-digests {digests} --blob-toc-sizes 5,6 --blob-sizes 7,8"
    ));
    let bootstrap = Bootstrap::parse(fs::read(dir.path().join("merged")).unwrap()).unwrap();
    let facts = |index: usize| {
        let blob = &bootstrap.blobs()[index];
        (blob.toc_digest, blob.toc_size, blob.compressed_size)
    };
    assert_eq!(
        (facts(0), facts(1)),
        (([0xaa; 32], 5, 7), ([0xbb; 32], 6, 8))
    );
}

#[test]
fn a_layer_that_is_named_again_counts_where_it_comes_last() {
    let dir = workplace();
    for (name, file) in [("a", "1"), ("b", "2")] {
        bootstrap(dir.path(), name, file);
    }
    // The same in a file of another name is read each time.
    fs::copy(dir.path().join("a"), dir.path().join("copy")).unwrap();
    let merge = |words: &str| {
        run(dir.path(), &format!("merge -B merged {words}")).ok();
        fs::read(dir.path().join("merged")).unwrap()
    };
    let read_each_time = merge("a b copy b --original-blob-ids x,y,x,y");
    assert_eq!(merge("a b a b --original-blob-ids x,y,x,y"), read_each_time);
    assert_eq!(merge("a b --original-blob-ids x,y"), read_each_time);
    // Not the same blob, so not the same layer.
    let two = merge("a b a --original-blob-ids x,y,z");
    let ids: Vec<String> = Bootstrap::parse(two)
        .unwrap()
        .blobs()
        .iter()
        .map(|blob| blob.id.to_string())
        .collect();
    assert_eq!(ids, ["z", "y"]);
}

#[test]
fn a_merge_that_fails_leaves_what_was_there() {
    let dir = workplace();
    bootstrap(dir.path(), "good", "1");
    let bytes = fs::read(dir.path().join("good")).unwrap();
    fs::write(dir.path().join("cut"), &bytes[..bytes.len() / 2]).unwrap();
    fs::write(dir.path().join("merged"), "old").unwrap();
    let before = names(dir.path());
    for (words, status) in [
        ("merge -B merged -J report good cut", 1),
        ("merge -D out good cut", 1),
        ("merge -B merged good missing", 1),
        // As a layer of another version, it is inconsistent.
        ("merge -B merged good five", 2),
        ("transcode --to 5 -B cut -O merged", 1),
    ] {
        if words.ends_with("five") {
            run(
                dir.path(),
                "create -v 5 -t tar-rafs -D out -B five layer.tar",
            )
            .ok();
        }
        run(dir.path(), words).exits(status);
        if words.ends_with("five") {
            fs::remove_file(dir.path().join("five")).unwrap();
            fs::remove_dir_all(dir.path().join("out")).unwrap();
            fs::create_dir(dir.path().join("out")).unwrap();
        }
        assert_eq!(names(dir.path()), before, "{words}");
        assert_eq!(names(&dir.path().join("out")), [""; 0], "{words}");
    }
    assert_eq!(fs::read(dir.path().join("merged")).unwrap(), b"old");
}

#[test]
fn merge_takes_one_item_for_each_source() {
    let dir = workplace();
    bootstrap(dir.path(), "layer", "1");
    for words in [
        "merge -B merged layer --blob-sizes 1,2",
        "merge -B merged layer --blob-sizes many",
        "merge -B merged layer --blob-digests abc",
        "merge -B merged layer --original-blob-ids a/b",
        "merge layer",
    ] {
        run(dir.path(), words).exits(2);
        assert!(!dir.path().join("merged").exists());
    }
}

#[test]
fn the_log_goes_to_a_file_on_request() {
    let dir = workplace();
    let words =
        "create -l info -L out/messages -t tar-rafs -b blob -B boot --prefetch-policy fs layer.tar";
    let mut child = Command::new(NYDUS_IMAGE)
        .args(words.split_whitespace())
        .current_dir(dir.path())
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"relative\n")
        .unwrap();
    let ran = Ran::new(words.to_owned(), child.wait_with_output().unwrap()).ok();
    assert_eq!(ran.stderr, "");
    let log = fs::read_to_string(dir.path().join("out/messages.log")).unwrap();
    assert!(
        log.starts_with("[20") && log.contains(" +00:00] WARN [") && log.contains("relative"),
        "{log}"
    );
}

#[test]
fn what_the_type_decides_is_said_if_something_else_was_asked_for() {
    let dir = workplace();
    for (kind, asked, says) in [
        ("targz-ref", "--compressor none", "of gzip"),
        ("estargz-ref", "--digester blake3", "of sha256"),
        ("tar-tarfs", "--compressor zstd", "of none"),
    ] {
        let create = |options: &str| {
            let words = format!("create -t {kind} {options} -D out -B boot layer.tar");
            run(dir.path(), &words).ok().stderr
        };
        let plain = create("");
        assert!(!plain.contains("has no effect"), "{plain}");
        let boot = fs::read(dir.path().join("boot")).unwrap();
        let said = create(asked);
        let line = said.lines().find(|line| line.contains("INFO"));
        let line = line.unwrap_or_default();
        assert!(line.contains(asked) && line.contains(says), "{said}");
        assert!(boot == fs::read(dir.path().join("boot")).unwrap());
        // As consumers have it.
        assert_eq!(create(&format!("{asked} --log-level warn")), "");
    }
}
