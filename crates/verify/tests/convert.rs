//! Images that the builder makes, and what is found when one fact of them is changed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

mod common;

use common::{assert_verified, build, build_options, check, image_tars, layers, target};
use proptest::prelude::*;
use rafs_format::BlobId;
use testkit::tar::{Entry, Tar};
use tree::{Content, Image, Inode, InodeId, Xattrs, mode};
use verify::{Fact, Outcome, Rule};

fn assert_converts(tars: &[Vec<u8>]) {
    let (image, blobs) = build(tars, &build_options());
    let report = check(Some(&layers(tars)), &target(&image, blobs));
    assert_verified(&report);
    assert!(
        report
            .rules
            .iter()
            .filter(|rule| rule.outcome == Outcome::Passed)
            .count()
            >= 3,
        "{report}"
    );
}

#[test]
fn the_corner_cases_convert() {
    assert_converts(&testkit::corner::image().layers);
}

#[test]
fn the_reference_images_convert() {
    let Some(shared) = testkit::shared_or_skip("the_reference_images_convert") else {
        return;
    };
    assert_converts(&image_tars(&shared, "torture/image", "torture"));
    assert_converts(&image_tars(&shared, "images", "app-1"));
}

#[test]
fn an_image_of_nothing_converts() {
    assert_converts(&[Tar::new().finish()]);
}

fn small() -> Vec<u8> {
    let mut tar = Tar::new();
    for entry in [
        Entry::directory("d").mode(0o750).owner(1, 2),
        Entry::file("d/f", vec![7; 40_000]).xattr("user.x", "value"),
        Entry::file("d/g", "small"),
        Entry::hard("d/h", "d/g"),
        Entry::file("d/own", "own"),
        Entry::file("d/two", "two"),
        Entry::symlink("d/l", "f"),
        Entry::device("d/c", b'3', 1, 3),
        Entry::fifo("d/p"),
    ] {
        tar.add(entry);
    }
    tar.finish()
}

fn find(image: &Image, path: &str) -> InodeId {
    let names = path.split('/').filter(|name| !name.is_empty());
    names.fold(InodeId::ROOT, |at, name| {
        image.tree.entries(at).unwrap()[name.as_bytes()]
    })
}

/// Changes the image and says which differences that makes, in the order in which they are reported.
fn found(change: impl FnOnce(&mut Image)) -> Vec<(String, Fact)> {
    let tars = [small()];
    let (mut image, blobs) = build(&tars, &build_options());
    change(&mut image);
    let report = check(Some(&layers(&tars)), &target(&image, blobs));
    assert_eq!(report.verified, report.differences.total == 0, "{report}");
    assert_eq!(
        report.rule(Rule::Bootstrap).unwrap().outcome,
        Outcome::Passed,
        "{report}"
    );
    assert_eq!(
        report.rule(Rule::Data).unwrap().outcome,
        Outcome::Passed,
        "{report}"
    );
    let differences = report.differences.first.iter();
    differences
        .map(|difference| (difference.path.clone(), difference.fact))
        .collect()
}

fn with(path: &str, change: impl FnOnce(&mut Inode)) -> Vec<(String, Fact)> {
    found(|image| {
        let id = find(image, path);
        change(image.tree.inode_mut(id));
    })
}

fn one(path: &str, fact: Fact) -> Vec<(String, Fact)> {
    vec![(path.to_owned(), fact)]
}

#[test]
fn nothing_changed_nothing_found() {
    assert_eq!(found(|_| {}), []);
}

#[test]
fn each_changed_fact_is_found_and_no_other() {
    for path in ["/", "/d", "/d/f", "/d/own", "/d/l", "/d/c", "/d/p"] {
        assert_eq!(with(path, |inode| inode.uid += 1), one(path, Fact::Uid));
        assert_eq!(with(path, |inode| inode.gid += 1), one(path, Fact::Gid));
        assert_eq!(with(path, |inode| inode.mtime += 1), one(path, Fact::Mtime));
        assert_eq!(
            with(path, |inode| inode.mtime_nsec += 1),
            one(path, Fact::Mtime)
        );
        if path != "/d/l" {
            assert_eq!(
                with(path, |inode| inode.mode ^= 0o1000),
                one(path, Fact::Mode)
            );
        }
        let add = |inode: &mut Inode| {
            inode
                .xattrs
                .get_or_insert_default()
                .insert(b"user.new".as_slice().into(), b"1".as_slice().into());
        };
        assert_eq!(with(path, add), one(path, Fact::Xattr));
    }
    assert_eq!(
        with("/d/c", |inode| inode.rdev = 0x105),
        one("/d/c", Fact::Device)
    );
    assert_eq!(
        with("/d/l", |inode| inode.content =
            Content::Symlink(b"g".as_slice().into())),
        one("/d/l", Fact::LinkTarget)
    );
    assert_eq!(
        with("/d/p", |inode| inode.mode = mode::SOCKET | 0o600),
        one("/d/p", Fact::Type)
    );
    assert_eq!(
        with("/d/f", |inode| inode.xattrs = None),
        one("/d/f", Fact::Xattr)
    );
    let other = |inode: &mut Inode| {
        inode.xattrs = Some(Box::new(Xattrs::from([(
            b"user.x".as_slice().into(),
            b"valuE".as_slice().into(),
        )])));
    };
    assert_eq!(with("/d/f", other), one("/d/f", Fact::Xattr));
}

