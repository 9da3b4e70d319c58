//! How the entries of one layer become a tree: a test for each rule.

use std::io::{self, BufRead};

use layer::{DataSink, Error, FileInfo, Options, read_tree};
use testkit::tar::{BLOCK, Entry, Sparse, Tar, flag};
use tree::{ChunkId, Content, Inode, InodeId, Tree, mode};

/// Keeps the data of each file; the chunk is its position.
#[derive(Default)]
struct Keep(Vec<(Vec<u8>, Vec<u8>)>);

impl DataSink for Keep {
    fn file(&mut self, file: FileInfo<'_>, data: &mut dyn BufRead) -> io::Result<Box<[ChunkId]>> {
        let mut bytes = Vec::new();
        data.read_to_end(&mut bytes)?;
        assert_eq!(bytes.len() as u64, file.size);
        self.0.push((file.path.to_vec(), bytes));
        Ok(Box::new([ChunkId(self.0.len() as u32 - 1)]))
    }
}

struct Layer {
    tree: Tree,
    sink: Keep,
}

impl Layer {
    fn id(&self, path: &str) -> InodeId {
        self.tree
            .lookup(path.as_bytes())
            .unwrap_or_else(|| panic!("{path} is missing"))
    }

    fn at(&self, path: &str) -> &Inode {
        self.tree.inode(self.id(path))
    }

    fn data(&self, path: &str) -> &[u8] {
        match &self.at(path).content {
            Content::Regular { chunks, .. } if chunks.is_empty() => b"",
            Content::Regular { chunks, .. } => &self.sink.0[chunks[0].0 as usize].1,
            other => panic!("{path} is {other:?}"),
        }
    }

    fn paths(&self) -> Vec<String> {
        let mut walk = self.tree.walk();
        let mut paths = Vec::new();
        while let Some(visit) = walk.next() {
            paths.push(String::from_utf8_lossy(&walk.path(&visit)).into_owned());
        }
        paths.sort();
        paths
    }
}

fn apply_with(options: &Options, entries: impl IntoIterator<Item = Entry>) -> Result<Layer, Error> {
    let mut tar = Tar::new();
    for entry in entries {
        tar.add(entry);
    }
    let mut sink = Keep::default();
    let tree = read_tree(&tar.finish()[..], &mut sink, options)?;
    Ok(Layer { tree, sink })
}

fn apply<const N: usize>(entries: [Entry; N]) -> Layer {
    apply_with(&Options::default(), entries).expect("a valid layer")
}

fn refused<const N: usize>(entries: [Entry; N], words: &[&str]) {
    let error = apply_with(&Options::default(), entries)
        .map(|layer| layer.paths())
        .expect_err("refused")
        .to_string();
    for word in words {
        assert!(error.contains(word), "{word:?} is not in: {error}");
    }
}

fn file(path: &str) -> Entry {
    Entry::file(path, path)
}

#[test]
fn entries_become_inodes_with_their_metadata() {
    let layer = apply([
        Entry::directory("d/").mode(0o2751).owner(1, 2).mtime(3),
        file("d/f").mode(0o4755).owner(3_000_000_000, 4_294_967_294),
        Entry::symlink("d/s", "../f").mode(0o640),
        Entry::device("d/c", flag::CHARACTER, 1, 3).mode(0o666),
        Entry::device("d/b", flag::BLOCK, 8, 1),
        Entry::fifo("d/p"),
        Entry::file("d/empty", b""),
    ]);
    let d = layer.at("d");
    assert_eq!(
        (d.mode, d.uid, d.gid, d.mtime, d.implied),
        (mode::DIRECTORY | 0o2751, 1, 2, 3, false)
    );
    let f = layer.at("d/f");
    assert_eq!(
        (f.mode, f.uid, f.gid),
        (mode::REGULAR | 0o4755, 3_000_000_000, 4_294_967_294)
    );
    assert_eq!(layer.data("d/f"), b"d/f");
    assert_eq!(
        layer.sink.0[0].0, b"/d/f",
        "the sink is given absolute paths"
    );
    assert_eq!(
        layer.at("d/s").content,
        Content::Symlink(b"../f"[..].into())
    );
    assert_eq!(
        layer.at("d/s").mode,
        mode::SYMLINK | 0o777,
        "links have no permissions of their own"
    );
    assert_eq!(
        (layer.at("d/c").mode, layer.at("d/c").rdev),
        (mode::CHARACTER | 0o666, 0x103)
    );
    assert_eq!(
        (layer.at("d/b").mode, layer.at("d/b").rdev),
        (mode::BLOCK | 0o600, 0x801)
    );
    assert_eq!(layer.at("d/p").mode, mode::FIFO | 0o600);
    assert_eq!(
        layer.at("d/empty").content,
        Content::Regular {
            size: 0,
            chunks: Box::default()
        }
    );
    assert_eq!(
        layer.sink.0.len(),
        1,
        "an empty file is not given to the sink"
    );
}

