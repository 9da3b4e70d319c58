//! The replay against trees that others wrote down: the corner cases of the test kit and the reference images; and,
//! as root, against GNU tar and overlayfs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Cursor, Read};
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use image::{Location, PlatformChoice, Source};
use progress::{Cancel, Silent};
use rafs_format::{CHUNK_SIZE_MAX, Digester};
use testkit::expect::Expect;
use testkit::scan::Found;
use testkit::tar::{Entry, Tar};

use super::stream::Chunking;
use crate::model::{FileTree, NodeId, ROOT};
use crate::side::{Files, LayerFile, Side};
use crate::source::{Context, replay_image};

/// With these chunks the one digest of a file below 16 MiB is its SHA-256.
const WHOLE: Chunking = Chunking { size: CHUNK_SIZE_MAX, digester: Digester::Sha256 };

fn replay(layers: &[LayerFile], options: &layer::Options) -> FileTree {
    let threads = NonZeroUsize::new(2).unwrap();
    let context = Context { chunking: WHOLE, options, threads, cancel: &Cancel::default(), progress: &Silent };
    replay_image(layers, context).unwrap_or_else(|error| panic!("{error}: {:?}", error.source))
}

fn in_memory(tars: &[Vec<u8>]) -> Vec<LayerFile> {
    let layer = |tar: &Vec<u8>| {
        let tar = Arc::new(tar.clone());
        LayerFile::new("layer", tar.len() as u64, move || {
            Ok(Box::new(Cursor::new(Vec::clone(&tar))) as Box<dyn Read + Send>)
        })
    };
    tars.iter().map(layer).collect()
}

/// The tree in the shape of a listed directory.
fn found(tree: &FileTree) -> BTreeMap<Vec<u8>, Found> {
    let mut out = BTreeMap::new();
    let mut links = BTreeMap::new();
    let mut todo = vec![(ROOT, Vec::new())];
    while let Some((node, path)) = todo.pop() {
        *links.entry(tree.node(node).inode).or_insert(0) += 1;
        for (name, &child) in &tree.node(node).children {
            let mut path: Vec<u8> = path.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name);
            todo.push((child, path));
        }
        out.insert(path, fact(tree, node));
    }
    for file in out.values_mut().filter(|file| file.mode & 0o170_000 != 0o040_000) {
        file.nlink = links[&u32::try_from(file.inode.1).unwrap()];
    }
    out
}

fn fact(tree: &FileTree, node: NodeId) -> Found {
    let inode = tree.inode_of(node);
    let regular = inode.mode & 0o170_000 == 0o100_000;
    let link = inode.mode & 0o170_000 == 0o120_000;
    let sha256 = match tree.contents.digest(inode.first_chunk).filter(|_| inode.chunks == 1) {
        Some(digest) => hex::encode(digest),
        None => testkit::sha256(b""),
    };
    let owned = |(name, value): (&Box<[u8]>, &Box<[u8]>)| (name.to_vec(), value.to_vec());
    Found {
        mode: inode.mode,
        uid: inode.uid,
        gid: inode.gid,
        size: if link { inode.link.len() as u64 } else { inode.size },
        device: (inode.rdev >> 8 & 0xfff, inode.rdev & 0xff | inode.rdev >> 12 & 0xfff00),
        mtime: inode.mtime,
        mtime_nsec: inode.mtime_nsec,
        nlink: 0,
        inode: (0, tree.node(node).inode.into()),
        link: link.then(|| inode.link.to_vec()),
        sha256: regular.then_some(Ok(sha256)),
        xattrs: inode.xattrs.iter().map(owned).collect(),
    }
}

#[test]
fn the_corner_cases_are_as_written_down() {
    let corner = testkit::corner::image();
    let options = layer::Options::default();
    let differences = corner.expect.compare_found(found(&replay(&in_memory(&corner.layers), &options)));
    assert!(differences.is_empty(), "{differences:#?}");
}

fn open(shared: &Path, layout: &str, tag: &str) -> Side {
    let location = Location::OciLayout { dir: shared.join(layout), tag: Some(tag.to_owned()) };
    let source = Arc::new(Source::open(&location).unwrap());
    let (_, manifest) = source.manifests(&PlatformChoice::All).unwrap().remove(0);
    Side::image(&source, tag, manifest).unwrap()
}

