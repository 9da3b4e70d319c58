//! Credentials, tokens and who gets them.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use base64::Engine;
use image::Digest;
use registry::{Client, Credentials, Error, Secret, Settings};

use crate::server::{Reply, Request, Server, bytes, settings};

fn fixed() -> Settings {
    Settings {
        credentials: Credentials::Fixed {
            username: "user".to_owned(),
            password: Secret::new("geheim"),
        },
        ..settings()
    }
}

fn basic() -> String {
    let pair = base64::engine::general_purpose::STANDARD.encode("user:geheim");
    format!("Basic {pair}")
}

fn docker(json: &str) -> (tempfile::TempDir, Settings) {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("config.json"), json).unwrap();
    let settings = Settings {
        credentials: Credentials::Docker {
            directory: directory.path().to_path_buf(),
        },
        ..settings()
    };
    (directory, settings)
}

/// A registry with its token server: tokens are `token-N`, and only those from `valid` on are good.
struct Guarded {
    server: Server,
    issued: Arc<AtomicUsize>,
    valid: Arc<AtomicUsize>,
}

impl Guarded {
    fn new(expires_in: u64, answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let issued = Arc::new(AtomicUsize::new(0));
        let valid = Arc::new(AtomicUsize::new(0));
        let (count, from) = (Arc::clone(&issued), Arc::clone(&valid));
        let server = Server::start(move |request| {
            if request.path() == "/token" {
                let n = count.fetch_add(1, Ordering::SeqCst);
                return Reply::new(200)
                    .delay(Duration::from_millis(50))
                    .body(format!(
                        r#"{{"token":"token-{n}","expires_in":{expires_in}}}"#
                    ));
            }
            let number = request
                .header("authorization")
                .and_then(|text| text.strip_prefix("Bearer token-")?.parse::<usize>().ok());
            if number.is_some_and(|n| n >= from.load(Ordering::SeqCst)) {
                return answer(request);
            }
            let host = request.header("host").unwrap();
            let challenge =
                format!(r#"Bearer realm="http://{host}/token",service="serv",scope="x""#);
            Reply::error(401, "UNAUTHORIZED").header("WWW-Authenticate", challenge)
        });
        Self {
            server,
            issued,
            valid,
        }
    }

    fn issued(&self) -> usize {
        self.issued.load(Ordering::SeqCst)
    }

    /// No token issued so far is good any more.
    fn revoke(&self) {
        self.valid.store(self.issued(), Ordering::SeqCst);
    }
}

/// Some registries answer 403 to a token that was good and has ended.
#[test]
fn a_token_that_is_forbidden_all_at_once_is_renewed_and_others_are_not() {
    let ended = Arc::new(AtomicUsize::new(0));
    let (until, issued) = (Arc::clone(&ended), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&issued);
    let server = Server::start(move |request| {
        if request.path() == "/token" {
            let n = count.fetch_add(1, Ordering::SeqCst);
            return Reply::new(200).body(format!(r#"{{"token":"token-{n}","expires_in":300}}"#));
        }
        let number = request
            .header("authorization")
            .and_then(|text| text.strip_prefix("Bearer token-")?.parse::<usize>().ok());
        match number {
            Some(n) if n >= until.load(Ordering::SeqCst) => Reply::new(200).body("{}"),
            Some(_) => Reply::error(403, "DENIED"),
            None => {
                let host = request.header("host").unwrap();
                let challenge = format!(r#"Bearer realm="http://{host}/token",service="s""#);
                Reply::error(401, "UNAUTHORIZED").header("WWW-Authenticate", challenge)
            }
        }
    });
    let repository = server.repository_with(fixed());
    repository.manifest("a").unwrap();
    ended.store(1, Ordering::SeqCst);
    repository.manifest("a").unwrap();
    assert_eq!(issued.load(Ordering::SeqCst), 2);
    // What no token opens is asked for once more, and not again and again.
    ended.store(usize::MAX, Ordering::SeqCst);
    for _ in 0..3 {
        let error = repository.manifest("a").unwrap_err();
        assert!(matches!(error, Error::Unauthorized { .. }), "{error}");
    }
    assert_eq!(issued.load(Ordering::SeqCst), 3);
}

#[test]
fn basic_credentials_are_sent_once_the_registry_wants_them() {
    let server = Server::start(|request| match request.header("authorization") {
        Some(text) if text == basic() => Reply::new(200).body("{}"),
        _ => Reply::error(401, "UNAUTHORIZED").header("WWW-Authenticate", "Basic realm=\"x\""),
    });
    let repository = server.repository_with(fixed());
    repository.manifest("a").unwrap();
    repository.manifest("b").unwrap();
    let sent: Vec<_> = server
        .log()
        .iter()
        .map(|r| r.header("authorization").is_some())
        .collect();
    assert_eq!(sent, [false, true, true]);
}

#[test]
fn wrong_credentials_are_tried_once_and_the_error_tells_where_they_came_from() {
    let refuse = |_: &Request| {
        Reply::error(401, "UNAUTHORIZED").header("WWW-Authenticate", "Basic realm=\"x\"")
    };
    let server = Server::start(refuse);
    let host = server.host();
    let auth = base64::engine::general_purpose::STANDARD.encode("user:geheim");
    let (directory, settings) = docker(&format!(r#"{{"auths":{{"{host}":{{"auth":"{auth}"}}}}}}"#));
    let error = server.repository_with(settings).manifest("a").unwrap_err();
    let text = format!("{error} {error:?}");
    assert!(matches!(error, Error::Unauthorized { .. }), "{text}");
    let source = format!(
        "auths in {}",
        directory.path().join("config.json").display()
    );
    for word in [&*source, &format!("docker login {host}"), "UNAUTHORIZED"] {
        assert!(text.contains(word), "{text}");
    }
    assert!(!text.contains("geheim") && !text.contains(&auth), "{text}");
    assert_eq!(server.log().len(), 2);

    let server = Server::start(refuse);
    let error = server.repository().manifest("a").unwrap_err().to_string();
    assert!(error.contains("no credentials"), "{error}");
    assert_eq!(server.log().len(), 1);
}

#[test]
fn a_token_is_asked_for_with_the_scopes_of_the_operation_and_kept() {
    let guarded = Guarded::new(300, |request| match request.method.as_str() {
        "POST" => Reply::new(201),
        _ => Reply::new(200).body("{}"),
    });
    let repository = guarded.server.repository_with(fixed());
    repository.manifest("a").unwrap();
    repository.manifest("b").unwrap();
    repository
        .mount_blob(&Digest::of(b""), "other/repo")
        .unwrap();
    assert_eq!(guarded.issued(), 2);
    let log = guarded.server.log();
    let tokens: Vec<_> = log.iter().filter(|r| r.path() == "/token").collect();
    assert_eq!(tokens[0].header("authorization"), Some(&*basic()));
    assert_eq!(tokens[0].query("service"), Some("serv"));
    assert!(
        tokens[0]
            .target
            .contains("scope=repository%3Asome%2Fimage%3Apull&scope=x&")
    );
    let mount =
        "scope=repository%3Asome%2Fimage%3Apull%2Cpush&scope=repository%3Aother%2Frepo%3Apull&";
    assert!(tokens[1].target.contains(mount), "{}", tokens[1].target);
}

#[test]
fn a_token_is_renewed_before_it_ends() {
    let guarded = Guarded::new(1, |_| Reply::new(200).body("{}"));
    let repository = guarded.server.repository();
    repository.manifest("a").unwrap();
    repository.manifest("b").unwrap();
    assert_eq!(guarded.issued(), 1);
    std::thread::sleep(Duration::from_millis(900));
    repository.manifest("c").unwrap();
    assert_eq!(guarded.issued(), 2);
    let refused = guarded
        .server
        .log()
        .iter()
        .filter(|r| r.path() != "/token")
        .count();
    assert_eq!(refused, 4, "one answer was a 401, the first");
}

#[test]
fn a_401_in_the_middle_of_a_push_renews_the_token_once_for_all() {
    const THREADS: usize = 6;
    let guarded = Guarded::new(300, |request| match request.method.as_str() {
        "POST" => Reply::new(202).header("Location", "/v2/some/image/blobs/uploads/1"),
        "PUT" => Reply::new(201),
        "DELETE" => Reply::new(204),
        // Enough for the client: all of it was taken.
        _ => Reply::new(202),
    });
    let repository = guarded.server.repository_with(fixed());
    let barrier = Barrier::new(THREADS);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let blob = bytes(45);
                let mut upload = repository.upload().unwrap();
                upload.write_all(&blob[..25]).unwrap();
                if barrier.wait().is_leader() {
                    assert_eq!(guarded.issued(), 1);
                    guarded.revoke();
                }
                barrier.wait();
                upload.write_all(&blob[25..]).unwrap();
                upload.finish(Digest::of(&blob)).unwrap();
            });
        }
    });
    assert_eq!(guarded.issued(), 2);
}

#[test]
fn a_registry_that_refuses_new_tokens_too_is_not_asked_forever() {
    let guarded = Guarded::new(300, |_| Reply::new(200));
    guarded.valid.store(usize::MAX, Ordering::SeqCst);
    let error = guarded.server.repository().manifest("a").unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error}");
    assert_eq!(guarded.issued(), 1);
    assert_eq!(guarded.server.log().len(), 3);
}