#[test]
fn paths_are_cleaned_and_stay_inside() {
    let layer = apply([
        file("/absolute"),
        file("./dot/./x"),
        file("../../up"),
        file("a/../b//c"),
        file("d/../../../e"),
    ]);
    assert_eq!(
        layer.paths(),
        [
            "/",
            "/absolute",
            "/b",
            "/b/c",
            "/dot",
            "/dot/x",
            "/e",
            "/up"
        ]
    );
}

#[test]
fn a_root_entry_gives_the_root_metadata() {
    let layer = apply([Entry::directory("./")
        .mode(0o700)
        .owner(5, 6)
        .mtime(7)
        .xattr("user.r", "v")]);
    let root = layer.at("/");
    assert_eq!(
        (root.mode, root.uid, root.gid, root.mtime),
        (mode::DIRECTORY | 0o700, 5, 6, 7)
    );
    assert!(!root.implied && root.xattrs.is_some());
    assert!(apply([file("x")]).at("/").implied);
    // Anything but a directory there is ignored.
    assert!(apply([file("."), Entry::symlink("/", "x")]).at("/").implied);
}

#[test]
fn missing_parents_are_made_and_implied() {
    let layer = apply([file("a/b/c")]);
    for path in ["a", "a/b"] {
        let parent = layer.at(path);
        assert!(parent.implied);
        assert_eq!(
            (parent.mode, parent.uid, parent.mtime),
            (mode::DIRECTORY | 0o755, 0, 0)
        );
    }
    let layer = apply([file("a/b/c"), Entry::directory("a/").mode(0o700)]);
    assert!(!layer.at("a").implied && layer.at("a/b").implied);
    assert_eq!(layer.data("a/b/c"), b"a/b/c");
}

#[test]
fn a_later_entry_replaces_an_earlier_one() {
    let layer = apply([
        file("f").mode(0o600).xattr("user.a", "1"),
        Entry::file("f", b"new"),
    ]);
    assert_eq!(
        (
            layer.data("f"),
            layer.at("f").mode & 0o777,
            &layer.at("f").xattrs
        ),
        (&b"new"[..], 0o644, &None)
    );
    assert_eq!(layer.sink.0.len(), 2, "the sink sees both");
}

#[test]
fn a_directory_over_a_directory_keeps_the_children_and_takes_the_newer_metadata() {
    let layer = apply([
        Entry::directory("d/")
            .mode(0o700)
            .xattr("user.old", "1")
            .xattr("user.both", "1"),
        file("d/f"),
        Entry::directory("d")
            .mode(0o711)
            .owner(8, 9)
            .xattr("user.both", "2"),
    ]);
    let d = layer.at("d");
    assert_eq!((d.mode & 0o777, d.uid), (0o711, 8));
    let xattrs = d.xattrs.as_ref().expect("attributes");
    assert_eq!(xattrs[&b"user.both"[..]], b"2"[..].into());
    assert_eq!(
        xattrs[&b"user.old"[..]],
        b"1"[..].into(),
        "attributes are set one by one"
    );
    assert_eq!(layer.data("d/f"), b"d/f");
}

#[test]
fn a_file_over_a_directory_removes_what_is_below() {
    let layer = apply([file("d/e/f"), Entry::file("d", b"now")]);
    assert_eq!(layer.paths(), ["/", "/d"]);
    let layer = apply([file("d/e/f"), Entry::symlink("d", "x")]);
    assert_eq!(layer.paths(), ["/", "/d"]);
}

#[test]
fn a_directory_over_a_file_replaces_it() {
    let layer = apply([file("d"), Entry::directory("d/"), file("d/f")]);
    assert_eq!(layer.paths(), ["/", "/d", "/d/f"]);
    // Also over a symbolic link, which is not followed.
    let layer = apply([
        file("t/x"),
        Entry::symlink("d", "t"),
        Entry::directory("d/"),
        file("d/f"),
    ]);
    assert_eq!(layer.paths(), ["/", "/d", "/d/f", "/t", "/t/x"]);
}

