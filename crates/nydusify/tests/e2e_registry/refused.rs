//! What cannot be done is said in one line that names it, with exit code 1, and leaves nothing behind.

use std::time::{Duration, Instant};

use testkit::registry::{Auth, Bearer, Fault, Faults, Options, Registry, User};

use crate::support::*;

struct World {
    registry: Registry,
    home: Home,
    source: String,
    target: String,
}

/// A registry with the small image as `image:1`.
fn world(options: Options) -> World {
    let registry = Registry::start(options);
    small().put(&registry, "image", "1");
    World {
        home: Home::new(),
        source: format!("{}/image:1", registry.host()),
        target: format!("{}/new:v1", registry.host()),
        registry,
    }
}

/// One line on standard error, besides what the log says.
#[track_caller]
fn is_one_line(text: &str) {
    let lines = text.lines().filter(|line| line.starts_with("error: "));
    assert_eq!(lines.count(), 1, "{text}");
}

#[test]
fn a_tag_that_is_not_there() {
    let World {
        registry,
        home,
        source,
        target,
    } = world(Options::default());
    let absent = format!("{}/image:none", registry.host());
    let ran = home.convert(&absent, &target, &[]).exits(1);
    is_one_line(&ran.stderr);
    ran.fails_with(&[&absent, "manifest none", "does not exist"]);
    assert_eq!(registry.counters().uploads_opened, 0);
    assert_nothing_left(&registry, "new");
    for (source, target) in [(&absent, &source), (&source, &absent)] {
        home.check(source, target, &[])
            .exits(1)
            .fails_with(&["manifest none", "does not exist"]);
    }
    let absent = format!("{}/no/such/place", registry.host());
    home.convert(&absent, &target, &[])
        .exits(1)
        .fails_with(&["no/such/place", "does not exist"]);
}

#[test]
fn access_is_denied() {
    let users = || vec![User::new("me", "secret").may("image", &["pull"])];
    for auth in [
        Auth::Basic(users()),
        Auth::Bearer(Bearer {
            users: users(),
            ..Bearer::default()
        }),
    ] {
        let World {
            registry,
            home,
            source,
            target,
        } = world(Options {
            auth,
            ..Options::default()
        });
        let denied = [
            registry.host(),
            "access denied".to_owned(),
            format!("docker login {}", registry.host()),
        ];
        let denied: Vec<&str> = denied.iter().map(String::as_str).collect();
        // Without a login nothing can be read, with one nothing be written.
        home.convert(&source, &target, &[])
            .exits(1)
            .fails_with(&denied);
        home.check(&source, &source, &[])
            .exits(1)
            .fails_with(&denied);
        home.login(&registry.host());
        let ran = home.convert(&source, &target, &[]).exits(1);
        is_one_line(&ran.stderr);
        let ran = ran.fails_with(&denied).fails_with(&["/new"]);
        assert!(
            !ran.stderr.contains("secret") && !ran.stderr.contains("bWU6"),
            "{ran}"
        );
        assert_nothing_left(&registry, "new");
    }
}

#[test]
fn a_blob_of_the_source_is_missing() {
    for at in 0..small().blobs.len() {
        let World {
            registry,
            home,
            source,
            target,
        } = world(Options::default());
        let digest = small().blobs[at].0.as_str();
        registry.remove_blob("image", digest);
        let ran = home.convert(&source, &target, &[]).exits(1);
        is_one_line(&ran.stderr);
        ran.fails_with(&[digest, "does not exist"]);
        assert_nothing_left(&registry, "new");
        // A check says which, too.
        home.check(&source, &source, &[]).exits(1).says(&[digest]);
    }
}

#[test]
fn a_blob_of_the_source_is_corrupt() {
    for at in 0..small().blobs.len() {
        for redirect in [None, Some(Duration::from_secs(60))] {
            let World {
                registry,
                home,
                source,
                target,
            } = world(Options {
                redirect,
                ..Options::default()
            });
            let (digest, bytes) = &small().blobs[at];
            let mut damaged = bytes.clone();
            let middle = damaged.len() / 2;
            damaged[middle] ^= 1;
            registry.overwrite_blob(digest, &damaged);
            let ran = home.convert(&source, &target, &[]).exits(1);
            is_one_line(&ran.stderr);
            ran.fails_with(&[digest, "digest"]);
            assert_nothing_left(&registry, "new");
            // Shorter or longer than the manifest says.
            for length in [bytes.len() - 1, bytes.len() + 1] {
                let mut other = bytes.clone();
                other.resize(length, 0);
                registry.overwrite_blob(digest, &other);
                home.convert(&source, &target, &[])
                    .exits(1)
                    .fails_with(&[digest]);
                assert_nothing_left(&registry, "new");
            }
        }
    }
}

#[test]
fn a_blob_of_the_target_is_missing_or_corrupt() {
    let World {
        registry,
        home,
        source,
        target,
    } = world(Options::default());
    home.convert(&source, &target, &[]).ok();
    home.check(&source, &target, &[]).ok();
    let nydus = Stored::take(&registry, "new", "v1");
    for (digest, bytes) in &nydus.blobs {
        for damage in [None, Some(bytes.len() / 2)] {
            match damage {
                Some(at) => {
                    let mut damaged = bytes.clone();
                    damaged[at] ^= 1;
                    registry.overwrite_blob(digest, &damaged);
                }
                None => registry.remove_blob("new", digest),
            }
            let ran = home.check(&source, &target, &[]).exits(1);
            ran.says(&[&digest["sha256:".len()..]]);
            registry.put_blob("new", bytes);
        }
    }
    home.check(&source, &target, &[]).ok();
}

#[test]
fn the_registry_is_down() {
    let World {
        registry,
        home,
        source,
        target,
    } = world(Options::default());
    registry.down();
    let begun = Instant::now();
    let ran = home.convert(&source, &target, &[]).exits(1);
    is_one_line(&ran.stderr);
    ran.fails_with(&[&registry.host(), "cannot talk to", "refused"]);
    home.check(&source, &target, &[])
        .exits(1)
        .fails_with(&[&registry.host(), "cannot talk to"]);
    home.run(&["mount", "--target", &target, "--mount-path", "m"], &[])
        .exits(1)
        .fails_with(&[&registry.host(), "cannot talk to"]);
    assert!(
        begun.elapsed() < Duration::from_secs(30),
        "{:?}",
        begun.elapsed()
    );
}

/// The registry goes away in the middle of a conversion; when it is back, the same command goes on.
#[test]
fn the_registry_goes_down_on_the_way() {
    for requests in [3, 8, 15, 22] {
        let World {
            registry,
            home,
            source,
            target,
        } = world(Options::default());
        let late = Faults::of(1, 1.0, &[Fault::Latency]).latency(Duration::from_millis(15));
        registry.set_faults(late);
        let args = home.convert_args(&source, &target);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let ran = std::thread::scope(|scope| {
            let ran = scope.spawn(|| home.run(&args, &[]));
            testkit::run::wait_until("some requests", || {
                registry.counters().requests >= requests || ran.is_finished()
            });
            registry.down();
            ran.join().unwrap()
        });
        if ran.code != 0 {
            is_one_line(&ran.stderr);
            ran.exits(1)
                .fails_with(&[&registry.host(), "cannot talk to"]);
            assert_eq!(registry.tags("new"), [""; 0]);
        }
        registry.up();
        home.convert(&source, &target, &[]).ok();
        assert_eq!(registry.missing_from("new", "v1"), [""; 0]);
        home.check(&source, &target, &[]).ok();
        assert_well_behaved(&registry);
    }
}
