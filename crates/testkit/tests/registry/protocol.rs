//! Manifests, tags, blobs, referrers.

use std::io::Write;
use std::net::TcpStream;

use serde_json::json;
use testkit::registry::{Options, Registry};

use super::client::read_answer;
use super::{client, digest};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A manifest over one blob that is its config and its layer.
fn manifest(blob: &str, size: usize) -> String {
    json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": blob, "size": size },
        "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": blob, "size": size }],
    })
    .to_string()
}

#[test]
fn the_base_says_that_it_is_a_registry() {
    let registry = Registry::new();
    let answer = client(&registry).get("/v2/").is(200);
    assert_eq!(
        answer.header("docker-distribution-api-version"),
        "registry/2.0"
    );
    client(&registry).get("/v2/a/b/nothing").is(404);
    client(&registry).get("/other").is(404);
    client(&registry).get("/v2/Capitals/tags/list").is(400);
}

#[test]
fn manifests_come_and_go_by_tag_and_digest() {
    let registry = Registry::new();
    let client = client(&registry);
    let blob = registry.put_blob("a/b", b"content");
    let manifest = manifest(&blob, 7);
    let own = digest(manifest.as_bytes());
    let put = client
        .clone()
        .with("Content-Type", MANIFEST)
        .put("/v2/a/b/manifests/one", manifest.as_bytes())
        .is(201);
    assert_eq!(put.header("docker-content-digest"), own);
    assert_eq!(put.header("location"), format!("/v2/a/b/manifests/{own}"));
    for reference in ["one", &own] {
        let target = format!("/v2/a/b/manifests/{reference}");
        let got = client.get(&target).is(200);
        assert_eq!(got.body, manifest.as_bytes());
        assert_eq!(got.header("content-type"), MANIFEST);
        assert_eq!(got.header("docker-content-digest"), own);
        let head = client.head(&target).is(200);
        assert_eq!(head.header("content-length"), manifest.len().to_string());
        let other = client.clone().with("Accept", "application/json");
        other.get(&target).is(404);
        let several = client
            .clone()
            .with("Accept", &format!("a/b, {MANIFEST};q=0.5"));
        several.get(&target).is(200);
    }
    let by_digest = format!("/v2/a/b/manifests/{own}");
    client.put(&by_digest, manifest.as_bytes()).is(201);
    client.delete("/v2/a/b/manifests/one").is(202);
    client.get("/v2/a/b/manifests/one").is(404);
    client.get(&by_digest).is(200);
    client.delete(&by_digest).is(202);
    client.delete(&by_digest).is(404);
    client.get("/v2/none/manifests/one").is(404);
}

