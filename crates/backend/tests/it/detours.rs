//! Mirrors and proxies on the way to a backend.

use std::path::Path;
use std::time::Duration;

use backend::{Blobs, open_source};
use image::Digest;
use serde_json::{Value, json};
use storage::BlobSource as _;
use testkit::bucket::Bucket;
use testkit::noise;
use testkit::registry::{Auth, Fault, Faults, Options, Registry, User};

use crate::support::{Mood, Relay, open, read_all, settings, stream, write};

const REPOSITORY: &str = "a/b";

fn blobs(registry: &Registry, dir: Option<&Path>, more: Value) -> Blobs {
    let mut config = json!({"host": registry.host(), "repo": REPOSITORY, "scheme": "http"});
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    open_source("registry", &config.to_string(), &settings(), dir).unwrap()
}

/// A registry that has this blob.
fn registry(bytes: &[u8]) -> Registry {
    let registry = Registry::new();
    registry.put_blob(REPOSITORY, bytes);
    registry
}

fn list(dir: &Path, origin: &Registry, text: &str) {
    let own = dir.join(format!("{}_", origin.host().replace(':', "_")));
    std::fs::create_dir_all(&own).unwrap();
    std::fs::write(own.join("hosts.toml"), text).unwrap();
    // As long as a list may be used that has changed.
    std::thread::sleep(Duration::from_millis(1100));
}

#[test]
fn a_list_of_mirrors_may_change_at_any_time() {
    let bytes = noise(1, 100_000);
    let id = Digest::of(&bytes).hex();
    let [origin, first, second] = [(); 3].map(|()| registry(&bytes));
    let dir = tempfile::tempdir().unwrap();
    let blobs = blobs(&origin, Some(dir.path()), json!({}));
    let served = || [&origin, &first, &second].map(|one| one.take_blob_reads() > 0);
    read_all(&blobs, &id, &bytes);
    assert_eq!(served(), [true, false, false], "none are listed");
    list(dir.path(), &origin, &format!("[host.\"{}\"]", first.url()));
    read_all(&blobs, &id, &bytes);
    assert_eq!(served(), [false, true, false]);
    let both = format!("[host.\"{}\"]\n[host.\"{}\"]", second.url(), first.url());
    list(dir.path(), &origin, &both);
    read_all(&blobs, &id, &bytes);
    assert_eq!(served(), [false, false, true]);
    list(
        dir.path(),
        &origin,
        &format!("{both}\nfailure_limit = \"x\""),
    );
    read_all(&blobs, &id, &bytes);
    assert_eq!(
        served(),
        [false, false, true],
        "what was known still counts"
    );
    second.down();
    read_all(&blobs, &id, &bytes);
    assert_eq!(served(), [false, true, false]);
    list(dir.path(), &origin, "");
    read_all(&blobs, &id, &bytes);
    assert_eq!(served(), [true, false, false]);
}

#[test]
fn mirrors_that_fail_lie_or_have_nothing_cost_no_read() {
    let bytes = noise(2, 200_000);
    let id = Digest::of(&bytes).hex();
    let origin = registry(&bytes);
    for (faults, tries) in [
        (Faults::of(1, 1.0, &[Fault::TooMany]).retry_after(30), 5),
        (Faults::of(1, 1.0, &[Fault::NotFound]), 1),
        (Faults::of(1, 1.0, &[Fault::CorruptBody]), 1),
        (
            Faults::of(1, 0.5, &[Fault::CutBody, Fault::ServerError]),
            40,
        ),
        (Faults::of(1, 1.0, &[Fault::WrongContentRange]), 10),
    ] {
        let mirror = registry(&bytes);
        mirror.set_faults(faults.clone());
        let dir = tempfile::tempdir().unwrap();
        list(dir.path(), &origin, &format!("[host.\"{}\"]", mirror.url()));
        let blobs = blobs(&origin, Some(dir.path()), json!({}));
        let begun = std::time::Instant::now();
        for _ in 0..10 {
            read_all(&blobs, &id, &bytes);
        }
        let seen = mirror.take_blob_reads();
        assert!((1..=tries).contains(&seen), "{faults:?}: {seen}");
        assert!(begun.elapsed() < Duration::from_secs(10), "{faults:?}");
    }
}

#[test]
fn mirrors_get_headers_and_no_credentials_but_their_own() {
    let bytes = noise(3, 10_000);
    let id = Digest::of(&bytes).hex();
    let origin = Registry::start(Options {
        auth: Auth::Basic(vec![User::new("me", "sesame")]),
        ..Options::default()
    });
    origin.put_blob(REPOSITORY, &bytes);
    let relay = Relay::start();
    let auth = json!({"auth": "bWU6c2VzYW1l"});
    // Any other mirror is a registry of its own, also one that would take the same password.
    let mirror = Registry::start(Options {
        auth: Auth::Basic(vec![User::new("me", "sesame")]),
        ..Options::default()
    });
    mirror.put_blob(REPOSITORY, &bytes);
    let dir = tempfile::tempdir().unwrap();
    list(dir.path(), &origin, &format!("[host.\"{}\"]", mirror.url()));
    for through in [
        json!([]),
        json!([{"host": mirror.url(), "auth_through": true}]),
    ] {
        let mut config = auth.clone();
        config["mirrors"] = through;
        read_all(&blobs(&origin, Some(dir.path()), config), &id, &bytes);
        let seen = mirror.requests();
        mirror.forget_requests();
        assert!(!seen.is_empty());
        assert!(seen.iter().all(|request| request.authorization.is_none()));
    }
    // A peer of Dragonfly is shown what the registry wants to see.
    let dir = tempfile::tempdir().unwrap();
    let header = format!("header = {{ X-Dragonfly-Registry = \"{}\" }}", origin.url());
    list(
        dir.path(),
        &origin,
        &format!("[host.\"{}\"]\n{header}", relay.url()),
    );
    let through = blobs(&origin, Some(dir.path()), auth.clone());
    read_all(&through, &id, &bytes);
    let heads = relay.heads();
    assert!(heads.len() >= 2 && heads.last().unwrap().contains("authorization: Basic"));
    let ns = format!("?ns={}", origin.host().replace(':', "%3A"));
    assert!(heads[0].contains(&ns), "{}", heads[0]);
    // The same by the configuration.
    let mirrors = json!([{"host": relay.url(), "headers": {"X-Dragonfly-Registry": origin.url()},
        "ping_url": format!("{}/ping", relay.url())}]);
    let mut config = auth.clone();
    config["mirrors"] = mirrors;
    read_all(&blobs(&origin, None, config), &id, &bytes);
    assert!(
        relay
            .heads()
            .last()
            .unwrap()
            .contains("authorization: Basic")
    );
}

