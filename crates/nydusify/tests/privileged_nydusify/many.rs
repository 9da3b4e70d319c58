//! Images of many blobs, and many mounts.

use std::path::{Path, PathBuf};
use std::time::Instant;

use testkit::layout::{Flavour, Layer, Layout, Packing};
use testkit::run::{output, run, wait_until};
use testkit::tar::{Entry, Tar};

use crate::kernel::holders;
use crate::support::*;

/// Mounts an image with as many blobs in both modes and reads a file of each.
fn read_all_blobs(name: &str, count: usize) {
    let Some(place) = Place::new(name) else {
        return;
    };
    let tars: Vec<Vec<u8>> = (0..count)
        .map(|number| {
            let mut tar = Tar::new();
            let content = format!("content of layer {number}").repeat(100);
            tar.add(Entry::file(format!("f{number}"), content.as_bytes()));
            tar.finish()
        })
        .collect();
    let layers: Vec<Layer> = tars
        .iter()
        .map(|tar| Layer::new(tar, Packing::Gzip))
        .collect();
    let mut layout = Layout::create(Box::leak(place.path("source").into_boxed_path()));
    let image = layout.manifest(&layers, Flavour::Oci);
    layout.tag(&image, "latest");
    let target = place.converted(&place.oci("source", "latest"), &[]);
    let root = place.path("root");
    let mut modes = vec!["fuse"];
    let doctor = output(
        std::process::Command::new(NYDUSIFY)
            .args(["doctor", "--output", "json", "--cache-dir"])
            .arg(place.directory("cache")),
    );
    if doctor.stdout.contains(r#""erofs":true"#) {
        modes.push("erofs");
    } else {
        testkit::skip(name, "the kernel can't fill EROFS mounts on demand here");
    }
    for mode in modes {
        let cache = place.path("cache");
        std::fs::remove_dir_all(&cache).unwrap();
        let mut command = place.mount_command(&target);
        output(command.args(["--mode", mode, "--detach", "--no-prefetch"])).ok();
        for number in 0..count {
            let content = std::fs::read_to_string(root.join(format!("f{number}"))).unwrap();
            let expected = format!("content of layer {number}").repeat(100);
            assert!(content == expected, "{mode}: f{number}");
        }
        run(NYDUSIFY, ["umount", root.to_str().unwrap()]).ok();
    }
}

#[test]
fn privileged_an_image_of_60_blobs_is_mounted_in_both_modes() {
    read_all_blobs(
        "privileged_an_image_of_60_blobs_is_mounted_in_both_modes",
        60,
    );
}

#[test]
fn privileged_an_image_of_250_blobs_is_mounted_in_both_modes() {
    read_all_blobs(
        "privileged_an_image_of_250_blobs_is_mounted_in_both_modes",
        250,
    );
}

/// How many mounts there are at once: `NYDUSIFY_MOUNTS`, for more of them by hand.
fn mounts() -> usize {
    let mounts = std::env::var("NYDUSIFY_MOUNTS");
    mounts.map_or(12, |mounts| mounts.parse().expect("a number of mounts"))
}

/// Memory of a process in KiB, with its share of what it shares with others, and its threads.
fn cost(id: i32) -> (u64, u64) {
    let number = |file: &str, name: &str| -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{id}/{file}")).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let word = line.and_then(|line| line.split_whitespace().next());
        word.map_or(0, |word| word.parse().unwrap())
    };
    (number("smaps_rollup", "Pss:"), number("status", "Threads:"))
}

/// Most threads of an idle mount, all its processes together.
const THREADS_MAX: u64 = 8;

#[test]
fn privileged_many_mounts_are_served_at_once() {
    let name = "privileged_many_mounts_are_served_at_once";
    let Some(place) = Place::new(name) else {
        return;
    };
    let (target, expected) = noisy(&place, 4);
    let roots: Vec<PathBuf> = (0..mounts())
        .map(|number| place.path(&format!("root-{number}")))
        .collect();
    for mode in modes(name, &place) {
        std::fs::remove_dir_all(place.path("cache")).unwrap();
        let begun = Instant::now();
        let each = |work: &(dyn Fn(&Path) + Sync)| {
            std::thread::scope(|scope| {
                for part in roots.chunks(roots.len().div_ceil(8)) {
                    scope.spawn(move || part.iter().for_each(|root| work(root)));
                }
            });
        };
        each(&|root| {
            let mut command = place.mount_command(&target);
            command.args(["--mode", mode, "--detach", "--no-prefetch", "--mount-path"]);
            output(command.arg(root)).ok();
        });
        let ready = begun.elapsed();
        each(&|root| {
            for (name, data) in &expected {
                let read = std::fs::read(root.join(name));
                assert!(read.unwrap() == *data, "{mode}: {}", root.display());
            }
        });
        let processes: Vec<i32> = match mode {
            "fuse" => roots
                .iter()
                .flat_map(|root| {
                    let Pair { server, keeper } = Pair::of(root);
                    [server, keeper]
                })
                .collect(),
            _ => {
                let found = holders(&place.path("cache"));
                [found.fillers, found.guardians].concat()
            }
        };
        let count = roots.len() as u64;
        assert_eq!(
            processes.len() as u64,
            count * if mode == "fuse" { 2 } else { 3 }
        );
        let all = || {
            let costs = processes.iter().map(|&id| cost(id));
            costs.fold((0, 0), |sum, cost| (sum.0 + cost.0, sum.1 + cost.1))
        };
        wait_until("few threads", || all().1 <= count * THREADS_MAX);
        let (memory, threads) = all();
        eprintln!(
            "{count} mounts, {mode}: {} ms each until ready; {} KiB and {:.1} threads each when idle",
            ready.as_millis() as u64 / count,
            memory / count,
            threads as f64 / count as f64
        );
        each(&|root| drop(run(NYDUSIFY, ["umount", root.to_str().unwrap()]).ok()));
        wait_until("their end", || !processes.iter().any(|&id| lives(id)));
    }
}
