//! Writable mounts: what is changed stays in the directory for changes, and the image as it is.

use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use testkit::run::{Mount, Ran, is_mounted, output, run, wait_until};

use crate::support::*;

/// Mounts with the directory `changes`, in the background; what the command says.
fn mount(place: &Place, target: &str, mode: &str) -> Ran {
    let mut command = place.mount_command(target);
    command.args(["--mode", mode, "--detach", "--upper"]);
    output(command.arg(place.path("changes")))
}

fn umount(place: &Place) -> Ran {
    run(NYDUSIFY, ["umount", place.path("root").to_str().unwrap()])
}

#[test]
fn privileged_changes_stay_and_the_image_does_too() {
    const NAME: &str = "privileged_changes_stay_and_the_image_does_too";
    let Some(place) = Place::new(NAME) else {
        return;
    };
    let target = place.converted(&fixture(), &[]);
    let root = place.path("root");
    // The changes of one mode are those of the other.
    for mode in modes(NAME, &place) {
        mount(&place, &target, mode).ok();
        let number = std::fs::read(root.join("new")).map_or(0, |text| text.len());
        std::fs::write(root.join("new"), "x".repeat(number + 1)).unwrap();
        std::fs::create_dir_all(root.join("etc/made/deep")).unwrap();
        if number == 0 {
            std::fs::remove_file(root.join("etc/passwd")).unwrap();
            let mut text = std::fs::read_to_string(root.join("etc/os-release")).unwrap();
            text.push_str("CHANGED=1\n");
            std::fs::write(root.join("etc/os-release"), text).unwrap();
        }
        umount(&place).ok();
        assert!(!is_mounted(&root) && !is_mounted(&place.path("changes/lower")));

        mount(&place, &target, mode).ok();
        assert_eq!(std::fs::read(root.join("new")).unwrap().len(), number + 1);
        assert!(!root.join("etc/passwd").exists());
        assert!(root.join("etc/made/deep").is_dir());
        let text = std::fs::read_to_string(root.join("etc/os-release")).unwrap();
        assert!(text.contains("fixture") && text.ends_with("CHANGED=1\n"));
        assert_eq!(
            run("find", [root.to_str().unwrap(), "-newermt", "@0"])
                .ok()
                .stderr,
            ""
        );
        umount(&place).ok();
    }
    let plain = place.mount(&target, &[]);
    assert_equal(&testkit::fixture::busybox_expect().compare(plain.path()));
}

#[test]
fn privileged_one_directory_for_changes_is_for_one_mount() {
    const NAME: &str = "privileged_one_directory_for_changes_is_for_one_mount";
    let Some(place) = Place::new(NAME) else {
        return;
    };
    let target = place.converted(&fixture(), &[]);
    let changes = place.path("changes");
    mount(&place, &target, "fuse").ok();
    let mut second = Command::new(NYDUSIFY);
    second.args(["mount", "--target", &target, "--mount-path"]);
    second.arg(place.path("other")).arg("--cache-dir");
    second.arg(place.path("cache-of-other")).arg("--upper");
    let refused = output(second.arg(&changes));
    refused.exits(1).fails_with(&["changes", "in use"]);
    assert!(!place.path("other").exists() && is_mounted(&place.path("root")));

    // In use, it stays; a plain umount(8) ends it in the end as well.
    let busy = std::fs::File::open(place.path("root/etc/os-release")).unwrap();
    umount(&place).exits(1).fails_with(&["in use"]);
    drop(busy);
    run("umount", [place.path("root").to_str().unwrap()]).ok();
    wait_until("the end of the process", || free(&changes));
}

/// Whether no process has the directory for changes.
fn free(changes: &Path) -> bool {
    let lock = std::fs::File::open(changes.join("lock")).unwrap();
    lock.try_lock_shared().is_ok()
}

/// The process that has signed it.
fn signer(changes: &Path) -> i32 {
    let text = std::fs::read_to_string(changes.join("lock")).unwrap();
    text.trim().parse().unwrap()
}

