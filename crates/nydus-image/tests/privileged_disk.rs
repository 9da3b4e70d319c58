//! Disks before other judges: the kernel mounts them through a loop device, `veritysetup` verifies their hash trees.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use std::os::unix::fs::{FileExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use testkit::expect::compare;
use testkit::oracle::{self, LoopDevice};
use testkit::run::{Ran, output, run};
use testkit::shared_or_skip;

#[track_caller]
fn nydus_image(args: &[&str]) -> Ran {
    run(env!("CARGO_BIN_EXE_nydus-image"), args)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The golden files; says aloud why there is nothing to do.
fn golden(name: &str) -> Option<PathBuf> {
    if let Some(why) = oracle::no_erofs() {
        testkit::skip(name, why);
        return None;
    }
    for (program, why) in [
        ("losetup", "no losetup (apt-get install mount)"),
        (
            "veritysetup",
            "no veritysetup (apt-get install cryptsetup-bin)",
        ),
    ] {
        if oracle::program(program).is_none() {
            testkit::skip(name, why);
            return None;
        }
    }
    Some(shared_or_skip(name)?.join("golden"))
}

/// Exports an image with a hash tree; the disk and what `veritysetup` is to be told.
#[track_caller]
fn export(bootstrap: &Path, blobs: &Path, dir: &Path) -> (PathBuf, String) {
    let disk = dir.join("disk");
    let words = [
        "export",
        "--block",
        "--verity",
        "--localfs-dir",
        text(blobs),
    ];
    let paths = ["--bootstrap", text(bootstrap), "--output", text(&disk)];
    let ran = nydus_image(&[&words[..], &paths].concat()).ok();
    let line = ran.stdout.strip_prefix("dm-verity options: ").unwrap();
    (disk, line.trim_end().to_owned())
}

/// Runs `veritysetup verify` with the options as they were printed.
fn verify(disk: &Path, options: &str) -> Ran {
    let (options, root) = options.rsplit_once(' ').unwrap();
    let disk = text(disk);
    let line =
        format!("PATH=$PATH:/usr/sbin:/sbin veritysetup verify {disk} {disk} {root} {options}");
    output(Command::new("sh").args(["-c", &line]))
}

/// Holds the kernel's view of a disk, and the disk's hash tree, to what they have to be.
#[track_caller]
fn judge(bootstrap: &Path, blobs: &Path, expect: &Path) {
    let dir = tempfile::tempdir().unwrap();
    let (disk, options) = export(bootstrap, blobs, dir.path());
    let at = dir.path().join("root");
    std::fs::create_dir(&at).unwrap();
    let device = LoopDevice::attach(&disk).unwrap();
    let mount = oracle::kernel_mount(device.path(), &[], &at).unwrap();
    let mut differences = compare(mount.path(), expect);
    // The bootstrap of a lone layer keeps its whiteouts as files; the expected trees do not name them.
    differences
        .retain(|difference| !(difference.starts_with("extra ") && difference.contains(".wh.")));
    assert!(
        differences.is_empty(),
        "{}: {differences:#?}",
        bootstrap.display()
    );
    drop(mount);
    drop(device);
    verify(&disk, &options).ok();
    let file = std::fs::OpenOptions::new().write(true).open(&disk).unwrap();
    file.write_all_at(b"damage", std::fs::read(bootstrap).unwrap().len() as u64)
        .unwrap();
    let ran = verify(&disk, &options);
    assert_ne!(
        ran.code,
        0,
        "{}: damage is found: {ran}",
        bootstrap.display()
    );
}

#[test]
fn privileged_the_kernel_mounts_disks_of_golden_images() {
    let Some(golden) = golden("privileged_the_kernel_mounts_disks_of_golden_images") else {
        return;
    };
    let blobs = tempfile::tempdir().unwrap();
    let sums = std::fs::read_to_string(golden.join("SHA256SUMS")).unwrap();
    for (digest, name) in sums.lines().filter_map(|line| line.split_once("  ")) {
        symlink(golden.join(name), blobs.path().join(digest)).unwrap();
    }
    // The blob of a tarfs image is the tar.
    let tar = golden.join("lower.tar");
    let id = testkit::sha256(&std::fs::read(&tar).unwrap());
    symlink(tar, blobs.path().join(id)).unwrap();
    for (image, expect) in [
        ("v6-zstd.blob", "lower.tar.expect.json"),
        ("v6-zstd-64k.blob", "lower.tar.expect.json"),
        ("v6-batch.blob", "lower.tar.expect.json"),
        ("v6-encrypt.blob", "lower.tar.expect.json"),
        ("v6-separate.boot", "lower.tar.expect.json"),
        ("v6-dict-upper.blob", "upper.tar.expect.json"),
        ("merged/v6.boot", "merged.expect.json"),
        ("tarfs/v6-tarfs.boot", "lower.tar.expect.json"),
    ] {
        judge(&golden.join(image), blobs.path(), &golden.join(expect));
    }
}

#[test]
fn privileged_the_kernel_mounts_disks_of_ours() {
    let Some(golden) = golden("privileged_the_kernel_mounts_disks_of_ours") else {
        return;
    };
    for kind in ["tar-rafs", "tar-tarfs"] {
        let dir = tempfile::tempdir().unwrap();
        let blobs = dir.path().join("blobs");
        std::fs::create_dir(&blobs).unwrap();
        let merged = dir.path().join("merged");
        let mut merge = vec![
            "merge".to_owned(),
            "--bootstrap".into(),
            text(&merged).into(),
        ];
        for name in ["lower.tar", "upper.tar"] {
            let tar = golden.join(name);
            let boot = dir.path().join(name.replace(".tar", ""));
            let blob = blobs.join(name.replace(".tar", ""));
            let words = ["create", "--type", kind, "--whiteout-spec", "none"];
            let paths = [
                "--bootstrap",
                text(&boot),
                "--blob",
                text(&blob),
                text(&tar),
            ];
            if kind == "tar-tarfs" {
                symlink(&tar, &blob).unwrap();
                let id = name.replace(".tar", "");
                let dir = ["--blob-id", &id, "--bootstrap", text(&boot), text(&tar)];
                nydus_image(&[&words[..3], &dir].concat()).ok();
            } else {
                nydus_image(&[&words[..], &paths].concat()).ok();
            }
            merge.push(text(&boot).to_owned());
        }
        nydus_image(&merge.iter().map(String::as_str).collect::<Vec<_>>()).ok();
        judge(&merged, &blobs, &golden.join("merged.expect.json"));
    }
}
