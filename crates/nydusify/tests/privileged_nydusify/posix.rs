//! What POSIX, and Linux beyond it, promise of a file system that can't be written to: every call that would change
//! something is refused with EROFS, and all others do what they do on any file system. Both modes, against the same
//! expectations.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FallocateFlags, FileType, Gid, Mode, OFlags, RenameFlags, Timespec,
    Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;
use testkit::layout::{Flavour, Layer, Layout, Packing};
use testkit::noise;
use testkit::run::{output, run};
use testkit::tar::{Entry, Tar, flag};

use crate::support::*;

/// Entries of the large directory.
const MANY: usize = 3000;
/// A user who owns nothing.
const NOBODY: &str = "65534";

fn image(place: &Place) -> String {
    let mut tar = Tar::new();
    let long = "n".repeat(255);
    let big = noise(3, 1000);
    for entry in [
        Entry::file("data", noise(1, 200_000))
            .xattr("user.one", b"1")
            .xattr("user.big", &big),
        Entry::hard("again", "data"),
        Entry::file("empty", b""),
        Entry::file(&long, b"long"),
        Entry::file("secret", b"secret").mode(0o600),
        Entry::file("shared", b"shared")
            .mode(0o640)
            .owner(1000, 65534),
        Entry::file("setuid", b"#!/bin/sh\n").mode(0o4755),
        Entry::file("late", b"x").pax("mtime", "4102444800.123456789"),
        Entry::directory("dir").mode(0o1777),
        Entry::directory("closed").mode(0o700),
        Entry::file("closed/inside", b"x"),
        Entry::symlink("link", "data"),
        Entry::symlink("to-dir", "dir"),
        Entry::symlink("loop", "loop"),
        Entry::symlink("dangling", "nowhere"),
        Entry::symlink("far", "t".repeat(4095)),
        Entry::fifo("fifo"),
        Entry::device("null", flag::CHARACTER, 1, 3).mode(0o666),
    ] {
        tar.add(entry);
    }
    for number in 0..MANY {
        tar.add(Entry::file(format!("dir/entry-{number:04}"), b""));
    }
    let mut layout = Layout::create(Box::leak(place.path("source").into_boxed_path()));
    let image = layout.manifest(&[Layer::new(&tar.finish(), Packing::Gzip)], Flavour::Oci);
    layout.tag(&image, "latest");
    place.converted(
        &place.oci("source", "latest"),
        &["--fs-chunk-size", "0x10000"],
    )
}

/// Mounts the image in each mode and has `check` look at it.
fn in_each_mode(name: &str, check: impl Fn(&Path, &str)) {
    let Some(place) = Place::new(name) else {
        return;
    };
    let target = image(&place);
    // Others may look, too.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(place.path(""), open).unwrap();
    for mode in modes(name, &place) {
        let root = place.path("root");
        let mut command = place.mount_command(&target);
        output(command.args(["--mode", mode, "--detach", "--no-prefetch"])).ok();
        // So that it does not stay mounted if it fails.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(&root, mode)));
        run(NYDUSIFY, ["umount", root.to_str().unwrap()]).ok();
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
        std::fs::remove_dir_all(place.path("cache")).unwrap();
    }
}

fn errno<T>(result: std::io::Result<T>) -> Option<Errno> {
    let error = result.err()?.raw_os_error()?;
    Some(Errno::from_raw_os_error(error))
}

