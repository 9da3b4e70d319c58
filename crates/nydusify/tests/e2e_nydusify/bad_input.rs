//! Bad input: a message that names the object, an ordinary exit code, no tag, nothing half-written.

use std::path::Path;

use serde_json::{Value, json};
use testkit::layout::{Flavour, Layer, Layout, Packing, pack};
use testkit::tar::{Entry, Sparse, Tar, flag, header};
use testkit::{noise, prose, sha256};

use crate::support::*;

/// A sound lower layer and the one that a case is about.
fn good_tar() -> Vec<u8> {
    let mut tar = Tar::new();
    tar.add(Entry::directory("good/"))
        .add(Entry::file("good/file", noise(3, 200_000)));
    tar.finish()
}

fn descriptor_path(layout: &Path, layer: &Layer) -> std::path::PathBuf {
    layout.join("blobs/sha256").join(sha256(&layer.bytes))
}

/// Converts an image of a good layer and `layer`, after `damage` has changed the layout; it must fail so that the
/// message holds every one of `words`.
#[track_caller]
fn refused(name: &str, layer: &Layer, damage: impl FnOnce(&Path), words: &[&str]) {
    let place = Place::new();
    let root = place.path("source");
    let mut layout = Layout::create(&root);
    let image = layout.manifest(
        &[Layer::new(&good_tar(), Packing::Gzip), layer.clone()],
        Flavour::Oci,
    );
    layout.tag(&image, "latest");
    damage(&root);
    let target = place.path("nydus");
    let ran = convert(
        &place.oci("source", "latest"),
        &place.oci("nydus", "v6"),
        &[],
    );
    assert!((1..=2).contains(&ran.code), "{name}: {ran}");
    let ran = ran.fails_with(words);
    assert!(!ran.stderr.contains("panicked"), "{name}: {ran}");
    assert_clean(&target, "v6");

    // Nor may a failed conversion touch what was in the target before.
    convert(&fixture(), &place.oci("nydus", "before"), &[]).ok();
    let before = testkit::scan::scan(&target).unwrap();
    convert(
        &place.oci("source", "latest"),
        &place.oci("nydus", "v6"),
        &[],
    )
    .fails_with(words);
    assert_clean_beside(&target, &before);
}

/// Everything of `before` is still there, and beside it only complete blobs.
#[track_caller]
fn assert_clean_beside(
    layout: &Path,
    before: &std::collections::BTreeMap<Vec<u8>, testkit::scan::Found>,
) {
    assert_clean(layout, "v6");
    let after = testkit::scan::scan(layout).unwrap();
    for (path, file) in before {
        let content = after.get(path).map(|file| &file.sha256);
        assert_eq!(content, Some(&file.sha256), "{}", path.escape_ascii());
    }
}

#[test]
fn damaged_layers_are_refused_by_digest() {
    let tar = good_tar();
    let layer = Layer::new(&tar, Packing::Gzip);
    let digest = sha256(&layer.bytes);
    let shorter = layer.bytes.len() - 1000;
    let write = |layout: &Path, bytes: &[u8]| {
        std::fs::write(descriptor_path(layout, &layer), bytes).unwrap()
    };
    // The good layer is the same layer here, so that the message has to name this digest.
    refused(
        "truncated file",
        &layer,
        |layout| write(layout, &layer.bytes[..shorter]),
        &[&digest],
    );
    let mut flipped = layer.bytes.clone();
    flipped[shorter / 2] ^= 1;
    refused(
        "flipped byte",
        &layer,
        |layout| write(layout, &flipped),
        &[&digest],
    );
    let longer = [layer.bytes.as_slice(), b"more"].concat();
    refused(
        "longer than described",
        &layer,
        |layout| write(layout, &longer),
        &[&digest],
    );
    refused(
        "missing",
        &layer,
        |layout| std::fs::remove_file(descriptor_path(layout, &layer)).unwrap(),
        &[&digest],
    );
}