#[test]
fn manifests_that_are_wrong_are_refused() {
    let registry = Registry::new();
    let client = client(&registry);
    let blob = registry.put_blob("a", b"content");
    let good = manifest(&blob, 7);
    let code = |target: &str, body: &str| {
        let answer = client.put(target, body.as_bytes()).is(400);
        answer.json()["errors"][0]["code"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(code("/v2/a/manifests/x", "{"), "MANIFEST_INVALID");
    assert_eq!(
        code("/v2/a/manifests/x", r#"{"schemaVersion":1}"#),
        "MANIFEST_INVALID"
    );
    assert_eq!(code("/v2/a/manifests/-x", &good), "TAG_INVALID");
    let other = format!("/v2/a/manifests/{}", digest(b"other"));
    assert_eq!(code(&other, &good), "DIGEST_INVALID");
    let absent = manifest(&digest(b"absent"), 6);
    assert_eq!(code("/v2/a/manifests/x", &absent), "MANIFEST_BLOB_UNKNOWN");
    // What another repository has does not count.
    assert_eq!(code("/v2/b/manifests/x", &good), "MANIFEST_BLOB_UNKNOWN");
    let typed = client.clone().with("Content-Type", "application/json");
    typed.put("/v2/a/manifests/x", good.as_bytes()).is(400);
    let long = vec![b' '; (4 << 20) + 1];
    client.put("/v2/a/manifests/x", &long).is(413);
    assert!(registry.tags("a").is_empty());
}

#[test]
fn tags_are_listed_in_pages() {
    let registry = Registry::new();
    let client = client(&registry);
    client.get("/v2/a/tags/list").is(404);
    for tag in ["c", "a", "b"] {
        registry.put_manifest("a", Some(tag), MANIFEST, b"{}");
    }
    let all = client.get("/v2/a/tags/list").is(200).json();
    assert_eq!(all, json!({ "name": "a", "tags": ["a", "b", "c"] }));
    let page = client.get("/v2/a/tags/list?n=2").is(200);
    assert_eq!(page.json()["tags"], json!(["a", "b"]));
    let link = page.header("link");
    let next = link
        .strip_prefix('<')
        .and_then(|rest| rest.split('>').next());
    let page = client.get(next.unwrap()).is(200);
    assert_eq!(page.json()["tags"], json!(["c"]));
    assert_eq!(page.header("link"), "");
    assert_eq!(registry.tags("a"), ["a", "b", "c"]);
}

#[test]
fn blobs_are_served_whole_and_in_ranges() {
    let directory = tempfile::tempdir().unwrap();
    for directory in [None, Some(directory.path().to_owned())] {
        let registry = Registry::start(Options {
            directory,
            ..Options::default()
        });
        let client = client(&registry);
        let bytes = testkit::noise(1, 700_000);
        let target = format!("/v2/a/blobs/{}", registry.put_blob("a", &bytes));
        let whole = client.get(&target).is(200);
        assert!(whole.body == bytes);
        assert_eq!(whole.header("accept-ranges"), "bytes");
        let head = client.head(&target).is(200);
        assert_eq!(head.header("content-length"), "700000");
        for (range, want) in [
            ("bytes=0-0", 0..1),
            ("bytes=5-9", 5..10),
            ("bytes=699990-", 699_990..700_000),
            ("bytes=-10", 699_990..700_000),
            ("bytes=1-800000", 1..700_000),
        ] {
            let part = client.clone().with("Range", range).get(&target).is(206);
            assert!(part.body == bytes[want.clone()], "{range}");
            let shown = format!("bytes {}-{}/700000", want.start, want.end - 1);
            assert_eq!(part.header("content-range"), shown);
        }
        let outside = client
            .clone()
            .with("Range", "bytes=700000-")
            .get(&target)
            .is(416);
        assert_eq!(outside.header("content-range"), "bytes */700000");
        client.get(&format!("/v2/b/{}", &target[6..])).is(404);
        client.get("/v2/a/blobs/sha256:12").is(400);
        client.delete(&target).is(202);
        client.head(&target).is(404);
        let log = registry.requests();
        assert_eq!(log[3].range.as_deref(), Some("bytes=5-9"));
        assert_eq!((log[0].sent, log[1].sent, log[3].sent), (700_000, 0, 5));
        assert!(log.iter().all(|request| request.authorised));
    }
}

#[test]
fn what_a_registry_does_not_have_can_be_switched_off() {
    let registry = Registry::start(Options {
        ranges: false,
        referrers: false,
        delete: false,
        ..Options::default()
    });
    let client = client(&registry);
    let target = format!("/v2/a/blobs/{}", registry.put_blob("a", b"content"));
    let whole = client
        .clone()
        .with("Range", "bytes=1-2")
        .get(&target)
        .is(200);
    assert_eq!(whole.body, b"content");
    client.delete(&target).is(405);
    client.delete("/v2/a/manifests/x").is(405);
    client
        .get(&format!("/v2/a/referrers/{}", digest(b"")))
        .is(404);
}

#[test]
fn referrers_are_found_by_their_subject() {
    let registry = Registry::new();
    let client = client(&registry);
    let blob = registry.put_blob("a", b"{}");
    let subject = digest(b"subject");
    let mut referrer: serde_json::Value = serde_json::from_str(&manifest(&blob, 2)).unwrap();
    referrer["subject"] = json!({ "mediaType": MANIFEST, "digest": subject, "size": 7 });
    referrer["artifactType"] = "test/kind".into();
    referrer["annotations"] = json!({ "key": "value" });
    let bytes = referrer.to_string();
    let target = format!("/v2/a/manifests/{}", digest(bytes.as_bytes()));
    let put = client.put(&target, bytes.as_bytes()).is(201);
    assert_eq!(put.header("oci-subject"), subject);
    let list = client
        .get(&format!("/v2/a/referrers/{subject}"))
        .is(200)
        .json();
    let want = json!({
        "mediaType": MANIFEST,
        "digest": digest(bytes.as_bytes()),
        "size": bytes.len(),
        "artifactType": "test/kind",
        "annotations": { "key": "value" },
    });
    assert_eq!(list["manifests"], json!([want]));
    let filtered = client
        .get(&format!("/v2/a/referrers/{subject}?artifactType=other"))
        .is(200);
    assert_eq!(filtered.header("oci-filters-applied"), "artifactType");
    assert_eq!(filtered.json()["manifests"], json!([]));
    let none = client
        .get(&format!("/v2/a/referrers/{}", digest(b"x")))
        .is(200);
    assert_eq!(none.json()["manifests"], json!([]));
}

#[test]
fn a_connection_serves_several_requests() {
    let registry = Registry::new();
    registry.put_manifest("a", Some("t"), MANIFEST, b"{}");
    let mut socket = TcpStream::connect(registry.host()).unwrap();
    for (method, target, status) in [
        ("GET", "/v2/", 200),
        ("HEAD", "/v2/a/manifests/t", 200),
        ("PUT", "/v2/a/manifests/-", 400),
        ("GET", "/v2/a/manifests/t", 200),
    ] {
        let text = format!("{method} {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc");
        socket.write_all(text.as_bytes()).unwrap();
        assert_eq!(
            read_answer(&mut socket, method).status,
            status,
            "{method} {target}"
        );
    }
    let counters = registry.counters();
    assert_eq!((counters.requests, counters.max_connections), (4, 1));
    assert_eq!((counters.connections, counters.received), (1, 12));
}

#[test]
fn an_unreachable_registry_comes_back_at_the_same_address() {
    let registry = Registry::new();
    let client = client(&registry);
    let host = registry.host();
    let mut idle = TcpStream::connect(&host).unwrap();
    client.get("/v2/").is(200);
    registry.down();
    assert!(TcpStream::connect(&host).is_err());
    idle.write_all(b"GET /v2/ HTTP/1.1\r\n\r\n").ok();
    assert_eq!(read_answer(&mut idle, "GET").status, 0);
    registry.down();
    registry.up();
    registry.up();
    assert_eq!(registry.host(), host);
    client.get("/v2/").is(200);
}
