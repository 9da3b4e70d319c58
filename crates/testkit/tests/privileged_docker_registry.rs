//! Debian's docker-registry, and the test registry beside it: what they have in common has to be the same.

#[allow(dead_code)]
#[path = "registry/client.rs"]
mod client;

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use client::{Answer, Client};
use testkit::docker_registry::{DockerRegistry, Options, no_docker_registry};
use testkit::registry::{Ca, Registry};

/// `me:secret` and `me:wrong`.
const GOOD: &str = "Basic bWU6c2VjcmV0";
const BAD: &str = "Basic bWU6d3Jvbmc=";

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn skipped(name: &str) -> bool {
    let why = no_docker_registry();
    if let Some(why) = why {
        testkit::skip(name, why);
    }
    why.is_some()
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", testkit::sha256(bytes))
}

/// What of an answer clients go by.
fn gist(answer: &Answer) -> String {
    let code = match answer.status {
        400.. if !answer.body.is_empty() => answer.json()["errors"][0]["code"].to_string(),
        _ => String::new(),
    };
    let headers = [
        "range",
        "content-range",
        "docker-content-digest",
        "accept-ranges",
    ];
    let shown: Vec<&str> = headers.iter().map(|name| answer.header(name)).collect();
    let has_location = !answer.header("location").is_empty();
    format!("{} {code} {shown:?} {has_location}", answer.status)
}

/// Talks a client's whole way through; what came back, with the name of the step.
fn conversation(client: &Client) -> Vec<String> {
    let mut out = Vec::new();
    let mut note = |step: &str, answer: Answer| {
        out.push(format!("{step}: {}", gist(&answer)));
        answer.header("location").to_owned()
    };
    note("base", client.get("/v2/"));
    let blob = digest(b"abcdef");
    let absent = digest(b"absent");
    note("no blob", client.head(&format!("/v2/a/b/blobs/{absent}")));
    let at = note("open", client.post("/v2/a/b/blobs/uploads/", b""));
    let stale = at.clone();
    let at = note(
        "segment",
        client
            .clone()
            .with("Content-Range", "0-2")
            .patch(&at, b"abc"),
    );
    note("stale status", client.get(&stale));
    note("stale segment", client.patch(&stale, b"abc"));
    note("stale deletion", client.delete(&stale));
    let form = client.clone().with("Content-Type", "text/plain");
    note("segment of text", form.patch(&at, b"de"));
    let at = note("status", client.get(&at));
    let at = note("plain segment", client.patch(&at, b"de"));
    note("end", client.put(&format!("{at}&digest={blob}"), b"f"));
    note("ended", client.get(&at));
    let target = format!("/v2/a/b/blobs/{blob}");
    note("blob", client.get(&target));
    note("blob's head", client.head(&target));
    for range in ["bytes=1-2", "bytes=4-", "bytes=-2", "bytes=6-9"] {
        let answer = client.clone().with("Range", range).get(&target);
        // The code in the body of a 416 is the file server's, not a registry's.
        out_of(&mut note, range, answer);
    }
    let at = note("open again", client.post("/v2/a/b/blobs/uploads/", b""));
    note(
        "wrong end",
        client.put(&format!("{at}&digest={absent}"), b"abc"),
    );
    note("wrongly ended", client.get(&at));
    let at = note("open to delete", client.post("/v2/a/b/blobs/uploads/", b""));
    note("delete upload", client.delete(&at));
    note("deleted", client.patch(&at, b"abc"));
    let mount = |digest: &str| format!("/v2/c/blobs/uploads/?mount={digest}&from=a/b");
    note("mount", client.post(&mount(&blob), b""));
    note("mount nothing", client.post(&mount(&absent), b""));
    let manifest = |digest: &str| {
        let part = |kind: &str| {
            serde_json::json!({
                "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest, "size": 6,
            })
        };
        let (config, layer) = (part("config.v1+json"), part("layer.v1.tar"));
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer],
        });
        manifest.to_string().into_bytes()
    };
    let typed = client
        .clone()
        .with("Content-Type", MANIFEST)
        .with("Accept", MANIFEST);
    let answer = client.get(&format!("/v2/a/b/referrers/{blob}"));
    out_of(&mut note, "no referrers", answer);
    note("no tags", client.get("/v2/none/tags/list"));
    note(
        "lacking",
        typed.put("/v2/a/b/manifests/x", &manifest(&absent)),
    );
    let good = manifest(&blob);
    note("manifest", typed.put("/v2/a/b/manifests/x", &good));
    let by_digest = format!("/v2/a/b/manifests/{}", digest(&good));
    note(
        "wrong reference",
        typed.put(&by_digest, &manifest(&digest(b"abcdeg"))),
    );
    note("by tag", typed.get("/v2/a/b/manifests/x"));
    note("by digest", typed.head(&by_digest));
    note("unknown", typed.get("/v2/a/b/manifests/y"));
    note(
        "not accepted",
        client
            .clone()
            .with("Accept", "a/b")
            .get("/v2/a/b/manifests/x"),
    );
    note("tags", client.get("/v2/a/b/tags/list"));
    note("delete", client.delete(&by_digest));
    note("gone", typed.get("/v2/a/b/manifests/x"));
    note("delete blob", client.delete(&target));
    note("blob gone", client.get(&target));
    out
}

