//! Help, messages, progress, signals.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use testkit::layout::Packing;
use testkit::noise;
use testkit::run::{Ran, output, run};
use testkit::tar::{Entry, Tar};

use crate::support::*;

/// Help and error texts word for word: `TRYCMD=overwrite` writes them anew.
#[test]
fn help_and_messages() {
    trycmd::TestCases::new()
        .env("COLUMNS", "100")
        .case("tests/cmd/*.trycmd");
}

#[test]
fn flags_that_are_not_built_are_refused_before_any_work() {
    let place = Place::new();
    let flags: [&[&str]; 2] = [&["--reverse"], &["--source-backend-type", "modelfile"]];
    for flag in flags {
        let ran = convert(&fixture(), &place.oci("nydus", "v6"), flag).exits(2);
        assert!(ran.stderr.contains("not supported yet"), "{ran}");
        assert!(ran.stderr.contains(flag[0]), "{ran}");
        assert!(!place.path("nydus").exists());
    }
}

#[test]
fn nothing_is_printed_when_piped() {
    let place = Place::new();
    let ran = convert(&fixture(), &place.oci("nydus", "v6"), &[]).ok();
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("", ""));
}

#[test]
fn progress_comes_as_json_lines() {
    let place = Place::new();
    let ran = convert(
        &fixture(),
        &place.oci("nydus", "v6"),
        &["--progress", "json"],
    )
    .ok();
    let events: Vec<Value> = ran
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    for name in ["started", "finished"] {
        assert!(
            events.iter().filter(|event| event["event"] == name).count() >= 3,
            "{name}: {ran}"
        );
    }
    assert!(
        events.iter().all(|event| event["schema"].is_string()),
        "{ran}"
    );
    assert!(events.iter().any(|event| event["task"] == "total"), "{ran}");
}

#[test]
fn the_report_has_the_keys_of_the_contract() {
    let place = Place::new();
    let report = place.path("report.json");
    convert(
        &fixture(),
        &place.oci("nydus", "v6"),
        &["--output-json", report.to_str().unwrap()],
    )
    .ok();
    let report: Value = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
    for key in [
        "SourceImageSize",
        "TargetImageSize",
        "SourcePullElapsed",
        "ConversionElapsed",
        "TargetPushElapsed",
    ] {
        assert!(report[key].is_u64(), "{key} in {report}");
    }
    let manifest = manifest(&place.path("nydus"), "v6");
    let layers = manifest["layers"]
        .as_array()
        .unwrap()
        .iter()
        .chain([&manifest["config"]]);
    let size: u64 = layers.map(|part| part["size"].as_u64().unwrap()).sum();
    assert_eq!(report["TargetImageSize"], size);
}

