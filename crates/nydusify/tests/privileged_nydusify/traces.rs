//! Recording what a mount is asked for, in both modes, whatever process is killed; and what the image that is made of it
//! does.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use testkit::run::{output, run, wait_until};
use trace::{Event, Purpose, Trace};

use crate::support::*;

/// Begins a mount with `--trace`, in the background, with an empty cache.
fn mount(place: &Place, target: &str, mode: &str) -> PathBuf {
    let _ = std::fs::remove_dir_all(place.path("cache"));
    let path = place.path("trace");
    let mut command = place.mount_command(target);
    command.args(["--detach", "--no-prefetch", "--mode", mode]);
    output(command.arg("--trace").arg(&path)).ok();
    path
}

fn umount(place: &Place) {
    run(NYDUSIFY, ["umount", place.path("root").to_str().unwrap()]).ok();
}

/// Reads files and compares them.
#[track_caller]
fn read(place: &Place, files: &BTreeMap<PathBuf, Vec<u8>>, which: impl Iterator<Item = usize>) {
    for number in which {
        let name = PathBuf::from(format!("f{number:03}"));
        let data = std::fs::read(place.path("root").join(&name)).unwrap();
        assert!(data == files[&name], "{} has other content", name.display());
    }
}

fn files_of(trace: &Trace) -> BTreeSet<&str> {
    trace.reads().iter().map(|(path, ..)| *path).collect()
}

fn names(which: impl Iterator<Item = usize>) -> BTreeSet<String> {
    which.map(|number| format!("/f{number:03}")).collect()
}

/// Waits until the trace says that this file was read.
fn wait_for(path: &Path, file: &str) {
    wait_until("the read to be recorded", || {
        Trace::load(path).is_ok_and(|trace| files_of(&trace).contains(file))
    });
}

#[test]
fn privileged_a_trace_has_what_was_read_and_goes_on_after_a_kill() {
    let name = "privileged_a_trace_has_what_was_read_and_goes_on_after_a_kill";
    let Some(place) = Place::new(name) else {
        return;
    };
    let (target, files) = noisy(&place, 30);
    for mode in modes(name, &place) {
        let path = mount(&place, &target, mode);
        // Every other one: neighbours that are fetched along are not read.
        read(&place, &files, (0..10).step_by(2));
        wait_for(&path, "/f008");
        if mode == "fuse" {
            let before = Pair::of(&place.path("root"));
            send(before.server, Signal::KILL);
            wait_until("another server", || {
                let now = Pair::of(&place.path("root"));
                now.server != before.server
            });
        }
        read(&place, &files, (20..30).step_by(2));
        wait_for(&path, "/f028");
        umount(&place);
        let trace = Trace::load(&path).unwrap();
        let served = trace.events.iter().filter_map(|event| match event {
            Event::Serving { mode, .. } => Some(&**mode),
            _ => None,
        });
        let servers = if mode == "fuse" { 2 } else { 1 };
        assert_eq!(served.collect::<Vec<_>>(), vec![mode; servers]);
        let read = names((0..10).step_by(2).chain((20..30).step_by(2)));
        let recorded: BTreeSet<String> = files_of(&trace).into_iter().map(str::to_owned).collect();
        // The kernel reads ahead beyond files where it reads blobs.
        assert!(recorded.is_superset(&read), "{mode}: {recorded:?}");
        if mode == "fuse" {
            assert_eq!(recorded, read, "{mode}");
        }
        let fetched = trace.events.iter().filter(|event| match event {
            Event::Fetch {
                purpose, failed, ..
            } => *purpose == Purpose::Read && !failed,
            _ => false,
        });
        assert!(fetched.count() >= 2, "{mode}");
        let chunks = trace.events.iter().filter_map(|event| match event {
            Event::Chunk { file, .. } => Some(&**file),
            _ => None,
        });
        let chunks: BTreeSet<&str> = chunks.collect();
        for file in &read {
            assert!(
                chunks.contains(&**file),
                "{mode}: no chunk of {file}: {chunks:?}"
            );
        }
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn privileged_a_trace_of_another_image_is_left_alone() {
    let Some(place) = Place::new("privileged_a_trace_of_another_image_is_left_alone") else {
        return;
    };
    let target = place.converted(&fixture(), &[]);
    let path = mount(&place, &target, "fuse");
    umount(&place);
    let before = std::fs::read(&path).unwrap();
    let other = place.converted(&fixture(), &["--fs-chunk-size", "0x10000"]);
    let mut command = place.mount_command(&other);
    let ran = output(command.args(["--detach", "--trace"]).arg(&path)).exits(1);
    ran.fails_with(&["trace of another image", path.to_str().unwrap()]);
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[test]
fn privileged_a_start_of_the_image_made_of_its_trace_fetches_each_byte_once() {
    let name = "privileged_a_start_of_the_image_made_of_its_trace_fetches_each_byte_once";
    let Some(place) = Place::new(name) else {
        return;
    };
    let (target, files) = noisy(&place, 40);
    let order = [33, 2, 17, 8, 25, 39, 4];
    let path = mount(&place, &target, "fuse");
    read(&place, &files, order.into_iter());
    wait_for(&path, "/f004");
    umount(&place);
    let optimized = place.oci("optimized", "v6");
    let words = ["optimize", "--source", &target, "--target", &optimized];
    run(
        NYDUSIFY,
        words.iter().chain(&["--trace", path.to_str().unwrap()]),
    )
    .ok();
    std::fs::remove_file(&path).unwrap();

    let start = |mode| {
        let _ = std::fs::remove_dir_all(place.path("cache"));
        let mut command = place.mount_command(&optimized);
        command.args(["--detach", "--mode", mode, "--trace"]);
        output(command.arg(&path)).ok();
        read(&place, &files, order.into_iter());
    };
    for mode in modes(name, &place) {
        // The rest is left to reads.
        start(mode);
        std::thread::sleep(std::time::Duration::from_millis(300));
        umount(&place);
        let report = trace::Report::new(&Trace::load(&path).unwrap(), &[]);
        let fetched = report.totals.fetched_bytes;
        assert!(fetched < 1_500_000, "{mode}: {fetched} of 6,000,000");
        std::fs::remove_file(&path).unwrap();

        start(mode);
        read(&place, &files, 0..40);
        umount(&place);
        let trace = Trace::load(&path).unwrap();
        let report = trace::Report::new(&trace, &[]);
        // But for gaps between two chunks that are fetched along.
        let totals = &report.totals;
        assert!(
            totals.fetched_twice * 10 < totals.fetched_bytes,
            "{mode}: {totals:?}"
        );
        let first = report
            .requests
            .iter()
            .filter(|request| request.purpose == Purpose::First);
        let first: u64 = first.map(|request| request.size).sum();
        // Nothing that compresses: seven files of 150,000 bytes, of which a read may have got some earlier.
        assert!((1..1_200_000).contains(&first), "{mode}: {first}");
        std::fs::remove_file(&path).unwrap();
    }
}
