//! Every fault, and that the schedule is one.

use std::time::{Duration, Instant};

use testkit::registry::{Auth, Fault, Faults, Host, Options, Registry, User};

use super::client::{Answer, Client};
use super::{client, digest};

const SIZE: usize = 300_000;

/// A registry with one fault, and the path of a blob in it.
fn faulty(fault: Fault) -> (Registry, Client, String) {
    let registry = Registry::start(Options {
        faults: Faults::once(fault)
            .latency(Duration::from_millis(120))
            .retry_after(7),
        ..Options::default()
    });
    let client = client(&registry);
    let target = format!("/v2/a/blobs/{}", registry.put_blob("a", &bytes()));
    (registry, client, target)
}

fn bytes() -> Vec<u8> {
    testkit::noise(3, SIZE)
}

fn ranged(client: &Client, target: &str) -> Answer {
    client.clone().with("Range", "bytes=100-199").get(target)
}

/// The faults that were done.
fn done(registry: &Registry) -> Vec<Fault> {
    let log = registry.requests();
    log.iter().filter_map(|request| request.fault).collect()
}

#[test]
fn answers_come_late() {
    let (registry, client, target) = faulty(Fault::Latency);
    let started = Instant::now();
    assert!(client.get(&target).is(200).body == bytes());
    assert!(started.elapsed() >= Duration::from_millis(120));
    assert_eq!(done(&registry), [Fault::Latency]);
}

#[test]
fn connections_are_cut_before_the_answer() {
    let (registry, client, target) = faulty(Fault::CutBeforeAnswer);
    assert_eq!(client.get(&target).status, 0);
    client.get(&target).is(200);
    assert_eq!(registry.requests()[0].status, 0);
    assert_eq!(done(&registry), [Fault::CutBeforeAnswer]);
}

#[test]
fn connections_are_cut_in_an_answer() {
    let (registry, client, target) = faulty(Fault::CutBody);
    let part = client.get(&target).is(200);
    assert!(!part.complete && !part.body.is_empty());
    assert!(bytes().starts_with(&part.body));
    assert_eq!(registry.requests()[0].sent, part.body.len() as u64);
    assert!(client.get(&target).is(200).complete);
}

#[test]
fn connections_are_cut_in_a_segment() {
    let (registry, client, _) = faulty(Fault::CutRequest);
    let at = client.post("/v2/a/blobs/uploads/", b"").is(202);
    let at = at.header("location");
    assert_eq!(client.patch(at, &bytes()).status, 0);
    let stands = client.get(at).is(204);
    let last: usize = stands
        .header("range")
        .strip_prefix("0-")
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..SIZE - 1).contains(&last), "{last}");
    let end = format!("{}&digest={}", stands.header("location"), digest(&bytes()));
    client.put(&end, &bytes()[last + 1..]).is(201);
    assert_eq!(done(&registry), [Fault::CutRequest]);
}

#[test]
fn ranges_are_mislabelled_shifted_and_ignored() {
    let (_registry, client, target) = faulty(Fault::WrongContentRange);
    client.get(&target).is(200);
    let answer = ranged(&client, &target).is(206);
    assert_ne!(
        answer.header("content-range"),
        format!("bytes 100-199/{SIZE}")
    );
    assert!(answer.body == bytes()[100..200]);
    let answer = ranged(&client, &target).is(206);
    assert_eq!(
        answer.header("content-range"),
        format!("bytes 100-199/{SIZE}")
    );

    let (_registry, client, target) = faulty(Fault::WrongRange);
    let answer = ranged(&client, &target).is(206);
    assert_eq!(
        answer.header("content-range"),
        format!("bytes 99-198/{SIZE}")
    );
    assert!(answer.body == bytes()[99..199]);

    let (_registry, client, target) = faulty(Fault::RangeIgnored);
    let answer = ranged(&client, &target).is(200);
    assert_eq!(answer.header("content-range"), "");
    assert!(answer.body == bytes());
}

#[test]
fn blobs_are_too_short_too_long_and_corrupt() {
    let (_registry, client, target) = faulty(Fault::ShortLength);
    let answer = client.get(&target).is(200);
    assert!(answer.complete && answer.body.len() < SIZE);

    let (_registry, client, target) = faulty(Fault::LongLength);
    let answer = client.get(&target).is(200);
    assert!(answer.complete && answer.body.len() > SIZE);

    let (registry, client, target) = faulty(Fault::CorruptBody);
    let answer = client.get(&target).is(200);
    let differing = answer
        .body
        .iter()
        .zip(bytes())
        .filter(|(a, b)| **a != *b)
        .count();
    assert_eq!((answer.body.len(), differing), (SIZE, 1));
    assert!(client.get(&target).is(200).body == bytes());
    assert_eq!(registry.blob("a", &digest(&bytes())), Some(bytes()));
}

#[test]
fn requests_are_refused() {
    let (_registry, client, target) = faulty(Fault::NotFound);
    client.get("/v2/").is(200);
    client.head(&target).is(404);
    client.head(&target).is(200);

    let (_registry, client, target) = faulty(Fault::TooMany);
    let answer = client.get(&target).is(429);
    assert_eq!(answer.header("retry-after"), "7");

    let (_registry, client, target) = faulty(Fault::ServerError);
    let status = client.get(&target).status;
    assert!([500, 502, 503].contains(&status), "{status}");
    client.get(&target).is(200);

    let registry = Registry::start(Options {
        auth: Auth::Basic(vec![User::new("me", "secret")]),
        faults: Faults::once(Fault::Unauthorised),
        ..Options::default()
    });
    let client = super::client(&registry).with("Authorization", "Basic bWU6c2VjcmV0");
    let answer = client.get("/v2/").is(401);
    assert_ne!(answer.header("www-authenticate"), "");
    client.get("/v2/").is(200);
}

