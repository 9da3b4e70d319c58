//! Mounts by the kernel's EROFS, filled on demand: right in content and metadata, and whatever process is killed.

use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};
use testkit::expect::compare_trees;
use testkit::layout::{Flavour, Layer, Layout, Packing};
use testkit::run::{Ran, is_mounted, output, run, wait_until};
use testkit::{corner, fixture, skip};

use crate::support::*;

/// A place on a machine where the kernel can do it; says so where it can't.
fn place(name: &str) -> Option<Place> {
    let place = Place::new(name)?;
    let doctor = output(
        std::process::Command::new(NYDUSIFY)
            .args(["doctor", "--output", "json", "--cache-dir"])
            .arg(place.directory("cache")),
    );
    if !doctor.stdout.contains(r#""erofs":true"#) {
        skip(
            name,
            &format!(
                "the kernel can't fill EROFS mounts on demand here: {}",
                doctor.stdout
            ),
        );
        return None;
    }
    Some(place)
}

/// Mounts at `root`, in the background; what the command says.
fn mount(place: &Place, target: &str, options: &[&str]) -> Ran {
    let mut command = place.mount_command(target);
    command.args(["--mode", "erofs", "--detach"]).args(options);
    output(&mut command)
}

fn umount(place: &Place) {
    run(NYDUSIFY, ["umount", place.path("root").to_str().unwrap()]).ok();
    assert!(!is_mounted(&place.path("root")));
    assert_eq!(
        holders(&place.path("cache")),
        Processes::default(),
        "processes are left"
    );
}

/// Who serves the mount of a cache.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Processes {
    pub guardians: Vec<i32>,
    pub fillers: Vec<i32>,
}

/// The processes that hold the locks of the kernel's mounts in a cache directory.
pub fn holders(cache: &Path) -> Processes {
    let mounts = cache.join("mounts");
    let mut found = Processes::default();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(id) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        let Ok(descriptors) = std::fs::read_dir(entry.path().join("fd")) else {
            continue;
        };
        let holds = descriptors
            .flatten()
            .any(|fd| std::fs::read_link(fd.path()).is_ok_and(|path| path.starts_with(&mounts)));
        if holds {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let guard = line.split(|&byte| byte == 0).nth(1) == Some(b"guard");
            if guard {
                &mut found.guardians
            } else {
                &mut found.fillers
            }
            .push(id);
        }
    }
    found
}

/// Waits until all three are there again.
#[track_caller]
pub fn complete(cache: &Path) -> Processes {
    let mut found = Processes::default();
    wait_until("two guardians and a filler", || {
        found = holders(cache);
        found.guardians.len() == 2 && found.fillers.len() == 1
    });
    found
}

#[test]
fn privileged_the_kernel_shows_what_is_filled_on_demand() {
    let Some(place) = place("privileged_the_kernel_shows_what_is_filled_on_demand") else {
        return;
    };
    let target = place.converted(&fixture(), &[]);
    mount(&place, &target, &["--no-prefetch"]).ok();
    let root = place.path("root");
    assert_eq!(
        std::fs::read(root.join("etc/os-release")).unwrap().first(),
        Some(&b'N')
    );
    let fetched = stored(&place.path("cache"));
    assert!(fetched < 500_000, "{fetched} bytes for one small file");
    assert_equal(&fixture::busybox_expect().compare(&root));
    umount(&place);

    // What the kernel had filled serves FUSE, without the blobs.
    std::fs::rename(place.path("nydus/blobs"), place.path("away")).unwrap();
    std::fs::create_dir_all(place.path("nydus/blobs/sha256")).unwrap();
    let manifests = std::fs::read_dir(place.path("away/sha256"))
        .unwrap()
        .flatten();
    for small in manifests.filter(|entry| entry.metadata().unwrap().len() < 100_000) {
        std::fs::copy(
            small.path(),
            place.path("nydus/blobs/sha256").join(small.file_name()),
        )
        .unwrap();
    }
    let fuse = place.mount(&target, &["--no-prefetch"]);
    assert_equal(&fixture::busybox_expect().compare(fuse.path()));
    fuse.stop().ok();
    // And the other way round; everything is there, so nothing is asked.
    mount(&place, &target, &["--no-prefetch"]).ok();
    assert_equal(&fixture::busybox_expect().compare(&root));
    umount(&place);
}

