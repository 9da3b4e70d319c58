//! FUSE mounts whose processes are killed, stopped and replaced while they are in use.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use testkit::layout::Layout;
use testkit::run::{is_mounted, output, run, wait_until};
use testkit::{fixture, noise};

use crate::support::*;

/// Waits until a mount has two processes other than `gone`.
#[track_caller]
fn complete(root: &std::path::Path, gone: &[i32]) -> Pair {
    let mut pair = Pair::of(root);
    wait_until("a server and a keeper", || {
        pair = Pair::of(root);
        [pair.server, pair.keeper]
            .iter()
            .all(|&id| lives(id) && !gone.contains(&id))
    });
    pair
}

/// Kills one process in each round, at any moment, while cold files are read whole, and one in pieces.
#[test]
fn privileged_either_process_of_a_fuse_mount_may_be_killed() {
    let Some(place) = Place::new("privileged_either_process_of_a_fuse_mount_may_be_killed") else {
        return;
    };
    let rounds = kill_rounds();
    let (target, expected) = noisy(&place, 5 * rounds as u64);
    let root = place.path("root");
    let mut command = place.mount_command(&target);
    output(command.args(["--detach", "--no-prefetch"])).ok();
    let moments = noise(7, rounds);
    let files: Vec<_> = expected.iter().collect();
    let mut gone = Vec::new();
    for (round, part) in files.chunks(5).enumerate() {
        let pair = complete(&root, &gone);
        let victim = if round % 2 == 0 {
            pair.server
        } else {
            pair.keeper
        };
        let ((first, content), rest) = part.split_first().unwrap();
        let open = File::open(root.join(first)).unwrap();
        let mut piece = vec![0; 4096];
        open.read_exact_at(&mut piece, 70_000).unwrap();
        assert!(piece == content[70_000..74_096]);
        std::thread::scope(|scope| {
            for (at, (name, data)) in rest.iter().enumerate() {
                let root = &root;
                scope.spawn(move || {
                    std::thread::sleep(Duration::from_millis(at as u64 * 4));
                    let begun = Instant::now();
                    let read = std::fs::read(root.join(name))
                        .unwrap_or_else(|error| panic!("{}: {error}", name.display()));
                    assert!(read == **data, "{} has other content", name.display());
                    assert!(begun.elapsed() < Duration::from_secs(10));
                });
            }
            std::thread::sleep(Duration::from_micros(u64::from(moments[round]) * 80));
            send(victim, Signal::KILL);
            gone.push(victim);
            let mut all = vec![0; content.len()];
            open.read_exact_at(&mut all, 0).unwrap();
            assert!(all == **content, "an open file has other content");
        });
    }
    let pair = complete(&root, &gone);
    run(NYDUSIFY, ["umount", root.to_str().unwrap()]).ok();
    assert!(!is_mounted(&root));
    gone.extend([pair.server, pair.keeper]);
    gone.retain(|&id| lives(id));
    assert!(gone.is_empty(), "processes are left: {gone:?}");
}