#[test]
fn privileged_every_change_is_refused() {
    in_each_mode("privileged_every_change_is_refused", |root, mode| {
        let at = |name: &str| root.join(name);
        let rw = Mode::from_raw_mode(0o644);
        let open = |name: &str, flags| rustix::fs::open(at(name), flags, rw).map(drop);
        let now = Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        };
        let times = Timestamps {
            last_access: now,
            last_modification: now,
        };
        let (uid, gid) = (Some(Uid::from_raw(1)), Some(Gid::from_raw(1)));
        let follow = AtFlags::empty();
        let rename = |from: &str, to: &str, flags| {
            rustix::fs::renameat_with(CWD, at(from), CWD, at(to), flags)
        };
        let calls: Vec<(&str, rustix::io::Result<()>)> = vec![
            ("open for writing", open("data", OFlags::WRONLY)),
            ("open for both", open("data", OFlags::RDWR)),
            (
                "open to append",
                open("data", OFlags::WRONLY | OFlags::APPEND),
            ),
            (
                "truncating open",
                open("data", OFlags::RDONLY | OFlags::TRUNC),
            ),
            ("create", open("new", OFlags::WRONLY | OFlags::CREATE)),
            (
                "create by reading",
                open("new", OFlags::RDONLY | OFlags::CREATE),
            ),
            (
                "create anew",
                open("new", OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL),
            ),
            (
                "unnamed file",
                open("dir", OFlags::WRONLY | OFlags::TMPFILE),
            ),
            ("mkdir", rustix::fs::mkdir(at("new"), rw)),
            (
                "mknod",
                rustix::fs::mknodat(CWD, at("new"), FileType::Fifo, rw, 0),
            ),
            ("symlink", rustix::fs::symlink("x", at("new"))),
            ("link", rustix::fs::link(at("data"), at("new"))),
            ("unlink", rustix::fs::unlink(at("data"))),
            ("rmdir", rustix::fs::rmdir(at("closed"))),
            ("rename", rename("data", "new", RenameFlags::empty())),
            ("rename over", rename("data", "empty", RenameFlags::empty())),
            ("exchange", rename("data", "empty", RenameFlags::EXCHANGE)),
            (
                "chmod",
                rustix::fs::chmod(at("data"), Mode::from_raw_mode(0o600)),
            ),
            (
                "chmod of a directory",
                rustix::fs::chmod(at("dir"), Mode::from_raw_mode(0o700)),
            ),
            ("chown", rustix::fs::chown(at("data"), uid, gid)),
            (
                "lchown",
                rustix::fs::chownat(CWD, at("link"), uid, gid, AtFlags::SYMLINK_NOFOLLOW),
            ),
            (
                "utimens",
                rustix::fs::utimensat(CWD, at("data"), &times, follow),
            ),
            (
                "setxattr",
                rustix::fs::setxattr(at("data"), "user.new", b"1", XattrFlags::empty()),
            ),
            (
                "replace an attribute",
                rustix::fs::setxattr(at("data"), "user.one", b"2", XattrFlags::REPLACE),
            ),
            (
                "removexattr",
                rustix::fs::removexattr(at("data"), "user.one"),
            ),
            (
                "access for writing",
                rustix::fs::access(at("data"), rustix::fs::Access::WRITE_OK),
            ),
        ];
        for (name, result) in calls {
            assert_eq!(result, Err(Errno::ROFS), "{mode}: {name}");
        }
        assert_eq!(
            errno(File::options().write(true).open(at("link"))),
            Some(Errno::ROFS)
        );
        // What exists is said first, as anywhere.
        assert_eq!(
            rustix::fs::mkdir(at("dir"), rw),
            Err(Errno::EXIST),
            "{mode}"
        );
        let fresh = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        assert_eq!(open("data", fresh), Err(Errno::EXIST), "{mode}");
        // A device and a pipe are no part of the file system once they are open.
        std::fs::write(at("null"), b"gone").unwrap();
        // By a descriptor for reading.
        let file = File::open(at("data")).unwrap();
        assert_eq!(rustix::fs::ftruncate(&file, 0), Err(Errno::INVAL), "{mode}");
        assert_eq!(rustix::io::write(&file, b"x"), Err(Errno::BADF), "{mode}");
        let punched = rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 1);
        assert_eq!(punched, Err(Errno::BADF), "{mode}");
        assert_eq!(rustix::fs::fchmod(&file, rw), Err(Errno::ROFS), "{mode}");
        assert_eq!(
            rustix::fs::futimens(&file, &times),
            Err(Errno::ROFS),
            "{mode}"
        );
        // Reading changes no time, whatever the mount's flags say.
        let before = file.metadata().unwrap().atime();
        std::fs::read(at("data")).unwrap();
        assert_eq!(std::fs::metadata(at("data")).unwrap().atime(), before);
    });
}

