//! `cargo xtask demo`: the whole story on one screen.

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use testkit::run::is_mounted;

use crate::system;

/// Builds the tools, converts an image, checks it, mounts it and reads a file.
pub fn run(image: Option<String>) -> Result<()> {
    prerequisites()?;
    let source = image.unwrap_or_else(|| {
        format!(
            "oci:{}:{}",
            testkit::fixture::busybox().display(),
            testkit::fixture::BUSYBOX_TAG
        )
    });
    step("Build the tools (release)");
    system::run(system::cargo().args([
        "build",
        "--release",
        "--package",
        "nydusify",
        "--package",
        "nydus-image",
    ]))?;
    let nydusify = system::target_directory().join("release/nydusify");
    let scratch = tempfile::Builder::new().prefix("nydus-demo-").tempdir()?;
    let target = format!("oci:{}:demo", scratch.path().join("nydus").display());

    step(&format!("Convert {source}"));
    timed(Command::new(&nydusify).args(["convert", "--source", &source, "--target", &target]))?;

    step("Prove the result equal to its source, without root and without a mount");
    timed(Command::new(&nydusify).args(["check", "--source", &source, "--target", &target]))?;

    step("Mount it lazily (prefetch in the background is off, to show what a read alone fetches)");
    let mount = Mounted::new(&nydusify, &target, scratch.path())?;
    println!(
        "ready after {} ms, nothing of the files' data fetched yet",
        mount.ready.as_millis()
    );
    list(&mount.at)?;

    let file = a_file(&mount.at)?;
    step(&format!(
        "Read /{}",
        file.strip_prefix(&mount.at)?.display()
    ));
    let bytes = std::fs::read(&file).with_context(|| file.display().to_string())?;
    print!("{}", preview(&bytes));
    println!(
        "to read these {} bytes, {} of {} of file data were fetched and verified",
        bytes.len(),
        size(fetched(&mount.cache)),
        size(data_size(&mount.at)),
    );

    step("Unmount");
    mount.end()?;
    println!(
        "\nDone. Your own image: cargo xtask demo docker-archive:FILE (what `docker save` writes)"
    );
    Ok(())
}

fn prerequisites() -> Result<()> {
    if !Path::new("/dev/fuse").exists() {
        bail!(
            "no /dev/fuse: load the fuse module (modprobe fuse), or give the container the device"
        );
    }
    system::require(&[("fusermount3", "fuse3")])
}

fn step(what: &str) {
    println!("\n== {what}");
}

fn timed(command: &mut Command) -> Result<()> {
    let started = Instant::now();
    system::run(command)?;
    println!("took {} ms", started.elapsed().as_millis());
    Ok(())
}

/// A mount in a process of its own; ends with this value.
struct Mounted {
    at: PathBuf,
    cache: PathBuf,
    ready: Duration,
    child: std::process::Child,
}

impl Mounted {
    fn new(nydusify: &Path, target: &str, scratch: &Path) -> Result<Self> {
        let (at, cache) = (scratch.join("root"), scratch.join("cache"));
        std::fs::create_dir(&at)?;
        let started = Instant::now();
        let child = Command::new(nydusify)
            .args(["mount", "--target", target, "--mount-path"])
            .arg(&at)
            .args(["--no-prefetch", "--cache-dir"])
            .arg(&cache)
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| nydusify.display().to_string())?;
        let mut mount = Self {
            at,
            cache,
            ready: Duration::ZERO,
            child,
        };
        while !is_mounted(&mount.at) {
            if let Some(status) = mount.child.try_wait()? {
                bail!("the mount ended at once: {status}");
            }
            if started.elapsed() > Duration::from_secs(30) {
                bail!("the mount is not ready after half a minute");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        mount.ready = started.elapsed();
        Ok(mount)
    }

    fn interrupt(&self) -> Result<()> {
        let pid = rustix::process::Pid::from_child(&self.child);
        Ok(rustix::process::kill_process(
            pid,
            rustix::process::Signal::INT,
        )?)
    }

    fn end(mut self) -> Result<()> {
        self.interrupt()?;
        self.child.wait()?;
        if is_mounted(&self.at) {
            bail!("{}: still mounted", self.at.display());
        }
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.interrupt();
            let _ = self.child.wait();
        }
    }
}

fn list(root: &Path) -> Result<()> {
    let mut names: Vec<String> = std::fs::read_dir(root)?
        .flatten()
        .map(|entry| {
            let slash = if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                "/"
            } else {
                ""
            };
            format!("{}{slash}", entry.file_name().to_string_lossy())
        })
        .collect();
    names.sort();
    println!("{}", names.join("  "));
    Ok(())
}

/// A file worth reading: one that most images have, else the first with content.
fn a_file(root: &Path) -> Result<PathBuf> {
    let usual = ["etc/os-release", "usr/lib/os-release", "etc/passwd"].map(|name| root.join(name));
    let is_file = |path: &PathBuf| {
        path.symlink_metadata()
            .is_ok_and(|data| data.is_file() && data.len() > 0)
    };
    let found = usual.into_iter().find(is_file);
    match found {
        Some(path) => Ok(path),
        None => walk(root)
            .into_iter()
            .find(is_file)
            .context("the image holds no file with content"),
    }
}

/// Every path below `root`, parents first.
fn walk(root: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    let mut next = vec![root.to_path_buf()];
    while let Some(directory) = next.pop() {
        for entry in std::fs::read_dir(&directory)
            .into_iter()
            .flatten()
            .flatten()
        {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                next.push(path.clone());
            }
            out.push(path);
        }
    }
    out
}

/// Bytes of file data in the tree, each hard-linked file once.
fn data_size(root: &Path) -> u64 {
    let mut files = std::collections::BTreeMap::new();
    for data in walk(root)
        .iter()
        .filter_map(|path| path.symlink_metadata().ok())
        .filter(|data| data.is_file())
    {
        files.insert(data.ino(), data.len());
    }
    files.values().sum()
}

/// Bytes that cache files take on disk. They are sparse: what was not fetched takes none.
fn fetched(cache: &Path) -> u64 {
    let is_data = |path: &&PathBuf| path.extension() == Some(OsStr::new("data"));
    let blocks = |path: &PathBuf| path.metadata().map_or(0, |data| data.blocks() * 512);
    walk(cache).iter().filter(is_data).map(blocks).sum()
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} bytes"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

/// The first lines of a text; nothing of other data.
fn preview(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text
            .lines()
            .take(5)
            .map(|line| format!("    {line}\n"))
            .collect(),
        Err(_) => String::new(),
    }
}
