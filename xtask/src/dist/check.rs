//! `cargo xtask dist --check`: whether what was made is what is said of it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{ARCHITECTURES, Architecture, PROGRAMS, Place, build, read};
use crate::system;

/// Runs all checks; programs of another processor run in an emulator.
pub fn check(place: &Place) -> Result<()> {
    system::require(&[("readelf", "binutils"), ("sha256sum", "coreutils")])?;
    let scratch = tempfile::Builder::new().prefix("nydus-dist-").tempdir()?;
    let commit = place.git(&["rev-parse", "HEAD"])?;
    let mut results = Vec::new();
    for architecture in &ARCHITECTURES {
        let emulator = emulator(architecture)?;
        let runner = Runner {
            bin: place.tree(architecture).join("bin"),
            emulator,
            home: scratch.path(),
        };
        for program in PROGRAMS {
            is_static(&runner.bin.join(program), architecture)?;
            let said = runner.run(program, &["--version"])?;
            if !said.contains(commit.trim()) {
                bail!(
                    "{program} --version does not name {}: {said}",
                    commit.trim()
                );
            }
        }
        let result = scratch.path().join(architecture.name);
        convert(&runner, &result)?;
        println!("{}: static, runs, converts", architecture.name);
        results.push(result);
    }
    for other in &results[1..] {
        same(&results[0], other)?;
    }
    println!("images that they made are equal byte by byte");
    system::run(
        Command::new("sha256sum")
            .args(["--check", "--quiet", "SHA256SUMS"])
            .current_dir(place.dist()),
    )
}

/// What runs programs of an architecture, if this machine does not.
fn emulator(architecture: &Architecture) -> Result<Option<String>> {
    if architecture.machine == build::native()?.machine {
        return Ok(None);
    }
    let emulator = format!("qemu-{}-static", architecture.machine);
    system::require(&[(&emulator, "qemu-user-static")])?;
    Ok(Some(emulator))
}

/// Runs programs of one architecture.
struct Runner<'a> {
    bin: PathBuf,
    emulator: Option<String>,
    /// Where they find no caches of before.
    home: &'a Path,
}

impl Runner<'_> {
    fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let program = self.bin.join(program);
        let mut command = match &self.emulator {
            None => Command::new(program),
            Some(emulator) => {
                let mut command = Command::new(emulator);
                command.arg(program);
                command
            }
        };
        let cache = self.home.join("cache").join(self.bin_name());
        system::output(command.args(arguments).env("XDG_CACHE_HOME", cache))
    }

    fn bin_name(&self) -> String {
        self.bin.display().to_string().replace('/', "-")
    }
}

/// Nothing is loaded when it starts: no interpreter, no library.
fn is_static(binary: &Path, architecture: &Architecture) -> Result<()> {
    let mut readelf = Command::new("readelf");
    readelf.args(["--wide", "--file-header", "--program-headers", "--dynamic"]);
    let said = system::output(readelf.arg(binary).env("LC_ALL", "C"))?;
    let name = binary.display();
    for (sign, what) in [
        ("INTERP", "has an interpreter"),
        ("(NEEDED)", "needs a library"),
    ] {
        if said.contains(sign) {
            bail!("{name}: not static, it {what}\n{said}");
        }
    }
    let machine = said
        .lines()
        .find_map(|line| line.trim().strip_prefix("Machine:"))
        .with_context(|| format!("{name}: readelf names no machine"))?
        .to_lowercase()
        .replace('-', "_");
    if !machine.contains(architecture.machine) {
        bail!("{name}: for {machine}, not {}", architecture.machine);
    }
    Ok(())
}

/// Converts the busybox fixture and the golden sources of the builder's command into `directory`, and checks them.
fn convert(runner: &Runner, directory: &Path) -> Result<()> {
    std::fs::create_dir(directory)?;
    let fixture = testkit::fixture::busybox();
    let source = format!(
        "oci:{}:{}",
        fixture.display(),
        testkit::fixture::BUSYBOX_TAG
    );
    for (tag, options) in [
        ("zstd", &[][..]),
        ("lz4", &["--compressor", "lz4_block"][..]),
        ("v5", &["--fs-version", "5"][..]),
    ] {
        let target = format!("oci:{}:{tag}", directory.join("layout").display());
        let images = ["--source", &source, "--target", &target, "--all-platforms"];
        let convert = [&["convert"], &images[..], options].concat();
        runner.run("nydusify", &convert)?;
        runner.run(
            "nydusify",
            &["check", "--source", &source, "--target", &target],
        )?;
    }
    let layers = testkit::layout::layer_files(&fixture, testkit::fixture::BUSYBOX_TAG);
    let layer = layers.first().context("the fixture has no layers")?;
    let [blob, boot] = ["blob", "boot"].map(|name| directory.join(name).display().to_string());
    let layer = layer.display().to_string();
    let create = [
        "create",
        "--type",
        "targz-rafs",
        "--blob",
        &blob,
        "--bootstrap",
        &boot,
        &layer,
    ];
    runner.run("nydus-image", &create)?;
    runner.run("nydus-image", &["check", "--bootstrap", &boot])?;
    Ok(())
}

/// Compares two trees of files.
fn same(one: &Path, other: &Path) -> Result<()> {
    let (left, right) = (files(one)?, files(other)?);
    if left != right {
        bail!(
            "{} and {} hold different files: {left:?}, {right:?}",
            one.display(),
            other.display()
        );
    }
    for name in left {
        let (left, right) = (one.join(&name), other.join(&name));
        if read(&left)? != read(&right)? {
            bail!("{} and {} differ", left.display(), right.display());
        }
    }
    Ok(())
}

/// The files below a directory, by their paths in it, in order.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut out = Vec::new();
    let mut next = vec![directory.to_path_buf()];
    while let Some(at) = next.pop() {
        for entry in std::fs::read_dir(&at).with_context(|| at.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() {
                next.push(path);
            } else {
                out.push(path.strip_prefix(directory)?.to_path_buf());
            }
        }
    }
    out.sort_unstable();
    Ok(out)
}
