//! Attempts, time limits, TLS and proxies.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use image::Digest;
use progress::Cancel;
use registry::{Client, Error, Proxy, Reference, Settings};

use crate::server::{Reply, Server, certificate, settings};

#[test]
fn what_may_pass_is_tried_again_and_what_may_not_is_not() {
    for (status, attempts) in [
        (500, 4),
        (503, 4),
        (429, 4),
        (408, 4),
        (400, 1),
        (404, 1),
        (501, 1),
    ] {
        let server = Server::start(move |_| Reply::new(status));
        let error = server.repository().manifest("a").unwrap_err().to_string();
        assert!(error.contains(&status.to_string()), "{error}");
        assert_eq!(server.log().len(), attempts, "{status}");
    }
    let server = Server::start(|_| Reply::hang_up());
    let error = server.repository().manifest("a").unwrap_err();
    assert!(matches!(error, Error::Connection { .. }), "{error}");
    assert_eq!(server.log().len(), 4);
}

#[test]
fn the_pause_that_a_registry_asks_for_is_kept() {
    let count = AtomicUsize::new(0);
    let server = Server::start(move |_| match count.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::new(429).header("Retry-After", "1"),
        _ => Reply::new(200).body("{}"),
    });
    let started = Instant::now();
    server.repository().manifest("a").unwrap();
    let took = started.elapsed().as_secs_f64();
    assert!((1.0..3.0).contains(&took), "{took}");
}

#[test]
fn a_dead_host_is_not_hammered_by_many_operations() {
    let server = Server::start(|_| Reply::hang_up());
    let repository = server.repository();
    for _ in 0..20 {
        repository.manifest("a").unwrap_err();
    }
    let attempts = server.log().len();
    assert!(
        (40..50).contains(&attempts),
        "20 and the budget of 20: {attempts}"
    );
}

#[test]
fn everything_ends_within_a_second_of_being_told_to() {
    let server = Server::start(|request| match request.path() {
        "/v2/some/image/manifests/slow" => Reply::new(200).delay(Duration::from_secs(3)),
        "/v2/some/image/manifests/wait" => Reply::new(503).header("Retry-After", "30"),
        // A blob that never comes.
        _ => Reply::new(200).header("Content-Length", 1000).body("x"),
    });
    let run = |work: &dyn Fn(&registry::Repository) -> Error| {
        let cancel = Cancel::default();
        let repository = server.repository_with(Settings {
            cancel: cancel.clone(),
            ..settings()
        });
        let canceller = thread::spawn(move || {
            thread::sleep(Duration::from_millis(200));
            cancel.cancel();
        });
        let started = Instant::now();
        let error = work(&repository);
        assert!(error.is_cancelled(), "{error}");
        assert!(started.elapsed() < Duration::from_millis(1200));
        canceller.join().unwrap();
    };
    run(&|repository| repository.manifest("slow").unwrap_err());
    run(&|repository| repository.manifest("wait").unwrap_err());
    run(&|repository| {
        let digest = Digest::of(b"");
        let mut stream = repository.open_blob(&digest, 1000, 0).unwrap();
        let error = std::io::read_to_string(&mut stream).unwrap_err();
        *error.into_inner().unwrap().downcast().unwrap()
    });
    run(&|repository| {
        let digest = Digest::of(b"");
        repository
            .read_range(&digest, 0, &mut [0; 1000])
            .unwrap_err()
    });
}

#[test]
fn a_registry_that_does_not_answer_is_given_up() {
    let server = Server::start(|_| Reply::new(200).delay(Duration::from_secs(2)));
    let repository = server.repository_with(Settings {
        stall_timeout: Duration::from_millis(100),
        retries: 1,
        ..settings()
    });
    let error = repository.manifest("a").unwrap_err();
    assert!(matches!(error, Error::Stalled { .. }), "{error}");
    assert_eq!(server.log().len(), 2);
}

/// TLS first, as without `--plain-http`.
fn tls() -> Settings {
    Settings {
        plain_http: false,
        ..settings()
    }
}

#[test]
fn a_registry_without_tls_is_spoken_to_plainly() {
    let server = Server::start(|request| match request.method.as_str() {
        "GET" => Reply::new(200).body("{}"),
        _ => Reply::new(400),
    });
    let repository = server.repository_with(tls());
    repository.manifest("a").unwrap();
    repository.manifest("b").unwrap();
    let good = server
        .lines()
        .iter()
        .filter(|line| line.starts_with("GET /v2/"))
        .count();
    assert_eq!(good, 2);
}

#[test]
fn a_registry_that_is_not_there_is_named_with_the_first_fault() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap();
    drop(listener);
    let reference: Reference = format!("{host}/a").parse().unwrap();
    let repository = Client::new(tls()).unwrap().repository(&reference);
    let error = repository.manifest("a").unwrap_err();
    assert!(matches!(error, Error::Connection { .. }), "{error:?}");
    assert!(error.to_string().contains(&host.to_string()), "{error}");
}

