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