#[test]
fn a_parent_that_is_a_file_is_refused_by_name() {
    refused(
        [file("f"), file("f/below")],
        &["f/below", "\"f\"", "not a directory"],
    );
    refused([Entry::fifo("p"), file("p/a/b")], &["p/a/b"]);
}

#[test]
fn links_on_the_way_are_followed_inside_the_root() {
    let layer = apply([
        Entry::directory("real/"),
        Entry::directory("sub/"),
        Entry::symlink("relative", "real"),
        Entry::symlink("sub/absolute", "/real"),
        Entry::symlink("sub/above", "../../../real"),
        Entry::symlink("chain", "sub/absolute/"),
        file("relative/1"),
        file("sub/absolute/2"),
        file("sub/above/3"),
        file("chain/4"),
        file("chain/deep/5"),
    ]);
    for name in ["1", "2", "3", "4", "deep/5"] {
        layer.id(&format!("real/{name}"));
    }
    assert!(layer.at("real/deep").implied);
}

#[test]
fn the_last_name_is_not_followed() {
    let layer = apply([
        file("t"),
        Entry::symlink("s", "t"),
        Entry::file("s", b"new"),
    ]);
    assert_eq!((layer.data("t"), layer.data("s")), (&b"t"[..], &b"new"[..]));
}

#[test]
fn a_dangling_link_on_the_way_makes_its_target() {
    let layer = apply([
        Entry::symlink("s", "/a/b"),
        file("s/f"),
        Entry::symlink("up", "../../c"),
        file("up/g"),
    ]);
    assert_eq!(
        layer.paths(),
        ["/", "/a", "/a/b", "/a/b/f", "/c", "/c/g", "/s", "/up"]
    );
}

#[test]
fn links_in_circles_are_refused() {
    refused(
        [
            Entry::symlink("a", "b"),
            Entry::symlink("b", "a"),
            file("a/f"),
        ],
        &["a/f", "255"],
    );
    refused([Entry::symlink("l", "l/x"), file("l/f")], &["255"]);
}

#[test]
fn two_hundred_links_in_a_row_are_fine() {
    let mut entries = vec![Entry::directory("l200/")];
    entries.extend((0..200).map(|i| Entry::symlink(format!("l{i}"), format!("l{}", i + 1))));
    entries.push(file("l0/f"));
    let layer = apply_with(&Options::default(), entries).expect("valid");
    layer.id("l200/f");
}

#[test]
fn dots_in_a_relative_target_are_resolved_by_the_text_in_an_absolute_one_by_the_way() {
    let layer = apply([
        Entry::directory("x/y/"),
        Entry::symlink("a", "x/y"),
        Entry::symlink("relative", "a/../r"),
        Entry::symlink("absolute", "/a/../r"),
        file("relative/1"),
        file("absolute/2"),
    ]);
    layer.id("r/1");
    layer.id("x/r/2");
}

#[test]
fn a_hard_link_shares_the_inode_and_its_header_counts() {
    let layer = apply([
        file("a").xattr("user.kept", "1").xattr("user.changed", "1"),
        Entry::hard("d/b", "a")
            .mode(0o600)
            .owner(7, 8)
            .mtime(9)
            .xattr("user.changed", "2"),
    ]);
    assert_eq!(layer.id("a"), layer.id("d/b"));
    let a = layer.at("a");
    assert_eq!(
        (a.mode, a.uid, a.gid, a.mtime),
        (mode::REGULAR | 0o600, 7, 8, 9)
    );
    let xattrs = a.xattrs.as_ref().expect("attributes");
    assert_eq!(xattrs[&b"user.kept"[..]], b"1"[..].into());
    assert_eq!(xattrs[&b"user.changed"[..]], b"2"[..].into());
    assert_eq!(layer.tree.link_counts()[layer.id("a").0 as usize], 2);
}

#[test]
fn a_hard_links_target_is_found_as_paths_are() {
    let layer = apply([
        file("real/f"),
        Entry::symlink("s", "real"),
        Entry::hard("1", "/real/f"),
        Entry::hard("2", "./real/../real//f"),
        Entry::hard("3", "../s/f"),
        Entry::hard("s/4", "s/f"),
    ]);
    for name in ["1", "2", "3", "real/4"] {
        assert_eq!(layer.id(name), layer.id("real/f"), "{name}");
    }
}

