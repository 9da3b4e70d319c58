//! Further command lines of consumers, word for word; those of the converter's usual way are in `consumer`.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use testkit::run::{Ran, make_fifo, run_in};
use testkit::tar::{Entry, Tar};
use testkit::{noise, prose};

use crate::stack::{Stack, json as read_json};
use crate::support::*;
use crate::unpack::assert_same;

/// Layers of one small file each, of which the uppermost hides the lowest one's.
fn layers(count: u64) -> Vec<Vec<u8>> {
    let layer = |number: u64| {
        let mut tar = Tar::new();
        tar.add(Entry::file(format!("{number}"), prose(number, 3000)));
        if number + 1 == count {
            tar.add(Entry::file(".wh.0", ""));
        }
        tar.finish()
    };
    (0..count).map(layer).collect()
}

/// `nydusify build --compact`: blobs in a bucket, of which there are copies in the directory.
fn compact(stack: &Stack) -> Ran {
    let config = json!({
        "endpoint": "127.0.0.1:1", "scheme": "http", "bucket_name": "b", "object_prefix": "",
        "access_key_id": "", "access_key_secret": "",
    });
    fs::write(stack.path("backend.json"), config.to_string()).unwrap();
    run_in(
        stack.dir.path(),
        NYDUS_IMAGE,
        "compact --bootstrap image.boot --blob-dir blobs --min-used-ratio 5 --compact-blob-size 10485760 \
         --max-compact-size 104857600 --layers-to-compact 32 --backend-type oss --backend-config-file backend.json \
         --log-level info --output-json compact.json --output-bootstrap image.boot.compact",
    )
}

#[test]
fn nydusify_compacts_an_image_of_many_layers() {
    let stack = Stack::new(&layers(33), "");
    let before = stack.tar(&stack.bootstrap);
    assert_eq!(compact(&stack).ok().stdout, "");
    let report = read_json(&stack.path("compact.json"));
    let blobs = report["blobs"].as_array().unwrap();
    assert_eq!(blobs.len(), 1, "{report}");
    // What it pushes is the blob of that name.
    let blob = stack.blobs().join(blobs[0].as_str().unwrap());
    assert_eq!(
        testkit::sha256(&fs::read(&blob).unwrap()),
        blobs[0].as_str().unwrap()
    );
    let after = stack.tar(&stack.path("image.boot.compact"));
    assert_same(&after, &before, "the compacted image");
}

/// It takes the image as it is when there is neither a bootstrap nor a report.
#[test]
fn nydusify_leaves_an_image_of_few_layers_alone() {
    let stack = Stack::new(&layers(3), "");
    compact(&stack).ok();
    for name in ["compact.json", "image.boot.compact"] {
        assert!(!stack.path(name).exists(), "{name}");
    }
}

#[test]
fn nydusify_optimizes_with_blobs_beside_or_behind_a_backend() {
    let stack = Stack::new(&layers(3), "");
    let before = stack.tar(&stack.bootstrap);
    fs::write(
        stack.path("files.json"),
        r#"{"version":"v1","files":[{"path":"/2"},{"path":"/1","ranges":[[0,100]]}]}"#,
    )
    .unwrap();
    let config = json!({ "dir": stack.blobs() }).to_string();
    for backend in [
        vec!["--blob-dir", "blobs"],
        vec!["--backend-type", "localfs", "--backend-config", &config],
    ] {
        let usual = "optimize --log-level warn --prefetch-files files.json --bootstrap image.boot --output-blob-dir out \
                     --output-bootstrap optimized --output-json optimize.json";
        let out = stack.path("out");
        fs::create_dir(&out).unwrap();
        let mut command = Command::new(NYDUS_IMAGE);
        command
            .args(usual.split_whitespace())
            .args(&backend)
            .current_dir(stack.dir.path());
        let ran = testkit::run::output(&mut command).ok();
        assert_eq!((&*ran.stdout, &*ran.stderr), ("", ""));
        let report = read_json(&stack.path("optimize.json"));
        let last = report["blobs"]
            .as_array()
            .unwrap()
            .last()
            .unwrap()
            .as_str()
            .unwrap()
            .to_owned();
        let names: Vec<_> = fs::read_dir(&out)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(
            names,
            [last.as_str()],
            "the new blob alone, the last of the image"
        );
        assert_eq!(testkit::sha256(&fs::read(out.join(&last)).unwrap()), last);
        fs::rename(out.join(&last), stack.blobs().join(&last)).unwrap();
        assert_same(
            &stack.tar(&stack.path("optimized")),
            &before,
            &backend.join(" "),
        );
        fs::remove_file(stack.blobs().join(&last)).unwrap();
        fs::remove_dir(&out).unwrap();
    }
}