/// Layers that match their descriptors but are broken inside.
#[test]
fn broken_layers_are_refused_by_digest() {
    let mut upper = Tar::new();
    upper.add(Entry::file("upper", prose(1, 100_000)));
    let tar = upper.finish();
    let cases: Vec<(&str, Layer)> = vec![
        (
            "gzip ends early",
            broken(&tar, Packing::Gzip, |bytes| bytes.truncate(bytes.len() / 2)),
        ),
        (
            "gzip lacks its trailer",
            broken(&tar, Packing::Gzip, |bytes| bytes.truncate(bytes.len() - 5)),
        ),
        (
            "gzip checksum",
            broken(&tar, Packing::Gzip, |bytes| flip_from_end(bytes, 6)),
        ),
        (
            "garbage behind gzip",
            broken(&tar, Packing::Gzip, |bytes| {
                bytes.extend_from_slice(b"garbage!")
            }),
        ),
        (
            "zstd ends early",
            broken(&tar, Packing::Zstd, |bytes| bytes.truncate(bytes.len() / 2)),
        ),
        (
            "garbage behind zstd",
            broken(&tar, Packing::Zstd, |bytes| {
                bytes.extend_from_slice(b"garbage!")
            }),
        ),
        (
            "not gzip at all",
            broken(&tar, Packing::Gzip, |bytes| {
                *bytes = b"plain nonsense".repeat(100)
            }),
        ),
    ];
    for (name, layer) in &cases {
        refused(name, layer, |_| {}, &[&sha256(&layer.bytes)]);
    }
    let mut wrong = Layer::new(&tar, Packing::Gzip);
    wrong.diff_id = sha256(b"something else");
    refused("diff id", &wrong, |_| {}, &[&wrong.diff_id.clone()]);
}

/// A layer whose stored bytes are changed before it is described.
fn broken(tar: &[u8], packing: Packing, change: impl FnOnce(&mut Vec<u8>)) -> Layer {
    let mut layer = Layer::new(tar, packing);
    change(&mut layer.bytes);
    layer
}

fn flip_from_end(bytes: &mut [u8], distance: usize) {
    let at = bytes.len() - distance;
    bytes[at] ^= 0xff;
}