#[test]
fn the_torture_image_is_as_expected() {
    let Some(shared) = testkit::shared_or_skip("the_torture_image_is_as_expected") else { return };
    let side = open(&shared, "torture/image", "torture");
    let Files::Layers(layers) = &side.files else { panic!("an image of layers") };
    let expect = Expect::load(&shared.join("torture/expect.json")).unwrap();
    let differences = expect.compare_found(found(&replay(layers, &layer::Options::default())));
    assert!(differences.is_empty(), "{differences:#?}");
}

#[test]
fn the_reference_layers_are_as_expected() {
    let Some(shared) = testkit::shared_or_skip("the_reference_layers_are_as_expected") else { return };
    let golden = shared.join("golden");
    let tars = ["lower.tar", "upper.tar"].map(|name| std::fs::read(golden.join(name)).unwrap());
    for (layers, expect) in [(&tars[..1], "lower.tar.expect.json"), (&tars[..], "merged.expect.json")] {
        let expect = Expect::load(&golden.join(expect)).unwrap();
        let differences = expect.compare_found(found(&replay(&in_memory(layers), &layer::Options::default())));
        assert!(differences.is_empty(), "{differences:#?}");
    }
}

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
fn overlay(tars: &[Vec<u8>]) -> BTreeMap<Vec<u8>, Found> {
    // The lower directories of an overlay must not lie on an overlay themselves.
    let base = if Path::new("/dev/shm").is_dir() { Path::new("/dev/shm") } else { Path::new("/tmp") };
    let dir = tempfile::tempdir_in(base).unwrap();
    let mut lower = Vec::new();
    for (index, tar) in tars.iter().enumerate() {
        let root = dir.path().join(index.to_string());
        std::fs::create_dir(&root).unwrap();
        let file = dir.path().join("layer.tar");
        std::fs::write(&file, tar).unwrap();
        let options = ["--numeric-owner", "--xattrs", "--xattrs-include=*", "--acls", "-p", "--same-owner", "--delay-directory-restore"];
        let status =
            Command::new("tar").arg("-xf").arg(&file).arg("-C").arg(&root).args(options).status().unwrap();
        assert!(status.success(), "GNU tar refuses layer {index}");
        describe_implied(&root, tar, &lower);
        to_overlay(&root);
        lower.push(root);
    }
    let mut lower: Vec<String> = lower.into_iter().map(|dir| dir.display().to_string()).collect();
    // An overlay without an upper directory needs two lower ones.
    let empty = dir.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    lower.insert(0, empty.display().to_string());
    lower.reverse();
    let at = dir.path().join("merged");
    std::fs::create_dir(&at).unwrap();
    let mount = Command::new("mount")
        .args(["-t", "overlay", "overlay", "-o", &format!("lowerdir={},index=off", lower.join(":"))])
        .arg(&at)
        .status()
        .unwrap();
    assert!(mount.success());
    let found = testkit::scan::scan(&at);
    assert!(Command::new("umount").arg(&at).status().unwrap().success());
    found.unwrap()
}

