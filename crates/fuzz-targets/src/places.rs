//! Where images lie: documents, archives, headers, names and configurations.

use std::io;
use std::sync::LazyLock;

use backend::{Config, DaemonConfig, Kind};
use builder::Attributes;
use image::{Descriptor, Digest, Node, Platform, PlatformChoice, Source, media, nydus};
use testkit::layout::{Packing, pack};
use testkit::tar::{Entry, Tar};

use crate::{Target, sample};

/// A kind of text, told by the first byte, and the text: manifests, indexes, image configurations, names of images and
/// platforms, headers of registries, configurations of backends and daemons, lists of mirrors, attributes of external files; partition
/// tables; errors and tokens; what is needed first; records of the journal and of build caches; figures and tables of mounts; sizes.
pub const DOCUMENTS: Target = Target {
    name: "documents",
    run: document,
    samples: || {
        let digest = format!("sha256:{}", "0".repeat(64));
        let external = format!(
            "# a comment\n/w/a type=external file_size=9000 blob_index=1 blob_id={} chunk_size=1.0MiB chunk_0_compressed_offset=512 compressed_size=20480 crcs=0xAA,0xbb\n\"w/./b\" type=external crcs=\r\n/c type=internal",
            "8f".repeat(32)
        );
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{}","config":{{"mediaType":"c","digest":"{digest}","size":2}},"layers":[{{"mediaType":"l","digest":"{digest}","size":3,"annotations":{{"a":"b"}}}}],"x":1}}"#,
            media::OCI_MANIFEST
        );
        let page = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"c","digest":"{digest}","size":2}},"layers":[{{"mediaType":"l","digest":"{digest}","size":3,"annotations":{{"{}":"{digest}","{}":"{digest}","{}":"{digest}"}}}}],"annotations":{{"{}":"v1"}}}}"#,
            nydus::ANNOTATION_CACHE_KEY,
            nydus::ANNOTATION_CACHE_BOOTSTRAP,
            nydus::ANNOTATION_SOURCE_DIGEST,
            nydus::ANNOTATION_CACHE_VERSION
        );
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"m","digest":"{digest}","size":4,"platform":{{"os":"linux","architecture":"arm64","variant":"v8"}}}}]}}"#
        );
        [
            (0, &*manifest),
            (1, &*index),
            (2, "localhost:5000/a/b:tag@sha256:00"),
            (3, "linux/arm64/v8"),
            (4, r#"Basic realm="x, y", Bearer realm="https://a/token",service="r",scope="repository:a/b:pull""#),
            (4, "bytes 0-99/100"),
            (5, r#"{"endpoint":"e","bucket_name":"b","access_key_id":"a","access_key_secret":"s","region":"r"}"#),
            (6, r#"{"dir":"/blobs"}"#),
            (7, r#"{"version":2,"backend":{"type":"localfs","localfs":{"dir":"/blobs"}},"cache":{"type":"blobcache"}}"#),
            (7, "version = 2\n[backend]\ntype = \"registry\"\n[backend.registry]\nhost = \"h\"\nrepo = \"r\"\n"),
            (7, r#"{"device":{"backend":{"type":"oss","config":{"bucket_name":"b","endpoint":"e"}}},"mode":"direct"}"#),
            (8, &external),
            (9, "[host.\"https://m.example:5000/x\"]\nca = [\"a.pem\"]\nskip_verify = true\nping_url = \"http://m/ping\"\n[host.\"https://m.example:5000/x\".header]\na = [\"1\", \"2\"]\n[host.\"http://n\"]\noverride_path = true\ncapabilities = [\"pull\"]\nfailure_limit = 2\nhealth_check_interval = 7\n"),
            (12, r#"{"errors":[{"code":"DENIED","message":"no\n","detail":null}]}"#),
            (12, r#"{"token":"t","access_token":"a","expires_in":300}"#),
            (12, "<?xml version=\"1.0\"?><Error><Code>NoSuchKey</Code><Message>gone</Message></Error>"),
            (13, r#"{"version":"v1","files":[{"path":"/a","ranges":[[0,10],[4096,1]]},{"path":"/b"}]}"#),
            (14, &*format!(r#"{{"schema":"nydusify-journal/1","blob":"{digest}","size":7,"bootstrap":"{digest}"}}"#)),
            (15, &*page),
            (16, "# TYPE nydusify_x counter\nnydusify_x{a=\"b\\\"\\n\",c=\"\"} 1\nnydusify_t_bucket{le=\"0.5\"} 1\nnydusify_t_bucket{le=\"+Inf\"} 2\n"),
            (17, "40 22 0:35 / /mnt/a\\040b ro,relatime shared:9 master:2 - fuse.rafs rafs ro,user_id=0\n"),
            (18, "1.5MiB"),
            (10, r#"{"timeout":1,"connect_timeout":0,"retry_limit":2,"ca_cert_files":["/a"],"proxy":{"url":"http://p:1","ping_url":"http://p","fallback":false,"use_http":true},"mirrors":[{"host":"http://m","headers":{"a":"b"},"auth_through":true,"failure_limit":3}]}"#),
        ]
        .into_iter()
        .map(|(kind, text)| [&[kind], text.as_bytes()].concat())
        .chain([[&[11], &partitions()[1024..1280]].concat()])
        .collect()
    },
    changes: 20_000,
};

/// Any bytes as an archive of images, of either kind: every image in it is opened and read.
pub const ARCHIVE: Target = Target {
    name: "archive",
    run: archive,
    samples: archives,
    changes: 1000,
};

/// Any bytes as the layer that a bootstrap is in; behind a first byte of 0 it is compressed first. What is found in it is checked.
pub const BOOTSTRAP_LAYER: Target = Target {
    name: "bootstrap_layer",
    run: |input| {
        let packed = match input.split_first() {
            Some((0, tar)) => pack(tar, Packing::Gzip),
            Some((_, layer)) => layer.to_vec(),
            None => return,
        };
        if let Ok((bootstrap, _)) = nydus::unpack_bootstrap(&packed[..], "the layer") {
            let _ = bootstrap::Parsed::parse(bootstrap).map(|parsed| parsed.check());
        }
    },
    samples: || {
        let (layer, _) = sample::native_layer();
        let bootstrap = builder::encode(&layer.image).expect("the sample can be encoded");
        let mut tar = Tar::new();
        tar.add(Entry::directory("image/"))
            .add(Entry::file("./image/image.boot", bootstrap).pax("comment", "x"))
            .add(Entry::file("image/backend.json", "{}").in_gnu_format());
        let tar = tar.finish();
        let packed = pack(&tar, Packing::Gzip);
        vec![[&[0], &tar[..]].concat(), [&[1], &packed[..]].concat()]
    },
    changes: 2000,
};

fn document(input: &[u8]) {
    let Some((kind, text)) = input.split_first() else {
        return;
    };
    match kind {
        0 => node(media::OCI_MANIFEST, text),
        1 => node(media::OCI_INDEX, text),
        4 => registry::fuzzing::headers(text),
        8 => attributes(text),
        12 => registry::fuzzing::answer(text),
        13 => drop(builder::parse_prefetch_list(text)),
        14 => convert::fuzzing::record(text),
        15 => page(text),
        17 => mount::fuzzing::mounts(text),
        11 => backend::fuzzing::partitions(text),
        _ => {}
    }
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    match kind {
        2 => {
            if let Ok(reference) = text.parse::<registry::Reference>() {
                let again = reference.to_string().parse::<registry::Reference>();
                assert_eq!(again.ok(), Some(reference));
            }
            let _ = text.parse::<image::Location>();
            let _ = text.parse::<Digest>();
        }
        3 => {
            if let Ok(platform) = text.parse::<Platform>() {
                assert!(platform.fits(&platform));
            }
        }
        5 => drop(Config::parse(Kind::S3, text)),
        6 => drop(Config::parse(Kind::Localfs, text)),
        7 => drop(DaemonConfig::parse(text)),
        9 => backend::fuzzing::hosts(text),
        10 => backend::fuzzing::keys(text),
        16 => mount::fuzzing::figures(text),
        18 => drop(builder::parse_size(text)),
        _ => {}
    }
}

/// A disk of two blobs, whose entries begin at byte 1024.
fn partitions() -> Vec<u8> {
    let [one, two] = [1, 2].map(|byte: u8| testkit::sha256(&[byte]));
    let disk = testkit::gpt::disk(&[(&one, &[1; 700]), (&two, b"x")]);
    testkit::gpt::older(&disk, 1)
}

fn attributes(text: &[u8]) {
    let Ok(attributes) = Attributes::parse(text) else {
        return;
    };
    for (path, file) in attributes.iter() {
        assert_eq!(attributes.get(path), Some(file));
        assert!(path.starts_with(b"/") && attributes.leads_to(path));
    }
}

fn node(media_type: &str, bytes: &[u8]) {
    let descriptor = Descriptor::new(media_type, Digest::of(bytes), bytes.len() as u64);
    let Ok(node) = Node::parse(&descriptor, bytes) else {
        return;
    };
    let json = match &node {
        Node::Manifest(manifest) => manifest.to_json(),
        Node::Index(index) => index.to_json(),
    };
    let again = Node::parse(&descriptor, &json).expect("what was written can be read");
    assert_eq!(again, node);
}

fn page(bytes: &[u8]) {
    let descriptor = Descriptor::new(media::OCI_MANIFEST, Digest::of(bytes), bytes.len() as u64);
    if let Ok(Node::Manifest(manifest)) = Node::parse(&descriptor, bytes) {
        convert::fuzzing::page(&manifest);
    }
}

fn archive(input: &[u8]) {
    static FILE: LazyLock<tempfile::TempDir> =
        LazyLock::new(|| tempfile::tempdir().expect("there is a directory for temporary files"));
    let path = FILE.path().join("archive.tar");
    std::fs::write(&path, input).expect("a file can be written");
    let Ok(source) = Source::open_archive(&path, "name") else {
        return;
    };
    for image in source.select(&PlatformChoice::All).unwrap_or_default() {
        let _ = source.config(&image.manifest);
        for layer in &image.manifest.layers {
            if let Ok(mut blob) = source.open_blob(layer) {
                let _ = io::copy(&mut blob, &mut io::sink());
            }
        }
    }
}

/// An OCI archive and what `docker save` writes, of one small layer each.
fn archives() -> Vec<Vec<u8>> {
    let mut layer = Tar::new();
    layer.add(Entry::file("file", "data"));
    let layer = layer.finish();
    let sum = testkit::sha256(&layer);
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["sha256:{sum}"]}}}}"#
    );
    let config_sum = testkit::sha256(config.as_bytes());
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:{config_sum}","size":{}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:{sum}","size":{}}}]}}"#,
        config.len(),
        layer.len()
    );
    let manifest_sum = testkit::sha256(manifest.as_bytes());
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{}","digest":"sha256:{manifest_sum}","size":{}}}]}}"#,
        media::OCI_MANIFEST,
        manifest.len()
    );
    let mut oci = Tar::new();
    oci.add(Entry::file(
        "oci-layout",
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    ))
    .add(Entry::file("index.json", index));
    for (sum, data) in [
        (&sum, &layer[..]),
        (&config_sum, config.as_bytes()),
        (&manifest_sum, manifest.as_bytes()),
    ] {
        oci.add(Entry::file(format!("blobs/sha256/{sum}"), data));
    }
    let mut docker = Tar::new();
    let listed = format!(
        r#"[{{"Config":"{config_sum}.json","RepoTags":["name:tag"],"Layers":["layer/layer.tar"]}}]"#
    );
    docker
        .add(Entry::file("manifest.json", listed))
        .add(Entry::file(format!("{config_sum}.json"), config))
        .add(Entry::file("layer/layer.tar", &layer));
    vec![oci.finish(), docker.finish()]
}
