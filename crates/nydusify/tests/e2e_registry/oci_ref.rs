//! Images by reference in registries: original layers are taken over where that is possible, and fetched once where not.

use testkit::registry::Registry;

use crate::support::*;

#[test]
fn original_layers_come_along_and_are_fetched_once() {
    let (here, there, home) = (Registry::new(), Registry::new(), Home::new());
    small().put(&here, "team/app", "1.0");
    let source = format!("{}/team/app:1.0", here.host());
    let blobs = |registry: &Registry, repository: &str| {
        let layers = small().layers();
        // zstd is converted.
        for layer in &layers[..2] {
            assert!(registry.blob(repository, layer).is_some(), "{layer}");
        }
        assert!(registry.blob(repository, layers[2]).is_none() || repository == "team/app");
    };
    let same = format!("{}/team/app:1.0-ref", here.host());
    home.convert(&source, &same, &["--oci-ref", "--check"]).ok();
    home.check(&source, &same, &[]).ok();
    blobs(&here, "team/app");

    // Another repository of the registry mounts them.
    here.forget_requests();
    let other = format!("{}/other/place:ref", here.host());
    home.convert(&source, &other, &["--oci-ref"]).ok();
    home.check(&source, &other, &[]).ok();
    blobs(&here, "other/place");

    // Another registry gets them while they are read.
    here.forget_requests();
    let away = format!("{}/away:ref", there.host());
    home.convert(&source, &away, &["--oci-ref", "--no-journal"])
        .ok();
    for layer in small().layers() {
        let fetched = here.requests().into_iter();
        let fetched = fetched.filter(|r| r.method == "GET" && r.path.contains(layer));
        assert_eq!(fetched.count(), 1, "{layer}");
    }
    blobs(&there, "away");
    assert_eq!(
        here.digest("other/place", "ref"),
        there.digest("away", "ref")
    );
    home.check(&source, &away, &[]).ok();
}
