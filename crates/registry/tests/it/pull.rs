//! Manifests and blobs from registries that do and do not behave.

use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::server::{Reply, Request, Server, bytes, settings};
use image::{Digest, media};
use registry::{Error, Settings};

const MANIFEST: &str =
    r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json"}"#;

/// Counts requests for the closure that answers them.
fn counter() -> impl Fn() -> usize + Send + Sync {
    let count = AtomicUsize::new(0);
    move || count.fetch_add(1, Ordering::SeqCst)
}

fn read(server: &Server, blob: &[u8], settings: Settings) -> Result<Vec<u8>, String> {
    let repository = server.repository_with(settings);
    let mut stream = repository
        .open_blob(&Digest::of(blob), blob.len() as u64, 0)
        .map_err(|error| error.to_string())?;
    let mut all = Vec::new();
    stream.read_to_end(&mut all).map_err(|error| {
        let inner = error.get_ref().and_then(|e| e.downcast_ref::<Error>());
        inner.expect("the error has ours inside").to_string()
    })?;
    Ok(all)
}

#[test]
fn a_manifest_has_type_and_digest() {
    let server = Server::start(|_| {
        Reply::new(200)
            .header("Content-Type", media::OCI_MANIFEST)
            .body(MANIFEST)
    });
    let repository = server.repository();
    let digest = Digest::of(MANIFEST.as_bytes());
    for reference in ["tag".to_owned(), digest.to_string()] {
        let manifest = repository.manifest(&reference).unwrap();
        assert_eq!(manifest.bytes, MANIFEST.as_bytes());
        assert_eq!(manifest.media_type, media::OCI_MANIFEST);
        assert_eq!(manifest.digest, digest);
    }
    let request = &server.log()[0];
    assert_eq!(request.line(), "GET /v2/some/image/manifests/tag");
    let accepted: Vec<_> = request
        .headers
        .iter()
        .filter(|(name, _)| name == "accept")
        .collect();
    assert_eq!(accepted.len(), 4);
    let wrong = Digest::of(b"other");
    let error = repository.manifest(&wrong.to_string()).unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { expected, .. } if expected == wrong));
}

#[test]
fn a_manifest_without_a_useful_type_is_taken_at_its_own_word() {
    let server = Server::start(|_| {
        Reply::new(200)
            .header("Content-Type", "application/json; charset=utf-8")
            .body(MANIFEST)
    });
    let manifest = server.repository().manifest("tag").unwrap();
    assert_eq!(manifest.media_type, media::OCI_MANIFEST);
}

#[test]
fn a_manifest_that_is_cut_is_read_again_and_one_that_is_too_large_is_not() {
    let next = counter();
    let server = Server::start(move |_| match next() {
        0 => Reply::new(200).body(MANIFEST).cut(7),
        _ => Reply::new(200).body(MANIFEST),
    });
    let manifest = server.repository().manifest("tag").unwrap();
    assert_eq!(manifest.bytes, MANIFEST.as_bytes());
    assert_eq!(server.log().len(), 2);

    let server = Server::start(|_| Reply::new(200).body(vec![b' '; (8 << 20) + 1]));
    let error = server.repository().manifest("tag").unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    assert_eq!(server.log().len(), 1);
}

#[test]
fn a_missing_manifest_is_named() {
    let server = Server::start(|_| Reply::error(404, "MANIFEST_UNKNOWN"));
    let repository = server.repository();
    let error = repository.manifest("tag").unwrap_err();
    assert!(error.is_not_found());
    let text = error.to_string();
    let place = format!("manifest tag in {}/some/image", server.host());
    assert!(
        text.contains(&place) && text.contains("MANIFEST_UNKNOWN"),
        "{text}"
    );
    assert_eq!(repository.manifest_digest("tag").unwrap(), None);
    assert_eq!(repository.blob_size(&Digest::of(b"")).unwrap(), None);
}