/// Notes an answer without what stands in its body.
fn out_of(note: &mut impl FnMut(&str, Answer) -> String, step: &str, mut answer: Answer) {
    answer.body.clear();
    note(step, answer);
}

#[test]
fn both_registries_answer_alike() {
    if skipped("both_registries_answer_alike") {
        return;
    }
    let real = DockerRegistry::start(Options::default());
    let ours = Registry::start(testkit::registry::Options::debian());
    let want = conversation(&Client::new(real.host()));
    let have = conversation(&Client::new(&ours.host()));
    for (want, have) in want.iter().zip(&have) {
        assert_eq!(want, have, "theirs, ours");
    }
    assert_eq!(want.len(), have.len());
    assert_eq!(real.open_uploads() as u64, ours.counters().open_uploads);
}

#[test]
fn the_real_one_appends_a_segment_again() {
    if skipped("the_real_one_appends_a_segment_again") {
        return;
    }
    let real = DockerRegistry::start(Options::default());
    let ours = Registry::start(testkit::registry::Options::debian());
    for host in [real.host(), &ours.host()] {
        let client = Client::new(host).with("Content-Range", "0-2");
        let at = client.post("/v2/a/blobs/uploads/", b"").is(202);
        let first = client.patch(at.header("location"), b"abc").is(202);
        let second = client.patch(first.header("location"), b"abc").is(202);
        assert_eq!(second.header("range"), "0-5", "{host}");
    }
}

/// Whoever is cut off in a segment cannot go on: only a URL of before is known, and that is good for nothing.
#[test]
fn an_upload_that_was_cut_is_lost() {
    if skipped("an_upload_that_was_cut_is_lost") {
        return;
    }
    let real = DockerRegistry::start(Options::default());
    let ours = Registry::start(testkit::registry::Options::debian());
    for host in [real.host(), &ours.host()] {
        let client = Client::new(host);
        let at = client.post("/v2/a/blobs/uploads/", b"").is(202);
        let at = at.header("location");
        let target = &at[at.find("/v2/").unwrap()..];
        let text = format!("PATCH {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\nabc");
        let mut socket = TcpStream::connect(host).unwrap();
        socket.write_all(text.as_bytes()).unwrap();
        drop(socket);
        let started = Instant::now();
        let mut status = 204;
        while status == 204 && started.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(20));
            status = client.get(at).status;
        }
        assert_eq!(status, 404, "{host}");
        client.delete(at).is(404);
    }
    assert_eq!((real.open_uploads(), ours.counters().open_uploads), (1, 1));
}

#[test]
fn it_asks_for_a_password() {
    if skipped("it_asks_for_a_password") {
        return;
    }
    let registry = DockerRegistry::start(Options {
        basic: Some(("me", "secret")),
        ..Options::default()
    });
    let client = Client::new(registry.host());
    let refused = client.get("/v2/").is(401);
    assert!(refused.header("www-authenticate").starts_with("Basic "));
    client
        .clone()
        .with("Authorization", BAD)
        .get("/v2/")
        .is(401);
    client.with("Authorization", GOOD).get("/v2/").is(200);
}

#[test]
fn it_speaks_tls_under_our_authority() {
    if skipped("it_speaks_tls_under_our_authority") {
        return;
    }
    let ca = Ca::new();
    let registry = DockerRegistry::start(Options {
        tls: Some(&ca),
        ..Options::default()
    });
    Client::new(registry.host())
        .trusting(&ca.pem())
        .get("/v2/")
        .is(200);
    let other = Client::new(registry.host()).trusting(&Ca::new().pem());
    assert_eq!(other.get("/v2/").status, 0);
}

#[test]
fn its_processor_time_is_known_and_it_ends() {
    if skipped("its_processor_time_is_known_and_it_ends") {
        return;
    }
    let registry = DockerRegistry::start(Options::default());
    let client = Client::new(registry.host());
    let before = registry.cpu_time();
    let bytes = testkit::noise(5, 20 << 20);
    let at = client.post("/v2/a/blobs/uploads/", b"").is(202);
    let end = format!("{}&digest={}", at.header("location"), digest(&bytes));
    client.put(&end, &bytes).is(201);
    assert!(registry.cpu_time() > before + Duration::from_millis(10));
    let host = registry.host().to_owned();
    drop(registry);
    assert_eq!(Client::new(&host).get("/v2/").status, 0);
}
