//! The replay of layers against GNU tar and overlayfs: what they make of the layers is packed as an image and checked.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

mod common;

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use builder::{Dedup, Whiteouts};
use common::{build_options, check_with, image_tars, layers, target};
use testkit::tar::{Entry, Tar};
use verify::{Outcome, Rule, Side};

/// Whether layers can be unpacked and stacked by others here.
fn no_overlay() -> Option<&'static str> {
    if !testkit::oracle::is_root() {
        return Some("not root");
    }
    if testkit::oracle::program("tar").is_none() || testkit::oracle::program("mount").is_none() {
        return Some("no tar or no mount program");
    }
    let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    (!filesystems.contains("\toverlay\n")).then_some("no overlayfs")
}

/// Unpacks each layer with GNU tar, rewrites whiteouts for overlayfs, and lists what an overlay of them shows.
fn overlay(tars: &[Vec<u8>]) -> Side {
    // The lower directories of an overlay must not lie on an overlay themselves.
    let base = if Path::new("/dev/shm").is_dir() {
        Path::new("/dev/shm")
    } else {
        Path::new("/tmp")
    };
    let dir = tempfile::tempdir_in(base).unwrap();
    let mut lower = Vec::new();
    for (index, tar) in tars.iter().enumerate() {
        let root = dir.path().join(index.to_string());
        std::fs::create_dir(&root).unwrap();
        let file = dir.path().join("layer.tar");
        std::fs::write(&file, tar).unwrap();
        let options = [
            "--numeric-owner",
            "--xattrs",
            "--xattrs-include=*",
            "--acls",
            "-p",
            "--same-owner",
            "--delay-directory-restore",
        ];
        let status = Command::new("tar")
            .arg("-xf")
            .arg(&file)
            .arg("-C")
            .arg(&root)
            .args(options)
            .status()
            .unwrap();
        assert!(status.success(), "GNU tar refuses layer {index}");
        describe_implied(&root, tar, &lower);
        to_overlay(&root);
        lower.push(root);
    }
    let mut lower: Vec<String> = lower
        .into_iter()
        .map(|dir| dir.display().to_string())
        .collect();
    // An overlay without an upper directory needs two lower ones.
    let empty = dir.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    lower.insert(0, empty.display().to_string());
    lower.reverse();
    let at = dir.path().join("merged");
    std::fs::create_dir(&at).unwrap();
    let mount = Command::new("mount")
        .args([
            "-t",
            "overlay",
            "overlay",
            "-o",
            &format!("lowerdir={},index=off", lower.join(":")),
        ])
        .arg(&at)
        .status()
        .unwrap();
    assert!(mount.success());
    let mut blob = Vec::new();
    let built = builder::build_directory(
        &at,
        Whiteouts::None,
        &mut blob,
        &build_options(),
        Dedup::Layer,
    );
    assert!(Command::new("umount").arg(&at).status().unwrap().success());
    target(&built.unwrap().image, vec![blob])
}

/// Directories without an entry of their own are as the nearest lower layer has them, else mode 0755 and of no time:
/// container runtimes do that while they unpack.
fn describe_implied(root: &Path, tar: &[u8], lower: &[PathBuf]) {
    let mut explicit = BTreeSet::new();
    let mut reader = layer::tar::Reader::new(tar);
    while let Some(entry) = reader.next().unwrap() {
        if entry.kind == layer::tar::EntryKind::Directory {
            explicit.insert(names(&entry.path));
        }
    }
    for (path, _) in testkit::scan::scan(root)
        .unwrap()
        .into_iter()
        .filter(|(_, file)| file.mode & 0o170_000 == 0o040_000)
    {
        if path.is_empty() || explicit.contains(&path) {
            continue;
        }
        let relative = Path::new(std::ffi::OsStr::from_bytes(&path));
        let here = root.join(relative);
        let below = lower.iter().rev().map(|dir| dir.join(relative));
        let known = below
            .filter_map(|path| Some((std::fs::symlink_metadata(&path).ok()?, path)))
            .next();
        match known.filter(|(known, _)| known.is_dir()) {
            Some((known, path)) => {
                let xattrs = &testkit::scan::scan(&path).unwrap()[&b""[..]].xattrs;
                for (name, value) in xattrs
                    .iter()
                    .filter(|(name, _)| !name.starts_with(b"trusted."))
                {
                    rustix::fs::lsetxattr(
                        &here,
                        name.as_slice(),
                        value,
                        rustix::fs::XattrFlags::empty(),
                    )
                    .unwrap();
                }
                std::os::unix::fs::chown(&here, Some(known.uid()), Some(known.gid())).unwrap();
                std::fs::set_permissions(&here, known.permissions()).unwrap();
                File::open(&here)
                    .unwrap()
                    .set_modified(known.modified().unwrap())
                    .unwrap();
            }
            None => {
                std::fs::set_permissions(&here, std::fs::Permissions::from_mode(0o755)).unwrap();
                File::open(&here)
                    .unwrap()
                    .set_modified(std::time::UNIX_EPOCH)
                    .unwrap();
            }
        }
    }
}

