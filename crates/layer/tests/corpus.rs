//! Whole images: layers read, laid over each other, and the tree compared fact by fact with what it must be.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use layer::{DataSink, FileInfo, Options, decompress, detecting, read_tree};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tree::{ChunkId, Content, Inode, InodeId, Tree, mode};

/// Digests each file; the chunk is the digest's position.
#[derive(Default)]
struct Digests(Vec<String>);

impl DataSink for Digests {
    fn file(&mut self, file: FileInfo<'_>, data: &mut dyn BufRead) -> io::Result<Box<[ChunkId]>> {
        let mut buffer = vec![0; 1 << 20];
        let (mut hash, mut done) = (Sha256::new(), 0);
        loop {
            let n = data.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            hash.update(&buffer[..n]);
            done += n as u64;
        }
        assert_eq!(done, file.size);
        self.0.push(hex::encode(hash.finalize()));
        Ok(Box::new([ChunkId(self.0.len() as u32 - 1)]))
    }
}

/// A stack of layers as one tree, with the digests of its files.
#[derive(Default)]
struct Merged {
    tree: Option<Tree>,
    sink: Digests,
}

impl Merged {
    fn add(&mut self, stream: impl Read) {
        let mut layer = read_tree(BufReader::new(stream), &mut self.sink, &Options::default())
            .unwrap_or_else(|e| panic!("{e}: {:?}", std::error::Error::source(&e)));
        match &mut self.tree {
            None => {
                layer.strip_whiteouts();
                self.tree = Some(layer);
            }
            Some(tree) => tree.overlay(layer).expect("small"),
        }
    }

    fn add_file(&mut self, path: &Path) {
        let (what, stream) = detecting(File::open(path).expect("there")).expect("readable");
        self.add(decompress(stream, what).expect("set up"));
    }

    /// Paths (without the root) and inodes.
    fn files(&self) -> (&Tree, BTreeMap<String, InodeId>) {
        let tree = self.tree.as_ref().expect("a layer");
        let mut walk = tree.walk();
        let mut files = BTreeMap::new();
        while let Some(visit) = walk.next() {
            let path = String::from_utf8_lossy(&walk.path(&visit)[1..]).into_owned();
            if !path.is_empty() {
                files.insert(path, visit.id);
            }
        }
        (tree, files)
    }

    fn sha256(&self, inode: &Inode) -> String {
        match &inode.content {
            Content::Regular { size: 0, .. } => testkit::sha256(b""),
            Content::Regular { chunks, .. } => self.sink.0[chunks[0].0 as usize].clone(),
            other => panic!("{other:?}"),
        }
    }

    /// Every difference from an expectation in the shared JSON format; each said fact must hold.
    fn compare(&self, expect: &Path) -> Vec<String> {
        let expect: BTreeMap<String, Value> =
            serde_json::from_slice(&fs::read(expect).expect("there")).expect("JSON");
        let (tree, files) = self.files();
        let mut wrong = Vec::new();
        // Names of one group, as far as no upper layer gave one of them another content.
        let mut groups: BTreeMap<(&str, &str), Vec<InodeId>> = BTreeMap::new();
        wrong.extend(
            expect
                .keys()
                .filter(|path| !files.contains_key(*path))
                .map(|path| format!("missing {path}")),
        );
        for (path, &id) in &files {
            let Some(want) = expect.get(path) else {
                wrong.push(format!("extra {path}"));
                continue;
            };
            if want["type"] != "d" {
                groups
                    .entry((
                        want["hard"].as_str().unwrap_or(path),
                        want["sha256"].as_str().unwrap_or_default(),
                    ))
                    .or_default()
                    .push(id);
            }
            let have = self.facts(tree.inode(id));
            for (key, value) in want.as_object().expect("an object") {
                if key == "hard" || (key == "mode" && want["type"] == "l") {
                    continue;
                }
                if key == "xattr" {
                    for (name, value) in value.as_object().expect("an object") {
                        if have["xattr"].get(name) != Some(value) {
                            wrong.push(format!("{path}: {name}"));
                        }
                    }
                } else if have.get(key) != Some(value) {
                    wrong.push(format!("{path}: {key} is {:?}, not {value}", have.get(key)));
                }
            }
        }
        let shared = groups
            .values()
            .filter(|ids| ids.iter().any(|id| *id != ids[0]));
        wrong.extend(shared.map(|ids| format!("one hard link group with the inodes {ids:?}")));
        wrong
    }

    fn facts(&self, inode: &Inode) -> Value {
        let kind = kind(inode);
        let mut facts = serde_json::json!({
            "type": kind.to_string(), "mode": inode.mode & 0o7777, "uid": inode.uid, "gid": inode.gid,
            "mtime": inode.mtime,
            "xattr": inode.xattrs.iter().flat_map(|x| x.iter())
                .map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), hex::encode(value)))
                .collect::<BTreeMap<_, _>>(),
        });
        match &inode.content {
            Content::Regular { size, .. } => {
                facts["size"] = (*size).into();
                facts["sha256"] = self.sha256(inode).into();
            }
            Content::Symlink(target) => facts["link"] = String::from_utf8_lossy(target).into(),
            Content::Special => {
                let (major, minor) = device(inode.rdev);
                facts["dev"] = vec![major, minor].into();
            }
            Content::Directory(_) => {}
        }
        facts
    }
}

fn kind(inode: &Inode) -> char {
    match inode.mode & mode::TYPE_MASK {
        mode::REGULAR => 'f',
        mode::DIRECTORY => 'd',
        mode::SYMLINK => 'l',
        mode::CHARACTER => 'c',
        mode::BLOCK => 'b',
        mode::FIFO => 'p',
        other => panic!("type {other:o}"),
    }
}

