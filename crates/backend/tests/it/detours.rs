//! Mirrors and proxies on the way to a backend.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backend::{Blobs, open_source};
use image::Digest;
use serde_json::{Value, json};
use storage::BlobSource as _;
use testkit::bucket::Bucket;
use testkit::noise;
use testkit::registry::{Auth, Ca, Fault, Faults, Options, Registry, User};

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

/// A storage host without TLS that has one blob; the heads of the requests go to the list.
fn peer(bytes: Vec<u8>, heads: Arc<Mutex<Vec<String>>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (mut client, mut head) = (client.unwrap(), String::new());
            let mut lines = BufReader::new(client.try_clone().unwrap());
            while !head.ends_with("\r\n\r\n") && lines.read_line(&mut head).unwrap_or(0) > 0 {}
            let range = head
                .lines()
                .find_map(|line| line.strip_prefix("range: bytes="));
            let (start, end) = range.and_then(|range| range.split_once('-')).unwrap();
            let (start, end): (usize, usize) = (start.parse().unwrap(), end.parse().unwrap());
            let answer = format!(
                "HTTP/1.1 206 Partial\r\nContent-Length: {}\r\nContent-Range: bytes {start}-{end}/{}\r\n\
                 Connection: close\r\n\r\n",
                end + 1 - start,
                bytes.len()
            );
            heads.lock().unwrap().push(head);
            let _ = client.write_all(answer.as_bytes());
            let _ = client.write_all(&bytes[start..=end]);
        }
    });
    address
}

#[test]
fn blobs_are_fetched_where_the_configuration_says_that_redirects_lead() {
    let bytes = noise(8, 100_000);
    let id = Digest::of(&bytes).hex();
    let registry = Registry::start(Options {
        tls: Some(Arc::new(Ca::new())),
        auth: Auth::Basic(vec![User::new("me", "sesame")]),
        redirect: Some(Duration::from_secs(60)),
        ..Options::default()
    });
    registry.put_blob(REPOSITORY, &bytes);
    let heads = Arc::new(Mutex::new(Vec::new()));
    let peer = peer(bytes.clone(), Arc::clone(&heads));
    let mut config = json!({
        "host": registry.host(), "repo": REPOSITORY, "skip_verify": true,
        "auth": "bWU6c2VzYW1l",
    });
    let open = |config: &Value| open_source("registry", &config.to_string(), &settings(), None);
    read_all(&open(&config).unwrap(), &id, &bytes);
    assert!(heads.lock().unwrap().is_empty());

    config["blob_url_scheme"] = "http".into();
    config["blob_redirected_host"] = peer.clone().into();
    let blob = open(&config).unwrap().open(&id).unwrap();
    let mut buf = vec![0; 1000];
    for _ in 0..2 {
        blob.read_exact_at(&mut buf, 500).unwrap();
        assert!(buf == bytes[500..1500]);
    }
    let heads = heads.lock().unwrap();
    assert_eq!(heads.len(), 2);
    for head in &*heads {
        assert!(
            head.starts_with(&format!("GET /{id}?repository=")),
            "{head}"
        );
        assert!(head.contains(&format!("host: {peer}")), "{head}");
        assert!(!head.contains("authorization"), "{head}");
    }
}