/// The snapshotter's way to a disk: it keeps the tars itself, and searches the whole of standard output.
#[test]
fn the_snapshotter_makes_a_disk_of_tars() {
    let dir = tempfile::tempdir().unwrap();
    let run = |words: &str| run_in(dir.path(), NYDUS_IMAGE, words);
    fs::create_dir(dir.path().join("cache")).unwrap();
    let mut layers = Vec::new();
    for seed in 0..2 {
        let mut tar = Tar::new();
        tar.add(Entry::file(format!("{seed}"), noise(seed, 10_000)));
        let tar = tar.finish();
        let id = testkit::sha256(&tar);
        let fifo = dir.path().join("fifo");
        make_fifo(&fifo);
        let bytes = tar.clone();
        let writer = std::thread::spawn({
            let fifo = fifo.clone();
            move || {
                fs::OpenOptions::new()
                    .write(true)
                    .open(fifo)?
                    .write_all(&bytes)
            }
        });
        run(&format!(
            "create --type tar-tarfs --bootstrap {seed}.boot --blob-id {id} --blob-dir cache fifo"
        ))
        .ok();
        writer.join().unwrap().unwrap();
        fs::remove_file(fifo).unwrap();
        fs::write(dir.path().join("cache").join(&id), &tar).unwrap();
        layers.push((id, tar));
    }
    run("merge --bootstrap image.boot 0.boot 1.boot").ok();
    let mut command = Command::new(NYDUS_IMAGE);
    command
        .args(["inspect", "-R blobs", "image.boot"])
        .current_dir(dir.path());
    let listed = testkit::run::output(&mut command).ok();
    for (id, _) in &layers {
        assert!(
            listed.stdout.contains(&format!("\"blob_id\":\"{id}\"")),
            "{listed}"
        );
    }
    for verity in ["", " --verity"] {
        let ran = run(&format!(
            "export --block --localfs-dir cache --bootstrap image.boot --output image.disk{verity}"
        ))
        .ok();
        let disk = fs::read(dir.path().join("image.disk")).unwrap();
        for (_, tar) in &layers {
            assert!(disk.windows(tar.len()).step_by(512).any(|part| part == tar));
        }
        if verity.is_empty() {
            assert_eq!(ran.stdout, "");
            continue;
        }
        let words: Vec<&str> = ran.stdout.strip_suffix('\n').unwrap().split(' ').collect();
        let fixed = "dm-verity options: --no-superblock --format=1 -s \"\" --hash=sha256 --data-block-size=512 \
                     --hash-block-size=4096 --data-blocks";
        let count = fixed.split(' ').count();
        assert_eq!(words[..count].join(" "), fixed);
        let [blocks, option, offset, root] = words[count..] else {
            panic!("{ran}")
        };
        assert!(
            blocks.parse::<u64>().is_ok() && offset.parse::<u64>().is_ok(),
            "{ran}"
        );
        assert_eq!(option, "--hash-offset");
        assert!(
            root.len() == 64 && root.bytes().all(|byte| byte.is_ascii_hexdigit()),
            "{ran}"
        );
    }
}

/// The converter with `NYDUS_DISABLE_TAR2RAFS`, or with a builder whose help it does not know: it unpacks the layer, whiteouts
/// as files, and reads the blob from a FIFO.
fn from_directory(dir: &Path, name: &str) -> Vec<u8> {
    let blob = dir.join("blob.rafs");
    make_fifo(&blob);
    let words = format!(
        "create --log-level warn --prefetch-policy fs --blob blob.rafs --source-type directory --whiteout-spec none \
         --fs-version 6 --inline-bootstrap --features blob-toc --compressor zstd --chunk-size 0x100000 {name}"
    );
    let mut child = Command::new(NYDUS_IMAGE)
        .args(words.split_whitespace())
        .current_dir(dir)
        .env("NYDUS_DISABLE_TAR2RAFS", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let fifo = blob.clone();
    let reader = std::thread::spawn(move || fs::read(fifo).unwrap());
    child.stdin.take().unwrap().write_all(b"/").unwrap();
    let ran = Ran::new(words, child.wait_with_output().unwrap()).ok();
    assert_eq!(ran.stdout, "");
    fs::remove_file(blob).unwrap();
    reader.join().unwrap()
}

#[test]
fn the_converter_packs_directories() {
    let dir = tempfile::tempdir().unwrap();
    let write = |path: &str, content: &[u8]| {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    };
    write("lower/etc/kept", b"kept");
    write("lower/etc/gone", b"gone");
    write("lower/hidden/old", b"old");
    write("upper/etc/.wh.gone", b"");
    write("upper/hidden/.wh..wh..opq", b"");
    write("upper/hidden/new", &noise(1, 1_500_000));
    let mut ids = Vec::new();
    for name in ["lower", "upper"] {
        let blob = from_directory(dir.path(), name);
        let id = testkit::sha256(&blob);
        // The consumer names the bootstrap that it takes out, and the blob, by the digest of all.
        write(&id, &bootstrap(&blob));
        write(&format!("blobs/{id}"), &blob);
        ids.push(id);
    }
    let run = |words: &str| run_in(dir.path(), NYDUS_IMAGE, words).ok();
    run(&format!(
        "merge --log-level warn --prefetch-policy fs --output-json merge-output.json --bootstrap bootstrap {} {}",
        ids[0], ids[1]
    ));
    let report: Value = read_json(&dir.path().join("merge-output.json"));
    assert_eq!(report["blobs"].as_array().unwrap().len(), 2);
    run("unpack --log-level warn --bootstrap bootstrap --blob-dir blobs --output oci.tar");
    let listed = run_in(dir.path(), "tar", "--list --file oci.tar")
        .ok()
        .stdout;
    let mut names: Vec<&str> = listed.lines().filter(|name| !name.ends_with('/')).collect();
    names.sort_unstable();
    assert_eq!(names, ["etc/kept", "hidden/new"], "{listed}");
}