#[test]
fn what_a_head_does_not_tell_a_get_does() {
    let digest = Digest::of(MANIFEST.as_bytes());
    let full = Server::start(move |_| {
        Reply::new(200)
            .header("Content-Type", media::OCI_MANIFEST)
            .header("Docker-Content-Digest", digest)
            .body(MANIFEST)
    });
    let bare = Server::start(|request| match request.method.as_str() {
        "HEAD" => Reply::new(405),
        _ => Reply::new(200).body(MANIFEST),
    });
    for (server, requests) in [(full, 1), (bare, 2)] {
        let found = server.repository().manifest_digest("tag").unwrap().unwrap();
        assert_eq!(found.digest, digest);
        assert_eq!(found.media_type, media::OCI_MANIFEST);
        assert_eq!(found.size, MANIFEST.len() as u64);
        assert_eq!(server.log().len(), requests);
    }
}

#[test]
fn a_cut_blob_goes_on_by_range_as_often_as_it_gets_on() {
    let blob = bytes(1000);
    let data = blob.clone();
    let server = Server::start(move |request| match request.range_start() {
        None => Reply::new(200).body(&data[..]).cut(70),
        // More often than there are retries without progress.
        Some(start) if start < 900 => Reply::part(&data, start).cut(70),
        Some(start) => Reply::part(&data, start),
    });
    assert_eq!(read(&server, &blob, settings()).unwrap(), blob);
    let log = server.log();
    assert!(log.len() > 10, "{}", log.len());
    assert_eq!(log[1].header("range"), Some("bytes=70-999"));
}

#[test]
fn a_blob_that_does_not_get_on_fails_after_the_retries() {
    let blob = bytes(1000);
    let data = blob.clone();
    let server = Server::start(move |request| match request.range_start() {
        None => Reply::new(200).body(&data[..]).cut(70),
        Some(start) => Reply::part(&data, start).cut(0),
    });
    let error = read(&server, &blob, settings()).unwrap_err();
    assert!(error.contains("cannot talk to 127.0.0.1"), "{error}");
    assert_eq!(server.log().len(), 4);
}

#[test]
fn a_range_that_was_not_asked_for_is_never_taken() {
    let blob = bytes(1000);
    for wrong in [
        "bytes 0-929/1000",
        "bytes 70-998/1000",
        "bytes 70-999/1001",
        "x",
        "",
    ] {
        let data = blob.clone();
        let server = Server::start(move |request| match request.range_start() {
            None => {
                let reply = Reply::new(200).body(&data[..]);
                // The first time it breaks.
                if request.header("user-agent").is_some() && FIRST.swap(1, Ordering::SeqCst) == 0 {
                    reply.cut(70)
                } else {
                    reply
                }
            }
            Some(start) => {
                let mut reply = Reply::part(&data, start);
                reply.headers[0].1 = wrong.to_owned();
                reply
            }
        });
        static FIRST: AtomicUsize = AtomicUsize::new(0);
        FIRST.store(0, Ordering::SeqCst);
        assert_eq!(read(&server, &blob, settings()).unwrap(), blob, "{wrong}");
        let ranges: Vec<_> = server.log().iter().map(Request::range_start).collect();
        assert_eq!(ranges, [None, Some(70), None], "{wrong}");
    }
}

#[test]
fn a_registry_that_ignores_ranges_sends_all_again_and_what_was_had_is_skipped() {
    let blob = bytes(200_000);
    let data = blob.clone();
    let next = counter();
    let server = Server::start(move |_| match next() {
        0 => Reply::new(200).body(&data[..]).cut(150_000),
        _ => Reply::new(200).body(&data[..]),
    });
    assert_eq!(read(&server, &blob, settings()).unwrap(), blob);
    assert_eq!(server.log().len(), 2);
}

#[test]
fn a_stream_begins_where_it_is_asked_to() {
    let blob = bytes(1000);
    let data = blob.clone();
    let server = Server::start(move |request| match request.range_start() {
        None => Reply::new(200).body(&data[..]),
        Some(start) => Reply::part(&data, start),
    });
    let repository = server.repository();
    for offset in [0, 1, 999, 1000] {
        let mut stream = repository
            .open_blob(&Digest::of(&blob), 1000, offset)
            .unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, &blob[offset as usize..]);
    }
}

#[test]
fn a_blob_of_another_size_is_refused() {
    let blob = bytes(1000);
    let data = blob.clone();
    let server = Server::start(move |_| Reply::new(200).body(&data[..999]));
    let error = read(&server, &blob, settings()).unwrap_err();
    assert!(error.contains("999 bytes instead of 1000"), "{error}");
}

