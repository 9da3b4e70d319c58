//! Mounts whose blobs lie outside of the image.

use testkit::bucket::Bucket;
use testkit::fixture::busybox_expect;

use crate::support::*;

#[test]
fn privileged_blobs_in_backends_are_mounted() {
    let name = "privileged_blobs_in_backends_are_mounted";
    for store in [Some(Bucket::s3()), Some(Bucket::oss()), None] {
        let Some(place) = Place::new(name) else {
            return;
        };
        let (kind, config) = match &store {
            Some(store) => (store.kind(), store.config("a/")),
            None => {
                let dir = serde_json::json!({"dir": place.path("blobs")});
                ("localfs", dir.to_string())
            }
        };
        let backend = ["--backend-type", kind, "--backend-config", &config];
        let mut more = backend.to_vec();
        more.push("--no-journal");
        let target = place.converted(&fixture(), &more);
        if let Some(store) = &store {
            store.requests();
        }
        let mount = place.mount(&target, &backend);
        assert_equal(&busybox_expect().compare(mount.path()));
        mount.stop().ok();
        if let Some(store) = &store {
            let requests = store.requests();
            assert!(
                requests
                    .iter()
                    .any(|line| line.starts_with("GET /blobs/a/")),
                "{requests:?}"
            );
        }
    }
}
