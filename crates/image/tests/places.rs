//! Layouts and archives, read and written.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;

use image::{Descriptor, Digest, Error, Location, PlatformChoice, Source, Target, media};
use progress::Cancel;
use serde_json::{Value, json};
use testkit::layout::{self, Flavour, Layer, Layout, Packing};
use testkit::tar::{Entry, Tar};

fn oci(dir: &Path, tag: Option<&str>) -> Location {
    Location::OciLayout {
        dir: dir.to_owned(),
        tag: tag.map(str::to_owned),
    }
}

fn archive(file: &Path, tag: Option<&str>) -> Location {
    Location::OciArchive {
        file: file.to_owned(),
        tag: tag.map(str::to_owned),
    }
}

fn docker(file: &Path, tag: Option<&str>) -> Location {
    Location::DockerArchive {
        file: file.to_owned(),
        tag: tag.map(str::to_owned),
    }
}

fn refused(location: &Location) -> String {
    match Source::open(location) {
        Ok(_) => panic!("{location} opens"),
        Err(error) => error.to_string(),
    }
}

fn tar(name: &str) -> Vec<u8> {
    let mut tar = Tar::new();
    tar.add(Entry::file(name, name));
    tar.finish()
}

/// A layout with an image for each tag.
fn write_layout(root: &Path, tags: &[&str]) {
    let mut layout = Layout::create(root);
    for tag in tags {
        let manifest = layout.manifest(&[Layer::new(&tar(tag), Packing::Gzip)], Flavour::Oci);
        layout.tag(&manifest, tag);
    }
}

/// Reads an image to its last byte.
fn read_all(source: &Source) -> usize {
    let images = source.manifests(&PlatformChoice::All).unwrap();
    for (_, manifest) in &images {
        source.config(manifest).unwrap();
        manifest
            .layers
            .iter()
            .for_each(|layer| source.verify_blob(layer).unwrap());
    }
    images
        .iter()
        .map(|(_, manifest)| manifest.layers.len())
        .sum()
}

#[test]
fn tags_choose_among_the_images_of_a_layout() {
    let dir = tempfile::tempdir().unwrap();
    write_layout(dir.path(), &["one", "docker.io/library/two:2", "three"]);
    for tag in ["one", "docker.io/library/two:2", "2", "three"] {
        let source = Source::open(&oci(dir.path(), Some(tag))).unwrap();
        assert_eq!(source.name(), Some(tag));
        assert_eq!(read_all(&source), 1);
    }
    let text = refused(&oci(dir.path(), None));
    assert!(
        text.contains("\"one\"") && text.contains("\"three\""),
        "{text}"
    );
    let text = refused(&oci(dir.path(), Some("four")));
    assert!(
        text.contains("\"four\"") && text.contains("\"one\""),
        "{text}"
    );
}

#[test]
fn a_lone_image_needs_no_tag() {
    let dir = tempfile::tempdir().unwrap();
    write_layout(dir.path(), &["one"]);
    let source = Source::open(&oci(dir.path(), None)).unwrap();
    assert_eq!(source.name(), Some("one"));
}

#[test]
fn the_full_name_that_containerd_writes_is_a_name_too() {
    let dir = tempfile::tempdir().unwrap();
    write_layout(dir.path(), &["x", "y"]);
    let path = dir.path().join("index.json");
    let mut index: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    index["manifests"][0]["annotations"] = json!({"io.containerd.image.name": "quay.io/a/b:v1"});
    std::fs::write(&path, index.to_string()).unwrap();
    assert!(Source::open(&oci(dir.path(), Some("quay.io/a/b:v1"))).is_ok());
    assert!(Source::open(&oci(dir.path(), Some("v1"))).is_ok());
}

