//! Uploads.

use std::io::Write;
use std::net::TcpStream;

use testkit::registry::{Options, Registry};

use super::client::{Client, read_answer};
use super::{client, digest};

/// Opens a session; its URL.
fn open(client: &Client) -> String {
    let answer = client.post("/v2/a/blobs/uploads/", b"").is(202);
    assert_eq!(answer.header("range"), "0-0");
    assert_ne!(answer.header("docker-upload-uuid"), "");
    answer.header("location").to_owned()
}

fn ended(location: &str, bytes: &[u8]) -> String {
    format!("{location}&digest={}", digest(bytes))
}

#[test]
fn a_blob_comes_in_segments() {
    let directory = tempfile::tempdir().unwrap();
    for directory in [None, Some(directory.path().to_owned())] {
        let registry = Registry::start(Options {
            directory,
            ..Options::default()
        });
        let client = client(&registry);
        let at = open(&client);
        assert!(at.starts_with(&registry.url()));
        let first = client
            .clone()
            .with("Content-Range", "0-2")
            .patch(&at, b"abc")
            .is(202);
        assert_eq!(first.header("range"), "0-2");
        let second = client.patch(first.header("location"), b"de").is(202);
        assert_eq!(second.header("range"), "0-4");
        let status = client.get(second.header("location")).is(204);
        assert_eq!(status.header("range"), "0-4");
        let last = ended(status.header("location"), b"abcdefgh");
        let stored = client
            .clone()
            .with("Content-Range", "5-7")
            .put(&last, b"fgh")
            .is(201);
        assert_eq!(stored.header("docker-content-digest"), digest(b"abcdefgh"));
        client.get(stored.header("location")).is(200);
        assert_eq!(
            registry.blob("a", &digest(b"abcdefgh")).unwrap(),
            b"abcdefgh"
        );
        client.get(status.header("location")).is(404);
        let counters = registry.counters();
        assert_eq!((counters.open_uploads, counters.uploads_opened), (0, 1));
    }
}

#[test]
fn segments_at_wrong_places_are_refused() {
    let registry = Registry::new();
    let client = client(&registry);
    let at = open(&client);
    let at = client
        .clone()
        .with("Content-Range", "0-2")
        .patch(&at, b"abc")
        .is(202);
    let at = at.header("location");
    for range in ["0-2", "4-6"] {
        let refused = client
            .clone()
            .with("Content-Range", range)
            .patch(at, b"abc")
            .is(416);
        assert_eq!(refused.header("range"), "0-2");
        client.get(refused.header("location")).is(204);
    }
    client
        .clone()
        .with("Content-Range", "3-9")
        .patch(at, b"abc")
        .is(400);
    client
        .clone()
        .with("Content-Range", "bytes 3-5/6")
        .patch(at, b"abc")
        .is(400);
    let path = at.split('?').next().unwrap();
    client.patch(path, b"abc").is(404);
    assert!(registry.violations().is_empty());
    client.put(&ended(at, b"abc"), b"").is(201);
}

#[test]
fn a_registry_that_appends_twice_tells_on_the_client() {
    let registry = Registry::start(Options {
        append_twice: true,
        relative_locations: true,
        ..Options::default()
    });
    let client = client(&registry);
    let at = open(&client);
    assert!(at.starts_with("/v2/a/blobs/uploads/"));
    let client = client.with("Content-Range", "0-2");
    client.patch(&at, b"abc").is(202);
    let twice = client.patch(&at, b"abc").is(202);
    assert_eq!(twice.header("range"), "0-5");
    assert_eq!(
        registry.violations().len(),
        1,
        "{:?}",
        registry.violations()
    );
}

#[test]
fn a_url_may_be_good_for_one_place_only() {
    let registry = Registry::start(Options::debian());
    let client = client(&registry);
    let stale = open(&client);
    let at = client.patch(&stale, b"abc").is(202);
    client.get(&stale).is(404);
    client.patch(&stale, b"abc").is(404);
    client.delete(&stale).is(404);
    let at = client.get(at.header("location")).is(204);
    client
        .put(&ended(at.header("location"), b"abc"), b"")
        .is(201);
}

#[test]
fn a_wrong_digest_ends_the_upload() {
    let registry = Registry::new();
    let client = client(&registry);
    let at = open(&client);
    client
        .put(&format!("{at}&digest=sha256:12"), b"abc")
        .is(400);
    assert_eq!(registry.counters().open_uploads, 1);
    client.put(&ended(&at, b"other"), b"abc").is(400);
    client.get(&at).is(404);
    assert_eq!(registry.counters().open_uploads, 0);
    assert!(registry.blobs("a").is_empty());
}

#[test]
fn sessions_can_be_deleted_and_forgotten() {
    let registry = Registry::new();
    let client = client(&registry);
    let at = open(&client);
    client.delete(&at).is(204);
    client.delete(&at).is(404);
    client.patch(&at, b"abc").is(404);
    let at = open(&client);
    registry.forget_uploads();
    client.patch(&at, b"abc").is(404);
    let counters = registry.counters();
    assert_eq!((counters.uploads_opened, counters.uploads_deleted), (2, 1));
}

#[test]
fn a_blob_comes_in_one_request() {
    let registry = Registry::new();
    let client = client(&registry);
    let target = format!("/v2/a/blobs/uploads/?digest={}", digest(b"abc"));
    client.post(&target, b"abd").is(400);
    let stored = client.post(&target, b"abc").is(201);
    assert_eq!(client.get(stored.header("location")).is(200).body, b"abc");
    let at = open(&client);
    client.put(&ended(&at, b"xyz"), b"xyz").is(201);
    assert_eq!(registry.blobs("a").len(), 2);
    assert_eq!(registry.counters().open_uploads, 0);
}

#[test]
fn blobs_are_mounted_from_other_repositories() {
    let registry = Registry::new();
    let blob = registry.put_blob("b", b"abc");
    let target = format!("/v2/a/blobs/uploads/?mount={blob}&from=b");
    client(&registry).post(&target, b"").is(201);
    assert_eq!(registry.blob("a", &blob).unwrap(), b"abc");
    assert_eq!(registry.counters().mounts, 1);
    let absent = format!("/v2/a/blobs/uploads/?mount={}&from=b", digest(b"x"));
    let upload = client(&registry).post(&absent, b"").is(202);
    client(&registry).delete(upload.header("location")).is(204);

    let registry = Registry::start(Options {
        mounts: false,
        ..Options::default()
    });
    registry.put_blob("b", b"abc");
    client(&registry).post(&target, b"").is(202);
    assert_eq!(registry.counters().open_uploads, 1);
}

#[test]
fn bodies_come_in_chunks_and_after_a_word_to_go_on() {
    let registry = Registry::new();
    let at = open(&client(&registry));
    let target = at.strip_prefix(&registry.url()).unwrap();
    let text = format!(
        "PATCH {target} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n"
    );
    let answer = client(&registry).raw("PATCH", text.as_bytes()).is(202);
    assert_eq!(answer.header("range"), "0-4");

    let mut socket = TcpStream::connect(registry.host()).unwrap();
    let text =
        format!("PATCH {target} HTTP/1.1\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n");
    socket.write_all(text.as_bytes()).unwrap();
    assert_eq!(read_answer(&mut socket, "PATCH").status, 100);
    socket.write_all(b"fgh").unwrap();
    assert_eq!(read_answer(&mut socket, "PATCH").header("range"), "0-7");
}