#[test]
fn privileged_names_and_links_are_followed_as_anywhere() {
    in_each_mode(
        "privileged_names_and_links_are_followed_as_anywhere",
        |root, mode| {
            let at = |name: &str| root.join(name);
            let stat = |name: &str| errno(std::fs::metadata(at(name)));
            let (long, longer) = ("n".repeat(255), "n".repeat(256));
            for (name, expected) in [
                ("absent", Some(Errno::NOENT)),
                ("absent/below", Some(Errno::NOENT)),
                ("data/below", Some(Errno::NOTDIR)),
                ("data/.", Some(Errno::NOTDIR)),
                ("data/", Some(Errno::NOTDIR)),
                ("loop", Some(Errno::LOOP)),
                ("loop/below", Some(Errno::LOOP)),
                ("dangling", Some(Errno::NOENT)),
                ("far", Some(Errno::NAMETOOLONG)),
                (&longer, Some(Errno::NAMETOOLONG)),
                (&long, None),
                ("dir/..", None),
                ("to-dir/entry-0000", None),
                ("dir/../to-dir/./../data", None),
            ] {
                assert_eq!(stat(name), expected, "{mode}: {name:.20}");
            }
            let path = format!("{}/data", "./".repeat(2100));
            assert_eq!(stat(&path), Some(Errno::NAMETOOLONG), "{mode}");
            let open = |name: &str, flags| {
                let opened = rustix::fs::open(at(name), flags, Mode::empty());
                opened.map(drop).err()
            };
            assert_eq!(open("link", OFlags::NOFOLLOW), Some(Errno::LOOP), "{mode}");
            assert_eq!(
                open("link", OFlags::NOFOLLOW | OFlags::PATH),
                None,
                "{mode}"
            );
            assert_eq!(
                open("data", OFlags::DIRECTORY),
                Some(Errno::NOTDIR),
                "{mode}"
            );
            assert_eq!(open("dir", OFlags::WRONLY), Some(Errno::ISDIR), "{mode}");
            assert_eq!(
                open("fifo", OFlags::RDONLY | OFlags::NONBLOCK),
                None,
                "{mode}"
            );
            assert_eq!(
                open("fifo", OFlags::WRONLY | OFlags::NONBLOCK),
                Some(Errno::NXIO),
                "{mode}"
            );
            assert_eq!(
                errno(std::fs::read(at("dir"))),
                Some(Errno::ISDIR),
                "{mode}"
            );

            let target = |name: &str| std::fs::read_link(at(name));
            assert_eq!(target("link").unwrap().as_os_str(), "data");
            assert_eq!(target("far").unwrap().as_os_str().len(), 4095, "{mode}");
            assert_eq!(errno(target("data")), Some(Errno::INVAL), "{mode}");
            // A buffer that is too short gets what fits.
            let mut short = [0; 2];
            let got = rustix::fs::readlinkat_raw(CWD, at("link"), &mut short[..]).unwrap();
            assert_eq!((got, &short), (2, b"da"), "{mode}");
        },
    );
}