#[test]
fn prefetch_patterns_come_from_standard_input() {
    let place = Place::new();
    let target = place.oci("nydus", "v6");
    let mut child = Command::new(NYDUSIFY)
        .args([
            "convert",
            "--source",
            &fixture(),
            "--target",
            &target,
            "--prefetch-patterns",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"/etc/motd\n/app\n").unwrap();
    Ran::new("convert".into(), child.wait_with_output().unwrap()).ok();
    check(&fixture(), &target).ok();
}

#[test]
fn a_trace_says_what_to_fetch_first() {
    let place = Place::new();
    let (target, trace) = (place.oci("nydus", "v6"), place.path("start.trace"));
    let read = |at: u64, file: &str| {
        format!(
            r#"{{"event":"read","at":{at},"took":1,"file":"{file}","offset":0,"size":5,"chunks":[[0,{at}]]}}"#
        )
    };
    let events = [read(2, "/app"), read(1, "/etc/motd"), read(3, "/gone")];
    let header = r#"{"trace":1,"image":"another version","bootstrap":"00","started":0,"blobs":[]}"#;
    let with = |events: &str, options: &[&str]| {
        std::fs::write(&trace, format!("{header}\n{events}")).unwrap();
        let traced = ["--trace", trace.to_str().unwrap()];
        convert(&fixture(), &target, &[&traced, options].concat())
    };
    with(&format!("{}\n", events.join("\n")), &[]).ok();
    let traced = digest(&place.path("nydus"), "v6");
    let mut listed = Vec::new();
    for list in ["/etc/motd\n/app\n", "/app\n/etc/motd\n"] {
        let mut child = Command::new(NYDUSIFY)
            .args(["convert", "--source", &fixture(), "--target", &target])
            .args(["--no-journal", "--prefetch-patterns"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), list.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
        listed.push(digest(&place.path("nydus"), "v6"));
    }
    assert_eq!(listed[0], traced);
    assert_ne!(listed[1], traced);
    with("", &[])
        .exits(1)
        .fails_with(&["no file was read", "start.trace"]);
    with("", &["--prefetch-dir", "/etc"])
        .exits(2)
        .fails_with(&["--trace"]);
}

/// Both signals end a conversion soon, with the shell's code, and leave nothing half-written.
#[test]
fn an_interrupted_conversion_leaves_nothing() {
    let place = Place::new();
    let mut tar = Tar::new();
    for i in 0..24 {
        tar.add(Entry::file(format!("noise{i}"), noise(i, 2 << 20)));
    }
    testkit::layout::write(&place.path("source"), &[tar.finish()], Packing::None);
    for (signal, code) in [
        (rustix::process::Signal::INT, 130),
        (rustix::process::Signal::TERM, 143),
    ] {
        let target = place.oci("nydus", "v6");
        let mut child = Command::new(NYDUSIFY)
            .args([
                "convert",
                "--source",
                &place.oci("source", "latest"),
                "--target",
                &target,
            ])
            .args(["--threads", "1", "--compression-level", "19"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It has begun when it writes to the target.
        testkit::run::wait_until("the conversion to begin", || {
            child.try_wait().unwrap().is_some() || place.path("nydus").exists()
        });
        std::thread::sleep(Duration::from_millis(200));
        let asked = Instant::now();
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), signal).unwrap();
        let ran = Ran::new("convert".into(), child.wait_with_output().unwrap()).exits(code);
        assert!(
            asked.elapsed() < Duration::from_secs(10),
            "it took {:?}: {ran}",
            asked.elapsed()
        );
        assert_clean(&place.path("nydus"), "v6");
        let _ = std::fs::remove_dir_all(place.path("nydus"));
    }
}

/// What a killed conversion leaves beside an archive goes with the next one, but not what one at work writes.
#[test]
fn a_killed_conversion_to_an_archive_leaves_nothing_for_long() {
    let place = Place::new();
    let mut tar = Tar::new();
    for i in 0..24 {
        tar.add(Entry::file(format!("noise{i}"), noise(i, 2 << 20)));
    }
    testkit::layout::write(&place.path("source"), &[tar.finish()], Packing::None);
    let archives = place.path("archives");
    std::fs::create_dir(&archives).unwrap();
    let target = format!("oci-archive:{}:v6", archives.join("image.tar").display());
    let start = || {
        Command::new(NYDUSIFY)
            .args(["convert", "--source", &place.oci("source", "latest")])
            .args(["--target", &target, "--threads", "1"])
            .args(["--compression-level", "19"])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let names = || -> std::collections::BTreeSet<_> {
        let entries = std::fs::read_dir(&archives).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect()
    };
    let begun = |count: usize| {
        testkit::run::wait_until("the conversion to begin", || names().len() == count);
        names()
    };
    let kill = |mut child: std::process::Child| {
        child.kill().unwrap();
        assert_eq!(testkit::run::code(child.wait().unwrap()), 128 + 9);
    };
    let first = start();
    let left = begun(1);
    kill(first);
    assert_eq!(names(), left);
    // The second takes away what the first left, and the third leaves alone what the second writes.
    let second = start();
    testkit::run::wait_until("the old file to go", || {
        names().len() == 1 && names() != left
    });
    // However slow the machine is, it does not get to its end.
    let stop = rustix::process::Signal::STOP;
    rustix::process::kill_process(rustix::process::Pid::from_child(&second), stop).unwrap();
    let at_work = names();
    let third = start();
    assert!(begun(2).is_superset(&at_work));
    kill(second);
    kill(third);
    assert_eq!(names().len(), 2);
    convert(&fixture(), &target, &[]).ok();
    assert_eq!(names(), ["image.tar".into()].into());
}

#[test]
fn the_program_names_its_version() {
    let ran = run(NYDUSIFY, ["--version"]).ok();
    let lines: Vec<&str> = ran.stdout.lines().collect();
    let [_, version, revision, rustc, time] = lines[..] else {
        panic!("{ran}")
    };
    for (line, name, value) in [
        (version, "Version:", "v"),
        (revision, "Revision:", ""),
        (rustc, "Rustc:", "rustc 1."),
        (time, "Build time:", ""),
    ] {
        let rest = line.strip_prefix(name).map(str::trim);
        assert!(
            rest.is_some_and(|rest| !rest.is_empty() && rest.starts_with(value)),
            "{ran}"
        );
    }
    let ran = output(
        Command::new(NYDUSIFY)
            .env("LOG_LEVEL", "nonsense")
            .arg("--version"),
    );
    assert!(ran.code == 0 || ran.code == 2, "{ran}");
}
