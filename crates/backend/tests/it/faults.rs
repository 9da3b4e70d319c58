//! Stores that fail.

use std::sync::Arc;

use image::Digest;
use storage::BlobSource as _;
use testkit::bucket::{Bucket, Fault};
use testkit::noise;

use crate::support::{LARGE, open, stream, write};

const SLOW: &str = "<Error><Code>SlowDown</Code><Message>please</Message></Error>";
const BROKEN: &str = "<Error><Code>InternalError</Code><Message>oh</Message></Error>";

fn fault(request: &'static str, status: u16, body: &'static str, times: usize) -> Fault {
    Fault {
        request,
        status,
        body,
        times,
    }
}

#[test]
fn what_passes_by_itself_is_tried_again() {
    for store in [Bucket::s3(), Bucket::oss()] {
        let backend = open(&store, "p/");
        for request in [
            "HEAD ",
            "POST *?uploads",
            "PUT *partNumber=2",
            "POST *?uploadId",
            "PUT /blobs/p/",
        ] {
            store.fail(fault(request, 503, SLOW, 2));
        }
        // Success that turns out to be none.
        store.fail(fault("POST *?uploadId", 200, BROKEN, 1));
        store.fail(fault("PUT /blobs/p/", 200, BROKEN, 1));
        let bytes = noise(3, LARGE);
        write(&backend.target(false), &bytes).unwrap();
        store.fail(fault("GET ", 500, "", 2));
        let blob = backend.open(&Digest::of(&bytes).hex()).unwrap();
        assert!(stream(Arc::clone(&blob), 0) == bytes);
        store.fail(fault("GET ", 503, SLOW, 2));
        let mut part = vec![0; 1000];
        blob.read_exact_at(&mut part, 12_345).unwrap();
        assert!(part == bytes[12_345..13_345]);
        assert_eq!((store.objects().len(), store.uploads()), (1, 0));
    }
}

#[test]
fn what_does_not_pass_fails_and_leaves_nothing() {
    let denied = "<Error><Code>AccessDenied</Code><Message>not you</Message></Error>";
    for request in [
        "POST *?uploads",
        "PUT *partNumber=2",
        "POST *?uploadId",
        "PUT /blobs/p/",
    ] {
        for store in [Bucket::s3(), Bucket::oss()] {
            let backend = open(&store, "p/");
            // A copy goes to the final name; all else of a large blob to a temporary one.
            let request = match request {
                "PUT /blobs/p/" => "PUT /blobs/p/4",
                other => other,
            };
            let bytes = named_with_4();
            store.fail(fault(request, 403, denied, 100));
            let error = write(&backend.target(false), &bytes)
                .unwrap_err()
                .to_string();
            assert!(
                error.contains("403 AccessDenied: not you"),
                "{request}: {error}"
            );
            assert!(error.contains("127.0.0.1"), "{request}: {error}");
            assert_eq!(store.objects().len(), 0, "{request} {store:?}");
            assert_eq!(store.uploads(), 0, "{request} {store:?}");
        }
    }
}

/// A large blob whose digest begins with a 4.
fn named_with_4() -> Vec<u8> {
    let mut bytes = noise(9, LARGE);
    for number in 0..=u8::MAX {
        bytes[0] = number;
        if Digest::of(&bytes).hex().starts_with('4') {
            break;
        }
    }
    bytes
}

#[test]
fn a_copy_that_is_too_short_is_found_out() {
    let store = Bucket::oss();
    let backend = open(&store, "p/");
    let bytes = named_with_4();
    // The copy is said to have succeeded, and nothing is there.
    store.fail(fault(
        "PUT /blobs/p/4",
        200,
        "<CopyObjectResult></CopyObjectResult>",
        1,
    ));
    let error = write(&backend.target(false), &bytes)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(&format!("0 bytes instead of {LARGE}")),
        "{error}"
    );
    assert_eq!((store.objects().len(), store.uploads()), (0, 0));
}

#[test]
fn who_may_not_ask_may_write() {
    for store in [Bucket::s3(), Bucket::oss()] {
        let backend = open(&store, "");
        store.fail(fault("HEAD ", 403, "", 1));
        write(&backend.target(false), b"bytes").unwrap();
        store.fail(fault("HEAD ", 403, "", 1));
        let error = backend.open(&Digest::of(b"bytes").hex()).err().unwrap();
        assert!(error.to_string().contains("HTTP 403"), "{error}");
    }
}

#[test]
fn another_region_is_named_as_the_reason() {
    let store = Bucket::s3();
    let backend = open(&store, "");
    let moved = "<Error><Code>PermanentRedirect</Code></Error>";
    store.fail(fault("PUT ", 301, moved, 1));
    let error = write(&backend.target(false), b"bytes")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("PermanentRedirect: it is in another region"),
        "{error}"
    );
}
