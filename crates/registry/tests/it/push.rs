//! Uploads to a registry that appends whatever it is sent, and loses things.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use image::{Digest, media};
use progress::Cancel;
use registry::{Error, Settings};

use crate::server::{Reply, Request, Server, bytes, settings};

/// What the registry has.
#[derive(Default)]
struct State {
    session: Option<Vec<u8>>,
    sessions: usize,
    blob: Option<Vec<u8>>,
}

/// Looks at a request before the registry does, and may spoil it.
type Spoil = dyn Fn(&Request, &mut State) -> Option<Reply> + Send + Sync;

/// A registry of one blob that behaves as Debian's: a PATCH is appended, whatever its range says.
fn registry(
    spoil: impl Fn(&Request, &mut State) -> Option<Reply> + Send + Sync + 'static,
) -> (Server, Arc<Mutex<State>>) {
    let state = Arc::new(Mutex::new(State::default()));
    let shared = Arc::clone(&state);
    let spoil: Box<Spoil> = Box::new(spoil);
    let server = Server::start(move |request| {
        let mut state = shared.lock().unwrap();
        match spoil(request, &mut state) {
            Some(reply) => reply,
            None => answer(request, &mut state),
        }
    });
    (server, state)
}

fn answer(request: &Request, state: &mut State) -> Reply {
    if request.method == "HEAD" {
        return match &state.blob {
            Some(blob) => Reply::new(200).header("Content-Length", blob.len()),
            None => Reply::new(404),
        };
    }
    if request.method == "POST" {
        state.session = Some(Vec::new());
        state.sessions += 1;
        return accepted(state);
    }
    // Every answer names a new address; only its path counts.
    let ours = format!("/v2/some/image/blobs/uploads/{}", state.sessions);
    let Some(session) = state.session.as_mut().filter(|_| request.path() == ours) else {
        return Reply::error(404, "BLOB_UPLOAD_UNKNOWN");
    };
    match request.method.as_str() {
        "PATCH" => {
            session.extend_from_slice(&request.body);
            accepted(state)
        }
        "GET" => Reply {
            status: 204,
            ..accepted(state)
        },
        "DELETE" => {
            state.session = None;
            Reply::new(204)
        }
        "PUT" => {
            session.extend_from_slice(&request.body);
            let digest = Digest::of(session);
            if request.query("digest") != Some(&digest.to_string()) {
                return Reply::error(400, "DIGEST_INVALID");
            }
            state.blob = state.session.take();
            Reply::new(201).header("Docker-Content-Digest", digest)
        }
        _ => Reply::new(405),
    }
}

fn accepted(state: &State) -> Reply {
    let length = state.session.as_ref().map_or(0, Vec::len);
    let session = state.sessions;
    Reply::new(202)
        .header(
            "Location",
            format!("/v2/some/image/blobs/uploads/{session}?_state=s%3D{length}"),
        )
        .header("Range", format!("0-{}", length.saturating_sub(1)))
}

fn push(server: &Server, blob: &[u8]) -> Result<u64, Error> {
    let mut upload = server.repository().upload()?;
    upload.write_all(blob).map_err(|error| {
        let inner = error.into_inner().expect("the error has ours inside");
        *inner.downcast::<Error>().unwrap()
    })?;
    upload.finish(Digest::of(blob))
}

fn expect_pushed(server: &Server, state: &Mutex<State>, blob: &[u8]) {
    assert_eq!(push(server, blob).unwrap(), blob.len() as u64);
    assert_eq!(state.lock().unwrap().blob.as_deref(), Some(blob));
}

/// `n` is the number of this PATCH, from 0.
fn on_patch(
    spoil: impl Fn(usize, &Request, &mut State) -> Option<Reply> + Send + Sync + 'static,
) -> (Server, Arc<Mutex<State>>) {
    let count = Mutex::new(0);
    registry(move |request, state| {
        if request.method != "PATCH" {
            return None;
        }
        let mut count = count.lock().unwrap();
        *count += 1;
        spoil(*count - 1, request, state)
    })
}

