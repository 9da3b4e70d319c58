//! Every command that writes, with too little of something: room on the disk, descriptors, memory, the right to write. It does its
//! work, or says what is missing; it leaves no tag and no unfinished file, and works again when there is enough.

use std::path::Path;
use std::process::Command;

use testkit::run::{Ran, output, run};
use testkit::{shared_or_skip, skip};

use crate::support::*;

/// What is done, with `out` as the directory that everything goes to.
struct Job {
    name: &'static str,
    args: Vec<String>,
}

/// All of them; `source` is a Nydus image for those that begin with one.
fn jobs(out: &Path, nydus: &str) -> Vec<Job> {
    let plain = fixture();
    let out = |name: &str| out.join(name).display().to_string();
    let layout = |name: &str| format!("oci:{}:new", out(name));
    let (journal, list) = (out("journal"), out("../list.json"));
    let job = |name, args: &[&str]| Job {
        name,
        args: args.iter().map(|&arg| arg.to_owned()).collect(),
    };
    let convert = [
        "convert",
        "--source",
        &plain,
        "--journal-dir",
        &journal,
        "--target",
    ];
    let with = |target: &str, more: &[&str]| {
        let args: Vec<&str> = convert.iter().copied().chain([target]).collect();
        [&args[..], more].concat().join("\n")
    };
    let split = |text: String| text.split('\n').map(str::to_owned).collect();
    vec![
        Job {
            name: "convert",
            args: split(with(&layout("layout"), &[])),
        },
        Job {
            name: "convert, by reference",
            args: split(with(&layout("layout"), &["--oci-ref"])),
        },
        Job {
            name: "convert, an archive",
            args: split(with(
                &format!("oci-archive:{}", out("new.tar")),
                &["--check"],
            )),
        },
        job(
            "copy",
            &["copy", "--source", nydus, "--target", &layout("layout")],
        ),
        job(
            "optimize",
            &[
                "optimize",
                "--source",
                nydus,
                "--target",
                &layout("layout"),
                "--prefetch-files",
                &list,
            ],
        ),
        job(
            "chunkdict add",
            &["chunkdict", "add", nydus, "--dict", &out("dictionary")],
        ),
        job("index", &["index", &plain, "--cache-dir", &out("cache")]),
        job("check", &["check", "--source", &plain, "--target", nydus]),
    ]
}

/// A place with a converted image, and a directory to write to.
fn place(name: &str) -> Option<(Place, String)> {
    let place = Place::new(name)?;
    let nydus = place.converted(&fixture(), &["--fs-chunk-size", "0x10000"]);
    place.directory("out");
    let list = r#"{"version":"v1","files":[{"path":"/bin/busybox"}]}"#;
    std::fs::write(place.path("list.json"), list).unwrap();
    Some((place, nydus))
}

/// A file system in memory on a directory.
struct Room<'a>(&'a Path);

impl<'a> Room<'a> {
    fn new(at: &'a Path, options: &str) -> Self {
        let at_text = at.to_str().unwrap();
        run("mount", ["-t", "tmpfs", "-o", options, "tmpfs", at_text]).ok();
        Self(at)
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        run("umount", [self.0.to_str().unwrap()]).ok();
    }
}

/// What a failure must leave: nothing that is tagged, nothing unfinished.
#[track_caller]
fn assert_nothing_half(out: &Path, job: &str) {
    let found = testkit::scan::scan(out).unwrap();
    for path in found.keys() {
        let path = String::from_utf8_lossy(path);
        let name = path.rsplit('/').next().unwrap_or_default();
        assert!(!name.starts_with('.'), "{job} left {path}");
        assert_ne!(name, "new.tar", "{job}");
    }
    let index = std::fs::read_to_string(out.join("layout/index.json")).unwrap_or_default();
    assert!(!index.contains("new"), "{job} left a tag: {index}");
}

/// Insists on success, or on a clear failure that names one of `reasons` and leaves nothing.
#[track_caller]
fn assert_good_or_clean(ran: Ran, job: &Job, out: &Path, reasons: &[&str]) -> bool {
    assert!(!ran.stderr.contains("panicked"), "{}: {ran}", job.name);
    if ran.code == 0 {
        return true;
    }
    let ran = ran.exits(1);
    assert!(
        reasons.iter().any(|reason| ran.stderr.contains(reason)),
        "{}: {ran}",
        job.name
    );
    assert_nothing_half(out, job.name);
    false
}