#[test]
fn changed_contents_are_found() {
    let exchange = |image: &mut Image, a: &str, b: &str| {
        let (id_a, id_b) = (find(image, a), find(image, b));
        let (of_a, of_b) = (
            image.tree.inode(id_a).content.clone(),
            image.tree.inode(id_b).content.clone(),
        );
        image.tree.inode_mut(id_a).content = of_b;
        image.tree.inode_mut(id_b).content = of_a;
    };
    // Every chunk is sound, but it is in the wrong file.
    let swapped = found(|image| exchange(image, "/d/own", "/d/two"));
    assert_eq!(
        swapped,
        [
            ("/d/own".to_owned(), Fact::Content),
            ("/d/two".to_owned(), Fact::Content)
        ]
    );
    let longer = found(|image| exchange(image, "/d/own", "/d/g"));
    assert_eq!(
        longer,
        [
            ("/d/g".to_owned(), Fact::Size),
            ("/d/own".to_owned(), Fact::Size)
        ]
    );
}

#[test]
fn names_that_are_missing_or_too_many_are_found() {
    let missing = found(|image| {
        let d = find(image, "/d");
        image.tree.entries_mut(d).unwrap().remove(&b"p"[..]);
    });
    assert_eq!(missing, one("/d/p", Fact::Missing));
    let extra = found(|image| {
        let d = find(image, "/d");
        let id = image.tree.add(Inode::implied_directory());
        image
            .tree
            .entries_mut(d)
            .unwrap()
            .insert(b"\xff\\".as_slice().into(), id);
    });
    assert_eq!(extra, one("/d/\\xff\\\\", Fact::Extra));
    let renamed = found(|image| {
        let d = find(image, "/d");
        let entries = image.tree.entries_mut(d).unwrap();
        let id = entries.remove(&b"own"[..]).unwrap();
        entries.insert(b"oWn".as_slice().into(), id);
    });
    assert_eq!(
        renamed,
        [
            ("/d/oWn".to_owned(), Fact::Extra),
            ("/d/own".to_owned(), Fact::Missing)
        ]
    );
}

#[test]
fn a_missing_directory_counts_with_all_below_it() {
    let all = found(|image| {
        image
            .tree
            .entries_mut(InodeId::ROOT)
            .unwrap()
            .remove(&b"d"[..]);
    });
    assert_eq!(all.len(), 9);
    assert!(all.iter().all(|(_, fact)| *fact == Fact::Missing));
}

#[test]
fn hard_links_taken_apart_or_made_are_found() {
    let apart = found(|image| {
        let copy = image.tree.inode(find(image, "/d/h")).clone();
        let (d, id) = (find(image, "/d"), image.tree.add(copy));
        image
            .tree
            .entries_mut(d)
            .unwrap()
            .insert(b"h".as_slice().into(), id);
    });
    assert_eq!(apart, one("/d/h", Fact::HardLink));
    let made = found(|image| {
        let (d, g) = (find(image, "/d"), find(image, "/d/g"));
        image
            .tree
            .entries_mut(d)
            .unwrap()
            .insert(b"own".as_slice().into(), g);
    });
    assert_eq!(
        made.iter().map(|(_, fact)| *fact).collect::<Vec<_>>(),
        [Fact::HardLink, Fact::Size]
    );
}

#[test]
fn a_missing_blob_and_a_missing_chunk_are_named() {
    let tars = [small()];
    let (image, _) = build(&tars, &build_options());
    let report = check(None, &target(&image, Vec::new()));
    let data = report.rule(Rule::Data).unwrap();
    assert_eq!((data.outcome, data.problem_count), (Outcome::Failed, 1));
    assert!(
        data.problems[0].contains(image.blobs[0].id.as_str()),
        "{report}"
    );
}