/// Turns whiteout files into overlayfs's own marks, keeping the times of their directories.
fn to_overlay(root: &Path) {
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        let times = std::fs::metadata(&dir).unwrap();
        let mut changed = false;
        for entry in std::fs::read_dir(&dir).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap_or_default();
            if entry.file_type().unwrap().is_dir() {
                todo.push(entry.path());
            } else if name == ".wh..wh..opq" {
                std::fs::remove_file(entry.path()).unwrap();
                rustix::fs::lsetxattr(
                    &dir,
                    "trusted.overlay.opaque",
                    b"y",
                    rustix::fs::XattrFlags::empty(),
                )
                .unwrap();
                changed = true;
            } else if let Some(hidden) = name.strip_prefix(".wh.") {
                std::fs::remove_file(entry.path()).unwrap();
                let hidden = dir.join(hidden);
                changed = true;
                if !hidden.exists() {
                    let (kind, mode) = (
                        rustix::fs::FileType::CharacterDevice,
                        rustix::fs::Mode::empty(),
                    );
                    rustix::fs::mknodat(rustix::fs::CWD, &hidden, kind, mode, 0).unwrap();
                } else if hidden.is_dir() {
                    let flags = rustix::fs::XattrFlags::empty();
                    rustix::fs::lsetxattr(&hidden, "trusted.overlay.opaque", b"y", flags).unwrap();
                }
            }
        }
        if changed {
            File::open(&dir)
                .unwrap()
                .set_modified(times.modified().unwrap())
                .unwrap();
        }
    }
}

/// The names of a path in a tar.
fn names(path: &[u8]) -> Vec<u8> {
    let names: Vec<&[u8]> = path
        .split(|&byte| byte == b'/')
        .filter(|name| !matches!(*name, b"" | b"."))
        .collect();
    names.join(&b'/')
}

/// Compares the layers with the overlay, packed as an image. The root directory is the test's own.
fn compare(tars: &[Vec<u8>]) {
    let report = check_with(
        Some(&layers(tars)),
        &overlay(tars),
        layer::Options {
            keep_trusted: false,
            ..layer::Options::default()
        },
    );
    let of_root = report
        .differences
        .first
        .iter()
        .filter(|difference| difference.path == "/")
        .count() as u64;
    assert_eq!(report.differences.total, of_root, "{report}");
    assert!(
        report
            .rules
            .iter()
            .all(|rule| rule.rule == Rule::Filesystem || rule.outcome != Outcome::Failed),
        "{report}"
    );
}

fn tar(entries: Vec<Entry>) -> Vec<u8> {
    let mut tar = Tar::new();
    for entry in entries {
        tar.add(entry);
    }
    tar.finish()
}

#[test]
fn privileged_stacks_are_what_tar_and_overlayfs_make_of_them() {
    if let Some(why) = no_overlay() {
        return testkit::skip(
            "privileged_stacks_are_what_tar_and_overlayfs_make_of_them",
            why,
        );
    }
    let lower = vec![
        Entry::directory("keep")
            .mode(0o711)
            .owner(3, 4)
            .mtime(77)
            .xattr("user.k", "v"),
        Entry::file("keep/a", "a").owner(1, 2),
        Entry::hard("keep/b", "keep/a").owner(1, 2),
        Entry::file("keep/c", vec![7; 70_000]).mode(0o4755),
        Entry::symlink("keep/l", "/nowhere").owner(5, 6),
        Entry::directory("opaque"),
        Entry::file("opaque/hidden", "h"),
        Entry::directory("opaque/both").mode(0o700),
        Entry::file("opaque/both/hidden", "h"),
        Entry::directory("gone"),
        Entry::file("gone/x", "x"),
        Entry::directory("again"),
        Entry::file("again/old", "o"),
        Entry::directory("file-over-dir"),
        Entry::file("file-over-dir/x", "x"),
        Entry::file("dir-over-file", "f"),
        Entry::device("null", b'3', 1, 3).mode(0o666),
        Entry::fifo("pipe"),
        Entry::file("cap", "c").xattr(
            "security.capability",
            [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ),
    ];
    let middle = vec![
        Entry::file("keep/.wh.c", ""),
        Entry::file(".wh.gone", ""),
        Entry::directory("opaque").mode(0o750),
        Entry::file("opaque/.wh..wh..opq", ""),
        Entry::file("opaque/new", "n"),
        Entry::directory("again").mtime(99),
        Entry::file(".wh.again", ""),
        Entry::file("again/new", "n"),
        Entry::file("file-over-dir", "now a file"),
        Entry::directory("dir-over-file"),
        Entry::file("dir-over-file/y", "y"),
        Entry::file("twice", "first"),
        Entry::file("twice", "second").owner(8, 9),
        Entry::hard("twice-too", "twice").owner(8, 9),
        Entry::file(".wh.nothing", ""),
    ];
    let top = vec![
        Entry::file("keep/a", "new a"),
        Entry::directory("gone").mode(0o500),
        Entry::file("gone/z", "z"),
        Entry::file("dir-over-file/.wh.y", ""),
        Entry::directory("opaque/both"),
        Entry::file("opaque/both/b", "b"),
    ];
    let mut layers: Vec<Vec<u8>> = [lower, middle, top].map(tar).into();
    // Behind the end mark nothing counts.
    let behind = tar(vec![
        Entry::file("keep/c", "again"),
        Entry::file(".wh.cap", ""),
    ]);
    layers[1].extend(behind);
    for count in 1..=layers.len() {
        compare(&layers[..count]);
    }
}

#[test]
fn privileged_reference_images_are_what_tar_and_overlayfs_make_of_them() {
    let name = "privileged_reference_images_are_what_tar_and_overlayfs_make_of_them";
    let Some(shared) = testkit::shared_or_skip(name) else {
        return;
    };
    if let Some(why) = no_overlay() {
        return testkit::skip(name, why);
    }
    for tag in ["base", "python", "app-1", "app-2"] {
        compare(&image_tars(&shared, "images", tag));
    }
}