fn device(rdev: u32) -> (u32, u32) {
    (rdev >> 8 & 0xfff, (rdev & 0xff) | (rdev >> 12 & !0xff))
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("there")).expect("JSON")
}

/// Blob files of an image's layers, lowest first.
fn layers(layout: &Path, manifest: &Value) -> Vec<std::path::PathBuf> {
    let blob = |digest: &Value| {
        layout
            .join("blobs")
            .join(digest.as_str().expect("a digest").replace(':', "/"))
    };
    json(&blob(&manifest["digest"]))["layers"]
        .as_array()
        .expect("layers")
        .iter()
        .map(|l| blob(&l["digest"]))
        .collect()
}

#[test]
fn the_torture_image_makes_the_expected_tree() {
    let Some(shared) = testkit::shared_or_skip("the_torture_image_makes_the_expected_tree") else {
        return;
    };
    let layout = shared.join("torture/image");
    let mut merged = Merged::default();
    for layer in layers(&layout, &json(&layout.join("index.json"))["manifests"][0]) {
        merged.add_file(&layer);
    }
    let wrong = merged.compare(&shared.join("torture/expect.json"));
    assert!(
        wrong.is_empty(),
        "{} differences:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(40)].join("\n")
    );
    let (_, files) = merged.files();
    assert!(files.len() > 3000);
}

#[test]
fn the_golden_layers_make_the_expected_trees() {
    let Some(shared) = testkit::shared_or_skip("the_golden_layers_make_the_expected_trees") else {
        return;
    };
    let golden = shared.join("golden");
    for (layers, expect) in [
        (&["lower.tar"][..], "lower.tar.expect.json"),
        (&["lower.tar.gz"], "lower.tar.expect.json"),
        (&["lower.tar", "upper.tar"], "merged.expect.json"),
    ] {
        let mut merged = Merged::default();
        for layer in layers {
            merged.add_file(&golden.join(layer));
        }
        let wrong = merged.compare(&golden.join(expect));
        assert!(wrong.is_empty(), "{layers:?}:\n{}", wrong.join("\n"));
    }
}

#[test]
fn the_real_images_are_read_whole() {
    let Some(shared) = testkit::shared_or_skip("the_real_images_are_read_whole") else {
        return;
    };
    let layout = shared.join("images");
    for manifest in json(&layout.join("index.json"))["manifests"]
        .as_array()
        .expect("manifests")
    {
        let mut merged = Merged::default();
        for layer in layers(&layout, manifest) {
            merged.add_file(&layer);
        }
        let (tree, files) = merged.files();
        assert!(tree.lookup(b"etc/passwd").is_some(), "{manifest}");
        assert!(
            files.len() > 1000 && !files.keys().any(|path| path.contains(".wh.")),
            "{manifest}"
        );
    }
}

#[test]
fn the_image_of_corner_cases_makes_the_expected_tree() {
    let corner = testkit::corner::image();
    let mut merged = Merged::default();
    for layer in &corner.layers {
        merged.add(&layer[..]);
    }
    let tree = merged.tree.as_ref().expect("a layer");
    let names = tree.link_counts();
    let mut groups: BTreeMap<Vec<u8>, Vec<InodeId>> = BTreeMap::new();
    for (path, want) in &corner.expect.entries {
        let show = String::from_utf8_lossy(path);
        let id = tree
            .lookup(path)
            .unwrap_or_else(|| panic!("{show} is missing"));
        let inode = tree.inode(id);
        assert_eq!(kind(inode), want.kind, "{show}");
        let same = |what: &str, want: Option<u64>, have: u64| {
            assert!(
                want.is_none_or(|want| want == have),
                "{show}: {what} is {have}, not {want:?}"
            );
        };
        if want.kind != 'l' {
            same(
                "mode",
                want.mode.map(u64::from),
                u64::from(inode.mode & 0o7777),
            );
        }
        same("uid", want.uid.map(u64::from), inode.uid.into());
        same("gid", want.gid.map(u64::from), inode.gid.into());
        same(
            "nanoseconds",
            want.mtime_nsec.map(u64::from),
            inode.mtime_nsec.into(),
        );
        assert!(
            want.mtime.is_none_or(|mtime| mtime == inode.mtime),
            "{show}: mtime {}",
            inode.mtime
        );
        assert!(
            want.device
                .is_none_or(|device_number| device_number == device(inode.rdev)),
            "{show}"
        );
        if let Content::Regular { size, .. } = inode.content {
            same("size", want.size, size);
            assert!(
                want.sha256
                    .as_ref()
                    .is_none_or(|sha256| *sha256 == merged.sha256(inode)),
                "{show}: content"
            );
        }
        if let Content::Symlink(target) = &inode.content {
            assert!(
                want.link.as_ref().is_none_or(|link| link[..] == target[..]),
                "{show}: target"
            );
        }
        let have = inode
            .xattrs
            .iter()
            .flat_map(|x| x.iter())
            .map(|(k, v)| (k.to_vec(), v.to_vec()));
        assert_eq!(have.collect::<BTreeMap<_, _>>(), want.xattrs, "{show}");
        if want.kind != 'd' {
            groups
                .entry(want.hard.clone().unwrap_or(path.clone()))
                .or_default()
                .push(id);
        }
    }
    for (group, ids) in groups {
        let show = String::from_utf8_lossy(&group);
        assert!(ids.iter().all(|id| *id == ids[0]), "{show}: {ids:?}");
        assert_eq!(
            names[ids[0].0 as usize] as usize,
            ids.len(),
            "{show}: link count"
        );
    }
    let extra = tree.name_count()
        - corner
            .expect
            .entries
            .keys()
            .filter(|path| !path.is_empty())
            .count() as u64
        - 1;
    assert_eq!(extra, 0, "names that nobody expects");
}