#[test]
fn a_blob_goes_in_segments_each_to_the_address_that_the_last_answer_named() {
    let (server, state) = registry(|_, _| None);
    expect_pushed(&server, &state, &bytes(35));
    let log = server.log();
    let ranges: Vec<_> = log
        .iter()
        .filter_map(|r| r.header("content-range"))
        .collect();
    assert_eq!(ranges, ["0-9", "10-19", "20-29", "30-34"]);
    let states: Vec<_> = log.iter().filter_map(|r| r.query("_state")).collect();
    assert_eq!(states, ["s%3D0", "s%3D10", "s%3D20", "s%3D30", "s%3D35"]);
    assert_eq!(log[0].header("content-length"), Some("0"));
    assert_eq!(
        server.lines().last().unwrap(),
        "PUT /v2/some/image/blobs/uploads/1"
    );
}

#[test]
fn a_blob_of_one_segment_goes_with_its_digest() {
    for length in [0, 1, 10] {
        let (server, state) = registry(|_, _| None);
        expect_pushed(&server, &state, &bytes(length));
        assert_eq!(server.log().len(), 2, "POST and PUT");
    }
}

#[test]
fn a_segment_whose_answer_is_lost_is_not_sent_again() {
    let (server, state) = on_patch(|n, request, state| {
        (n == 1).then(|| {
            answer(request, state);
            Reply::hang_up()
        })
    });
    expect_pushed(&server, &state, &bytes(35));
    assert_eq!(server.count("PATCH"), 4);
    assert!(server.count("GET") > 0);
}

#[test]
fn a_segment_that_did_not_arrive_is_sent_again() {
    for (n, status) in [(0, 500), (1, 503), (1, 429), (3, 502), (2, 0)] {
        let (server, state) = on_patch(move |count, _, _| {
            (count == n).then(|| match status {
                0 => Reply::hang_up(),
                _ => Reply::new(status),
            })
        });
        expect_pushed(&server, &state, &bytes(35));
    }
}

#[test]
fn of_a_segment_that_arrived_in_part_the_rest_is_sent() {
    let (server, state) = on_patch(|n, request, state| {
        (n == 1).then(|| {
            state
                .session
                .as_mut()
                .unwrap()
                .extend_from_slice(&request.body[..4]);
            Reply::hang_up()
        })
    });
    expect_pushed(&server, &state, &bytes(35));
    let log = server.log();
    let ranges: Vec<_> = log
        .iter()
        .filter_map(|r| r.header("content-range"))
        .collect();
    assert_eq!(ranges, ["0-9", "10-19", "14-19", "20-29", "30-34"]);
}

#[test]
fn a_segment_that_is_acknowledged_in_part_goes_on() {
    let (server, state) = on_patch(|n, request, state| {
        (n < 2).then(|| {
            state
                .session
                .as_mut()
                .unwrap()
                .extend_from_slice(&request.body[..3]);
            accepted(state)
        })
    });
    expect_pushed(&server, &state, &bytes(35));
    let log = server.log();
    let ranges: Vec<_> = log
        .iter()
        .filter_map(|r| r.header("content-range"))
        .collect();
    assert_eq!(ranges, ["0-9", "3-9", "6-9", "10-19", "20-29", "30-34"]);
}

#[test]
fn a_session_that_is_lost_begins_again_while_all_data_is_here() {
    let (server, state) = on_patch(|n, _, state| {
        (n == 0).then(|| {
            state.session = None;
            Reply::error(404, "BLOB_UPLOAD_UNKNOWN")
        })
    });
    expect_pushed(&server, &state, &bytes(35));
    assert_eq!(state.lock().unwrap().sessions, 2);
}