#[test]
fn redirects_are_expired() {
    let registry = Registry::start(Options {
        redirect: Some(Duration::from_secs(60)),
        faults: Faults::once(Fault::ExpiredRedirect),
        ..Options::default()
    });
    let target = format!("/v2/a/blobs/{}", registry.put_blob("a", b"abc"));
    let storage = Client::new(&registry.host_of(Host::Storage).unwrap());
    for status in [403, 200] {
        let moved = client(&registry).get(&target).is(307);
        storage.get(moved.header("location")).is(status);
    }
    // Faults of the bytes are those of the host that sends them.
    registry.set_faults(Faults::once(Fault::CorruptBody));
    let moved = client(&registry).get(&target).is(307);
    assert_ne!(storage.get(moved.header("location")).is(200).body, b"abc");
}

#[test]
fn uploads_vanish_are_half_taken_and_unanswered() {
    let open = |client: &Client| {
        let answer = client.post("/v2/a/blobs/uploads/", b"").is(202);
        answer.header("location").to_owned()
    };
    let (registry, client, _) = faulty(Fault::SessionVanishes);
    client.patch(&open(&client), b"abc").is(404);
    assert_eq!(registry.counters().open_uploads, 0);
    client.patch(&open(&client), b"abc").is(202);

    let (_registry, client, _) = faulty(Fault::PartialAck);
    let at = client.patch(&open(&client), b"abcdef").is(202);
    let last: usize = at
        .header("range")
        .strip_prefix("0-")
        .unwrap()
        .parse()
        .unwrap();
    assert!(last < 5);
    let end = format!("{}&digest={}", at.header("location"), digest(b"abcdef"));
    client.put(&end, &b"abcdef"[last + 1..]).is(201);

    let (registry, client, _) = faulty(Fault::AnswerLost);
    registry.set_faults(Faults::once(Fault::AnswerLost).matching("PATCH"));
    let at = open(&client);
    assert_eq!(client.patch(&at, b"abc").status, 0);
    assert_eq!(client.get(&at).is(204).header("range"), "0-2");
    registry.set_faults(Faults::once(Fault::AnswerLost).matching("digest="));
    let end = format!("{at}&digest={}", digest(b"abcdef"));
    assert_eq!(client.put(&end, b"def").status, 0);
    assert!(registry.blob("a", &digest(b"abcdef")).is_some());
}

/// The faults of a hundred requests of several kinds.
fn series(faults: Faults) -> Vec<Option<Fault>> {
    let registry = Registry::start(Options {
        faults,
        ..Options::default()
    });
    let client = client(&registry);
    let blob = format!(
        "/v2/a/blobs/{}",
        registry.put_blob("a", &testkit::noise(4, 999))
    );
    for _ in 0..25 {
        client.get("/v2/");
        client.get(&blob);
        ranged(&client, &blob);
        client.post("/v2/a/blobs/uploads/", b"");
    }
    let log = registry.requests();
    assert!(log.iter().map(|request| request.number).eq(1..=100));
    log.iter().map(|request| request.fault).collect()
}

#[test]
fn the_schedule_depends_on_the_seed_alone() {
    let plan = |seed| Faults::all(seed, 0.4).latency(Duration::ZERO);
    let one = series(plan(1));
    assert_eq!(one, series(plan(1)));
    assert_ne!(one, series(plan(2)));
    let count = one.iter().flatten().count();
    assert!((25..=55).contains(&count), "{count}");
    assert!(series(Faults::none()).iter().all(Option::is_none));
}

#[test]
fn kinds_are_switched_off_limited_and_put_off() {
    let plan = Faults::of(1, 1.0, &[Fault::TooMany, Fault::NotFound])
        .without(Fault::NotFound)
        .limit(Fault::TooMany, 3)
        .skip(10);
    let series = series(plan);
    assert!(series[..10].iter().all(Option::is_none));
    assert!(
        series[10..13]
            .iter()
            .all(|fault| *fault == Some(Fault::TooMany))
    );
    assert!(series[13..].iter().all(Option::is_none));
}

#[test]
fn a_request_that_is_refused_uses_up_no_fault() {
    let registry = Registry::start(Options {
        auth: Auth::Basic(vec![User::new("me", "secret")]),
        faults: Faults::once(Fault::AnswerLost),
        ..Options::default()
    });
    let client = client(&registry);
    client.post("/v2/a/blobs/uploads/", b"").is(401);
    let client = client.with("Authorization", "Basic bWU6c2VjcmV0");
    assert_eq!(client.post("/v2/a/blobs/uploads/", b"").status, 0);
    assert_eq!(done(&registry), [Fault::AnswerLost]);
    assert_eq!(registry.counters().open_uploads, 1);
    registry.forget_requests();
    assert_eq!(registry.counters().requests, 2);
}

#[test]
fn a_fault_that_finds_no_bytes_stays_due() {
    let (registry, client, target) = faulty(Fault::CorruptBody);
    client
        .get(&format!("/v2/a/blobs/{}", digest(b"absent")))
        .is(404);
    assert!(done(&registry).is_empty());
    assert!(client.get(&target).is(200).body != bytes());
}
