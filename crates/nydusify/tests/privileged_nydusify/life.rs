//! The life of a mount: how it begins, says what it did, and ends.

use std::path::Path;
use std::process::Command;

use rustix::process::Signal;
use testkit::run::{is_mounted, output, run, wait_until};

use crate::support::*;

#[test]
fn privileged_signals_end_a_mount_and_statistics_are_told() {
    let Some(place) = Place::new("privileged_signals_end_a_mount_and_statistics_are_told") else {
        return;
    };
    let target = place.converted(&fixture(), &[]);
    for signal in [Signal::INT, Signal::TERM] {
        let mount = place.mount(&target, &[]);
        std::fs::read(mount.path().join("etc/passwd")).unwrap();
        mount.signal(Signal::USR1);
        std::thread::sleep(std::time::Duration::from_millis(200));
        mount.signal(signal);
        let ran = mount.finish().ok();
        assert!(
            ran.stderr.matches("reads").count() >= 2,
            "on the signal and at the end: {ran}"
        );
        assert!(!is_mounted(&place.path("root")));
    }
}

#[test]
fn privileged_unmounting_from_outside_ends_the_process() {
    let Some(place) = Place::new("privileged_unmounting_from_outside_ends_the_process") else {
        return;
    };
    let target = place.converted(&fixture(), &[]);
    let root = place.path("root");
    let mount = place.mount(&target, &[]);
    run("fusermount3", ["-u", root.to_str().unwrap()]).ok();
    mount.finish().ok();
    let mount = place.mount(&target, &[]);
    run(NYDUSIFY, ["umount", root.to_str().unwrap()]).ok();
    mount.finish().ok();
    assert!(!is_mounted(&root));
    run(NYDUSIFY, ["umount", root.to_str().unwrap()])
        .exits(1)
        .fails_with(&[root.to_str().unwrap()]);
}

#[test]
fn privileged_a_detached_mount_is_ready_when_the_command_returns() {
    let Some(place) = Place::new("privileged_a_detached_mount_is_ready_when_the_command_returns")
    else {
        return;
    };
    let target = place.converted(&fixture(), &[]);
    let root = place.path("root");
    output(place.mount_command(&target).arg("--detach")).ok();
    assert!(is_mounted(&root));
    assert!(root.join("etc/passwd").is_file());
    run(NYDUSIFY, ["umount", root.to_str().unwrap()]).ok();
    assert!(!is_mounted(&root));
    // A failure is told by the command that was called.
    let ran = output(
        place
            .mount_command(&place.oci("nydus", "absent"))
            .arg("--detach"),
    );
    ran.exits(1).fails_with(&["absent"]);
}

/// Blobs are opened when they are first read, long after a detached process has left the caller's directory.
#[test]
fn privileged_a_detached_mount_of_relative_paths_reads_its_blobs() {
    let Some(place) = Place::new("privileged_a_detached_mount_of_relative_paths_reads_its_blobs")
    else {
        return;
    };
    place.converted(&fixture(), &[]);
    place.directory("root");
    let mount = [
        "mount",
        "--target",
        "oci:nydus:v6",
        "--mount-path",
        "root",
        "--cache-dir",
        "cache",
    ];
    let mut command = Command::new(NYDUSIFY);
    output(
        command
            .args(mount)
            .args(["--no-prefetch", "--detach"])
            .current_dir(place.path("")),
    )
    .ok();
    let differences = testkit::fixture::busybox_expect().compare(&place.path("root"));
    run(NYDUSIFY, ["umount", place.path("root").to_str().unwrap()]).ok();
    assert_equal(&differences);
}

#[test]
fn privileged_bad_mounts_are_refused_by_name() {
    let Some(place) = Place::new("privileged_bad_mounts_are_refused_by_name") else {
        return;
    };
    let file = place.path("file");
    std::fs::write(&file, b"no bootstrap").unwrap();
    let root = place.directory("root");
    let bare = [
        "mount",
        "--bootstrap",
        file.to_str().unwrap(),
        "--mount-path",
        root.to_str().unwrap(),
    ];
    run(NYDUSIFY, bare)
        .exits(1)
        .fails_with(&[file.to_str().unwrap()]);
    assert!(!is_mounted(&root));
}

#[test]
fn privileged_anyone_may_mount_where_fusermount_is_installed() {
    let Some(place) = Place::new("privileged_anyone_may_mount_where_fusermount_is_installed")
    else {
        return;
    };
    // As on any desktop: the device is open to all, and everything in here belongs to the user.
    let _open = OpenToAll::new(Path::new("/dev/fuse"));
    let target = place.converted(&fixture(), &[]);
    place.directory("root");
    let here = place.path("");
    run("chown", ["-R", "65534:65534", here.to_str().unwrap()]).ok();
    let script = format!(
        "exec setpriv --reuid 65534 --regid 65534 --clear-groups {NYDUSIFY} mount --target {target} \
         --mount-path {here}/root --cache-dir {here}/cache",
        here = here.display(),
    );
    // The program has to be within reach of the user.
    if run(
        "setpriv",
        [
            "--reuid",
            "65534",
            "--regid",
            "65534",
            "--clear-groups",
            "test",
            "-x",
            NYDUSIFY,
        ],
    )
    .code
        != 0
    {
        return reachable_copy(&place, &script);
    }
    mount_as_user(&place, &script);
}

/// The target directory may lie below a home that others cannot enter: a copy will do.
fn reachable_copy(place: &Place, script: &str) {
    let copy = place.path("nydusify");
    std::fs::copy(NYDUSIFY, &copy).unwrap();
    mount_as_user(place, &script.replace(NYDUSIFY, copy.to_str().unwrap()));
}

fn mount_as_user(place: &Place, script: &str) {
    let mount =
        testkit::run::Mount::start(Command::new("sh").args(["-c", script]), &place.path("root"));
    // Only the user may look: not even root, unless the user allows it.
    let read = [
        "--reuid",
        "65534",
        "--regid",
        "65534",
        "--clear-groups",
        "cat",
    ];
    let file = place.path("root/etc/os-release");
    let ran = run("setpriv", read.iter().chain(&[file.to_str().unwrap()])).ok();
    assert!(ran.stdout.contains("fixture"), "{ran}");
    // What serves it may be killed here, too.
    let server = children(mount.id());
    assert_eq!(server.len(), 1, "{server:?}");
    send(server[0], Signal::KILL);
    let file = place.path("root/usr/share/words/alpha");
    run("setpriv", read.iter().chain(&[file.to_str().unwrap()])).ok();
    assert_ne!(children(mount.id()), server);
    mount.stop().ok();
    wait_until("the mount to be gone", || !is_mounted(&place.path("root")));
}
