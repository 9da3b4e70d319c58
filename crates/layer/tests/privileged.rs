//! GNU tar and Python as other opinions: archives they write, and trees they unpack. Needs root.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use layer::{DataSink, FileInfo, Options, read_tree};
use testkit::tar::{Entry, Sparse, Tar, flag};
use tree::{ChunkId, Content, Tree};

#[derive(Default)]
struct Keep(Vec<Vec<u8>>);

impl DataSink for Keep {
    fn file(&mut self, _: FileInfo<'_>, data: &mut dyn BufRead) -> io::Result<Box<[ChunkId]>> {
        let mut bytes = Vec::new();
        data.read_to_end(&mut bytes)?;
        self.0.push(bytes);
        Ok(Box::new([ChunkId(self.0.len() as u32 - 1)]))
    }
}

fn read(bytes: &[u8]) -> (Tree, Keep) {
    let mut sink = Keep::default();
    let options = Options {
        fraction: true,
        ..Options::default()
    };
    (
        read_tree(bytes, &mut sink, &options).expect("a valid layer"),
        sink,
    )
}

/// Why a test cannot run here.
fn missing(programs: &[&str]) -> Option<String> {
    if !testkit::oracle::is_root() {
        return Some("not root".to_owned());
    }
    programs
        .iter()
        .find(|name| testkit::oracle::program(name).is_none())
        .map(|name| format!("no {name}"))
}

/// Every difference between a tree and what lies on disk.
fn compare(tree: &Tree, sink: &Keep, root: &Path) -> Vec<String> {
    let found = testkit::scan::scan(root).expect("readable");
    let mut wrong = Vec::new();
    let mut inodes: BTreeMap<u64, tree::InodeId> = BTreeMap::new();
    let mut seen = 0;
    let mut walk = tree.walk();
    while let Some(visit) = walk.next() {
        let path = walk.path(&visit);
        let inode = tree.inode(visit.id);
        if visit.depth == 0 {
            continue;
        }
        seen += 1;
        let show = String::from_utf8_lossy(&path).into_owned();
        let host = root.join(Path::new(std::ffi::OsStr::from_bytes(&path[1..])));
        let Ok(meta) = fs::symlink_metadata(&host) else {
            wrong.push(format!("{show} is not on disk"));
            continue;
        };
        if meta.mode() != inode.mode {
            wrong.push(format!(
                "{show}: mode {:o}, on disk {:o}",
                inode.mode,
                meta.mode()
            ));
        }
        if (meta.uid(), meta.gid()) != (inode.uid, inode.gid) {
            wrong.push(format!("{show}: owner {}:{}", inode.uid, inode.gid));
        }
        if !inode.implied
            && (meta.mtime(), meta.mtime_nsec() as u32) != (inode.mtime, inode.mtime_nsec)
        {
            wrong.push(format!(
                "{show}: mtime {}.{:09}, on disk {}.{:09}",
                inode.mtime,
                inode.mtime_nsec,
                meta.mtime(),
                meta.mtime_nsec()
            ));
        }
        if !meta.is_dir() && *inodes.entry(meta.ino()).or_insert(visit.id) != visit.id {
            wrong.push(format!("{show}: not the inode it is on disk"));
        }
        match &inode.content {
            Content::Regular { size, chunks } => {
                let data = chunks
                    .first()
                    .map_or(&[][..], |chunk| &sink.0[chunk.0 as usize]);
                if data.len() as u64 != *size || fs::read(&host).expect("readable") != data {
                    wrong.push(format!("{show}: content"));
                }
            }
            Content::Symlink(target)
                if fs::read_link(&host).expect("a link").as_os_str().as_bytes() != &target[..] =>
            {
                wrong.push(format!("{show}: target"));
            }
            Content::Special if u64::from(inode.rdev) != meta.rdev() => wrong.push(format!(
                "{show}: rdev {:#x}, on disk {:#x}",
                inode.rdev,
                meta.rdev()
            )),
            _ => {}
        }
    }
    let on_disk = found.keys().filter(|path| !path.is_empty()).count();
    if on_disk != seen {
        wrong.push(format!("{seen} names, {on_disk} on disk"));
    }
    wrong
}

fn unpack(bytes: &[u8], root: &Path) {
    let archive = root.join("archive.tar");
    let out = root.join("out");
    fs::write(&archive, bytes).expect("written");
    fs::create_dir(&out).expect("made");
    let command = Command::new("tar")
        .args([
            "--extract",
            "--same-owner",
            "--same-permissions",
            "--numeric-owner",
            "--xattrs",
            "--xattrs-include=*",
        ])
        .arg("--file")
        .arg(&archive)
        .arg("--directory")
        .arg(&out)
        .output()
        .expect("tar runs");
    assert!(
        command.status.success(),
        "{}",
        String::from_utf8_lossy(&command.stderr)
    );
}