#[test]
fn things_that_are_no_layout_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    assert!(refused(&oci(dir.path(), None)).contains("no index.json"));
    assert!(refused(&oci(&dir.path().join("none"), None)).contains("none"));
    write_layout(dir.path(), &["x"]);
    std::fs::write(
        dir.path().join("oci-layout"),
        br#"{"imageLayoutVersion":"2.0"}"#,
    )
    .unwrap();
    assert!(refused(&oci(dir.path(), None)).contains("2.0"));
    std::fs::remove_file(dir.path().join("oci-layout")).unwrap();
    for (index, word) in [
        ("{", "malformed"),
        ("{}", "no list"),
        (r#"{"manifests":[]}"#, "no image at all"),
    ] {
        std::fs::write(dir.path().join("index.json"), index).unwrap();
        let text = refused(&oci(dir.path(), None));
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[test]
fn oci_archives_read_like_their_layout() {
    let dir = tempfile::tempdir().unwrap();
    let (root, file) = (dir.path().join("layout"), dir.path().join("a.tar"));
    write_layout(&root, &["one", "two"]);
    let want = Source::open(&oci(&root, Some("two")))
        .unwrap()
        .root()
        .digest;
    let plain = layout::oci_archive(&root);
    std::fs::write(&file, &plain).unwrap();
    let source = Source::open(&archive(&file, Some("two"))).unwrap();
    assert_eq!(source.root().digest, want);
    assert_eq!(read_all(&source), 1);
    let by_name = Source::open_archive(&file, "docker.io/x:two");
    assert!(matches!(by_name.map(|_| ()), Err(Error::NoSuchTag { .. })));
    assert_eq!(
        Source::open_archive(&file, "two").unwrap().root().digest,
        want
    );
    assert!(
        Source::open(&docker(&file, Some("two"))).is_ok(),
        "newer docker writes layouts"
    );

    for packing in [Packing::Gzip, Packing::Zstd] {
        std::fs::write(&file, layout::pack(&plain, packing)).unwrap();
        assert!(refused(&archive(&file, Some("two"))).contains("decompress it first"));
    }
    let half = plain.len() / 2;
    std::fs::write(&file, &plain[..half]).unwrap();
    let text = refused(&archive(&file, Some("two")));
    assert!(
        text.contains("truncated") || text.contains("no readable tar"),
        "{text}"
    );
    assert!(refused(&archive(dir.path(), None)).contains("directory"));
}

#[test]
fn members_may_begin_with_a_dot_or_be_links() {
    let dir = tempfile::tempdir().unwrap();
    let (root, file) = (dir.path().join("layout"), dir.path().join("a.tar"));
    write_layout(&root, &["one"]);
    let mut out = Tar::new();
    let read = |name: &str| std::fs::read(root.join(name)).unwrap();
    out.add(Entry::file("./index.json", read("index.json")));
    out.add(Entry::symlink("oci-layout", "sub/../elsewhere"));
    out.add(Entry::file("elsewhere", read("oci-layout")));
    let blobs: Vec<_> = std::fs::read_dir(root.join("blobs/sha256"))
        .unwrap()
        .flatten()
        .collect();
    for (number, blob) in blobs.iter().enumerate() {
        let name = format!("blobs/sha256/{}", blob.file_name().to_str().unwrap());
        out.add(Entry::file(format!("data/{number}"), read(&name)));
        match number % 2 {
            0 => out.add(Entry::symlink(
                format!("./{name}"),
                format!("../../data/{number}"),
            )),
            _ => out.add(Entry::hard(format!("./{name}"), format!("data/{number}"))),
        };
    }
    std::fs::write(&file, out.finish()).unwrap();
    assert_eq!(read_all(&Source::open(&archive(&file, None)).unwrap()), 1);
}

#[test]
fn links_that_loop_lead_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.tar");
    let mut out = Tar::new();
    out.add(Entry::symlink("index.json", "other"));
    out.add(Entry::symlink("other", "index.json"));
    out.add(Entry::symlink("manifest.json", "../outside"));
    std::fs::write(&file, out.finish()).unwrap();
    assert!(refused(&archive(&file, None)).contains("no index.json"));
    assert!(refused(&docker(&file, None)).contains("no manifest.json"));
}

#[test]
fn what_docker_saves_has_a_manifest_made_up() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.tar");
    std::fs::write(
        &file,
        layout::docker_archive(&[tar("a"), tar("b")], "host:5000/name:v1"),
    )
    .unwrap();
    for tag in [None, Some("v1"), Some("host:5000/name:v1")] {
        let source = Source::open(&docker(&file, tag)).unwrap();
        assert_eq!(source.root().media_type, media::DOCKER_MANIFEST);
        assert_eq!(read_all(&source), 2);
    }
    assert!(refused(&docker(&file, Some("v2"))).contains("v1"));
    assert!(refused(&archive(&file, None)).contains("docker-archive"));
    assert!(Source::open_archive(&file, "anything").is_ok());
}