#[test]
fn a_certificate_counts_when_its_authority_is_named_or_checks_are_off() {
    for (name, authority) in [
        ("server", "authority.pem"),
        ("self-signed", "self-signed.pem"),
    ] {
        let server = Server::start_tls(name, |_| Reply::new(200).body("{}"));
        let error = server.repository_with(tls()).manifest("a").unwrap_err();
        assert!(matches!(error, Error::Certificate { .. }), "{error:?}");
        assert!(error.to_string().contains("--insecure"), "{error}");
        assert_eq!(server.log().len(), 0, "never plainly, once it spoke TLS");
        for settings in [
            Settings {
                ca_files: vec![certificate(authority)],
                ..tls()
            },
            Settings {
                insecure: true,
                ..tls()
            },
        ] {
            server.repository_with(settings).manifest("a").unwrap();
        }
        assert_eq!(server.log().len(), 2);
        // The other one's authority says nothing.
        let other = if name == "server" {
            "self-signed.pem"
        } else {
            "authority.pem"
        };
        let settings = Settings {
            ca_files: vec![certificate(other)],
            ..tls()
        };
        server.repository_with(settings).manifest("a").unwrap_err();
    }
}

#[test]
fn a_bad_bundle_is_named() {
    for name in ["none.pem", "server.key"] {
        let error = Client::new(Settings {
            ca_files: vec![certificate(name)],
            ..tls()
        })
        .unwrap_err();
        assert!(matches!(error, Error::CaFile { .. }), "{error}");
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn a_proxy_is_used_with_its_password_except_where_it_is_not_to_be() {
    let proxy = Server::start(|_| Reply::new(200).body("{}"));
    let get = |exceptions: &str| {
        let client = Client::new(Settings {
            retries: 0,
            connect_timeout: Duration::from_millis(500),
            proxy: Proxy {
                http: Some(format!("http://me:pw@{}", proxy.host())),
                https: None,
                exceptions: Some(exceptions.to_owned()),
                ..Proxy::default()
            },
            ..settings()
        });
        let reference: Reference = "registry.invalid/a".parse().unwrap();
        client.unwrap().repository(&reference).manifest("a")
    };
    get("").unwrap();
    let request = &proxy.log()[0];
    assert_eq!(request.target, "http://registry.invalid/v2/a/manifests/a");
    assert_eq!(
        request.header("proxy-authorization"),
        Some("Basic bWU6cHc=")
    );
    let error = get("invalid").unwrap_err();
    assert!(error.to_string().contains("registry.invalid"), "{error}");
    assert_eq!(proxy.log().len(), 1);
}

/// A proxy whose tunnels all lead to `server`, and the heads of the requests for them.
fn tunnels(server: String) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let log = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&log);
    thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && client.read(&mut byte).unwrap() == 1 {
                head.push(byte[0]);
            }
            let head = String::from_utf8(head).unwrap();
            seen.lock().unwrap().push(head);
            let mut server = TcpStream::connect(&server).unwrap();
            client.write_all(b"HTTP/1.1 200 tunnel\r\n\r\n").unwrap();
            let (mut up, mut down) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            thread::spawn(move || std::io::copy(&mut up, &mut server));
            thread::spawn(move || std::io::copy(&mut down, &mut client));
        }
    });
    (address, log)
}

#[test]
fn tls_goes_through_a_tunnel_of_the_proxy() {
    let server = Server::start_tls("server", |_| Reply::new(200).body("{}"));
    let (proxy, log) = tunnels(server.host());
    let get = |insecure| {
        let client = Client::new(Settings {
            ca_files: vec![certificate("authority.pem")],
            insecure,
            proxy: Proxy {
                http: None,
                https: Some(format!("http://me:pw@{proxy}")),
                ..Proxy::default()
            },
            ..tls()
        });
        let reference: Reference = "registry.invalid/a".parse().unwrap();
        client.unwrap().repository(&reference).manifest("a")
    };
    get(true).unwrap();
    let head = log.lock().unwrap()[0].clone();
    assert!(
        head.starts_with("CONNECT registry.invalid:443 HTTP/1.1\r\n"),
        "{head}"
    );
    assert!(head.contains("Basic bWU6cHc="), "{head}");
    // The registry learns nothing of it.
    assert_eq!(server.log()[0].header("proxy-authorization"), None);
    // The certificate is one for another name: a tunnel makes no difference to that.
    let error = get(false).unwrap_err();
    assert!(matches!(error, Error::Certificate { .. }), "{error:?}");
    assert_eq!(server.log().len(), 1);
}

#[test]
fn connections_are_used_again() {
    const REQUESTS: usize = 10;
    let server = Server::start(|_| Reply::new(200).body("{}"));
    let repository = server.repository();
    for _ in 0..REQUESTS {
        repository.manifest("a").unwrap();
        // A connection goes back to the pool a moment after its answer was read.
        thread::sleep(Duration::from_millis(20));
    }
    let connections = server.connections();
    assert!(connections <= REQUESTS / 2, "{connections} connections");
}