#[test]
fn privileged_a_full_disk_leaves_nothing_half_written() {
    const NAME: &str = "privileged_a_full_disk_leaves_nothing_half_written";
    let Some((place, nydus)) = place(NAME) else {
        return;
    };
    let out = place.path("out");
    for job in jobs(&out, &nydus) {
        let (mut failed, mut worked) = (0, 0);
        for kib in [4, 8, 32, 100, 300, 600, 900, 8192] {
            let _room = Room::new(&out, &format!("size={kib}k"));
            let ran = run(NYDUSIFY, &job.args);
            match assert_good_or_clean(ran, &job, &out, &["No space left on device"]) {
                true => worked += 1,
                false => failed += 1,
            }
        }
        assert!(worked > 0, "{} never works", job.name);
        assert!(
            failed > 0 || job.name == "check",
            "{} needs no room",
            job.name
        );
    }
}

#[test]
fn privileged_what_cannot_be_written_to_is_named() {
    const NAME: &str = "privileged_what_cannot_be_written_to_is_named";
    let Some((place, nydus)) = place(NAME) else {
        return;
    };
    let out = place.path("out");
    for job in jobs(&out, &nydus) {
        let _room = Room::new(&out, "ro");
        let ran = run(NYDUSIFY, &job.args);
        if job.name == "check" {
            ran.ok();
            continue;
        }
        let named = out.to_str().unwrap();
        assert!(ran.stderr.contains(named), "{}: {ran}", job.name);
        assert_good_or_clean(ran, &job, &out, &["Read-only file system"]);
    }
}

#[test]
fn privileged_few_descriptors_are_no_panic() {
    const NAME: &str = "privileged_few_descriptors_are_no_panic";
    let Some((place, nydus)) = place(NAME) else {
        return;
    };
    let out = place.path("out");
    for job in jobs(&out, &nydus) {
        let mut worked = false;
        for most in [8, 10, 12, 14, 17, 20, 25, 40, 1024] {
            let _room = Room::new(&out, "size=16m");
            let limit = format!("--nofile={most}");
            let mut command = Command::new("prlimit");
            let ran = output(command.arg(limit).arg(NYDUSIFY).args(&job.args));
            worked = assert_good_or_clean(ran, &job, &out, &["Too many open files"]);
        }
        assert!(worked, "{} never works", job.name);
    }
}

/// A control group of the first version that limits memory.
struct Group(std::path::PathBuf);

impl Group {
    fn new(bytes: u64) -> Option<Self> {
        let name = format!("nydusify-test-{}", std::process::id());
        let path = Path::new("/sys/fs/cgroup/memory").join(name);
        std::fs::create_dir(&path).ok()?;
        let group = Self(path);
        std::fs::write(group.0.join("memory.limit_in_bytes"), bytes.to_string()).ok()?;
        Some(group)
    }

    /// The program in the group.
    fn run(&self, args: &[String]) -> Ran {
        let script = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", self.0.display());
        let mut command = Command::new("sh");
        command.args(["-c", &script, "sh", NYDUSIFY]).args(args);
        output(&mut command)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// 128 MiB are enough for images of any size, as the page cache gives way.
#[test]
fn privileged_a_small_container_is_enough() {
    const NAME: &str = "privileged_a_small_container_is_enough";
    let (Some(place), Some(shared)) = (Place::new(NAME), shared_or_skip(NAME)) else {
        return;
    };
    let Some(group) = Group::new(128 << 20) else {
        return skip(NAME, "there can be no control group for memory here");
    };
    let source = format!("oci:{}:node", shared.join("images").display());
    let target = place.oci("new", "node");
    let text = |words: &[&str]| -> Vec<String> { words.iter().map(|&w| w.to_owned()).collect() };
    let convert = [
        "convert",
        "--source",
        &source,
        "--target",
        &target,
        "--no-journal",
    ];
    let limit = ["--memory", "64MiB", "--check"];
    group.run(&text(&[&convert[..], &limit].concat())).ok();
    let check = ["check", "--source", &source, "--target", &target];
    group.run(&text(&check)).ok();
}