#[test]
fn privileged_the_kernel_and_fuse_show_the_same_corner_cases() {
    let Some(place) = place("privileged_the_kernel_and_fuse_show_the_same_corner_cases") else {
        return;
    };
    let corner::Corner { layers, expect } = corner::image();
    let mut layout = Layout::create(Box::leak(place.path("source").into_boxed_path()));
    let packed: Vec<Layer> = layers
        .iter()
        .map(|tar| Layer::new(tar, Packing::Gzip))
        .collect();
    let image = layout.manifest(&packed, Flavour::Oci);
    layout.tag(&image, "latest");
    let target = place.converted(
        &place.oci("source", "latest"),
        &["--fs-chunk-size", "0x10000", "--batch-size", "0x10000"],
    );
    mount(&place, &target, &[]).ok();
    assert_equal(&expect.compare(&place.path("root")));
    let mut fuse = std::process::Command::new(NYDUSIFY);
    fuse.args(["mount", "--detach", "--target", &target, "--mount-path"])
        .arg(place.path("fuse"));
    output(fuse.arg("--cache-dir").arg(place.path("cache-of-fuse"))).ok();
    assert_equal(&compare_trees(&place.path("fuse"), &place.path("root")));
    run(NYDUSIFY, ["umount", place.path("fuse").to_str().unwrap()]).ok();
    umount(&place);
}

