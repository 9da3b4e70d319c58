//! `nydusify optimize`: one more blob, the same image.

use std::fs;
use std::io::Read as _;
use std::path::PathBuf;

use serde_json::{Value, json};
use testkit::fixture::busybox;
use testkit::registry::Registry;
use testkit::run::{Ran, run};

use crate::support::*;

const LIST: &str = r#"{"version": "v1", "files": [
    {"path": "/app/main"}, {"path": "/bin/ash", "ranges": [[0, 70000]]}, {"path": "/gone"}, {"path": "/etc/motd"}
]}"#;
const PREFETCH: &str = "containerd.io/snapshot/nydus-separated-blob-with-prefetch-files";
const BOOTSTRAP: &str = "containerd.io/snapshot/nydus-bootstrap";

/// A list of files in a file.
fn list(place: &Place, text: &str) -> PathBuf {
    let path = place.path("list.json");
    fs::write(&path, text).unwrap();
    path
}

#[track_caller]
fn optimize(source: &str, target: &str, list: &std::path::Path) -> Ran {
    let words = ["optimize", "--source", source, "--target", target];
    let list = ["--prefetch-files", list.to_str().unwrap()];
    run(NYDUSIFY, words.iter().chain(&list))
}

/// The entries of a gzip layer with plain headers: names and contents.
fn entries(layer: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut tar = Vec::new();
    let mut decoder = flate2::read::GzDecoder::new(layer);
    decoder.read_to_end(&mut tar).unwrap();
    let (mut entries, mut rest) = (Vec::new(), &tar[..]);
    while rest[0] != 0 {
        let (header, data) = rest.split_at(512);
        let text = |field: &[u8]| {
            let text = field.split(|&byte| byte == 0).next().unwrap();
            String::from_utf8(text.to_vec()).unwrap()
        };
        let size = usize::from_str_radix(&text(&header[124..136]), 8).unwrap();
        entries.push((text(&header[..100]), data[..size].to_vec()));
        rest = &data[size.next_multiple_of(512)..];
    }
    entries
}

#[test]
fn an_image_gets_a_blob_with_what_is_needed_first() {
    let place = Place::new();
    let list = list(&place, LIST);
    for version in ["6", "5"] {
        let (before, after) = (place.oci("layout", "before"), place.oci("other", "after"));
        let options = ["--fs-version", version, "--chunk-size", "0x10000"];
        convert(&fixture(), &before, &options).ok();
        let ran = optimize(&before, &after, &list).ok();
        assert!(
            ran.stderr.contains("/gone: the image has no such file"),
            "{ran}"
        );
        check(&fixture(), &after).ok().says(&["verified image"]);

        let (layout, other) = (place.path("layout"), place.path("other"));
        let (old, new) = (manifest(&layout, "before"), manifest(&other, "after"));
        let layers = |manifest: &Value| manifest["layers"].as_array().unwrap().clone();
        let (old_layers, new_layers) = (layers(&old), layers(&new));
        let count = old_layers.len();
        assert_eq!(new_layers.len(), count + 1);
        assert_eq!(new_layers[..count - 1], old_layers[..count - 1]);
        let (blob, boot) = (&new_layers[count - 1], &new_layers[count]);
        assert_eq!(
            blob["mediaType"],
            "application/vnd.oci.image.layer.nydus.blob.v1"
        );
        assert_eq!(
            blob["annotations"],
            json!({"containerd.io/snapshot/nydus-blob": "true"})
        );
        let id = blob["digest"].as_str().unwrap();
        let hex = id.strip_prefix("sha256:").unwrap();
        assert_eq!(boot["annotations"][PREFETCH], hex);
        assert_eq!(boot["annotations"][BOOTSTRAP], "true");
        assert_eq!(boot["mediaType"], old_layers[count - 1]["mediaType"]);
        assert_eq!(new["annotations"], old["annotations"]);

        // The bootstrap names the blob as its last one.
        let path = |digest: &Value| {
            let digest = digest.as_str().unwrap().replace(':', "/");
            other.join("blobs").join(digest)
        };
        let packed = entries(&fs::read(path(&boot["digest"])).unwrap());
        let names: Vec<&str> = packed.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            names,
            ["image/", "image/image.boot", "image/prefetch.files"]
        );
        assert_eq!(packed[2].1, LIST.as_bytes());
        let loaded = storage::LoadedBootstrap::from_bytes(packed[1].1.clone()).unwrap();
        let last = loaded.blobs().last().unwrap();
        assert_eq!(last.id.as_str(), hex);
        let size = fs::metadata(path(&blob["digest"])).unwrap().len();
        assert_eq!(size, blob["size"].as_u64().unwrap());
        // Two small files, and two chunks of a large one.
        assert_eq!(last.chunk_count, 4);

        let config = |layout: &std::path::Path, manifest: &Value| {
            document(layout, manifest["config"]["digest"].as_str().unwrap())
        };
        let (old, new) = (config(&layout, &old), config(&other, &new));
        let ids = new["rootfs"]["diff_ids"].as_array().unwrap();
        assert_eq!(ids.len(), new_layers.len());
        assert_eq!(ids[count - 1], *id);
        assert_eq!(new["config"], old["config"]);
        assert_eq!(
            new["history"].as_array().unwrap().len(),
            old["history"].as_array().unwrap().len() + 1
        );
    }
}