#[test]
fn a_session_that_is_lost_later_is_an_error_that_tells() {
    let (server, state) = on_patch(|n, _, state| {
        (n == 2).then(|| {
            state.session = None;
            Reply::error(404, "BLOB_UPLOAD_UNKNOWN")
        })
    });
    let error = push(&server, &bytes(35)).unwrap_err();
    assert!(matches!(error, Error::UploadLost { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("lost the upload") && text.contains("some/image"),
        "{text}"
    );
    assert_eq!(state.lock().unwrap().blob, None);
}

#[test]
fn a_registry_that_forgot_what_it_had_acknowledged_is_found_out() {
    let (server, state) = on_patch(|n, _, state| {
        (n == 2).then(|| {
            state.session.as_mut().unwrap().truncate(15);
            Reply::new(500)
        })
    });
    let error = push(&server, &bytes(35)).unwrap_err();
    assert!(matches!(error, Error::UploadLost { .. }), "{error}");
    assert!(error.to_string().contains("15 bytes"), "{error}");
    assert_eq!(state.lock().unwrap().blob, None);
}

#[test]
fn a_lost_answer_to_the_last_request_is_made_good_by_asking_for_the_blob() {
    for length in [8, 35] {
        let spoilt = Mutex::new(false);
        let (server, state) = registry(move |request, state| {
            let mut spoilt = spoilt.lock().unwrap();
            (request.method == "PUT" && !std::mem::replace(&mut *spoilt, true)).then(|| {
                answer(request, state);
                Reply::hang_up()
            })
        });
        let mut settings = settings();
        settings.retries = 1;
        expect_pushed(&server, &state, &bytes(length));
        assert_eq!(server.count("PUT"), 1);
    }
}

#[test]
fn a_refused_completion_is_tried_again() {
    for length in [8, 35] {
        let spoilt = Mutex::new(false);
        let (server, state) = registry(move |request, _| {
            let mut spoilt = spoilt.lock().unwrap();
            (request.method == "PUT" && !std::mem::replace(&mut *spoilt, true))
                .then(|| Reply::new(503))
        });
        expect_pushed(&server, &state, &bytes(length));
    }
}

#[test]
fn a_wrong_digest_is_the_registrys_word() {
    let (server, _) = registry(|_, _| None);
    let mut upload = server.repository().upload().unwrap();
    upload.write_all(&bytes(35)).unwrap();
    let error = upload.finish(Digest::of(b"other")).unwrap_err();
    assert!(error.to_string().contains("DIGEST_INVALID"), "{error}");
    assert_eq!(server.count("PUT"), 1);
    assert_eq!(server.count("DELETE"), 1);
}

#[test]
fn an_upload_that_is_dropped_is_given_up() {
    let (server, state) = registry(|_, _| None);
    let mut upload = server.repository().upload().unwrap();
    upload.write_all(&bytes(25)).unwrap();
    drop(upload);
    let state = state.lock().unwrap();
    assert!(state.session.is_none() && state.blob.is_none());
    assert_eq!(
        server.lines().last().unwrap(),
        "DELETE /v2/some/image/blobs/uploads/1"
    );
}

#[test]
fn a_cancelled_upload_ends_within_a_second_and_is_given_up() {
    let (server, state) = on_patch(|_, _, _| Some(Reply::new(202).delay(Duration::from_secs(3))));
    let cancel = Cancel::default();
    let repository = server.repository_with(Settings {
        cancel: cancel.clone(),
        ..settings()
    });
    let started = Instant::now();
    let canceller = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        cancel.cancel();
    });
    let mut upload = repository.upload().unwrap();
    let error = upload.write_all(&bytes(35)).unwrap_err();
    let inner = error.into_inner().unwrap().downcast::<Error>().unwrap();
    assert!(inner.is_cancelled(), "{inner}");
    assert!(started.elapsed() < Duration::from_millis(1300));
    canceller.join().unwrap();
    drop(upload);
    // The server handles the DELETE when it is done sleeping.
    let deadline = Instant::now() + Duration::from_secs(8);
    while state.lock().unwrap().session.is_some() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(state.lock().unwrap().session.is_none());
}

