//! Referrers by the API and without it.

use std::collections::HashMap;
use std::sync::Mutex;

use image::{Descriptor, Digest, media};

use crate::server::{Reply, Server};

fn entry(name: &str) -> Descriptor {
    let mut entry = Descriptor::new(media::OCI_MANIFEST, Digest::of(name.as_bytes()), 7);
    entry.annotate("name", name);
    entry
}

fn index(entries: &[Descriptor]) -> Vec<u8> {
    let entries = serde_json::to_string(entries).unwrap();
    let kind = media::OCI_INDEX;
    format!(r#"{{"schemaVersion":2,"mediaType":"{kind}","manifests":{entries}}}"#).into_bytes()
}

#[test]
fn referrers_are_listed_over_all_pages() {
    let subject = Digest::of(b"subject");
    let server = Server::start(|request| {
        let reply = Reply::new(200).header("Content-Type", media::OCI_INDEX);
        match request.query("page") {
            None => reply
                .header("Link", "<?page=2>; rel=\"next\"")
                .body(index(&[entry("a")])),
            Some(_) => reply.body(index(&[entry("b")])),
        }
    });
    let repository = server.repository();
    assert_eq!(
        repository.referrers(&subject).unwrap(),
        [entry("a"), entry("b")]
    );
    assert!(repository.supports_referrers(&subject).unwrap());
    let path = format!("GET /v2/some/image/referrers/{subject}");
    assert_eq!(server.lines()[..2], [path.clone(), path]);
}

#[test]
fn without_the_api_an_index_stands_in_and_grows() {
    let subject = Digest::of(b"subject");
    let tags: Mutex<HashMap<String, Vec<u8>>> = Mutex::default();
    let server = Server::start(move |request| {
        let mut tags = tags.lock().unwrap();
        let path = request.path().to_owned();
        match request.method.as_str() {
            "PUT" => {
                tags.insert(path, request.body.clone());
                Reply::new(201)
            }
            _ => match tags.get(&path) {
                Some(body) => Reply::new(200)
                    .header("Content-Type", media::OCI_INDEX)
                    .body(body.clone()),
                None => Reply::error(404, "NOT_FOUND"),
            },
        }
    });
    let repository = server.repository();
    assert!(!repository.supports_referrers(&subject).unwrap());
    assert_eq!(repository.referrers(&subject).unwrap(), []);
    for name in ["a", "b", "a"] {
        repository.add_referrer(&subject, entry(name)).unwrap();
    }
    assert_eq!(
        repository.referrers(&subject).unwrap(),
        [entry("a"), entry("b")]
    );
    assert_eq!(server.count("PUT"), 2);
    let put = format!("PUT /v2/some/image/manifests/sha256-{}", subject.hex());
    assert!(server.lines().contains(&put));
}

#[test]
fn an_index_that_is_none_is_an_error() {
    let server = Server::start(|request| match request.path().contains("/referrers/") {
        true => Reply::new(404),
        false => Reply::new(200).body("[]"),
    });
    let error = server.repository().referrers(&Digest::of(b"")).unwrap_err();
    assert!(error.to_string().contains("no index"), "{error}");
}
