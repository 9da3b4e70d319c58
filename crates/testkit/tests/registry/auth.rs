//! Authentication, TLS, redirects.

use std::sync::Arc;
use std::time::Duration;

use testkit::registry::{Auth, Bearer, Ca, Host, Options, Registry, User};

use super::client::Client;
use super::{client, digest};

/// `me:secret` and `me:wrong`.
const GOOD: &str = "Basic bWU6c2VjcmV0";
const BAD: &str = "Basic bWU6d3Jvbmc=";

fn bearer(bearer: Bearer) -> Registry {
    Registry::start(Options {
        auth: Auth::Bearer(bearer),
        ..Options::default()
    })
}

fn me() -> Vec<User> {
    vec![User::new("me", "secret")]
}

fn token_server(registry: &Registry) -> Client {
    Client::new(&registry.host_of(Host::Token).expect("it has one"))
}

/// A token for a scope, by GET with good credentials.
fn token(registry: &Registry, scope: &str) -> String {
    let answer = token_server(registry)
        .with("Authorization", GOOD)
        .get(&format!("/token?service=registry.test&scope={scope}"))
        .is(200);
    answer.json()["token"].as_str().expect("a token").to_owned()
}

fn with_token(registry: &Registry, token: &str) -> Client {
    client(registry).with("Authorization", &format!("Bearer {token}"))
}

#[test]
fn basic_wants_name_and_password() {
    let limited = User::new("other", "word").may("a", &["pull"]);
    let registry = Registry::start(Options {
        auth: Auth::Basic(vec![me().remove(0), limited]),
        ..Options::default()
    });
    registry.put_blob("a", b"abc");
    let refused = client(&registry).get("/v2/").is(401);
    assert!(
        refused
            .header("www-authenticate")
            .starts_with("Basic realm=")
    );
    client(&registry)
        .with("Authorization", BAD)
        .get("/v2/")
        .is(401);
    client(&registry)
        .with("Authorization", GOOD)
        .get("/v2/")
        .is(200);
    let other = client(&registry).with("Authorization", "Basic b3RoZXI6d29yZA==");
    other.get("/v2/a/tags/list").is(200);
    other.post("/v2/a/blobs/uploads/", b"").is(403);
    let log = registry.requests();
    assert!(!log[0].authorised && !log[1].authorised && log[2].authorised);
    assert_eq!(log[1].authorization.as_deref(), Some("Basic"));
}