#[test]
fn a_stalled_blob_counts_as_cut() {
    let blob = bytes(1000);
    let data = blob.clone();
    let next = counter();
    let server = Server::start(move |request| match (next(), request.range_start()) {
        // It tells of more than it sends, and does not hang up.
        (0, _) => Reply::new(200)
            .header("Content-Length", 1000)
            .body(&data[..100]),
        (_, Some(start)) => Reply::part(&data, start),
        _ => Reply::new(500),
    });
    let quick = Settings {
        stall_timeout: Duration::from_millis(200),
        ..settings()
    };
    assert_eq!(read(&server, &blob, quick).unwrap(), blob);
}

#[test]
fn a_stream_can_be_dropped_before_its_end() {
    let blob = bytes(50 << 20);
    let data = blob.clone();
    let server = Server::start(move |_| Reply::new(200).body(&data[..]));
    let repository = server.repository();
    let mut stream = repository
        .open_blob(&Digest::of(b"x"), blob.len() as u64, 0)
        .unwrap();
    let mut some = [0; 10];
    stream.read_exact(&mut some).unwrap();
    assert_eq!(some, blob[..10]);
}

#[test]
fn ranges_are_read_where_the_registry_sent_us_until_that_ends() {
    let blob = bytes(1000);
    let data = blob.clone();
    let served = counter();
    let store = Server::start(move |request| {
        assert_eq!(request.header("authorization"), None);
        // The address ends after the third use.
        if served() == 3 {
            return Reply::new(403);
        }
        let start = request.range_start().unwrap();
        let end: usize = request
            .header("range")
            .unwrap()
            .rsplit('-')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        Reply::new(206)
            .header(
                "Content-Range",
                format!("bytes {start}-{end}/{}", data.len()),
            )
            .body(&data[start..=end])
    });
    let address = format!("http://{}/store?signature=geheim", store.host());
    let server = Server::start(move |_| Reply::new(307).header("Location", &address));
    let repository = server.repository();
    for offset in [0_usize, 100, 200, 300, 400] {
        let mut buf = [0; 50];
        repository
            .read_range(&Digest::of(&blob), offset as u64, &mut buf)
            .unwrap();
        assert_eq!(buf, blob[offset..offset + 50]);
    }
    assert_eq!(
        server.log().len(),
        2,
        "asked again once, when the address had ended"
    );
    assert_eq!(store.log().len(), 6);
}

#[test]
fn a_range_that_is_cut_goes_on_and_one_beyond_the_end_fails() {
    let blob = bytes(1000);
    let data = blob.clone();
    let next = counter();
    let server = Server::start(move |request| {
        let start = request.range_start().unwrap();
        if start >= data.len() {
            return Reply::new(416);
        }
        let reply = Reply::new(206)
            .header("Content-Range", format!("bytes {start}-799/1000"))
            .body(&data[start..800]);
        if next() == 0 { reply.cut(33) } else { reply }
    });
    let repository = server.repository();
    let mut buf = vec![0; 300];
    repository
        .read_range(&Digest::of(&blob), 500, &mut buf)
        .unwrap();
    assert_eq!(buf, &blob[500..800]);
    assert_eq!(server.log()[1].header("range"), Some("bytes=533-799"));
    let error = repository
        .read_range(&Digest::of(&blob), 2000, &mut buf)
        .unwrap_err();
    assert!(error.to_string().contains("no bytes at 2000"), "{error}");
}

/// The task behind a stream may have the last hold on the client, and with it on the runtime that it runs in.
#[test]
fn a_stream_that_is_given_up_last_ends_its_client_quietly() {
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if info.to_string().contains("drop a runtime") {
            PANICS.fetch_add(1, Ordering::SeqCst);
        }
        hook(info);
    }));
    let blob = testkit::noise(1, 3_000_000);
    let served = blob.clone();
    let server = Server::start(move |_| Reply::new(200).body(served.clone()));
    for _ in 0..100 {
        let repository = server.repository();
        let stream = repository.open_blob(&Digest::of(&blob), blob.len() as u64, 0);
        let mut stream = stream.unwrap();
        drop(repository);
        stream.read_exact(&mut [0; 1000]).unwrap();
    }
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(PANICS.load(Ordering::SeqCst), 0);
}
