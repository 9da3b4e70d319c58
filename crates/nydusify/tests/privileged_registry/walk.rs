//! Random walks over everything that users do with a registry: convert, check, mount, keep a dictionary, look after the cache, one
//! after the other, while requests fail on a seeded schedule and processes are killed. Each step gives what is right or says
//! what went wrong, within a time; what is tagged is complete at any moment; nothing is left over in the end.
//!
//! `NYDUS_WALK_SEED=17 cargo test -p nydusify --test privileged_registry walk` does one walk again; with `NYDUS_WALK_COUNT=1000`
//! there are more of them.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use testkit::layout::{Flavour, Layer, Layout, Packing};
use testkit::registry::{Auth, Fault, Faults, Options, Registry, User};
use testkit::run::{Ran, is_mounted};
use testkit::tar::{Entry, Tar};
use testkit::{noise, prose};

use crate::support::*;

/// Walks, steps of each, and walks at once: most of their time they wait.
const COUNT: u64 = 12;
const STEPS: u64 = 10;
const AT_ONCE: usize = 4;
/// No command may take longer.
const DEADLINE: Duration = Duration::from_secs(90);
/// What is said of a dictionary out of which all images were taken.
const EMPTY: &str = "is empty; add images";
/// Versions of the image.
const VERSIONS: u64 = 3;

/// A number that depends on a seed and what it is for alone.
fn draw(seed: u64, what: u64, below: u64) -> u64 {
    let digest = testkit::sha256(format!("walk {seed} {what}").as_bytes());
    u64::from_str_radix(&digest[..15], 16).unwrap() % below
}

/// The files of a version: some are in all of them.
fn files(version: u64) -> Vec<(String, Vec<u8>)> {
    let own = 100 * (version + 1);
    vec![
        ("base/noise".into(), noise(1, 200_000)),
        ("base/prose".into(), prose(2, 300_000)),
        ("app/same".into(), noise(3, 100_000)),
        ("app/own".into(), noise(own, 90_000)),
        ("app/text".into(), prose(own + 1, 150_000)),
        ("little".into(), format!("version {version}\n").into_bytes()),
    ]
}

/// Writes a version of the image: a layer that all have, and its own.
fn write_image(path: &std::path::Path, version: u64) {
    let packing = [Packing::Gzip, Packing::Zstd, Packing::None][version as usize % 3];
    let layer = |of_base: bool| {
        let mut tar = Tar::new();
        for (path, content) in files(version) {
            if path.starts_with("base") == of_base {
                tar.add(Entry::file(path, content));
            }
        }
        Layer::new(&tar.finish(), if of_base { Packing::Gzip } else { packing })
    };
    let mut layout = Layout::create(path);
    let image = layout.manifest(&[layer(true), layer(false)], Flavour::Oci);
    layout.tag(&image, "latest");
}

/// One walk.
struct Walk {
    seed: u64,
    step: u64,
    /// Numbers drawn in this step.
    drawn: u64,
    registry: Registry,
    place: Place,
    /// What was done, for whoever looks for the reason of a failure.
    log: Vec<String>,
    counts: BTreeMap<&'static str, u64>,
}

/// How a command ended that may have been killed.
enum End {
    Killed,
    Ran(Ran),
}

impl Walk {
    fn new(place: Place, seed: u64) -> Self {
        let auth = match draw(seed, 0, 2) {
            0 => Auth::Basic(vec![User::new("me", "secret")]),
            _ => Auth::None,
        };
        let base = match draw(seed, 1, 2) {
            0 => Options::debian(),
            _ => Options::default(),
        };
        let registry = Registry::start(Options { auth, ..base });
        place.login(&registry.host());
        for version in 0..VERSIONS {
            let path = place.path(&format!("source-{version}"));
            write_image(&path, version);
            registry.push_layout(&path, "latest", "image", &version.to_string());
            std::fs::remove_dir_all(&path).unwrap();
        }
        Self {
            seed,
            step: 0,
            drawn: 0,
            registry,
            place,
            log: Vec::new(),
            counts: BTreeMap::new(),
        }
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.drawn += 1;
        draw(self.seed, 1000 * (self.step + 1) + self.drawn, below)
    }

    fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.registry.host())
    }

    fn dictionary(&self) -> PathBuf {
        self.place.path("dictionary")
    }

    /// A tag of a converted image, with its version.
    fn some_tag(&mut self) -> Option<(String, u64)> {
        let tags = self.registry.tags("new");
        let tags: Vec<String> = tags.into_iter().filter(|tag| tag.contains('.')).collect();
        if tags.is_empty() {
            return None;
        }
        let tag = tags[self.draw(tags.len() as u64) as usize].clone();
        let version = tag.split('.').next().unwrap().parse().unwrap();
        Some((tag, version))
    }

    /// Whether anything went wrong at the registry since this step began.
    fn is_disturbed(&self) -> bool {
        let requests = self.registry.requests();
        let mut faults = requests.iter().filter_map(|request| request.fault);
        faults.any(|fault| fault != Fault::Latency)
    }

    /// Runs the program; kills it after a while if `kill`.
    fn run(&mut self, args: &[&str], kill: bool) -> End {
        let moment = self.draw(400);
        let after = kill.then(|| Duration::from_millis(moment));
        self.log.push(format!("{} ({after:?})", args.join(" ")));
        let mut command = self.place.command(args);
        let text = format!("{command:?}");
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let id = child.id();
        let (sender, ended) = std::sync::mpsc::sync_channel(1);
        std::thread::spawn(move || sender.send(child.wait_with_output().unwrap()));
        if let Some(after) = after {
            std::thread::sleep(after);
            send(id, Signal::KILL);
        }
        let Ok(output) = ended.recv_timeout(DEADLINE) else {
            send(id, Signal::KILL);
            panic!("it hangs: {text}");
        };
        let ran = Ran::new(text, output);
        self.log.push(format!("  {}: {}", ran.code, ran.stderr));
        if kill && ran.code == 128 + 9 {
            return End::Killed;
        }
        assert!(!ran.stderr.contains("panicked"), "{ran}");
        assert!([0, 1].contains(&ran.code), "{ran}");
        if ran.code == 1 {
            let reason = self.is_disturbed() || ran.stderr.contains(EMPTY);
            assert!(reason, "nothing went wrong: {ran}");
            // What a check finds is its report.
            assert!(
                !(ran.stderr.clone() + &ran.stdout).trim().is_empty(),
                "{ran}"
            );
        }
        End::Ran(ran)
    }

    /// One thing that a user does.
    fn go(&mut self) {
        self.drawn = 0;
        self.registry.forget_requests();
        let kill = self.draw(4) == 0;
        // Without an image there is little to do.
        let what = match self.draw(10) {
            _ if self.step < 2 => self.convert(kill),
            0..4 => self.convert(kill),
            4 => self.check(),
            5 | 6 => self.mount(kill),
            7 | 8 => self.keep_dictionary(kill),
            _ => self.keep_cache(kill),
        };
        *self.counts.entry(what).or_default() += 1;
        self.assert_complete();
        self.step += 1;
    }

    /// Whatever is tagged is complete.
    fn assert_complete(&self) {
        for tag in self.registry.tags("new") {
            assert_eq!(self.registry.missing_from("new", &tag), [""; 0], "{tag}");
        }
        assert_eq!(self.registry.violations(), Vec::<String>::new());
    }

    fn convert(&mut self, kill: bool) -> &'static str {
        let version = self.draw(VERSIONS);
        let dictionary = self.dictionary().join("catalogue").exists() && self.draw(2) == 0;
        let (kind, more): (&str, &[&str]) = match self.draw(5) {
            0 => ("lz4", &["--compressor", "lz4_block"]),
            1 => ("check", &["--check"]),
            2 => ("cache", &["--no-journal", "--build-cache-tag", "cache"]),
            3 if version == 0 => ("ref", &["--oci-ref"]),
            _ => ("plain", &[]),
        };
        let kind = if dictionary { "dict" } else { kind };
        let source = self.reference(&format!("image:{version}"));
        let target = self.reference(&format!("new:{version}.{kind}"));
        let (journal, known) = (self.place.path("journal"), self.dictionary());
        let mut args = vec!["convert", "--source", &source, "--target", &target];
        args.extend(["--push-chunk-size", "65536", "--push-retry-delay", "5ms"]);
        args.extend(["--fs-chunk-size", "0x8000"]);
        match dictionary {
            true => args.extend([
                "--chunk-dict",
                known.to_str().unwrap(),
                "--dict-min-run",
                "1",
            ]),
            false => args.extend(more),
        }
        if !args.contains(&"--no-journal") {
            args.extend(["--journal-dir", journal.to_str().unwrap()]);
        }
        match self.run(&args, kill) {
            End::Killed => "convert, killed",
            End::Ran(ran) if ran.code == 0 => {
                let digest = self.registry.digest("new", &format!("{version}.{kind}"));
                assert!(digest.is_some(), "no tag: {ran}");
                "convert"
            }
            End::Ran(_) => "convert, refused",
        }
    }

    fn check(&mut self) -> &'static str {
        let Some((tag, version)) = self.some_tag() else {
            return "check, no image";
        };
        let source = self.reference(&format!("image:{version}"));
        let target = self.reference(&format!("new:{tag}"));
        match self.run(&["check", "--source", &source, "--target", &target], false) {
            End::Ran(ran) if ran.code == 0 => "check",
            _ => "check, refused",
        }
    }

    fn keep_dictionary(&mut self, kill: bool) -> &'static str {
        let dictionary = self.dictionary().to_str().unwrap().to_owned();
        let there = self.dictionary().join("catalogue").exists();
        let command = self.draw(5);
        let image = self
            .some_tag()
            .map(|(tag, _)| self.reference(&format!("new:{tag}")));
        let args: Vec<&str> = match (command, &image, there) {
            // Images by reference have no chunks of their own, and all others need one compressor.
            (0..=2, Some(image), _) if !image.ends_with("ref") && !image.ends_with("lz4") => {
                vec!["add", image]
            }
            (3, Some(image), true) => vec!["rm", image],
            (_, _, true) => vec!["gc"],
            _ => return "dictionary, none",
        };
        let args: Vec<&str> = ["chunkdict"].iter().chain(&args).copied().collect();
        let args: Vec<&str> = args.into_iter().chain(["--dict", &dictionary]).collect();
        // `rm` of an image that is not in it is refused.
        let mut command = self.place.command(&args);
        let moment = self.draw(200);
        self.log
            .push(format!("{} ({kill}, {moment})", args.join(" ")));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = command.stderr(Stdio::null()).spawn().unwrap();
        if kill {
            std::thread::sleep(Duration::from_millis(moment));
            send(child.id(), Signal::KILL);
        }
        match testkit::run::code(self.wait(&mut child)) {
            0 => "dictionary",
            1 => "dictionary, refused",
            137 if kill => "dictionary, killed",
            code => panic!("{args:?}: {code}"),
        }
    }

    fn wait(&self, child: &mut Child) -> std::process::ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            assert!(begun.elapsed() < DEADLINE, "it hangs");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn keep_cache(&mut self, kill: bool) -> &'static str {
        let cache = self.place.path("cache");
        if !cache.exists() {
            return "cache, none";
        }
        let cache = cache.to_str().unwrap().to_owned();
        let command = ["verify", "prune", "du"][self.draw(3) as usize];
        let mut args = vec!["cache", command, "--cache-dir", &cache];
        if command == "prune" {
            args.extend(["--max-size", "200KiB"]);
        }
        match self.run(&args, kill) {
            End::Killed => "cache, killed",
            End::Ran(ran) => {
                ran.ok();
                "cache"
            }
        }
    }

    fn mount_command(&mut self, tag: &str) -> Command {
        let mode = match self.draw(3) {
            0 => "auto",
            _ => "fuse",
        };
        let target = self.reference(&format!("new:{tag}"));
        let args = ["mount", "--target", &target, "--mode", mode];
        let mut command = self.place.command(&args);
        command.args(["--registry-retry-count", "2", "--registry-timeout", "5s"]);
        command.arg("--mount-path").arg(self.place.path("root"));
        command.arg("--cache-dir").arg(self.place.path("cache"));
        if self.draw(2) == 0 {
            command.arg("--no-prefetch");
        }
        command
    }

    fn mount(&mut self, kill: bool) -> &'static str {
        let Some((tag, version)) = self.some_tag() else {
            return "mount, no image";
        };
        let root = self.place.path("root");
        let mut command = self.mount_command(&tag);
        self.log.push(format!("{command:?} ({kill})"));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = command.stderr(Stdio::null()).spawn().unwrap();
        let begun = Instant::now();
        while !is_mounted(&root) {
            if let Some(status) = child.try_wait().unwrap() {
                assert_eq!(status.code(), Some(1));
                assert!(self.is_disturbed(), "not mounted, and nothing went wrong");
                return "mount, refused";
            }
            assert!(begun.elapsed() < DEADLINE, "no mount");
            std::thread::sleep(Duration::from_millis(5));
        }
        let outcome = self.read_some(version, kill);
        let root = root.to_str().unwrap().to_owned();
        self.place.run(&["umount", &root], &[]).ok();
        assert!(!is_mounted(std::path::Path::new(&root)));
        self.wait(&mut child);
        outcome
    }

    /// Reads from the mount, maybe while one of its processes is killed.
    fn read_some(&mut self, version: u64, kill: bool) -> &'static str {
        let root = self.place.path("root");
        let (files, mut errors) = (files(version), 0);
        let victim = kill.then(|| self.draw(12));
        for number in 0..12 {
            if victim == Some(number) {
                let processes = self.processes();
                let at = self.draw(processes.len() as u64) as usize;
                send(processes[at], Signal::KILL);
            }
            let (path, content) = &files[self.draw(files.len() as u64) as usize];
            let start = self.draw(content.len() as u64) as usize;
            let length = (self.draw(100_000) as usize).min(content.len() - start);
            let mut bytes = vec![0; length];
            let begun = Instant::now();
            let read = std::fs::File::open(root.join(path))
                .and_then(|file| file.read_exact_at(&mut bytes, start as u64));
            assert!(begun.elapsed() < Duration::from_secs(60), "a read hangs");
            match read {
                Ok(()) => assert!(
                    bytes == content[start..start + length],
                    "{path}: wrong bytes"
                ),
                Err(error) => {
                    assert_eq!(
                        error.raw_os_error(),
                        Some(rustix::io::Errno::IO.raw_os_error())
                    );
                    assert!(self.is_disturbed() || kill, "{path}: {error}");
                    errors += 1;
                }
            }
        }
        match (kill, errors) {
            (true, _) => "mount, killed",
            (_, 0) => "mount",
            _ => "mount, some errors",
        }
    }

    fn processes(&self) -> Vec<u32> {
        let root = self.place.path("root");
        let stat = ["stat", "--output", "json", root.to_str().unwrap()];
        // The mount is there a moment before who tells about it.
        let begun = Instant::now();
        let stat = loop {
            let ran = self.place.run(&stat, &[]);
            if ran.code == 0 || begun.elapsed() > DEADLINE {
                break ran.ok();
            }
        };
        let stat: Value = serde_json::from_str(&stat.stdout).unwrap();
        let processes = stat["processes"].as_array().unwrap().iter();
        processes
            .map(|process| process["pid"].as_u64().unwrap() as u32)
            .collect()
    }

    /// When all is well again: every image is what it should be, each can be made, and nothing is left over.
    fn end(&mut self) {
        self.registry.set_faults(Faults::none());
        self.registry.forget_requests();
        self.drawn = 500;
        for version in 0..VERSIONS {
            let source = self.reference(&format!("image:{version}"));
            let target = self.reference(&format!("new:{version}.plain"));
            let args = ["convert", "--source", &source, "--target", &target];
            let journal = self.place.path("journal");
            let journal = ["--journal-dir", journal.to_str().unwrap()];
            let more = ["--fs-chunk-size", "0x8000"];
            self.place.run(&args, &[journal, more].concat()).ok();
        }
        for tag in self.registry.tags("new") {
            let Some((version, _)) = tag.split_once('.') else {
                continue;
            };
            let source = self.reference(&format!("image:{version}"));
            let target = self.reference(&format!("new:{tag}"));
            self.place.check(&source, &target, &[]).ok();
        }
        if self.dictionary().join("catalogue").exists() {
            let dictionary = self.dictionary();
            let there = [
                "chunkdict",
                "verify",
                "--dict",
                dictionary.to_str().unwrap(),
            ];
            let ran = self.place.run(&there, &[]);
            assert!(ran.code == 0 || ran.stderr.contains(EMPTY), "{ran}");
        }
        if self.place.path("cache").exists() {
            let cache = self.place.path("cache");
            let cache = ["--cache-dir", cache.to_str().unwrap()];
            self.place.run(&["cache", "verify"], &cache).ok();
        }
        self.assert_complete();
        for empty in ["tmp", "cwd"] {
            let left = std::fs::read_dir(self.place.path(empty)).unwrap().count();
            assert_eq!(left, 0, "left in {empty}");
        }
        let root = self.place.path("root").display().to_string();
        assert!(
            !std::fs::read_to_string("/proc/self/mountinfo")
                .unwrap()
                .contains(&root),
            "still mounted"
        );
        for process in std::fs::read_dir("/proc").unwrap() {
            let words = std::fs::read(process.unwrap().path().join("cmdline"));
            let words = words.unwrap_or_default();
            let words = String::from_utf8_lossy(&words);
            assert!(!words.contains(&root), "still running: {words}");
        }
    }
}