#[test]
fn privileged_gnu_tar_unpacks_the_same_tree() {
    const NAME: &str = "privileged_gnu_tar_unpacks_the_same_tree";
    if let Some(why) = missing(&["tar"]) {
        return testkit::skip(NAME, &why);
    }
    let many = (0..60u64)
        .map(|i| (i * 4096, vec![i as u8 + 1; 512]))
        .collect::<Vec<_>>();
    let mut tar = Tar::new();
    tar.add(Entry::directory("d/").mode(0o2750).owner(3, 4))
        .add(
            Entry::file("d/f", b"one")
                .mode(0o4755)
                .owner(100_000, 70_000),
        )
        .add(Entry::file("d/f", b"two").mode(0o600).owner(1, 2))
        .add(Entry::hard("d/h", "d/f").mode(0o600).owner(1, 2))
        .add(Entry::symlink("d/s", "f"))
        .add(Entry::symlink("d/long", "t/".repeat(900)))
        .add(Entry::device("c", flag::CHARACTER, 259, 70_000))
        .add(Entry::fifo("p"))
        .add(Entry::file("frac", b"x").pax("mtime", "1500000000.987654321"))
        .add(Entry::file("old", b"x").pax("mtime", "-1.25"))
        .add(Entry::file("n".repeat(255), b"long").in_gnu_format())
        .add(Entry::file(b"\xff\xfe", b"bytes").in_gnu_format())
        .add(Entry::file("implied/a/b", b"x"));
    for (name, dialect) in [
        ("gnu", Sparse::Gnu),
        ("00", Sparse::Pax00),
        ("01", Sparse::Pax01),
        ("10", Sparse::Pax10),
    ] {
        for (kind, segments) in [("many", &many[..]), ("few", &many[3..5]), ("none", &[])] {
            tar.sparse(
                Entry::file(format!("sparse-{name}-{kind}"), b""),
                dialect,
                300_000,
                segments,
            );
        }
    }
    let bytes = tar.finish();
    let dir = tempfile::tempdir().expect("made");
    unpack(&bytes, dir.path());
    let (tree, sink) = read(&bytes);
    let wrong = compare(&tree, &sink, &dir.path().join("out"));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Things whose archive every writer makes in its own way.
fn populate(root: &Path) {
    fs::create_dir_all(root.join("a/very").join("deep/".repeat(60))).expect("made");
    fs::write(root.join("a/file"), testkit::prose(1, 30_000)).expect("written");
    fs::hard_link(root.join("a/file"), root.join("a/other")).expect("linked");
    fs::write(root.join("a").join("n".repeat(250)), b"x").expect("written");
    std::os::unix::fs::symlink("s".repeat(300), root.join("a/symlink")).expect("linked");
    fs::set_permissions(root.join("a/file"), fs::Permissions::from_mode(0o4711)).expect("set");
    let sparse = fs::File::create(root.join("sparse")).expect("made");
    sparse.set_len(3_000_000).expect("grown");
    for i in 0..40 {
        std::os::unix::fs::FileExt::write_all_at(&sparse, &testkit::prose(i, 4096), i * 65_536)
            .expect("written");
    }
    fs::write(root.join("empty"), b"").expect("written");
}

#[test]
fn privileged_archives_by_gnu_tar_in_every_format_are_read_alike() {
    const NAME: &str = "privileged_archives_by_gnu_tar_in_every_format_are_read_alike";
    if let Some(why) = missing(&["tar"]) {
        return testkit::skip(NAME, &why);
    }
    let dir = tempfile::tempdir().expect("made");
    let root = dir.path().join("root");
    fs::create_dir(&root).expect("made");
    populate(&root);
    for format in [
        &["--format=gnu", "--sparse"][..],
        &["--format=gnu"],
        &["--format=posix"],
        &["--format=posix", "--sparse", "--sparse-version=0.0"],
        &["--format=posix", "--sparse", "--sparse-version=0.1"],
        &["--format=posix", "--sparse", "--sparse-version=1.0"],
    ] {
        let out = Command::new("tar")
            .args(format)
            .args(["--numeric-owner", "--create", "--directory"])
            .arg(&root)
            .arg(".")
            .output()
            .expect("tar runs");
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
        let (tree, sink) = read(&out.stdout);
        let mut wrong = compare(&tree, &sink, &root);
        if format[0] == "--format=gnu" {
            wrong.retain(|line| !line.contains("mtime"));
        }
        assert!(wrong.is_empty(), "{format:?}\n{}", wrong.join("\n"));
    }
}

#[test]
fn privileged_archives_by_python_are_read_alike() {
    const NAME: &str = "privileged_archives_by_python_are_read_alike";
    if let Some(why) = missing(&["python3"]) {
        return testkit::skip(NAME, &why);
    }
    let dir = tempfile::tempdir().expect("made");
    let root = dir.path().join("root");
    fs::create_dir(&root).expect("made");
    populate(&root);
    for format in ["GNU_FORMAT", "PAX_FORMAT"] {
        let script = format!(
            "import sys, tarfile\nt = tarfile.open(fileobj=sys.stdout.buffer, mode='w|', format=tarfile.{format})\nt.add('.')\nt.close()"
        );
        let out = Command::new("python3")
            .args(["-c", &script])
            .current_dir(&root)
            .output()
            .expect("python runs");
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
        let (tree, sink) = read(&out.stdout);
        let mut wrong = compare(&tree, &sink, &root);
        // It writes times as floating-point numbers.
        wrong.retain(|line| !line.contains("mtime"));
        assert!(wrong.is_empty(), "{format}\n{}", wrong.join("\n"));
    }
}