#[test]
fn privileged_attributes_are_those_of_the_image() {
    in_each_mode(
        "privileged_attributes_are_those_of_the_image",
        |root, mode| {
            let stat = |name: &str| std::fs::symlink_metadata(root.join(name)).unwrap();
            let data = stat("data");
            assert_eq!(
                (data.size(), data.nlink(), data.mode()),
                (200_000, 2, 0o100_644),
                "{mode}"
            );
            assert_eq!(
                (data.mtime(), data.mtime_nsec()),
                (1_600_000_000, 0),
                "{mode}"
            );
            assert_eq!(data.ino(), stat("again").ino(), "{mode}");
            assert!(
                data.blocks() * 512 >= data.size(),
                "{mode}: {}",
                data.blocks()
            );
            assert!(
                data.blksize().is_power_of_two(),
                "{mode}: {}",
                data.blksize()
            );
            assert_eq!(stat("setuid").mode(), 0o104_755, "{mode}");
            assert_eq!(
                (stat("shared").uid(), stat("shared").gid()),
                (1000, 65534),
                "{mode}"
            );
            assert_eq!(stat("late").mtime(), 4_102_444_800, "{mode}");
            assert_eq!(stat("dir").mode(), 0o041_777, "{mode}");
            assert_eq!(
                (stat("dir").nlink(), stat("dir").dev()),
                (2, data.dev()),
                "{mode}"
            );
            assert_eq!(
                (stat("null").rdev(), stat("null").mode()),
                (0x103, 0o020_666),
                "{mode}"
            );
            assert_eq!(stat("link").size(), 4, "{mode}");
            assert_eq!(stat("fifo").mode() & 0o170_000, 0o010_000, "{mode}");
            // An inode has one number however it is asked for it.
            let listed = std::fs::read_dir(root).unwrap().flatten();
            let numbers = listed.map(|entry| {
                use std::os::unix::fs::DirEntryExt as _;
                (
                    entry.ino(),
                    std::fs::symlink_metadata(entry.path()).unwrap().ino(),
                )
            });
            assert!(
                numbers.into_iter().all(|(listed, found)| listed == found),
                "{mode}"
            );

            let space = rustix::fs::statvfs(root).unwrap();
            assert_eq!((space.f_bavail, space.f_namemax), (0, 255), "{mode}");
            assert!(
                space.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY),
                "{mode}"
            );
            assert!(space.f_files as usize > MANY, "{mode}");

            let access = |user: &str, how: &str, name: &str| {
                let ids = [
                    "--reuid",
                    user,
                    "--regid",
                    user,
                    "--clear-groups",
                    "test",
                    how,
                ];
                let path = root.join(name);
                run(
                    "setpriv",
                    ids.iter().copied().chain([path.to_str().unwrap()]),
                )
                .code
                    == 0
            };
            for (user, how, name, expected) in [
                ("0", "-r", "secret", true),
                (NOBODY, "-r", "secret", false),
                (NOBODY, "-r", "data", true),
                (NOBODY, "-r", "shared", true),
                ("1001", "-r", "shared", false),
                ("1000", "-r", "shared", true),
                (NOBODY, "-e", "closed/inside", false),
                ("0", "-e", "closed/inside", true),
                ("0", "-w", "data", false),
                ("0", "-x", "data", false),
                (NOBODY, "-x", "setuid", true),
                (NOBODY, "-w", "null", true),
            ] {
                assert_eq!(
                    access(user, how, name),
                    expected,
                    "{mode}: {user} {how} {name}"
                );
            }
        },
    );
}

/// No such attribute, or none of this kind, which file systems tell apart as they like.
fn is_none(result: rustix::io::Result<usize>) -> bool {
    matches!(result, Err(Errno::NODATA | Errno::OPNOTSUPP))
}