/// A registry whose token server answers as told.
fn with_token_server(token: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Server {
    Server::start(move |request| {
        if request.path() == "/token" {
            return token(request);
        }
        match request.header("authorization") {
            Some("Bearer good") => Reply::new(200).body("{}"),
            _ => {
                Reply::new(401).header("WWW-Authenticate", "Bearer realm=\"/token\",service=\"s\"")
            }
        }
    })
}

#[test]
fn a_token_server_that_knows_only_post_gets_one() {
    let server = with_token_server(|request| match request.method.as_str() {
        "POST" => Reply::new(200).body(r#"{"access_token":"good"}"#),
        _ => Reply::new(405),
    });
    server.repository_with(fixed()).manifest("a").unwrap();
    let log = server.log();
    let body = String::from_utf8(log[2].body.clone()).unwrap();
    assert_eq!(log[2].header("authorization"), None);
    for part in [
        "grant_type=password",
        "username=user",
        "password=geheim",
        "service=s",
        "scope=repository%3Asome%2Fimage%3Apull",
    ] {
        assert!(body.contains(part), "{body}");
    }
}

#[test]
fn an_identity_token_is_exchanged() {
    let server = with_token_server(|_| Reply::new(200).body(r#"{"access_token":"good"}"#));
    let host = server.host();
    let (_directory, settings) = docker(&format!(
        r#"{{"auths":{{"{host}":{{"identitytoken":"refresh-me"}}}}}}"#
    ));
    server.repository_with(settings).manifest("a").unwrap();
    let request = &server.log()[1];
    assert_eq!(request.line(), "POST /token");
    let body = String::from_utf8(request.body.clone()).unwrap();
    assert!(
        body.contains("grant_type=refresh_token&refresh_token=refresh-me"),
        "{body}"
    );
}

#[test]
fn a_token_servers_refusal_is_told_and_its_faults_are_tried_again() {
    let server = with_token_server(|_| {
        Reply::new(401).body(r#"{"details":"incorrect username or password"}"#)
    });
    let error = server
        .repository_with(fixed())
        .manifest("a")
        .unwrap_err()
        .to_string();
    assert!(error.contains("incorrect username or password"), "{error}");
    assert!(
        error.contains("docker login") && !error.contains("geheim"),
        "{error}"
    );

    let count = AtomicUsize::new(0);
    let server = with_token_server(move |_| match count.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::new(503),
        1 => Reply::hang_up(),
        _ => Reply::new(200).body(r#"{"token":"good"}"#),
    });
    server.repository_with(fixed()).manifest("a").unwrap();
}

#[test]
fn credentials_do_not_follow_to_another_host() {
    let elsewhere = Server::start(|_| Reply::new(200).body("{}"));
    let address = format!("http://{}/x?signature=s", elsewhere.host());
    let server = Server::start(move |request| {
        match (request.header("authorization").is_some(), request.path()) {
            (false, _) => Reply::new(401).header("WWW-Authenticate", "Basic"),
            (_, "/v2/some/image/manifests/a") => Reply::new(307).header("Location", &address),
            (_, "/v2/some/image/manifests/b") => Reply::new(302).header("Location", "/moved"),
            _ => Reply::new(200).body("{}"),
        }
    });
    let repository = server.repository_with(fixed());
    repository.manifest("a").unwrap();
    assert_eq!(elsewhere.log().len(), 1);
    assert_eq!(elsewhere.log()[0].header("authorization"), None);
    repository.manifest("b").unwrap();
    let moved = server.log().pop().unwrap();
    assert_eq!(moved.path(), "/moved");
    assert_eq!(moved.header("authorization"), Some(&*basic()));
}

#[test]
fn a_password_in_a_form_does_not_follow_to_another_host() {
    let elsewhere = Server::start(|_| Reply::new(200).body(r#"{"token":"good"}"#));
    let address = format!("http://{}/", elsewhere.host());
    let server = with_token_server(move |request| match request.method.as_str() {
        "POST" => Reply::new(307).header("Location", &address),
        _ => Reply::new(405),
    });
    let error = server.repository_with(fixed()).manifest("a").unwrap_err();
    assert!(error.to_string().contains("another host"), "{error}");
    assert_eq!(elsewhere.log().len(), 0);
}

#[test]
fn a_registry_is_described_without_its_secrets() {
    let guarded = Guarded::new(300, |_| Reply::new(200));
    let client = Client::new(fixed()).unwrap();
    let description = client.describe(&guarded.server.reference()).unwrap();
    assert_eq!(description.status, 401);
    assert_eq!(description.scheme, "http");
    assert_eq!(description.refused, None);
    assert!(description.has_credentials);
    let challenge = description.challenge.clone().unwrap();
    assert_eq!(challenge.scheme, "Bearer");
    assert_eq!(challenge.service.as_deref(), Some("serv"));
    assert!(!format!("{description:?}").contains("geheim"));

    let server = Server::start(|_| Reply::new(401).header("WWW-Authenticate", "Basic"));
    let client = Client::new(settings()).unwrap();
    let description = client.describe(&server.reference()).unwrap();
    assert!(description.refused.unwrap().contains("docker login"));
    assert!(!description.has_credentials);
}

#[test]
fn credentials_that_end_are_looked_up_again() {
    let good = Arc::new(std::sync::Mutex::new("first".to_owned()));
    let accepted = Arc::clone(&good);
    let server = Server::start(move |request| {
        let pair = format!("user:{}", accepted.lock().unwrap());
        let wanted = base64::engine::general_purpose::STANDARD.encode(pair);
        match request.header("authorization") {
            Some(text) if text == format!("Basic {wanted}") => Reply::new(200).body("{}"),
            _ => Reply::error(401, "UNAUTHORIZED").header("WWW-Authenticate", "Basic realm=\"x\""),
        }
    });
    let host = server.host();
    let config = |password: &str| {
        let auth = base64::engine::general_purpose::STANDARD.encode(format!("user:{password}"));
        format!(r#"{{"auths":{{"{host}":{{"auth":"{auth}"}}}}}}"#)
    };
    let (directory, settings) = docker(&config("first"));
    let repository = server.repository_with(settings);
    repository.manifest("a").unwrap();
    *good.lock().unwrap() = "second".to_owned();
    assert!(repository.manifest("a").is_err(), "the same is refused");
    std::fs::write(directory.path().join("config.json"), config("second")).unwrap();
    repository.manifest("a").unwrap();
    repository.manifest("b").unwrap();
    let last = server.log().pop().unwrap();
    assert!(
        last.header("authorization").is_some(),
        "found once, used again"
    );
}
