//! What the examples of `docs/nydusify` and `docs/backends.md` find, and how they are run.

use std::path::Path;

use testkit::bucket::Bucket;
use testkit::docs::Unmount;
use testkit::registry::Registry;

const NYDUSIFY: &str = env!("CARGO_BIN_EXE_nydusify");

/// Runs the examples of every page that can be run with what is there.
pub fn run(there: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let _unmount = Unmount(dir.path().to_owned());
    // They serve until the last example has run.
    let mut servers = Vec::new();
    let docs = testkit::workspace().join("docs");
    let mut pages = testkit::docs::pages(&docs.join("nydusify"));
    pages.push(docs.join("backends.md"));
    testkit::docs::prepare(&pages, dir.path(), there, |_, place| {
        let (registry, mirror, bucket) = (Registry::new(), Registry::new(), Bucket::s3());
        fill(place, &registry, &bucket);
        let hosts = vec![
            ("registry.example", registry.host()),
            ("mirror.example", mirror.host()),
        ];
        servers.push((registry, mirror, bucket));
        hosts
    });
    let bin = Path::new(NYDUSIFY).parent().unwrap().display();
    let path = std::env::var("PATH").unwrap();
    let home = dir.path().join("home").display().to_string();
    trycmd::TestCases::new()
        .env("PATH", format!("{bin}:{path}"))
        .env("HOME", &home)
        .env("XDG_CACHE_HOME", format!("{home}/.cache"))
        .env("DOCKER_CONFIG", format!("{home}/.docker"))
        .register_bin("sh", Path::new("/bin/sh"))
        .case(dir.path().join("*.md"))
        .run();
}

/// The busybox image in a layout and in a registry, plain and converted, and how to reach that registry and a bucket as
/// backends; a directory that lists no mirrors.
fn fill(dir: &Path, registry: &Registry, bucket: &Bucket) {
    let nydusify = |words: &str| testkit::run::run_in(dir, NYDUSIFY, words).ok();
    let fixture = testkit::fixture::busybox();
    let plain = format!(
        "oci:{}:{}",
        fixture.display(),
        testkit::fixture::BUSYBOX_TAG
    );
    let host = registry.host();
    nydusify(&format!("copy --source {plain} --target oci:images:node"));
    for tag in ["1", "2"] {
        nydusify(&format!("copy --source {plain} --target {host}/app:{tag}"));
    }
    nydusify("convert --no-journal --source oci:images:node --target oci:images:app-nydus");
    nydusify(&format!(
        "copy --source oci:images:app-nydus --target {host}/app:1-nydus"
    ));
    std::fs::write(dir.join("bucket.json"), bucket.config("")).unwrap();
    let backend = format!(r#"{{"host": "{host}", "repo": "app"}}"#);
    std::fs::write(dir.join("backend.json"), backend).unwrap();
    std::fs::create_dir(dir.join("certs.d")).unwrap();
}
