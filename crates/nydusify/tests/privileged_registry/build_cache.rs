//! The build cache in a real registry: whoever comes second converts nothing.

use testkit::docker_registry::{DockerRegistry, Options};
use testkit::fixture;

use crate::support::*;

#[test]
fn privileged_the_build_cache_in_a_real_registry() {
    let Some(place) = Place::new("privileged_the_build_cache_in_a_real_registry") else {
        return;
    };
    let server = DockerRegistry::start(Options::default());
    let source = repository(server.host(), "image", None);
    push(
        &fixture::busybox(),
        fixture::BUSYBOX_TAG,
        false,
        &source,
        "1",
    );
    let name = |name: &str| format!("{}/{name}", server.host());
    let (from, first, second) = (name("image:1"), name("image:nydus"), name("other:nydus"));
    let cache = name("keep/cache:1");
    let caching = ["--no-journal", "--build-cache", &cache];
    place
        .convert(&from, &first, &caching)
        .ok()
        .says(&["3 layers more"]);
    place
        .convert(&from, &second, &caching)
        .ok()
        .says(&["3 layers", "were in the build cache"]);
    place.check(&from, &second, &[]).ok();
    // The records name source layers that are in the cache's repository, as the deployed tool wants it.
    let kept = repository(server.host(), "keep/cache", None);
    let read = |reference: &str| -> serde_json::Value {
        serde_json::from_slice(&kept.manifest(reference).unwrap().bytes).unwrap()
    };
    let manifest = read(read("1")["manifests"][0]["digest"].as_str().unwrap());
    for record in manifest["layers"].as_array().unwrap() {
        let layer = &record["annotations"]["containerd.io/snapshot/nydus-source-digest"];
        let layer = layer.as_str().unwrap().parse().unwrap();
        assert!(kept.blob_size(&layer).unwrap().is_some(), "{record}");
    }
    let digests = ["image", "other"].map(|name| {
        let repository = repository(server.host(), name, None);
        repository.manifest("nydus").unwrap().digest
    });
    assert_eq!(digests[0], digests[1]);
    let mount = place.mount(&second, &[]);
    assert_equal(&fixture::busybox_expect().compare(mount.path()));
    mount.stop().ok();
    assert_eq!(server.open_uploads(), 0);
}