fn send(process: u32, signal: Signal) {
    let process = Pid::from_raw(process as i32).unwrap();
    // It may have ended.
    let _ = kill_process(process, signal);
}

/// What goes wrong: now and then or often, everything or one kind of thing alone.
fn some_faults(seed: u64) -> Faults {
    let rate = [0.0, 0.02, 0.05, 0.1, 0.25][draw(seed, 10, 5) as usize];
    let kinds = match draw(seed, 11, 3) {
        0 => vec![Fault::ALL[draw(seed, 12, Fault::ALL.len() as u64) as usize]],
        _ => Fault::ALL.to_vec(),
    };
    Faults::of(seed, rate, &kinds)
        .latency(Duration::from_millis(5))
        .retry_after(0)
}

#[test]
fn privileged_walks_end_well() {
    const NAME: &str = "privileged_walks_end_well";
    let seeds = testkit::seeds("WALK", COUNT);
    if Place::new(NAME).is_none() {
        return;
    }
    let next = AtomicU64::new(seeds.start);
    let (counts, failed) = (Mutex::new(BTreeMap::new()), Mutex::new(Vec::new()));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end || failed.lock().unwrap().len() >= 5 {
                return;
            }
            let mut walk = Walk::new(Place::new(NAME).unwrap(), seed);
            walk.registry.set_faults(some_faults(seed));
            let all = std::panic::AssertUnwindSafe(|| {
                for _ in 0..STEPS {
                    walk.go();
                }
                walk.end();
            });
            if std::panic::catch_unwind(all).is_err() {
                eprintln!("walk {seed}:\n{}", walk.log.join("\n"));
                failed.lock().unwrap().push(seed);
            }
            let mut counts = counts.lock().unwrap();
            for (what, count) in &walk.counts {
                *counts.entry(*what).or_insert(0) += count;
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(work);
        }
    });
    let failed = failed.into_inner().unwrap();
    println!("{:?}", counts.into_inner().unwrap());
    assert!(
        failed.is_empty(),
        "NYDUS_WALK_SEED of the walks that failed: {failed:?}"
    );
}
