//! `nydusify auth check`: what it finds, what it says, and what it never says.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use serde_json::{Value, json};
use testkit::fixture::busybox;
use testkit::registry::{Auth, Bearer, Ca, Options, Registry, User};
use testkit::run::{Ran, output};

use crate::support::*;

const PASSWORD: &str = "hunter2-very-secret";

fn start(auth: Auth) -> Registry {
    let registry = Registry::start(Options {
        auth,
        ..Options::default()
    });
    registry.push_layout(&busybox(), "latest", "app", "latest");
    registry
}

/// A docker configuration with a password for the registry.
fn log_in(place: &Place, registry: &Registry, password: &str) {
    // Base64 of `user:password`, which the standard library has none of.
    let entry = json!({ "username": "me", "password": password });
    let mut config = json!({ "auths": {} });
    config["auths"][registry.host()] = entry;
    std::fs::write(place.path("config.json"), config.to_string()).unwrap();
}

#[track_caller]
fn check(config: &Path, image: &str, more: &[&str]) -> Ran {
    let mut command = Command::new(NYDUSIFY);
    command.args(["auth", "check", image]).args(more);
    command.env("DOCKER_CONFIG", config);
    let ran = output(&mut command);
    for text in [&ran.stdout, &ran.stderr] {
        assert!(!text.contains("hunter2"), "a secret was told: {ran}");
        assert!(!text.contains("identity-"), "a secret was told: {ran}");
    }
    ran
}

#[track_caller]
fn json(ran: &Ran) -> Value {
    serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran}"))
}

#[test]
fn a_registry_that_asks_for_nothing() {
    let place = Place::new();
    let registry = start(Auth::None);
    let image = format!("{}/app", registry.host());
    check(&place.path(""), &image, &[]).ok().says(&[
        "(http)",
        "no credentials (there is no",
        "nothing (status 200)",
        "granted; the image is sha256:",
    ]);
    let absent = format!("{}/absent:1", registry.host());
    check(&place.path(""), &absent, &[])
        .ok()
        .says(&["no such image"]);
}

#[test]
fn a_password_that_is_right_wrong_or_missing() {
    let user = || User::new("me", PASSWORD).may("app", &["pull"]);
    let auths = [
        (Auth::Basic(vec![user()]), "Basic"),
        (
            Auth::Bearer(Bearer {
                users: vec![user()],
                ..Bearer::default()
            }),
            "Bearer",
        ),
    ];
    for (auth, scheme) in auths {
        let place = Place::new();
        let registry = start(auth);
        let image = format!("{}/app", registry.host());
        let config = place.path("");
        check(&config, &image, &[])
            .exits(1)
            .says(&[scheme, "not granted", "no credentials"]);

        log_in(&place, &registry, PASSWORD);
        check(&config, &image, &[]).ok().says(&[
            scheme,
            "auths in ",
            "config.json",
            "(status 401)",
            "granted; the image is",
        ]);
        let found = json(&check(&config, &image, &["--output", "json"]).ok());
        assert_eq!(found["schema"], "nydusify-auth-check/1");
        assert_eq!(found["registry"], registry.host());
        assert_eq!(found["challenge"]["scheme"], scheme);
        assert_eq!(found["access"], true);
        assert_eq!(found["credentials"], true);
        assert_eq!(found["digest"], digest(&busybox(), "latest"));

        // Another repository than the one that the user may read.
        let other = format!("{}/other", registry.host());
        check(&config, &other, &[]).exits(1).says(&["not granted"]);

        log_in(&place, &registry, "hunter2-wrong");
        let found = json(&check(&config, &image, &["--output", "json"]).exits(1));
        assert_eq!(found["access"], false);
        assert!(found["reason"].is_string(), "{found}");
    }
}

/// Puts a program `docker-credential-test` into the place, and a configuration that names it.
fn install_helper(place: &Place, registry: &Registry, script: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    let program = place.path("docker-credential-test");
    std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut config = json!({ "credHelpers": {} });
    config["credHelpers"][registry.host()] = "test".into();
    std::fs::write(place.path("config.json"), config.to_string()).unwrap();
}