/// Tars that no tree can be made of; the message names layer and entry.
#[test]
fn hostile_and_broken_tars_are_refused_by_layer_and_entry() {
    let end = |tar: &Tar| tar.finish();
    let mut cases: Vec<(&str, Vec<u8>, &str)> = Vec::new();
    let mut add = |name, tar: Vec<u8>, word| cases.push((name, tar, word));
    let cut = |len: usize| {
        let mut tar = Tar::new();
        tar.add(Entry::file("cut-short", noise(4, 10_000)));
        tar.unfinished()[..len].to_vec()
    };
    add("ends within a file", cut(5000), "cut-short");
    add("ends within a header", cut(300), "");
    let bad_sum = |mut tar: Vec<u8>| {
        tar[148] = b'7';
        tar
    };
    add(
        "header checksum",
        bad_sum(end(Tar::new().add(Entry::file("sum", b"x")))),
        "checksum",
    );
    add(
        "NUL in a name",
        end(Tar::new().add(Entry::file("a", b"x").pax("path", b"nul\0name"))),
        "nul",
    );
    add(
        "NUL in a link",
        end(Tar::new().add(Entry::symlink("nul-link", "a").pax("linkpath", b"x\0y"))),
        "NUL",
    );
    add(
        "no target",
        end(Tar::new().add(Entry::hard("lonely", "missing-target"))),
        "lonely",
    );
    let forward = end(Tar::new()
        .add(Entry::hard("forward", "later"))
        .add(Entry::file("later", b"x")));
    add("forward hard link", forward, "forward");
    let directory = end(Tar::new()
        .add(Entry::directory("a-dir/"))
        .add(Entry::hard("to-dir", "a-dir")));
    add("hard link to a directory", directory, "to-dir");
    add(
        "whiteout of nothing by name",
        end(Tar::new().add(Entry::file("dir/.wh.", b""))),
        ".wh.",
    );
    add(
        "whiteout that escapes",
        end(Tar::new().add(Entry::file("dir/.wh...", b""))),
        ".wh...",
    );
    add(
        "name of 256 bytes",
        end(Tar::new().add(Entry::file("m".repeat(256), b"x"))),
        "mmmm",
    );
    let mut kind = header(&Entry::file("odd-type", b""), 0);
    kind[156] = b'Q';
    add(
        "unknown type",
        Tar::new().raw_header(kind).finish(),
        "odd-type",
    );
    let mut size = header(&Entry::file("huge", b""), 0);
    size[124..136].copy_from_slice(b"77777777777\0");
    add(
        "size beyond the end",
        Tar::new().raw_header(size).finish(),
        "huge",
    );
    let mut negative = header(&Entry::file("negative", b""), 0);
    negative[124..136].fill(0xff);
    add(
        "negative size",
        Tar::new().raw_header(negative).finish(),
        "",
    );
    let mut pax = Tar::new();
    pax.raw_header(header(
        &Entry {
            flag: b'x',
            ..Entry::file("pax", b"")
        },
        9,
    ))
    .data(b"99 path=x");
    add(
        "broken PAX record",
        pax.add(Entry::file("f", b"x")).finish(),
        "",
    );
    add(
        "device number",
        end(Tar::new().add(Entry {
            device: Some((70_000, 0)),
            ..Entry::device("big-device", flag::BLOCK, 0, 0)
        })),
        "big-device",
    );
    for (name, tar, word) in cases {
        let layer = Layer::new(&tar, Packing::Gzip);
        refused(name, &layer, |_| {}, &[&sha256(&layer.bytes), word]);
    }
}

/// `..` in names is resolved inside the root or refused; what comes out must be equal either way.
#[test]
fn names_that_lead_out_of_the_root_stay_inside_or_are_refused() {
    let names = ["../up", "a/../../up", "/../up", "..", "a/..", "a/../b"];
    for name in names {
        let place = Place::new();
        let mut tar = Tar::new();
        tar.add(Entry::file(name, b"x"));
        testkit::layout::write(&place.path("source"), &[tar.finish()], Packing::Gzip);
        let ran = convert(
            &place.oci("source", "latest"),
            &place.oci("nydus", "v6"),
            &["--check"],
        );
        if ran.code == 0 {
            check(&place.oci("source", "latest"), &place.oci("nydus", "v6")).ok();
        } else {
            ran.exits(1).fails_with(&[".."]);
            assert_clean(&place.path("nydus"), "v6");
        }
        assert!(!place.path("up").exists());
    }
}

/// Manifests and indexes.
#[test]
fn documents_are_refused_by_name() {
    let good = || Layer::new(&good_tar(), Packing::Gzip);
    let with = |change: &dyn Fn(&mut Value, &mut Value), words: &[&str]| {
        let place = Place::new();
        let root = place.path("source");
        let mut layout = Layout::create(&root);
        let image = layout.manifest_with(&[good()], Flavour::Oci, |manifest, config| {
            change(manifest, config)
        });
        layout.tag(&image, "latest");
        convert(
            &place.oci("source", "latest"),
            &place.oci("nydus", "v6"),
            &[],
        )
        .exits(1)
        .fails_with(words);
        assert_clean(&place.path("nydus"), "v6");
    };
    let layer = sha256(&good().bytes);
    with(
        &|m, _| m["layers"][0]["mediaType"] = json!("application/x-odd"),
        &["application/x-odd", &layer],
    );
    let foreign = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
    with(
        &|m, _| m["layers"][0]["mediaType"] = json!(foreign),
        &[&layer],
    );
    with(
        &|m, _| m["layers"][0]["digest"] = json!("md5:abc"),
        &["md5:abc"],
    );
    with(&|m, _| m["layers"][0]["size"] = json!(1), &[&layer]);
    with(
        &|m, _| m["mediaType"] = json!("application/x-manifest"),
        &["application/x-manifest"],
    );
    with(
        &|_, config| config["rootfs"]["diff_ids"] = json!([]),
        &["diff"],
    );
    with(&|_, config| *config = json!([1, 2]), &["config"]);
}