#[test]
fn a_mirror_that_is_not_well_is_asked_again_after_a_while() {
    let bytes = noise(4, 10_000);
    let id = Digest::of(&bytes).hex();
    let (origin, mirror, relay) = (registry(&bytes), registry(&bytes), Relay::start());
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        "[host.\"{}\"]\nping_url = \"{}/ping\"\nhealth_check_interval = 1",
        mirror.url(),
        relay.url()
    );
    relay.be(Mood::Ill);
    list(dir.path(), &origin, &text);
    let blobs = blobs(&origin, Some(dir.path()), json!({}));
    let served = || [&origin, &mirror].map(|one| one.take_blob_reads() > 0);
    read_all(&blobs, &id, &bytes);
    assert_eq!(served(), [true, false]);
    relay.be(Mood::Well);
    let well = (0..50).any(|_| {
        std::thread::sleep(Duration::from_millis(100));
        read_all(&blobs, &id, &bytes);
        served() == [false, true]
    });
    assert!(well);
    relay.be(Mood::Ill);
    let ill = (0..50).any(|_| {
        std::thread::sleep(Duration::from_millis(100));
        read_all(&blobs, &id, &bytes);
        served() == [true, false]
    });
    assert!(ill);
}

#[test]
fn a_proxy_is_asked_first_and_the_host_itself_for_what_it_fails_to_give() {
    let bytes = noise(5, 300_000);
    let id = Digest::of(&bytes).hex();
    let proxy = |relay: &Relay, fallback: bool| json!({"url": relay.url(), "ping_url": format!("{}/ping", relay.url()), "fallback": fallback});
    for store in [Some(Bucket::s3()), Some(Bucket::oss()), None] {
        let origin = registry(&bytes);
        let open = |config: Value| match &store {
            Some(store) => {
                let mut all: Value = serde_json::from_str(&store.config("p/")).unwrap();
                all["proxy"] = config;
                open_source(store.kind(), &all.to_string(), &settings(), None).unwrap()
            }
            None => blobs(&origin, None, json!({"proxy": config})),
        };
        let asked = || match &store {
            Some(store) => store
                .requests()
                .iter()
                .filter(|line| line.starts_with("GET "))
                .count(),
            None => origin.take_blob_reads(),
        };
        if let Some(store) = &store {
            write(&open_bucket(store).target(false), &bytes).unwrap();
        }
        for (mood, fallback, by_proxy) in [
            (Mood::Well, true, true),
            (Mood::Lying, true, true),
            (Mood::Failing, true, true),
            (Mood::Ill, true, false),
            (Mood::Well, false, true),
        ] {
            let relay = Relay::start();
            relay.be(mood);
            asked();
            let blobs = open(proxy(&relay, fallback));
            read_all(&blobs, &id, &bytes);
            let through = relay
                .heads()
                .iter()
                .filter(|head| head.starts_with("GET "))
                .count();
            assert_eq!(through > 0, by_proxy, "{mood:?}");
            assert!(asked() >= 2, "{mood:?}");
            let blob = blobs.open(&id).unwrap();
            assert!(
                mood == Mood::Lying || stream(blob, 7) == bytes[7..],
                "{mood:?}"
            );
        }
        let relay = Relay::start();
        relay.be(Mood::Failing);
        assert!(open(proxy(&relay, false)).open(&id).is_err());
    }
}

fn open_bucket(store: &Bucket) -> backend::Backend {
    open(store, "p/")
}

#[test]
fn a_mirror_of_a_bucket_passes_on_what_is_signed() {
    let bytes = noise(6, 50_000);
    let id = Digest::of(&bytes).hex();
    for store in [Bucket::s3(), Bucket::oss()] {
        write(&open_bucket(&store).target(false), &bytes).unwrap();
        let relay = Relay::start();
        let mut config: Value = serde_json::from_str(&store.config("p/")).unwrap();
        let origin = format!("http://{}", config["endpoint"].as_str().unwrap());
        config["mirrors"] =
            json!([{"host": relay.url(), "headers": {"X-Dragonfly-Registry": origin}}]);
        let blobs = open_source(store.kind(), &config.to_string(), &settings(), None).unwrap();
        read_all(&blobs, &id, &bytes);
        assert_eq!(relay.heads().len(), 2);
        relay.be(Mood::Lying);
        read_all(&blobs, &id, &bytes);
        assert_eq!(relay.heads().len(), 1, "it is not asked again");
    }
}
