//! An image of corner cases: three layers full of odd but legal things, and the tree that they make.
//!
//! The expectation is written down entry by entry beside the archives, never computed by the code under test.

use crate::expect::{Entry as Want, Expect};
use crate::maker::{Maker, clean, want};
use crate::tar::{Entry, Sparse, Tar, flag, header};
use crate::{noise, prose};

/// Chunk size that the sizes of files here are chosen for.
pub const CHUNK: usize = 1 << 20;

/// Number of files in the big directory.
pub const MANY: usize = 10_000;

/// The image.
#[derive(Debug)]
pub struct Corner {
    /// Uncompressed layers, lowest first.
    pub layers: Vec<Vec<u8>>,
    /// The merged tree.
    pub expect: Expect,
}

/// Makes the image; the same bytes every time.
pub fn image() -> Corner {
    let mut maker = Maker::new();
    maker.root();
    maker.sizes();
    maker.names();
    maker.deep();
    maker.modes();
    maker.xattrs();
    maker.links();
    maker.dialects();
    maker.sparse();
    maker.through_symlinks();
    maker.twice();
    maker.changed_later();
    let lowest = maker.next_layer();
    maker.many();
    maker.removals();
    maker.replacements();
    let middle = maker.next_layer();
    maker.top();
    let mut top = maker.next_layer();
    // Behind the end mark nothing counts.
    top.extend(Tar::new().add(Entry::file("behind", b"x")).finish());
    Corner {
        layers: vec![lowest, middle, top],
        expect: maker.expect,
    }
}

impl Maker {
    fn root(&mut self) {
        self.tar.pax(
            b'g',
            &[(
                b"comment".to_vec(),
                b"a global header, as git writes one".to_vec(),
            )],
        );
        self.expect.entries.insert(
            Vec::new(),
            want(&Entry::directory("./").mode(0o751).mtime(1_234_567_890)),
        );
        self.tar
            .add(Entry::directory("./").mode(0o751).mtime(1_234_567_890));
        self.add(Entry::file("./dotslash", b"below ./"));
        self.add_as(
            "absolute",
            Entry::file("/absolute", b"kept inside the root"),
        );
    }

    fn sizes(&mut self) {
        self.add(Entry::directory("sizes/"));
        let sizes = [
            0,
            1,
            4095,
            4096,
            4097,
            CHUNK - 1,
            CHUNK,
            CHUNK + 1,
            2 * CHUNK,
            3 * CHUNK + 12_345,
        ];
        for (seed, size) in sizes.into_iter().enumerate() {
            self.add(Entry::file(
                format!("sizes/{size}"),
                prose(seed as u64, size),
            ));
        }
        self.add(Entry::file("sizes/zeros", vec![0; 2 * CHUNK]));
        self.add(Entry::file("sizes/incompressible", noise(1, 300_000)));
        for name in ["sizes/same1", "sizes/same2"] {
            self.add(Entry::file(name, prose(77, 100_000)));
        }
    }

    fn names(&mut self) {
        self.add(Entry::directory("names/"));
        self.add(Entry::file(
            format!("names/{}", "n".repeat(255)),
            b"longest name",
        ));
        self.add(
            Entry::file(format!("names/{}", "g".repeat(255)), b"longest name, GNU").in_gnu_format(),
        );
        self.add(Entry::file(b"names/\xff\xfe not UTF-8 \x80", b"bytes").in_gnu_format());
        self.add(Entry::file("names/\u{e9}\u{df} \u{540d}", b"UTF-8"));
        for name in [
            "-dash",
            "with space\tand\nnewline",
            "..dots",
            "...",
            "a\\b",
            "a",
            "a.b",
            "a-b",
            "ab",
            "A",
        ] {
            self.add(Entry::file(format!("names/{name}"), name));
        }
        self.add(Entry::directory("names/a!/"));
        self.add(Entry::file(
            "names/a!/x",
            b"sorts around its directory's name",
        ));
        // Eight bytes of name and 512 in all: the directory's data ends exactly at a block's end somewhere here.
        self.add(Entry::directory("names/block/"));
        for i in 0..340 {
            self.add(Entry::file(format!("names/block/{i:08}"), b""));
        }
    }