#[test]
fn sources_that_are_not_there_are_named() {
    let place = Place::new();
    let target = place.oci("nydus", "v6");
    let refused = |source: &str, words: &[&str]| {
        convert(source, &target, &[]).exits(1).fails_with(words);
        assert_clean(&place.path("nydus"), "v6");
    };
    refused(&place.oci("nowhere", "latest"), &["nowhere"]);
    refused(&fixture().replace(":latest", ":absent"), &["absent"]);
    std::fs::write(place.path("text"), b"no archive").unwrap();
    refused(
        &format!("oci-archive:{}", place.path("text").display()),
        &["text"],
    );
    refused(
        &format!("docker-archive:{}", place.path("text").display()),
        &["text"],
    );
    refused(
        &format!("docker-archive:{}", place.path("missing").display()),
        &["missing"],
    );
}

#[test]
fn a_manifest_of_other_bytes_is_refused() {
    let place = Place::new();
    testkit::layout::write(&place.path("source"), &[good_tar()], Packing::Gzip);
    let digest = digest(&place.path("source"), "latest");
    let path = place
        .path("source")
        .join("blobs")
        .join(digest.replace(':', "/"));
    let mut bytes = std::fs::read(&path).unwrap();
    bytes.push(b'\n');
    std::fs::write(&path, bytes).unwrap();
    let ran = convert(
        &place.oci("source", "latest"),
        &place.oci("nydus", "v6"),
        &[],
    );
    ran.exits(1).fails_with(&[&digest["sha256:".len()..]]);
    assert_clean(&place.path("nydus"), "v6");
}

/// A stream that inflates for ever is bounded by what its headers claim, not by memory.
#[test]
fn a_layer_of_zeros_behind_the_end_is_read_to_its_end() {
    let place = Place::new();
    let mut tar = good_tar();
    tar.resize(tar.len() + (64 << 20), 0);
    let layer = Layer {
        bytes: pack(&tar, Packing::Zstd),
        ..Layer::new(&tar, Packing::Zstd)
    };
    let root = place.path("source");
    let mut layout = Layout::create(&root);
    let image = layout.manifest(&[layer], Flavour::Oci);
    layout.tag(&image, "latest");
    convert(
        &place.oci("source", "latest"),
        &place.oci("nydus", "v6"),
        &["--check"],
    )
    .ok();
}

/// A kilobyte that claims a terabyte of zeros would be read for minutes.
#[test]
fn a_layer_that_claims_more_than_is_allowed_is_refused_at_once() {
    let place = Place::new();
    let mut tar = Tar::new();
    tar.add(Entry::file("good", "good"))
        .add(Entry::file("more", "more"));
    tar.sparse(Entry::file("huge", b""), Sparse::Pax01, 1 << 40, &[]);
    testkit::layout::write(&place.path("source"), &[tar.finish()], Packing::Gzip);
    let (source, target) = (place.oci("source", "latest"), place.oci("nydus", "v6"));
    let started = std::time::Instant::now();
    for (limit, words) in [
        (["--max-layer-size", "1GiB"], ["huge", "1073741824 bytes"]),
        (["--max-layer-files", "2"], ["more than 2", "files"]),
    ] {
        convert(&source, &target, &limit)
            .exits(1)
            .fails_with(&words);
        assert_clean(&place.path("nydus"), "v6");
    }
    assert!(started.elapsed().as_secs() < 60);
}