#[test]
fn bearer_wants_a_token_for_the_scope() {
    let registry = bearer(Bearer {
        users: me(),
        ..Bearer::default()
    });
    let blob = registry.put_blob("a", b"abc");
    let refused = client(&registry).get("/v2/").is(401);
    let url = registry.host_of(Host::Token).expect("it has one");
    assert_eq!(
        refused.header("www-authenticate"),
        format!(r#"Bearer realm="http://{url}/token",service="registry.test""#)
    );
    let target = format!("/v2/b/blobs/uploads/?mount={blob}&from=a");
    let refused = client(&registry).post(&target, b"").is(401);
    let challenge = refused.header("www-authenticate");
    assert!(
        challenge.ends_with(r#",scope="repository:b:pull,push repository:a:pull""#),
        "{challenge}"
    );
    let half = token(&registry, "repository:b:pull,push");
    with_token(&registry, &half).get("/v2/").is(200);
    let refused = with_token(&registry, &half).post(&target, b"").is(401);
    assert!(
        refused
            .header("www-authenticate")
            .ends_with(r#"error="insufficient_scope""#)
    );
    let both = token(&registry, "repository:b:pull,push&scope=repository:a:pull");
    with_token(&registry, &both).post(&target, b"").is(201);
    let manifest = format!("/v2/b/manifests/{}", digest(b""));
    with_token(&registry, &both).delete(&manifest).is(401);
    with_token(&registry, "nonsense").get("/v2/").is(401);
    client(&registry)
        .with("Authorization", GOOD)
        .get("/v2/")
        .is(401);
    registry.revoke_tokens();
    with_token(&registry, &both).get("/v2/").is(401);
}

#[test]
fn tokens_are_given_by_the_rights() {
    let registry = bearer(Bearer {
        users: vec![User::new("me", "secret").may("a", &["pull"])],
        anonymous_pull: true,
        ..Bearer::default()
    });
    registry.put_blob("a", b"abc");
    let pull = token(&registry, "repository:a:pull,push");
    with_token(&registry, &pull).get("/v2/a/tags/list").is(200);
    with_token(&registry, &pull)
        .post("/v2/a/blobs/uploads/", b"")
        .is(401);
    let tokens = token_server(&registry);
    let target = "/token?service=registry.test&scope=repository:a:pull,push";
    tokens
        .clone()
        .with("Authorization", BAD)
        .get(target)
        .is(401);
    tokens.get("/token?service=other").is(400);
    let answer = tokens.get(target).is(200).json();
    let anonymous = answer["token"].as_str().unwrap();
    with_token(&registry, anonymous)
        .get("/v2/a/tags/list")
        .is(200);
    with_token(&registry, anonymous)
        .post("/v2/a/blobs/uploads/", b"")
        .is(401);
}

#[test]
fn tokens_come_by_post_and_by_identity_tokens() {
    let registry = bearer(Bearer {
        users: me(),
        post_only: true,
        expires_in: Some(300),
        ..Bearer::default()
    });
    registry.put_blob("a", b"abc");
    let tokens = token_server(&registry);
    tokens.get("/token?service=registry.test").is(405);
    let tokens = tokens.with("Content-Type", "application/x-www-form-urlencoded");
    let form = "service=registry.test&client_id=tests&scope=repository%3Aa%3Apull";
    let post = |more: &str| tokens.post("/token", format!("{form}&{more}").as_bytes());
    post("grant_type=password&username=me&password=wrong").is(401);
    post("grant_type=refresh_token&refresh_token=nonsense").is(401);
    post("grant_type=other").is(400);
    tokens
        .post("/token", b"grant_type=password&username=me&password=secret")
        .is(400);
    let answer =
        post("grant_type=password&username=me&password=secret&access_type=offline").is(200);
    let answer = answer.json();
    assert_eq!(answer["expires_in"], 300);
    let given = [
        answer["refresh_token"].as_str().unwrap().to_owned(),
        registry.identity_token("me"),
    ];
    for identity in given {
        let more = format!("grant_type=refresh_token&refresh_token={identity}");
        let answer = post(&more).is(200).json();
        let access = answer["access_token"].as_str().unwrap();
        with_token(&registry, access).get("/v2/a/tags/list").is(200);
    }
}

#[test]
fn identity_tokens_come_by_get_too() {
    let registry = bearer(Bearer {
        users: me(),
        get_only: true,
        ..Bearer::default()
    });
    let tokens = token_server(&registry);
    tokens.post("/token", b"").is(404);
    let target = "/token?service=registry.test&offline_token=true";
    let answer = tokens
        .with("Authorization", GOOD)
        .get(target)
        .is(200)
        .json();
    assert!(answer["refresh_token"].is_string());
    assert!(answer.get("expires_in").is_none());
}

#[test]
fn tokens_expire_by_requests_and_by_time() {
    let registry = bearer(Bearer {
        users: me(),
        requests_per_token: Some(2),
        ..Bearer::default()
    });
    let client = with_token(&registry, &token(&registry, "repository:a:pull,push"));
    let at = client.post("/v2/a/blobs/uploads/", b"").is(202);
    let at = client.patch(at.header("location"), b"abc").is(202);
    let refused = client.patch(at.header("location"), b"def").is(401);
    assert!(
        refused
            .header("www-authenticate")
            .ends_with(r#"error="invalid_token""#)
    );
    let client = with_token(&registry, &token(&registry, "repository:a:pull,push"));
    client.patch(at.header("location"), b"def").is(202);

    let registry = bearer(Bearer {
        users: me(),
        expires_in: Some(1),
        ..Bearer::default()
    });
    let client = with_token(&registry, &token(&registry, "repository:a:pull"));
    client.get("/v2/").is(200);
    std::thread::sleep(Duration::from_millis(1050));
    client.get("/v2/").is(401);
}

#[test]
fn all_servers_speak_tls_under_one_authority() {
    let ca = Arc::new(Ca::new());
    let registry = Registry::start(Options {
        auth: Auth::Bearer(Bearer {
            users: me(),
            ..Bearer::default()
        }),
        tls: Some(Arc::clone(&ca)),
        redirect: Some(Duration::from_secs(60)),
        ..Options::default()
    });
    let bytes = testkit::noise(2, 300_000);
    let target = format!("/v2/a/blobs/{}", registry.put_blob("a", &bytes));
    assert!(registry.url().starts_with("https://"));
    let at = |host| Client::new(&registry.host_of(host).unwrap()).trusting(&ca.pem());
    let answer = at(Host::Token)
        .with("Authorization", GOOD)
        .get("/token?service=registry.test&scope=repository:a:pull")
        .is(200)
        .json();
    let token = format!("Bearer {}", answer["token"].as_str().unwrap());
    let moved = client(&registry)
        .with("Authorization", &token)
        .get(&target)
        .is(307);
    let location = moved.header("location");
    assert!(location.starts_with("https://"));
    let blob = at(Host::Storage).get(location).is(200);
    assert!(blob.complete && blob.body == bytes);
    // Neither plain HTTP nor another authority gets through.
    assert_eq!(Client::new(&registry.host()).get("/v2/").status, 0);
    let other = Client::new(&registry.host()).trusting(&Ca::new().pem());
    assert_eq!(other.get("/v2/").status, 0);
}

#[test]
fn the_storage_host_wants_a_good_url_and_no_credentials() {
    let registry = Registry::start(Options {
        redirect: Some(Duration::from_millis(300)),
        ..Options::default()
    });
    let target = format!("/v2/a/blobs/{}", registry.put_blob("a", b"abcdef"));
    let storage = Client::new(&registry.host_of(Host::Storage).unwrap());
    client(&registry).head(&target).is(200);
    let moved = client(&registry).get(&target).is(307);
    let location = moved.header("location");
    let part = storage
        .clone()
        .with("Range", "bytes=1-2")
        .get(location)
        .is(206);
    assert_eq!(part.body, b"bc");
    storage
        .get(&location.replace("expires=", "expires=9"))
        .is(403);
    assert!(registry.violations().is_empty());
    storage
        .clone()
        .with("Authorization", "Bearer x")
        .get(location)
        .is(400);
    assert_eq!(registry.violations().len(), 1);
    std::thread::sleep(Duration::from_millis(350));
    storage.get(location).is(403);
}