/// `auth check` with the helper of the place in reach.
fn with_helper(place: &Place, image: &str) -> Command {
    let mut command = Command::new(NYDUSIFY);
    let mut path = std::env::split_paths(&std::env::var_os("PATH").unwrap()).collect::<Vec<_>>();
    path.insert(0, place.path(""));
    command
        .args(["auth", "check", image])
        .env("PATH", std::env::join_paths(path).unwrap())
        .env("DOCKER_CONFIG", place.path(""));
    command
}

#[test]
fn a_credential_helper_is_asked_for_the_registry() {
    let place = Place::new();
    let user = User::new("me", PASSWORD).may("app", &["pull"]);
    let registry = start(Auth::Basic(vec![user]));
    let image = format!("{}/app", registry.host());
    let ask = |script: &str| {
        install_helper(&place, &registry, script);
        let ran = output(&mut with_helper(&place, &image));
        assert!(!format!("{ran}").contains("hunter2"), "a secret was told");
        ran
    };
    // What it is asked, and what it may leave running behind it.
    let host = registry.host();
    let answer = json!({ "ServerURL": host, "Username": "me", "Secret": PASSWORD });
    ask(&format!(
        r#"read server; [ "$1 $server" = "get {host}" ] && echo '{answer}'; sleep 3 2>/dev/null >/dev/null &"#
    ))
    .ok()
    .says(&["credential helper docker-credential-test", "granted; the image is"]);
    ask("echo credentials not found in native keychain; exit 1")
        .exits(1)
        .says(&["docker-credential-test", "have none"]);
    ask("echo the keychain is locked; exit 3")
        .exits(1)
        .says(&["docker-credential-test", "the keychain is locked"]);
    ask("echo '[]'")
        .exits(1)
        .says(&["docker-credential-test", "its answer is not"]);
}

#[test]
fn a_credential_helper_that_waits_for_its_user_can_be_left() {
    use rustix::process::{Pid, Signal, kill_process};
    let place = Place::new();
    let registry = start(Auth::Basic(vec![User::new("me", PASSWORD)]));
    let asked = place.path("asked");
    install_helper(
        &place,
        &registry,
        &format!("touch {}; exec sleep 20", asked.display()),
    );
    let image = format!("{}/app", registry.host());
    let mut child = with_helper(&place, &image).spawn().unwrap();
    testkit::run::wait_until("the helper runs", || asked.exists());
    let from = std::time::Instant::now();
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(testkit::run::code(child.wait().unwrap()), 130);
    assert!(from.elapsed() < std::time::Duration::from_secs(10));
}

#[test]
fn tokens_for_anybody() {
    let place = Place::new();
    let registry = start(Auth::Bearer(Bearer {
        anonymous_pull: true,
        ..Bearer::default()
    }));
    let image = format!("{}/app", registry.host());
    check(&place.path(""), &image, &[]).ok().says(&[
        "Bearer, tokens from http://",
        "no credentials",
        "granted",
    ]);
}

#[test]
fn an_identity_token() {
    let place = Place::new();
    let registry = start(Auth::Bearer(Bearer {
        users: vec![User::new("me", PASSWORD)],
        ..Bearer::default()
    }));
    let token = registry.identity_token("me");
    let mut config = json!({ "auths": {} });
    config["auths"][registry.host()] = json!({ "identitytoken": token });
    std::fs::write(place.path("config.json"), config.to_string()).unwrap();
    let image = format!("{}/app", registry.host());
    let ran = check(&place.path(""), &image, &[]).ok();
    assert!(!ran.stdout.contains(&token));
}

#[test]
fn a_certificate_that_nobody_knows() {
    let place = Place::new();
    let registry = Registry::start(Options {
        tls: Some(Arc::new(Ca::new())),
        ..Options::default()
    });
    let image = format!("{}/app", registry.host());
    check(&place.path(""), &image, &[]).fails_with(&["certificate", "--insecure"]);
    check(&place.path(""), &image, &["--insecure"])
        .ok()
        .says(&["(https)"]);
    let pem = registry.ca_pem().unwrap();
    let trusted = ["--ca-file", pem.to_str().unwrap()];
    check(&place.path(""), &image, &trusted).ok();
    registry.down();
    check(&place.path(""), &image, &trusted).fails_with(&["cannot talk to"]);
    check(&place.path(""), "oci:nowhere", &[])
        .exits(2)
        .says(&["no name in a registry"]);
}