#[test]
fn a_blob_is_mounted_or_uploaded() {
    let mounted = Server::start(|_| Reply::new(201));
    let digest = Digest::of(b"x");
    assert!(
        mounted
            .repository()
            .mount_blob(&digest, "other/repo")
            .unwrap()
    );
    let request = &mounted.log()[0];
    assert_eq!(request.query("mount"), Some(&*digest.to_string()));
    assert_eq!(request.query("from"), Some("other/repo"));

    let (server, state) = registry(|_, _| None);
    let upload = server
        .repository()
        .mount_or_upload(&Digest::of(b"abc"), "other/repo");
    let mut upload = upload.unwrap().expect("a 202 is an upload");
    upload.write_all(b"abc").unwrap();
    upload.finish(Digest::of(b"abc")).unwrap();
    assert_eq!(state.lock().unwrap().blob.as_deref(), Some(&b"abc"[..]));
    assert_eq!(server.count("POST"), 1);

    let (server, _) = registry(|_, _| None);
    assert!(
        !server
            .repository()
            .mount_blob(&digest, "other/repo")
            .unwrap()
    );
    assert_eq!(server.count("DELETE"), 1, "the upload that began instead");

    let (server, _) = registry(|request, _| request.query("mount").map(|_| Reply::new(403)));
    assert!(
        !server
            .repository()
            .mount_blob(&digest, "other/repo")
            .unwrap()
    );
}

#[test]
fn segments_are_as_large_as_the_registry_asks() {
    let (server, state) = registry(|request, state| {
        (request.method == "POST")
            .then(|| answer(request, state).header("OCI-Chunk-Min-Length", 25))
    });
    expect_pushed(&server, &state, &bytes(35));
    assert_eq!(server.count("PATCH"), 2);
}

#[test]
fn an_upload_elsewhere_gets_no_credentials() {
    let (store, _) = registry(|_, _| None);
    let address = format!("http://{}/v2/some/image/blobs/uploads/1", store.host());
    let server = Server::start(move |request| {
        if request.header("authorization").is_none() {
            return Reply::new(401).header("WWW-Authenticate", "Basic realm=x");
        }
        Reply::new(202).header("Location", &address)
    });
    let repository = server.repository_with(Settings {
        credentials: registry::Credentials::Fixed {
            username: "user".to_owned(),
            password: registry::Secret::new("geheim"),
        },
        ..settings()
    });
    // The session that the address belongs to.
    let _session = store.repository().upload().unwrap();
    let mut upload = repository.upload().unwrap();
    upload.write_all(&bytes(25)).unwrap();
    upload.finish(Digest::of(&bytes(25))).unwrap();
    assert!(
        server
            .log()
            .iter()
            .any(|r| r.header("authorization").is_some())
    );
    assert!(store.count("PATCH") > 0);
    assert!(
        store
            .log()
            .iter()
            .all(|r| r.header("authorization").is_none())
    );
}

#[test]
fn a_manifest_is_put_and_its_digest_compared() {
    let lie = Digest::of(b"other");
    let server = Server::start(move |request| {
        let reply = Reply::new(201);
        match request.path().rsplit('/').next() {
            Some("lie") => reply.header("Docker-Content-Digest", lie),
            Some("subject") => reply.header("OCI-Subject", lie),
            Some("refused") => Reply::error(400, "MANIFEST_BLOB_UNKNOWN"),
            _ => reply,
        }
    });
    let repository = server.repository();
    let put = |reference| repository.put_manifest(reference, media::OCI_MANIFEST, b"{}");
    assert!(!put("tag").unwrap().subject_noted);
    assert!(put("subject").unwrap().subject_noted);
    assert!(matches!(
        put("lie").unwrap_err(),
        Error::DigestMismatch { .. }
    ));
    let error = put("refused").unwrap_err().to_string();
    assert!(error.contains("MANIFEST_BLOB_UNKNOWN"), "{error}");
    let request = &server.log()[0];
    assert_eq!(request.line(), "PUT /v2/some/image/manifests/tag");
    assert_eq!(request.header("content-type"), Some(media::OCI_MANIFEST));
    assert_eq!(request.body, b"{}");
}