/// The processes that hold its lock.
fn holders(changes: &Path) -> Vec<i32> {
    let lock = changes.join("lock");
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let holds = |id: &i32| {
        let descriptors = std::fs::read_dir(format!("/proc/{id}/fd"));
        let mut descriptors = descriptors.into_iter().flatten().flatten();
        descriptors.any(|fd| std::fs::read_link(fd.path()).is_ok_and(|path| path == lock))
    };
    numbers.filter(holds).collect()
}

/// The processes of a FUSE mount, once it has two other than `gone`.
#[track_caller]
fn pair(changes: &Path, gone: &[i32]) -> Pair {
    let mut found = Vec::new();
    wait_until("a server and a keeper", || {
        found = holders(changes);
        found.len() == 2
            && found.contains(&signer(changes))
            && !found.iter().any(|id| gone.contains(id))
    });
    let keeper = signer(changes);
    found.retain(|&id| id != keeper);
    Pair {
        server: found[0],
        keeper,
    }
}

/// Kills one process in each round, while cold files of the image are read and changed ones written.
#[test]
fn privileged_either_process_of_a_writable_fuse_mount_may_be_killed() {
    const NAME: &str = "privileged_either_process_of_a_writable_fuse_mount_may_be_killed";
    let Some(place) = Place::new(NAME) else {
        return;
    };
    let rounds = kill_rounds();
    let (target, expected) = noisy(&place, 4 * rounds as u64);
    let (root, changes) = (place.path("root"), place.path("changes"));
    let mut command = place.mount_command(&target);
    command.args(["--detach", "--no-prefetch", "--upper"]);
    output(command.arg(&changes)).ok();
    let mut written = std::fs::File::create(root.join("log")).unwrap();
    let moments = testkit::noise(7, rounds);
    let mut gone = Vec::new();
    let files: Vec<_> = expected.iter().collect();
    for (round, part) in files.chunks(4).enumerate() {
        let now = pair(&changes, &gone);
        let victim = [now.server, now.keeper][round % 2];
        std::thread::scope(|scope| {
            for (at, (name, data)) in part.iter().enumerate() {
                let root = &root;
                scope.spawn(move || {
                    std::thread::sleep(Duration::from_millis(at as u64 * 4));
                    let begun = Instant::now();
                    if at == 0 {
                        // Copied up: its head is new, the rest the image's.
                        let file = std::fs::OpenOptions::new()
                            .write(true)
                            .open(root.join(name));
                        file.unwrap().write_all_at(b"changed", 0).unwrap();
                    }
                    let mut data = data.to_vec();
                    if at == 0 {
                        data[..7].copy_from_slice(b"changed");
                    }
                    let read = std::fs::read(root.join(name)).unwrap();
                    assert!(read == data, "{} has other content", name.display());
                    assert!(begun.elapsed() < Duration::from_secs(10));
                });
            }
            std::thread::sleep(Duration::from_micros(u64::from(moments[round]) * 80));
            send(victim, Signal::KILL);
            gone.push(victim);
            writeln!(written, "{round}").unwrap();
        });
    }
    let last = pair(&changes, &gone);
    run(
        NYDUSIFY,
        ["mount", "--replace", "--mount-path", root.to_str().unwrap()],
    )
    .ok();
    let new = pair(&changes, &[last.server]);
    assert_eq!(new.keeper, last.keeper, "it has another program now");
    drop(written);
    umount(&place).ok();
    assert!(!is_mounted(&root) && !is_mounted(&changes.join("lower")));
    gone.extend([last.keeper, last.server, new.server]);
    gone.retain(|&id| lives(id));
    assert!(gone.is_empty(), "processes are left: {gone:?}");
    let log = std::fs::read_to_string(changes.join("upper/log")).unwrap();
    assert_eq!(log.lines().count(), rounds);
}

