//! Indexes of images that nobody converted: made once, stored beside the image, and found from there.

use serde_json::Value;
use testkit::estargz::estargz;
use testkit::layout::{Flavour, Layer, Layout, Packing};
use testkit::registry::{Options, Registry};
use testkit::tar::Entry;

use crate::support::*;

/// The digests of the manifests that refer to the image, by the tag that stands in for the referrers API.
fn by_tag(registry: &Registry, repository: &str, digest: &str) -> Vec<String> {
    let tag = digest.replace(':', "-");
    let Some((_, index)) = registry.manifest(repository, &tag) else {
        return Vec::new();
    };
    let index: Value = serde_json::from_slice(&index).unwrap();
    let entries = index["manifests"].as_array().unwrap().iter();
    entries
        .map(|entry| entry["digest"].as_str().unwrap().to_owned())
        .collect()
}

/// The digest of the index that `nydusify index` makes.
#[track_caller]
fn index(home: &Home, image: &str, more: &[&str]) -> String {
    let ran = home.run(&["index", image], more).ok();
    ran.stdout.trim().to_owned()
}

#[test]
fn an_index_lies_beside_its_image_and_describes_it() {
    for referrers in [true, false] {
        let registry = match referrers {
            true => Registry::new(),
            false => Registry::start(Options::debian()),
        };
        let home = Home::new();
        small().put(&registry, "team/app", "1.0");
        let image = format!("{}/team/app:1.0", registry.host());
        let digest = index(&home, &image, &["--push"]);
        let (_, bytes) = registry.manifest("team/app", &digest).unwrap();
        let manifest: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(manifest["subject"]["digest"], *small().digest);
        assert_eq!(registry.tags("team/app").len(), 1 + usize::from(!referrers));
        if !referrers {
            assert_eq!(by_tag(&registry, "team/app", &small().digest), [&*digest]);
        }
        let beside = format!("{}/team/app@{digest}", registry.host());
        home.check(&image, &beside, &[]).ok();
        assert_well_behaved(&registry);

        // It is there, and each layer was read once.
        let layers = |registry: &Registry| {
            let requests = registry.requests().into_iter();
            let of_layers = requests.filter(|request| {
                let asked = small().layers().into_iter();
                request.method == "GET" && asked.clone().any(|hex| request.path.contains(hex))
            });
            of_layers.count()
        };
        registry.forget_requests();
        assert_eq!(index(&home, &image, &["--push"]), digest);
        assert_eq!(layers(&registry), 0);
        // Others make the same.
        registry.forget_requests();
        assert_eq!(index(&Home::new(), &image, &[]), digest);
        assert_eq!(layers(&registry), small().layers().len());
    }
}

#[test]
fn check_proves_what_a_mount_would_make_of_an_image() {
    let (registry, home) = (Registry::new(), Home::new());
    small().put(&registry, "app", "1");
    let image = format!("{}/app:1", registry.host());
    let ran = home.run(&["check", "--target", &image], &[]).ok();
    for word in ["source of 3 layers", "target of 4 layers", "verified image"] {
        assert!(ran.stdout.contains(word), "{ran}");
    }
}

#[test]
fn what_needs_no_index_gets_none() {
    let (registry, home) = (Registry::new(), Home::new());
    small().put(&registry, "app", "1");
    let image = format!("{}/app:1", registry.host());
    let converted = format!("{}/app:1-nydus", registry.host());
    home.convert(&image, &converted, &[]).ok();
    home.run(&["index", &converted], &[])
        .fails_with(&["converted", "needs no index"]);
    let layout = tempfile::tempdir().unwrap();
    let elsewhere = format!("oci:{}:x", layout.path().display());
    home.run(&["index", &elsewhere, "--push"], &[])
        .exits(2)
        .says(&["--push"]);
}

/// An image with one eStargz layer, whose manifest pins the table of contents `toc`.
fn pinning(registry: &Registry, toc: impl FnOnce(&[u8]) -> String) -> String {
    let star = estargz(
        &[
            Entry::directory("d/"),
            Entry::file("d/large", testkit::prose(1, 5 << 20)),
            Entry::file("d/small", testkit::prose(2, 9000)),
        ],
        4 << 20,
    );
    let mut tar = Vec::new();
    let mut inflate = flate2::read::MultiGzDecoder::new(&star.blob[..]);
    std::io::copy(&mut inflate, &mut tar).unwrap();
    let pinned = toc(&star.toc);
    let layer = Layer {
        bytes: star.blob,
        ..Layer::new(&tar, Packing::Gzip)
    };
    let dir = tempfile::tempdir().unwrap();
    let mut layout = Layout::create(dir.path());
    let image = layout.manifest_with(&[layer], Flavour::Oci, |manifest, _| {
        manifest["layers"][0]["annotations"] =
            serde_json::json!({"containerd.io/snapshot/stargz/toc.digest": pinned});
    });
    layout.tag(&image, "star");
    registry.push_layout(dir.path(), "star", "star", "1");
    format!("{}/star:1", registry.host())
}

#[test]
fn of_an_estargz_layer_the_pinned_table_of_contents_is_enough() {
    let (registry, home) = (Registry::new(), Home::new());
    let image = pinning(&registry, |toc| format!("sha256:{}", testkit::sha256(toc)));
    registry.forget_requests();
    index(&home, &image, &[]);
    let sent: u64 = registry.requests().iter().map(|request| request.sent).sum();
    assert!(sent < 20_000, "{sent} bytes were sent");
    home.run(&["check", "--target", &image], &[]).ok();
}

#[test]
fn a_table_of_contents_that_is_not_the_pinned_one_is_not_believed() {
    let (registry, home) = (Registry::new(), Home::new());
    let wrong = format!("sha256:{}", "5".repeat(64));
    let image = pinning(&registry, |_| wrong.clone());
    let ran = home.run(&["index", &image], &[]).ok();
    assert!(ran.stderr.contains("the manifest says"), "{ran}");
    assert!(ran.stderr.contains(&wrong), "{ran}");
    home.run(&["check", "--target", &image], &[]).ok();
}
