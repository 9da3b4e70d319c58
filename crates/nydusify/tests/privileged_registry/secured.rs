//! A real registry that wants a password, and one with a certificate of an authority that nobody knows.

use testkit::docker_registry::{DockerRegistry, Options};
use testkit::fixture;
use testkit::registry::Ca;

use crate::support::*;

#[test]
fn privileged_a_registry_with_passwords() {
    let Some(place) = Place::new("privileged_a_registry_with_passwords") else {
        return;
    };
    let server = DockerRegistry::start(Options {
        basic: Some(("me", "secret")),
        ..Options::default()
    });
    let source = repository(server.host(), "image", None);
    push(
        &fixture::busybox(),
        fixture::BUSYBOX_TAG,
        false,
        &source,
        "1",
    );
    let (from, to) = (
        format!("{}/image:1", server.host()),
        format!("{}/nydus:1", server.host()),
    );
    let denied = format!("docker login {}", server.host());
    place
        .convert(&from, &to, &[])
        .exits(1)
        .fails_with(&["access denied", &denied]);
    place.login(server.host());
    place.convert(&from, &to, &[]).ok();
    place.check(&from, &to, &[]).ok();
    let mount = place.mount(&to, &[]);
    assert_equal(&fixture::busybox_expect().compare(mount.path()));
    mount.stop().ok();
    assert_eq!(server.open_uploads(), 0);
}

#[test]
fn privileged_a_registry_with_a_certificate_of_its_own() {
    let Some(place) = Place::new("privileged_a_registry_with_a_certificate_of_its_own") else {
        return;
    };
    let ca = Ca::new();
    let server = DockerRegistry::start(Options {
        tls: Some(&ca),
        ..Options::default()
    });
    let source = repository(server.host(), "image", Some(&ca));
    push(
        &fixture::busybox(),
        fixture::BUSYBOX_TAG,
        false,
        &source,
        "1",
    );
    let (from, to) = (
        format!("{}/image:1", server.host()),
        format!("{}/nydus:1", server.host()),
    );
    let untrusted = [server.host(), "certificate", "not trusted"];
    place
        .convert(&from, &to, &[])
        .exits(1)
        .fails_with(&untrusted);
    place
        .convert(&from, &to, &["--source-insecure"])
        .exits(1)
        .fails_with(&untrusted);
    let file = ca.pem().display().to_string();
    let trusting = ["--ca-file", &file];
    place.convert(&from, &to, &trusting).ok();
    place.check(&from, &to, &trusting).ok();
    place
        .run(&["mount", "--target", &to, "--mount-path", "root"], &[])
        .exits(1)
        .fails_with(&untrusted);
    for options in [&trusting[..], &["--target-insecure"]] {
        let mount = place.mount(&to, options);
        assert_equal(&fixture::busybox_expect().compare(mount.path()));
        mount.stop().ok();
    }
    let insecure = ["--source-insecure", "--target-insecure", "--no-journal"];
    let again = format!("{}/again:1", server.host());
    place.convert(&from, &again, &insecure).ok();
    place.check(&from, &again, &insecure[..2]).ok();
    assert_eq!(server.open_uploads(), 0);
}