#[test]
fn privileged_a_signal_ends_a_writable_mount_and_a_dead_one_is_replaced() {
    const NAME: &str = "privileged_a_signal_ends_a_writable_mount_and_a_dead_one_is_replaced";
    let Some(place) = Place::new(NAME) else {
        return;
    };
    let target = place.converted(&fixture(), &[]);
    let (root, changes) = (place.path("root"), place.path("changes"));
    for mode in modes(NAME, &place) {
        mount(&place, &target, mode).ok();
        std::fs::write(root.join("kept"), mode).unwrap();
        send(signer(&changes), Signal::TERM);
        wait_until("the end of the mount", || {
            !is_mounted(&root) && free(&changes)
        });
        umount(&place).exits(1);
    }
    mount(&place, &target, "fuse").ok();
    let Pair { server, keeper } = pair(&changes, &[]);
    stop(&[server, keeper]);
    // The keeper last, see `Pair::kill`.
    [server, keeper]
        .iter()
        .for_each(|&id| send(id, Signal::KILL));
    wait_until("the death of both processes", || free(&changes));
    mount(&place, &target, "fuse").ok();
    assert!(root.join("kept").exists() && root.join("etc/passwd").exists());
    umount(&place).ok();
    assert!(!is_mounted(&root), "nothing is left below");
}

#[test]
fn privileged_a_user_namespace_is_enough_for_a_writable_mount() {
    const NAME: &str = "privileged_a_user_namespace_is_enough_for_a_writable_mount";
    let Some(place) = Place::new(NAME) else {
        return;
    };
    let target = place.converted(&fixture(), &[]);
    place.directory("root");
    let here = place.path("");
    let script = format!(
        "set -e; cd {here}\n\
         mount() {{ {NYDUSIFY} mount --target {target} --mount-path root --cache-dir cache --upper changes --detach; }}\n\
         mount; rm root/etc/passwd; echo text > root/etc/new; rm -r root/bin; mkdir root/bin; {NYDUSIFY} umount root\n\
         mount; cat root/etc/new; test ! -e root/etc/passwd; test -z \"$(ls root/bin)\"; {NYDUSIFY} umount root",
        here = here.display(),
    );
    let ran = run(
        "unshare",
        ["--user", "--map-root-user", "--mount", "sh", "-c", &script],
    )
    .ok();
    assert!(ran.stdout.contains("text"), "{ran}");

    // A user without one is told what to do.
    run("chown", ["-R", "65534:65534", here.to_str().unwrap()]).ok();
    let copy = place.path("nydusify");
    std::fs::copy(NYDUSIFY, &copy).unwrap();
    let script = script.replace(NYDUSIFY, copy.to_str().unwrap());
    let user = [
        "--reuid",
        "65534",
        "--regid",
        "65534",
        "--clear-groups",
        "sh",
        "-c",
    ];
    let refused = run("setpriv", user.iter().chain(&[&*script]));
    refused.fails_with(&["changes", "unshare"]);
}

/// The root of the mount shows the mode and the owner of the image's.
#[test]
fn privileged_the_root_of_a_writable_mount_is_the_images() {
    const NAME: &str = "privileged_the_root_of_a_writable_mount_is_the_images";
    let Some(place) = Place::new(NAME) else {
        return;
    };
    let target = place.converted(&fixture(), &[]);
    let facts = |path: &Path| {
        let root = path.metadata().unwrap();
        (root.mode(), root.uid(), root.gid())
    };
    let plain = place.mount(&target, &[]);
    let expected = facts(plain.path());
    plain.stop().ok();
    // A directory that was made by somebody else stays as it is.
    std::fs::create_dir_all(place.path("other/upper")).unwrap();
    let odd = std::fs::Permissions::from_mode(0o711);
    std::fs::set_permissions(place.path("other/upper"), odd).unwrap();
    for (changes, expected) in [("changes", expected), ("other", (0o40711, 0, 0))] {
        let mut command = place.mount_command(&target);
        command.arg("--upper").arg(place.path(changes));
        let mount = Mount::start(&mut command, &place.path("root"));
        assert_eq!(facts(mount.path()), expected);
        mount.stop().ok();
    }
}
