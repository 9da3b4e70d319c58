//! What a mount serves and survives: large directories, prefetch, mount points left behind, users that stay.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use testkit::fixture::busybox_expect;
use testkit::layout::{self, Packing};
use testkit::run::{is_mounted, output, run, wait_until};
use testkit::tar::{Entry, Tar};

use crate::support::*;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn privileged_a_directory_of_100000_files_is_listed_whole() {
    let Some(place) = Place::new("privileged_a_directory_of_100000_files_is_listed_whole") else {
        return;
    };
    let name = |number: u32| format!("file-{number:06}");
    let mut tar = Tar::new();
    for number in 0..100_000 {
        tar.add(Entry::file(format!("many/{}", name(number)), b""));
    }
    layout::write(&place.path("source"), &[tar.finish()], Packing::Zstd);
    let target = place.oci("nydus", "v6");
    run(
        NYDUSIFY,
        [
            "convert",
            "--source",
            &place.oci("source", "latest"),
            "--target",
            &target,
        ],
    )
    .ok();
    let mount = place.mount(&target, &[]);
    let started = Instant::now();
    let listing = || -> BTreeSet<String> {
        let entries = std::fs::read_dir(mount.path().join("many")).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    };
    let want: BTreeSet<String> = (0..100_000).map(name).collect();
    assert!(listing() == want, "the first listing");
    assert!(
        listing() == want,
        "a listing that the kernel may have cached"
    );
    for number in [0, 1, 49_999, 99_999] {
        assert!(mount.path().join("many").join(name(number)).is_file());
    }
    assert!(!mount.path().join("many").join("file-100000").exists());
    // A listing that is quadratic in the number of entries takes minutes.
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "{:?}",
        started.elapsed()
    );
    mount.stop().ok();
}

#[test]
fn privileged_a_mount_point_left_by_a_killed_process_is_taken_over() {
    let Some(place) = Place::new("privileged_a_mount_point_left_by_a_killed_process_is_taken_over")
    else {
        return;
    };
    let target = place.converted(&fixture(), &[]);
    let root = place.directory("root");
    let cache = place.path("cache");
    let mount = [
        "mount",
        "--detach",
        "--target",
        &target,
        "--mount-path",
        text(&root),
        "--cache-dir",
        text(&cache),
    ];
    for _ in 0..2 {
        run(NYDUSIFY, mount).ok();
        Pair::of(&root).kill(&root);
    }
    assert!(is_mounted(&root));
    run(NYDUSIFY, mount).ok();
    assert_equal(&busybox_expect().compare(&root));
    Pair::of(&root).kill(&root);
    run(NYDUSIFY, ["umount", text(&root)]).ok();
    assert!(!is_mounted(&root));
}

#[test]
fn privileged_a_mount_in_use_is_left_alone_unless_asked() {
    let Some(place) = Place::new("privileged_a_mount_in_use_is_left_alone_unless_asked") else {
        return;
    };
    let target = place.converted(&fixture(), &[]);
    let mount = place.mount(&target, &[]);
    let root = place.path("root");
    let mut file = File::open(root.join("bin/busybox")).unwrap();
    run(NYDUSIFY, ["umount", text(&root)])
        .exits(1)
        .fails_with(&["in use", text(&root)]);
    assert!(is_mounted(&root));
    run(NYDUSIFY, ["umount", "--lazy", text(&root)]).ok();
    assert!(!is_mounted(&root));
    // Whoever holds a file may finish with it; then the process ends.
    let mut content = Vec::new();
    file.read_to_end(&mut content).unwrap();
    let want = busybox_expect().entries[b"bin/busybox".as_slice()]
        .sha256
        .clone();
    assert_eq!(Some(testkit::sha256(&content)), want);
    drop(file);
    mount.finish().ok();
}

#[test]
fn privileged_a_signal_ends_a_mount_in_use() {
    let Some(place) = Place::new("privileged_a_signal_ends_a_mount_in_use") else {
        return;
    };
    let target = place.converted(&fixture(), &[]);
    let mount = place.mount(&target, &[]);
    let file = File::open(mount.path().join("bin/busybox")).unwrap();
    let started = Instant::now();
    mount.stop().ok();
    assert!(started.elapsed() < Duration::from_secs(10));
    assert!(!is_mounted(&place.path("root")));
    drop(file);
}