#[test]
fn a_hard_link_to_anything_but_a_directory() {
    let layer = apply([
        Entry::symlink("s", "nowhere").mtime(1),
        Entry::hard("s2", "s").mode(0o600).owner(5, 5),
        Entry::fifo("p"),
        Entry::hard("p2", "p"),
        Entry::device("c", flag::CHARACTER, 1, 3),
        Entry::hard("c2", "c"),
    ]);
    for name in ["s", "p", "c"] {
        assert_eq!(layer.id(name), layer.id(&format!("{name}2")));
    }
    assert_eq!(
        (layer.at("s").mode, layer.at("s").uid),
        (mode::SYMLINK | 0o777, 5)
    );
    assert_eq!(layer.at("c").rdev, 0x103);
    refused(
        [Entry::directory("d/"), Entry::hard("l", "d")],
        &["\"l\"", "is a directory"],
    );
    for target in ["/", "d/..", "..", "."] {
        refused(
            [Entry::directory("d/"), Entry::hard("l", target)],
            &["is a directory"],
        );
    }
}

#[test]
fn a_hard_link_without_an_earlier_target_is_refused_by_name() {
    refused(
        [Entry::hard("l", "later"), file("later")],
        &["\"l\"", "\"later\""],
    );
    refused([Entry::hard("l", "no/where")], &["\"no/where\""]);
    refused([file("f"), Entry::hard("l", "f/x")], &["\"f\""]);
    refused(
        [Entry::file(".wh.x", b""), Entry::hard("l", ".wh.x")],
        &["\".wh.x\""],
    );
    // The entry it replaces goes first, with what lies below.
    refused([file("d/f"), Entry::hard("d", "d/f")], &["\"d/f\""]);
}

#[test]
fn a_link_to_itself_is_harmless() {
    let layer = apply([
        file("a"),
        Entry::hard("b", "a"),
        Entry::hard("a", "b").mode(0o600),
        Entry::hard("a", "a"),
    ]);
    assert_eq!(layer.id("a"), layer.id("b"));
    assert_eq!(layer.data("a"), b"a");
}

#[test]
fn replacing_one_name_of_an_inode_leaves_the_others() {
    let layer = apply([file("a"), Entry::hard("b", "a"), Entry::file("a", b"new")]);
    assert_ne!(layer.id("a"), layer.id("b"));
    assert_eq!((layer.data("a"), layer.data("b")), (&b"new"[..], &b"a"[..]));
    assert_eq!(layer.tree.link_counts()[layer.id("b").0 as usize], 1);
}

#[test]
fn whiteouts_stay_as_empty_files_and_remove_nothing_here() {
    let layer = apply([
        file("gone"),
        file("d/f"),
        Entry::file(".wh.gone", b"").mode(0o600),
        Entry::file("d/.wh..wh..opq", b""),
        Entry::file("e/.wh.with data", b"ignored").xattr("user.x", "y"),
        Entry::directory(".wh.directory/"),
        Entry::hard(".wh.hard", "no/such/target"),
        Entry::symlink(".wh.symlink", "gone"),
        Entry::device(".wh.device", flag::CHARACTER, 0, 0),
        Entry::file(b".wh.\xff\xfe", b"").in_gnu_format(),
    ]);
    layer.id("gone");
    layer.id("d/f");
    for name in [
        "d/.wh..wh..opq",
        "e/.wh.with data",
        ".wh.directory",
        ".wh.hard",
        ".wh.symlink",
        ".wh.device",
    ] {
        let marker = layer.at(name);
        assert_eq!(marker.mode & mode::TYPE_MASK, mode::REGULAR, "{name}");
        assert_eq!(
            marker.content,
            Content::Regular {
                size: 0,
                chunks: Box::default()
            },
            "{name}"
        );
        assert_eq!((marker.rdev, &marker.xattrs), (0, &None), "{name}");
    }
    assert_eq!(layer.at(".wh.gone").mode & 0o777, 0o600);
    assert!(layer.tree.lookup(b".wh.\xff\xfe").is_some());
}

#[test]
fn other_bookkeeping_of_storage_drivers_is_skipped() {
    let layer = apply([
        Entry::directory(".wh..wh.plnk/"),
        file(".wh..wh.plnk/123.456"),
        file("d/.wh..wh.aufs"),
        file("f"),
    ]);
    assert_eq!(layer.paths(), ["/", "/f"]);
}