#[test]
fn privileged_any_process_may_be_killed() {
    let Some(place) = place("privileged_any_process_may_be_killed") else {
        return;
    };
    let (target, expected) = noisy(&place, 5 * kill_rounds() as u64);
    mount(&place, &target, &["--no-prefetch"]).ok();
    let (root, cache) = (place.path("root"), place.path("cache"));
    let files: Vec<_> = expected.iter().collect();
    for (round, part) in files.chunks(5).enumerate() {
        let processes = complete(&cache);
        let victim = match round % 3 {
            0 => processes.fillers[0],
            1 => processes.guardians[0],
            _ => processes.guardians[1],
        };
        // Readers are under way before, at and after the kill.
        std::thread::scope(|scope| {
            for (at, (name, data)) in part.iter().enumerate() {
                let root = &root;
                scope.spawn(move || {
                    std::thread::sleep(std::time::Duration::from_millis(at as u64));
                    let begun = std::time::Instant::now();
                    let read = std::fs::read(root.join(name))
                        .unwrap_or_else(|error| panic!("{}: {error}", name.display()));
                    assert!(read == **data, "{} has other content", name.display());
                    assert!(begun.elapsed().as_secs() < 10, "{:?}", begun.elapsed());
                });
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
            kill_process(Pid::from_raw(victim).unwrap(), Signal::KILL).unwrap();
        });
    }
    complete(&cache);
    for (name, data) in &expected {
        assert!(
            std::fs::read(root.join(name)).unwrap() == *data,
            "{}",
            name.display()
        );
    }
    umount(&place);
}

#[test]
fn privileged_mounts_of_all_kinds_share_a_cold_cache() {
    let Some(place) = place("privileged_mounts_of_all_kinds_share_a_cold_cache") else {
        return;
    };
    let (target, expected) = noisy(&place, 60);
    let roots = ["one", "two", "three", "four"].map(|name| place.path(name));
    for (root, mode) in roots.iter().zip(["erofs", "fuse", "erofs", "fuse"]) {
        let mut command = place.mount_command(&target);
        command.args(["--mode", mode, "--detach", "--no-prefetch", "--mount-path"]);
        output(command.arg(root)).ok();
    }
    // Everybody reads everything at once, some forwards, some backwards.
    std::thread::scope(|scope| {
        for (at, root) in roots.iter().chain(&roots).enumerate() {
            let mut files: Vec<_> = expected.iter().collect();
            if at % 3 == 0 {
                files.reverse();
            }
            scope.spawn(move || {
                for (name, data) in files {
                    let start = std::time::Instant::now();
                    let read = std::fs::read(root.join(name))
                        .unwrap_or_else(|error| panic!("{at} {}: {error}", name.display()));
                    assert!(read == *data, "{at} {} has other content", name.display());
                    let took = start.elapsed();
                    assert!(took.as_secs() < 5, "{at} {}: {took:?}", name.display());
                }
            });
        }
    });
    // One goes; the others don't mind. Their data is there without the blobs.
    run(NYDUSIFY, ["umount", roots[0].to_str().unwrap()]).ok();
    std::fs::rename(place.path("nydus"), place.path("away")).unwrap();
    for root in &roots[1..] {
        for (name, data) in &expected {
            assert!(std::fs::read(root.join(name)).unwrap() == *data);
        }
        run(NYDUSIFY, ["umount", root.to_str().unwrap()]).ok();
    }
    let cache = place.path("cache");
    assert_eq!(holders(&cache), Processes::default(), "processes are left");
    assert_eq!(
        std::fs::read_dir(cache.join("mounts")).unwrap().count(),
        0,
        "places are left"
    );
}

#[test]
fn privileged_a_signal_to_the_filler_ends_the_mount() {
    let Some(place) = place("privileged_a_signal_to_the_filler_ends_the_mount") else {
        return;
    };
    // So many that the last is not fetched along with the first.
    let (target, expected) = noisy(&place, 12);
    let (root, cache) = (place.path("root"), place.path("cache"));
    mount(&place, &target, &["--no-prefetch"]).ok();
    // A filler that took over ends it, too.
    let first = complete(&cache).fillers[0];
    kill_process(Pid::from_raw(first).unwrap(), Signal::KILL).unwrap();
    wait_until("another filler", || {
        holders(&cache).fillers.iter().any(|&id| id != first)
    });
    let (name, data) = expected.iter().next().unwrap();
    assert!(std::fs::read(root.join(name)).unwrap() == *data);
    let second = complete(&cache).fillers[0];
    kill_process(Pid::from_raw(second).unwrap(), Signal::TERM).unwrap();
    wait_until("the end of the mount", || {
        !is_mounted(&root) && holders(&cache) == Processes::default()
    });

    // In use it goes as well, and its users get errors for what was not fetched, never zeros.
    mount(&place, &target, &["--no-prefetch"]).ok();
    let (other, content) = expected.iter().next_back().unwrap();
    let file = std::fs::File::open(root.join(other)).unwrap();
    let filler = complete(&cache).fillers[0];
    kill_process(Pid::from_raw(filler).unwrap(), Signal::TERM).unwrap();
    wait_until("the end of the filler", || {
        holders(&cache).fillers.is_empty() && !is_mounted(&root)
    });
    let mut all = vec![0; content.len()];
    use std::os::unix::fs::FileExt as _;
    let read = file.read_exact_at(&mut all, 0);
    assert!(read.is_err(), "a read that nobody can serve");
    assert!(
        !holders(&cache).guardians.is_empty(),
        "as long as it is in use"
    );
    drop(file);
    wait_until("the end of the guardians", || {
        holders(&cache) == Processes::default()
    });
}

#[test]
fn privileged_damage_is_an_error_and_a_dead_mount_is_replaced() {
    let Some(place) = place("privileged_damage_is_an_error_and_a_dead_mount_is_replaced") else {
        return;
    };
    let (target, expected) = noisy(&place, 4);
    let (root, cache) = (place.path("root"), place.path("cache"));
    let blobs = || {
        std::fs::read_dir(place.path("nydus/blobs/sha256"))
            .unwrap()
            .flatten()
    };
    let blob = blobs()
        .max_by_key(|entry| entry.metadata().unwrap().len())
        .unwrap()
        .path();
    let good = std::fs::read(&blob).unwrap();
    let mut bad = good.clone();
    bad[200_000] ^= 1;
    std::fs::write(&blob, &bad).unwrap();
    mount(&place, &target, &["--no-prefetch"]).ok();
    let failed = expected
        .iter()
        .filter(|(name, data)| match std::fs::read(root.join(name)) {
            Ok(read) => {
                assert!(read == **data, "{}", name.display());
                false
            }
            Err(error) => {
                assert_eq!(
                    error.raw_os_error(),
                    Some(rustix::io::Errno::IO.raw_os_error())
                );
                true
            }
        });
    assert_eq!(failed.count(), 1, "the one file with the damaged chunk");

    // All that guard it killed at once: the next mount of the cache takes the dead one away.
    let Processes { guardians, fillers } = complete(&cache);
    for id in guardians.into_iter().chain(fillers) {
        let _ = kill_process(Pid::from_raw(id).unwrap(), Signal::STOP);
    }
    let Processes { guardians, fillers } = holders(&cache);
    for id in guardians.into_iter().chain(fillers) {
        let _ = kill_process(Pid::from_raw(id).unwrap(), Signal::KILL);
    }
    wait_until("their end", || holders(&cache) == Processes::default());
    assert!(is_mounted(&root), "nobody took it away");
    std::fs::write(&blob, &good).unwrap();
    mount(&place, &target, &["--no-prefetch"]).ok();
    for (name, data) in &expected {
        assert!(
            std::fs::read(root.join(name)).unwrap() == *data,
            "{}",
            name.display()
        );
    }
    umount(&place);
}

#[test]
fn privileged_what_the_kernel_cannot_mount_goes_through_fuse() {
    let Some(place) = place("privileged_what_the_kernel_cannot_mount_goes_through_fuse") else {
        return;
    };
    let target = place.converted(&fixture(), &["--fs-version", "5"]);
    mount(&place, &target, &[]).fails_with(&["RAFS v5", "transcode"]);
    let mut command = place.mount_command(&target);
    output(command.args(["--mode", "auto", "--detach"]))
        .ok()
        .says(&["FUSE"]);
    assert_equal(&fixture::busybox_expect().compare(&place.path("root")));
    run(NYDUSIFY, ["umount", place.path("root").to_str().unwrap()]).ok();

    std::fs::remove_dir_all(place.path("nydus")).unwrap();
    let target = place.converted(&fixture(), &[]);
    let mut command = place.mount_command(&target);
    output(command.args(["--mode", "auto", "--detach"])).ok();
    assert_equal(&fixture::busybox_expect().compare(&place.path("root")));
    complete(&place.path("cache"));
    umount(&place);
}

#[test]
fn privileged_another_program_takes_over_a_mount_by_the_kernel() {
    let Some(place) = place("privileged_another_program_takes_over_a_mount_by_the_kernel") else {
        return;
    };
    let (target, expected) = noisy(&place, 30);
    let old = place.path("old-nydusify");
    std::fs::copy(NYDUSIFY, &old).unwrap();
    let mut command = place.mount_command_of(&old, &target);
    output(command.args(["--mode", "erofs", "--detach", "--no-prefetch"])).ok();
    let (root, cache) = (place.path("root"), place.path("cache"));
    let before = complete(&cache);
    std::fs::remove_file(&old).unwrap();
    read_while(&root, &expected, || {
        run(
            NYDUSIFY,
            ["mount", "--replace", "--mount-path", root.to_str().unwrap()],
        )
        .ok();
    });
    let after = complete(&cache);
    for id in after.guardians.iter().chain(&after.fillers) {
        assert!(!before.guardians.contains(id) && !before.fillers.contains(id));
        assert_eq!(
            std::fs::read_link(format!("/proc/{id}/exe")).unwrap(),
            Path::new(NYDUSIFY)
        );
    }
    umount(&place);
}

/// The image that is mounted is the one that is filled, whatever its name leads to.
#[test]
fn privileged_a_new_filler_fills_the_image_that_is_mounted() {
    let Some(place) = place("privileged_a_new_filler_fills_the_image_that_is_mounted") else {
        return;
    };
    let (target, expected) = noisy(&place, 4);
    mount(&place, &target, &["--no-prefetch"]).ok();
    let (root, cache) = (place.path("root"), place.path("cache"));
    let before = complete(&cache);
    place.converted(&fixture(), &[]);
    kill_process(Pid::from_raw(before.fillers[0]).unwrap(), Signal::KILL).unwrap();
    read_while(&root, &expected, || {});
    umount(&place);
}
