//! Conversions from registry to registry hold nothing: no data on disk, and little in memory.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use testkit::layout::{self, Packing};
use testkit::registry::{Options, Registry};
use testkit::tar::{Entry, Tar};

const NYDUSIFY: &str = env!("CARGO_BIN_EXE_nydusify");
const MIB: u64 = 1 << 20;

/// What the kernel counted of a process that has not been waited for.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    /// Bytes that went to file systems.
    written: u64,
    /// Most memory that was in use, the program's own code aside.
    peak: u64,
}

impl Seen {
    /// Watches a process until it ends.
    fn of(child: &mut Child) -> Self {
        let mut seen = Self::default();
        let of = |file: &str| Path::new("/proc").join(child.id().to_string()).join(file);
        let (io, status) = (of("io"), of("status"));
        while child.try_wait().unwrap().is_none() {
            let number = |path: &Path, key: &str| -> Option<u64> {
                let text = std::fs::read_to_string(path).ok()?;
                let line = text.lines().find_map(|line| line.strip_prefix(key))?;
                line.split_whitespace().next()?.parse().ok()
            };
            seen.written = number(&io, "write_bytes:").unwrap_or(0).max(seen.written);
            seen.peak = (number(&status, "RssAnon:").unwrap_or(0) << 10).max(seen.peak);
            std::thread::sleep(Duration::from_millis(2));
        }
        seen
    }
}

#[test]
fn nothing_is_kept_on_disk_and_memory_stays_within_its_budget() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    let layers: Vec<Vec<u8>> = (0..3)
        .map(|layer| {
            let mut tar = Tar::new();
            for file in 0..4 {
                let data = testkit::noise(layer * 10 + file, 16 << 20);
                tar.add(Entry::file(format!("noise-{layer}-{file}"), &data));
            }
            tar.finish()
        })
        .collect();
    layout::write(&path("source"), &layers, Packing::None);
    drop(layers);
    let registry = Registry::start(Options {
        directory: Some(path("registry")),
        ..Options::default()
    });
    registry.push_layout(&path("source"), "latest", "source", "big");
    std::fs::create_dir(path("home")).unwrap();
    let mut child = Command::new(NYDUSIFY)
        .args(["convert", "--plain-http", "--memory", "64MiB", "--source"])
        .arg(format!("{}/source:big", registry.host()))
        .args(["--target", &format!("{}/target:big", registry.host())])
        .env("HOME", path("home"))
        .env("TMPDIR", path("home"))
        .env_remove("XDG_CACHE_HOME")
        .env("NO_PROXY", "*")
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let seen = Seen::of(&mut child);
    assert!(child.wait().unwrap().success());
    // The journal is all: a few hundred bytes per layer, in blocks.
    assert!(seen.written <= 64 << 10, "{seen:?}");
    // The budget, and what threads, compressors and connections of two layers at once take besides; the image has 192.
    assert!((MIB..=144 * MIB).contains(&seen.peak), "{seen:?}");
    assert!(registry.missing_from("target", "big").is_empty());
    assert!(registry.counters().received > 180 * MIB);
}