    fn deep(&mut self) {
        let mut path = "deep".to_owned();
        self.add(Entry::directory("deep/"));
        for level in 0..18 {
            path = format!("{path}/{}", format!("{level:02}").repeat(125));
            self.add(Entry::directory(format!("{path}/")));
        }
        self.add(Entry::file(
            format!("{path}/bottom"),
            b"below a path of more than 4096 bytes",
        ));
    }

    fn modes(&mut self) {
        self.add(Entry::directory("modes/").mode(0o1777));
        for mode in [0, 0o400, 0o1644, 0o2755, 0o4755, 0o7777] {
            self.add(Entry::file(format!("modes/{mode:o}"), b"x").mode(mode));
        }
        self.add(Entry::directory("modes/setgid/").mode(0o2775).owner(1, 50));
        self.add(Entry::file("modes/uid16", b"x").owner(65_534, 65_535));
        self.add(Entry::file("modes/uid32", b"x").owner(3_000_000_000, 4_294_967_294));
        self.add(
            Entry::file("modes/uid32gnu", b"x")
                .owner(2_999_999_999, 2_097_152)
                .in_gnu_format(),
        );
        self.add(Entry::file("modes/epoch", b"x").mtime(0));
        self.add(Entry::device("modes/null", flag::CHARACTER, 1, 3).mode(0o666));
        self.add(Entry::device("modes/big", flag::BLOCK, 259, 70_000));
        self.add(Entry::fifo("modes/fifo"));
        let future = Entry::file("modes/future", b"x")
            .mtime(0)
            .pax("mtime", "10000000000");
        self.tar.add(future.clone());
        let want = Want {
            mtime: Some(10_000_000_000),
            ..want(&future)
        };
        self.expect
            .entries
            .insert(b"modes/future".into(), want.clone());
        let fraction = Entry::file("modes/fraction", b"x")
            .mtime(0)
            .pax("mtime", "1500000000.987654321");
        self.tar.add(fraction);
        self.expect.entries.insert(
            b"modes/fraction".into(),
            Want {
                mtime: Some(1_500_000_000),
                ..want
            },
        );
    }

    fn xattrs(&mut self) {
        // Version 2, then (tag, permissions, id): owner rw-, user 1000 r--, group r--, mask r--, others r--.
        let acl = [
            &2_u32.to_le_bytes()[..],
            &[1, 0, 6, 0, 255, 255, 255, 255],
            &[2, 0, 4, 0, 232, 3, 0, 0],
            &[4, 0, 4, 0, 255, 255, 255, 255],
            &[16, 0, 4, 0, 255, 255, 255, 255],
            &[32, 0, 4, 0, 255, 255, 255, 255],
        ]
        .concat();
        let capability = hex::decode("0100000200040000000000000000000000000000").expect("hex");
        self.add(Entry::directory("xattr/").xattr("user.dir", b"on a directory"));
        self.add(Entry::file("xattr/acl", b"x").xattr("system.posix_acl_access", &acl));
        self.add(
            Entry::file("xattr/capability", b"x")
                .mode(0o755)
                .xattr("security.capability", &capability),
        );
        self.add(
            Entry::symlink("xattr/symlink", "acl").xattr("security.label", b"on a symbolic link"),
        );
        self.add(Entry::file("xattr/empty", b"").xattr("user.empty", b""));
        self.add(Entry::file("xattr/binary", b"x").xattr("user.binary", b"\0=\n\xff\0"));
        self.add(Entry::file("xattr/big", b"x").xattr("user.big", noise(5, 4000)));
        let long = format!("user.{}", "x".repeat(200));
        self.add(Entry::file("xattr/long-name", b"x").xattr(&long, b"v"));
        let mut many = Entry::file("xattr/many", prose(9, 5000));
        for i in 0..40 {
            many = many.xattr(&format!("user.n{i:02}"), vec![b'v'; i]);
        }
        self.add(many);
        for name in ["xattr/same1", "xattr/same2"] {
            self.add(Entry::file(name, b"x").xattr("user.shared", b"the same on several files"));
        }
    }