/// Old archives: layers under ids, one that occurs twice a link to the first; also compressed ones.
#[test]
fn layers_of_docker_archives_may_be_links_or_compressed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.tar");
    let (a, b) = (tar("a"), tar("b"));
    let id = |tar: &[u8]| format!("sha256:{}", testkit::sha256(tar));
    let config = json!({"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": [id(&a), id(&b), id(&a)]}});
    let manifest = |layers: Value| {
        json!([{"Config": "config.json", "RepoTags": null, "Layers": layers}]).to_string()
    };
    let mut out = Tar::new();
    out.add(Entry::file("config.json", config.to_string()));
    out.add(Entry::file("1/layer.tar", &a));
    out.add(Entry::file("2/layer.tar", layout::pack(&b, Packing::Gzip)));
    out.add(Entry::symlink("3/layer.tar", "../1/layer.tar"));
    let mut bad = out.clone();
    out.add(Entry::file(
        "manifest.json",
        manifest(json!(["1/layer.tar", "2/layer.tar", "3/layer.tar"])),
    ));
    std::fs::write(&file, out.finish()).unwrap();
    let source = Source::open(&docker(&file, None)).unwrap();
    assert_eq!(read_all(&source), 3);
    let layers = source
        .manifests(&PlatformChoice::All)
        .unwrap()
        .remove(0)
        .1
        .layers;
    assert_eq!(layers[0], layers[2]);
    let types: Vec<&str> = layers.iter().map(|layer| &*layer.media_type).collect();
    assert_eq!(
        types,
        [
            media::DOCKER_LAYER,
            media::DOCKER_LAYER_GZIP,
            media::DOCKER_LAYER
        ]
    );

    bad.add(Entry::file(
        "manifest.json",
        manifest(json!(["1/layer.tar", "2/layer.tar"])),
    ));
    std::fs::write(&file, bad.finish()).unwrap();
    assert!(refused(&docker(&file, None)).contains("2 layers, its configuration 3 diff ids"));
}

fn put_image(target: &Target, content: &[u8]) -> Descriptor {
    let layer = target.put(content, media::OCI_LAYER_GZIP).unwrap();
    let config = target.put(b"{}", media::OCI_CONFIG).unwrap();
    let manifest = json!({"schemaVersion": 2, "mediaType": media::OCI_MANIFEST, "config": config, "layers": [layer]});
    target
        .put(manifest.to_string().as_bytes(), media::OCI_MANIFEST)
        .unwrap()
}

fn tags(dir: &Path) -> Vec<Option<String>> {
    let index: Value =
        serde_json::from_slice(&std::fs::read(dir.join("index.json")).unwrap()).unwrap();
    let name = |entry: &Value| {
        Some(
            entry
                .pointer("/annotations")?
                .get(image::ANNOTATION_REF_NAME)?
                .as_str()?
                .to_owned(),
        )
    };
    index["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .map(name)
        .collect()
}

#[test]
fn a_tag_is_replaced_and_the_others_stay() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("deep/layout");
    for (tag, content) in [
        (Some("a"), "1"),
        (Some("b"), "2"),
        (None, "3"),
        (Some("a"), "4"),
        (None, "5"),
    ] {
        let target = Target::open(&oci(&root, tag)).unwrap();
        let image = put_image(&target, content.as_bytes());
        target.commit(&image).unwrap();
    }
    assert_eq!(
        tags(&root),
        [Some("a".to_owned()), Some("b".to_owned()), None]
    );
    let content = |tag: &str| {
        let source = Source::open(&oci(&root, Some(tag))).unwrap();
        let manifest = source.manifests(&PlatformChoice::All).unwrap().remove(0).1;
        source.read_blob(&manifest.layers[0]).unwrap()
    };
    assert_eq!((content("a"), content("b")), (b"4".to_vec(), b"2".to_vec()));
}

#[test]
fn unknown_parts_of_an_index_stay() {
    let dir = tempfile::tempdir().unwrap();
    write_layout(dir.path(), &["x"]);
    let path = dir.path().join("index.json");
    let mut index: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    index["annotations"] = json!({"k": "v"});
    index["manifests"][0]["digest"] = json!("sha512:beyond us");
    std::fs::write(&path, index.to_string()).unwrap();
    let target = Target::open(&oci(dir.path(), Some("new"))).unwrap();
    let image = put_image(&target, b"1");
    target.commit(&image).unwrap();
    let after: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(after["annotations"], index["annotations"]);
    assert_eq!(after["manifests"][0], index["manifests"][0]);
    assert!(Source::open(&oci(dir.path(), Some("new"))).is_ok());
}

fn count_blobs(dir: &Path) -> usize {
    std::fs::read_dir(dir.join("blobs/sha256")).unwrap().count()
}