#[test]
fn privileged_extended_attributes_are_asked_for_by_size() {
    in_each_mode(
        "privileged_extended_attributes_are_asked_for_by_size",
        |root, mode| {
            let (data, empty) = (root.join("data"), root.join("empty"));
            let mut space = [0; 2000];
            assert_eq!(
                rustix::fs::getxattr_query(&data, "user.big"),
                Ok(1000),
                "{mode}"
            );
            assert_eq!(
                rustix::fs::getxattr(&data, "user.big", &mut space[..999]),
                Err(Errno::RANGE)
            );
            assert_eq!(
                rustix::fs::getxattr(&data, "user.big", &mut space[..1000]),
                Ok(1000),
                "{mode}"
            );
            assert!(space[..1000] == noise(3, 1000)[..], "{mode}");
            assert_eq!(
                rustix::fs::getxattr(&data, "user.none", &mut space[..]),
                Err(Errno::NODATA)
            );
            assert_eq!(
                rustix::fs::getxattr(&empty, "user.one", &mut space[..]),
                Err(Errno::NODATA)
            );
            let unknown = rustix::fs::getxattr(&data, "nonsense.one", &mut space[..]);
            assert!(is_none(unknown), "{mode}: {unknown:?}");
            let capability = rustix::fs::getxattr(&data, "security.capability", &mut space[..]);
            assert!(is_none(capability), "{mode}: {capability:?}");

            let len = rustix::fs::listxattr_query(&data).unwrap();
            assert_eq!(
                rustix::fs::listxattr(&data, &mut space[..len - 1]),
                Err(Errno::RANGE),
                "{mode}"
            );
            assert_eq!(
                rustix::fs::listxattr(&data, &mut space[..len]),
                Ok(len),
                "{mode}"
            );
            let mut names: Vec<&[u8]> = space[..len - 1].split(|&byte| byte == 0).collect();
            names.sort_unstable();
            assert_eq!(names, [&b"user.big"[..], b"user.one"], "{mode}");
            assert_eq!(
                rustix::fs::listxattr(&empty, &mut space[..]),
                Ok(0),
                "{mode}"
            );
            let link = rustix::fs::lgetxattr(root.join("link"), "user.one", &mut space[..]);
            assert!(is_none(link), "{mode}: {link:?}");
            assert_eq!(
                rustix::fs::getxattr(root.join("link"), "user.one", &mut space[..]),
                Ok(1)
            );
        },
    );
}

#[test]
fn privileged_a_listing_goes_on_from_any_place() {
    in_each_mode(
        "privileged_a_listing_goes_on_from_any_place",
        |root, mode| {
            let open = || Dir::new(File::open(root.join("dir")).unwrap()).unwrap();
            let mut dir = open();
            let all: Vec<(Vec<u8>, i64)> = std::iter::from_fn(|| dir.read())
                .map(|entry| entry.unwrap())
                .map(|entry| (entry.file_name().to_bytes().to_vec(), entry.offset()))
                .collect();
            assert_eq!(all.len(), MANY + 2, "{mode}");
            let mut names: Vec<&[u8]> = all.iter().map(|(name, _)| &**name).collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), MANY + 2, "{mode}: each once");
            // Where an entry was, the next one is found, in another descriptor and in this one.
            for at in (0..all.len() - 1).step_by(211).chain([all.len() - 2]) {
                for dir in [&mut dir, &mut open()] {
                    dir.seek(all[at].1).unwrap();
                    let next = dir.read().unwrap().unwrap();
                    assert_eq!(
                        next.file_name().to_bytes(),
                        all[at + 1].0,
                        "{mode}: after {at}"
                    );
                }
            }
            dir.seek(all[all.len() - 1].1).unwrap();
            assert!(dir.read().is_none(), "{mode}: behind the last");
            dir.rewind();
            assert_eq!(
                dir.read().unwrap().unwrap().file_name().to_bytes(),
                all[0].0,
                "{mode}"
            );
        },
    );
}

