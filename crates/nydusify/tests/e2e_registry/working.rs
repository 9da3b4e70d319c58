//! Registries as they are: tokens that end, redirects, no referrers API, other media types, several platforms.

use std::sync::Arc;
use std::time::Duration;

use testkit::registry::{Auth, Ca, Host, Options, Registry};

use crate::support::*;

#[test]
fn tokens_end_blobs_are_redirected_and_the_image_is_right() {
    for options in [
        Options {
            auth: short_lived_tokens(),
            redirect: Some(Duration::from_secs(60)),
            referrers: false,
            relative_locations: true,
            ..Options::default()
        },
        Options {
            auth: Auth::Basic(vec![me()]),
            ranges: false,
            mounts: false,
            ..Options::debian()
        },
    ] {
        let (registry, home) = (Registry::start(options), Home::new());
        small().put(&registry, "team/app", "1.0");
        home.login(&registry.host());
        let source = format!("{}/team/app:1.0", registry.host());
        let target = format!("{}/team/app:1.0-nydus", registry.host());
        home.convert(&source, &target, &["--check"]).ok();
        home.check(&source, &target, &[])
            .ok()
            .says(&["verified image"]);
        assert_eq!(registry.missing_from("team/app", "1.0-nydus"), [""; 0]);
        assert_eq!(registry.counters().open_uploads, 0);
        assert_well_behaved(&registry);
        assert!(
            registry
                .requests()
                .iter()
                .all(|request| request.host != Host::Storage || request.authorization.is_none())
        );

        // Into another repository, under a suffix; and again, when all is there already.
        let other = format!("{}/other/place:x", registry.host());
        home.convert(&source, &other, &["--no-journal"]).ok();
        assert_eq!(
            registry.digest("other/place", "x"),
            registry.digest("team/app", "1.0-nydus")
        );
        let sent = registry.counters().received;
        home.convert(&source, &other, &[]).ok();
        let sent = registry.counters().received - sent;
        assert!(sent < 20_000, "{sent} bytes were pushed again");
        let args = ["convert", "--source", &source, "--target-suffix", "-lazy"];
        home.run(&args, &[]).ok();
        assert_eq!(registry.missing_from("team/app", "1.0-lazy"), [""; 0]);
    }
}

#[test]
fn docker_images_stay_dockers_and_become_ocis_when_asked() {
    let (registry, home) = (Registry::new(), Home::new());
    small().put(&registry, "image", "oci");
    registry.as_docker("image", "oci", "docker");
    let name = |tag: &str| format!("{}/image:{tag}", registry.host());
    for (more, prefix) in [(&[][..], "docker"), (&["--oci"], "oci.image")] {
        home.convert(&name("docker"), &name("nydus"), more).ok();
        home.check(&name("docker"), &name("nydus"), &[]).ok();
        let (media_type, _) = registry.manifest("image", "nydus").unwrap();
        assert!(media_type.contains(prefix), "{media_type}");
        assert_eq!(registry.missing_from("image", "nydus"), [""; 0]);
    }
}

#[test]
fn all_platforms_and_their_attestations_are_carried_over() {
    let (registry, home) = (Registry::new(), Home::new());
    small().put(&registry, "image", "one");
    let images = [
        ("one", "linux/amd64"),
        ("one", "linux/arm64"),
        ("one", "linux/arm/v7"),
    ];
    registry.make_index("image", &images, true, "all");
    let name = |tag: &str| format!("{}/image:{tag}", registry.host());
    home.convert(
        &name("all"),
        &name("nydus"),
        &["--all-platforms", "--check"],
    )
    .ok();
    let (_, index) = registry.manifest("image", "nydus").unwrap();
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    assert_eq!(index["manifests"].as_array().unwrap().len(), 6, "{index}");
    assert_eq!(registry.missing_from("image", "nydus"), [""; 0]);
    home.check(&name("all"), &name("nydus"), &["--multi-platform"])
        .ok();
    // One of them, for this machine or another.
    let one = ["--platform", "linux/arm/v7"];
    home.convert(&name("all"), &name("arm"), &one).ok();
    home.check(&name("all"), &name("arm"), &one).ok();
}

