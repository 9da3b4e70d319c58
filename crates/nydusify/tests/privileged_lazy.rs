//! Mounts straight from a registry: how little has to be asked before the first file can be read.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use testkit::fixture::{self, BUSYBOX_TAG};
use testkit::registry::{Auth, Bearer, Host, Options, Registry, Request, User};
use testkit::run::{Ran, output};
use testkit::{oracle, skip};

const NYDUSIFY: &str = env!("CARGO_BIN_EXE_nydusify");

/// A registry with tokens whose blobs lie on a storage host, and the credentials for it.
struct World {
    registry: Registry,
    scratch: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let registry = Registry::start(Options {
            auth: Auth::Bearer(Bearer {
                users: vec![User::new("u", "p")],
                ..Bearer::default()
            }),
            redirect: Some(Duration::from_secs(60)),
            ..Options::default()
        });
        let scratch = tempfile::tempdir().unwrap();
        // "u:p"
        let config = format!(r#"{{"auths":{{"{}":{{"auth":"dTpw"}}}}}}"#, registry.host());
        std::fs::write(scratch.path().join("config.json"), config).unwrap();
        registry.push_layout(&fixture::busybox(), BUSYBOX_TAG, "source", "plain");
        Self { registry, scratch }
    }

    fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.registry.host())
    }

    fn nydusify(&self, arguments: &[&str]) -> Ran {
        let mut command = Command::new(NYDUSIFY);
        command
            .args(arguments)
            .arg("--plain-http")
            .env("DOCKER_CONFIG", self.scratch.path())
            .env("XDG_CACHE_HOME", self.scratch.path().join("cache"))
            .env("NO_PROXY", "*");
        output(&mut command)
    }

    fn requests_since(&self, before: usize) -> Vec<Request> {
        self.registry.requests().split_off(before)
    }
}

fn unmount(at: &Path) {
    let at = at.to_str().unwrap();
    output(Command::new(NYDUSIFY).args(["umount", at])).ok();
}

#[test]
fn a_mount_is_ready_three_round_trips_after_its_bootstrap_and_fetches_what_is_read() {
    let name = "a_mount_is_ready_three_round_trips_after_its_bootstrap_and_fetches_what_is_read";
    if let Some(why) = oracle::no_fuse() {
        return skip(name, why);
    }
    let world = World::new();
    let (source, target) = (
        world.reference("source:plain"),
        world.reference("target:nydus"),
    );
    let convert = ["convert", "--source", &source, "--target", &target];
    world.nydusify(&convert).ok();

    let at = world.scratch.path().join("root");
    let before = world.registry.requests().len();
    let cache = world.scratch.path().join("chunks");
    world
        .nydusify(&[
            "mount",
            "--target",
            &target,
            "--mount-path",
            at.to_str().unwrap(),
            "--cache-dir",
            cache.to_str().unwrap(),
            "--no-prefetch",
            "--detach",
        ])
        .ok();
    // Chunk tables are read beside the mounting, by ranges; the bootstrap is fetched whole, and from elsewhere.
    let ready = world.requests_since(before);
    let asked: Vec<&Request> = ready
        .iter()
        .filter(|request| request.range.is_none() && request.host != Host::Storage)
        .filter(|request| !(request.path.contains("/blobs/") && request.status == 307))
        .collect();
    assert!(asked.len() <= 3, "{asked:#?}");

    let fetched = || -> u64 {
        let all = world.requests_since(before);
        let ranges = all.iter().filter(|request| request.range.is_some());
        ranges.map(|request| request.sent).sum()
    };
    // The warm-up has read what it wants by then.
    std::thread::sleep(Duration::from_millis(500));
    let idle = fetched();
    let original = std::fs::read(at.join("etc/passwd")).unwrap();
    assert!(!original.is_empty());
    let first = fetched() - idle;
    assert!(
        first <= 4096,
        "a small file took {first} bytes from the registry"
    );
    assert!(world.registry.violations().is_empty());
    unmount(&at);
}