#[test]
fn a_target_that_is_not_committed_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("deep/layout");
    let target = Target::open(&oci(&root, Some("a"))).unwrap();
    put_image(&target, b"1");
    let mut unfinished = target.blob_writer().unwrap();
    unfinished.write_all(b"half").unwrap();
    drop(target);
    drop(unfinished);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);

    // What was there before stays.
    write_layout(&root, &["x"]);
    let before = count_blobs(&root);
    let target = Target::open(&oci(&root, Some("a"))).unwrap();
    put_image(&target, b"1");
    target
        .copy(
            &Source::open(&oci(&root, Some("x"))).unwrap(),
            &blob_of(&root),
            &Cancel::default(),
        )
        .unwrap();
    assert_eq!(count_blobs(&root), before + 3);
    drop(target);
    assert_eq!(count_blobs(&root), before);
    assert_eq!(tags(&root), [Some("x".to_owned())]);
}

fn blob_of(root: &Path) -> Descriptor {
    let source = Source::open(&oci(root, Some("x"))).unwrap();
    source
        .manifests(&PlatformChoice::All)
        .unwrap()
        .remove(0)
        .1
        .layers
        .remove(0)
}

#[test]
fn blobs_that_others_may_count_on_stay() {
    let dir = tempfile::tempdir().unwrap();
    let open = |tag| Target::open(&oci(dir.path(), Some(tag))).unwrap();
    // The second writer finds the first one's blobs in place, and commits; then the first gives up.
    let (first, second) = (open("a"), open("b"));
    put_image(&first, b"1");
    let image = put_image(&second, b"1");
    second.commit(&image).unwrap();
    drop(first);
    assert_eq!(
        read_all_blobs(&Source::open(&oci(dir.path(), Some("b"))).unwrap()),
        1
    );
    // The other way round: the first gives up while the second still works.
    let (first, second) = (open("a"), open("c"));
    put_image(&first, b"2");
    let image = put_image(&second, b"2");
    drop(first);
    second.commit(&image).unwrap();
    assert_eq!(
        read_all_blobs(&Source::open(&oci(dir.path(), Some("c"))).unwrap()),
        1
    );
}

fn read_all_blobs(source: &Source) -> usize {
    let images = source.manifests(&PlatformChoice::All).unwrap();
    let blobs = images.iter().flat_map(|(_, manifest)| &manifest.layers);
    blobs.map(|blob| source.verify_blob(blob).unwrap()).count()
}

#[test]
fn a_damaged_blob_in_the_way_is_replaced() {
    for damaged in [&b"cont"[..], b"CONTENT"] {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let path = root.join("blobs/sha256").join(Digest::of(b"content").hex());
        std::fs::create_dir_all(root.join("blobs/sha256")).unwrap();
        std::fs::write(
            root.join("oci-layout"),
            br#"{"imageLayoutVersion":"1.0.0"}"#,
        )
        .unwrap();
        std::fs::write(&path, damaged).unwrap();
        let target = Target::open(&oci(root, Some("a"))).unwrap();
        let image = put_image(&target, b"content");
        target.commit(&image).unwrap();
        assert_eq!(read_all_blobs(&Source::open(&oci(root, None)).unwrap()), 1);

        // Also when nothing is known of the content before it is written; and giving up takes no old blob away.
        std::fs::write(&path, damaged).unwrap();
        let target = Target::open(&oci(root, Some("b"))).unwrap();
        let mut writer = target.blob_writer().unwrap();
        writer.write_all(b"content").unwrap();
        writer.finish(Digest::of(b"content")).unwrap();
        drop(target);
        assert_eq!(read_all_blobs(&Source::open(&oci(root, None)).unwrap()), 1);
    }
}