/// Past the page cache, while nothing is there. The kernel's EROFS does not do that with images in files.
fn read_directly(path: &Path, expected: &[u8], mode: &str) {
    let flags = OFlags::RDONLY | OFlags::DIRECT;
    let opened = rustix::fs::open(path, flags, Mode::empty());
    if opened.as_ref().err() == Some(&Errno::INVAL) && mode == "erofs" {
        return;
    }
    let direct = File::from(opened.unwrap());
    let mut space = vec![0; 300_000];
    let aligned = space.as_ptr().align_offset(4096);
    let buffer = &mut space[aligned..aligned + 204_800];
    let piece = direct.read_at(&mut buffer[..8192], 61_440);
    assert_eq!(piece.unwrap(), 8192, "{mode}");
    assert!(buffer[..8192] == expected[61_440..69_632], "{mode}");
    assert_eq!(direct.read_at(buffer, 0).unwrap(), 200_000, "{mode}");
    assert!(buffer[..200_000] == *expected, "{mode}");
    let behind = direct.read_at(&mut buffer[..4096], 200_704);
    assert_eq!(behind.unwrap(), 0, "{mode}");
}

#[test]
fn privileged_files_are_read_in_every_way() {
    let elsewhere = tempfile::tempfile().unwrap();
    in_each_mode("privileged_files_are_read_in_every_way", |root, mode| {
        let expected = noise(1, 200_000);
        let path = root.join("data");
        read_directly(&path, &expected, mode);
        let mut file = File::open(&path).unwrap();
        let mut all = Vec::new();
        file.read_to_end(&mut all).unwrap();
        assert!(all == expected, "{mode}");
        assert_eq!(file.read(&mut [0; 10]).unwrap(), 0, "{mode}: at the end");
        let mut end = [0; 10];
        assert_eq!(
            file.read_at(&mut end, 199_995).unwrap(),
            5,
            "{mode}: over the end"
        );
        assert_eq!(
            file.read_at(&mut end, 1 << 40).unwrap(),
            0,
            "{mode}: far behind"
        );
        assert_eq!(
            errno(file.seek(SeekFrom::Current(-300_000))),
            Some(Errno::INVAL)
        );
        // A file has data up to its end, and a hole there.
        let seek = |to| rustix::fs::seek(&file, to);
        assert_eq!(seek(rustix::fs::SeekFrom::Data(5)), Ok(5), "{mode}");
        assert_eq!(seek(rustix::fs::SeekFrom::Hole(5)), Ok(200_000), "{mode}");
        assert_eq!(
            seek(rustix::fs::SeekFrom::Data(200_000)),
            Err(Errno::NXIO),
            "{mode}"
        );
        assert_eq!(
            seek(rustix::fs::SeekFrom::Hole(200_001)),
            Err(Errno::NXIO),
            "{mode}"
        );
        // In pieces of any size, scattered.
        for (at, len) in noise(9, 200).chunks(4).map(|n| {
            let at = (usize::from(n[0]) * 771 + usize::from(n[1])) % 200_000;
            (at, (usize::from(n[2]) * 97 + 1).min(200_000 - at))
        }) {
            let mut piece = vec![0; len];
            file.read_exact_at(&mut piece, at as u64).unwrap();
            assert!(
                piece == expected[at..at + len],
                "{mode}: {len} bytes at {at}"
            );
        }
        let mut from = 61_000;
        rustix::fs::ftruncate(&elsewhere, 0).unwrap();
        let copied =
            rustix::fs::copy_file_range(&file, Some(&mut from), &elsewhere, Some(&mut 0), 9000);
        if copied != Err(Errno::XDEV) {
            assert_eq!(copied, Ok(9000), "{mode}");
            let mut copy = vec![0; 9000];
            elsewhere.read_exact_at(&mut copy, 0).unwrap();
            assert!(copy == expected[61_000..70_000], "{mode}");
        }
        let mut offset = 100;
        rustix::fs::ftruncate(&elsewhere, 0).unwrap();
        (&elsewhere).rewind().unwrap();
        assert_eq!(
            rustix::fs::sendfile(&elsewhere, &file, Some(&mut offset), 5000),
            Ok(5000)
        );
        assert_eq!(std::fs::read(root.join("empty")).unwrap(), b"", "{mode}");
        let name = OsStr::from_bytes(&[b'n'; 255]);
        assert_eq!(std::fs::read(root.join(name)).unwrap(), b"long", "{mode}");
    });
}