    fn links(&mut self) {
        self.add(Entry::directory("links/"));
        self.add(Entry::file("links/a", prose(3, 5000)).xattr("user.kept", b"on all names"));
        self.hard("links/b", "links/a", Entry::hard("links/b", "links/a"));
        self.hard(
            "links/c",
            "links/b",
            Entry::hard("links/c", "/links/b")
                .mode(0o600)
                .owner(7, 8)
                .mtime(1_700_000_000),
        );
        self.add(Entry::symlink("links/symlink", "a"));
        self.hard(
            "links/hard-to-symlink",
            "links/symlink",
            Entry::hard("links/hard-to-symlink", "links/symlink"),
        );
        self.add(Entry::fifo("links/fifo"));
        self.hard(
            "links/hard-to-fifo",
            "links/fifo",
            Entry::hard("links/hard-to-fifo", "links/fifo"),
        );
        self.add(Entry::symlink("links/longest", "/t".repeat(2047) + "t"));
        self.add(Entry::symlink(
            "links/dangling",
            "../../../../../../no/where",
        ));
        self.add(Entry::symlink("links/loop", "loop"));
        // Lengths around the sizes at which a target no longer fits behind its inode.
        for length in [1, 59, 60, 511, 512, 513, 4030, 4031, 4032, 4033] {
            self.add(Entry::symlink(
                format!("links/{length}"),
                "s".repeat(length),
            ));
        }
        self.add(Entry::file("links/empty", b""));
        self.hard(
            "links/empty2",
            "links/empty",
            Entry::hard("links/empty2", "links/empty"),
        );
    }