#[test]
fn an_archive_is_a_tar_that_others_read() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.tar");
    let mut written = Vec::new();
    for _ in 0..2 {
        let target = Target::open(&archive(&file, Some("quay.io/x/y:z"))).unwrap();
        assert!(target.is_sequential());
        // Given up, written twice, empty: none of it may disturb what comes after.
        drop(target.blob_writer().unwrap());
        let mut given_up = target.blob_writer().unwrap();
        given_up.write_all(&[7; 5000]).unwrap();
        drop(given_up);
        for content in [&[1; 1000][..], &[1; 1000], b"", &[2; 512]] {
            let mut writer = target.blob_writer().unwrap();
            writer.write_all(content).unwrap();
            assert_eq!(
                writer.finish(Digest::of(content)).unwrap(),
                content.len() as u64
            );
            let size = content.len() as u64;
            let blob = target.blob(&Digest::of(content), size).unwrap();
            let mut read = Vec::new();
            blob.stream(0).unwrap().read_to_end(&mut read).unwrap();
            assert_eq!(read, content);
        }
        let image = put_image(&target, b"layer");
        target.commit(&image).unwrap();
        written.push(std::fs::read(&file).unwrap());
    }
    assert!(written[0] == written[1]);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    assert_eq!(
        read_all_blobs(&Source::open(&archive(&file, Some("z"))).unwrap()),
        1
    );
    let list = testkit::run::run("tar", ["tvf", file.to_str().unwrap()]);
    let text = format!("{list:?}");
    for digest in [
        Digest::of(&[1; 1000]),
        Digest::of(b""),
        Digest::of(&[2; 512]),
    ] {
        assert_eq!(text.matches(&digest.hex()).count(), 1, "{text}");
    }
    assert!(!text.contains("rror"), "{text}");
}

#[test]
fn an_archive_that_is_not_committed_leaves_the_old_one() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.tar");
    std::fs::write(&file, b"old").unwrap();
    let target = Target::open(&archive(&file, None)).unwrap();
    put_image(&target, b"1");
    drop(target);
    assert_eq!(std::fs::read(&file).unwrap(), b"old");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn unfinished_archives_go_when_their_writers_are_gone() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.tar");
    let names = || -> BTreeSet<String> {
        let entries = std::fs::read_dir(dir.path()).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    };
    let left = ".a.tar.unfinished-aaaaaa";
    // Of another archive, of nobody, and no file at all.
    let others = [
        ".b.tar.unfinished-bbbbbb",
        ".a.tar.unfinished-notes",
        ".a.tar.unfinished-cccccc",
    ];
    for name in [left, others[0], others[1]] {
        std::fs::write(dir.path().join(name), b"half").unwrap();
    }
    std::os::unix::fs::symlink("/dev/null", dir.path().join(others[2])).unwrap();
    let first = Target::open(&archive(&file, None)).unwrap();
    let before = names();
    assert!(!before.contains(left), "{before:?}");
    assert_eq!(before.len(), others.len() + 1, "{before:?}");
    // That of a writer at work stays.
    let second = Target::open(&archive(&file, None)).unwrap();
    assert!(names().is_superset(&before));
    for target in [first, second] {
        let image = put_image(&target, b"1");
        target.commit(&image).unwrap();
    }
    let wanted: BTreeSet<String> = others.map(str::to_owned).into();
    assert_eq!(&names() - &wanted, BTreeSet::from(["a.tar".to_owned()]));
    assert!(names().is_superset(&wanted));
    // A name of any length has such files.
    let long = dir.path().join("n".repeat(255));
    drop(Target::open(&archive(&long, None)).unwrap());
}

#[test]
fn a_corrupt_blob_is_not_copied() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("source");
    write_layout(&root, &["x"]);
    let layer = blob_of(&root);
    let path = root.join("blobs/sha256").join(layer.digest.hex());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[5] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let target = Target::open(&oci(&dir.path().join("target"), None)).unwrap();
    let error = target
        .copy(
            &Source::open(&oci(&root, None)).unwrap(),
            &layer,
            &Cancel::default(),
        )
        .unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
    assert_eq!(count_blobs(&dir.path().join("target")), 0);
}

/// A blob of 64 GiB that takes no room is neither copied nor compared to the end once the caller has asked to stop.
#[test]
fn a_copy_stops_when_it_is_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("source");
    write_layout(&root, &["x"]);
    let source = Source::open(&oci(&root, None)).unwrap();
    let size = 1 << 36;
    let digest = Digest::of(b"of no matter");
    let blob = Descriptor::new("t", digest, size);
    let sparse = |root: &Path| {
        let path = root.join("blobs/sha256").join(digest.hex());
        std::fs::File::create(path).unwrap().set_len(size).unwrap();
    };
    sparse(&root);
    for there in [false, true] {
        let root = dir.path().join(format!("target-{there}"));
        let target = Target::open(&oci(&root, None)).unwrap();
        if there {
            sparse(&root);
        }
        let cancel = Cancel::default();
        std::thread::scope(|scope| {
            let copy = scope.spawn(|| target.copy(&source, &blob, &cancel));
            std::thread::sleep(std::time::Duration::from_millis(100));
            assert!(!copy.is_finished());
            cancel.cancel();
            let begun = std::time::Instant::now();
            let error = copy.join().unwrap().unwrap_err();
            assert!(matches!(error, Error::Cancelled(_)), "{error}");
            assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
        });
        assert_eq!(count_blobs(&root), usize::from(there));
    }
}