#[test]
fn whiteouts_that_name_nothing_or_would_escape_are_refused() {
    for name in [".wh.", ".wh..", ".wh...", "d/.wh..."] {
        refused([Entry::file(name, b"")], &[name, "whiteout"]);
    }
    let layer = apply([Entry::file(".wh.....", b""), Entry::file(".wh", b"")]);
    assert_eq!(layer.paths(), ["/", "/.wh", "/.wh....."]);
}

#[test]
fn nothing_can_lie_below_a_whiteout() {
    refused([file(".wh.d/x")], &[".wh.d/x", "whiteout"]);
    refused([Entry::directory(".wh.d/"), file(".wh.d/x")], &[".wh.d/x"]);
    refused(
        [Entry::symlink("s", "/.wh.d"), file("s/x")],
        &["s/x", "whiteout"],
    );
}

#[test]
fn names_that_no_file_system_holds_are_refused() {
    let long = "n".repeat(256);
    refused([file(&long)], &["256"]);
    refused([file(&format!("{long}/x"))], &["256"]);
    apply([file(&"n".repeat(255))]);
    refused([Entry::symlink("empty", "")], &["\"empty\""]);
    refused([Entry::symlink("long", "t".repeat(4096))], &["\"long\""]);
    apply([Entry::symlink("s", "t".repeat(4095))]);
}

#[test]
fn attributes_are_kept_by_namespace() {
    let entry = file("f")
        .xattr("user.a", "1")
        .xattr("security.capability", b"\x01\0")
        .xattr("system.posix_acl_access", "acl")
        .xattr("system.posix_acl_default", "acl")
        .xattr("trusted.t", "1")
        .xattr("trusted.overlay.opaque", "y")
        .xattr("system.nfs4_acl", "x")
        .xattr("com.apple.provenance", "x")
        .pax("SCHILY.acl.access", "user::rw-");
    let names = |keep_trusted| {
        let options = Options {
            keep_trusted,
            ..Options::default()
        };
        let layer = apply_with(&options, [entry.clone()]).expect("valid");
        let xattrs = layer.at("f").xattrs.clone().expect("attributes");
        xattrs
            .keys()
            .map(|name| String::from_utf8_lossy(name).into_owned())
            .collect::<Vec<_>>()
    };
    let kept = [
        "security.capability",
        "system.posix_acl_access",
        "system.posix_acl_default",
        "trusted.t",
        "user.a",
    ];
    assert_eq!(names(true), kept);
    assert_eq!(names(false), [kept[0], kept[1], kept[2], kept[4]]);
}

#[test]
fn impossible_attributes_are_refused_by_name() {
    refused([file("f").xattr("user.", "v")], &["\"f\"", "\"user.\""]);
    refused(
        [file("f").xattr(&format!("user.{}", "n".repeat(251)), "v")],
        &["\"f\""],
    );
    refused(
        [file("f").xattr("user.big", vec![b'v'; 65_536])],
        &["\"f\"", "user.big", "65536"],
    );
    apply([file("f").xattr("user.big", vec![b'v'; 65_535])]);
    // They do not matter on what is no file.
    apply([Entry::file(".wh.x", b"").xattr("user.", "v")]);
}

#[test]
fn fractions_of_a_second_on_request() {
    let entry = file("f").pax("mtime", "-1.25");
    for (fraction, want) in [(true, (-2, 750_000_000)), (false, (-2, 0))] {
        let options = Options {
            fraction,
            ..Options::default()
        };
        let layer = apply_with(&options, [entry.clone()]).expect("valid");
        assert_eq!((layer.at("f").mtime, layer.at("f").mtime_nsec), want);
    }
}

#[test]
fn helper_files_of_estargz_are_dropped_on_request() {
    let entries = [
        file("stargz.index.json"),
        file(".prefetch.landmark"),
        file("./.no.prefetch.landmark"),
        file("d/stargz.index.json"),
    ];
    let options = Options {
        drop_estargz: true,
        ..Options::default()
    };
    let layer = apply_with(&options, entries.clone()).expect("valid");
    assert_eq!(layer.paths(), ["/", "/d", "/d/stargz.index.json"]);
    assert_eq!(apply(entries).paths().len(), 6);
}

