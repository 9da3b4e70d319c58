//! Limits of a mount hold under a storm of readers: requests at once, and memory. With little of it all goes on, only slower.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;

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

/// The processes of the mount at `root`.
fn processes(place: &Place, root: &Path) -> Vec<u64> {
    let stat = place.run(&["stat", "--output", "json"], &[root.to_str().unwrap()]);
    let stat: Value = serde_json::from_str(&stat.stdout).unwrap();
    let processes = stat["processes"].as_array().unwrap().iter();
    processes
        .map(|process| process["pid"].as_u64().unwrap())
        .collect()
}

/// Memory of processes that is no file's, in bytes, now.
fn anonymous(processes: &[u64]) -> u64 {
    let of = |process: &u64| {
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:"));
        let kib = line.unwrap().split_whitespace().nth(1).unwrap();
        kib.parse::<u64>().unwrap() << 10
    };
    processes.iter().map(of).sum()
}

/// The most memory that is used while `work` goes on, above that of before.
fn most_while(processes: &[u64], work: impl FnOnce()) -> u64 {
    let before = anonymous(processes);
    let done = AtomicBool::new(false);
    let most = std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut most = 0;
            while !done.load(Ordering::Relaxed) {
                most = most.max(anonymous(processes));
                std::thread::sleep(Duration::from_millis(2));
            }
            most
        });
        work();
        done.store(true, Ordering::Relaxed);
        watch.join().unwrap()
    });
    most.saturating_sub(before)
}

/// All data in flight fits into the budget; what else threads and tables take, and what the allocator keeps for each
/// thread, is not much.
#[test]
fn privileged_memory_is_limited_under_a_storm_of_readers() {
    const NAME: &str = "privileged_memory_is_limited_under_a_storm_of_readers";
    const REST: u64 = 32 << 20;
    let Some(place) = Place::new(NAME) else {
        return;
    };
    let registry = Registry::new();
    let to = image(&place, &registry);
    for mode in modes(NAME, &place) {
        for budget in [8_u64, 32] {
            let memory = format!("{budget}MiB");
            let options = ["--mode", mode, "--memory", &memory];
            let mount = place.mount_with("--prefetch", &to, &options);
            let processes = processes(&place, mount.path());
            let most = most_while(&processes, || storm(mount.path()));
            println!("{mode}, {memory}: {} KiB more", most >> 10);
            assert!(most <= (budget << 20) + REST, "{mode}, {memory}: {most}");
            mount.stop().ok();
        }
    }
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