#[test]
fn privileged_mounts_of_others_are_not_unmounted() {
    let Some(place) = Place::new("privileged_mounts_of_others_are_not_unmounted") else {
        return;
    };
    run(NYDUSIFY, ["umount", "/proc"]).exits(1).fails_with(&[
        "/proc",
        "not a mount of a RAFS image",
        "proc",
    ]);
    let directory = place.directory("plain");
    run(NYDUSIFY, ["umount", text(&directory)])
        .exits(1)
        .fails_with(&[text(&directory)]);
    let absent = place.path("absent");
    run(NYDUSIFY, ["umount", text(&absent)])
        .exits(1)
        .fails_with(&[text(&absent)]);
}

#[test]
fn privileged_what_the_image_lists_is_fetched_in_the_background() {
    let Some(place) = Place::new("privileged_what_the_image_lists_is_fetched_in_the_background")
    else {
        return;
    };
    let target = place.converted(&fixture(), &["--prefetch-dir", "/bin"]);
    // The background brings the data, nobody reads.
    let mount = place.mount(&target, &[]);
    wait_until("the listed files to be cached", || {
        stored(&place.path("cache")) > 500_000
    });
    let ran = mount.stop().ok();
    assert!(ran.stderr.contains("reads 0 (0 bytes)"), "{ran}");
    // Unless it is told not to; the rest of the image it brings on request alone.
    std::fs::remove_dir_all(place.path("cache")).unwrap();
    let mount = place.mount(&target, &["--no-prefetch"]);
    std::thread::sleep(Duration::from_millis(500));
    assert!(mount.stop().ok().stderr.contains("prefetch_asked=0"));
    let everything = place.mount(&target, &["--prefetch"]).stop().ok();
    assert!(
        !everything.stderr.contains("prefetch_asked=0"),
        "{everything}"
    );
}

#[test]
fn privileged_the_blob_with_what_is_needed_first_is_fetched_in_the_background() {
    let name = "privileged_the_blob_with_what_is_needed_first_is_fetched_in_the_background";
    let Some(place) = Place::new(name) else {
        return;
    };
    // What is listed is small.
    let converted = place.converted(&fixture(), &["--prefetch-dir", "/etc"]);
    let list = place.path("list");
    std::fs::write(
        &list,
        r#"{"version":"v1","files":[{"path":"/bin/busybox"}]}"#,
    )
    .unwrap();
    let target = place.oci("optimized", "v6");
    let words = ["optimize", "--source", &converted, "--target", &target];
    let files = ["--prefetch-files", text(&list)];
    run(NYDUSIFY, words.iter().chain(&files)).ok();
    let mount = place.mount(&target, &[]);
    wait_until("the blob to be cached", || {
        stored(&place.path("cache")) > 500_000
    });
    let ran = mount.stop().ok();
    assert!(ran.stderr.contains("reads 0 (0 bytes)"), "{ran}");
}

#[test]
fn privileged_a_detached_mount_tells_its_log_and_is_soon_ready() {
    let Some(place) = Place::new("privileged_a_detached_mount_tells_its_log_and_is_soon_ready")
    else {
        return;
    };
    let target = place.converted(&fixture(), &[]);
    let root = place.path("root");
    let log = place.path("log");
    let mut best = Duration::MAX;
    for _ in 0..5 {
        let started = Instant::now();
        let mut command = std::process::Command::new(NYDUSIFY);
        command.args([
            "--log-file",
            text(&log),
            "mount",
            "--detach",
            "--target",
            &target,
        ]);
        command.args([
            "--mount-path",
            text(&root),
            "--cache-dir",
            text(&place.path("cache")),
        ]);
        let ran = output(&mut command).ok();
        best = best.min(started.elapsed());
        assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("", ""));
        run(NYDUSIFY, ["umount", text(&root)]).ok();
        assert!(
            !root.exists(),
            "a directory made for the mount goes with it"
        );
    }
    // 50 ms are promised of the optimised program.
    let limit = Duration::from_millis(if cfg!(debug_assertions) { 250 } else { 50 });
    assert!(best < limit, "ready after {best:?}");
    let log = std::fs::read_to_string(log).unwrap();
    assert!(
        log.contains(text(&root)) && log.contains("lookups"),
        "{log}"
    );
}