#[test]
fn the_size_of_all_files_is_limited_whatever_of_it_is_there() {
    let options = Options {
        max_content: 20,
        ..Options::default()
    };
    let sized = |name: &str, size| Entry::file(name, vec![7; size]);
    apply_with(&options, [sized("a", 15), sized("b", 5), sized("c", 0)]).expect("enough");
    // A file that another one replaces has been read all the same.
    for entries in [
        vec![sized("a", 15), sized("b", 6)],
        vec![sized("a", 15), sized("a", 6)],
    ] {
        let error = apply_with(&options, entries).err().expect("too much");
        assert!(matches!(error, Error::TooMuchContent { limit: 20, .. }));
    }

    let mut sparse = Tar::new();
    sparse.sparse(Entry::file("hole", b""), Sparse::Pax01, 21, &[]);
    let error = read_tree(&sparse.finish()[..], &mut Keep::default(), &options);
    let error = error.expect_err("too much").to_string();
    assert!(
        error.contains("hole") && error.contains("20 bytes"),
        "{error}"
    );
}

#[test]
fn the_number_of_inodes_is_limited() {
    let options = Options {
        max_inodes: 10,
        ..Options::default()
    };
    apply_with(&options, (0..9).map(|i| file(&format!("{i}")))).expect("nine and the root");
    let error = apply_with(&options, (0..10).map(|i| file(&format!("{i}"))))
        .err()
        .expect("too many");
    assert!(matches!(error, Error::TooManyInodes { limit: 10 }));
    assert!(apply_with(&options, [file(&"a/".repeat(1000))]).is_err());
}

#[test]
fn a_failing_sink_names_the_file() {
    struct Full;
    impl DataSink for Full {
        fn file(&mut self, _: FileInfo<'_>, _: &mut dyn BufRead) -> io::Result<Box<[ChunkId]>> {
            Err(io::ErrorKind::StorageFull.into())
        }
    }
    let bytes = Tar::new().add(file("d/f")).finish();
    let error = read_tree(&bytes[..], &mut Full, &Options::default()).expect_err("full");
    assert!(error.to_string().contains("/d/f"), "{error}");
    assert!(std::error::Error::source(&error).is_some());
}

#[test]
fn a_truncated_layer_is_refused() {
    let bytes = Tar::new()
        .add(Entry::file("d/f", vec![b'x'; 5000]))
        .finish();
    for length in [BLOCK + 1, BLOCK + 4999, 100] {
        read_tree(&bytes[..length], &mut Keep::default(), &Options::default())
            .expect_err("truncated");
    }
}

#[test]
fn the_stream_is_read_to_its_end() {
    let mut bytes = Tar::new().add(file("f")).finish();
    bytes.extend([0; 9000]);
    bytes.extend(b"the digest covers this too");
    let mut stream = &bytes[..];
    read_tree(&mut stream, &mut Keep::default(), &Options::default()).expect("valid");
    assert!(stream.is_empty());
}

#[test]
fn entries_behind_the_end_mark_count_only_in_concatenated_archives() {
    let mut bytes = Tar::new().add(file("f")).finish();
    bytes.extend(Tar::new().add(file("g")).finish());
    for concatenated in [false, true] {
        let options = Options {
            concatenated,
            ..Options::default()
        };
        let mut stream = &bytes[..];
        let tree = read_tree(&mut stream, &mut Keep::default(), &options).expect("valid");
        assert!(tree.lookup(b"/f").is_some());
        assert_eq!(tree.lookup(b"/g").is_some(), concatenated);
        assert!(stream.is_empty(), "the digest covers all of it");
    }
}

#[test]
fn a_directory_of_100000_files_takes_no_quadratic_time() {
    let mut tar = Tar::new();
    for i in 0..100_000u32 {
        tar.add(Entry::file(
            format!("d/{:08x}", i.wrapping_mul(0x9e37_79b1)),
            b"",
        ));
    }
    let bytes = tar.finish();
    let begun = std::time::Instant::now();
    let tree = read_tree(&bytes[..], &mut Keep::default(), &Options::default()).expect("valid");
    assert_eq!(tree.name_count(), 100_002);
    // A tenth of it is enough even unoptimised; a quadratic algorithm needs minutes.
    assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
}

#[test]
fn a_very_deep_tree_overflows_no_stack() {
    let layer = apply([
        file(&"d/".repeat(32_000)),
        file(&format!("{}f", "d/".repeat(30_000))),
    ]);
    assert_eq!(layer.tree.name_count(), 32_002);
    let mut tree = layer.tree;
    let copy = tree.clone();
    tree.overlay(copy).expect("small");
    tree.strip_whiteouts();
    assert_eq!(tree.compact().len(), 2 * 32_002);
    assert_eq!(tree.name_count(), 32_002);
}