#[test]
fn only_the_first_differences_are_shown_and_all_are_counted() {
    let mut tar = Tar::new();
    for number in 0..100 {
        tar.add(Entry::file(format!("f{number}"), "x"));
    }
    let (image, blobs) = build(&[tar.finish()], &build_options());
    let report = check(
        Some(&layers(&[Tar::new().finish()])),
        &target(&image, blobs),
    );
    assert_eq!(
        (report.differences.total, report.differences.first.len()),
        (100, verify::SHOWN_MAX)
    );
    assert!(report.to_string().contains("and 80 more"), "{report}");
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c", "d"]), 1..4)
        .prop_map(|names| names.join("/"))
}

fn entry() -> impl Strategy<Value = Entry> {
    let kind = prop_oneof![
        4 => (path(), 0_usize..40_000).prop_map(|(path, len)| Entry::file(path, vec![len as u8; len])),
        4 => path().prop_map(Entry::directory),
        1 => (path(), path()).prop_map(|(path, target)| Entry::symlink(path, target)),
        1 => (path(), path()).prop_map(|(path, target)| Entry::symlink(path, format!("/{target}"))),
        1 => (path(), path()).prop_map(|(path, target)| Entry::symlink(path, format!("../{target}"))),
        3 => (path(), path()).prop_map(|(path, target)| Entry::hard(path, target)),
        2 => path().prop_map(|path| {
            let (dir, name) = path.rsplit_once('/').unwrap_or((".", &path));
            Entry::file(format!("{dir}/.wh.{name}"), "")
        }),
        1 => path().prop_map(|path| Entry::file(format!("{path}/.wh..wh..opq"), "")),
        1 => path().prop_map(Entry::fifo),
    ];
    (kind, 0_u64..9, prop::bool::ANY).prop_map(|(entry, number, xattr)| {
        let entry = entry.owner(number, 0).mtime(number);
        if xattr {
            entry.xattr("user.n", number.to_string())
        } else {
            entry
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Two implementations of the same rules: the builder's layers and merge, and the replay.
    #[test]
    fn any_stack_of_layers_converts(stack in prop::collection::vec(prop::collection::vec(entry(), 0..9), 1..4)) {
        let options = build_options();
        let mut tars = Vec::new();
        for entries in stack {
            let mut kept = Tar::new();
            for entry in entries {
                let mut tar = kept.clone();
                let bytes = tar.add(entry.clone()).clone().finish();
                let built = builder::build_tar(&bytes[..], std::io::sink(), &options, builder::Dedup::Layer);
                let report = check(Some(&layers(std::slice::from_ref(&bytes))), &layers(std::slice::from_ref(&bytes)));
                prop_assert_eq!(built.is_ok(), report.verified, "{:?}: {:?} {}", entry, built.err(), report);
                if report.verified {
                    kept = tar;
                }
            }
            tars.push(kept.finish());
        }
        let (image, blobs) = build(&tars, &options);
        let report = check(Some(&layers(&tars)), &target(&image, blobs));
        prop_assert!(report.verified, "{}", report);
    }
}

#[test]
fn an_estargz_layer_by_its_table_equals_its_tar() {
    let chunk = 0x4000;
    let entries = [
        Entry::directory("dir"),
        Entry::file("dir/large", testkit::noise(1, 3 * chunk + 5)),
        Entry::file("small", "with many headers behind it in its gzip member"),
    ];
    let headers = (0..200).map(|i| Entry::directory(format!("many/{i:080}")));
    // Its member is shorter than what is recorded as a bound, and the last one.
    let last = Entry::file("zeros", vec![0; chunk]);
    let entries: Vec<Entry> = entries.into_iter().chain(headers).chain([last]).collect();
    let mut tar = Tar::new();
    for entry in &entries {
        tar.add(entry.clone());
    }
    let source = layers(&[tar.finish()]);
    let made = testkit::estargz::estargz(&entries, chunk);
    let target = |blob: &[u8]| {
        let id = BlobId::new(testkit::sha256(blob)).unwrap();
        let layer = builder::build_estargz(&made.toc[..], id, None, &build_options()).unwrap();
        target(&layer.image, vec![blob.to_vec()])
    };
    let report = check(Some(&source), &target(&made.blob));
    assert_verified(&report);
    assert_eq!((report.counts.chunks_read, report.counts.chunks), (6, 6));
    let mut damaged = made.blob.clone();
    damaged[chunk / 2] ^= 1;
    let report = check(Some(&source), &target(&damaged));
    assert_eq!(report.rule(Rule::Data).unwrap().outcome, Outcome::Failed);
}