    /// Headers of other times and places.
    fn dialects(&mut self) {
        self.implied("dialects");
        self.implied("dialects/implied");
        self.implied("dialects/implied/parents");
        self.add(Entry::file(
            "dialects/implied/parents/file",
            b"no entry for any parent",
        ));
        // Before POSIX: no magic, type NUL, a directory is what ends in a slash.
        for (name, data) in [
            ("dialects/v7-directory/", &b""[..]),
            ("dialects/v7-directory/file", b"v7"),
        ] {
            let mut entry = Entry::file(name, data);
            if name.ends_with('/') {
                entry.mode = 0o755;
            }
            let mut old = header(&entry, data.len() as u64);
            old[156] = 0;
            old[257..265].fill(0);
            self.tar.raw_header(old).data(data);
            let kind = if name.ends_with('/') {
                Entry::directory(name)
            } else {
                entry
            };
            self.expect
                .entries
                .insert(clean(name.as_bytes()), want(&kind));
        }
        let prefixed = Entry::file("name", b"split");
        let mut split = header(&prefixed, 5);
        split[345..360].copy_from_slice(b"dialects/prefix");
        self.tar.raw_header(split).data(b"split");
        self.implied("dialects/prefix");
        self.expect
            .entries
            .insert(b"dialects/prefix/name".into(), want(&prefixed));
        // A size that only the PAX record tells right.
        let sized = Entry::file("dialects/pax-size", b"ten bytes!");
        self.tar.pax(b'x', &[(b"size".to_vec(), b"10".to_vec())]);
        self.tar.raw_header(header(&sized, 0)).data(b"ten bytes!");
        self.expect
            .entries
            .insert(b"dialects/pax-size".into(), want(&sized));
        let mut base256 = header(&Entry::file("dialects/base-256", b""), 0);
        base256[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3]);
        self.tar.raw_header(base256).data(b"abc");
        self.expect
            .entries
            .insert(b"dialects/base-256".into(), want(&Entry::file("", b"abc")));
        // Contiguous files (type 7) are regular ones.
        let mut contiguous = header(&Entry::file("dialects/contiguous", b""), 3);
        contiguous[156] = b'7';
        self.tar.raw_header(contiguous).data(b"abc");
        self.expect.entries.insert(
            b"dialects/contiguous".into(),
            want(&Entry::file("", b"abc")),
        );
    }

    fn sparse(&mut self) {
        self.add(Entry::directory("sparse/"));
        let many: Vec<(u64, Vec<u8>)> = (0..30).map(|i| (i * 69_632, prose(i, 1024))).collect();
        let few = vec![(4096, prose(50, 512)), (1_499_648, prose(51, 700))];
        for (name, dialect) in [
            ("gnu", Sparse::Gnu),
            ("pax00", Sparse::Pax00),
            ("pax01", Sparse::Pax01),
            ("pax10", Sparse::Pax10),
        ] {
            self.one_sparse(&format!("sparse/{name}-many"), dialect, 2_100_001, &many);
            self.one_sparse(&format!("sparse/{name}-few"), dialect, 2 * CHUNK, &few);
            self.one_sparse(&format!("sparse/{name}-hole"), dialect, 50_000, &[]);
        }
    }

    fn one_sparse(
        &mut self,
        path: &str,
        dialect: Sparse,
        size: usize,
        segments: &[(u64, Vec<u8>)],
    ) {
        let mut content = vec![0; size];
        for (offset, bytes) in segments {
            let offset = usize::try_from(*offset).expect("small");
            content[offset..offset + bytes.len()].copy_from_slice(bytes);
        }
        self.expect
            .entries
            .insert(path.into(), want(&Entry::file(path, content)));
        self.tar
            .sparse(Entry::file(path, b""), dialect, size as u64, segments);
    }

    /// Entries whose path leads through a symbolic link of their own layer.
    fn through_symlinks(&mut self) {
        self.add(Entry::directory("through/"));
        self.add(Entry::directory("through/real/"));
        self.add(Entry::symlink("through/relative", "real"));
        self.add(Entry::symlink("through/absolute", "/through/real"));
        self.add(Entry::symlink("through/above", "../../../../through/real"));
        self.add(Entry::symlink("through/chain", "relative/"));
        for name in ["relative", "absolute", "above", "chain"] {
            let path = format!("through/{name}/by-{name}");
            self.add_as(&format!("through/real/by-{name}"), Entry::file(path, name));
        }
    }

    /// The same name twice in a layer.
    fn twice(&mut self) {
        self.add(Entry::directory("twice/"));
        self.hidden(Entry::file("twice/file", b"first"));
        self.add(Entry::file("twice/file", b"second").mode(0o600));
        self.add(Entry::directory("twice/directory/").mode(0o700));
        self.add(Entry::file("twice/directory/child", b"kept"));
        self.add(Entry::directory("twice/directory/").mode(0o711).owner(3, 4));
        self.hidden(Entry::directory("twice/becomes-file/"));
        self.hidden(Entry::file("twice/becomes-file/child", b"lost"));
        self.add(Entry::file("twice/becomes-file", b"a file now"));
        self.hidden(Entry::file("twice/becomes-directory", b"lost"));
        self.add(Entry::directory("twice/becomes-directory/"));
        self.add(Entry::file("twice/becomes-directory/child", b"here"));
        // A replaced name does not take its other names along.
        self.add(Entry::file("twice/linked", b"old"));
        self.hard(
            "twice/other-name",
            "twice/linked",
            Entry::hard("twice/other-name", "twice/linked"),
        );
        let old = Want {
            hard: None,
            ..self.expect.entries[b"twice/other-name".as_slice()].clone()
        };
        self.expect.entries.insert(b"twice/other-name".into(), old);
        self.add(Entry::file("twice/linked", b"new"));
    }

    /// What the layers above remove or replace.
    fn changed_later(&mut self) {
        for directory in [
            "gone/",
            "gone/tree/",
            "gone/tree/below/",
            "opaque/",
            "opaque/sub/",
            "replaced/",
        ] {
            self.add(Entry::directory(directory));
        }
        for file in [
            "gone/file",
            "gone/tree/a",
            "gone/tree/below/b",
            "gone/again",
            "gone/stays",
            "opaque/old",
        ] {
            self.add(Entry::file(file, file));
        }
        self.add(Entry::file("opaque/sub/old", b"old"));
        self.implied("opaque-implied");
        self.implied("opaque-implied/sub");
        self.add(Entry::file("opaque-implied/sub/old", b"old"));
        self.add(Entry::file("gone/name1", b"two names"));
        self.hard(
            "gone/name2",
            "gone/name1",
            Entry::hard("gone/name2", "gone/name1"),
        );
        self.add(Entry::directory("replaced/directory/"));
        self.add(Entry::file("replaced/directory/child", b"old"));
        self.add(Entry::directory("replaced/directory2/"));
        self.add(Entry::file("replaced/directory2/child", b"old"));
        self.add(Entry::file("replaced/file", b"old"));
        self.add(Entry::file("replaced/metadata", b"same").xattr("user.old", b"goes"));
        self.add(
            Entry::directory("replaced/kept/")
                .mode(0o750)
                .owner(11, 12)
                .xattr("user.kept", b"yes"),
        );
        self.add(Entry::file("replaced/kept/lower", b"lower"));
        self.add(Entry::file("replaced/name1", b"two names"));
        self.hard(
            "replaced/name2",
            "replaced/name1",
            Entry::hard("replaced/name2", "replaced/name1"),
        );
        self.add(Entry::directory("replaced/symlink-target/"));
        self.add(Entry::symlink("replaced/symlink", "symlink-target"));
        // A whiteout in the lowest layer has nothing to act on and must not show.
        self.hidden(Entry::file("gone/.wh.nothing", b""));
    }

    fn many(&mut self) {
        self.add(Entry::directory("many/"));
        for i in 0..MANY {
            self.add(Entry::file(
                format!("many/{i:05}"),
                format!("{}\n", i % 1000),
            ));
        }
    }

    fn removals(&mut self) {
        self.hidden(Entry::file("gone/.wh.file", b""));
        self.hidden(Entry::file("gone/.wh.tree", b""));
        self.gone("gone/file");
        self.gone("gone/tree");
        self.hidden(Entry::file("gone/.wh.never-there", b""));
        self.hidden(Entry::file(
            "gone/.wh..wh.plnk",
            b"a marker of aufs, to be skipped",
        ));
        self.hidden(Entry::file("gone/.wh.name1", b""));
        self.gone("gone/name1");
        let alone = Want {
            hard: None,
            ..self.expect.entries[b"gone/name2".as_slice()].clone()
        };
        self.expect.entries.insert(b"gone/name2".into(), alone);
        // A whiteout acts on the layers below only, wherever it stands.
        self.gone("gone/again");
        self.add(Entry::file("gone/again", b"new"));
        self.hidden(Entry::file("gone/.wh.again", b""));
        self.gone("opaque");
        self.add(Entry::file("opaque/before", b"new"));
        self.add(Entry::directory("opaque/").mode(0o711));
        self.hidden(Entry::file("opaque/.wh..wh..opq", b""));
        self.add(Entry::file("opaque/after", b"new"));
        self.add(Entry::directory("opaque/sub/").mode(0o700));
        self.gone("opaque-implied/sub/old");
        self.hidden(Entry::file("opaque-implied/sub/.wh..wh..opq", b""));
    }

    fn replacements(&mut self) {
        self.gone("replaced/directory");
        self.add(Entry::file("replaced/directory", b"a file now"));
        self.gone("replaced/directory2");
        self.add(Entry::symlink("replaced/directory2", "file"));
        self.add(Entry::directory("replaced/file/"));
        self.add(Entry::file("replaced/file/child", b"new"));
        self.add(
            Entry::file("replaced/metadata", b"same")
                .mode(0o755)
                .owner(1000, 1000),
        );
        // No entry for the directory itself: it keeps the metadata of the layer below.
        self.add(Entry::file("replaced/kept/upper", b"upper"));
        self.add(Entry::file("replaced/name1", b"no longer linked"));
        let alone = Want {
            hard: None,
            ..self.expect.entries[b"replaced/name2".as_slice()].clone()
        };
        self.expect.entries.insert(b"replaced/name2".into(), alone);
        // A symbolic link of a layer below is not seen: the implied directory takes its place.
        self.implied("replaced/symlink");
        self.add(Entry::file("replaced/symlink/child", b"not in the target"));
    }

    fn top(&mut self) {
        self.add(Entry::file("top/same-as-below", prose(77, 100_000)));
        self.implied("top");
        self.add(Entry::file("twice/directory/from-the-top", b"top"));
        self.hidden(Entry::file("many/.wh.00000", b""));
        self.gone("many/00000");
        self.add(Entry::file("many/09999", b"replaced\n"));
        // What a layer below removed may come back.
        self.add(Entry::directory("gone/tree/"));
        self.add(Entry::file("gone/tree/back", b"back"));
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn is_the_same_every_time() {
        let (one, two) = (super::image(), super::image());
        assert!(one.layers == two.layers);
        assert_eq!(one.expect, two.expect);
        assert!(one.expect.entries.len() > super::MANY + 400);
    }
}
