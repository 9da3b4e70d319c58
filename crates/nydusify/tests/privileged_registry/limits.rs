//! Limits of a mount hold under a storm of readers: requests at once. With little memory all goes on, only slower.

use std::path::Path;
use std::time::Duration;

use testkit::layout::{Flavour, Layer, Layout, Packing};
use testkit::noise;
use testkit::registry::{Fault, Faults, Registry};
use testkit::tar::{Entry, Tar};

use crate::support::*;

/// Files of the image, and bytes of each.
const FILES: u64 = 24;
const SIZE: usize = 2 << 20;

/// An image of files that hardly compress, in a registry.
fn image(place: &Place, registry: &Registry) -> String {
    let mut tar = Tar::new();
    for number in 0..FILES {
        tar.add(Entry::file(format!("f{number}"), noise(number + 1, SIZE)));
    }
    let path = place.path("source");
    let mut layout = Layout::create(&path);
    let image = layout.manifest(&[Layer::new(&tar.finish(), Packing::Gzip)], Flavour::Oci);
    layout.tag(&image, "latest");
    drop(layout);
    registry.push_layout(&path, "latest", "image", "1");
    let [from, to] = ["image", "nydus"].map(|name| format!("{}/{name}:1", registry.host()));
    place.convert(&from, &to, &["--no-journal"]).ok();
    to
}

/// Reads all files, all at once.
fn storm(root: &Path) {
    std::thread::scope(|scope| {
        for number in 0..FILES {
            scope.spawn(move || {
                let read = std::fs::read(root.join(format!("f{number}"))).unwrap();
                assert!(
                    read == noise(number + 1, SIZE),
                    "f{number} has other content"
                );
            });
        }
    });
}

#[test]
fn privileged_limits_hold_under_a_storm_of_readers() {
    const NAME: &str = "privileged_limits_hold_under_a_storm_of_readers";
    let Some(place) = Place::new(NAME) else {
        return;
    };
    let registry = Registry::new();
    let to = image(&place, &registry);
    let late = Faults::of(1, 1.0, &[Fault::Latency]).latency(Duration::from_millis(40));
    for mode in modes(NAME, &place) {
        for (requests, prefetch) in [(1, "--prefetch"), (3, "--no-prefetch")] {
            registry.set_faults(Faults::none());
            let most = requests.to_string();
            let options = ["--mode", mode, "--max-requests", &most, "--memory", "8MiB"];
            let mount = place.mount_with(prefetch, &to, &options);
            registry.set_faults(late.clone());
            registry.forget_requests();
            storm(mount.path());
            let at_once = registry.counters().max_requests_at_once;
            assert!(at_once <= requests, "{mode}: {at_once} requests at once");
            assert!(prefetch == "--prefetch" || at_once > 1, "{mode}: {at_once}");
            mount.stop().ok();
        }
    }
}