#[test]
fn documents_beyond_the_limit_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut layout = Layout::create(dir.path());
    let big = layout.blob(&vec![b' '; 9 << 20], media::OCI_MANIFEST);
    layout.tag(&big, "big");
    let source = Source::open(&oci(dir.path(), None)).unwrap();
    let error = source.select(&PlatformChoice::Host).unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
}

#[test]
fn indexes_that_nest_too_deeply_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut layout = Layout::create(dir.path());
    let mut inner = layout.manifest(&[], Flavour::Oci);
    for _ in 0..6 {
        let index =
            json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": [inner]});
        inner = layout.blob(index.to_string().as_bytes(), media::OCI_INDEX);
    }
    layout.tag(&inner, "deep");
    let error = Source::open(&oci(dir.path(), None))
        .unwrap()
        .select(&PlatformChoice::All)
        .unwrap_err();
    assert!(error.to_string().contains("deeper"), "{error}");
}

#[test]
fn an_index_that_multiplies_by_nesting_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut layout = Layout::create(dir.path());
    // No entry states a platform, and no manifest is at the end.
    let mut inner: Vec<Value> = Vec::new();
    for _ in 0..4 {
        let index = json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": inner});
        inner = vec![layout.blob(index.to_string().as_bytes(), media::OCI_INDEX); 2000];
    }
    layout.tag(&inner[0], "x");
    let source = Source::open(&oci(dir.path(), None)).unwrap();
    for choice in [PlatformChoice::All, PlatformChoice::Host] {
        let error = source.select(&choice).unwrap_err().to_string();
        assert!(error.contains("4096 entries"), "{error}");
    }
}

#[test]
fn an_index_that_is_no_regular_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    write_layout(dir.path(), &["x"]);
    let path = dir.path().join("index.json");
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
    assert!(refused(&oci(dir.path(), None)).contains("no regular file"));
}

#[test]
fn writers_may_begin_a_layout_at_the_same_time() {
    for _ in 0..20 {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("new/layout");
        let together = std::sync::Barrier::new(4);
        std::thread::scope(|scope| {
            for tag in ["a", "b", "c", "gives-up"] {
                let (root, together) = (&root, &together);
                scope.spawn(move || {
                    together.wait();
                    let target = Target::open(&oci(root, Some(tag))).unwrap();
                    if tag != "gives-up" {
                        let image = put_image(&target, tag.as_bytes());
                        target.commit(&image).unwrap();
                    }
                });
            }
        });
        let mut tags = tags(&root);
        tags.sort();
        assert_eq!(tags, ["a", "b", "c"].map(|tag| Some(tag.to_owned())));
        assert!(root.join("oci-layout").exists());
        for tag in ["a", "b", "c"] {
            read_all(&Source::open(&oci(&root, Some(tag))).unwrap());
        }
    }
}

#[test]
fn what_a_killed_writer_left_goes_when_nobody_is_at_work() {
    let dir = tempfile::tempdir().unwrap();
    // Killed before the layout was one.
    std::fs::write(dir.path().join(".new-aaaaaa"), b"{").unwrap();
    let target = Target::open(&oci(dir.path(), Some("a"))).unwrap();
    let image = put_image(&target, b"1");
    target.commit(&image).unwrap();
    assert!(!dir.path().join(".new-aaaaaa").exists());
    let blobs = count_blobs(dir.path());

    // Killed while it wrote the tag, and while it wrote a blob.
    let index = dir.path().join(".new-bbbbbb");
    std::fs::write(&index, b"{").unwrap();
    let left = dir.path().join("blobs/sha256/.new-bbbbbb");
    std::fs::write(&left, b"half").unwrap();
    let first = Target::open(&oci(dir.path(), Some("b"))).unwrap();
    assert!(!index.exists());
    assert_eq!(count_blobs(dir.path()), blobs);
    // That of a writer at work stays.
    let mut writer = first.blob_writer().unwrap();
    writer.write_all(b"more").unwrap();
    let second = Target::open(&oci(dir.path(), Some("c"))).unwrap();
    assert_eq!(count_blobs(dir.path()), blobs + 1);
    writer.finish(Digest::of(b"more")).unwrap();
    drop((first, second));
}