/// Directories without an entry of their own are as the nearest lower layer has them, else mode 0755 and of no time:
/// container runtimes do that while they unpack.
fn describe_implied(root: &Path, tar: &[u8], lower: &[PathBuf]) {
    let mut explicit = BTreeSet::new();
    let mut reader = layer::tar::Reader::new(tar);
    while let Some(entry) = reader.next().unwrap() {
        if entry.kind == layer::tar::EntryKind::Directory {
            explicit.insert(super::path::clean_below_root(&entry.path).join(&b'/'));
        }
    }
    for (path, _) in testkit::scan::scan(root).unwrap().into_iter().filter(|(_, file)| file.mode & 0o170_000 == 0o040_000) {
        if path.is_empty() || explicit.contains(&path) {
            continue;
        }
        let relative = Path::new(std::ffi::OsStr::from_bytes(&path));
        let here = root.join(relative);
        let below = lower.iter().rev().map(|dir| dir.join(relative));
        let known = below.filter_map(|path| Some((std::fs::symlink_metadata(&path).ok()?, path))).next();
        match known.filter(|(known, _)| known.is_dir()) {
            Some((known, path)) => {
                let xattrs = &testkit::scan::scan(&path).unwrap()[&b""[..]].xattrs;
                for (name, value) in xattrs.iter().filter(|(name, _)| !name.starts_with(b"trusted.")) {
                    rustix::fs::lsetxattr(&here, name.as_slice(), value, rustix::fs::XattrFlags::empty()).unwrap();
                }
                std::os::unix::fs::chown(&here, Some(known.uid()), Some(known.gid())).unwrap();
                std::fs::set_permissions(&here, known.permissions()).unwrap();
                File::open(&here).unwrap().set_modified(known.modified().unwrap()).unwrap();
            }
            None => {
                std::fs::set_permissions(&here, std::fs::Permissions::from_mode(0o755)).unwrap();
                File::open(&here).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
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
                rustix::fs::lsetxattr(&dir, "trusted.overlay.opaque", b"y", rustix::fs::XattrFlags::empty()).unwrap();
                changed = true;
            } else if let Some(hidden) = name.strip_prefix(".wh.") {
                std::fs::remove_file(entry.path()).unwrap();
                let hidden = dir.join(hidden);
                changed = true;
                if !hidden.exists() {
                    let (kind, mode) = (rustix::fs::FileType::CharacterDevice, rustix::fs::Mode::empty());
                    rustix::fs::mknodat(rustix::fs::CWD, &hidden, kind, mode, 0).unwrap();
                } else if hidden.is_dir() {
                    let flags = rustix::fs::XattrFlags::empty();
                    rustix::fs::lsetxattr(&hidden, "trusted.overlay.opaque", b"y", flags).unwrap();
                }
            }
        }
        if changed {
            File::open(&dir).unwrap().set_modified(times.modified().unwrap()).unwrap();
        }
    }
}

/// Compares the replay with the overlay, but for the root, which is the test's own, and for link counts: on disk names
/// that an upper layer hides still count.
fn privileged_compare(tars: &[Vec<u8>]) {
    let options = layer::Options { keep_trusted: false, ..layer::Options::default() };
    let (mut ours, mut theirs) = (found(&replay(&in_memory(tars), &options)), overlay(tars));
    for side in [&mut ours, &mut theirs] {
        side.remove(&b""[..]);
        let mut ranks = BTreeMap::new();
        for file in side.values_mut() {
            let next = ranks.len() as u64;
            file.inode = (0, *ranks.entry(file.inode).or_insert(next));
            file.nlink = 0;
            if file.mode & 0o170_000 == 0o040_000 {
                file.size = 0;
            }
            file.xattrs.retain(|name, _| !name.starts_with(b"trusted.overlay."));
        }
    }
    let paths: BTreeSet<&Vec<u8>> = ours.keys().chain(theirs.keys()).collect();
    for path in paths {
        let text = path.escape_ascii();
        assert_eq!(ours.get(path), theirs.get(path), "{text} (left: replay, right: overlay)");
    }
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
        return testkit::skip("privileged_stacks_are_what_tar_and_overlayfs_make_of_them", why);
    }
    let lower = vec![
        Entry::directory("keep").mode(0o711).owner(3, 4).mtime(77).xattr("user.k", "v"),
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
        Entry::file("cap", "c").xattr("security.capability", [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
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
    let layers: Vec<Vec<u8>> = [lower, middle, top].map(tar).into();
    for count in 1..=layers.len() {
        privileged_compare(&layers[..count]);
    }
}

#[test]
fn privileged_reference_images_are_what_tar_and_overlayfs_make_of_them() {
    let name = "privileged_reference_images_are_what_tar_and_overlayfs_make_of_them";
    let Some(shared) = testkit::shared_or_skip(name) else { return };
    if let Some(why) = no_overlay() {
        return testkit::skip(name, why);
    }
    for tag in ["base", "python", "app-1", "app-2"] {
        let side = open(&shared, "images", tag);
        let Files::Layers(layers) = &side.files else { panic!("an image of layers") };
        let unpacked = |layer: &LayerFile| {
            let (kind, stored) = layer::detecting(layer.open().unwrap()).unwrap();
            let mut tar = Vec::new();
            layer::decompress(stored, kind).unwrap().read_to_end(&mut tar).unwrap();
            tar
        };
        privileged_compare(&layers.iter().map(unpacked).collect::<Vec<_>>());
    }
}