#[test]
fn certificates_are_checked_unless_told_otherwise() {
    let ca = Arc::new(Ca::new());
    let registry = Registry::start(Options {
        tls: Some(Arc::clone(&ca)),
        ..Options::default()
    });
    let home = Home::new();
    small().put(&registry, "image", "1");
    let (source, target) = (
        format!("{}/image:1", registry.host()),
        format!("{}/new:1", registry.host()),
    );
    let ca = ca.pem().display().to_string();
    for untrusted in [&[][..], &["--source-insecure"], &["--target-insecure"]] {
        home.convert(&source, &target, untrusted)
            .exits(1)
            .fails_with(&[&registry.host(), "certificate", "not trusted", "--ca-file"]);
        assert_nothing_left(&registry, "new");
    }
    home.convert(&source, &target, &["--ca-file", &ca]).ok();
    home.check(&source, &target, &["--ca-file", &ca]).ok();
    let insecure = ["--source-insecure", "--target-insecure"];
    home.convert(&source, &target, &insecure).ok();
    home.check(&source, &target, &insecure).ok();
    home.check(&source, &target, &[])
        .exits(1)
        .fails_with(&["certificate", "not trusted"]);
}

/// An image never points into nothing: blobs of the dictionary are mounted or copied into its repository.
#[test]
fn blobs_of_a_dictionary_come_into_the_repository() {
    let (registry, other, home) = (Registry::new(), Registry::new(), Home::new());
    small().put(&registry, "image", "1");
    let name = |registry: &Registry, rest: &str| format!("{}/{rest}", registry.host());
    let (source, first) = (name(&registry, "image:1"), name(&registry, "first:1"));
    home.convert(&source, &first, &[]).ok();
    let dictionary = format!("bootstrap:registry:{first}");
    let more = [
        "--chunk-dict",
        &dictionary,
        "--dict-min-run",
        "1",
        "--no-journal",
        "--check",
    ];
    for (place, repository) in [(&registry, "second"), (&other, "far/away")] {
        let target = name(place, &format!("{repository}:1"));
        home.convert(&source, &target, &more).ok();
        assert_eq!(place.missing_from(repository, "1"), [""; 0]);
        let (_, manifest) = place.manifest(repository, "1").unwrap();
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        // Where all chunks are known there is nothing but the dictionary's blobs and the bootstrap.
        let layers = manifest["layers"].as_array().unwrap();
        let (_, of_first) = registry.manifest("first", "1").unwrap();
        let of_first: serde_json::Value = serde_json::from_slice(&of_first).unwrap();
        let known = of_first["layers"].as_array().unwrap();
        let digest = |layer: &serde_json::Value| layer["digest"].clone();
        let known: Vec<_> = known.iter().map(digest).collect();
        let (_, blobs) = layers.split_last().unwrap();
        let from_first = blobs.iter().filter(|layer| known.contains(&digest(layer)));
        assert!(from_first.count() >= 1, "{manifest}");
        home.check(&source, &target, &[]).ok();
        assert_well_behaved(place);
        assert_eq!(place.counters().open_uploads, 0);
    }
}

/// A dictionary in a directory takes blobs from the repositories that its images lie in, and notices what is gone there.
#[test]
fn a_kept_dictionary_knows_repositories() {
    let (registry, home) = (Registry::new(), Home::new());
    small().put(&registry, "image", "1");
    let name = |rest: &str| format!("{}/{rest}", registry.host());
    let (source, first) = (name("image:1"), name("first:1"));
    home.convert(&source, &first, &[]).ok();
    let dict = home.path("dict").display().to_string();
    let chunkdict =
        |command: &str, more: &[&str]| home.run(&["chunkdict", command, "--dict", &dict], more);
    chunkdict("add", &[&first]).ok();
    chunkdict("verify", &["--data"]).ok();
    let more = [
        "--chunk-dict",
        &dict,
        "--dict-min-run",
        "1",
        "--no-journal",
        "--check",
    ];
    let sent = registry.counters().received;
    home.convert(&source, &name("second:1"), &more).ok();
    let sent = registry.counters().received - sent;
    // Bootstraps, no data: that would be 600 kB.
    assert!(sent < 150_000, "{sent} bytes were pushed again");
    assert_eq!(registry.missing_from("second", "1"), [""; 0]);
    home.check(&source, &name("second:1"), &[]).ok();
    // Blobs that somebody deletes.
    let (_, manifest) = registry.manifest("first", "1").unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let blob = manifest["layers"][0]["digest"].as_str().unwrap();
    registry.remove_blob("first", blob);
    chunkdict("verify", &[])
        .exits(1)
        .says(&["FAILED", &first, blob, "is gone"]);
    home.convert(&source, &name("third:1"), &more).ok();
    assert_eq!(registry.missing_from("third", "1"), [""; 0]);
    home.check(&source, &name("third:1"), &[]).ok();
    chunkdict("gc", &["--grace-period", "0s"])
        .ok()
        .says(&["forgot", &first]);
    chunkdict("ls", &[]).ok();
    assert_well_behaved(&registry);
    assert_eq!(registry.counters().open_uploads, 0);
}