#[test]
fn it_goes_from_registry_to_registry_and_twice_is_the_same() {
    let place = Place::new();
    let list = list(&place, LIST);
    let (first, second) = (Registry::new(), Registry::new());
    first.push_layout(&busybox(), "latest", "app", "latest");
    let at = |registry: &Registry, name: &str| format!("{}/{name}", registry.host());
    // The Nydus image is one of two for this platform.
    convert(
        &at(&first, "app"),
        &at(&first, "nydus:1"),
        &["--merge-platform"],
    )
    .ok();
    for tag in ["1", "2"] {
        optimize(
            &at(&first, "nydus:1"),
            &at(&second, &format!("fast:{tag}")),
            &list,
        )
        .ok();
    }
    assert_eq!(second.missing_from("fast", "1"), Vec::<String>::new());
    assert_eq!(second.digest("fast", "1"), second.digest("fast", "2"));
    check(&at(&first, "app"), &at(&second, "fast:1"))
        .ok()
        .says(&["verified image"]);
    // Into an archive, whose blobs are written one after another.
    let archive = format!("oci-archive:{}:3", place.path("image.tar").display());
    optimize(&at(&first, "nydus:1"), &archive, &list).ok();
    check(&at(&first, "app"), &archive).ok();
}

#[test]
fn what_cannot_be_optimized_leaves_no_tag() {
    let place = Place::new();
    let (before, after) = (place.oci("layout", "before"), place.oci("other", "after"));
    let good = list(&place, LIST);
    optimize(&fixture(), &after, &good)
        .exits(1)
        .fails_with(&["no Nydus image", "convert it first"]);
    convert(&fixture(), &before, &[]).ok();
    let words = ["optimize", "--source", &before, "--target", &after];
    run(NYDUSIFY, words)
        .exits(2)
        .fails_with(&["--prefetch-files"]);
    let policy = ["--policy", "other"];
    run(NYDUSIFY, words.iter().chain(&policy)).exits(2);
    optimize(&before, &after, &place.path("none"))
        .exits(1)
        .fails_with(&["none", "No such file"]);
    let dir = place.path("blobs");
    fs::create_dir(&dir).unwrap();
    let config = json!({ "dir": dir }).to_string();
    let options = ["--backend-type", "localfs", "--backend-config", &config];
    convert(&fixture(), &place.oci("outside", "t"), &options).ok();
    optimize(&place.oci("outside", "t"), &after, &good)
        .exits(1)
        .fails_with(&["does not list", "--source-backend-type"]);
    let bad = list(&place, "/app/main\n");
    optimize(&before, &after, &bad)
        .exits(1)
        .fails_with(&["JSON such as"]);
    assert_clean(&place.path("other"), "after");

    // A blob that is damaged is not copied, and nothing else is made of it.
    let good = list(&place, LIST);
    let layers = manifest(&place.path("layout"), "before")["layers"].clone();
    let digest = layers[0]["digest"].as_str().unwrap();
    let blob = place.path("layout/blobs").join(digest.replace(':', "/"));
    let mut bytes = fs::read(&blob).unwrap();
    bytes[1000] ^= 1;
    fs::write(&blob, bytes).unwrap();
    optimize(&before, &after, &good)
        .exits(1)
        .fails_with(&[digest]);
    assert_clean(&place.path("other"), "after");
}

#[test]
fn blobs_come_from_a_backend() {
    let place = Place::new();
    let (outside, after) = (place.oci("outside", "t"), place.oci("other", "after"));
    let dir = place.path("blobs");
    fs::create_dir(&dir).unwrap();
    let config = json!({ "dir": dir }).to_string();
    let options = ["--backend-type", "localfs", "--backend-config", &config];
    convert(&fixture(), &outside, &options).ok();
    let backend = [
        "--source-backend-type",
        "localfs",
        "--source-backend-config",
        &config,
    ];
    for (text, blobs) in [(LIST, 4), ("", 3)] {
        let list = list(&place, text);
        let words = ["optimize", "--source", &outside, "--target", &after];
        let list = ["--prefetch-files", list.to_str().unwrap()];
        run(NYDUSIFY, words.iter().chain(&list).chain(&backend)).ok();
        let layers = manifest(&place.path("other"), "after")["layers"].clone();
        assert_eq!(layers.as_array().unwrap().len(), blobs + 1);
        // All of it is in the image now.
        check(&fixture(), &after).ok().says(&["verified image"]);
    }
}

#[test]
fn without_files_the_image_is_copied() {
    let place = Place::new();
    let (before, after) = (place.oci("layout", "before"), place.oci("other", "after"));
    convert(&fixture(), &before, &[]).ok();
    let list = list(&place, r#"{"version":"v1","files":[{"path":"/gone"}]}"#);
    let ran = optimize(&before, &after, &list).ok();
    assert!(ran.stderr.contains("the image is as it was"), "{ran}");
    assert_eq!(
        digest(&place.path("other"), "after"),
        digest(&place.path("layout"), "before")
    );
    check(&fixture(), &after).ok();
}