/// A container goes on: its program is mapped, and some of it was never read.
#[test]
fn privileged_a_running_program_outlives_the_server() {
    let Some(place) = Place::new("privileged_a_running_program_outlives_the_server") else {
        return;
    };
    let target = place.converted(&fixture(), &["--fs-chunk-size", "0x1000"]);
    let mount = place.mount(&target, &["--no-prefetch"]);
    let mut shell = Command::new(mount.path().join("bin/busybox"))
        .args([
            "sh",
            "-c",
            "read line; echo $line | sha256sum; md5sum /proc/self/exe",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let pair = Pair::of(mount.path());
    send(pair.server, Signal::KILL);
    shell.stdin.take().unwrap().write_all(b"word\n").unwrap();
    let mut said = String::new();
    shell
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert!(shell.wait().unwrap().success());
    assert!(said.starts_with(&testkit::sha256(b"word\n")), "{said}");

    // What the user started stays in the foreground, and still does what it should.
    assert_eq!(mount.id() as i32, pair.keeper);
    mount.signal(Signal::USR1);
    std::thread::sleep(Duration::from_millis(300));
    let ran = mount.stop().ok();
    assert!(ran.stderr.matches("reads").count() >= 2, "{ran}");
    assert!(!is_mounted(&place.path("root")));
}

/// The image that is mounted is the one that is served, whatever its name leads to.
#[test]
fn privileged_a_new_server_serves_the_image_that_is_mounted() {
    let Some(place) = Place::new("privileged_a_new_server_serves_the_image_that_is_mounted") else {
        return;
    };
    let target = place.converted(&fixture(), &[]);
    let mount = place.mount(&target, &["--no-prefetch"]);
    let mut layout = Layout::create(Box::leak(place.path("other").into_boxed_path()));
    let tar = testkit::tar::Tar::new().finish();
    let layer = testkit::layout::Layer::new(&tar, testkit::layout::Packing::Gzip);
    let other = layout.manifest(&[layer], testkit::layout::Flavour::Oci);
    layout.tag(&other, "latest");
    place.converted(&place.oci("other", "latest"), &[]);
    let pair = Pair::of(mount.path());
    send(pair.server, Signal::KILL);
    assert_equal(&fixture::busybox_expect().compare(mount.path()));
    mount.stop().ok();
}

/// Servers that die again and again are given up: nobody waits for ever.
#[test]
fn privileged_a_mount_whose_servers_die_again_and_again_is_given_up() {
    let Some(place) =
        Place::new("privileged_a_mount_whose_servers_die_again_and_again_is_given_up")
    else {
        return;
    };
    let target = place.converted(&fixture(), &[]);
    let mount = place.mount(&target, &["--no-prefetch"]);
    let root = place.path("root");
    let open = File::open(root.join("bin/busybox")).unwrap();
    let server = Pair::of(&root).server;
    let children = || children(mount.id());
    assert_eq!(children(), [server]);
    // As a request would that no server outlives.
    let begun = Instant::now();
    while is_mounted(&root) {
        children().into_iter().for_each(|id| send(id, Signal::KILL));
        std::thread::sleep(Duration::from_millis(5));
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
    let mut byte = [0];
    assert!(open.read_exact_at(&mut byte, 1_000_000).is_err());
    mount
        .finish()
        .exits(1)
        .fails_with(&["given up", root.to_str().unwrap()]);
}

#[test]
fn privileged_an_interrupted_server_ends_the_mount_with_its_keeper() {
    let Some(place) = Place::new("privileged_an_interrupted_server_ends_the_mount_with_its_keeper")
    else {
        return;
    };
    let target = place.converted(&fixture(), &[]);
    let root = place.path("root");
    for signal in [Signal::TERM, Signal::INT] {
        let mount = place.mount(&target, &[]);
        send(Pair::of(&root).server, signal);
        mount.finish().ok();
        assert!(!is_mounted(&root));
    }
    // Through a keeper that is not the first one, and in use.
    let mount = place.mount(&target, &["--no-prefetch"]);
    let first = Pair::of(&root).keeper;
    send(first, Signal::KILL);
    let pair = complete(&root, &[first]);
    let open = File::open(root.join("bin/busybox")).unwrap();
    run(NYDUSIFY, ["umount", root.to_str().unwrap()])
        .exits(1)
        .fails_with(&["in use"]);
    send(pair.keeper, Signal::TERM);
    wait_until("the end", || !lives(pair.server) && !lives(pair.keeper));
    assert!(!is_mounted(&root));
    let mut byte = [0];
    assert!(open.read_exact_at(&mut byte, 1_000_000).is_err());
    drop(mount);
}

/// As on a machine that was suspended: everything stops, and goes on much later.
#[test]
fn privileged_a_mount_goes_on_after_a_pause() {
    let Some(place) = Place::new("privileged_a_mount_goes_on_after_a_pause") else {
        return;
    };
    let (target, expected) = noisy(&place, 9);
    let mount = place.mount(&target, &["--no-prefetch"]);
    let pair = Pair::of(mount.path());
    read_while(mount.path(), &expected, || {
        for signal in [Signal::STOP, Signal::CONT] {
            send(pair.server, signal);
            send(pair.keeper, signal);
            std::thread::sleep(Duration::from_secs(2));
        }
    });
    assert_eq!(Pair::of(mount.path()), pair);
    mount.stop().ok();
}

#[test]
fn privileged_one_of_two_mounts_at_the_same_place_is_refused() {
    let Some(place) = Place::new("privileged_one_of_two_mounts_at_the_same_place_is_refused")
    else {
        return;
    };
    let target = place.converted(&fixture(), &[]);
    let root = place.directory("root");
    for _ in 0..3 {
        let start = |cache: &str| {
            Command::new(NYDUSIFY)
                .args(["mount", "--detach", "--target", &target, "--mount-path"])
                .arg(&root)
                .arg("--cache-dir")
                .arg(place.path(cache))
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        };
        let both = [start("one"), start("two")];
        let ended = both.map(|child| child.wait_with_output().unwrap());
        let failed: Vec<_> = ended.iter().filter(|one| !one.status.success()).collect();
        assert_eq!(failed.len(), 1, "{ended:?}");
        let said = String::from_utf8_lossy(&failed[0].stderr);
        assert!(said.contains("mounted there already"), "{said}");
        assert_equal(&fixture::busybox_expect().compare(&root));
        run(NYDUSIFY, ["umount", root.to_str().unwrap()]).ok();
        assert!(!is_mounted(&root));
    }
}

/// Threads cost memory, and mounts may be many.
#[test]
fn privileged_an_idle_mount_has_few_threads() {
    let Some(place) = Place::new("privileged_an_idle_mount_has_few_threads") else {
        return;
    };
    let target = place.converted(&fixture(), &[]);
    let mount = place.mount(&target, &["--prefetch", "--fuse-threads", "2"]);
    assert_equal(&fixture::busybox_expect().compare(mount.path()));
    let Pair { server, keeper } = Pair::of(mount.path());
    let threads = |id: i32| {
        let tasks = std::fs::read_dir(format!("/proc/{id}/task")).unwrap();
        let names = tasks
            .flatten()
            .map(|task| std::fs::read_to_string(task.path().join("comm")));
        names.map(Result::unwrap_or_default).collect::<Vec<_>>()
    };
    assert_eq!(threads(keeper).len(), 1, "{:?}", threads(keeper));
    // Two of them answer the kernel; this image needs no network, which would be one more.
    wait_until("few threads", || threads(server).len() <= 5);
    mount.stop().ok();
}

#[test]
fn privileged_another_program_takes_over_a_fuse_mount() {
    let Some(place) = Place::new("privileged_another_program_takes_over_a_fuse_mount") else {
        return;
    };
    let (target, expected) = noisy(&place, 30);
    let old = place.path("old-nydusify");
    std::fs::copy(NYDUSIFY, &old).unwrap();
    let root = place.path("root");
    let mut command = place.mount_command_of(&old, &target);
    command.arg("--no-prefetch");
    let mount = testkit::run::Mount::start(&mut command, &root);
    let before = Pair::of(&root);
    std::fs::remove_file(&old).unwrap();
    let replace = ["mount", "--replace", "--mount-path", root.to_str().unwrap()];
    read_while(&root, &expected, || {
        run(NYDUSIFY, replace).ok();
    });
    let after = Pair::of(&root);
    assert_ne!(after.server, before.server);
    // The process that the user started is the same, with another program.
    assert_eq!(after.keeper, before.keeper);
    for id in [after.server, after.keeper] {
        let program = std::fs::read_link(format!("/proc/{id}/exe")).unwrap();
        assert_eq!(program, std::path::Path::new(NYDUSIFY));
    }
    // And again, with the processes that were started by a server.
    send(after.keeper, Signal::KILL);
    complete(&root, &[after.keeper]);
    run(NYDUSIFY, replace).ok();
    let last = Pair::of(&root);
    assert_eq!(
        std::fs::read(root.join("f000")).unwrap(),
        expected[std::path::Path::new("f000")]
    );
    run(NYDUSIFY, ["umount", root.to_str().unwrap()]).ok();
    assert!(!lives(last.server) && !lives(last.keeper));
    drop(mount);

    let ran = run(NYDUSIFY, replace);
    ran.exits(1).fails_with(&["not a mount"]);
}
